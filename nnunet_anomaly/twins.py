"""Structures that come as a left and a right one: which labels are twins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

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
