"""Plain nnU-Net that sees synthetic lesions in training: the simple baseline."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnunet_anomaly.augmentation.corruptions import SyntheticLesionTransform
from nnunet_anomaly.augmentation.protected_channels import insert_after_resampling, protect_channels
from nnunet_anomaly.dataset_roles import error_channels
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.segmentation import SegmentationTrainer


class nnUNetTrainerAnomalyAugmentation(SegmentationTrainer):
    """nnU-Net whose training images get ill-defined lesions inside the region of interest; labels stay as they are.

    So the network learns that a lesion in a bone is bone.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        self.error_channels = error_channels(dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:  # type: ignore[override]
        """nnU-Net's transforms, with lesions put in between the spatial ones and those of intensity."""
        lesions = SyntheticLesionTransform(
            self.settings.roi.labels,
            self.configuration_manager.spacing,
            **dataclasses.asdict(self.settings.corruption),
        )
        stock = super().get_training_transforms(*args, **kwargs)
        return protect_channels(insert_after_resampling(stock, [lesions]), self.error_channels)


__getattr__ = epoch_variants(globals())
