"""Plans with an ``"anomaly"`` block and with configurations for the reconstruction networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_anomaly.dataset_roles import error_channels, lesion_labels, roi_labels
from nnunet_anomaly.planners.ct_intensity import set_ct_scheme
from nnunet_anomaly.planners.normalization import ZScoreClipped01Normalization
from nnunet_anomaly.planners.symmetry import derived_symmetry
from nnunet_anomaly.settings import BLOCK, AnomalySettings

INPAINTING_SUFFIX = "_inpainting"
WHOLE_SUFFIX = "_whole"


def derived_settings(
    dataset_json: dict[str, Any], median_shape: np.ndarray, spacing_mm: np.ndarray, preset: str = "robust"
) -> AnomalySettings:
    """A preset with what depends on the data filled in: the region's labels and the radii of synthetic lesions.

    A lesion's radius goes up to a tenth of the shortest axis in mm, and down to a quarter of that, but not below the
    coarsest voxel size (a smaller one could not be seen).
    """
    median_shape, spacing_mm = np.asarray(median_shape), np.asarray(spacing_mm)
    shortest_axis_mm = float(np.min((median_shape * spacing_mm)[median_shape > 1]))
    largest = max(shortest_axis_mm / 10, 1.5 * float(np.max(spacing_mm)))
    smallest = max(largest / 4, float(np.max(spacing_mm)))
    return AnomalySettings.for_preset(preset).with_values(
        {
            "roi.labels": roi_labels(dataset_json),
            "slices.lesion_labels": lesion_labels(dataset_json),
            "corruption.radius_mm": (round(smallest, 2), round(max(largest, smallest), 2)),
        }
    )


def write_settings(plans: dict[str, Any], settings: AnomalySettings) -> dict[str, Any]:
    """Put the settings into the plans, with what nnU-Net's own parts of the plans take from them.

    Raises:
        SettingsError: CT is to be normalised by statistics that the plans do not have.
    """
    plans[BLOCK] = settings.to_dict()
    for properties in plans["foreground_intensity_properties_per_channel"].values():
        properties["anomaly_clip_sd"] = settings.error_map.clip_sd
    batch_sizes = {
        "3d" + INPAINTING_SUFFIX: settings.inpainting.batch_size,
        "3d" + WHOLE_SUFFIX: settings.vae.batch_size,
        "2d" + WHOLE_SUFFIX: settings.vae.batch_size,
    }
    for name, batch_size in batch_sizes.items():
        if name in plans["configurations"]:
            plans["configurations"][name]["batch_size"] = batch_size
    set_ct_scheme(plans, settings.intensity.ct)
    return plans


class nnUNetPlannerAnomaly(ExperimentPlanner):
    """nnU-Net's default plans, ``3d_inpainting`` and ``2d_inpainting`` and the ``"anomaly"`` block.

    The inpainting configurations hold the whole image in one patch, because a region of interest with its margin
    would erase most of a full-resolution patch: about ``longest_axis_voxels`` along the longest axis (1.5 mm for a
    knee), never finer than the data, coarser where the memory target asks for it.
    """

    longest_axis_voxels = 96

    def __init__(self, *args: Any, plans_name: str = "nnUNetAnomalyPlans", **kwargs: Any):
        super().__init__(*args, plans_name=plans_name, **kwargs)

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Add the inpainting configurations and the ``"anomaly"`` block, then save."""
        self.add_configurations(plans)
        write_settings(plans, self.derived_settings(plans))
        super().save_plans(plans)

    def derived_settings(self, plans: dict[str, Any]) -> AnomalySettings:
        """The default preset with what depends on the data."""
        shape, spacing_mm = (np.array(plans[f"original_median_{what}_after_transp"]) for what in ("shape", "spacing"))
        settings = derived_settings(self.dataset_json, shape, spacing_mm)
        label_maps = [Path(case["label"]) for case in self.dataset.values()]
        return settings.with_values(derived_symmetry(self.dataset_json, label_maps, plans))

    def add_configurations(self, plans: dict[str, Any]) -> None:
        """Add the inpainting configurations, but for derived datasets, which are for segmentation."""
        shape, spacing_mm = (np.array(plans[f"original_median_{what}_after_transp"]) for what in ("shape", "spacing"))
        if not error_channels(self.dataset_json):
            for configuration, first_axis in (("3d", 0), ("2d", 1)):
                if configuration == "2d" or shape[0] > 1:
                    name = configuration + INPAINTING_SUFFIX
                    plans["configurations"][name] = self.plan_whole_image(
                        spacing_mm[first_axis:], shape[first_axis:], name
                    )

    def plan_whole_image(self, spacing_mm: np.ndarray, shape: np.ndarray, name: str) -> dict[str, Any]:
        """Configuration at the finest spacing at which one patch holds the median image within the memory target."""
        isotropic_mm = max(float(np.max(spacing_mm * shape)) / self.longest_axis_voxels, float(np.min(spacing_mm)))
        cache: dict[str, Any] = {}
        while True:
            target_mm = np.maximum(spacing_mm, isotropic_mm)
            target_shape = np.maximum(1, np.round(shape * spacing_mm / target_mm)).astype(int)
            voxels = float(np.prod(target_shape)) * self.dataset_json["numTraining"]
            plan = self.get_plans_for_configuration(
                target_mm, target_shape, self.generate_data_identifier(name), voxels, cache
            )
            if np.all(np.asarray(plan["patch_size"]) >= target_shape):
                break
            isotropic_mm *= 1.05
        plan["batch_dice"] = False
        plan["normalization_schemes"] = [ZScoreClipped01Normalization.__name__] * len(plan["normalization_schemes"])
        return plan


class nnUNetPlannerAnomalyTiny(nnUNetPlannerAnomaly):
    """The same with small patches, 8 base features and one convolution a stage: to try things out on a CPU."""

    longest_axis_voxels = 64

    def __init__(self, *args: Any, plans_name: str = "nnUNetAnomalyTinyPlans", **kwargs: Any):
        kwargs.setdefault("gpu_memory_target_in_gb", 0.2)
        super().__init__(*args, plans_name=plans_name, **kwargs)
        self.UNet_base_num_features = 8
        self.UNet_max_features_2d = self.UNet_max_features_3d = 64
        self.UNet_blocks_per_stage_encoder = self.UNet_blocks_per_stage_decoder = (1,) * 14

    def save_plans(self, plans: dict[str, Any]) -> None:
        """As above, with few slices in a batch: what nnU-Net takes for a GPU makes 2-D as slow as 3-D here."""
        plans["configurations"]["2d"]["batch_size"] = min(plans["configurations"]["2d"]["batch_size"], 6)
        super().save_plans(plans)
