"""Plans in which one patch holds the whole organ, for networks that see it all at once (Bengs et al. 2021)."""

from __future__ import annotations

import math
import re
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.planes import orientation_of
from nnunet_anomaly.planners.anomaly import WHOLE_SUFFIX, nnUNetPlannerAnomaly
from nnunet_anomaly.planners.normalization import ZScoreClipped01Normalization
from nnunet_anomaly.planners.size_variants import size_variants
from nnunet_anomaly.settings import AnomalySettings

SMALLEST_BATCH, BATCH_BY_MEMORY = 2, 8
STEP = 16  # of sizes
LARGEST = 512  # voxels along an axis: no head scan has more, and no GPU holds as much in training


def stages_of(size: int) -> int:
    """Halvings of so many voxels that leave 4 or more, and no half ones."""
    stages = 0
    while size % 2 ** (stages + 1) == 0 and size // 2 ** (stages + 1) >= 4:
        stages += 1
    return stages


class nnUNetPlannerWholeVolume(nnUNetPlannerAnomaly):
    """``3d_whole`` and its 2-D twin ``2d_whole``, beside all that ``nnUNetPlannerAnomaly`` plans.

    Every image is cropped to what is not zero (the brain, where the skull is stripped), resampled so that the largest
    of all, and a twentieth more, fills ``voxels`` along every axis, and zero-padded to that size. The voxels are not
    cubes: as in the paper each axis is scaled by itself. The 2-D twin takes the slices of the very same volumes
    along nnU-Net's first axis, which are axial ones where voxels are cubes or thickest from feet to head.
    Another size by the planner's name, in steps of 16: ``nnUNetPlannerWholeVolume_96voxels``, or
    ``nnUNetPlannerWholeVolume_byMemory`` for the largest at which nnU-Net's memory target holds a batch of 8.
    Stages, length of the code and batch size follow from the size. Where even a batch of 2 is
    more than nnU-Net's memory target, a warning names a size that fits.
    """

    voxels: int | None = 64  # None: by memory
    room = 1.05
    base_features = 32

    def __init__(self, *args: Any, plans_name: str = "nnUNetWholeVolumePlans", **kwargs: Any):
        super().__init__(*args, plans_name=plans_name, **kwargs)

    def add_configurations(self, plans: dict[str, Any]) -> None:
        """Add ``3d_whole`` and ``2d_whole``, beside the configurations for U-Nets."""
        super().add_configurations(plans)
        size = [self.size] * 3
        spacing_mm = self.largest_extent_mm(plans["transpose_forward"]) * self.room / self.size
        identifier = self.generate_data_identifier("3d" + WHOLE_SUFFIX)
        base = self.get_plans_for_configuration(spacing_mm, np.array(size), identifier, 1e9, {})
        base["normalization_schemes"] = [ZScoreClipped01Normalization.__name__] * len(base["normalization_schemes"])
        base |= {"use_mask_for_norm": [True] * len(base["normalization_schemes"]), "batch_dice": False}
        for dimension in (3, 2):
            plans["configurations"][f"{dimension}d{WHOLE_SUFFIX}"] = base | {
                "patch_size": size[-dimension:],
                "architecture": self.architecture(base["architecture"], dimension),
            }

    def largest_extent_mm(self, transpose_forward: list[int]) -> np.ndarray:
        """Largest extent of all training images within their non-zero box, along every (transposed) axis."""
        shapes, spacings_mm = (np.array(self.dataset_fingerprint[key]) for key in ("shapes_after_crop", "spacings"))
        return (shapes * spacings_mm).max(axis=0)[transpose_forward]

    @cached_property
    def size(self) -> int:
        """Voxels along every axis: as the planner's name says, else by memory, but never more than the data have.

        Raises:
            InputError: the name says more than any image has.
        """
        if self.voxels is not None:
            if self.voxels > LARGEST:
                raise InputError(f"{type(self).__name__}: {self.voxels} voxels are too many; {LARGEST} are the most.")
            return self.voxels
        most = (np.array(self.dataset_fingerprint["shapes_after_crop"]) * self.room).max()
        size = max(STEP, STEP * math.ceil(most / STEP))
        while size > STEP and self.memory_gb(size, BATCH_BY_MEMORY) > self.UNet_vram_target_GB:
            size -= STEP
        return size

    @cached_property
    def stages(self) -> int:
        """As many halvings as leave 4 voxels or more along every axis (the paper's four at 64 voxels)."""
        return stages_of(self.size)

    def latent_size(self, paper: int, dimension: int) -> int:
        """The paper's, but at most a quarter of the numbers that it stands for: the code is to be narrow."""
        return max(1, min(paper, self.deepest_numbers(self.size, dimension) // 4))

    def deepest_numbers(self, size: int, dimension: int) -> int:
        """Numbers in the deepest feature maps of one image."""
        stages = stages_of(size)
        return min(self.base_features * 2 ** (stages - 1), 256) * (size // 2**stages) ** dimension

    def architecture(self, stock: dict[str, Any], dimension: int) -> dict[str, Any]:
        """nnU-Net's description of a network, for the VAE: each stage halves; its batches are fit for BatchNorm."""
        features = [min(self.base_features * 2**stage, 256) for stage in range(self.stages)]
        kwargs = stock["arch_kwargs"] | {
            "n_stages": self.stages,
            "features_per_stage": features,
            "conv_op": f"torch.nn.modules.conv.Conv{dimension}d",
            "kernel_sizes": [[3] * dimension] * self.stages,
            "strides": [[2] * dimension] * self.stages,
            "n_conv_per_stage": [1] * self.stages,
            "n_conv_per_stage_decoder": [1] * self.stages,
            "norm_op": f"torch.nn.modules.batchnorm.BatchNorm{dimension}d",
        }
        return stock | {"arch_kwargs": kwargs}

    def derived_settings(self, plans: dict[str, Any]) -> AnomalySettings:
        """With the axes of the body, and the largest batch within the memory target."""
        settings = super().derived_settings(plans)
        orientation = self.orientation()
        # array axes are those of the image in reverse, then in nnU-Net's order
        side_axis, slice_axis = (
            plans["transpose_forward"].index(2 - next(i for i, letter in enumerate(orientation) if letter in pair))
            for pair in ("LR", "IS")
        )
        batch_size = settings.vae.batch_size
        while self.memory_gb(self.size, batch_size) > self.UNet_vram_target_GB and batch_size > SMALLEST_BATCH:
            batch_size //= 2
        self.warn_of_memory(batch_size)
        return settings.with_values(
            {
                "vae.orientation": orientation,
                "erasing.side_axis": side_axis,
                "erasing.slice_axis": slice_axis,
                "erasing.max_slices": self.size // 2,
                "vae.batch_size": batch_size,
                "vae.latent_size_2d": self.latent_size(settings.vae.latent_size_2d, 2),
                "vae.latent_size_3d": self.latent_size(settings.vae.latent_size_3d, 3),
            }
        )

    def warn_of_memory(self, batch_size: int) -> None:
        """Warn where the estimate is above the memory target, and say which size is not."""
        needed_gb, target_gb = self.memory_gb(self.size, batch_size), self.UNet_vram_target_GB
        if needed_gb <= target_gb:
            return
        smaller = range(self.size - STEP, 0, -STEP)
        fitting = next((size for size in smaller if self.memory_gb(size, SMALLEST_BATCH) <= target_gb), None)
        advice = "No size stays" if fitting is None else f"nnUNetPlannerWholeVolume_{fitting}voxels stays"
        warnings.warn(
            f"3d{WHOLE_SUFFIX} of {self.size} voxels along every axis takes about {needed_gb:.1f} GB with a batch of "
            f"{batch_size}, and the memory target is {target_gb:g} GB (-gpu_memory_target). {advice} below it.",
            stacklevel=2,
        )

    def memory_gb(self, size: int, batch_size: int) -> float:
        """Estimate for a training step of ``3d_whole`` in float32.

        Four tensors kept of every block, and four (with gradient and Adam's two) of every weight of the linear layers,
        beside which those of the convolutions are few.
        """
        stages = stages_of(size)
        # channels and the level of downsampling of every block: the encoder's, then the decoder's
        blocks = [(2**stage, stage + 1) for stage in range(stages)]
        blocks += [(2 ** max(0, level - 1), level) for level in range(stages)]
        channels = [(min(self.base_features * factor, 256), level) for factor, level in blocks]
        activations = sum(number * (size / 2**level) ** 3 for number, level in channels)
        deepest = self.deepest_numbers(size, 3)
        weights = 3 * deepest * min(AnomalySettings().vae.latent_size_3d, deepest // 4)
        return 4 * 4e-9 * (batch_size * activations + weights)

    def orientation(self) -> str:
        """How all training images lie, in DICOM's letters, from their headers.

        Raises:
            InputError: they do not all lie alike.
        """
        found = {case: _orientation_of(Path(entry["images"][0])) for case, entry in self.dataset.items()}
        examples = {lies: next(case for case in found if found[case] == lies) for lies in sorted(set(found.values()))}
        if len(examples) > 1:
            differing = ", ".join(f"{case}: {lies}" for lies, case in examples.items())
            raise InputError(
                f"The images lie differently ({differing}). Bring them into one orientation, as converters for heads "
                "do (SimpleITK.DICOMOrient)."
            )
        return next(iter(examples))


class nnUNetPlannerWholeVolumeTiny(nnUNetPlannerWholeVolume):
    """The same with 32 voxels along every axis and 8 base features: to try things out on a CPU."""

    voxels = 32
    base_features = 8

    def __init__(self, *args: Any, plans_name: str = "nnUNetWholeVolumeTinyPlans", **kwargs: Any):
        super().__init__(*args, plans_name=plans_name, **kwargs)


def _orientation_of(path: Path) -> str:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetDimension() != 3:
        raise InputError(f"{path} is not 3-D; whole volumes are.")
    return orientation_of(reader.GetDirection())


def _attributes(size: str) -> dict[str, int | None] | None:
    match = re.fullmatch(r"(?:([1-9]\d*)voxels|byMemory)", size)
    voxels = int(match[1]) if match and match[1] else None
    return None if match is None or (voxels or 0) % STEP else {"voxels": voxels}


__getattr__ = size_variants(nnUNetPlannerWholeVolume, _attributes)
