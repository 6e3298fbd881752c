"""The four models of ``t2_fit``, each for a chunk of voxels on one device, and what became of every voxel."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from nnunet_anomaly.relaxometry.rician import SMALLEST_SIGMA, fit_rician_decay
from nnunet_anomaly.relaxometry.variable_projection import fit_decay

UNKNOWNS = {"offset": 3, "mono": 2, "log_linear": 2, "rician": 2}
# A signal falls if its line does, over the echoes that are fitted, by more than this share of its peak.
_LEAST_FALL = 1e-9


class Quality(IntEnum):
    """What became of a voxel."""

    NOT_FITTED = 0  # outside the mask
    CONVERGED = 1
    AT_BOUND = 2  # T2 is one of its bounds
    NOT_CONVERGED = 3  # or its numbers went beyond those of float64
    NOT_DECAYING = 4  # the line through its echoes does not fall: constant or rising
    NO_SIGNAL = 5  # no echo above 0; for log_linear fewer than two; for rician most likely noise alone
    INVALID = 6  # an echo is NaN or infinite; for rician also negative


@dataclass(frozen=True)
class FitSettings:
    """What is the same for all voxels; times are shifted and scaled to go from 0 to 1."""

    model: str
    times: Tensor
    first_ms: float
    span_ms: float
    t2_bounds_ms: tuple[float, float]
    offset_bounds: tuple[float, float]

    @property
    def rate_bounds(self) -> tuple[float, float]:
        """Lowest and highest rate, in the unit of the times."""
        low_ms, high_ms = self.t2_bounds_ms
        return self.span_ms / high_ms, self.span_ms / low_ms


def fit_signals(signals: Tensor, sigma: Tensor | None, settings: FitSettings) -> list[Tensor]:
    """T2 in ms, S0, offset, standard error in ms (float64) and quality (uint8) of voxels, each (n).

    Args:
        signals: float64 (echoes, n), any values.
        sigma: float64 (n), above 0; None where it is not known, which ``"rician"`` must not have.
        settings: what is the same for all of them.
    """
    quality = judge(signals, settings)
    index = torch.nonzero(quality == Quality.CONVERGED)[:, 0]
    signals = signals[:, index]
    peak = signals.amax(0)
    fitted = _FITS[settings.model](signals / peak, peak, None if sigma is None else sigma[index] / peak, settings)
    rate, span_ms, (shortest_ms, longest_ms) = fitted.rate, settings.span_ms, settings.t2_bounds_ms
    # bounds are kept exactly, whatever was rounded on the way
    slow = rate < span_ms / (shortest_ms * longest_ms) ** 0.5
    at_bound_ms = torch.where(slow, torch.full_like(rate, longest_ms), shortest_ms)
    t2_ms = torch.where(fitted.at_bound, at_bound_ms, span_ms / rate)
    offset = (fitted.offset * peak).clamp(*settings.offset_bounds)
    s0 = fitted.amplitude * peak * torch.exp(settings.first_ms / span_ms * rate)
    values = torch.stack([t2_ms, s0, offset, fitted.variance.sqrt() * span_ms / rate.square()])
    found = fitted.converged & (fitted.amplitude > 0) & values[:3].isfinite().all(0)
    quality[index[~found]] = Quality.NOT_CONVERGED
    quality[index[fitted.amplitude <= 0]] = Quality.NO_SIGNAL
    quality[index[found & fitted.at_bound]] = Quality.AT_BOUND
    values[:, ~found], values[3, fitted.at_bound] = torch.nan, torch.nan
    columns = torch.full((4, len(quality)), torch.nan, dtype=torch.float64, device=quality.device)
    columns[:, index] = values
    return [*columns, quality]


def judge(signals: Tensor, settings: FitSettings) -> Tensor:
    """Which voxels can be fitted (``CONVERGED``, for the time being), and why others cannot; uint8 (n)."""
    quality = torch.full(signals.shape[1:], Quality.CONVERGED, dtype=torch.uint8, device=signals.device)
    peak, fewest = signals.amax(0), 2 if settings.model == "log_linear" else 1
    centred = settings.times - settings.times.mean()
    quality[centred @ signals > -_LEAST_FALL * peak * centred.square().sum()] = Quality.NOT_DECAYING
    quality[(signals > 0).sum(0) < fewest] = Quality.NO_SIGNAL
    valid = signals.isfinite().all(0)
    if settings.model == "rician":
        valid &= (signals >= 0).all(0)
    quality[~valid] = Quality.INVALID
    return quality


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Float64 and bool tensors (n), of signals divided by their peak; the amplitude is that at the first echo."""

    rate: Tensor
    amplitude: Tensor
    offset: Tensor
    variance: Tensor  # of the rate
    at_bound: Tensor
    converged: Tensor


def _fit_least_squares(signals: Tensor, peak: Tensor, sigma: Tensor | None, settings: FitSettings) -> _Fitted:
    lower, upper = (torch.full_like(peak, bound) / peak for bound in settings.offset_bounds)
    found = fit_decay(signals, settings.times, settings.rate_bounds, lower, upper)
    variance = _noise_variance(found.residual, len(signals) - found.parameters, sigma) / found.information
    return _Fitted(found.rate, found.amplitude, found.offset, variance, found.at_bound, found.converged)


def _fit_log_linear(signals: Tensor, peak: Tensor, sigma: Tensor | None, settings: FitSettings) -> _Fitted:
    """Closed form; the noise of log y is sigma / y, so that weights y^2 give residuals of variance sigma^2."""
    times, positive = settings.times[:, None], signals > 0
    logarithms = torch.where(positive, signals, 1.0).log()
    weights = torch.where(positive, signals, 0.0).square()
    total = weights.sum(0)
    mean_time, mean_logarithm = (weights * times).sum(0) / total, (weights * logarithms).sum(0) / total
    centred = times - mean_time
    spread = (weights * centred.square()).sum(0)
    free = -(weights * centred * logarithms).sum(0) / spread
    rate = free.clamp(*settings.rate_bounds)
    residuals = logarithms - mean_logarithm + centred * rate
    squares = (weights * residuals.square()).sum(0)
    variance = _noise_variance(squares, positive.sum(0) - UNKNOWNS["log_linear"], sigma) / spread
    amplitude = (mean_logarithm + mean_time * rate).exp()
    return _Fitted(rate, amplitude, torch.zeros_like(rate), variance, rate != free, torch.ones_like(positive[0]))


def _fit_rician(signals: Tensor, peak: Tensor, sigma: Tensor | None, settings: FitSettings) -> _Fitted:
    assert sigma is not None  # `fit_t2` has estimated it
    sigma = sigma.clamp(min=SMALLEST_SIGMA)
    found = fit_rician_decay(signals / sigma, settings.times, settings.rate_bounds)
    offset = torch.zeros_like(sigma)
    return _Fitted(found.rate, found.amplitude * sigma, offset, found.variance, found.at_bound, found.converged)


def _noise_variance(squares: Tensor, degrees_of_freedom: Tensor, sigma: Tensor | None) -> Tensor:
    """Variance of the noise: as given, else from the residuals; NaN where these leave no degree of freedom."""
    if sigma is not None:
        return sigma.square()
    return torch.where(degrees_of_freedom > 0, squares / degrees_of_freedom, torch.nan)


_FITS = {
    "offset": _fit_least_squares,
    "mono": _fit_least_squares,
    "log_linear": _fit_log_linear,
    "rician": _fit_rician,
}
