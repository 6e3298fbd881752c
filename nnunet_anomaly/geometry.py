"""Distances in millimetres on arrays, and morphology by balls: spacing and array axes are always in the same order.

A ball of a radius holds the voxels whose centre lies at most that far from its own; where the spacing is 1 along every
axis, a radius in mm is one in voxels. Beyond the edge of an array lies endless background: a dilation takes nothing in
from there, an erosion and an opening take away at the edge, and a closing works as if the array were padded before and
cropped afterwards, so that it never takes a voxel away.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import ndimage

from nnunet_anomaly.errors import GeometryError, LabelError

# A voxel counts as within a radius up to this relative rounding, so that 2 voxels of 0.365 mm, which NIfTI keeps as
# float32, are within 0.73 mm. It is more than ITK's distances, which are float32, are off.
ROUNDING = 1e-6
# Positions up to this are exact in float32.
_LARGEST_WHOLE_NUMBER = 2**24
# Up to so many shifted copies are cheaper than a distance transform; changes the time, never the result.
MOST_SHIFTS = 150


def bounding_box(mask: np.ndarray, margin_voxels: Sequence[int] | int = 0) -> tuple[slice, ...] | None:
    """Smallest box around the true voxels of ``mask`` (any shape, bool), widened and cut off at the array's edge.

    Returns ``None`` for an empty mask.
    """
    margins = [margin_voxels] * mask.ndim if isinstance(margin_voxels, int) else list(margin_voxels)
    if len(margins) != mask.ndim:
        raise ValueError(f"margin_voxels has {len(margins)} entries for {mask.ndim} axes")
    box = []
    for axis, margin in enumerate(margins):
        line = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if line.size == 0:
            return None
        box.append(slice(max(0, int(line[0]) - margin), min(mask.shape[axis], int(line[-1]) + 1 + margin)))
    return tuple(box)


def distance_to_mm(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Euclidean distance in mm from every voxel's centre to that of the nearest true voxel (Maurer 2003, by ITK).

    Args:
        mask: bool or integers from 0, 2-D or 3-D.
        spacing_mm: voxel size along every axis of ``mask``.

    Returns:
        float32 array of the same shape, 0 in the mask, infinite everywhere when the mask is empty. The relative
        rounding error is below 5e-7.
    """
    import SimpleITK as sitk

    mask, spacing_mm = _checked(mask, spacing_mm)
    if not mask.any():
        return np.full(mask.shape, np.inf, dtype=np.float32)
    unit_mm, sizes = _whole_numbers(spacing_mm, mask.shape)
    if not sizes:  # ITK would round positions; scipy is exact for any spacing, but takes several times as long
        return ndimage.distance_transform_edt(~mask, sampling=spacing_mm).astype(np.float32)
    image = sitk.GetImageFromArray(mask.view(np.uint8))
    image.SetSpacing(sizes[::-1])
    signed = sitk.SignedMaurerDistanceMap(image, False, False, True)
    distance_mm = np.maximum(sitk.GetArrayViewFromImage(signed), 0, dtype=np.float32)
    distance_mm *= np.float32(unit_mm)
    return distance_mm


def _whole_numbers(spacing_mm: Sequence[float], shape: Sequence[int]) -> tuple[float, list[float]]:
    """A unit in mm in which voxel sizes are whole numbers, and these; ITK's positions, float32, are exact then.

    Whole but for a relative 4e-7. The list is empty where there is no such unit.
    """
    finest_mm = min(spacing_mm)
    units_mm = [1e-3, 1e-4]
    for largest in (1 << 12, 1 << 13, 1 << 14, 1 << 15):
        denominators = [Fraction(size_mm / finest_mm).limit_denominator(largest).denominator for size_mm in spacing_mm]
        units_mm.append(finest_mm / math.lcm(*denominators))
    for unit_mm in units_mm:
        sizes = [size_mm / unit_mm for size_mm in spacing_mm]
        whole = [float(round(size)) for size in sizes]
        exact = all(math.isclose(*pair, rel_tol=4e-7) for pair in zip(sizes, whole, strict=True))
        if exact and all(size * voxels < _LARGEST_WHOLE_NUMBER for size, voxels in zip(whole, shape, strict=True)):
            return unit_mm, whole
    return finest_mm, []


def dilate_mm(mask: np.ndarray, radius_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Voxels whose centre lies within ``radius_mm`` of the centre of a true voxel.

    Args:
        mask: bool or integers from 0, 2-D or 3-D. An empty mask stays empty.
        radius_mm: 0 returns a copy.
        spacing_mm: voxel size along every axis of ``mask``.

    Returns:
        bool array of the same shape.

    Raises:
        GeometryError: the spacing is not one positive number per axis.
        LabelError: not such a mask.
        ValueError: a radius that is negative or not finite.
    """
    mask, spacing_mm = _checked(mask, spacing_mm)
    reach = _reach_voxels(radius_mm, spacing_mm)
    box = bounding_box(mask, reach)
    grown = mask.copy()
    if box is None or not any(reach):
        return grown
    rows = _rows_of_ball(radius_mm, spacing_mm)
    if len(rows) <= MOST_SHIFTS:
        grown[box] = _dilate_by_shifts(mask[box], rows)
    else:
        grown[box] = distance_to_mm(mask[box], spacing_mm) <= radius_mm * (1 + ROUNDING)
    return grown


def erode_mm(mask: np.ndarray, radius_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Voxels further than ``radius_mm`` from the centre of every voxel outside; arguments as in ``dilate_mm``."""
    mask, spacing_mm = _checked(mask, spacing_mm)
    box = bounding_box(mask)
    eroded = np.zeros_like(mask)
    if box is not None:
        # one layer of the background beyond the edge is enough: whatever lies behind it is further away
        background = np.pad(~mask[box], 1, constant_values=True)
        inner = (slice(1, -1),) * mask.ndim
        eroded[box] = ~dilate_mm(background, radius_mm, spacing_mm)[inner]
    return eroded


def open_mm(mask: np.ndarray, radius_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Opening by a ball: what of a mask is covered by balls that lie within it; arguments as in ``dilate_mm``."""
    return dilate_mm(erode_mm(mask, radius_mm, spacing_mm), radius_mm, spacing_mm)


def close_mm(mask: np.ndarray, radius_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Closing by a ball: all but what balls outside the mask cover; arguments as in ``dilate_mm``."""
    mask, spacing_mm = _checked(mask, spacing_mm)
    reach = _reach_voxels(radius_mm, spacing_mm)
    box = bounding_box(mask)
    closed = mask.copy()
    if box is not None:
        padded = np.pad(mask[box], [(voxels, voxels) for voxels in reach])
        inner = tuple(slice(voxels, voxels + size) for voxels, size in zip(reach, mask[box].shape, strict=True))
        closed[box] = erode_mm(dilate_mm(padded, radius_mm, spacing_mm), radius_mm, spacing_mm)[inner]
    return closed


def check_spacing(spacing_mm: Any, number_of_axes: int) -> None:
    """Raise a ``GeometryError`` unless there is one positive, finite voxel size per axis."""
    try:
        sizes_mm = np.asarray(spacing_mm, dtype=float)
    except (TypeError, ValueError):
        sizes_mm = np.zeros(0)
    if sizes_mm.shape != (number_of_axes,) or not np.isfinite(sizes_mm).all() or (sizes_mm <= 0).any():
        raise GeometryError(f"spacing_mm is {spacing_mm}; it must be one positive number for {number_of_axes} axes.")


def check_in_patient(mask: np.ndarray, spacing_mm: Any, direction: Any, what: str) -> np.ndarray:
    """The mask as an array, if it is one that lies in a patient.

    Args:
        mask: 3-D, bool or integers.
        spacing_mm: voxel size along every axis.
        direction: SimpleITK's ``GetDirection()``, 9 numbers.
        what: for messages, such as "The femur".

    Raises:
        GeometryError: the spacing or the direction is not that of a 3-D image.
        LabelError: a mask that is not 3-D, or neither bool nor integers.
    """
    mask = np.asarray(mask)
    if mask.ndim != 3 or mask.dtype.kind not in "biu":
        raise LabelError(f"{what} has {mask.ndim} axes and {mask.dtype} values; it must be 3-D, bool or integers.")
    check_spacing(spacing_mm, 3)
    if np.shape(direction) != (9,):
        raise GeometryError(f"direction is {direction}; a 3-D image has 9 numbers.")
    return mask


def _checked(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, tuple[float, ...]]:
    """The mask as bool, C-contiguous, and its spacing as floats.

    Raises:
        GeometryError: the spacing is not one positive number per axis.
        LabelError: not a 2-D or 3-D mask of bool or integers from 0.
    """
    mask = np.asarray(mask)
    if mask.ndim not in (2, 3) or mask.dtype.kind not in "biu" or (mask.dtype.kind == "i" and mask.min(initial=0) < 0):
        raise LabelError(
            f"The mask has {mask.ndim} axes and {mask.dtype} values; it must be 2-D or 3-D, bool or integers from 0."
        )
    check_spacing(spacing_mm, mask.ndim)
    return np.ascontiguousarray(mask, dtype=bool), tuple(float(size_mm) for size_mm in spacing_mm)


def _reach_voxels(radius_mm: float, spacing_mm: Sequence[float]) -> list[int]:
    """How many voxels a ball reaches along every axis."""
    if not 0 <= radius_mm < math.inf:
        raise ValueError(f"radius_mm is {radius_mm}; it must be finite and cannot be negative")
    return [int(radius_mm * (1 + ROUNDING) / size_mm) for size_mm in spacing_mm]


def _rows_of_ball(radius_mm: float, spacing_mm: Sequence[float]) -> list[tuple[int, tuple[int, ...]]]:
    """A ball as rows along the last axis: half the length of each in voxels, and its offset along the other axes."""
    *reach, _ = _reach_voxels(radius_mm, spacing_mm)
    rows = []
    for offset in itertools.product(*(range(-voxels, voxels + 1) for voxels in reach)):
        left = (radius_mm * (1 + ROUNDING)) ** 2 - sum(
            (voxels * size_mm) ** 2 for voxels, size_mm in zip(offset, spacing_mm, strict=False)
        )
        if left >= 0:
            rows.append((int(math.sqrt(left) / spacing_mm[-1]), offset))
    return sorted(rows)


def _dilate_by_shifts(mask: np.ndarray, rows: Sequence[tuple[int, tuple[int, ...]]]) -> np.ndarray:
    """Union of copies of the mask, widened along the last axis by the half length of each row of the ball."""
    grown, wide, half_length = np.zeros_like(mask), mask.copy(), 0
    for wanted, offset in rows:
        if any(abs(step) >= size for step, size in zip(offset, mask.shape, strict=False)):
            continue
        while half_length < wanted:
            half_length += 1
            wide[..., half_length:] |= mask[..., :-half_length]
            wide[..., :-half_length] |= mask[..., half_length:]
        to = tuple(slice(max(0, step), size + min(0, step)) for step, size in zip(offset, mask.shape, strict=False))
        of = tuple(slice(max(0, -step), size - max(0, step)) for step, size in zip(offset, mask.shape, strict=False))
        grown[to] |= wide[of]
    return grown
