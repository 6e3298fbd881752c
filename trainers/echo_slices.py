"""Slices of multi-echo images as samples: one echo of each, in passes that leave most empty slices out (Thomas)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_anomaly.learnable_slices import slices_with
from nnunet_anomaly.trainers.slice_dataset import SliceDataset

# numpy's global state draws here, as nnU-Net seeds it in every process that makes batches


class EchoSlices(SliceDataset):
    """Slices of cases, each with one of its echoes, which is drawn anew whenever the slice is loaded.

    A pass holds every slice with foreground once, and every other one with a probability, in random order.

    Args:
        dataset: preprocessed cases of nnU-Net's, with an echo a channel.
        foreground: whether each slice of a case holds foreground, bool (z,), by case.
        empty_slices_kept: probability of a slice without foreground to be in a pass.
        echo_probabilities: of every channel, float (C,); they sum to 1.
    """

    def __init__(
        self,
        dataset: Any,
        foreground: Mapping[str, np.ndarray],
        empty_slices_kept: float,
        echo_probabilities: np.ndarray,
    ):
        super().__init__(dataset, {case: range(len(found)) for case, found in foreground.items()})
        self.kept = np.where(np.concatenate(list(foreground.values())), 1.0, empty_slices_kept)
        self.echo_probabilities = echo_probabilities

    def channels(self) -> slice:
        """The echo that is drawn."""
        echo = int(np.random.choice(len(self.echo_probabilities), p=self.echo_probabilities))  # noqa: NPY002
        return slice(echo, echo + 1)

    def draw_pass(self) -> list[str]:
        """Identifiers of the slices of a new pass; none where all are empty and none of them is drawn."""
        drawn = np.random.random(len(self.kept)) < self.kept  # noqa: NPY002
        return [self.identifiers[index] for index in np.random.permutation(np.flatnonzero(drawn))]  # noqa: NPY002


class PassLoader(nnUNetDataLoader):
    """nnU-Net's loader; samples are not drawn one by one, but pass after pass, of which every process has its own.

    Args:
        data: with ``draw_pass``, which must give samples sooner or later.
        more: as for nnU-Net's loader.
    """

    def __init__(self, data: EchoSlices, *more: Any, **named: Any):
        super().__init__(data, *more, **named)
        self.waiting: list[str] = []

    def get_indices(self) -> list[str]:
        """Samples of the next batch; it may begin in one pass and end in another."""
        drawn: list[str] = []
        while len(drawn) < self.batch_size:
            if not self.waiting:
                self.waiting = self._data.draw_pass()
            else:
                drawn.append(self.waiting.pop())
        return drawn


def foreground_slices(dataset: Any, labels: Sequence[int]) -> dict[str, np.ndarray]:
    """Whether each slice of every case holds any of some labels: bool (z,), by case; all label maps are read.

    Args:
        dataset: preprocessed cases of nnU-Net's.
        labels: of the foreground.
    """
    found = {}
    for case in dataset.identifiers:
        _, label_map, _, _ = dataset.load_case(case)
        found[case] = slices_with(np.asarray(label_map[0]), labels)
    return found
