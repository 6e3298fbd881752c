"""The simplest model of healthy images on a common grid: the mean and the standard deviation of every voxel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

# A voxel that never varies (background) would make every difference infinite: half a percent of the intensity scale.
SMALLEST_SD = 0.005


class HealthyMean(nn.Module):
    """Mean and standard deviation of all images that it was shown (``update``).

    It gives the image moved towards the mean by so much that |x - x^| is ``unit`` times the z-score |x - mean| / SD.

    Args:
        image_channels: of the image.
        patch_size: the one spatial shape that it takes.
        unit: what a z-score of 1 is in the error map; 0.1 is one standard deviation of the whole image's intensities.
    """

    takes_whole_volumes = True
    count: torch.Tensor

    def __init__(self, image_channels: int, patch_size: Sequence[int], unit: float = 0.1):
        super().__init__()
        self.unit = unit
        shape = (image_channels, *patch_size)
        # parameters, not buffers: nnU-Net's distributed training and optimiser expect some
        self.mean = nn.Parameter(torch.zeros(shape))
        self.squares = nn.Parameter(torch.zeros(shape))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, images: torch.Tensor) -> None:
        """Take in images (B, image_channels, *patch_size): mean and mean square go on without keeping them."""
        self.count.add_(len(images))
        for total, values in ((self.mean, images), (self.squares, images.square())):
            total.add_((values.float() - total).sum(0) / self.count)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, image_channels, *patch_size) to the same shape."""
        sd = (self.squares - self.mean.square()).clamp(min=SMALLEST_SD**2).sqrt()
        return image - self.unit * (image - self.mean) / sd
