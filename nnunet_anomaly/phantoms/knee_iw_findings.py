"""What lies in the marrow of the intermediate-weighted knee phantom: vessels in every knee, lesions in some.

Both are planned in mm before any grid is known, in the image's own axes (slices from medial to lateral, rows downwards,
columns to the back, from the middle of the field of view), and then evaluated on any grid. A ``BoneMap`` tells the
planning where the bones are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy import ndimage

from nnunet_anomaly.phantoms.anatomy import KneeShape, knee_coordinates, knee_fields
from nnunet_anomaly.phantoms.fields import smooth_step, spline_field

MAP_STEP_MM = 2.0
PLATE_MM = 0.55  # thickness of the cortex below the joint, where no lesion shows
VOLUME_RANGE_MM3 = (100.0, 6000.0)
CONTRAST_RANGE = (1.5, 5.0)
EDGE_RANGE_MM = (2.0, 5.0)

# site: compartment, where on the joint surface (knee coordinates, anatomy.py), how often
LESION_SITES = {
    "medial_condyle": ("medial", (-21.0, -1.0, -7.0), 3),
    "medial_posterior_condyle": ("medial", (-23.0, 18.0, -17.0), 2),
    "lateral_condyle": ("lateral", (21.0, -2.0, -7.0), 2),
    "lateral_posterior_condyle": ("lateral", (22.0, 20.0, -19.0), 1),
    "medial_trochlea": ("trochlea", (-11.0, -31.0, -30.0), 1),
    "lateral_trochlea": ("trochlea", (15.0, -33.0, -32.0), 2),
}
CENTRAL_SHARE = 0.15  # of the lesions do not reach the joint surface

# where vessels enter, in knee coordinates: popliteal surface, roof of the notch, epicondyles, front of the shaft, tibia
VESSEL_SITES = (
    (-7.0, 3.0, -48.0),
    (7.0, 3.0, -48.0),
    (0.0, 8.0, -29.0),
    (0.0, -2.0, -29.0),
    (-38.0, -3.0, -38.0),
    (37.0, 0.0, -36.0),
    (-8.0, -35.0, -56.0),
    (10.0, -34.0, -58.0),
    (0.0, 21.0, 24.0),
    (-31.0, 4.0, 20.0),
    (28.0, -8.0, 22.0),
)
VESSEL_RADII_MM = (0.3, 0.75)
STEP_MM = 0.7
POINT_MM3 = 0.006  # of a vessel's volume to a point of ``tube_points``


@dataclass(frozen=True, eq=False)
class BoneMap:
    """Signed distance to the nearer bone on a coarse grid that covers the field of view, and knee coordinates there."""

    axes_mm: list[np.ndarray]
    distance: np.ndarray
    femur: np.ndarray
    point: list[np.ndarray]

    @classmethod
    def of(cls, shape: KneeShape, extent_mm: Sequence[float]) -> BoneMap:
        """Evaluate a knee over a field of view of this extent (slices, rows, columns)."""
        counts = [round(extent / MAP_STEP_MM) + 1 for extent in extent_mm]
        axes = [(np.arange(n) - (n - 1) / 2) * MAP_STEP_MM for n in counts]
        point = knee_coordinates(shape, axes)
        nothing = np.zeros_like(point[0])
        fields = knee_fields(shape, point, (nothing, nothing), nothing, MAP_STEP_MM)
        return cls(axes, np.minimum(fields.femur, fields.tibia), fields.femur, point)

    def sample(self, field: np.ndarray, places_mm: np.ndarray) -> np.ndarray:
        """Values of a field of this map at places (n, 3), linearly between its grid points."""
        first = np.array([axis[0] for axis in self.axes_mm])
        return ndimage.map_coordinates(field, ((places_mm - first) / MAP_STEP_MM).T, order=1, mode="nearest")

    def outward(self, field: np.ndarray, place_mm: np.ndarray) -> np.ndarray:
        """Direction in which a distance grows at a place, of length 1."""
        offsets = MAP_STEP_MM * np.eye(3)
        slope = self.sample(field, place_mm + offsets) - self.sample(field, place_mm - offsets)
        return slope / max(float(np.linalg.norm(slope)), 1e-6)

    def surface(self, field: np.ndarray, knee_mm: np.ndarray) -> np.ndarray:
        """The place on a bone's surface nearest to knee coordinates, in mm of the image's axes."""
        squared = sum((axis - at) ** 2 for axis, at in zip(self.point, knee_mm, strict=True))
        nearest = np.unravel_index(int(np.argmin(np.where(field < 0, squared, np.inf))), field.shape)
        place = np.array([axis[index] for axis, index in zip(self.axes_mm, nearest, strict=True)])
        for _ in range(3):
            place = place - self.sample(field, place[None]) * self.outward(field, place)
        return place


# ---- vessels


def draw_vessels(bones: BoneMap, rng: np.random.Generator) -> list[np.ndarray]:
    """Paths of thin tortuous tubes that enter the bones and branch.

    Returns:
        One array (n, 4) a branch: place in mm and radius in mm along it.
    """
    paths: list[np.ndarray] = []
    for chosen in rng.permutation(len(VESSEL_SITES))[: int(rng.integers(4, 9))]:
        place = bones.surface(bones.distance, np.array(VESSEL_SITES[chosen]) + rng.normal(0.0, 3.0, 3))
        inward = -bones.outward(bones.distance, place)
        radius = float(rng.uniform(0.45, VESSEL_RADII_MM[1]))
        _grow_vessel(bones, place, inward, radius, float(rng.uniform(16.0, 50.0)), rng, paths)
    return paths


def _grow_vessel(
    bones: BoneMap,
    place: np.ndarray,
    heading: np.ndarray,
    radius_mm: float,
    length_mm: float,
    rng: np.random.Generator,
    paths: list[np.ndarray],
) -> None:
    """Walk along a smoothly turning heading until the length is up or the bone ends; branches leave on the way."""
    heading = _turned(heading, 0.3, rng)
    bend = np.zeros(3)
    steps = int(length_mm / STEP_MM)
    thinnest = VESSEL_RADII_MM[0]
    walked = [np.append(place, radius_mm)]
    for step in range(1, steps + 1):
        bend = 0.8 * bend + rng.normal(0.0, 0.075, 3)
        heading = heading + bend
        heading = heading / np.linalg.norm(heading)
        place = place + STEP_MM * heading
        depth = -float(bones.sample(bones.distance, place[None])[0])
        if step * STEP_MM > 4.0 and depth < 3.0:
            heading = heading - 0.3 * bones.outward(bones.distance, place)
        if step * STEP_MM > 4.0 and depth < 0.5:
            break
        here = max(radius_mm * (1.0 - 0.6 * step / steps), thinnest)
        walked.append(np.append(place, here))
        if 0.75 * here > thinnest and rng.uniform() < 0.06 * STEP_MM:
            _grow_vessel(
                bones, place, _turned(heading, 0.8, rng), 0.75 * here, 0.6 * (length_mm - step * STEP_MM), rng, paths
            )
    if len(walked) > 4:
        paths.append(np.array(walked))


def _turned(heading: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    turned = heading + rng.normal(0.0, amount, 3)
    return turned / np.linalg.norm(turned)


def tube_points(paths: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 3) spread through tubes, in mm, and the volume (n) in mm^3 that each stands for."""
    places, volumes = [np.zeros((0, 3))], [np.zeros(0)]
    for path in paths:
        for start, end in pairwise(path):
            along = end[:3] - start[:3]
            volume = np.pi * start[3] ** 2 * float(np.linalg.norm(along))
            count = max(1, round(volume / POINT_MM3))
            beside = np.cross(along, np.eye(3)[int(np.argmin(np.abs(along)))])
            beside /= np.linalg.norm(beside)
            above = np.cross(along, beside) / np.linalg.norm(along)
            radius = start[3] * np.sqrt(rng.uniform(size=count))[:, None]
            angle = rng.uniform(0.0, 2.0 * np.pi, count)[:, None]
            position = ((np.arange(count) + rng.uniform(size=count)) / count)[:, None]
            places.append(start[:3] + position * along + radius * (np.cos(angle) * beside + np.sin(angle) * above))
            volumes.append(np.full(count, volume / count))
    return np.concatenate(places), np.concatenate(volumes)


def tube_share(places_mm: np.ndarray, volumes_mm3: np.ndarray, axes_mm: Sequence[np.ndarray]) -> np.ndarray:
    """Share of every voxel that tubes fill, float32 in [0, 1]: a thin tube keeps its volume on any grid.

    Every point's volume is shared out among the eight voxels around it, by linear weights.

    Args:
        places_mm, volumes_mm3: see ``tube_points``.
        axes_mm: evenly spaced coordinates along the grid's axes; a whole grid, or some of its slices.
    """
    shape = tuple(len(axis) for axis in axes_mm)
    steps = [float(axis[1] - axis[0]) for axis in axes_mm]
    index = (places_mm - [axis[0] for axis in axes_mm]) / steps
    lower = np.floor(index).astype(np.int64)
    upper_share = index - lower
    share = np.zeros(int(np.prod(shape)))
    for corner in np.ndindex(2, 2, 2):
        at = lower + corner
        inside = ((at >= 0) & (at < shape)).all(axis=1)
        weight = np.where(corner, upper_share, 1.0 - upper_share).prod(axis=1) * volumes_mm3
        share += np.bincount(np.ravel_multi_index(at[inside].T, shape), weight[inside], share.size)
    return (share.reshape(shape) / abs(np.prod(steps))).clip(0.0, 1.0).astype(np.float32)


# ---- lesions


@dataclass(frozen=True, eq=False)
class MarrowLesion:
    """An ill-defined lesion: its strength falls smoothly over ``edge_mm``, to one half at a warped ``radius_mm``."""

    site: str
    compartment: str
    centre_mm: np.ndarray  # (3,), in the image's axes
    stretch: np.ndarray  # (3, 3) symmetric, determinant 1
    warp_mm: np.ndarray  # (3, n, n, n) control points
    patches: np.ndarray  # (n, n, n) control points
    half_extent_mm: float  # of the control points around the centre; there is nothing of the lesion beyond
    radius_mm: float
    edge_mm: float
    contrast: float  # of the peak, in robust standard deviations of marrow
    volume_mm3: float  # as drawn: of what exceeds half of the peak, in the marrow

    def membership(self, axes_mm: Sequence[np.ndarray]) -> np.ndarray:
        """Strength of the lesion before the bone cuts it off, float32 in [0, 1], on a grid around it."""
        local = [axis - at for axis, at in zip(axes_mm, self.centre_mm, strict=True)]
        return (_fall(_warped_radius(self, local), self.radius_mm, self.edge_mm) * _patches(self, local)).astype("f4")

    def box(self, axes_mm: Sequence[np.ndarray]) -> tuple[slice, ...] | None:
        """The part of a grid that the lesion can reach; None where it reaches no part."""
        box = []
        for axis, at in zip(axes_mm, self.centre_mm, strict=True):
            near = np.flatnonzero(np.abs(axis - at) <= self.half_extent_mm)
            if near.size == 0:
                return None
            box.append(slice(int(near[0]), int(near[-1]) + 1))
        return tuple(box)


def _warped_radius(lesion: MarrowLesion, local_mm: Sequence[np.ndarray]) -> np.ndarray:
    """Distance from the lesion's centre after warping and stretching, in mm."""
    grid = np.ix_(*local_mm)
    moved = [
        flat + spline_field(warp, local_mm, lesion.half_extent_mm)
        for flat, warp in zip(grid, lesion.warp_mm, strict=True)
    ]
    squared = sum(sum(w * axis for w, axis in zip(row, moved, strict=True)) ** 2 for row in lesion.stretch)
    return np.sqrt(squared)


def _fall(radii_mm: np.ndarray, radius_mm: float, edge_mm: float) -> np.ndarray:
    """1 in the middle, 1/2 at the radius, 0 beyond."""
    return smooth_step(radii_mm, radius_mm + 0.5 * edge_mm, radius_mm - 0.5 * edge_mm)


def _patches(lesion: MarrowLesion, local_mm: Sequence[np.ndarray]) -> np.ndarray:
    """How uneven the lesion is inside, from 0.65 to 1."""
    noise = spline_field(lesion.patches, local_mm, lesion.half_extent_mm)
    return 1.0 - 0.35 * np.clip(0.5 + 1.2 * noise, 0.0, 1.0)


def draw_lesions(bones: BoneMap, rng: np.random.Generator) -> list[MarrowLesion]:
    """One to three lesions of a femur, at sites that differ."""
    names = list(LESION_SITES)
    weights = np.array([LESION_SITES[name][2] for name in names], dtype=float)
    count = int(rng.choice((1, 2, 3), p=(0.45, 0.35, 0.2)))
    chosen = rng.choice(len(names), count, replace=False, p=weights / weights.sum())
    return [_draw_lesion(bones, names[number], rng) for number in chosen]


def _draw_lesion(bones: BoneMap, site: str, rng: np.random.Generator) -> MarrowLesion:
    compartment, knee_mm, _ = LESION_SITES[site]
    volume_mm3 = float(np.exp(rng.uniform(*np.log(VOLUME_RANGE_MM3))))
    size_mm = (1.5 * volume_mm3 / np.pi) ** (1 / 3)  # of half a ball on the surface
    surface = bones.surface(bones.femur, np.array(knee_mm) + rng.normal(0.0, 3.0, 3))
    is_central = bool(rng.uniform() < CENTRAL_SHARE)
    depth_mm = size_mm + rng.uniform(2.0, 8.0) if is_central else rng.uniform(0.0, 0.5) * size_mm
    half_extent_mm = 2.4 * size_mm + EDGE_RANGE_MM[1]
    controls = int(np.ceil(2.0 * half_extent_mm / np.clip(0.5 * size_mm, 2.5, 6.0))) + 1
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    lengths = np.exp(rng.uniform(-0.3, 0.3, 3))
    lesion = MarrowLesion(
        site=f"{site}_central" if is_central else site,
        compartment=compartment,
        centre_mm=surface - depth_mm * bones.outward(bones.femur, surface),
        stretch=basis @ np.diag(lengths / np.prod(lengths) ** (1 / 3)) @ basis.T,
        warp_mm=rng.normal(0.0, 0.9 * size_mm, (3, controls, controls, controls)),
        patches=rng.normal(0.0, 1.0, (controls, controls, controls)),
        half_extent_mm=half_extent_mm,
        radius_mm=size_mm,
        edge_mm=float(rng.uniform(*EDGE_RANGE_MM)),
        contrast=float(np.exp(rng.uniform(*np.log(CONTRAST_RANGE)))),
        volume_mm3=volume_mm3,
    )
    return replace(lesion, radius_mm=_radius_of_volume(lesion, bones))


def _radius_of_volume(lesion: MarrowLesion, bones: BoneMap) -> float:
    """The radius with which what exceeds half of the peak has the lesion's volume in the marrow, on a grid of 1 mm."""
    reach = np.arange(-np.floor(lesion.half_extent_mm), lesion.half_extent_mm)
    places = np.stack([part.ravel() for part in np.meshgrid(*[reach] * 3, indexing="ij")], axis=1) + lesion.centre_mm
    inside = bones.sample(bones.femur, places) < -PLATE_MM
    radii = _warped_radius(lesion, [reach] * 3).ravel()[inside]
    patches = _patches(lesion, [reach] * 3).ravel()[inside]
    low, high = 0.5, lesion.half_extent_mm - 0.5 * lesion.edge_mm
    for _ in range(12):
        middle = 0.5 * (low + high)
        strength = _fall(radii, middle, lesion.edge_mm) * patches
        is_larger = (strength > 0.5 * strength.max(initial=0.0)).sum() > lesion.volume_mm3
        low, high = (low, middle) if is_larger else (middle, high)
    return 0.5 * (low + high)
