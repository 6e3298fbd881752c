"""Coarse noise and foreign patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_anomaly.augmentation.self_supervision import CoarseNoiseTransform, ForeignPatchTransform, coarse_noise


@pytest.mark.parametrize("shape", [(1, 64, 48, 40), (2, 128, 96), (1, 5, 7), (1, 1, 33)])
def test_noise_is_coarse_and_of_the_shape(shape):
    noise = coarse_noise(shape, 16, 0.2, np.random.default_rng(0))
    assert noise.shape == shape and noise.dtype == torch.float32
    assert torch.equal(noise, coarse_noise(shape, 16, 0.2, np.random.default_rng(0)))


def test_noise_has_its_size_and_its_grain():
    noise = np.stack([coarse_noise((1, 128, 128), 16, 0.2, np.random.default_rng(seed))[0] for seed in range(60)])
    # linear interpolation between cells leaves two thirds of the standard deviation in 2-D, on average over a cell
    assert noise.std() == pytest.approx(0.2 * 2 / 3, rel=0.05)
    assert abs(noise.mean()) < 0.005

    def correlation(step):
        return float(np.mean(noise[:, step:] * noise[:, :-step]) / noise.var())

    assert correlation(1) > 0.95 and abs(correlation(24)) < 0.1


def test_noise_lies_on_tissue_and_the_clean_image_is_kept():
    image = torch.zeros(1, 20, 20, 20)
    image[:, 5:15, 5:15, 5:15] = 0.5
    result = CoarseNoiseTransform(cells=5, noise_sd=0.2, probability=1.0)(image=image.clone())
    changed = result["image"] != image
    assert torch.equal(result["regression_target"], image)
    assert not changed[image == 0].any() and changed[image > 0].all()
    result = CoarseNoiseTransform(cells=5, noise_sd=0.2, probability=0.0)(image=image.clone())
    assert torch.equal(result["image"], image)


def test_a_box_of_an_earlier_image_shines_through():
    transform = ForeignPatchTransform(share=(0.05, 0.2), opacity=(0.5, 0.5), probability=1.0)
    first, second = torch.zeros(1, 10, 10, 10), torch.ones(1, 10, 10, 10)
    result = transform(image=first.clone())
    assert torch.equal(result["image"], first)  # there is no earlier one
    result = transform(image=second.clone())
    assert set(result["image"].unique().tolist()) == {0.5, 1.0}
    share = float((result["image"] == 0.5).float().mean())
    assert 0.05 <= share <= 0.2
    assert torch.equal(result["regression_target"], second)
    other_grid = transform(image=torch.full((1, 4, 4, 4), 7.0))
    assert (other_grid["image"] == 7).all()
    for value in range(40):
        transform(image=torch.full((1, 4, 4, 4), float(value)))
    assert len(transform.earlier) == 16
