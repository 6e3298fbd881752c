"""Binary masks against references, voxel by voxel: Dice, IoU, sensitivity, specificity and accuracy (Qin 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nnunet_anomaly.evaluation.anomaly import as_mask

METRICS = ("dice", "iou", "sensitivity", "specificity", "accuracy")
DEFINITIONS = {
    "dice": "2 TP / (2 TP + FP + FN); 0 where exactly one of reference and prediction is empty, not applicable where "
    "both are",
    "iou": "intersection over union, TP / (TP + FP + FN); empty masks as for Dice",
    "sensitivity": "TP / (TP + FN); not applicable without a lesion in the reference",
    "specificity": "TN / (TN + FP); not applicable where the lesion fills the bone",
    "accuracy": "(TP + TN) / all voxels of the bone; not applicable without bone",
}


@dataclass(frozen=True)
class Confusion:
    """Voxels inside the bone, by what reference and prediction say of them."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def lesion_voxels(self) -> int:
        """Voxels of the reference's lesions."""
        return self.true_positives + self.false_negatives

    def figures(self) -> dict[str, float]:
        """Every figure of ``METRICS``; NaN where it is not applicable, see ``DEFINITIONS``."""
        hit, alarm, miss, rest = (
            self.true_positives,
            self.false_positives,
            self.false_negatives,
            self.true_negatives,
        )
        return {
            "dice": _share(2 * hit, 2 * hit + alarm + miss),
            "iou": _share(hit, hit + alarm + miss),
            "sensitivity": _share(hit, hit + miss),
            "specificity": _share(rest, rest + alarm),
            "accuracy": _share(hit + rest, hit + alarm + miss + rest),
        }


def confusion(reference: np.ndarray, prediction: np.ndarray, bone: np.ndarray) -> Confusion:
    """Count the voxels of a whole case inside the bone.

    Args:
        reference: lesion mask, 2-D or 3-D, bool or integers; not 0 is lesion.
        prediction: the same of a method, of the same shape.
        bone: where to look, of the same shape; not 0 is inside. Lesions outside do not count, in neither of the two.

    Raises:
        GeometryError: shapes differ.
        LabelError: a mask that is neither bool nor integers.
    """
    whole = tuple(range(np.ndim(reference)))
    return Confusion(*(int(count) for count in _counts(reference, prediction, bone, whole)))


def confusion_by_slice(
    reference: np.ndarray, prediction: np.ndarray, bone: np.ndarray, axis: int = 0
) -> list[Confusion]:
    """The same for every slice across an axis, in order; a slice without bone has counts of 0. 2-D is one slice."""
    if np.ndim(reference) == 2:
        return [confusion(reference, prediction, bone)]
    within = tuple(other for other in range(np.ndim(reference)) if other != axis)
    counts = _counts(reference, prediction, bone, within)
    return [Confusion(*map(int, column)) for column in zip(*counts, strict=True)]


def _counts(
    reference: np.ndarray, prediction: np.ndarray, bone: np.ndarray, axes: tuple[int, ...]
) -> tuple[np.ndarray, ...]:
    """True positives, false positives, false negatives and true negatives, summed over these axes."""
    shape = np.shape(reference)
    lesion = as_mask(reference, "reference", shape)
    called = as_mask(prediction, "prediction", shape)
    inside = as_mask(bone, "bone mask", shape)
    lesion &= inside
    called &= inside
    hits = (lesion & called).sum(axis=axes)
    alarms, misses = called.sum(axis=axes) - hits, lesion.sum(axis=axes) - hits
    return hits, alarms, misses, inside.sum(axis=axes) - hits - alarms - misses


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
