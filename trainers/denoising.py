"""Networks that learn from healthy cases to take away what was put into them: beyond Bengs, on the same base.

Both are U-Nets on ``3d_inpainting`` or ``2d_inpainting`` (``nnUNetPlannerAnomaly`` or ``nnUNetPlannerWholeVolume``),
and their error map is |x - x^|.
"""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnunet_anomaly.architectures.inpainting_unet import InpaintingUNet
from nnunet_anomaly.augmentation.protected_channels import insert_after_resampling, protect_channels
from nnunet_anomaly.augmentation.self_supervision import CoarseNoiseTransform, ForeignPatchTransform
from nnunet_anomaly.error_maps.predict import Residual
from nnunet_anomaly.losses.reconstruction import inpainting_loss
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.reconstruction import ReconstructionTrainer


class nnUNetTrainerDenoisingAutoencoder(ReconstructionTrainer):
    """Takes coarse noise away (Kascenas et al. 2022); skips and all, since noise is what it has to tell from tissue."""

    erase = False
    residual: Residual = "absolute"

    def _build_loss(self) -> Any:
        return inpainting_loss

    def with_extra_channels(self, pipeline: ComposeTransforms) -> ComposeTransforms:
        """Corrupt the image and keep the clean one; in validation too, for the same task."""
        return protect_channels(insert_after_resampling(pipeline, [self.corruption()]))

    def corruption(self) -> BasicTransform:
        """What is to be taken away."""
        settings = self.settings.self_supervision
        return CoarseNoiseTransform(
            cells=settings.noise_cells, noise_sd=settings.noise_sd, probability=settings.probability
        )

    def input_and_target(self, data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Corrupted image in, clean image out."""
        return data[:, : self.num_input_channels], data[:, self.num_input_channels :]


class ResidualUNet(InpaintingUNet):
    """Predicts what was added to the image, and gives the image without it."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        torch.nn.init.zeros_(self.to_image.bias)  # at first nothing is taken away

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, image_channels, ...) to the same shape."""
        return x - super().forward(x)


class nnUNetTrainerForeignPatch(nnUNetTrainerDenoisingAutoencoder):
    """Finds boxes through which another image shines (Tan et al. 2020), by predicting the residual."""

    network_class = ResidualUNet

    def corruption(self) -> BasicTransform:
        """A box of an earlier image."""
        settings = self.settings.self_supervision
        return ForeignPatchTransform(
            share=settings.patch_share, opacity=settings.patch_opacity, probability=settings.probability
        )


__getattr__ = epoch_variants(globals())
