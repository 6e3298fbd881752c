"""One case of the hip phantom: CT of a pelvis with its true labels, from a seed and a number.

Everything random comes from generators seeded by (seed, case, purpose), so that case i is the same however many
cases are made, and a case's anatomy is the same with and without metal, and with and without inferior labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.geometry import distance_to_mm
from nnunet_anomaly.phantoms.fields import occupancy, smooth_noise, smooth_step
from nnunet_anomaly.phantoms.knee import generator
from nnunet_anomaly.phantoms.metal import KINDS, REPLACEMENT, add_metal, metal_distance
from nnunet_anomaly.phantoms.pelvis import (
    FAR_MM,
    FEMUR_LEFT,
    FEMUR_RIGHT,
    HIP_LEFT,
    HIP_RIGHT,
    LABELS,
    SIDES,
    TISSUE,
    PelvisFields,
    PelvisShape,
    Point,
    draw_pelvis,
    in_socket,
    pelvis_coordinates,
    pelvis_fields,
)

FIELD_OF_VIEW_MM = (208.0, 240.0, 364.0)  # slices, rows, columns
SMALL_GRID = (64, 96, 112)
FULL_GRID = (208, 320, 480)
MIDDLE_MM = (0.0, 0.0, 12.0)  # of the field of view, in pelvis coordinates
GAP_RANGE_MM = (5.0, 8.0)  # wider than in life, so that the small grid resolves it
LOWEST_HU, HIGHEST_HU = -1024, 3071
CORTEX_MM = {"femur": 1.8, "shaft": 4.8, "hip": 1.7, "sacrum": 1.3}
SLAB_VOXELS = 1_500_000
HALO = 2  # slices more on either side of a slab, for slopes

# what a generator of random numbers is for; never renumber: cases would change
SHAPE, TEXTURE, SCANNER, NOISE, ROUGH, METAL, SUBJECT = range(7)


@dataclass(frozen=True)
class HipCase:
    """Image and labels on one grid (slices, rows, columns), and what is known of them."""

    identifier: str  # 16 hexadecimal digits
    spacing_mm: tuple[float, float, float]
    centre_mm: tuple[float, float, float]  # middle of the image, patient coordinates (left, posterior, superior)
    image: np.ndarray  # int16, HU
    labels: np.ndarray  # uint8, see ``pelvis.LABELS``
    inferior: np.ndarray  # uint8, the same structures with closed joints and rough outlines
    record: dict[str, Any]

    def as_image(self, array: np.ndarray) -> sitk.Image:
        """An array of this case with the case's place in the scanner; axes run to the left, to the back and up."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing_mm[::-1])
        half = [(length - 1) / 2 * size for length, size in zip(image.GetSize(), image.GetSpacing(), strict=True)]
        image.SetOrigin([round(middle - part, 4) for middle, part in zip(self.centre_mm, half, strict=True)])
        return image


def identifier_of(seed: int, index: int) -> str:
    """Name of case ``index``: 16 hexadecimal digits, as in the release."""
    return hashlib.sha256(f"hip/{seed}/{index}".encode()).hexdigest()[:16]


def grid_axes(grid: Sequence[int]) -> tuple[list[np.ndarray], tuple[float, float, float]]:
    """Coordinates (mm) along slices (up), rows (back) and columns (left), and the spacing."""
    spacing_mm = tuple(extent / length for extent, length in zip(FIELD_OF_VIEW_MM, grid, strict=True))
    axes = [
        (np.arange(n) - (n - 1) / 2) * size + middle
        for n, size, middle in zip(grid, spacing_mm, MIDDLE_MM[::-1], strict=True)
    ]
    return axes, spacing_mm  # type: ignore[return-value]


def implant_of(seed: int, index: int, share: float) -> tuple[str, str] | None:
    """Kind and side of the metal in case ``index``; ``share`` of the cases have some, kinds take turns."""
    number = int(np.floor((index + 1) * share + 1e-9))
    if number == int(np.floor(index * share + 1e-9)):
        return None
    side = SIDES[int(generator(seed, index, SUBJECT).integers(2))]
    return KINDS[(number - 1) % len(KINDS)], side


def make_case(
    seed: int,
    index: int,
    implant: tuple[str, str] | None = None,
    grid: Sequence[int] = SMALL_GRID,
    gap_range_mm: tuple[float, float] = GAP_RANGE_MM,
) -> HipCase:
    """Make case ``index`` of a phantom.

    Args:
        seed: of the whole phantom.
        index: of the case, from 0.
        implant: kind (see ``metal.KINDS``) and side of its metal; a replaced femur has no label.
        grid: number of slices, rows and columns over the field of view of 208 x 240 x 364 mm.
        gap_range_mm: least and greatest width of the joint spaces.
    """
    axes_mm, spacing_mm = grid_axes(grid)
    shape = draw_pelvis(generator(seed, index, SHAPE), gap_range_mm)
    point = pelvis_coordinates(shape, axes_mm)
    texture_rng = generator(seed, index, TEXTURE)
    textures = [smooth_noise(grid, spacing_mm, texture_rng, scale_mm) for scale_mm in (1.5, 7.0)]
    fields, signal = _by_slabs(shape, point, textures, spacing_mm, implant)
    labels = label_map(fields.bones_mm)
    inferior = inferior_labels(fields.bones_mm, shape, spacing_mm, generator(seed, index, ROUGH))
    if implant is not None:
        kind, side = implant
        sign, one = (1.0, shape.left) if side == "left" else (-1.0, shape.right)
        distance = metal_distance(kind, (sign * point[0], point[1], point[2]), one) * np.float32(shape.scale)
        signal = add_metal(signal, distance, spacing_mm, generator(seed, index, METAL))
    record = {
        "index": index,
        "implant": None if implant is None else {"kind": implant[0], "side": implant[1]},
        "joint_space_mm": joint_spaces(shape, point, labels, spacing_mm),
        "label_voxels": {name: int((labels == value).sum()) for name, value in LABELS.items()},
    }
    place = generator(seed, index, SUBJECT).uniform([-9.0, -160.0, 200.0], [9.0, -120.0, 900.0])
    centre = tuple(float(value) for value in np.round(place, 2))
    image = scan(signal, spacing_mm, seed, index)
    return HipCase(identifier_of(seed, index), spacing_mm, centre, image, labels, inferior, record)  # type: ignore[arg-type]


def _by_slabs(
    shape: PelvisShape,
    point: Point,
    textures: Sequence[np.ndarray],
    spacing_mm: Sequence[float],
    implant: tuple[str, str] | None,
) -> tuple[PelvisFields, np.ndarray]:
    """Fields and signal of the whole grid, some slices at a time, so that a full grid stays in memory."""
    size = point[0].shape
    bones = np.empty((len(LABELS), *size), dtype=np.float32)
    surroundings, signal = np.empty(size, dtype=np.float32), np.empty(size, dtype=np.float32)
    step = max(1, SLAB_VOXELS // (size[1] * size[2]))
    for first in range(0, size[0], step):
        part = slice(first, min(first + step, size[0]))
        wide = slice(max(0, part.start - HALO), part.stop + HALO)
        local, tissue = [p[wide] for p in point], [texture[wide] for texture in textures]
        fields = pelvis_fields(shape, local, tissue, spacing_mm)
        if implant is not None and implant[0] == REPLACEMENT:  # no bone is left of it
            fields.bones_mm[(FEMUR_LEFT if implant[1] == "left" else FEMUR_RIGHT) - 1] = FAR_MM
        painted = compose(fields, local, tissue, spacing_mm)
        core = slice(part.start - wide.start, part.stop - wide.start)
        bones[:, part], surroundings[part] = fields.bones_mm[:, core], fields.surroundings[core]
        signal[part] = painted[core]
    return PelvisFields(bones, surroundings), signal


def compose(
    fields: PelvisFields, point: Point, textures: Sequence[np.ndarray], spacing_mm: Sequence[float]
) -> np.ndarray:
    """Paint bones, dense outside and of marrow inside, over their surroundings: the signal in HU, float32."""
    fine, coarse = textures
    image = fields.surroundings.copy()
    reach_mm = float(np.prod(spacing_mm)) ** (1 / 3)
    marrow = TISSUE["marrow"] * (1.0 + 0.22 * fine + 0.15 * coarse)
    thicker_mm = np.float32(CORTEX_MM["shaft"] - CORTEX_MM["femur"])
    femoral = np.float32(CORTEX_MM["femur"]) + thicker_mm * smooth_step(-point[2], 30.0, 75.0)
    for label, bone in enumerate(fields.bones_mm, start=1):
        cortex_mm = femoral if label in (FEMUR_LEFT, FEMUR_RIGHT) else CORTEX_MM["hip" if label < 5 else "sacrum"]
        image += occupancy(bone, reach_mm) * (TISSUE["cortex"] - image)
        image += occupancy(bone + cortex_mm, reach_mm) * (marrow - image)
    return image


def label_map(bones_mm: np.ndarray) -> np.ndarray:
    """Labels (uint8): a voxel belongs to the bone that holds its centre.

    Specks (connected parts below 5 % of a label's largest) become background.
    """
    labels = np.zeros(bones_mm.shape[1:], dtype=np.uint8)
    for label, bone in enumerate(bones_mm, start=1):
        labels[bone < 0] = label
    return without_specks(labels)


def without_specks(labels: np.ndarray) -> np.ndarray:
    """The label map without connected parts below 5 % of their label's largest."""
    components = label_components(labels)
    largest = np.zeros(256, dtype=np.int64)
    np.maximum.at(largest, components.labels, components.sizes_voxels)
    specks = components.sizes_voxels < 0.05 * largest[components.labels]
    labels = labels.copy()
    labels[components.mask] = np.where(specks[components.numbers], 0, labels[components.mask])
    return labels


def inferior_labels(
    bones_mm: np.ndarray, shape: PelvisShape, spacing_mm: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Labels as those of the paper's pre-training data: outlines rough and too wide, joint spaces closed.

    Every voxel belongs to its nearest bone, where that is nearer than a random 1 mm or so, or where two bones together
    are nearer than half as much again as the joint is wide.
    """
    rough = smooth_noise(bones_mm.shape[1:], spacing_mm, rng, 3.5)
    nearest = bones_mm.argmin(axis=0)
    first = np.take_along_axis(bones_mm, nearest[None], 0)[0]
    second = np.full(first.shape, FAR_MM, dtype=np.float32)
    for label, bone in enumerate(bones_mm):
        np.minimum(second, np.where(nearest == label, FAR_MM, bone), out=second)
    closing_mm = 1.5 * max(shape.left.gap_mm, shape.right.gap_mm) + 1.0 + rough
    grown = (first < 0.8 + 1.2 * rough) | (first + second < closing_mm)
    return without_specks(np.where(grown, nearest + 1, 0).astype(np.uint8))


def joint_spaces(
    shape: PelvisShape, point: Point, labels: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, dict[str, float] | None]:
    """Width of both hip joints: as drawn, and from voxel centre to voxel centre on the label map.

    The femoral head's voxels inside the socket whose face is free are measured to the nearest voxel of the hip bone;
    ``None`` where there is no femur.
    """
    found: dict[str, dict[str, float] | None] = {}
    for name, sign, side, femur, hip in (
        ("left", 1.0, shape.left, FEMUR_LEFT, HIP_LEFT),
        ("right", -1.0, shape.right, FEMUR_RIGHT, HIP_RIGHT),
    ):
        mask = labels == femur
        if not mask.any():
            found[name] = None
            continue
        away = distance_to_mm(labels == hip, spacing_mm)
        surface = mask & (distance_to_mm(~mask, spacing_mm) <= max(spacing_mm) * 1.001) & in_socket(point, sign)
        found[name] = {
            "drawn": round(side.gap_mm, 3),
            "smallest": round(float(away[mask].min()), 3),
            "median_in_socket": round(float(np.median(away[surface])), 3),
        }
    return found


def scan(signal: np.ndarray, spacing_mm: Sequence[float], seed: int, index: int) -> np.ndarray:
    """What the scanner makes of a signal: noise with some correlation between neighbours; int16 HU."""
    sigma = generator(seed, index, SCANNER).uniform(12.0, 22.0)
    noise = smooth_noise(signal.shape, spacing_mm, generator(seed, index, NOISE), 0.6)
    return np.rint(signal + np.float32(sigma) * noise).clip(LOWEST_HU, HIGHEST_HU).astype(np.int16)
