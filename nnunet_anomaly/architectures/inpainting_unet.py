"""Woo's inpainting networks G and A and the compressor C, shaped by the plans (paper: figure 2, appendix A)."""

from __future__ import annotations

import pydoc
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_convtransp
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn


class Compressor(nn.Module):
    """C: squeezes the whole image into a narrow code at the bottleneck's resolution, so that anatomy passes.

    One strided convolution block per downsampling, all ``width`` channels wide, and a convolution to the code.
    """

    def __init__(self, image_channels: int, code_channels: int, width: int, encoder: PlainConvEncoder):
        super().__init__()
        n_stages = len(encoder.strides)
        self.encoder = PlainConvEncoder(
            image_channels,
            n_stages,
            [width] * n_stages,
            encoder.conv_op,
            encoder.kernel_sizes,
            encoder.strides,
            [1] * n_stages,
            encoder.conv_bias,
            encoder.norm_op,
            encoder.norm_op_kwargs,
            nonlin=encoder.nonlin,
            nonlin_kwargs=encoder.nonlin_kwargs,
        )
        self.to_code = encoder.conv_op(width, code_channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, image_channels, ...) to (B, code_channels, ... / strides)."""
        return self.to_code(self.encoder(image))


class InterpolateAndConvolve(nn.Module):
    """Linear upsampling by ``stride`` and a convolution: no checkerboards."""

    def __init__(self, channels_in: int, channels_out: int, stride: list[int], conv_op: type[nn.Module]):
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=tuple(stride), mode="trilinear" if len(stride) == 3 else "bilinear")
        self.convolve = conv_op(channels_in, channels_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, ...) to (B, channels_out, ... * stride)."""
        # the 1x1 convolution and linear interpolation commute, and convolving first is cheaper
        return self.upsample(self.convolve(x))


class InpaintingUNet(nn.Module):
    """U-Net with summed skips that reconstructs an image; with ``erase`` it is G, without it A.

    Args:
        image_channels: channels of the image and of the reconstruction.
        architecture: nnU-Net's ``arch_kwargs`` with classes in place of their names.
        code_channels: channels of C's code, joined to the bottleneck; 0 builds no C.
        upsampling: ``"transposed"`` or ``"interpolated"``.
        erase: the input's last channel is the region of interest (1 inside), which is erased from what the U-Net
            sees; C always sees the whole image.
    """

    def __init__(
        self, image_channels: int, architecture: dict[str, Any], code_channels: int, upsampling: str, erase: bool
    ):
        super().__init__()
        self.erase = erase
        kwargs = dict(architecture)
        n_conv_decoder = kwargs.pop("n_conv_per_stage_decoder")
        self.encoder = PlainConvEncoder(image_channels, return_skips=True, **kwargs)
        features = list(self.encoder.output_channels)
        self.compressor = (
            Compressor(image_channels, code_channels, features[0], self.encoder) if code_channels else None
        )

        ups, stages = [], []
        for level in range(len(features) - 1, 0, -1):
            below = features[level] + (code_channels if level == len(features) - 1 else 0)
            ups.append(_upsampling(upsampling, below, features[level - 1], self.encoder, level))
            stages.append(
                _stage(features[level - 1], self.encoder, level - 1, n_conv_decoder[len(features) - 1 - level])
            )
        self.ups, self.stages = nn.ModuleList(ups), nn.ModuleList(stages)
        self.to_image = self.encoder.conv_op(features[0], image_channels, 1)
        self.apply(InitWeights_He(1e-2))
        # start at the mean of images in [0, 1] instead of far outside, which costs hundreds of steps to mend
        with torch.no_grad():
            self.to_image.weight.mul_(0.1)
            self.to_image.bias.fill_(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruction, (B, image_channels, ...), of (B, image_channels [+ 1 with ``erase``], ...)."""
        image = x[:, :-1] if self.erase else x
        seen = image * (1 - x[:, -1:]) if self.erase else image
        *skips, x = self.encoder(seen)
        if self.compressor is not None:
            x = torch.cat((x, self.compressor(image)), 1)
        for up, stage, skip in zip(self.ups, self.stages, reversed(skips), strict=True):
            x = stage(up(x) + skip)
        return self.to_image(x)


def _upsampling(kind: str, channels_in: int, channels_out: int, encoder: PlainConvEncoder, level: int) -> nn.Module:
    stride = encoder.strides[level]
    if kind == "transposed":
        return get_matching_convtransp(encoder.conv_op)(channels_in, channels_out, stride, stride)
    if kind == "interpolated":
        return InterpolateAndConvolve(channels_in, channels_out, stride, encoder.conv_op)
    raise ValueError(f"upsampling is '{kind}'; it must be 'transposed' or 'interpolated'")


def _stage(channels: int, encoder: PlainConvEncoder, level: int, n_conv: int) -> nn.Module:
    return StackedConvBlocks(
        n_conv,
        encoder.conv_op,
        channels,
        channels,
        encoder.kernel_sizes[level],
        1,
        encoder.conv_bias,
        encoder.norm_op,
        encoder.norm_op_kwargs,
        nonlin=encoder.nonlin,
        nonlin_kwargs=encoder.nonlin_kwargs,
    )


def resolved_architecture(arch_kwargs: dict[str, Any], requires_import: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """nnU-Net's ``arch_kwargs`` with the class names that ``requires_import`` lists replaced by the classes."""
    resolved = dict(arch_kwargs)
    for key in requires_import:
        if resolved[key] is not None:
            resolved[key] = pydoc.locate(resolved[key])
    return resolved
