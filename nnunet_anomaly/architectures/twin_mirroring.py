"""A network that also looks at the mirror image, in prediction, and knows that left and right are exchanged in it.

nnU-Net's predictor mirrors from outside and averages channel by channel, so that along the axis from left to right it
would average a left structure with a right one. Here the network does it itself, by a hook: its class, its weights'
names and nnU-Net's switch for deep supervision stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class TwinMirroring:
    """Forward hook: the mean of a network's logits and those of the mirrored input, mirrored back, twins exchanged.

    It acts in eval mode, and on single outputs alone. A network under deep supervision gives a list: that is nnU-Net's
    training and its validation steps, which cost and say what they do in nnU-Net. nnU-Net switches deep supervision off
    for prediction.

    The mirrored pass calls ``module.forward`` of whichever module the hook was called for, so that copies of a network
    use their own weights.

    Args:
        side_axis: axis of the patch (without batch and channels) from left to right.
        output_twins: for every output channel that of its twin, itself where there is none.
        input_twins: the same for input channels, where labels are among them (cascade); None: they stay.
    """

    def __init__(self, side_axis: int, output_twins: Sequence[int], input_twins: Sequence[int] | None = None):
        self.axis = side_axis + 2
        self.output_twins = list(output_twins)
        self.input_twins = None if input_twins is None else list(input_twins)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if module.training or not isinstance(output, torch.Tensor):
            return output
        (image,) = inputs
        mirrored = torch.flip(image, (self.axis,))
        if self.input_twins is not None:
            mirrored = mirrored[:, self.input_twins]
        seen_mirrored = torch.flip(module.forward(mirrored), (self.axis,))
        return (output + seen_mirrored[:, self.output_twins]) / 2
