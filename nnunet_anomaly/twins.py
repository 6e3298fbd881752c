"""Structures that come as a left and a right one: which labels are twins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LEFT, RIGHT = "left", "right"
_SIDES = {"left": LEFT, "l": LEFT, "lt": LEFT, "right": RIGHT, "r": RIGHT, "rt": RIGHT}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def pairs_by_name(labels: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """Labels of left and right whose names differ by nothing but the side.

    The side is a word of its own, ``left`` or ``right``, ``L`` or ``R``: ``femur_left``, ``Right Hip``, ``hipL``.

    Args:
        labels: dataset.json's ``labels``, from names to values. Regions (several values) have no twin.

    Returns:
        (left, right) of every pair, in the order of the left ones; empty where there is none. Names that occur twice
        on one side are left out.
    """
    found: dict[str, dict[str, list[int]]] = {LEFT: {}, RIGHT: {}}
    for name, value in labels.items():
        words = [word.casefold() for word in _WORD.findall(name)]
        sides = {_SIDES[word] for word in words if word in _SIDES}
        if len(sides) == 1 and isinstance(value, int) and value > 0:
            rest = " ".join(word for word in words if word not in _SIDES)
            found[sides.pop()].setdefault(rest, []).append(value)
    pairs = [(left, found[RIGHT].get(rest, [])) for rest, left in found[LEFT].items()]
    return tuple(sorted((left[0], right[0]) for left, right in pairs if len(left) == len(right) == 1))


def swapped_labels(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """The twin of every label that has one."""
    return {label: twin for left, right in pairs for label, twin in ((left, right), (right, left))}


def cosine_to_the_left(
    label_map: np.ndarray, pair: tuple[int, int], spacing_mm: Sequence[float], direction: Sequence[float]
) -> float | None:
    """Where the first label of a pair lies, seen from the second: 1 to the patient's left, -1 to the right.

    It is the cosine of the angle between the way from one centre to the other and the patient's left; near 0 the two
    do not lie side by side. Centres are medians along every axis, so that a piece that bears the wrong label hardly
    moves them.

    Args:
        label_map: 2-D or 3-D integers, axes (z, y, x).
        pair: two labels.
        spacing_mm: voxel size along every axis.
        direction: of SimpleITK, in the order x, y, z; world x runs to the patient's left.

    Returns:
        None where one of the two is absent; 0 where both have one centre.
    """
    centres_mm = []
    for label in pair:
        indices = np.nonzero(label_map == label)
        if not indices[0].size:
            return None
        centres_mm.append(np.median(indices, axis=1) * spacing_mm)
    way_mm = np.reshape(direction, (label_map.ndim,) * 2) @ (centres_mm[0] - centres_mm[1])[::-1]
    length_mm = float(np.linalg.norm(way_mm))
    return float(way_mm[0]) / length_mm if length_mm else 0.0
