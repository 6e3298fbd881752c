"""Which slices of a volume are abnormal, by the mean score of a slice (Bengs 2021, section 2.3, figure 6)."""

from __future__ import annotations

import numpy as np

from nnunet_anomaly.evaluation.anomaly import checked


def slice_scores(
    scores: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None, axis: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Score of every slice, and whether it is abnormal.

    A slice's score is the mean of its scores inside the mask (of residuals: the l1 distance by voxel). It is abnormal
    if it has any lesion voxel, inside the mask or not. A slice without a voxel inside the mask has no score and is left
    out. Their AUPRC, pooled over the slices of all cases, is ``anomaly.average_precision`` of both arrays.

    Args:
        scores: anomaly map, 2-D or 3-D, finite inside the mask. A 2-D one is a single slice.
        truth: lesion mask of the same shape, not 0 is lesion.
        mask: where to look, of the same shape, not 0 is inside; without it everywhere.
        axis: of a 3-D array, across its slices.

    Returns:
        float64 scores and bool, of the slices that have a score, in their order.

    Raises:
        GeometryError: shapes differ.
        InputError: scores that are not numbers.
        LabelError: a mask that is neither bool nor integers.
    """
    scores, lesion, mask = checked(scores, truth, mask)
    if scores.ndim == 2:
        scores, lesion, mask, axis = scores[None], lesion[None], None if mask is None else mask[None], 0
    within = tuple(other for other in range(scores.ndim) if other != axis)
    abnormal = np.asarray(lesion.any(axis=within))
    if mask is None:
        return scores.mean(axis=within, dtype=np.float64), abnormal
    voxels = mask.sum(axis=within)
    sums = np.where(mask, scores, 0).sum(axis=within, dtype=np.float64)
    return sums[voxels > 0] / voxels[voxels > 0], abnormal[voxels > 0]
