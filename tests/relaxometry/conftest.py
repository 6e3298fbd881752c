"""A drawn knee: cartilage on a cylinder around the axis from right to left, with a notch and an uneven trochlea."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

# sagittal slices from the patient's right to the left, rows downwards, columns to the back
STRAIGHT = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


@dataclass(frozen=True)
class Knee:
    """A right knee by its mask; the lateral side comes first."""

    mask: np.ndarray
    spacing_mm: tuple[float, float, float]
    angles_degrees: np.ndarray
    radii_mm: np.ndarray
    left_mm: np.ndarray
    direction: tuple[float, ...] = STRAIGHT


def draw_knee(turned_degrees=0.0, spacing_mm=(3.0, 0.5, 0.5), inner_mm=25.0, outer_mm=28.0):
    """Cartilage between two radii, turned to the back by an angle."""
    left_mm = (np.arange(22) - 10.5) * spacing_mm[0]
    rows_mm, columns_mm = ((np.arange(116) - 57.5) * size for size in spacing_mm[1:])
    left, row, column = np.meshgrid(left_mm, rows_mm, columns_mm, indexing="ij")
    radii, angles = np.hypot(row, column), np.degrees(np.arctan2(column, row))
    at = (angles - turned_degrees + 180) % 360 - 180
    condyles = (np.abs(left) > 6) & (np.abs(left) < 30) & (at >= -45) & (at < 105)
    trochlea = (left > -24) & (left < 6) & (at >= -95) & (at < -10)
    mask = (condyles | trochlea) & (radii >= inner_mm) & (radii < outer_mm)
    return Knee(mask, spacing_mm, angles, radii, left)


@pytest.fixture(scope="session")
def drawn():
    """``draw_knee``, to draw others."""
    return draw_knee


@pytest.fixture(scope="session")
def knee():
    """A straight one."""
    return draw_knee()
