"""nnU-Net's cross-entropy with a weight for every voxel (Xu 2022, section 2)."""

from __future__ import annotations

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn

from nnunet_anomaly.losses.focal import FocalLoss


class GapWeightedLoss(FocalLoss):
    """mean(w * CE) + dice_weight * L_Dice, with nnU-Net's two losses; where all weights are 1, nnU-Net's.

    ``weighted_by`` takes w - 1, so that it is ``FocalLoss`` with alpha and beta 1. The mean is over voxels and not
    divided by the sum of the weights (the paper multiplies before the reduction). Regions, ignore label and deep
    supervision are as there.

    Args:
        loss: what ``nnUNetTrainer._build_loss`` returns.
        dice_weight: of soft Dice, which has no voxel weights; 0 leaves it out.

    Raises:
        TypeError: ``loss`` is none of nnU-Net's two.
    """

    def __init__(self, loss: nn.Module, dice_weight: float):
        super().__init__(loss, alpha=1.0, beta=1.0)
        compound = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        compound.weight_dice = dice_weight

    def forward(self, output, target) -> torch.Tensor:
        """The loss, a scalar; 0 where every voxel is ignored."""
        loss = super().forward(output, target)
        if isinstance(loss, torch.Tensor):
            return loss
        # without Dice nnU-Net gives the number 0 here, through which nothing could be propagated back
        outputs = output if isinstance(output, list | tuple) else [output]
        return torch.stack([single.sum() * 0 for single in outputs]).sum()
