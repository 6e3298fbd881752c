"""Corruptions of a place: ill-defined lesions, foreign patches, missing tissue and local deformations.

All grow with severity around one place that does not depend on it: what a low severity has changed, a high one has
changed at least as much. Testing only; made in other ways than what training augments with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.geometry import bounding_box
from nnunet_anomaly.phantoms.fields import smooth_step, spline_field
from nnunet_anomaly.phantoms.implants import arrival_times
from nnunet_anomaly.phantoms.stress_case import Case, Change, Dose, Site, ball_radius, ball_volume

LESION_SHARE, PIECE_SHARE, DEFORMATION_SHARE = 0.8, 0.9, 1.5  # of the structure's radius
LESION_EDGE = 0.6  # width of a lesion's border, as a share of its radius at severity 1
PATCHINESS = 0.3  # up to this share a lesion is weaker here and there
FASTEST = 1.3  # speed of a front; the box around it is as much wider than its time
DONOR_TRIES = 32
SMALLEST_SHIFT = 0.01  # of a voxel: what moves less stays exactly as it is
LARGEST_SHIFT = 0.6  # of the radius of a deformation: above 0.65 the image would fold


# ---- regions that grow ----


@dataclass(frozen=True, eq=False)
class Front:
    """Arrival times of a front from one voxel, in a box of the image: everything that a corruption grows by."""

    box: tuple[slice, ...]
    times: np.ndarray  # float32, infinite where the front never comes
    order: np.ndarray  # flat indices of the voxels reached, by time
    voxel_size: float

    def until(self, time: float) -> Front:
        """The front in the smallest box that holds it at a time, and beyond that no more."""
        inner = bounding_box(self.times <= time)
        assert inner is not None  # it starts at time 0
        box = tuple(slice(o.start + i.start, o.start + i.stop) for o, i in zip(self.box, inner, strict=True))
        times = self.times[inner]
        places = np.flatnonzero(times <= time)
        return Front(box, times, places[np.argsort(times.flat[places], kind="stable")], self.voxel_size)

    def border(self, volume: float) -> tuple[float, int]:
        """Time at which the front holds a volume (mm^3; 2-D: area), and the number of its voxels, at least one."""
        voxels = min(max(1, round(volume / self.voxel_size)), self.order.size)
        last = float(self.times.flat[self.order[voxels - 1]])
        following = float(self.times.flat[self.order[voxels]]) if voxels < self.order.size else last
        return 0.5 * (last + following), voxels

    def region(self, volume: float) -> np.ndarray:
        """bool: the voxels that the front holds then; a larger volume holds them all."""
        mask = np.zeros(self.times.shape, dtype=bool)
        mask.flat[self.order[: self.border(volume)[1]]] = True
        return mask

    def weight(self, volume: float, edge_mm: float) -> np.ndarray:
        """float32 in [0, 1]: 1 inside and 0 outside, over a border of about ``edge_mm``; grows with the volume."""
        border = self.border(volume)[0]
        half_edge = max(min(0.5 * edge_mm, border), 1e-3)
        return smooth_step(np.minimum(self.times, np.float32(1e6)), border + half_edge, border - half_edge)


def grow_front(
    name: str,
    allowed: np.ndarray,
    site: Site,
    radius_mm: float,
    edge_mm: float,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    roughness: float = 0.5,
) -> Front:
    """A front from a site through ``allowed`` (bool), as far as a ball of ``radius_mm`` with its border needs.

    Raises:
        InputError: the voxels of ``allowed`` that are connected with the site hold less than that ball.
    """
    volume = ball_volume(radius_mm, allowed.ndim)
    seed = int(rng.integers(2**63))
    # a front costs by the voxels that it visits: go no farther than a narrow region makes necessary
    for limit_mm in (*(reach * radius_mm + 0.5 * edge_mm for reach in (1.4, 2.2, 4.0)), np.inf):
        box = _box_around(site.voxel, allowed.shape, [FASTEST * limit_mm / size + 2 for size in spacing_mm])
        field = smooth_field(allowed[box].shape, spacing_mm, 0.6 * radius_mm, np.random.default_rng(seed))
        speed = np.minimum(np.exp(np.float32(roughness) * field), np.float32(FASTEST))
        start = np.array([[at - part.start for at, part in zip(site.voxel, box, strict=True)]])
        times = arrival_times(allowed[box], start, spacing_mm, speed, limit_mm)
        places = np.flatnonzero(np.isfinite(times))
        front = Front(box, times, places[np.argsort(times.flat[places], kind="stable")], float(np.prod(spacing_mm)))
        held = places.size * front.voxel_size
        if held >= volume and front.border(volume)[0] + 0.5 * edge_mm <= limit_mm:
            break
    if held < volume:
        raise InputError(
            f"Case {name}: a corruption of radius {radius_mm:g} mm does not fit: what is connected with voxel "
            f"{site.voxel} is as large as a ball of {ball_radius(held, allowed.ndim):.3g} mm. Ask for a smaller one."
        )
    return front.until(front.border(volume)[0] + 0.5 * edge_mm)


def smooth_field(
    shape: Sequence[int], spacing_mm: Sequence[float], scale_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Random cubic splines, float32, zero mean, unit deviation; control points every ``scale_mm``, at least a voxel."""
    scale_mm = max(scale_mm, min(spacing_mm))
    axes_mm = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(shape, spacing_mm, strict=True)]
    half_mm = max(float(axis[-1]) for axis in axes_mm) + 2 * scale_mm
    controls = int(np.ceil(2 * half_mm / scale_mm)) + 1
    field = spline_field(rng.standard_normal((controls,) * len(shape)), axes_mm, half_mm)
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def _box_around(voxel: Sequence[int], shape: Sequence[int], reach_voxels: Sequence[float]) -> tuple[slice, ...]:
    return tuple(
        slice(int(max(0, at - reach)), int(min(length, at + reach + 1)))
        for at, length, reach in zip(voxel, shape, reach_voxels, strict=True)
    )


def _floats(case: Case, box: tuple[slice, ...]) -> list[np.ndarray]:
    return [image[box].astype(np.float32) for image in case.images]


def _drawn(case: Case, site: Site, dose: Dose, radius_mm: float) -> dict[str, object]:
    return {"voxel": list(site.voxel), "radius_mm": round(_ball_now(case, dose, radius_mm)[0], 4)}


def _ball_now(case: Case, dose: Dose, radius_mm: float) -> tuple[float, float]:
    """Radius and volume at the severity, of a radius at severity 1: the volume is proportional to severity."""
    volume = dose.severity * ball_volume(radius_mm, case.labels.ndim)
    return ball_radius(volume, case.labels.ndim), volume


# ---- lesions ----


def bright_lesion(case: Case, dose: Dose, rng: np.random.Generator) -> Change:
    """A bright ill-defined lesion inside the region; see ``_lesion``."""
    return _lesion(case, dose, rng, 1.0)


def dark_lesion(case: Case, dose: Dose, rng: np.random.Generator) -> Change:
    """A dark ill-defined lesion inside the region; see ``_lesion``."""
    return _lesion(case, dose, rng, -1.0)


def _lesion(case: Case, dose: Dose, rng: np.random.Generator, sign: float) -> Change:
    """Intensity added in all channels, over the tissue's own texture, and confined to the region.

    The volume is proportional to severity, the contrast goes from half to whole (``strength``, in robust standard
    deviations). It saturates toward the brightest (darkest) of the region and its surroundings, which no voxel passes,
    so that a lesion never looks like nothing that the scanner shows; what is beyond already stays as it is.
    """
    site = case.draw_site(rng)
    radius_mm = case.radius_mm(site, LESION_SHARE, dose.size_mm)
    edge_mm = LESION_EDGE * radius_mm
    front = grow_front(case.name, case.region, site, radius_mm, edge_mm, case.spacing_mm, rng)
    volume = _ball_now(case, dose, radius_mm)[1]
    patches = smooth_field(front.times.shape, case.spacing_mm, 0.5 * radius_mm, rng)
    weight = front.weight(volume, edge_mm) * (1 - np.float32(PATCHINESS) * np.clip(0.5 + 0.5 * patches, 0, 1))
    contrast = dose.strength * (0.5 + 0.5 * dose.severity)
    values = []
    for part, scale in zip(_floats(case, front.box), case.scales, strict=True):
        bound = scale.high if sign > 0 else scale.low
        room = np.maximum(sign * (np.float32(bound) - part), 0)
        share = -np.expm1(-weight * np.float32(contrast * scale.sd) / np.maximum(room, np.float32(1e-6 * scale.sd)))
        values.append(part + sign * room * share)
    drawn = {**_drawn(case, site, dose, radius_mm), "contrast_sd": round(contrast, 4)}
    return Change(front.box, values, front.region(volume), drawn)


# ---- pieces ----


def foreign_patch(case: Case, dose: Dose, rng: np.random.Generator) -> Change:
    """Tissue from elsewhere in the image, or from a donor case, shows in a place of the region and across its border.

    ``strength`` is the opacity. A donor is sampled in millimetres and, unless CT, brought to the case's median and
    robust standard deviation.
    """
    site, radius_mm, front, weight, anomaly = _piece(case, dose, rng, on_surface=False)
    reached = np.argwhere(front.weight(ball_volume(radius_mm, case.labels.ndim), _sharp_mm(case)) > 0)
    corner = [part.start for part in front.box]
    offsets_mm = (reached + corner - site.voxel) * case.spacing_mm
    centre = _draw_centre(case, dose.donor, site, radius_mm, offsets_mm, rng)
    values = []
    for channel, part in enumerate(_floats(case, front.box)):
        patch = part.copy()
        patch[tuple(reached.T)] = _donor_values(case, dose.donor, channel, centre, offsets_mm)
        values.append(part + weight * (patch - part))
    source = {"donor": dose.donor.name if dose.donor else case.name, "donor_voxel": [float(at) for at in centre]}
    return Change(front.box, values, anomaly, {**_drawn(case, site, dose, radius_mm), **source})


def missing_tissue(case: Case, dose: Dose, rng: np.random.Generator) -> Change:
    """A piece at the region's surface is as dark as the darkest of its surroundings, with the image's noise.

    ``strength`` is the share of the signal that is lost.
    """
    site, radius_mm, front, weight, anomaly = _piece(case, dose, rng, on_surface=True)
    values = []
    for part, scale in zip(_floats(case, front.box), case.scales, strict=True):
        grain = rng.standard_normal(part.shape, dtype=np.float32) * np.float32(scale.grain)
        values.append(part + weight * np.minimum(np.float32(scale.dark) + grain - part, 0))
    return Change(front.box, values, anomaly, _drawn(case, site, dose, radius_mm))


def _piece(
    case: Case, dose: Dose, rng: np.random.Generator, *, on_surface: bool
) -> tuple[Site, float, Front, np.ndarray, np.ndarray]:
    """A roundish, sharp piece around a voxel of the region, whatever lies there, with its weight and its mask."""
    site = case.draw_site(rng, on_surface=on_surface)
    radius_mm = case.radius_mm(site, PIECE_SHARE, dose.size_mm)
    everywhere = np.ones(case.labels.shape, dtype=bool)
    front = grow_front(case.name, everywhere, site, radius_mm, _sharp_mm(case), case.spacing_mm, rng, roughness=0.3)
    volume = _ball_now(case, dose, radius_mm)[1]
    weight = np.float32(dose.strength) * front.weight(volume, _sharp_mm(case))
    return site, radius_mm, front, weight, front.region(volume)


def _sharp_mm(case: Case) -> float:
    """Width of a border that is sharp for this image: two of its smallest voxels."""
    return 2.0 * min(case.spacing_mm)


def _draw_centre(
    case: Case,
    donor: Case | None,
    site: Site,
    radius_mm: float,
    offsets_mm: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Where in the donor the patch is taken from: of some random places, tissue that looks foreign and has texture.

    Tissue has intensities of the region's surroundings: air around the patient makes no patch if anything else can.

    Raises:
        InputError: the patch does not fit into the donor, or nowhere else into the case itself.
    """
    source = donor or case
    spacing = np.array(source.spacing_mm)
    low = -offsets_mm.min(axis=0) / spacing
    high = np.array(source.labels.shape) - 1 - offsets_mm.max(axis=0) / spacing
    centres = low + rng.random((DONOR_TRIES, len(spacing))) * (high - low)
    if donor is None:
        centres = np.rint(centres)  # whole voxels: nothing is blurred
        away_mm = np.linalg.norm((centres - site.voxel) * spacing, axis=1)
        enough = min(radius_mm, 0.8 * float(away_mm.max()))
        centres = centres[(away_mm >= enough) & (away_mm > 0)]
    if (high < low).any() or len(centres) == 0:
        raise InputError(
            f"Case {case.name}: a patch of radius {radius_mm:g} mm does not fit into {source.name} at another place. "
            "Ask for a smaller one."
        )
    some = offsets_mm[:: max(1, len(offsets_mm) // 500)]
    here = _donor_values(case, None, 0, np.array(site.voxel, float), some)
    scores = []
    for centre in centres:
        there = _donor_values(case, donor, 0, centre, some)
        foreign = float(np.abs(there - here).mean()) / case.scales[0].sd
        texture = float(there.std()) / case.scales[0].sd
        tissue = float(((there >= case.scales[0].low) & (there <= case.scales[0].high)).mean())
        looks = (min(foreign, 1.5) + min(texture, 1.0)) * tissue**2 + 1e-3 * min(foreign, 1.0)
        scores.append(looks if foreign > 0 else 0.0)
    if max(scores) == 0:
        raise InputError(f"Case {case.name}: no place of {source.name} looks different, so no patch is foreign.")
    return centres[int(np.argmax(scores))]


def _donor_values(
    case: Case, donor: Case | None, channel: int, centre: np.ndarray, offsets_mm: np.ndarray
) -> np.ndarray:
    """Values (float32) of a channel of the donor at offsets from a voxel of it, in the case's intensities."""
    source = donor or case
    places = (centre + offsets_mm / source.spacing_mm).T
    values = ndimage.map_coordinates(
        source.images[channel], places, output=np.float32, order=0 if donor is None else 1, mode="nearest"
    )
    if donor is None or case.is_ct(channel):
        return values
    own, other = case.scales[channel], donor.scales[channel]
    return (values - np.float32(other.median)) * np.float32(own.sd / other.sd) + np.float32(own.median)


# ---- deformation ----


def deformation(case: Case, dose: Dose, rng: np.random.Generator) -> Change:
    """Tissue around a place of the region's surface is pushed aside; image and labels move together.

    The displacement is greatest in the middle, ``strength`` times the radius at severity 1, falls to 0 with two
    derivatives at the radius, which severity does not change, and never folds. Intensities are interpolated by cubic
    splines within the range of their box, labels taken from the nearest voxel.
    """
    site = case.draw_site(rng, on_surface=True)
    radius_mm = case.radius_mm(site, DEFORMATION_SHARE, dose.size_mm)
    direction = rng.standard_normal(case.labels.ndim)
    direction /= np.linalg.norm(direction)
    box = _box_around(site.voxel, case.labels.shape, [radius_mm / size + 4 for size in case.spacing_mm])
    lines = [
        (np.arange(part.start, part.stop) - at) * size
        for part, at, size in zip(box, site.voxel, case.spacing_mm, strict=True)
    ]
    squared = np.asarray(sum(np.meshgrid(*(line**2 for line in lines), indexing="ij", sparse=True))) / radius_mm**2
    everywhere_mm = dose.severity * dose.strength * radius_mm * np.maximum(1 - squared, 0) ** 2
    moved = np.nonzero(everywhere_mm > SMALLEST_SHIFT * min(case.spacing_mm))
    shift_mm = everywhere_mm[moved]
    places = [
        np.clip(at - shift_mm * along / size, 0, length - 1)
        for at, along, size, length in zip(moved, direction, case.spacing_mm, squared.shape, strict=True)
    ]
    values = []
    for part in _floats(case, box):
        coefficients = ndimage.spline_filter(part, order=3, output=np.float32, mode="mirror")
        warped = ndimage.map_coordinates(coefficients, places, order=3, mode="mirror", prefilter=False)
        changed = part.copy()
        changed[moved] = np.clip(warped, part.min(), part.max())
        values.append(changed)
    labels = case.labels[box].copy()
    labels[moved] = labels[tuple(np.rint(at).astype(int) for at in places)]
    anomaly = np.zeros(squared.shape, dtype=bool)
    anomaly[moved] = shift_mm >= 0.5 * min(case.spacing_mm)
    drawn = {
        "voxel": list(site.voxel),
        "radius_mm": round(radius_mm, 4),
        "displacement_mm": round(dose.severity * dose.strength * radius_mm, 4),
        "direction": [round(float(part), 6) for part in direction],
    }
    return Change(box, values, anomaly, drawn, labels)
