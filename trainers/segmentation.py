"""What our segmentation trainers share: settings, seed, mirroring that knows left from right, weights to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_anomaly.architectures.twin_mirroring import TwinMirroring
from nnunet_anomaly.augmentation.twin_mirroring import know_left_from_right
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.files import load_json, named_file
from nnunet_anomaly.seeding import seed_everything
from nnunet_anomaly.settings import BLOCK, AnomalySettings, SymmetrySettings
from nnunet_anomaly.transfer import differences_in_preprocessing, transfer_weights
from nnunet_anomaly.twins import NO_TWIN, check_pairs, side_axis_of_patch, twin_channels


class SegmentationTrainer(nnUNetTrainer):
    """Base of our segmentation trainers; nnU-Net in all but what the plans' ``"anomaly"`` block says.

    Mirroring along the axis from left to right is as ``symmetry`` says; without pairs it is nnU-Net's.
    """

    inference_allowed_mirroring_axes: tuple[int, ...] | None

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
        symmetry = self.settings.symmetry
        self.side_axis = self.find_side_axis()
        if self.side_axis is not None:
            check_pairs(symmetry.pairs, self.label_manager.all_labels)
        if symmetry.pairs:
            self.settings = self.settings.with_values({"symmetry.region_twins": self.region_twins()})
            self.plans_manager.plans[BLOCK] = self.settings.to_dict()

    def find_side_axis(self) -> int | None:
        """Axis of the patch along which mirroring exchanges left and right; None where mirroring is nnU-Net's."""
        return side_axis_of_patch(self.settings.symmetry, len(self.configuration_manager.patch_size))

    def region_twins(self) -> tuple[int, ...]:
        """What prediction, which builds the network from the plans alone, must know to exchange outputs.

        Empty where outputs are labels; ``NO_TWIN`` throughout where ``swap`` must not be set after training: some
        region has no twin, or the checkpoint tells nnU-Net's predictor to mirror the axis from left to right itself.

        Raises:
            SettingsError: ``swap`` is set, but some region has no twin.
        """
        symmetry, labels = self.settings.symmetry, self.label_manager
        refused = (NO_TWIN,) * labels.num_segmentation_heads
        if symmetry.test_time_mirroring == "plain":
            return refused
        try:
            return twin_channels(labels.foreground_regions, symmetry.pairs) if labels.has_regions else ()
        except SettingsError:
            if symmetry.test_time_mirroring == "swap" and self.side_axis is not None:
                raise
            return refused

    def initialize(self) -> None:
        """Seed, then build as nnU-Net does."""
        seed_everything(self.settings.seed, self.fold, self.local_rank)
        super().initialize()

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """nnU-Net's network; in prediction it looks at the mirror image too, where ``symmetry`` says so.

        Raises:
            SettingsError: the plans were changed to ``swap`` after a training that does not allow it.
        """
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        look_at_mirror_image(network, plans_manager, configuration_manager, num_input_channels, num_output_channels)
        return network

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        """nnU-Net's, without the axis from left to right where it is not to be mirrored as nnU-Net does."""
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        symmetry = self.settings.symmetry
        if self.side_axis is not None:
            if symmetry.test_time_mirroring != "plain":
                # None, as nnU-Net's predictor does not take an empty tuple
                self.inference_allowed_mirroring_axes = (
                    self._without_side_axis(self.inference_allowed_mirroring_axes) or None
                )
            if symmetry.mirroring == "off":
                mirror_axes = self._without_side_axis(mirror_axes)
        return rotation, dummy_2d, initial_patch_size, mirror_axes

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:  # type: ignore[override]
        """nnU-Net's transforms; mirroring exchanges the labels of left and right, where ``symmetry`` says so."""
        pipeline = super().get_training_transforms(*args, **kwargs)
        if self.side_axis is not None and self.settings.symmetry.mirroring == "swap":
            pipeline = know_left_from_right(pipeline, self.side_axis, self.settings.symmetry.pairs)
        return pipeline

    def _without_side_axis(self, axes: tuple[int, ...] | None) -> tuple[int, ...]:
        return tuple(axis for axis in axes or () if axis != self.side_axis)

    def on_train_start(self) -> None:
        """As nnU-Net; before anything else take the weights that the plans name, unless ``--c`` brought its own."""
        self.check_other_folds()
        if self.settings.transfer.checkpoint and self.current_epoch == 0:
            self.take_weights_from(named_file(self.settings.transfer.checkpoint))
        super().on_train_start()

    def check_other_folds(self) -> None:
        """Checkpoints tell nnU-Net's predictor which axes to mirror, and all folds of a folder share its plans.

        Raises:
            SettingsError: in training another fold of this folder, nnU-Net was left to mirror the axis from left to
                right (no pairs, or ``plain``), and by these plans it is not, or the other way round: the sides would be
                averaged, or not be mirrored as they were learnt.
        """
        folder, own = Path(self.output_folder_base), Path(self.output_folder)
        others = sorted(path.name for path in folder.glob("fold_*") if path != own)
        if not others or not (folder / "plans.json").is_file():
            return
        before = AnomalySettings.from_plans(load_json(folder / "plans.json")).symmetry
        if self.leaves_sides_to_nnunet(before) == self.leaves_sides_to_nnunet(self.settings.symmetry):
            return
        differing = ", ".join(
            f"symmetry.{name} was {getattr(before, name)} and is {getattr(self.settings.symmetry, name)}"
            for name in ("pairs", "side_axis", "test_time_mirroring")
            if getattr(before, name) != getattr(self.settings.symmetry, name)
        )
        raise SettingsError(
            f"{folder} has {', '.join(others)} by other plans, which do not go together with these: left and right "
            f"are mirrored in another way ({differing}). Save these plans under another name (nnunet-anomaly plan ... "
            "--save-as NAME), or remove that folder."
        )

    def leaves_sides_to_nnunet(self, symmetry: SymmetrySettings) -> bool:
        """Whether nnU-Net's predictor mirrors the axis from left to right, as any other."""
        side_axis = side_axis_of_patch(symmetry, len(self.configuration_manager.patch_size))
        return side_axis is None or symmetry.test_time_mirroring == "plain"

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net; which axes the predictor mirrors is by these plans, if they were changed since."""
        super().load_checkpoint(filename_or_checkpoint)
        axes = self.inference_allowed_mirroring_axes
        if self.side_axis is not None and self.settings.symmetry.test_time_mirroring != "plain":
            self.inference_allowed_mirroring_axes = self._without_side_axis(axes) or None

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


def look_at_mirror_image(
    network: nn.Module,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    num_input_channels: int,
    num_output_channels: int,
) -> None:
    """Make a network that was built from these plans look at the mirror image too, where ``symmetry`` says so.

    Raises:
        SettingsError: the plans were changed to ``swap`` after a training that does not allow it.
    """
    symmetry = AnomalySettings.from_plans(plans_manager.plans).symmetry
    side_axis = side_axis_of_patch(symmetry, len(configuration_manager.patch_size))
    if side_axis is None or symmetry.test_time_mirroring != "swap":
        return
    if NO_TWIN in symmetry.region_twins:
        raise SettingsError(
            "symmetry.test_time_mirroring is swap in the plans of a model that cannot have it: it was trained "
            "with plain, or by regions of which one has no twin (symmetry.region_twins is -1). Set it back to "
            "what it was, plain or off, in the plans.json of the model's folder."
        )
    output_twins = symmetry.region_twins or twin_channels(range(num_output_channels), symmetry.pairs)
    images = len(configuration_manager.normalization_schemes)
    labels = range(1, num_input_channels - images + 1)  # of the previous stage, in a cascade
    input_twins = [*range(images), *(images + twin for twin in twin_channels(labels, symmetry.pairs))]
    network.register_forward_hook(TwinMirroring(side_axis, output_twins, input_twins if len(labels) else None))
