"""The VAE: its shapes in 2-D and 3-D, its one way through, and what it is trained by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnunet_anomaly.architectures.vae import VAE
from nnunet_anomaly.losses.reconstruction import kl_divergence, vae_loss


def network(dimension: int, size: int = 16, channels: int = 1, latent_size: int = 7) -> VAE:
    convolution, norm = (getattr(torch.nn, f"{name}{dimension}d") for name in ("Conv", "BatchNorm"))
    architecture = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "conv_op": convolution,
        "kernel_sizes": [[3] * dimension] * 3,
        "strides": [[2] * dimension] * 3,
        "n_conv_per_stage": [1] * 3,
        "n_conv_per_stage_decoder": [1] * 3,
        "conv_bias": True,
        "norm_op": norm,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": torch.nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }
    torch.manual_seed(0)
    return VAE(channels, [size] * dimension, architecture, latent_size)


@pytest.mark.parametrize("dimension", [2, 3])
def test_shapes_and_that_evaluation_repeats(dimension):
    vae, image = network(dimension, channels=2), torch.rand(3, 2, *[16] * dimension)
    found = vae(image)
    assert found.image.shape == image.shape
    assert found.mean.shape == found.log_variance.shape == (3, 7)
    vae.eval()
    with torch.no_grad():
        assert torch.equal(vae(image), vae(image))
        assert torch.equal(vae(image), vae.decode(vae.encode(image)[0]))
        first = vae.sample(2, torch.Generator().manual_seed(1))
        assert torch.equal(first, vae.sample(2, torch.Generator().manual_seed(1)))
        assert first.shape == (2, 2, *[16] * dimension)
        row = vae.traverse(image[:1], 3, [-2, 0, 2])
    assert row.shape == (3, 2, *[16] * dimension) and not torch.equal(row[0], row[2])


def test_the_layers_of_2d_and_3d_are_the_same():
    kinds = [[type(module).__name__.rstrip("23d") for module in network(dimension).modules()] for dimension in (2, 3)]
    assert kinds[0] == kinds[1]


def test_nothing_passes_but_the_code():
    vae = network(3).eval()
    with torch.no_grad():
        vae.to_distribution.weight.zero_()  # every image has the same code
        one, other = vae(torch.rand(1, 1, 16, 16, 16)), vae(torch.rand(1, 1, 16, 16, 16))
    assert torch.equal(one, other)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="takes"):
        network(2)(torch.rand(1, 1, 16, 24))
    with pytest.raises(ValueError, match="not divisible"):
        network(2, size=20)


def test_divergence_is_that_of_torch_distributions():
    rng = np.random.default_rng(0)
    mean, log_variance = (torch.from_numpy(rng.normal(size=(4, 5))) for _ in range(2))
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_divergence(mean, log_variance).double(), expected, rtol=1e-5, atol=1e-5)
    assert (kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3)) == 0).all()
    assert (kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3), free_bits=0.5) == 1.5).all()


def test_the_loss_is_the_sum_of_absolute_errors_and_the_divergence_per_voxel():
    image, reconstructed = torch.zeros(2, 1, 3, 4), torch.full((2, 1, 3, 4), 0.5)
    mean, log_variance = torch.full((2, 6), 2.0), torch.zeros(2, 6)
    found = vae_loss(image, reconstructed, mean, log_variance, kl_weight=0.5)
    assert float(found) == pytest.approx((12 * 0.5 + 0.5 * 6 * 2) / 12)
    assert math.isfinite(float(vae_loss(image, reconstructed, mean, torch.full((2, 6), 50.0))))
