"""One 2-D network for planes of several directions, which takes a volume too (Perslev 2019, Xu 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from nnunet_anomaly.views import PlaneStack, covering_stack, sample

SMALLEST_PROBABILITY = 1e-7
PIXELS_AT_ONCE = 1 << 18  # of planes in the network, and of voxels brought back; more is slower on a CPU


class MultiPlanarUNet(nn.Module):
    """A 2-D U-Net; a volume is seen by it from all views, and the mean probability is what it answers.

    Planes (B, C, rows, columns) go to the U-Net as they are. Of a volume (B, C, Z, Y, X) every view takes the stack of
    planes in which all its voxels lie, 0 outside; planes are enlarged at their far ends, to ``plane_pixels`` at least
    and to what the U-Net can halve. Probabilities of all planes are brought back by linear interpolation and summed
    over views. As nnU-Net takes logits and makes probabilities of them, the answer to a volume is the logarithm of the
    mean probability, not below ``log(SMALLEST_PROBABILITY)``, of which softmax gives the mean back. With regions
    (``independent``) the sigmoid takes the softmax's place, and the logit that of the logarithm.

    Besides the network's, this needs memory for the probabilities of one view and of the volume, 4 bytes a class and
    point: see ``memory_bytes``.

    Args:
        unet: nnU-Net's 2-D network, with ``encoder.strides`` and ``decoder.deep_supervision``.
        frames: (views, 3, 3), see ``views.draw_frames``; kept in the checkpoint, and taken from it.
        spacing_mm: voxel size of volumes along their axes.
        plane_pixels: rows, and columns, of a plane in training.
        plane_extent_mm: length of either; a pixel's size follows.
    """

    frames: torch.Tensor
    independent: torch.Tensor

    def __init__(
        self,
        unet: nn.Module,
        frames: np.ndarray,
        spacing_mm: Sequence[float],
        plane_pixels: int,
        plane_extent_mm: float,
    ):
        super().__init__()
        self.unet = unet
        self.spacing_mm = tuple(float(size_mm) for size_mm in spacing_mm)
        self.plane_pixels = plane_pixels
        self.pixel_mm = plane_extent_mm / plane_pixels
        self.register_buffer("frames", torch.tensor(frames, dtype=torch.float32))
        self.register_buffer("independent", torch.tensor(False))

    @property
    def decoder(self) -> nn.Module:
        """The U-Net's, where nnU-Net switches deep supervision on and off."""
        return self.unet.decoder  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits of planes (B, C, rows, columns), as the U-Net has them, or those of ``predict_volume``."""
        return self.unet(x) if x.ndim == 4 else self.predict_volume(x)

    @torch.compiler.disable
    @torch.no_grad()
    def predict_volume(self, volume: torch.Tensor) -> torch.Tensor:
        """Log (regions: logit) of the mean probability over views, float32 (B, classes, Z, Y, X)."""
        mean: torch.Tensor | None = None
        for frame in self.frames.cpu().double().numpy():
            stack = covering_stack(frame, volume.shape[2:], self.spacing_mm, self.pixel_mm)
            mean = self.add_view(mean, self.predict_planes(volume, stack), stack, volume.shape[2:])
        assert mean is not None
        mean.div_(len(self.frames)).clamp_(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        return torch.logit(mean) if self.independent else mean.log_()

    def predict_planes(self, volume: torch.Tensor, stack: PlaneStack) -> torch.Tensor:
        """Probabilities at all points of a stack, float32 (B, classes, *stack.shape)."""
        rows, columns = (
            divisor * -(-max(size, self.plane_pixels) // divisor)
            for size, divisor in zip(stack.shape[1:], self.divisors, strict=True)
        )
        at_once = max(1, PIXELS_AT_ONCE // (rows * columns * len(volume)))
        found: torch.Tensor | None = None
        for first in range(0, stack.shape[0], at_once):
            part = stack.part(first, first + at_once).with_plane_size(rows, columns)
            planes = sample(volume, part).transpose(1, 2).flatten(0, 1)
            logits = self.unet(planes)
            logits = (logits if isinstance(logits, torch.Tensor) else logits[0])[
                ..., : stack.shape[1], : stack.shape[2]
            ]
            probabilities = logits.float().sigmoid() if self.independent else logits.float().softmax(1)
            if found is None:
                found = probabilities.new_empty((len(volume), probabilities.shape[1], *stack.shape))
            found[:, :, first : first + at_once] = probabilities.unflatten(0, (len(volume), -1)).transpose(1, 2)
        assert found is not None
        return found

    def add_view(
        self, total: torch.Tensor | None, probabilities: torch.Tensor, stack: PlaneStack, shape: Sequence[int]
    ) -> torch.Tensor:
        """Bring what was found at a stack's points back, and add it to ``total`` (B, classes, *shape), in place."""
        if total is None:
            total = probabilities.new_zeros((*probabilities.shape[:2], *shape))
        back = stack.seen_from_volume(shape)
        at_once = max(1, PIXELS_AT_ONCE // (shape[1] * shape[2]))
        for first in range(0, shape[0], at_once):
            total[:, :, first : first + at_once] += sample(probabilities, back.part(first, first + at_once), "border")
        return total

    @property
    def divisors(self) -> tuple[int, int]:
        """What rows and columns must be multiples of, so that the U-Net can halve them as often as it does."""
        rows, columns = np.prod(self.unet.encoder.strides, axis=0)  # type: ignore[union-attr,arg-type]
        return int(rows), int(columns)


def memory_bytes(
    frames: np.ndarray, shape: Sequence[int], spacing_mm: Sequence[float], pixel_mm: float, channels: int, classes: int
) -> int:
    """What ``predict_volume`` needs for one volume of this shape, besides the network on ``PIXELS_AT_ONCE`` pixels.

    4 bytes for every voxel of the image, for every class at every point of the largest stack, and twice for every class
    and voxel (the sum over views, and nnU-Net's own).
    """
    stacks = [covering_stack(frame, shape, spacing_mm, pixel_mm).shape for frame in frames]
    largest = max(int(np.prod(stack, dtype=np.int64)) for stack in stacks)
    return 4 * (classes * largest + (channels + 2 * classes) * int(np.prod(shape, dtype=np.int64)))
