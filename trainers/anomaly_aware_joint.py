"""Woo's A and S learning together, as the paper proposes for the future (section 4)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import nn

from nnunet_anomaly.augmentation.corruptions import SyntheticLesionTransform
from nnunet_anomaly.augmentation.protected_channels import SetAsideCopy, insert_after_resampling
from nnunet_anomaly.augmentation.roi import RoiChannelTransform
from nnunet_anomaly.error_maps.end_to_end import load_teacher
from nnunet_anomaly.error_maps.folds import Fold
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.gpus import mean_over_gpus
from nnunet_anomaly.losses.reconstruction import denoising_loss, mimic_loss
from nnunet_anomaly.losses.second_task import WithSecondTask
from nnunet_anomaly.settings import BLOCK, AnomalySettings
from nnunet_anomaly.trainers.anomaly_aware import nnUNetTrainerAnomalyAware
from nnunet_anomaly.trainers.anomaly_aware_end_to_end import nnUNetTrainerAnomalyAwareEndToEnd
from nnunet_anomaly.trainers.epoch_variants import epoch_variants


class nnUNetTrainerAnomalyAwareJoint(nnUNetTrainerAnomalyAwareEndToEnd):
    """One A, that of this fold, goes on learning by its own loss and by S's: L = L_S + weight * L_A.

    Its error maps of training cases are NOT out of fold: this A has learnt from them before and does so here. Held-out
    cases it has never seen. L_A is what A was trained with, on S's patches: to give what G of the same fold gives.
    """

    teacher: nn.Module

    def check_settings(self) -> None:
        """A is that of the fold, and learns, whatever the plans say; they are to say so for prediction.

        Raises:
            SettingsError: lesions are to be put into what its teacher is shown as the clean image.
        """
        settings = AnomalySettings.from_plans(self.plans_manager.plans)
        if settings.end_to_end.lesion_augmentation:
            raise SettingsError(
                "end_to_end.lesion_augmentation is not for nnUNetTrainerAnomalyAwareJoint, whose A learns from clean "
                "patches and, when denoising, from lesions of its own. Set it to false."
            )
        values = {"end_to_end.exported": "fold", "end_to_end.fine_tuned": True}
        self.settings = settings.with_values(values)
        self.plans_manager.plans[BLOCK] = self.settings.to_dict()

    def choose_folds(self) -> dict[str, Fold]:
        """All cases meet the A of this fold.

        Raises:
            LeakageError: it has learnt from other cases than S will, so that it may have seen held-out ones.
            MissingCheckpointError: it is not there.
        """
        self.check_own_fold()
        training_cases, held_out = self.do_split()
        (own,) = self.exported_folds()
        return dict.fromkeys([*training_cases, *held_out], own)

    def initialize(self) -> None:
        """As end to end, and load G."""
        super().initialize()
        self.teacher = load_teacher(self.folds, self.fold).to(self.device)

    def _build_loss(self) -> WithSecondTask:  # type: ignore[override]
        return WithSecondTask(super()._build_loss(), self.settings.end_to_end.reconstruction_weight)

    @property
    def denoising(self) -> bool:
        """Whether A learns from images with synthetic lesions, as it did before."""
        return self.folds.model.settings.mimic.objective == "denoising"

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:  # type: ignore[override]
        """Behind the image: it without augmented intensities, that with synthetic lesions (denoising), the region."""
        pipeline = nnUNetTrainerAnomalyAware.get_training_transforms(self, *args, **kwargs)
        settings, spacing_mm = self.folds.model.settings, self.configuration_manager.spacing
        clip_sd = settings.error_map.clip_sd
        lesions = SyntheticLesionTransform(
            settings.roi.labels, spacing_mm, **dataclasses.asdict(settings.corruption), limits=(-clip_sd, clip_sd)
        )
        added = [SetAsideCopy(), *([SetAsideCopy(lesions)] if self.denoising else [])]
        region = RoiChannelTransform(settings.roi.labels, self.folds.model.margin_mm, spacing_mm)
        return insert_after_resampling(pipeline, [*added, region])

    def train_step(self, batch: dict) -> dict:
        """S's step with A's own loss beside it."""
        images = len(self.configuration_manager.normalization_schemes)
        data = batch["data"].to(self.device, non_blocking=True)
        extra = 2 * images + 1 if self.denoising else images + 1
        _, *parts = data[:, : images + extra].split([images, *[images] * (1 + self.denoising), 1], 1)
        seen = [data[:, :images], data[:, images + extra :]]  # labels of a cascade come last
        if not self.settings.end_to_end.intensity_augmentation:
            seen.insert(1, parts[0])
        with self.loss.beside(lambda: self.reconstruction_loss(parts[0], parts[-2], parts[-1])):
            result = super().train_step({**batch, "data": torch.cat(seen, 1)})
        return {**result, "reconstruction_loss": self.loss.last_value.cpu().numpy()}

    def reconstruction_loss(self, clean: torch.Tensor, shown: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
        """L_A on A's grid, of z-scored patches: A of what it is shown against G of the clean one, its region erased."""
        taught, mimicked, image = self.bare_network().beside_teacher(self.teacher, clean, shown, region)
        if self.denoising:
            return denoising_loss(taught, mimicked)
        return mimic_loss(image, taught, mimicked, self.folds.model.settings.mimic.error_term_weight)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As nnU-Net, and A's own loss in the log."""
        super().on_train_epoch_end(train_outputs)
        mean = mean_over_gpus([float(output["reconstruction_loss"]) for output in train_outputs])
        self.print_to_log_file(f"train_reconstruction_loss {mean:.6f}")


__getattr__ = epoch_variants(globals())
