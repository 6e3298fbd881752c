"""Plans as nnU-Net's planners write them, for benchmarks that make their own data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunet_anomaly.settings import AnomalySettings


def plans_of(
    configuration: str,
    patch_size: Sequence[int],
    batch_size: int,
    features: Sequence[int],
    *,
    normalization: Sequence[str],
    use_mask: bool = False,
    first_stride: int = 1,
    convolutions: int = 2,
    norm: str = "instancenorm.InstanceNorm3d",
) -> dict[str, Any]:
    """Plans of one 3-D configuration on voxels of 1 mm; every stage but the first halves.

    Args:
        configuration: its name.
        patch_size, batch_size, features: of the configuration; as many features as stages.
        normalization: a scheme a channel.
        use_mask: whether these look at what is not zero alone.
        first_stride: of the first stage.
        convolutions: of a stage.
        norm: in ``torch.nn.modules``.
    """
    stages = len(features)
    arch_kwargs = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[first_stride] * 3] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [convolutions] * stages,
        "n_conv_per_stage_decoder": [convolutions] * (stages if first_stride > 1 else stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.{norm}",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    described = {
        "data_identifier": "data",
        "batch_size": batch_size,
        "patch_size": list(patch_size),
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": list(normalization),
        "use_mask_for_norm": [use_mask] * len(normalization),
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arch_kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset999_Benchmark",
        "plans_name": "benchmark",
        "configurations": {configuration: described},
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "anomaly": AnomalySettings().with_values({"roi.labels": [1]}).to_dict(),
        "continue_training": False,
    }
