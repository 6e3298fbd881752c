"""Plain nnU-Net that is not confused by mirroring between left and right."""

from __future__ import annotations

from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.segmentation import SegmentationTrainer


class nnUNetTrainerLeftRight(SegmentationTrainer):
    """nnU-Net, whose mirroring exchanges left and right labels or leaves their axis out, as ``symmetry`` says."""


__getattr__ = epoch_variants(globals())
