"""One case of the brain phantom: images of a head with its true lesions and brain mask, from a seed and numbers.

Everything random comes from generators seeded by (seed, cohort, patient, visit, purpose), so that a case is the same
however many cases are made, and a patient's anatomy is the same at every visit. A head is procedural (``brain``) or one
of the user's label maps, deformed anew for every patient. Arrays are in the order (x, y, z) of head coordinates (right,
front, up); only ``Frame.as_image`` knows how a release orders its axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.errors import InputError, LabelError
from nnunet_anomaly.files import read_image
from nnunet_anomaly.geometry import bounding_box
from nnunet_anomaly.phantoms import brain
from nnunet_anomaly.phantoms.brain_lesions import (
    ATLAS_BRAIN_MM,
    Anatomy,
    Lesion,
    add_strokes,
    add_tumour,
    describe,
    grow_strokes,
    grow_tumour,
    plant_shapes,
)
from nnunet_anomaly.phantoms.painting import (
    BRAIN_TISSUES,
    brain_mask,
    deform_labels,
    draw_contrast,
    paint_tissues,
    scan_head,
    tissue_map,
    tissue_share,
)

HEALTHY, TUMOUR, STROKE = range(3)
BRATS_CONTRASTS = ("t1", "t1ce", "t2", "flair")

# what a generator of random numbers is for; never renumber: cases would change
HEAD, CONTRAST, SCANNER, LESIONS, PLACE = range(5)

# larger voxels are painted from labels on a grid twice as fine
COARSE_MM = 1.5
WHITE_MATTER = 600.0  # intensity of white matter in a T1 image, on average
_TOWARDS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True)
class Frame:
    """How the images of a release lie: field of view in head coordinates, grids, and the order of axes in a file."""

    lower_mm: tuple[float, float, float]
    upper_mm: tuple[float, float, float]
    letters: str  # where columns, rows and slices run to, such as "LPS"
    small_grid: tuple[int, int, int]  # slices, rows, columns
    full_grid: tuple[int, int, int]
    head_scale: float  # size of heads beside those of MNI space
    registered: bool  # to an atlas: heads differ less, and lie alike
    centre_mm: tuple[float, float, float]  # patient coordinates (left, posterior, superior) of the head's origin

    def sizes(self, grid: Sequence[int]) -> tuple[int, int, int]:
        """Voxels along x, y, z for a grid of slices, rows and columns."""
        sizes = [0, 0, 0]
        for letter, length in zip(self.letters, reversed(grid), strict=True):
            sizes[_TOWARDS[letter][0]] = int(length)
        return sizes[0], sizes[1], sizes[2]

    def spacing_mm(self, grid: Sequence[int]) -> tuple[float, float, float]:
        """Voxel size along x, y, z."""
        extents = [high - low for low, high in zip(self.lower_mm, self.upper_mm, strict=True)]
        x, y, z = (extent / size for extent, size in zip(extents, self.sizes(grid), strict=True))
        return x, y, z

    def axes_mm(self, grid: Sequence[int], subdivisions: int = 1) -> list[np.ndarray]:
        """Head coordinates along x, y, z, in the size of MNI space."""
        axes = []
        for low, high, size in zip(self.lower_mm, self.upper_mm, self.sizes(grid), strict=True):
            steps = (np.arange(size * subdivisions) + 0.5) / (size * subdivisions)
            axes.append((low + steps * (high - low)) / self.head_scale)
        return axes

    def as_image(
        self, array: np.ndarray, oblique_deg: float = 0.0, shift_mm: Sequence[float] = (0, 0, 0)
    ) -> sitk.Image:
        """An array (x, y, z) over the field of view as the release's image, turned by an angle about the x axis."""
        axes, signs = zip(*(_TOWARDS[letter] for letter in self.letters), strict=True)
        spacing = [(high - low) / n for low, high, n in zip(self.lower_mm, self.upper_mm, array.shape, strict=True)]
        reverse = [slice(None)] * 3
        first = np.zeros(3)
        for axis, sign in zip(axes, signs, strict=True):
            reverse[axis] = slice(None, None, sign)
            end = self.lower_mm[axis] if sign > 0 else self.upper_mm[axis]
            first[axis] = end + sign * spacing[axis] / 2
        image = sitk.GetImageFromArray(np.ascontiguousarray(array[tuple(reverse)].transpose(axes[::-1])))
        image.SetSpacing([spacing[axis] for axis in axes])
        to_patient = np.diag([-1.0, -1.0, 1.0])  # right, front, up to left, back, up
        turn = brain.rotation(np.array([np.deg2rad(oblique_deg), 0.0, 0.0]))
        direction = turn @ to_patient @ np.eye(3)[:, list(axes)] @ np.diag(signs)
        image.SetDirection(direction.ravel().tolist())
        origin = turn @ to_patient @ first + np.asarray(self.centre_mm) + np.asarray(shift_mm)
        image.SetOrigin(np.round(origin, 4).tolist())
        return image


# the grids and headers of BraTS (SRI24 space), ATLAS (MNI space) and IXI (sagittal, native space)
BRATS = Frame(
    (-120.0, -137.0, -78.5),
    (120.0, 103.0, 76.5),
    "LPS",
    (62, 96, 96),
    (155, 240, 240),
    0.95,
    True,
    (119.5, -136.5, 78.0),
)
ATLAS = Frame(
    (-98.5, -134.5, -72.5), (98.5, 98.5, 116.5), "RAS", (76, 94, 80), (189, 233, 197), 1.0, True, (0.0, 0.0, 0.0)
)
IXI = Frame(
    (-90.0, -128.0, -140.0), (90.0, 112.0, 100.0), "PSR", (72, 96, 96), (150, 256, 256), 1.0, False, (0.0, 0.0, 0.0)
)
FRAMES = {HEALTHY: IXI, TUMOUR: BRATS, STROKE: ATLAS}


@dataclass(frozen=True)
class CaseKey:
    """Which case: the generators of random numbers depend on nothing else."""

    seed: int
    cohort: int  # HEALTHY, TUMOUR or STROKE
    patient: int
    visit: int = 0

    def generator(self, purpose: int, part: int = 0, *, every_visit: bool = False) -> np.random.Generator:
        """Random numbers for one part of one purpose, the same at every visit of the patient or others at each."""
        visit = 0 if every_visit else self.visit
        return np.random.default_rng([self.seed, self.cohort, self.patient, visit, purpose, part])


@dataclass(frozen=True)
class Inputs:
    """The user's own files, in the order of their names; empty where anatomy or lesions are procedural."""

    labels: tuple[Path, ...] = ()
    shapes: tuple[Path, ...] = ()


@dataclass(frozen=True)
class BrainCase:
    """Images and truth of one case on one grid, arrays in the order (x, y, z), and what is known of its lesions."""

    frame: Frame
    oblique_deg: float
    shift_mm: tuple[float, float, float]
    images: dict[str, np.ndarray]  # int16 by contrast
    brain: np.ndarray  # bool
    tumour: np.ndarray | None  # uint8: 1 necrosis, 2 oedema, 4 enhancing
    strokes: list[Lesion]
    records: list[dict[str, Any]]
    head: str  # "procedural" or the name of a label map
    spacing_mm: tuple[float, float, float]

    @property
    def lesions(self) -> np.ndarray:
        """All lesions together, bool."""
        whole = np.zeros(self.brain.shape, dtype=bool) if self.tumour is None else self.tumour > 0
        for lesion in self.strokes:
            whole = whole | lesion.mask
        return whole

    def as_image(self, array: np.ndarray) -> sitk.Image:
        """An array of this case with the case's place in the scanner."""
        return self.frame.as_image(array, self.oblique_deg, self.shift_mm)


def make_case(
    key: CaseKey,
    grid: Sequence[int],
    inputs: Inputs | None = None,
    *,
    contrast: str = "t1",
    high_grade: bool = True,
    defaced: bool = False,
) -> BrainCase:
    """Make one case.

    Args:
        key: which case.
        grid: slices, rows, columns over the field of view of the cohort's release.
        inputs: the user's label maps and lesion shapes.
        contrast: of healthy heads (see ``painting.draw_contrast``); strokes are in T1, tumours in all four of BraTS.
        high_grade: of a tumour.
        defaced: take the face out of the images.

    Raises:
        InputError: a file of ``inputs`` cannot be used, or no lesion fits.
    """
    inputs = inputs or Inputs()
    frame = FRAMES[key.cohort]
    spacing_mm = frame.spacing_mm(grid)
    subdivisions = 2 if max(spacing_mm) > COARSE_MM else 1
    labels, head = head_labels(key, inputs, frame, frame.axes_mm(grid, subdivisions))
    tissues = tissue_map(labels)
    mask = brain_mask(tissues, spacing_mm, subdivisions)
    tumour: np.ndarray | None = None
    strokes: list[Lesion] = []
    records: list[dict[str, Any]] = []
    if key.cohort != HEALTHY:
        anatomy = _anatomy(labels, tissues, mask, spacing_mm, subdivisions)
        rng = key.generator(LESIONS, every_visit=True)
        if key.cohort == TUMOUR:
            tumour = grow_tumour(anatomy, rng, high_grade=high_grade, growth=1.0 + 0.2 * key.visit)
            grade = "high" if high_grade else "low"
            records = describe([(tumour > 0, {"kind": "tumour", "grade": grade})], spacing_mm)
        else:
            strokes = _strokes(anatomy, inputs, rng)
            records = describe([(one.mask, {"kind": one.kind, "site": one.site}) for one in strokes], spacing_mm)

    contrasts = {HEALTHY: (contrast,), TUMOUR: BRATS_CONTRASTS, STROKE: ("t1",)}[key.cohort]
    images = {}
    for number, name in enumerate(contrasts):
        rng, scanner = key.generator(CONTRAST, number), key.generator(SCANNER, number)
        values = draw_contrast(name, rng)
        signal = paint_tissues(tissues, values, rng, subdivisions, float(rng.uniform(0.35, 0.55)))
        if tumour is not None:
            signal = add_tumour(signal, tumour, values, anatomy, key.generator(LESIONS, 1))
        elif strokes:
            signal = add_strokes(signal, strokes, values, anatomy)
        image = scan_head(signal, spacing_mm, scanner) * np.float32(WHITE_MATTER * scanner.uniform(0.75, 1.3))
        if key.cohort == TUMOUR:
            image *= mask
        elif defaced:
            image *= ~face_region(frame.axes_mm(grid), mask)
        images[name] = np.rint(image).clip(0, 32_767).astype(np.int16)
    oblique_deg, shift_mm = _place(key, frame)
    return BrainCase(frame, oblique_deg, shift_mm, images, mask, tumour, strokes, records, head, spacing_mm)


def _place(key: CaseKey, frame: Frame) -> tuple[float, tuple[float, float, float]]:
    """How the slices lie in the scanner; images that are registered all lie alike."""
    if frame.registered:
        return 0.0, (0.0, 0.0, 0.0)
    rng = key.generator(PLACE)
    x, y, z = np.round(rng.uniform(-12.0, 12.0, 3), 2).tolist()
    return float(np.round(rng.uniform(-9.0, 9.0), 2)), (x, y, z)


def face_region(axes_mm: Sequence[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """What defacing takes away (bool): all in front of and below an oblique plane, but for the brain."""
    _, y, z = np.ix_(*axes_mm)
    return np.broadcast_to(0.8 * (y - 36.0) - 0.6 * (z + 22.0) > 12.0, mask.shape) & (z < 0) & ~mask


def _anatomy(
    labels: np.ndarray, tissues: np.ndarray, mask: np.ndarray, spacing_mm: tuple[float, float, float], subdivisions: int
) -> Anatomy:
    outside = ("brain_stem", "cerebellar_cortex", "cerebellar_white")
    cerebrum = tissue_share(tissues, [name for name in BRAIN_TISSUES if name not in outside], subdivisions)
    parenchyma = tissue_share(tissues, BRAIN_TISSUES, subdivisions)
    return Anatomy(
        brain=mask,
        grey=tissue_share(tissues, ("cortex",), subdivisions),
        white=tissue_share(tissues, ("white",), subdivisions),
        cerebrum=mask & (cerebrum >= 0.5),
        parenchyma=mask & (parenchyma >= 0.5),
        left=_left_half(labels[::subdivisions, ::subdivisions, ::subdivisions]),
        spacing_mm=spacing_mm,
    )


def _left_half(labels: np.ndarray) -> np.ndarray:
    """Voxels on the left of the plane x = a y + b z + c that best parts left from right cerebrum, bool."""
    left = np.isin(labels, (brain.WHITE.left, brain.CORTEX.left))
    right = np.isin(labels, (brain.WHITE.right, brain.CORTEX.right))
    both = left | right
    places = np.argwhere(both)[::7].astype(np.float64)
    if not left.any() or not right.any():
        raise LabelError("The label map has no left or no right cerebrum (codes 2, 3, 41, 42).")
    # least squares of the side on the coordinates: a linear discriminant
    matrix = np.c_[places, np.ones(len(places))]
    side = np.where(right[tuple(places.astype(int).T)], 1.0, -1.0)
    weights, *_ = np.linalg.lstsq(matrix, side, rcond=None)
    x, y, z = np.ix_(*(np.arange(n) for n in labels.shape))
    return weights[0] * x + weights[1] * y + weights[2] * z + weights[3] < 0


# ---- the user's own anatomy and lesions ----


def head_labels(key: CaseKey, inputs: Inputs, frame: Frame, axes_mm: Sequence[np.ndarray]) -> tuple[np.ndarray, str]:
    """Label map (uint16) of a patient's head on a grid of head coordinates, and where it comes from."""
    rng = key.generator(HEAD, every_visit=True)
    if not inputs.labels:
        shape = brain.draw_head_shape(rng, registered=frame.registered)
        return brain.label_head(shape, axes_mm, whole_head=key.cohort != TUMOUR), "procedural"
    path = inputs.labels[int(rng.integers(len(inputs.labels)))]
    label_map, spacing_mm, lower_mm, upper_mm = load_label_map(path)
    own_axes: list[np.ndarray] = []
    for axis, low, high in zip(axes_mm, lower_mm, upper_mm, strict=True):
        number = len(own_axes)
        first, last = ATLAS_BRAIN_MM[0][number], ATLAS_BRAIN_MM[1][number]
        # registered heads take the atlas's size, others keep theirs
        factor = (high - low) / (last - first) if frame.registered else 1.0
        own_axes.append((low + high) / 2 + (axis - (first + last) / 2) * factor)
    strength = 0.35 if frame.registered else 1.0
    return deform_labels(label_map, spacing_mm, rng, strength=strength, axes_mm=own_axes), path.name


@lru_cache(maxsize=8)
def load_label_map(path: Path) -> tuple[np.ndarray, tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """A label map (uint16; x, y, z), its voxel size, and the lower and upper corner of the brain in mm from its middle.

    Raises:
        InputError: the file is not a 3-D image.
        LabelError: it holds labels that stand for no tissue, or no brain.
    """
    array, spacing_mm, _ = _read_upright(path)
    try:
        if array.min() < 0 or array.max() > 65_535 or not np.array_equal(array, np.rint(array)):
            raise LabelError("The label map holds values that are no label.")
        labels = array.astype(np.uint16)
        box = bounding_box(tissue_share(tissue_map(labels), BRAIN_TISSUES) > 0)
        if box is None:
            raise LabelError("The label map holds no brain.")
    except LabelError as error:
        raise LabelError(f"{path}: {error}") from None
    corners = []
    for attribute in ("start", "stop"):
        ends = [getattr(part, attribute) for part in box]
        corners.append(tuple((end - n / 2) * size for end, n, size in zip(ends, labels.shape, spacing_mm, strict=True)))
    return labels, spacing_mm, corners[0], corners[1]


@lru_cache(maxsize=32)
def load_shape(path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """A lesion mask (bool; x, y, z) in MNI space, and its coordinates along every axis in mm.

    Raises:
        InputError: the file is not a 3-D image, or empty.
    """
    array, spacing_mm, first_mm = _read_upright(path)
    if not (array > 0).any():
        raise InputError(f"{path} is an empty mask. Take it out of the folder.")
    axes = [first + np.arange(n) * size for first, n, size in zip(first_mm, array.shape, spacing_mm, strict=True)]
    return array > 0, axes


def _read_upright(path: Path) -> tuple[np.ndarray, tuple[float, ...], tuple[float, ...]]:
    """An image as array (x right, y front, z up), its voxel size, and the place of its first voxel."""
    image = read_image(path)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{path} is not a 3-D image with one value a voxel.")
    image = sitk.DICOMOrient(image, "LPS")
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)[::-1, ::-1]
    size = image.GetSize()
    left, back, _ = image.TransformIndexToPhysicalPoint((size[0] - 1, size[1] - 1, 0))
    return array, image.GetSpacing(), (-left, -back, image.GetOrigin()[2])


def _strokes(anatomy: Anatomy, inputs: Inputs, rng: np.random.Generator) -> list[Lesion]:
    if not inputs.shapes:
        return grow_strokes(anatomy, rng)
    mirrored = bool(rng.integers(2))
    for number in rng.permutation(len(inputs.shapes)):
        path = inputs.shapes[int(number)]
        mask, axes_mm = load_shape(path)
        lesions = plant_shapes(mask, axes_mm, anatomy, mirrored=mirrored)
        if lesions:
            return lesions
    raise InputError(
        f"None of the {len(inputs.shapes)} lesion shapes in {inputs.shapes[0].parent} meets the brain. They "
        "must be masks in MNI space."
    )
