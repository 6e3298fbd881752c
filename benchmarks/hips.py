"""Ablation of Xu et al. (table 1) and their interactive loop, on generated pelves with inferior and accurate labels.

    python benchmarks/hips.py -o OUTPUT [--seeds 1 2] [--pretrain-epochs 4] [--epochs 3] [--test 9] [-device cpu]

Pre-training on ten pelves whose labels close the joints; fine-tuning on two accurate ones; prediction of two more,
which are corrected (here: replaced by the truth) and added; fine-tuning on four. After every step the collisions |E|
of the test cases are counted. Arms: ours (multi-planar, weighted, pre-trained), then pre-training or weights left out,
or the 3-D U-Net instead. What is done is kept, so that the script goes on where it was stopped. ``OUTPUT/table.md`` has
mean and SD over seeds of means over test cases, without and with the paper's post-processing, ``OUTPUT/hips.png``
shows one of them.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from console import Console, over_seeds

from nnunet_anomaly.files import save_json
from nnunet_anomaly.planes import Plane, plane_of
from nnunet_anomaly.report.figures import overlay_figure, save_figure
from nnunet_anomaly.report.page import markdown_table

PRETRAINING, FIRST, SECOND = 10, 2, 4  # cases
INFERIOR, TWO, FOUR = "501", "502", "503"
PLANAR, VOLUME = "nnUNetTrainerMultiPlanarGapWeighted", "nnUNetTrainerGapWeighted"
# Joints of the phantom's small grid are 5 to 8 mm wide, and its voxels up to 3.25 mm: the paper's lengths, which are
# for gaps of some 4 mm and voxels of 0.78 mm, grow with them.
WEIGHTS = {"gap_weights.sigma_mm": 6.5, "gap_weights.erosion_mm": 3.3}
GAP_MM, COLLISION_MM = "13", "3.3"
# The paper's optimiser: hundreds of steps of nnU-Net's on the cross-entropy alone hardly leave the background.
LEARNING = {"fine_tuning.optimizer": "adam", "fine_tuning.learning_rate": 1e-3}


@dataclass(frozen=True)
class Arm:
    """One way to learn: trainer, configuration, and which of the paper's means it has."""

    name: str
    trainer: str = PLANAR
    configuration: str = "3d_multiplanar"
    pretrained: bool = True
    weighted: bool = True


ARMS = (
    Arm("ours"),
    Arm("no pre-training", pretrained=False),
    Arm("no weights", weighted=False),
    Arm("3-D U-Net", VOLUME, "3d_fullres"),
)


class Hips(Console):
    """The study's data, networks, predictions and figures."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args.output, args.device)
        self.args = args
        self.plans = args.planner.replace("nnUNetPlanner", "nnUNet") + "Plans"

    # -- data ---------------------------------------------------------------------------------------------------------

    def make_data(self) -> None:
        """Phantom; datasets of inferior labels, of two and of four accurate ones; all with the plans of the first."""
        phantom = self.output / "phantom"
        cases = PRETRAINING + SECOND + self.args.test
        what = ("--cases", str(cases), "--seed", "1", "--inferior", "--nifti", "-np", "2")
        self.call("nnunet-anomaly", "phantom", "hip", *what, "-o", str(phantom))
        names = sorted(path.name.removesuffix(".nii.gz") for path in (phantom / "truth" / "labels").glob("*.nii.gz"))
        parts = {
            INFERIOR: names[:PRETRAINING],
            TWO: names[PRETRAINING : PRETRAINING + FIRST],
            FOUR: names[PRETRAINING : PRETRAINING + SECOND],
        }
        self.link("next", names[PRETRAINING + FIRST : PRETRAINING + SECOND])
        self.link("test", names[PRETRAINING + SECOND :])
        for dataset, part in parts.items():
            chosen = self.output / f"cases_{dataset}.txt"
            chosen.write_text("\n".join(part) + "\n", encoding="utf-8")
            labels = () if dataset == INFERIOR else ("--labels", str(phantom / "truth" / "labels"))
            release = (str(phantom / "CTPEL"), "-d", dataset, "--name", f"Hips{dataset}", "--cases", str(chosen))
            self.call("nnunet-anomaly", "convert", "ctpel", *release, *labels, "-np", "2")
        configurations = ("-c", "3d_multiplanar", "3d_fullres")
        planner = ("-pl", self.args.planner, *configurations, "-np", "2", "2")
        self.call("nnUNetv2_plan_and_preprocess", "-d", INFERIOR, *planner)
        for dataset in (TWO, FOUR):
            # its own plans are not used, but preprocessing looks for the dataset.json that planning puts beside them
            self.call("nnUNetv2_extract_fingerprint", "-d", dataset)
            self.call("nnUNetv2_plan_experiment", "-d", dataset, "-pl", self.args.planner)
            plans = ("-sp", self.plans, "-tp", self.plans)
            self.call("nnUNetv2_move_plans_between_datasets", "-s", INFERIOR, "-t", dataset, *plans)
            self.call("nnUNetv2_preprocess", "-d", dataset, "-plans_name", self.plans, *configurations, "-np", "2", "2")

    def link(self, name: str, cases: list[str]) -> None:
        """Folders of images and truth of some cases."""
        phantom = self.output / "phantom"
        for case in cases:
            for kind, source, target in (
                ("images", phantom / "nifti" / "images" / f"{case}.nii.gz", f"{case}_0000.nii.gz"),
                ("truth", phantom / "truth" / "labels" / f"{case}.nii.gz", f"{case}.nii.gz"),
            ):
                link = self.output / kind / name / target
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(source.resolve())

    # -- networks -----------------------------------------------------------------------------------------------------

    def train(self, dataset: str, arm: Arm, plans: str, epochs: int, settings: dict[str, object]) -> Path:
        """Train on all cases of a dataset with plans of their own; the checkpoint."""
        chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        self.call("nnunet-anomaly", "plan", "-d", dataset, "-p", self.plans, *chosen, "--save-as", plans)
        trainer = f"{arm.trainer}_{epochs}epoch{'s' if epochs > 1 else ''}"
        network = ("-tr", trainer, "-p", plans, "-device", self.device)
        self.call("nnUNetv2_train", dataset, arm.configuration, "all", *network)
        folder = next(Path(self.environment["nnUNet_results"]).glob(f"Dataset{dataset}_*"))
        return folder / f"{trainer}__{plans}__{arm.configuration}" / "fold_all" / "checkpoint_final.pth"

    def predict(self, checkpoint: Path, name: str, target: Path) -> Path:
        """Label maps of a folder of images."""
        trainer, plans, configuration = checkpoint.parents[1].name.split("__")
        dataset = checkpoint.parents[2].name[7:10]
        network = ("-d", dataset, "-tr", trainer, "-p", plans, "-c", configuration, "-f", "all", "-device", self.device)
        images = str(self.output / "images" / name)
        self.call("nnUNetv2_predict", *network, "-i", images, "-o", str(target), "-npp", "1", "-nps", "1")
        return target

    def run_arm(self, arm: Arm, seed: int) -> None:
        """The loop: inferior labels, two accurate ones, four accurate ones; test cases predicted after each.

        Without pre-training, the first step has its epochs besides.
        """
        weights = WEIGHTS if arm.weighted else {"gap_weights.amplitude": 0}
        pretraining, epochs = self.args.pretrain_epochs, self.args.epochs
        steps = [("two", TWO, epochs, weights), ("four", FOUR, epochs, weights)]
        if arm.pretrained:
            steps.insert(0, ("inferior", INFERIOR, pretraining, {"gap_weights.amplitude": 0}))
        else:
            steps[0] = ("two", TWO, pretraining + epochs, weights)
        start: dict[str, object] = {}
        for step, dataset, length, settings in steps:
            # arms of one trainer share their pre-training
            plans = f"seed{seed}_{step}" + ("" if step == "inferior" else f"_{arm.name.replace(' ', '_')}")
            checkpoint = self.train(dataset, arm, plans, length, {"seed": seed, **LEARNING, **settings, **start})
            self.evaluate(checkpoint, self.folder(arm, seed, step))
            start = {"transfer.checkpoint": checkpoint, "fine_tuning.learning_rate": self.args.fine_tuning_rate}

    def folder(self, arm: Arm, seed: int, step: str) -> Path:
        """Of the predictions of one arm after one step."""
        return self.output / "arms" / arm.name.replace(" ", "_") / f"seed{seed}_{step}"

    # -- figures ------------------------------------------------------------------------------------------------------

    def evaluate(self, checkpoint: Path, folder: Path) -> None:
        """Predict the test cases, clean them, compare both with the truth and count collisions."""
        raw, clean = self.predict(checkpoint, "test", folder / "raw"), folder / "clean"
        self.call("nnunet-anomaly", "postprocess", "-i", str(raw), "-o", str(clean), "--pairs", "-np", "1")
        measures = ("--gaps", "--gap-width-mm", GAP_MM, "--collision-mm", COLLISION_MM, "-np", "1")
        for name in ("raw", "clean"):
            truth = ("-ref", str(self.output / "truth" / "test"), "-pred", str(folder / name))
            self.call("nnunet-anomaly", "evaluate", *truth, *measures, "-o", str(folder / f"evaluation_{name}"))

    def write_table(self, seeds: list[int]) -> None:
        """A row for every arm and step, without and with post-processing."""
        rows, found = [], {}
        for arm in ARMS:
            for step in ("inferior", "two", "four"):
                for name, said in (("raw", "none"), ("clean", "symmetric components")):
                    folders = [self.folder(arm, seed, step) / f"evaluation_{name}" for seed in seeds]
                    runs = [figures(folder) for folder in folders if folder.is_dir()]
                    if runs:
                        found[f"{arm.name}, {step}, {name}"] = runs
                        rows.append({"arm": arm.name, "labels": step, "post-processing": said, **over_seeds(runs)})
        save_json(found, self.output / "results.json")
        (self.output / "table.md").write_text(markdown_table(rows) + "\n", encoding="utf-8")

    def draw(self, seed: int) -> None:
        """Write ``hips.png``: coronal slices of a test case, its truth, and the first arm's label maps as it learns."""
        path = min((self.output / "truth" / "test").iterdir())
        image = sitk.ReadImage(
            str(self.output / "images" / "test" / f"{path.name.removesuffix('.nii.gz')}_0000.nii.gz")
        )
        plane = plane_of(image.GetDirection(), "coronal")
        steps = {"inferior": "rough labels", "two": "two good ones", "four": "four, cleaned"}
        maps = {
            said: turned(plane, self.folder(ARMS[0], seed, step) / ("clean" if step == "four" else "raw") / path.name)
            for step, said in steps.items()
        }
        hounsfield = np.clip(plane.turn(sitk.GetArrayFromImage(image)), -200, 1000)
        spacing_mm = plane.turn_spacing(image.GetSpacing()[::-1])
        figure = overlay_figure(hounsfield, spacing_mm, labels_by_method=maps, reference=turned(plane, path))
        save_figure(figure, self.output / "hips.png")


def turned(plane: Plane, path: Path) -> np.ndarray:
    """A label map as radiologists see it."""
    return plane.turn(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def figures(folder: Path) -> dict[str, float]:
    """Means over test cases, and over structures where there is one a structure; share of structures not found.

    These have no surface, and no distance of one.
    """
    tables = {}
    for name in ("cases", "gaps"):
        with open(folder / f"{name}.csv", encoding="utf-8") as file:
            tables[name] = list(csv.DictReader(file))
    columns = {
        "Dice": ("cases", "dsc"),
        "gap Dice": ("gaps", "gap_dsc_mean"),
        "gap Dice, pooled": ("gaps", "gap_dsc_pooled"),
        "HD mm": ("cases", "hd_mm"),
        "HD95 mm": ("cases", "hd95_mm"),
        "|E| voxels": ("gaps", "collision_voxels"),
    }
    means = {
        title: float(np.nanmean([float(row[column] or "nan") for row in tables[table]]))
        for title, (table, column) in columns.items()
    }
    return {**means, "not found": float(np.mean([not row["hd_mm"] for row in tables["cases"]]))}


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--planner", default="nnUNetPlannerMultiPlanarTiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pretrain-epochs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3, help="of each fine-tuning, and where there is no pre-training")
    parser.add_argument("--fine-tuning-rate", type=float, default=3e-4)
    parser.add_argument("--test", type=int, default=9, help="test cases")
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], default=[arm.name for arm in ARMS])
    parser.add_argument("--as-it-is", action="store_true", help="train nothing more, write the table of what is there")
    parser.add_argument("-device", default="cpu")
    study = Hips(parser.parse_args())
    if study.args.as_it_is:
        study.write_table(study.args.seeds)
        return study.draw(study.args.seeds[0])
    study.make_data()
    for number, seed in enumerate(study.args.seeds):
        for arm in (arm for arm in ARMS if arm.name in study.args.arms):
            study.run_arm(arm, seed)
            study.write_table(study.args.seeds[: number + 1])
        if ARMS[0].name in study.args.arms:
            study.draw(seed)


if __name__ == "__main__":
    main()
