"""Noise of magnitude images: its standard deviation from the background, and how well T2 can be known at best.

``sigma`` is everywhere the standard deviation of the noise in each of the two channels, real and imaginary, before the
magnitude was taken. In the background the magnitude has the Rayleigh distribution, elsewhere that of Rice
(Gudbjartsson and Patz 1995). Images of several receiver coils, combined as a sum of squares, have another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from nnunet_anomaly.errors import GeometryError, InputError, LabelError

# Mean over root mean square of the Rayleigh distribution.
_RAYLEIGH_RATIO = math.sqrt(math.pi) / 2
_LARGEST_DEVIATION = 0.05
_MOST_ZEROS = 0.05
_FEWEST_VOXELS = 100
# Noise further than this many sigma from the signal counts for nothing.
_REACH = 12.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(256)


def background_sigma(image: np.ndarray, background: np.ndarray) -> float:
    """Sigma from voxels that hold nothing but noise: root mean square / sqrt(2), the Rayleigh distribution's estimate.

    Args:
        image: magnitudes, integers or float, any shape.
        background: mask of the same shape, bool or integers; not 0 is air, away from ghosts of the anatomy.

    Returns:
        Sigma, in units of the image.

    Raises:
        GeometryError: shapes differ.
        LabelError: a mask that is neither bool nor integers.
        InputError: fewer than 100 voxels, values that are negative or not finite, more than 5 % zeros (the scanner has
            blanked the background), or voxels that are not Rayleigh distributed: their mean over their root mean square
            is more than 5 % from 0.886 (anatomy, ghosts, several coils, a filter).
    """
    if np.shape(image) != np.shape(background):
        raise GeometryError(f"The image has shape {np.shape(image)}, the background {np.shape(background)}.")
    background = np.asarray(background)
    if background.dtype.kind not in "biu":
        raise LabelError(f"A background mask of type {background.dtype} is neither bool nor integers.")
    values = np.asarray(image)[background != 0].astype(np.float64)
    if values.size < _FEWEST_VOXELS:
        raise InputError(f"The background has {values.size} voxels; its noise needs at least {_FEWEST_VOXELS}.")
    if not np.isfinite(values).all() or values.min() < 0:
        raise InputError("The background holds NaN, infinity or negative values; it must hold magnitudes.")
    if np.mean(values == 0) > _MOST_ZEROS:
        raise InputError(
            f"{np.mean(values == 0):.0%} of the background is 0: the scanner has blanked it, or its integers are too "
            "coarse for noise. Take sigma from the residuals instead (sigma=None)."
        )
    root_mean_square = math.sqrt(float(np.mean(values**2)))
    ratio = float(values.mean()) / root_mean_square
    if abs(ratio / _RAYLEIGH_RATIO - 1) > _LARGEST_DEVIATION:
        raise InputError(
            f"The background is not noise of one coil: its mean is {ratio:.3f} of its root mean square, that of a "
            f"Rayleigh distribution {_RAYLEIGH_RATIO:.3f}. Is there anatomy in it, or were several coils combined? "
            "Take another mask, or sigma from the residuals (sigma=None)."
        )
    return root_mean_square / math.sqrt(2)


def rice_information(signal_over_sigma: np.ndarray | float) -> np.ndarray:
    """Fisher information about the signal in one magnitude, times sigma^2; by quadrature, to 1e-9.

    Args:
        signal_over_sigma: signal before noise in units of sigma, at least 0, any shape.

    Returns:
        float64 array of the same shape: 0 without signal, nearly its square where it is weak, 1, as of Gaussian noise,
        where it is strong.
    """
    signal = np.asarray(signal_over_sigma, dtype=np.float64)[..., None]
    low, high = np.maximum(signal - _REACH, 0), signal + _REACH
    magnitude = low + (high - low) * (_NODES + 1) / 2
    product = magnitude * signal
    scaled = special.i0e(product)
    density = magnitude * np.exp(-((magnitude - signal) ** 2) / 2) * scaled
    score = magnitude * special.i1e(product) / scaled - signal
    return ((score**2 * density) @ _WEIGHTS) * (high - low)[..., 0] / 2


def cramer_rao_bound_ms(
    t2_ms: np.ndarray | float,
    s0_over_sigma: np.ndarray | float,
    echo_times_ms: Sequence[float],
    *,
    model: str = "rician",
) -> np.ndarray:
    """Lowest standard deviation of T2 that an unbiased fit to one voxel can have.

    Args:
        t2_ms: true T2, any shape.
        s0_over_sigma: true signal at echo time 0 in units of sigma; a shape that broadcasts with ``t2_ms``.
        echo_times_ms: of the echoes that are fitted.
        model: ``"rician"`` (S0 and T2 unknown, Rician noise), or with Gaussian noise ``"mono"`` (the same unknowns) and
            ``"offset"`` (a constant besides).

    Returns:
        float64 array of the common shape, in ms; infinite where the echoes say nothing about T2, as without signal.

    Raises:
        InputError: another model, or fewer echoes than unknowns.
    """
    unknowns = {"rician": 2, "mono": 2, "offset": 3}.get(model)
    if unknowns is None:
        raise InputError(f"The model is '{model}'; a bound is known for 'rician', 'mono' and 'offset'.")
    if len(echo_times_ms) < unknowns:
        raise InputError(f"The model '{model}' has {unknowns} unknowns, and there are {len(echo_times_ms)} echoes.")
    t2, strength = (each[..., None] for each in np.broadcast_arrays(np.float64(t2_ms), np.float64(s0_over_sigma)))
    times = np.asarray(echo_times_ms, dtype=np.float64)
    decay = np.exp(-times / t2)
    columns = [decay, strength * times / t2**2 * decay, np.ones_like(decay)][:unknowns]
    jacobian = np.stack(columns, axis=-1)
    weights = rice_information(strength * decay) if model == "rician" else np.ones_like(decay)
    information = np.swapaxes(jacobian, -1, -2) @ (weights[..., None] * jacobian)
    nothing = np.linalg.det(information) <= 0
    information[nothing] = np.eye(unknowns)
    return np.where(nothing, np.inf, np.sqrt(np.linalg.inv(information)[..., 1, 1]))
