"""PatchGAN: what a logit sees, its size, and what it gives back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from nnunet_anomaly.architectures.patch_discriminator import PatchDiscriminator, receptive_field_pixels


def test_parameters_follow_from_the_layers():
    with torch.device("meta"):
        network = PatchDiscriminator(1)
    widths = [1, 64, 128, 256, 512, 512]
    convolutions = sum(16 * inside * outside + outside for inside, outside in itertools.pairwise(widths))
    expected = convolutions + 2 * sum(widths[2:]) + 16 * 512 + 1
    assert sum(parameter.numel() for parameter in network.parameters()) == expected == 6_960_321


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("size", [(16, 16), (33, 50)])
def test_logits_and_features(norm, size):
    network = PatchDiscriminator(2, features=4, max_features=16, norm=norm)
    logits, features = network(torch.rand(2, 2, *size))
    shapes, (rows, columns) = [], size
    for width in (4, 8, 16, 16):
        rows, columns = rows // 2 + 1, columns // 2 + 1
        shapes.append((2, width, rows, columns))
    assert [tuple(feature.shape) for feature in features] == [*shapes, (2, 16, rows + 1, columns + 1)]
    assert logits.shape == (2, 1, rows + 2, columns + 2)
    logits.mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("n_layers, pixels", [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_receptive_field(n_layers, pixels):
    network = PatchDiscriminator(1, features=2, n_layers=n_layers, max_features=2).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # no term is negative, so that none cancels out
            parameter.abs_()
    image = torch.rand(1, 1, 3 * pixels, 3 * pixels, requires_grad=True)
    logits, _ = network(image)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    reached = (image.grad[0, 0] != 0).numpy()
    rows, columns = np.flatnonzero(reached.any(1)), np.flatnonzero(reached.any(0))
    assert rows[-1] - rows[0] + 1 == columns[-1] - columns[0] + 1 == pixels == receptive_field_pixels(n_layers)
    assert reached[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_there_is_at_least_one_layer():
    with pytest.raises(ValueError, match="at least 1"):
        PatchDiscriminator(1, n_layers=0)
