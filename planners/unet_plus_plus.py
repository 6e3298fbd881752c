"""Plans for UNet++ (Zhou et al. 2018), with the patch that Qin et al. 2024 take of knees in thick slices."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_anomaly.architectures.unet_plus_plus import UNetPlusPlus
from nnunet_anomaly.planners.anomaly import nnUNetPlannerAnomaly

LARGEST_PATCH = (16, 256, 256)  # Qin, section 2: 256 x 256 x 16; nnU-Net puts the axis of thick slices first


class nnUNetPlannerUNetPlusPlus(nnUNetPlannerAnomaly):
    """nnU-Net's configurations, as far as UNet++ fits into the memory target, and the ``"anomaly"`` block.

    The paper's is the patch: where slices are thick (the spacing across them more than nnU-Net's threshold of 3 times
    that within), ``3d_fullres`` has 16 slices of 256 x 256 voxels, or the median image where that is smaller. Where the
    memory target does not hold a batch of two of them, the patch is reduced as nnU-Net does, and a warning says which
    target would. All else is nnU-Net's: patches of other images, the other configurations, stages, strides, kernels,
    features and batch sizes. The plans name nnU-Net's own U-Net, which needs less memory, so that any trainer can take
    them.
    """

    def __init__(self, *args: Any, plans_name: str = "nnUNetUNetPlusPlusPlans", **kwargs: Any):
        super().__init__(*args, plans_name=plans_name, **kwargs)

    def add_configurations(self, plans: dict[str, Any]) -> None:
        """Add none: UNet++ segments."""

    @staticmethod
    def static_estimate_VRAM_usage(
        patch_size: Any,
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict,
        arch_kwargs_req_import: Any,
    ) -> np.int64:
        """nnU-Net's estimate, of the nested network in place of the one that the plans name."""
        nested = f"{UNetPlusPlus.__module__}.{UNetPlusPlus.__name__}"
        with torch.device("meta"):  # no weights are needed to count
            return ExperimentPlanner.static_estimate_VRAM_usage(
                patch_size, input_channels, output_channels, nested, arch_kwargs, arch_kwargs_req_import
            )

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict:
        """nnU-Net's; for ``3d_fullres`` of thick slices, that of images no larger than the paper's patch."""
        thick_slices = len(spacing) == 3 and spacing[0] > self.anisotropy_threshold * max(spacing[1:])
        if data_identifier != self.generate_data_identifier("3d_fullres") or not thick_slices:
            return super().get_plans_for_configuration(
                spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
            )
        wanted = np.minimum(median_shape, LARGEST_PATCH)
        estimates: dict[str, Any] = {}
        plan = super().get_plans_for_configuration(
            spacing, wanted, data_identifier, approximate_n_voxels_dataset, estimates
        )
        if any(np.asarray(plan["patch_size"]) < wanted):
            whole = next(iter(estimates.values()))  # nnU-Net begins with what is wanted
            needed_gb = self.UNet_reference_val_corresp_GB * whole / self.UNet_reference_val_3d
            warnings.warn(
                f"UNet++ does not fit into {self.UNet_vram_target_GB:g} GB with patches of {_product(wanted)} voxels: "
                f"they are {_product(plan['patch_size'])}. With -gpu_memory_target {math.ceil(needed_gb)} they are not "
                "reduced.",
                stacklevel=2,
            )
        return plan | {"median_image_size_in_voxels": median_shape}


def _product(lengths: Any) -> str:
    return " x ".join(str(int(length)) for length in lengths)
