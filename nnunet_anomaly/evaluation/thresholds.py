"""The threshold that makes a segmentation of an anomaly map, searched on validation cases: greedily, and exactly.

The exact search is ``anomaly.best_dice`` of the validation cases' pooled curve. A threshold is never searched on the
cases that it is used on: what is found there is the oracle's, and named so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_anomaly.errors import InputError

GREEDY_STEPS = 10

THRESHOLD_DEFINITIONS = {
    "validation_greedy": f"threshold by the greedy search of Bengs 2021 ({GREEDY_STEPS} halvings) on validation cases",
    "validation_exact": "threshold of the best Dice over all thresholds on validation cases",
    "oracle": "threshold of the best Dice over all thresholds on the evaluated cases themselves: an upper bound",
}


@dataclass(frozen=True)
class FoundThreshold:
    """A threshold, and the Dice over the set that it was found by."""

    value: float
    dice: float


def warnings_of(thresholds: Mapping[str, FoundThreshold]) -> list[str]:
    """A sentence for every kind of threshold that was found by a Dice of 0: it is no better than any other."""
    return [
        f"{kind}: the best Dice of the search is 0, so that the threshold {found.value:g} says nothing."
        for kind, found in thresholds.items()
        if found.dice == 0
    ]


def greedy_levels(low: float, high: float, steps: int = GREEDY_STEPS) -> np.ndarray:
    """All thresholds that the greedy search could try, ascending, both ends included; float64, 2^(steps + 1) + 1.

    Quartile points of halves of halves are multiples of 2^-(steps + 1) of the interval: counted once at all of them,
    no case is read again for a step.

    Raises:
        InputError: the interval is empty.
    """
    if not low < high:
        raise InputError(f"There is no threshold to search between {low:g} and {high:g}: is the anomaly map all 0?")
    return low + (high - low) * np.arange(2 ** (steps + 1) + 1) / 2 ** (steps + 1)


def greedy_threshold(
    levels: np.ndarray, true_positives: np.ndarray, false_positives: np.ndarray, lesion_voxels: int
) -> FoundThreshold:
    """The paper's search: Dice at both quartile points of the interval, go on in the half around the better one.

    Ten times; of all thresholds that were tried the best is taken, the highest one where several are as good. Where
    both points are equally good the lower half is taken, as above the highest score both are 0.

    Args:
        levels: see ``greedy_levels``.
        true_positives: lesion voxels of all validation cases that score at least each level.
        false_positives: other voxels, likewise.
        lesion_voxels: of all validation cases.

    Raises:
        InputError: the validation cases have no lesion voxel.
    """
    check_lesions(lesion_voxels)
    dice = 2 * true_positives / (true_positives + false_positives + lesion_voxels)
    start, length, tried = 0, levels.size - 1, []
    while length >= 4:
        lower, upper = start + length // 4, start + 3 * length // 4
        tried += [lower, upper]
        length //= 2
        if dice[upper] > dice[lower]:
            start += length
    best = max(tried, key=lambda index: (dice[index], index))
    return FoundThreshold(float(levels[best]), float(dice[best]))


def check_lesions(lesion_voxels: int) -> None:
    """Raise an ``InputError`` where validation cases have no lesion voxel: no threshold would be better than another.

    Args:
        lesion_voxels: of all validation cases, where they are evaluated.
    """
    if not lesion_voxels:
        raise InputError(
            "The validation cases have no lesion voxel where they are evaluated, so that no threshold is better than "
            "another. Name validation cases with lesions."
        )
