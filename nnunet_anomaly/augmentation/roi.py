"""The region of interest of a label map, as a mask and as a channel that travels with the training patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from scipy import ndimage

from nnunet_anomaly.augmentation.protected_channels import set_aside
from nnunet_anomaly.geometry import ROUNDING, bounding_box, close_mm, dilate_mm


def region_of_interest(
    labels: np.ndarray, roi_labels: Sequence[int], dilation_mm: float, spacing_mm: Sequence[float]
) -> np.ndarray:
    """Voxels that carry one of ``roi_labels`` or lie within ``dilation_mm`` of such a voxel.

    Args:
        labels: integer label map, 2-D or 3-D.
        roi_labels: at least one label. Where none of them occurs, the region is empty.
        dilation_mm: distance between voxel centres; 0 is the labels alone.
        spacing_mm: voxel size along every axis of ``labels``; with two sizes for a 3-D map, as 2-D configurations
            have them, every slice of the first axis is dilated by itself.

    Returns:
        bool array of the same shape.

    Source: Woo et al. 2022, section 2.1 (the erased profile: the bones' masks, dilated).
    """
    region = np.isin(labels, _checked(roi_labels))
    if region.ndim == 3 and len(spacing_mm) == 2:
        return np.stack([dilate_mm(plane, dilation_mm, spacing_mm) for plane in region])
    return dilate_mm(region, dilation_mm, spacing_mm)


def closed_and_filled_region(
    labels: np.ndarray,
    roi_labels: Sequence[int],
    closing_mm: float,
    spacing_mm: Sequence[float],
    slice_axes: Sequence[int] = (0,),
    largest_hole_mm2: float = math.inf,
) -> np.ndarray:
    """The region of a *predicted* label map with its gaps closed, so that a lesion that was left out is in it.

    The union of the labels is closed by a ball of ``closing_mm``; then holes are filled, in 3-D and after that slice by
    slice, because a lesion at a bone's surface often opens towards a neighbouring slice only. A region at the edge of
    the array is closed as if there were background outside.

    Args:
        labels: integer label map, 2-D or 3-D; a 2-D map is filled in its plane.
        roi_labels: at least one label. Where none of them occurs, the region is empty.
        closing_mm: radius of the ball; 0 only fills.
        spacing_mm: voxel size along every axis of ``labels``.
        slice_axes: of a 3-D map, the axes across slices that are filled; none: only what is enclosed in 3-D is.
        largest_hole_mm2: area of the largest hole of a slice that is filled, as soft tissue may be enclosed as well.

    Returns:
        bool array of the same shape; contains every voxel of ``roi_labels``.
    """
    result = np.isin(labels, _checked(roi_labels))
    box = bounding_box(result)
    if box is None:
        return result
    region = close_mm(result[box], closing_mm, spacing_mm)
    if region.ndim == 2:
        result[box] = _with_small_holes(region, largest_hole_mm2 / math.prod(spacing_mm))
        return result
    region = ndimage.binary_fill_holes(region)
    filled = region.copy()
    for axis in slice_axes:
        largest_pixels = largest_hole_mm2 * spacing_mm[axis] / math.prod(spacing_mm)
        planes = [_with_small_holes(plane, largest_pixels) for plane in np.moveaxis(region, axis, 0)]
        filled |= np.stack(planes, axis)
    result[box] = filled
    return result


def _with_small_holes(plane: np.ndarray, largest_pixels: float) -> np.ndarray:
    """A 2-D mask and its holes of up to so many pixels."""
    holes = ndimage.binary_fill_holes(plane) & ~plane
    numbers, _ = ndimage.label(holes)
    is_small = np.bincount(numbers.ravel()) <= largest_pixels * (1 + ROUNDING)
    return plane | (holes & is_small[numbers])


class RoiChannelTransform(BasicTransform):
    """Sets aside a channel that is 1 inside the region of interest and 0 elsewhere (see ``region_of_interest``).

    Belongs where the patch has its final grid (``insert_after_resampling``): a region that is computed there stays
    0 or 1. ``RestoreChannels`` appends it to ``image``, float like the image. The first channel of ``segmentation``
    holds the labels and does not change; a patch without the labels gets a channel of zeros.

    Args:
        roi_labels: at least one label.
        dilation_mm: as in ``region_of_interest``; a patch that augmentation scaled is taken at its nominal spacing.
        spacing_mm: voxel size along every axis of the patch.
    """

    def __init__(self, roi_labels: Sequence[int], dilation_mm: float, spacing_mm: Sequence[float]):
        super().__init__()
        self.roi_labels = tuple(_checked(roi_labels))
        self.dilation_mm = dilation_mm
        self.spacing_mm = tuple(spacing_mm)

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Compute the region from ``segmentation`` and set it aside."""
        labels = data_dict["segmentation"][0].numpy()
        region = region_of_interest(labels, self.roi_labels, self.dilation_mm, self.spacing_mm)
        set_aside(data_dict, torch.from_numpy(region)[None].to(data_dict["image"].dtype))
        return data_dict


def _checked(roi_labels: Sequence[int]) -> list[int]:
    if len(roi_labels) == 0:
        raise ValueError("roi_labels is empty; a region of interest needs at least one label")
    return list(roi_labels)
