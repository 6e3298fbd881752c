"""Does being anomaly-aware help on real MR images? All arms on hippocampus crops, by the commands that a user types.

    python benchmarks/hippocampus.py DATA -o OUTPUT [-c 2d] [--epochs 8] [--inpainting-epochs 3] [--seeds 1 2 3]
                                     [--error-map-seeds 1 2 3]

``DATA`` has ``images/`` and ``labels/`` of the same names (Medical Segmentation Decathlon, Task04). Every third case is
held out; its image is tested as it is and with a lesion implanted at a known place in the hippocampus. Training images
have no lesion. Every seed has its own networks throughout: G, A, the network that says what two passes erase, and the
segmentation networks; with fewer ``--error-map-seeds`` the first three are shared by the seeds in turn. Error maps are
made in 3-D (``3d_inpainting``) whatever the configuration of the segmentation networks.
What is done is kept, so that the script goes on where it was stopped; ``OUTPUT/table.md`` (segmentation) and
``OUTPUT/error_maps.md`` (lesions found by the error maps) are written anew after every step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from console import Console, over_seeds

from nnunet_anomaly.evaluation.overlap import dice, overlap_counts
from nnunet_anomaly.evaluation.surface import hausdorff_distance_mm, surface_distances
from nnunet_anomaly.files import load_json, save_json, write_image
from nnunet_anomaly.phantoms.implants import implant_lesion
from nnunet_anomaly.postprocessing.components import keep_components
from nnunet_anomaly.report.page import markdown_table

TINY = "nnUNetAnomalyTinyPlans"
# The paper's margin of 18 mm is a fifth of the width of a knee's bones; that share of a hippocampus is about 4 mm.
PRESETS = {"robust": (), "paper": ("roi.dilation_mm=4",)}
# arm: error map (preset and kind) or none, trainer, settings of its plans
ARMS: dict[str, tuple[tuple[str, str] | None, str, tuple[str, ...]]] = {
    "plain nnU-Net": (None, "Seeded", ()),
    "Dice only": (None, "AnomalyAware", ("focal.alpha=0",)),
    "alpha 10, no error map": (None, "AnomalyAware", ("focal.alpha=10",)),
    "lesion augmentation": (None, "AnomalyAugmentation", ()),
    "S robust, A": (("robust", "A"), "AnomalyAware", ()),
    "S robust, two passes": (("robust", "two passes"), "AnomalyAware", ()),
    "S paper, A": (("paper", "A"), "AnomalyAware", ()),
    "S paper, two passes": (("paper", "two passes"), "AnomalyAware", ()),
}
TRAINERS = {"A": "InpaintingMimic", "two passes": "Inpainting"}
KINDS = [(preset, kind) for preset in PRESETS for kind in TRAINERS]


class Benchmark(Console):
    """The study's commands."""

    def __init__(self, output: Path, configuration: str, epochs: int, inpainting_epochs: int, device: str):
        super().__init__(output, device)
        self.configuration, self.epochs, self.inpainting_epochs = configuration, epochs, inpainting_epochs

    def trainer(self, name: str) -> str:
        """Trainer of the chosen number of epochs."""
        epochs = self.inpainting_epochs if name.startswith("Inpainting") else self.epochs
        return f"nnUNetTrainer{name}_{epochs}epoch{'s' if epochs > 1 else ''}"

    def train(self, dataset: str, configuration: str, fold: str, trainer: str, plans: str) -> None:
        """nnU-Net's training."""
        command = ("nnUNetv2_train", dataset, configuration, fold, "-tr", self.trainer(trainer), "-p", plans)
        self.call(*command, "-device", self.device)

    def preprocess(self, dataset: str, *configurations: str) -> None:
        """Plans of a small network, and preprocessed cases."""
        command = ("nnUNetv2_plan_and_preprocess", "-d", dataset, "-pl", "nnUNetPlannerAnomalyTiny", "-np", "2")
        self.call(*command, "-npfp", "2", "-c", self.configuration, *configurations)

    def plan(self, dataset: str, preset: str, seed: int, assignments: tuple[str, ...] = ()) -> str:
        """Name of plans with a preset, a seed and whatever else is set."""
        suffix = "".join(f"_{text.replace('focal.', '').replace('=', '')}" for text in assignments)
        name = f"{preset}_seed{seed}{suffix}"
        sets = [part for text in (*PRESETS[preset], f"seed={seed}", *assignments) for part in ("--set", text)]
        self.call("nnunet-anomaly", "plan", "-d", dataset, "-p", TINY, "--preset", preset, *sets, "--save-as", name)
        return name

    def train_reconstructions(self, seed: int) -> None:
        """G, A and the network that says what two passes erase, on both folds."""
        plans = {preset: self.plan("300", preset, seed) for preset in PRESETS}
        for fold in ("0", "1"):
            self.train("300", self.configuration, fold, "Seeded", plans["robust"])
            for name in plans.values():
                for trainer in ("Inpainting", "InpaintingMimic"):  # A learns from G
                    self.train("300", "3d_inpainting", fold, trainer, name)

    def make_error_maps(self, seed: int) -> None:
        """Derived datasets, whose maps are out of fold, and maps of the test images, by the ensemble of the folds."""
        test = self.output / "test"
        for preset, kind in KINDS:
            dataset, name = self.derived(preset, kind, seed), self.plan("300", preset, seed)
            maps = ["nnunet-anomaly", "error-maps", "-d", "300", "-tr", self.trainer(TRAINERS[kind]), "-p", name]
            if kind == "two passes":
                maps += ["--masks-from", f"{self.trainer('Seeded')}__robust_seed{seed}__{self.configuration}"]
            maps += ["-np", "1", "-device", self.device]
            self.call(*maps, "-o", f"Dataset{dataset}_Hippocampus")
            self.call(*maps, "-i", str(test / "images"), "-o", str(test / dataset))
            self.preprocess(dataset)

    @staticmethod
    def derived(preset: str, kind: str, seed: int) -> str:
        """Number of the dataset with these error maps: 3, seed, kind."""
        return f"3{seed}{KINDS.index((preset, kind)) + 1}"

    def evaluate_error_maps(self, seed: int) -> dict[str, dict[str, float]]:
        """How well each kind of error map finds the lesions in the hippocampus, beside two baselines from intensity."""
        test, out = self.output / "test", self.output / "error_maps" / f"seed{seed}"
        names = {f"{preset}, {kind}": test / self.derived(preset, kind, seed) for preset, kind in KINDS}
        names["distance from the region's median"] = test / "deviation"
        command = ["nnunet-anomaly", "evaluate-anomaly", "-ref", str(test / "lesions"), "-m", str(test / "labels")]
        for folder in names.values():
            command += ["-pred", str(folder)]
        more = ("--channel", "1", "--baseline", str(test / "images"), "-np", "1", "-o", str(out))
        self.call(*command, "--names", *names, *more)
        results = load_json(out / "summary.json")["results"]
        results["raw intensity (bright)"] = results.pop("raw_intensity")
        figures = {name: detection(result) for name, result in results.items()}
        for preset in PRESETS:
            figures[f"{preset}, A"]["leak"] = float(np.mean([self.leak(preset, seed, fold) for fold in ("0", "1")]))
        return figures

    def leak(self, preset: str, seed: int, fold: str) -> float:
        """Leak of A in its last epoch (0 copies G, 1 is the identity)."""
        model = f"{self.trainer('InpaintingMimic')}__{preset}_seed{seed}__3d_inpainting"
        folder = Path(self.environment["nnUNet_results"]) / "Dataset300_Hippocampus" / model / f"fold_{fold}"
        checkpoint = torch.load(folder / "checkpoint_final.pth", map_location="cpu", weights_only=False)
        return checkpoint["logging"]["leak"][-1]

    def run_arm(self, arm: str, seed: int, error_map_seed: int) -> Path:
        """Train and predict one arm with one seed; returns the folder of predictions."""
        error_map, trainer, assignments = ARMS[arm]
        dataset = self.derived(*error_map, error_map_seed) if error_map else "300"
        name = self.plan(dataset, error_map[0] if error_map else "robust", seed, assignments)
        self.train(dataset, self.configuration, "all", trainer, name)
        images = self.output / "test" / (dataset if error_map else "images")
        run = f"seed{seed}" + (f"_maps{error_map_seed}" if error_map and error_map_seed != seed else "")
        predicted = self.output / "predicted" / arm.replace(" ", "_").replace(",", "") / run
        what = ("-d", dataset, "-c", self.configuration, "-f", "all", "-tr", self.trainer(trainer), "-p", name)
        how = ("-device", self.device, "-npp", "1", "-nps", "1", "--disable_progress_bar")
        self.call("nnUNetv2_predict", *what, "-i", str(images), "-o", str(predicted), *how)
        return predicted


def detection(result: dict) -> dict[str, float]:
    """Average precision, pooled and mean over cases, pooled best Dice, share of lesion voxels."""
    pooled, cases = result["pooled"], result["per_case"]
    return {
        "average precision, pooled": pooled["average_precision_pooled"],
        "average precision, per case": cases["average_precision"]["mean"],
        "best Dice, pooled": pooled["best_dice_pooled"],
        "lesion share": pooled["prevalence"],
    }


def write_datasets(data: Path, output: Path) -> None:
    """Training cases as dataset 300; test images, labels and lesion masks under ``output/test``."""
    raw, test = output / "nnUNet_raw" / "Dataset300_Hippocampus", output / "test"
    if (raw / "dataset.json").is_file():
        return
    names = sorted(path.name.removesuffix(".nii.gz") for path in (data / "images").glob("*.nii.gz"))
    training = [name for index, name in enumerate(names) if index % 3]
    for index, name in enumerate(names):
        image = sitk.Cast(sitk.ReadImage(str(data / "images" / f"{name}.nii.gz")), sitk.sitkFloat32)
        labels = sitk.Cast(sitk.ReadImage(str(data / "labels" / f"{name}.nii.gz")), sitk.sitkUInt8)
        labels.CopyInformation(image)
        if name in training:
            write_image(image, raw / "imagesTr" / f"{name}_0000.nii.gz")
            write_image(labels, raw / "labelsTr" / f"{name}.nii.gz")
            continue
        rng = np.random.default_rng(index)
        with_lesion, lesion = implant_lesion(
            sitk.GetArrayFromImage(image),
            sitk.GetArrayFromImage(labels) > 0,
            image.GetSpacing()[::-1],
            rng=rng,
            volume_mm3=float(rng.uniform(150, 600)),
            contrast=float(rng.uniform(2, 4)),
            kind="bright" if rng.random() < 0.5 else "dark",
            site="surface" if rng.random() < 0.5 else "anywhere",
        )
        for prefix, array in (("c", sitk.GetArrayFromImage(image)), ("l", with_lesion)):
            new = sitk.GetImageFromArray(array)
            new.CopyInformation(image)
            write_image(new, test / "images" / f"{prefix}_{name}_0000.nii.gz")
            write_image(labels, test / "labels" / f"{prefix}_{name}.nii.gz")
        deviation = np.abs(with_lesion - np.median(with_lesion[sitk.GetArrayFromImage(labels) > 0]))
        away = sitk.GetImageFromArray(deviation.astype(np.float32))
        away.CopyInformation(image)
        write_image(away, test / "deviation" / f"l_{name}_0001.nii.gz")
        mask = sitk.GetImageFromArray(lesion.astype(np.uint8))
        mask.CopyInformation(image)
        write_image(mask, test / "lesions" / f"l_{name}.nii.gz")
    save_json(
        [
            {"train": training[::2], "val": training[1::2]},
            {"train": training[1::2], "val": training[::2]},
        ],
        raw / "splits_final.json",
    )
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
        "numTraining": len(training),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "anomaly": {"channel_roles": {"0": "image"}, "roi_labels": ["anterior", "posterior"]},
    }
    save_json(description, raw / "dataset.json")


def measure(predicted: Path, test: Path, cleaned: bool) -> dict[str, float]:
    """Mean Dice and Hausdorff distance of the whole hippocampus on clean and lesion images, and recall in lesions.

    The Hausdorff distance is that of the cases with a prediction; those without are counted.
    """
    values: dict[str, list[float]] = {}
    empty = 0
    for path in sorted((test / "labels").glob("*.nii.gz")):
        kind = {"c": "clean", "l": "lesion"}[path.name[0]]
        reference = sitk.ReadImage(str(path))
        spacing_mm = reference.GetSpacing()[::-1]
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(predicted / path.name)))
        if cleaned:
            found = keep_components(found, spacing_mm, min_share_of_largest=0.2)
        labels = sitk.GetArrayFromImage(reference)
        whole, found_whole = (labels > 0).astype(np.uint8), (found > 0).astype(np.uint8)
        values.setdefault(f"Dice {kind}", []).append(dice(overlap_counts(whole, found_whole, [1])[1]))
        by_label = [dice(counts) for counts in overlap_counts(labels, found, [1, 2]).values()]
        values.setdefault(f"Dice by label, {kind}", []).append(float(np.mean(by_label)))
        if found_whole.any():
            distances = surface_distances(whole, found_whole, spacing_mm, [1])[1]
            values.setdefault(f"HD mm {kind}", []).append(hausdorff_distance_mm(distances))
        empty += not found_whole.any()
        if kind == "lesion":
            lesion = sitk.GetArrayFromImage(sitk.ReadImage(str(test / "lesions" / path.name))) > 0
            values.setdefault("recall in lesion", []).append(float(found_whole[lesion].mean()))
    return {**{name: float(np.mean(numbers)) for name, numbers in values.items()}, "empty": float(empty)}


def write_table(results: dict[str, dict[str, float]], output: Path) -> None:
    """Mean and SD over seeds of every arm, before and after component cleaning."""
    save_json(results, output / "results.json")
    rows = []
    for arm in ARMS:
        for cleaned in (False, True):
            runs = [values for key, values in results.items() if key.split(" | ")[::2] == [arm, str(cleaned)]]
            if runs:
                rows.append({"arm": arm, "cleaned": "yes" if cleaned else "no", **over_seeds(runs)})
    (output / "table.md").write_text(markdown_table(rows) + "\n", encoding="utf-8")


def write_error_map_table(results: list[dict[str, dict[str, float]]], output: Path) -> None:
    """Mean and SD over seeds of every kind of error map."""
    rows = [{"error map": name, **over_seeds([seed[name] for seed in results])} for name in results[0]]
    (output / "error_maps.md").write_text(markdown_table(rows) + "\n", encoding="utf-8")


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-c", "--configuration", default="2d")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--inpainting-epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], choices=range(1, 10))
    parser.add_argument("--error-map-seeds", type=int, nargs="+", choices=range(1, 10), help="default: --seeds")
    parser.add_argument("-device", default="cpu")
    args = parser.parse_args()
    benchmark = Benchmark(args.output, args.configuration, args.epochs, args.inpainting_epochs, args.device)
    write_datasets(args.data, args.output)
    benchmark.preprocess("300", "3d_inpainting")
    path = args.output / "results.json"
    results = load_json(path) if path.is_file() else {}
    maps = []
    error_map_seeds = args.error_map_seeds or args.seeds
    for position, seed in enumerate(args.seeds):
        error_map_seed = error_map_seeds[position % len(error_map_seeds)]
        benchmark.train_reconstructions(error_map_seed)
        benchmark.make_error_maps(error_map_seed)
        if position < len(error_map_seeds):
            maps.append(benchmark.evaluate_error_maps(error_map_seed))
            write_error_map_table(maps, args.output)
        for arm in ARMS:
            predicted = benchmark.run_arm(arm, seed, error_map_seed)
            for cleaned in (False, True):
                results[f"{arm} | {seed} | {cleaned}"] = measure(predicted, args.output / "test", cleaned)
            write_table(results, args.output)


if __name__ == "__main__":
    main()
