"""A loss beside another, for a network that learns two things at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class WithSecondTask(nn.Module):
    """A loss of outputs and targets, plus a weighted one that is computed from elsewhere while it is set.

    nnU-Net's ``train_step`` knows one loss of outputs and targets alone; see ``FocalLoss.weighted_by``.

    Args:
        loss: of the first task; all that it has besides (``weighted_by``) is found here too.
        weight: of the second.
    """

    def __init__(self, loss: nn.Module, weight: float):
        super().__init__()
        self.loss = loss
        self.weight = weight
        self.second: Callable[[], torch.Tensor] | None = None
        self.last_value: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("loss"), name)

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """The sum, a scalar; the first alone where no second is set."""
        first = self.loss(output, target)
        if self.second is None:
            return first
        second = self.second()
        self.last_value = second.detach()
        return first + self.weight * second

    @contextmanager
    def beside(self, second: Callable[[], torch.Tensor]) -> Iterator[None]:
        """Add what the function gives to every call inside the block; ``last_value`` keeps it, unweighted."""
        self.second = second
        try:
            yield
        finally:
            self.second = None
