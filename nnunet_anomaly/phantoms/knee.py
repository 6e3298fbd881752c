"""One case of the knee phantom: a DESS-like MR image with its true labels and lesions, from a seed and a number.

Everything random comes from generators seeded by (seed, case, purpose), so that case i is the same however many
cases are made, and a case's anatomy, texture and noise are the same with and without lesions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.phantoms.anatomy import (
    HALF_EXTENT_MM,
    TISSUE,
    KneeFields,
    KneeShape,
    Tissue,
    draw_shape,
    knee_coordinates,
    knee_fields,
)
from nnunet_anomaly.phantoms.fields import occupancy, rician_noise, smooth_noise, spline_field, surface_ramp
from nnunet_anomaly.phantoms.implants import mix_toward
from nnunet_anomaly.phantoms.knee_lesions import (
    FEMORAL_CARTILAGE,
    FEMUR,
    LEVELS,
    OSTEOPHYTE,
    TIBIA,
    TIBIAL_CARTILAGE,
    LesionPlan,
    add_marrow_lesion,
    grow_osteophyte,
    plan_lesions,
)

FIELD_OF_VIEW_MM = (112.0, 140.0, 140.0)  # slices, rows, columns
SMALL_GRID = (40, 96, 96)
FULL_GRID = (160, 384, 384)
CORTEX_MM = 1.1
FIELD_NAMES = tuple(field.name for field in dataclass_fields(KneeFields))

# what a generator of random numbers is for; never renumber: cases would change
SHAPE, TEXTURE, SCANNER, NOISE, LESIONS, SUBJECT = range(6)


@dataclass(frozen=True)
class Subject:
    """Who a case is, and how the knee lay in the scanner."""

    identifier: str  # 7 digits, as in the OAI
    release: str  # 0.C.2 or 0.E.1
    date: str
    barcode: str
    side: str  # RIGHT or LEFT
    sex: str
    age: int
    oblique_deg: float  # of the slices, about the axis from foot to head
    centre_mm: tuple[float, float, float]  # middle of the image, patient coordinates (left, posterior, superior)


@dataclass(frozen=True)
class KneeCase:
    """Image, labels and lesions on one grid (slices, rows, columns), and what is known of them."""

    subject: Subject
    spacing_mm: tuple[float, float, float]
    image: np.ndarray  # uint16
    labels: np.ndarray  # uint8: 1 femur, 2 femoral cartilage, 3 tibia, 4 tibial cartilage
    lesions: np.ndarray  # uint8: 0 none, else the number of the lesion
    records: list[dict[str, Any]]  # one per lesion, its "instance" is the number in ``lesions``

    def as_image(self, array: np.ndarray) -> sitk.Image:
        """An array of this case with the case's place in the scanner."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(tuple(reversed(self.spacing_mm)))
        angle = np.deg2rad(self.subject.oblique_deg)
        cosine, sine = float(np.cos(angle)), float(np.sin(angle))
        # columns run to the back, rows downwards, slices to the patient's right
        direction = np.array([[-sine, 0.0, -cosine], [cosine, 0.0, -sine], [0.0, -1.0, 0.0]])
        middle = [(length - 1) / 2 * size for length, size in zip(image.GetSize(), image.GetSpacing(), strict=True)]
        origin = np.round(np.asarray(self.subject.centre_mm) - direction @ middle, 4)
        image.SetDirection(direction.ravel().tolist())
        image.SetOrigin(origin.tolist())
        return image


def generator(seed: int, index: int, purpose: int) -> np.random.Generator:
    """Random numbers of one case for one purpose."""
    return np.random.default_rng([seed, index, purpose])


def draw_subject(seed: int, index: int) -> Subject:
    """Identity of case ``index``: unique for a seed; every eighth knee is a left one."""
    rng = generator(seed, index, SUBJECT)
    prime = 999_983  # steps of any size below a prime meet every number once
    side = "LEFT" if index % 8 == 5 else "RIGHT"
    beyond = 1.0 if side == "LEFT" else -1.0
    return Subject(
        identifier=str(9_000_000 + (7_919 * seed + 61_813 * index + 1_104) % prime),
        release=("0.C.2", "0.E.1")[int(rng.integers(2))],
        date=f"{int(rng.integers(2004, 2007))}{int(rng.integers(1, 13)):02d}{int(rng.integers(1, 29)):02d}",
        barcode=str(int(rng.integers(10_000_000, 20_000_000))),
        side=side,
        sex="MF"[int(rng.integers(2))],
        age=int(rng.integers(45, 80)),
        oblique_deg=float(np.round(rng.uniform(-6.0, 6.0), 2)),
        centre_mm=(beyond * float(np.round(rng.uniform(55.0, 70.0), 2)), float(np.round(rng.uniform(-8, 4), 2)), 0.0),
    )


def grid_axes(grid: Sequence[int], side: str) -> tuple[list[np.ndarray], tuple[float, float, float]]:
    """Coordinates (mm from the centre) along slices, rows, columns, and the spacing. Slices run to the right."""
    spacing_mm = tuple(extent / length for extent, length in zip(FIELD_OF_VIEW_MM, grid, strict=True))
    axes = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(grid, spacing_mm, strict=True)]
    if side == "LEFT":  # in a left knee, the way to the right leads from lateral to medial
        axes[0] = -axes[0]
    return axes, spacing_mm  # type: ignore[return-value]


def make_case(seed: int, index: int, level: str, grid: Sequence[int] = SMALL_GRID) -> KneeCase:
    """Make case ``index`` of a phantom.

    Args:
        seed: of the whole phantom.
        index: of the case, from 0.
        level: "none", "mild" or "severe" (see ``knee_lesions.has_lesions`` for which cases have lesions).
        grid: number of slices, rows and columns over the field of view of 112 x 140 x 140 mm.
    """
    if level not in LEVELS:
        raise ValueError(f"level is '{level}'; it must be one of {', '.join(LEVELS)}")
    subject = draw_subject(seed, index)
    axes_mm, spacing_mm = grid_axes(grid, subject.side)
    shape = draw_shape(generator(seed, index, SHAPE))
    point = knee_coordinates(shape, axes_mm)
    texture_rng = generator(seed, index, TEXTURE)
    textures = [smooth_noise(grid, spacing_mm, texture_rng, scale_mm) for scale_mm in (0.7, 4.0)]
    marrow = marrow_intensity(point, textures, smooth_noise(grid, spacing_mm, texture_rng, 0.6))
    clean = _fields_by_slabs(shape, point, textures, marrow, spacing_mm)
    plans = plan_lesions(level, index, generator(seed, index, LESIONS))

    fields = clean
    owner = np.zeros(clean.femur.shape, dtype=np.uint8)
    for number, plan in enumerate(plans, start=1):
        if plan.kind == OSTEOPHYTE:
            grown = grow_osteophyte(plan, fields, point, spacing_mm)
            owner[(grown < 0) & (getattr(fields, plan.bone) >= 0)] = number
            fields = replace(fields, **{plan.bone: grown})
    labels = label_map(fields)
    owner[~np.isin(labels, (FEMUR, TIBIA))] = 0
    signal = compose(fields, marrow, spacing_mm)
    for number, plan in enumerate(plans, start=1):
        if plan.kind == OSTEOPHYTE:
            weight = np.float32(0.7) * (owner == number)
            signal = mix_toward(signal, weight, labels > 0, plan.intensity, spacing_mm, texture=0.9)
        else:
            signal, lesion = add_marrow_lesion(plan, signal, labels, owner > 0, point, spacing_mm)
            owner[lesion] = number
    image = scan(signal, axes_mm, seed, index)
    lesions, records = _record(plans, owner, labels, spacing_mm)
    return KneeCase(subject, spacing_mm, image, labels, lesions, records)


def _fields_by_slabs(
    shape: KneeShape,
    point: Sequence[np.ndarray],
    textures: Sequence[np.ndarray],
    marrow: np.ndarray,
    spacing_mm: Sequence[float],
) -> KneeFields:
    """``knee_fields`` of the whole grid, some slices at a time, so that a full grid stays in memory."""
    reach_mm = float(np.prod(spacing_mm)) ** (1 / 3)
    whole = {name: np.empty(marrow.shape, dtype=np.float32) for name in FIELD_NAMES}
    for part in _slabs(marrow.shape):
        fields = knee_fields(shape, [p[part] for p in point], [t[part] for t in textures], marrow[part], reach_mm)
        for name in FIELD_NAMES:
            whole[name][part] = getattr(fields, name)
    return KneeFields(**whole)


def _slabs(shape: Sequence[int]) -> list[slice]:
    slices = max(1, 400_000 // (shape[1] * shape[2]))
    return [slice(first, min(first + slices, shape[0])) for first in range(0, shape[0], slices)]


def marrow_intensity(point: Sequence[np.ndarray], textures: Sequence[np.ndarray], fine: np.ndarray) -> np.ndarray:
    """Fatty marrow with trabeculae, patches of red marrow in the shafts, and the dark scars of the growth plates."""
    w = point[2]
    middle, coarse = textures
    pattern = 1.0 + 0.07 * fine + 0.06 * middle + 0.06 * coarse
    pattern += 0.14 * np.maximum(coarse, 0.0) * ((w < -45.0) | (w > 30.0))
    for scar in growth_plates(point, coarse):
        pattern -= 0.30 * scar
    return (TISSUE["marrow"] * np.maximum(pattern, 0.2)).astype(np.float32)


def growth_plates(point: Sequence[np.ndarray], coarse: np.ndarray) -> Iterator[np.ndarray]:
    """The scars of the growth plates of femur and tibia: thin bent sheets, 1 in the middle of one, 0 away from it."""
    u, v, w = point
    for height, bend in ((-39.0, -0.006), (16.0, 0.004)):
        scar = w - height - bend * (u * u + (v + 5.0) ** 2) - 1.2 * coarse
        yield np.exp(-((scar / 0.9) ** 2))


def label_map(fields: KneeFields) -> np.ndarray:
    """Labels (uint8): a voxel belongs to the tissue that holds its centre; where cartilages meet, to the nearer one.

    Specks (connected parts below 5 % of a label's largest) that a coarse grid makes of thin margins become background.
    """
    labels = np.zeros(fields.femur.shape, dtype=np.uint8)
    labels[fields.tibial_cartilage < 0] = TIBIAL_CARTILAGE
    labels[(fields.femoral_cartilage < 0) & (fields.femoral_cartilage <= fields.tibial_cartilage)] = FEMORAL_CARTILAGE
    labels[fields.tibia < 0] = TIBIA
    labels[fields.femur < 0] = FEMUR
    components = label_components(labels)
    largest = np.zeros(256, dtype=np.int64)
    np.maximum.at(largest, components.labels, components.sizes_voxels)
    specks = components.sizes_voxels < 0.05 * largest[components.labels]
    labels[components.mask] = np.where(specks[components.numbers], 0, labels[components.mask])
    return labels


def compose(fields: KneeFields, marrow: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Paint cartilages and bones over their surroundings, with partial volume: the signal without noise, float32."""
    image = np.empty_like(fields.surroundings)
    for part in _slabs(image.shape):
        # one slice more on either side, for the slopes
        wide = slice(max(0, part.start - 1), part.stop + 1)
        local = KneeFields(**{name: getattr(fields, name)[wide] for name in FIELD_NAMES})
        painted = compose_slab(local, marrow[wide], spacing_mm)
        image[part] = painted[part.start - wide.start :][: part.stop - part.start]
    return image


def compose_slab(
    fields: KneeFields,
    marrow: np.ndarray,
    spacing_mm: Sequence[float],
    tissue: Tissue = TISSUE,
    cortex_mm: np.ndarray | float = CORTEX_MM,
) -> np.ndarray:
    """``compose`` at once, with intensities of tissues and the thickness of the cortex, one or one a voxel."""
    image = fields.surroundings.copy()
    nearer = fields.femoral_cartilage - fields.tibial_cartilage
    layers: list[tuple[np.ndarray, list[tuple[np.ndarray | float, np.ndarray | float]]]] = [
        (np.maximum(fields.tibial_cartilage, -nearer), [(0.0, 0.95 * tissue["cartilage"])]),
        (np.maximum(fields.femoral_cartilage, nearer), [(0.0, tissue["cartilage"])]),
        (fields.tibia, [(0.0, tissue["cortex"]), (cortex_mm, marrow)]),
        (fields.femur, [(0.0, tissue["cortex"]), (cortex_mm, marrow)]),
    ]
    for distance, tissues in layers:
        outside_mm, reach_mm = near_surface(distance, spacing_mm)
        for depth_mm, value in tissues:
            image += occupancy(outside_mm + depth_mm, reach_mm) * (value - image)
    return image


def near_surface(distance: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """A signed distance within 6 mm as true mm, and the width of a voxel's soft edge there (``surface_ramp``)."""
    near = distance.clip(-6.0, 6.0)
    slope, reach_mm = surface_ramp(near, spacing_mm)
    return near / slope, reach_mm


def scan(signal: np.ndarray, axes_mm: Sequence[np.ndarray], seed: int, index: int) -> np.ndarray:
    """What the scanner makes of a signal: gain, the coil's smooth bias field, Rician noise; uint16."""
    sensitivity, sigma = draw_scanner(axes_mm, seed, index)
    return receive(sensitivity * signal, sigma, seed, index)


def draw_scanner(
    axes_mm: Sequence[np.ndarray], seed: int, index: int, noise: tuple[float, float] = (5.0, 8.0)
) -> tuple[np.ndarray, float]:
    """Gain times the coil's smooth bias field (float32), and the noise's standard deviation, drawn from a range."""
    rng = generator(seed, index, SCANNER)
    gain, sigma = rng.uniform(0.85, 1.2), rng.uniform(*noise)
    bias = np.exp(spline_field(rng.normal(0.0, 0.28, (4, 4, 4)), axes_mm, HALF_EXTENT_MM))
    return np.float32(gain) * bias, sigma


def receive(received: np.ndarray, sigma: float, seed: int, index: int) -> np.ndarray:
    """A magnitude image with Rician noise, the same for a case whatever is in it; uint16."""
    magnitude = rician_noise(received, sigma, generator(seed, index, NOISE))
    return np.rint(magnitude).clip(0, 4095).astype(np.uint16)


def _record(
    plans: Sequence[LesionPlan], owner: np.ndarray, labels: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Number the lesions that got any voxel from 1 on, and describe each."""
    lesions = np.zeros(owner.shape, dtype=np.uint8)
    records: list[dict[str, Any]] = []
    bone_surface = _touches(labels, (FEMUR, TIBIA))
    for number, plan in enumerate(plans, start=1):
        mask = owner == number
        if not mask.any():
            continue
        instance = len(records) + 1
        lesions[mask] = instance
        records.append(
            {
                "instance": instance,
                "kind": plan.kind,
                "bone": plan.bone,
                "site": plan.site,
                "grade": plan.grade,
                "voxels": int(mask.sum()),
                "volume_mm3": round(float(mask.sum() * np.prod(spacing_mm)), 3),
                "reaches_surface": bool((mask & bone_surface).any()),
            }
        )
    return lesions, records


def _touches(labels: np.ndarray, bones: Sequence[int]) -> np.ndarray:
    """Bone voxels with a face toward something that is not this bone."""
    surface = np.zeros(labels.shape, dtype=bool)
    for bone in bones:
        mask = np.pad(labels == bone, 1, mode="edge")
        inner = mask.copy()
        for axis in range(mask.ndim):
            inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
        core = (slice(1, -1),) * mask.ndim
        surface |= mask[core] & ~inner[core]
    return surface
