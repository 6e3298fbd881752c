"""One 2-D network that sees a volume from several directions (Perslev et al. 2019, Xu et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_anomaly.architectures.multi_planar import MultiPlanarUNet
from nnunet_anomaly.augmentation.elastic import deform_elastically
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.settings import AnomalySettings
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.fine_tuning import FineTuning
from nnunet_anomaly.trainers.gap_weighted import nnUNetTrainerGapWeighted
from nnunet_anomaly.trainers.own_loader import OwnLoader
from nnunet_anomaly.trainers.plane_loader import PlaneDataLoader
from nnunet_anomaly.views import draw_frames

SUFFIX = "_multiplanar"


class nnUNetTrainerMultiPlanar(OwnLoader, FineTuning):
    """nnU-Net's 2-D network, trained on planes of the plans' views; it predicts volumes, seen from all these views.

    The views are drawn once from ``anomaly.seed`` (the same for all folds), and lie in the checkpoint: planes in
    prediction lie as those in training. Nothing is mirrored in prediction.
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
        if not configuration.endswith(SUFFIX):
            raise SettingsError(
                f"{type(self).__name__} is not made for configuration '{configuration}'. Train it on 3d{SUFFIX} of "
                "plans made by -pl nnUNetPlannerMultiPlanar."
            )

    def find_side_axis(self) -> None:
        """No axis of an oblique plane runs from left to right."""

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> torch.nn.Module:
        """nnU-Net's 2-D network, and around it what makes planes of volumes.

        Raises:
            SettingsError: such views cannot be had, or the network cannot halve the planes as often as it should.
        """
        settings = AnomalySettings.from_plans(plans_manager.plans)
        planar = settings.multi_planar
        unet = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        frames = draw_frames(planar.views, planar.minimum_angle_deg, settings.seed)
        network = MultiPlanarUNet(
            unet, frames, configuration_manager.spacing, planar.plane_pixels, planar.plane_extent_mm
        )
        if any(planar.plane_pixels % divisor for divisor in network.divisors):
            raise SettingsError(
                f"multi_planar.plane_pixels is {planar.plane_pixels}; for the network of these plans it must be a "
                f"multiple of {max(network.divisors)}."
            )
        return network

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net; views are those of the checkpoint.

        Raises:
            SettingsError: the checkpoint has another number of views than the plans.
        """
        checkpoint = filename_or_checkpoint
        if isinstance(checkpoint, str):
            checkpoint = torch.load(checkpoint, map_location="cpu", weights_only=False)
        there, views = len(checkpoint["network_weights"].get("frames", ())), self.settings.multi_planar.views
        if there not in (0, views):  # without any it is of another network, as nnU-Net will say
            name = filename_or_checkpoint if isinstance(filename_or_checkpoint, str) else "The checkpoint"
            raise SettingsError(
                f"{name} has {there} views, and multi_planar.views of the plans is {views}. Set it to {there} to go on "
                f"from there, or train with {views} from the start, with plans of another name."
            )
        super().load_checkpoint(filename_or_checkpoint)

    def on_train_start(self) -> None:
        """As nnU-Net; the network learns here whether classes exclude each other, which its checkpoints then say."""
        super().on_train_start()
        self.planar_network().independent.fill_(self.label_manager.has_regions)

    def planar_network(self) -> MultiPlanarUNet:
        """The network without what DDP and torch.compile wrap around it."""
        assert self.network is not None
        return next(module for module in self.network.modules() if isinstance(module, MultiPlanarUNet))

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        """No rotation; planes are mirrored, unless left could become right by it."""
        symmetry = self.settings.symmetry
        self.inference_allowed_mirroring_axes = None
        mirror_axes: tuple[int, ...] = (0, 1)
        if symmetry.pairs and symmetry.mirroring != "plain":
            mirror_axes = ()
            self.print_to_log_file(
                "Planes are not mirrored: there are left and right structures, and no axis of an oblique plane runs "
                "from left to right."
            )
        return (0.0, 0.0), False, self.patch_of_network(), mirror_axes

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:  # type: ignore[override]
        """nnU-Net's for planes, without rotation and scaling, with elastic deformation at its setting."""
        stock = super().get_training_transforms(*args, **kwargs)
        for transform in stock.transforms:
            if isinstance(transform, SpatialTransform):
                transform.p_rotation = transform.p_scaling = 0
                deform_elastically(transform, self.settings.gap_weights.elastic_probability)
        return stock

    def patch_of_network(self) -> tuple[int, int]:
        """A plane; the plans' patch is a volume."""
        return (self.settings.multi_planar.plane_pixels,) * 2

    def loader(self, dataset: Any, transforms: ComposeTransforms, loaded_patch: Any) -> PlaneDataLoader:
        """Planes; nothing is loaded beyond them, as they are not rotated."""
        return self.plane_loader(dataset, transforms)

    def plane_loader(self, dataset: Any, transforms: ComposeTransforms) -> PlaneDataLoader:
        """Planes of the network's own views, which are those of a checkpoint where one was loaded."""
        network = self.planar_network()
        return PlaneDataLoader(
            dataset,
            self.batch_size,
            self.label_manager,
            network.frames.cpu().double().numpy(),
            self.configuration_manager.spacing,
            network.pixel_mm,
            network.plane_pixels,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
            transforms=transforms,
        )


class nnUNetTrainerMultiPlanarGapWeighted(nnUNetTrainerMultiPlanar, nnUNetTrainerGapWeighted):
    """The whole of Xu et al.: planes of several directions, whose cross-entropy weighs gaps between structures more.

    Weights are made for the volume and sampled along with its planes.
    """


__getattr__ = epoch_variants(globals())
