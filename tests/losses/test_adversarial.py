"""LaMa's losses by hand, by finite differences and by autograd's double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_anomaly.architectures.vgg import VGG16Features
from nnunet_anomaly.losses.adversarial import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    perceptual_loss,
    r1_penalty,
    region_of_patches,
    weighted_l1_loss,
)

GENERATOR = torch.Generator()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR.manual_seed(seed))


def minus_log_sigmoid(values: torch.Tensor) -> np.ndarray:
    return -np.log(1 / (1 + np.exp(-values.double().numpy())))


def test_adversarial_losses_by_hand():
    real, fake = random(2, 1, 3, 4), random(2, 1, 3, 4, seed=1)
    region = torch.zeros(2, 1, 3, 4)
    region[0, 0, 1, 2:] = 1
    inside = region.bool().numpy()
    assert generator_loss(fake).item() == pytest.approx(minus_log_sigmoid(fake).mean(), rel=1e-5)
    of_reals = minus_log_sigmoid(real).mean()
    of_fakes = np.where(inside, minus_log_sigmoid(-fake), minus_log_sigmoid(fake)).mean()
    assert discriminator_loss(real, fake, region).item() == pytest.approx(of_reals + of_fakes, rel=1e-5)
    assert discriminator_loss(real, fake, region.bool()).item() == pytest.approx(of_reals + of_fakes, rel=1e-5)
    all_fake = of_reals + minus_log_sigmoid(-fake).mean()
    assert discriminator_loss(real, fake).item() == pytest.approx(all_fake, rel=1e-5)
    assert discriminator_loss(real, fake, torch.ones(2, 1, 6, 8)).item() == pytest.approx(all_fake, rel=1e-5)
    all_real = of_reals + minus_log_sigmoid(fake).mean()
    assert discriminator_loss(real, fake, torch.zeros(2, 1, 6, 8)).item() == pytest.approx(all_real, rel=1e-5)


def test_an_undecided_discriminator_costs_two_log_two():
    zeros = torch.zeros(1, 1, 5, 5)
    assert generator_loss(zeros).item() == pytest.approx(math.log(2))
    assert discriminator_loss(zeros, zeros, zeros).item() == pytest.approx(2 * math.log(2))


def test_the_generator_still_learns_where_its_fakes_are_seen_through():
    logits = torch.full((1, 1, 2, 2), -80.0, requires_grad=True)
    generator_loss(logits).backward()
    torch.testing.assert_close(logits.grad, torch.full_like(logits, -0.25))
    assert discriminator_loss(-logits.detach(), logits.detach()).item() == pytest.approx(0, abs=1e-30)


def test_outside_the_region_the_discriminator_is_pushed_the_other_way():
    fake = random(1, 1, 4, 4).requires_grad_()
    region = torch.zeros(1, 1, 32, 32)
    region[..., :8, :8] = 1
    discriminator_loss(torch.zeros_like(fake), fake, region).backward()
    assert fake.grad[0, 0, 0, 0].item() > 0
    assert (fake.grad.flatten()[1:] < 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (7, 5), (11, 13)])
def test_every_erased_pixel_marks_a_patch(shape):
    """Cells are those of adaptive pooling: from floor(i n / m) to ceil((i + 1) n / m)."""
    rows, columns = 24, 17
    for row, column in [(0, 0), (23, 16), (5, 11), (12, 8)]:
        region = torch.zeros(1, 1, rows, columns)
        region[0, 0, row, column] = 1
        expected = np.zeros(shape)
        for i, j in np.ndindex(*shape):
            expected[i, j] = i * rows // shape[0] <= row < -(-(i + 1) * rows // shape[0]) and j * columns // shape[
                1
            ] <= column < -(-(j + 1) * columns // shape[1])
        found = region_of_patches(region, shape)
        assert expected.any() and np.array_equal(found[0, 0].numpy(), expected)


def test_r1_of_a_linear_discriminator_is_the_square_of_its_weights():
    image = random(3, 2, 4, 5).requires_grad_()
    weights = random(2, 4, 5, seed=1).requires_grad_()
    logits = (image * weights).sum((1, 2, 3)).reshape(3, 1, 1, 1)
    penalty = r1_penalty(logits, image)
    assert penalty.item() == pytest.approx(weights.square().sum().item(), rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(weights.grad, 2 * weights.detach())


def test_r1_agrees_with_finite_differences():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Conv2d(3, 1, 2))
    image = random(2, 1, 5, 4).requires_grad_()
    penalty = r1_penalty(network(image), image)
    double, point, step = network.double(), image.detach().double(), 1e-5
    gradient = np.zeros(image.shape)
    for index in np.ndindex(*image.shape):
        moved = torch.zeros_like(point)
        moved[index] = step
        with torch.no_grad():
            gradient[index] = (double(point + moved) - double(point - moved)).sum().item() / (2 * step)
    assert penalty.item() == pytest.approx((gradient**2).sum() / 2, rel=1e-4)


def test_r1_reaches_the_discriminators_parameters():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LeakyReLU(0.2), nn.Conv2d(2, 1, 3))
    image = random(2, 1, 8, 8).requires_grad_()
    r1_penalty(network(image), image).backward()
    assert network[0].weight.grad.abs().sum().item() > 0 and network[3].weight.grad.abs().sum().item() > 0


def test_r1_needs_single_precision_and_a_gradient():
    image = random(1, 1, 4, 4).requires_grad_()
    with pytest.raises(ValueError, match="leave autocast"):
        r1_penalty((image * 2).bfloat16(), image)
    with pytest.raises(ValueError, match="requires_grad"):
        r1_penalty(image * 2, image.detach())


def test_feature_matching_by_hand():
    real = [random(2, 3, 4, 4).requires_grad_(), random(2, 5, 2, 2, seed=1)]
    fake = [random(2, 3, 4, 4, seed=2).requires_grad_(), random(2, 5, 2, 2, seed=3)]
    expected = np.mean([np.abs((one - other).detach().numpy()).mean() for one, other in zip(real, fake, strict=True)])
    loss = feature_matching_loss(real, fake)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert feature_matching_loss(real, real).item() == 0
    loss.backward()
    assert real[0].grad is None
    torch.testing.assert_close(fake[0].grad, (fake[0] - real[0]).detach().sign() / (2 * fake[0].numel()))


@pytest.mark.parametrize("region", ["some", "none", "all"])
def test_weighted_l1_by_hand(region):
    image, inpainted = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    inside = torch.zeros(2, 1, 4, 5)
    inside[0, 0, 1:3, 2:] = 1
    if region != "some":
        inside[:] = region == "all"
    weights = np.where(inside.numpy() == 1, 2.0, 10.0)
    expected = (weights * np.abs((image - inpainted).numpy())).mean()
    assert weighted_l1_loss(image, inpainted, inside, 2.0, 10.0).item() == pytest.approx(expected, rel=1e-5)
    assert weighted_l1_loss(image, inpainted, inside.bool(), 2.0, 10.0).item() == pytest.approx(expected, rel=1e-5)
    plain = (image - inpainted).abs().mean().item()
    assert weighted_l1_loss(image, inpainted, inside, 1.0, 1.0).item() == pytest.approx(plain, rel=1e-5)


def test_perceptual_loss_by_hand():
    seen = []

    def extract(grey):
        seen.append(tuple(grey.shape))
        return [grey * 2, grey[..., ::2] ** 2]

    image, inpainted = random(2, 3, 4, 6).requires_grad_(), random(2, 3, 4, 6, seed=1).requires_grad_()
    x, y = image.detach().double().numpy(), inpainted.detach().double().numpy()
    expected = (((2 * x - 2 * y) ** 2).mean() + ((x[..., ::2] ** 2 - y[..., ::2] ** 2) ** 2).mean()) / 2
    loss = perceptual_loss(image, inpainted, extract)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert seen == [(6, 1, 4, 6)] * 2
    loss.backward()
    assert image.grad is None and inpainted.grad.abs().sum().item() > 0
    assert perceptual_loss(image, image, extract).item() == 0


def test_perceptual_loss_takes_vggs_features():
    image, inpainted = torch.rand(1, 2, 8, 8), torch.rand(1, 2, 8, 8).requires_grad_()
    perceptual_loss(image, inpainted, VGG16Features(None, [3, 8])).backward()
    assert (inpainted.grad.abs().sum((0, 2, 3)) > 0).all()


def test_half_precision_is_computed_in_single():
    one, other = random(1, 1, 4, 4).half(), random(1, 1, 4, 4, seed=1).half()
    region = torch.ones(1, 1, 4, 4)
    for loss in (
        generator_loss(one),
        discriminator_loss(one, other, region),
        feature_matching_loss([one], [other]),
        weighted_l1_loss(one, other, region, 1, 1),
        perceptual_loss(one, other, lambda grey: [grey]),
    ):
        assert loss.dtype == torch.float32 and loss.isfinite()
