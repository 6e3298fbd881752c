"""Which variant bears what? Every arm under the stress test, on real hippocampi and on generated knees, seed by seed.

    python benchmarks/stress_study.py hippocampus DATA -o OUTPUT/hippocampus/seed1 --seed 1
    python benchmarks/stress_study.py knee -o OUTPUT/knee/seed1 --seed 1

``DATA`` has ``images/`` and ``labels/`` of the same names (Medical Segmentation Decathlon, Task04). Half of the cases
are the training cases of fold 0; the other half, which no network of that fold has seen, is what the stress test
corrupts. Every seed has its own networks throughout: G, A, the network that says what two passes erase, and those
that are compared. All are 2-D, small and briefly trained, by the commands that a user types. What is done is kept, so
that the script goes on where it was stopped. Tables over seeds: ``benchmarks/stress_table.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import SimpleITK as sitk
from console import Console

from nnunet_anomaly.files import save_json, write_image

PLANS = "nnUNetAnomalyTinyPlans"
GRID = ("24", "64", "64")  # of 4.7 x 2.2 x 2.2 mm
A_MAPS, TWO_PASSES = "Dataset311_ErrorMaps", "Dataset312_ErrorMapsTwoPasses"


class Study(Console):
    """The study's commands, for one dataset and one seed."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args.output, args.device)
        self.data, self.cases = args.data, args.cases
        self.epochs, self.inpainting_epochs, self.seed = args.epochs, args.inpainting_epochs, args.seed
        self.severities, self.test_cases = args.severities, args.test_cases
        self.dataset = "Dataset300_Hippocampus" if args.dataset == "hippocampus" else "Dataset300_Knee"

    def trainer(self, name: str) -> str:
        """Trainer of the chosen number of epochs."""
        return f"nnUNetTrainer{name}_{self.inpainting_epochs if name.startswith('Inpainting') else self.epochs}epochs"

    def train(
        self, dataset: str, trainer: str, fold: int = 0, configuration: str = "2d", plans: str = "seeded"
    ) -> None:
        """nnU-Net's training."""
        what = (dataset[7:10], configuration, str(fold), "-tr", self.trainer(trainer), "-p", plans)
        self.call("nnUNetv2_train", *what, "-device", self.device)

    def plan(self, dataset: str, *assignments: str, name: str = "seeded") -> None:
        """Plans with this study's seed, and whatever else is set."""
        sets = [part for text in (f"seed={self.seed}", *assignments) for part in ("--set", text)]
        self.call("nnunet-anomaly", "plan", "-d", dataset, "-p", PLANS, *sets, "--save-as", name)

    def preprocess(self, dataset: str, *configurations: str) -> None:
        """Plans of a small network, and preprocessed cases."""
        command = ("nnUNetv2_plan_and_preprocess", "-d", dataset[7:10], "-pl", "nnUNetPlannerAnomalyTiny", "-np", "2")
        self.call(*command, "-npfp", "2", "-c", "2d", *configurations)

    def write_dataset(self) -> None:
        """The raw dataset, with two folds."""
        raw = self.output / "nnUNet_raw" / self.dataset
        if self.data is None:
            release = str(self.output / "release")
            knees = ("--cases", str(self.cases), "--seed", "1", "--lesions", "none", "--grid", *GRID)
            self.call("nnunet-anomaly", "phantom", "knee", *knees, "-o", release, "-np", "2")
            where = (f"{release}/OAI-ZIB", "--oai-root", f"{release}/oai", "-d", "300", "--name", "Knee", "--two-fold")
            self.call("nnunet-anomaly", "convert", "oai-zib", *where, "-np", "2")
        elif not (raw / "dataset.json").is_file():
            write_hippocampi(self.data, raw)

    def train_all(self) -> None:
        """Plain nnU-Net, G and A of both folds, error maps of both kinds, and all arms on fold 0."""
        data = self.dataset
        self.preprocess(data, "2d_inpainting")
        self.plan(data)
        for fold in (0, 1):  # both, for error maps out of fold
            self.train(data, "Seeded", fold)
            self.train(data, "Inpainting", fold, "2d_inpainting")
            self.train(data, "InpaintingMimic", fold, "2d_inpainting")
        self.train(data, "AnomalyAugmentation")
        plain = f"{self.trainer('Seeded')}__seeded__2d"
        for derived, trainer, masks in (
            (A_MAPS, "InpaintingMimic", ()),
            (TWO_PASSES, "Inpainting", ("--masks-from", plain)),
        ):
            made = ("-d", data, "-tr", self.trainer(trainer), "-p", "seeded", "-c", "2d_inpainting", *masks)
            self.call("nnunet-anomaly", "error-maps", *made, "-o", derived, "-np", "1", "-device", self.device)
            self.preprocess(derived)
            self.plan(derived)
            self.train(derived, "AnomalyAware")
        model = f"{data}/{self.trainer('InpaintingMimic')}__seeded__2d_inpainting"
        self.plan(data, f"end_to_end.model={model}", name="end_to_end")
        self.train(data, "AnomalyAwareEndToEnd", plans="end_to_end")
        self.train(data, "AnomalyAwareJoint", plans="end_to_end")
        self.plan(data, f"end_to_end.model={model}", "end_to_end.lesion_augmentation=true", name="end_to_end_augmented")
        self.train(data, "AnomalyAwareEndToEnd", plans="end_to_end_augmented")

    def stress(self) -> None:
        """The stress test of all arms on the cases that fold 0 holds out; also with component cleaning."""
        data = self.dataset
        arms = {
            "plain nnU-Net": f"{data}/{self.trainer('Seeded')}__seeded__2d",
            "lesion augmentation": f"{data}/{self.trainer('AnomalyAugmentation')}__seeded__2d",
            "channel by A": f"{A_MAPS}/{self.trainer('AnomalyAware')}__seeded__2d",
            "channel by two passes": f"{TWO_PASSES}/{self.trainer('AnomalyAware')}__seeded__2d",
            "end to end": f"{data}/{self.trainer('AnomalyAwareEndToEnd')}__end_to_end__2d",
            "end to end + augmentation": f"{data}/{self.trainer('AnomalyAwareEndToEnd')}__end_to_end_augmented__2d",
            "joint": f"{data}/{self.trainer('AnomalyAwareJoint')}__end_to_end__2d",
        }
        models = [part for model in arms.values() for part in ("-tr", model)]
        how = ("--severities", *self.severities, "--cleaned", "--disable_tta", "-np", "1", "-device", self.device)
        cases = ("--cases", str(self.test_cases)) if self.test_cases else ()
        what = ("-d", data, *models, "--names", *arms, "-f", "0", *cases, "-o", str(self.output / "stress"))
        self.call("nnunet-anomaly", "stress", *what, *how)


def write_hippocampi(data: Path, raw: Path) -> None:
    """All cases as a dataset of two folds."""
    names = sorted(path.name.removesuffix(".nii.gz") for path in (data / "images").glob("*.nii.gz"))
    for name in names:
        image = sitk.Cast(sitk.ReadImage(str(data / "images" / f"{name}.nii.gz")), sitk.sitkFloat32)
        labels = sitk.Cast(sitk.ReadImage(str(data / "labels" / f"{name}.nii.gz")), sitk.sitkUInt8)
        labels.CopyInformation(image)
        write_image(image, raw / "imagesTr" / f"{name}_0000.nii.gz")
        write_image(labels, raw / "labelsTr" / f"{name}.nii.gz")
    halves = names[::2], names[1::2]
    save_json(
        [{"train": train, "val": held_out} for train, held_out in (halves, halves[::-1])], raw / "splits_final.json"
    )
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
        "numTraining": len(names),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "anomaly": {"channel_roles": {"0": "image"}, "roi_labels": ["anterior", "posterior"]},
    }
    save_json(description, raw / "dataset.json")


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=("hippocampus", "knee"))
    parser.add_argument("data", type=Path, nargs="?", help="of the hippocampi")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--cases", type=int, default=20, help="generated knees (default: 20)")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--inpainting-epochs", type=int, default=8)
    parser.add_argument("--severities", nargs="+", default=("0.5", "1"))
    parser.add_argument("--test-cases", type=int, help="default: all that fold 0 holds out")
    parser.add_argument("-device", default="cpu")
    args = parser.parse_args()
    if (args.dataset == "hippocampus") != (args.data is not None):
        parser.error("hippocampus takes the folder of its images and labels; knee takes none")
    study = Study(args)
    study.write_dataset()
    study.train_all()
    study.stress()


if __name__ == "__main__":
    main()
