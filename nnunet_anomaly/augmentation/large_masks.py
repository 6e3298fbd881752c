"""Large random masks in a plane (LaMa: Suvorov et al. 2022): wide polygonal chains and boxes, our own parameters.

A network that only ever inpaints one region, the bone, knows where the border lies; with other large masks beside it it
has to learn to inpaint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_anomaly.augmentation.erasing import cubes
from nnunet_anomaly.augmentation.protected_channels import mark_last_set_aside

_MOST_SEGMENTS = 5
_SHAPES_TRIED = 20
# of chains and boxes, as shares of the side of a square with the pixels that are wanted
_CHAIN_WIDTH = (0.25, 0.7)
_SEGMENT_LENGTH = (0.3, 1.5)
_BOX_SIDE = (0.3, 1.0)


def large_mask(
    shape: Sequence[int], share: tuple[float, float], box_probability: float, rng: np.random.Generator
) -> torch.Tensor:
    """One mask of chains and boxes that lies within the limits; never empty, and never the whole plane.

    The share that is wanted is drawn uniformly. Chains and boxes of about that size are added until it is reached; one
    that would lead beyond the upper limit is left out. Where no mask comes about in this way, it is one box.

    Args:
        shape: two sizes, together at least 2 pixels.
        share: smallest and largest share of the plane's pixels; at least one pixel.
        box_probability: that a shape is a box and not a chain.
        rng: source of every draw.

    Returns:
        bool of ``shape``.

    Raises:
        ValueError: not a plane, or impossible limits (see ``checked_share``).
    """
    if len(shape) != 2 or min(shape) < 1 or max(shape) < 2:
        raise ValueError(f"large masks are made for planes of at least 2 pixels, not for {tuple(shape)}")
    checked_share(share)
    total = int(np.prod(shape))
    least, most = max(1, int(np.ceil(share[0] * total))), max(1, int(share[1] * total))
    wanted = rng.uniform(least, max(least, most))
    mask = np.zeros(tuple(shape), dtype=bool)
    for _ in range(_SHAPES_TRIED):
        draw = box if rng.random() < box_probability else chain
        larger = mask | draw(shape, float(np.sqrt(wanted)), rng)
        if larger.sum() <= most:
            mask = larger
        if mask.sum() >= wanted:
            break
    return torch.from_numpy(mask) if mask.sum() >= least else cubes(shape, share, 1, rng)


def checked_share(share: tuple[float, float]) -> tuple[float, float]:
    """The limits themselves.

    Raises:
        ValueError: they do not lie in 0 to 1, 1 excluded, or the second is not at least twice the first (a box that
            grows line by line must not jump over them).
    """
    if not 0 < 2 * share[0] <= share[1] < 1:
        raise ValueError(f"share is {share}; it must lie in 0 to 1 (excluded), the second at least twice the first")
    return share


def chain(shape: Sequence[int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """A polygonal chain of 1 to 5 segments with round ends, one width and random turns, from a uniformly drawn pixel.

    Args:
        shape: of the plane; what lies outside is cut off.
        scale: in pixels; widths and lengths are shares of it.
        rng: source of every draw.

    Returns:
        bool of ``shape``; at least the first pixel is in it.
    """
    mask = np.zeros(tuple(shape), dtype=bool)
    start = np.array([float(rng.integers(size)) for size in shape])
    radius = 0.5 * scale * rng.uniform(*_CHAIN_WIDTH)
    direction = rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(1, _MOST_SEGMENTS + 1))):
        length = scale * rng.uniform(*_SEGMENT_LENGTH)
        # inside the plane, or else most of a chain would be cut off
        end = np.clip(start + length * np.array([np.sin(direction), np.cos(direction)]), 0, np.array(shape) - 1)
        mark_segment(mask, start, end, radius)
        start = end
        direction += rng.uniform(-0.75, 0.75) * np.pi
    return mask


def box(shape: Sequence[int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """A box that lies in the plane, its sides drawn as shares of ``scale`` (pixels); bool of ``shape``, never empty."""
    mask = np.zeros(tuple(shape), dtype=bool)
    sides = [min(size, max(1, round(scale * rng.uniform(*_BOX_SIDE)))) for size in shape]
    corner = [int(rng.integers(size - side + 1)) for size, side in zip(shape, sides, strict=True)]
    mask[tuple(slice(low, low + side) for low, side in zip(corner, sides, strict=True))] = True
    return mask


def mark_segment(mask: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float) -> None:
    """Mark, in place, the pixels that lie within ``radius`` pixels of a segment from ``start`` to ``end`` (y, x)."""
    low = np.maximum(np.floor(np.minimum(start, end) - radius), 0).astype(int)
    high = np.minimum(np.ceil(np.maximum(start, end) + radius), np.array(mask.shape) - 1).astype(int) + 1
    along = end - start
    offset_y = np.arange(low[0], high[0])[:, None] - start[0]
    offset_x = np.arange(low[1], high[1])[None] - start[1]
    position = (offset_y * along[0] + offset_x * along[1]) / max(float(along @ along), 1e-12)
    position = np.clip(position, 0, 1)
    distance = np.hypot(offset_y - position * along[0], offset_x - position * along[1])
    mask[low[0] : high[0], low[1] : high[1]] |= distance <= radius


class LargeMaskTransform(BasicTransform):
    """Adds a large random mask to the region of interest, the channel that was set aside last.

    Belongs after ``RoiChannelTransform`` in a 2-D pipeline. The region is then what is erased, the bone or the mask;
    together they may be the whole plane where the bone alone nearly is. It draws from numpy's global state, which
    nnU-Net's workers seed each differently.

    Args:
        probability: that a patch gets a mask.
        share: see ``large_mask``.
        box_probability: see ``large_mask``.

    Raises:
        ValueError: impossible limits; and, when applied, no channel was set aside.
    """

    def __init__(self, *, probability: float, share: tuple[float, float], box_probability: float):
        super().__init__()
        self.probability = probability
        self.share = checked_share(share)
        self.box_probability = box_probability

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw the mask; None where the region stays as it is."""
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002 (the state that workers seed)
        if rng.random() >= self.probability:
            return {"mask": None}
        return {"mask": large_mask(data_dict["image"].shape[1:], self.share, self.box_probability, rng)}

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Add the mask; the image stays as it is."""
        if params["mask"] is not None:
            mark_last_set_aside(data_dict, params["mask"])
        return data_dict
