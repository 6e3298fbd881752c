"""Distances between the surfaces of label maps: measured once, for all labels, then reduced to ASD, HD, HD95 or NSD.

The surface of a label is its boundary voxels: those with a face neighbour (6 in 3-D, 4 in 2-D) of another label, where
everything beyond the edge of the array counts as background. A distance is the Euclidean distance in mm from the
centre of a boundary voxel to the centre of the nearest boundary voxel of the same label in the other label map. This
is Woo 2022, appendix B. It is also what MONAI measures, which finds the boundary by a 6-connected erosion;
google-deepmind/surface-distance puts its points on the corners between voxels instead and weights them by the area of
a marching-cubes surface element, so that values depend less on how the surface lies to the grid.

Distances are exact. Most boundary voxels of a good prediction coincide with the reference or lie next to it, so the
nearest one is sought first among the neighbours, by increasing distance; a KD-tree is made only for what is left.

Empty surfaces, in every reducer: NaN (not applicable) when both are empty; when one is empty, distances are infinite
and the NSD is 0. A 3-D array of one slice is an object one voxel thick, all of whose voxels are boundary; pass the 2-D
slice for distances between contours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.spatial import cKDTree

from nnunet_anomaly.geometry import ROUNDING
from nnunet_anomaly.label_maps import check_labels, check_pair, common_box

# How far the neighbours reach that are looked at before a KD-tree is made; changes the time, never the result.
NEAR_VOXELS = 3


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distance in mm of every boundary voxel to the other surface; float64, infinite when the other one is empty.

    Attributes:
        from_reference_mm: one for each boundary voxel of the reference.
        from_prediction_mm: one for each boundary voxel of the prediction.
    """

    from_reference_mm: np.ndarray
    from_prediction_mm: np.ndarray

    @property
    def pooled_mm(self) -> np.ndarray:
        """The distances of both surfaces in one array."""
        return np.concatenate([self.from_reference_mm, self.from_prediction_mm])


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], labels: Sequence[int]
) -> dict[int, SurfaceDistances]:
    """Distances between the surfaces of every label.

    Args:
        reference: label map, 2-D or 3-D, bool or integers in 0 to 65535.
        prediction: label map of the same shape.
        spacing_mm: voxel size along every axis, in the order of the array's axes.
        labels: labels to measure; one that does not occur has empty distances.

    Returns:
        Distances by label, in no particular order of voxels.

    Raises:
        GeometryError: shapes differ, or the spacing is not one positive number per axis.
        LabelError: not label maps (see ``label_maps.as_label_map``), or a label below 1.
    """
    check_labels(labels)
    reference, prediction = check_pair(reference, prediction, spacing_mm)
    box = common_box(reference, prediction)
    if box is None:
        return {label: SurfaceDistances(np.zeros(0), np.zeros(0)) for label in labels}
    ours, theirs = _Surfaces(reference[box]), _Surfaces(prediction[box])
    neighbours = _neighbours(spacing_mm, ours.shape)
    return {
        label: SurfaceDistances(
            _nearest_mm(ours, theirs, label, spacing_mm, neighbours),
            _nearest_mm(theirs, ours, label, spacing_mm, neighbours),
        )
        for label in labels
    }


def average_surface_distance_mm(distances: SurfaceDistances) -> float:
    """ASD: mean over the boundary voxels of both surfaces together (Woo 2022, equation 4), the larger weighing more."""
    return _undefined(distances) or float(distances.pooled_mm.mean())


def mean_directed_surface_distance_mm(distances: SurfaceDistances) -> float:
    """Mean of the two directed mean distances, so that both surfaces weigh the same, whatever their size.

    MONAI's ``compute_average_surface_distance(symmetric=True)`` was this in early releases and is the pooled mean in
    later ones (1.6).
    """
    return _undefined(distances) or float(
        (distances.from_reference_mm.mean() + distances.from_prediction_mm.mean()) / 2
    )


def hausdorff_distance_mm(distances: SurfaceDistances, percentile: float = 100) -> float:
    """HD (Woo 2022, equation 5), or with 95 the HD95: the larger of the two directed percentiles.

    Percentiles are interpolated linearly between voxels, as MONAI's ``compute_hausdorff_distance`` does;
    surface-distance's ``compute_robust_hausdorff`` takes the larger direction too, but weights by surface area and
    does not interpolate.
    """
    return _undefined(distances) or float(
        max(
            np.percentile(distances.from_reference_mm, percentile),
            np.percentile(distances.from_prediction_mm, percentile),
        )
    )


def pooled_hausdorff_distance_mm(distances: SurfaceDistances, percentile: float) -> float:
    """Percentile of the distances of both surfaces together, as medpy's ``hd95`` has it."""
    return _undefined(distances) or float(np.percentile(distances.pooled_mm, percentile))


def normalized_surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """NSD: share of the boundary voxels of both surfaces that lie within ``tolerance_mm`` of the other one.

    Boundary voxels are counted, as in MONAI's ``compute_surface_dice``; surface-distance sums the areas of surface
    elements. 0 when one surface is empty.
    """
    if not 0 <= tolerance_mm < math.inf:
        raise ValueError(f"tolerance_mm is {tolerance_mm}; it must be finite and cannot be negative")
    pooled = distances.pooled_mm
    if not pooled.size:
        return math.nan
    return float(np.count_nonzero(pooled <= tolerance_mm * (1 + ROUNDING)) / pooled.size)


def _undefined(distances: SurfaceDistances) -> float:
    """NaN when both surfaces are empty, infinity when one is, else 0 (false: the reducer goes on to its value)."""
    empty = (distances.from_reference_mm.size == 0) + (distances.from_prediction_mm.size == 0)
    return (0.0, math.inf, math.nan)[empty]


class _Surfaces:
    """Boundary voxels of all labels of one label map, on a grid widened by ``NEAR_VOXELS`` of background.

    Voxels are named by their position in the flattened grid, so that a neighbour is one addition away.
    """

    def __init__(self, label_map: np.ndarray) -> None:
        grid = np.pad(label_map, NEAR_VOXELS)
        self.shape = grid.shape
        self.labels = grid.ravel()
        edge = np.zeros(self.labels.shape, dtype=bool)
        for step in _steps(self.shape):
            # the padding makes sure that the end of a row only ever meets background of the next one
            differs = self.labels[step:] != self.labels[:-step]
            edge[step:] |= differs
            edge[:-step] |= differs
        self.labels *= edge
        edge &= self.labels != 0
        positions = np.flatnonzero(edge)
        labels = self.labels[positions]
        self._positions = positions[np.argsort(labels, kind="stable")]
        self._ends = np.cumsum(np.bincount(labels))

    def positions(self, label: int) -> np.ndarray:
        """Boundary voxels of one label (1 or more)."""
        return (
            self._positions[self._ends[label - 1] : self._ends[label]]
            if label < self._ends.size
            else self._positions[:0]
        )

    def coordinates_mm(self, positions: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """Centres of voxels in mm, shape (voxels, axes)."""
        return np.stack(np.unravel_index(positions, self.shape), axis=1) * np.asarray(spacing_mm, dtype=float)


def _steps(shape: tuple[int, ...]) -> list[int]:
    """Distance in a flattened C-ordered array between neighbours along each axis."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _neighbours(spacing_mm: Sequence[float], shape: tuple[int, ...]) -> list[tuple[float, int]]:
    """Distance in mm and step in the flattened grid of the neighbours around a voxel, nearest first, none missing.

    A box of ``NEAR_VOXELS`` holds every neighbour nearer than one more voxel of the finest axis; those beyond are left
    out, since a nearer one could lie outside the box.
    """
    complete_mm = (NEAR_VOXELS + 1) * min(spacing_mm)
    reach = range(-NEAR_VOXELS, NEAR_VOXELS + 1)
    steps = _steps(shape)
    found = [
        (
            math.hypot(*(o * s for o, s in zip(offset, spacing_mm, strict=True))),
            sum(o * s for o, s in zip(offset, steps, strict=True)),
        )
        for offset in product(reach, repeat=len(shape))
        if any(offset)
    ]
    return sorted(neighbour for neighbour in found if neighbour[0] < complete_mm)


def _nearest_mm(
    source: _Surfaces,
    target: _Surfaces,
    label: int,
    spacing_mm: Sequence[float],
    neighbours: list[tuple[float, int]],
) -> np.ndarray:
    """Distance of every boundary voxel of ``label`` in ``source`` to the nearest one in ``target``."""
    positions, others = source.positions(label), target.positions(label)
    if not others.size:
        return np.full(positions.size, np.inf)
    distances_mm = np.zeros(positions.size)
    left = np.flatnonzero(target.labels[positions] != label)
    for distance_mm, step in neighbours:
        if not left.size:
            break
        hit = target.labels[positions[left] + step] == label
        distances_mm[left[hit]] = distance_mm
        left = left[~hit]
    if left.size:
        # unbalanced trees are made much faster, and are as exact
        tree = cKDTree(target.coordinates_mm(others, spacing_mm), balanced_tree=False, compact_nodes=False)
        distances_mm[left] = tree.query(source.coordinates_mm(positions[left], spacing_mm))[0]
    return distances_mm
