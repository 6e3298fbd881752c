"""Woo's A inside S, as one network: raw image in, labels out (the paper's section 4 proposes it)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_anomaly.architectures.anomaly_aware_end_to_end import AnomalyAwareEndToEnd
from nnunet_anomaly.augmentation.corruptions import SyntheticLesionTransform
from nnunet_anomaly.augmentation.protected_channels import SetAsideCopy, insert_after_resampling
from nnunet_anomaly.error_maps.end_to_end import (
    CONFIGURATION,
    FoldNetworks,
    build_from_plans,
    check_it_fits,
    differing_notes,
    load_folds,
    note_in_plans,
)
from nnunet_anomaly.error_maps.folds import ALL, Fold, in_order
from nnunet_anomaly.error_maps.provenance import check_split
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import load_json, named_file
from nnunet_anomaly.learning_rates import FACTOR, PolyLRWithFactors
from nnunet_anomaly.settings import AnomalySettings
from nnunet_anomaly.trainers.anomaly_aware import nnUNetTrainerAnomalyAware
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.segmentation import look_at_mirror_image
from nnunet_anomaly.transfer import unwrapped

MADE_FROM = "reconstructors_sha256"  # among the init_args of checkpoints: the A that they were trained with
A_TRAINER = "nnUNetTrainerInpaintingMimic"


class nnUNetTrainerAnomalyAwareEndToEnd(nnUNetTrainerAnomalyAware):
    """A inside S: every training case meets the A of the fold that held it out; one A, or their mean, is exported.

    Trained on the images alone, after A of all folds. The checkpoint predicts raw images by ``nnUNetv2_predict``,
    without A's folder.
    """

    folds: FoldNetworks
    fold_of_case: dict[str, Fold]

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.error_channels:
            raise InputError(
                f"{plans['dataset_name']} has an error-map channel already, and {type(self).__name__} makes error maps "
                "itself. Train it on the dataset that this one was derived from."
            )
        self.check_settings()

    def check_settings(self) -> None:
        """What is exported must be what training meets.

        Raises:
            SettingsError: it is not.
        """
        if self.settings.end_to_end.fine_tuned and self.settings.end_to_end.exported == "fold":
            raise SettingsError(
                "end_to_end.exported is fold, but the A of S's own fold is the one that training never meets: it has "
                "seen all training cases, and would not be fine-tuned. Set end_to_end.exported=mean."
            )

    # -- networks -----------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        """Find an A for every case, note in the plans what prediction needs, build, and take A's weights over."""
        self.folds = load_folds(self.model_folder())
        check_it_fits(self.folds.model, self.plans_manager, self.configuration_manager, self.dataset_json)
        self.fold_of_case = self.choose_folds()
        self.settings = note_in_plans(self.plans_manager.plans, self.folds.model, len(self.exported_folds()))
        self.check_other_folds_hold_the_same()
        super().initialize()
        for fold in self.folds_met() - set(self.exported_folds()):
            self.folds.networks[fold].to(self.device)  # A that cases meet, but that is not in the network
        self.take_over_reconstructors()
        self.start_at_scale_of_image(self.bare_network().segmenter, [self.num_input_channels])

    def choose_folds(self) -> dict[str, Fold]:
        """For every case of this fold the fold of the A that it meets.

        Raises:
            LeakageError: that has, or may have, seen it; or an A has learnt from other cases than its fold has now.
            MissingCheckpointError: this fold has no A.
        """
        training_cases, held_out = self.do_split()
        if self.fold != ALL:
            self.check_own_fold()
        chosen = self.folds.fold_for([*training_cases, *held_out])
        splits = load_json(Path(self.preprocessed_dataset_folder_base) / "splits_final.json")
        self.folds.check_splits(chosen.values(), splits)
        return chosen

    def folds_met(self) -> set[Fold]:
        """Folds whose A some case meets, in training or in validation."""
        return {*self.fold_of_case.values()} | ({self.fold} - {ALL})

    def check_own_fold(self) -> None:
        """A of this fold is there, and has learnt from the cases that this fold's S learns from.

        Raises:
            LeakageError, MissingCheckpointError: it is not so.
        """
        training_cases, held_out = self.do_split()
        self.folds.of_fold(self.fold)
        split = {"train": list(training_cases), "val": list(held_out)}
        check_split(self.folds.splits[self.fold], split, f"A of fold {self.fold} in {self.folds.folder}")

    def check_other_folds_hold_the_same(self) -> None:
        """All folds of a folder share its plans, by which prediction builds their networks.

        Raises:
            SettingsError: another fold of this folder has other A, or another number of them.
        """
        folder, own = Path(self.output_folder_base), Path(self.output_folder)
        others = sorted(path.name for path in folder.glob("fold_*") if path != own)
        if not others or not (folder / "plans.json").is_file():
            return
        if differences := differing_notes(load_json(folder / "plans.json"), self.plans_manager.plans):
            raise SettingsError(
                f"{folder} has {', '.join(others)} with another A inside than these plans ask for: "
                f"{'; '.join(differences)}. Save these plans under another name (nnunet-anomaly plan ... --save-as "
                "NAME), or remove that folder."
            )

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net, into the network that the plans beside the checkpoint say.

        Raises:
            SettingsError: the plans that are trained with, or A's folder, ask for another one now.
        """
        if not self.was_initialized:
            self.initialize()
        before = Path(self.output_folder_base) / "plans.json"
        changed = differing_notes(load_json(before), self.plans_manager.plans, choice=True)
        if changed:
            raise SettingsError(
                f"{self.output_folder} was trained with another A inside than these plans ask for now: "
                f"{'; '.join(changed)}. Bring them and A's folder, {self.folds.folder}, back to what they were (the "
                f"plans of then: {before}), or train S again."
            )
        super().load_checkpoint(filename_or_checkpoint)

    def model_folder(self) -> Path:
        """Folder of A, by the plans or beside this model."""
        setting = self.settings.end_to_end.model
        if setting:
            return named_file(setting)
        suffix = re.search(r"_\d+epochs?$", type(self).__name__)
        trainer = A_TRAINER + (suffix.group() if suffix else "")
        configuration = f"{len(self.configuration_manager.patch_size)}d_inpainting"
        return Path(self.output_folder_base).parent / f"{trainer}__{self.plans_manager.plans_name}__{configuration}"

    def exported_folds(self) -> list[Fold]:
        """Folds whose A are in the network that is saved, in order."""
        settings = self.settings.end_to_end
        if settings.exported == "fold":
            return [self.fold]
        if settings.fine_tuned:
            training_cases, _ = self.do_split()
            return in_order({self.fold_of_case[case] for case in training_cases})
        return in_order(set(self.folds.networks) - {ALL})

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """nnU-Net's network for one channel more, and around it A, by what these plans say of it.

        Raises:
            SettingsError: they say nothing: these are not the plans of a trained model's folder.
        """
        settings = AnomalySettings.from_plans(plans_manager.plans).end_to_end
        segmenter = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels + 1, num_output_channels, enable_deep_supervision
        )
        images = len(configuration_manager.normalization_schemes)
        reconstructors = build_from_plans(plans_manager, images)
        network = AnomalyAwareEndToEnd(
            segmenter,
            reconstructors,
            images,
            num_input_channels,
            configuration_manager.spacing,
            plans_manager.get_configuration(CONFIGURATION).spacing,
            settings.clip_sd,
        )
        network.let_reconstructors_learn(settings.fine_tuned)
        look_at_mirror_image(network, plans_manager, configuration_manager, num_input_channels, num_output_channels)
        return network

    def bare_network(self) -> AnomalyAwareEndToEnd:
        """The network without what DDP and torch.compile wrap around it."""
        network = unwrapped(self.network)
        assert isinstance(network, AnomalyAwareEndToEnd)
        return network

    def take_over_reconstructors(self) -> None:
        """A in the network is A of the folds that are exported."""
        for network, fold in zip(self.bare_network().reconstructors, self.exported_folds(), strict=True):
            network.load_state_dict(self.folds.of_fold(fold).state_dict())

    def network_of_fold(self, fold: Fold) -> nn.Module:
        """A of a fold: as it is in the network, where it is there."""
        exported = self.exported_folds()
        if fold in exported:
            return self.bare_network().reconstructors[exported.index(fold)]
        return self.folds.of_fold(fold)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's; A, where it is fine-tuned, at a rate of its own."""
        optimizer, scheduler = super().configure_optimizers()
        network = self.bare_network()
        learning = [parameter for parameter in network.reconstructors.parameters() if parameter.requires_grad]
        if not learning:
            return optimizer, scheduler
        group = optimizer.param_groups[0]
        group["params"] = list(network.segmenter.parameters())
        optimizer.add_param_group({"params": learning, FACTOR: self.settings.end_to_end.learning_rate_factor})
        return optimizer, PolyLRWithFactors(optimizer, self.initial_lr, self.num_epochs)

    # -- training -----------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """As all ours, and note which A this is trained with.

        Raises:
            InputError: the training that is to go on was begun with other networks.
        """
        super().on_train_start()
        if self.current_epoch == 0:
            self.take_over_reconstructors()  # -pretrained_weights and transfer.checkpoint bring other ones
        if self.current_epoch < self.num_epochs:
            self.check_same_reconstructors()

    def check_same_reconstructors(self) -> None:
        """A is what it was when this training began.

        Raises:
            InputError: it was trained again since.
        """
        used = map(str, {*self.folds_met(), *self.exported_folds()})
        made_from = self.my_init_kwargs.setdefault(MADE_FROM, {fold: self.folds.sha256[fold] for fold in used})
        changed = [fold for fold in made_from if self.folds.sha256.get(fold) != made_from[fold]]
        if changed:
            raise InputError(
                f"Fold {', '.join(changed)} of {self.folds.folder} was trained again since this training began: S "
                "would learn from several networks' error maps. Train S again, without --c."
            )

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:  # type: ignore[override]
        """nnU-Net's transforms, with lesions if wanted; A gets the patch before intensities change, or as S does."""
        settings = self.settings
        added: list[BasicTransform] = []
        if settings.end_to_end.lesion_augmentation:
            corruption = dataclasses.asdict(settings.corruption)
            spacing_mm = self.configuration_manager.spacing
            added.append(SyntheticLesionTransform(settings.roi.labels, spacing_mm, **corruption))
        if not settings.end_to_end.intensity_augmentation:
            added.append(SetAsideCopy())
        return insert_after_resampling(super().get_training_transforms(*args, **kwargs), added)

    def error_of(self, batch: dict) -> Callable[[], torch.Tensor]:  # type: ignore[override]
        """E of a batch, as the network makes it in its forward pass."""

        def error() -> torch.Tensor:
            made = self.bare_network().error
            assert made is not None  # the loss is computed after the forward pass
            return made

        return error

    def out_of_fold(self, cases: Sequence[str]) -> AbstractContextManager[None]:
        """A block in which each sample of a batch meets the A that has held its case out."""
        networks = [self.network_of_fold(self.fold_of_case[str(case)]) for case in cases]
        return self.bare_network().reconstructed_by(networks)

    def train_step(self, batch: dict) -> dict:
        """S's step, each case with the A of the fold that held it out."""
        with self.out_of_fold(batch["keys"]):
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        """The same on held-out cases: the A of their own fold, whatever is exported."""
        with self.out_of_fold(batch["keys"]):
            return super().validation_step(batch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's, with the A of this fold, which has not seen the held-out cases, whatever is exported.

        With fold ``all`` nothing is held out: there it is what is exported.
        """
        block: AbstractContextManager[None] = nullcontext()
        if self.fold != ALL:
            if self.fold not in self.exported_folds():
                self.check_same_reconstructors()
            block = self.bare_network().reconstructed_by([self.network_of_fold(self.fold)])
        with block:
            super().perform_actual_validation(save_probabilities)


__getattr__ = epoch_variants(globals())
