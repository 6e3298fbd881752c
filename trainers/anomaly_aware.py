"""Woo's S: nnU-Net with the error map as one more channel and as focal weights (section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import nn

from nnunet_anomaly.augmentation.protected_channels import protect_channels
from nnunet_anomaly.dataset_roles import error_channels
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.losses.focal import FocalLoss
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.segmentation import SegmentationTrainer


class nnUNetTrainerAnomalyAware(SegmentationTrainer):
    """S: L_S = L_Dice + alpha * mean(F * CE), F = 1 + beta * E; E is data, so only spatial transforms move it.

    Without an error channel, or with alpha 1 and beta 0, this is nnU-Net's loss (alpha 0: Dice only).
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        self.error_channels = error_channels(dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        for channel in self.error_channels:
            scheme = self.configuration_manager.normalization_schemes[channel]
            if scheme != "NoNormalization":
                raise SettingsError(
                    f"These plans normalise the error map, channel {channel}, by {scheme}, which would change its "
                    f"scale from case to case. Plan and preprocess {plans['dataset_name']} again."
                )

    def initialize(self) -> None:
        """As all ours, and let the error channel start at the scale of the image."""
        super().initialize()
        if self.error_channels:
            self.start_at_scale_of_image(self.network, self.error_channels)

    def start_at_scale_of_image(self, network: nn.Module, error_channels: Sequence[int]) -> None:
        """Multiply the weights of error channels in the first convolution of a network."""
        first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d))
        with torch.no_grad():
            first.weight[:, list(error_channels)] *= self.settings.error_map.input_gain

    def _build_loss(self) -> FocalLoss:
        focal = self.settings.focal
        return FocalLoss(super()._build_loss(), focal.alpha, focal.beta)

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:  # type: ignore[override]
        """nnU-Net's transforms, from which the error map takes the spatial ones alone."""
        return protect_channels(super().get_training_transforms(*args, **kwargs), self.error_channels)

    def error_of(self, batch: dict) -> torch.Tensor | None:
        """E of a batch, (B, error channels, ...), on the device; None without an error channel."""
        if not self.error_channels:
            return None
        return batch["data"][:, list(self.error_channels)].to(self.device, non_blocking=True)

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step, its cross-entropy weighted by the batch's own error map."""
        with self.loss.weighted_by(self.error_of(batch)):
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's, with the loss weighted as in training."""
        with self.loss.weighted_by(self.error_of(batch)):
            return super().validation_step(batch)


__getattr__ = epoch_variants(globals())
