"""LaMa's network: its global branch by direct sums, its size, what reaches what, and planes of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_anomaly.architectures.fourier_convolution import (
    FourierConvolution,
    FourierResidualBlock,
    LaMaGenerator,
    SpectralTransform,
    SpectralUnit,
    reflected,
)
from nnunet_anomaly.error_maps.predict import reconstruct

SIZES = [(1, 1), (1, 6), (5, 1), (4, 6), (5, 7), (6, 5)]


def small(n_image_channels=1, **options) -> LaMaGenerator:
    torch.manual_seed(0)
    return LaMaGenerator(n_image_channels, **{"features": 4, "n_downsamplings": 2, "n_blocks": 1, **options}).eval()


def images(shape=(1, 1, 24, 20), region: float | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(shape, generator=generator)
    inside = torch.zeros_like(image[:, :1])
    if region is None:
        inside[..., shape[-2] // 4 : shape[-2] // 2, shape[-1] // 4 : shape[-1] // 2] = 1
    else:
        inside[:] = region
    return torch.cat((image, inside), dim=1)


def linear_unit(channels_in: int, channels_out: int) -> SpectralUnit:
    torch.manual_seed(0)
    unit = SpectralUnit(channels_in, channels_out)
    unit.norm, unit.activation = nn.Identity(), nn.Identity()
    return unit


def multiplied_by_i(rows: int, columns: int) -> np.ndarray:
    """The kernel whose spectrum is i at positive frequencies along x: a closed sum of sines, in one row only."""
    x = np.arange(columns)
    positive = np.arange(1, (columns - 1) // 2 + 1)
    kernel = np.zeros((rows, columns))
    kernel[0] = -2 / columns * np.sin(2 * np.pi * np.outer(x, positive) / columns).sum(1)
    return kernel


def circular_convolution(plane: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """By its definition: a sum over all pairs of pixels."""
    rows, columns = plane.shape
    result = np.zeros_like(plane)
    for y, x, v, u in np.ndindex(rows, columns, rows, columns):
        result[y, x] += kernel[v, u] * plane[(y - v) % rows, (x - u) % columns]
    return result


@pytest.mark.parametrize("size", SIZES)
def test_the_spectral_unit_is_a_circular_convolution(size):
    """Whatever its weights: p Re + q Im + i (r Re + s Im) = alpha z + beta conj(z), and conj(z) is the plane turned."""
    unit = linear_unit(2, 3)
    weight = unit.convolution.weight[:, :, 0, 0].detach().double().numpy()
    p, q, r, s = weight[:3, :2], weight[:3, 2:], weight[3:, :2], weight[3:, 2:]
    alpha, beta = (p + s + 1j * (r - q)) / 2, (p - s + 1j * (r + q)) / 2
    planes = np.random.default_rng(1).normal(size=(2, *size))
    turned = np.roll(planes[:, ::-1, ::-1], (1, 1), axis=(1, 2))
    identity = np.zeros(size)
    identity[0, 0] = 1

    def kernel(factor: complex) -> np.ndarray:
        return factor.real * identity + factor.imag * multiplied_by_i(*size)

    expected = [
        sum(
            circular_convolution(planes[column], kernel(alpha[row, column]))
            + circular_convolution(turned[column], kernel(beta[row, column]))
            for column in range(2)
        )
        for row in range(3)
    ]
    with torch.no_grad():
        found = unit(torch.tensor(planes[None], dtype=torch.float32))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_ones_on_the_diagonal_are_the_identity(size):
    unit = linear_unit(3, 3)
    with torch.no_grad():
        unit.convolution.weight[:] = torch.eye(6)[:, :, None, None]
        planes = torch.rand(2, 3, *size)
        torch.testing.assert_close(unit(planes), planes)


@pytest.mark.parametrize("size", SIZES)
def test_the_whole_spectral_unit_is_numpys(size):
    """With a normalisation and ReLU, after which the frequencies are no longer those of a real plane."""
    torch.manual_seed(0)
    unit = SpectralUnit(2, 3).eval()
    nn.init.normal_(unit.norm.bias)
    planes = np.random.default_rng(1).normal(size=(2, *size))
    spectrum = np.fft.rfft2(planes, norm="ortho")
    weight = unit.convolution.weight[:, :, 0, 0].detach().double().numpy()
    mixed = np.einsum("of,fyx->oyx", weight, np.concatenate((spectrum.real, spectrum.imag)))
    mixed = mixed / np.sqrt(1 + unit.norm.eps) + unit.norm.bias.detach().double().numpy()[:, None, None]
    mixed = np.maximum(mixed, 0)
    expected = np.fft.irfft2(mixed[:3] + 1j * mixed[3:], size, norm="ortho")
    found = unit(torch.tensor(planes[None], dtype=torch.float32))
    np.testing.assert_allclose(found[0].detach().numpy(), expected, atol=2e-6)


def test_the_spectral_transform_adds_the_unit_at_half_the_channels():
    torch.manual_seed(0)
    transform, planes = SpectralTransform(5, 7).eval(), torch.rand(2, 5, 4, 3)
    reduced = transform.reduce(planes)
    assert reduced.shape == (2, 3, 4, 3) and reduced.min().item() == 0
    expected = transform.expand(reduced) + transform.expand(transform.unit(reduced))
    torch.testing.assert_close(transform(planes), expected)
    assert SpectralTransform(1, 1)(planes[:, :1]).shape == (2, 1, 4, 3)


@pytest.mark.parametrize(
    "ratio_in, ratio_out, branches",
    [
        (0.5, 0.75, {"local_to_local", "local_to_global", "global_to_local", "global_to_global"}),
        (0.0, 0.5, {"local_to_local", "local_to_global"}),
        (0.0, 0.0, {"local_to_local"}),
        (1.0, 1.0, {"global_to_global"}),
        (1.0, 0.0, {"global_to_local"}),
    ],
)
def test_branches_between_channels_that_there_are(ratio_in, ratio_out, branches):
    layer = FourierConvolution(8, 12, 3, ratio_in, ratio_out)
    assert {name for name, _ in layer.named_children()} == branches
    assert layer(torch.rand(2, 8, 5, 6)).shape == (2, 12, 5, 6)


def test_the_four_branches_are_added():
    torch.manual_seed(0)
    layer = FourierConvolution(8, 8, 3, 0.25, 0.75).eval()
    x = torch.rand(1, 8, 6, 5)
    local, wide = x[:, :6], x[:, 6:]
    expected = torch.cat(
        (
            layer.local_to_local(local) + layer.global_to_local(wide),
            layer.local_to_global(local) + layer.global_to_global(wide),
        ),
        dim=1,
    )
    torch.testing.assert_close(layer(x), expected)


def test_a_residual_block_of_zeros_is_the_identity():
    block, x = FourierResidualBlock(8, 0.5).eval(), torch.randn(1, 8, 3, 2)
    for layer in block.blocks:
        nn.init.zeros_(layer.norm.weight)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("n_blocks, ratio, number", [(9, 0.75, 27_048_835), (18, 0.75, 50_975_875), (9, 0, 45_607_555)])
def test_parameters_are_those_of_the_paper(n_blocks, ratio, number):
    """27 million (LaMa-Fourier) and 51 million (Big LaMa); the count follows from the layers' sizes.

    With ordinary convolutions 9 blocks have 46 million.
    """
    with torch.device("meta"):
        network = LaMaGenerator(3, n_blocks=n_blocks, global_ratio=ratio)
    wide, local = int(512 * ratio), 512 - int(512 * ratio)
    half = wide // 2
    spectral = (wide * half + 2 * half) + ((2 * half) ** 2 + 4 * half) + half * wide
    block = 2 * (9 * local * 512 + 9 * wide * local + spectral + 2 * 512)
    encoder = 49 * 4 * 64 + 2 * 64 + sum(9 * n * 2 * n + 2 * 2 * n for n in (64, 128, 256))
    decoder = sum(9 * n * 2 * n + n + 2 * n for n in (64, 128, 256)) + 49 * 64 * 3 + 3
    assert sum(parameter.numel() for parameter in network.parameters()) == number
    assert number == encoder + n_blocks * block + decoder


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 3), (8, 8), (13, 22), (16, 40)])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_planes_of_any_size(shape, norm):
    network = small(2, norm=norm)
    answer = network(images((2, 2, *shape)))
    assert answer.shape == (2, 2, *shape) and answer.isfinite().all()
    assert answer.min().item() >= 0 and answer.max().item() <= 1


def test_enlarging_is_by_reflection():
    for present, size in [(5, 8), (5, 5), (3, 11), (2, 7), (1, 4)]:
        plane = np.random.default_rng(0).normal(size=(2, present))
        expected = np.pad(plane, ((0, 0), (0, size - present)), mode="reflect")
        assert np.array_equal(reflected(torch.tensor(plane), 1, size).numpy(), expected)


@pytest.mark.parametrize("region", [0.0, 1.0])
def test_what_is_erased_is_not_seen(region):
    network, x = small(), images(region=region)
    other = torch.cat((torch.rand_like(x[:, :1]), x[:, 1:]), dim=1)
    assert torch.equal(network(x), network(other)) == bool(region)
    assert network(x).isfinite().all()
    changed = images()
    changed[:, :1] += 3 * changed[:, 1:]
    assert torch.equal(network(images()), network(changed))
    assert network.erase  # what the framework asks


def test_a_region_of_one_pixel_changes_the_answer():
    network, x = small(), images(region=0.0)
    one = x.clone()
    one[..., 0, 11, 10] = 0  # the same image, but now the region says that the pixel is unknown
    x[..., 0, 11, 10] = 0
    one[:, 1, 11, 10] = 1
    assert not torch.equal(network(x), network(one))


def reaching(network: LaMaGenerator, size: int, row: int, column: int) -> np.ndarray:
    """Which pixels of the image reach one pixel of the answer; weights are made positive, so that none cancels out."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    x = torch.cat((torch.rand(1, 1, size, size), torch.zeros(1, 1, size, size)), dim=1).double().requires_grad_()
    network.double()(x)[0, 0, row, column].backward()
    return (x.grad[0, 0] != 0).numpy()


@pytest.mark.parametrize("n_downsamplings, n_blocks", [(1, 1), (2, 1), (1, 3)])
def test_without_global_channels_the_reach_is_that_of_the_convolutions(n_downsamplings, n_blocks):
    network = small(n_downsamplings=n_downsamplings, n_blocks=n_blocks, global_ratio=0, final_activation="linear")
    size, centre = 96, 47
    reached = np.flatnonzero(reaching(network, size, centre, centre).any(0))
    low, high = centre - 3, centre + 3  # the last layer, 7 pixels; then backwards to the first
    for _ in range(n_downsamplings):
        low, high = -(-(low - 1) // 2), (high + 1) // 2
    low, high = low - 2 * n_blocks, high + 2 * n_blocks
    for _ in range(n_downsamplings):
        low, high = 2 * low - 1, 2 * high + 1
    assert (reached[0], reached[-1]) == (low - 3, high + 3)
    assert len(reached) == high - low + 7 < size


@pytest.mark.parametrize("n_blocks, ratio, whole", [(1, 0.5, True), (0, 0.5, False), (1, 0.0, False)])
def test_the_first_global_block_reaches_from_corner_to_corner(n_blocks, ratio, whole):
    options = {"n_blocks": n_blocks, "global_ratio": ratio, "features": 8, "final_activation": "linear"}
    reached = reaching(small(**options), 64, 63, 63)
    assert reached[0, 0] == whole and reached[63, 63] and reached.all() == whole
    network = small(**options).double()
    x = images((1, 1, 64, 64), region=0.0).double()
    changed = x.clone()
    changed[0, 0, 0, 0] += 1
    with torch.no_grad():
        difference = (network(changed) - network(x)).abs()[0, 0]
    assert (difference[63, 63].item() > 0) == whole and difference[0, 0].item() > 0


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_all_parameters_learn(norm):
    network = small(norm=norm).train()
    network(images((2, 1, 19, 23))).square().mean().backward()
    # a normalisation takes these away again
    idle = {id(module.bias) for module in network.modules() if isinstance(module, nn.ConvTranspose2d)}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum().item() > 0 or id(parameter) in idle, name


def test_batch_norm_predicts_every_slice_by_itself():
    network = small(norm="batch")
    x = images((3, 1, 16, 16))
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))


def test_prediction_slides_it_over_the_slices_of_a_volume():
    volume = torch.cat((torch.rand(2, 3, 19, 22), torch.ones(1, 3, 19, 22)))
    network = small(2)
    answer = reconstruct(network, volume, (24, 24))  # larger than the slice: padded with zeros
    assert answer.shape == (2, 3, 19, 22)
    padded = torch.nn.functional.pad(volume[:, 1], (1, 1, 2, 3))
    with torch.no_grad():
        torch.testing.assert_close(answer[:, 1], network(padded[None])[0, :, 2:21, 1:23])
    assert reconstruct(network, volume, (12, 16)).isfinite().all()


def test_the_answer_is_bounded_only_by_the_sigmoid():
    x = images()
    bounded, linear = small(), small(final_activation="linear")
    with torch.no_grad():
        for network in (bounded, linear):
            network.to_image.bias.fill_(9)
    assert bounded(x).max().item() <= 1 < linear(x).max().item()


def test_bfloat16_autocast_is_near_single_precision():
    network, x = small(), images((1, 1, 21, 17))
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(x)
            unit = SpectralUnit(2, 2).eval()(torch.rand(1, 2, 5, 7).bfloat16())
    assert found.dtype == unit.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_float16_autocast_on_a_gpu():
    network, x = small(features=16).cuda(), images((1, 1, 101, 75)).cuda()
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cuda", torch.float16):
            found = network(x)
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0)
    with torch.autocast("cuda", torch.float16):
        network.train()(x).mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_impossible_arguments_are_refused():
    for options, message in [
        ({"n_downsamplings": 0}, "at least 1"),
        ({"global_ratio": 1.5}, "lie in 0 to 1"),
        ({"norm": "layer"}, "'batch' or 'instance'"),
        ({"final_activation": "tanh"}, "'sigmoid' or 'linear'"),
    ]:
        with pytest.raises(ValueError, match=message):
            small(**options)
    with pytest.raises(ValueError, match="no stride"):
        FourierConvolution(8, 8, 3, 0.5, 0.5, stride=2)
