"""Inputs of ``numeric_core.py``, made from a seed: a knee, a pelvis, an anomaly map and T2 decays, as in the papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

KNEE_MM, KNEE_SHAPE = (0.7, 0.365, 0.365), (160, 384, 384)
HIP_MM, HIP_SHAPE = (0.78, 0.78, 0.78), (415, 244, 266)
BRAIN_SHAPE = (191, 158, 163)
LABELS, HIP_LABELS, HIP_PAIRS = (1, 2, 3, 4), (1, 2, 3, 4, 5), ((1, 2), (3, 4))
SEED = 20221
S0, ECHO_TIMES_MS, T2_VOXELS = 1000.0, np.arange(10.0, 71.0, 10.0), 30_000


def smooth_field(shape: tuple[int, ...], rng: np.random.Generator, cells: int) -> np.ndarray:
    """Noise of standard deviation 1 that varies over about ``1 / cells`` of the image."""
    coarse = rng.standard_normal([cells + 3] * 3)
    field = ndimage.zoom(coarse, [size / (cells + 3) for size in shape], order=2, mode="nearest", grid_mode=True)
    return (field / field.std()).astype(np.float32)


def ellipsoid(shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """About 1 - r: positive inside an ellipsoid; centre and radii as shares of the image's size."""
    axes = np.meshgrid(*((np.arange(size) + 0.5) / size for size in shape), indexing="ij", sparse=True)
    squares = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True))
    return (1 - np.sqrt(squares)).astype(np.float32)


def knee(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Reference and prediction: 1 femur, 2 its cartilage, 3 tibia, 4 its cartilage."""
    femur = ellipsoid(shape, (0.5, 0.28, 0.5), (0.4, 0.26, 0.3))
    tibia = ellipsoid(shape, (0.5, 0.82, 0.5), (0.4, 0.24, 0.3))
    rows = (np.arange(shape[1]) / shape[1])[None, :, None]
    shared, maps = [smooth_field(shape, rng, 6) * 0.03 for _ in range(2)], []
    for error in (0.0, 0.006):
        fields = [own + error * smooth_field(shape, rng, 20) for own in shared]
        bones = [bone + field for bone, field in zip((femur, tibia), fields, strict=True)]
        labels = np.zeros(shape, dtype=np.uint8)
        labels[(bones[1] > -0.06) & (rows < 0.72)] = 4
        labels[bones[1] > 0] = 3
        labels[(bones[0] > -0.06) & (rows > 0.35)] = 2
        labels[bones[0] > 0] = 1
        maps.append(labels)
    return maps[0], maps[1]


def with_islands(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Small pieces of every label far from where they belong, as networks leave them."""
    result = labels.copy()
    for label in np.unique(labels[labels > 0]):
        for corner in range(8):
            place = tuple(
                int(size * (0.03 if corner >> axis & 1 else 0.9) + rng.integers(0, max(1, size // 30)))
                for axis, size in enumerate(labels.shape)
            )
            box = tuple(slice(start, start + int(rng.integers(2, 7))) for start in place)
            result[box] = np.where(result[box] == 0, label, result[box])
    return result


def hips(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Reference, and a prediction with swapped pieces and islands: 1, 2 femora, 3, 4 hip bones, 5 sacrum."""
    roughness = smooth_field(shape, rng, 8) * 0.02
    labels = np.zeros(shape, dtype=np.uint8)
    labels[ellipsoid(shape, (0.45, 0.75, 0.5), (0.3, 0.15, 0.12)) + roughness > 0] = 5
    for side, (femur, hip) in ((0.25, (1, 3)), (0.75, (2, 4))):
        head = ellipsoid(shape, (0.5, 0.5, side), (0.075, 0.13, 0.12)) + roughness
        shaft = ellipsoid(shape, (0.8, 0.5, side - 0.04 * np.sign(0.5 - side)), (0.3, 0.09, 0.07)) + roughness
        wing = ellipsoid(shape, (0.35, 0.55, side), (0.3, 0.33, 0.17)) + roughness
        socket = ellipsoid(shape, (0.5, 0.5, side), (0.092, 0.156, 0.144)) + roughness
        labels[(wing > 0) & (socket < 0) & (labels == 0)] = hip
        labels[((head > 0) | (shaft > 0)) & (labels == 0)] = femur
    swapped = with_islands(labels, rng)
    for label, twin in (*HIP_PAIRS, *((b, a) for a, b in HIP_PAIRS)):
        where = np.argwhere(labels == label)
        top = int(where[:, 0].min() + 0.12 * np.ptp(where[:, 0]))
        swapped[:top][labels[:top] == label] = twin
    return labels, swapped


def lesions(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An anomaly map, continuous, and its lesion mask."""
    mask = ellipsoid(shape, (0.4, 0.6, 0.5), (0.12, 0.1, 0.15)) > 0
    return rng.gamma(2, 1, shape).astype(np.float32) + np.float32(1.5) * mask, mask


def magnitudes(t2_ms: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Multi-echo signals (echoes, voxels) with Rician noise."""
    clean = S0 * np.exp(-ECHO_TIMES_MS[:, None] / t2_ms)
    return np.hypot(clean + rng.normal(0, sigma, clean.shape), rng.normal(0, sigma, clean.shape))


def make_inputs(folder: Path, size: float) -> None:
    """Write every input once, so that each process maps the same files."""
    rng = np.random.default_rng(SEED)
    shapes = [tuple(max(24, int(n * size)) for n in shape) for shape in (KNEE_SHAPE, HIP_SHAPE, BRAIN_SHAPE)]
    reference, prediction = knee(shapes[0], rng)
    hip, hip_prediction = hips(shapes[1], rng)
    scores, lesion = lesions(shapes[2], rng)
    (box,) = ndimage.find_objects((reference == 1).astype(np.uint8))
    margins = [(n, n) for n in (int(np.ceil(18 / size_mm)) for size_mm in KNEE_MM)]
    arrays = {
        "knee": reference,
        "knee prediction": prediction,
        "knee with islands": with_islands(prediction, rng),
        "hip": hip,
        "hip prediction": hip_prediction,
        "scores": scores,
        "lesion": lesion,
        "bone": np.pad(reference[box] == 1, margins),
        "t2 signals": magnitudes(rng.uniform(25, 70, max(2000, int(T2_VOXELS * size))), S0 / 100, rng),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
