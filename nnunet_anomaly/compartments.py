"""Compartments of the distal femur by geometry: medial condyle, lateral condyle and trochlea.

In the manner of the scores WORMS (Peterfy 2004) and MOAKS (Hunter 2011): the trochlea is what lies in front; the
central and posterior parts behind it belong to the medial or the lateral condyle. Readers set the border at the front
of the menisci, which a femur alone does not show. Here it is a coronal plane at a share of the way from the most
anterior to the most posterior point of the condyles. In the one segmented knee that we could measure, the medial
meniscus begins at a share of 0.30 and the lateral one at 0.44. Both scores part the trochlea too, in a medial and a
lateral half; we do not.

All planes lie in patient coordinates, and which side is the medial one follows from the side of the knee, never from
the order of slices. The planes go on upwards, so that shaft and metaphysis are parted by them as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import load_json
from nnunet_anomaly.geometry import bounding_box, check_in_patient, distance_to_mm
from nnunet_anomaly.twins import LEFT, RIGHT, words_of

MEDIAL, LATERAL, TROCHLEA = 1, 2, 3
COMPARTMENTS = {"medial": MEDIAL, "lateral": LATERAL, "trochlea": TROCHLEA}
NOTCH, CENTRE_OF_MASS = "notch", "centre of mass"
TROCHLEA_SHARE = 0.4

# the shaft, which may lean forwards or backwards, has no say in where the condyles begin and end
_CONDYLES_MM = 40.0
# a valley between the condyles is the notch if it is so deep, over such a length from front to back; the groove of the
# trochlea is less deep
_NOTCH_DEPTH_MM, _NOTCH_LENGTH_MM = 8.0, 10.0
# so that a voxel on a plane goes to the same side however the array is turned
_DECIMALS = 6


@dataclass(frozen=True, eq=False)
class FemurCompartments:
    """A femur and its parts.

    Attributes:
        label_map: uint8, shape of the femur's mask: 0 outside, else one of ``COMPARTMENTS``.
        parted_at: where medial and lateral are parted, ``NOTCH`` or ``CENTRE_OF_MASS``.
    """

    label_map: np.ndarray
    parted_at: str


def femur_compartments(
    femur: np.ndarray,
    spacing_mm: Sequence[float],
    direction: Sequence[float],
    side: str | None,
    trochlea_share: float = TROCHLEA_SHARE,
) -> FemurCompartments | None:
    """Divide a femur into medial condyle, lateral condyle and trochlea.

    A voxel in front of the coronal plane belongs to the trochlea, any other to the condyle on its side of a sagittal
    plane. That plane goes through the intercondylar notch: in every row from side to side, behind the middle of the
    condyles, the lowest bone has a valley between two condyles; its middle counts where it is at least 8 mm deep, and
    the median over rows is taken. Where valleys stretch over less than 10 mm from front to back, as where the image
    holds one condyle alone, the plane goes through the centre of mass. Planes are found on the largest component.

    Args:
        femur: mask, 3-D, bool or integers; not 0 is femur.
        spacing_mm: voxel size along every axis of ``femur``.
        direction: SimpleITK's ``GetDirection()``, 9 numbers (patient coordinates: left, posterior, superior).
        side: of the knee, ``"left"`` or ``"right"``; None: unknown.
        trochlea_share: where the trochlea ends, as a share of the way from the most anterior point (0) to the most
            posterior one (1) of the lowest 40 mm.

    Returns:
        The compartments; None where the side is unknown or the femur is empty.

    Raises:
        GeometryError: the spacing or the direction is not that of a 3-D image.
        LabelError: a femur that is not 3-D, or neither bool nor integers.
        SettingsError: another side, or a share outside 0 to 1.
    """
    femur = check_in_patient(femur, spacing_mm, direction, "The femur")
    if side not in (LEFT, RIGHT, None):
        raise SettingsError(f"The side of the knee is {side!r}; it must be '{LEFT}', '{RIGHT}' or None (unknown).")
    if not 0 <= trochlea_share <= 1:
        raise SettingsError(f"trochlea_share is {trochlea_share}; it must lie in 0 to 1.")
    mask = femur != 0
    if side is None or not mask.any():
        return None
    components = label_components(mask)
    largest = components.numbers == components.sizes_voxels.argmax()
    # from array indices, whose axes are in reverse order, to millimetres towards left, posterior, superior
    to_mm = np.reshape(direction, (3, 3))[:, ::-1] * np.asarray(spacing_mm, dtype=float)
    left_mm, back_mm, up_mm = to_mm @ np.array(np.nonzero(mask), dtype=float)
    points_mm = np.stack([left_mm, back_mm, up_mm])[:, largest]
    condyles_mm = points_mm[:, points_mm[2] <= points_mm[2].min() + _CONDYLES_MM]
    front_mm, rear_mm = condyles_mm[1].min(), condyles_mm[1].max()
    border_mm = front_mm + trochlea_share * (rear_mm - front_mm)
    plane_mm = notch_mm(condyles_mm, max(map(float, spacing_mm)))
    parted_at = CENTRE_OF_MASS if plane_mm is None else NOTCH
    if plane_mm is None:
        plane_mm = float(condyles_mm[0].mean())
    towards_lateral_mm = np.round((left_mm - plane_mm) * (1 if side == LEFT else -1), _DECIMALS)
    parts = np.where(towards_lateral_mm > 0, LATERAL, MEDIAL)
    parts[np.round(back_mm - border_mm, _DECIMALS) < 0] = TROCHLEA
    label_map = np.zeros(mask.shape, dtype=np.uint8)
    label_map[mask] = parts
    return FemurCompartments(label_map, parted_at)


def notch_mm(condyles_mm: np.ndarray, largest_voxel_mm: float) -> float | None:
    """Where the intercondylar notch lies from right to left; None where there is none.

    Args:
        condyles_mm: points of bone, or of its cartilage alone (3, n), at least one: left, posterior, superior.
        largest_voxel_mm: rows and columns are a little wider, so that none is empty for the grid's sake.
    """
    # an even number of voxels, each as wide as a column, would lie on the borders and leave every second column empty
    size_mm = max(1.0, 1.01 * largest_voxel_mm)
    middles_mm = (condyles_mm[:2].min(axis=1) + condyles_mm[:2].max(axis=1)) / 2
    # counted from the middle, so that a mirrored femur has mirrored columns
    places = np.rint(np.round((condyles_mm[:2] - middles_mm[:, None]) / size_mm, _DECIMALS)).astype(np.int64)
    first = places.min(axis=1)
    columns, rows = places - first[:, None]
    lowest_mm = np.full((int(rows.max()) + 1, int(columns.max()) + 1), condyles_mm[2].min() + _CONDYLES_MM)
    np.minimum.at(lowest_mm, (rows, columns), condyles_mm[2])
    lowest_mm = lowest_mm[max(0, -first[1]) :]  # row 0 is the middle one
    # how far every place rises above the higher one of the lowest places to its left and to its right
    from_left = np.minimum.accumulate(lowest_mm, axis=1)
    from_right = np.minimum.accumulate(lowest_mm[:, ::-1], axis=1)[:, ::-1]
    depths_mm = lowest_mm - np.maximum(from_left, from_right)
    depths_mm = depths_mm[depths_mm.max(axis=1) >= _NOTCH_DEPTH_MM]
    if len(depths_mm) * size_mm < _NOTCH_LENGTH_MM:
        return None
    in_valley = depths_mm >= depths_mm.max(axis=1, keepdims=True) / 2
    centres = (in_valley * np.arange(in_valley.shape[1])).sum(axis=1) / in_valley.sum(axis=1)
    return float(middles_mm[0] + (np.median(centres) + first[0]) * size_mm)


def femur_of(
    label_map: np.ndarray,
    bone: np.ndarray,
    femur: Sequence[int],
    other_bones: Sequence[int],
    spacing_mm: Sequence[float],
) -> np.ndarray:
    """The femur with its lesions: what of the bone no label of a bone claims belongs to the nearest labelled bone.

    A lesion may have a label of its own, or be a hole in the label map that was closed and filled afterwards.

    Args:
        label_map: 3-D, integers.
        bone: bool, of the same shape: all bones, lesions included.
        femur: labels of the femur.
        other_bones: labels of other bones; any other label is none.
        spacing_mm: voxel size along every axis.

    Returns:
        bool array of the same shape, inside the bone; empty where the label map has no femur. What is as near to
        another bone is femur.
    """
    labelled, other = np.isin(label_map, femur), np.isin(label_map, other_bones)
    result = np.zeros(bone.shape, dtype=bool)
    box = bounding_box(bone | other | labelled)
    if box is None or not labelled.any():
        return result
    nearer = distance_to_mm(labelled[box], spacing_mm) <= distance_to_mm(other[box], spacing_mm)
    result[box] = bone[box] & nearer
    return result


def femur_labels(labels: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """Labels of the femur's bone by their names: ``femur``, ``femoral_bone``, also ``femoral_bone_lesion``.

    Args:
        labels: as ``dataset_roles.labels_by_name`` gives them.

    Returns:
        Ascending; empty where no name says it. Cartilage is none.
    """
    found: set[int] = set()
    for name, values in labels.items():
        words = {word.casefold() for word in words_of(name)}
        if "cartilage" not in words and ("femur" in words or {"femoral", "bone"} <= words):
            found.update(values)
    return tuple(sorted(found))


def sides_of_cases(path: Path) -> dict[str, str | None]:
    """Side of the knee by case, from ``cases.json`` of a converted dataset (``laterality``); None: unknown.

    Raises:
        InputError: the file is missing or damaged, or a side is neither left nor right.
    """
    records: Any = load_json(path)
    if not isinstance(records, Mapping) or not all(isinstance(record, Mapping) for record in records.values()):
        raise InputError(f"{path} does not hold a record for every case, as nnunet-anomaly convert writes it.")
    sides = {str(case): record.get("laterality") for case, record in records.items()}
    for case, side in sides.items():
        if side not in (LEFT, RIGHT, None):
            raise InputError(f"{path}: laterality of '{case}' is {side!r}; it must be '{LEFT}', '{RIGHT}' or null.")
    return sides
