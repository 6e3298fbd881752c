"""Plans for inpainting slices at a chosen resolution (Qin et al. 2024)."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from nnunet_anomaly.dataset_roles import error_channels
from nnunet_anomaly.planners.anomaly import INPAINTING_SUFFIX, nnUNetPlannerAnomaly
from nnunet_anomaly.planners.size_variants import size_variants
from nnunet_anomaly.settings import AnomalySettings, LaMaSettings

LARGEST_BATCH = 32
SMALLEST_SIZE = 16  # pixels along the longer axis: two, after the generator's three halvings


class nnUNetPlannerLaMa(nnUNetPlannerAnomaly):
    """``2d_inpainting`` of whole slices with ``in_plane_pixels`` along the longer axis, and the ``"anomaly"`` block.

    The slices are those of nnU-Net's first axis, whose voxels are thickest, and are not resampled along it. Pixels are
    square and never finer than the coarser of the data's two spacings in the slice: 448 of a slice of 384 x 384 are
    384, and of 256 x 512 pixels of 0.6 x 0.3 mm they are 256, of 0.6 mm. Qin's table 1 has 128, 192, 256, 320 and 448
    (the data's own), each by the planner's name: ``nnUNetPlannerLaMa_448pixels``, 16 at least. The batch is the largest
    that is estimated to stay below nnU-Net's memory target.
    """

    in_plane_pixels = 320

    def __init__(self, *args: Any, plans_name: str = "nnUNetLaMaPlans", **kwargs: Any):
        super().__init__(*args, plans_name=plans_name, **kwargs)

    def add_configurations(self, plans: dict[str, Any]) -> None:
        """Add the inpainting configurations, the 2-D one with slices of the wanted size."""
        super().add_configurations(plans)
        name = "2d" + INPAINTING_SUFFIX
        if not error_channels(self.dataset_json):
            shape, spacing_mm = (
                np.array(plans[f"original_median_{what}_after_transp"])[1:] for what in ("shape", "spacing")
            )
            plans["configurations"][name] |= self.whole_slices(shape, spacing_mm)

    def whole_slices(self, shape: np.ndarray, spacing_mm: np.ndarray) -> dict[str, Any]:
        """Spacing, patch and batch size of slices that, at the median, have so many pixels along the longer axis."""
        extent_mm = shape * spacing_mm
        pixel_mm = max(float(extent_mm.max()) / self.in_plane_pixels, float(spacing_mm.max()))
        pixels = np.maximum(1, np.round(extent_mm / pixel_mm)).astype(int)
        halvings = 2**self.lama.downsamplings
        patch = [int(math.ceil(number / halvings) * halvings) for number in pixels]
        return {
            "spacing": [pixel_mm] * 2,
            "median_image_size_in_voxels": [float(number) for number in pixels],
            "patch_size": patch,
            "batch_size": self.batch_size(patch),
        }

    @property
    def lama(self) -> LaMaSettings:
        """The networks' shape."""
        return AnomalySettings.for_preset("robust").lama

    def batch_size(self, patch: list[int]) -> int:
        """The largest within the memory target, 2 at least."""
        fitting = int(self.UNet_vram_target_GB / slice_memory_gb(patch, self.lama))
        return max(2, min(LARGEST_BATCH, fitting))

    def derived_settings(self, plans: dict[str, Any]) -> AnomalySettings:
        """With the networks' shape."""
        shape = ("features", "blocks", "discriminator_features")
        return super().derived_settings(plans).with_values({f"lama.{key}": getattr(self.lama, key) for key in shape})


class nnUNetPlannerLaMaTiny(nnUNetPlannerLaMa):
    """The same with slices of 64 pixels and networks of 8 features and 2 blocks: to try things out on a CPU."""

    in_plane_pixels = 64

    def __init__(self, *args: Any, plans_name: str = "nnUNetLaMaTinyPlans", **kwargs: Any):
        super().__init__(*args, plans_name=plans_name, **kwargs)

    @property
    def lama(self) -> LaMaSettings:
        """Small ones."""
        values = {"lama.features": 8, "lama.blocks": 2, "lama.discriminator_features": 8}
        return AnomalySettings.for_preset("robust").with_values(values).lama

    def batch_size(self, patch: list[int]) -> int:
        """A few."""
        return 4


def slice_memory_gb(patch: list[int], lama: LaMaSettings) -> float:
    """Estimate for one slice in a training step in float32: four tensors kept of every layer and its gradient.

    The layers are those of the generator; a Fourier convolution counts three times, for its branches and for Fourier
    space. The discriminator sees two slices and adds the same again as the generator's first layers.
    """
    pixels = patch[0] * patch[1]
    levels = [(min(lama.features * 2**level, 512), level) for level in range(lama.downsamplings + 1)]
    outer = sum(2 * channels * pixels / 4**level for channels, level in levels)
    channels, level = levels[-1]
    inner = lama.blocks * 2 * 3 * channels * pixels / 4**level
    return 4 * 4e-9 * (2 * outer + inner)


def _attributes(size: str) -> dict[str, int] | None:
    match = re.fullmatch(r"([1-9]\d*)pixels", size)
    return {"in_plane_pixels": int(match[1])} if match and int(match[1]) >= SMALLEST_SIZE else None


__getattr__ = size_variants(nnUNetPlannerLaMa, _attributes)
