"""Does nnU-Net confuse left and right, and does mirroring that knows them cure it? By the commands that a user types.

    python benchmarks/left_right.py -o OUTPUT [DATASET] [-c 3d_fullres] [--epochs 5] [--seeds 1 2 3] [-device cpu]

``DATASET`` is the folder of any raw nnU-Net dataset of which labels come as left and right (``femur_left``); without it
bodies are generated, in which two ellipsoids, mirror images of each other, lie left and right of the midline. Cases in
``imagesTs`` with ``labelsTs`` are the test, else every third training case is held out. What is done is kept, so that
the script goes on where it was stopped; ``OUTPUT/table.md`` is written anew after every network, at the end
``OUTPUT/left_right.png``:

- twin's label: share of the reference voxels of all pairs to which the label of the twin is given;
- Dice: mean over the labels of all pairs and cases; the Dice of pairs does not tell left from right.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from console import Console, over_seeds
from matplotlib import pyplot as plt

from nnunet_anomaly.evaluation.overlap import dice, overlap_counts
from nnunet_anomaly.files import load_json, save_json, write_image
from nnunet_anomaly.label_maps import read_label_map
from nnunet_anomaly.planes import plane_of
from nnunet_anomaly.report.figures import save_figure
from nnunet_anomaly.report.page import markdown_table
from nnunet_anomaly.settings import AnomalySettings
from nnunet_anomaly.twins import swapped_labels

NUMBER, TINY = "400", "nnUNetAnomalyTinyPlans"
# arm: trainer, and the settings of mirroring in training and in prediction
ARMS = {
    "nnU-Net": ("Seeded", ()),
    "swap": ("LeftRight", ("swap", "swap")),
    "off": ("LeftRight", ("off", "off")),
    "swap in training alone": ("LeftRight", ("swap", "off")),
    "off in training alone": ("LeftRight", ("off", "plain")),
}


class Benchmark(Console):
    """The study's commands."""

    def __init__(self, output: Path, configuration: str, epochs: int, device: str):
        super().__init__(output, device)
        self.configuration = configuration
        self.epochs = f"{epochs}epoch{'s' if epochs > 1 else ''}"

    def preprocess(self) -> tuple[tuple[int, int], ...]:
        """Plans of a small network, and preprocessed cases; returns the pairs that planning found."""
        command = ("nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-pl", "nnUNetPlannerAnomalyTiny", "-np", "2")
        self.call(*command, "-npfp", "2", "-c", self.configuration)
        folder = Path(self.environment["nnUNet_preprocessed"]) / f"Dataset{NUMBER}_Sides"
        pairs = AnomalySettings.from_plans(load_json(folder / f"{TINY}.json")).symmetry.pairs
        if not pairs:
            raise SystemExit(f"No labels of left and right were found; see {self.output / 'log.txt'}.")
        return pairs

    def run_arm(self, arm: str, seed: int) -> Path:
        """Train and predict one arm with one seed; returns the folder of predictions."""
        trainer, mirroring = ARMS[arm]
        name = f"seed{seed}" + "".join(f"_{word}" for word in mirroring)
        assignments = [f"seed={seed}"]
        for key, word in zip(("mirroring", "test_time_mirroring"), mirroring, strict=False):
            assignments.append(f"symmetry.{key}={word}")
        sets = [part for text in assignments for part in ("--set", text)]
        self.call("nnunet-anomaly", "plan", "-d", NUMBER, "-p", TINY, *sets, "--save-as", name)
        model = ("-tr", f"nnUNetTrainer{trainer}_{self.epochs}", "-p", name, "-device", self.device)
        self.call("nnUNetv2_train", NUMBER, self.configuration, "all", *model)
        predicted = self.output / "predicted" / arm.replace(" ", "_") / f"seed{seed}"
        what = ("-d", NUMBER, "-c", self.configuration, "-f", "all", *model, "-i", str(self.output / "test" / "images"))
        how = ("-npp", "1", "-nps", "1", "--disable_progress_bar")
        self.call("nnUNetv2_predict", *what, "-o", str(predicted), *how)
        return predicted


def body(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels (z, y, x), 24 x 32 x 48: a body with an ellipsoid on its left (1, large x) and on its right (2).

    Both are drawn from the same sizes; each has a bright hilum towards the spine (3), as the mirror image of the other.
    """
    places = np.stack(np.meshgrid(np.arange(24), np.arange(32), np.arange(48), indexing="ij"), axis=-1)

    def ellipsoid(center: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        return np.sum(((places - np.array(center)) / np.array(radii)) ** 2, axis=-1) < 1

    middle = np.array([12, 16, 24]) + rng.uniform(-2, 2, 3)
    labels = np.zeros((24, 32, 48), np.uint8)
    image = np.where(ellipsoid(tuple(middle), (30, 14, 21)), 60.0, 0.0)
    for label, sign in ((1, 1), (2, -1)):
        center = middle + np.array([*rng.uniform(-2, 2, 2), sign * rng.uniform(9, 12)])
        radii = rng.uniform((6, 4, 4), (9, 6, 6))
        inside = ellipsoid(tuple(center), tuple(radii))
        labels[inside] = label
        image[inside & ellipsoid(tuple(center - [0, 0, sign * radii[2] / 2]), (40, 2, 2))] += 60
    labels[ellipsoid((12, middle[1] + 8, middle[2]), (40, 3, 3))] = 3
    image += np.choose(labels, [0.0, 60.0, 60.0, 120.0])
    return (image + rng.normal(0, 12, image.shape)).astype(np.float32), labels


def write_bodies(folder: Path, cases: int) -> None:
    """A raw dataset of generated bodies."""
    for index in range(cases):
        image, labels = body(np.random.default_rng(index))
        name = f"body_{index:02d}"
        for array, path in ((image, f"imagesTr/{name}_0000.nii.gz"), (labels, f"labelsTr/{name}.nii.gz")):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing((2.0, 2.0, 3.0))
            write_image(volume, folder / path)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "kidney_left": 1, "kidney_right": 2, "spine": 3},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    save_json(description, folder / "dataset.json")


def write_dataset(source: Path, output: Path) -> None:
    """The training cases of a raw dataset as dataset 400; test images and labels under ``output/test``."""
    raw, test = output / "nnUNet_raw" / f"Dataset{NUMBER}_Sides", output / "test"
    if (raw / "dataset.json").is_file():
        return
    description = load_json(source / "dataset.json")
    ending = description["file_ending"]
    has_test = any((source / "labelsTs").glob(f"*{ending}"))
    names = sorted(path.name.removesuffix(ending) for path in (source / "labelsTr").glob(f"*{ending}"))
    training = names if has_test else [name for index, name in enumerate(names) if index % 3]
    tested = [("Tr", name) for name in names if name not in training]
    if has_test:
        tested = [("Ts", path.name.removesuffix(ending)) for path in sorted((source / "labelsTs").glob(f"*{ending}"))]
    for split, name in [*(("Tr", name) for name in training), *tested]:
        kept = split == "Tr" and name in training
        images, labels = (raw / "imagesTr", raw / "labelsTr") if kept else (test / "images", test / "labels")
        for folder in (images, labels):
            folder.mkdir(parents=True, exist_ok=True)
        for path in (source / f"images{split}").glob(f"{name}_????{ending}"):
            shutil.copyfile(path, images / path.name)
        shutil.copyfile(source / f"labels{split}" / f"{name}{ending}", labels / f"{name}{ending}")
    save_json({**description, "numTraining": len(training)}, raw / "dataset.json")


def measure(predicted: Path, references: Path, pairs: tuple[tuple[int, int], ...]) -> dict[str, float]:
    """Share of voxels with the twin's label, Dice of sides and of pairs, over all test cases."""
    twins = swapped_labels(pairs)
    exchanged = voxels = 0
    of_sides, of_pairs = [], []
    for path in sorted(references.iterdir()):
        reference, _ = read_label_map(path)
        found, _ = read_label_map(predicted / path.name)
        for label, twin in twins.items():
            exchanged += int(np.sum((reference == label) & (found == twin)))
            voxels += int(np.sum(reference == label))
        of_sides += [dice(counts) for counts in overlap_counts(reference, found, list(twins)).values()]
        for pair in pairs:
            both = [np.isin(array, pair).astype(np.uint8) for array in (reference, found)]
            of_pairs.append(dice(overlap_counts(*both, [1])[1]))
    return {
        "twin's label": exchanged / voxels,
        "Dice": float(np.nanmean(of_sides)),
        "Dice of pairs": float(np.nanmean(of_pairs)),
    }


def draw(output: Path, arms: Sequence[str], seed: int) -> None:
    """``left_right.png``: the coronal slice of a test case with most labels, and every arm's labels on it."""
    path = min((output / "test" / "labels").iterdir())
    folders = {"reference": path.parent}
    folders |= {arm: output / "predicted" / arm.replace(" ", "_") / f"seed{seed}" for arm in arms}
    image = sitk.ReadImage(str(output / "test" / "images" / path.name.replace(".nii.gz", "_0000.nii.gz")))
    plane = plane_of(image.GetDirection(), "coronal")
    maps = {name: plane.turn(read_label_map(folder / path.name)[0]) for name, folder in folders.items()}
    index = int(np.argmax((maps["reference"] > 0).sum((1, 2))))
    shown = plane.turn(sitk.GetArrayFromImage(image))[index]
    _, height_mm, width_mm = plane.turn_spacing(image.GetSpacing()[::-1])
    figure, axes = plt.subplots(1, len(maps) + 1, figsize=(2.6 * (len(maps) + 1), 1.9), squeeze=False)
    low, high = np.percentile(shown, (2, 99))
    for axis, name in zip(axes[0], ("image", *maps), strict=True):
        axis.imshow(shown, cmap="gray", vmin=low, vmax=high, aspect=height_mm / width_mm)
        if name in maps:
            labels = np.ma.masked_equal(maps[name][index], 0)
            axis.imshow(
                labels, cmap="tab10", vmin=1, vmax=10, alpha=0.7, aspect=height_mm / width_mm, interpolation="none"
            )
        axis.set_title(name)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    save_figure(figure, output / "left_right.png", dpi=100)


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?", help="folder of a raw dataset (default: generated bodies)")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-c", "--configuration", default="3d_fullres")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["nnU-Net", "swap", "off"])
    parser.add_argument("--cases", type=int, default=24, help="generated bodies (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("-device", default="cpu")
    args = parser.parse_args()
    source = args.dataset
    if source is None:
        source = args.output / "bodies"
        if not (source / "dataset.json").is_file():
            write_bodies(source, args.cases)
    benchmark = Benchmark(args.output, args.configuration, args.epochs, args.device)
    write_dataset(source, args.output)
    pairs = benchmark.preprocess()
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            predicted = benchmark.run_arm(arm, seed)
            results[arm].append(measure(predicted, args.output / "test" / "labels", pairs))
            table = markdown_table([{"mirroring": name, **over_seeds(runs)} for name, runs in results.items() if runs])
            (args.output / "table.md").write_text(table + "\n", encoding="utf-8")
    draw(args.output, args.arms, args.seeds[0])
    print(table)


if __name__ == "__main__":
    main()
