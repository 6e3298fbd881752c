"""What is measured of the lesions of one case: a row for each lesion, a row for the case, and both as rows of CSV.

A lesion is a connected component of the lesion mask (26 neighbours). Of its voxels those inside the bone count, as in
``lesions``; a lesion without one is left out and counted in ``lesions_outside_bone``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist

from nnunet_anomaly.compartments import COMPARTMENTS
from nnunet_anomaly.connected_components import Connectivity
from nnunet_anomaly.errors import GeometryError, InputError
from nnunet_anomaly.evaluation.anomaly import as_mask
from nnunet_anomaly.evaluation.cohort import summarise
from nnunet_anomaly.evaluation.lesions import find_lesions
from nnunet_anomaly.geometry import dilate_mm

SURROUNDINGS_MM = 5.0
UNKNOWN, ELSEWHERE = "unknown", "elsewhere"
# the SD of a normal distribution by its median absolute deviation
_SD_PER_MAD = 1.4826

DEFINITIONS = {
    "lesion": "number of the lesion in its case, from 1",
    "volume_mm3": "voxels inside the bone times the volume of a voxel",
    "diameter_mm": "largest distance between the centres of two of its voxels; 0 for a single voxel",
    "centroid_left_mm": "mean of its voxels' places, in patient coordinates, that grow to the left",
    "centroid_posterior_mm": "likewise to the back",
    "centroid_superior_mm": "likewise to the head",
    "mean_intensity": "mean of the image over its voxels",
    "contrast": "mean intensity less the mean of bone without lesion around it, divided by the robust SD (1.4826 times "
    "the median absolute deviation) of all bone without lesion; not applicable without such bone, or where it has one "
    "value",
    "compartment": "where most of its voxels lie; unknown without compartments, elsewhere outside of all of them",
}
LESION_COLUMNS = ("case", *DEFINITIONS)
COMPARTMENT_COLUMNS = {name: f"volume_{name}_mm3" for name in (*COMPARTMENTS, ELSEWHERE)}
CASE_COLUMNS = (
    "case",
    "lesions",
    "lesions_outside_bone",
    "volume_mm3",
    "mean_contrast",
    *COMPARTMENT_COLUMNS.values(),
)


@dataclass(frozen=True)
class LesionTable:
    """Lesions of one case.

    Attributes:
        lesions: a row for each lesion, with a value for every key of ``DEFINITIONS``.
        case: number of lesions and of those outside the bone, their volume in mm^3, the mean of the contrasts that are
            applicable (NaN without one), and the volume in each compartment, voxel by voxel (NaN without compartments).
    """

    lesions: list[dict[str, Any]]
    case: dict[str, Any]


def lesion_table(
    lesion_mask: np.ndarray,
    image: np.ndarray,
    bone: np.ndarray,
    spacing_mm: Sequence[float],
    origin_mm: Sequence[float],
    direction: Sequence[float],
    compartments: np.ndarray | None = None,
    *,
    surroundings_mm: float = SURROUNDINGS_MM,
    connectivity: Connectivity = 26,
) -> LesionTable:
    """Measure every lesion of a case.

    Args:
        lesion_mask: 3-D, bool or integers; not 0 is lesion. An empty one has no row, count and volumes 0 and a mean
            contrast of NaN.
        image: intensities as they were measured, of the same shape, finite inside the bone.
        bone: mask of the bone, not 0 is inside, lesions included. In an empty one there is no lesion.
        spacing_mm: voxel size along every axis of the arrays.
        origin_mm: SimpleITK's ``GetOrigin()``.
        direction: SimpleITK's ``GetDirection()``.
        compartments: label map of ``compartments.COMPARTMENTS``; None: they are not known.
        surroundings_mm: bone around a lesion is what lies within so many mm of one of its voxels.
        connectivity: 6, 18 or 26.

    Raises:
        GeometryError: shapes differ, are not 3-D, or the geometry is not that of a 3-D image.
        InputError: the image is not of numbers, or not finite inside the bone.
        LabelError: a mask that is neither bool nor integers.
    """
    image = np.asarray(image)
    inside = _checked(image, bone, origin_mm, direction)
    found = find_lesions(lesion_mask, spacing_mm, inside, connectivity)
    lesion = as_mask(lesion_mask, "lesion mask", image.shape)
    background = inside & ~lesion
    lesion &= inside
    parts = None if compartments is None else _parts(compartments, image.shape)
    numbers = np.zeros(image.shape, dtype=np.int32)
    numbers[lesion] = found.numbers + 1
    # from array indices, whose axes are in reverse order, to patient coordinates
    to_mm = np.reshape(direction, (3, 3))[:, ::-1] * np.asarray(spacing_mm, dtype=float)
    sd = _robust_sd(image[background])
    boxes = ndimage.find_objects(numbers)
    reaches = [math.ceil(surroundings_mm / size_mm) for size_mm in spacing_mm]
    rows = []
    for number, (box, volume_mm3) in enumerate(zip(boxes, found.volumes_mm3, strict=True), start=1):
        voxels = np.argwhere(numbers[box] == number) + [part.start for part in box]
        places_mm = voxels @ to_mm.T + np.asarray(origin_mm, dtype=float)
        mean = float(image[tuple(voxels.T)].mean(dtype=np.float64))
        near = tuple(
            slice(max(0, part.start - reach), part.stop + reach) for part, reach in zip(box, reaches, strict=True)
        )
        around = image[near][dilate_mm(numbers[near] == number, surroundings_mm, spacing_mm) & background[near]]
        values = (
            number,
            float(volume_mm3),
            largest_distance(voxels * np.asarray(spacing_mm, dtype=float)),
            *map(float, places_mm.mean(axis=0)),
            mean,
            (mean - float(around.mean(dtype=np.float64))) / sd if around.size and sd > 0 else math.nan,
            UNKNOWN if parts is None else _main_compartment(parts[tuple(voxels.T)]),
        )
        rows.append(dict(zip(DEFINITIONS, values, strict=True)))
    return LesionTable(rows, _case_row(rows, found.n_outside, None if parts is None else parts[lesion], spacing_mm))


def csv_rows(case: str, table: LesionTable) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of CSV with the case's name, for ``cohort.save_table``.

    Returns:
        A row for each lesion, with ``LESION_COLUMNS``, and the row of the case, with ``CASE_COLUMNS``.
    """
    return [{"case": case, **row} for row in table.lesions], {"case": case, **table.case}


def largest_distance(points: np.ndarray) -> float:
    """Largest distance between two of some points on a grid, exact.

    Args:
        points: (n, 3), at least one.

    Returns:
        The distance; 0 for one point.
    """
    # of points on one line of the grid an end is the farthest from any place, and so on along every axis
    for axis in range(points.shape[1]):
        others = [other for other in range(points.shape[1]) if other != axis]
        order = np.lexsort(points[:, [axis, *others]].T)
        points = points[order]
        is_new = np.any(points[1:, others] != points[:-1, others], axis=1)
        points = points[np.append(True, is_new) | np.append(is_new, True)]
    rows_at_once = 1000  # to bound the memory
    return max(
        float(cdist(points[start : start + rows_at_once], points[start:]).max())
        for start in range(0, len(points), rows_at_once)
    )


def _checked(image: np.ndarray, bone: np.ndarray, origin_mm: Sequence[float], direction: Sequence[float]) -> np.ndarray:
    """The bone as bool; the spacing and the lesion mask are checked elsewhere."""
    if image.ndim != 3 or np.shape(origin_mm) != (3,) or np.shape(direction) != (9,):
        raise GeometryError(
            f"The image has {image.ndim} axes, origin_mm {np.size(origin_mm)} and direction {np.size(direction)} "
            "numbers; a 3-D image has 3, 3 and 9."
        )
    inside = as_mask(bone, "bone mask", image.shape)
    if image.dtype.kind not in "iuf" or not np.isfinite(image[inside]).all():
        raise InputError("The image holds NaN, infinity or no numbers inside the bone.")
    return inside


def _parts(compartments: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    as_mask(compartments, "map of compartments", shape)  # for its checks
    return np.asarray(compartments)


def _robust_sd(values: np.ndarray) -> float:
    if not values.size:
        return math.nan
    values = values.astype(np.float64)
    return _SD_PER_MAD * float(np.median(np.abs(values - np.median(values))))


def _main_compartment(parts: np.ndarray) -> str:
    """Compartment of most voxels; of equally many the first in ``COMPARTMENTS``."""
    counts = {name: int(np.count_nonzero(parts == label)) for name, label in COMPARTMENTS.items()}
    counts[ELSEWHERE] = parts.size - sum(counts.values())
    return max(counts, key=lambda name: counts[name])


def _case_row(
    rows: Sequence[dict[str, Any]], n_outside: int, parts: np.ndarray | None, spacing_mm: Sequence[float]
) -> dict[str, Any]:
    volumes = dict.fromkeys(COMPARTMENT_COLUMNS.values(), math.nan)
    if parts is not None:
        voxel_mm3 = math.prod(map(float, spacing_mm))
        for name, label in COMPARTMENTS.items():
            volumes[COMPARTMENT_COLUMNS[name]] = int(np.count_nonzero(parts == label)) * voxel_mm3
        others = int(np.count_nonzero(~np.isin(parts, list(COMPARTMENTS.values()))))
        volumes[COMPARTMENT_COLUMNS[ELSEWHERE]] = others * voxel_mm3
    return {
        "lesions": len(rows),
        "lesions_outside_bone": n_outside,
        "volume_mm3": float(sum(row["volume_mm3"] for row in rows)),
        "mean_contrast": summarise(row["contrast"] for row in rows).mean,
        **volumes,
    }
