import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.relaxometry.noise import background_sigma, cramer_rao_bound_ms, rice_information
from nnunet_anomaly.relaxometry.rician import _likelihood, fit_rician_decay

ECHO_TIMES_MS = np.arange(20.0, 71.0, 10.0)
TIMES = torch.linspace(0, 1, 6, dtype=torch.float64)
POWERS = torch.stack([TIMES**0, TIMES, TIMES**2])


def noise(shape, sigma, signal=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return np.hypot(signal + rng.normal(0, sigma, shape), rng.normal(0, sigma, shape))


def log_likelihood(magnitudes, log_amplitude, rate):
    signal = np.exp(log_amplitude - rate * TIMES.numpy())
    return stats.rice.logpdf(magnitudes, signal).sum()


def test_likelihood_is_scipys_but_for_a_constant():
    magnitudes, points = noise(6, 1.0, 3.0), np.array([[0.5, 1.5, 2.5], [0.3, 1.0, 3.0]])
    value, _ = _likelihood(torch.from_numpy(magnitudes)[:, None].expand(6, 3), TIMES, POWERS, torch.from_numpy(points))
    expected = np.array([log_likelihood(magnitudes, *point) for point in points.T])
    np.testing.assert_allclose(np.diff(value), np.diff(expected), rtol=1e-9)


@pytest.mark.parametrize("log_amplitude", [-1.0, 1.0, 4.0, 12.0])
def test_derivatives_of_the_likelihood_are_finite_differences(log_amplitude):
    rate, step = 1.3, min(1e-4, 0.1 * np.exp(-log_amplitude))
    point = torch.tensor([[log_amplitude], [rate]], dtype=torch.float64)
    signals = torch.from_numpy(noise(6, 1.0, np.exp(log_amplitude - rate * TIMES.numpy())))[:, None]

    def value_and_first(moved):
        value, (first, _, _) = _likelihood(signals, TIMES, POWERS, point + moved)
        return value[0], first[:2, 0]

    _, (first, second, _) = _likelihood(signals, TIMES, POWERS, point)
    for axis, sign in ((0, 1), (1, -1)):
        moved = torch.zeros_like(point)
        moved[axis] = step
        (high, steeper), (low, flatter) = value_and_first(moved), value_and_first(-moved)
        assert float((high - low) / (2 * step)) == pytest.approx(sign * float(first[axis, 0]), rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(
            (steeper - flatter) / (2 * step), sign * second[axis : axis + 2, 0], rtol=1e-4, atol=1e-5
        )


def test_the_fit_has_the_highest_likelihood_that_scipy_finds():
    rng = np.random.default_rng(0)
    signals = noise((6, 25), 1.0, np.exp(2.5 - rng.uniform(0.5, 2.5, 25) * TIMES.numpy()[:, None]))
    found = fit_rician_decay(torch.from_numpy(signals), TIMES, (0.05, 50.0))
    assert found.converged.all()
    for voxel in np.flatnonzero(~found.at_bound.numpy()):
        ours = float(found.amplitude[voxel].log()), float(found.rate[voxel])
        theirs = optimize.minimize(
            lambda point, y=signals[:, voxel]: -log_likelihood(y, *point), (2.0, 1.0), method="Nelder-Mead", tol=1e-10
        )
        assert log_likelihood(signals[:, voxel], *ours) >= -theirs.fun - 1e-8
        assert ours[1] == pytest.approx(theirs.x[1], rel=1e-4)


def test_weak_signals_are_not_held_in_the_lower_of_two_maxima():
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.15, 10, 1500)
    signals = noise((6, 1500), 1.0, rng.uniform(1, 3, 1500) * np.exp(-rates * TIMES.numpy()[:, None]))
    signals = torch.from_numpy(signals[:, (TIMES - 0.5).numpy() @ signals < 0])
    found = fit_rician_decay(signals, TIMES, (0.05, 50.0))
    ours, _ = _likelihood(signals, TIMES, POWERS, torch.stack([found.amplitude.clamp(min=1e-3).log(), found.rate]))
    points = torch.cartesian_prod(torch.linspace(-3, 3, 40), torch.logspace(-1.3, 1.69, 40)).double()
    columns = (point[:, None].expand(2, signals.shape[1]) for point in points)
    grid = torch.stack([_likelihood(signals, TIMES, POWERS, column)[0] for column in columns])
    assert float((ours < grid.amax(0) - 1e-5).double().mean()) < 0.003  # 0.01 from one start


def test_weak_and_very_strong_signals_converge():
    rng = np.random.default_rng(0)
    strength = np.exp(rng.uniform(-2, 13, 3000))
    signals = torch.from_numpy(
        noise((6, 3000), 1.0, strength * np.exp(-rng.uniform(0.1, 5, 3000) * TIMES.numpy()[:, None]))
    )
    found = fit_rician_decay(signals, TIMES, (0.05, 50.0))
    assert found.converged.all() and found.rate.isfinite().all()


@pytest.mark.parametrize("signal", [0.3, 1.0, 3.0, 10.0, 100.0])
def test_information_is_the_mean_of_the_squared_score(signal):
    def integrand(magnitude):
        step = 1e-5
        score = (stats.rice.logpdf(magnitude, signal + step) - stats.rice.logpdf(magnitude, signal - step)) / (2 * step)
        return score**2 * stats.rice.pdf(magnitude, signal)

    expected, _ = integrate.quad(integrand, max(0.0, signal - 10), signal + 10, points=[signal])
    assert rice_information(signal) == pytest.approx(expected, rel=1e-4)


def test_information_has_the_limits_of_weak_and_strong_signals():
    assert rice_information(0.0) == 0
    assert rice_information(0.01) == pytest.approx(1e-4, rel=1e-3)
    np.testing.assert_allclose(rice_information(np.array([100.0, 1e6])), [1, 1], rtol=1e-4)


@pytest.mark.parametrize("model", ["mono", "offset", "rician"])
def test_the_bound_is_that_of_finite_differences(model):
    t2_ms, strength = 45.0, 12.0

    def signal(point):
        return point[0] * np.exp(-ECHO_TIMES_MS / point[1]) + point[2]

    point = np.array([strength, t2_ms, 0.0])
    jacobian = np.stack([(signal(point + step) - signal(point - step)) / 2e-5 for step in 1e-5 * np.eye(3)], axis=1)
    jacobian = jacobian[:, : 3 if model == "offset" else 2]
    weights = rice_information(signal(point)) if model == "rician" else np.ones(6)
    expected = np.sqrt(np.linalg.inv(jacobian.T @ np.diag(weights) @ jacobian)[1, 1])
    assert cramer_rao_bound_ms(t2_ms, strength, ECHO_TIMES_MS, model=model) == pytest.approx(expected, rel=1e-6)


def test_bounds_of_many_voxels_and_their_order():
    t2_ms, strength = np.array([[30.0], [60.0]]), np.array([20.0, 50.0, 1e5])
    rician, mono, offset = (
        cramer_rao_bound_ms(t2_ms, strength, ECHO_TIMES_MS, model=model) for model in ("rician", "mono", "offset")
    )
    assert rician.shape == (2, 3)
    assert (mono < rician).all() and (rician < offset).all()
    np.testing.assert_allclose(rician[:, 2], mono[:, 2], rtol=1e-6)
    with pytest.raises(InputError, match="3 unknowns, and there are 2"):
        cramer_rao_bound_ms(40, 50, [20, 30], model="offset")
    with pytest.raises(InputError, match="'log_linear'"):
        cramer_rao_bound_ms(40, 50, ECHO_TIMES_MS, model="log_linear")


@pytest.mark.parametrize("model", ["mono", "offset", "rician"])
def test_what_says_nothing_about_t2_has_no_bound(model):
    bounds = cramer_rao_bound_ms(np.array([40.0, 0.5, 1e-3, 40.0]), [0.0, 50.0, 50.0, 50.0], ECHO_TIMES_MS, model=model)
    expected = cramer_rao_bound_ms(40.0, 50.0, ECHO_TIMES_MS, model=model)
    assert bounds[0] == bounds[2] == np.inf and bounds[1] > 1e6 and bounds[3] == expected


def test_sigma_of_a_background_of_noise():
    image = noise((40, 60), 7.0)
    air = np.zeros(image.shape, np.uint8)
    image[:, 30:], air[:, :30] = 500.0, 1
    assert background_sigma(image, air) == pytest.approx(7.0, rel=0.05)
    assert background_sigma(image.round().astype(np.int16), air) == pytest.approx(7.0, rel=0.05)


def test_backgrounds_that_are_not_noise_are_refused():
    everywhere = np.ones((40, 60), bool)
    with pytest.raises(InputError, match="is 0: the scanner has blanked it, or its integers"):
        background_sigma(noise((40, 60), 7.0) * (np.arange(60) > 10), everywhere)
    with pytest.raises(InputError, match="not noise of one coil"):
        background_sigma(noise((40, 60), 7.0) + 500 * (np.arange(60) > 50), everywhere)
    with pytest.raises(InputError, match="not noise of one coil"):  # a sum of squares of eight coils
        background_sigma(np.sqrt(sum(noise((40, 60), 7.0, seed=coil) ** 2 for coil in range(8))), everywhere)
    with pytest.raises(InputError, match="negative"):
        background_sigma(noise((40, 60), 7.0) - 5, everywhere)
    with pytest.raises(InputError, match="99 voxels"):
        background_sigma(noise(99, 7.0), np.ones(99, bool))
    with pytest.raises(InputError, match="0 voxels"):
        background_sigma(noise((40, 60), 7.0), ~everywhere)
    with pytest.raises(GeometryError, match="shape"):
        background_sigma(noise((40, 60), 7.0), everywhere[1:])
    with pytest.raises(LabelError, match="float64"):  # NaN is not 0
        background_sigma(noise((40, 60), 7.0), np.where(everywhere, np.nan, 0.0))
