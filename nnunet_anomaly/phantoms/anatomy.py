"""The shape of a knee as signed distances: bones, cartilages and what surrounds them, each knee a little different.

Knee coordinates, in mm: u from medial to lateral, v from anterior to posterior, w from superior to inferior; the origin
lies between the tibial spines, at the height of the tibial plateau. Sizes follow one segmented right knee at DESS
resolution and textbook proportions: the medial condyle reaches further back and the medial plateau is larger and
dished, the lateral trochlea is higher and the lateral plateau domed, the fibula is lateral and posterior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_anomaly.phantoms.fields import (
    capsule,
    ellipsoid,
    extrusion,
    occupancy,
    smooth_max,
    smooth_min,
    smooth_step,
    spline_field,
)

# where the knee's origin lies, relative to the middle of the field of view
CENTRE_MM = (0.0, 5.0, 9.0)
HALF_EXTENT_MM = 84.0

# intensities of a water-excited DESS image: fat and marrow dark, cartilage bright, fluid brightest, cortex nearly black
TISSUE = {
    "air": 0.0,
    "fat": 88.0,
    "skin": 120.0,
    "muscle": 142.0,
    "vessel": 250.0,
    "synovium": 135.0,
    "hoffa": 98.0,
    "tendon": 34.0,
    "meniscus": 40.0,
    "fluid": 340.0,
    "cartilage": 235.0,
    "cortex": 16.0,
    "marrow": 74.0,
}

Point = Sequence[np.ndarray]
Tissue = Mapping[str, "float | np.ndarray"]


@dataclass(frozen=True)
class KneeShape:
    """What makes one knee differ from another; drawn by ``draw_shape``."""

    matrix: np.ndarray  # (3, 3), from millimetres around the centre of the image to knee coordinates
    shift_mm: np.ndarray  # (3,)
    warp_mm: np.ndarray  # (3, n, n, n) control points of a smooth displacement
    femoral_cartilage_mm: float
    tibial_cartilage_mm: float
    fat_mm: float  # thickness of the layer under the skin
    effusion: float  # 0 dry, 1 much fluid in the joint
    lateral_trochlea_mm: float = 0.0  # how much wider the lateral facet is than the medial one; it reaches higher too


@dataclass(frozen=True)
class KneeFields:
    """Signed distances (float32, one shape), and the image of all that is neither labelled bone nor cartilage."""

    femur: np.ndarray
    tibia: np.ndarray
    femoral_cartilage: np.ndarray  # negative also inside the bone: paint bone over it
    tibial_cartilage: np.ndarray
    surroundings: np.ndarray


def draw_shape(rng: np.random.Generator) -> KneeShape:
    """Draw one knee: size, proportions, joint angles, position, and a smooth deformation of a few mm."""
    flexion, varus, rotation = np.deg2rad(rng.normal(0.0, [4.0, 2.0, 4.0]).clip(-8.0, 8.0))
    turn_u = np.array([[1, 0, 0], [0, np.cos(flexion), -np.sin(flexion)], [0, np.sin(flexion), np.cos(flexion)]])
    turn_v = np.array([[np.cos(varus), 0, np.sin(varus)], [0, 1, 0], [-np.sin(varus), 0, np.cos(varus)]])
    turn_w = np.array([[np.cos(rotation), -np.sin(rotation), 0], [np.sin(rotation), np.cos(rotation), 0], [0, 0, 1]])
    size = rng.normal(1.0, 0.05) * rng.normal(1.0, 0.02, 3)
    return KneeShape(
        matrix=turn_u @ turn_v @ turn_w @ np.diag(1.0 / size.clip(0.88, 1.12)),
        shift_mm=rng.normal(0.0, 2.0, 3).clip(-4.0, 4.0),
        warp_mm=rng.normal(0.0, 2.2, (3, 7, 7, 7)),
        femoral_cartilage_mm=float(rng.uniform(2.6, 3.3)),
        tibial_cartilage_mm=float(rng.uniform(2.6, 3.3)),
        fat_mm=float(rng.uniform(3.0, 8.0)),
        effusion=float(rng.uniform(0.2, 1.0)),
    )


def knee_coordinates(shape: KneeShape, axes_mm: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Knee coordinates (u, v, w) of a regular image grid.

    Args:
        shape: the knee.
        axes_mm: the grid's coordinates along its axes (slices, rows, columns), in mm from the centre of the image, as
            (u, w, v): slices from medial to lateral, rows downwards, columns to the back.

    Returns:
        u, v, w: float32 arrays with axes (slices, rows, columns).
    """
    along_u, along_w, along_v = (np.asarray(axis, dtype=np.float32) for axis in axes_mm)
    flat = (along_u[:, None, None], along_v[None, None, :], along_w[None, :, None])
    origin = shape.matrix @ (np.asarray(CENTRE_MM) + shape.shift_mm)
    point = []
    for row, offset, warp in zip(shape.matrix, origin, shape.warp_mm, strict=True):
        straight = sum(np.float32(weight) * axis for weight, axis in zip(row, flat, strict=True))
        point.append(straight - np.float32(offset) + spline_field(warp, axes_mm, HALF_EXTENT_MM))
    return point


def _profile(height: np.ndarray, heights: Sequence[float], values: Sequence[float]) -> np.ndarray:
    """A size that changes with height, interpolated with rounded corners, float32."""
    fine = np.arange(-130.0, 130.0, 1.0)
    window = np.hanning(15)
    padded = np.pad(np.interp(fine, heights, values), 7, mode="edge")
    rounded = np.convolve(padded, window / window.sum(), mode="valid")
    return np.interp(height, fine, rounded).astype(np.float32)


def _notch(point: Point) -> np.ndarray:
    """The intercondylar notch: a tunnel between the condyles, open at the back; its roof rises towards the back."""
    u, v, w = point
    arch = ellipsoid((u, w), (0.5, -9.0), (9.5, 20.0))
    return smooth_max(arch, -9.0 - 0.35 * (w + 9.0) - v, 5.0)


def _condyles(point: Point) -> tuple[np.ndarray, np.ndarray]:
    """Distances from the middle planes of the medial and lateral condyle, which part towards the back."""
    u, v, _ = point
    return u + 21.5 + 0.10 * v, u - 21.0 - 0.08 * v


def _tube(across: np.ndarray, along: np.ndarray, half_width: np.ndarray, half_depth: np.ndarray) -> np.ndarray:
    """Shaft or plateau whose cross-section, between an ellipse and a rectangle, changes with height."""
    across2, along2 = (across / half_width) ** 2, (along / half_depth) ** 2
    ratio = np.sqrt(np.sqrt(across2 * across2 + along2 * along2 + across2 * along2))
    return (ratio - 1.0) * np.sqrt(half_width * half_depth)


def _femur(point: Point) -> np.ndarray:
    """Distal femur: two condyles, the trochlea between them in front, epicondyles and shaft, less the notch."""
    u, v, w = point
    plane = (v, w)
    medial, lateral = _condyles(point)
    bone = smooth_min(
        extrusion(capsule(plane, (5.0, -26.0), (-13.0, -29.5), 20.5, 22.5), medial, 14.5, 7.0),
        extrusion(capsule(plane, (2.0, -25.5), (-17.0, -30.5), 19.5, 24.0), lateral, 14.0, 7.0),
        4.0,
    )
    bone = smooth_min(bone, extrusion(capsule(plane, (-6.0, -30.0), (-15.0, -31.5), 18.0, 19.5), u, 12.0, 6.0), 7.0)
    half_width = _profile(w, (-90, -62, -46, -34, -20), (14.5, 16.5, 23.5, 31.0, 32.0))
    half_depth = _profile(w, (-90, -58, -42, -30), (15.5, 16.0, 18.5, 21.0))
    middle = _profile(w, (-90, -50, -30), (-19.0, -17.0, -13.0))
    bone = smooth_min(bone, smooth_max(_tube(u, v - middle, half_width, half_depth), w + 27.0, 8.0), 9.0)
    bone = smooth_min(bone, ellipsoid(point, (-33.0, -2.0, -32.0), (7.0, 9.0, 10.0)), 8.0)
    bone = smooth_min(bone, ellipsoid(point, (32.0, 1.0, -29.0), (6.0, 8.0, 9.0)), 8.0)
    return smooth_max(bone, -_notch(point), 4.0)


def _tibia(point: Point) -> np.ndarray:
    """Proximal tibia: dished medial and domed lateral plateau, spines, tuberosity and shaft."""
    u, v, w = point
    side = np.tanh(u / 8.0)
    half_width = _profile(w, (0, 7, 16, 32, 52, 90), (35.0, 36.5, 33.0, 22.0, 15.5, 14.0))
    half_depth = _profile(w, (0, 7, 16, 32, 52, 90), (24.5, 25.5, 23.0, 19.0, 16.5, 15.5)) * (1.0 - 0.07 * side)
    middle = _profile(w, (0, 16, 40, 90), (1.5, 0.0, -4.0, -5.0)) - 1.5 * side
    medial_dish = np.maximum(1.0 - ((u + 20.0) / 15.0) ** 2 - ((v - 1.0) / 22.0) ** 2, 0.0)
    lateral_dome = np.maximum(1.0 - ((u - 20.0) / 14.0) ** 2 - (v / 20.0) ** 2, 0.0)
    spines = 6.5 * np.exp(-(((u + 5.0) / 3.5) ** 2) - ((v + 2.0) / 8.0) ** 2)
    spines += 5.5 * np.exp(-(((u - 5.0) / 3.5) ** 2) - ((v - 1.0) / 7.0) ** 2)
    top = 0.07 * v + 1.6 * medial_dish - 0.9 * lateral_dome - spines
    bone = smooth_max(_tube(u, v - middle, half_width, half_depth), top - w, 5.0)
    bone = smooth_min(bone, ellipsoid(point, (4.0, -19.0, 32.0), (9.0, 7.0, 14.0)), 8.0)
    return smooth_max(bone, -capsule((u, v), (0.0, 27.0), (0.0, 40.0), 7.0), 4.0)


def _femoral_cartilage(point: Point, femur: np.ndarray, shape: KneeShape) -> np.ndarray:
    """Cartilage over the condyles and the trochlea, thinning out towards its margin and the notch."""
    u, v, w = point
    angle = np.rad2deg(np.arctan2(v + 6.0, w + 28.0))  # 0 below the condyles, positive towards the back
    medial, lateral = _condyles(point)
    inside = np.maximum(14.5 - np.abs(medial), 14.0 - np.abs(lateral))
    trochlea = 28.0 - np.abs(u - 1.5) - 40.0 * smooth_step(angle, -48.0, -18.0)
    if shape.lateral_trochlea_mm:
        # the medial facet is narrower, and the upper margin slants towards it
        narrower = shape.lateral_trochlea_mm * smooth_step(u, 12.0, -12.0)
        trochlea -= narrower
        upper = angle - 3.0 * narrower
    else:
        upper = angle
    inside = np.minimum(np.maximum(inside, trochlea), _notch(point) - 0.5)
    taper = smooth_step(inside, 0.0, 5.0)
    taper *= smooth_step(angle, 112.0, 95.0) * smooth_step(upper, -113.0, -98.0)
    return femur + 1.0 - (shape.femoral_cartilage_mm + 1.0) * taper


def _tibial_cartilage(point: Point, tibia: np.ndarray, thickness_mm: float) -> np.ndarray:
    """Two plates of cartilage on the plateau; the lateral one is smaller and thicker."""
    u, v, w = point
    medial = smooth_step(ellipsoid((u, v), (-20.5, 1.5), (14.0, 21.0)), 0.0, -4.0)
    lateral = smooth_step(ellipsoid((u, v), (20.0, 0.0), (13.0, 17.5)), 0.0, -4.0) * 1.1
    taper = np.maximum(medial, lateral) * smooth_step(w, 8.0, 5.0)
    return tibia + 1.0 - (thickness_mm + 1.0) * taper


def _paint(image: np.ndarray, distance_mm: np.ndarray, value: np.ndarray | float, reach_mm: float) -> None:
    """Paint a tissue over ``image`` in place, with partial volume at its edge; only the box around it is touched."""
    inside = distance_mm < reach_mm / 2
    if not inside.any():
        return
    box = []
    for axis in range(3):
        places = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(places[0]), int(places[-1]) + 1))
    in_box: Any = (Ellipsis, *box)
    if np.shape(value)[-3:] == inside.shape:
        value = np.asarray(value)[in_box]
    part = image[in_box]
    part += occupancy(distance_mm[in_box], reach_mm) * (value - part)


def _soft_tissue(
    shape: KneeShape, point: Point, textures: Sequence[np.ndarray], reach_mm: float, tissue: Tissue
) -> np.ndarray:
    """Leg outline, fat, muscles and vessels; ``textures`` are two noise fields, a fine and a coarse one.

    Tissues that are arrays with an axis more, such as one value an echo, make an image with that axis first.
    """
    u, v, w = point
    fine, coarse = textures
    leg = _tube(u, v + 1.0, 54.0 + 0.05 * np.abs(w), 63.0 + 0.04 * np.abs(w))
    image = np.zeros(np.broadcast_shapes(u.shape, np.shape(tissue["skin"])), dtype=u.dtype)
    _paint(image, leg, tissue["skin"], reach_mm)
    _paint(image, leg + 1.8, tissue["fat"] * (1.0 + 0.05 * fine + 0.10 * coarse), reach_mm)
    bellies = [  # start, end, radii: hamstrings, gastrocnemius, vasti, anterior leg
        ((-22.0, 36.0, -100.0), (-24.0, 40.0, 0.0), 17.0, 8.0),
        ((22.0, 34.0, -100.0), (33.0, 28.0, 4.0), 15.0, 5.0),
        ((-15.0, 34.0, -28.0), (-15.0, 36.0, 100.0), 8.0, 22.0),
        ((15.0, 33.0, -28.0), (15.0, 36.0, 100.0), 8.0, 21.0),
        ((-24.0, -18.0, -110.0), (-27.0, -24.0, -42.0), 25.0, 6.0),
        ((23.0, -20.0, -110.0), (24.0, -26.0, -56.0), 24.0, 6.0),
        ((22.0, -8.0, 38.0), (24.0, -2.0, 110.0), 4.0, 20.0),
    ]
    fascia = leg + shape.fat_mm
    muscle = tissue["muscle"] * (1.0 + 0.06 * fine + 0.06 * coarse)
    for start, end, first_radius, last_radius in bellies:
        belly = smooth_max(capsule(point, start, end, first_radius, last_radius) + 1.2 * coarse, fascia, 3.0)
        # a thin dark sheath of fat and fascia parts neighbouring muscles
        _paint(image, belly - 0.9, tissue["fat"], reach_mm)
        _paint(image, belly, muscle, reach_mm)
    for middle, radius in ((0.0, 4.0), (8.0, 3.0)):
        vessel = capsule(point, (middle, 33.0, -100.0), (middle - 2.0, 34.0, 100.0), radius)
        _paint(image, vessel - 0.8, tissue["tendon"] * 2.0, reach_mm)
        _paint(image, vessel, tissue["vessel"], reach_mm)
    return image


def _joint(
    shape: KneeShape,
    point: Point,
    bones: Sequence[np.ndarray],
    image: np.ndarray,
    reach_mm: float,
    tissue: Tissue,
) -> None:
    """Paint capsule, fat pad, fluid, menisci and ligaments in place; ``bones``: femur, tibia, femoral cartilage."""
    u, v, w = point
    femur, tibia, femoral_cartilage = bones
    capsular = smooth_max(
        smooth_max(femur - 5.0, ellipsoid(point, (0.0, -6.0, -22.0), (44.0, 46.0, 36.0)), 4.0), w - 4, 2
    )
    _paint(image, capsular, tissue["synovium"], reach_mm)
    gap = smooth_max(smooth_max(-4.0 - w, w - 4.0, 2.0) - 6.0, ellipsoid((u, v), (0.0, 1.0), (36.0, 25.0)), 2.0)
    _paint(image, gap, tissue["synovium"], reach_mm)
    _paint(image, capsule(point, (2.0, -36.0, -14.0), (2.0, -29.0, 12.0), 10.0, 7.0), tissue["hoffa"], reach_mm)
    recess = ellipsoid(point, (0.0, -37.0, -62.0), (16.0, 1.0 + 4.0 * shape.effusion, 13.0))
    _paint(image, recess, tissue["fluid"], reach_mm)
    _paint(image, femoral_cartilage - 0.4 - 1.4 * shape.effusion, 0.75 * tissue["fluid"], reach_mm)
    rim = np.minimum(
        np.abs(ellipsoid((u, v), (-20.5, 1.5), (16.0, 23.5)) + 3.5),
        np.abs(ellipsoid((u, v), (20.0, 0.0), (15.5, 20.0)) + 4.0),
    )
    meniscus = smooth_max(smooth_max(rim - 5.0, tibia - 9.0, 1.0), 9.0 - np.abs(u), 1.0)
    meniscus = smooth_max(meniscus, np.abs(w + 4.0) - 6.0, 1.0)
    _paint(image, meniscus, tissue["meniscus"], reach_mm)
    _paint(image, capsule(point, (7.0, 9.0, -27.0), (-2.0, -11.0, -3.0), 3.2, 4.0), 2.0 * tissue["tendon"], reach_mm)
    _paint(image, capsule(point, (-6.0, -3.0, -22.0), (-1.0, 17.0, -14.0), 4.2), tissue["tendon"], reach_mm)
    _paint(image, capsule(point, (-1.0, 17.0, -14.0), (0.0, 25.0, 6.0), 4.2, 3.6), tissue["tendon"], reach_mm)
    for start, end in (((-39.0, -1.0, -32.0), (-31.0, -3.0, 34.0)), ((38.0, 3.0, -28.0), (36.0, 17.0, 10.0))):
        _paint(image, smooth_max(capsule(point, start, end, 2.2), -femur, 1.0), tissue["tendon"], reach_mm)


def _extensors_and_fibula(point: Point, marrow: np.ndarray, image: np.ndarray, reach_mm: float, tissue: Tissue) -> None:
    """Paint in place what looks like labelled bone but carries no label: patella and fibula; and their tendons."""
    u, v, w = point
    ligament = extrusion(capsule((v, w), (-49.0, -22.0), (-29.0, 30.0), 2.4), u - 2.0, 13.0, 2.0)
    quadriceps = extrusion(capsule((v, w), (-50.0, -52.0), (-42.0, -100.0), 3.2), u, 15.0, 2.5)
    _paint(image, np.minimum(ligament, quadriceps), tissue["tendon"], reach_mm)
    facets = v + 39.5 + 0.28 * np.abs(u - 3.0)
    patella = smooth_max(ellipsoid(point, (2.0, -47.0, -37.0), (21.0, 10.5, 19.0)), facets, 4.0)
    behind = smooth_step(v, -48.0, -44.0) * smooth_step(np.abs(u - 2.0), 18.0, 13.0) * smooth_step(w, -22.0, -27.0)
    _paint(image, patella - 3.6 * behind + 0.5, tissue["cartilage"], reach_mm)
    fibula = capsule(point, (31.0, 20.0, 19.0), (30.0, 20.0, 30.0), 8.5, 6.5)
    fibula = smooth_min(fibula, capsule(point, (30.0, 20.0, 30.0), (25.0, 19.0, 110.0), 5.5), 5.0)
    for bone in (patella, fibula):
        _paint(image, bone, tissue["cortex"], reach_mm)
        _paint(image, bone + 1.2, marrow, reach_mm)


def knee_fields(
    shape: KneeShape,
    point: Point,
    textures: Sequence[np.ndarray],
    marrow: np.ndarray,
    reach_mm: float,
    tissue: Tissue = TISSUE,
) -> KneeFields:
    """Evaluate a knee on a grid, or on some of its slices.

    Args:
        shape: the knee.
        point: knee coordinates u, v, w of the grid (see ``knee_coordinates``).
        textures: two noise fields on this grid, fine and coarse, zero mean and unit standard deviation.
        marrow: intensities of marrow on this grid (for patella and fibula).
        reach_mm: mean voxel size, the width of soft edges in the surroundings.
        tissue: intensities by the names in ``TISSUE``, or arrays of them on this grid; or, for several images at
            once, arrays of shape (images, 1, 1, 1), and ``marrow`` with that axis too.
    """
    femur, tibia = _femur(point), _tibia(point)
    femoral_cartilage = _femoral_cartilage(point, femur, shape)
    tibial_cartilage = _tibial_cartilage(point, tibia, shape.tibial_cartilage_mm)
    image = _soft_tissue(shape, point, textures, reach_mm, tissue)
    _joint(shape, point, (femur, tibia, femoral_cartilage), image, reach_mm, tissue)
    _extensors_and_fibula(point, marrow, image, reach_mm, tissue)
    return KneeFields(femur, tibia, femoral_cartilage, tibial_cartilage, image)
