"""Dice where it matters between two structures: inside the gap, where both are near (Xu 2022, section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_anomaly.class_distances import Box, label_boxes, two_nearest_classes
from nnunet_anomaly.evaluation.overlap import OverlapCounts, dice, overlap_counts
from nnunet_anomaly.geometry import ROUNDING
from nnunet_anomaly.label_maps import check_pair


@dataclass(frozen=True)
class GapDice:
    """Dice inside the gap region.

    Attributes:
        by_label: Dice of every class; NaN (not applicable) where neither label map has it in the region, 0 where one.
        pooled: voxels of all classes counted together; NaN where no class is in the region.
        region_voxels: size of the region.
    """

    by_label: dict[int, float]
    pooled: float
    region_voxels: int

    @property
    def mean(self) -> float:
        """Mean over classes that occur in the region; NaN without any."""
        values = [value for value in self.by_label.values() if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan


def gap_region(
    reference: np.ndarray, spacing_mm: Sequence[float], *, width_mm: float = 7.8, labels: Sequence[int] | None = None
) -> tuple[Box, np.ndarray] | None:
    """Voxels whose distances to the two nearest classes add up to less than ``width_mm``, in a box of the array.

    Args:
        reference: label map, 2-D or 3-D, bool or integers in 0 to 65535; never changed.
        spacing_mm: voxel size along every axis.
        width_mm: 10 voxels of the paper's 0.78 mm.
        labels: classes, default all but 0.

    Returns:
        A box and, of its shape, a bool array; None where no two classes are that near.

    Raises:
        GeometryError, LabelError: as in ``class_distances.two_nearest_classes``.
    """
    found = two_nearest_classes(reference, spacing_mm, cutoff_mm=width_mm, labels=labels)
    if found is None:
        return None
    # a sum that is the width but for rounding is not less than it
    return found.box, found.nearest_mm + found.second_mm < width_mm * (1 - ROUNDING)


def gap_dice(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    width_mm: float = 7.8,
    labels: Sequence[int] | None = None,
) -> GapDice:
    """Dice of every class inside the gap region of the reference; arguments as in ``gap_region``.

    Args:
        reference: label map whose gaps count.
        prediction: label map of the same shape.
        spacing_mm, width_mm, labels: see ``gap_region``. ``labels`` defaults to those of the reference.

    Raises:
        GeometryError: shapes differ, or the spacing is not one positive number per axis.
        LabelError: not label maps, or a label below 1.
    """
    reference, prediction = check_pair(reference, prediction, spacing_mm)
    if labels is None:
        labels = list(label_boxes(reference))
    gap = gap_region(reference, spacing_mm, width_mm=width_mm, labels=labels)
    if gap is None:
        return GapDice(dict.fromkeys(labels, math.nan), math.nan, 0)
    box, region = gap
    counts = overlap_counts(reference[box] * region, prediction[box] * region, labels)
    total = OverlapCounts(
        sum(count.reference_voxels for count in counts.values()),
        sum(count.prediction_voxels for count in counts.values()),
        sum(count.intersection_voxels for count in counts.values()),
    )
    return GapDice({label: dice(count) for label, count in counts.items()}, dice(total), int(np.count_nonzero(region)))
