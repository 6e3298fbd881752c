"""Masks of femoral cartilage as they are passed around for the OAI's multi-echo series, and how they lie on an image.

Four kinds of files, told by their names (``NAME`` is ``9003126_4``, subject and year, or a case's name):

=========================  =====================================================================================
``NAME_0.mat``, ...        one slice each, key ``femoral_cartilage``, (rows, columns)
``NAME.npy``               (slices, rows, columns)
``NAME_fc.nii.gz``         the same transposed, (columns, rows, slices) on the disk; its header tells nothing
``NAME.nii.gz``            NIfTI on the grid of the image, axes in any order; its header tells how it lies
=========================  =====================================================================================

The first three are bare arrays. Their rows and columns are those of the DICOM images. Their slices are counted as the
authors' code (Thomas et al. 2021) does: by InstanceNumber within an echo. That is a rule of these masks and not of the
images, so that it is an option (``SLICE_ORDERS``), and how well a mask fits the edges in its image is looked at.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.dataset_conversion.grids import on_grid_of, read_placed
from nnunet_anomaly.dataset_conversion.mask_alignment import FLIPS, best_alignment, flipped
from nnunet_anomaly.dataset_conversion.splits import some_of
from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.files import read_image

KEY = "femoral_cartilage"
MAT, NPY, TRANSPOSED, NIFTI = "mat", "npy", "fc", "nifti"
INSTANCE, POSITION, REVERSED = "instance", "position", "reversed"
SLICE_ORDERS = (INSTANCE, POSITION, REVERSED)
_NAME = re.compile(r"(?P<name>.+?)(?:_(?P<slice>\d+)\.mat|\.npy|(?P<fc>_fc)?\.nii(?:\.gz)?)", re.IGNORECASE)


@dataclass(frozen=True)
class MaskFiles:
    """The files of one mask: one, or one a slice in the order of their numbers."""

    kind: str
    paths: tuple[Path, ...]


def masks_in(folder: Path) -> dict[str, list[MaskFiles]]:
    """All masks in a folder and the folders in it, by name; more than one of a name if they are of several files.

    Raises:
        InputError: there is no such folder, no mask in it, or slices of ``.mat`` files are missing or doubled.
    """
    if not folder.is_dir():
        raise InputError(f"The folder of labels {folder} does not exist.")
    found: dict[str, list[MaskFiles]] = defaultdict(list)
    slices: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        if not (match := _NAME.fullmatch(path.name)):
            continue
        if match["slice"] is not None:
            slices[match["name"]].append((int(match["slice"]), path))
        else:
            kind = NPY if path.suffix.casefold() == ".npy" else TRANSPOSED if match["fc"] else NIFTI
            found[match["name"]].append(MaskFiles(kind, (path,)))
    for name, numbered in slices.items():
        found[name].append(MaskFiles(MAT, _in_order(name, numbered)))
    if not found:
        raise InputError(
            f"{folder} has no labels: NAME_0.mat, NAME_1.mat, ..., NAME.npy, NAME_fc.nii.gz or NAME.nii.gz."
        )
    return dict(sorted(found.items()))


def _in_order(name: str, numbered: Sequence[tuple[int, Path]]) -> tuple[Path, ...]:
    """Files of the slices of a mask by their numbers, which have to follow each other."""
    ordered = sorted(numbered)
    for (number, path), (following, other) in pairwise(ordered):
        if following != number + 1:
            raise InputError(
                f"{path} is followed by {other}: of the mask {name} "
                + ("a slice is doubled." if following == number else f"slice {number + 1} is missing.")
            )
    return tuple(path for _, path in ordered)


def read_mask(
    files: MaskFiles,
    image: sitk.Image,
    instance_numbers: Sequence[int | None],
    order: str,
) -> tuple[sitk.Image, list[str]]:
    """A mask on the grid of its image.

    Args:
        files: of the mask.
        image: one echo, slices in the order of their positions; edges of cartilage should be seen in it.
        instance_numbers: InstanceNumber of every slice of the image.
        order: how bare arrays count slices, one of ``SLICE_ORDERS``; not asked for where a header tells how they lie.

    Returns:
        uint8 mask of 0 and 1 on the image's grid, and notes for the report.

    Raises:
        InputError: a file is not readable, or slices cannot be ordered.
        GeometryError: the mask is not of the image's size, or by its header not on its grid.
        LabelError: values other than 0 and 1.
    """
    if files.kind == NIFTI:
        advice = "; a bare array in a NIfTI file, transposed, has to be named NAME_fc.nii.gz"
        placed = on_grid_of(read_placed(files.paths[0]), image, f"label {files.paths[0]}", advice)
        array = _as_mask(sitk.GetArrayFromImage(placed), files.paths[0])
    else:
        array = _read_array(files)
        shape = image.GetSize()[::-1]
        if array.shape != shape:
            raise GeometryError(
                f"{files.paths[0]}: the mask has {_times(array.shape)} slices, rows and columns, the image "
                f"{_times(shape)}."
            )
        array = array[_slices_of_mask(instance_numbers, order)]
    notes = _fit_notes(sitk.GetArrayFromImage(image), array, image.GetSpacing()[::-1], files.kind)
    mask = sitk.GetImageFromArray(np.ascontiguousarray(array))
    mask.CopyInformation(image)
    return mask, notes


def _read_array(files: MaskFiles) -> np.ndarray:
    """A bare mask as uint8 (slices, rows, columns)."""
    if files.kind == TRANSPOSED:
        return _as_mask(sitk.GetArrayFromImage(read_image(files.paths[0])), files.paths[0])
    if files.kind == NPY:
        return _as_mask(_read_npy(files.paths[0]), files.paths[0])
    planes = [_as_mask(_read_mat(path), path, axes=2) for path in files.paths]
    for plane, path in zip(planes, files.paths, strict=True):
        if plane.shape != planes[0].shape:
            raise GeometryError(
                f"{path} has {_times(plane.shape)} rows and columns, {files.paths[0].name} {_times(planes[0].shape)}."
            )
    return np.stack(planes)


def _read_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not readable as a numpy array ({error}). Fetch this file again.") from error
    return array


def _read_mat(path: Path) -> np.ndarray:
    """The array of one ``.mat`` file; matlab's version 7.3 is HDF5, which scipy does not read."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError
    from scipy.sparse import issparse

    try:
        content = loadmat(path, variable_names=[KEY])
    except NotImplementedError as error:
        raise InputError(f"{path} is a .mat file of version 7.3. Save it as version 7 (save -v7).") from error
    except (MatReadError, ValueError, TypeError, OSError, EOFError, IndexError) as error:
        raise InputError(f"{path} is not readable as a .mat file ({error}). Fetch this file again.") from error
    if KEY not in content:
        raise InputError(f"{path} has no variable {KEY}.")
    found = content[KEY]
    return found.toarray() if issparse(found) else found


def _as_mask(array: np.ndarray, path: Path, axes: int = 3) -> np.ndarray:
    """uint8 of 0 and 1."""
    if array.ndim != axes or array.dtype.kind not in "biuf":
        raise GeometryError(f"{path} has {array.ndim} axes of {array.dtype}; a mask has {axes} axes of numbers.")
    values = np.unique(array)
    if not np.isin(values, (0, 1)).all():
        wrong = some_of([f"{value}" for value in values if value not in (0, 1)], 3)
        raise LabelError(f"{path} has the values {wrong}; a mask has 0 and 1 alone. Probabilities need a threshold.")
    return array.astype(np.uint8)


def _slices_of_mask(instance_numbers: Sequence[int | None], order: str) -> list[int]:
    """Index in the mask of every slice of the image."""
    number = len(instance_numbers)
    if order != INSTANCE:
        return list(range(number) if order == POSITION else reversed(range(number)))
    known = [found for found in instance_numbers if found is not None]
    if len(set(known)) != number:
        raise InputError(
            "the InstanceNumbers of its slices are missing or not all different, so that they do not tell in which "
            f"order its mask has them. Look at some and give --label-slices {POSITION} or {REVERSED}."
        )
    rank = {found: index for index, found in enumerate(sorted(known))}
    return [rank[found] for found in known]


def edge_scores(image: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    """How well the borders of a mask lie on edges of its image, for all eight ways of flipping it.

    Args:
        image: grey values (z, y, x).
        mask: 0 and 1 (z, y, x), not flipped.
        spacing_mm: voxel size (z, y, x).

    Returns:
        For every one of ``FLIPS`` the mean gradient in the plane at the mask's border, less the mean of all voxels, in
        standard deviations of these; 0 for an empty mask.
    """
    from scipy import ndimage

    plane = np.ones((1, 3, 3), dtype=bool)
    border = (mask > 0) ^ ndimage.binary_erosion(mask > 0, plane)
    if not border.any() or min(image.shape[1:]) < 2:
        return dict.fromkeys(FLIPS, 0.0)
    rows, columns = np.gradient(image.astype(np.float32), *spacing_mm[1:], axis=(1, 2))
    gradient = np.hypot(rows, columns)
    gradient /= max(float(gradient.std()), 1e-6)
    return {flip: float(gradient[flipped(border, flip)].mean() - gradient.mean()) for flip in FLIPS}


def _fit_notes(image: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], kind: str) -> list[str]:
    """What to say of a mask whose borders lie better on the image's edges when it is flipped."""
    own = best_alignment(edge_scores(image, mask, spacing_mm))
    if own.flip == "none" or not own.is_clear:
        return []
    remedy = "" if kind == NIFTI else "; look at it, and see --label-slices where it is z alone"
    return [f"the mask's borders lie better on the image's edges with the axes {own.flip} reversed: {own}{remedy}"]


def _times(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))
