"""The ``symmetry`` settings of a dataset: pairs of left and right by name and place, and the axis between them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.errors import AnomalyError, InputError
from nnunet_anomaly.label_maps import read_label_map, spacing_zyx_mm
from nnunet_anomaly.planes import orientation_of
from nnunet_anomaly.twins import LEFT, NEITHER, RIGHT, agreed_side, pairs_by_name, side_of_left, single_labels

MOST_LABEL_MAPS = 10
# nnU-Net's readers that keep the axes of a file, and those that turn every image to RAS.
KEEPING_READERS = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO")
TURNING_READERS = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
_REMEDY = (
    "for example by SimpleITK.DICOMOrient, or let nnU-Net do it (NIfTI files; dataset.json: "
    '"overwrite_image_reader_writer": "NibabelIOWithReorient"), then plan and preprocess again.'
)


def derived_symmetry(
    dataset_json: Mapping[str, Any], label_maps: Sequence[Path], plans: Mapping[str, Any]
) -> dict[str, Any]:
    """``symmetry.pairs`` and ``symmetry.side_axis``; prints what was found, and warns where names and places disagree.

    A pair needs names that differ by the side alone, and in (nearly) all of ten label maps its left one on the same
    side of its right one. Where no names do, nothing is read.

    Args:
        dataset_json: labels by name.
        label_maps: of all training cases.
        plans: nnU-Net's, for the reader of images and the order of axes.

    Returns:
        Values by dotted key; empty without such names, and where files do not say how they lie in the patient.

    Raises:
        InputError: a label map is missing, or no image.
    """
    candidates = pairs_by_name(dataset_json["labels"])
    if not candidates or not label_maps:
        return {}
    reader = plans["image_reader_writer"]
    if reader not in (*KEEPING_READERS, *TURNING_READERS):
        warnings.warn(
            f"Labels {_words(candidates)} have names of left and right, but {reader} does not say how images lie in "
            "the patient. If they are pairs, set symmetry.pairs and symmetry.side_axis (nnunet-anomaly plan --set).",
            stacklevel=2,
        )
        return {}
    findings = _sides_in(_evenly_spread(label_maps), candidates)
    names = {value: name for name, value in single_labels(dataset_json["labels"]).items()}
    confirmed = [pair for pair in candidates if _is_confirmed(pair, findings[pair], names)]
    return {"symmetry.pairs": confirmed, "symmetry.side_axis": derived_side_axis(label_maps, plans)}


def derived_side_axis(label_maps: Sequence[Path], plans: Mapping[str, Any]) -> int:
    """``symmetry.side_axis``: the axis of preprocessed arrays from left to right, by the headers of all label maps.

    Warns where images lie differently: along other axes, or from left to right in some and back in others.

    Args:
        label_maps: of all training cases.
        plans: nnU-Net's, for the reader of images and the order of axes.

    Returns:
        -1 where the axis is not the same for all, where there are no label maps, and where files do not say how they
        lie in the patient.

    Raises:
        InputError: a label map is missing, or no image.
    """
    reader = plans["image_reader_writer"]
    if reader not in (*KEEPING_READERS, *TURNING_READERS):
        warnings.warn(
            f"{reader} does not say how images lie in the patient, so that symmetry.side_axis is -1. Name the axis: "
            "nnunet-anomaly plan ... --set symmetry.side_axis=2.",
            stacklevel=2,
        )
        return -1
    # nnU-Net's RAS arrays have x last, and lead to the patient's right
    found = Counter((2, "R") if reader in TURNING_READERS else _way_to_a_side(path) for path in label_maps)
    axes = {axis for axis, _ in found}
    if len(axes) != 1:
        warnings.warn(
            "The axis from left to right is not the same in all images, so that symmetry.side_axis is -1. Bring them "
            f"into one orientation, {_REMEDY}",
            stacklevel=2,
        )
        return -1
    (axis,) = axes
    if len(found) == 2:
        to_left, to_right = found[axis, "L"], found[axis, "R"]
        warnings.warn(
            f"Arrays lead to the patient's left in {to_left} images and to the right in {to_right}. {reader} leaves "
            "them so: what lies where left ones lie in some lies where right ones do in others, and a network "
            f"cannot tell left from right by that. Bring them into one orientation, {_REMEDY}",
            stacklevel=2,
        )
    return list(plans["transpose_forward"]).index(axis)


def _evenly_spread(label_maps: Sequence[Path]) -> list[Path]:
    places = np.linspace(0, len(label_maps) - 1, min(len(label_maps), MOST_LABEL_MAPS))
    return [Path(label_maps[place]) for place in places.round().astype(int)]


def _sides_in(label_maps: Sequence[Path], pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Counter[str]]:
    """How often the left one of every pair lies on which side; label maps that cannot be read are named, left out."""
    findings: dict[tuple[int, int], Counter[str]] = {pair: Counter() for pair in pairs}
    for path in label_maps:
        try:
            label_map, image = read_label_map(path)
            sides = side_of_left(label_map, pairs, spacing_zyx_mm(image), image.GetDirection())
        except AnomalyError as error:
            warnings.warn(f"Not looked at for left and right: {error}", stacklevel=3)
            continue
        for pair, side in sides.items():
            findings[pair][side] += 1
    return findings


def _is_confirmed(pair: tuple[int, int], counts: Counter[str], names: Mapping[int, str]) -> bool:
    """Whether label maps agree on one side; says so, and warns where it is not the one that the names say."""
    what = " and ".join(f"'{names[label]}' ({label})" for label in pair)
    side, number = agreed_side(counts.elements()), counts.total()
    if side is None:
        warnings.warn(
            f"By name, {what} are left and right, but label maps do not confirm it: of {number} that hold both, the "
            f"left one lies on the patient's left in {counts[LEFT]}, on the right in {counts[RIGHT]}, and in "
            f"{counts[NEITHER]} they are not apart from left to right. symmetry.pairs leaves them out; if they are a "
            f"pair: nnunet-anomaly plan ... --set symmetry.pairs=[[{pair[0]},{pair[1]}]], before anything is trained.",
            stacklevel=3,
        )
        return False
    print(f"Left and right: {what} are a pair; left lies on the patient's {side} in {counts[side]} of {number}.")
    if side == RIGHT:
        warnings.warn(
            f"{what}: what is called left lies on the patient's RIGHT by the headers of the label maps. Mirroring is "
            "right all the same, but either names or headers are wrong.",
            stacklevel=3,
        )
    return True


def _way_to_a_side(path: Path) -> tuple[int, str]:
    """Axis between left and right of the (3-D) array that nnU-Net reads from a file, and which of L and R it leads to.

    A 2-D image has its columns there, which lead to the patient's left, as pictures are shown.

    Raises:
        InputError: the file is missing, or no image.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path} is missing or not readable as an image: {error}") from error
    if reader.GetDimension() != 3:
        return 2, "L"
    letters = orientation_of(reader.GetDirection())
    return next((2 - axis, letter) for axis, letter in enumerate(letters) if letter in "LR")


def _words(pairs: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{left} and {right}" for left, right in pairs)
