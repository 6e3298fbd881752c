"""When a training no longer improves: learning rates that fall on plateaus, and early stopping, from the log alone.

Nothing is remembered but the score of every epoch, which nnU-Net's checkpoints hold, so that a training that goes on
(``--c``) goes on as if it had never stopped. Higher scores are better; NaN is never better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def epochs_without_improvement(scores: Sequence[float]) -> int:
    """Epochs since the best one, at the end of ``scores``; without any epoch 0."""
    best, since = float("-inf"), 0
    for score in scores:
        best, since = (score, 0) if score > best else (best, since + 1)
    return since


def reductions(scores: Sequence[float], patience: int) -> int:
    """How many times ``patience`` epochs in a row brought no better score; after each the count begins anew."""
    best, since, number = float("-inf"), 0, 0
    for score in scores:
        best, since = (score, 0) if score > best else (best, since + 1)
        if since == patience:
            since, number = 0, number + 1
    return number


class PlateauSchedule(torch.optim.lr_scheduler.LRScheduler):
    """``initial_lr * factor ** reductions``, set at the start of every epoch as nnU-Net does.

    Args:
        optimizer: whose learning rate is set.
        initial_lr: before the first reduction.
        factor: on the learning rate at each reduction.
        patience: see ``reductions``.
        scores: gives the score of every epoch so far.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        initial_lr: float,
        factor: float,
        patience: int,
        scores: Callable[[], Sequence[float]],
    ):
        self.initial_lr, self.factor, self.patience, self.scores = initial_lr, factor, patience, scores
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rate of an epoch (default: the next one) from the scores before it."""
        rate = self.initial_lr * self.factor ** reductions(self.scores()[:epoch], self.patience)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [rate] * len(self.optimizer.param_groups)
