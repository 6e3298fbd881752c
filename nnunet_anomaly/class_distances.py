"""Where classes meet: distances of every voxel to the nearest and the second nearest class of a label map.

The sum of the two is small in the gap between two structures and nowhere else (Xu 2022, after Ronneberger 2015). Only
distances up to a cutoff are measured, each class in its own box widened by the cutoff, so that time and memory follow
the size of the structures rather than that of the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_anomaly.geometry import ROUNDING, distance_to_mm, erode_mm
from nnunet_anomaly.label_maps import as_label_map, check_labels, check_spacing

Box = tuple[slice, ...]


def label_boxes(label_map: np.ndarray, labels: Sequence[int] | None = None) -> dict[int, Box]:
    """Smallest box around every label (default: all but 0) that occurs, in one pass; ascending.

    Args:
        label_map: uint8 or uint16, as ``label_maps.as_label_map`` gives it.
        labels: labels wanted; one that does not occur is left out.
    """
    if not label_map.size:
        return {}
    boxes = {label: box for label, box in enumerate(ndimage.find_objects(label_map), start=1) if box is not None}
    return boxes if labels is None else {label: boxes[label] for label in sorted(labels) if label in boxes}


def widened(box: Box, margin_mm: float, spacing_mm: Sequence[float], shape: Sequence[int]) -> Box:
    """A box with at least ``margin_mm`` more on every side, cut off at the array's edge."""
    return tuple(
        slice(max(0, part.start - voxels), min(size, part.stop + voxels))
        for part, size, size_mm in zip(box, shape, spacing_mm, strict=True)
        for voxels in [int(np.ceil(margin_mm / size_mm))]
    )


@dataclass(frozen=True, eq=False)
class NearestClasses:
    """Distances in mm to the nearest and the second nearest class, inside a box of the label map.

    Attributes:
        box: everywhere outside it the second nearest class is further away than the cutoff.
        nearest_mm: float32, shape of the box; 0 in a class, infinite beyond the cutoff.
        second_mm: likewise.
    """

    box: Box
    nearest_mm: np.ndarray
    second_mm: np.ndarray


def two_nearest_classes(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    cutoff_mm: float,
    labels: Sequence[int] | None = None,
    erosion_mm: float = 0.0,
) -> NearestClasses | None:
    """Distances to the nearest and the second nearest class, up to a cutoff.

    Args:
        label_map: 2-D or 3-D, bool or integers in 0 to 65535, any memory layout; never changed.
        spacing_mm: voxel size along every axis.
        cutoff_mm: a longer distance is infinite.
        labels: classes, default all but 0; others count as background.
        erosion_mm: every class is eroded by a ball of this radius before (``geometry.erode_mm``); one that is nowhere
            thicker vanishes.

    Returns:
        None where no two classes come within the cutoff of one voxel: so with fewer than two classes.

    Raises:
        GeometryError: the spacing is not one positive number per axis.
        LabelError: not a label map, or a label below 1.
    """
    check_labels(() if labels is None else labels)
    check_spacing(spacing_mm, np.ndim(label_map))
    label_map = as_label_map(label_map)
    boxes = label_boxes(label_map, labels)
    reached = {label: widened(box, cutoff_mm, spacing_mm, label_map.shape) for label, box in boxes.items()}
    pairs = itertools.combinations(reached.values(), 2)
    common = enclosing([shared for pair in pairs if (shared := intersection(*pair)) is not None])
    if common is None:
        return None
    found = NearestClasses(common, *(np.full(shape_of(common), np.inf, dtype=np.float32) for _ in range(2)))
    for label, box in boxes.items():
        here = intersection(reached[label], common)
        # what the class looks like further away than this changes no distance up to the cutoff
        near = here and intersection(box, widened(here, cutoff_mm + erosion_mm, spacing_mm, label_map.shape))
        if here is None or near is None:
            continue
        around = enclosing([here, near])
        assert around is not None
        mask = label_map[around] == label
        if erosion_mm:
            mask = erode_mm(mask, erosion_mm, spacing_mm)
        distance_mm = distance_to_mm(mask, spacing_mm)[inside(here, around)]
        distance_mm[distance_mm > cutoff_mm * (1 + ROUNDING)] = np.inf
        nearest_mm, second_mm = (array[inside(here, common)] for array in (found.nearest_mm, found.second_mm))
        np.minimum(second_mm, np.maximum(nearest_mm, distance_mm), out=second_mm)
        np.minimum(nearest_mm, distance_mm, out=nearest_mm)
    return found


def intersection(one: Box, other: Box) -> Box | None:
    """What two boxes share; None where that is nothing."""
    shared = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return shared if all(part.start < part.stop for part in shared) else None


def enclosing(boxes: Sequence[Box]) -> Box | None:
    """Smallest box around several; None without any."""
    return (
        tuple(slice(min(p.start for p in axis), max(p.stop for p in axis)) for axis in zip(*boxes, strict=True)) or None
    )


def inside(box: Box, other: Box) -> Box:
    """A box in the coordinates of another one that holds it."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, other, strict=True))


def shape_of(box: Box) -> tuple[int, ...]:
    """Voxels along every axis."""
    return tuple(part.stop - part.start for part in box)
