"""How far a cloner's features are from those of its source (knowledge distillation, Salehi et al. 2021).

Features are sequences of float tensors (b, channels, *spatial), one a critical layer, of the same shapes for both;
channels and sizes may differ between layers. Everything is computed in float32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

Features = Sequence[torch.Tensor]


def value_loss(source: Features, cloned: Features) -> torch.Tensor:
    """Mean squared difference, summed over layers; float32 (b,).

    Raises:
        ValueError: there is no layer, or shapes differ.
    """
    return torch.stack([(a - b).square().flatten(1).mean(1) for a, b in _pairs(source, cloned)]).sum(0)


def direction_loss(source: Features, cloned: Features) -> torch.Tensor:
    """1 - cosine of the angle between a layer's features, as one vector each, summed over layers; float32 (b,).

    A layer counts 1 where either of its vectors is all zero.

    Raises:
        ValueError: there is no layer, or shapes differ.
    """
    cosines = [functional.cosine_similarity(a.flatten(1), b.flatten(1)) for a, b in _pairs(source, cloned)]
    return (1 - torch.stack(cosines)).sum(0)


def distillation_loss(source: Features, cloned: Features, value_weight: float) -> torch.Tensor:
    """Direction loss + ``value_weight`` (the paper's lambda) * value loss; float32 (b,)."""
    return direction_loss(source, cloned) + value_weight * value_loss(source, cloned)


def distance_map(source: Features, cloned: Features, size: Sequence[int]) -> torch.Tensor:
    """Distance between features at every place, upsampled, mean over layers; not in the paper (Wang 2021, Deng 2022).

    The distance is half the squared difference of the unit vectors over channels: 1 - cosine where both are there, 1/2
    where one is zero, 0 where both are. Two-dimensional features alone.

    Args:
        source: features of the source.
        cloned: features of the cloner.
        size: (y, x) of the result; every layer is interpolated to it linearly, as if it covered the same field.

    Returns:
        float32 (b, 1, y, x) in [0, 2]; in [0, 1] for features that are not negative.

    Raises:
        ValueError: there is no layer, or shapes differ.
    """
    layers = []
    for a, b in _pairs(source, cloned):
        difference = functional.normalize(a, dim=1) - functional.normalize(b, dim=1)
        distance = 0.5 * difference.square().sum(1, keepdim=True)
        layers.append(functional.interpolate(distance, tuple(size), mode="bilinear", align_corners=False))
    return torch.stack(layers).mean(0)


def _pairs(source: Features, cloned: Features) -> list[tuple[torch.Tensor, torch.Tensor]]:
    shapes = [[tuple(layer.shape) for layer in layers] for layers in (source, cloned)]
    if not source or shapes[0] != shapes[1]:
        raise ValueError(f"features of {shapes[0]} cannot be compared with features of {shapes[1]}")
    return [(a.float(), b.float()) for a, b in zip(source, cloned, strict=True)]
