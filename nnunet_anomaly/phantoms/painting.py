"""MR images from label maps of heads: random tissue contrast, deformation, partial volume, bias field and noise.

The idea is that of SynthSeg (Billot et al., Medical Image Analysis 2023): every tissue of a label map gets a random
intensity, so that from few label maps come any number of images. Intensities come from a preset that looks like a
common MR sequence, or from no sequence at all (``random``). White matter has about 1 in T1, so that images of one
preset are comparable. Label maps have FreeSurfer's codes (``brain.py`` has names for them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy import ndimage

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.errors import LabelError
from nnunet_anomaly.geometry import close_mm
from nnunet_anomaly.phantoms import brain
from nnunet_anomaly.phantoms.fields import rician_noise, spline_field

# tissue: intensity in T1, T2, FLAIR
_TISSUES = {
    "air": (0.0, 0.0, 0.0),
    "fluid": (0.20, 1.00, 0.12),
    "ventricle": (0.20, 1.00, 0.12),
    "cortex": (0.62, 0.58, 0.60),
    "white": (1.00, 0.40, 0.45),
    "thalamus": (0.80, 0.50, 0.53),
    "striatum": (0.70, 0.52, 0.57),
    "pallidum": (0.86, 0.38, 0.44),
    "hippocampus": (0.62, 0.60, 0.66),
    "brain_stem": (0.90, 0.44, 0.48),
    "spinal_cord": (0.90, 0.44, 0.48),
    "cerebellar_cortex": (0.62, 0.56, 0.57),
    "cerebellar_white": (0.96, 0.42, 0.46),
    "white_lesion": (0.70, 0.70, 0.90),
    "bone": (0.08, 0.06, 0.05),
    "marrow": (0.75, 0.40, 0.35),
    "fat": (1.25, 0.75, 0.60),
    "skin": (0.60, 0.35, 0.40),
    "muscle": (0.50, 0.22, 0.30),
    "soft_tissue": (0.80, 0.45, 0.42),
    "eye": (0.22, 1.05, 0.15),
    # what lesions look like (``brain_lesions.py``)
    "oedema": (0.66, 0.80, 1.00),
    "necrosis": (0.38, 0.92, 0.50),
    "enhancing": (0.62, 0.66, 0.80),
    "stroke": (0.32, 0.93, 0.40),
}
TISSUES = tuple(_TISSUES)
LESION_TISSUES = ("oedema", "necrosis", "enhancing", "stroke")
PRESETS = ("t1", "t1ce", "t2", "flair", "random")

# a medium that shortens T1 shows vessels and mucosa brighter, and what has no blood-brain barrier brightest
_ENHANCED = {"enhancing": 1.45, "skin": 0.75, "muscle": 0.56}

# beyond FreeSurfer's table, what SynthSeg's training maps (codes above 500) show where these codes lie
_PLEXUS = (31, 63, 136, 137, 163, 164)
_VESSELS = (30, 62, 502)
_CODES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "air": (0, brain.INNER_AIR),
        "fluid": (brain.CSF, 257),
        "ventricle": (brain.THIRD_VENTRICLE, brain.FOURTH_VENTRICLE, *brain.LATERAL_VENTRICLE, 5, 44, 72),
        "cortex": brain.CORTEX,
        "white": (*brain.WHITE, 85, 251, 252, 253, 254, 255),
        "thalamus": (*brain.THALAMUS, *brain.VENTRAL_DC),
        "striatum": (*brain.CAUDATE, *brain.PUTAMEN, 26, 58),
        "pallidum": brain.PALLIDUM,
        "hippocampus": (*brain.HIPPOCAMPUS, *brain.AMYGDALA, *_PLEXUS),
        "brain_stem": (brain.BRAIN_STEM,),
        "spinal_cord": (brain.SPINAL_CORD, 512),
        "cerebellar_cortex": brain.CEREBELLAR_CORTEX,
        "cerebellar_white": brain.CEREBELLAR_WHITE,
        "white_lesion": (77, 25, 57),
        "bone": (brain.SKULL, 515),
        "marrow": (brain.MARROW, 516),
        "fat": (brain.FAT, brain.ORBITAL_FAT),
        "skin": (brain.SKIN, 511),
        "muscle": (brain.MUSCLE, *_VESSELS, 508, 514, 530),
        "soft_tissue": (258, 507, 509),
        "eye": (brain.GLOBE, 259, 506),
    }
)

BRAIN_TISSUES = (
    "cortex",
    "white",
    "thalamus",
    "striatum",
    "pallidum",
    "hippocampus",
    "brain_stem",
    "cerebellar_cortex",
    "cerebellar_white",
    "white_lesion",
)
CLOSING_MM = 4.0  # sulci narrower than twice this belong to the brain mask


@dataclass(frozen=True)
class Contrast:
    """Intensity of every tissue: mean, and standard deviation from place to place. Both in the order of ``TISSUES``."""

    mean: np.ndarray  # float32
    sd: np.ndarray  # float32

    def __getitem__(self, tissue: str) -> float:
        return float(self.mean[TISSUES.index(tissue)])


def draw_contrast(preset: str, rng: np.random.Generator, *, spread: float = 0.04) -> Contrast:
    """Draw the intensities of all tissues.

    Args:
        preset: one of ``PRESETS``; ``random`` draws every tissue evenly from 0.05 to 1, and air as 0.
        rng: random numbers.
        spread: standard deviation of the logarithm of an intensity of the other presets.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is '{preset}'; it must be one of {', '.join(PRESETS)}")
    if preset == "random":
        mean, sd = rng.uniform(0.05, 1.0, len(TISSUES)), rng.uniform(0.0, 0.08, len(TISSUES))
        mean[0] = 0.0
    else:
        column = {"t1": 0, "t1ce": 0, "t2": 1, "flair": 2}[preset]
        mean = np.array([intensities[column] for intensities in _TISSUES.values()])
        if preset == "t1ce":
            for tissue, intensity in _ENHANCED.items():
                mean[TISSUES.index(tissue)] = intensity
        mean = mean * np.exp(np.clip(rng.normal(0.0, spread, len(TISSUES)), -2.5 * spread, 2.5 * spread))
        sd = mean * rng.uniform(0.02, 0.05, len(TISSUES))
    sd[0] = 0.0
    return Contrast(mean.astype(np.float32), sd.astype(np.float32))


def tissue_map(label_map: np.ndarray) -> np.ndarray:
    """Index into ``TISSUES`` (uint8) of every voxel of a label map of any integer type.

    Raises:
        LabelError: the map holds a code that stands for no tissue we know.
    """
    codes = label_map.astype(np.uint16, copy=False)
    table = np.full(int(codes.max(initial=0)) + 1, 255, dtype=np.uint8)
    for tissue, members in _CODES.items():
        for code in members:
            if code < table.size:
                table[code] = TISSUES.index(tissue)
    tissues = table[codes]
    if tissues.max(initial=0) == 255:
        unknown = np.unique(codes[tissues == 255])[:10].tolist()
        raise LabelError(
            f"The label map holds {unknown}, which are none of FreeSurfer's codes that we can paint. Give them "
            "codes of the tissues they are, or 0."
        )
    return tissues


def block_mean(values: np.ndarray, subdivisions: int) -> np.ndarray:
    """Mean over blocks of ``subdivisions`` voxels along every axis, float32; shapes must be multiples of it."""
    if subdivisions == 1:
        return values.astype(np.float32)
    mean = values.astype(np.float32, copy=False)
    for axis in range(values.ndim):
        parts = [slice(None)] * values.ndim
        total = None
        for first in range(subdivisions):
            parts[axis] = slice(first, None, subdivisions)
            total = mean[tuple(parts)] if total is None else total + mean[tuple(parts)]
        mean = total / np.float32(subdivisions)  # type: ignore[operator]
    return mean


def tissue_share(tissues: np.ndarray, names: Sequence[str], subdivisions: int = 1) -> np.ndarray:
    """Share of some tissues in every voxel, float32 in [0, 1]."""
    chosen = np.zeros(256, dtype=np.uint8)
    chosen[[TISSUES.index(name) for name in names]] = 1
    return block_mean(chosen[tissues], subdivisions)


def brain_mask(tissues: np.ndarray, spacing_mm: Sequence[float], subdivisions: int = 1) -> np.ndarray:
    """Brain with its ventricles and sulci (bool), as skull stripping gives it; specks that lie apart are left out.

    Args:
        tissues: see ``tissue_map``.
        spacing_mm: voxel size of the result.
        subdivisions: ``tissues`` has that many voxels per voxel of the result along every axis.
    """
    brain_and_ventricles = ("ventricle", *BRAIN_TISSUES)
    tissue = _without_specks(tissue_share(tissues, brain_and_ventricles, subdivisions) >= 0.5)
    closed = ndimage.binary_fill_holes(close_mm(tissue, CLOSING_MM, spacing_mm))
    return closed & (tissue | (tissue_share(tissues, ("fluid", *brain_and_ventricles), subdivisions) >= 0.5))


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """The mask without parts that have less than 2 % of the largest one's voxels."""
    parts = label_components(mask)
    large = np.zeros(mask.shape, dtype=bool)
    large[mask] = (parts.sizes_voxels >= 0.02 * parts.sizes_voxels.max(initial=0))[parts.numbers]
    return large


def paint_tissues(
    tissues: np.ndarray, contrast: Contrast, rng: np.random.Generator, subdivisions: int = 1, blur_voxels: float = 0.5
) -> np.ndarray:
    """Signal of tissues without bias and noise, float32.

    Args:
        tissues: see ``tissue_map``.
        contrast: intensities; their variation from place to place is drawn for every voxel of ``tissues``.
        rng: random numbers.
        subdivisions: voxels of ``tissues`` per voxel of the image, along every axis: partial volume.
        blur_voxels: standard deviation of a Gaussian over the image's voxels, for the rest of the partial volume.
    """
    signal = contrast.mean[tissues]
    signal += contrast.sd[tissues] * rng.standard_normal(tissues.shape, dtype=np.float32) * np.float32(subdivisions)
    signal = block_mean(signal, subdivisions)
    return ndimage.gaussian_filter(signal, blur_voxels, mode="nearest", truncate=3.0) if blur_voxels > 0 else signal


def scan_head(
    signal: np.ndarray,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    noise: tuple[float, float] = (0.01, 0.03),
    bias: tuple[float, float] = (0.05, 0.2),
) -> np.ndarray:
    """What a scanner makes of a signal, float32: a smooth bias field and Rician noise, both of a drawn strength.

    Args:
        signal: float32, 3-D.
        spacing_mm: voxel size along every axis.
        rng: random numbers.
        noise: range of the noise's standard deviation, where white matter in T1 is 1.
        bias: range of the standard deviation of the control values of the field's logarithm.
    """
    axes_mm = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(signal.shape, spacing_mm, strict=True)]
    extent_mm = max(float(axis[-1]) for axis in axes_mm) + max(spacing_mm)
    field = np.exp(spline_field(rng.normal(0.0, rng.uniform(*bias), (4, 4, 4)), axes_mm, extent_mm))
    return rician_noise(signal * field, float(rng.uniform(*noise)), rng).astype(np.float32, copy=False)


def paint_head(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    preset: str = "t1",
    subdivisions: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one image of a head, with random contrast, bias field and noise.

    Args:
        label_map: integers (FreeSurfer's codes), 3-D.
        spacing_mm: voxel size of the image.
        rng: random numbers; the same numbers give the same image.
        preset: see ``draw_contrast``.
        subdivisions: the label map has that many voxels per voxel of the image along every axis.

    Returns:
        (image, brain_mask): float32, not negative, and bool.

    Raises:
        LabelError: the map holds a code that stands for no tissue we know.
    """
    tissues = tissue_map(label_map)
    contrast = draw_contrast(preset, rng, spread=0.06)
    signal = paint_tissues(tissues, contrast, rng, subdivisions, float(rng.uniform(0.3, 0.7)))
    return scan_head(signal, spacing_mm, rng), brain_mask(tissues, spacing_mm, subdivisions)


def deform_labels(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    strength: float = 1.0,
    axes_mm: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Turn, scale and bend a label map at random, by nearest neighbours.

    Args:
        label_map: integers, 3-D.
        spacing_mm: its voxel size.
        rng: random numbers.
        strength: 0 leaves the map as it is; 1 turns it by about 4 degrees about each axis, scales it by about 4 %,
            shifts it by about 3 mm and bends it smoothly by about 3 mm (standard deviations).
        axes_mm: grid of the result: coordinates along every axis, in mm from the middle of the label map. None is the
            label map's own grid.

    Returns:
        Label map of the same type, 0 where the map does not reach.
    """
    own_mm = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(label_map.shape, spacing_mm, strict=True)]
    axes_mm = own_mm if axes_mm is None else axes_mm
    turn = brain.rotation(np.deg2rad(np.clip(rng.normal(0.0, 4.0, 3), -8.0, 8.0)) * strength)
    scale = np.exp(np.clip(rng.normal(0.0, 0.04, 3), -0.08, 0.08) * strength)
    shift_mm = np.clip(rng.normal(0.0, 3.0, 3), -6.0, 6.0) * strength
    bend_mm = rng.normal(0.0, 6.0, (3, 6, 6, 6)) * strength
    extent_mm = max(float(axis[-1]) for axis in own_mm) + max(spacing_mm)
    matrix = (turn / scale).T / np.asarray(spacing_mm)[:, None]
    grid = np.ix_(*(np.asarray(axis, dtype=np.float32) for axis in axes_mm))
    places = np.zeros([len(axis) for axis in axes_mm], dtype=np.int32)
    inside = np.ones(places.shape, dtype=bool)
    for axis, length in enumerate(label_map.shape):
        offset = np.float32((length - 1) / 2 - matrix[axis] @ shift_mm + 0.5)
        place = sum(np.float32(matrix[axis, other]) * grid[other] for other in range(3)) + offset
        if strength > 0:
            place += spline_field(bend_mm[axis] / spacing_mm[axis], axes_mm, extent_mm)
        index = np.floor(place).astype(np.int32)
        inside &= (index >= 0) & (index < length)
        places *= length
        places += index
    places[~inside] = 0
    moved = label_map.ravel()[places]
    moved[~inside] = 0
    return moved
