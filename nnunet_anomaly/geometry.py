"""Distances in millimetres on arrays: spacing and array axes are always in the same order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


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


def dilate_mm(mask: np.ndarray, radius_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Voxels whose centre lies within ``radius_mm`` of the centre of a true voxel.

    Args:
        mask: bool, 2-D or 3-D. An empty mask stays empty.
        radius_mm: 0 returns a copy.
        spacing_mm: voxel size along every axis of ``mask``.

    Returns:
        bool array of the same shape.
    """
    if radius_mm < 0:
        raise ValueError(f"radius_mm is {radius_mm}; it cannot be negative")
    mask = np.asarray(mask, dtype=bool)
    if len(spacing_mm) != mask.ndim:
        raise ValueError(f"spacing_mm has {len(spacing_mm)} entries for {mask.ndim} axes")
    box = bounding_box(mask, [int(np.ceil(radius_mm / size_mm)) for size_mm in spacing_mm])
    grown = mask.copy()
    if box is not None and radius_mm > 0:
        grown[box] = ndimage.distance_transform_edt(~mask[box], sampling=spacing_mm) <= radius_mm
    return grown
