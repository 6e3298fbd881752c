"""Plans for one 2-D network that sees whole volumes from several directions (Perslev et al. 2019, Xu et al. 2022)."""

from __future__ import annotations

from typing import Any

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from nnunet_anomaly.architectures.multi_planar import memory_bytes
from nnunet_anomaly.dataset_roles import channel_names
from nnunet_anomaly.planners.anomaly import nnUNetPlannerAnomaly, nnUNetPlannerAnomalyTiny
from nnunet_anomaly.settings import AnomalySettings
from nnunet_anomaly.views import draw_frames

MULTI_PLANAR = "3d_multiplanar"
PERCENTILE = 75


class nnUNetPlannerMultiPlanar(nnUNetPlannerAnomaly):
    """``3d_multiplanar``, beside all that ``nnUNetPlannerAnomaly`` plans.

    Its patch is the largest training image at the spacing of ``3d_fullres`` (coarser where the memory target would not
    hold what is predicted of it), so that the network takes whole volumes: smaller ones are zero-padded by nnU-Net, and
    larger ones cut into tiles that overlap by half, each seen as a volume of its own. The network is the one that
    nnU-Net plans for 2-D images of the planes' size: the 75th percentile, over images and axes, of voxels and of mm,
    rounded up to what the U-Net can halve. The batch size is nnU-Net's for these planes.
    """

    def __init__(self, *args: Any, plans_name: str = "nnUNetMultiPlanarPlans", **kwargs: Any):
        super().__init__(*args, plans_name=plans_name, **kwargs)
        self.plane: dict[str, Any] = {}

    def add_configurations(self, plans: dict[str, Any]) -> None:
        """Add ``3d_multiplanar``, but for 2-D images."""
        super().add_configurations(plans)
        if "3d_fullres" not in plans["configurations"]:
            return
        spacing_mm = np.array(plans["configurations"]["3d_fullres"]["spacing"], dtype=float)
        shapes = self.shapes_at(spacing_mm, plans["transpose_forward"])
        pixel_mm = self.pixel_mm(shapes, spacing_mm)
        while self.memory_gb(shapes.max(axis=0), spacing_mm, pixel_mm) > self.UNet_vram_target_GB:
            spacing_mm *= 1.05
            shapes = self.shapes_at(spacing_mm, plans["transpose_forward"])
            pixel_mm = self.pixel_mm(shapes, spacing_mm)
        configuration = self.plan_planes(shapes, pixel_mm)
        pixels = configuration["patch_size"][0]
        self.plane = {"multi_planar.plane_pixels": pixels, "multi_planar.plane_extent_mm": pixels * pixel_mm}
        plans["configurations"][MULTI_PLANAR] = configuration | {
            "patch_size": [int(size) for size in shapes.max(axis=0)],
            "median_image_size_in_voxels": np.median(shapes, axis=0).tolist(),
            "spacing": spacing_mm.tolist(),
            "batch_dice": True,
        }

    def derived_settings(self, plans: dict[str, Any]) -> AnomalySettings:
        """With the size of planes."""
        return super().derived_settings(plans).with_values(self.plane)

    def shapes_at(self, spacing_mm: np.ndarray, transpose_forward: list[int]) -> np.ndarray:
        """Shapes of all training images at this spacing, (cases, 3), in nnU-Net's order of axes as the spacing."""
        shapes, spacings_mm = (self.dataset_fingerprint[key] for key in ("shapes_after_crop", "spacings"))
        resampled = [
            compute_new_shape(np.array(shape)[transpose_forward], np.array(found)[transpose_forward], spacing_mm)
            for shape, found in zip(shapes, spacings_mm, strict=True)
        ]
        return np.array(resampled, dtype=int)

    def pixel_mm(self, shapes: np.ndarray, spacing_mm: np.ndarray) -> float:
        """Size of pixels: the percentile of lengths over that of voxels."""
        return float(np.percentile(shapes * spacing_mm, PERCENTILE) / np.percentile(shapes, PERCENTILE))

    def plan_planes(self, shapes: np.ndarray, pixel_mm: float) -> dict[str, Any]:
        """nnU-Net's configuration for 2-D images of square planes; its patch is a plane."""
        pixels = round(float(np.percentile(shapes, PERCENTILE)))
        voxels = float(np.prod(np.median(shapes, axis=0)) * self.dataset_json["numTraining"])
        identifier = self.generate_data_identifier(MULTI_PLANAR)
        while True:
            square = np.array([pixels, pixels])
            plan = self.get_plans_for_configuration(np.array([pixel_mm] * 2), square, identifier, voxels, {})
            patch = [int(size) for size in plan["patch_size"]]
            if patch[0] == patch[1]:
                return plan | {"patch_size": patch}
            pixels = min(patch)  # the memory target took more from one axis

    def memory_gb(self, shape: np.ndarray, spacing_mm: np.ndarray, pixel_mm: float) -> float:
        """To predict a volume of this shape, besides the network (see ``memory_bytes``)."""
        settings = AnomalySettings()
        frames = draw_frames(settings.multi_planar.views, settings.multi_planar.minimum_angle_deg, settings.seed)
        channels, classes = len(channel_names(self.dataset_json)), len(self.dataset_json["labels"])
        return memory_bytes(frames, shape.tolist(), spacing_mm.tolist(), pixel_mm, channels, classes) / 1e9


class nnUNetPlannerMultiPlanarTiny(nnUNetPlannerMultiPlanar, nnUNetPlannerAnomalyTiny):
    """The same with 8 base features, one convolution a stage and at most 6 planes in a batch: for a CPU."""

    def __init__(self, *args: Any, plans_name: str = "nnUNetMultiPlanarTinyPlans", **kwargs: Any):
        super().__init__(*args, plans_name=plans_name, **kwargs)

    def plan_planes(self, shapes: np.ndarray, pixel_mm: float) -> dict[str, Any]:
        """As above, in smaller batches."""
        plan = super().plan_planes(shapes, pixel_mm)
        return plan | {"batch_size": min(plan["batch_size"], 6)}
