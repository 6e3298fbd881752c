"""Synthetic lesions for training: ill-defined bright or dark regions inside labelled tissue.

A lesion is a union of one to three ellipsoids whose distance field is roughened by smooth noise and turned into a soft
edge, so that its border is ragged and gradual like that of a bone marrow lesion. Labels never change: a network that
is trained on such images learns that a lesion in bone is bone, and a denoising network learns to take it away.

Lesions for *testing* are made elsewhere and in another way, so that no method is judged on what it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch.nn import functional

from nnunet_anomaly.augmentation.protected_channels import set_aside

_INTERPOLATION = {2: "bilinear", 3: "trilinear"}
_POOL = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclass(frozen=True)
class Lesion:
    """One lesion of a patch.

    Attributes:
        box: where it lies, a slice per spatial axis.
        soft: float32 in [0, 1], of the box's shape; 1 is all lesion, 0.5 its border.
        contrast_sd: change of intensity per image channel in standard deviations of the region, negative for dark.
        smoothing: 0 keeps the tissue's texture, 1 replaces it by its local mean.
    """

    box: tuple[slice, ...]
    soft: torch.Tensor
    contrast_sd: tuple[float, ...]
    smoothing: float


def sample_lesions(
    roi: torch.Tensor,
    spacing_mm: Sequence[float],
    num_channels: int,
    *,
    max_lesions: int,
    radius_mm: tuple[float, float],
    contrast_sd: tuple[float, float],
    bright_probability: float,
    rng: np.random.Generator,
) -> list[Lesion]:
    """Draw 1 to ``max_lesions`` lesions, each centred in a random voxel of ``roi``; they may reach its surface.

    Args:
        roi: bool, 2-D or 3-D. An empty region gets no lesion.
        spacing_mm: voxel size along every axis of ``roi``.
        num_channels: of the image; every channel gets its own contrast and sign at the same place.
        max_lesions: at least 1.
        radius_mm: smallest and largest radius of a lesion's main part at half its height; drawn log-uniformly.
        contrast_sd: smallest and largest contrast, in standard deviations of the region's intensity.
        bright_probability: probability that a channel shows a lesion brighter than its surrounding, else darker.
        rng: source of every draw; the same state gives the same lesions.
    """
    candidates = torch.nonzero(roi.reshape(-1))[:, 0]
    if len(candidates) == 0:
        return []
    lesions = []
    for _ in range(rng.integers(1, max_lesions + 1)):
        flat = int(candidates[rng.integers(len(candidates))])
        center_voxels = np.array(np.unravel_index(flat, roi.shape))
        radius = float(np.exp(rng.uniform(*np.log(radius_mm))))
        box, soft = _draw_shape(center_voxels, roi.shape, np.asarray(spacing_mm, float), radius, rng)
        signs = np.where(rng.random(num_channels) < bright_probability, 1, -1)
        contrast = signs * rng.uniform(*contrast_sd, num_channels)
        lesions.append(
            Lesion(box, soft * _softened(roi[box]), tuple(map(float, contrast)), max(0.0, float(rng.uniform(-1, 1))))
        )
    return lesions


def lesion_map(lesions: Sequence[Lesion], shape: Sequence[int]) -> torch.Tensor:
    """Soft map of all lesions on a grid of ``shape``: float32 in [0, 1], their maximum; zeros without a lesion.

    The binary mask is ``lesion_map(...) >= 0.5``, the lesions at half their height.
    """
    result = torch.zeros(tuple(shape))
    for lesion in lesions:
        region = result[lesion.box]
        torch.maximum(region, lesion.soft, out=region)
    return result


def apply_lesions(
    image: torch.Tensor,
    lesions: Sequence[Lesion],
    roi: torch.Tensor,
    limits: tuple[float, float] | None = None,
) -> torch.Tensor:
    """Put lesions into an image.

    Args:
        image: float (channels, *spatial); not changed.
        lesions: from ``sample_lesions``; an empty list gives an unchanged copy. Where lesions overlap they add up.
        roi: bool (*spatial); the standard deviation of a channel in it is the unit of contrast, but at least a tenth
            of that of the whole patch, so that a flat region still shows its lesion.
        limits: lowest and highest intensity of the image's scale, which no lesion leaves; None for z-scored images.

    Returns:
        float tensor of the image's shape, equal to ``image`` wherever the lesions' soft maps are 0.
    """
    result = image.clone()
    if not lesions:
        return result
    unit = torch.stack([torch.maximum(c[roi].std(correction=0), 0.1 * c.std(correction=0)) for c in image])
    for lesion in lesions:
        place = (slice(None), *lesion.box)
        region = result[place]
        change = (torch.tensor(lesion.contrast_sd) * unit).reshape([-1] + [1] * roi.ndim)
        if lesion.smoothing > 0:
            change = change + lesion.smoothing * (_local_mean(region) - region)
        changed = region + lesion.soft * change
        if limits is not None:
            changed = torch.where(lesion.soft > 0, changed.clamp(*limits), changed)
        region.copy_(changed)
    return result


class SyntheticLesionTransform(BasicTransform):
    """Puts synthetic lesions into ``image``; ``segmentation`` stays as it is.

    Belongs where the patch has its final grid and before the intensity transforms (``insert_after_resampling``). It
    draws from numpy's global state, which nnU-Net's workers seed each differently; torch's they do not seed at all.
    Radii count at the nominal spacing, also in a patch that augmentation scaled. A patch without the labels keeps its
    image.

    Args:
        roi_labels: labels, in the first channel of ``segmentation``, that lesions lie in.
        spacing_mm: voxel size along every axis of the patch.
        probability: that a patch gets lesions at all.
        max_lesions: see ``sample_lesions``, as for the three that follow.
        radius_mm: smallest and largest radius.
        contrast_sd: smallest and largest contrast.
        bright_probability: probability of a bright lesion.
        limits: see ``apply_lesions``.
        keep_clean: set aside the image without lesions, as many channels as ``image`` has, also where none was drawn.
        keep_mask: set aside the lesions' binary mask, one channel of 0 and 1, after the clean image.
    """

    def __init__(
        self,
        roi_labels: Sequence[int],
        spacing_mm: Sequence[float],
        *,
        probability: float,
        max_lesions: int,
        radius_mm: tuple[float, float],
        contrast_sd: tuple[float, float],
        bright_probability: float,
        limits: tuple[float, float] | None = None,
        keep_clean: bool = False,
        keep_mask: bool = False,
    ):
        super().__init__()
        if len(roi_labels) == 0:
            raise ValueError("roi_labels is empty; lesions need at least one label to lie in")
        if not 0 < radius_mm[0] <= radius_mm[1]:
            raise ValueError(f"radius_mm is {tuple(radius_mm)}; it must be positive, the smaller value first")
        self.roi_labels = tuple(roi_labels)
        self.spacing_mm = tuple(spacing_mm)
        self.probability = probability
        self.max_lesions = max_lesions
        self.radius_mm = radius_mm
        self.contrast_sd = contrast_sd
        self.bright_probability = bright_probability
        self.limits = limits
        self.keep_clean = keep_clean
        self.keep_mask = keep_mask

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw the lesions: ``roi`` (bool) and ``lesions``."""
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002 (the state that workers seed)
        labels = data_dict["segmentation"][0]
        roi = torch.zeros(labels.shape, dtype=torch.bool)
        lesions: list[Lesion] = []
        if rng.random() < self.probability:
            for label in self.roi_labels:
                roi |= labels == label
            lesions = sample_lesions(
                roi,
                self.spacing_mm,
                data_dict["image"].shape[0],
                max_lesions=self.max_lesions,
                radius_mm=self.radius_mm,
                contrast_sd=self.contrast_sd,
                bright_probability=self.bright_probability,
                rng=rng,
            )
        return {"roi": roi, "lesions": lesions}

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Put the drawn lesions into ``image`` and set aside what is to be kept."""
        image, roi, lesions = data_dict["image"], params["roi"], params["lesions"]
        data_dict["image"] = apply_lesions(image, lesions, roi, self.limits)
        if self.keep_clean:
            set_aside(data_dict, image)
        if self.keep_mask:
            set_aside(data_dict, (lesion_map(lesions, roi.shape) >= 0.5)[None].to(image.dtype))
        return data_dict


def _softened(roi: torch.Tensor) -> torch.Tensor:
    """1 inside the region and up to the share of region voxels around it (partial volume) one voxel beyond."""
    inside = roi.float()
    return torch.maximum(inside, _local_mean(inside[None])[0])


def _local_mean(channels: torch.Tensor) -> torch.Tensor:
    """Mean over 3 voxels along every axis of (c, *spatial), over 1 along an axis of fewer than 3."""
    kernel = tuple(3 if size >= 3 else 1 for size in channels.shape[1:])
    padding = tuple(size // 2 for size in kernel)
    return _POOL[len(kernel)](channels, kernel, stride=1, padding=padding, count_include_pad=False)


def _draw_shape(
    center_voxels: np.ndarray, shape: Sequence[int], spacing_mm: np.ndarray, radius_mm: float, rng: np.random.Generator
) -> tuple[tuple[slice, ...], torch.Tensor]:
    """Box and soft map of one lesion, not yet confined to the region.

    The distance field and the noise are smooth, so they are made on a coarse grid over the lesion's box and brought to
    the voxels linearly; only the soft edge is computed for every voxel.
    """
    edge, roughness, unevenness = rng.uniform([0.25, 0.15, 0], [0.8, 0.45, 0.4])
    blobs = _draw_blobs(len(shape), radius_mm, rng)
    reach_mm = np.max([abs(offset) + (1 + edge + roughness) * extent for offset, _, extent in blobs], axis=0)
    low = np.maximum(0, np.floor(center_voxels - reach_mm / spacing_mm)).astype(int)
    high = np.minimum(np.array(shape) - 1, np.ceil(center_voxels + reach_mm / spacing_mm)).astype(int)
    size = high - low + 1
    coarse = np.minimum(size, np.ceil((size - 1) * spacing_mm / (radius_mm / 4)).astype(int) + 1)

    lines = [
        (np.linspace(low[axis], high[axis], coarse[axis]) - center_voxels[axis]) * spacing_mm[axis]
        for axis in range(len(shape))
    ]
    points = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1)
    distance = np.min([np.linalg.norm((points - offset) @ inverse, axis=-1) for offset, inverse, _ in blobs], axis=0)
    ragged = distance + roughness * np.tanh(_smooth_noise(coarse, rng))
    filling = 1 - unevenness * (0.5 + 0.5 * np.tanh(_smooth_noise(coarse, rng)))
    fields = torch.from_numpy(np.stack([ragged, filling]).astype(np.float32))[None]
    if not np.array_equal(coarse, size):
        mode = _INTERPOLATION[len(shape)]
        fields = functional.interpolate(fields, tuple(map(int, size)), mode=mode, align_corners=True)
    height = ((1 + edge - fields[0, 0]) / (2 * edge)).clamp_(0, 1)
    soft = height * height * (3 - 2 * height) * fields[0, 1]
    return tuple(slice(int(start), int(stop) + 1) for start, stop in zip(low, high, strict=True)), soft


def _draw_blobs(
    dimension: int, radius_mm: float, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """One to three ellipsoids: offset from the centre (mm), matrix from mm to radii, half extent per axis (mm)."""
    blobs = []
    for index in range(rng.integers(1, 4)):
        direction = rng.standard_normal(dimension)
        direction /= np.linalg.norm(direction)
        distance, scale = (0.0, 1.0) if index == 0 else rng.uniform([0.4, 0.4], [0.9, 0.8])
        semi_axes_mm = radius_mm * scale * np.exp(rng.uniform(-0.35, 0.35, dimension))
        rotation, _ = np.linalg.qr(rng.standard_normal((dimension, dimension)))
        extent_mm = np.sqrt(((rotation * semi_axes_mm) ** 2).sum(axis=1))
        blobs.append((direction * distance * radius_mm, rotation / semi_axes_mm, extent_mm))
    return blobs


def _smooth_noise(size: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of about unit variance at two scales: grid points, and every third of them interpolated."""
    wide = torch.from_numpy(rng.standard_normal((1, 1, *(np.asarray(size) + 5) // 3)))
    wide = functional.interpolate(wide, tuple(map(int, size)), mode=_INTERPOLATION[len(size)], align_corners=False)
    return 1.2 * wide[0, 0].numpy() + 0.5 * rng.standard_normal(tuple(size))
