"""Random bias fields: a smooth polynomial's exponential, one for all channels, and nothing but the image changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_anomaly.augmentation.bias_field import BiasFieldTransform, bias_field
from nnunet_anomaly.augmentation.protected_channels import insert_after_resampling, protect_channels
from nnunet_anomaly.augmentation.roi import RoiChannelTransform

SHAPES = st.one_of(st.tuples(*[st.integers(1, 30)] * 2), st.tuples(*[st.integers(1, 12)] * 3))


@settings(max_examples=80, deadline=None)
@given(SHAPES, st.integers(0, 4), st.floats(0, 1), st.integers(0, 2**32))
def test_fields_are_positive_with_a_mean_of_one_and_repeat(shape, order, strength, seed):
    field = bias_field(shape, order, strength, np.random.default_rng(seed))
    assert field.shape == shape and field.dtype == torch.float32
    assert field.min().item() > 0 and field.double().mean().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(field, bias_field(shape, order, strength, np.random.default_rng(seed)))
    if order == 0 or strength == 0:
        assert torch.equal(field, torch.ones(shape))


@pytest.mark.parametrize("shape", [(9, 14), (5, 6, 7)])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_logarithm_is_a_polynomial_of_the_order(shape, order):
    """It lies in the span of the monomials up to the order, not in that up to one less."""
    field = bias_field(shape, order, 0.5, np.random.default_rng(0)).double().log().numpy().ravel()
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij"), -1).reshape(
        field.size, -1
    )

    def residual(degree):
        powers = [p for p in itertools.product(range(degree + 1), repeat=len(shape)) if sum(p) <= degree]
        columns = np.stack([np.prod(grid**p, axis=1) for p in powers], axis=1)
        weights = np.linalg.lstsq(columns, field, rcond=None)[0]
        slopes = [weight for power, weight in zip(powers, weights, strict=True) if any(power)]
        assert degree < order or np.abs(slopes).max() <= 0.5 + 1e-4
        return np.abs(columns @ weights - field).max()

    assert residual(order) < 1e-5 < 1e-3 < residual(order - 1)


def test_fields_are_smooth():
    """From pixel to pixel they change by no more than the polynomial's steepest slope."""
    for seed in range(20):
        field = bias_field((64, 64), 3, 0.5, np.random.default_rng(seed)).log()
        steepest = 0.5 * sum(max(i, j) for i, j in itertools.product(range(4), repeat=2) if 0 < i + j <= 3)
        for axis in (0, 1):
            assert field.diff(dim=axis).abs().max().item() <= steepest * 2 / 63
        assert field.std().item() > 0.02


def test_all_channels_get_one_field_above_their_lowest_value(seed_everything):
    image = torch.rand(2, 12, 15) + torch.tensor([0.0, 3.0])[:, None, None]
    before = image.clone()
    seed_everything(1)
    result = BiasFieldTransform(probability=1.0, order=3, strength=0.5, limits=None)(image=image)["image"]
    assert torch.equal(image, before)
    lowest = image.amin((1, 2), keepdim=True)
    field = (result - lowest) / (image - lowest)
    certain = (image - lowest > 0.1).all(0)
    torch.testing.assert_close(field[0][certain], field[1][certain], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(result.amin((1, 2), keepdim=True), lowest)
    seed_everything(1)
    expected = bias_field((12, 15), 3, 0.5, _generator_of_the_transform())
    torch.testing.assert_close(field[0][certain], expected[certain], rtol=1e-3, atol=1e-4)


def _generator_of_the_transform() -> np.random.Generator:
    rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002
    rng.random()  # whether there is a field at all
    return rng


def test_the_result_stays_within_the_limits(seed_everything):
    image = torch.rand(1, 20, 20)
    outside = 0
    for seed in range(10):
        for limits in (None, (0.0, 1.0)):
            seed_everything(seed)
            result = BiasFieldTransform(probability=1.0, order=3, strength=0.8, limits=limits)(image=image)["image"]
            if limits is None:
                outside += int(result.max() > 1)
                unclipped = result
            else:
                torch.testing.assert_close(result, unclipped.clamp(0, 1))
    assert outside > 3
    constant = torch.full((1, 8, 8), 0.4)
    transform = BiasFieldTransform(probability=1.0, order=2, strength=0.5, limits=(0.0, 1.0))
    assert torch.equal(transform(image=constant)["image"], constant)  # it shows no field: all of it is the lowest value


def test_the_region_and_the_labels_are_not_touched(seed_everything):
    labels = torch.zeros(1, 16, 18, dtype=torch.int16)
    labels[0, 4:9, 5:12] = 1
    added = [
        RoiChannelTransform((1,), 1.0, (1.0, 1.0)),
        BiasFieldTransform(probability=0.5, order=3, strength=0.5, limits=(0.0, 1.0)),
    ]
    pipeline = protect_channels(insert_after_resampling(nnUNetTrainer.get_validation_transforms(None), added), [1])
    image, changed = torch.rand(2, 16, 18), 0
    seed_everything(0)
    for _ in range(40):
        result = pipeline(image=image.clone(), segmentation=labels.clone())
        assert torch.equal(result["image"][1], image[1]) and torch.equal(result["segmentation"], labels)
        assert set(result["image"][2].unique().tolist()) == {0.0, 1.0}
        changed += int(not torch.equal(result["image"][0], image[0]))
    assert 10 <= changed <= 30


def test_impossible_arguments_are_refused():
    for order, strength in [(-1, 0.5), (2, -0.5)]:
        with pytest.raises(ValueError, match="neither may be negative"):
            bias_field((4, 4), order, strength, np.random.default_rng(0))
