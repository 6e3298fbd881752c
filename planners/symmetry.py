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
from nnunet_anomaly.twins import LEFT, NEITHER, RIGHT, agreed_side, pairs_by_name, side_of_left

MOST_LABEL_MAPS = 10
# nnU-Net's readers that keep the axes of a file, and those that turn every image to RAS.
KEEPING_READERS = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO")
TURNING_READERS = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")


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
    names = {value: name for name, value in dataset_json["labels"].items() if isinstance(value, int)}
    confirmed = [pair for pair in candidates if _is_confirmed(pair, findings[pair], names)]
    side_axis = _side_axis(label_maps, reader, plans["transpose_forward"])
    if side_axis < 0:
        warnings.warn(
            "The axis from left to right is not the same in all images, so that symmetry.side_axis is -1. Bring them "
            "into one orientation, for example by SimpleITK.DICOMOrient, and plan again.",
            stacklevel=2,
        )
    return {"symmetry.pairs": confirmed, "symmetry.side_axis": side_axis}


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
            f"pair: nnunet-anomaly plan --set symmetry.pairs=[[{pair[0]},{pair[1]}]].",
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


def _side_axis(label_maps: Sequence[Path], reader: str, transpose_forward: Sequence[int]) -> int:
    """Axis of preprocessed arrays from left to right, from all headers; -1 where it differs."""
    array_axes = {2} if reader in TURNING_READERS else {_side_axis_of(path) for path in label_maps}
    return list(transpose_forward).index(array_axes.pop()) if len(array_axes) == 1 else -1


def _side_axis_of(path: Path) -> int:
    """Axis of the (3-D) array that nnU-Net reads from a file; a 2-D one has its columns there.

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
        return 2
    return 2 - next(axis for axis, letter in enumerate(orientation_of(reader.GetDirection())) if letter in "LR")


def _words(pairs: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{left} and {right}" for left, right in pairs)
