"""A inside S: an image patch goes in, its error map is made on the way, and labels come out (Woo 2022, section 4).

S and A have plans of their own: S sees patches at the image's resolution, A whole images on a coarser grid. So the
patch is brought to A's scale and grid, reconstructed, and the squared error is brought back: S's last input channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


class AnomalyAwareEndToEnd(nn.Module):
    """Image in, labels out: E = (x - A(x))^2 on the patch, at A's spacing, is one more channel of S.

    A sees the patch and nothing around it. Where the patch is a part of the image, its error map is therefore not quite
    that of ``nnunet-anomaly error-maps``, which reconstructs whole images; on one patch both are the same.

    Args:
        segmenter: S, nnU-Net's network for one channel more than the input, the error map last.
        reconstructors: one or more A (``InpaintingUNet`` without ``erase``); of several the mean reconstruction counts.
        image_channels: the first channels of the input, which A takes.
        input_channels: all channels of the input; those after the images are a cascade's labels.
        spacing_mm: voxel size of patches, 2 or 3 numbers.
        reconstruction_spacing_mm: voxel size that A is trained at.
        clip_sd: A's intensities are z-scores clipped at plus and minus this and rescaled to [0, 1].
    """

    def __init__(
        self,
        segmenter: nn.Module,
        reconstructors: Sequence[nn.Module],
        image_channels: int,
        input_channels: int,
        spacing_mm: Sequence[float],
        reconstruction_spacing_mm: Sequence[float],
        clip_sd: float,
    ):
        super().__init__()
        if not reconstructors:
            raise ValueError("there is no reconstruction network")
        self.segmenter = segmenter
        self.reconstructors = nn.ModuleList(reconstructors)
        self.image_channels, self.input_channels = image_channels, input_channels
        self.scale = [
            float(size_mm) / float(other_mm)
            for size_mm, other_mm in zip(spacing_mm, reconstruction_spacing_mm, strict=True)
        ]
        self.clip_sd = clip_sd
        self.error: torch.Tensor | None = None
        self._networks: Sequence[nn.Module] | None = None
        self.train(self.training)

    @property
    def decoder(self) -> nn.Module:
        """S's, where nnU-Net switches deep supervision on and off."""
        return self.segmenter.decoder  # type: ignore[return-value]

    def let_reconstructors_learn(self, learn: bool) -> None:
        """Whether A learns; its compressor C, which is G's, stays as it is, as when A was trained."""
        self.reconstructors.requires_grad_(learn)
        for network in self.reconstructors:
            if getattr(network, "compressor", None) is not None:
                network.compressor.requires_grad_(False)  # type: ignore[union-attr]

    def train(self, mode: bool = True) -> AnomalyAwareEndToEnd:
        """As for any module, but A stays in evaluation mode, in which it has learnt to be used."""
        super().train(mode)
        self.reconstructors.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """What S gives for z-scored images, (B, input channels, ...); or (B, input + image channels, ...) in training.

        Of the latter the second ``image_channels`` channels are what A sees in place of the first: the patch without
        the augmentation of intensities.
        """
        image, rest = x[:, : self.image_channels], x[:, self.image_channels :]
        shown = image
        if x.shape[1] > self.input_channels:
            shown, rest = rest[:, : self.image_channels], rest[:, self.image_channels :]
        error = self.error_map(shown)
        return self.segmenter(torch.cat((image, rest, error.to(image.dtype)), 1))

    @contextmanager
    def reconstructed_by(self, networks: Sequence[nn.Module]) -> Iterator[None]:
        """Inside the block other networks stand in for A, and ``error`` holds E of the last forward pass, detached.

        Args:
            networks: one for each sample of a batch, or one for all.
        """
        before = self._networks
        self._networks = networks
        try:
            yield
        finally:
            self._networks, self.error = before, None

    @torch.compiler.disable
    def error_map(self, image: torch.Tensor) -> torch.Tensor:
        """E of z-scored images (B, C, ...): float32 (B, 1, ...) on their grid, on the scale [0, 1], under autocast too.

        Voxels that are 0 in all channels are what nnU-Net padded or left out; E is 0 there.
        """
        kind = image.device.type
        full = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with full:
            scaled, inside = self.on_grid_of_reconstruction(image)
            error = (scaled - self.reconstruct(scaled)).square().mean(1, keepdim=True) * inside
            error = resampled(error, image.shape[2:])
            if self.training and torch.distributed.is_initialized():
                error = error + self._nothing_of_every_parameter()
        if self._networks is not None:
            self.error = error.detach()
        return error

    def on_grid_of_reconstruction(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z-scored images as A knows them, float32 (B, C, ...) in [0, 1], and 1 where there is any, (B, 1, ...).

        A voxel at the edge of padding is the mean of what there is of it: mixed with the padding it would look dark.
        """
        shape = self.shape_of_reconstruction(image.shape[2:])
        inside = (image != 0).any(1, keepdim=True).float()
        scaled = (image.float().clamp(-self.clip_sd, self.clip_sd) + self.clip_sd) / (2 * self.clip_sd)
        share = resampled(inside, shape)
        kept = (share >= 0.5).float()
        return resampled(scaled * inside, shape) / share.clamp(min=0.5) * kept, kept

    @torch.compiler.disable
    def beside_teacher(
        self, teacher: nn.Module, clean: torch.Tensor, shown: torch.Tensor, region: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What A is to learn on a patch: G of the clean image, A of what it is shown, and the clean image.

        Args:
            teacher: G, which takes the image and the region that it erases.
            clean, shown: z-scored (B, C, ...).
            region: 1 inside, (B, 1, ...).

        Returns:
            Three float32 (B, C, ...) on A's scale and grid; gradients reach A alone.
        """
        kind = clean.device.type
        full = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with full:
            with torch.no_grad():
                image, _ = self.on_grid_of_reconstruction(clean)
                inside = (resampled(region.float(), image.shape[2:]) >= 0.5).float()
                taught = self.reconstruct(torch.cat((image, inside), 1), [teacher])
                corrupted, _ = self.on_grid_of_reconstruction(shown)
            return taught, self.reconstruct(corrupted), image

    def shape_of_reconstruction(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Voxels of a patch on A's grid, as nnU-Net rounds them."""
        return tuple(max(1, round(size * scale)) for size, scale in zip(shape, self.scale, strict=True))

    def window(self, shape: Sequence[int]) -> tuple[int, ...]:
        """What a patch on A's grid is zero-padded to: the next sizes that A can halve, to no less than 2 voxels."""
        strides: Any = self.reconstructors[0].encoder.strides  # type: ignore[union-attr]
        divisors = np.prod([np.broadcast_to(stride, (len(shape),)) for stride in strides], axis=0)
        return tuple(int(by * max(2, math.ceil(size / by))) for size, by in zip(shape, divisors, strict=True))

    def reconstruct(self, image: torch.Tensor, networks: Sequence[nn.Module] | None = None) -> torch.Tensor:
        """A's reconstruction of images on its scale and grid, (B, C, ...) both; the mean where there are several A.

        Args:
            image: on A's scale and grid; with a region as last channel for networks that take one.
            networks: in place of A, as for ``reconstructed_by``.
        """
        window = self.window(image.shape[2:])
        missing = [whole - size for size, whole in zip(image.shape[2:], window, strict=True)]
        sides = [(number // 2, number - number // 2) for number in missing]  # as nnU-Net pads
        padded = functional.pad(image, [length for side in reversed(sides) for length in side])
        result = self._reconstructed(padded, networks or self._networks)
        for axis, ((low, _), size) in enumerate(zip(sides, image.shape[2:], strict=True)):
            result = result.narrow(axis + 2, low, size)
        return result

    def _nothing_of_every_parameter(self) -> torch.Tensor | float:
        """0, of every A that learns: several GPUs wait for a gradient of each, and a batch meets only some."""
        learning = [parameter for parameter in self.reconstructors.parameters() if parameter.requires_grad]
        return sum((0 * parameter.sum() for parameter in learning), 0.0)

    def _reconstructed(self, padded: torch.Tensor, networks: Sequence[nn.Module] | None) -> torch.Tensor:
        if networks is None:
            return torch.stack([network(padded) for network in self.reconstructors]).mean(0)
        if len(networks) == 1:
            return networks[0](padded)
        if len(networks) != len(padded):
            raise ValueError(f"{len(networks)} reconstruction networks for a batch of {len(padded)}")
        parts: dict[int, torch.Tensor] = {}
        for network in dict.fromkeys(networks):
            samples = [index for index, other in enumerate(networks) if other is network]
            parts.update(zip(samples, network(padded[samples]), strict=True))
        return torch.stack([parts[index] for index in range(len(padded))])


def resampled(values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Linear interpolation of (B, C, ...) to ``shape``, voxels as cells, as nnU-Net's resampling of order 1 does."""
    if tuple(values.shape[2:]) == tuple(shape):
        return values
    return functional.interpolate(values, tuple(shape), mode=_INTERPOLATION[len(shape)], align_corners=False)
