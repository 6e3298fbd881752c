"""Closed gaps between structures opened again, evenly from both sides (after Xu 2022, section 3.3)."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nnunet_anomaly.connected_components import Connectivity, label_components
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.geometry import ROUNDING, bounding_box
from nnunet_anomaly.label_maps import as_label_map, check_labels
from nnunet_anomaly.postprocessing.collisions import DISTANCE_MM, find_collisions

Offset = tuple[int, ...]


def open_gaps(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    distance_mm: float = DISTANCE_MM,
    labels: Sequence[int] | None = None,
    connectivity: Connectivity = 26,
) -> np.ndarray:
    """Make voxels background, nearest ones first, until no two classes are within a distance of one another.

    The voxels that lie nearest to another class go first, those of both classes at once, then the next nearest of what
    is left, and so on up to the distance. So both sides of a closed gap lose the same number of layers, and only voxels
    of the collision set go. Among openings that treat both sides alike it is the smallest between flat walls alone; on
    curved ones more goes than it takes. A component that would vanish is left alone, and so is what collides with it
    alone: a small structure is not lost to a large one. Where a gap lies is a guess: the paper counts collisions and
    leaves the gap to a person.

    Args:
        label_map: 2-D or 3-D, bool or integers in 0 to 65535, any memory layout; never changed.
        spacing_mm: voxel size along every axis.
        distance_mm: between voxel centres, as in ``collisions.collision_set``; two voxels that touch by their faces
            are one voxel size apart. Below the finest voxel size nothing changes.
        labels: classes between which gaps are opened, default all; others stay and count as background.
        connectivity: of components, 6, 18 or 26.

    Returns:
        A new array of the same shape and dtype. An empty label map stays empty, one of a single class as it is.

    Raises:
        GeometryError: the spacing is not one positive number per axis.
        LabelError: not a label map, or a label below 1.
        SettingsError: a distance that is not a number from 0 on, or another connectivity.
    """
    return open_gaps_with_record(
        label_map, spacing_mm, distance_mm=distance_mm, labels=labels, connectivity=connectivity
    )[0]


def open_gaps_with_record(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    distance_mm: float = DISTANCE_MM,
    labels: Sequence[int] | None = None,
    connectivity: Connectivity = 26,
) -> tuple[np.ndarray, dict[str, Any]]:
    """``open_gaps``, and by label what was removed, and how many components were left alone lest they vanish."""
    is_number = isinstance(distance_mm, int | float) and not isinstance(distance_mm, bool)
    if not (is_number and 0 <= distance_mm < math.inf):
        raise SettingsError(f"distance_mm is {distance_mm!r}; it must be a number from 0 on.")
    check_labels(() if labels is None else labels)
    considered = np.array(as_label_map(label_map))
    if labels is not None:
        considered[~np.isin(considered, labels)] = 0
    opened = np.array(label_map)
    components = label_components(considered, connectivity)
    alone = np.zeros(components.labels.size, dtype=bool)
    while True:
        removed = _nearest_first(considered, spacing_mm, distance_mm)
        lost = (
            np.bincount(components.numbers[removed[components.mask]], minlength=alone.size) == components.sizes_voxels
        )
        if not lost.any():
            break
        alone |= lost
        considered[components.mask] *= ~lost[components.numbers]
    record: dict[str, Any] = {}
    for key, of_label in (("removed_voxels", considered[removed]), ("components_left_alone", components.labels[alone])):
        for label, number in zip(*np.unique(of_label, return_counts=True), strict=True):
            record.setdefault(str(label), {})[key] = int(number)
    opened[removed] = 0
    return opened, record


def _nearest_first(label_map: np.ndarray, spacing_mm: Sequence[float], distance_mm: float) -> np.ndarray:
    """Voxels that go, bool: see ``open_gaps``.

    The partner of a voxel that collides collides as well, so that nothing outside the collision set is looked at.
    """
    collisions, _ = find_collisions(label_map, spacing_mm, distance_mm=distance_mm)
    removed = np.zeros_like(collisions)
    box = bounding_box(collisions)
    if box is None:
        return removed
    rings = list(_rings(distance_mm, spacing_mm))
    reach = np.abs([offset for ring in rings for offset in ring]).max(axis=0)
    padded = np.pad(label_map[box] * collisions[box], [(int(voxels),) * 2 for voxels in reach])
    steps = np.array(padded.strides) // padded.itemsize
    labels = padded.reshape(-1)
    left = np.flatnonzero(labels)
    for ring in rings:
        of_left, near = labels[left], np.zeros(left.size, dtype=bool)
        for offset in ring:
            others = labels[left + int(np.dot(offset, steps))]
            near |= (others != 0) & (others != of_left)
        labels[left[near]] = 0
        left = left[~near]
    inner = tuple(slice(int(voxels), size - int(voxels)) for voxels, size in zip(reach, padded.shape, strict=True))
    removed[box] = collisions[box] & (padded[inner] == 0)
    return removed


def _rings(distance_mm: float, spacing_mm: Sequence[float]) -> Iterator[list[Offset]]:
    """Offsets to all voxels within a distance, those of one length (but for rounding) together, shortest first."""
    reach = [int(distance_mm * (1 + ROUNDING) / size_mm) for size_mm in spacing_mm]
    by_length: defaultdict[float, list[Offset]] = defaultdict(list)
    for offset in itertools.product(*(range(-voxels, voxels + 1) for voxels in reach)):
        by_length[math.hypot(*(v * s for v, s in zip(offset, spacing_mm, strict=True)))].append(offset)
    ring: list[Offset] = []
    length_mm = 0.0
    for next_mm in sorted(by_length):
        if next_mm == 0 or next_mm > distance_mm * (1 + ROUNDING):
            continue
        if ring and next_mm > length_mm * (1 + ROUNDING):
            yield ring
            ring = []
        ring = ring + by_length[next_mm]
        length_mm = next_mm
    if ring:
        yield ring
