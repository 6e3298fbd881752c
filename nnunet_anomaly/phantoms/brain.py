"""The anatomy of a head as a label map with FreeSurfer's codes, each head a little different.

Head coordinates, in mm: x to the right, y to the front, z upwards; the origin is the anterior commissure, as in MNI
space, and sizes and places follow that atlas roughly. Arrays are in the order (x, y, z). The cortex is a ribbon of even
thickness under a folded surface: sulci are thin sheets that run inwards where the phase of a random wave field over the
hemisphere is zero, so that they meander and end as real ones do. Both hemispheres share one wave field and one
deformation, mirrored; an individual part of either makes them differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nnunet_anomaly.phantoms.fields import capsule, ellipsoid, smooth_max, smooth_min, smooth_step, spline_field


class Paired(NamedTuple):
    """Codes of a structure that both sides have."""

    left: int
    right: int


WHITE, CORTEX = Paired(2, 41), Paired(3, 42)
LATERAL_VENTRICLE = Paired(4, 43)
CEREBELLAR_WHITE, CEREBELLAR_CORTEX = Paired(7, 46), Paired(8, 47)
THALAMUS, CAUDATE, PUTAMEN, PALLIDUM = Paired(10, 49), Paired(11, 50), Paired(12, 51), Paired(13, 52)
HIPPOCAMPUS, AMYGDALA, VENTRAL_DC = Paired(17, 53), Paired(18, 54), Paired(28, 60)
THIRD_VENTRICLE, FOURTH_VENTRICLE, BRAIN_STEM, CSF = 14, 15, 16, 24
# outside the brain
SKIN, MUSCLE, FAT, SPINAL_CORD, MARROW, INNER_AIR = 118, 123, 125, 126, 129, 130
ORBITAL_FAT, GLOBE, SKULL = 131, 134, 165

WARP_EXTENT_MM = 150.0
SULCUS_SPACING_MM = 14.0
FOLDED_MM = 26.0  # no sulcus reaches deeper
BEND_MM = 2.5
FAR_MM = 60.0
SLAB_VOXELS = 40_000  # at a time, which stay in a processor's cache

# middle and radii of the ellipsoid along which the folds of one hemisphere run
HEMISPHERE = ((30.0, -17.0, 12.0), (37.0, 88.0, 66.0))

Point = Sequence[np.ndarray]


@dataclass(frozen=True)
class HeadShape:
    """What makes one head differ from another; drawn by ``draw_head_shape``."""

    scale: np.ndarray  # (3,)
    turn: np.ndarray  # (3, 3), how the head lies in the image
    shift_mm: np.ndarray  # (3,)
    warp_mm: np.ndarray  # (3, 6, 6, 6), control values of a smooth deformation
    waves: np.ndarray  # (3, n), of the folds, per mm; the first half is the same on both sides
    phases: np.ndarray  # (n,)
    depth_waves: np.ndarray  # (3, m), of the depth of sulci
    depth_phases: np.ndarray  # (m,)
    ventricles: float  # factor on their radii
    sulcus_mm: float  # half width
    sulcal_depth_mm: float
    cortex_mm: float
    skull_mm: float
    scalp_mm: float


def draw_head_shape(rng: np.random.Generator, *, registered: bool = False) -> HeadShape:
    """Draw a head; where images are registered to an atlas, heads differ less in size and place."""
    spread = 0.3 if registered else 1.0
    scale = np.exp(np.clip(rng.normal(0.0, 0.035, 3), -0.07, 0.07) * spread)
    angles = np.deg2rad(np.clip(rng.normal(0.0, 2.5, 3), -6.0, 6.0) * spread)
    shared, own = rng.normal(0.0, 5.0, (3, 6, 6, 6)), rng.normal(0.0, 1.5, (3, 6, 6, 6))
    mirrored = shared[:, ::-1].copy()
    mirrored[0] *= -1.0  # to the right on one side is to the left on the other
    age = rng.uniform(0.0, 1.0)
    return HeadShape(
        scale=scale,
        turn=rotation(angles),
        shift_mm=np.clip(rng.normal(0.0, 3.0, 3), -6.0, 6.0) * spread,
        warp_mm=(shared + mirrored) / 2.0 + own,
        waves=_random_waves(rng, 20, SULCUS_SPACING_MM),
        phases=rng.uniform(0.0, 2.0 * np.pi, 20),
        depth_waves=_random_waves(rng, 8, 45.0),
        depth_phases=rng.uniform(0.0, 2.0 * np.pi, 8),
        ventricles=float(0.75 + 0.55 * age * rng.uniform(0.5, 1.0)),
        sulcus_mm=float(0.6 + 0.6 * age),
        sulcal_depth_mm=float(rng.uniform(15.0, 18.0)),
        cortex_mm=float(rng.uniform(3.0, 3.5) - 0.3 * age),
        skull_mm=float(rng.uniform(5.5, 7.5)),
        scalp_mm=float(rng.uniform(5.0, 8.0)),
    )


def rotation(angles: np.ndarray) -> np.ndarray:
    """Matrix (3, 3) that turns by ``angles`` (radians) about the three axes."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[other, one] = np.sin(angle)
        turn[one, other] = -turn[other, one]
        result = result @ turn
    return result


def _random_waves(rng: np.random.Generator, count: int, length_mm: float) -> np.ndarray:
    directions = rng.normal(0.0, 1.0, (3, count))
    directions /= np.linalg.norm(directions, axis=0)
    return directions * (2.0 * np.pi / (length_mm * rng.uniform(0.85, 1.2, count)))


def head_coordinates(shape: HeadShape, axes_mm: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Head coordinates x, y, z (float32, the grid's shape) of a grid given by its coordinates along x, y and z."""
    grid = np.ix_(*(np.asarray(axis, dtype=np.float32) for axis in axes_mm))
    inverse = shape.turn.T
    point = []
    for axis in range(3):
        turned = sum(np.float32(inverse[axis, other]) * grid[other] for other in range(3))
        offset = np.float32((inverse @ shape.shift_mm)[axis])
        warped = (turned - offset) + spline_field(shape.warp_mm[axis], axes_mm, WARP_EXTENT_MM)
        point.append(warped / np.float32(shape.scale[axis]))
    return point


class _Canvas:
    """A label map that is painted structure by structure, each inside a box that holds it."""

    def __init__(self, shape: HeadShape, axes_mm: Sequence[np.ndarray]) -> None:
        self.point = head_coordinates(shape, axes_mm)
        self.labels = np.zeros(self.point[0].shape, dtype=np.uint16)
        self._bounds = []
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            self._bounds.append((self.point[axis].min(axis=others), self.point[axis].max(axis=others)))

    def box(self, low: Sequence[float], high: Sequence[float]) -> tuple[slice, ...]:
        """Part of the grid that holds all points with ``low <= point <= high``."""
        parts = []
        for (smallest, largest), first, last in zip(self._bounds, low, high, strict=True):
            near = np.flatnonzero((largest >= first) & (smallest <= last))
            parts.append(slice(int(near[0]), int(near[-1]) + 1) if near.size else slice(0, 0))
        return tuple(parts)

    def paint(
        self,
        code: int | Paired,
        low: Sequence[float],
        high: Sequence[float],
        distance: Callable[[Point], np.ndarray],
    ) -> None:
        """Give ``code`` to what lies inside a signed distance; paired structures are given and boxed for x > 0."""
        first = (-high[0], *low[1:]) if isinstance(code, Paired) else low
        box = self.box(first, high)
        x, y, z = (axis[box] for axis in self.point)
        if isinstance(code, Paired):
            inside = distance((np.abs(x), y, z)) < 0
            self.labels[box][inside & (x < 0)] = code.left
            self.labels[box][inside & (x >= 0)] = code.right
        else:
            self.labels[box][distance((x, y, z)) < 0] = code


def label_head(shape: HeadShape, axes_mm: Sequence[np.ndarray], *, whole_head: bool = True) -> np.ndarray:
    """Label map of a head.

    Args:
        shape: the head.
        axes_mm: coordinates of the grid along x (right), y (front) and z (up), rising.
        whole_head: False leaves out everything around the brain and its fluid.

    Returns:
        uint16 (x, y, z): FreeSurfer's codes, 0 outside.
    """
    labels = np.empty([len(axis) for axis in axes_mm], dtype=np.uint16)
    # every voxel is painted for itself, so slabs need not know of each other
    slices = max(1, SLAB_VOXELS // (labels.shape[1] * labels.shape[2]))
    for first in range(0, labels.shape[0], slices):
        part = slice(first, first + slices)
        labels[part] = _label_slab(shape, [axes_mm[0][part], axes_mm[1], axes_mm[2]], whole_head)
    return labels


def _label_slab(shape: HeadShape, axes_mm: Sequence[np.ndarray], whole_head: bool) -> np.ndarray:
    canvas = _Canvas(shape, axes_mm)
    labels, point = canvas.labels, canvas.point
    cerebrum, stem = _cerebrum(point), _stem(point)
    cerebellum = smooth_max(_cerebellum(point), 2.5 - cerebrum, 3.0)  # the tentorium parts it from the cerebrum
    inner_skull = smooth_min(smooth_min(cerebrum, cerebellum, 12.0), stem, 10.0) - np.float32(2.0 + shape.sulcus_mm)
    if whole_head:
        _paint_outside(canvas, shape, inner_skull)
    labels[inner_skull < 0] = CSF
    pial = _folded(shape, point, cerebrum)
    _paint_pair(labels, point[0], CORTEX, pial < 0)
    _paint_pair(labels, point[0], WHITE, pial < -shape.cortex_mm)
    _paint_cerebellum(labels, point, cerebellum)
    labels[stem < 0] = BRAIN_STEM
    _paint_deep(canvas, shape)
    return labels


def _paint_pair(labels: np.ndarray, x: np.ndarray, code: Paired, inside: np.ndarray) -> None:
    labels[inside & (x < 0)] = code.left
    labels[inside & (x >= 0)] = code.right


# ---- brain ----


def _superellipsoid(point: Point, centre: Sequence[float], radii_mm: Sequence[float]) -> np.ndarray:
    """As ``fields.ellipsoid``, with fuller corners (power 2.5), as a brain has them."""
    scaled = [np.abs(axis - at) / size for axis, at, size in zip(point, centre, radii_mm, strict=True)]
    powers = [part**1.5 for part in scaled]
    length = sum(power * part for power, part in zip(powers, scaled, strict=True)) ** 0.4
    slope = np.sqrt(sum((power / size) ** 2 for power, size in zip(powers, radii_mm, strict=True)))
    return (length - 1.0) * np.maximum(length, 0.05) ** 1.5 / np.maximum(slope, 1e-4)


def _cerebrum(point: Point) -> np.ndarray:
    """Both hemispheres without their sulci: a vault with a base, and the temporal lobes below it."""
    x, y, z = point
    beside = np.abs(x)
    narrow = 1.0 + 0.0011 * (y + 25.0) * (y > -25.0)  # the frontal lobes are narrower
    vault = _superellipsoid((x * narrow, y, z), (0.0, -17.0, 10.0), (64.0, 85.0, 64.0))
    floor = np.interp(y, (-100, -60, -40, -15, 5, 25, 60), (-14, -8, -6, -12, -14, -20, -16)).astype(np.float32)
    floor -= 0.10 * np.maximum(beside - 15.0, 0.0) * (y < -30.0)
    base = smooth_max(vault, floor - z, 12.0)
    temporal = capsule((beside, y, z), (40.0, 6.0, -25.0), (46.0, -42.0, -10.0), 16.0, 17.0)
    return smooth_min(base, temporal, 5.0)


def _cerebellum(point: Point) -> np.ndarray:
    beside, y, z = np.abs(point[0]), point[1], point[2]
    lobe = ellipsoid((beside, y, z), (22.0, -64.0, -35.0), (31.0, 29.0, 23.0))
    return smooth_min(lobe, ellipsoid(point, (0.0, -65.0, -33.0), (10.0, 24.0, 19.0)), 6.0)


def _stem(point: Point) -> np.ndarray:
    midbrain = capsule(point, (0.0, -20.0, -6.0), (0.0, -27.0, -22.0), 13.0, 12.0)
    pons = ellipsoid(point, (0.0, -22.0, -31.0), (17.0, 12.0, 13.0))
    medulla = capsule(point, (0.0, -31.0, -40.0), (0.0, -43.0, -78.0), 10.0, 6.5)
    return smooth_min(smooth_min(midbrain, pons, 5.0), medulla, 5.0)


def _folded(shape: HeadShape, point: Point, hull: np.ndarray) -> np.ndarray:
    """Signed distance to the cortex's surface: the hull less its fissures and sulci."""
    beside, y, z = np.abs(point[0]), point[1], point[2]
    # between the hemispheres, down to the corpus callosum
    midline = np.maximum(beside - 0.9 * shape.sulcus_mm, -_callosal(point))
    pial: np.ndarray = np.maximum(hull, -midline)
    # no sulcus reaches the deep grey matter from below
    core = np.maximum(_callosal(point), np.maximum(beside - 34.0, -28.0 - z))
    shell = (pial < 1.0) & (pial > -FOLDED_MM) & (core > 0)
    sheet_mm, noise = _sulcal_sheets(shape, [axis[shell] for axis in (point[0], y, z)])
    depth = -pial[shell]
    bottom_mm = np.clip(shape.sulcal_depth_mm * (1.0 + 0.45 * noise), 4.0, FOLDED_MM - 4.0)
    width_mm = shape.sulcus_mm * (0.6 + 0.8 * smooth_step(depth, 6.0, 0.0))
    pial[shell] = np.maximum(pial[shell], -np.maximum(sheet_mm - width_mm, depth - bottom_mm))
    if beside.max() < 26.0:
        return pial
    width = shape.sulcus_mm
    # the Sylvian fissure runs backwards and up, and opens into the cistern over the insula
    wave = 1.6 * np.sin(0.22 * y + shape.phases[0]) + 1.6 * np.sin(0.26 * beside + shape.phases[1])
    slant = 0.94 * np.abs(z + 9.0 - 0.36 * (16.0 - y) + wave)
    sylvian = np.maximum.reduce([slant - width, 38.0 - beside, y - 28.0, -46.0 - y])
    bulge = 42.0 - 0.010 * (y - 2.0) ** 2 - 0.018 * (z - 2.0) ** 2  # the insula is domed
    insula = np.maximum(np.abs(beside - bulge) - width, ellipsoid((y, z), (0.0, 2.0), (25.0, 15.0)))
    return np.maximum.reduce([pial, -sylvian, -insula])


def _callosal(point: Point) -> np.ndarray:
    """Signed distance to the outer arc of the corpus callosum, seen from the side."""
    return ellipsoid((point[1], point[2]), (-5.0, 3.0), (37.0, 24.0))


def _sulcal_sheets(shape: HeadShape, point: Point) -> tuple[np.ndarray, np.ndarray]:
    """Distance (mm) from points to the nearest sulcal sheet, and a smooth noise of unit deviation for its depth.

    The field is evaluated where the ray from the hemisphere's middle through the point meets an ellipsoid, so that
    sheets run inwards; a wave across the ray bends them.
    """
    x, y, z = point
    centre, radii = (np.array(values, dtype=np.float32) for values in HEMISPHERE)
    away = np.stack([np.abs(x), y, z], axis=1) - centre
    bend = np.sin(away[:, [1, 2, 0]] * np.float32(2.0 * np.pi / 21.0) + np.array([1, 3, 5], dtype=np.float32))
    away += np.float32(BEND_MM) * bend
    length = np.sqrt(((away / radii) ** 2).sum(axis=1, keepdims=True))
    mirrored = centre + away / np.maximum(length, np.float32(0.3))
    signed = mirrored.copy()
    signed[:, 0] *= np.sign(x)
    half = shape.waves.shape[1] // 2
    real, imaginary, noise = (np.empty(x.shape, dtype=np.float32) for _ in range(3))
    weights = np.repeat(np.array([1.0, 0.55], dtype=np.float32), half)
    waves, depth_waves = shape.waves.astype(np.float32), shape.depth_waves.astype(np.float32)
    phases, depth_phases = shape.phases.astype(np.float32), shape.depth_phases.astype(np.float32)
    for first in range(0, x.size, 65_536):
        part = slice(first, first + 65_536)
        angle = np.concatenate([mirrored[part] @ waves[:, :half], signed[part] @ waves[:, half:]], axis=1) + phases
        real[part], imaginary[part] = np.cos(angle) @ weights, np.sin(angle) @ weights
        noise[part] = np.cos(mirrored[part] @ depth_waves + depth_phases).sum(axis=1)
    sheet_mm = np.abs(np.arctan2(imaginary, real)) * np.float32(SULCUS_SPACING_MM / (2.0 * np.pi))
    sheet_mm[length[:, 0] < 0.5] = FAR_MM  # further in, all sheets would meet
    return sheet_mm, noise / np.float32(np.sqrt(shape.depth_phases.size / 2.0))


def _paint_cerebellum(labels: np.ndarray, point: Point, cerebellum: np.ndarray) -> None:
    """Folia as layers of an onion cut from the side, on a core of white matter with branches."""
    x, y, z = point
    near = cerebellum < 0
    beside, y, z, depth = np.abs(x[near]), y[near], z[near], -cerebellum[near]
    angle = np.arctan2(z + 36.0, -(y + 46.0)) + 0.004 * beside
    radius = np.hypot(z + 36.0, y + 46.0)
    step = np.float32(2.0 * np.pi / 26.0)
    across_mm = (np.abs((angle / step) % 1.0 - 0.5)) * step * np.maximum(radius, 8.0)  # 0 in the middle of a folium
    fissure = (step / 2.0 * np.maximum(radius, 8.0) - across_mm < 0.45) & (depth < 9.0)
    core = ellipsoid((beside, y, z), (15.0, -58.0, -36.0), (15.0, 13.0, 7.0)) < 0
    white = core | ((across_mm < 0.9) & (depth > 3.5)) | (depth > 13.0)
    side = x[near] < 0
    values = np.where(side, CEREBELLAR_CORTEX.left, CEREBELLAR_CORTEX.right)
    values = np.where(white, np.where(side, CEREBELLAR_WHITE.left, CEREBELLAR_WHITE.right), values)
    labels[near] = np.where(fissure & ~core, CSF, values)


def _paint_deep(canvas: _Canvas, shape: HeadShape) -> None:
    """Corpus callosum, deep grey matter and ventricles, inside the white matter."""

    def callosum(point: Point) -> np.ndarray:
        arc = _callosal(point)
        thick = 2.6 + 0.06 * np.abs(point[1] + 5.0)
        return np.maximum.reduce([np.abs(arc + thick) - thick, point[0] - 16.0, -4.0 - point[2]])

    canvas.paint(WHITE, (0, -48, -10), (20, 38, 32), callosum)
    canvas.paint(VENTRAL_DC, (0, -30, -18), (20, 5, 4), lambda p: ellipsoid(p, (8.0, -12.0, -7.0), (7.0, 9.0, 6.5)))
    canvas.paint(THALAMUS, (0, -40, -6), (26, 4, 22), lambda p: ellipsoid(p, (11.0, -18.0, 7.0), (9.5, 15.0, 8.5)))
    canvas.paint(CAUDATE, (0, -32, -8), (30, 32, 28), _caudate)
    canvas.paint(
        PUTAMEN, (14, -24, -16), (36, 26, 20), lambda p: ellipsoid(_lentiform(p), (26.5, 2.0, 1.0), (5.5, 17.0, 11.0))
    )
    canvas.paint(
        PALLIDUM, (8, -18, -12), (30, 14, 12), lambda p: ellipsoid(_lentiform(p), (19.5, -2.0, -1.0), (5.0, 9.5, 6.5))
    )
    canvas.paint(
        HIPPOCAMPUS,
        (14, -44, -30),
        (42, 0, 4),
        lambda p: capsule(p, (23.0, -10.0, -20.0), (29.0, -34.0, -6.0), 5.5, 4.0),
    )
    canvas.paint(AMYGDALA, (12, -14, -32), (36, 12, -8), lambda p: ellipsoid(p, (22.0, -1.0, -20.0), (7.0, 7.0, 7.0)))
    size = shape.ventricles
    canvas.paint(LATERAL_VENTRICLE, (0, -85, -32), (48, 45, 40), lambda p: _ventricle(p, size))
    canvas.paint(
        THIRD_VENTRICLE,
        (-8, -36, -16),
        (8, 10, 18),
        lambda p: np.maximum(np.abs(p[0]) - 1.6 * size, ellipsoid(p[1:], (-14.0, 1.0), (15.0, 11.0))),
    )
    canvas.paint(
        FOURTH_VENTRICLE,
        (-14, -60, -48),
        (14, -28, -16),
        lambda p: ellipsoid(p, (0.0, -42.0, -32.0), (7.0 * size, 6.0 * size, 9.0)),
    )
    canvas.paint(  # the aqueduct
        FOURTH_VENTRICLE,
        (-6, -46, -34),
        (6, -22, 2),
        lambda p: capsule(p, (0.0, -29.0, -4.0), (0.0, -38.0, -26.0), 1.2, 1.6),
    )


def _lentiform(point: Point) -> Point:
    """The lentiform nucleus is nearer to the midline in front."""
    x, y, z = point
    return x + 0.18 * y, y, z


def _caudate(point: Point) -> np.ndarray:
    head = ellipsoid(point, (14.0, 14.0, 5.0), (5.5, 11.0, 10.0))
    body = capsule(point, (15.0, 8.0, 12.0), (20.0, -24.0, 18.0), 4.5, 2.5)
    return smooth_min(head, body, 4.0)


def _ventricle(point: Point, size: float) -> np.ndarray:
    parts = [
        ((9.0, 29.0, 3.0), (7.5, 8.0, 14.0), 3.2, 4.8),
        ((7.5, 8.0, 14.0), (12.0, -20.0, 20.0), 4.8, 4.8),
        ((12.0, -20.0, 20.0), (24.0, -42.0, 13.0), 4.8, 6.2),
        ((24.0, -42.0, 13.0), (25.0, -68.0, 7.0), 5.5, 2.5),
        ((24.0, -42.0, 13.0), (33.0, -28.0, -11.0), 5.0, 2.0),
        ((33.0, -28.0, -11.0), (30.0, -8.0, -19.0), 2.0, 2.0),
    ]
    whole = None
    for start, end, first, last in parts:
        part = capsule(point, start, end, first * size, last * size)
        whole = part if whole is None else smooth_min(whole, part, 3.0)
    assert whole is not None
    return smooth_max(whole, 0.8 - point[0], 1.0)  # the septum parts them


# ---- around the brain ----


def _paint_outside(canvas: _Canvas, shape: HeadShape, vault: np.ndarray) -> None:
    """Skin, fat, muscle, skull, face and neck around ``vault``, the signed distance to the inside of the skull."""
    x, y, z = canvas.point
    mirrored = (np.abs(x), y, z)
    head = smooth_min(vault - (shape.skull_mm + shape.scalp_mm), _face(mirrored), 14.0)
    head = smooth_min(head, capsule((x, y, z), (0.0, -28.0, -70.0), (0.0, -50.0, -230.0), 52.0, 58.0), 20.0)
    labels = canvas.labels
    labels[head < 0] = SKIN
    labels[head < -1.5] = FAT
    padding_mm = 3.0 + 4.0 * smooth_step(z, -20.0, -60.0)
    labels[head < -1.5 - padding_mm] = MUSCLE
    # fat parts the muscles
    fascia = np.sin(0.29 * x + 0.05 * z) + np.sin(0.27 * y - 0.04 * z) + np.sin(0.13 * (x + y))
    labels[(labels == MUSCLE) & (np.abs(fascia) < 0.12)] = FAT
    _paint_face(canvas)
    _paint_neck(canvas)
    bone = (vault < shape.skull_mm) & (vault >= 0)
    spared = np.isin(labels, (GLOBE, INNER_AIR)) & (vault > 2.5)
    labels[bone & ~spared] = SKULL
    inside_bone = np.abs(vault - shape.skull_mm / 2.0) < shape.skull_mm / 2.0 - 1.7
    labels[bone & ~spared & inside_bone & ((z > -25.0) | (y < 0.0))] = MARROW


def _face(mirrored: Point) -> np.ndarray:
    skull = ellipsoid(mirrored, (0.0, 32.0, -52.0), (62.0, 60.0, 52.0))
    jaw = ellipsoid(mirrored, (0.0, 45.0, -96.0), (48.0, 52.0, 34.0))
    nose = capsule(mirrored, (0.0, 84.0, -22.0), (0.0, 104.0, -60.0), 8.0, 13.0)
    ear = ellipsoid(mirrored, (79.0, -22.0, -32.0), (5.0, 13.0, 26.0))
    return smooth_min(smooth_min(smooth_min(skull, jaw, 20.0), nose, 10.0), ear, 4.0)


def _paint_face(canvas: _Canvas) -> None:
    paint = canvas.paint
    # mandible
    paint(Paired(SKULL, SKULL), (0, 0, -125), (62, 100, -46), _mandible)
    paint(Paired(MARROW, MARROW), (0, 0, -125), (62, 100, -46), lambda p: _mandible(p) + 2.5)
    # hard palate
    paint(SKULL, (-34, 40, -88), (34, 98, -58), lambda p: ellipsoid(p, (0.0, 66.0, -73.0), (27.0, 24.0, 9.0)))
    # orbits
    paint(
        Paired(ORBITAL_FAT, ORBITAL_FAT),
        (8, 20, -52),
        (56, 90, -8),
        lambda p: capsule(p, (31.0, 62.0, -31.0), (20.0, 30.0, -28.0), 18.0, 6.0),
    )
    paint(Paired(MUSCLE, MUSCLE), (8, 20, -52), (56, 70, -8), _eye_muscles)
    paint(Paired(GLOBE, GLOBE), (15, 44, -50), (50, 82, -15), lambda p: ellipsoid(p, (32.5, 64.0, -32.0), (12.2,) * 3))
    # maxillary sinuses
    paint(
        Paired(INNER_AIR, INNER_AIR),
        (10, 25, -70),
        (48, 75, -36),
        lambda p: ellipsoid(p, (30.0, 50.0, -58.0), (12.0, 15.0, 12.0)),
    )
    # nasal cavity
    paint(
        Paired(INNER_AIR, INNER_AIR),
        (0, 10, -70),
        (12, 100, -24),
        lambda p: smooth_max(ellipsoid(p, (4.0, 56.0, -50.0), (4.5, 36.0, 19.0)), 0.8 - p[0], 1.0),
    )
    # sphenoid and frontal sinuses
    paint(INNER_AIR, (-14, 5, -40), (14, 32, -20), lambda p: ellipsoid(p, (0.0, 17.0, -34.0), (10.0, 9.0, 7.0)))
    paint(
        Paired(INNER_AIR, INNER_AIR),
        (0, 62, -22),
        (26, 90, 12),
        lambda p: ellipsoid(p, (11.0, 78.0, -9.0), (9.0, 4.0, 10.0)),
    )
    # throat
    paint(
        INNER_AIR,
        (-12, -14, -150),
        (12, 24, -55),
        lambda p: capsule(p, (0.0, 12.0, -58.0), (0.0, 6.0, -150.0), 6.0, 7.0),
    )


def _mandible(point: Point) -> np.ndarray:
    body = capsule(point, (6.0, 86.0, -112.0), (44.0, 24.0, -98.0), 7.5, 7.0)
    return smooth_min(body, capsule(point, (44.0, 24.0, -98.0), (50.0, 12.0, -55.0), 7.0, 5.0), 5.0)


def _eye_muscles(point: Point) -> np.ndarray:
    nerve = capsule(point, (29.0, 54.0, -31.0), (14.0, 26.0, -25.0), 2.5)
    outer = capsule(point, (44.0, 60.0, -31.0), (20.0, 28.0, -27.0), 2.2)
    inner = capsule(point, (20.0, 62.0, -31.0), (15.0, 30.0, -27.0), 2.2)
    return np.minimum(np.minimum(nerve, outer), inner)


def _paint_neck(canvas: _Canvas) -> None:
    low, high = (-32, -110, -250), (32, 10, -58)
    canvas.paint(SKULL, low, high, lambda p: capsule(p, (0.0, -28.0, -74.0), (0.0, -36.0, -230.0), 13.0))
    canvas.paint(
        MARROW,
        low,
        high,
        lambda p: np.maximum(
            capsule(p, (0.0, -28.0, -74.0), (0.0, -36.0, -230.0), 11.0), 3.0 - np.abs((p[2] % 20.0) - 10.0)
        ),
    )
    canvas.paint(SKULL, low, high, lambda p: capsule(p, (0.0, -46.0, -78.0), (0.0, -58.0, -230.0), 13.0))
    canvas.paint(CSF, low, high, lambda p: capsule(p, (0.0, -43.0, -70.0), (0.0, -56.0, -230.0), 9.0))
    canvas.paint(SPINAL_CORD, low, high, lambda p: capsule(p, (0.0, -43.0, -74.0), (0.0, -56.0, -230.0), 5.5))
