"""The anatomy of a pelvis as signed distances: two femora, two hip bones, sacrum, and what CT shows around them.

Pelvis coordinates, in mm: x to the left, y to the back, z upwards; the origin lies halfway between the centres of the
femoral heads. A side is described once, in (u, v, w) with u away from the midline: both sides are one shape, mirrored,
but for small differences, so that a left and a right femur look alike locally, as in life. Joint spaces are cut out
last, by a distance in mm that is divided by its slope, so that they have the width that was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_anomaly.phantoms.brain import rotation
from nnunet_anomaly.phantoms.fields import (
    capsule,
    ellipsoid,
    occupancy,
    smooth_max,
    smooth_min,
    smooth_step,
    spline_field,
    surface_ramp,
)

FEMUR_LEFT, FEMUR_RIGHT, HIP_LEFT, HIP_RIGHT, SACRUM = 1, 2, 3, 4, 5
LABELS = {
    "femur_left": FEMUR_LEFT,
    "femur_right": FEMUR_RIGHT,
    "hip_left": HIP_LEFT,
    "hip_right": HIP_RIGHT,
    "sacrum": SACRUM,
}
SIDES = ("left", "right")

# Hounsfield units
TISSUE = {
    "air": -1000.0,
    "skin": 15.0,
    "fat": -95.0,
    "muscle": 55.0,
    "bowel": 30.0,
    "urine": 8.0,
    "gas": -850.0,
    "joint": 75.0,
    "disc": 95.0,
    "cortex": 1050.0,
    "marrow": 190.0,
}
HEAD_CENTRE = (88.0, 0.0, 0.0)
# where the socket opens: outwards, to the front and downwards
SOCKET_AXIS = (0.70, -0.32, -0.64)
WARP_EXTENT_MM = 190.0
FAR_MM = 60.0
ACROSS_MIDLINE_MM = 30.0  # how far a side's own grid reaches beyond the midline

Point = Sequence[np.ndarray]


@dataclass(frozen=True)
class SideShape:
    """What makes the left and the right side of one pelvis differ a little."""

    head_radius_mm: float
    neck_shaft_deg: float
    neck_mm: float
    gap_mm: float  # of the hip joint and of the sacroiliac joint


@dataclass(frozen=True)
class PelvisShape:
    """What makes one pelvis differ from another; drawn by ``draw_pelvis``."""

    scale: float
    turn: np.ndarray  # (3, 3), how the pelvis lies in the scanner
    shift_mm: np.ndarray  # (3,)
    warp_mm: np.ndarray  # (3, 6, 6, 6), control values of a smooth deformation along x, y, z on axes z, y, x
    left: SideShape
    right: SideShape
    fat_mm: float
    body_mm: tuple[float, float]  # half width and half depth

    @property
    def symphysis_mm(self) -> float:
        """Width of the space between the pubic bones."""
        return (self.left.gap_mm + self.right.gap_mm) / 2


@dataclass(frozen=True)
class PelvisFields:
    """Distances in mm (float32) to the five bones in the order of ``LABELS``, and the image of all around them."""

    bones_mm: np.ndarray  # (5, slices, rows, columns), negative inside
    surroundings: np.ndarray


def draw_pelvis(rng: np.random.Generator, gap_range_mm: tuple[float, float]) -> PelvisShape:
    """Draw one pelvis; its joints are between ``gap_range_mm`` wide."""
    angles = np.deg2rad(np.clip(rng.normal(0.0, 2.5, 3), -5.0, 5.0))
    shared, own = rng.normal(0.0, 3.0, (3, 6, 6, 6)), rng.normal(0.0, 0.8, (3, 6, 6, 6))
    mirrored = shared[..., ::-1].copy()
    mirrored[0] *= -1.0  # to the left on one side is to the right on the other
    radius, angle, neck = rng.normal(23.5, 1.0), rng.normal(127.0, 3.0), rng.normal(48.0, 1.5)
    sides = [
        SideShape(
            head_radius_mm=float(np.clip(radius + rng.normal(0.0, 0.25), 21.0, 26.0)),
            neck_shaft_deg=float(np.clip(angle + rng.normal(0.0, 1.0), 118.0, 136.0)),
            neck_mm=float(np.clip(neck + rng.normal(0.0, 0.5), 44.0, 52.0)),
            gap_mm=float(rng.uniform(*gap_range_mm)),
        )
        for _ in SIDES
    ]
    return PelvisShape(
        scale=float(np.clip(rng.normal(1.0, 0.04), 0.92, 1.08)),
        turn=rotation(angles),
        shift_mm=np.clip(rng.normal(0.0, 3.0, 3), -6.0, 6.0),
        warp_mm=(shared + mirrored) / 2.0 + own,
        left=sides[0],
        right=sides[1],
        fat_mm=float(rng.uniform(10.0, 24.0)),
        body_mm=(float(rng.uniform(166.0, 174.0)), float(rng.uniform(98.0, 110.0))),
    )


def pelvis_coordinates(shape: PelvisShape, axes_mm: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pelvis coordinates x, y, z (float32) of a grid.

    Args:
        shape: the pelvis.
        axes_mm: the grid's coordinates along slices (up), rows (back) and columns (left), in mm from its middle.

    Returns:
        Arrays with axes (slices, rows, columns).
    """
    up, back, left = (np.asarray(axis, dtype=np.float32) for axis in axes_mm)
    flat = (left[None, None, :], back[None, :, None], up[:, None, None])
    inverse = shape.turn.T
    offset = inverse @ shape.shift_mm
    point = []
    for axis in range(3):
        turned = sum(np.float32(inverse[axis, other]) * flat[other] for other in range(3))
        warped = turned - np.float32(offset[axis]) + spline_field(shape.warp_mm[axis], axes_mm, WARP_EXTENT_MM)
        point.append(warped / np.float32(shape.scale))
    return point


# ---- bones of one side, in (u, v, w) ----


def ball(point: Point, centre: Sequence[float], radius_mm: float) -> np.ndarray:
    """Signed distance to a ball."""
    return np.sqrt(sum((p - np.float32(c)) ** 2 for p, c in zip(point, centre, strict=True))) - np.float32(radius_mm)


def neck_end(side: SideShape) -> np.ndarray:
    """Where the axis of the femoral neck meets that of the shaft."""
    angle = np.deg2rad(180.0 - side.neck_shaft_deg)
    return np.array(HEAD_CENTRE) + side.neck_mm * np.array([np.sin(angle), 0.06, -np.cos(angle)])


def shaft_end(side: SideShape) -> np.ndarray:
    """A point on the axis of the femoral shaft, below any field of view."""
    return neck_end(side) + np.array([-9.0, 5.0, -240.0])


def _femur(point: Point, side: SideShape) -> np.ndarray:
    """Head, neck, shaft, greater and lesser trochanter."""
    end = neck_end(side)
    head = ball(point, HEAD_CENTRE, side.head_radius_mm)
    neck = capsule(point, HEAD_CENTRE, end, 14.5, 17.5)
    shaft = capsule(point, end, shaft_end(side), 17.0, 14.5)
    bone = smooth_min(smooth_min(head, neck, 7.0), shaft, 12.0)
    bone = smooth_min(bone, ellipsoid(point, end + np.array([9.0, 7.0, 9.0]), (12.0, 16.0, 19.0)), 8.0)
    return smooth_min(bone, ellipsoid(point, end + np.array([-14.0, 13.0, -36.0]), (9.0, 8.0, 11.0)), 8.0)


def _along_socket(point: Point) -> np.ndarray:
    """How far a point lies from the head's centre towards the socket's opening."""
    axis = np.array(SOCKET_AXIS) / np.linalg.norm(SOCKET_AXIS)
    return sum(np.float32(part) * (p - np.float32(c)) for part, p, c in zip(axis, point, HEAD_CENTRE, strict=True))


def _socket(point: Point, side: SideShape) -> np.ndarray:
    """The block of bone around the socket, open outwards; the hollow is cut out later."""
    axis = np.array(SOCKET_AXIS) / np.linalg.norm(SOCKET_AXIS)
    centre = np.array(HEAD_CENTRE) + 4.0 * axis
    block = ball(point, centre, side.head_radius_mm + side.gap_mm + 12.0)
    return smooth_max(block, _along_socket(point) - 5.0, 4.0)


def _ilium(point: Point) -> np.ndarray:
    """The iliac wing: a bent plate, thick towards its crest and its back, on a waist above the socket."""
    u, v, w = point
    back = np.maximum(v - 10.0, 0.0)
    middle = 89.0 + 0.42 * (w - 30.0) - 0.45 * v - 0.010 * back * back
    slope = np.sqrt(1.0 + 0.42**2 + (0.45 + 0.020 * back) ** 2)
    outline = ellipsoid((v, w), (0.0, 70.0), (60.0, 50.0))
    waist = capsule((v, w), (2.0, 18.0), (10.0, 62.0), 22.0, 38.0)
    outline = smooth_min(outline, waist, 14.0)
    half_mm = 3.6 + 3.0 * smooth_step(outline, -16.0, -2.0) + 3.0 * smooth_step(v, 25.0, 50.0)
    return smooth_max(np.abs(u - middle) / slope - half_mm, outline, 4.0)


def _pubis_and_ischium(point: Point) -> np.ndarray:
    """Superior ramus, pubic body, ischium with its tuberosity, inferior ramus: a ring around the obturator foramen."""
    bone = capsule(point, (74.0, -16.0, -6.0), (16.0, -50.0, -22.0), 9.5, 7.5)
    bone = smooth_min(bone, ellipsoid(point, (11.0, -49.0, -31.0), (11.0, 8.5, 17.0)), 7.0)
    bone = smooth_min(bone, capsule(point, (80.0, 22.0, -18.0), (62.0, 24.0, -62.0), 13.0, 14.0), 10.0)
    bone = smooth_min(bone, capsule(point, (60.0, 18.0, -70.0), (14.0, -44.0, -42.0), 8.0, 6.5), 7.0)
    return bone


def _hip(point: Point, side: SideShape) -> np.ndarray:
    """Hip bone without its joint spaces."""
    bone = smooth_min(_socket(point, side), _ilium(point), 12.0)
    return smooth_min(bone, _pubis_and_ischium(point), 9.0)


def _profile(height: np.ndarray, heights: Sequence[float], values: Sequence[float]) -> np.ndarray:
    return np.interp(height, heights, values).astype(np.float32)


def _sacrum(point: Point) -> np.ndarray:
    """A wedge, wide above and bent to the back, cut off above and below."""
    x, y, z = point
    middle = _profile(z, (0, 20, 45, 75, 100), (66.0, 72.0, 66.0, 50.0, 30.0))
    half_width = _profile(z, (0, 20, 45, 65, 85, 105), (11.0, 20.0, 44.0, 57.0, 60.0, 54.0))
    half_depth = _profile(z, (0, 40, 75, 100), (7.0, 12.0, 20.0, 24.0))
    across, along = np.abs(x) / half_width, (y - middle) / half_depth
    # thinner towards the sides, where the alae are
    tube = (np.sqrt(across**2 + along**2) - 1.0) * np.sqrt(half_width * half_depth) * 0.75
    return smooth_max(smooth_max(tube, z - 102.0, 6.0), 2.0 - z, 5.0)


# ---- all of it ----


def pelvis_fields(
    shape: PelvisShape, point: Point, textures: Sequence[np.ndarray], spacing_mm: Sequence[float]
) -> PelvisFields:
    """Evaluate a pelvis on a grid, or on some of its slices (two more on either side make slopes whole).

    Args:
        shape: the pelvis.
        point: pelvis coordinates x, y, z of the grid (see ``pelvis_coordinates``).
        textures: two noise fields on this grid, fine and coarse, zero mean and unit standard deviation.
        spacing_mm: voxel size of slices, rows, columns.
    """
    x, y, z = point
    bones = np.full((len(LABELS), *x.shape), FAR_MM, dtype=np.float32)
    for sign, side, femur, hip in (
        (1.0, shape.left, FEMUR_LEFT, HIP_LEFT),
        (-1.0, shape.right, FEMUR_RIGHT, HIP_RIGHT),
    ):
        columns = np.flatnonzero((sign * x).max(axis=(0, 1)) > -ACROSS_MIDLINE_MM)
        if not columns.size:
            continue
        part = (slice(None), slice(None), slice(int(columns[0]), int(columns[-1]) + 1))
        own = (sign * x[part], y[part], z[part])
        femur_mm = in_mm(_femur(own, side), spacing_mm)
        cut = np.maximum(side.gap_mm - femur_mm, shape.symphysis_mm / 2 / shape.scale - own[0])
        bones[femur - 1][part] = femur_mm
        bones[hip - 1][part] = np.maximum(in_mm(_hip(own, side), spacing_mm), cut)
    joint_mm = np.minimum(bones[HIP_LEFT - 1] - shape.left.gap_mm, bones[HIP_RIGHT - 1] - shape.right.gap_mm)
    bones[SACRUM - 1] = np.maximum(in_mm(_sacrum(point), spacing_mm), -joint_mm)
    return PelvisFields(bones, _surroundings(shape, point, textures, bones, spacing_mm))


def in_mm(field: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """An approximate distance divided by its slope: exact in mm near its surface."""
    near = field.clip(-FAR_MM, FAR_MM)
    return near / surface_ramp(near, spacing_mm)[0]


def in_socket(point: Point, sign: float) -> np.ndarray:
    """Whether points lie in the cone of 60 degrees from the head's centre into the socket; ``sign`` 1 left, -1 right.

    bool, of the points' shape.
    """
    own = (sign * point[0], point[1], point[2])
    return -_along_socket(own) > 0.5 * ball(own, HEAD_CENTRE, 0.0)


def _paint(image: np.ndarray, distance_mm: np.ndarray, value: np.ndarray | float, reach_mm: float) -> None:
    """Paint a tissue over ``image`` in place, with partial volume at its edge."""
    image += occupancy(distance_mm, reach_mm) * (value - image)


def _surroundings(
    shape: PelvisShape, point: Point, textures: Sequence[np.ndarray], bones_mm: np.ndarray, spacing_mm: Sequence[float]
) -> np.ndarray:
    """Skin, fat, muscles, the organs of the small pelvis, joint spaces, and a vertebra that bears no label."""
    x, y, z = point
    fine, coarse = textures
    reach_mm = float(np.prod(spacing_mm)) ** (1 / 3)
    half_width, half_depth = shape.body_mm
    across, along = np.abs(x) / half_width, np.abs(y - 8.0) / half_depth
    body = ((across**2.5 + along**2.5) ** 0.4 - 1.0) * np.sqrt(half_width * half_depth)
    image = np.full(x.shape, TISSUE["air"], dtype=np.float32)
    _paint(image, body, TISSUE["skin"], reach_mm)
    fat = TISSUE["fat"] + 6.0 * coarse + 5.0 * fine
    _paint(image, body + 2.0, fat, reach_mm)
    muscle = TISSUE["muscle"] + 5.0 * coarse + 4.0 * fine
    _paint(image, body + shape.fat_mm, np.where(np.abs(coarse) < 0.14, fat, muscle), reach_mm)
    _paint(image, ellipsoid(point, (0.0, -5.0, 25.0), (58.0, 50.0, 85.0)), fat, reach_mm)
    bowel = ellipsoid(point, (0.0, -30.0, 75.0), (70.0, 42.0, 50.0))
    _paint(image, bowel, np.where(coarse > 0.1, TISSUE["bowel"] + 6.0 * fine, fat), reach_mm)
    _paint(image, np.maximum(bowel + 8.0, (1.9 - coarse) * 6.0), TISSUE["gas"], reach_mm)
    _paint(image, ellipsoid(point, (0.0, -22.0, -8.0), (32.0, 22.0, 22.0)), TISSUE["urine"], reach_mm)
    _paint(image, capsule(point, (0.0, 42.0, -60.0), (0.0, 38.0, 30.0), 13.0), TISSUE["bowel"], reach_mm)
    for femur, hip, side in ((0, 2, shape.left), (1, 3, shape.right)):
        _paint(image, np.maximum(bones_mm[femur] - side.gap_mm - 2.0, bones_mm[hip] - 8.0), TISSUE["joint"], reach_mm)
    _paint(image, ellipsoid(point, (0.0, 24.0, 108.0), (26.0, 19.0, 10.0)), TISSUE["disc"], reach_mm)
    vertebra = in_mm(smooth_max(ellipsoid((x, y), (0.0, 20.0), (26.0, 19.0)), 110.0 - z, 4.0), spacing_mm)
    _paint(image, vertebra, TISSUE["cortex"], reach_mm)
    _paint(image, vertebra + 1.3, 0.8 * TISSUE["marrow"] + 30.0 * fine, reach_mm)
    return image
