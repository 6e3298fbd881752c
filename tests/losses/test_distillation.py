"""Distances between features of source and cloner, by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine

from nnunet_anomaly.losses.distillation import direction_loss, distance_map, distillation_loss, value_loss

SHAPES = [(3, 4, 6, 8), (3, 7, 3, 4)]


def features(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator) for shape in SHAPES]


def test_losses_are_those_of_numpy_and_scipy():
    source, cloned = features(0), features(1)
    pairs = [
        (a.flatten(1).double().numpy(), b.flatten(1).double().numpy()) for a, b in zip(source, cloned, strict=True)
    ]
    value = [sum(np.mean((a[i] - b[i]) ** 2) for a, b in pairs) for i in range(3)]
    direction = [sum(cosine(a[i], b[i]) for a, b in pairs) for i in range(3)]
    np.testing.assert_allclose(value_loss(source, cloned), value, rtol=1e-5)
    np.testing.assert_allclose(direction_loss(source, cloned), direction, rtol=1e-5)
    total = np.add(direction, np.multiply(0.25, value))
    np.testing.assert_allclose(distillation_loss(source, cloned, 0.25), total, rtol=1e-5)


@given(st.floats(0.01, 100), st.floats(0, math.pi))
@settings(max_examples=30, deadline=None)
def test_two_vectors_at_an_angle(length, angle):
    source = [torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)]
    cloned = [length * torch.tensor([math.cos(angle), math.sin(angle)]).reshape(1, 2, 1, 1)]
    squared = 1 + length**2 - 2 * length * math.cos(angle)  # the law of cosines
    assert value_loss(source, cloned).item() == pytest.approx(squared / 2, rel=1e-4, abs=1e-6)
    assert direction_loss(source, cloned).item() == pytest.approx(1 - math.cos(angle), abs=1e-6)
    found = distance_map(source, cloned, (2, 3))
    np.testing.assert_allclose(found, np.full((1, 1, 2, 3), 1 - math.cos(angle)), atol=1e-6)


def test_equal_features_cost_nothing_and_scaled_ones_only_value():
    source = features(0)
    assert distillation_loss(source, source, 1.0).abs().max() < 1e-6
    scaled = [3 * layer for layer in source]
    assert direction_loss(source, scaled).abs().max() < 1e-6
    assert distance_map(source, scaled, (6, 8)).max() < 1e-6
    assert value_loss(source, scaled).min() > 0.5


def test_vectors_of_zeros_are_defined():
    zero, one = torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
    assert direction_loss([zero], [zero]).item() == direction_loss([zero], [one]).item() == 1
    mixed = zero.clone()
    mixed[..., 1] = 1
    assert distance_map([zero], [mixed], (1, 2)).flatten().tolist() == [0, pytest.approx(0.5)]
    for loss in (lambda cloned: direction_loss([one], cloned), lambda cloned: distance_map([one], cloned, (1, 2))):
        cloned = torch.zeros(1, 2, 1, 2, requires_grad=True)
        loss([cloned]).sum().backward()
        assert torch.isfinite(cloned.grad).all()


def test_the_map_is_bright_where_features_differ_and_a_mean_over_layers():
    source = [torch.ones(1, 2, 8, 8), torch.ones(1, 3, 2, 2)]
    cloned = [layer.clone() for layer in source]
    cloned[0][0, 0, 5, 6] = -1  # perpendicular there
    found = distance_map(source, cloned, (8, 8))[0, 0]
    expected = torch.zeros(8, 8)
    expected[5, 6] = 0.5  # of two layers
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_gradients_are_those_of_finite_differences():
    source = [layer[:1, :2, :2, :2].double() for layer in features(0)]
    cloned = [layer[:1, :2, :2, :2].double().requires_grad_() for layer in features(1)]
    total = distillation_loss(source, cloned, 0.5)
    gradients = torch.autograd.grad(total.sum(), cloned)
    for number, layer in enumerate(cloned):
        for place in range(0, layer.numel(), 3):
            values = []
            for step in (1e-2, -1e-2):
                moved = [other.detach().clone() for other in cloned]
                moved[number].view(-1)[place] += step
                values.append(distillation_loss(source, moved, 0.5).item())
            assert gradients[number].flatten()[place].item() == pytest.approx((values[0] - values[1]) / 2e-2, abs=1e-3)


@pytest.mark.parametrize("cloned", [[], [torch.rand(1, 2, 3, 4)], [torch.rand(1, 2, 4, 4)] * 2])
def test_features_of_other_shapes_are_refused(cloned):
    for loss in (value_loss, direction_loss):
        with pytest.raises(ValueError, match="cannot be compared"):
            loss([torch.rand(1, 2, 4, 4)] if cloned else [], cloned)
