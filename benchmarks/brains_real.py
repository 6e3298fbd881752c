"""The networks of ``brains.py`` on two real images: multiple sclerosis on T1, a stroke on T2.

    python benchmarks/brains_real.py DATA -o OUTPUT [--healthy 300] [--epochs 4] [-device cpu]

``DATA`` has ``ms_lesions/`` (skull-stripped T1) and ``stroke_t2/`` (T2 of a whole head), each with a lesion mask;
``OUTPUT`` is that of ``brains.py`` after its first seed. For the T2 image the same networks learn from heads that are
painted like T2. The whole head gets a rough brain mask (threshold, erosion, largest component), in place of HD-BET's.
Two images are no statistics: look at ``OUTPUT/real/evaluation_*/pictures``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from brains import HEALTHY_MEAN, VARIANTS
from console import Console

from nnunet_anomaly.files import load_json, write_image
from nnunet_anomaly.geometry import dilate_mm, erode_mm
from nnunet_anomaly.postprocessing.components import keep_components
from nnunet_anomaly.report.page import markdown_table

SHOWN = ("cube-n",)
DETACH_MM = 4.0


def rough_brain_mask(image: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """What is bright enough and left of a whole head after an erosion that cuts the brain off the scalp."""
    threshold = sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(image), 0, 1)) > 0
    tissue = threshold | (image > 0.25 * np.percentile(image[threshold], 50))
    core = keep_components(erode_mm(tissue, DETACH_MM, spacing_mm).astype(np.uint8), spacing_mm)
    return dilate_mm(core > 0, DETACH_MM, spacing_mm) & tissue


class RealImages(Console):
    """Conversion, networks for T2, error maps, pictures."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args.output, args.device)
        self.args, self.folder = args, args.output / "real"
        self.planner = args.planner
        self.plans = args.planner.replace("nnUNetPlanner", "nnUNet") + "Plans"

    def write_inputs(self) -> None:
        """Images and brain masks for the converter, lesion masks in the orientation that it gives to heads."""
        files = {
            "ms": ("ms_lesions/T1*.nii.gz", "ms_lesions/GOLD*.nii.gz"),
            "stroke": ("stroke_t2/T2.nii.gz", "stroke_t2/lesionT2.nii.gz"),
        }
        for name, (image_file, lesion_file) in files.items():
            image = sitk.ReadImage(str(next(self.args.data.glob(image_file))), sitk.sitkFloat32)
            array = sitk.GetArrayFromImage(image)
            brain = array != 0 if name == "ms" else rough_brain_mask(array, image.GetSpacing()[::-1])
            mask = sitk.GetImageFromArray(brain.astype(np.uint8))
            mask.CopyInformation(image)
            lesion = sitk.ReadImage(str(next(self.args.data.glob(lesion_file))), sitk.sitkUInt8)
            write_image(image, self.folder / "heads" / f"{name}.nii.gz")
            write_image(mask, self.folder / "masks" / f"{name}.nii.gz")
            write_image(sitk.DICOMOrient(lesion, "LPS"), self.folder / f"lesions_{name}" / f"{name}.nii.gz")

    def convert(self) -> None:
        """Both images as a dataset, of which only the converted files are used."""
        masks = ("--brain-masks", str(self.folder / "masks"))
        self.call(
            "nnunet-anomaly", "convert", "healthy", str(self.folder / "heads"), *masks, "-d", "320", "--name", "Real"
        )
        raw = Path(self.environment["nnUNet_raw"]) / "Dataset320_Real"
        for name in ("ms", "stroke"):
            for target, source in (("images", f"imagesTr/{name}_0000.nii.gz"), ("brains", f"labelsTr/{name}.nii.gz")):
                link = self.folder / f"{target}_{name}" / Path(source).name
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to((raw / source).resolve())

    def learn_t2(self) -> None:
        """The networks shown, on heads painted like T2."""
        release = self.output / "t2"
        heads = ("--labels", str(self.output / "heads" / "seen"), "--healthy", str(self.args.healthy), "--seed", "3")
        self.call("nnunet-anomaly", "phantom", "brain", *heads, "--contrast", "t2", "-o", str(release), "-np", "2")
        masks = ("--brain-masks", str(release / "truth" / "brain"), "--validation", str(self.args.healthy // 15))
        where = ("-d", "304", "--name", "HealthyT2", "--channel", "T2")
        self.call("nnunet-anomaly", "convert", "healthy", str(release / "IXI-T1"), *masks, *where)
        planner = ("-pl", self.planner, "-c", "3d_whole", "-np", "2", "-npfp", "2")
        self.call("nnUNetv2_plan_and_preprocess", "-d", "304", *planner)
        for dimension in ("2d", "3d"):
            batch = load_json(self.preprocessed("300") / f"seed1_{dimension}.json")["anomaly"]["vae"]["batch_size"]
            settings = ("--set", "seed=1", "--set", f"vae.batch_size={batch}", "--save-as", f"seed1_{dimension}")
            self.call("nnunet-anomaly", "plan", "-d", "304", "-p", self.plans, *settings)
        for _, trainer, dimension in self.networks():
            where = (f"{dimension}_whole", "0", "-tr", trainer, "-p", f"seed1_{dimension}", "-device", self.device)
            self.call("nnUNetv2_train", "304", *where)

    def preprocessed(self, dataset: str) -> Path:
        """Preprocessed folder of a dataset."""
        return next(Path(self.environment["nnUNet_preprocessed"]).glob(f"Dataset{dataset}_*"))

    def networks(self) -> list[tuple[str, str, str]]:
        """Name, trainer, dimension."""
        epochs = f"_{self.args.epochs}epoch{'s' if self.args.epochs > 1 else ''}"
        found = [(f"{HEALTHY_MEAN}", "nnUNetTrainerHealthyMean", "3d")]
        for dimension in ("2d", "3d"):
            found += [
                (f"{dimension.upper()} VAE {name}", f"nnUNetTrainer{VARIANTS[name]}{epochs}", dimension)
                for name in SHOWN
            ]
        return found

    def evaluate(self, name: str, dataset: str, baseline: tuple[str, ...]) -> None:
        """Error maps of one image by all networks of its contrast, table and pictures."""
        images = self.folder / f"images_{name}"
        command = ["-ref", str(self.folder / f"lesions_{name}"), "-m", str(self.folder / f"brains_{name}")]
        titles = []
        for title, trainer, dimension in self.networks():
            titles.append(title.replace(" ", "_"))
            maps = self.folder / f"maps_{name}" / titles[-1]
            reconstructions = self.folder / f"reconstructions_{name}" / titles[-1]
            best = () if "HealthyMean" in trainer else ("-chk", "checkpoint_best.pth")
            network = ("-d", dataset, "-tr", trainer, "-p", f"seed1_{dimension}", "-c", f"{dimension}_whole", "-f", "0")
            folders = ("-i", str(images), "-o", str(maps), "--save-reconstructions", str(reconstructions))
            self.call("nnunet-anomaly", "error-maps", *network, *best, *folders, "-np", "1", "-device", self.device)
            command += ["-pred", str(maps), "--reconstructions", str(reconstructions)]
        out = self.folder / f"evaluation_{name}"
        command += ["--names", *titles, "--channel", "1", "--baseline", str(images), *baseline, "-o", str(out)]
        self.call("nnunet-anomaly", "evaluate-anomaly", *command, "-np", "2")
        results = load_json(out / "summary.json")["results"]
        rows = [
            {
                "method": method.replace("_", " "),
                "average precision": result["pooled"]["average_precision_pooled"],
                "AUROC": result["pooled"]["auroc_pooled"],
                "best Dice (oracle)": result["pooled"]["best_dice_pooled"],
                "lesion share": result["pooled"]["prevalence"],
            }
            for method, result in results.items()
        ]
        table = markdown_table(rows, formats=dict.fromkeys(list(rows[0])[1:], ".3f"))
        (self.folder / f"table_{name}.md").write_text(table, encoding="utf-8")
        print(table)


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--planner", default="nnUNetPlannerWholeVolumeTiny")
    parser.add_argument("--healthy", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=4, help="as in brains.py")
    parser.add_argument("-device", default="cpu")
    study = RealImages(parser.parse_args())
    study.write_inputs()
    study.convert()
    study.learn_t2()
    study.evaluate("ms", "300", ("--baseline-dark",))
    study.evaluate("stroke", "304", ())


if __name__ == "__main__":
    main()
