"""Which voxels are cartilage, by probability, T2 and the area of slices (Thomas 2021, section 2.5).

T2 is fitted wherever the network gives cartilage a small probability at least (the candidates), before anything is
decided; what has no T2 of cartilage is taken out, the probability is thresholded, and then slices in which little is
left lose it all. An expert's mask is refined by T2 alone: the other thresholds are searched against it, so that it must
not move with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_anomaly.errors import GeometryError, InputError
from nnunet_anomaly.geometry import ROUNDING, check_in_patient
from nnunet_anomaly.planes import plane_of
from nnunet_anomaly.relaxometry.decay_models import Quality


@dataclass(frozen=True, eq=False)
class Refinement:
    """Cartilage, and what was taken out of the candidates. A voxel counts for the first reason alone, in this order.

    Attributes:
        mask: bool, of the image's shape.
        candidates: voxels at the beginning.
        without_t2: the fit gave no T2, or only a bound of it.
        outside_range: T2 outside the range.
        improbable: probability below the threshold.
        in_small_slices: in slices of too small an area.
        small_slices: indices of these slices along the slice axis, ascending; slices without a voxel are none.
    """

    mask: np.ndarray
    candidates: int
    without_t2: int
    outside_range: int
    improbable: int = 0
    in_small_slices: int = 0
    small_slices: tuple[int, ...] = ()

    def counts(self) -> dict[str, Any]:
        """All but the mask, and ``kept``, the voxels that are left."""
        names = ("candidates", "without_t2", "outside_range", "improbable", "in_small_slices", "small_slices")
        return {name: getattr(self, name) for name in names} | {"kept": int(np.count_nonzero(self.mask))}


def refine_mask(mask: np.ndarray, t2_ms: np.ndarray, quality: np.ndarray, range_ms: tuple[float, float]) -> Refinement:
    """An expert's mask without voxels that have no T2 of cartilage.

    Args:
        mask: bool or integers, any shape; not 0 is cartilage. Of an empty one nothing is left, and nothing was removed.
        t2_ms: of ``T2Fit``, fitted in the mask at least.
        quality: of ``T2Fit``. T2 is known where it is ``CONVERGED``; at a bound it is not.
        range_ms: T2 must be above the first and at most the second.

    Raises:
        GeometryError: shapes differ.
    """
    candidates = np.asarray(mask) != 0
    _check_shapes(candidates.shape, t2_ms, quality)
    known, inside = known_and_inside(t2_ms, quality, range_ms)
    return Refinement(
        mask=candidates & inside,
        candidates=int(np.count_nonzero(candidates)),
        without_t2=int(np.count_nonzero(candidates & ~known)),
        outside_range=int(np.count_nonzero(candidates & known & ~inside)),
    )


def refine_probability(
    probability: np.ndarray,
    t2_ms: np.ndarray,
    quality: np.ndarray,
    *,
    spacing_mm: Sequence[float],
    direction: Sequence[float],
    range_ms: tuple[float, float],
    candidate_probability: float,
    threshold: float,
    minimum_slice_mm2: float,
) -> Refinement:
    """A network's cartilage: candidates with a T2 of cartilage and a high probability, in slices with enough of it.

    Slices lie along the axis nearest to the patient's left and right, as in ``unroll``.

    Args:
        probability: of cartilage, 0 to 1, 3-D.
        t2_ms: of ``T2Fit``, fitted in ``candidates`` at least.
        quality: of ``T2Fit``, see ``refine_mask``.
        spacing_mm: voxel size along every axis of the array.
        direction: SimpleITK's ``GetDirection()``, 9 numbers.
        range_ms: T2 must be above the first and at most the second.
        candidate_probability: candidates have a higher probability than this.
        threshold: cartilage has at least this probability.
        minimum_slice_mm2: a slice whose voxels together have a smaller area keeps none.

    Returns:
        The refinement; without a candidate an empty mask and counts of 0.

    Raises:
        GeometryError: shapes differ, or the spacing or direction is not that of a 3-D image.
        InputError: a probability that is not from 0 to 1.
    """
    likely = candidates(probability, candidate_probability)
    by_t2 = refine_mask(likely, t2_ms, quality, range_ms)
    probable = by_t2.mask & (np.asarray(probability, dtype=np.float64) >= threshold)
    check_in_patient(likely, spacing_mm, direction, "The probability map")
    axis = slice_axis(direction)
    in_slice = np.count_nonzero(probable, axis=tuple(other for other in range(3) if other != axis))
    is_small = are_small_slices(in_slice, pixel_mm2(spacing_mm, axis), minimum_slice_mm2)
    keeps = np.reshape(~is_small, [-1 if other == axis else 1 for other in range(3)])
    return Refinement(
        mask=probable & keeps,
        candidates=by_t2.candidates,
        without_t2=by_t2.without_t2,
        outside_range=by_t2.outside_range,
        improbable=int(np.count_nonzero(by_t2.mask) - np.count_nonzero(probable)),
        in_small_slices=int(in_slice[is_small].sum()),
        small_slices=tuple(np.flatnonzero(is_small & (in_slice > 0)).tolist()),
    )


def candidates(probability: np.ndarray, candidate_probability: float) -> np.ndarray:
    """Where T2 is to be fitted: the probability is above ``candidate_probability``; bool, of the same shape.

    Raises:
        InputError: a probability that is not from 0 to 1.
    """
    probability = np.asarray(probability, dtype=np.float64)
    if not ((probability >= 0) & (probability <= 1 + ROUNDING)).all():
        raise InputError("The probability map holds values that are not from 0 to 1; is it one?")
    return probability > candidate_probability


def known_and_inside(
    t2_ms: np.ndarray, quality: np.ndarray, range_ms: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Where T2 is known, and where it is known and in the range; bool, of the same shape."""
    known = np.asarray(quality) == Quality.CONVERGED
    with np.errstate(invalid="ignore"):
        return known, known & (t2_ms > range_ms[0]) & (t2_ms <= range_ms[1])


def slice_axis(direction: Sequence[float]) -> int:
    """The array axis that runs across sagittal slices."""
    return plane_of(direction).axes[0]


def pixel_mm2(spacing_mm: Sequence[float], axis: int) -> float:
    """Area of a voxel within a slice."""
    return math.prod(float(size) for other, size in enumerate(spacing_mm) if other != axis)


def are_small_slices(in_slice: np.ndarray, area_mm2: float, minimum_mm2: float) -> np.ndarray:
    """Which counts of voxels, of this area each, have less than the minimum together; bool, of the same shape."""
    return np.asarray(in_slice) * area_mm2 * (1 + ROUNDING) < minimum_mm2


def _check_shapes(shape: tuple[int, ...], t2_ms: np.ndarray, quality: np.ndarray) -> None:
    if np.shape(t2_ms) != shape or np.shape(quality) != shape:
        raise GeometryError(f"T2 has shape {np.shape(t2_ms)}, quality {np.shape(quality)}, the cartilage {shape}.")
