"""Corruptions of healthy images from which networks learn, without any lesion, to tell what does not belong.

Coarse noise (Kascenas et al. 2022): a network that removes blotches of the size of lesions removes lesions too.
Foreign patches (Tan et al. 2020): part of another image shines through; a network learns to say where and how much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch.nn import functional

from nnunet_anomaly.augmentation.erasing import grown_box
from nnunet_anomaly.augmentation.protected_channels import set_aside

_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


def coarse_noise(shape: Sequence[int], cells: int, noise_sd: float, rng: np.random.Generator) -> torch.Tensor:
    """Gaussian noise on a coarse grid, brought to the image's linearly and moved by a random part of a cell.

    Args:
        shape: (channels, *spatial) of the image, 2-D or 3-D.
        cells: of the coarse grid along the longest axis; the others have cells of the same number of voxels.
        noise_sd: standard deviation on the coarse grid, in units of the image.
        rng: source of every draw.

    Returns:
        float32 of ``shape``.
    """
    channels, *spatial = shape
    cell = max(1.0, max(spatial) / cells)
    coarse = [int(np.ceil(size / cell)) + 1 for size in spatial]
    noise = torch.from_numpy(rng.normal(0, noise_sd, (1, channels, *coarse)).astype(np.float32))
    wide = [round(number * cell) for number in coarse]
    fine = functional.interpolate(noise, wide, mode=_INTERPOLATION[len(spatial)], align_corners=False)[0]
    starts = [int(rng.integers(have - size + 1)) for have, size in zip(wide, spatial, strict=True)]
    window = (slice(None), *(slice(start, start + size) for start, size in zip(starts, spatial, strict=True)))
    return fine[window]


class CoarseNoiseTransform(BasicTransform):
    """Adds coarse noise where the image is not zero, and sets the clean image aside, as many channels.

    Args:
        cells: see ``coarse_noise``.
        noise_sd: see ``coarse_noise``.
        probability: that a patch gets noise.
    """

    def __init__(self, *, cells: int, noise_sd: float, probability: float):
        super().__init__()
        self.cells = cells
        self.noise_sd = noise_sd
        self.probability = probability

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw the noise; None where the patch stays as it is."""
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002 (the state that workers seed)
        if rng.random() >= self.probability:
            return {"noise": None}
        return {"noise": coarse_noise(data_dict["image"].shape, self.cells, self.noise_sd, rng)}

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Add the noise and set the clean image aside."""
        image = data_dict["image"]
        if params["noise"] is not None:
            data_dict["image"] = image + params["noise"] * image.ne(0)
        set_aside(data_dict, image)
        return data_dict


class ForeignPatchTransform(BasicTransform):
    """Lets a box of an earlier image shine through, (1 - a) x + a y, and sets the clean image aside.

    The earlier images are the last ones that this process has seen, on the same grid; while there is none, the image
    stays as it is.

    Args:
        share: smallest and largest share of the image that the box covers; the second at least twice the first.
        opacity: smallest and largest a.
        probability: that a patch is corrupted.
        remembered: how many earlier images are kept.
    """

    def __init__(
        self, *, share: tuple[float, float], opacity: tuple[float, float], probability: float, remembered: int = 16
    ):
        super().__init__()
        self.share = share
        self.opacity = opacity
        self.probability = probability
        self.earlier: deque[torch.Tensor] = deque(maxlen=remembered)

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw the foreign image, the box and its opacity; a box of None leaves the patch as it is."""
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002 (the state that workers seed)
        shape = data_dict["image"].shape[1:]
        candidates = [image for image in self.earlier if image.shape[1:] == shape]
        if not candidates or rng.random() >= self.probability:
            return {"box": None}
        total = int(np.prod(shape))
        voxels = int(rng.uniform(*self.share) * total)
        box = grown_box(shape, [int(rng.integers(size)) for size in shape], voxels, max(1, int(self.share[1] * total)))
        return {
            "box": (slice(None), *box),
            "foreign": candidates[int(rng.integers(len(candidates)))],
            "opacity": float(rng.uniform(*self.opacity)),
        }

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Blend the box in, set the clean image aside and remember it."""
        image, box = data_dict["image"], params["box"]
        if box is not None:
            blended = image.clone()
            blended[box] = torch.lerp(image[box], params["foreign"][box], params["opacity"])
            data_dict["image"] = blended
        set_aside(data_dict, image)
        self.earlier.append(image.clone())
        return data_dict
