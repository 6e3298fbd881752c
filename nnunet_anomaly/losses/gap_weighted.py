"""Weights that are high in the gaps between structures (Xu 2022, equation 1, after Ronneberger 2015)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nnunet_anomaly.class_distances import two_nearest_classes

# What is left out far from every gap: the highest error of a weight.
LARGEST_ERROR = 1e-3


def gap_weights(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    amplitude: float = 20.0,
    sigma_mm: float = 3.9,
    erosion_mm: float = 2.34,
    labels: Sequence[int] | None = None,
) -> np.ndarray:
    """w = 1 + amplitude * exp(-(d1 + d2)^2 / (2 sigma^2)), d1 and d2 the distances to the two nearest classes.

    Args:
        label_map: 2-D or 3-D, bool or integers in 0 to 65535, any memory layout; never changed.
        spacing_mm: voxel size along every axis.
        amplitude: w0 of the paper.
        sigma_mm: 5 voxels of the paper's 0.78 mm.
        erosion_mm: radius of the ball by which every class is eroded before; 3 voxels of 0.78 mm.
        labels: classes, default all but 0.

    Returns:
        float32 array of the same shape. Weights that are less than 0.001 above 1 are 1. With fewer than two classes,
        or when erosion leaves fewer, all are 1.

    Raises:
        GeometryError: the spacing is not one positive number per axis.
        LabelError: not a label map, or a label below 1.
        ValueError: an amplitude or erosion below 0, or a sigma that is not positive.
    """
    if not (0 <= amplitude < math.inf and 0 <= erosion_mm < math.inf and 0 < sigma_mm < math.inf):
        raise ValueError(
            f"amplitude {amplitude}, erosion_mm {erosion_mm} and sigma_mm {sigma_mm} must be finite, the first two not "
            "negative and sigma_mm positive"
        )
    weights = np.ones(np.shape(label_map), dtype=np.float32)
    # w - 1 falls below the error at this sum, and d2 is at most the sum
    cutoff_mm = sigma_mm * math.sqrt(2 * math.log(max(amplitude / LARGEST_ERROR, 1)))
    found = two_nearest_classes(label_map, spacing_mm, cutoff_mm=cutoff_mm, labels=labels, erosion_mm=erosion_mm)
    if found is not None:
        total_mm = found.nearest_mm
        total_mm += found.second_mm
        near = total_mm <= cutoff_mm
        weights[found.box][near] += amplitude * np.exp(-(total_mm[near] ** 2) / (2 * sigma_mm**2))
    return weights
