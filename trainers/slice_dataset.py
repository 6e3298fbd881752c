"""Chosen slices of cases, as samples of their own for nnU-Net's loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import named_file
from nnunet_anomaly.learnable_slices import learnable_slices, read_slice_list
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
        return image[self.channels(), one], labels[:, one], None, {**properties, "class_locations": {}}

    def channels(self) -> slice:
        """Channels of the image that are loaded: all."""
        return slice(None)


class StoredLabelMaps:
    """Label maps of a preprocessed dataset as they are stored, with nnU-Net's order of axes.

    Args:
        folder: of the preprocessed dataset; nnU-Net copies the label maps to ``gt_segmentations`` in it.
        file_ending: of dataset.json.
        plans_manager: knows the reader and the order of axes.
    """

    def __init__(self, folder: Path, file_ending: str, plans_manager: PlansManager):
        self.folder, self.file_ending = folder / "gt_segmentations", file_ending
        self.reader, self.axes = plans_manager.image_reader_writer_class(), plans_manager.transpose_forward

    def cases(self) -> set[str]:
        """All cases with a label map."""
        return {path.name.removesuffix(self.file_ending) for path in self.folder.glob(f"*{self.file_ending}")}

    def read(self, case: str) -> np.ndarray:
        """Label map (z, y, x).

        Raises:
            InputError: it is not there.
        """
        path = self.folder / f"{case}{self.file_ending}"
        if not path.is_file():
            raise InputError(f"{path} does not exist. Preprocess the dataset again (nnUNetv2_preprocess).")
        return self.reader.read_seg(str(path))[0][0].transpose(self.axes)


def healthy_slices(dataset: Any, stored: StoredLabelMaps, settings: AnomalySettings) -> dict[str, list[int]]:
    """Numbers of the slices to learn from, by case; cases without one are left out.

    Args:
        dataset: of nnU-Net's; the label maps of all its cases are read.
        stored: label maps of the whole dataset.
        settings: ``roi.labels`` and the group ``slices`` count.

    Raises:
        InputError: the list of slices is none, or names what is not there, or a label map is missing.
    """
    chosen = settings.slices
    lists = read_slice_list(named_file(chosen.file)) if chosen.file else None
    if lists is not None and (unknown := sorted(set(lists) - stored.cases())):
        raise InputError(f"slices.file: {chosen.file} names cases that the dataset does not have: {', '.join(unknown)}")
    slices = {}
    for case in dataset.identifiers:
        _, labels, _, properties = dataset.load_case(case)
        stored_labels = stored.read(case)
        listed = None if lists is None else lists.get(case, set())
        if listed and max(listed) >= len(stored_labels):
            raise InputError(
                f"slices.file: {chosen.file} names slice {max(listed)} of {case}, whose slices are 0 to "
                f"{len(stored_labels) - 1} along nnU-Net's first axis."
            )
        roi_labels, lesion_labels = settings.roi.labels, chosen.lesion_labels
        fit = learnable_slices(np.asarray(labels[0]), stored_labels, properties, roi_labels, lesion_labels, listed)
        if fit:
            slices[case] = fit
    return slices
