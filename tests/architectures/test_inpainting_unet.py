import pytest
import torch

from nnunet_anomaly.architectures.inpainting_unet import InpaintingUNet, resolved_architecture


def network(dimension=3, *, code_channels=0, upsampling="interpolated", erase=False, channels=1):
    strides = [[1] * dimension, [1] + [2] * (dimension - 1), [2] * dimension]
    kwargs = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "conv_op": f"torch.nn.modules.conv.Conv{dimension}d",
        "kernel_sizes": [[3] * dimension] * 3,
        "strides": strides,
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimension}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    architecture = resolved_architecture(kwargs, ("conv_op", "norm_op", "dropout_op", "nonlin"))
    torch.manual_seed(0)
    return InpaintingUNet(channels, architecture, code_channels, upsampling, erase).eval()


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("upsampling", ["transposed", "interpolated"])
@pytest.mark.parametrize("code_channels", [0, 4])
@pytest.mark.parametrize("erase", [False, True])
def test_it_gives_an_image_of_the_same_size(dimension, upsampling, code_channels, erase):
    net = network(dimension, code_channels=code_channels, upsampling=upsampling, erase=erase, channels=2)
    shape = (4, 8, 12)[:dimension]
    assert net(torch.rand(1, 2 + erase, *shape)).shape == (1, 2, *shape)
    assert (net.compressor is None) == (code_channels == 0)


def test_g_without_a_compressor_never_sees_what_is_erased():
    net = network(erase=True)
    image, region = torch.rand(1, 1, 4, 8, 8), torch.zeros(1, 1, 4, 8, 8)
    region[..., 2:6, 2:6] = 1
    changed = torch.where(region > 0, torch.rand_like(image), image)
    assert torch.equal(net(torch.cat((image, region), 1)), net(torch.cat((changed, region), 1)))
    outside = torch.where(region > 0, image, torch.rand_like(image))
    assert not torch.allclose(net(torch.cat((image, region), 1)), net(torch.cat((outside, region), 1)))


def test_the_compressor_sees_the_whole_image():
    net = network(erase=True, code_channels=2)
    image, everywhere = torch.rand(1, 1, 4, 8, 8), torch.ones(1, 1, 4, 8, 8)
    first = net(torch.cat((image, everywhere), 1))
    second = net(torch.cat((torch.rand_like(image), everywhere), 1))
    assert not torch.allclose(first, second)


def test_skips_are_summed():
    net = network()
    widths = [stage.convs[0].conv.in_channels for stage in net.stages]
    assert widths == [8, 4]  # a concatenation would double them


def test_the_code_has_the_size_of_the_bottleneck():
    net = network(code_channels=3)
    image = torch.rand(1, 1, 8, 16, 16)
    assert net.compressor(image).shape == (1, 3, *net.encoder(image)[-1].shape[2:])


def test_another_upsampling_is_refused():
    with pytest.raises(ValueError, match="upsampling"):
        network(upsampling="nearest")
