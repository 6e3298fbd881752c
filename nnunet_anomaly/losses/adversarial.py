"""Losses of LaMa (Suvorov et al. 2022): a generator that inpaints against a discriminator of patches.

Logits are high for real, float (B, 1, rows, columns), one for every patch. Everything is computed in float32, also
under autocast, and is a scalar: a mean, so that weights hold at every size. A region is bool or 0/1, (B, 1, y, x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Non-saturating loss of the generator, softplus(-D(x~)) = -log sigmoid(D(x~)), over all patches."""
    return functional.softplus(-fake_logits.float()).mean()


def discriminator_loss(
    real_logits: torch.Tensor, fake_logits: torch.Tensor, region: torch.Tensor | None = None
) -> torch.Tensor:
    """softplus(-D(x)), plus for inpainted images softplus(D(x~)) in the region and softplus(-D(x~)) outside it.

    Outside the region an inpainted image shows what was known: there it is real, and the discriminator is told so.

    Args:
        real_logits: of images.
        fake_logits: of inpainted images, detached from the generator.
        region: what was erased; see ``region_of_patches``. None: all patches of inpainted images are fakes. Where it is
            empty, none is.
    """
    real, fake = real_logits.float(), fake_logits.float()
    of_fakes = functional.softplus(fake)
    if region is not None:
        inside = region_of_patches(region, fake.shape[-2:])
        of_fakes = inside * of_fakes + (1 - inside) * functional.softplus(-fake)
    return functional.softplus(-real).mean() + of_fakes.mean()


def region_of_patches(region: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """1 where a cell of the logits' grid holds any of the region, else 0; float32 (B, 1, *shape).

    The paper calls patches fakes that intersect with the region. The authors' code takes the nearest pixel, so that a
    thin region can be missed.
    """
    return functional.adaptive_max_pool2d(region.float(), tuple(shape))


def r1_penalty(real_logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """|gradient of the logits' sum by the image|^2, summed over an image, mean over the batch (Mescheder et al. 2018).

    Its gradient reaches the discriminator's parameters. LaMa's weight for it is 0.001.

    Args:
        real_logits: float32, made of ``image`` outside autocast.
        image: real ones, float32 with ``requires_grad``, (B, channels, y, x).

    Raises:
        ValueError: one of both is not float32 (half precision rounds gradients away), or the image has no gradient.
    """
    if real_logits.dtype != torch.float32 or image.dtype != torch.float32:
        raise ValueError(
            f"logits are {real_logits.dtype} and images {image.dtype}; R1 needs torch.float32: leave autocast for it"
        )
    if not image.requires_grad:
        raise ValueError("the image has no gradient; call requires_grad_() before the discriminator sees it")
    (gradient,) = torch.autograd.grad(real_logits.sum(), image, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def feature_matching_loss(real_features: Sequence[torch.Tensor], fake_features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over layers of the mean |difference| of the discriminator's features (Wang et al. 2018, pix2pixHD).

    The authors of LaMa take squares in their code. No gradient goes to the real ones.

    Args:
        real_features: of images, one tensor per layer; at least one.
        fake_features: of inpainted images, of the same shapes.
    """
    layers = [
        functional.l1_loss(fake.float(), real.detach().float())
        for real, fake in zip(real_features, fake_features, strict=True)
    ]
    return torch.stack(layers).mean()


def weighted_l1_loss(
    image: torch.Tensor, inpainted: torch.Tensor, region: torch.Tensor, inside_weight: float, outside_weight: float
) -> torch.Tensor:
    """Mean of w |x - x~| over all pixels and channels, w one weight inside the region and another outside it.

    The mean is over the whole plane, so that a small region counts little and an empty one, or one that fills the
    plane, is nothing special. LaMa: 0 inside, where its perceptual loss holds, and 10 outside.

    Args:
        image: x, float (B, channels, y, x).
        inpainted: x~, of the same shape.
        region: what was erased.
        inside_weight: w in the region.
        outside_weight: w outside it.
    """
    inside = region.float()
    weights = inside_weight * inside + outside_weight * (1 - inside)
    return (weights * (image.float() - inpainted.float()).abs()).mean()


def perceptual_loss(
    image: torch.Tensor,
    inpainted: torch.Tensor,
    extract: Callable[[torch.Tensor], Sequence[torch.Tensor]],
) -> torch.Tensor:
    """Mean over layers of the mean squared difference of features, every channel seen as a grey image by itself.

    Args:
        image: x, float (B, channels, y, x).
        inpainted: x~, of the same shape.
        extract: features of grey images (n, 1, y, x), one tensor per layer, such as ``VGG16Features``; gradients pass
            through it to the inpainted image only.
    """
    grey = [values.flatten(0, 1)[:, None] for values in (image, inpainted)]
    with torch.no_grad():
        wanted = extract(grey[0])
    layers = [
        functional.mse_loss(found.float(), target.float())
        for target, found in zip(wanted, extract(grey[1]), strict=True)
    ]
    return torch.stack(layers).mean()
