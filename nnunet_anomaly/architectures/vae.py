"""The variational autoencoder of Bengs et al. 2021 (figure 2): the same layers in 2-D and 3-D, shaped by the plans."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_convtransp
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn


class Reconstruction(NamedTuple):
    """What a VAE gives in training: a reconstruction, and the distribution that its code was drawn from.

    Attributes:
        image: float (B, image_channels, *spatial).
        mean: float32 (B, latent_size).
        log_variance: float32 (B, latent_size).
    """

    image: torch.Tensor
    mean: torch.Tensor
    log_variance: torch.Tensor


class VAE(nn.Module):
    """Image to a normal distribution over ``latent_size`` numbers, and back. There is no other way through.

    In training a code is drawn from the distribution and the result is a ``Reconstruction``; in evaluation the code is
    its mean and the result the image alone, so that error maps can be repeated.

    Args:
        image_channels: channels of the image and of the reconstruction.
        patch_size: the one spatial shape that it takes; divisible by the product of the strides.
        architecture: nnU-Net's ``arch_kwargs`` with classes in place of their names; the first stage may be strided.
        latent_size: length of the code.

    Raises:
        ValueError: the strides do not divide the patch size.
    """

    takes_whole_volumes = True

    def __init__(self, image_channels: int, patch_size: Sequence[int], architecture: dict[str, Any], latent_size: int):
        super().__init__()
        kwargs = dict(architecture)
        n_conv_decoder = kwargs.pop("n_conv_per_stage_decoder")
        self.encoder = PlainConvEncoder(image_channels, return_skips=False, **kwargs)
        strides = self.encoder.strides
        total = [math.prod(stage[axis] for stage in strides) for axis in range(len(patch_size))]
        if any(size % stride for size, stride in zip(patch_size, total, strict=True)):
            raise ValueError(f"the patch size {tuple(patch_size)} is not divisible by the strides' product {total}")
        self.patch_size = tuple(patch_size)
        self.latent_size = latent_size
        features = list(self.encoder.output_channels)
        self.code_shape = (features[-1], *(size // stride for size, stride in zip(patch_size, total, strict=True)))
        self.to_distribution = nn.Linear(math.prod(self.code_shape), 2 * latent_size)
        self.from_code = nn.Linear(latent_size, math.prod(self.code_shape))
        transposed = get_matching_convtransp(self.encoder.conv_op)
        widths = [*reversed(features), features[0]]
        blocks: list[nn.Module] = []
        for level, (wide, narrow) in enumerate(itertools.pairwise(widths)):
            stride = strides[len(strides) - 1 - level]
            blocks += [transposed(wide, narrow, stride, stride), self._stage(narrow, n_conv_decoder[level])]
        self.decoder = nn.Sequential(*blocks, self.encoder.conv_op(features[0], image_channels, 1))
        self.apply(InitWeights_He(1e-2))

    def _stage(self, channels: int, n_conv: int) -> nn.Module:
        encoder = self.encoder
        return StackedConvBlocks(
            n_conv,
            encoder.conv_op,
            channels,
            channels,
            encoder.kernel_sizes[-1],
            1,
            encoder.conv_bias,
            encoder.norm_op,
            encoder.norm_op_kwargs,
            nonlin=encoder.nonlin,
            nonlin_kwargs=encoder.nonlin_kwargs,
        )

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance, float32 (B, latent_size), of images (B, image_channels, *patch_size).

        Raises:
            ValueError: another spatial shape.
        """
        if tuple(image.shape[2:]) != self.patch_size:
            raise ValueError(f"the image has shape {tuple(image.shape[2:])}, but this network takes {self.patch_size}")
        mean, log_variance = self.to_distribution(self.encoder(image).flatten(1)).float().chunk(2, dim=1)
        return mean, log_variance

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Images (B, image_channels, *patch_size) of codes (B, latent_size)."""
        return self.decoder(self.from_code(code).reshape(-1, *self.code_shape))

    def forward(self, image: torch.Tensor) -> Reconstruction | torch.Tensor:
        """A ``Reconstruction`` in training, in evaluation the image that the mean code stands for."""
        mean, log_variance = self.encode(image)
        if not self.training:
            return self.decode(mean)
        code = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return Reconstruction(self.decode(code), mean, log_variance)

    @torch.inference_mode()
    def sample(self, number: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Images (number, image_channels, *patch_size) of codes drawn from the prior; call it in evaluation mode."""
        weight = self.from_code.weight
        return self.decode(torch.randn((number, self.latent_size), generator=generator).to(weight))

    @torch.inference_mode()
    def traverse(self, image: torch.Tensor, dimension: int, values: Sequence[float]) -> torch.Tensor:
        """Images (len(values), image_channels, *patch_size): one number of the code of an image set to each value.

        Args:
            image: (1, image_channels, *patch_size).
            dimension: which number of the code.
            values: in standard deviations of the prior.
        """
        codes = self.encode(image)[0].repeat(len(values), 1)
        codes[:, dimension] = torch.as_tensor(values).to(codes)
        return self.decode(codes)
