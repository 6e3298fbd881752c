"""Mirroring that knows left from right: what lay on the left lies on the right afterwards, and is called so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnunet_anomaly.twins import swapped_labels


class TwinMirrorTransform(MirrorTransform):
    """nnU-Net's mirroring; where the axis from left to right is drawn, labels of left and right are exchanged with it.

    It does so in all channels of ``segmentation``, which hold label maps then: nnU-Net makes regions of them, and input
    channels of the previous stage's labels, after it has mirrored. Other labels, the ignore label and -1 stay.

    Args:
        allowed_axes: axes of the patch that may be mirrored, each with probability 0.5.
        side_axis: axis of the patch from left to right.
        pairs: labels of left and right.
    """

    def __init__(self, allowed_axes: tuple[int, ...], side_axis: int, pairs: Iterable[tuple[int, int]]):
        super().__init__(allowed_axes)
        self.side_axis = side_axis
        self.twins = swapped_labels(pairs)

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        mirrored = super()._apply_to_segmentation(segmentation, **params)
        return exchange_labels(mirrored, self.twins) if self.side_axis in params["axes"] else mirrored


def exchange_labels(label_map: torch.Tensor, twins: dict[int, int]) -> torch.Tensor:
    """A label map (any shape, an integer dtype) in which every label that has a twin has become its twin."""
    if label_map.numel() == 0 or not twins:
        return label_map
    lowest, highest = min(int(label_map.min()), *twins), max(int(label_map.max()), *twins)
    table = torch.arange(lowest, highest + 1, dtype=label_map.dtype)
    for label, twin in twins.items():
        table[label - lowest] = twin
    return table[label_map.long() - lowest]


def know_left_from_right(
    pipeline: ComposeTransforms, side_axis: int, pairs: Iterable[tuple[int, int]]
) -> ComposeTransforms:
    """A pipeline in which every ``MirrorTransform`` exchanges labels too; ``pipeline`` is not changed."""
    pairs = tuple(pairs)
    return ComposeTransforms(
        [
            TwinMirrorTransform(step.allowed_axes, side_axis, pairs) if isinstance(step, MirrorTransform) else step
            for step in pipeline.transforms
        ]
    )
