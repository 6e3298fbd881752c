"""Tiny trees that mimic OAI-ZIB, OAIZIB-CM and the UQ labels, file for file; heads for BraTS, ATLAS and the healthy."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

SPACING_MM = (0.7, 0.36, 0.36)  # slices, rows, columns
DIRECTION = (
    0.0,
    0.0,
    -1.0,
    1.0,
    0.0,
    0.0,
    0.0,
    -1.0,
    0.0,
)  # sagittal: columns to the back, rows down, slices to the right


def knee(seed: int, shape: tuple[int, int, int] = (12, 16, 16)) -> tuple[np.ndarray, np.ndarray]:
    """DESS-like image (int16) and labels 1 to 4, the same in no two directions."""
    rng = np.random.default_rng(seed)
    unit = np.array(shape) / 16
    z, y, x = (np.arange(size).reshape([-1 if axis == i else 1 for i in range(3)]) for axis, size in enumerate(shape))
    shift = rng.integers(0, 2)
    across = (z >= 3 * unit[0]) & (x >= 4 * unit[2] + shift)
    label = np.zeros(shape, np.uint8)
    label[across & (y < 7 * unit[1])] = 1
    label[across & (y >= 6 * unit[1]) & (y < 8 * unit[1]) & (x < 12 * unit[2])] = 2
    label[across & (y >= 8 * unit[1]) & (y < 9 * unit[1]) & (z >= 6 * unit[0])] = 4
    label[across & (y >= 9 * unit[1]) & (y < 14 * unit[1]) & (x < 14 * unit[2])] = 3
    grey = np.array([110, 40, 200, 45, 190])[label] + rng.normal(0, 12, shape)
    return np.clip(grey, 1, None).astype(np.int16), label


def write_series(
    folder: Path,
    volume: np.ndarray,
    description: str = "SAG_3D_DESS_RIGHT",
    uid: str = "1.2.826.0.1.3680043.2.1125.1",
    side: str | None = "R",
    first_file: int = 1,
) -> sitk.Image:
    """Write a sagittal DICOM series, one file a slice named 001, 002 ..., and return the volume with its geometry."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, plane in enumerate(volume):
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing((SPACING_MM[2], SPACING_MM[1]))
        tags = {
            "0008|0060": "MR",
            "0008|0018": f"{uid}.{index + 1}",
            "0020|000d": f"{uid}.0",
            "0020|000e": uid,
            "0008|103e": description,
            "0018|0050": str(SPACING_MM[0]),
            "0020|0013": str(index + 1),
            "0020|0032": f"{50 - SPACING_MM[0] * index:g}\\-40\\30",
            "0020|0037": "0\\1\\0\\0\\0\\-1",
        }
        if side is not None:
            tags["0020|0060"] = side
        for key, value in tags.items():
            image.SetMetaData(key, value)
        path = folder / f"{first_file + index:03d}"
        writer.SetFileName(f"{path}.dcm")
        writer.Execute(image)
        path.with_suffix(".dcm").rename(path)
    return with_geometry(volume)


def with_geometry(array: np.ndarray) -> sitk.Image:
    """A volume with the geometry of ``write_series``."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_MM[::-1])
    image.SetOrigin((50, -40, 30))
    image.SetDirection(DIRECTION)
    return image


@dataclass(frozen=True)
class Tree:
    """An OAI-ZIB release, the OAI images, and the labels as they lie on the images."""

    release: Path
    oai_root: Path
    truth: dict[str, np.ndarray]

    @property
    def masks(self) -> Path:
        return self.release / "segmentation" / "segmentation_masks"

    @property
    def doc(self) -> Path:
        return self.release / "segmentation" / "doc"

    def mask(self, name: str) -> Path:
        return self.masks / f"{name}.segmentation_masks.mhd"

    def series(self, name: str) -> Path:
        return self.oai_root / "0.C.2" / name / "20050101" / f"1{name}"

    def copy_to(self, folder: Path) -> Tree:
        shutil.copytree(self.release, folder / "release")
        shutil.copytree(self.oai_root, folder / "00m")
        return Tree(folder / "release", folder / "00m", self.truth)


def write_mask(path: Path, label: np.ndarray, flip: Sequence[int] = (0, 1)) -> None:
    """A mask as in the release: no geometry, slices last, the axes in ``flip`` reversed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(np.flip(label, flip), 0, -1))), str(path))


def make_tree(folder: Path, names: Sequence[str], shape: tuple[int, int, int] = (12, 16, 16)) -> Tree:
    """Write a release and its images; the masks have slices and rows reversed."""
    tree = Tree(folder / "release", folder / "00m", {})
    for seed, name in enumerate(names):
        image, tree.truth[name] = knee(seed, shape)
        write_series(tree.series(name), image, uid=f"1.2.826.0.1.3680043.2.1125.{seed + 1}")
        write_mask(tree.mask(name), tree.truth[name])
    tree.doc.mkdir(parents=True)
    lines = [f"{name}: {tree.series(name).relative_to(tree.oai_root).as_posix()}\n" for name in names]
    (tree.doc / "oai_mri_paths.txt").write_text("".join(lines))
    for number, half in ((1, names[::2]), (2, names[1::2])):
        (tree.doc / f"2foldCrossValidation-List{number}.txt").write_text("\n".join(half) + "\n")
    return tree


@pytest.fixture(scope="session")
def whole_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Six subjects; not to be changed."""
    return make_tree(tmp_path_factory.mktemp("oai"), [str(9000001 + index) for index in range(6)])


@pytest.fixture
def tree(whole_tree: Tree, tmp_path: Path) -> Tree:
    """Six subjects, to be damaged at will."""
    return whole_tree.copy_to(tmp_path)


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``nnUNet_raw``, set."""
    folder = tmp_path / "nnUNet_raw"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(folder))
    return folder


@pytest.fixture
def tools() -> SimpleNamespace:
    """The functions of this file, since test files cannot import each other."""
    return SimpleNamespace(
        knee=knee, write_series=write_series, with_geometry=with_geometry, write_mask=write_mask, make_tree=make_tree
    )


def head(seed: int, shape: tuple[int, int, int] = (10, 12, 14)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image with a skull (int16), brain mask, lesion (uint8, 1 to 3 inwards); the same in no two directions."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    place = (z - 4.5) ** 2 / 16 + (y - 6) ** 2 / 20 + (x - 7.5) ** 2 / 30
    brain = place < 1
    lesion = np.zeros(shape, np.uint8)
    lesion[3:7, 4:7, 5:9] = 1
    lesion[3:6, 4:6, 5:8] = 2
    lesion[3:5, 4:5, 5:7] = 3
    lesion[~brain] = 0
    grey = np.where(brain, 100, 0) + 60 * ((place > 1.3) & (place < 1.6)) + 40 * (lesion > 0)
    return np.where(grey > 0, grey + rng.integers(0, 20, shape), 0).astype(np.int16), brain, lesion


def flipped_image(array: np.ndarray, spacing_mm: tuple[float, float, float] = (15, 10, 8)) -> sitk.Image:
    """A volume that is not isotropic and whose first two axes run backwards, as those of BraTS do; a head has 0.5 l."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(spacing_mm[::-1])
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    image.SetOrigin((0, 239, 0))
    return image


@pytest.fixture
def heads() -> SimpleNamespace:
    """Tiny heads with brain masks and lesions, and a writer of NIfTI files."""

    def write(path: Path, array: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(flipped_image(array), str(path))
        return path

    def read(path: Path) -> np.ndarray:
        """As the array lay before it was brought into LPS."""
        image = sitk.ReadImage(str(path))
        return sitk.GetArrayFromImage(sitk.DICOMOrient(image, "RAS"))

    return SimpleNamespace(head=head, image=flipped_image, write=write, read=read)


@pytest.fixture
def fake_hd_bet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command ``hd-bet`` with the options of version 2 that calls brain what is above 90; it logs its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "hd-bet"
    program.write_text(
        f"""#!{sys.executable}
import argparse, SimpleITK as sitk
parser = argparse.ArgumentParser()
parser.add_argument("-i"); parser.add_argument("-o"); parser.add_argument("-device")
for flag in ("--save_bet_mask", "--no_bet_image", "--disable_tta"):
    parser.add_argument(flag, action="store_true")
args = parser.parse_args()
assert args.save_bet_mask and args.no_bet_image and args.o.endswith(".nii.gz")
open({str(folder / "log")!r}, "a").write(args.device + "\\n")
image = sitk.ReadImage(args.i)
if sitk.GetArrayFromImage(image)[0, 0, 0] == 7:
    raise SystemExit("no brain here")
sitk.WriteImage(image > 90, args.o[:-7] + "_bet.nii.gz")
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    network = tmp_path / "hd-bet_params" / "release_2.0.0" / "fold_all" / "checkpoint_final.pth"
    network.parent.mkdir(parents=True)
    network.touch()
    return folder / "log"
