"""LaMa's inpainting network (Suvorov et al. 2022) of fast Fourier convolutions (Chi et al. 2020), in 2-D.

A layer's channels are split into local ones, first, which a convolution takes, and global ones, which go through the
frequencies of the whole plane: from the first such block on, every pixel is reached by all others, however large the
erased region is.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Norm = Literal["batch", "instance"]
FinalActivation = Literal["sigmoid", "linear"]


class SpectralUnit(nn.Module):
    """A 1x1 convolution, normalisation and ReLU on the plane's frequencies: their real parts, then their imaginary.

    The transform is orthonormal, so that values keep their scale at every size. Everything in it is float32 at least,
    also under autocast: half precision has no transform for most sizes, and the lowest frequency leaves its range.

    Without normalisation and ReLU it is a circular convolution of every plane, and of the plane turned by 180 degrees
    (whose frequencies are the conjugates), as real and imaginary parts have weights of their own. Where the result is
    not the spectrum of a real plane, the inverse transform gives the real plane that is nearest to it.
    """

    def __init__(self, channels_in: int, channels_out: int, norm: Norm = "batch"):
        super().__init__()
        self.convolution = nn.Conv2d(2 * channels_in, 2 * channels_out, 1, bias=False)
        self.norm = normalisation(norm, 2 * channels_out)
        self.activation = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, y, x) to (B, channels_out, y, x), any size, of the input's dtype."""
        with torch.autocast(x.device.type, enabled=False):
            plane = x.to(torch.promote_types(x.dtype, torch.float32))
            spectrum = torch.fft.rfft2(plane, norm="ortho")
            stacked = torch.cat((spectrum.real, spectrum.imag), dim=1)
            real, imaginary = self.activation(self.norm(self.convolution(stacked))).chunk(2, dim=1)
            # the size, as a half spectrum does not say whether its plane was odd
            plane = torch.fft.irfft2(torch.complex(real, imaginary), x.shape[-2:], norm="ortho")
        return plane.to(x.dtype)


class SpectralTransform(nn.Module):
    """The global branch: 1x1 to half the channels, the spectral unit added to that, and 1x1 to all of them.

    LaMa leaves out Chi's local Fourier unit; so does this.
    """

    def __init__(self, channels_in: int, channels_out: int, norm: Norm = "batch"):
        super().__init__()
        half = max(1, channels_out // 2)
        self.reduce = nn.Sequential(nn.Conv2d(channels_in, half, 1, bias=False), normalisation(norm, half), nn.ReLU())
        self.unit = SpectralUnit(half, half, norm)
        self.expand = nn.Conv2d(half, channels_out, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, y, x) to (B, channels_out, y, x)."""
        x = self.reduce(x)
        return self.expand(x + self.unit(x))


class FourierConvolution(nn.Module):
    """Fast Fourier convolution: local and global channels to local and global ones, by four branches that are added.

    From and to local channels goes a convolution with reflection padding, from global to global a
    ``SpectralTransform``. A branch from or to no channels is not built: with both ratios 0 it is a convolution.

    Args:
        channels_in: local ones first, then ``int(channels_in * ratio_in)`` global ones.
        channels_out: likewise.
        kernel_size: of the three convolutions, odd; the plane must be larger than half of it.
        ratio_in: share of global channels, 0 to 1.
        ratio_out: likewise.
        stride: above 1 only where no channel that comes in is global.
        norm: inside the ``SpectralTransform``.

    Raises:
        ValueError: a ratio is outside [0, 1], or global channels would be strided.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        ratio_in: float,
        ratio_out: float,
        stride: int = 1,
        norm: Norm = "batch",
    ):
        super().__init__()
        if not (0 <= ratio_in <= 1 and 0 <= ratio_out <= 1):
            raise ValueError(f"the ratios of global channels are {ratio_in} and {ratio_out}; they lie in 0 to 1")
        global_in, global_out = int(channels_in * ratio_in), int(channels_out * ratio_out)
        local_in, local_out = channels_in - global_in, channels_out - global_out
        if stride > 1 and global_in:
            raise ValueError("global channels have no stride; let the downsampling layer take local channels only")

        def convolution(inside: int, outside: int) -> nn.Module | None:
            if not (inside and outside):
                return None
            padding = kernel_size // 2
            return nn.Conv2d(inside, outside, kernel_size, stride, padding, bias=False, padding_mode="reflect")

        self.split_in = (local_in, global_in)
        self.local_to_local = convolution(local_in, local_out)
        self.local_to_global = convolution(local_in, global_out)
        self.global_to_local = convolution(global_in, local_out)
        self.global_to_global = SpectralTransform(global_in, global_out, norm) if global_in and global_out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, y, x) to (B, channels_out, y / stride, x / stride), rounded up."""
        local_part, global_part = x.split(self.split_in, dim=1)
        outputs = []
        for from_local, from_global in (
            (self.local_to_local, self.global_to_local),
            (self.local_to_global, self.global_to_global),
        ):
            terms = [
                branch(part)
                for branch, part in ((from_local, local_part), (from_global, global_part))
                if branch is not None
            ]
            if terms:
                outputs.append(sum(terms[1:], terms[0]))
        return torch.cat(outputs, dim=1)


class FourierBlock(nn.Module):
    """A ``FourierConvolution``, normalisation and ReLU; arguments as there."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        ratio_in: float,
        ratio_out: float,
        stride: int = 1,
        norm: Norm = "batch",
    ):
        super().__init__()
        self.convolution = FourierConvolution(channels_in, channels_out, kernel_size, ratio_in, ratio_out, stride, norm)
        self.norm = normalisation(norm, channels_out)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, y, x) to (B, channels_out, y / stride, x / stride), rounded up."""
        return self.activation(self.norm(self.convolution(x)))


class FourierResidualBlock(nn.Module):
    """x plus two ``FourierBlock`` of 3x3 pixels on x, all of the same channels and ratio."""

    def __init__(self, channels: int, ratio: float, norm: Norm = "batch"):
        super().__init__()
        self.blocks = nn.Sequential(*(FourierBlock(channels, channels, 3, ratio, ratio, norm=norm) for _ in range(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, y, x) to the same shape; planes of at least 2 x 2."""
        return x + self.blocks(x)


class LaMaGenerator(nn.Module):
    """LaMa's generator: downsampled, residual blocks of Fourier convolutions, upsampled again.

    The answer is raw: what is known is not put back around the erased region. So the known part can be learnt and
    looked at as well, overlapping windows of a prediction are averaged as they are, and error maps are those of one
    network; who wants the composition has all that it takes.

    With three image channels and LaMa's values, the defaults here, it has 27,048,835 parameters (the paper: 27 million,
    LaMa-Fourier), and 50,975,875 with 18 blocks (51 million, Big LaMa).

    Args:
        n_image_channels: of the image and of the answer.
        features: after the first layer; doubled by every downsampling.
        n_downsamplings: at least 1; the last one makes the global channels.
        n_blocks: residual blocks; 0 has no global branch.
        global_ratio: share of global channels in the blocks; 0 gives ordinary convolutions.
        max_features: what doubling stops at.
        norm: ``batch``, as LaMa: in prediction the statistics of training are used, so that a slice's answer depends on
            nothing else; they are poor where batches are small. ``instance``: a slice's own statistics, in training and
            in prediction, so that the answer also depends on how much of the slice is in the window.
        final_activation: ``sigmoid`` for images in [0, 1], as LaMa; ``linear`` bounds nothing.

    Raises:
        ValueError: no downsampling, a ratio outside [0, 1], an unknown norm or final activation.
    """

    erase = True  # the framework gives such a network the region of interest as last channel

    def __init__(
        self,
        n_image_channels: int,
        features: int = 64,
        n_downsamplings: int = 3,
        n_blocks: int = 9,
        global_ratio: float = 0.75,
        max_features: int = 512,
        norm: Norm = "batch",
        final_activation: FinalActivation = "sigmoid",
    ):
        super().__init__()
        if n_downsamplings < 1:
            raise ValueError(f"n_downsamplings is {n_downsamplings}; it must be at least 1")
        if final_activation not in ("sigmoid", "linear"):
            raise ValueError(f"final_activation is '{final_activation}'; it must be 'sigmoid' or 'linear'")
        self.divisor = 2**n_downsamplings
        widths = [min(features * 2**level, max_features) for level in range(n_downsamplings + 1)]
        layers: list[nn.Module] = [FourierBlock(n_image_channels + 1, widths[0], 7, 0, 0, norm=norm)]
        for level in range(n_downsamplings):
            ratio = global_ratio if level == n_downsamplings - 1 else 0
            layers.append(FourierBlock(widths[level], widths[level + 1], 3, 0, ratio, stride=2, norm=norm))
        layers += [FourierResidualBlock(widths[-1], global_ratio, norm) for _ in range(n_blocks)]
        for level in reversed(range(n_downsamplings)):
            up = nn.ConvTranspose2d(widths[level + 1], widths[level], 3, stride=2, padding=1, output_padding=1)
            layers += [up, normalisation(norm, widths[level]), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.to_image = nn.Conv2d(widths[0], n_image_channels, 7, padding=3, padding_mode="reflect")
        self.final_activation = nn.Sigmoid() if final_activation == "sigmoid" else nn.Identity()
        # start at the middle of images in [0, 1]
        nn.init.constant_(self.to_image.bias, 0.0 if final_activation == "sigmoid" else 0.5)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inpainted image (B, n_image_channels, y, x) of an image and its region (B, n_image_channels + 1, y, x).

        The region is the last channel, 1 inside; it is erased here, and what the image holds in it is never seen. It
        may be empty, or the whole plane. Planes of any size are enlarged by reflection at their far ends, to a multiple
        of 2 ** n_downsamplings and two of it at least.
        """
        image, region = x[:, :-1], x[:, -1:]
        seen = torch.cat((image * (1 - region), region), dim=1)
        rows, columns = seen.shape[2:]
        for axis in (2, 3):
            seen = reflected(seen, axis, max(2, -(-seen.shape[axis] // self.divisor)) * self.divisor)
        answer = self.to_image(self.layers(seen))[..., :rows, :columns]
        return self.final_activation(answer)


def reflected(x: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """``x`` enlarged to ``size`` at the far end of an axis by reflection, as often as it takes; one pixel is repeated.

    Unlike torch's own padding, the enlargement may be larger than the image.
    """
    present = x.shape[axis]
    if size == present:
        return x
    period = max(1, 2 * (present - 1))
    position = torch.arange(size, device=x.device) % period
    return x.index_select(axis, torch.minimum(position, period - position) if present > 1 else position)


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """Batch or instance normalisation with learnt scale and shift.

    Raises:
        ValueError: it is neither.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    raise ValueError(f"norm is '{norm}'; it must be 'batch' or 'instance'")
