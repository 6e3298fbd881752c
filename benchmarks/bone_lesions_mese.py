"""Qin's chain on a real knee, for pictures: first echoes of a multi-echo series, with lesions in slices left out.

    python benchmarks/bone_lesions_mese.py KNEE_MESE -o OUTPUT [--epochs 5] [--pixels 128] [-device cpu]

``KNEE_MESE`` is the folder of that name of the test data (``mese_dicom.zip``). There is one knee: LaMa learns from most
of its sagittal slices (three echoes, as three cases) and fills in the femur of others, beside which it has seen their
neighbours, 4 mm away. Bright, ill-defined lesions are implanted in some of these. So this shows that real slices pass
through and what comes out, not how well the method does. The femur is found by growing from one point, slice by slice,
and looked at (``femur.png``). ``OUTPUT/mese.png`` has the slices that were left out.
"""

from __future__ import annotations

import argparse
import csv
import zipfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from console import Console
from matplotlib import pyplot as plt
from scipy import ndimage

from nnunet_anomaly.files import save_json, write_image
from nnunet_anomaly.phantoms.implants import implant_lesion
from nnunet_anomaly.postprocessing.bml_morphology import to_scale_of
from nnunet_anomaly.report.figures import save_figure

NUMBER, ECHOES = "121", 3
SEED = (15, 95, 85)  # slice, row, column: in the femur
FIRST, LAST = 3, 19  # slices with femur that the growing finds
LEFT_OUT = {4: 2.0, 7: None, 10: 1.5, 13: None, 16: 2.5}  # contrast of the lesion, in SD of the femur; None: no lesion
SMALL = {"lama.features": 16, "lama.blocks": 4, "lama.discriminator_features": 16}


def read_echoes(folder: Path, output: Path) -> list[sitk.Image]:
    """The first echoes, each by slice location."""
    with zipfile.ZipFile(folder / "mese_dicom.zip") as archive:
        archive.extractall(output / "dicom")
    found: dict[float, list[tuple[float, str]]] = {}
    for path in sorted((output / "dicom").rglob("*.dcm")):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        time_ms, place_mm = (float(reader.GetMetaData(tag)) for tag in ("0018|0081", "0020|1041"))
        found.setdefault(time_ms, []).append((place_mm, str(path)))
    return [sitk.ReadImage([name for _, name in sorted(found[time_ms])]) for time_ms in sorted(found)[:ECHOES]]


def diamond(radius: int) -> np.ndarray:
    """Structuring element."""
    return ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), radius)


def grow_femur(image: np.ndarray) -> np.ndarray:
    """Bright marrow that hangs together with the seed, from slice to slice; bool, shape of ``image`` (z, y, x)."""
    femur = np.zeros(image.shape, bool)
    seed = np.zeros(image.shape[1:], bool)
    seed[SEED[1] - 3 : SEED[1] + 4, SEED[2] - 3 : SEED[2] + 4] = True
    femur[SEED[0]] = grow_slice(image, SEED[0], seed, np.ones_like(seed))
    for numbers in (range(SEED[0] + 1, LAST + 1), range(SEED[0] - 1, FIRST - 1, -1)):
        before = femur[SEED[0]]
        for number in numbers:
            inner, near = ndimage.binary_erosion(before, iterations=6), ndimage.binary_dilation(before, iterations=13)
            before = femur[number] = grow_slice(image, number, inner, near)
    return femur


def grow_slice(image: np.ndarray, number: int, inner: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The part, within ``near``, of what is as bright as its surroundings, that has most of ``inner``."""
    plane, tissue = image[number], image[number] > np.median(image)
    weight = np.maximum(ndimage.gaussian_filter(tissue.astype(float), 18), 1e-3)
    local_mean = ndimage.gaussian_filter(np.where(tissue, plane, 0.0), 18) / weight
    bright = ndimage.binary_opening((plane > 0.72 * local_mean) & near, diamond(6))
    parts, _ = ndimage.label(bright)
    counts = np.bincount(parts[inner], minlength=2)
    counts[0] = 0
    part = ndimage.binary_opening(parts == counts.argmax(), diamond(9))
    return ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(part, 12), diamond(8))[12:-12, 12:-12])


class Study(Console):
    """One knee: data, network, lesions, picture."""

    def run(self, folder: Path, epochs: int, pixels: int) -> None:
        """All steps, by the commands that a user types."""
        raw = self.output / "nnUNet_raw" / f"Dataset{NUMBER}_Knee"
        if not (raw / "dataset.json").is_file():
            write_dataset(read_echoes(folder, self.output), raw)
        plans = f"nnUNetLaMaPlans_{pixels}pixels"
        planner = ("-pl", f"nnUNetPlannerLaMa_{pixels}pixels", "-gpu_memory_target", "2")
        self.call("nnUNetv2_plan_and_preprocess", "-d", NUMBER, *planner, "-c", "2d_inpainting", "-np", "1")
        values = {"slices.file": (raw / "healthy.csv").resolve(), **SMALL}
        sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        self.call("nnunet-anomaly", "plan", "-d", NUMBER, "-p", plans, *sets, "--save-as", "small")
        trainer = f"nnUNetTrainerLaMa_{epochs}epoch{'s' if epochs > 1 else ''}"
        network = ("-tr", trainer, "-p", "small", "-device", self.device)
        self.call("nnUNetv2_train", NUMBER, "2d_inpainting", "all", *network)
        what = ("-i", str(raw / "imagesTest"), "--bones", str(raw / "bonesTest"), "-o", str(self.output / "found"))
        self.call("nnunet-anomaly", "predict", "-d", NUMBER, *network, "-f", "all", *what, "-np", "1", "--side", "left")
        draw(raw, self.output)


def write_dataset(echoes: list[sitk.Image], raw: Path) -> None:
    """Three echoes to learn from, slices to learn from, and the first echo with lesions in slices left out."""
    femur = grow_femur(sitk.GetArrayFromImage(echoes[0]).astype(np.float32))
    with_lesions, lesions = sitk.GetArrayFromImage(echoes[0]).astype(np.float32), np.zeros(femur.shape, np.uint8)
    for number, contrast in LEFT_OUT.items():
        if contrast is None:
            continue
        inside = ndimage.binary_erosion(femur[number], iterations=4)
        drawn = {"volume_mm3": 200.0, "contrast": contrast, "edge_mm": 4.0}  # mm^2, as a slice has two dimensions
        spacing_mm = echoes[0].GetSpacing()[1::-1]
        plane, lesion = implant_lesion(with_lesions[number], inside, spacing_mm, rng=number, **drawn)
        with_lesions[number], lesions[number] = plane, lesion
    files = {f"imagesTr/echo{index}_0000": sitk.Cast(echo, sitk.sitkFloat32) for index, echo in enumerate(echoes, 1)}
    files |= {f"labelsTr/echo{index}": femur.astype(np.uint8) for index in range(1, len(echoes) + 1)}
    files |= {
        "imagesTest/knee_0000": with_lesions,
        "bonesTest/knee": femur.astype(np.uint8),
        "lesionsTest/knee": lesions,
    }
    for name, content in files.items():
        image = content if isinstance(content, sitk.Image) else sitk.GetImageFromArray(content)
        image.CopyInformation(echoes[0])
        write_image(image, raw / f"{name}.nii.gz")
    with open(raw / "healthy.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("case", "slice"))
        learnt = [number for number in range(FIRST, LAST + 1) if number not in LEFT_OUT]
        rows.writerows((f"echo{index}", number) for index in range(1, len(echoes) + 1) for number in learnt)
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "femur": 1},
        "numTraining": len(echoes),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "anomaly": {"channel_roles": {"0": "image"}, "roi_labels": ["femur"]},
    }
    save_json(description, raw / "dataset.json")


def draw(raw: Path, output: Path) -> None:
    """``femur.png``: every slice with its mask; ``mese.png``: what was left out, filled in, and found."""
    paths = {name: raw / f"{name}Test" / "knee.nii.gz" for name in ("bones", "lesions")}
    paths |= {"image": raw / "imagesTest" / "knee_0000.nii.gz", "found": output / "found" / "lesions" / "knee.nii.gz"}
    paths["filled in"] = output / "found" / "reconstructions" / "knee_0000.nii.gz"
    arrays = {name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for name, path in paths.items()}
    image, bones = arrays["image"], arrays["bones"] > 0
    figure, axes = plt.subplots(3, 6, figsize=(12, 6.2))
    for axis, number in zip(axes.flat, range(FIRST, LAST + 2), strict=True):
        axis.imshow(image[number], cmap="gray", vmax=np.percentile(image, 99.5))
        axis.contour(bones[number], [0.5], colors="red", linewidths=0.7)
        axis.axis("off")
    figure.tight_layout(pad=0.2)
    save_figure(figure, output / "femur.png", dpi=80)
    scaled = to_scale_of(arrays["filled in"], image, ~bones)
    figure, axes = plt.subplots(3, len(LEFT_OUT), figsize=(2.2 * len(LEFT_OUT), 6.7))
    for column, number in zip(axes.T, LEFT_OUT, strict=True):
        plane, filled = image[number].astype(float), np.where(bones[number], scaled[number], image[number])
        rows, columns = (np.flatnonzero(bones[number].any(axis)) for axis in (1, 0))
        box = np.s_[max(0, rows[0] - 12) : rows[-1] + 13, max(0, columns[0] - 12) : columns[-1] + 13]
        high = np.percentile(plane[bones[number]], 99.5) * 1.1
        for axis, shown in zip(column, (plane, filled, plane), strict=True):
            axis.imshow(shown[box], cmap="gray", vmin=0, vmax=high)
            axis.set_xticks([])
            axis.set_yticks([])
        if arrays["lesions"][number].any():
            column[2].contour(arrays["lesions"][number][box], [0.5], colors="white", linewidths=0.8)
        found = np.ma.masked_equal((arrays["found"][number][box] > 0).astype(float), 0)
        column[2].imshow(found, cmap="autumn", alpha=0.55, vmin=0, vmax=1)
    for axis, title in zip(axes[:, 0], ("image", "filled in", "found; true lesion in white"), strict=True):
        axis.set_ylabel(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    save_figure(figure, output / "mese.png", dpi=100)


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("-device", default="cpu")
    args = parser.parse_args()
    Study(args.output, args.device).run(args.folder, args.epochs, args.pixels)


if __name__ == "__main__":
    main()
