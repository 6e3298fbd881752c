"""Plain nnU-Net with the plans' seed: the baseline that comparisons over seeds need."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_anomaly.seeding import seed_everything
from nnunet_anomaly.settings import AnomalySettings
from nnunet_anomaly.trainers.epoch_variants import epoch_variants


class nnUNetTrainerSeeded(nnUNetTrainer):
    """nnU-Net as it is; only its random numbers start from ``anomaly.seed``, as those of our other trainers do."""

    def initialize(self) -> None:
        """Seed, then build as nnU-Net does."""
        seed_everything(AnomalySettings.from_plans(self.plans_manager.plans).seed, self.fold, self.local_rank)
        super().initialize()


__getattr__ = epoch_variants(globals())
