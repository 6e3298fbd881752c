"""UNet++, a U-Net with a nested, densely connected decoder, shaped by the plans (Zhou et al. 2018; 2019, figure 1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_convtransp
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.initialization.weight_init import InitWeights_He, init_last_bn_before_add_to_0
from torch import nn


class NestedDecoder(nn.Module):
    """The nodes X^{i,j} of UNet++ for j > 0, and a segmentation head on every X^{0,j}.

    X^{i,0} is the encoder's stage i, and X^{i,j} a stack of convolutions over X^{i,0}, ..., X^{i,j-1} and the
    transposed convolution of X^{i+1,j-1}. All X^{i,j} of a level i have the features and kernels of its stage. The
    depth J is the number of stages below the first; i + j <= J.

    Args:
        encoder: its stages give the levels; the first has stride 1, so that all heads lie at the image's resolution.
        num_classes: channels of every head.
        n_conv_per_stage: convolutions of a node, from the deepest level with nodes up to level 0, as in nnU-Net.
        deep_supervision: whether the answer is that of all heads; nnU-Net switches it.
        nonlin_first: as in nnU-Net's decoder.

    Raises:
        ValueError: one stage alone, a first stage with a stride, or another number of levels in ``n_conv_per_stage``.
    """

    def __init__(
        self,
        encoder: PlainConvEncoder | ResidualEncoder,
        num_classes: int,
        n_conv_per_stage: Sequence[int],
        deep_supervision: bool,
        nonlin_first: bool = False,
    ):
        super().__init__()
        features = list(encoder.output_channels)
        depth = len(features) - 1
        if depth < 1:
            raise ValueError("UNet++ needs two stages at least")
        if any(stride != 1 for stride in encoder.strides[0]):
            raise ValueError(f"the first stage has strides {encoder.strides[0]}; UNet++ takes none there")
        if len(n_conv_per_stage) != depth:
            raise ValueError(f"n_conv_per_stage_decoder has {len(n_conv_per_stage)} entries, not {depth}")
        self.deep_supervision = deep_supervision
        self.ensemble = False
        self.prediction_depth = self.depth = depth
        self.features, self.strides, self.num_classes = features, encoder.strides, num_classes
        transposed = get_matching_convtransp(encoder.conv_op)
        ups, nodes = {}, {}
        for level, column in self.positions():
            key, stride = f"{level}_{column}", encoder.strides[level + 1]
            wide, narrow = features[level + 1], features[level]
            ups[key] = transposed(wide, narrow, stride, stride, bias=encoder.conv_bias)
            nodes[key] = StackedConvBlocks(
                n_conv_per_stage[depth - 1 - level],
                encoder.conv_op,
                (column + 1) * narrow,
                narrow,
                encoder.kernel_sizes[level],
                1,
                encoder.conv_bias,
                encoder.norm_op,
                encoder.norm_op_kwargs,
                encoder.dropout_op,
                encoder.dropout_op_kwargs,
                encoder.nonlin,
                encoder.nonlin_kwargs,
                nonlin_first,
            )
        self.ups, self.nodes = nn.ModuleDict(ups), nn.ModuleDict(nodes)
        # nnU-Net leaves layers of this name out of -pretrained_weights
        self.seg_layers = nn.ModuleList(encoder.conv_op(features[0], num_classes, 1) for _ in range(depth))

    def positions(self, depth: int | None = None) -> list[tuple[int, int]]:
        """(i, j) of all nodes down to ``depth`` (None: all), each after those that it is made of."""
        depth = self.depth if depth is None else depth
        return [(level, column) for column in range(1, depth + 1) for level in range(depth + 1 - column)]

    @property
    def depth_in_use(self) -> int:
        """Deepest level that the next answer is made of."""
        return self.depth if self.deep_supervision else self.prediction_depth

    def forward(self, skips: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Logits, (B, num_classes, ...), from the encoder's stages down to ``depth_in_use``.

        Under deep supervision a list of all heads, the one on X^{0,J} first. Else, with L for ``prediction_depth``,
        that on X^{0,L} or, with ``ensemble``, the mean of those on X^{0,1}, ..., X^{0,L}.
        """
        rows = [[skip] for skip in skips]
        for level, column in self.positions(len(skips) - 1):
            key = f"{level}_{column}"
            below = self.ups[key](rows[level + 1][column - 1])
            rows[level].append(self.nodes[key](torch.cat((below, *rows[level]), 1)))
        if not self.deep_supervision and not self.ensemble:
            return self.seg_layers[len(skips) - 2](rows[0][-1])
        heads = [layer(node) for layer, node in zip(self.seg_layers, rows[0][1:], strict=False)]
        return heads[::-1] if self.deep_supervision else torch.stack(heads).mean(0)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Memory in training, in the unit of nnU-Net's planners: numbers in the outputs of convolutions, and more.

        A backward pass needs the input of every node, (j + 1) times the features of its level, too. In nnU-Net's
        decoder that is twice the features, and the output of the transposed convolution, which is counted, stands for
        it; so half of the input is counted here.

        Args:
            input_size: spatial shape of the encoder's input, divisible by the strides.
        """
        sizes = [list(input_size)]
        for stride in self.strides[1:]:
            sizes.append([length // step for length, step in zip(sizes[-1], stride, strict=True)])
        total = self.depth * self.num_classes * math.prod(sizes[0])
        for level, column in self.positions():
            total += self.nodes[f"{level}_{column}"].compute_conv_feature_map_size(sizes[level])  # type: ignore[operator]
            total += (column + 1) * self.features[level] * math.prod(sizes[level]) // 2
        return np.int64(total)


class UNetPlusPlus(nn.Module):
    """nnU-Net's encoder and ``NestedDecoder``; takes what the plans say of nnU-Net's own networks.

    Args:
        input_channels: channels of the image.
        num_classes: channels of every head.
        n_conv_per_stage_decoder: convolutions of a node, from the deepest level with nodes up to level 0.
        deep_supervision: whether the answer is that of all heads.
        encoder: arguments of ``ResidualEncoder`` where ``n_blocks_per_stage`` is among them, else of
            ``PlainConvEncoder``.

    Raises:
        ValueError: see ``NestedDecoder``.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_conv_per_stage_decoder: Sequence[int],
        deep_supervision: bool = False,
        **encoder: Any,
    ):
        super().__init__()
        kind = ResidualEncoder if "n_blocks_per_stage" in encoder else PlainConvEncoder
        self.encoder = kind(input_channels, return_skips=True, **encoder)
        self.decoder = NestedDecoder(
            self.encoder,
            num_classes,
            n_conv_per_stage_decoder,
            deep_supervision,
            encoder.get("nonlin_first", False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits of images (B, input_channels, ...), see ``NestedDecoder.forward``; stages not needed are left out."""
        if getattr(self.encoder, "stem", None) is not None:
            x = self.encoder.stem(x)
        skips = []
        for stage in itertools.islice(self.encoder.stages, self.decoder.depth_in_use + 1):
            x = stage(x)
            skips.append(x)
        return self.decoder(skips)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Memory in training of an image of this spatial shape, in the unit of nnU-Net's planners."""
        return self.encoder.compute_conv_feature_map_size(input_size) + self.decoder.compute_conv_feature_map_size(
            input_size
        )

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Weights of one module, as in nnU-Net's networks."""
        InitWeights_He(1e-2)(module)
        init_last_bn_before_add_to_0(module)
