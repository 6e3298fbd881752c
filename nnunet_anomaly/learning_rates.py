"""nnU-Net's polynomial decay where some parameters learn more slowly than others."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

FACTOR = "learning_rate_factor"  # key of a parameter group


class PolyLRWithFactors(PolyLRScheduler):
    """``PolyLRScheduler``, after which every group with a ``learning_rate_factor`` is multiplied by it.

    nnU-Net's own gives all groups one rate. ``get_last_lr`` has a rate a group.
    """

    def step(self, current_step: Any = None) -> None:
        """Set the rates of the next epoch."""
        super().step(current_step)
        for group in self.optimizer.param_groups:
            group["lr"] *= group.get(FACTOR, 1.0)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
