"""The anomaly-aware loss: cross-entropy weighted voxel-wise by the error map, beside nnU-Net's Dice.

Woo et al. 2022, equation 2: ``L_S = L_Dice + alpha * mean(F * CE)`` with ``F = 1 + beta * E``. The mean over voxels,
not the paper's sum, keeps alpha independent of the patch size; it is not divided by the sum of F. nnU-Net's own losses
do all the rest: what is exchanged is their cross-entropy alone, so ignore label, regions, batch Dice, DDP and deep
supervision are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn
from torch.nn import functional


class FocalCrossEntropy(nn.Module):
    """Stands in for the cross-entropy inside ``DC_and_CE_loss`` (softmax) or ``DC_and_BCE_loss`` (regions, sigmoid).

    Args:
        plain: the module that it stands in for; it computes the loss whenever there is no error map or beta is 0.
        beta: weight of the error map in ``F = 1 + beta * E``.

    Raises:
        TypeError: ``plain`` is neither a cross-entropy over classes nor one over regions.
        ValueError: ``plain`` weights classes, for which no mean over voxels is defined here.
    """

    def __init__(self, plain: nn.Module, beta: float):
        super().__init__()
        if not isinstance(plain, nn.CrossEntropyLoss | nn.BCEWithLogitsLoss):
            raise TypeError(f"{type(plain).__name__} has no focal form; use nnU-Net's cross-entropy")
        if plain.weight is not None or getattr(plain, "pos_weight", None) is not None:
            raise ValueError("a cross-entropy with class weights has no focal form")
        self.plain = plain
        self.beta = beta
        self.error: torch.Tensor | Callable[[], torch.Tensor] | None = None

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of logits (b, c, *spatial).

        ``target`` is (b, *spatial) with classes, or (b, c, *spatial) with regions. A scalar; or, where nnU-Net asks for
        it (regions with an ignore label), a map of the target's shape that nnU-Net masks itself.
        """
        if self.error is None or self.beta == 0:
            return self.plain(logits, target)
        focus = self._focus(logits)
        if isinstance(self.plain, nn.BCEWithLogitsLoss):
            loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").float() * focus
            return loss if self.plain.reduction == "none" else loss.mean()
        ignored = self.plain.ignore_index
        smoothing = self.plain.label_smoothing
        target = target.long()
        loss = functional.cross_entropy(
            logits, target, reduction="none", ignore_index=ignored, label_smoothing=smoothing
        )
        # nnU-Net has no call for a mean over nothing: it leaves this out where every voxel is ignored
        voxels = loss.numel() if ignored < 0 else (target != ignored).sum()
        return (loss.float() * focus[:, 0]).sum() / voxels

    def _focus(self, logits: torch.Tensor) -> torch.Tensor:
        """F on the grid of ``logits``, float32 (b, 1, *spatial)."""
        assert self.error is not None
        shape = logits.shape[2:]
        error = self.error if isinstance(self.error, torch.Tensor) else self.error().detach()
        if error.ndim != logits.ndim or error.shape[0] != logits.shape[0]:
            raise ValueError(f"error maps of shape {tuple(error.shape)} do not fit outputs {tuple(logits.shape)}")
        error = error.to(logits.device, torch.float32, non_blocking=True)
        if error.shape[1] > 1:
            error = error.mean(dim=1, keepdim=True)
        self.error = error  # moved to the device once, not again for every scale
        if error.shape[2:] != shape:
            # the mean over each coarse voxel: no small anomaly falls between the samples, and the mean of F stays
            error = functional.interpolate(error, shape, mode="area")
        return 1 + self.beta * error


class FocalLoss(nn.Module):
    """nnU-Net's segmentation loss made anomaly-aware; with alpha 1 and beta 0, or without error maps, the same loss.

    ``train_step`` calls a loss with outputs and targets only, so the error maps of the batch are given around it::

        self.loss = FocalLoss(super()._build_loss(), alpha, beta)
        ...
        with self.loss.weighted_by(error):
            return super().train_step(batch)

    Deep supervision is nnU-Net's: at every scale, F is averaged to the size of that output.

    Args:
        loss: what ``nnUNetTrainer._build_loss`` returns, with or without deep supervision; its cross-entropy and the
            weight thereof are exchanged in place.
        alpha: weight of the cross-entropy; 0 leaves Dice only.
        beta: weight of the error map in F.

    Raises:
        TypeError: ``loss`` is none of nnU-Net's two.
    """

    def __init__(self, loss: nn.Module, alpha: float, beta: float):
        super().__init__()
        compound = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        if not isinstance(compound, DC_and_CE_loss | DC_and_BCE_loss):
            raise TypeError(f"{type(compound).__name__} has no focal form; use DC_and_CE_loss or DC_and_BCE_loss")
        self.cross_entropy = compound.ce = FocalCrossEntropy(compound.ce, beta)
        compound.weight_ce = alpha
        self.loss = loss

    def forward(self, output, target) -> torch.Tensor:
        """The loss, a scalar; tensors, or lists of them with deep supervision, as nnU-Net passes them."""
        return self.loss(output, target)

    @contextmanager
    def weighted_by(self, error: torch.Tensor | Callable[[], torch.Tensor] | None) -> Iterator[None]:
        """Weight every call inside the block by ``error``; on leaving it, what was set before holds again.

        Args:
            error: E on the paper's scale (squared difference of intensities in [0, 1]), float
                (b, n, *spatial of the highest-resolution output); the mean over its n channels counts. It is brought
                to the outputs' device if need be. None is the plain loss. A function gives it when the loss is
                computed, where the network itself makes the error map.
        """
        before = self.cross_entropy.error
        self.cross_entropy.error = error.detach() if isinstance(error, torch.Tensor) else error
        try:
            yield
        finally:
            self.cross_entropy.error = before
