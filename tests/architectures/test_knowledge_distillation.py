"""Source, cloner and the anomaly map that follows from both."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunet_anomaly.architectures.knowledge_distillation import (
    CRITICAL_LAYERS,
    Cloner,
    DistilledFeatures,
    KnowledgeDistillation,
    smoothed_and_opened,
)
from nnunet_anomaly.architectures.vgg import VGG16Features
from nnunet_anomaly.error_maps.predict import error_map, reconstruct
from nnunet_anomaly.geometry import open_mm
from nnunet_anomaly.losses.distillation import distance_map, distillation_loss
from nnunet_anomaly.settings import DistillationSettings

PLAIN = DistillationSettings(smoothing_mm=0.0, opening_mm=0.0, value_weight=0.25)
SOURCE = VGG16Features(None, CRITICAL_LAYERS)


def network(**changes):
    torch.manual_seed(0)
    made = KnowledgeDistillation(dataclasses.replace(PLAIN, **changes), (1.0, 1.0))
    made.source.load_state_dict(SOURCE.state_dict())
    return made.eval()


def test_the_cloner_is_the_smaller_network_with_the_sources_shapes():
    # 3 x 3 convolutions without bias; a scale and a shift for each channel of BatchNorm
    convolutions = [(3, 16), (16, 16), (16, 16), (16, 128), (128, 16), (16, 16), (16, 256)]
    convolutions += [(256, 16), (16, 16), (16, 512), (512, 16), (16, 16), (16, 512)]
    count = sum(9 * inside * outside for inside, outside in convolutions) + 2 * 16 * 8
    assert sum(parameter.numel() for parameter in Cloner().parameters()) == count == 343_984
    distilled = network().train()(torch.rand(2, 1, 32, 64))
    assert isinstance(distilled, DistilledFeatures)
    shapes = [tuple(layer.shape) for layer in distilled.cloned]
    assert shapes == [(2, 128, 8, 16), (2, 256, 4, 8), (2, 512, 2, 4), (2, 512, 1, 2)]
    assert shapes == [tuple(layer.shape) for layer in distilled.source]


def test_only_the_cloner_learns_and_both_are_in_the_checkpoint():
    made = network().train()
    made.loss(made(torch.rand(2, 1, 32, 32))).mean().backward()
    assert all(parameter.grad is None for parameter in made.source.parameters())
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in made.cloner.parameters())
    other = network()
    other.source.features[0].weight.data.zero_()
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.source.features[0].weight, SOURCE.features[0].weight)


@pytest.mark.parametrize("layers", [4, 2])
def test_the_gradient_is_that_of_the_loss_with_respect_to_the_image(layers):
    made, image = network(map_layers=layers), torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        found = made(image)[0, 0]
    x = image.clone().requires_grad_()
    source, cloned = (features[-layers:] for features in made.features(x))
    distillation_loss(source, cloned, 0.25).backward()
    torch.testing.assert_close(found, x.grad[0, 0].abs() * 32 * 32, rtol=1e-3, atol=1e-4)
    assert all(parameter.grad is None for parameter in made.source.parameters())


def test_the_gradient_agrees_with_finite_differences():
    made, image = network(), torch.rand(1, 1, 32, 32)
    gradient = made._gradient(image) / 32**2
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        rise = made.loss(made.features(image + step)) - made.loss(made.features(image - step))
    assert float(gradient.norm()) == pytest.approx(float(rise) / 2e-3, rel=0.01)


def test_smooth_gradient_is_the_mean_over_noisy_images_and_repeats():
    made, image = network(map="smooth_gradient", noise_samples=2, noise_sd=0.1), torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        found = made.anomaly_map(image)
        assert torch.equal(found, made.anomaly_map(image))
    generator = torch.Generator().manual_seed(0)
    noise = [0.1 * torch.randn(32, 32, generator=generator) for _ in range(2)]
    mean = (made._gradient(image + noise[0]) + made._gradient(image + noise[1])) / 2
    torch.testing.assert_close(found, mean.abs())
    silent = network(map="smooth_gradient", noise_samples=1, noise_sd=0.0)
    torch.testing.assert_close(silent.anomaly_map(image), network().anomaly_map(image))


def test_distances_are_those_of_the_features_upsampled():
    made, image = network(map="distance", map_layers=3), torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        features = made.features(image)
        expected = distance_map(features.source[1:], features.cloned[1:], (32, 32))
        torch.testing.assert_close(made.anomaly_map(image), expected)
    assert float(expected.min()) >= 0 and float(expected.max()) <= 1 + 1e-6


@pytest.mark.parametrize("kind", ["gradient", "distance"])
def test_every_channel_and_sample_is_an_image_of_its_own(kind):
    made, images = network(map=kind), torch.rand(2, 2, 32, 32)
    with torch.no_grad():
        together = made.anomaly_map(images)
        for sample in range(2):
            for channel in range(2):
                alone = made.anomaly_map(images[sample : sample + 1, channel : channel + 1])[0, 0]
                torch.testing.assert_close(together[sample, channel], alone, rtol=1e-3, atol=1e-3)


def test_any_size_of_slice_and_constant_slices():
    made = network(map="distance")
    for image in (torch.rand(1, 1, 20, 33), torch.zeros(1, 1, 1, 5), torch.ones(1, 1, 32, 32)):
        with torch.no_grad():
            result = made(image)
        assert result.shape == image.shape and torch.isfinite(result).all() and (result >= 0).all()
    assert torch.isfinite(network()(torch.full((1, 1, 3, 3), 0.5))).all()


def test_the_sliding_window_gives_the_map_as_error_map():
    """It asks for no gradients, but the network needs its own; several channels are averaged."""
    made = network(smoothing_mm=1.0)
    volume = torch.rand(2, 2, 32, 32)
    output = reconstruct(made, volume, (32, 32))
    assert not output.requires_grad
    found = error_map(volume, output, torch.ones(1, 2, 32, 32), "output")
    maps = torch.stack([made.anomaly_map(volume[None, :, plane])[0] for plane in range(2)], 1)
    torch.testing.assert_close(found[0], maps.mean(0), rtol=1e-3, atol=1e-3)


def test_smoothing_and_opening_are_scipys_and_the_houses():
    maps = np.random.default_rng(0).random((3, 20, 24)).astype(np.float32)
    spacing_mm = (1.0, 1.5)
    smooth = smoothed_and_opened(maps, 3.0, 0.0, spacing_mm)
    for found, plane in zip(smooth, maps, strict=True):
        np.testing.assert_allclose(found, ndimage.gaussian_filter(plane, (3.0, 2.0), mode="nearest"), rtol=1e-5)
    for radius_mm in (1.0, 1.5, 3.2):
        opened = smoothed_and_opened(maps, 0.0, radius_mm, spacing_mm)
        for found, plane in zip(opened, maps, strict=True):
            for threshold in (0.05, 0.3, 0.6):
                assert np.array_equal(found > threshold, open_mm(plane > threshold, radius_mm, spacing_mm))
    assert np.array_equal(smoothed_and_opened(maps, 0.0, 0.9, spacing_mm), maps)
    assert smoothed_and_opened(maps[:0], 2.0, 2.0, spacing_mm).shape == (0, 20, 24)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["gradient", "smooth_gradient", "distance"])
def test_on_a_gpu_as_on_the_cpu(kind):
    volume, made = torch.rand(1, 2, 40, 64), network(map=kind, noise_samples=2)
    on_cpu = reconstruct(made, volume, (64, 64))
    torch.testing.assert_close(reconstruct(made, volume, (64, 64), "cuda"), on_cpu, rtol=0.05, atol=0.05)
