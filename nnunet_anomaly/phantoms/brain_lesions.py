"""Lesions of the brain phantom: tumours with core, enhancing rim and oedema, and chronic strokes. For testing only.

All are grown by ``implants``: a front that starts at one point, travels at a random speed, faster along white matter,
and does not enter fluid. Their intensities are tissues of ``painting``. Strokes can also have the shapes of real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.geometry import bounding_box, distance_to_mm, erode_mm
from nnunet_anomaly.phantoms.fields import smooth_noise
from nnunet_anomaly.phantoms.implants import arrival_times, grow_region, make_patchy, mix_toward, random_speed
from nnunet_anomaly.phantoms.painting import Contrast

# labels of a tumour as BraTS had them up to 2021
NECROSIS, OEDEMA, ENHANCING = 1, 2, 4
TUMOUR_TISSUES = {OEDEMA: "oedema", NECROSIS: "necrosis", ENHANCING: "enhancing"}

# the box (mm, x y z) of the brain in MNI space, in which real lesion shapes are given
ATLAS_BRAIN_MM = ((-72.0, -106.0, -72.0), (72.0, 74.0, 82.0))
SMALLEST_MM3 = 100.0


@dataclass(frozen=True)
class Anatomy:
    """What lesions need to know of a head, all on the image's grid (x, y, z)."""

    brain: np.ndarray  # bool
    grey: np.ndarray  # share of cortex
    white: np.ndarray  # share of white matter
    cerebrum: np.ndarray  # bool: where lesions may lie, no fluid
    parenchyma: np.ndarray  # bool: the same, with cerebellum and brain stem
    left: np.ndarray  # bool: the left half of the head
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Lesion:
    """One lesion: its mask on the image's grid, how much of it shows where, and what is known of it."""

    mask: np.ndarray  # bool
    membership: np.ndarray  # float32 in [0, 1]
    kind: str
    site: str


# ---- tumours ----


def grow_tumour(
    anatomy: Anatomy, rng: np.random.Generator, *, high_grade: bool = True, growth: float = 1.0
) -> np.ndarray:
    """Labels (uint8) of one tumour: 1 necrosis and non-enhancing core, 2 oedema, 4 enhancing.

    Args:
        anatomy: of the head.
        rng: random numbers.
        high_grade: a ring that enhances around necrosis, in wide oedema; else a core that hardly enhances.
        growth: factor on all radii, so that a later visit has a larger tumour at the same place.

    Raises:
        InputError: the brain is too small for it.
    """
    spacing_mm = anatomy.spacing_mm
    deep = erode_mm(anatomy.brain, 12.0, spacing_mm) & (anatomy.white >= 0.5)
    start = _random_voxel(deep, rng)
    radius_mm = growth * float(rng.uniform(10.0, 21.0))
    rim_mm = float(rng.uniform(2.5, 4.5))
    oedema_share = float(rng.uniform(0.8, 2.5) if high_grade else rng.uniform(0.2, 0.6))
    seeds = [int(seed) for seed in rng.integers(2**31, size=3)]
    allowed = _side_of(anatomy, anatomy.cerebrum, start)
    core_mm3 = _fitting_mm3(radius_mm, allowed, spacing_mm)
    core = grow_region(
        allowed, start, core_mm3, spacing_mm, np.random.default_rng(seeds[0]), scale_mm=6.0, roughness=0.45
    )[1]
    labels = np.zeros(core.shape, dtype=np.uint8)
    labels[_oedema(anatomy, core, oedema_share * core_mm3, np.random.default_rng(seeds[1]))] = OEDEMA
    labels[core] = NECROSIS
    noise = smooth_noise(core.shape, spacing_mm, np.random.default_rng(seeds[2]), 5.0)
    if high_grade:
        # at least one voxel thick, so that necrosis is closed in
        thickness_mm = np.maximum(rim_mm * (1.0 + 0.3 * np.clip(noise, -1.5, 1.5)), 1.01 * max(spacing_mm))
        labels[core & (distance_to_mm(~core, spacing_mm) <= thickness_mm)] = ENHANCING
    else:
        labels[core & (noise > 1.3)] = ENHANCING
    return labels


def _oedema(anatomy: Anatomy, core: np.ndarray, volume_mm3: float, rng: np.random.Generator) -> np.ndarray:
    """What a front from the core reaches first, mostly along white matter; ``volume_mm3`` large where there is room."""
    speed = (0.2 + anatomy.white) * random_speed(core.shape, anatomy.spacing_mm, rng, scale_mm=5.0, roughness=0.4)
    rim = core & ~ndimage.binary_erosion(core)
    times = arrival_times(anatomy.cerebrum, np.argwhere(rim), anatomy.spacing_mm, speed.astype(np.float32))
    times[core] = np.inf
    places = np.flatnonzero(np.isfinite(times))
    places = places[np.argsort(times.flat[places], kind="stable")]
    region = np.zeros(core.shape, dtype=bool)
    region.flat[places[: round(volume_mm3 / float(np.prod(anatomy.spacing_mm)))]] = True
    return region


def add_tumour(
    signal: np.ndarray, labels: np.ndarray, contrast: Contrast, anatomy: Anatomy, rng: np.random.Generator
) -> np.ndarray:
    """Signal (float32) with a tumour's parts at their intensities in this contrast; outside the brain as it was."""
    inner = labels > 0
    for number, tissue in TUMOUR_TISSUES.items():
        region = inner if number == OEDEMA else labels == number
        membership = make_patchy(soft_membership(region, anatomy), anatomy.spacing_mm, rng, 0.15)
        signal = mix_toward(
            signal,
            membership,
            anatomy.parenchyma,
            contrast[tissue],
            anatomy.spacing_mm,
            smoothing_mm=3.0,
            texture=0.3 if number == OEDEMA else 0.15,
        )
    return signal


def soft_membership(region: np.ndarray, anatomy: Anatomy, blur_voxels: float = 0.6) -> np.ndarray:
    """How much of a voxel belongs to a region, by a slight blur: float32, 0 outside the brain."""
    box = bounding_box(region, 4)
    membership = np.zeros(region.shape, dtype=np.float32)
    if box is not None:
        membership[box] = ndimage.gaussian_filter(region[box].astype(np.float32), blur_voxels, truncate=3.0)
    return membership * anatomy.brain


# ---- strokes ----


def grow_strokes(anatomy: Anatomy, rng: np.random.Generator) -> list[Lesion]:
    """One to three strokes that do not overlap, each on one side, at the cortex or deep in the brain.

    Raises:
        InputError: the brain is too small for any.
    """
    count = int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1]))
    taken = np.zeros(anatomy.brain.shape, dtype=bool)
    lesions: list[Lesion] = []
    for _ in range(count):
        site = "cortical" if rng.uniform() < 0.6 else "deep"
        radius_mm = float(rng.uniform(7.0, 22.0) if site == "cortical" else rng.uniform(4.0, 9.0))
        lesion = _grow_stroke(anatomy, ~taken, site, radius_mm, rng)
        # the soft edges of two lesions may meet, their masks may not
        taken |= ndimage.binary_dilation(lesion.mask, iterations=2)
        lesions.append(lesion)
    return lesions


def _grow_stroke(anatomy: Anatomy, free: np.ndarray, site: str, radius_mm: float, rng: np.random.Generator) -> Lesion:
    candidates = stroke_sites(anatomy, site) & free
    start = _random_voxel(candidates, rng)
    allowed = _side_of(anatomy, anatomy.cerebrum & free, start)
    volume_mm3 = _fitting_mm3(radius_mm, allowed, anatomy.spacing_mm)
    membership, mask = grow_region(
        allowed, start, volume_mm3, anatomy.spacing_mm, rng, edge_mm=2.5, scale_mm=5.0, roughness=0.5
    )
    return Lesion(mask, make_patchy(membership, anatomy.spacing_mm, rng, 0.2), "stroke", site)


def stroke_sites(anatomy: Anatomy, site: str) -> np.ndarray:
    """Voxels (bool) in which a stroke of this site may begin: in the cortex near the surface, or far from it."""
    if site == "cortical":
        surface = anatomy.brain & ~erode_mm(anatomy.brain, 8.0, anatomy.spacing_mm)
        return anatomy.cerebrum & (anatomy.grey >= 0.5) & surface
    return anatomy.cerebrum & (anatomy.grey < 0.2) & erode_mm(anatomy.brain, 30.0, anatomy.spacing_mm)


def plant_shapes(
    shape: np.ndarray, shape_axes_mm: Sequence[np.ndarray], anatomy: Anatomy, *, mirrored: bool = False
) -> list[Lesion]:
    """Put a real lesion mask into a brain: scaled and shifted so that the atlas's brain box meets this brain's.

    Args:
        shape: bool (x, y, z), in MNI space.
        shape_axes_mm: its coordinates along x (right), y (front), z (up), rising evenly.
        anatomy: of the head.
        mirrored: put it on the other side.

    Returns:
        A lesion for each connected part of at least 100 mm^3, the largest first; empty if none lies in the brain.
    """
    box = bounding_box(anatomy.brain)
    if box is None:
        return []
    indices = []
    for axis, part in enumerate(box):
        low, high = ATLAS_BRAIN_MM[0][axis], ATLAS_BRAIN_MM[1][axis]
        steps = (np.arange(anatomy.brain.shape[axis]) + 0.5 - part.start) / (part.stop - part.start)
        place = low + steps * (high - low)
        if mirrored and axis == 0:
            place = -place
        along = shape_axes_mm[axis]
        indices.append((place - along[0]) / (along[1] - along[0]))
    # linear interpolation along one axis after the other
    share = shape.astype(np.float32)
    for axis, index in enumerate(indices):
        share = _interpolated(share, index, axis)
    mask = (share >= 0.5) & anatomy.parenchyma
    parts = label_components(mask)
    sizes_mm3 = parts.sizes_voxels * np.prod(anatomy.spacing_mm)
    lesions = []
    for number in np.argsort(-sizes_mm3, kind="stable"):
        if sizes_mm3[number] >= SMALLEST_MM3:
            lesion = np.zeros(mask.shape, dtype=bool)
            lesion[parts.mask] = parts.numbers == number
            lesions.append(Lesion(lesion, soft_membership(lesion, anatomy), "stroke", "real_shape"))
    return lesions


def _interpolated(values: np.ndarray, index: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along one axis at fractional indices; 0 beyond the ends."""
    lower = np.floor(index).astype(int)
    result = None
    for neighbour, weight in ((lower, 1.0 - (index - lower)), (lower + 1, index - lower)):
        inside = (neighbour >= 0) & (neighbour < values.shape[axis])
        taken = np.take(values, np.clip(neighbour, 0, values.shape[axis] - 1), axis=axis)
        spread = [1] * values.ndim
        spread[axis] = index.size
        part = taken * (weight * inside).astype(np.float32).reshape(spread)
        result = part if result is None else result + part
    assert result is not None
    return result


def add_strokes(signal: np.ndarray, lesions: Sequence[Lesion], contrast: Contrast, anatomy: Anatomy) -> np.ndarray:
    """Signal (float32) with strokes at their intensity in this contrast; outside the brain as it was."""
    for lesion in lesions:
        signal = mix_toward(
            signal,
            lesion.membership,
            anatomy.parenchyma,
            contrast["stroke"],
            anatomy.spacing_mm,
            smoothing_mm=3.0,
            texture=0.2,
        )
    return signal


def _side_of(anatomy: Anatomy, region: np.ndarray, start: tuple[int, ...]) -> np.ndarray:
    """Part of a region that is connected with ``start`` on its side of the head."""
    side = region & (anatomy.left == anatomy.left[start])
    parts = label_components(side, connectivity=6)
    numbers = np.full(side.shape, -1)
    numbers[parts.mask] = parts.numbers
    return numbers == numbers[start]


def _fitting_mm3(radius_mm: float, allowed: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Volume of a ball, but at most a third of where a lesion may lie."""
    return min(4.0 / 3.0 * np.pi * radius_mm**3, float(allowed.sum() * np.prod(spacing_mm)) / 3.0)


def _random_voxel(candidates: np.ndarray, rng: np.random.Generator) -> tuple[int, ...]:
    places = np.flatnonzero(candidates)
    if places.size == 0:
        raise InputError("The brain has no place for a lesion on this grid. Choose a finer grid.")
    return tuple(int(index) for index in np.unravel_index(places[rng.integers(places.size)], candidates.shape))


def describe(masks: Sequence[tuple[np.ndarray, dict[str, Any]]], spacing_mm: Sequence[float]) -> list[dict[str, Any]]:
    """A record for each lesion: its number, what is given, its voxels and its volume."""
    return [
        {
            "instance": number,
            **known,
            "voxels": int(mask.sum()),
            "volume_mm3": round(float(mask.sum() * np.prod(spacing_mm)), 3),
        }
        for number, (mask, known) in enumerate(masks, start=1)
    ]
