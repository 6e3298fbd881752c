"""Label maps: which arrays are ones, reading them from files, and whether two files lie on the same grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.files import read_image
from nnunet_anomaly.geometry import bounding_box, check_spacing

if TYPE_CHECKING:
    import SimpleITK as sitk

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
LARGEST_LABEL = np.iinfo(np.uint16).max


def as_label_map(array: np.ndarray, name: str = "label map") -> np.ndarray:
    """Check a label map and give it in the smallest unsigned dtype that holds it; the input is never changed.

    Args:
        array: bool or integers of any width and byte order, 2-D or 3-D, any memory layout; may be empty.
        name: how messages call it.

    Returns:
        uint8 or uint16 array of the same shape, often a view of ``array``: do not write to it.

    Raises:
        LabelError: not bool or integers, not 2-D or 3-D, a negative label, or one above 65535.
    """
    array = np.asarray(array)
    if array.ndim not in (2, 3):
        raise LabelError(f"The {name} has {array.ndim} axes; it must be 2-D or 3-D.")
    if array.dtype == bool:
        return array.view(np.uint8)
    if array.dtype.kind not in "iu":
        raise LabelError(f"The {name} holds {array.dtype} values; labels must be integers.")
    if array.dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
        return array
    lowest, highest = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if lowest < 0 or highest > LARGEST_LABEL:
        raise LabelError(f"The {name} holds labels from {lowest} to {highest}; they must lie in 0 to {LARGEST_LABEL}.")
    return array.astype(np.uint8 if highest < 256 else np.uint16)


def check_pair(reference: np.ndarray, prediction: np.ndarray, spacing_mm: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """``as_label_map`` of both, after a check that their shapes agree, and with the number of spacings if given.

    Raises:
        GeometryError: shapes differ, or the spacing is not one positive number per axis.
        LabelError: see ``as_label_map``.
    """
    if np.shape(reference) != np.shape(prediction):
        raise GeometryError(
            f"The reference has shape {np.shape(reference)}, the prediction {np.shape(prediction)}; both must lie on "
            "the same grid."
        )
    if spacing_mm is not None:
        check_spacing(spacing_mm, np.ndim(reference))
    return as_label_map(reference, "reference"), as_label_map(prediction, "prediction")


def check_labels(labels: Iterable[int]) -> None:
    """Raise a ``LabelError`` for a label that is no whole number in 1 to 65535; 0 is the background."""
    wrong = [label for label in labels if not (is_whole_number(label) and 1 <= label <= LARGEST_LABEL)]
    if wrong:
        raise LabelError(f"{wrong} are not labels of structures; these are 1 to {LARGEST_LABEL}, 0 is the background.")


def is_whole_number(value: Any) -> bool:
    """Whether a value is an integer, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def common_box(reference: np.ndarray, prediction: np.ndarray) -> tuple[slice, ...] | None:
    """Smallest box around everything that is not background in one of two arrays; None when all is background."""
    boxes = [box for box in (bounding_box(reference != 0), bounding_box(prediction != 0)) if box is not None]
    if not boxes:
        return None
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def case_name(path: Path) -> str:
    """File name without its image ending (``case.nii.gz`` is ``case``).

    Raises:
        InputError: the ending is none of ``ENDINGS``.
    """
    for ending in ENDINGS:
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    raise InputError(f"{path} is none of {', '.join(ENDINGS)}.")


def files_by_case(folder: Path, channel: int | None = None) -> dict[str, Path]:
    """Image files of a folder by case name, sorted.

    Args:
        folder: hidden files and files of other kinds are left out.
        channel: take ``<case>_0001.nii.gz`` (here 1) instead of ``<case>.nii.gz``; others are left out.

    Raises:
        InputError: the folder does not exist, or a case has two files.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.")
    suffix = "" if channel is None else f"_{channel:04d}"
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.endswith(ENDINGS) or not case_name(path).endswith(suffix):
            continue
        name = case_name(path).removesuffix(suffix)
        if name in found:
            raise InputError(f"{folder} holds the case '{name}' twice: {found[name].name} and {path.name}.")
        found[name] = path
    return found


def read_label_map(path: Path, known: Iterable[int] | None = None) -> tuple[np.ndarray, sitk.Image]:
    """Read a label map: its array (z, y, x) of integers, and the image that carries the geometry.

    Files of floating-point type are taken when every value is a whole number, as some tools write labels so.

    Args:
        path: the file.
        known: labels that it may hold besides the background, those of dataset.json; None: any.

    Raises:
        InputError: the file is missing or damaged.
        LabelError: values that are not whole numbers, negative, or above 65535; or labels that are not known, which
            are listed.
    """
    import SimpleITK as sitk

    image = read_image(path)
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind == "f":
        # NaN and infinity fail here as well
        if not np.array_equal(array, np.rint(array)) or not np.isfinite(array).all():
            raise LabelError(f"{path} holds values that are not whole numbers; is it a label map?")
        array = array.astype(np.int64)
    try:
        compact = as_label_map(array)
    except LabelError as error:
        raise LabelError(f"{path}: {error}") from None
    if known is not None and (stray := set(labels_in(compact)) - set(known)):
        raise LabelError(
            f"{path} holds the labels {sorted(stray)}, which dataset.json does not have; it has {sorted(known)}. "
            "Correct one of the two."
        )
    # integers keep the dtype of their file
    return (compact if image.GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64) else array), image


def labels_in(label_map: np.ndarray) -> list[int]:
    """Labels that occur, but for 0, ascending.

    Args:
        label_map: uint8 or uint16, as ``as_label_map`` gives it.
    """
    boxes = ndimage.find_objects(label_map) if label_map.size else []
    return [label for label, box in enumerate(boxes, start=1) if box is not None]


def read_region(path: Path, labels: Sequence[int], image: sitk.Image, image_path: Path) -> np.ndarray:
    """Where a label map holds one of some labels (without any: any but 0), bool, after a check of its grid.

    Args:
        path: the label map.
        labels: to look for.
        image: the image that it must lie on.
        image_path: how messages call the image.

    Raises:
        GeometryError: the label map lies on another grid.
        InputError: the file is missing or damaged, or holds none of the labels.
        LabelError: see ``read_label_map``.
    """
    array, grid = read_label_map(path)
    check_same_grid(image, image_path, grid, path)
    region = np.isin(array, labels) if labels else array != 0
    if not region.any():
        wanted = f"none of the labels {list(labels)}" if labels else "no label"
        raise InputError(f"{path} holds {wanted}: there is nowhere to look for an anomaly.")
    return region


def spacing_zyx_mm(image: sitk.Image) -> tuple[float, ...]:
    """Voxel size in the order of array axes (z, y, x)."""
    return tuple(float(size) for size in image.GetSpacing()[::-1])


def finest_voxels_mm(files: Mapping[str, Path]) -> dict[str, float]:
    """Finest voxel size of every case, from the headers of its images alone; they have been read whole before."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    found = {}
    for case, path in files.items():
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        found[case] = float(min(reader.GetSpacing()))
    return found


def check_same_grid(image: sitk.Image, path: Path, other: sitk.Image, other_path: Path) -> None:
    """Raise a ``GeometryError`` that names every difference in size, spacing, origin or direction.

    Header formats round: what moves no voxel of the image by more than a tenth of the finest voxel size is no
    difference.
    """
    ours, theirs = (
        (each.GetSize(), each.GetSpacing(), each.GetOrigin(), each.GetDirection()) for each in (image, other)
    )
    differences = []
    for what, one, two, moves_mm in zip(
        ("size", "spacing", "origin", "direction"), ours, theirs, _largest_moves_mm(ours, theirs), strict=True
    ):
        if moves_mm > 0.1 * min(ours[1]):
            differences.append(f"{what} {_rounded(one)} against {_rounded(two)}")
    if differences:
        raise GeometryError(f"{path} and {other_path} do not lie on the same grid: {'; '.join(differences)} (x, y, z).")


def _largest_moves_mm(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> tuple[float, float, float, float]:
    """How far a voxel moves at most by the difference in size (nowhere or anywhere), spacing, origin, direction."""
    if len(ours[0]) != len(theirs[0]):
        return math.inf, 0.0, 0.0, 0.0
    extent_voxels = np.array(ours[0], dtype=float)
    spacing, origin, direction = (np.subtract(one, two) for one, two in zip(ours[1:], theirs[1:], strict=True))
    return (
        0.0 if ours[0] == theirs[0] else math.inf,
        float(np.abs(spacing * extent_voxels).max()),
        float(np.abs(origin).max()),
        float(np.abs(direction.reshape(len(extent_voxels), -1) @ (extent_voxels * np.array(ours[1]))).max()),
    )


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)
