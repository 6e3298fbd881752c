"""Generator and discriminator learn by an optimiser each; for nnU-Net, which knows one, they are one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class TwoOptimizers:
    """What nnU-Net's trainer asks of an optimiser: its groups, and a state that its checkpoints keep.

    The state holds the discriminator's weights too, so that a training that goes on (``--c``) goes on with the same
    opponent.

    Args:
        generator: optimiser of the generator; its learning rate is the one that nnU-Net logs.
        discriminator: optimiser of the discriminator.
        opponent: the discriminator.
    """

    def __init__(self, generator: torch.optim.Optimizer, discriminator: torch.optim.Optimizer, opponent: nn.Module):
        self.generator, self.discriminator, self.opponent = generator, discriminator, opponent

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of both, the generator's first."""
        return [*self.generator.param_groups, *self.discriminator.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Of both, and the discriminator's weights."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "discriminator_weights": self.opponent.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set all three."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.opponent.load_state_dict(state["discriminator_weights"])


class DecayOfBoth:
    """nnU-Net's polynomial decay, of every group from its own initial rate; an exponent of 0 keeps them constant."""

    def __init__(self, optimizers: TwoOptimizers, max_steps: int, exponent: float = 0.9):
        self.optimizers, self.max_steps, self.exponent = optimizers, max_steps, exponent
        self.initial = [group["lr"] for group in optimizers.param_groups]

    def step(self, epoch: int) -> None:
        """Set the rates of an epoch."""
        factor = max(0.0, 1 - epoch / self.max_steps) ** self.exponent if self.exponent else 1.0
        for group, rate in zip(self.optimizers.param_groups, self.initial, strict=True):
            group["lr"] = rate * factor
