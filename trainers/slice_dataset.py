"""Chosen slices of cases, as samples of their own for nnU-Net's loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.learnable_slices import first_slice, learnable_slices, read_slice_list
from nnunet_anomaly.settings import AnomalySettings


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


def healthy_slices(dataset: Any, settings: AnomalySettings) -> dict[str, list[int]]:
    """Numbers of the slices to learn from, by case; cases without one are left out.

    Args:
        dataset: of nnU-Net's; the label maps of all its cases are read.
        settings: ``roi.labels`` and the group ``slices`` count.

    Raises:
        InputError: the list of slices is none, see ``read_slice_list``.
    """
    chosen = settings.slices
    listed = read_slice_list(Path(chosen.file)) if chosen.file else None
    slices = {}
    for case in dataset.identifiers:
        _, labels, _, properties = dataset.load_case(case)
        fit = learnable_slices(np.asarray(labels[0]), settings.roi.labels, chosen.lesion_labels)
        if listed is not None:
            fit = [number for number in fit if number + first_slice(properties) in listed.get(case, ())]
        if fit:
            slices[case] = fit
    return slices
