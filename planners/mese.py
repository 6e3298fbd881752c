"""Plans for a 2-D network that sees one echo of multi-echo spin-echo MR (Thomas et al. 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnunet_anomaly.dataset_roles import channel_names
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.planners.anomaly import nnUNetPlannerAnomaly, nnUNetPlannerAnomalyTiny
from nnunet_anomaly.planners.normalization import MedianQuartileNormalization
from nnunet_anomaly.settings import AnomalySettings

CONFIGURATION = "2d"
THICKER = 1.1  # slices than pixels, at least: below that their axis is one among equals


class nnUNetPlannerMESE(nnUNetPlannerAnomaly):
    """nnU-Net's ``2d``, with the paper's intensities in every channel, and the ``"anomaly"`` block.

    There is no other configuration, as the network segments each slice by itself. Slices are those across nnU-Net's
    first axis, whose voxels are thickest; they are not resampled along it. Batch and patch are nnU-Net's, for as many
    channels as there are (the network has one, so that the estimate is a little high).
    """

    def __init__(self, *args: Any, plans_name: str = "nnUNetMESEPlans", **kwargs: Any):
        super().__init__(*args, plans_name=plans_name, **kwargs)

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """The paper's intensities, whatever the channels are called."""
        channels = len(channel_names(self.dataset_json))
        return [MedianQuartileNormalization.__name__] * channels, [False] * channels

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """nnU-Net's.

        Raises:
            InputError: of some case it would not be the slices as they were acquired that come first.
        """
        forward, backward = super().determine_transpose()
        spacings_mm = np.array(self.dataset_fingerprint["spacings"])[:, forward]
        for case, (across, *within) in zip(self.dataset, spacings_mm.tolist(), strict=False):
            if across < THICKER * max(within):
                raise InputError(
                    f"{case} has voxels of {' x '.join(f'{size:g}' for size in (across, *within))} mm, in nnU-Net's "
                    "order of axes, of which the first is to be that across thick slices. Convert all series alike and "
                    "with slices as they were acquired. Plan images without thick slices with: -pl "
                    "nnUNetPlannerAnomaly"
                )
        return forward, backward

    def add_configurations(self, plans: dict[str, Any]) -> None:
        """Add none, and leave out those of other dimensions."""
        plans["configurations"] = {CONFIGURATION: plans["configurations"][CONFIGURATION]}

    def derived_settings(self, plans: dict[str, Any]) -> AnomalySettings:
        """With the only echo there is, where there is one; else the preset's three."""
        settings = super().derived_settings(plans)
        if len(channel_names(self.dataset_json)) == 1:
            settings = settings.with_values({"mese.echo_probabilities": (1.0,), "mese.prediction_echo": 1})
        return settings


class nnUNetPlannerMESETiny(nnUNetPlannerMESE, nnUNetPlannerAnomalyTiny):
    """The same with 8 base features, one convolution a stage and at most 6 slices in a batch: to try it on a CPU."""

    def __init__(self, *args: Any, plans_name: str = "nnUNetMESETinyPlans", **kwargs: Any):
        super().__init__(*args, plans_name=plans_name, **kwargs)
