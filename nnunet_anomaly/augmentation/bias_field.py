"""Random bias fields of MR: intensities multiplied by a smooth field (Sudre et al. 2017, as in Qin et al. 2024)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from numpy.polynomial import polynomial


def bias_field(shape: Sequence[int], order: int, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """exp(p) divided by its mean over the image, p a polynomial whose coordinates go from -1 to 1 along every axis.

    Args:
        shape: 2-D or 3-D; the only pixel of an axis has the coordinate 0.
        order: highest total degree of p; 0 gives a field of ones.
        strength: every coefficient of p is uniform in -strength to strength. 0 gives a field of ones.
        rng: source of every draw.

    Returns:
        float32 of ``shape``, positive, with a mean of 1.

    Raises:
        ValueError: an order or a strength below 0.
    """
    if order < 0 or strength < 0:
        raise ValueError(f"order is {order} and strength {strength}; neither may be negative")
    coefficients = np.zeros((order + 1,) * len(shape))
    for powers in itertools.product(range(order + 1), repeat=len(shape)):
        if 0 < sum(powers) <= order:  # a constant would be divided out
            coefficients[powers] = rng.uniform(-strength, strength)
    coordinates = [np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in shape]
    exponent = coefficients
    for coordinate in coordinates:  # one axis after the other: the first is taken away, and appended as pixels
        exponent = np.tensordot(exponent, polynomial.polyvander(coordinate, order), axes=(0, 1))
    field = np.exp(exponent)
    return torch.from_numpy((field / field.mean()).astype(np.float32))


class BiasFieldTransform(ImageOnlyTransform):
    """Multiplies all channels of ``image`` by one random bias field; what is set aside is not touched.

    Normalised images have their zero, air, at some other value: here at each channel's lowest value in the patch, which
    stays as it is, while the differences from it are multiplied. It draws from numpy's global state, which nnU-Net's
    workers seed each differently.

    Args:
        probability: that a patch gets a field.
        order: see ``bias_field``.
        strength: see ``bias_field``.
        limits: lowest and highest intensity of the image's scale, to which the result is clipped; None: not clipped.
    """

    def __init__(self, *, probability: float, order: int, strength: float, limits: tuple[float, float] | None):
        super().__init__()
        self.probability = probability
        self.order = order
        self.strength = strength
        self.limits = limits

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw the field; None where the patch stays as it is."""
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002 (the state that workers seed)
        if rng.random() >= self.probability:
            return {"field": None}
        return {"field": bias_field(data_dict["image"].shape[1:], self.order, self.strength, rng)}

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        """(channels, *spatial) to the same shape; ``img`` is not changed."""
        if params["field"] is None:
            return img
        lowest = img.amin(dim=tuple(range(1, img.ndim)), keepdim=True)
        result = lowest + (img - lowest) * params["field"].to(img.dtype)
        return result if self.limits is None else result.clamp(*self.limits)
