"""T2 of every voxel from the echoes of a multi-echo spin-echo series (Thomas 2021, section 2.5).

Four models of the signal at echo time TE:

- ``"offset"``: S0 exp(-TE / T2) + C by least squares, the paper's fit. C stands for noise that does not decay.
- ``"mono"``: S0 exp(-TE / T2) by least squares.
- ``"log_linear"``: log S0 - TE / T2 by least squares, each echo weighted with its squared signal, since noise of a
  logarithm grows as the signal falls. One step, no iteration.
- ``"rician"``: S0 exp(-TE / T2) in Rician noise by maximum likelihood, nearly unbiased at low signal.

What went wrong in a voxel is written into a quality map; T2 is NaN there, never a number that looks right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nnunet_anomaly.errors import GeometryError, InputError, LabelError, SettingsError
from nnunet_anomaly.relaxometry.decay_models import UNKNOWNS, FitSettings, Quality, fit_signals, judge
from nnunet_anomaly.relaxometry.rician import residual_sigma

# Voxels at a time: few enough that what is worked on stays in the processor's caches.
_CHUNK_CPU, _CHUNK_GPU = 1 << 15, 1 << 20
# Voxels that sigma is estimated from; it is then known to about 1 %.
_MOST_FOR_SIGMA = 10_000
# exp(700) is nearly the largest float64
_LARGEST_EXPONENT = 600.0


@dataclass(frozen=True, eq=False)
class T2Fit:
    """Maps of the shape of the image.

    Attributes:
        t2_ms: float64; a bound where ``quality`` is ``AT_BOUND``, NaN but there and where it is ``CONVERGED``.
        s0: signal at echo time 0, float64; NaN where T2 is.
        offset: C, float64, 0 for models without; NaN where T2 is.
        standard_error_ms: of T2, float64; NaN unless ``CONVERGED``, and where there are as many unknowns as echoes (for
            ``log_linear`` echoes above 0) and no sigma was given.
        quality: uint8, values of ``Quality``.
        sigma: noise that the fit knew: as given, for ``rician`` the estimate where none was (NaN if there was no voxel
            to estimate it from); else None.
    """

    t2_ms: np.ndarray
    s0: np.ndarray
    offset: np.ndarray
    standard_error_ms: np.ndarray
    quality: np.ndarray
    sigma: float | np.ndarray | None


def fit_t2(
    signals: np.ndarray,
    echo_times_ms: Sequence[float],
    *,
    mask: np.ndarray | None = None,
    model: str = "offset",
    skip_first: bool = True,
    sigma: float | np.ndarray | None = None,
    t2_bounds_ms: tuple[float, float] = (1.0, 1000.0),
    offset_bounds: tuple[float, float] = (0.0, math.inf),
    device: str = "cpu",
) -> T2Fit:
    """Fit every voxel, in float64.

    ``offset`` and ``mono`` find the lowest minimum within the bounds, or of two that are nearly as low, in a few voxels
    of 10,000 that are hardly more than noise, the other (``variable_projection``). Standard errors come from the
    Jacobian at the minimum, with the variance of the voxel's residuals, or ``sigma`` where it is given; an offset
    at its bound counts as known. Those of ``rician`` come from the observed information. Scaling a voxel scales its
    S0 and offset alone.

    Args:
        signals: magnitudes, integers or float, echoes along the first axis, the rest of any shape: (echoes, voxels),
            (echoes, z, y, x).
        echo_times_ms: in the order of the first axis, strictly ascending or strictly descending.
        mask: where to fit, of the shape of one echo, bool or integers; without it everywhere.
        model: a key of ``UNKNOWNS``.
        skip_first: leave out the echo of the shortest time, which stimulated echoes falsify.
        sigma: of the noise (see ``noise``), a number or an array that broadcasts to the shape of one echo, above 0. For
            ``rician`` without it, one number for all voxels is estimated from the residuals. It is taken to be at least
            a millionth of a voxel's strongest echo.
        t2_bounds_ms: lowest and highest T2.
        offset_bounds: lowest and highest C of ``offset``, in units of the signal, -inf and inf for none.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Returns:
        The maps. For an empty mask all NaN, ``NOT_FITTED``.

    Raises:
        GeometryError: a mask, sigma or number of echo times that does not match the signals.
        InputError: echo times that are not positive numbers, in order, or in seconds; too few echoes; signals that are
            not numbers; a sigma that is not above 0, or none where no echo is left to estimate it from.
        LabelError: a mask that is neither bool nor integers.
        SettingsError: another model, or bounds that are none.
    """
    signals, times_ms = _checked_signals(signals, echo_times_ms)
    _check_bounds(model, t2_bounds_ms, offset_bounds, times_ms)
    order = np.argsort(times_ms)[1 if skip_first else 0 :]
    times_ms = times_ms[order]
    if len(order) < UNKNOWNS[model]:
        which = "without the first there are" if skip_first else "there are"
        raise InputError(f"The model '{model}' needs {UNKNOWNS[model]} echoes or more; {which} {len(order)}.")
    shape = signals.shape[1:]
    inside = _checked_mask(mask, shape)
    voxels = signals[order].reshape(len(order), -1) if inside is None else signals[:, inside][order]
    span_ms = float(times_ms[-1] - times_ms[0])
    settings = FitSettings(
        model=model,
        times=torch.from_numpy((times_ms - times_ms[0]) / span_ms).to(device),
        first_ms=float(times_ms[0]),
        span_ms=span_ms,
        t2_bounds_ms=t2_bounds_ms,
        offset_bounds=offset_bounds if model == "offset" else (0.0, 0.0),
    )
    noise = None
    if sigma is not None:
        noise = _checked_sigma(sigma, shape)[... if inside is None else inside].ravel()
    elif model == "rician":
        sigma = _estimated_sigma(voxels, settings)
        noise = np.full(voxels.shape[1], sigma)
    *columns, quality = _fit_voxels(voxels, noise, settings)
    t2_ms, s0, offset, standard_error_ms = (_as_map(values, inside, shape, math.nan) for values in columns)
    return T2Fit(
        t2_ms=t2_ms,
        s0=s0,
        offset=offset,
        standard_error_ms=standard_error_ms,
        quality=_as_map(quality, inside, shape, Quality.NOT_FITTED),
        sigma=sigma,
    )


def _checked_signals(signals: np.ndarray, echo_times_ms: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    signals, times_ms = np.asarray(signals), np.asarray(echo_times_ms, dtype=np.float64)
    if signals.dtype.kind not in "iuf":
        raise InputError(f"Signals of type {signals.dtype} are not real numbers.")
    if times_ms.ndim != 1 or signals.ndim < 1 or len(signals) != len(times_ms):
        raise GeometryError(
            f"{times_ms.size} echo times for signals of shape {signals.shape}; echoes lie along the first axis."
        )
    if not np.isfinite(times_ms).all() or (times_ms <= 0).any():
        raise InputError(f"Echo times are {times_ms.tolist()} ms; they must be above 0 and finite.")
    if times_ms.size and times_ms.max() < 1:
        raise InputError(f"Echo times are {times_ms.tolist()}: these are seconds. Give them in ms (times 1000).")
    steps = np.diff(times_ms)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise InputError(
            f"Echo times are {times_ms.tolist()} ms; they are not monotone. Are two series mixed, or echoes doubled? "
            "Sort signals and echo times together."
        )
    return signals, times_ms


def _check_bounds(
    model: str, t2_bounds_ms: tuple[float, float], offset_bounds: tuple[float, float], times_ms: np.ndarray
) -> None:
    if model not in UNKNOWNS:
        raise SettingsError(f"The model is '{model}'; it must be one of {', '.join(UNKNOWNS)}.")
    low_ms, high_ms = t2_bounds_ms
    if not (0 < low_ms < high_ms < math.inf):
        raise SettingsError(f"Bounds of T2 are {low_ms} and {high_ms} ms; they must be positive, the lowest first.")
    if times_ms.size and times_ms.max() / low_ms > _LARGEST_EXPONENT:
        raise SettingsError(
            f"The lowest T2 is {low_ms} ms, too short for an echo at {times_ms.max():g} ms: at least "
            f"{times_ms.max() / _LARGEST_EXPONENT:.3g} ms."
        )
    low, high = offset_bounds
    if math.isnan(low) or math.isnan(high) or low > high or low == math.inf or high == -math.inf:
        raise SettingsError(f"Bounds of the offset are {low} and {high}; the lowest comes first.")


def _checked_mask(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise GeometryError(f"The mask has shape {mask.shape}, an echo {shape}.")
    if mask.dtype.kind not in "biu":
        raise LabelError(f"A mask of type {mask.dtype} is neither bool nor integers.")
    return mask != 0


def _checked_sigma(sigma: float | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(sigma, dtype=np.float64)
    try:
        values = np.broadcast_to(values, shape)
    except ValueError as error:
        raise GeometryError(f"sigma has shape {values.shape}, which does not fit an echo's, {shape}.") from error
    if not (np.isfinite(values) & (values > 0)).all():
        raise InputError("sigma must be above 0 and finite everywhere.")
    return values


def _as_map(values: np.ndarray, inside: np.ndarray | None, shape: tuple[int, ...], outside: float) -> np.ndarray:
    if inside is None:
        return values.reshape(shape)
    image = np.full(shape, outside, dtype=values.dtype)
    image[inside] = values
    return image


def _estimated_sigma(voxels: np.ndarray, settings: FitSettings) -> float:
    """For all voxels together, from at most ``_MOST_FOR_SIGMA`` of those that can be fitted, evenly spaced."""
    if len(settings.times) <= UNKNOWNS["rician"]:
        raise InputError(
            f"{len(settings.times)} echoes leave nothing to estimate sigma from. Give sigma, or choose the "
            "model 'mono' (t2.model), which needs none."
        )
    signals = torch.from_numpy(voxels.astype(np.float64)).to(settings.times.device)
    usable = torch.nonzero(judge(signals, settings) == Quality.CONVERGED)[:, 0]
    signals = signals[:, usable[:: max(1, math.ceil(len(usable) / _MOST_FOR_SIGMA))]]
    return residual_sigma(signals, settings.times, settings.rate_bounds) if len(usable) else math.nan


def _fit_voxels(voxels: np.ndarray, noise: np.ndarray | None, settings: FitSettings) -> list[np.ndarray]:
    """T2, S0, offset, standard error and quality of voxels (echoes, n), a chunk at a time."""
    device = settings.times.device
    size = _CHUNK_CPU if device.type == "cpu" else _CHUNK_GPU
    parts = []
    for start in range(0, max(1, voxels.shape[1]), size):  # one chunk without a voxel, where there is none
        piece = slice(start, start + size)
        signals = torch.from_numpy(voxels[:, piece].astype(np.float64)).to(device)
        sigma = None if noise is None else torch.from_numpy(noise[piece].copy()).to(device)
        parts.append([values.cpu().numpy() for values in fit_signals(signals, sigma, settings)])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
