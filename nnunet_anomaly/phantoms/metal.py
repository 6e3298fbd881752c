"""Metal in the hips of the phantom, for testing: a screw in the femoral neck, or the whole upper femur replaced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunet_anomaly.phantoms.fields import capsule, occupancy
from nnunet_anomaly.phantoms.pelvis import HEAD_CENTRE, Point, SideShape, ball, neck_end, shaft_end

SCREW, REPLACEMENT = "screw", "replacement"
KINDS = (SCREW, REPLACEMENT)
METAL_HU = 3000.0
STREAKS_HU = 350.0  # of one square centimetre of metal in a slice
STREAK_LENGTH_MM = 45.0
HARMONICS = (2, 3, 5, 7, 9, 12)


def metal_distance(kind: str, point: Point, side: SideShape) -> np.ndarray:
    """Signed distance to the metal of one side, in its coordinates (u, v, w).

    A screw lies in the axis of the femoral neck and ends in the head, its own head outside of the bone; a replacement
    is a ball, a neck and a stem in place of the whole upper femur, of which no bone is left.
    """
    head, end = np.array(HEAD_CENTRE), neck_end(side)
    along = (end - head) / np.linalg.norm(end - head)
    if kind == SCREW:
        bolt = capsule(point, head - 6.0 * along, end + 20.0 * along, 4.5)
        return np.minimum(bolt, capsule(point, end + 17.0 * along, end + 22.0 * along, 7.5))
    if kind != REPLACEMENT:
        raise ValueError(f"kind is '{kind}'; it must be one of {', '.join(KINDS)}")
    head_ball = ball(point, HEAD_CENTRE, side.head_radius_mm - 4.0)
    stem = capsule(point, end, shaft_end(side), 15.0, 12.0)
    return np.minimum(np.minimum(head_ball, capsule(point, HEAD_CENTRE, end, 8.0, 11.0)), stem)


def add_metal(
    image: np.ndarray, distance_mm: np.ndarray, spacing_mm: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """The image (HU; slices, rows, columns) with metal and with the streaks that it makes in its slices."""
    share = occupancy(distance_mm, float(np.prod(spacing_mm)) ** (1 / 3))
    return image + streaks(share, spacing_mm, rng) + share * (METAL_HU - image)


def streaks(share: np.ndarray, spacing_mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Bright and dark rays from the middle of the metal in every axial slice, stronger where there is more of it.

    Args:
        share: of metal in every voxel, in [0, 1] (slices, rows, columns).
        spacing_mm: voxel size.
        rng: random numbers.

    Returns:
        HU to add, float32; 0 in slices without metal.
    """
    result = np.zeros(share.shape, dtype=np.float32)
    heights = rng.normal(0.0, 1.0, len(HARMONICS))
    phases = rng.uniform(0.0, 2.0 * np.pi, len(HARMONICS))
    rows = np.arange(share.shape[1], dtype=np.float32)[:, None] * np.float32(spacing_mm[1])
    columns = np.arange(share.shape[2], dtype=np.float32)[None, :] * np.float32(spacing_mm[2])
    for number, plane in enumerate(share):
        phases = phases + rng.normal(0.0, 0.25, len(HARMONICS))  # rays turn a little from slice to slice
        total = float(plane.sum())
        if total <= 0:
            continue
        down, right = rows - (plane * rows).sum() / total, columns - (plane * columns).sum() / total
        angle = np.arctan2(down, right)
        rays = sum(
            height * np.cos(2 * order * angle + phase)
            for order, height, phase in zip(HARMONICS, heights, phases, strict=True)
        )
        area_cm2 = total * spacing_mm[1] * spacing_mm[2] / 100.0
        fade = np.exp(-np.sqrt(down**2 + right**2) / STREAK_LENGTH_MM)
        result[number] = min(STREAKS_HU * np.sqrt(area_cm2), 900.0) * fade * rays / np.sqrt(len(HARMONICS) / 2)
    return result
