"""Spatial erasing (Bengs et al. 2021, section 2.2): parts of the input are missing, the target is whole.

Three kinds of region, the same in 2-D and 3-D: ``cube`` (one cube or patch), ``multi`` (up to ten of them) and ``half``
(one side of the brain over some consecutive slices). Two ways to fill it: ``zero``, or ``noise``: values drawn from the
image's own voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_anomaly.augmentation.protected_channels import set_aside

Kind = Literal["cube", "multi", "half"]
Fill = Literal["zero", "noise"]
_TRIES = 20


def grown_box(shape: Sequence[int], centre: Sequence[int], voxels: int, most_voxels: int) -> tuple[slice, ...]:
    """Box around a voxel, as near to a cube as the image's edges let it be, of at least ``voxels``.

    It grows by one layer at a time, in turn on every side that has room, until it is large enough.

    Args:
        shape: of the image.
        centre: a voxel of it.
        voxels: what the box shall hold at least.
        most_voxels: what it must not exceed; where the last layer would, the box stays a layer smaller. At least 1.
    """
    low, high = np.array(centre), np.array(centre) + 1
    layers = [(edge, axis, step) for edge, step in ((high, 1), (low, -1)) for axis in range(len(shape))]
    for edge, axis, step in itertools.cycle(layers):
        size = int(np.prod(high - low))
        if size >= min(voxels, int(np.prod(shape))):
            break
        if edge[axis] == (shape[axis] if step > 0 else 0):
            continue
        if size + size // int(high[axis] - low[axis]) > most_voxels:
            break
        edge[axis] += step
    return tuple(slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))


def cubes(shape: Sequence[int], share: tuple[float, float], most_cubes: int, rng: np.random.Generator) -> torch.Tensor:
    """One to ``most_cubes`` cubes at uniformly drawn centres; together between the two shares of the image's voxels.

    Args:
        shape: 2-D or 3-D.
        share: smallest and largest share of the voxels; what is drawn is uniform between them. At least one voxel.
        most_cubes: 1 for one cube; more of them may overlap, and the share is that of their union.
        rng: source of every draw.

    Returns:
        bool of ``shape``.
    """
    total = int(np.prod(shape))
    least, most = max(1, int(np.ceil(share[0] * total))), max(1, int(share[1] * total))
    wanted = int(rng.integers(least, max(least, most) + 1))
    for attempt in range(_TRIES):
        number = int(rng.integers(1, most_cubes + 1)) if attempt < _TRIES - 1 else 1
        parts = np.maximum(1, wanted * rng.dirichlet(np.full(number, 2.0))).astype(int)
        region = torch.zeros(tuple(shape), dtype=torch.bool)
        for part in parts:
            centre = [int(rng.integers(size)) for size in shape]
            region[grown_box(shape, centre, int(part), most if number == 1 else int(part))] = True
        if least <= int(region.sum()) <= max(least, most):
            break
    return region


def half(
    shape: Sequence[int],
    midline: int,
    side_axis: int,
    slice_axis: int | None,
    most_slices: int,
    rng: np.random.Generator,
) -> torch.Tensor:
    """One side of the midline over 1 to ``most_slices`` consecutive slices; bool of ``shape``.

    Args:
        shape: 2-D or 3-D.
        midline: first voxel of the second side along ``side_axis``.
        side_axis: the axis from left to right.
        slice_axis: the axis that slices are counted along; None for a single slice (2-D), which is halved whole.
        most_slices: at most this many; no more than there are.
        rng: source of every draw.
    """
    region = torch.zeros(tuple(shape), dtype=torch.bool)
    box = [slice(None)] * len(shape)
    box[side_axis] = slice(None, midline) if rng.random() < 0.5 else slice(midline, None)
    if slice_axis is not None:
        number = int(rng.integers(1, min(most_slices, shape[slice_axis]) + 1))
        start = int(rng.integers(shape[slice_axis] - number + 1))
        box[slice_axis] = slice(start, start + number)
    region[tuple(box)] = True
    return region


def midline_of(image: torch.Tensor, axis: int) -> int:
    """Middle of what is not zero, along one spatial axis of (channels, *spatial); where all is, of the axis."""
    occupied = image.ne(0).any(0)
    others = [other for other in range(occupied.ndim) if other != axis]
    line = torch.nonzero(occupied.any(dim=tuple(others)) if others else occupied)[:, 0]
    if not len(line):
        return occupied.shape[axis] // 2
    return int(line[0] + line[-1] + 1) // 2


def erased(image: torch.Tensor, region: torch.Tensor, fill: Fill, rng: np.random.Generator) -> torch.Tensor:
    """A copy of the image with a region erased.

    Args:
        image: float (channels, *spatial); not changed.
        region: bool (*spatial); an empty one changes nothing.
        fill: ``zero``, or ``noise``: every erased voxel takes the values of a voxel of the image, drawn uniformly.
        rng: source of the noise.
    """
    result = image.clone()
    if fill == "zero":
        result[:, region] = 0
    else:
        voxels = image.flatten(1)
        drawn = rng.integers(voxels.shape[1], size=int(region.sum()))
        result[:, region] = voxels[:, torch.from_numpy(drawn)]
    return result


class SpatialErasingTransform(BasicTransform):
    """Erases a region of ``image`` and sets the whole image aside, as many channels, to be the target.

    It draws from numpy's global state, which nnU-Net's workers seed each differently.

    Args:
        kind: see the module; None erases nothing (the whole image is set aside all the same).
        fill: see ``erased``.
        probability: that a patch is erased at all.
        share: smallest and largest share of the image's voxels, for ``cube`` and ``multi``.
        most_cubes: for ``multi``.
        most_slices: for ``half``, as the next two.
        side_axis: axis of the patch from left to right.
        slice_axis: axis of the patch that its slices are counted along; None in 2-D.
    """

    def __init__(
        self,
        kind: Kind | None,
        fill: Fill,
        *,
        probability: float,
        share: tuple[float, float],
        most_cubes: int,
        most_slices: int,
        side_axis: int,
        slice_axis: int | None,
    ):
        super().__init__()
        if kind in ("cube", "multi") and not 0 < 2 * share[0] <= share[1] <= 1:
            raise ValueError(f"share is {share}; it must lie in 0 to 1, the second at least twice the first")
        self.kind = kind
        self.fill = fill
        self.probability = probability
        self.share = share
        self.most_cubes = most_cubes
        self.most_slices = most_slices
        self.side_axis = side_axis
        self.slice_axis = slice_axis

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw the region (None: nothing is erased) and the state of the noise."""
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002 (the state that workers seed)
        if self.kind is None or rng.random() >= self.probability:
            return {"region": None, "rng": rng}
        image = data_dict["image"]
        shape = image.shape[1:]
        if self.kind == "half":
            midline = midline_of(image, self.side_axis)
            region = half(shape, midline, self.side_axis, self.slice_axis, self.most_slices, rng)
        else:
            region = cubes(shape, self.share, self.most_cubes if self.kind == "multi" else 1, rng)
        return {"region": region, "rng": rng}

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Erase the drawn region and set the whole image aside."""
        image = data_dict["image"]
        if params["region"] is not None:
            data_dict["image"] = erased(image, params["region"], self.fill, params["rng"])
        set_aside(data_dict, image)
        return data_dict
