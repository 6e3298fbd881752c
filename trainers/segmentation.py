"""What all our segmentation trainers share: settings from the plans, and their seed."""

from __future__ import annotations

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_anomaly.seeding import seed_everything
from nnunet_anomaly.settings import AnomalySettings


class SegmentationTrainer(nnUNetTrainer):
    """Base of our segmentation trainers; nnU-Net in all but what the plans' ``"anomaly"`` block says."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        self.settings = AnomalySettings.from_plans(plans)
        super().__init__(plans, configuration, fold, dataset_json, device)

    def initialize(self) -> None:
        """Seed, then build as nnU-Net does."""
        seed_everything(self.settings.seed, self.fold, self.local_rank)
        super().initialize()
