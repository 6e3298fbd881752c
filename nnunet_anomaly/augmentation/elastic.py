"""Elastic deformation of training samples, which then weigh less in the loss (Xu 2022, after Perslev 2019)."""

from __future__ import annotations

from typing import Any

import numpy as np
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

# MPUNet smooths by 20 to 30 pixels in planes of some 256, and at its strongest moves a pixel by about 8. As shares of
# the patch's edge these hold for patches of any size, and the displacement changes too slowly to fold the image.
SMOOTHING_SHARE = (0.08, 0.12)
DISPLACEMENT_SHARE = (0.0, 0.03)


class ElasticSpatialTransform(SpatialTransform):
    """A spatial transform of nnU-Net's pipeline that may deform elastically as well.

    The last channel of ``regression_target`` is w - 1 of the sample; where a deformation was drawn (and nowhere else)
    all its weights are multiplied by ``sample_weight``, those of padding, which are 1, too. A rotation or scaling alone
    changes no weight.

    Args:
        stock: the transform that it stands in for; what it draws stays as it is.
        probability: of an elastic deformation.
        sample_weight: of a sample that was deformed.
    """

    def __init__(self, stock: SpatialTransform, probability: float, sample_weight: float):
        super().__init__(stock.patch_size, 0, False)
        self.__dict__.update(stock.__dict__)
        deform_elastically(self, probability)
        self.sample_weight = sample_weight

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Transform everything, then the weights' scale."""
        data_dict = super().apply(data_dict, **params)
        if params["elastic_offsets"] is not None:
            target = data_dict["regression_target"]
            # dummy 2-D has folded the first axis into the channels, whose own number it keeps
            slices = target.shape[0] // data_dict.get("nchannels_regr_trg", target.shape[0])
            target[-slices:] = self.sample_weight * (1 + target[-slices:]) - 1
        return data_dict


def deform_elastically(transform: SpatialTransform, probability: float) -> None:
    """Let a spatial transform deform elastically too, with this probability; all else that it draws stays as it is."""
    transform.p_elastic_deform = probability
    transform.elastic_deform_scale = SMOOTHING_SHARE
    transform.elastic_deform_magnitude = _largest_displacement_voxels


def _largest_displacement_voxels(*, patch_size: Any, dim: int, **_: Any) -> float:
    return float(np.random.uniform(*DISPLACEMENT_SHARE) * patch_size[dim])  # noqa: NPY002 - drawn as nnU-Net draws


def with_elastic_deformation(
    pipeline: ComposeTransforms, probability: float, sample_weight: float
) -> ComposeTransforms:
    """A pipeline whose spatial transforms deform elastically too; ``pipeline`` is not changed.

    Args:
        pipeline: nnU-Net's, of samples whose w - 1 is the last channel that is set aside (``protect_channels``).
        probability: see ``ElasticSpatialTransform``; 0 changes nothing.
        sample_weight: likewise.
    """
    return ComposeTransforms(
        [
            ElasticSpatialTransform(step, probability, sample_weight) if isinstance(step, SpatialTransform) else step
            for step in pipeline.transforms
        ]
    )
