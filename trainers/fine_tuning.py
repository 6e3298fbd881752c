"""How networks learn from few labels: nnU-Net's way or the paper's, by ``anomaly.fine_tuning`` (Xu 2022, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nnunet_anomaly.improvement import PlateauSchedule, epochs_without_improvement
from nnunet_anomaly.trainers.segmentation import SegmentationTrainer


class NoMoreImprovement(Exception):
    """Leaves nnU-Net's loop over epochs; ``FineTuning.run_training`` catches it."""


class FineTuning(SegmentationTrainer):
    """Optimiser, learning rate, schedule, epochs and early stopping from the plans; a base class of trainers.

    An epoch is better than those before it by the mean of nnU-Net's pseudo-Dice, which is the same on all GPUs.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = self.settings.fine_tuning.learning_rate
        self.num_epochs = self.settings.fine_tuning.epochs
        if self.settings.fine_tuning.optimizer == "adam":
            self.weight_decay = 0.0  # the paper has none

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's two, or Adam, or the schedule that falls on plateaus."""
        settings = self.settings.fine_tuning
        optimizer, scheduler = super().configure_optimizers()
        if settings.optimizer == "adam":
            optimizer = torch.optim.Adam(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
            scheduler = type(scheduler)(optimizer, self.initial_lr, self.num_epochs)
        if settings.learning_rate_schedule == "plateau":
            scheduler = PlateauSchedule(
                optimizer, self.initial_lr, settings.plateau_factor, settings.plateau_epochs, self.scores
            )
        return optimizer, scheduler

    def scores(self) -> Sequence[float]:
        """Mean pseudo-Dice of every epoch so far."""
        return self.logger.get_value("mean_fg_dice", step=None)

    def run_training(self) -> None:
        """nnU-Net's, which may end before its last epoch."""
        try:
            super().run_training()
        except NoMoreImprovement:
            self.on_train_end()

    def on_epoch_start(self) -> None:
        """End the training where it has not improved for too long; with ``--c`` one that had ended so before, again.

        Raises:
            NoMoreImprovement: it has not.
        """
        patience = self.settings.fine_tuning.early_stopping_epochs
        if patience and epochs_without_improvement(self.scores()[: self.current_epoch]) >= patience:
            self.print_to_log_file(f"No better pseudo-Dice in {patience} epochs: the training ends")
            raise NoMoreImprovement
        super().on_epoch_start()
