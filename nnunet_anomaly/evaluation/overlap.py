"""Overlap of label maps: voxel counts once, for all labels, then Dice from the counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_anomaly.label_maps import check_labels, check_pair, common_box


@dataclass(frozen=True)
class OverlapCounts:
    """Voxels of one label in the reference, in the prediction, and in both."""

    reference_voxels: int
    prediction_voxels: int
    intersection_voxels: int


def overlap_counts(
    reference: np.ndarray, prediction: np.ndarray, labels: Sequence[int] | None = None
) -> dict[int, OverlapCounts]:
    """Count the voxels of every label in one pass over both label maps.

    Args:
        reference: label map, 2-D or 3-D, bool or integers in 0 to 65535.
        prediction: label map of the same shape.
        labels: labels to count; without it every label but 0 that occurs in one of the two, in order.

    Returns:
        Counts by label; all zero for a label that does not occur, nothing at all for two empty label maps without
        ``labels``.

    Raises:
        GeometryError: shapes differ.
        LabelError: not label maps (see ``label_maps.as_label_map``), or a label below 1.
    """
    check_labels(() if labels is None else labels)
    reference, prediction = check_pair(reference, prediction)
    box = common_box(reference, prediction)
    counts = np.zeros((3, 1), dtype=np.int64)
    if box is not None:
        reference, prediction = reference[box], prediction[box]
        number = int(max(reference.max(), prediction.max())) + 1
        counts = np.zeros((3, number), dtype=np.int64)
        # slice by slice: bincount makes eight bytes of every voxel
        for ours, theirs in zip(reference, prediction, strict=True):
            inside = ours != 0
            counts[0] += np.bincount(ours[inside], minlength=number)
            counts[1] += np.bincount(theirs[theirs != 0], minlength=number)
            counts[2] += np.bincount(ours[inside & (ours == theirs)], minlength=number)
    if labels is None:
        labels = [int(label) for label in np.flatnonzero(counts.any(axis=0))]
    nothing = OverlapCounts(0, 0, 0)
    known = counts.shape[1]
    return {label: OverlapCounts(*map(int, counts[:, label])) if label < known else nothing for label in labels}


def dice(counts: OverlapCounts) -> float:
    """Dice similarity coefficient, 2 |A and B| / (|A| + |B|) (Woo 2022, equation 3).

    Returns:
        0 to 1; 0 when exactly one of the two is empty, NaN (not applicable) when both are.
    """
    total = counts.reference_voxels + counts.prediction_voxels
    return 2 * counts.intersection_voxels / total if total else float("nan")
