"""Xu's fine-tuning: cross-entropy that weighs the gaps between structures more (Xu et al. 2022)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import distributed

from nnunet_anomaly.augmentation.elastic import with_elastic_deformation
from nnunet_anomaly.augmentation.protected_channels import protect_channels
from nnunet_anomaly.dataset_roles import channel_names, error_channels
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.gap_weight_maps import GapWeightedDataset, MapSettings, maps_folder, write_maps
from nnunet_anomaly.losses.gap_weighted_loss import GapWeightedLoss
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.fine_tuning import FineTuning


class nnUNetTrainerGapWeighted(FineTuning):
    """nnU-Net's network with L = mean(w * CE) + dice_weight * L_Dice; w comes from maps that are made once per case.

    w - 1 is the channel after those of the image in every batch; the network does not see it.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        self.weight_channel = len(channel_names(dataset_json))
        super().__init__(plans, configuration, fold, dataset_json, device)

    def _build_loss(self) -> GapWeightedLoss:
        return GapWeightedLoss(super()._build_loss(), self.settings.gap_weights.dice_weight)

    # -- weights ------------------------------------------------------------------------------------------------------

    def get_tr_and_val_datasets(self) -> tuple[GapWeightedDataset, GapWeightedDataset]:
        """nnU-Net's cases, each with its weights.

        Raises:
            InputError: the images were preprocessed in nnU-Net's former format.
        """
        parts = super().get_tr_and_val_datasets()
        if not all(isinstance(part, nnUNetDatasetBlosc2) for part in parts):
            raise InputError(
                f"{self.preprocessed_dataset_folder} is of nnU-Net's former format (npz). Preprocess this "
                "configuration again (nnUNetv2_preprocess)."
            )
        cases = [case for part in parts for case in part.identifiers]
        maps = self.make_weight_maps(cases) if self.settings.gap_weights.amplitude else None
        training, held_out = (
            GapWeightedDataset(
                part.source_folder, part.identifiers, part.folder_with_segs_from_previous_stage, maps=maps
            )
            for part in parts
        )
        return training, held_out

    def make_weight_maps(self, cases: list[str]) -> Path:
        """Make what is missing of the maps of these cases, on one process group's first rank, and give their folder."""
        preprocessed = Path(self.preprocessed_dataset_folder)
        folder = maps_folder(preprocessed, self.settings.gap_weights)
        if self.local_rank == 0:
            write_maps(preprocessed, folder, cases, self.map_settings(), default_num_processes)
        if self.is_ddp:
            # NCCL would give up after minutes of waiting
            distributed.barrier(distributed.new_group(backend="gloo", timeout=timedelta(days=7)))
        return folder

    def map_settings(self) -> MapSettings:
        """What the maps of this configuration depend on."""
        weights, configuration = self.settings.gap_weights, self.configuration_manager
        return MapSettings(
            amplitude=weights.amplitude,
            sigma_mm=weights.sigma_mm,
            erosion_mm=weights.erosion_mm,
            labels=tuple(int(label) for label in self.label_manager.all_labels if label > 0),
            spacing_mm=tuple(float(size) for size in configuration.spacing),
            first_axis=int(self.plans_manager.transpose_forward[0]),
            patch_size=tuple(int(size) for size in configuration.patch_size),
        )

    # -- training -----------------------------------------------------------------------------------------------------

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:  # type: ignore[override]
        """nnU-Net's transforms and elastic deformation; of all that, weights take the spatial ones alone."""
        weights = self.settings.gap_weights
        stock = super().get_training_transforms(*args, **kwargs)
        elastic = with_elastic_deformation(stock, weights.elastic_probability, weights.deformed_sample_weight)
        return protect_channels(elastic, (*error_channels(self.dataset_json), self.weight_channel))

    def without_weights(self, batch: dict) -> tuple[dict, torch.Tensor]:
        """A batch as the network takes it, and w - 1 (B, 1, ...), on the device."""
        data, channel = batch["data"].to(self.device, non_blocking=True), self.weight_channel
        seen = torch.cat((data[:, :channel], data[:, channel + 1 :]), dim=1)  # a cascade appends channels after it
        return {**batch, "data": seen}, data[:, channel : channel + 1]

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step with voxel weights."""
        batch, above_one = self.without_weights(batch)
        with self.loss.weighted_by(above_one):
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's, with the loss weighted as in training."""
        batch, above_one = self.without_weights(batch)
        with self.loss.weighted_by(above_one):
            return super().validation_step(batch)


__getattr__ = epoch_variants(globals())
