"""Which slices of a case a network of healthy tissue may learn from (Qin 2024, section 2)."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.errors import InputError

COLUMNS = ("case", "slice")


def slices_with(labels: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Whether each slice, along the first axis, holds any of some labels: bool (z,)."""
    return np.asarray(np.isin(labels, list(wanted)).any(axis=tuple(range(1, labels.ndim))))


def learnable_slices(
    labels: np.ndarray,
    stored_labels: np.ndarray,
    properties: Mapping[str, Any],
    roi_labels: Sequence[int],
    lesion_labels: Sequence[int] = (),
    listed: Collection[int] | None = None,
) -> list[int]:
    """Preprocessed slices that hold some of the region, and are made of slices without lesion (and listed) alone.

    A lesion is looked for in the label map as it is stored: one of a pixel or two vanishes where slices become smaller.

    Args:
        labels: preprocessed label map (z, y, x), integers.
        stored_labels: the same before cropping and resampling, with nnU-Net's order of axes.
        properties: nnU-Net's, of this case.
        roi_labels: labels of the region of interest.
        lesion_labels: labels of lesions; they may be among ``roi_labels`` too.
        listed: numbers of stored slices; None: all.

    Returns:
        Indices into ``labels`` in ascending order; empty where no slice is fit.
    """
    allowed = ~slices_with(stored_labels, lesion_labels)
    if listed is not None:
        allowed &= np.isin(np.arange(len(allowed)), list(listed))
    region = slices_with(labels, sorted(set(roi_labels) - set(lesion_labels)))
    numbers = (int(number) for number in np.flatnonzero(region))
    return [number for number in numbers if allowed[stored_slices(number, len(labels), properties)].all()]


def stored_slices(number: int, count: int, properties: Mapping[str, Any]) -> slice:
    """Stored slices of which a preprocessed one, of ``count``, is made: those that it covers or lies between.

    nnU-Net crops to what is not zero, then resamples. Without resampling it is one slice.
    """
    first, last = properties["bbox_used_for_cropping"][0]
    step = (last - first) / count
    center, reach = (number + 0.5) * step - 0.5, max(0.0, (step - 1) / 2)
    low, high = math.floor(center - reach + 1e-6), math.ceil(center + reach - 1e-6)
    return slice(first + max(0, low), first + min(last - first - 1, high) + 1)


def read_slice_list(path: Path) -> dict[str, set[int]]:
    """Slices of every case in a CSV file with the columns ``case`` and ``slice``.

    Numbers count from 0, along the axis of the stored image that nnU-Net's 2-D networks take slices of (the one with
    the thickest voxels).

    Raises:
        InputError: there is no such file, a column is missing, a number is none, or nothing is listed.
    """
    if not path.is_file():
        raise InputError(f"slices.file: {path} does not exist.")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise InputError(f"slices.file: {path} needs the columns {', '.join(COLUMNS)} and at least one row.")
    found: dict[str, set[int]] = {}
    for line, row in enumerate(rows, start=2):
        if not (row["case"] and row["slice"] and row["slice"].strip().isdecimal()):
            raise InputError(f"slices.file: line {line} of {path} is no case and slice number from 0.")
        found.setdefault(row["case"].strip(), set()).add(int(row["slice"]))
    return found
