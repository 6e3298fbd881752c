"""VGG-16: its layers by torchvision's numbers, its weights from a file, and what a wrong file says."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nnunet_anomaly.architectures.vgg import VGG16Features
from nnunet_anomaly.errors import InputError

# the published layout: number of every convolution, and its channels
CONVOLUTIONS = {
    **{0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128)},
    **{10: (128, 256), 12: (256, 256), 14: (256, 256)},
    **{17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)},
}
POOLINGS = (4, 9, 16, 23, 30)


def state_dict(last: int = 30) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number, (inside, outside) in CONVOLUTIONS.items():
        if number <= last:
            scale = (2 / (9 * inside)) ** 0.5
            tensors[f"features.{number}.weight"] = scale * torch.randn(outside, inside, 3, 3, generator=generator)
            tensors[f"features.{number}.bias"] = 0.1 * torch.randn(outside, generator=generator)
    return tensors


def test_layers_are_those_of_the_published_layout():
    torch.manual_seed(0)
    network = VGG16Features(None, [30])
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in state_dict().items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == 14_714_688  # without the classifier
    assert not any(parameter.requires_grad for parameter in network.parameters())
    (features,) = network(torch.rand(1, 1, 32, 33))
    assert features.shape == (1, 512, 1, 1) and 0.05 < float(features.std()) < 5  # He's scale: neither dead nor huge


def test_features_are_those_of_the_files_weights(tmp_path):
    tensors = state_dict(last=12)
    torch.save({**tensors, "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg.pth")
    network = VGG16Features(tmp_path / "vgg.pth", [0, 1, 4, 12])
    image = torch.rand(2, 3, 13, 16, requires_grad=True)
    found = network(image)
    x = (image - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    expected = []
    for number in range(13):
        if number in CONVOLUTIONS:
            x = functional.conv2d(x, tensors[f"features.{number}.weight"], tensors[f"features.{number}.bias"], 1, 1)
        else:
            x = functional.max_pool2d(x, 2) if number in POOLINGS else x.clamp(min=0)
        if number in (0, 1, 4, 12):
            expected.append(x)
    assert len(found) == 4 and found[0].min().item() < 0 <= found[1].min().item()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    found[-1].square().sum().backward()
    assert float(image.grad.abs().sum()) > 0


def test_a_grey_image_is_three_equal_channels():
    network, image = VGG16Features(None, [3]), torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(network(image)[0], network(image.expand(-1, 3, -1, -1))[0])
    with pytest.raises(ValueError, match="1 or 3"):
        network(torch.rand(1, 2, 8, 8))
    with pytest.raises(ValueError, match="need 4 pixels"):
        VGG16Features(None, [9])(torch.rand(1, 1, 3, 8))


@pytest.mark.parametrize("layers", [[], [3, 3], [8, 3], [-1], [31]])
def test_impossible_layers_are_refused(layers):
    with pytest.raises(ValueError, match="ascending numbers from 0 to 30"):
        VGG16Features(None, layers)


def test_a_wrong_file_says_what_is_wrong(tmp_path):
    path = tmp_path / "vgg.pth"
    with pytest.raises(InputError, match="is not a file"):
        VGG16Features(path, [3])
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="not readable as weights"):
        VGG16Features(path, [3])
    torch.save(list(state_dict(0).values()), path)
    with pytest.raises(InputError, match="no state dict but a list"):
        VGG16Features(path, [3])
    torch.save(state_dict(last=2), path)
    with pytest.raises(InputError, match=r"lacks: features\.5\.weight, features\.5\.bias"):
        VGG16Features(path, [6])
    torch.save({**state_dict(last=2), "features.2.weight": torch.zeros(64)}, path)  # as vgg16_bn has it
    with pytest.raises(InputError, match=r"features\.2\.weight \(64,\), \(64, 64, 3, 3\)"):
        VGG16Features(path, [3])
