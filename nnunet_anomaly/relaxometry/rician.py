"""Maximum likelihood of a mono-exponential decay in Rician noise, for many voxels at once.

The magnitude y of a signal m in complex noise of standard deviation sigma per channel has the Rice distribution
(Gudbjartsson and Patz 1995), whose mean does not fall below 1.25 sigma however small m is. Everything here is in units
of sigma. Bessel functions are the exponentially scaled ones, so that no signal is too strong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from nnunet_anomaly.relaxometry.variable_projection import fit_decay

# Of the strongest echo: sigma is taken to be at least that.
SMALLEST_SIGMA = 1e-6
_UNKNOWNS = 2
_MOST_STEPS = 100
_MOST_ESTIMATES = 50
_ESTIMATE_TOLERANCE = 1e-5
# Rates that a fit may start from, per span of the echoes, and the least squared amplitude there.
_START_RATES = (0.2, 1.0, 3.0)
_LEAST_START = 0.1
# The last step, in the logarithm of the amplitude and as a share of the rate.
_TOLERANCE = 1e-8
# Logarithm of the amplitude below which a voxel is most likely without signal, and is followed no further.
_NOTHING = math.log(1e-3)
# By rounding, a likelihood may fall so much, as a share of itself, and still count as not lower.
_ROUNDING = 1e-13


@dataclass(frozen=True, eq=False)
class RicianDecay:
    """One fit for each of n voxels; float64 and bool tensors (n).

    Attributes:
        rate: per unit of time.
        amplitude: at time 0, in units of sigma; 0 where the likelihood is highest without signal (and the rate means
            nothing).
        variance: of the rate, from the observed information; NaN where that is not positive definite.
        surplus: sum over echoes of y^2 + m^2 - 2 y m A - 1, A the mean cosine of the noise's phase. It is the sum of
            squared residuals of the real channel where the signal is strong; with the right sigma its mean is the
            number of echoes less that of the parameters.
        at_bound: the rate lies at one of its bounds.
        converged: the last step was small enough.
    """

    rate: Tensor
    amplitude: Tensor
    variance: Tensor
    surplus: Tensor
    at_bound: Tensor
    converged: Tensor


def fit_rician_decay(signals: Tensor, times: Tensor, rate_bounds: tuple[float, float]) -> RicianDecay:
    """Fit every voxel: Newton's method on log amplitude and rate, from the fit to what is left of squares above noise.

    A step that would lower the likelihood is shortened. Where the likelihood is not concave, the step is that of
    expectation maximisation, which is always uphill.

    Args:
        signals: float64 (echoes, n), finite, not negative, in units of sigma; not all 0.
        times: float64 (echoes), from 0 to 1, ascending.
        rate_bounds: lowest and highest rate, above 0.
    """
    powers = torch.stack([torch.ones_like(times), times, times.square()])
    point = _start(signals, times, powers, rate_bounds)
    value, sums = _likelihood(signals, times, powers, point)
    step = _step(point, sums, rate_bounds)
    result, converged = point.clone(), torch.zeros_like(value, dtype=torch.bool)
    index = torch.arange(len(value), device=signals.device)
    for _ in range(_MOST_STEPS):
        small = (step[0].abs() <= _TOLERANCE) & (step[1].abs() <= _TOLERANCE * point[1].abs())
        small |= point[0] < _NOTHING
        if small.any():
            result[:, index[small]], converged[index[small]] = (point + step)[:, small], True
            rest = torch.nonzero(~small)[:, 0]
            index, value, signals_left = index[rest], value[rest], signals[:, index[rest]]
            point, step = point[:, rest], step[:, rest]
        else:
            signals_left = signals[:, index]
        if not len(index):
            break
        trial = point + step
        trial_value, sums = _likelihood(signals_left, times, powers, trial)
        better = trial_value >= value - _ROUNDING * value.abs()
        value, point = torch.where(better, trial_value, value), torch.where(better, trial, point)
        step = torch.where(better, _step(trial, sums, rate_bounds), step / 4)
        result[:, index] = point
    return _result(signals, times, powers, result, rate_bounds, converged)


def _start(signals: Tensor, times: Tensor, powers: Tensor, rate_bounds: tuple[float, float]) -> Tensor:
    """Log amplitude and rate (2, n): squares are on average 2 above those of the signal, which decay twice as fast.

    Where the signal is weak, a likelihood can have two maxima, and the fit to squares lie near the lower one. So the
    most likely of that fit and of a few rates is taken.
    """
    squares = signals.square() - 2
    scale = squares.abs().amax(0)
    nothing = torch.zeros_like(scale)
    found = fit_decay(squares / scale, times, (2 * rate_bounds[0], 2 * rate_bounds[1]), nothing, nothing)
    # where nothing is above noise, begin with a signal as strong as noise
    power = torch.where(found.amplitude > 0, found.amplitude * scale, torch.ones_like(scale))
    best = torch.stack([power.log() / 2, (found.rate / 2).clamp(*rate_bounds)])
    value, _ = _likelihood(signals, times, powers, best)
    for rate in (min(max(each, rate_bounds[0]), rate_bounds[1]) for each in _START_RATES):
        decay = torch.exp(-2 * rate * times)
        power = (decay @ squares / decay.square().sum()).clamp(min=_LEAST_START)
        other = torch.stack([power.log() / 2, torch.full_like(power, rate)])
        other_value, _ = _likelihood(signals, times, powers, other)
        best, value = torch.where(other_value > value, other, best), torch.maximum(other_value, value)
    return best


def _likelihood(signals: Tensor, times: Tensor, powers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Log likelihood less what is constant (n), and sums over echoes of its derivatives by log m times t^k, k = 0 to 2.

    The sums (3, 3, n) are, along the first axis, of the first derivative, of the second, and of -m^2, which stands for
    the second in expectation maximisation.
    """
    model = torch.exp(point[0] - times[:, None] * point[1])
    product = signals * model
    scaled = torch.special.i0e(product)
    value = (torch.log(scaled) - (signals - model).square() / 2).sum(0)
    cosine = torch.special.i1e(product) / scaled
    first = product * cosine - model.square()
    # A' = 1 - A / z - A^2, which is 1/2 at z = 0
    change = torch.where(product > 0, 1 - cosine / product - cosine.square(), torch.full_like(product, 0.5))
    second = product.square() * change + product * cosine - 2 * model.square()
    return value, powers @ torch.stack([first, second, -model.square()])


def _step(point: Tensor, sums: Tensor, rate_bounds: tuple[float, float]) -> Tensor:
    """Step (2, n) of log amplitude and rate that leaves the rate within its bounds."""
    first, second, certain = sums
    concave = (second[0] < 0) & (second[0] * second[2] > second[1].square())
    curvature = torch.where(concave, second, certain)
    determinant = curvature[0] * curvature[2] - curvature[1].square()
    # log m = log amplitude - rate * t
    rate = (curvature[0] * first[1] - curvature[1] * first[0]) / determinant
    rate = torch.maximum(torch.minimum(rate, rate_bounds[1] - point[1]), rate_bounds[0] - point[1])
    # with the rate held at its bound, it is enough that the likelihood is concave in the amplitude
    held = (rate == 0) & (second[0] < 0)
    return torch.stack([(curvature[1] * rate - first[0]) / torch.where(held, second[0], curvature[0]), rate])


def _result(
    signals: Tensor,
    times: Tensor,
    powers: Tensor,
    point: Tensor,
    rate_bounds: tuple[float, float],
    converged: Tensor,
) -> RicianDecay:
    _, (_, second, _) = _likelihood(signals, times, powers, point)
    determinant = second[0] * second[2] - second[1].square()
    model = torch.exp(point[0] - times[:, None] * point[1])
    product = signals * model
    cosine = torch.special.i1e(product) / torch.special.i0e(product)
    # y^2 + m^2 - 2 y m A without the difference of large numbers
    surplus = ((signals - model).square() + 2 * product * (1 - cosine) - 1).sum(0)
    return RicianDecay(
        rate=point[1],
        amplitude=torch.where(point[0] < _NOTHING, 0.0, point[0].exp()),
        variance=torch.where((second[0] < 0) & (determinant > 0), -second[0] / determinant, torch.nan),
        surplus=surplus,
        at_bound=(point[1] <= rate_bounds[0]) | (point[1] >= rate_bounds[1]),
        converged=converged,
    )


def residual_sigma(signals: Tensor, times: Tensor, rate_bounds: tuple[float, float]) -> float:
    """Sigma of all voxels together, such that what the fit with this sigma leaves over has the median that it should.

    That is the median of chi-squared, exact where signals are strong. A median, as some voxels of any mask decay in
    another way: vessels, fluid, two tissues in one voxel.

    Args:
        signals: float64 (echoes, n), more than two echoes, at least one voxel; as in ``fit_rician_decay``, in any unit.
        times: float64 (echoes), from 0 to 1, ascending.
        rate_bounds: lowest and highest rate, above 0.

    Returns:
        Sigma in the unit of the signals, too high where nearly all are weak (by 7 % at S0 / sigma 10); at least
        a millionth of the median of the voxels' strongest echoes.
    """
    unit = float(signals.amax(0).median())
    signals = signals / unit
    peak, expected = signals.amax(0), 2 * float(special.gammaincinv((len(times) - _UNKNOWNS) / 2, 0.5))
    nothing = torch.zeros_like(peak)
    residual = fit_decay(signals / peak, times, rate_bounds, nothing, nothing).residual * peak.square()
    sigma = max(math.sqrt(float(residual.median()) / expected), SMALLEST_SIGMA)
    for _ in range(_MOST_ESTIMATES):
        surplus = fit_rician_decay(signals / sigma, times, rate_bounds).surplus
        factor = math.sqrt(max(float(surplus.median()), 0.0) / expected)
        sigma = max(sigma * factor, SMALLEST_SIGMA)
        if abs(factor - 1) < _ESTIMATE_TOLERANCE or sigma == SMALLEST_SIGMA:
            break
    return sigma * unit
