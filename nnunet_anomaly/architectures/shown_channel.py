"""A network of one input channel to which an image of several is given: it is shown one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class ShownChannel:
    """Forward pre-hook: of an image (B, C, ...) the network takes one channel, (B, 1, ...); one alone as it is.

    So the network's class and its weights' names stay those of the network that takes one channel.

    Args:
        channel: index of the channel.
    """

    def __init__(self, channel: int):
        self.channel = channel

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[torch.Tensor]:
        (image,) = inputs
        return (image if image.shape[1] == 1 else image[:, self.channel : self.channel + 1],)
