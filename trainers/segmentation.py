"""What all our segmentation trainers share: settings from the plans, their seed, the weights that they start from."""

from __future__ import annotations

from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.files import nnunet_folder
from nnunet_anomaly.seeding import seed_everything
from nnunet_anomaly.settings import AnomalySettings
from nnunet_anomaly.transfer import differences_in_preprocessing, transfer_weights


class SegmentationTrainer(nnUNetTrainer):
    """Base of our segmentation trainers; nnU-Net in all but what the plans' ``"anomaly"`` block says."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        self.settings = AnomalySettings.from_plans(plans)
        super().__init__(plans, configuration, fold, dataset_json, device)

    def initialize(self) -> None:
        """Seed, then build as nnU-Net does."""
        seed_everything(self.settings.seed, self.fold, self.local_rank)
        super().initialize()

    def on_train_start(self) -> None:
        """As nnU-Net; before anything else take the weights that the plans name, unless ``--c`` brought its own."""
        if self.settings.transfer.checkpoint and self.current_epoch == 0:
            results = nnunet_folder("nnUNet_results")
            self.take_weights_from(results / Path(self.settings.transfer.checkpoint).expanduser())
        super().on_train_start()

    def take_weights_from(self, path: Path) -> None:
        """Make the network, give it all weights of a checkpoint, and note it in the log.

        Raises:
            SettingsError: the network is there already, as ``-pretrained_weights`` has given it others.
            MissingCheckpointError, InputError: see ``transfer.transfer_weights``.
        """
        if self.was_initialized:
            raise SettingsError(
                f"The network has weights of -pretrained_weights already, but these plans take all of them from {path} "
                "(transfer.checkpoint). Leave one of the two out."
            )
        self.initialize()
        source = transfer_weights(self.network, path, self.dataset_json)
        self.print_to_log_file(
            f"All weights, the last layers' too, are those of {path} ({source.get('trainer_name')}, "
            f"{source.get('current_epoch')} epochs). Nothing is frozen."
        )
        plans = source["init_args"].get("plans", {"configurations": {}})
        for difference in differences_in_preprocessing(plans, self.plans_manager.plans, self.configuration_name):
            self.print_to_log_file(f"WARNING: that network was trained with other preprocessing: {difference}")
