"""Does being anomaly-aware help on real MR images? All arms on hippocampus crops, by the commands that a user types.

    python benchmarks/hippocampus.py DATA -o OUTPUT [-c 2d] [--epochs 8] [--inpainting-epochs 3] [--seeds 1 2 3]

``DATA`` has ``images/`` and ``labels/`` of the same names (Medical Segmentation Decathlon, Task04). Every third case is
held out; its image is tested as it is and with a lesion implanted at a known place in the hippocampus. Training images
have no lesion. Error maps are made in 3-D (``3d_inpainting``) whatever the configuration of the segmentation networks.
What is done is kept, so that the script goes on where it was stopped; ``OUTPUT/table.md`` (segmentation) and
``OUTPUT/error_maps.md`` (lesions found by the error maps) are written anew after every step.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.evaluation.overlap import dice, overlap_counts
from nnunet_anomaly.evaluation.surface import hausdorff_distance_mm, surface_distances
from nnunet_anomaly.files import load_json, save_json, write_image
from nnunet_anomaly.phantoms.implants import implant_lesion
from nnunet_anomaly.postprocessing.components import keep_components
from nnunet_anomaly.report.page import markdown_table

TINY = "nnUNetAnomalyTinyPlans"
# arm: dataset, trainer, settings of its plans, preset
ARMS = {
    "plain nnU-Net": ("300", "Seeded", (), "robust"),
    "Dice only": ("300", "AnomalyAware", ("focal.alpha=0",), "robust"),
    "alpha 10, no error map": ("300", "AnomalyAware", ("focal.alpha=10",), "robust"),
    "lesion augmentation": ("300", "AnomalyAugmentation", (), "robust"),
    "S robust, A": ("311", "AnomalyAware", (), "robust"),
    "S robust, two passes": ("312", "AnomalyAware", (), "robust"),
    "S paper, A": ("313", "AnomalyAware", (), "paper"),
    "S paper, two passes": ("314", "AnomalyAware", (), "paper"),
}
DERIVED = {
    "311": ("robust", "InpaintingMimic", False),
    "312": ("robust", "Inpainting", True),
    "313": ("paper", "InpaintingMimic", False),
    "314": ("paper", "Inpainting", True),
}


class Benchmark:
    """Commands, their environment and what is finished."""

    def __init__(self, output: Path, configuration: str, epochs: int, inpainting_epochs: int, device: str):
        self.output, self.configuration, self.device = output, configuration, device
        self.epochs, self.inpainting_epochs = epochs, inpainting_epochs
        self.record = output / "done.json"
        self.done: list[str] = load_json(self.record) if self.record.is_file() else []
        folders = {name: str(output / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        for path in folders.values():
            Path(path).mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, **folders, "nnUNet_def_n_proc": "2"}

    def call(self, *command: str) -> None:
        """Run a console command once, ever; its output goes to a log."""
        line = shlex.join(command)
        if line in self.done:
            return
        print(f"$ {line}", flush=True)
        environment = dict(self.environment)
        if command[0] == "nnUNetv2_train" and self.device == "cpu":
            environment["nnUNet_n_proc_DA"] = "0"
        with open(self.output / "log.txt", "a", encoding="utf-8") as log:
            program = str(Path(sys.executable).parent / command[0])
            subprocess.run([program, *command[1:]], env=environment, stdout=log, stderr=log, check=True)
        self.done.append(line)
        save_json(self.done, self.record)

    def trainer(self, name: str) -> str:
        """Trainer of the chosen number of epochs."""
        epochs = self.inpainting_epochs if name.startswith("Inpainting") else self.epochs
        return f"nnUNetTrainer{name}_{epochs}epoch{'s' if epochs > 1 else ''}"

    def train(self, dataset: str, configuration: str, fold: str, trainer: str, plans: str) -> None:
        """nnU-Net's training."""
        command = ("nnUNetv2_train", dataset, configuration, fold, "-tr", self.trainer(trainer), "-p", plans)
        self.call(*command, "-device", self.device)

    def prepare(self, data: Path) -> None:
        """Dataset 300 with two folds, test images clean (c_) and with a lesion (l_), and error maps of all kinds."""
        write_datasets(data, self.output)
        plan = ("nnUNetv2_plan_and_preprocess", "-pl", "nnUNetPlannerAnomalyTiny", "-np", "2", "-npfp", "2")
        self.call(*plan, "-d", "300", "-c", self.configuration, "3d_inpainting")
        for preset in ("robust", "paper"):
            self.call("nnunet-anomaly", "plan", "-d", "300", "-p", TINY, "--preset", preset, "--save-as", preset)
        for fold in ("0", "1"):
            self.train("300", self.configuration, fold, "Seeded", "robust")
            for preset in ("robust", "paper"):
                self.train("300", "3d_inpainting", fold, "Inpainting", preset)
                self.train("300", "3d_inpainting", fold, "InpaintingMimic", preset)
        for dataset, (preset, trainer, two_passes) in DERIVED.items():
            masks = ("--masks-from", f"{self.trainer('Seeded')}__robust__{self.configuration}") if two_passes else ()
            maps = ("nnunet-anomaly", "error-maps", "-d", "300", "-tr", self.trainer(trainer), "-p", preset, *masks)
            self.call(*maps, "-o", f"Dataset{dataset}_Hippocampus", "-np", "1", "-device", self.device)
            test = ("-i", str(self.output / "test" / "images"), "-o", str(self.output / "test" / dataset))
            self.call(*maps, *test, "-np", "1", "-device", self.device)
            self.call(*plan, "-d", dataset, "-c", self.configuration)
        self.evaluate_error_maps()

    def evaluate_error_maps(self) -> None:
        """How well every kind of error map finds the implanted lesions inside the hippocampus, beside raw intensity."""
        test, rows = self.output / "test", []
        for dataset, (preset, _, two_passes) in DERIVED.items():
            out = self.output / "error_maps" / dataset
            command = (
                "nnunet-anomaly",
                "evaluate-anomaly",
                "-ref",
                str(test / "lesions"),
                "-pred",
                str(test / dataset),
            )
            more = ("--channel", "1", "-m", str(test / "labels"), "--baseline", str(test / "images"), "-np", "1")
            self.call(*command, *more, "--names", "error_map", "-o", str(out))
            results = load_json(out / "summary.json")["results"]
            name = f"{preset}, {'two passes' if two_passes else 'A'}"
            rows.append({"error map": name, **detection(results["error_map"])})
        rows.append({"error map": "raw intensity (bright)", **detection(results["raw_intensity"])})
        (self.output / "error_maps.md").write_text(markdown_table(rows) + "\n", encoding="utf-8")

    def run_arm(self, arm: str, seed: int) -> Path:
        """Train and predict one arm with one seed; returns the folder of predictions."""
        dataset, trainer, assignments, preset = ARMS[arm]
        name = "_".join([preset, *(text.replace("focal.", "").replace("=", "") for text in assignments), f"seed{seed}"])
        sets = [part for text in (*assignments, f"seed={seed}") for part in ("--set", text)]
        plan = ("nnunet-anomaly", "plan", "-d", dataset, "-p", TINY, "--preset", preset)
        self.call(*plan, *sets, "--save-as", name)
        self.train(dataset, self.configuration, "all", trainer, name)
        images = self.output / "test" / ("images" if dataset == "300" else dataset)
        predicted = self.output / "predicted" / arm.replace(" ", "_").replace(",", "") / f"seed{seed}"
        predict = (
            "nnUNetv2_predict",
            "-d",
            dataset,
            "-c",
            self.configuration,
            "-f",
            "all",
            "-tr",
            self.trainer(trainer),
        )
        where = ("-p", name, "-i", str(images), "-o", str(predicted), "-device", self.device)
        self.call(*predict, *where, "-npp", "1", "-nps", "1", "--disable_progress_bar")
        return predicted


def detection(result: dict) -> dict[str, str]:
    """Pooled and mean per-case average precision, pooled best Dice."""
    pooled, cases = result["pooled"], result["per_case"]
    return {
        "average precision, pooled": f"{pooled['average_precision_pooled']:.3f}",
        "per case": f"{cases['average_precision']['mean']:.3f} ± {cases['average_precision']['sd']:.3f}",
        "best Dice, pooled": f"{pooled['best_dice_pooled']:.3f}",
        "lesion share": f"{pooled['prevalence']:.3f}",
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
    """Mean Dice and Hausdorff distance of the whole hippocampus on clean and lesion images, and recall in lesions."""
    values: dict[str, list[float]] = {}
    for path in sorted((test / "labels").glob("*.nii.gz")):
        kind = {"c": "clean", "l": "lesion"}[path.name[0]]
        reference = sitk.ReadImage(str(path))
        spacing_mm = reference.GetSpacing()[::-1]
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(predicted / path.name)))
        if cleaned:
            found = keep_components(found, spacing_mm, min_share_of_largest=0.2)
        labels = sitk.GetArrayFromImage(reference)
        whole, found_whole = (labels > 0).astype(np.uint8), (found > 0).astype(np.uint8)
        values.setdefault(f"Dice {kind}", []).append(dice(overlap_counts(whole, found_whole, [1]))[1])
        by_label = dice(overlap_counts(labels, found, [1, 2]))
        values.setdefault(f"Dice by label, {kind}", []).append(float(np.mean([by_label[1], by_label[2]])))
        distances = surface_distances(whole, found_whole, spacing_mm, [1])[1]
        values.setdefault(f"HD mm {kind}", []).append(hausdorff_distance_mm(distances))
        if kind == "lesion":
            lesion = sitk.GetArrayFromImage(sitk.ReadImage(str(test / "lesions" / path.name))) > 0
            values.setdefault("recall in lesion", []).append(float(found_whole[lesion].mean()))
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}


def write_table(results: dict[str, dict[str, float]], output: Path) -> None:
    """Mean and SD over seeds of every arm, before and after component cleaning."""
    save_json(results, output / "results.json")
    rows = []
    for arm in ARMS:
        for cleaned in (False, True):
            runs = [values for key, values in results.items() if key.split(" | ")[::2] == [arm, str(cleaned)]]
            if runs:
                row = {"arm": arm, "cleaned": "yes" if cleaned else "no", "seeds": len(runs)}
                for name in runs[0]:
                    numbers = [run[name] for run in runs]
                    spread = f" ± {np.std(numbers, ddof=1):.3f}" if len(numbers) > 1 else ""
                    row[name] = f"{np.mean(numbers):.3f}{spread}"
                rows.append(row)
    (output / "table.md").write_text(markdown_table(rows) + "\n", encoding="utf-8")


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-c", "--configuration", default="2d")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--inpainting-epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("-device", default="cpu")
    args = parser.parse_args()
    benchmark = Benchmark(args.output, args.configuration, args.epochs, args.inpainting_epochs, args.device)
    benchmark.prepare(args.data)
    path = args.output / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for seed in args.seeds:
        for arm in ARMS:
            predicted = benchmark.run_arm(arm, seed)
            for cleaned in (False, True):
                results[f"{arm} | {seed} | {cleaned}"] = measure(predicted, args.output / "test", cleaned)
            write_table(results, args.output)


if __name__ == "__main__":
    main()
