"""A drawn knee: cartilage on a cylinder around the axis from right to left, with a notch and an uneven trochlea."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.multi_echo import MultiEcho, write_multi_echo

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


def draw_knee(turned_degrees=0.0, spacing_mm=(3.0, 0.5, 0.5), inner_mm=25.0, outer_mm=28.0, pixels=116):
    """Cartilage between two radii, turned to the back by an angle."""
    left_mm = (np.arange(22) - 10.5) * spacing_mm[0]
    rows_mm, columns_mm = ((np.arange(pixels) - (pixels - 1) / 2) * size for size in spacing_mm[1:])
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


TIMES_MS = (10.0, 20.0, 30.0, 40.0, 50.0)


def echoes_of(knee, deep_ms=30.0, superficial_ms=45.0, seed=0, rise=None):
    """Echoes (echoes, z, y, x), int16: two layers of cartilage around a bone, in a little noise.

    ``rise`` is a function of a knee to what is added to T2 in ms.
    """
    rng = np.random.default_rng(seed)
    inner, outer = (float(limit(knee.radii_mm[knee.mask])) for limit in (np.min, np.max))
    t2_ms = np.where(knee.radii_mm <= (inner + outer) / 2, deep_ms, superficial_ms)
    t2_ms = np.where(knee.mask, t2_ms + (0 if rise is None else rise(knee)), 80.0)
    s0 = np.where(knee.mask, 1500.0, np.where(knee.radii_mm < inner, 400.0, 200.0))
    signals = [s0 * np.exp(-time_ms / t2_ms) for time_ms in TIMES_MS]
    noisy = [np.hypot(signal + rng.normal(0, 4, s0.shape), rng.normal(0, 4, s0.shape)) for signal in signals]
    return np.stack(noisy).round().astype(np.int16)


def as_image(array, knee, origin_mm=(-90.0, -20.0, 10.0)):
    """An array on the knee's grid."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(knee.spacing_mm[::-1])
    image.SetDirection(knee.direction)
    image.SetOrigin(origin_mm)
    return image


@pytest.fixture(scope="session")
def put_knee():
    """Write a knee's echoes into a dataset and its mask into a folder; returns the paths of both.

    ``put_knee(dataset, case, knee, echoes, side="right", mask=None, **facts)``
    """

    def put(dataset, case, knee, echoes, side="right", mask=None, **facts):
        subject, time_point, *_ = [*case.split("_"), None]
        known = {"side": side, "series": f"1.2.{case}", "subject": subject, "time_point": time_point, **facts}
        images = tuple(as_image(echo, knee) for echo in echoes)
        write_multi_echo(MultiEcho(images, TIMES_MS, **known), dataset, case)
        mask_path = dataset / "masks" / f"{case}.nii.gz"
        mask_path.parent.mkdir(exist_ok=True)
        sitk.WriteImage(as_image((knee.mask if mask is None else mask).astype(np.uint8), knee), str(mask_path))
        return dataset / "multi_echo" / f"{case}.nii.gz", mask_path

    return put


@pytest.fixture(scope="session")
def make_echoes():
    """``echoes_of``."""
    return echoes_of
