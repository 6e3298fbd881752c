"""Features of VGG-16 (Simonyan and Zisserman 2015) for grey images, with weights from a file that the user gives."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.transfer import differing_tensors

# Convolutions of each stage, by their channels; a pooling layer ends every stage.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_SD = (0.229, 0.224, 0.225)


class VGG16Features(nn.Module):
    """Outputs of some of VGG-16's layers, counted as in torchvision: convolution, ReLU and pooling count one each.

    The pooling layers are 4, 9, 16, 23 and 30, the last ReLU of the stages 3, 8, 15, 22 and 29. Layers behind the last
    one that is asked for are not built. The parameters do not require gradients (``requires_grad_()`` makes them
    train), but gradients pass through to the image. There is neither dropout nor normalisation: training and
    evaluation mode are the same.

    Args:
        weights: file with the state dict of torchvision's ``vgg16`` (keys ``features.N.weight`` and
            ``features.N.bias``; others are not looked at), which PyTorch reads without running code from it. None: He's
            random initialisation.
        layers: 0 to 30, ascending, each once.

    Raises:
        ValueError: ``layers`` is empty, not ascending, or out of range.
        InputError: the file is missing, not readable, or not such a state dict; missing keys are named.
    """

    mean: torch.Tensor
    sd: torch.Tensor

    def __init__(self, weights: Path | None, layers: Sequence[int]):
        super().__init__()
        self.layers = tuple(layers)
        if not self.layers or any(low >= high for low, high in itertools.pairwise((-1, *self.layers, 31))):
            raise ValueError(f"layers is {self.layers}; it must be ascending numbers from 0 to 30")
        self.features = nn.ModuleList(_layers()[: self.layers[-1] + 1])
        for name, values in (("mean", IMAGENET_MEAN), ("sd", IMAGENET_SD)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)
        if weights is None:
            self.apply(_initialise)
        else:
            self.load_state_dict(_read_weights(Path(weights), self.state_dict()))
        self.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features (B, channels, y / 2^n, x / 2^n) of every layer, n pooling layers deep, in the order of ``layers``.

        Args:
            image: float (B, 1 or 3, y, x) in [0, 1]; one channel is repeated. Normalised as ImageNet's images are.

        Raises:
            ValueError: another number of channels, or nothing would be left of so small an image.
        """
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise ValueError(f"VGG-16 takes images of (B, 1 or 3, y, x), not {tuple(image.shape)}")
        smallest = 2 ** sum(isinstance(layer, nn.MaxPool2d) for layer in self.features)
        if min(image.shape[2:]) < smallest:
            raise ValueError(f"these layers of VGG-16 need {smallest} pixels a side, not {tuple(image.shape[2:])}")
        x = (image - self.mean) / self.sd
        found = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.layers:
                found.append(x)
        return found


def _layers() -> list[nn.Module]:
    """All 31 layers, at the numbers that they have in torchvision."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in STAGES:
        for width in stage:
            # not in place: the convolution's output may be asked for too
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return layers


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def _read_weights(path: Path, wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those tensors of a file that are wanted.

    Raises:
        InputError: see ``VGG16Features``.
    """
    if not path.is_file():
        raise InputError(f"{path}, the weights of VGG-16, is not a file. Give torchvision's state dict of vgg16.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path} is not readable as weights ({type(error).__name__}). Give torchvision's state dict of vgg16."
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no state dict but a {type(found).__name__}. Give torchvision's of vgg16.")
    found = {key: found[key] for key in wanted if isinstance(found.get(key), torch.Tensor)}
    problems = differing_tensors(found, wanted)
    if problems:
        raise InputError(
            f"{path} does not hold the weights of VGG-16: {'; '.join(problems)}. Give torchvision's state dict of "
            "vgg16 (not of vgg16_bn, another VGG or only its classifier)."
        )
    return found
