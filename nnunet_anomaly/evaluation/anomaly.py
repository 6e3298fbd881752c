"""Anomaly maps against lesion masks: counts at every threshold once, then areas under curves and Dice from them.

A score is an anomaly map's value in a voxel; a voxel is called anomalous when its score is at least the threshold.
Scores that lesion voxels have are all the thresholds there are to look at: between two of them only false positives
are added. So the figures are exact: no voxel is left out, no class balanced, no histogram made. Curves from a histogram
(``score_histogram``) go through the same functions.

Cases are pooled by adding up counts at common thresholds (``merge_lesion_scores``, ``count_healthy``), so that a
cohort needs the memory of its largest case and of the distinct scores of its lesion voxels (``pooling_bytes``).

Without a lesion voxel all figures are NaN (not applicable); the areas under curves of the false-positive rate also
without a healthy voxel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_anomaly.errors import GeometryError, InputError, LabelError

AU_PRO_LIMIT = 0.3

DEFINITIONS = {
    "average_precision": "average precision, per case",
    "auroc": "area under the ROC curve, per case",
    "au_pro": f"area under the per-lesion overlap up to a false-positive rate of {AU_PRO_LIMIT}, per case",
    "best_dice": "best Dice over all thresholds, per case (each case at its own best threshold)",
    "best_dice_threshold": "threshold of the best Dice; anomalous is what scores at least that",
    "average_precision_pooled": "average precision, pooled over voxels of all cases",
    "auroc_pooled": "area under the ROC curve, pooled over voxels of all cases",
    "au_pro_pooled": f"area under the per-lesion overlap up to a false-positive rate of {AU_PRO_LIMIT}, pooled",
    "best_dice_pooled": "oracle: best Dice over all thresholds, pooled over voxels of all cases (one threshold)",
    "best_dice_threshold_pooled": "threshold of the pooled best Dice (oracle)",
    "prevalence": "share of lesion voxels, the average precision of a map that tells nothing",
}


@dataclass(frozen=True, eq=False)
class DetectionCurve:
    """Voxels found at every threshold that matters.

    Attributes:
        thresholds: distinct scores of lesion voxels, highest first.
        true_positives: lesion voxels that score at least the threshold, int64.
        false_positives: other voxels that score at least the threshold, int64.
        false_positives_above: other voxels that score more than the threshold, int64.
        region_overlap: found share of a lesion, mean over lesions, float64; None where lesions were not told apart.
        lesion_voxels: all lesion voxels, found or not.
        healthy_voxels: all other voxels.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    false_positives_above: np.ndarray
    region_overlap: np.ndarray | None
    lesion_voxels: int
    healthy_voxels: int


def detection_curve(
    scores: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None, lesion_weights: np.ndarray | None = None
) -> DetectionCurve:
    """Count true and false positives of one case at every threshold that matters.

    Args:
        scores: anomaly map, float or integers, any shape; higher is more anomalous.
        truth: lesion mask of the same shape, bool or integers; not 0 is lesion.
        mask: where to look (for example bone), bool or integers of the same shape; without it everywhere. Lesion
            voxels outside are left out like all others.
        lesion_weights: of every lesion voxel inside the mask, in C order (``lesions.Lesions.voxel_weights``), for
            ``au_pro``.

    Returns:
        The curve; without a lesion voxel it has no threshold.

    Raises:
        GeometryError: shapes differ.
        InputError: a score that is NaN or infinite, or scores that are not numbers.
        LabelError: a truth or mask that is neither bool nor integers.
    """
    lesion_scores, healthy_scores = split_scores(scores, truth, mask)
    thresholds, *columns = distinct_lesion_scores(lesion_scores, lesion_weights)
    counts = count_healthy(healthy_scores, thresholds)
    return curve_from_counts(thresholds, columns[0], *counts, healthy_scores.size, *columns[1:])


def distinct_lesion_scores(lesion_scores: np.ndarray, lesion_weights: np.ndarray | None = None) -> list[np.ndarray]:
    """Distinct scores, ascending, the lesion voxels that have each of them, and with weights the sum of these."""
    if lesion_weights is None:
        return list(np.unique(lesion_scores, return_counts=True))
    thresholds, places, counts = np.unique(lesion_scores, return_inverse=True, return_counts=True)
    # without a score bincount gives integers
    return [thresholds, counts, np.bincount(places, lesion_weights, thresholds.size).astype(np.float64)]


def split_scores(
    scores: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of lesion voxels and scores of all others, inside the mask; see ``detection_curve``."""
    scores, lesion, inside = checked(scores, truth, mask)
    if inside is None:
        lesion_scores, healthy_scores = scores[lesion], scores[~lesion]
    else:
        lesion_scores, healthy_scores = scores[lesion & inside], scores[inside & ~lesion]
    for part in (lesion_scores, healthy_scores):
        if not np.isfinite(part).all():
            raise InputError("The anomaly map holds NaN or infinity where it is evaluated.")
    return lesion_scores, healthy_scores


def checked(
    scores: np.ndarray, truth: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Scores, lesion mask and mask as bool (None: everywhere); raises as ``detection_curve``, but not for NaN."""
    scores = np.asarray(scores)
    if scores.dtype.kind not in "iuf":
        raise InputError(f"Anomaly scores of type {scores.dtype} are not numbers.")
    lesion = as_mask(truth, "lesion mask", scores.shape)
    return scores, lesion, None if mask is None else as_mask(mask, "mask", scores.shape)


def merge_lesion_scores(cases: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Common thresholds of several cases: distinct scores, ascending, and sums of what every case has at each of them.

    Args:
        cases: what ``distinct_lesion_scores`` gives for each case, all with or all without weights.

    Returns:
        The same for all cases together; of no case two empty arrays.
    """
    parts = list(cases)
    if not parts:
        return [np.zeros(0), np.zeros(0, dtype=np.int64)]
    thresholds, places = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    columns = (np.concatenate(column) for column in zip(*(part[1:] for part in parts), strict=True))
    # float64 sums of voxel counts are exact up to 2^53
    sums = [np.bincount(places, column, thresholds.size).astype(column.dtype) for column in columns]
    return [thresholds, *sums]


def pooling_bytes(number_of_scores: int, num_processes: int) -> int:
    """Memory that exact pooling takes at most, in all processes, for so many distinct lesion scores (summed by case).

    A process sorts and counts one case at a time. What grows are arrays by threshold: in this process thresholds, what
    every case has at them and the terms of areas, in every worker two counts, twice while they are made.
    """
    return number_of_scores * (128 + 40 * max(1, num_processes))


def count_healthy(scores: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many scores are at least, and how many above, each threshold (ascending), int64; of cases they add up."""
    ascending = np.sort(scores, axis=None)
    at_least = ascending.size - np.searchsorted(ascending, thresholds, side="left").astype(np.int64)
    return at_least, ascending.size - np.searchsorted(ascending, thresholds, side="right").astype(np.int64)


def curve_from_counts(
    thresholds: np.ndarray,
    lesion_counts: np.ndarray,
    false_positives: np.ndarray,
    false_positives_above: np.ndarray,
    healthy_voxels: int,
    lesion_weights: np.ndarray | None = None,
) -> DetectionCurve:
    """Curve of one case or, with counts that were added up, of many.

    Args:
        thresholds: distinct scores of lesion voxels, ascending.
        lesion_counts: lesion voxels that have exactly this score.
        false_positives: other voxels that score at least this.
        false_positives_above: other voxels that score more than this.
        healthy_voxels: all other voxels.
        lesion_weights: sum of the weights of the lesion voxels that have exactly this score.
    """
    true_positives = np.cumsum(lesion_counts[::-1], dtype=np.int64)
    overlap = None
    if lesion_weights is not None:
        overlap = np.cumsum(lesion_weights[::-1], dtype=np.float64)
        overlap /= overlap[-1:]  # the number of lesions, as the weights of each sum up to 1
    return DetectionCurve(
        thresholds=thresholds[::-1],
        true_positives=true_positives,
        false_positives=np.asarray(false_positives, dtype=np.int64)[::-1],
        false_positives_above=np.asarray(false_positives_above, dtype=np.int64)[::-1],
        region_overlap=overlap,
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


def auroc(curve: DetectionCurve) -> float:
    """Area under the ROC curve: the share of pairs of a lesion and another voxel that are in order, ties as a half.

    What scikit-learn calls ``roc_auc_score``.
    """
    return float(roc_area(curve, curve.true_positives / max(curve.lesion_voxels, 1), 1.0))


def au_pro(curve: DetectionCurve, limit: float = AU_PRO_LIMIT) -> float:
    """Area under the per-region overlap (PRO) over the false-positive rate up to a limit, divided by the limit.

    The overlap of a threshold is the found share of a lesion, mean over lesions, so that small lesions weigh as much as
    large ones; the false-positive rate is taken over all other voxels (Bergmann et al. 2021, MVTec AD, section 5.2.1;
    here in 3-D, at every threshold there is, and with straight lines between them, also to the limit).

    Raises:
        ValueError: the curve has no ``region_overlap``, or the limit is not in (0, 1].
    """
    if curve.region_overlap is None:
        raise ValueError("The curve was made without lesion_weights, so that lesions cannot be told apart.")
    return float(roc_area(curve, curve.region_overlap, limit))


def roc_area(curve: DetectionCurve, found: np.ndarray, limit: float, ties: str = "diagonal") -> float:
    """Area under found shares over the false-positive rate up to a limit, divided by the limit.

    Args:
        curve: its false positives are looked at.
        found: what is found at every threshold, ascending up to 1.
        limit: of the false-positive rate, in (0, 1].
        ties: how lesion and other voxels of equal score enter: "diagonal" together, "healthy_first", "lesion_first".

    Returns:
        In [0, 1]; NaN without a lesion voxel or without another voxel.

    Raises:
        ValueError: the limit or ties are none of these.
    """
    if not 0 < limit <= 1 or ties not in ("diagonal", "healthy_first", "lesion_first"):
        raise ValueError(f"limit is {limit}, ties is {ties!r}")
    if not (curve.lesion_voxels and curve.healthy_voxels):
        return math.nan
    begin, end = curve.false_positives_above / curve.healthy_voxels, curve.false_positives / curve.healthy_voxels
    before = np.concatenate([[0.0], found[:-1]])
    cut_begin, cut_end = np.minimum(begin, limit), np.minimum(end, limit)
    level = np.sum(before[1:] * (cut_begin[1:] - cut_end[:-1])) + found[-1] * (limit - cut_end[-1])
    width = cut_end - cut_begin
    if ties == "diagonal":
        share = np.divide(width, end - begin, out=np.zeros_like(width), where=end > begin)  # that lies below the limit
        rising = np.sum(width * (before + 0.5 * share * (found - before)))
    else:
        rising = np.sum(width * (before if ties == "healthy_first" else found))
    return float((level + rising) / limit)


def best_dice(curve: DetectionCurve) -> tuple[float, float]:
    """Highest Dice over all thresholds, and the threshold; the highest one where several are as good."""
    if not curve.lesion_voxels:
        return math.nan, math.nan
    found = curve.true_positives + curve.false_positives
    values = 2 * curve.true_positives / (found + curve.lesion_voxels)
    best = int(np.argmax(values))
    return float(values[best]), float(curve.thresholds[best])


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
    inside = image.ravel() if mask is None else image[as_mask(mask, "mask", image.shape)]
    if not np.isfinite(inside).all():
        raise InputError("The image holds NaN or infinity where it is evaluated.")
    if not inside.size or inside.max() == inside.min():
        return np.zeros_like(image)
    return (image - inside.mean()) / inside.std()


def as_mask(array: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A lesion mask or a mask as bool, not 0 is inside.

    Raises:
        GeometryError: it has not this shape.
        LabelError: neither bool nor integers.
    """
    array = np.asarray(array)
    if array.shape != shape:
        raise GeometryError(f"The {name} has shape {array.shape}, the image {shape}; both must lie on the same grid.")
    if array.dtype.kind not in "biu":
        raise LabelError(f"The {name} holds {array.dtype} values; it must be bool or integers.")
    return array != 0
