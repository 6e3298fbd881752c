"""Least squares of ``amplitude * exp(-rate * time) + offset`` for many voxels at once, by variable projection.

Amplitude and offset are linear, so that the best ones are known for any rate (Golub and Pereyra 1973), and what is
left is a function of one variable in every voxel. It is looked at on a grid of rates, which nearly always finds the
cell of the lowest minimum (else one nearly as low), and then followed by Newton's method with exact derivatives
inside a bracket that only shrinks. All voxels share their echo times: sums over echoes are products with small
matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Between neighbouring rates of the grid; minima of a decay are wider than that.
_GRID_RATIO = 2.0
_MOST_STEPS = 60
# Newton's step, as a share of the rate, below which it was the last one. Convergence is quadratic.
_TOLERANCE = 1e-8
# Voxels that are done are left out as soon as they are one in so many.
_WORTHWHILE = 4
# By rounding, a cost may rise so much, as a share of the sum of squares, and still count as not higher.
_COST_ROUNDING = 1e-13


@dataclass(frozen=True, eq=False)
class Decay:
    """One fit for each of n voxels; float64 and bool tensors (n).

    Attributes:
        rate: per unit of time.
        amplitude: at time 0, not negative.
        offset: within its bounds.
        residual: sum of squared residuals.
        information: of the rate, for noise of variance 1: 1 / its variance with all free parameters unknown.
        parameters: number of free parameters, 3, or 2 where the offset lies at a bound.
        at_bound: the rate lies at one of its bounds.
        converged: the last step was small enough, or the rate lies at a bound.
    """

    rate: Tensor
    amplitude: Tensor
    offset: Tensor
    residual: Tensor
    information: Tensor
    parameters: Tensor
    at_bound: Tensor
    converged: Tensor


def fit_decay(signals: Tensor, times: Tensor, rate_bounds: tuple[float, float], lower: Tensor, upper: Tensor) -> Decay:
    """Fit every voxel.

    Args:
        signals: float64 (echoes, n), finite and of the order of 1; they fall with time at least a little (else the
            rate means nothing).
        times: float64 (echoes), from 0 to 1, ascending.
        rate_bounds: lowest and highest rate, above 0.
        lower: lowest offset (n), -inf where it is free.
        upper: highest offset (n); where it equals ``lower`` the offset is not fitted.
    """
    profile = Profile(signals, times, lower, upper)
    rates = _grid(rate_bounds, signals.device)
    best = profile.costs(rates).argmin(0)
    rate = rates[best]
    cost, slope, curvature = profile.derivatives(rate)
    # the way leads downhill from the best rate of the grid to its neighbour, which is not lower
    neighbour = best + torch.where(slope < 0, 1, -1)
    at_bound = (neighbour < 0) | (neighbour >= len(rates))
    converged = at_bound.clone()
    index = torch.nonzero(~at_bound)[:, 0]
    part, done = profile.some(index), torch.zeros_like(index, dtype=torch.bool)
    point, near, far = rate[index], rate[index], rates[neighbour[index]]
    lowest, slope, curvature, previous = cost[index], slope[index], curvature[index], far - near
    for _ in range(_MOST_STEPS):
        step = -slope / curvature
        target = point + step
        inside = (target - near) * (target - far) <= 0
        newton = inside & (curvature > 0) & (2 * step.abs() <= previous.abs())
        target = torch.where(newton, target, (near + far) / 2)
        previous, point = target - point, torch.where(done, point, target)
        done |= previous.abs() <= _TOLERANCE * point
        rate[index], converged[index] = point, done
        if _WORTHWHILE * int(done.sum()) >= len(index):
            rest = torch.nonzero(~done)[:, 0]
            index, done, part = index[rest], done[rest], part.some(rest)
            point, near, far, lowest, previous = (each[rest] for each in (point, near, far, lowest, previous))
        if not len(index):
            break
        cost, slope, curvature = part.derivatives(point)
        # between `near`, where the way leads downhill to `far`, and `far` lies a minimum, as `far` is not lower
        onwards = (slope * (far - near) < 0) & (cost <= lowest + _COST_ROUNDING * part.squares)
        near, far = torch.where(onwards, point, near), torch.where(onwards, far, point)
        lowest = torch.where(onwards, torch.minimum(cost, lowest), lowest)
    return profile.result(rate, at_bound, converged)


def _grid(rate_bounds: tuple[float, float], device: torch.device) -> Tensor:
    """Rates from bound to bound, both exact, evenly spaced on a logarithmic scale."""
    low, high = map(math.log, rate_bounds)
    rates = torch.linspace(low, high, 2 + int((high - low) / math.log(_GRID_RATIO)), dtype=torch.float64).exp()
    rates[0], rates[-1] = rate_bounds
    return rates.to(device)


class Profile:
    """Half the sum of squared residuals of n voxels as a function of the rate, at the best amplitude and offset."""

    def __init__(self, signals: Tensor, times: Tensor, lower: Tensor, upper: Tensor) -> None:
        """Arguments as in ``fit_decay``."""
        self.signals, self.times, self.lower, self.upper = signals, times, lower, upper
        self.powers = torch.stack([torch.ones_like(times), times, times.square()])
        self.total, self.squares = signals.sum(0), signals.square().sum(0)

    def some(self, which: Tensor) -> Profile:
        """The same for some of the voxels, by index or mask."""
        return Profile(self.signals[:, which], self.times, self.lower[which], self.upper[which])

    def costs(self, rates: Tensor) -> Tensor:
        """The function at common rates (k), less that of the signal 0: (k, n); too high where the amplitude is 0."""
        decays = torch.exp(-rates[:, None] * self.times)
        decays /= decays.norm(dim=1, keepdim=True)
        sums, count = decays.sum(1)[:, None], len(self.times)
        offset = self._bounded((1 - sums * decays) / (count - sums.square()) @ self.signals)
        amplitude = torch.addcmul(decays @ self.signals, sums, offset, value=-1).clamp_(min=0)
        return (offset * (count / 2) - self.total).mul_(offset).sub_(amplitude.square_().div_(2))

    def derivatives(self, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The function at a rate for each voxel (n), its first and its second derivative.

        The second is that of the function with the amplitude and, inside its bounds, the offset eliminated (a Schur
        complement), without the approximation of Gauss and Newton.
        """
        sums, squares, products = self._moments(rate)
        amplitude, offset = self._linear(sums[0], squares[0], products[0])
        slope = amplitude * (products[1] - amplitude * squares[1] - offset * sums[1])
        own = amplitude * (2 * amplitude * squares[2] + offset * sums[2] - products[2])
        mixed = products[1] - 2 * amplitude * squares[1] - offset * sums[1]
        curvature = own - self._eliminated(sums[0], squares[0], mixed, -amplitude * sums[1], offset)
        return self._cost(squares[0], amplitude, offset), slope, curvature

    def result(self, rate: Tensor, at_bound: Tensor, converged: Tensor) -> Decay:
        """All about the fit with these rates."""
        sums, squares, products = self._moments(rate)
        amplitude, offset = self._linear(sums[0], squares[0], products[0])
        residuals = self.signals - amplitude * torch.exp(-self.times[:, None] * rate) - offset
        lost = self._eliminated(sums[0], squares[0], -amplitude * squares[1], -amplitude * sums[1], offset)
        return Decay(
            rate=rate,
            amplitude=amplitude,
            offset=offset,
            residual=residuals.square().sum(0),
            information=amplitude.square() * squares[2] - lost,
            parameters=2 + self._inside(offset).long(),
            at_bound=at_bound,
            converged=converged,
        )

    def _moments(self, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over echoes of t^k g, t^k g^2 and t^k y g for k = 0, 1, 2, each (3, n), g the decay and y the signal."""
        decay = torch.exp(-self.times[:, None] * rate)
        return self.powers @ decay, self.powers @ decay.square(), self.powers @ (decay * self.signals)

    def _linear(self, sums: Tensor, squares: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
        """The best amplitude and offset within their bounds: without them, then with what lies outside held there."""
        count = len(self.times)
        determinant = (count * squares - sums.square()).clamp(min=torch.finfo(torch.float64).tiny)
        amplitude = (count * products - sums * self.total) / determinant
        offset = self._bounded((self.total - amplitude * sums) / count)
        amplitude = ((products - offset * sums) / squares).clamp(min=0)
        return amplitude, torch.where(amplitude > 0, offset, self._bounded(self.total / count))

    def _cost(self, squares: Tensor, amplitude: Tensor, offset: Tensor) -> Tensor:
        """Half the sum of squared residuals, where the amplitude is the best one for the offset."""
        explained = amplitude.square() * squares / 2 - offset * (offset * len(self.times) / 2 - self.total)
        return self.squares / 2 - explained

    def _eliminated(
        self, sums: Tensor, squares: Tensor, by_amplitude: Tensor, by_offset: Tensor, offset: Tensor
    ) -> Tensor:
        """What the other free parameters take from the second derivative by the rate; mixed ones are given."""
        count = len(self.times)
        determinant = (count * squares - sums.square()).clamp(min=torch.finfo(torch.float64).tiny)
        both = count * by_amplitude.square() - 2 * sums * by_amplitude * by_offset + squares * by_offset.square()
        return torch.where(self._inside(offset), both / determinant, by_amplitude.square() / squares)

    def _bounded(self, offset: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(offset, self.upper), self.lower)

    def _inside(self, offset: Tensor) -> Tensor:
        return (offset > self.lower) & (offset < self.upper)
