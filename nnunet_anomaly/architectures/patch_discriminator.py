"""PatchGAN (Isola et al. 2017): tells real images from inpainted ones patch by patch (LaMa: Suvorov et al. 2022)."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from nnunet_anomaly.architectures.fourier_convolution import Norm, normalisation


class PatchDiscriminator(nn.Module):
    """A logit for every patch of a plane, high for real: one scale of pix2pixHD's discriminator (Wang et al. 2018).

    ``n_layers`` convolutions of 4x4 pixels with stride 2, then two with stride 1, the last of which gives the logits.
    All but the last are followed by LeakyReLU, and all but the first and the last are normalised. With 4 layers and
    64 features it has 6,960,321 parameters for one image channel, and a logit sees 142 pixels (with 3 layers 70).

    Args:
        n_image_channels: of the images that it judges; the region is not shown to it.
        features: of the first layer; doubled by every other one.
        n_layers: strided convolutions, at least 1.
        max_features: what doubling stops at.
        norm: ``batch`` as in LaMa (pix2pixHD: ``instance``).

    Raises:
        ValueError: no layers, or an unknown norm.
    """

    def __init__(
        self,
        n_image_channels: int,
        features: int = 64,
        n_layers: int = 4,
        max_features: int = 512,
        norm: Norm = "batch",
    ):
        super().__init__()
        if n_layers < 1:
            raise ValueError(f"n_layers is {n_layers}; it must be at least 1")
        widths = [n_image_channels, *(min(features * 2**level, max_features) for level in range(n_layers + 1))]
        blocks: list[nn.Module] = []
        for level, (inside, outside) in enumerate(itertools.pairwise(widths)):
            block: list[nn.Module] = [nn.Conv2d(inside, outside, 4, stride=2 if level < n_layers else 1, padding=2)]
            if level > 0:
                block.append(normalisation(norm, outside))
            blocks.append(nn.Sequential(*block, nn.LeakyReLU(0.2)))
        self.blocks = nn.ModuleList(blocks)
        self.to_logits = nn.Conv2d(widths[-1], 1, 4, padding=2)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits and features of images (B, n_image_channels, y, x).

        Returns:
            Logits (B, 1, rows, columns), where rows are y halved ``n_layers`` times, each time rounded down plus 1, and
            2 more for the two layers without stride; and what every layer before gave, ``n_layers`` + 1 tensors.
        """
        features = []
        x = image
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return self.to_logits(x), features


def receptive_field_pixels(n_layers: int) -> int:
    """Pixels a side that one logit of a ``PatchDiscriminator`` sees: 2 ** n_layers * 9 - 2.

    Two layers of 4 pixels without stride see 7; a layer of 4 pixels with stride 2 before sees 2 n + 2 of what n are
    seen.
    """
    return 2**n_layers * 9 - 2
