"""Voxels counted by their score instead of sorted: many times faster, in a fixed memory, with bounds of the error.

A bin holds the scores that share the upper bits of their float32. All voxels of a bin count as if they scored its lower
edge, so that the figures are those of ``anomaly`` on a coarser map; the intervals hold the exact ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.evaluation.anomaly import (
    AU_PRO_LIMIT,
    DetectionCurve,
    average_precision,
    best_dice,
    checked,
    curve_from_counts,
    roc_area,
)

_CHUNK = 1 << 18
HISTOGRAM_BITS = 16

HISTOGRAM_DEFINITIONS = {
    "histogram": "scores are rounded to float32, thresholds too, and those that share the upper "
    f"{HISTOGRAM_BITS} bits of it count as equal, for all figures",
    "average_precision_low": "the exact average precision is not lower, neither that of the scores as float32 nor that "
    "of float64, whose order rounding keeps; likewise _high, auroc, au_pro, and _pooled",
    "best_dice_high": "the exact best Dice is not higher, and not lower than the one given, likewise",
}


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Voxels by the upper bits of their float32 score, in the order of the scores; of several cases by ``+``.

    Attributes:
        lesion: lesion voxels in every bin, int64, 2^bits of them.
        healthy: all other voxels, likewise.
        lesion_weight: sum of the weights of the lesion voxels (see ``anomaly.detection_curve``), float64; else None.
    """

    lesion: np.ndarray
    healthy: np.ndarray
    lesion_weight: np.ndarray | None = None

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """Voxels of both; of the same number of bits, and both with weights or both without."""
        weight = None
        if self.lesion_weight is not None and other.lesion_weight is not None:
            weight = self.lesion_weight + other.lesion_weight
        return ScoreHistogram(self.lesion + other.lesion, self.healthy + other.healthy, weight)

    def lowest_scores(self, numbers: np.ndarray) -> np.ndarray:
        """Lower edges of bins: the thresholds that find their voxels and all that score higher; float32."""
        keys = np.asarray(numbers).astype(np.uint32) << np.uint32(32 - (self.lesion.size.bit_length() - 1))
        return np.where(keys >> np.uint32(31), keys ^ np.uint32(1 << 31), ~keys).view(np.float32)

    def curve(self) -> DetectionCurve:
        """The curve at the lower edges of all bins with lesion voxels: exact at these thresholds."""
        occupied = np.flatnonzero(self.lesion)
        at_least = np.cumsum(self.healthy[::-1])[::-1]
        return curve_from_counts(
            self.lowest_scores(occupied),
            self.lesion[occupied],
            at_least[occupied],
            at_least[occupied] - self.healthy[occupied],
            int(self.healthy.sum()),
            None if self.lesion_weight is None else self.lesion_weight[occupied],
        )


@dataclass(frozen=True)
class BinnedDetection:
    """Figures from a histogram of scores, each with the interval that holds the exact value.

    Attributes:
        average_precision: as if all voxels of a bin had the same score.
        average_precision_interval: with all healthy voxels of every bin before its lesion voxels, one by one, and with
            all lesion voxels at the precision that none of the bin's healthy ones has lowered.
        auroc: as if all voxels of a bin had the same score.
        auroc_interval: with the healthy voxels of every bin before its lesion voxels, and after them.
        au_pro, au_pro_interval: likewise; None where lesions were not told apart.
        best_dice: at the best edge of a bin, so that it is reached by a threshold.
        best_dice_interval: that value, and the one with the lesion voxels of every bin before its healthy ones.
        best_dice_threshold: that edge.
    """

    average_precision: float
    average_precision_interval: tuple[float, float]
    auroc: float
    auroc_interval: tuple[float, float]
    au_pro: float | None
    au_pro_interval: tuple[float, float] | None
    best_dice: float
    best_dice_interval: tuple[float, float]
    best_dice_threshold: float


def score_histogram(
    scores: np.ndarray,
    truth: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    bits: int = HISTOGRAM_BITS,
    lesion_weights: np.ndarray | None = None,
) -> ScoreHistogram:
    """Count the voxels of one case by their score, without sorting.

    Scores of float64 (or integers beyond 2^24) are rounded to float32 first. All that is made from the histogram, the
    best threshold too, is of the rounded scores: compare these with that threshold. Intervals hold the exact figures of
    the scores as they are, too: rounding keeps their order, and an interval has all orders within a bin.

    Args:
        scores: anomaly map, float or integers, any shape; higher is more anomalous.
        truth: lesion mask of the same shape, bool or integers; not 0 is lesion.
        mask: where to look, bool or integers of the same shape; without it everywhere.
        bits: of the sign, exponent and mantissa, 12 to 24. With 16 a bin is up to 2^-7 of its score wide.
        lesion_weights: see ``anomaly.detection_curve``.

    Raises:
        GeometryError, InputError, LabelError: as ``detection_curve``; a score beyond float32 is infinite, too.
    """
    if not 12 <= bits <= 24:
        raise InputError(f"bits is {bits}; it must be from 12 to 24.")
    scores, lesion_mask, inside = checked(scores, truth, mask)
    every = _counts_by_bin((scores if inside is None else scores[inside]).ravel(), bits)
    lesion_scores = scores[lesion_mask if inside is None else lesion_mask & inside]
    lesion = _counts_by_bin(lesion_scores, bits)
    weight = None
    if lesion_weights is not None:
        weight = np.bincount(_bins(lesion_scores, bits), lesion_weights, 1 << bits).astype(np.float64)
    return ScoreHistogram(lesion, every - lesion, weight)


def binned_detection(histogram: ScoreHistogram) -> BinnedDetection:
    """Figures of one case or, with histograms that were added up, of many; of the scores as float32.

    Returns:
        Figures with the interval of their error; NaN as in ``anomaly``.
    """
    curve = histogram.curve()
    dice, threshold = best_dice(curve)
    precision = average_precision(curve)
    found = curve.true_positives / max(curve.lesion_voxels, 1)
    area, *area_interval = (roc_area(curve, found, 1.0, ties) for ties in _TIES)
    overlap, overlap_interval = None, None
    if curve.region_overlap is not None:
        overlap, *ends = (roc_area(curve, curve.region_overlap, AU_PRO_LIMIT, ties) for ties in _TIES)
        overlap_interval = (ends[0], ends[1])
    return BinnedDetection(
        precision,
        _average_precision_interval(curve, precision),
        area,
        (area_interval[0], area_interval[1]),
        overlap,
        overlap_interval,
        dice,
        (dice, _highest_dice(curve)),
        threshold,
    )


_TIES = ("diagonal", "healthy_first", "lesion_first")


def _average_precision_interval(curve: DetectionCurve, tied: float) -> tuple[float, float]:
    if not curve.lesion_voxels:
        return math.nan, math.nan
    hits, alarms = curve.true_positives.astype(float), curve.false_positives.astype(float)
    in_bin = np.diff(hits, prepend=0)
    before = hits - in_bin
    # the sum of k / (k + alarms) over the bin's lesion voxels is at least its integral by midpoints, as it is concave
    integral = in_bin - alarms * np.log1p(in_bin / (before + alarms + 0.5))
    rounding = 1e-15 * in_bin  # of a difference of nearly equal numbers
    gained = np.where(in_bin == 1, hits / (hits + alarms), np.maximum(0, integral - rounding))
    high = np.sum(in_bin * hits / (hits + curve.false_positives_above))
    return min(float(np.sum(gained)) / curve.lesion_voxels, tied), float(high) / curve.lesion_voxels


def _highest_dice(curve: DetectionCurve) -> float:
    if not curve.lesion_voxels:
        return math.nan
    hits = curve.true_positives
    return float(np.max(2 * hits / (hits + curve.false_positives_above + curve.lesion_voxels)))


def _bins(values: np.ndarray, bits: int) -> np.ndarray:
    """Number of the bin of every score, uint32, in the order of the values."""
    with np.errstate(over="ignore"):  # what overflows is infinite, and found by ``_counts_by_bin``
        keys = (values.astype(np.float32, copy=False) + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0
    # negative numbers descend by their bits, and come before positive ones
    keys ^= (keys.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)
    keys >>= np.uint32(32 - bits)
    return keys


def _counts_by_bin(scores: np.ndarray, bits: int) -> np.ndarray:
    """Histogram over the upper bits of float32, in the order of the values.

    Raises:
        InputError: NaN, infinity, or a value that is infinite as float32.
    """
    counts = np.zeros(1 << bits, dtype=np.int64)
    for start in range(0, scores.size, _CHUNK):  # bincount makes eight bytes of every key
        counts += np.bincount(_bins(scores[start : start + _CHUNK], bits), minlength=counts.size)
    smallest, largest = (int(key) >> (32 - bits) for key in (0x007FFFFF, 0xFF800000))  # of minus and plus infinity
    if counts[: smallest + 1].any() or counts[largest:].any():
        raise InputError("The anomaly map holds NaN, infinity or values beyond float32 where it is evaluated.")
    return counts
