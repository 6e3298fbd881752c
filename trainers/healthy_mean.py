"""The baseline without a network: how many standard deviations a voxel is from the mean of healthy images."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_anomaly.architectures.healthy_mean import HealthyMean
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.vae import nnUNetTrainerVAE


class nnUNetTrainerHealthyMean(nnUNetTrainerVAE):
    """One epoch of nnU-Net's random draws; the error map is a tenth of the z-score (``3d_whole`` or ``2d_whole``).

    In 2-D it is one mean of all slices, which tells little: it is there for comparison.
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
        if self.is_ddp:
            raise SettingsError("nnUNetTrainerHealthyMean takes one mean over all batches: train it without -num_gpus.")
        self.num_epochs = 1

    @classmethod
    def build_reconstruction_network(  # type: ignore[override]
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> HealthyMean:
        """Nothing but two images."""
        return HealthyMean(num_input_channels, configuration_manager.patch_size)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net keeps one in its checkpoints; it is never called."""
        optimizer = torch.optim.SGD(self.network.parameters(), 0.0)
        return optimizer, PolyLRScheduler(optimizer, 0.0, self.num_epochs)

    def train_step(self, batch: dict) -> dict:
        """Take the batch into the mean; its loss is the mean absolute difference to it."""
        _, images = self.input_and_target(batch["data"].to(self.device, non_blocking=True))
        network = self.bare_network()
        network.update(images)
        return {"loss": (images - network.mean).abs().mean().detach().cpu().numpy()}

    def draw_latent_space(self) -> None:
        """There is none."""


__getattr__ = epoch_variants(globals())
