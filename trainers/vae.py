"""Variational autoencoders that learn from healthy cases alone, with spatial erasing (Bengs et al. 2021).

Trained on ``3d_whole`` or ``2d_whole`` of ``-pl nnUNetPlannerWholeVolume``: the dimension is the configuration's, all
else is the same. Table 1 of the paper has 14 variants, the seven classes here in 2-D and 3-D:

=====================  =============================  =================================
paper                  trainer                        what is erased, and filled with
=====================  =============================  =================================
None                   ``nnUNetTrainerVAE``           nothing
Patch-0, Cube-0        ``nnUNetTrainerVAECubeZero``   one patch or cube, zeros
Patch-n, Cube-n        ``nnUNetTrainerVAECubeNoise``  the same, voxels of the image
Multi-Patch-0, ...     ``nnUNetTrainerVAEMultiZero``  up to ten patches or cubes, zeros
Multi-Patch-n, ...     ``nnUNetTrainerVAEMultiNoise`` the same, voxels of the image
Half-Slice-0, ...      ``nnUNetTrainerVAEHalfZero``   one side over some slices, zeros
Half-Slice-n, ...      ``nnUNetTrainerVAEHalfNoise``  the same, voxels of the image
=====================  =============================  =================================
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from torch import autocast

from nnunet_anomaly.architectures.inpainting_unet import resolved_architecture
from nnunet_anomaly.architectures.vae import VAE, Reconstruction
from nnunet_anomaly.augmentation.erasing import Fill, Kind, SpatialErasingTransform
from nnunet_anomaly.augmentation.protected_channels import insert_after_resampling, protect_channels
from nnunet_anomaly.error_maps.predict import Residual
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.losses.reconstruction import vae_loss
from nnunet_anomaly.report.latent import plot_latent_space
from nnunet_anomaly.settings import AnomalySettings, VaeSettings
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.reconstruction import ReconstructionTrainer

PAPER_VOXELS = 64  # along every axis


class nnUNetTrainerVAE(ReconstructionTrainer):
    """L1 + KL on healthy images, nothing erased; the error map is |x - x^|."""

    erase = False
    residual: Residual = "absolute"
    suffix = "_whole"
    planner = "nnUNetPlannerWholeVolume"
    kind: Kind | None = None
    fill: Fill = "zero"

    @property
    def recipe(self) -> VaeSettings:
        """Learning rate, schedule, epochs and mirror axes."""
        return self.settings.vae

    @classmethod
    def build_reconstruction_network(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> VAE:
        """The VAE; its code is as long as the settings say for this dimension."""
        settings, patch_size = AnomalySettings.from_plans(plans_manager.plans).vae, configuration_manager.patch_size
        architecture = resolved_architecture(
            configuration_manager.network_arch_init_kwargs, configuration_manager.network_arch_init_kwargs_req_import
        )
        latent_size = settings.latent_size_3d if len(patch_size) == 3 else settings.latent_size_2d
        return VAE(num_input_channels, patch_size, architecture, latent_size)

    def _build_loss(self) -> Any:
        def loss(found: Reconstruction, image: torch.Tensor) -> torch.Tensor:
            return vae_loss(image, found.image, found.mean, found.log_variance, self.kl_weight, self.recipe.free_bits)

        return loss

    @property
    def kl_weight(self) -> float:
        """In proportion to the number of voxels, 1 at the paper's size; rises first where the settings say so.

        Of the same image at half the size there are an eighth of the voxels, and errors, but the code costs the same:
        with one weight for all sizes a small image would be worth no code at all.
        """
        warmup = self.recipe.kl_warmup_epochs
        size = math.prod(side / PAPER_VOXELS for side in self.configuration_manager.patch_size)
        return self.recipe.kl_weight * size * (min(1.0, self.current_epoch / warmup) if warmup else 1.0)

    # -- data ---------------------------------------------------------------------------------------------------------

    def _set_batch_size_and_oversample(self) -> None:
        """No sample is moved to have the brain in it: nnU-Net would centre it at a voxel and cut the rest off."""
        self.oversample_foreground_percent = 0.0
        super()._set_batch_size_and_oversample()

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        """Nothing is rotated or scaled, so that what is loaded is what the network takes."""
        rotation, dummy_2d, _, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return rotation, dummy_2d, self.configuration_manager.patch_size, mirror_axes

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:  # type: ignore[override]
        """The whole volume as it is, mirrored where the settings say so, then erased."""
        mirror = [MirrorTransform(self.recipe.mirror_axes)] if self.recipe.mirror_axes else []
        pipeline = ComposeTransforms([*mirror, RemoveLabelTansform(-1, 0)])
        return protect_channels(ComposeTransforms([*pipeline.transforms, self.erasing()]))

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:  # type: ignore[override]
        """Nothing is erased in validation: epochs are chosen by how healthy images are reconstructed."""
        whole = SpatialErasingTransform(None, "zero", **self.erasing_options(probability=0.0))
        return protect_channels(insert_after_resampling(ComposeTransforms([RemoveLabelTansform(-1, 0)]), [whole]))

    def erasing(self) -> SpatialErasingTransform:
        """The transform of this trainer's kind."""
        return SpatialErasingTransform(
            self.kind, self.fill, **self.erasing_options(probability=self.settings.erasing.probability)
        )

    def erasing_options(self, probability: float) -> dict[str, Any]:
        """Settings on the axes of the patch: a 2-D one lacks the first.

        Raises:
            SettingsError: 2-D slices do not hold both sides of the brain, which is to lose one.
        """
        erasing, flat = self.settings.erasing, len(self.configuration_manager.patch_size) == 2
        if flat and self.kind == "half" and erasing.side_axis == 0:
            raise SettingsError(
                "erasing.side_axis is 0: the 2-D slices run along it, so that none has two sides. Train 3d_whole."
            )
        return {
            "probability": probability,
            "share": erasing.share,
            "most_cubes": erasing.max_cubes,
            "most_slices": erasing.max_slices,
            "side_axis": max(0, erasing.side_axis - 1) if flat else erasing.side_axis,
            "slice_axis": None if flat else erasing.slice_axis,
        }

    # -- training -----------------------------------------------------------------------------------------------------

    def input_and_target(self, data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Erased image in, whole image out."""
        return data[:, : self.num_input_channels], data[:, self.num_input_channels :]

    def validation_step(self, batch: dict) -> dict:
        """Mean absolute error of the reconstruction from the mean code, which is what error maps are made of."""
        data, target = self.input_and_target(batch["data"].to(self.device, non_blocking=True))
        with autocast("cuda", enabled=self.device.type == "cuda"):
            reconstruction = self.network(data).float()
        return {"loss": (reconstruction - target).abs().mean().cpu().numpy()}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As for all reconstructions; then a picture of what the code means, with the first held-out case."""
        super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0:
            self.draw_latent_space()

    def draw_latent_space(self) -> None:
        """Write ``validation/latent_space.png``."""
        dataset = self.dataset_class(self.preprocessed_dataset_folder, self.split()["val"][:1])
        data = torch.from_numpy(np.asarray(dataset.load_case(dataset.identifiers[0])[0][:], dtype=np.float32))
        network = self.bare_network().eval()
        if len(network.patch_size) == 2:
            data = data[:, data.shape[1] // 2]
        image, _ = pad_nd_image(data, network.patch_size, "constant", {"value": 0}, True, None)
        path = Path(self.output_folder) / "validation" / "latent_space.png"
        plot_latent_space(network, image[None].to(self.device), path)


class nnUNetTrainerVAECubeZero(nnUNetTrainerVAE):
    """One cube (2-D: patch) is erased with zeros."""

    kind = "cube"


class nnUNetTrainerVAECubeNoise(nnUNetTrainerVAECubeZero):
    """One cube (2-D: patch) is filled with voxels of the image."""

    fill = "noise"


class nnUNetTrainerVAEMultiZero(nnUNetTrainerVAE):
    """Up to ten cubes (2-D: patches) are erased with zeros."""

    kind = "multi"


class nnUNetTrainerVAEMultiNoise(nnUNetTrainerVAEMultiZero):
    """Up to ten cubes (2-D: patches) are filled with voxels of the image."""

    fill = "noise"


class nnUNetTrainerVAEHalfZero(nnUNetTrainerVAE):
    """One side of the brain over some slices (2-D: of the slice) is erased with zeros."""

    kind = "half"


class nnUNetTrainerVAEHalfNoise(nnUNetTrainerVAEHalfZero):
    """One side of the brain over some slices (2-D: of the slice) is filled with voxels of the image."""

    fill = "noise"


__getattr__ = epoch_variants(globals())
