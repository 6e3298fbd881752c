"""Corruptions that a scanner makes: metal with its artefact, a bias field, noise. Testing only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunet_anomaly.phantoms.fields import capsule, occupancy, rician_noise, smooth_step, spline_field
from nnunet_anomaly.phantoms.metal import METAL_HU, streaks
from nnunet_anomaly.phantoms.stress_case import Case, Change, Dose, Scale, Site

METAL_SHARE = 0.15  # radius of a pin, of the structure's
PIN_LENGTH = 8.0  # in radii of the pin at severity 1, between the centres of its ends
VOID = 2.5  # radius of the signal void of MR, in radii of the pin
ARTEFACT = 1.5  # radius of void and pile-up together, in radii of the void
RIM_SD = 3.0  # brightest pile-up beside a void, in robust standard deviations
FIELD_CONTROLS = 5  # of a bias field, along the image's longest side and beyond
# an image whose voxels are 0 in all channels to this share has its background erased: noise leaves it so
ERASED_BACKGROUND = 0.2


# ---- metal ----


def metal(case: Case, dose: Dose, rng: np.random.Generator) -> Change:
    """A metal pin in the region, whose cross-section is proportional to severity: streaks in CT, a void elsewhere.

    In CT the pin has 3000 HU and every slice along axis 0 that it meets (a 2-D image is one slice) has bright and dark
    rays. In all other images there is a void of 2.5 times its radius, with bright pile-up on two sides. ``strength``
    scales rays and pile-up. A case whose channels are CT and others gets both.
    """
    site = case.draw_site(rng)
    radius_mm = case.radius_mm(site, METAL_SHARE, dose.size_mm)
    thickness_mm = float(np.sqrt(dose.severity)) * radius_mm
    directions = rng.standard_normal((2, case.labels.ndim))
    along, across = np.linalg.qr(directions.T)[0].T  # two perpendicular directions
    streaks_seed = int(rng.integers(2**63))
    box = _box_around(case, site, (0.5 * PIN_LENGTH + 2 * VOID) * radius_mm)
    point = _coordinates(case, site, box)
    half = 0.5 * PIN_LENGTH * radius_mm
    axis_mm = np.broadcast_to(capsule(point, -half * along, half * along, 0.0), _shape(box)).astype(np.float32)
    has_ct = any(case.is_ct(channel) for channel in range(len(case.images)))
    if has_ct:  # rays reach beyond the pin's box
        box, axis_mm = _along_slices(case, box, axis_mm)
    values, anomaly = [], np.zeros(_shape(box), dtype=bool)
    for channel, scale in enumerate(case.scales):
        part = case.images[channel][box].astype(np.float32)
        if case.is_ct(channel):
            share = _share(case, axis_mm, thickness_mm)
            rays = _rays(case, axis_mm, radius_mm, dose, np.random.default_rng(streaks_seed))
            values.append((1 - share) * (part + rays) + share * np.float32(METAL_HU))
            anomaly |= (share >= 0.5) | (np.abs(rays) >= 0.5 * scale.sd)
        else:
            void, rim = _void_and_rim(case, site, box, axis_mm, along, across, thickness_mm)
            rim *= np.float32(RIM_SD * dose.strength)
            lit = part + rim * np.float32(scale.sd)
            values.append(lit + void * (np.minimum(np.float32(scale.low), part) - lit))
            anomaly |= axis_mm <= ARTEFACT * VOID * thickness_mm
    drawn = {
        "voxel": list(site.voxel),
        "radius_mm": round(thickness_mm, 4),
        "length_mm": round(2 * half, 4),
        "direction": [round(float(part), 6) for part in along],
    }
    return Change(box, values, anomaly, drawn)


def _share(case: Case, axis_mm: np.ndarray, radius_mm: float) -> np.ndarray:
    return occupancy(axis_mm - np.float32(radius_mm), case.voxel_size ** (1 / case.labels.ndim)).astype(np.float32)


def _rays(case: Case, axis_mm: np.ndarray, radius_mm: float, dose: Dose, rng: np.random.Generator) -> np.ndarray:
    """Streaks of the pin at severity 1, weaker with the square root of its area in each slice, as these grow."""
    largest = _share(case, axis_mm, radius_mm)
    share = _share(case, axis_mm, float(np.sqrt(dose.severity)) * radius_mm)
    flat = largest.ndim == 2
    spacing_mm = (1.0, *case.spacing_mm) if flat else case.spacing_mm
    rays = streaks(largest[None] if flat else largest, spacing_mm, rng)
    in_plane = (-2, -1)
    areas, largest_areas = share.sum(axis=in_plane, keepdims=True), largest.sum(axis=in_plane, keepdims=True)
    weaker = np.sqrt(areas / np.maximum(largest_areas, 1e-6), dtype=np.float32)
    return np.float32(dose.strength) * weaker * (rays[0] if flat else rays)


def _void_and_rim(
    case: Case,
    site: Site,
    box: tuple[slice, ...],
    axis_mm: np.ndarray,
    along: np.ndarray,
    across: np.ndarray,
    radius_mm: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the signal that is lost and, in [0, 1], the pile-up beside it, on the two sides of ``across``."""
    void_mm = VOID * radius_mm
    void = smooth_step(axis_mm, 1.2 * void_mm, 0.8 * void_mm)
    point = _coordinates(case, site, box)
    sideways = sum(axis * part for axis, part in zip(point, across, strict=True))
    squared = np.maximum(sum(axis * axis for axis in point), 1e-6)
    lengthways = sum(axis * part for axis, part in zip(point, along, strict=True))
    lobes = np.clip(sideways**2 / np.maximum(squared - lengthways**2, 1e-3), 0, 1)
    rim = np.exp(-(((axis_mm - 1.35 * void_mm) / (0.2 * void_mm)) ** 2)) * lobes
    rim[axis_mm > 1.9 * void_mm] = 0.0
    return void.astype(np.float32), rim.astype(np.float32)


def _along_slices(case: Case, box: tuple[slice, ...], axis_mm: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box widened to whole slices, and the distance to the pin's axis there (very large outside of the box)."""
    wide = (*box[:-2], *(slice(0, length) for length in case.labels.shape[-2:]))
    distance_mm = np.full(_shape(wide), np.float32(1e6))
    distance_mm[(Ellipsis, box[-2], box[-1])] = axis_mm
    return wide, distance_mm


def _box_around(case: Case, site: Site, reach_mm: float) -> tuple[slice, ...]:
    return tuple(
        slice(int(max(0, at - reach_mm / size - 1)), int(min(length, at + reach_mm / size + 2)))
        for at, length, size in zip(site.voxel, case.labels.shape, case.spacing_mm, strict=True)
    )


def _shape(box: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in box)


def _coordinates(case: Case, site: Site, box: tuple[slice, ...]) -> Sequence[np.ndarray]:
    """Millimetres from the site along every axis, float32, ready to broadcast."""
    lines = [
        ((np.arange(part.start, part.stop) - at) * size).astype(np.float32)
        for part, at, size in zip(box, site.voxel, case.spacing_mm, strict=True)
    ]
    return np.meshgrid(*lines, indexing="ij", sparse=True)


# ---- the whole image ----


def bias_field(case: Case, dose: Dose, rng: np.random.Generator) -> Change:
    """Intensities times exp(severity * strength * f), f a smooth random field in [-1, 1], the same in all channels.

    What is multiplied is the attenuation in CT (HU + 1000, so that air stays air), the intensity itself where there are
    no negative ones, and else what lies above the lowest.
    """
    lines = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(case.labels.shape, case.spacing_mm, strict=True)]
    longest_mm = 2 * max(float(line[-1]) for line in lines)
    controls = rng.standard_normal((FIELD_CONTROLS,) * case.labels.ndim)
    field = spline_field(controls, lines, 0.75 * longest_mm)
    field -= field.mean()
    field /= max(float(np.abs(field).max()), 1e-6)
    factor = np.exp(np.float32(dose.severity * dose.strength) * field)
    values = []
    for channel, image in enumerate(case.images):
        lowest = -1000.0 if case.is_ct(channel) else min(0.0, float(image.min()))
        values.append(np.float32(lowest) + (image.astype(np.float32) - np.float32(lowest)) * factor)
    drawn: dict[str, object] = {"strongest_factor": round(float(np.exp(dose.severity * dose.strength)), 4)}
    return Change(_everything(case), values, np.ones(case.labels.shape, dtype=bool), drawn)


def noise(case: Case, dose: Dose, rng: np.random.Generator) -> Change:
    """Noise of ``severity * strength`` robust standard deviations of the region: Rician, but Gaussian in CT.

    Gaussian too where a channel has negative values, which are no magnitudes. A background that was erased (0 in all
    channels, a fifth of the image or more) stays erased.
    """
    erased = np.logical_and.reduce([image == 0 for image in case.images])
    has_ct = any(case.is_ct(channel) for channel in range(len(case.images)))
    kept = erased if not has_ct and erased.mean() >= ERASED_BACKGROUND else None
    values, kinds = [], []
    for channel, (image, scale) in enumerate(zip(case.images, case.scales, strict=True)):
        kind = "gaussian" if case.is_ct(channel) or image.min() < 0 else "rician"
        values.append(_noisy(image, kind, scale, dose, rng))
        if kept is not None:
            values[-1][kept] = 0.0
        kinds.append(kind)
    drawn: dict[str, object] = {
        "kind": kinds,
        "noise_sd": [round(dose.severity * dose.strength * scale.sd, 4) for scale in case.scales],
        "erased_background_kept": kept is not None,
    }
    anomaly = np.ones(case.labels.shape, dtype=bool) if kept is None else ~kept
    return Change(_everything(case), values, anomaly, drawn)


def _noisy(image: np.ndarray, kind: str, scale: Scale, dose: Dose, rng: np.random.Generator) -> np.ndarray:
    sigma = dose.severity * dose.strength * scale.sd
    signal = image.astype(np.float32)
    if kind == "rician":
        return rician_noise(signal, sigma, rng)
    return signal + np.float32(sigma) * rng.standard_normal(signal.shape, dtype=np.float32)


def _everything(case: Case) -> tuple[slice, ...]:
    return tuple(slice(0, length) for length in case.labels.shape)
