"""Building blocks of phantoms: signed distances in mm, soft edges, smooth random fields and MR noise.

A signed distance is negative inside a shape. The shapes here are approximate distances, exact at the surface; where
the thickness of a layer matters, ``surface_ramp`` gives the slope to divide by.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def smooth_step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, and the cubic 3t^2 - 2t^3 between; falls instead where ``low > high``."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def smooth_min(first: np.ndarray, second: np.ndarray, radius_mm: float) -> np.ndarray:
    """Union of two signed distances with a fillet; exactly the minimum where they differ by ``radius_mm`` or more."""
    overlap = np.maximum(radius_mm - np.abs(first - second), 0.0)
    return np.minimum(first, second) - overlap * overlap / (4.0 * radius_mm)


def smooth_max(first: np.ndarray, second: np.ndarray, radius_mm: float) -> np.ndarray:
    """Intersection of two signed distances with a rounded edge (see ``smooth_min``)."""
    return -smooth_min(-first, -second, radius_mm)


def ellipsoid(point: Sequence[np.ndarray], centre: Sequence[float], radii_mm: Sequence[float]) -> np.ndarray:
    """Signed distance to an axis-aligned ellipse or ellipsoid, to first order at its surface."""
    scaled = [(axis - middle) / radius for axis, middle, radius in zip(point, centre, radii_mm, strict=True)]
    length = np.sqrt(sum(axis * axis for axis in scaled))
    slope = np.sqrt(sum((axis / radius) ** 2 for axis, radius in zip(scaled, radii_mm, strict=True)))
    return length * (length - 1.0) / np.maximum(slope, 1e-4)


def capsule(
    point: Sequence[np.ndarray],
    start: Sequence[float] | np.ndarray,
    end: Sequence[float] | np.ndarray,
    start_radius_mm: float,
    end_radius_mm: float | None = None,
) -> np.ndarray:
    """Signed distance to a thick line from ``start`` to ``end``; the radius changes evenly along it."""
    end_radius_mm = start_radius_mm if end_radius_mm is None else end_radius_mm
    along = [last - first for first, last in zip(start, end, strict=True)]
    offset = [axis - first for axis, first in zip(point, start, strict=True)]
    squared_length = sum(step * step for step in along)
    position = np.clip(sum(axis * step for axis, step in zip(offset, along, strict=True)) / squared_length, 0.0, 1.0)
    squared = sum((axis - position * step) ** 2 for axis, step in zip(offset, along, strict=True))
    return np.sqrt(squared) - (start_radius_mm + (end_radius_mm - start_radius_mm) * position)


def extrusion(profile: np.ndarray, offset: np.ndarray, half_width_mm: float, rounding_mm: float) -> np.ndarray:
    """Solid between two walls: the signed distance ``profile`` of its cross-section, as wide as ``|offset|`` allows."""
    across = profile + rounding_mm
    sideways = np.abs(offset) - (half_width_mm - rounding_mm)
    outside = np.sqrt(np.maximum(across, 0.0) ** 2 + np.maximum(sideways, 0.0) ** 2)
    return outside + np.minimum(np.maximum(across, sideways), 0.0) - rounding_mm


def surface_ramp(
    distance: np.ndarray, spacing_mm: Sequence[float], axes_mm: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Slope of a signed distance, and the width (mm) of the soft edge that a box-shaped voxel sees across the surface.

    The fraction of a voxel inside a plane with unit normal n rises over a width of about sqrt(sum (n_i spacing_i)^2):
    a straight ramp of that width has the right mean and variance, and is exact for a normal along an axis.

    Args:
        distance: signed distance on a grid.
        spacing_mm: voxel size along every axis.
        axes_mm: coordinates along every axis, where these are not evenly spaced, as with gaps between slices.

    Returns:
        (slope, reach): float32 arrays of the shape of ``distance``.
    """
    gradient = np.gradient(distance, *(spacing_mm if axes_mm is None else axes_mm))
    slope = np.maximum(np.sqrt(sum(part * part for part in gradient)), 0.2)
    reach = np.sqrt(sum((part * size) ** 2 for part, size in zip(gradient, spacing_mm, strict=True))) / slope
    return slope, np.maximum(reach, min(spacing_mm))


def occupancy(distance_mm: np.ndarray, reach_mm: np.ndarray | float) -> np.ndarray:
    """Fraction of a voxel inside a surface at signed distance ``distance_mm`` (partial volume), in [0, 1]."""
    return np.clip(0.5 - distance_mm / reach_mm, 0.0, 1.0)


def smooth_noise(
    shape: Sequence[int], spacing_mm: Sequence[float], rng: np.random.Generator, scale_mm: float
) -> np.ndarray:
    """Correlated Gaussian noise with zero mean and unit standard deviation, float32.

    Args:
        shape: of the result; 2-D or 3-D.
        spacing_mm: voxel size along every axis.
        rng: random numbers.
        scale_mm: standard deviation of the Gaussian that smooths white noise; along an axis with voxels more than
            about three times larger, neighbours are independent.
    """
    white = rng.standard_normal(tuple(shape), dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, [scale_mm / size for size in spacing_mm], mode="wrap", truncate=3.0)
    return (smooth - smooth.mean()) / max(float(smooth.std()), 1e-6)


def spline_field(coefficients: np.ndarray, axes_mm: Sequence[np.ndarray], half_extent_mm: float) -> np.ndarray:
    """Smooth field on a regular grid: cubic B-splines over ``[-half_extent_mm, half_extent_mm]`` along every axis.

    Args:
        coefficients: (n, n, n), the random control values.
        axes_mm: coordinates along every axis of the grid, in mm.
        half_extent_mm: the outermost control points lie here.

    Returns:
        float32, ``(len(axis) for axis in axes_mm)``. The same place has the same value on any grid.
    """
    count = coefficients.shape[0]
    step = 2.0 * half_extent_mm / (count - 1)
    field = np.asarray(coefficients, dtype=np.float64)
    for axis_mm in axes_mm:
        offset = np.abs((np.asarray(axis_mm)[:, None] + half_extent_mm) / step - np.arange(count))
        near = (4.0 - 6.0 * offset**2 + 3.0 * offset**3) / 6.0
        far = np.clip(2.0 - offset, 0.0, None) ** 3 / 6.0
        basis = np.where(offset < 1.0, near, far)
        # contracts the first axis and appends the grid's, so that after all axes the order is the grid's
        field = np.einsum("i...,xi->...x", field, basis)
    return field.astype(np.float32)


def rician_noise(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of ``signal`` with Gaussian noise of standard deviation ``sigma`` on both of its channels, float32."""
    real = signal + np.float32(sigma) * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.sqrt(real * real + imaginary * imaginary)
