"""Which slices of a case a network of healthy tissue may learn from (Qin 2024, section 2)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.errors import InputError

COLUMNS = ("case", "slice")


def learnable_slices(labels: np.ndarray, roi_labels: Sequence[int], lesion_labels: Sequence[int] = ()) -> list[int]:
    """Slices, along the first axis, that hold some of the region and none of a lesion.

    Args:
        labels: label map (z, y, x), integers.
        roi_labels: labels of the region of interest.
        lesion_labels: labels of lesions; they may be among ``roi_labels`` too.

    Returns:
        Indices in ascending order; empty where no slice is fit.
    """
    planes = tuple(range(1, labels.ndim))
    healthy_region = np.isin(labels, sorted(set(roi_labels) - set(lesion_labels))).any(axis=planes)
    lesion = np.isin(labels, list(lesion_labels)).any(axis=planes)
    return [int(index) for index in np.flatnonzero(healthy_region & ~lesion)]


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


def first_slice(properties: Mapping[str, Any]) -> int:
    """Number in the stored image of a preprocessed case's first slice; nnU-Net has cropped to what is not zero."""
    return int(properties["bbox_used_for_cropping"][0][0])
