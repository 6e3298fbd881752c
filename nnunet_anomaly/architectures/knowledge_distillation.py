"""Multiresolution knowledge distillation (Salehi et al. 2021): a small network learns VGG-16's healthy features.

Where the cloner has not learnt to say what its source says, the image is not healthy. There is no reconstruction: what
the network gives is the anomaly map itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

from nnunet_anomaly.architectures.vgg import VGG16Features
from nnunet_anomaly.losses.distillation import distance_map, distillation_loss
from nnunet_anomaly.settings import DistillationSettings

CRITICAL_LAYERS = (9, 16, 23, 30)  # of VGG-16: the pooling layers but the first
# Convolutions of the cloner's stages, by their channels; a pooling layer ends every stage. The last of a stage has as
# many as VGG-16 there, but in the first stage, which is not compared.
CLONER_STAGES = ((16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512))
MULTIPLE = 2 ** len(CLONER_STAGES)


class DistilledFeatures(NamedTuple):
    """What source and cloner say of images: (B * image_channels, channels, y, x) of every critical layer."""

    source: list[torch.Tensor]
    cloned: list[torch.Tensor]


class Cloner(nn.Module):
    """VGG-16 with 16 channels where it is not compared: 343,984 parameters against 14,714,688.

    The convolutions have no bias, and BatchNorm behind them but for the last of a stage, whose ReLU has to give values
    on the scale of the source's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 3
        for widths in CLONER_STAGES:
            layers: list[nn.Module] = []
            for number, width in enumerate(widths, start=1):
                layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
                if number < len(widths):
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                channels = width
            self.stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of the critical layers, of images (B, 3, y, x) normalised as ImageNet's are."""
        found = []
        for stage in self.stages:
            image = stage(image)
            found.append(image)
        return found[-len(CRITICAL_LAYERS) :]


class KnowledgeDistillation(nn.Module):
    """Source and cloner, and the anomaly map that follows from how they differ.

    In training the result is ``DistilledFeatures``; in evaluation the anomaly map (B, image_channels, y, x),
    also under ``torch.no_grad`` (under ``inference_mode`` there is no way back to gradients). Every image channel is a
    grey image of its own. Slices are padded with their edge values to multiples of 32 pixels, the map is cropped again.

    The source's weights are random until the trainer or a checkpoint brings them; they do not learn, but are part of
    the state dict, so that a checkpoint needs no other file.

    Args:
        settings: kind of map, weights of its terms, smoothing.
        spacing_mm: pixel size (y, x).
    """

    def __init__(self, settings: DistillationSettings, spacing_mm: Sequence[float]):
        super().__init__()
        self.settings = settings
        self.spacing_mm = tuple(float(size_mm) for size_mm in spacing_mm)
        self.source = VGG16Features(None, CRITICAL_LAYERS)
        self.cloner = Cloner()

    def forward(self, image: torch.Tensor) -> DistilledFeatures | torch.Tensor:
        """See the class; ``image`` is float (B, image_channels, y, x) in [0, 1]."""
        return self.features(image) if self.training else self.anomaly_map(image)

    def features(self, image: torch.Tensor) -> DistilledFeatures:
        """What both say of images (B, image_channels, y, x)."""
        padded, _ = _padded(image.flatten(0, 1)[:, None])
        rgb = padded.expand(-1, 3, -1, -1)
        return DistilledFeatures(self.source(rgb), self.cloner((rgb - self.source.mean) / self.source.sd))

    def loss(self, features: DistilledFeatures) -> torch.Tensor:
        """Distillation loss of every grey image, (B * image_channels,)."""
        return distillation_loss(*features, self.settings.value_weight)

    def anomaly_map(self, image: torch.Tensor) -> torch.Tensor:
        """Map of images (B, image_channels, y, x), of the same shape, not negative; the same one every time.

        By ``settings.map``: the size of the gradient of the loss with respect to the image (the paper), its mean over
        noisy copies of the image (Smilkov 2017), or the distances of features. A gradient is multiplied by the number
        of pixels, or it would be the smaller the larger the slice is. Then smoothed and opened.
        """
        padded, inside = _padded(image.detach().flatten(0, 1)[:, None])
        if self.settings.map == "distance":
            source, cloned = (layers[-self.settings.map_layers :] for layers in self.features(padded))
            found = distance_map(source, cloned, padded.shape[2:])
        elif self.settings.map == "gradient":
            found = self._gradient(padded).abs()
        else:
            generator, total = torch.Generator().manual_seed(0), torch.zeros_like(padded)
            for _ in range(self.settings.noise_samples):
                noise = self.settings.noise_sd * torch.randn(padded.shape[2:], generator=generator).to(padded)
                total += self._gradient(padded + noise)
            found = (total / self.settings.noise_samples).abs()
        maps = smoothed_and_opened(
            found[inside][:, 0].detach().float().cpu().numpy(),
            self.settings.smoothing_mm,
            self.settings.opening_mm,
            self.spacing_mm,
        )
        return torch.from_numpy(maps).to(image).reshape(image.shape)

    def _gradient(self, padded: torch.Tensor) -> torch.Tensor:
        """Gradient of every image's own loss, per pixel of the image; (n, 1, y, x)."""
        with torch.enable_grad():
            image = padded.clone().requires_grad_()
            features = DistilledFeatures(*(layers[-self.settings.map_layers :] for layers in self.features(image)))
            (gradient,) = torch.autograd.grad(self.loss(features).sum(), image)
        return gradient * (padded.shape[2] * padded.shape[3])


def smoothed_and_opened(
    maps: np.ndarray, smoothing_mm: float, opening_mm: float, spacing_mm: Sequence[float]
) -> np.ndarray:
    """Maps smoothed by a Gaussian, then opened by a disc: what of them is narrower than the disc is taken away.

    A threshold on an opened map gives the same as the opening of a mask by that threshold, as the authors do it, and
    the house's rule for edges holds: beyond them there is nothing (``geometry.open_mm``).

    Args:
        maps: float (n, y, x), not negative.
        smoothing_mm: standard deviation of the Gaussian, edge values repeated beyond the edge; 0 smooths nothing.
        opening_mm: radius of the disc; one below the pixel size opens nothing.
        spacing_mm: pixel size (y, x).

    Returns:
        float32 (n, y, x).
    """
    maps = np.asarray(maps, dtype=np.float32)
    if smoothing_mm > 0:
        sigma = (0, *(smoothing_mm / size_mm for size_mm in spacing_mm))
        maps = ndimage.gaussian_filter(maps, sigma, mode="nearest")
    reach = [int(opening_mm / size_mm + 1e-6) for size_mm in spacing_mm]
    if not any(reach):
        return maps
    rows, columns = (np.arange(-steps, steps + 1) * size_mm for steps, size_mm in zip(reach, spacing_mm, strict=True))
    disc = rows[:, None] ** 2 + columns**2 <= (opening_mm * (1 + 1e-6)) ** 2
    eroded = ndimage.grey_erosion(maps, footprint=disc[None], mode="constant", cval=0)
    return ndimage.grey_dilation(eroded, footprint=disc[None], mode="constant", cval=0)


def _padded(image: torch.Tensor) -> tuple[torch.Tensor, tuple[Any, ...]]:
    """Images (n, 1, y, x) with their edges repeated up to multiples of 32 pixels, and the index of what they were."""
    missing = [-size % MULTIPLE for size in image.shape[2:]]
    low_y, low_x = (size // 2 for size in missing)
    inside = (..., slice(low_y, low_y + image.shape[2]), slice(low_x, low_x + image.shape[3]))
    if not any(missing):
        return image, inside
    padding = (low_x, missing[1] - low_x, low_y, missing[0] - low_y)
    return functional.pad(image, padding, mode="replicate"), inside
