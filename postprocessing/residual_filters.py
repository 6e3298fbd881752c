"""Cleaning of residual maps: eroded brain mask, median filter, small components (Bengs 2021, section 2.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.errors import GeometryError, InputError, SettingsError
from nnunet_anomaly.geometry import bounding_box, erode_mm
from nnunet_anomaly.label_maps import check_spacing


@dataclass(frozen=True)
class ResidualFilters:
    """Settings of ``filter_residual``; 0 switches a filter off.

    The paper names no sizes. The median's window is that of Baur et al. 2021 (5 x 5 x 5 voxels) at 1 mm.

    Attributes:
        erode_mm: rim of the brain mask to leave out.
        median_radius_mm: reach of the median's window along every axis, to both sides.
        min_volume_mm3: smaller components of what scores at least ``component_threshold`` are set to 0.
        component_threshold: in the unit of the residual; without it no component is dropped.

    Raises:
        SettingsError: a negative or infinite value, or one of the last two without the other.
    """

    erode_mm: float = 3.0
    median_radius_mm: float = 2.0
    min_volume_mm3: float = 0.0
    component_threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("erode_mm", "median_radius_mm", "min_volume_mm3"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be a number from 0 on.")
        if bool(self.min_volume_mm3) != (self.component_threshold is not None):
            raise SettingsError(
                "min_volume_mm3 and component_threshold go together: components are those of what scores at least the "
                "threshold."
            )


def filter_residual(
    residual: np.ndarray, brain_mask: np.ndarray, spacing_mm: Sequence[float], filters: ResidualFilters
) -> np.ndarray:
    """All filters, in the paper's order: eroded mask, median, components.

    Args:
        residual: 2-D or 3-D, float or integers, finite and not negative inside the mask.
        brain_mask: of the same shape, bool or integers, not 0 is brain. Where it is empty, so is the result.
        spacing_mm: voxel size along every axis.
        filters: see there.

    Returns:
        float32 array of the same shape, 0 outside the eroded mask.

    Raises:
        GeometryError: shapes differ, or the spacing is not one positive number per axis.
        InputError: NaN, infinite or negative values inside the mask.
    """
    check_spacing(spacing_mm, np.ndim(residual))
    if np.shape(brain_mask) != np.shape(residual):
        raise GeometryError(f"The brain mask has shape {np.shape(brain_mask)}, the residual {np.shape(residual)}.")
    inside = erode_mm(np.asarray(brain_mask) != 0, filters.erode_mm, spacing_mm)
    filtered = np.where(inside, residual, 0).astype(np.float32)
    if not np.isfinite(filtered).all() or filtered.min(initial=0) < 0:
        raise InputError("The residual holds NaN, infinity or negative values inside the brain mask.")
    filtered = median_filter(filtered, filters.median_radius_mm, spacing_mm)
    filtered[~inside] = 0
    if filters.component_threshold is not None:
        filtered = drop_small_components(filtered, spacing_mm, filters.component_threshold, filters.min_volume_mm3)
    return filtered


def median_filter(residual: np.ndarray, radius_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Median over a box that reaches ``radius_mm`` to both sides along every axis (voxels beyond the edge are 0).

    Args:
        residual: float32, 2-D or 3-D.
        radius_mm: along an axis with larger voxels nothing is filtered; 0 changes nothing.
        spacing_mm: voxel size along every axis.

    Returns:
        float32 array of the same shape.
    """
    import SimpleITK as sitk

    reach = median_reach_voxels(radius_mm, spacing_mm)
    box = bounding_box(residual != 0, reach)
    result = residual.copy()
    if box is not None and any(reach):
        padded = np.pad(residual[box], [(voxels, voxels) for voxels in reach])
        image = sitk.Median(sitk.GetImageFromArray(padded), reach[::-1])
        inner = tuple(slice(voxels, size - voxels) for voxels, size in zip(reach, padded.shape, strict=True))
        result[box] = sitk.GetArrayViewFromImage(image)[inner]
    return result


def median_reach_voxels(radius_mm: float, spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """How far the median's window reaches to both sides along every axis; 0 where voxels are larger than the radius."""
    return tuple(int(radius_mm * (1 + 1e-6) / size_mm) for size_mm in spacing_mm)


def drop_small_components(
    residual: np.ndarray, spacing_mm: Sequence[float], threshold: float, min_volume_mm3: float
) -> np.ndarray:
    """Set the components (26 neighbours) of what scores at least a threshold to 0 where they are below a volume.

    Args:
        residual: 2-D or 3-D.
        spacing_mm: voxel size along every axis.
        threshold: in the unit of ``residual``; what scores less stays as it is.
        min_volume_mm3: a component of exactly this volume stays.

    Returns:
        A new array of the same shape and dtype.
    """
    components = label_components(residual >= threshold)
    small = are_small(components.sizes_voxels, spacing_mm, min_volume_mm3)
    dropped = np.zeros(components.mask.shape, dtype=bool)
    dropped[components.mask] = small[components.numbers]
    return np.where(dropped, residual.dtype.type(0), residual)


def are_small(sizes_voxels: np.ndarray, spacing_mm: Sequence[float], min_volume_mm3: float) -> np.ndarray:
    """Which components are below a volume, bool; one of exactly this volume is not."""
    return sizes_voxels * math.prod(map(float, spacing_mm)) < min_volume_mm3 * (1 - 1e-9)
