"""UNet++ in nnU-Net's training (Zhou et al. 2018), as Qin et al. 2024 segment bones for their bone masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_anomaly.architectures.unet_plus_plus import UNetPlusPlus
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.settings import AnomalySettings
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.segmentation import SegmentationTrainer, look_at_mirror_image


class nnUNetTrainerUNetPlusPlus(SegmentationTrainer):
    """nnU-Net with a nested decoder; all heads of its deep supervision lie at full resolution.

    The encoder, and what a stage of the decoder is, are those that the plans give nnU-Net's own U-Net, plain or
    residual.
    """

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """UNet++ on the encoder of the plans, set to predict as ``unet_plus_plus`` says.

        Raises:
            SettingsError: the plans are for another kind of network, ``unet_plus_plus.prediction_depth`` is more than
                the network has, or see ``SegmentationTrainer.build_network_architecture``.
        """
        kwargs = configuration_manager.network_arch_init_kwargs
        if not {"n_stages", "n_conv_per_stage_decoder"} <= kwargs.keys():
            raise SettingsError(
                f"The plans '{plans_manager.plans_name}' are for {configuration_manager.network_arch_class_name}, "
                "which is no U-Net of nnU-Net's. Make plans with: nnUNetv2_plan_experiment -d DATASET -pl "
                "nnUNetPlannerUNetPlusPlus"
            )
        network = get_network_from_plans(
            f"{UNetPlusPlus.__module__}.{UNetPlusPlus.__name__}",
            kwargs,
            configuration_manager.network_arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
        )
        settings, decoder = AnomalySettings.from_plans(plans_manager.plans).unet_plus_plus, network.decoder
        if settings.prediction_depth > decoder.depth:
            raise SettingsError(
                f"unet_plus_plus.prediction_depth is {settings.prediction_depth}; the network of these plans has "
                f"{decoder.depth} levels below the image's resolution."
            )
        decoder.prediction_depth = settings.prediction_depth or decoder.depth
        decoder.ensemble = settings.prediction == "ensemble"
        look_at_mirror_image(network, plans_manager, configuration_manager, num_input_channels, num_output_channels)
        return network

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Every head has targets at full resolution."""
        scales = super()._get_deep_supervision_scales()
        return None if scales is None else [[1.0] * len(scale) for scale in scales]

    def _build_loss(self) -> Any:
        """nnU-Net's; its weights of the heads are those of ``unet_plus_plus``, deepest head first."""
        with np.errstate(invalid="ignore"):  # the weight that nnU-Net would give a single head is 0 / 0
            loss = super()._build_loss()
        scales = self._get_deep_supervision_scales()
        if scales is not None:
            halved = self.settings.unet_plus_plus.head_weights == "halved"
            weights = np.array([0.5**head if halved else 1.0 for head in range(len(scales))])
            loss.weight_factors = tuple((weights / weights.sum()).tolist())
        return loss


__getattr__ = epoch_variants(globals())
