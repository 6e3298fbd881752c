"""Anomaly maps against lesion masks: counts at every threshold once, then average precision and best Dice from them.

A score is an anomaly map's value in a voxel; a voxel is called anomalous when its score is at least the threshold.
Both figures only change for the better at scores that lesion voxels have, so these are all the thresholds there are
to look at, and the result is exact: no voxel is left out, no class balanced, no histogram made.

Cases are pooled by adding up counts at common thresholds (``merge_lesion_scores``, ``count_at_least``), so that a
cohort needs no more memory than its largest case.

Without a lesion voxel, average precision and best Dice are NaN (not applicable).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma

from nnunet_anomaly.errors import GeometryError, InputError, LabelError

_CHUNK = 1 << 18
HISTOGRAM_BITS = 16

DEFINITIONS = {
    "average_precision": "average precision, per case",
    "best_dice": "best Dice over all thresholds, per case (each case at its own best threshold)",
    "best_dice_threshold": "threshold of the best Dice; anomalous is what scores at least that",
    "average_precision_pooled": "average precision, pooled over voxels of all cases",
    "best_dice_pooled": "best Dice over all thresholds, pooled over voxels of all cases (one threshold for all)",
    "best_dice_threshold_pooled": "threshold of the pooled best Dice",
    "prevalence": "share of lesion voxels, the average precision of a map that tells nothing",
}
HISTOGRAM_DEFINITIONS = {
    "histogram": f"scores that share the upper {HISTOGRAM_BITS} bits of their float32 count as equal, for all figures",
    "average_precision_low": "the exact average precision is not lower; likewise _high, and _pooled",
    "best_dice_high": "the exact best Dice is not higher, and not lower than the one given",
}


@dataclass(frozen=True, eq=False)
class DetectionCurve:
    """Voxels found at every threshold that matters.

    Attributes:
        thresholds: distinct scores of lesion voxels, highest first.
        true_positives: lesion voxels that score at least the threshold, int64.
        false_positives: other voxels that score at least the threshold, int64.
        lesion_voxels: all lesion voxels, found or not.
        healthy_voxels: all other voxels.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    lesion_voxels: int
    healthy_voxels: int


def detection_curve(scores: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> DetectionCurve:
    """Count true and false positives of one case at every threshold that matters.

    Args:
        scores: anomaly map, float or integers, any shape; higher is more anomalous.
        truth: lesion mask of the same shape, bool or integers; not 0 is lesion.
        mask: where to look (for example bone), bool or integers of the same shape; without it everywhere. Lesion
            voxels outside are left out like all others.

    Returns:
        The curve; without a lesion voxel it has no threshold.

    Raises:
        GeometryError: shapes differ.
        InputError: a score that is NaN or infinite, or scores that are not numbers.
        LabelError: a truth or mask that is neither bool nor integers.
    """
    lesion_scores, healthy_scores = split_scores(scores, truth, mask)
    thresholds, counts = np.unique(lesion_scores, return_counts=True)
    return curve_from_counts(thresholds, counts, count_at_least(healthy_scores, thresholds), healthy_scores.size)


def split_scores(
    scores: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of lesion voxels and scores of all others, inside the mask; see ``detection_curve``."""
    scores, lesion, inside = _checked(scores, truth, mask)
    if inside is None:
        lesion_scores, healthy_scores = scores[lesion], scores[~lesion]
    else:
        lesion_scores, healthy_scores = scores[lesion & inside], scores[inside & ~lesion]
    for part in (lesion_scores, healthy_scores):
        if not np.isfinite(part).all():
            raise InputError("The anomaly map holds NaN or infinity where it is evaluated.")
    return lesion_scores, healthy_scores


def _checked(
    scores: np.ndarray, truth: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    scores = np.asarray(scores)
    if scores.dtype.kind not in "iuf":
        raise InputError(f"Anomaly scores of type {scores.dtype} are not numbers.")
    lesion = _as_mask(truth, "lesion mask", scores.shape)
    return scores, lesion, None if mask is None else _as_mask(mask, "mask", scores.shape)


def merge_lesion_scores(cases: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Common thresholds of several cases: distinct scores, ascending, with the lesion voxels that have each of them.

    Args:
        cases: distinct scores and their counts, as ``numpy.unique`` gives them for the lesion voxels of each case.
    """
    parts = list(cases)
    if not parts:
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    thresholds, places = np.unique(np.concatenate([values for values, _ in parts]), return_inverse=True)
    counts = np.zeros(thresholds.size, dtype=np.int64)
    np.add.at(counts, places, np.concatenate([counts for _, counts in parts]))
    return thresholds, counts


def count_at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many scores are at least each threshold (ascending), int64; counts of several cases may be added up."""
    ascending = np.sort(scores, axis=None)
    return ascending.size - np.searchsorted(ascending, thresholds, side="left").astype(np.int64)


def curve_from_counts(
    thresholds: np.ndarray, lesion_counts: np.ndarray, false_positives: np.ndarray, healthy_voxels: int
) -> DetectionCurve:
    """Curve of one case or, with counts that were added up, of many.

    Args:
        thresholds: distinct scores of lesion voxels, ascending.
        lesion_counts: lesion voxels that have exactly this score.
        false_positives: other voxels that score at least this.
        healthy_voxels: all other voxels.
    """
    true_positives = np.cumsum(lesion_counts[::-1], dtype=np.int64)
    return DetectionCurve(
        thresholds=thresholds[::-1],
        true_positives=true_positives,
        false_positives=np.asarray(false_positives, dtype=np.int64)[::-1],
        lesion_voxels=int(true_positives[-1]) if true_positives.size else 0,
        healthy_voxels=int(healthy_voxels),
    )


def average_precision(curve: DetectionCurve) -> float:
    """Area under the precision-recall curve as average precision: the sum of precision times the gain in recall.

    Stepwise, without interpolation, voxels of equal score entering together: what scikit-learn calls
    ``average_precision_score``. The trapezoid under the same points is larger and too optimistic.
    """
    if not curve.lesion_voxels:
        return math.nan
    precision = curve.true_positives / (curve.true_positives + curve.false_positives)
    return float(np.sum(np.diff(curve.true_positives, prepend=0) * precision) / curve.lesion_voxels)


def best_dice(curve: DetectionCurve) -> tuple[float, float]:
    """Highest Dice over all thresholds, and the threshold; the highest one where several are as good."""
    if not curve.lesion_voxels:
        return math.nan, math.nan
    found = curve.true_positives + curve.false_positives
    values = 2 * curve.true_positives / (found + curve.lesion_voxels)
    best = int(np.argmax(values))
    return float(values[best]), float(curve.thresholds[best])


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Voxels by the upper bits of their float32 score, in the order of the scores; of several cases by ``+``.

    Attributes:
        lesion: lesion voxels in every bin, int64, 2^bits of them.
        healthy: all other voxels, likewise.
    """

    lesion: np.ndarray
    healthy: np.ndarray

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """Voxels of both; of the same number of bits."""
        return ScoreHistogram(self.lesion + other.lesion, self.healthy + other.healthy)

    def lowest_score(self, number: int) -> float:
        """Lower edge of a bin: the threshold that finds its voxels and all that score higher."""
        key = np.uint32(number << (32 - (self.lesion.size.bit_length() - 1)))
        return float((key ^ np.uint32(1 << 31) if key >> 31 else ~key).view(np.float32))


@dataclass(frozen=True)
class BinnedDetection:
    """Average precision and best Dice from a histogram of scores, each with the interval that holds the exact value.

    Attributes:
        average_precision: as if all voxels of a bin had the same score.
        average_precision_interval: with all healthy voxels of every bin before its lesion voxels, one by one, and with
            all lesion voxels at the precision that none of the bin's healthy ones has lowered.
        best_dice: at the best edge of a bin, so that it is reached by a threshold.
        best_dice_interval: that value, and the one with the lesion voxels of every bin before its healthy ones.
        best_dice_threshold: that edge.
    """

    average_precision: float
    average_precision_interval: tuple[float, float]
    best_dice: float
    best_dice_interval: tuple[float, float]
    best_dice_threshold: float


def score_histogram(
    scores: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None, *, bits: int = HISTOGRAM_BITS
) -> ScoreHistogram:
    """Count the voxels of one case by their score, without sorting.

    Args:
        scores: anomaly map, float or integers, any shape; higher is more anomalous.
        truth: lesion mask of the same shape, bool or integers; not 0 is lesion.
        mask: where to look, bool or integers of the same shape; without it everywhere.
        bits: of the sign, exponent and mantissa, 12 to 24. With 16 a bin is up to 2^-7 of its score wide.

    Raises:
        GeometryError, InputError, LabelError: as ``detection_curve``; a score beyond float32 is infinite, too.
    """
    if not 12 <= bits <= 24:
        raise InputError(f"bits is {bits}; it must be from 12 to 24.")
    scores, lesion_mask, inside = _checked(scores, truth, mask)
    every = _counts_by_bin((scores if inside is None else scores[inside]).ravel(), bits)
    lesion = _counts_by_bin(scores[lesion_mask if inside is None else lesion_mask & inside], bits)
    return ScoreHistogram(lesion, every - lesion)


def binned_detection(histogram: ScoreHistogram) -> BinnedDetection:
    """Average precision and best Dice of one case or, with histograms that were added up, of many.

    Returns:
        Figures with the interval of their error; NaN without a lesion voxel.
    """
    total = int(histogram.lesion.sum())
    if not total:
        return BinnedDetection(math.nan, (math.nan, math.nan), math.nan, (math.nan, math.nan), math.nan)
    descending = [counts[::-1] for counts in (histogram.lesion, histogram.healthy)]
    occupied = np.flatnonzero(descending[0])
    hits, alarms = (np.cumsum(counts)[occupied].astype(float) for counts in descending)
    in_bin, alarms_in_bin = (counts[occupied].astype(float) for counts in descending)
    before, alarms_before = hits - in_bin, alarms - alarms_in_bin
    tied = float(np.sum(in_bin * hits / (hits + alarms)) / total)
    low = float(np.sum(in_bin - alarms * (digamma(hits + alarms + 1) - digamma(before + alarms + 1))) / total)
    high = float(np.sum(in_bin * hits / (hits + alarms_before)) / total)
    dice = 2 * hits / (hits + alarms + total)
    best = int(np.argmax(dice))
    upper = float(np.max(2 * hits / (hits + alarms_before + total)))
    threshold = histogram.lowest_score(histogram.lesion.size - 1 - int(occupied[best]))
    return BinnedDetection(tied, (min(low, tied), high), float(dice[best]), (float(dice[best]), upper), threshold)


def _counts_by_bin(scores: np.ndarray, bits: int) -> np.ndarray:
    """Histogram over the upper bits of float32, in the order of the values.

    Raises:
        InputError: NaN, infinity, or a value that is infinite as float32.
    """
    with np.errstate(over="ignore"):  # what overflows is infinite, and found below
        values = scores.astype(np.float32, copy=False)
    counts = np.zeros(1 << bits, dtype=np.int64)
    for start in range(0, values.size, _CHUNK):  # bincount makes eight bytes of every key
        keys = (values[start : start + _CHUNK] + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0
        # negative numbers descend by their bits, and come before positive ones
        keys ^= (keys.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)
        keys >>= np.uint32(32 - bits)
        counts += np.bincount(keys, minlength=counts.size)
    smallest, largest = (int(key) >> (32 - bits) for key in (0x007FFFFF, 0xFF800000))  # of minus and plus infinity
    if counts[: smallest + 1].any() or counts[largest:].any():
        raise InputError("The anomaly map holds NaN, infinity or values beyond float32 where it is evaluated.")
    return counts


def standardised_intensity(image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """The raw-intensity baseline, where bright is anomalous: (image - mean) / SD, both taken inside the mask.

    Args:
        image: any number type and shape.
        mask: bool or integers of the same shape; without it the whole image counts.

    Returns:
        float64 array of the same shape; 0 everywhere inside when the image is constant there, or the mask empty.

    Raises:
        GeometryError: shapes differ.
        InputError: NaN or infinity inside the mask.
        LabelError: a mask that is neither bool nor integers.
    """
    image = np.asarray(image, dtype=np.float64)
    inside = image.ravel() if mask is None else image[_as_mask(mask, "mask", image.shape)]
    if not np.isfinite(inside).all():
        raise InputError("The image holds NaN or infinity where it is evaluated.")
    if not inside.size or inside.max() == inside.min():
        return np.zeros_like(image)
    return (image - inside.mean()) / inside.std()


def _as_mask(array: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(array)
    if array.shape != shape:
        raise GeometryError(f"The {name} has shape {array.shape}, the image {shape}; both must lie on the same grid.")
    if array.dtype.kind not in "biu":
        raise LabelError(f"The {name} holds {array.dtype} values; it must be bool or integers.")
    return array != 0
