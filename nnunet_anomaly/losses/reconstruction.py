"""Losses and measures of the networks that reconstruct images (Woo et al. 2022, sections 2.1 and 2.2).

x is an image, G(x) its inpainting, A(x) the reconstruction that mimics G without a mask. All are float tensors of one
shape (b, c, *spatial) with intensities in [0, 1]; everything is computed in float32, also under autocast.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def inpainting_loss(image: torch.Tensor, inpainted: torch.Tensor) -> torch.Tensor:
    """L_G: mean squared error between x and G(x); a scalar (section 2.1)."""
    return functional.mse_loss(inpainted.float(), image.float())


def mimic_loss(
    image: torch.Tensor, inpainted: torch.Tensor, mimicked: torch.Tensor, error_term_weight: float = 1.0
) -> torch.Tensor:
    """L_A: mean squared error between G(x) and A(x), plus that between their error maps; a scalar (section 2.2).

    Note that A = 2x - G(x) has G's error map too: a larger ``error_term_weight`` does not by itself keep A from
    copying x.
    """
    image, inpainted, mimicked = image.float(), inpainted.float(), mimicked.float()
    images = functional.mse_loss(mimicked, inpainted)
    if error_term_weight == 0:
        return images
    return images + error_term_weight * functional.mse_loss((image - mimicked) ** 2, (image - inpainted) ** 2)


def denoising_loss(inpainted_clean: torch.Tensor, mimicked: torch.Tensor) -> torch.Tensor:
    """Mean squared error between G of the clean image and A of the corrupted one; a scalar. Not in the paper."""
    return functional.mse_loss(mimicked.float(), inpainted_clean.float())


def leak_sums(
    image: torch.Tensor, inpainted: torch.Tensor, mimicked: torch.Tensor, roi: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numerator and denominator of ``leak``, two scalars, to be added up over batches before they are divided.

    Args:
        image: x.
        inpainted: G(x).
        mimicked: A(x).
        roi: region of interest, bool or 0/1, (b, 1, *spatial) or the image's shape. An empty one gives zeros.
    """
    removed = (image.float() - inpainted.float()) * roi
    return ((mimicked.float() - inpainted.float()) * removed).sum(), (removed * removed).sum()


def leak(image: torch.Tensor, inpainted: torch.Tensor, mimicked: torch.Tensor, roi: torch.Tensor) -> torch.Tensor:
    """How much of what G removed A lets through: the projection of A - G on x - G inside the region of interest.

    0 for A = G, 1 for A = x (the identity, whose error map shows nothing). A scalar; nan where the region is empty or
    G changed nothing in it. Arguments as in ``leak_sums``.
    """
    numerator, denominator = leak_sums(image, inpainted, mimicked, roi)
    return numerator / denominator


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor, free_bits: float = 0.0) -> torch.Tensor:
    """Kullback-Leibler divergence of N(mean, exp(log_variance)) from N(0, 1), in nats, summed over the code; (b,).

    Args:
        mean: float (b, n).
        log_variance: float (b, n).
        free_bits: what every number of the code costs at least, in nats (Kingma 2016); 0 is the plain divergence.
    """
    mean, log_variance = mean.float(), log_variance.float()
    each = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)
    return each.clamp(min=free_bits).sum(dim=1) if free_bits else each.sum(dim=1)


def vae_loss(
    image: torch.Tensor,
    reconstructed: torch.Tensor,
    mean: torch.Tensor,
    log_variance: torch.Tensor,
    kl_weight: float = 1.0,
    free_bits: float = 0.0,
) -> torch.Tensor:
    """(sum of |x - x^| + kl_weight * KL) / number of voxels and channels, mean over the batch; a scalar (Bengs 2021).

    Summed over an image, as in the variational bound with a Laplacian of scale 1; the division only makes the value
    comparable between sizes.
    """
    absolute = (image.float() - reconstructed.float()).abs().flatten(1)
    return ((absolute.sum(1) + kl_weight * kl_divergence(mean, log_variance, free_bits)) / absolute.shape[1]).mean()
