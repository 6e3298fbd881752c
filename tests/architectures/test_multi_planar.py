"""One 2-D network that takes planes and volumes."""

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_anomaly.architectures import multi_planar
from nnunet_anomaly.architectures.multi_planar import SMALLEST_PROBABILITY, MultiPlanarUNet, memory_bytes
from nnunet_anomaly.views import covering_stack, draw_frames, frame_of

CLASSES, PIXELS = 3, 16


def unet(channels=2, classes=CLASSES):
    torch.manual_seed(0)
    network = PlainConvUNet(
        channels,
        3,
        (4, 8, 8),
        nn.Conv2d,
        3,
        ((1, 1), (2, 2), (2, 2)),
        1,
        classes,
        1,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=False,
    )
    for module in network.modules():  # logits of a size that makes probabilities of all sizes
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.4)
    return network.eval()


def planar(frames, spacing_mm=(1.0, 1.0, 1.0), pixels=PIXELS, pixel_mm=1.0, network=None):
    return MultiPlanarUNet(network or unet(), np.asarray(frames), spacing_mm, pixels, pixels * pixel_mm).eval()


def volume(*shape, batch=1, channels=2, seed=0):
    return torch.randn(batch, channels, *shape, generator=torch.Generator().manual_seed(seed))


def test_planes_go_to_the_2d_network_as_they_are():
    network, planes = planar([np.eye(3)]), torch.randn(3, 2, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(planes), network.unet(planes), rtol=0, atol=0)
    network.decoder.deep_supervision = True
    assert len(network(planes)) == 2
    assert network(volume(3, 16, 16)).shape == (1, CLASSES, 3, 16, 16)  # the finest scale of it


def test_the_identity_view_is_slice_wise_prediction():
    network, image = planar([np.eye(3)]), volume(5, 16, 16, batch=2)
    with torch.no_grad():
        expected = torch.stack([network.unet(image[:, :, z]).softmax(1) for z in range(5)], dim=2)
    found = network(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp(), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.softmax(1), expected, rtol=0, atol=2e-5)  # as nnU-Net takes it


def test_another_axis_is_another_order_of_axes():
    image = volume(16, 5, 16)
    turned = planar([np.eye(3)])(image.permute(0, 1, 3, 2, 4))  # slices along axis 1 come first
    torch.testing.assert_close(planar([frame_of((0, 1, 0))])(image), turned.permute(0, 1, 3, 2, 4), rtol=0, atol=1e-4)
    image = volume(16, 16, 5)
    turned = planar([np.eye(3)])(image.permute(0, 1, 4, 2, 3))
    torch.testing.assert_close(planar([frame_of((0, 0, 1))])(image), turned.permute(0, 1, 3, 4, 2), rtol=0, atol=1e-4)


def test_views_are_averaged_as_probabilities():
    frames, image = draw_frames(4, 60, 0), volume(9, 12, 11)
    each = torch.stack([planar([frame])(image).softmax(1) for frame in frames])
    torch.testing.assert_close(planar(frames)(image).softmax(1), each.mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 13, 11), (1, 20, 17), (3, 4, 5), (40, 9, 1), (1, 1, 1)])
def test_odd_shapes_one_slice_and_volumes_smaller_than_a_plane(shape):
    image = volume(*shape, batch=2)
    network = planar(draw_frames(3, 60, 1), spacing_mm=(2.0, 0.9, 1.1))
    found = network(image)
    assert found.shape == (2, CLASSES, *shape) and found.isfinite().all()
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, *shape), rtol=0, atol=1e-4)
    torch.testing.assert_close(network(image[1:]), found[1:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("pixels_at_once", [1, 600, 5000])
def test_nothing_depends_on_how_much_is_done_at_once(monkeypatch, pixels_at_once):
    network, image = planar(draw_frames(2, 60, 0)), volume(9, 12, 11)
    expected = network(image)
    monkeypatch.setattr(multi_planar, "PIXELS_AT_ONCE", pixels_at_once)
    torch.testing.assert_close(network(image), expected, rtol=0, atol=1e-4)


class Intensities(nn.Module):
    """In place of a U-Net: the image's own values are the logits, so that what comes back is known."""

    class encoder:
        strides = ((1, 1), (2, 2), (2, 2))

    def forward(self, x):
        return x


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (3.0, 0.8, 1.3)])
def test_every_view_covers_every_voxel_and_none_is_counted_twice(spacing_mm):
    """An image whose softmax is the same everywhere but outside, where zeros are another."""
    image = torch.tensor([0.8, 0.2]).log()[None, :, None, None, None].expand(1, 2, 11, 14, 9)
    network = planar(draw_frames(6, 60, 2), spacing_mm, network=Intensities())
    found = network(image).softmax(1)[0, 0]
    inside = (slice(2, -2),) * 3
    np.testing.assert_allclose(found[inside].numpy(), 0.8, atol=1e-5)
    assert found.min() >= 0.5 - 1e-6  # the outside's, at corners


def test_an_ellipsoid_in_voxels_that_is_a_ball_in_mm_comes_back():
    spacing_mm, shape = (2.0, 1.0, 0.8), (16, 31, 39)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    distance_mm = np.sqrt(sum(p**2 for p in np.meshgrid(*axes, indexing="ij")))
    logits = np.stack((distance_mm - 10, 10 - distance_mm))
    network = planar(draw_frames(6, 60, 0), spacing_mm, network=Intensities())
    found = network(torch.from_numpy(logits).float()[None]).argmax(1)[0].numpy()
    clear = np.abs(distance_mm - 10) > 0.5
    np.testing.assert_array_equal(found[clear], distance_mm[clear] < 10)


def test_probabilities_have_a_floor():
    certain = torch.tensor([50.0, -50.0])[None, :, None, None, None].expand(1, 2, 4, 4, 4)
    found = planar([np.eye(3)], pixels=4, network=Intensities())(certain)
    assert found.half().isfinite().all()
    np.testing.assert_allclose(found[0, 1].numpy(), np.log(SMALLEST_PROBABILITY), rtol=1e-6)
    np.testing.assert_allclose(found[0, 0].numpy(), 0, atol=1e-6)


def test_regions_are_averaged_as_sigmoids():
    network, image = planar([np.eye(3)]), volume(4, 16, 16)
    network.independent.fill_(True)
    with torch.no_grad():
        expected = torch.stack([network.unet(image[:, :, z]).sigmoid() for z in range(4)], dim=2)
    torch.testing.assert_close(network(image).sigmoid(), expected, rtol=0, atol=2e-5)


def test_views_and_kind_of_classes_are_in_the_state():
    first, image = planar(draw_frames(3, 60, 0)), volume(6, 8, 9)
    first.independent.fill_(True)
    other = planar(draw_frames(3, 60, 1))
    before = other(image)
    other.load_state_dict(first.state_dict())
    torch.testing.assert_close(other(image), first(image), rtol=0, atol=0)
    assert not torch.allclose(other(image), before)
    with pytest.raises(RuntimeError, match="frames"):
        planar(draw_frames(2, 60, 0)).load_state_dict(first.state_dict())


def test_mixed_precision_and_half_images():
    network, image = planar(draw_frames(2, 60, 0)), volume(6, 8, 9)
    expected = network(image).exp()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp(), expected, rtol=0, atol=0.1)
    torch.testing.assert_close(network(image.half()).exp(), expected, rtol=0, atol=0.02)


def test_memory_is_that_of_the_largest_stack():
    frames, shape, spacing_mm = draw_frames(6, 60, 0), (20, 30, 40), (1.0, 1.0, 1.0)
    largest = max(np.prod(covering_stack(frame, shape, spacing_mm, 1.0).shape) for frame in frames)
    assert memory_bytes(frames, shape, spacing_mm, 1.0, 1, 5) == 4 * (5 * largest + 11 * 20 * 30 * 40)
    assert memory_bytes(np.eye(3)[None], shape, spacing_mm, 1.0, 1, 5) == 4 * 16 * 20 * 30 * 40


def test_gradients_reach_the_2d_network_by_planes():
    network = planar([np.eye(3)])
    network(torch.randn(2, 2, 16, 16)).sum().backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if "seg_layers.0" not in name)
