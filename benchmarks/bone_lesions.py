"""Qin's comparison (table 1, figure 3) on generated knees, or on real hippocampi with implanted lesions.

    python benchmarks/bone_lesions.py -o OUTPUT [HIPPOCAMPUS] [--pixels 96 128 192] [--epochs 6] [--seeds 1]

LaMa at several in-plane resolutions, and on the same cases and by the same post-processing: Woo's two passes and A, the
2-D VAE, knowledge distillation (its teacher with random weights, unless ``--vgg`` gives a file), and, without a
network, the image itself as error map.
None learns from a slice with a lesion. Everyone's post-processing is searched on the validation cases. ``HIPPOCAMPUS``
is the folder of that name of the test data (``images``, ``labels``): half of its cases train, the others get bright,
ill-defined lesions by ``phantoms.implants``. What is done is kept, so that the script goes on where it was stopped;
``OUTPUT`` has ``table.md`` (slices with a lesion, lesions), ``sizes.md`` (by fifths) and ``lesions.png``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from console import Console, over_seeds
from matplotlib import pyplot as plt

from nnunet_anomaly.architectures.vgg import VGG16Features
from nnunet_anomaly.files import load_json, save_json, write_image
from nnunet_anomaly.phantoms.implants import implant_lesion
from nnunet_anomaly.planes import plane_of
from nnunet_anomaly.postprocessing.bml_morphology import to_scale_of
from nnunet_anomaly.report.figures import save_figure
from nnunet_anomaly.report.page import markdown_table

NUMBER = "120"
SMALL = {"features": 16, "blocks": 4, "discriminator_features": 16}  # LaMa's 64, 9 and 64
UNET_FEATURES = 8  # of the first stage of Woo's networks; nnU-Net's 32
BATCH = 4
FIGURES = ("dice", "iou", "sensitivity", "specificity", "accuracy")
PEERS = ("two passes (G)", "Woo's A", "VAE", "knowledge distillation", "the image itself")


class Study(Console):
    """Data, networks, lesion masks and tables. A method's folder has ``val``, ``tuning`` and ``test``."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args.output, args.device)
        self.args = args
        self.raw = self.output / "nnUNet_raw" / f"Dataset{NUMBER}_{'Hippocampus' if args.hippocampus else 'Knee'}"
        self.plane = "axial" if args.hippocampus else "sagittal"  # of the networks' slices

    # -- data ---------------------------------------------------------------------------------------------------------

    def make_data(self) -> None:
        """Training cases, validation and test cases with masks of bone and lesion."""
        if self.args.hippocampus:
            return write_hippocampi(self.args.hippocampus, self.raw)
        training, validation, test = (str(number) for number in self.args.cases)
        cases = ("--training", training, "--validation", validation, "--test", test, "--seed", "1", "-np", "2")
        grid = ("--grid", *(str(length) for length in self.args.grid))
        return self.call("nnunet-anomaly", "phantom", "knee-bml", *cases, *grid, "-o", str(self.raw))

    def plan(self, planner: str, configuration: str, name: str, settings: dict[str, object]) -> str:
        """Preprocess, and make small plans of that name with a batch of a few slices."""
        plans = planner.replace("nnUNetPlanner", "nnUNet", 1)
        stem, _, variant = plans.partition("_")
        plans = stem + "Plans" + (f"_{variant}" if variant else "")
        self.call("nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-pl", planner, "-c", configuration, "-np", "2")
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        self.call("nnunet-anomaly", "plan", "-d", NUMBER, "-p", plans, *sets, "--save-as", name)
        path = Path(self.environment["nnUNet_preprocessed"]) / self.raw.name / f"{name}.json"
        contents = load_json(path)
        chosen = contents["configurations"][configuration]
        chosen["batch_size"] = BATCH if configuration == "2d_inpainting" else 16
        kwargs = chosen["architecture"]["arch_kwargs"]
        kwargs["features_per_stage"] = [min(UNET_FEATURES * 2**stage, 128) for stage in range(kwargs["n_stages"])]
        save_json(contents, path)
        return name

    # -- methods ------------------------------------------------------------------------------------------------------

    def lama(self, pixels: int, seed: int) -> Path:
        """LaMa at one resolution: by ``predict``, as a user would; returns the test cases' lesion masks."""
        shape = {f"lama.{key}": value for key, value in SMALL.items()}
        name = self.plan(
            f"nnUNetPlannerLaMa_{pixels}pixels", "2d_inpainting", f"lama{pixels}_{seed}", {"seed": seed, **shape}
        )
        trainer, folder = self.train("LaMa", name, "2d_inpainting"), self.folder(f"LaMa {pixels}", seed)
        for split in ("Val", "Test"):
            if split == "Test":
                self.tune(folder, "-r", folder / "val" / "reconstructions", trainer, name, "2d_inpainting")
            network = ("-d", NUMBER, "-tr", trainer, "-p", name, "-f", "0", "-np", "1", "-device", self.device)
            cases = ("-i", str(self.raw / f"images{split}"), "--bones", str(self.raw / f"bones{split}"))
            sides = () if self.args.hippocampus else ("--cases", str(self.raw / "cases.json"))
            self.call("nnunet-anomaly", "predict", *network, *cases, *sides, "-o", str(folder / split.lower()))
        return folder / "test" / "lesions"

    def peer(self, method: str, seed: int) -> Path:
        """Another method: error maps or reconstructions, the same search, the same post-processing."""
        folder = self.folder(method, seed)
        if method == "the image itself":
            found = {split: (self.raw / f"images{split}", "0") for split in ("Val", "Test")}
            self.tune(folder, "-e", found["Val"][0], channel="0")
            return self.lesions(
                folder, "-e", found["Test"][0], "--settings", str(folder / "tuning/settings.json"), channel="0"
            )
        settings: dict[str, object] = {"seed": seed, "slices.healthy_only": "true"}
        planner, configuration = f"nnUNetPlannerLaMa_{self.args.peer_pixels}pixels", "2d_inpainting"
        trainers = ["Inpainting"] if method == "two passes (G)" else ["Inpainting", "InpaintingMimic"]
        if method == "VAE":
            planner, configuration, trainers = "nnUNetPlannerWholeVolume_64voxels", "2d_whole", ["VAE"]
        if method == "knowledge distillation":
            trainers, settings["distillation.weights"] = ["KnowledgeDistillation"], self.teacher()
        word = {"VAE": "vae", "knowledge distillation": "distillation"}.get(method, "woo")
        name = self.plan(planner, configuration, f"{word}_{seed}", settings)
        for short in trainers:
            trainer = self.train(short, name, configuration)
        for split in ("Val", "Test"):
            network = ("-d", NUMBER, "-tr", trainer, "-p", name, "-c", configuration, "-f", "0", "-device", self.device)
            cases = ("-i", str(self.raw / f"images{split}"), "-o", str(folder / split.lower() / "error_maps"))
            more = ["--masks-from", str(self.raw / f"bones{split}")] if method == "two passes (G)" else []
            if method != "knowledge distillation":
                more += ["--save-reconstructions", str(folder / split.lower() / "reconstructions")]
            self.call("nnunet-anomaly", "error-maps", *network, *cases, *more, "-np", "1")
        by_error = method == "knowledge distillation"
        option, source = ("-e", "error_maps") if by_error else ("-r", "reconstructions")
        channel = "1" if by_error else "0"
        self.tune(folder, option, folder / "val" / source, trainer, name, configuration, channel=channel)
        model = ("-m", str(self.model(trainer, name, configuration)))
        return self.lesions(folder, option, folder / "test" / source, *model, channel=channel)

    def teacher(self) -> Path:
        """The file of VGG-16's weights; random ones where there is none."""
        if self.args.vgg:
            return self.args.vgg.resolve()
        path = (self.output / "random_vgg16.pth").resolve()
        if not path.is_file():
            torch.manual_seed(0)
            torch.save(VGG16Features(None, (30,)).state_dict(), path)
        return path

    # -- steps --------------------------------------------------------------------------------------------------------

    def train(self, short: str, plans: str, configuration: str) -> str:
        """Fold 0, so that its held-out cases choose the epoch; the trainer's name."""
        trainer = f"nnUNetTrainer{short}_{self.args.epochs}epoch{'s' if self.args.epochs > 1 else ''}"
        self.call("nnUNetv2_train", NUMBER, configuration, "0", "-tr", trainer, "-p", plans, "-device", self.device)
        return trainer

    def model(self, trainer: str, plans: str, configuration: str) -> Path:
        """Folder of a trained model."""
        return Path(self.environment["nnUNet_results"]) / self.raw.name / f"{trainer}__{plans}__{configuration}"

    def folder(self, method: str, seed: int) -> Path:
        """Of all that one method makes."""
        return self.output / "methods" / f"{method.replace(' ', '_')}_seed{seed}"

    def tune(self, folder: Path, option: str, source: Path, *model: str, channel: str = "0") -> None:
        """Search the post-processing on the validation cases; a model's plans take what is found."""
        images, bones, lesions = (str(self.raw / f"{name}Val") for name in ("images", "bones", "lesions"))
        of_model = ("-m", str(self.model(*model))) if model else ()
        what = ("-i", images, option, str(source), "--channel", channel, "-b", bones, "-ref", lesions)
        self.call("nnunet-anomaly", "tune", "bml", *what, *of_model, "-o", str(folder / "tuning"), "-np", "2")

    def lesions(self, folder: Path, option: str, source: Path, *settings: str, channel: str) -> Path:
        """Lesion masks of the test cases."""
        images, bones, target = str(self.raw / "imagesTest"), str(self.raw / "bonesTest"), folder / "test" / "lesions"
        what = ("-i", images, option, str(source), "--channel", channel, "-b", bones)
        self.call("nnunet-anomaly", "lesions", *what, *settings, "-o", str(target), "-np", "2")
        return target

    # -- figures ------------------------------------------------------------------------------------------------------

    def evaluate(self, masks: dict[str, Path], seed: int) -> Path:
        """All methods against the references."""
        target = self.output / "evaluation" / f"seed{seed}"
        what = ["-ref", str(self.raw / "lesionsTest"), "-b", str(self.raw / "bonesTest"), "-o", str(target), "-np", "2"]
        what += ["--slice-plane", self.plane]
        what += [word for path in masks.values() for word in ("-pred", str(path))]
        self.call("nnunet-anomaly", "evaluate-lesions", *what, "--names", *masks)
        return target

    def write_tables(self, evaluations: Sequence[Path]) -> None:
        """``table.md`` and ``sizes.md``: mean (SD over seeds) of means over slices with a lesion, and lesions hit."""
        summaries = [load_json(folder / "summary.json") for folder in evaluations]
        rows, sizes = [], []
        for method in summaries[0]["methods"]:
            runs = []
            for summary in summaries:
                by_slice, found = summary["results"][method]["slice"], summary["detection"][method]
                run = {name: by_slice[name]["mean"] for name in FIGURES}
                run["Dice by case"] = summary["results"][method]["case"]["dice"]["mean"]
                run |= {
                    "lesions hit": found["lesion_sensitivity"],
                    "false ones a case": found["false_positives_per_case"],
                }
                healthy = summary["results"][method].get("lesion_free_case", {})
                run["found without lesion, mm3"] = healthy.get("false_positives_mm3", {}).get("mean", float("nan"))
                runs.append(run)
            rows.append({"method": method, **over_seeds(runs)})
            fifths = [
                {f"fifth {row['group']}": row["mean"] for row in summary["sizes"] if wanted(row, method)}
                for summary in summaries
            ]
            sizes.append({"method": method, **over_seeds(fifths)})
        for name, table in (("table", rows), ("sizes", sizes)):
            (self.output / f"{name}.md").write_text(markdown_table(table) + "\n", encoding="utf-8")

    def draw(self, masks: dict[str, Path], seed: int, n_cases: int = 4) -> None:
        """``lesions.png``: the slice with most lesion of some test cases, what LaMa fills in, and what is found."""
        finest = max((name for name in masks if name.startswith("LaMa")), key=lambda name: int(name.split()[1]))
        with_lesion = (path.name for path in sorted((self.raw / "lesionsTest").iterdir()) if read(path).any())
        cases = [self.slice_of(case, masks, finest, seed) for case in itertools.islice(with_lesion, n_cases)]
        heights = [case["image"].shape[0] / case["image"].shape[1] for case in cases]
        columns = ["image", "filled in", "lesion", *(name for name in masks if name != "the image itself")]
        figure, axes = plt.subplots(
            len(cases),
            len(columns),
            figsize=(1.5 * len(columns), 1.5 * sum(heights) + 0.4),
            squeeze=False,
            height_ratios=heights,
        )
        for line, case in zip(axes, cases, strict=True):
            low, high = np.percentile(case["image"], (1, 99.5))
            for axis, column in zip(line, columns, strict=True):
                background = case["filled in" if column == "filled in" else "image"]
                axis.imshow(background, cmap="gray", vmin=low, vmax=high)
                axis.axis("off")
                if axis in axes[0]:
                    axis.set_title(column, fontsize=7)
                if column not in ("image", "filled in"):
                    axis.contour(case["lesion"], [0.5], colors="white", linewidths=0.6)
                if column in masks:
                    found = np.ma.masked_equal(case[column].astype(float), 0)
                    axis.imshow(found, cmap="autumn", alpha=0.55, vmin=0, vmax=1)
        figure.tight_layout(pad=0.2)
        save_figure(figure, self.output / "lesions.png", dpi=110)

    def slice_of(self, case: str, masks: dict[str, Path], finest: str, seed: int) -> dict[str, np.ndarray]:
        """Everything there is of the slice with most lesion, cut to the bone and a margin."""
        image_name = case.replace(".nii.gz", "_0000.nii.gz")
        volumes = {"image": read(self.raw / "imagesTest" / image_name).astype(float)}
        volumes |= {name: read(self.raw / f"{name}sTest" / case) > 0 for name in ("lesion", "bone")}
        filled = read(self.folder(finest, seed) / "test" / "reconstructions" / image_name)
        scaled = to_scale_of(filled, volumes["image"], ~volumes["bone"])
        volumes["filled in"] = np.where(volumes["bone"], scaled, volumes["image"])
        volumes |= {method: read(folder / case) > 0 for method, folder in masks.items()}
        plane = plane_of(sitk.ReadImage(str(self.raw / "lesionsTest" / case)).GetDirection(), self.plane)
        turned = {name: plane.turn(volume) for name, volume in volumes.items()}
        index = int(np.argmax(turned["lesion"].sum((1, 2))))
        box = around(turned["bone"][index], margin=8)
        return {name: volume[index][box] for name, volume in turned.items()}


def wanted(row: dict, method: str) -> bool:
    """Dice of slices, by fifths."""
    return (row["method"], row["unit"], row["metric"]) == (method, "slice", "dice")


def around(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Box of a 2-D mask, and a margin of so many pixels."""
    edges = [(int(places.min()), int(places.max())) for places in np.nonzero(mask)]
    first, second = (slice(max(0, low - margin), high + margin + 1) for low, high in edges)
    return first, second


def read(path: Path) -> np.ndarray:
    """Voxels of an image."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def write_hippocampi(source: Path, raw: Path) -> None:
    """Every second case trains; of the others every third is for validation, and all but every sixth get a lesion."""
    if (raw / "dataset.json").is_file():
        return
    names = sorted(path.name.removesuffix(".nii.gz") for path in (source / "images").glob("*.nii.gz"))
    for index, name in enumerate(names):
        image = sitk.Cast(sitk.ReadImage(str(source / "images" / f"{name}.nii.gz")), sitk.sitkFloat32)
        labels = sitk.Cast(sitk.ReadImage(str(source / "labels" / f"{name}.nii.gz")), sitk.sitkUInt8)
        labels.CopyInformation(image)
        if index % 2 == 0:
            write_image(image, raw / "imagesTr" / f"{name}_0000.nii.gz")
            write_image(labels, raw / "labelsTr" / f"{name}.nii.gz")
            continue
        number, split = index // 2, "Val" if index // 2 % 3 == 0 else "Test"
        array, region = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(labels) > 0
        lesion = np.zeros(region.shape, bool)
        if number % 6 != 5:
            rng = np.random.default_rng(index)
            size, contrast = float(np.exp(rng.uniform(np.log(60), np.log(600)))), float(rng.uniform(1.5, 3))
            spacing_mm = image.GetSpacing()[::-1]
            drawn = {"volume_mm3": size, "contrast": contrast, "edge_mm": 3.0, "kind": "bright"}
            array, lesion = implant_lesion(array, region, spacing_mm, rng=rng, **drawn)
        for folder, what in (
            ("images", array),
            ("lesions", lesion.astype(np.uint8)),
            ("bones", region.astype(np.uint8)),
        ):
            volume = sitk.GetImageFromArray(what)
            volume.CopyInformation(image)
            channel = "_0000" if folder == "images" else ""
            write_image(volume, raw / f"{folder}{split}" / f"{name}{channel}.nii.gz")
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
        "numTraining": (len(names) + 1) // 2,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "anomaly": {"channel_roles": {"0": "image"}, "roi_labels": ["anterior", "posterior"]},
    }
    save_json(description, raw / "dataset.json")


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "hippocampus", type=Path, nargs="?", help="folder of real hippocampi (default: generated knees)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--cases", type=int, nargs=3, default=[20, 6, 12], metavar=("TRAINING", "VALIDATION", "TEST"))
    parser.add_argument("--grid", type=int, nargs=3, default=[36, 256, 256], help="of the generated knees")
    parser.add_argument("--pixels", type=int, nargs="+", default=[96, 128, 192], help="resolutions of LaMa")
    parser.add_argument("--peer-pixels", type=int, default=128, help="resolution of the others (the VAE's is 64)")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--vgg", type=Path, help="torchvision's file of VGG-16's weights")
    parser.add_argument("-device", default="cpu")
    study = Study(parser.parse_args())
    study.make_data()
    evaluations = []
    for seed in study.args.seeds:
        # the finest first, with which all others are compared
        masks = {f"LaMa {pixels}": study.lama(pixels, seed) for pixels in sorted(study.args.pixels, reverse=True)}
        masks |= {method: study.peer(method, seed) for method in study.args.peers}
        evaluations.append(study.evaluate(masks, seed))
        study.write_tables(evaluations)
        study.draw(masks, seed)


if __name__ == "__main__":
    main()
