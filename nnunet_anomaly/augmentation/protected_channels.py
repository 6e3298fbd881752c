"""Channels that follow the patch through space but that no noise, blur, contrast, gamma or low resolution may touch.

Error channels, clean targets and regions of interest are data, not images. batchgeneratorsv2 has a key for such data,
``regression_target``, which exactly its spatial transforms move:

- ``SpatialTransform`` resamples it with the same grid and in the same way as ``image``: linearly (``mode_image``
  "bilinear", trilinear in 3-D) with ``align_corners`` False; beyond the loaded patch it is zero
  (``padding_mode_image`` "zeros"). Where no rotation or scaling is drawn it is cropped without interpolation.
- ``MirrorTransform`` flips it with the image, and the dummy-2D conversions fold and unfold its first axis.

So a first transform moves the channels out of ``image`` and a last one appends them again; in between lies any of
nnU-Net's own pipelines, unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform

from nnunet_anomaly.errors import SettingsError

_KEY = "regression_target"


def set_aside(data: dict[str, Any], channels: torch.Tensor) -> None:
    """Append ``channels`` (c, *spatial), on the grid of ``data["image"]``, to what is set aside in ``data`` already."""
    present = data.get(_KEY)
    data[_KEY] = channels if present is None else torch.cat((present, channels))


def mark_last_set_aside(data: dict[str, Any], mask: torch.Tensor) -> None:
    """Set the channel that was set aside last to 1 inside ``mask``, bool (*spatial); no tensor is changed in place.

    Raises:
        ValueError: nothing was set aside.
    """
    if data.get(_KEY) is None:
        raise ValueError("no channel was set aside that a mask could be added to")
    channels = data[_KEY].clone()
    channels[-1, mask] = 1
    data[_KEY] = channels


class SetAsideChannels(BasicTransform):
    """First transform: moves the last channels of ``image`` to where only spatial transforms reach them.

    Args:
        channels: indices in ``image``; they must be its last ones, in order, so that ``RestoreChannels`` puts every
            channel back to the index that the network knows it by.

    Raises:
        ValueError: the channels are not consecutive, or (when applied) not the last ones, or all there are.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.channels = tuple(channels)
        start = self.channels[0] if self.channels else 0
        if start < 1 or self.channels != tuple(range(start, start + len(self.channels))):
            raise ValueError(
                f"channels is {self.channels}; it must be consecutive, ascending and leave channel 0 alone"
            )

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Move the channels; nothing else in ``data_dict`` changes."""
        image = data_dict["image"]
        if self.channels[-1] != image.shape[0] - 1:
            raise ValueError(
                f"channels is {self.channels}, but the last of the image's channels is {image.shape[0] - 1}"
            )
        set_aside(data_dict, image[self.channels[0] :])
        data_dict["image"] = image[: self.channels[0]]
        return data_dict


class SetAsideCopy(BasicTransform):
    """Sets aside a copy of ``image``, which what follows does not change but for moving it through space.

    Args:
        transform: of intensities, applied to the copy alone.
    """

    def __init__(self, transform: BasicTransform | None = None):
        super().__init__()
        self.transform = transform

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Set the copy aside; nothing else in ``data_dict`` changes."""
        copied = {"image": data_dict["image"].clone(), "segmentation": data_dict.get("segmentation")}
        if self.transform is not None:
            copied = self.transform(**copied)
        set_aside(data_dict, copied["image"])
        return data_dict


class RestoreChannels(BasicTransform):
    """Last transform: appends everything that was set aside to ``image``, in the order in which it was set aside.

    Args:
        number: how many channels there must be; ``None`` takes what there is, also nothing.

    Raises:
        ValueError: when applied, another number of channels was set aside.
    """

    def __init__(self, number: int | None = None):
        super().__init__()
        self.number = number

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Append the channels and remove the key, which nnU-Net's loader does not know."""
        channels = data_dict.pop(_KEY, None)
        found = 0 if channels is None else channels.shape[0]
        if self.number is not None and found != self.number:
            raise ValueError(f"{found} channels were set aside, not {self.number}")
        if channels is not None:
            data_dict["image"] = torch.cat((data_dict["image"], channels))
        return data_dict


def protect_channels(pipeline: ComposeTransforms, channels: Sequence[int] = ()) -> ComposeTransforms:
    """Wrap a pipeline so that ``channels`` of the image pass its spatial transforms only.

    Whatever transforms inside the pipeline set aside besides (a clean image, a region of interest) is appended after
    them. In a cascade the channels return before nnU-Net appends the previous stage's labels, as in its predictor.

    Args:
        pipeline: from ``nnUNetTrainer.get_training_transforms`` or ``get_validation_transforms``; not changed.
        channels: the last channels of ``image``, consecutive; empty protects none.

    Raises:
        ValueError: the channels are not consecutive, or channel 0 is among them.
        SettingsError: the pipeline sets a protected channel to zero outside the non-zero region.
    """
    transforms = list(pipeline.transforms)
    for transform in transforms:
        masked = set(transform.apply_to_channels) if isinstance(transform, MaskImageTransform) else set()
        if masked & set(channels):
            raise SettingsError(
                f"The plans mask channel {min(masked & set(channels))} outside the non-zero region "
                '(use_mask_for_norm), but it holds data, not an image: name it "noNorm" in dataset.json and plan again.'
            )
    cascade = [index for index, step in enumerate(transforms) if isinstance(step, MoveSegAsOneHotToDataTransform)]
    end = cascade[0] if cascade else len(transforms)
    first: list[BasicTransform] = [SetAsideChannels(channels)] if channels else []
    return ComposeTransforms([*first, *transforms[:end], RestoreChannels(), *transforms[end:]])


def insert_after_resampling(pipeline: ComposeTransforms, added: Sequence[BasicTransform]) -> ComposeTransforms:
    """A pipeline with ``added`` at the first place where the patch has its final grid (mirroring may follow).

    That is after the spatial transform and its dummy-2D conversions, where nnU-Net's intensity transforms start; in a
    pipeline without them, such as nnU-Net's for validation, at the beginning. ``pipeline`` is not changed.
    """
    before = (SetAsideChannels, SpatialTransform, Convert2DTo3DTransform)
    positions = [index + 1 for index, step in enumerate(pipeline.transforms) if isinstance(step, before)]
    position = max(positions, default=0)
    return ComposeTransforms([*pipeline.transforms[:position], *added, *pipeline.transforms[position:]])
