"""Chosen slices of cases, as samples of their own for nnU-Net's loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class SliceDataset:
    """A dataset of nnU-Net's in which every sample is one slice along the first axis.

    So each slice is as likely as any other, and only these are ever loaded.

    Args:
        dataset: preprocessed cases.
        slices: numbers of the chosen slices, by case.
    """

    def __init__(self, dataset: Any, slices: Mapping[str, Sequence[int]]):
        self.dataset = dataset
        self.places = {f"{case}/{number}": (case, number) for case in slices for number in slices[case]}
        self.identifiers = list(self.places)

    def load_case(self, identifier: str) -> tuple[Any, Any, None, dict[str, Any]]:
        """Image (C, 1, y, x), labels (1, 1, y, x), none of a stage before, and nnU-Net's properties of the case.

        Without class locations, which are those of the whole case.
        """
        case, number = self.places[identifier]
        image, labels, _, properties = self.dataset.load_case(case)
        one = slice(number, number + 1)
        return image[:, one], labels[:, one], None, {**properties, "class_locations": {}}
