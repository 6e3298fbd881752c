"""Table 1 of Bengs et al. on heads with known truth: 14 variants of the VAE, and what the best published numbers use.

    python benchmarks/brains.py DATA -o OUTPUT [--planner nnUNetPlannerWholeVolumeTiny] [--healthy 600] [--seeds 1 2 3]
                                [--epochs-3d 4] [--epochs-2d 4] [--batch-3d 8] [--others 2] [--full-grid] [-device cpu]

``DATA`` has ``head_labels/`` (label maps of whole heads, FreeSurfer's codes) and ``stroke_masks/`` (real chronic
strokes in MNI space). T1-like heads are painted into the label maps with random contrast, deformation, bias and noise;
lesions have the shapes of the masks. Networks learn from healthy heads of all label maps but one. Strokes are in heads
of those same maps, newly deformed (validation cases, and the test set "seen"), and in heads of the map that is held out
("unseen"). Thresholds are searched on the validation cases.
What is done is kept, so that the script goes on where it was stopped. ``OUTPUT/table_seen.md`` and ``table_unseen.md``
are written anew after every seed: mean and SD over seeds, and a 95 % bootstrap interval over the test cases of the
difference to the VAE of the same dimension from which nothing is erased.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from console import Console, over_seeds

from nnunet_anomaly.files import load_json, save_json
from nnunet_anomaly.report.page import markdown_table

HELD_OUT = "training_seg_02.nii.gz"
VARIANTS = {
    "none": "VAE",
    "cube-0": "VAECubeZero",
    "cube-n": "VAECubeNoise",
    "multi-0": "VAEMultiZero",
    "multi-n": "VAEMultiNoise",
    "half-0": "VAEHalfZero",
    "half-n": "VAEHalfNoise",
}
OTHERS = {"denoising autoencoder": "DenoisingAutoencoder", "foreign patch": "ForeignPatch"}
HEALTHY_MEAN = "z-score to the healthy mean"
SETS = ("validation", "seen", "unseen")
STROKES = {"seen": 36, "unseen": 24}
VALIDATION = 12  # of the strokes in heads of seen label maps
RESAMPLES = 10_000


class Brains(Console):
    """The study's data, networks, error maps and figures."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args.output, args.device)
        self.args = args
        self.plans = args.planner.replace("nnUNetPlanner", "nnUNet") + "Plans"

    # -- data ---------------------------------------------------------------------------------------------------------

    def make_data(self) -> None:
        """Phantoms, converted and preprocessed."""
        for name in STROKES:
            for path in sorted((self.args.data / "head_labels").iterdir()):
                if (path.name == HELD_OUT) == (name == "unseen"):
                    target = self.output / "heads" / name / path.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not target.exists():
                        target.symlink_to(path.resolve())
        shapes = str(self.args.data / "stroke_masks")
        for seed, (name, strokes) in enumerate(STROKES.items(), start=1):
            healthy = self.args.healthy if name == "seen" else 0
            heads = ("--labels", str(self.output / "heads" / name), "--lesion-shapes", shapes, "--seed", str(seed))
            grid = ["--full-grid"] if self.args.full_grid else []
            what = ("--healthy", str(healthy), "--strokes", str(strokes), *heads, *grid)
            self.call("nnunet-anomaly", "phantom", "brain", *what, "-o", str(self.output / name), "-np", "2")
        seen, unseen = self.output / "seen", self.output / "unseen"
        masks = ("--brain-masks", str(seen / "truth" / "brain"))
        held_out = str(max(10, self.args.healthy // 15))
        self.convert("healthy", str(seen / "IXI-T1"), *masks, "-d", "300", "--validation", held_out)
        roles = ("--validation", str(VALIDATION), "--test", str(STROKES["seen"] - VALIDATION))
        self.convert("atlas", str(seen / "ATLAS_2"), *masks, "-d", "302", "--name", "Seen", *roles)
        masks = ("--brain-masks", str(unseen / "truth" / "brain"))
        roles = ("--validation", "2", "--test", str(STROKES["unseen"] - 2))
        self.convert("atlas", str(unseen / "ATLAS_2"), *masks, "-d", "303", "--name", "Unseen", *roles)
        configurations = ("3d_whole", "3d_inpainting") if self.args.others else ("3d_whole",)
        planner = ("-pl", self.args.planner, "-c", *configurations, "-np", "2", "-npfp", "2")
        self.call("nnUNetv2_plan_and_preprocess", "-d", "300", *planner)
        self.gather()

    def convert(self, *command: str) -> None:
        """One release."""
        self.call("nnunet-anomaly", "convert", *command, "-np", "2")

    def gather(self) -> None:
        """Links to the images, lesions and brain masks of each set; names say which set a case is of."""
        raw = Path(self.environment["nnUNet_raw"])
        sources = {
            "validation": (raw / "Dataset302_Seen", "Tr", "Val"),
            "seen": (raw / "Dataset302_Seen", "Ts", "Ts"),
            "unseen": (raw / "Dataset303_Unseen", "Ts", "Ts"),
        }
        for name, (dataset, role, lesions) in sources.items():
            for folder, source in (
                ("images", f"images{role}"),
                ("brains", f"labels{role}"),
                ("lesions", f"lesions{lesions}"),
            ):
                target = self.output / folder if folder == "images" else self.output / folder / name
                target.mkdir(parents=True, exist_ok=True)
                for path in (dataset / source).glob("*.nii.gz"):
                    link = target / f"{name}_{path.name}"
                    if not link.is_symlink():
                        link.symlink_to(path.resolve())

    # -- networks -----------------------------------------------------------------------------------------------------

    def networks(self) -> Iterator[tuple[str, str, str]]:
        """Name in the table, trainer, configuration."""
        for dimension in ("2", "3"):
            whole = f"{dimension}d_whole"
            yield f"{dimension}D {HEALTHY_MEAN}", "nnUNetTrainerHealthyMean", whole
            epochs = self.epochs(self.args.epochs_2d if dimension == "2" else self.args.epochs_3d)
            for name, trainer in VARIANTS.items():
                yield f"{dimension}D VAE {name}", f"nnUNetTrainer{trainer}{epochs}", whole
        if self.args.others:
            for name, trainer in OTHERS.items():
                yield f"3D {name}", f"nnUNetTrainer{trainer}{self.epochs(self.args.others)}", "3d_inpainting"

    @staticmethod
    def epochs(number: int) -> str:
        """Ending of a trainer's name."""
        return f"_{number}epoch{'s' if number > 1 else ''}"

    def make_error_maps(self, name: str, trainer: str, configuration: str, seed: int) -> None:
        """Train one network with one seed; error maps of all sets."""
        flat = configuration.startswith("2")
        batch = ("--set", f"vae.batch_size={32 if flat else self.args.batch_3d}")
        plans = f"seed{seed}_{configuration[:2]}"
        settings = ("-d", "300", "-p", self.plans, "--set", f"seed={seed}", *batch, "--save-as", plans)
        self.call("nnunet-anomaly", "plan", *settings)
        self.call("nnUNetv2_train", "300", configuration, "0", "-tr", trainer, "-p", plans, "-device", self.device)
        command = self.error_maps(trainer, configuration, seed, self.output / "images", str(self.maps(name, seed)))
        if seed == self.args.seeds[0]:
            command += ["--save-reconstructions", str(self.output / "reconstructions" / name.replace(" ", "_"))]
        self.call(*command)

    def error_maps(self, trainer: str, configuration: str, seed: int, images: Path, maps: str) -> list[str]:
        """Command that makes error maps of a folder of images."""
        command = ["nnunet-anomaly", "error-maps", "-d", "300", "-tr", trainer, "-p", f"seed{seed}_{configuration[:2]}"]
        command += ["-c", configuration, "-f", "0", "-np", "1", "-device", self.device]
        if "HealthyMean" not in trainer:
            command += ["-chk", "checkpoint_best.pth"]
        return [*command, "-i", str(images), "-o", maps]

    def maps(self, name: str, seed: int) -> Path:
        """Folder of the error maps of one network."""
        return self.output / "maps" / f"seed{seed}" / name.replace(" ", "_")

    # -- figures ------------------------------------------------------------------------------------------------------

    def evaluate(self, seed: int, test: str) -> Path:
        """Tables of one seed and one test set, filters off and on, of the networks that are finished."""
        names = [name for name, *_ in self.networks() if self.is_finished(name, seed)]
        command = ["-ref", str(self.output / "lesions" / test), "-m", str(self.output / "brains" / test)]
        validation = self.output / "lesions" / "validation"
        command += ["--validation-ref", str(validation), "--validation-mask", str(self.output / "brains/validation")]
        for name in names:
            command += ["-pred", str(self.maps(name, seed)), "--validation-pred", str(self.maps(name, seed))]
        images = str(self.output / "images")
        command += ["--baseline", images, "--validation-baseline", images, "--baseline-dark", "--channel", "1"]
        if seed == self.args.seeds[0]:
            for name in names:
                command += ["--reconstructions", str(self.output / "reconstructions" / name.replace(" ", "_"))]
        folder = self.output / "evaluation" / f"seed{seed}_{test}"
        command += [
            *self.median(),
            "--names",
            *(name.replace(" ", "_") for name in names),
            "-np",
            "2",
            "-o",
            str(folder),
        ]
        self.call("nnunet-anomaly", "evaluate-anomaly", *command)
        return folder

    def is_finished(self, name: str, seed: int) -> bool:
        """Whether a network has made the error maps of all images."""
        return len(list(self.maps(name, seed).glob("*_0001.nii.gz"))) == len(list((self.output / "images").iterdir()))

    def median(self) -> list[str]:
        """A window of 3 voxels of the coarse grid, of 5 of the releases' own."""
        return ["--median-radius-mm", "2" if self.args.full_grid else "2.5"]

    def write_table(self, test: str, seeds: list[int]) -> None:
        """One row a method, and a second one with filters."""
        folders = [self.evaluate(seed, test) for seed in seeds]
        results = [load_json(folder / "summary.json")["results"] for folder in folders]
        rows, figures = [], {}
        for method in results[0]:
            found = [(folder, each) for folder, each in zip(folders, results, strict=True) if method in each]
            runs = [figures_of(folder, each[method], method) for folder, each in found]
            gain = difference([folder for folder, _ in found], method)
            figures[method] = runs
            rows.append({"method": method.replace("_", " "), **over_seeds(runs), **gain})
        save_json(figures, self.output / f"results_{test}.json")
        (self.output / f"table_{test}.md").write_text(markdown_table(rows) + "\n", encoding="utf-8")


def figures_of(folder: Path, result: dict, method: str) -> dict[str, float]:
    """Figures of one method, one seed, one test set."""
    with open(folder / "thresholds.csv", encoding="utf-8") as file:
        thresholds = {row["kind"]: row for row in csv.DictReader(file) if row["method"] == method}
    pooled, cases = result["pooled"], result["per_case"]
    return {
        "AP set": pooled["average_precision_pooled"],
        "AP case": cases["average_precision"]["mean"],
        "AUROC": pooled["auroc_pooled"],
        "AP slices": pooled["average_precision_slices"],
        "Dice set": float(thresholds["validation_exact"]["dice_set"]),
        "Dice case": float(thresholds["validation_exact"]["dice_subject_mean"]),
        "Dice set, oracle": float(thresholds["oracle"]["dice_set"]),
    }


def difference(folders: list[Path], method: str) -> dict[str, str]:
    """95 % interval over cases of the mean difference of the average precision to the VAE without erasing.

    Seeds are averaged before, so that the interval is of cases alone. Empty for methods that are no VAE with erasing.
    """
    dimension, _, rest = method.partition("_")
    plain = f"{dimension}_VAE_none" + ("_filtered" if method.endswith("_filtered") else "")
    if not rest.startswith("VAE") or method == plain:
        return {"AP case - none": ""}
    values = {}
    for name in (method, plain):
        by_seed = []
        for folder in folders:
            with open(folder / "cases.csv", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if row["method"] == name]
            by_seed.append([float(row["average_precision"]) for row in sorted(rows, key=lambda row: row["case"])])
        values[name] = np.mean(by_seed, axis=0)
    gain = values[method] - values[plain]
    drawn = gain[np.random.default_rng(0).integers(0, gain.size, (RESAMPLES, gain.size))].mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"AP case - none": f"{gain.mean():+.3f} [{low:+.3f}, {high:+.3f}]"}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The study's arguments."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--planner", default="nnUNetPlannerWholeVolumeTiny")
    parser.add_argument("--healthy", type=int, default=600, help="healthy heads, a fifteenth of them for validation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs-3d", type=int, default=4)
    parser.add_argument("--epochs-2d", type=int, default=4)
    parser.add_argument("--batch-3d", type=int, default=8)
    parser.add_argument("--others", type=int, default=0, metavar="EPOCHS", help="train the other methods too")
    parser.add_argument("--as-it-is", action="store_true", help="train nothing more, write the tables of what is there")
    parser.add_argument("--full-grid", action="store_true", help="images on the releases' own grids")
    parser.add_argument("-device", default="cpu")
    return parser


def main() -> None:
    """Run what is not done yet."""
    study = Brains(arguments(__doc__).parse_args())
    if not study.args.as_it_is:
        study.make_data()
    for number, seed in enumerate(study.args.seeds, start=1):
        for network in () if study.args.as_it_is else study.networks():
            study.make_error_maps(*network, seed)
        for test in SETS[1:]:
            study.write_table(test, study.args.seeds[:number])


if __name__ == "__main__":
    main()
