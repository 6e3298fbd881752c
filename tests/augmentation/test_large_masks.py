"""Large random masks: within the limits, by the seed alone, and added to the region alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy import ndimage

from nnunet_anomaly.augmentation.large_masks import LargeMaskTransform, box, chain, large_mask, mark_segment
from nnunet_anomaly.augmentation.protected_channels import insert_after_resampling, protect_channels
from nnunet_anomaly.augmentation.roi import RoiChannelTransform, region_of_interest

SHAPES = st.tuples(st.integers(1, 60), st.integers(2, 60))
SHARES = st.floats(0.005, 0.45).flatmap(lambda low: st.tuples(st.just(low), st.floats(2 * low, 0.99)))


@settings(max_examples=150, deadline=None)
@given(SHAPES, SHARES, st.floats(0, 1), st.integers(0, 2**32))
def test_masks_are_within_the_limits_and_repeat(shape, share, box_probability, seed):
    mask = large_mask(shape, share, box_probability, np.random.default_rng(seed))
    pixels, total = int(mask.sum()), shape[0] * shape[1]
    assert mask.shape == shape and mask.dtype == torch.bool
    assert max(1, share[0] * total) <= pixels <= max(1, share[1] * total)
    assert 0 < pixels < total
    assert torch.equal(mask, large_mask(shape, share, box_probability, np.random.default_rng(seed)))


def test_shares_are_spread_over_the_limits_and_all_pixels_are_reached():
    masks = [large_mask((40, 48), (0.1, 0.5), 0.5, np.random.default_rng(seed)) for seed in range(200)]
    shares = np.array([mask.float().mean().item() for mask in masks])
    assert shares.min() < 0.15 and shares.max() > 0.45 and 0.25 < shares.mean() < 0.45
    found = torch.stack(masks).float().mean(0)
    assert found.min().item() > 0.03 and found.max().item() < 0.7


def test_masks_are_large():
    """Half of the erased pixels are deep inside: no net of thin lines."""
    depths = []
    for seed in range(40):
        mask = large_mask((64, 64), (0.2, 0.5), 0.0, np.random.default_rng(seed)).numpy()
        depths.append(np.median(ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1][mask]))
    assert np.median(depths) > 3


@pytest.mark.parametrize("radius", [0.5, 2.0, 4.7])
@pytest.mark.parametrize("end", [(12.0, 20.0), (5.25, 7.5), (5.0, 29.0)])
def test_a_segment_is_all_that_is_near_to_its_points(radius, end):
    start, end = np.array([5.0, 7.5]), np.array(end)
    mask = np.zeros((20, 30), dtype=bool)
    mark_segment(mask, start, end, radius)
    points = start + np.linspace(0, 1, 4001)[:, None] * (end - start)
    pixels = np.stack(np.meshgrid(np.arange(20), np.arange(30), indexing="ij"), -1)
    distance = np.sqrt(((pixels[:, :, None] - points) ** 2).sum(-1)).min(-1)
    assert mask[distance < radius - 1e-3].all() and not mask[distance > radius + 1e-3].any()
    assert mask.any()


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.floats(0.5, 80), st.integers(0, 2**32))
def test_chains_are_connected_and_boxes_are_boxes(shape, scale, seed):
    _, pieces = ndimage.label(chain(shape, scale, np.random.default_rng(seed)), np.ones((3, 3)))
    assert pieces >= 1 and (pieces == 1 or scale < 10)  # thinner than a pixel a chain has gaps
    mask = box(shape, scale, np.random.default_rng(seed))
    (place,) = ndimage.find_objects(mask.astype(int))
    assert mask[place].all()


def test_impossible_planes_and_limits_are_refused():
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (4, 4, 4), (7,)]:
        with pytest.raises(ValueError, match="at least 2 pixels"):
            large_mask(shape, (0.1, 0.5), 0.5, rng)
    for share in [(0.0, 0.5), (0.3, 0.5), (0.2, 1.0)]:
        with pytest.raises(ValueError, match="at least twice"):
            LargeMaskTransform(probability=1.0, share=share, box_probability=0.5)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_mask_is_added_to_the_region_alone(probability, seed_everything):
    spacing_mm, size = (1.0, 1.0), (24, 28)
    roi = RoiChannelTransform((2,), 1.0, spacing_mm)
    masks = LargeMaskTransform(probability=probability, share=(0.05, 0.3), box_probability=0.5)
    labels = torch.zeros(1, *size, dtype=torch.int16)
    labels[0, 8:16, 9:18] = 2
    image, larger = torch.rand(1, *size), 0
    seed_everything(0)
    for _ in range(30):
        pipeline = protect_channels(
            insert_after_resampling(nnUNetTrainer.get_validation_transforms(None), [roi, masks])
        )
        result = pipeline(image=image.clone(), segmentation=labels.clone())["image"]
        region = torch.from_numpy(region_of_interest(labels[0].numpy(), (2,), 1.0, spacing_mm))
        assert result.shape == (2, *size) and torch.equal(result[:1], image)
        assert set(result[1].unique().tolist()) == {0.0, 1.0} and (result[1][region] == 1).all()
        larger += int(result[1].sum() > region.sum())
    assert larger == 0 if probability == 0 else 8 <= larger <= (22 if probability == 0.5 else 30)


def test_earlier_channels_and_the_callers_tensors_stay():
    masks = LargeMaskTransform(probability=1.0, share=(0.1, 0.3), box_probability=1.0)
    aside = torch.zeros(2, 10, 10)
    result = masks(image=torch.rand(1, 10, 10), regression_target=aside)["regression_target"]
    assert not aside.any() and not result[0].any() and 10 <= int(result[1].sum()) <= 30
    with pytest.raises(ValueError, match="no channel was set aside"):
        masks(image=torch.rand(1, 10, 10))


def test_the_same_seed_adds_the_same_mask(seed_everything):
    masks = LargeMaskTransform(probability=1.0, share=(0.1, 0.3), box_probability=0.5)
    found = []
    for seed in (4, 4, 5):
        seed_everything(seed)
        found.append(masks(image=torch.rand(1, 20, 20), regression_target=torch.zeros(1, 20, 20))["regression_target"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
