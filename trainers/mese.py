"""Cartilage from single echoes of multi-echo spin-echo MR (Thomas et al. 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import distributed, nn

from nnunet_anomaly.architectures.shown_channel import ShownChannel
from nnunet_anomaly.dataset_roles import channel_names
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.settings import AnomalySettings
from nnunet_anomaly.trainers.echo_slices import EchoSlices, PassLoader, foreground_slices
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.own_loader import OwnLoader
from nnunet_anomaly.trainers.segmentation import SegmentationTrainer

SCHEME = "MedianQuartileNormalization"
ROUNDING = 1e-3  # of probabilities that are to sum to 1


class nnUNetTrainerMESE(OwnLoader, SegmentationTrainer):
    """nnU-Net's 2-D network with one input channel, by soft Dice alone and Adam, on one echo of each slice.

    In training the echo is drawn for each slice anew, and most slices without foreground are left out of each pass.
    Validation and prediction see one echo of all slices: ``nnUNetv2_predict`` gives the network every channel that
    dataset.json names, and it takes the one of ``mese.prediction_echo``.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.check_configuration()
        self.check_echoes(len(channel_names(dataset_json)))
        mese = self.settings.mese
        self.initial_lr, self.weight_decay, self.num_epochs = mese.learning_rate, 0.0, mese.epochs

    def check_configuration(self) -> None:
        """Refuse what is not planned for this trainer.

        Raises:
            SettingsError: the configuration is 3-D, or intensities are others than the paper's.
        """
        schemes, planned = set(self.configuration_manager.normalization_schemes), "2d of plans made by -pl "
        if len(self.configuration_manager.patch_size) != 2:
            raise SettingsError(
                f"{type(self).__name__} segments slices, and configuration '{self.configuration_name}' is 3-D. Train "
                f"it on {planned}nnUNetPlannerMESE."
            )
        if schemes != {SCHEME}:
            raise SettingsError(
                f"{type(self).__name__} needs images normalised by {SCHEME}, but configuration "
                f"'{self.configuration_name}' of '{self.plans_manager.plans_name}' has {', '.join(sorted(schemes))}. "
                f"Train it on {planned}nnUNetPlannerMESE."
            )

    def check_echoes(self, channels: int) -> None:
        """Refuse echoes that the dataset does not have.

        Raises:
            SettingsError: there is not one probability a channel, they do not sum to 1, or the echo that prediction
                takes is none of the channels.
        """
        probabilities = self.settings.mese.echo_probabilities
        wrong = ""
        if len(probabilities) != channels:
            wrong = f"has {len(probabilities)} numbers, but the dataset has {channels} channels, an echo each"
        elif abs(sum(probabilities) - 1) > ROUNDING:
            wrong = f"sums to {sum(probabilities):g}, not to 1"
        if wrong:
            plans = self.plans_manager
            example = ",".join(["1.0" if channels == 1 else f"{1 / channels:.4f}"] * channels)
            raise SettingsError(
                f"mese.echo_probabilities {wrong}. Set it, for example by: nnunet-anomaly plan -d "
                f"{plans.dataset_name} -p {plans.plans_name} --set mese.echo_probabilities=[{example}]"
            )
        check_prediction_echo(self.settings, channels)

    def _set_batch_size_and_oversample(self) -> None:
        """As nnU-Net.

        Raises:
            SettingsError: several GPUs would have unequal shares of a batch, which nnU-Net's Dice of the batch cannot
                put together.
        """
        size, gpus = self.configuration_manager.batch_size, distributed.get_world_size() if self.is_ddp else 1
        if size % gpus:
            raise SettingsError(
                f"The batch size is {size}, which {gpus} GPUs cannot share evenly. Set batch_size of configuration "
                f"'{self.configuration_name}' in {self.plans_manager.plans_name}.json to a multiple of {gpus}."
            )
        super()._set_batch_size_and_oversample()

    # -- network, loss, optimiser -------------------------------------------------------------------------------------

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """nnU-Net's network for one channel; of several it is shown that of ``mese.prediction_echo``.

        Raises:
            SettingsError: there is no such channel.
        """
        settings = AnomalySettings.from_plans(plans_manager.plans)
        check_prediction_echo(settings, num_input_channels)
        network = SegmentationTrainer.build_network_architecture(
            plans_manager, configuration_manager, 1, num_output_channels, enable_deep_supervision
        )
        network.register_forward_pre_hook(ShownChannel(settings.mese.prediction_echo - 1))
        return network

    def _build_loss(self) -> Any:
        """nnU-Net's, of which soft Dice is left."""
        loss = super()._build_loss()
        (loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss).weight_ce = 0
        return loss

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Adam with the paper's betas, at a constant rate or with nnU-Net's decay."""
        mese = self.settings.mese
        optimizer = torch.optim.Adam(self.network.parameters(), self.initial_lr, betas=mese.betas)
        exponent = 0.9 if mese.learning_rate_schedule == "poly" else 0.0
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, exponent)

    # -- data ---------------------------------------------------------------------------------------------------------

    def get_tr_and_val_datasets(self) -> tuple[EchoSlices, EchoSlices]:
        """Slices of training cases, and all slices of held-out cases with the echo that prediction takes.

        Raises:
            InputError: no slice of the training cases holds foreground.
        """
        mese, labels = self.settings.mese, self.label_manager.foreground_labels
        probabilities = np.array(mese.echo_probabilities) / sum(mese.echo_probabilities)
        shown = np.eye(len(probabilities))[mese.prediction_echo - 1]
        training, held_out = super().get_tr_and_val_datasets()
        foreground = foreground_slices(training, labels)
        filled, total = (sum(map(count, foreground.values())) for count in (np.count_nonzero, len))
        if not filled:
            raise InputError(f"No slice of the training cases of fold {self.fold} holds foreground.")
        self.print_to_log_file(
            f"{filled} slices of {len(foreground)} training cases hold foreground, {total - filled} do not; of these "
            f"each pass has about {(total - filled) * mese.empty_slices_kept:.0f}"
        )
        return (
            EchoSlices(training, foreground, mese.empty_slices_kept, probabilities),
            EchoSlices(held_out, foreground_slices(held_out, labels), 1.0, shown),
        )

    def loader(self, dataset: EchoSlices, transforms: ComposeTransforms, loaded_patch: Any) -> PassLoader:
        """Slices in passes. Where one is larger than the patch, which part of it is seen does not depend on labels."""
        return PassLoader(
            dataset,
            self.batch_size,
            loaded_patch,
            self.configuration_manager.patch_size,
            self.label_manager,
            # else nnU-Net would look for labelled voxels where there is an ignore label
            oversample_foreground_percent=1.0,
            transforms=transforms,
        )


def check_prediction_echo(settings: AnomalySettings, channels: int) -> None:
    """Refuse to predict from a channel that is not there.

    Raises:
        SettingsError: ``mese.prediction_echo`` is none of the channels.
    """
    if settings.mese.prediction_echo > channels:
        raise SettingsError(
            f"mese.prediction_echo is {settings.mese.prediction_echo}, but the dataset has {channels} "
            f"channel{'s' * (channels > 1)}. Set it to a number from 1 to {channels} in the plans."
        )


__getattr__ = epoch_variants(globals())
