"""One case of the knee phantom for bone marrow lesions: an intermediate-weighted, fat-suppressed image, and its truth.

The knees are those of ``knee.py`` (the same seed and case is the same knee); contrast, slices and what lies in the
marrow differ. Slices are thick: the signal is made on slices three times finer and averaged, so that voxels hold what a
thick slice holds of each tissue. What makes such images hard (Qin et al. 2024), each drawn anew for every case:

- Marrow has texture: trabeculae of 8 to 16 % of its intensity, and patches of red marrow toward the shaft, 10 to 60 %
  brighter.
- Vessels, in every knee: 4 to 8 tortuous tubes of 0.6 to 1.5 mm enter the bones and branch, 1.5 to 4 times as bright
  as marrow. They belong to no lesion.
- Incomplete fat suppression, in two of five knees: towards one border of the field of view fat and marrow are up to
  0.1 to 0.5 of the way to what they are without suppression, from 10 to 40 mm inside the border on.
- Lesions of low contrast without a clear edge: 1 to 3 of 100 to 6000 mm^3 (log-uniform), of irregular outline, most of
  them on the joint surface. Intensity falls off over 2 to 5 mm; the peak lies 1.5 to 5 robust standard deviations of
  the case's marrow above what would be there without the lesion.

The truth of a lesion is where its own contribution to the image, averaged over the thick slice, exceeds half of its
peak, inside the femur.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.phantoms.anatomy import HALF_EXTENT_MM, KneeShape, draw_shape, knee_coordinates, knee_fields
from nnunet_anomaly.phantoms.fields import occupancy, smooth_noise, smooth_step, spline_field
from nnunet_anomaly.phantoms.knee import (
    FIELD_OF_VIEW_MM,
    LESIONS,
    SHAPE,
    SUBJECT,
    TEXTURE,
    KneeCase,
    Subject,
    compose_slab,
    draw_scanner,
    draw_subject,
    generator,
    grid_axes,
    growth_plates,
    near_surface,
    receive,
)
from nnunet_anomaly.phantoms.knee_iw_findings import (
    PLATE_MM,
    BoneMap,
    MarrowLesion,
    draw_lesions,
    draw_vessels,
    tube_points,
    tube_share,
)

GRID = (36, 256, 256)
FULL_GRID = (36, 448, 448)
SUBSLICES = 3
FEMUR, BML = 1, 2
NOISE_RANGE = (3.5, 6.0)
SLAB_VOXELS = 1_200_000

# purposes of random numbers beside those of knee.py; never renumber
VESSELS, LOOK = SUBJECT + 1, SUBJECT + 2

# intensities with fat suppressed: fat and marrow dark, cortex black, cartilage rather bright, fluid brightest
TISSUE = {
    "air": 0.0,
    "fat": 48.0,
    "skin": 95.0,
    "muscle": 112.0,
    "vessel": 140.0,
    "synovium": 88.0,
    "hoffa": 58.0,
    "tendon": 22.0,
    "meniscus": 32.0,
    "fluid": 310.0,
    "cartilage": 158.0,
    "cortex": 20.0,
    "marrow": 68.0,
}
UNSUPPRESSED = 300.0  # fat and marrow where fat suppression fails altogether


@dataclass(frozen=True, eq=False)
class Suppression:
    """Where fat suppression fails: beyond a bent plane towards a border of the field of view."""

    axis: int  # slices, rows, columns
    sign: int
    start_mm: float  # where it begins to fail, from the middle
    width_mm: float  # over which it gets as bad as it gets
    bend_mm: np.ndarray  # (5, 5, 5) control points
    strength: float  # 1: none of the fat is suppressed

    def failure(self, axes_mm: Sequence[np.ndarray]) -> np.ndarray:
        """How far the suppression fails, float32 in [0, ``strength``]."""
        along = np.moveaxis(self.sign * np.asarray(axes_mm[self.axis])[:, None, None], 0, self.axis)
        outward = along + spline_field(self.bend_mm, axes_mm, HALF_EXTENT_MM)
        share = smooth_step(outward, self.start_mm, self.start_mm + self.width_mm)
        return (self.strength * share).astype(np.float32)


@dataclass(frozen=True, eq=False)
class IwKnee:
    """All that is drawn of a case, before any grid is known."""

    seed: int
    index: int
    subject: Subject
    shape: KneeShape
    tissue: Mapping[str, float]
    trabeculae: float  # standard deviation, as a share of marrow
    red_marrow: float  # how much brighter its patches are, as a share
    blood: float  # intensity of vessels in marrow
    vessels: list[np.ndarray]
    suppression: Suppression | None
    lesions: list[MarrowLesion]


def draw_knee(seed: int, index: int, has_lesions: bool) -> IwKnee:
    """Draw case ``index``; a knee is the same with and without lesions."""
    shape = draw_shape(generator(seed, index, SHAPE))
    shape = replace(shape, effusion=0.4 * shape.effusion)  # the film over the cartilage is thin in most knees
    bones = BoneMap.of(shape, FIELD_OF_VIEW_MM)
    rng = generator(seed, index, LOOK)
    tissue = {
        name: value * float(np.exp(np.clip(rng.normal(0.0, 0.06), -0.12, 0.12))) for name, value in TISSUE.items()
    }
    return IwKnee(
        seed=seed,
        index=index,
        subject=draw_subject(seed, index),
        shape=shape,
        tissue=tissue,
        trabeculae=float(rng.uniform(0.08, 0.16)),
        red_marrow=float(rng.uniform(0.1, 0.6)),
        blood=tissue["marrow"] * float(rng.uniform(1.5, 4.0)),
        suppression=_draw_suppression(rng) if rng.uniform() < 0.4 else None,
        vessels=draw_vessels(bones, generator(seed, index, VESSELS)),
        lesions=draw_lesions(bones, generator(seed, index, LESIONS)) if has_lesions else [],
    )


def _draw_suppression(rng: np.random.Generator) -> Suppression:
    axis, sign = int(rng.integers(3)), int(rng.choice((-1, 1)))
    return Suppression(
        axis=axis,
        sign=sign,
        start_mm=FIELD_OF_VIEW_MM[axis] / 2 - float(rng.uniform(10.0, 40.0)),
        width_mm=float(rng.uniform(20.0, 40.0)),
        bend_mm=rng.normal(0.0, 22.0, (5, 5, 5)),
        strength=float(rng.uniform(0.1, 0.5)),
    )


def make_iw_case(seed: int, index: int, has_lesions: bool, grid: Sequence[int] = GRID) -> KneeCase:
    """Make case ``index``.

    Args:
        seed: of the whole phantom.
        index: of the case, from 0.
        has_lesions: whether the knee has lesions, 1 to 3; all else is the same with and without.
        grid: number of slices, rows and columns over the field of view of 112 x 140 x 140 mm.
    """
    knee = draw_knee(seed, index, has_lesions)
    axes_mm, spacing_mm = grid_axes(grid, knee.subject.side)
    signal = make_signal(knee, grid)
    sensitivity, sigma = draw_scanner(axes_mm, seed, index, NOISE_RANGE)
    labels = femur_labels(signal.femur)
    clean = sensitivity * signal.image
    marrow = (labels == FEMUR) & (signal.marrow > 0.99)
    sd = robust_sd(receive(clean, sigma, seed, index)[marrow])
    instances = np.zeros(labels.shape, dtype=np.uint8)
    records: list[dict[str, Any]] = []
    strongest = np.zeros(labels.shape, dtype=np.float32)
    for lesion, share in zip(knee.lesions, signal.lesions, strict=True):
        received = sensitivity * share
        peak = float(received.max())
        truth = (received > 0.5 * peak) & (labels == FEMUR)
        if not truth.any():  # too small for this grid
            continue
        relative = received / np.float32(peak)
        clean += np.float32(lesion.contrast * sd) * relative
        instance = len(records) + 1
        instances[truth & (relative > strongest)] = instance
        np.maximum(strongest, relative, out=strongest)
        records.append(_record(lesion, instance, sd))
    labels[instances > 0] = BML
    for record in records:
        voxels = int((instances == record["instance"]).sum())
        record |= {"voxels": voxels, "volume_mm3": round(float(voxels * np.prod(spacing_mm)), 3)}
    return KneeCase(knee.subject, spacing_mm, receive(clean, sigma, seed, index), labels, instances, records)


def _record(lesion: MarrowLesion, instance: int, sd: float) -> dict[str, Any]:
    return {
        "instance": instance,
        "site": lesion.site,
        "compartment": lesion.compartment,
        "contrast": round(lesion.contrast, 4),
        "peak": round(lesion.contrast * sd, 3),
        "radius_mm": round(lesion.radius_mm, 3),
        "edge_mm": round(lesion.edge_mm, 3),
        "drawn_mm3": round(lesion.volume_mm3, 1),
    }


def robust_sd(values: np.ndarray) -> float:
    """1.4826 times the median distance from the median: a Gaussian's standard deviation; not 0."""
    centre = np.median(values) if values.size else 0.0
    return max(1.4826 * float(np.median(np.abs(values - centre))) if values.size else 0.0, 1.0)


def femur_labels(share: np.ndarray) -> np.ndarray:
    """Label map (uint8) with the femur where it fills at least half of a voxel, without parts that lie apart."""
    mask = share >= 0.5
    parts = label_components(mask)
    labels = np.zeros(mask.shape, dtype=np.uint8)
    if parts.sizes_voxels.size:
        labels[mask] = np.where(parts.numbers == parts.sizes_voxels.argmax(), FEMUR, 0)
    return labels


# ---- signal


@dataclass(frozen=True, eq=False)
class Signal:
    """What a knee gives on one grid before coil and noise, all float32."""

    image: np.ndarray  # without lesions
    femur: np.ndarray  # share of a voxel in the femur
    marrow: np.ndarray  # share of a voxel in the femur's marrow
    vessels: np.ndarray  # share of a voxel in vessels
    lesions: list[np.ndarray]  # of each: its strength (at most 1) times the share of marrow


def make_signal(knee: IwKnee, grid: Sequence[int], subslices: int = SUBSLICES) -> Signal:
    """Evaluate a knee on ``subslices`` times finer slices and average them, some slices at a time."""
    fine_grid = (grid[0] * subslices, *grid[1:])
    axes_mm, fine_mm = grid_axes(fine_grid, knee.subject.side)
    rng = generator(knee.seed, knee.index, TEXTURE)
    # trabeculae run rather from head to foot: rows count as shorter than they are
    noises = [
        smooth_noise(fine_grid, (fine_mm[0], along * fine_mm[1], fine_mm[2]), rng, scale_mm)
        for scale_mm, along in ((0.7, 1.0), (3.5, 1.0), (0.35, 0.45))
    ]
    blood = tube_points(knee.vessels, rng)
    whole = [np.zeros(grid, dtype=np.float32) for _ in range(4 + len(knee.lesions))]
    step = max(2, SLAB_VOXELS // (subslices * grid[1] * grid[2]))
    for first in range(0, grid[0], step):
        last = min(first + step, grid[0])
        # one fine slice more on either side, for the slopes
        wide = slice(max(0, first * subslices - 1), min(fine_grid[0], last * subslices + 1))
        parts = _fine_slab(knee, [axes_mm[0][wide], *axes_mm[1:]], fine_mm, [noise[wide] for noise in noises], blood)
        skip = first * subslices - wide.start
        for target, part in zip(whole, parts, strict=True):
            kept = part[skip : skip + (last - first) * subslices]
            target[first:last] = kept.reshape(last - first, subslices, *grid[1:]).mean(axis=1)
    image, femur, marrow, vessels, *lesions = whole
    return Signal(image, femur, marrow, vessels, lesions)


def _fine_slab(
    knee: IwKnee,
    axes_mm: Sequence[np.ndarray],
    spacing_mm: Sequence[float],
    noises: Sequence[np.ndarray],
    blood: tuple[np.ndarray, np.ndarray],
) -> list[np.ndarray]:
    """Image, femur, marrow, vessels and lesions (see ``Signal``) on some fine slices."""
    point = knee_coordinates(knee.shape, axes_mm)
    vessels = tube_share(*blood, axes_mm)
    marrow = marrow_signal(knee, point, noises)
    tissue: dict[str, Any] = dict(knee.tissue)
    if knee.suppression is not None:
        failure = knee.suppression.failure(axes_mm)
        marrow += failure * (UNSUPPRESSED - marrow)
        for name in ("fat", "hoffa"):
            tissue[name] = knee.tissue[name] + failure * np.float32(UNSUPPRESSED - knee.tissue[name])
    marrow += vessels * (np.maximum(knee.blood, marrow) - marrow)
    reach_mm = float(np.prod(spacing_mm)) ** (1 / 3)
    fields = knee_fields(knee.shape, point, noises[:2], marrow, reach_mm, tissue)
    fields.surroundings[:] *= 1.0 + 0.03 * noises[0] + 0.03 * noises[1]
    # the plate below the joint is thin, the wall of the shaft thick, and both uneven
    cortex_mm = PLATE_MM + 1.4 * smooth_step(np.abs(point[2] + 8.0), 32.0, 65.0)
    cortex_mm *= np.maximum(1.0 + 0.3 * noises[1], 0.2)
    image = compose_slab(fields, marrow, spacing_mm, tissue, cortex_mm)
    outside_mm, edge_mm = near_surface(fields.femur, spacing_mm)
    share = occupancy(outside_mm + cortex_mm, edge_mm)
    parts = [image, occupancy(outside_mm, edge_mm), share, vessels]
    for lesion in knee.lesions:
        strength = np.zeros(image.shape, dtype=np.float32)
        box = lesion.box(axes_mm)
        if box is not None:
            strength[box] = lesion.membership([axis[part] for axis, part in zip(axes_mm, box, strict=True)])
        parts.append(strength * share)
    return parts


def marrow_signal(knee: IwKnee, point: Sequence[np.ndarray], noises: Sequence[np.ndarray]) -> np.ndarray:
    """Suppressed fatty marrow with trabeculae, patches of red marrow toward the shafts, and growth plates, float32."""
    middle, coarse, trabecular = noises
    pattern = 1.0 + knee.trabeculae * (0.8 * trabecular + 0.45 * middle) + 0.06 * coarse
    toward_shaft = np.maximum(smooth_step(-point[2], 28.0, 58.0), smooth_step(point[2], 14.0, 40.0))
    pattern += knee.red_marrow * toward_shaft * smooth_step(coarse + 0.35 * middle, -0.6, 1.4)
    for scar in growth_plates(point, coarse):
        pattern -= 0.16 * scar
    return (knee.tissue["marrow"] * np.maximum(pattern, 0.2)).astype(np.float32)
