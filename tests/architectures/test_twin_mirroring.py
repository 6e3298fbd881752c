"""The network that looks at the mirror image too: exact, and on whatever nnU-Net makes of a network."""

import copy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_anomaly.architectures.twin_mirroring import TwinMirroring

TWINS = [0, 2, 1, 3]


def unet(dimension=3, input_channels=1, hook=None, deep_supervision=False):
    torch.manual_seed(0)
    network = PlainConvUNet(
        input_channels,
        n_stages=3,
        features_per_stage=[4, 8, 8],
        conv_op={2: nn.Conv2d, 3: nn.Conv3d}[dimension],
        kernel_sizes=3,
        strides=[1, 2, 2],
        n_conv_per_stage=1,
        num_classes=4,
        n_conv_per_stage_decoder=1,
        nonlin=nn.LeakyReLU,
        deep_supervision=deep_supervision,
    ).eval()
    if hook:
        network.register_forward_hook(hook)
    return network


def with_hook(axis=2, dimension=3, **kwargs):
    return unet(dimension, hook=TwinMirroring(axis, TWINS), **kwargs)


def batch(*size, channels=1):
    return torch.randn((2, channels, *size), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("axis", "size"), [(0, (8, 12, 16)), (2, (8, 12, 16)), (1, (12, 16))])
@torch.no_grad()
def test_it_is_the_mean_of_two_looks(axis, size):
    plain, image = unet(len(size)), batch(*size)
    mirrored = plain(image.flip(axis + 2)).flip(axis + 2)
    expected = (plain(image) + torch.stack([mirrored[:, channel] for channel in TWINS], dim=1)) / 2
    assert torch.equal(with_hook(axis, len(size))(image), expected)


@torch.no_grad()
def test_a_mirrored_image_gives_the_mirrored_answer_with_twins_exchanged():
    network, image = with_hook(), batch(8, 12, 16)
    assert torch.equal(network(image.flip(4)), network(image).flip(4)[:, TWINS])
    assert not torch.allclose(unet()(image.flip(4)), unet()(image).flip(4)[:, TWINS], atol=1e-3)


@torch.no_grad()
def test_labels_of_the_previous_stage_are_exchanged_too():
    inputs = [0, 2, 1, 3]  # one image, then labels 1 to 3
    network = unet(input_channels=4, hook=TwinMirroring(2, TWINS, inputs))
    image = batch(8, 12, 16, channels=4)
    assert torch.equal(network(image.flip(4)[:, inputs]), network(image).flip(4)[:, TWINS])
    plain = unet(input_channels=4)
    mirrored = plain(image[:, inputs].flip(4)).flip(4)[:, TWINS]
    assert torch.equal(network(image), (plain(image) + mirrored) / 2)


def test_training_and_its_validation_steps_are_nnunets():
    image = batch(8, 12, 16)
    calls = []
    network = with_hook(deep_supervision=True)
    original = network.forward
    network.forward = lambda *arguments: calls.append(1) or original(*arguments)
    assert all(torch.equal(*pair) for pair in zip(network(image), unet(deep_supervision=True)(image), strict=True))
    network.decoder.deep_supervision = False
    network.train()
    assert torch.equal(network(image), unet().train()(image))
    assert len(calls) == 2  # one pass each
    network.eval()
    assert torch.equal(network(image), with_hook()(image))
    assert len(calls) == 4


@torch.no_grad()
def test_weights_have_the_same_names_and_copies_use_their_own():
    network, image = with_hook(), batch(8, 12, 16)
    assert network.state_dict().keys() == unet().state_dict().keys() and type(network) is PlainConvUNet
    before = network(image)
    twin = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.zero_()
    assert torch.equal(twin(image), before) and not network(image).any()


class Wrapped(nn.Module):
    """As DistributedDataParallel: the network is called as ``module``."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, image):
        return self.module(image)


@torch.no_grad()
def test_it_works_within_a_wrapper_and_saved_whole(tmp_path):
    network, image = with_hook(), batch(8, 12, 16)
    expected = network(image)
    assert torch.equal(Wrapped(network)(image), expected)
    torch.save(network, tmp_path / "network.pth")
    assert torch.equal(torch.load(tmp_path / "network.pth", weights_only=False)(image), expected)


@torch.no_grad()
def test_half_precision():
    network, image = with_hook(), batch(8, 12, 16)
    expected = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(image)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.1 * float(expected.abs().max()))
    half = copy.deepcopy(network).to(torch.bfloat16)(image.to(torch.bfloat16))
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.1 * float(expected.abs().max()))


def test_a_compiled_network_does_the_same():
    """Traced as nnU-Net's ``torch.compile`` traces it; the switch for deep supervision included."""
    torch._dynamo.reset()
    network, image = with_hook(deep_supervision=True), batch(8, 12, 16)
    compiled = torch.compile(network, backend="aot_eager")
    with torch.no_grad():
        for deep_supervision in (True, False):
            compiled._orig_mod.decoder.deep_supervision = deep_supervision
            found, expected = compiled(image), network(image)
            if deep_supervision:
                assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
            else:
                torch.testing.assert_close(found, expected)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(image), network(image))
        assert not torch.allclose(compiled(image), unet()(image), atol=1e-3)
    torch._dynamo.reset()
