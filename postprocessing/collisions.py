"""Where predicted structures touch that should not: the collision set of a label map (Xu 2022, section 3.3)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_anomaly.class_distances import label_boxes, widened
from nnunet_anomaly.geometry import ROUNDING, dilate_mm
from nnunet_anomaly.label_maps import as_label_map, check_labels, check_spacing

DISTANCE_MM = 1.56  # 2 voxels of the paper's 0.78 mm


def collision_set(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    distance_mm: float = DISTANCE_MM,
    labels: Sequence[int] | None = None,
) -> np.ndarray:
    """Foreground voxels whose centre is within a distance of the centre of a voxel of another class.

    Its size, |E|, ranks cases: where bones collide, a gap has closed, so that this case is worth correcting by hand.

    Args:
        label_map: 2-D or 3-D, bool or integers in 0 to 65535, any memory layout; never changed.
        spacing_mm: voxel size along every axis.
        distance_mm: by default 2 voxels of the paper's 0.78 mm. Below the finest voxel size nothing can collide (see
            ``out_of_reach``), below the largest one nothing along that axis.
        labels: classes, default all but 0; others count as background.

    Returns:
        bool array of the same shape; false everywhere with fewer than two classes.

    Raises:
        GeometryError: the spacing is not one positive number per axis.
        LabelError: not a label map, or a label below 1.
    """
    return find_collisions(label_map, spacing_mm, distance_mm=distance_mm, labels=labels)[0]


def find_collisions(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    distance_mm: float = DISTANCE_MM,
    labels: Sequence[int] | None = None,
) -> tuple[np.ndarray, dict[tuple[int, int], int]]:
    """``collision_set``, and how many voxels of each two labels (the lower one first) are too near to one another.

    A voxel that is too near to several classes counts for each of them, so that the pairs may add up to more than E.
    """
    check_labels(() if labels is None else labels)
    check_spacing(spacing_mm, np.ndim(label_map))
    label_map = as_label_map(label_map)
    collisions = np.zeros(label_map.shape, dtype=bool)
    by_pair = Counter[tuple[int, int]]()
    boxes = label_boxes(label_map, labels)
    for label, box in boxes.items():
        around = widened(box, distance_mm, spacing_mm, label_map.shape)
        crop = label_map[around]
        others = (crop != 0) & (crop != label)
        if labels is not None:
            others &= np.isin(crop, list(boxes))
        if others.any():
            near = dilate_mm(crop == label, distance_mm, spacing_mm) & others
            collisions[around] |= near
            for other, voxels in enumerate(np.bincount(crop[near]).tolist()):
                if voxels:
                    by_pair[min(label, other), max(label, other)] += voxels
    return collisions, dict(sorted(by_pair.items()))


def out_of_reach(finest_voxel_mm: Mapping[str, float], distance_mm: float) -> dict[str, Any] | None:
    """Cases in which nothing can collide, as no two of their voxels are within the distance; None where there are none.

    Args:
        finest_voxel_mm: finest voxel size of every case.
        distance_mm: as in ``collision_set``.

    Returns:
        As JSON: how many ``cases`` ``of`` how many, the ``finest_voxel_mm`` of them all, and the
        ``smallest_distance_mm`` that reaches a neighbouring voxel in each of them (rounded up to 0.001).
    """
    sizes_mm = [size_mm for size_mm in finest_voxel_mm.values() if size_mm > distance_mm * (1 + ROUNDING)]
    if not sizes_mm:
        return None
    return {
        "cases": len(sizes_mm),
        "of": len(finest_voxel_mm),
        "finest_voxel_mm": round(min(sizes_mm), 6),
        "smallest_distance_mm": math.ceil(round(1000 * max(sizes_mm), 3)) / 1000,
    }
