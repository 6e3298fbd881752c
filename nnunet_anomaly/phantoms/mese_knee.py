"""What is drawn of a knee of the multi-echo phantom: how it lies at two visits, and the T2 of its femoral cartilage.

T2 belongs to places in the knee, so that it moves with the knee. A place in the cartilage is how far to the lateral
side it lies, its angle around the femur's axis and its relative depth, 0 at the bone and 1 at the joint. T2 in ms is

- from 29 to 35 in the deepest layer to 45 to 54 in the most superficial one, drawn for every knee, smooth between;
- up to 15 % longer where the way from the bone lies near 55 degrees to the main field (magic angle), less so near the
  joint, where fibres have no common direction;
- uneven by a smooth pattern of 1.5 ms (standard deviation);
- raised in focal lesions.

Four years later every one of the twelve subregions has changed by -2 to 4 ms, drawn for every knee and region, and some
lesions are new or have grown by 8 to 20 ms. Subregions are those of ``relaxometry/subregions.py``, but known from the
place: medial and lateral by the middle of the notch, anterior, central and posterior at -30 and 30 degrees around the
femur's axis, deep and superficial at half the thickness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from nnunet_anomaly.phantoms.anatomy import (
    CENTRE_MM,
    HALF_EXTENT_MM,
    KneeFields,
    KneeShape,
    draw_shape,
)
from nnunet_anomaly.phantoms.fields import smooth_step
from nnunet_anomaly.phantoms.knee import SHAPE, Subject, draw_subject, generator
from nnunet_anomaly.relaxometry.subregions import LABELS

VISITS = ("00m", "48m")
CENTRAL_DEGREES = (-30.0, 30.0)
NOTCH_MM = 0.5  # across the knee, the middle of the intercondylar notch
# the axis from side to side that femoral cartilage winds around, in knee coordinates (posterior, inferior), and the
# mean distance of cartilage from it, which turns degrees into mm on its surface
FEMUR_AXIS_MM = (-6.5, -37.0)
FEMUR_RADIUS_MM = 34.0
LESION_EDGE_MM = 3.0

# purposes of random numbers beside those of knee.py and knee_iw.py; never renumber
SIDE, CARTILAGE, FOCAL, POSE, LIE, RECEIVER, SURROUNDINGS, ECHOES, READER = range(20, 29)

# where lesions lie: across the knee (mm to the lateral side) and around the femur (degrees)
_SITES = {
    ("medial", "anterior"): ((-14.0, -6.0), (-62.0, -42.0)),
    ("medial", "central"): ((-28.0, -16.0), (-16.0, 16.0)),
    ("medial", "posterior"): ((-27.0, -17.0), (40.0, 62.0)),
    ("lateral", "anterior"): ((8.0, 20.0), (-66.0, -42.0)),
    ("lateral", "central"): ((16.0, 27.0), (-16.0, 16.0)),
    ("lateral", "posterior"): ((17.0, 27.0), (40.0, 62.0)),
}


@dataclass(frozen=True, eq=False)
class Place:
    """Where points lie in femoral cartilage, float32 arrays of one shape.

    Attributes:
        across_mm: to the lateral side of the knee's middle.
        angle_degrees: around the femur's axis: 0 straight below it, positive towards the back.
        depth: 0 at the bone, 1 at the joint.
    """

    across_mm: np.ndarray
    angle_degrees: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True)
class FocalLesion:
    """A patch of the plate where T2 is raised throughout its depth."""

    number: int
    side: str  # medial or lateral
    part: str  # anterior, central or posterior
    across_mm: float
    angle_degrees: float
    radius_mm: float
    outline: tuple[float, float]  # phases of the bumps in its outline
    raised_ms: tuple[float, float]  # at either visit

    def membership(self, place: Place) -> np.ndarray:
        """1 in the middle, 0.5 at the outline, 0 outside, float32."""
        across = place.across_mm - np.float32(self.across_mm)
        around = np.deg2rad(place.angle_degrees - np.float32(self.angle_degrees)) * np.float32(FEMUR_RADIUS_MM)
        turn = np.arctan2(around, across)
        first, second = self.outline
        outline_mm = self.radius_mm * (1.0 + 0.14 * np.cos(2.0 * turn + first) + 0.10 * np.cos(3.0 * turn + second))
        beyond_mm = np.hypot(across, around) - outline_mm
        return smooth_step(beyond_mm, LESION_EDGE_MM / 2, -LESION_EDGE_MM / 2)


@dataclass(frozen=True, eq=False)
class CartilageT2:
    """T2 of the femoral cartilage of one knee at both visits; all in ms."""

    deep_ms: float
    superficial_ms: float
    magic_angle: float  # by how much, as a share, T2 is longer at 55 degrees to the main field
    pattern: np.ndarray  # (4, 4): of every wave amplitude in ms, waves across and around, phase
    changes_ms: np.ndarray  # (12,) from the first to the second visit, in the order of LABELS
    lesions: tuple[FocalLesion, ...]

    def at_first_visit(self, place: Place) -> np.ndarray:
        """T2 at places at the first visit, float32."""
        rise = smooth_step(place.depth, -0.1, 1.1)
        t2_ms = np.float32(self.deep_ms) + np.float32(self.superficial_ms - self.deep_ms) * rise
        aligned = (3.0 * np.cos(np.deg2rad(place.angle_degrees)) ** 2 - 1.0) / 2.0
        t2_ms *= 1.0 + np.float32(self.magic_angle) * (1.0 - aligned**2) * (1.0 - np.float32(0.6) * place.depth)
        for amplitude_ms, across, around, phase in self.pattern.astype(np.float32):
            t2_ms += amplitude_ms * np.cos(across * place.across_mm / 35 + around * place.angle_degrees / 100 + phase)
        for lesion in self.lesions:
            if lesion.raised_ms[0]:
                t2_ms += np.float32(lesion.raised_ms[0]) * lesion.membership(place)
        return t2_ms

    def change(self, place: Place) -> np.ndarray:
        """T2 at the second visit less that at the first, float32."""
        change_ms = np.append(np.float32(0), self.changes_ms.astype(np.float32))[true_regions(place)]
        for lesion in self.lesions:
            growth_ms = lesion.raised_ms[1] - lesion.raised_ms[0]
            if growth_ms:
                change_ms += np.float32(growth_ms) * lesion.membership(place)
        return change_ms


def true_regions(place: Place) -> np.ndarray:
    """The subregion of every place by the knee's own shape, uint8, numbered as ``subregions.LABELS``."""
    third = np.digitize(place.angle_degrees, CENTRAL_DEGREES)
    is_medial, is_superficial = place.across_mm <= NOTCH_MM, place.depth > 0.5
    return (is_superficial * 6 + is_medial * 3 + third + 1).astype(np.uint8)


def cartilage_place(point: Sequence[np.ndarray], fields: KneeFields, chosen: np.ndarray) -> Place:
    """Where chosen points of a grid (mask) lie in femoral cartilage, or would if it reached there.

    Where femoral and tibial cartilage touch, the plate ends halfway between them, and depth counts to there.
    """
    femoral, tibial = fields.femoral_cartilage[chosen], fields.tibial_cartilage[chosen]
    outward = np.minimum(-femoral, (tibial - femoral) / 2)
    inward = np.maximum(fields.femur[chosen], 0.0)
    depth = inward / np.maximum(inward + np.maximum(outward, 0.0), np.float32(1e-3))
    across, behind, below = (axis[chosen] for axis in point)
    behind, below = behind - np.float32(FEMUR_AXIS_MM[0]), below - np.float32(FEMUR_AXIS_MM[1])
    return Place(across, np.rad2deg(np.arctan2(behind, below)), depth)


@dataclass(frozen=True, eq=False)
class Pose:
    """How a knee lies at a visit, relative to how ``draw_shape`` has laid it."""

    turn: np.ndarray  # (3, 3)
    shift_mm: np.ndarray  # (3,), along slices, rows, columns as in ``knee_coordinates``


@dataclass(frozen=True, eq=False)
class MeseKnee:
    """All that is drawn of a knee, before any grid is known; the same at both visits but for ``poses``."""

    seed: int
    index: int
    subject: Subject
    shape: KneeShape
    t2: CartilageT2
    poses: tuple[Pose, Pose]

    @property
    def side(self) -> str:
        """left or right"""
        return self.subject.side.lower()

    @property
    def name(self) -> str:
        """Of the knee, over all visits."""
        return f"{self.subject.identifier}_{self.side}"

    def case_name(self, visit: int) -> str:
        """As the converter names the case."""
        return f"{self.subject.identifier}_{VISITS[visit]}_{self.side}"

    def record(self) -> dict[str, Any]:
        """The drawn truth of T2, for JSON."""
        t2 = self.t2
        return {
            "deep_ms": round(t2.deep_ms, 4),
            "superficial_ms": round(t2.superficial_ms, 4),
            "magic_angle": round(t2.magic_angle, 4),
            "changes_ms": {name: round(float(t2.changes_ms[number - 1]), 4) for name, number in LABELS.items()},
            "lesions": [
                {
                    "number": lesion.number,
                    "side": lesion.side,
                    "part": lesion.part,
                    "across_mm": round(lesion.across_mm, 3),
                    "angle_degrees": round(lesion.angle_degrees, 3),
                    "radius_mm": round(lesion.radius_mm, 3),
                    "raised_ms": [round(raised, 4) for raised in lesion.raised_ms],
                }
                for lesion in t2.lesions
            ],
        }


def draw_mese_knee(seed: int, index: int) -> MeseKnee:
    """Draw knee ``index`` of a phantom."""
    rng = generator(seed, index, SIDE)
    side = ("LEFT", "RIGHT")[int(rng.integers(2))]
    subject = draw_subject(seed, index)
    left_mm = (1.0 if side == "LEFT" else -1.0) * abs(subject.centre_mm[0])
    subject = replace(subject, side=side, release="0.C.2", centre_mm=(left_mm, *subject.centre_mm[1:]))
    shape = replace(draw_shape(generator(seed, index, SHAPE)), lateral_trochlea_mm=float(rng.uniform(7.0, 11.0)))
    poses = (Pose(np.eye(3), np.zeros(3)), draw_pose(generator(seed, index, POSE)))
    return MeseKnee(seed, index, subject, shape, draw_t2(seed, index), poses)


def draw_pose(rng: np.random.Generator) -> Pose:
    """A knee that is laid anew: turned by some degrees about each axis, and shifted by some mm."""
    degrees = rng.normal(0.0, 2.0, 3).clip(-4.0, 4.0)
    return Pose(rotation(degrees), rng.normal(0.0, 2.0, 3).clip(-4.0, 4.0))


def rotation(degrees: Sequence[float] | np.ndarray) -> np.ndarray:
    """Matrix (3, 3) that turns about the three axes, one after the other."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = [other for other in range(3) if other != axis]
        about = np.eye(3)
        about[first, first] = about[second, second] = np.cos(angle)
        about[first, second], about[second, first] = -np.sin(angle), np.sin(angle)
        turn = about @ turn
    return turn


def draw_t2(seed: int, index: int) -> CartilageT2:
    """Draw the T2 of a knee's femoral cartilage at both visits."""
    rng = generator(seed, index, CARTILAGE)
    amplitude_ms = rng.normal(0.0, 1.5, 4)
    waves = rng.normal(0.0, 1.0, (2, 4)).clip(-2.0, 2.0)
    return CartilageT2(
        deep_ms=float(rng.uniform(29.0, 35.0)),
        superficial_ms=float(rng.uniform(45.0, 54.0)),
        magic_angle=float(rng.uniform(0.05, 0.15)),
        pattern=np.column_stack([amplitude_ms, *waves, rng.uniform(0.0, 2.0 * np.pi, 4)]),
        changes_ms=rng.uniform(-2.0, 4.0, len(LABELS)),
        lesions=draw_lesions(generator(seed, index, FOCAL)),
    )


def draw_lesions(rng: np.random.Generator) -> tuple[FocalLesion, ...]:
    """Up to two lesions that stay as they are, and up to two that are new at the second visit or grow until then."""
    staying, rising = int(rng.choice(3, p=(0.5, 0.35, 0.15))), int(rng.choice(3, p=(0.4, 0.4, 0.2)))
    sites = rng.permutation(len(_SITES))[: staying + rising]
    lesions = []
    for number, site in enumerate(sites, start=1):
        (side, part), (across_mm, angle_degrees) = list(_SITES.items())[site]
        is_new = bool(rng.random() < 0.6)
        before_ms, growth_ms = float(rng.uniform(6.0, 12.0)), float(rng.uniform(8.0, 20.0))
        if number <= staying:
            raised_ms = (before_ms, before_ms)
        else:
            raised_ms = (0.0, growth_ms) if is_new else (before_ms, before_ms + growth_ms)
        outline = rng.uniform(0.0, 2.0 * np.pi, 2)
        lesions.append(
            FocalLesion(
                number=number,
                side=side,
                part=part,
                across_mm=float(rng.uniform(*across_mm)),
                angle_degrees=float(rng.uniform(*angle_degrees)),
                radius_mm=float(rng.uniform(5.0, 9.0)),
                outline=(float(outline[0]), float(outline[1])),
                raised_ms=raised_ms,
            )
        )
    return tuple(lesions)


def posed_coordinates(shape: KneeShape, pose: Pose, axes_mm: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Knee coordinates of a grid on which the knee lies turned and shifted; else as ``anatomy.knee_coordinates``.

    The smooth warp is evaluated at every 2 mm within slices and interpolated, which is exact to 0.01 mm.
    """
    places = _turned(pose, axes_mm)
    coarse_axes, spreads = [np.asarray(axes_mm[0])], []
    for axis in axes_mm[1:]:
        coarse, spread = _coarse(np.asarray(axis))
        coarse_axes.append(coarse)
        spreads.append(spread.astype(np.float32))
    count = shape.warp_mm.shape[1]
    step_mm = 2.0 * HALF_EXTENT_MM / (count - 1)
    control = [(place + np.float32(HALF_EXTENT_MM)) / np.float32(step_mm) for place in _turned(pose, coarse_axes)]
    along_u, along_w, along_v = places
    point = []
    origin = shape.matrix @ (np.asarray(CENTRE_MM) + shape.shift_mm)
    for row, offset, warp in zip(shape.matrix.astype(np.float32), origin, shape.warp_mm, strict=True):
        # control values of cubic B-splines, as in fields.spline_field
        bend = ndimage.map_coordinates(warp.astype(np.float32), control, order=3, mode="grid-constant", prefilter=False)
        bend = np.einsum("ir,zrc,jc->zij", spreads[0], bend, spreads[1], optimize=True)
        point.append(row[0] * along_u + row[1] * along_v + row[2] * along_w - np.float32(offset) + bend)
    return point


def _turned(pose: Pose, axes_mm: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Where the points of a grid were before the knee moved: three arrays, along slices, rows and columns."""
    grid = np.ix_(*(np.asarray(axis, dtype=np.float32) for axis in axes_mm))
    return [
        sum(weight * axis for weight, axis in zip(row, grid, strict=True)) + shift
        for row, shift in zip(pose.turn.astype(np.float32), pose.shift_mm.astype(np.float32), strict=True)
    ]


def _coarse(axis_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A coarser axis of the same extent, and the matrix (fine, coarse) that interpolates linearly from it."""
    count = max(2, int(np.ceil(np.ptp(axis_mm) / 2.0)) + 1)
    position = np.linspace(0.0, count - 1.0, len(axis_mm))
    weights = np.maximum(1.0 - np.abs(position[:, None] - np.arange(count)), 0.0)
    return np.linspace(axis_mm[0], axis_mm[-1], count), weights
