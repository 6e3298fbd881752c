import math

import numpy as np
import pytest
import torch

from nnunet_anomaly.losses.reconstruction import denoising_loss, inpainting_loss, leak, leak_sums, mimic_loss


@pytest.fixture(params=[(2, 1, 6, 7), (2, 3, 4, 5, 6)], ids=["2d", "3d"])
def images(request):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(request.param, generator=generator) for _ in range(3)]


def test_losses_by_hand(images):
    x, g, a = (image.double().numpy() for image in images)
    squared = np.mean((a - g) ** 2)
    errors = np.mean(((x - g) ** 2 - (x - a) ** 2) ** 2)
    image, inpainted, mimicked = images
    assert inpainting_loss(image, inpainted).item() == pytest.approx(np.mean((x - g) ** 2), rel=1e-5)
    assert denoising_loss(inpainted, mimicked).item() == pytest.approx(squared, rel=1e-5)
    assert mimic_loss(*images).item() == pytest.approx(squared + errors, rel=1e-5)
    assert mimic_loss(*images, error_term_weight=3.5).item() == pytest.approx(squared + 3.5 * errors, rel=1e-5)
    assert mimic_loss(*images, error_term_weight=0).item() == pytest.approx(squared, rel=1e-5)


def test_mirror_image_of_g_has_no_error_term(images):
    image, inpainted, _ = images
    mirror = 2 * image - inpainted
    plain = denoising_loss(inpainted, mirror)
    assert mimic_loss(image, inpainted, mirror, error_term_weight=1000).item() == pytest.approx(plain.item(), rel=1e-4)


def test_gradients_reach_the_reconstruction(images):
    image, inpainted, mimicked = images
    mimicked.requires_grad_()
    mimic_loss(image, inpainted, mimicked).backward()
    x, g, a = (tensor.detach().double() for tensor in images)
    by_hand = 2 * (a - g) + 4 * ((x - g) ** 2 - (x - a) ** 2) * (x - a)
    torch.testing.assert_close(mimicked.grad.double(), by_hand / a.numel(), rtol=1e-3, atol=1e-7)


def test_half_precision_is_computed_in_single(images):
    image, inpainted, mimicked = (tensor.half() for tensor in images)
    assert mimic_loss(image, inpainted, mimicked).dtype == torch.float32
    assert leak(image, inpainted, mimicked, torch.ones_like(image)).dtype == torch.float32


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, 2.0])
def test_leak_is_the_share_of_x_minus_g_that_a_lets_through(images, share):
    image, inpainted, _ = images
    roi = torch.zeros_like(image[:, :1], dtype=torch.bool)
    roi[:, :, 1:3] = True
    mimicked = inpainted + share * (image - inpainted)
    mimicked = torch.where(roi, mimicked, torch.rand_like(image))
    assert leak(image, inpainted, mimicked, roi).item() == pytest.approx(share, abs=1e-5)


def test_leak_by_hand(images):
    x, g, a = (image.double().numpy() for image in images)
    roi = torch.rand(images[0][:, :1].shape) > 0.5
    inside = roi.numpy()
    expected = ((a - g) * (x - g) * inside).sum() / ((x - g) ** 2 * inside).sum()
    assert leak(*images, roi).item() == pytest.approx(expected, rel=1e-4)
    assert leak(*images, roi.float()).item() == pytest.approx(expected, rel=1e-4)
    sums = [leak_sums(*[image[index : index + 1] for image in images], roi[index : index + 1]) for index in range(2)]
    assert float(sum(n for n, _ in sums) / sum(d for _, d in sums)) == pytest.approx(expected, rel=1e-4)


def test_leak_without_a_region_or_a_difference_is_nan(images):
    image, inpainted, mimicked = images
    nothing = torch.zeros_like(image[:, :1], dtype=torch.bool)
    assert math.isnan(leak(image, inpainted, mimicked, nothing))
    assert math.isnan(leak(image, image, mimicked, torch.ones_like(image)))
    assert [float(value) for value in leak_sums(image, inpainted, mimicked, nothing)] == [0, 0]
