"""Multiresolution knowledge distillation (Salehi et al. 2021), with which Qin et al. 2024 compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import autocast

from nnunet_anomaly.architectures.knowledge_distillation import (
    CRITICAL_LAYERS,
    DistilledFeatures,
    KnowledgeDistillation,
)
from nnunet_anomaly.architectures.vgg import VGG16Features
from nnunet_anomaly.augmentation.protected_channels import protect_channels
from nnunet_anomaly.error_maps.predict import Residual
from nnunet_anomaly.error_maps.provenance import digest_of_weights
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.files import named_file
from nnunet_anomaly.settings import AnomalySettings, DistillationSettings
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.reconstruction import ReconstructionTrainer


class nnUNetTrainerKnowledgeDistillation(ReconstructionTrainer):
    """A small network learns VGG-16's features of slices (``2d_inpainting``, ``2d_whole``); the map is where it fails.

    There is no reconstruction: the error map is all that a validation writes.
    """

    erase = False
    residual: Residual = "output"
    healthy_slices_only = True

    @property
    def recipe(self) -> DistillationSettings:
        """Learning rate, schedule, epochs and mirror axes."""
        return self.settings.distillation

    def check_scale(self) -> None:
        """As for all reconstructions; slices of whole volumes will do too.

        Raises:
            SettingsError: the configuration normalises in another way, or is not one of slices.
        """
        if self.configuration_name.endswith("_whole"):
            self.suffix, self.planner = "_whole", "nnUNetPlannerWholeVolume"
        super().check_scale()
        if len(self.configuration_manager.patch_size) != 2:
            raise SettingsError(
                f"{type(self).__name__} takes slices, but configuration '{self.configuration_name}' is 3-D. Train it "
                f"on 2d{self.suffix}."
            )

    # -- networks -----------------------------------------------------------------------------------------------------

    @classmethod
    def build_reconstruction_network(  # type: ignore[override]
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> KnowledgeDistillation:
        """Source and cloner, whatever the plans' architecture; the source's weights come later."""
        settings = AnomalySettings.from_plans(plans_manager.plans)
        return KnowledgeDistillation(settings.distillation, configuration_manager.spacing)

    def initialize(self) -> None:
        """As for all reconstructions; the source's weights do not count as pretrained: they are the method."""
        super().initialize()
        self.initial_weights = digest_of_weights(self.bare_network().cloner)

    def is_pretrained(self) -> bool:
        """Whether the cloner was given weights (``-pretrained_weights``)."""
        return digest_of_weights(self.bare_network().cloner) != self.initial_weights

    def on_train_start(self) -> None:
        """As for all reconstructions, but first give the source its weights, unless ``--c`` brought them."""
        if self.current_epoch == 0:
            source = VGG16Features(self.source_file(), CRITICAL_LAYERS)
            if not self.was_initialized:
                self.initialize()
            self.bare_network().source.load_state_dict(source.state_dict())
        super().on_train_start()

    def source_file(self) -> Path:
        """File with the source's weights.

        Raises:
            SettingsError: the plans name none.
        """
        name = self.settings.distillation.weights
        if not name:
            plans = self.plans_manager
            raise SettingsError(
                f"{type(self).__name__} needs the weights of VGG-16 trained on ImageNet, torchvision's file "
                "vgg16-397923af.pth, and downloads nothing: distillation.weights is empty. Name the file: "
                f"nnunet-anomaly plan -d {plans.dataset_name} -p {plans.plans_name} --save-as NAME "
                "--set distillation.weights=/PATH/TO/FILE"
            )
        return named_file(name)

    def _build_loss(self) -> Any:
        def loss(found: DistilledFeatures, image: torch.Tensor) -> torch.Tensor:
            return self.bare_network().loss(found).mean()

        return loss

    # -- data and training --------------------------------------------------------------------------------------------

    def with_extra_channels(self, pipeline: ComposeTransforms) -> ComposeTransforms:
        """Nothing but the image is needed."""
        return protect_channels(pipeline)

    def input_and_target(self, data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The image; what there is to learn the source says."""
        return data, data

    def validation_step(self, batch: dict) -> dict:
        """Loss of the features, as in training, without the batch's own statistics."""
        image, _ = self.input_and_target(batch["data"].to(self.device, non_blocking=True))
        with autocast("cuda", enabled=self.device.type == "cuda"):
            found = self.bare_network().features(image)
        return {"loss": self.loss(found, image).cpu().numpy()}


__getattr__ = epoch_variants(globals())
