import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from nnunet_anomaly.relaxometry.variable_projection import Profile, fit_decay

TIMES = torch.linspace(0, 1, 6, dtype=torch.float64)
BOUNDS = [(-math.inf, math.inf), (0.0, math.inf), (0.0, 0.0), (0.1, 0.2)]

each_bounds = pytest.mark.parametrize("bounds", BOUNDS)


def noisy(count, noise=0.05, seed=0):
    """Falling signals (echoes, count) of the order of 1."""
    rng = np.random.default_rng(seed)
    clean = np.exp(-rng.uniform(0.3, 4, count) * TIMES.numpy()[:, None]) + rng.uniform(-0.1, 0.3, count)
    return torch.from_numpy(clean + rng.normal(0, noise, clean.shape))


def profile_of(signals, bounds):
    lower, upper = (torch.full((signals.shape[1],), bound, dtype=torch.float64) for bound in bounds)
    return Profile(signals, TIMES, lower, upper)


def cost_by_scipy(signal, rate, bounds):
    """Half the sum of squared residuals with the best amplitude and offset, by bounded linear least squares."""
    decay = np.exp(-rate * TIMES.numpy())
    if bounds[0] == bounds[1]:
        return lsq_linear(decay[:, None], signal - bounds[0], (0, math.inf), tol=1e-14).cost
    columns = np.stack([decay, np.ones_like(decay)], axis=1)
    return lsq_linear(columns, signal, ([0, bounds[0]], [math.inf, bounds[1]]), method="bvls", tol=1e-14).cost


@each_bounds
def test_the_profile_is_that_of_bounded_linear_least_squares(bounds):
    signals = noisy(40, noise=0.3)  # some of them rise
    rates = torch.from_numpy(np.random.default_rng(1).uniform(0.1, 20, 40))
    cost, _, _ = profile_of(signals, bounds).derivatives(rates)
    expected = [cost_by_scipy(signals[:, voxel].numpy(), float(rates[voxel]), bounds) for voxel in range(40)]
    np.testing.assert_allclose(cost, expected, rtol=1e-7, atol=1e-12)


@each_bounds
def test_derivatives_are_finite_differences(bounds):
    profile = profile_of(noisy(200), bounds)
    rates = torch.from_numpy(np.random.default_rng(1).uniform(0.2, 6, 200))
    step = 1e-5
    (high, steeper, _), (low, flatter, _) = (profile.derivatives(rates + way * step) for way in (1, -1))
    _, slope, curvature = profile.derivatives(rates)
    np.testing.assert_allclose(slope, (high - low) / (2 * step), atol=1e-8)
    close = np.isclose(curvature, (steeper - flatter) / (2 * step), atol=1e-7)
    assert close.mean() >= 0.99  # but for those where the offset reaches its bound in between


@each_bounds
def test_information_is_that_of_the_jacobian(bounds):
    signals = noisy(50)
    profile = profile_of(signals, bounds)
    rate = torch.from_numpy(np.random.default_rng(1).uniform(0.5, 4, 50))
    nowhere = torch.zeros(50, dtype=torch.bool)
    found = profile.result(rate, nowhere, nowhere)
    for voxel in range(50):
        point = np.array([float(each[voxel]) for each in (found.rate, found.amplitude, found.offset)])
        free = int(found.parameters[voxel])

        def model(point):
            return point[1] * np.exp(-point[0] * TIMES.numpy()) + point[2]

        steps = 1e-6 * np.eye(3)[:free]
        jacobian = np.stack([(model(point + step) - model(point - step)) / 2e-6 for step in steps], axis=1)
        if point[1] > 0:
            assert 1 / np.linalg.inv(jacobian.T @ jacobian)[0, 0] == pytest.approx(
                float(found.information[voxel]), rel=1e-5
            )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(BOUNDS), st.floats(0.001, 0.1))
def test_no_rate_of_a_fine_grid_is_better(seed, bounds, noise):
    signals = noisy(30, noise, seed)
    centred = TIMES - TIMES.mean()
    signals = signals[:, centred @ signals < -1e-6]
    profile = profile_of(signals, bounds)
    found = fit_decay(signals, TIMES, (0.05, 50.0), profile.lower, profile.upper)
    assert found.converged.all()
    cost, slope, _ = profile.derivatives(found.rate)
    others = torch.logspace(math.log10(0.05), math.log10(50), 200, dtype=torch.float64)
    costs = torch.stack([profile.derivatives(rate.expand(signals.shape[1]))[0] for rate in others])
    assert (cost <= 1.05 * costs.amin(0) + 1e-9).all()  # of two minima that are nearly as low, it may be the higher
    np.testing.assert_allclose(cost, found.residual / 2, atol=1e-9)
    assert (slope[~found.at_bound].abs() < 1e-6).all()


@each_bounds
def test_of_two_minima_the_lower_one_is_found_but_for_a_few_voxels(bounds):
    signals = noisy(20_000, noise=0.5)  # hardly more than noise: there, many have two
    signals = signals[:, (TIMES - TIMES.mean()) @ signals < -1e-2]
    profile = profile_of(signals, bounds)
    found = fit_decay(signals, TIMES, (0.05, 50.0), profile.lower, profile.upper)
    assert found.converged.all()
    rates = torch.logspace(math.log10(0.05), math.log10(50), 100, dtype=torch.float64)
    lowest = torch.stack([profile.derivatives(rate.expand(signals.shape[1]))[0] for rate in rates]).amin(0)
    excess = found.residual / 2 / lowest - 1
    assert float((excess > 1e-6).double().mean()) < 0.0013
    assert float(excess.max()) < 0.03


@each_bounds
def test_no_voxel_is_no_error(bounds):
    none = torch.zeros((6, 0), dtype=torch.float64)
    profile = profile_of(none, bounds)
    assert fit_decay(none, TIMES, (0.05, 50.0), profile.lower, profile.upper).rate.shape == (0,)
