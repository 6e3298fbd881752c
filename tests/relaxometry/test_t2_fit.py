import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from nnunet_anomaly.errors import GeometryError, InputError, LabelError, SettingsError
from nnunet_anomaly.relaxometry import rician, t2_fit, variable_projection
from nnunet_anomaly.relaxometry.noise import cramer_rao_bound_ms
from nnunet_anomaly.relaxometry.t2_fit import UNKNOWNS, Quality, fit_t2

ECHO_TIMES_MS = np.arange(10.0, 71.0, 10.0)
FREE = (-math.inf, math.inf)

each_model = pytest.mark.parametrize("model", UNKNOWNS)


def decays(t2_ms, s0=1000.0, offset=0.0, times_ms=ECHO_TIMES_MS):
    """Without noise (echoes, voxels)."""
    return s0 * np.exp(-np.asarray(times_ms)[:, None] / np.atleast_1d(t2_ms)) + offset


def magnitudes(signals, sigma, seed=0):
    """With Rician noise."""
    rng = np.random.default_rng(seed)
    return np.hypot(signals + rng.normal(0, sigma, signals.shape), rng.normal(0, sigma, signals.shape))


def curve(time_ms, s0, t2_ms, offset=0.0):
    return s0 * np.exp(-time_ms / t2_ms) + offset


def jacobian(time_ms, s0, t2_ms, offset=None):
    decay = np.exp(-time_ms / t2_ms)
    columns = [decay, s0 * decay * time_ms / t2_ms**2, np.ones_like(decay)]
    return np.stack(columns[: 2 if offset is None else 3], axis=1)


def by_scipy(signals, model, bounded):
    """S0, T2, offset and standard error of T2 by curve_fit, or None where it says that it has not converged."""
    start = [1.5 * signals.max(), 40.0, 1e-3 * signals.max()][: UNKNOWNS[model]]
    bounds = ([0, 1, 0][: len(start)], [np.inf, 1000, np.inf][: len(start)]) if bounded else (-np.inf, np.inf)
    exact = {"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14, "jac": jacobian}
    if bounded:
        exact["x_scale"] = "jac"
    try:
        found, covariance = curve_fit(curve, ECHO_TIMES_MS[1:], signals, start, bounds=bounds, **exact)
    except RuntimeError:
        return None
    return *found, *[0.0] * (3 - len(found)), math.sqrt(covariance[1, 1])


@pytest.mark.parametrize(
    ("model", "bounded", "count"), [("offset", False, 500), ("offset", True, 150), ("mono", False, 150)]
)
def test_fits_are_those_of_curve_fit(model, bounded, count):
    rng = np.random.default_rng(3)
    signals = decays(rng.uniform(25, 70, count), rng.uniform(500, 1500, count), rng.uniform(0, 60, count))
    signals = magnitudes(signals, rng.uniform(2, 20, count))
    found = fit_t2(signals, ECHO_TIMES_MS, model=model, offset_bounds=(0, math.inf) if bounded else FREE)
    compared = 0
    for voxel in np.flatnonzero(found.quality == Quality.CONVERGED):
        theirs = by_scipy(signals[1:, voxel], model, bounded)
        if theirs is None:
            continue
        ours = found.s0[voxel], found.t2_ms[voxel], found.offset[voxel]
        our_cost, their_cost = (
            np.sum((curve(ECHO_TIMES_MS[1:], *each[:3]) - signals[1:, voxel]) ** 2) for each in (ours, theirs)
        )
        assert our_cost <= their_cost * (1 + 1e-9)
        if their_cost <= our_cost * (1 + 1e-9):  # else it has stopped in a higher minimum, or on the way
            compared += 1
            assert ours[1] == pytest.approx(theirs[1], abs=1e-3)
            assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
            if not (model == "offset" and bounded and ours[2] == 0):  # there, scipy counts the offset as unknown
                assert found.standard_error_ms[voxel] == pytest.approx(theirs[3], rel=1e-3)
    assert compared >= 0.95 * count


@settings(deadline=None)
@given(st.floats(8, 400), st.floats(1e-3, 1e6), st.floats(0, 0.3), st.sampled_from(sorted(UNKNOWNS)), st.booleans())
def test_a_decay_without_noise_is_recovered(t2_ms, s0, share, model, skip_first):
    offset = share * s0 if model == "offset" else 0.0
    signals = decays(t2_ms, s0, offset)
    found = fit_t2(signals, ECHO_TIMES_MS, model=model, skip_first=skip_first)
    assert found.quality.tolist() == [Quality.CONVERGED]
    tolerance = 1e-5 if model == "offset" else 1e-7  # of a slow decay, offset and S0 are nearly the same
    np.testing.assert_allclose(found.t2_ms, t2_ms, rtol=tolerance)
    np.testing.assert_allclose(found.s0, s0, rtol=tolerance)
    np.testing.assert_allclose(found.offset, offset, atol=tolerance * s0)


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-6, 1e6), st.sampled_from(sorted(UNKNOWNS)), st.integers(0, 9))
def test_a_factor_scales_s0_and_offset_alone(factor, model, seed):
    signals = magnitudes(decays(np.linspace(25, 70, 20)), 15.0, seed)
    ours, scaled = (fit_t2(each, ECHO_TIMES_MS, model=model) for each in (signals, factor * signals))
    np.testing.assert_array_equal(ours.quality, scaled.quality)
    np.testing.assert_allclose(scaled.t2_ms, ours.t2_ms, rtol=1e-6)
    np.testing.assert_allclose(scaled.standard_error_ms, ours.standard_error_ms, rtol=1e-5)
    np.testing.assert_allclose(scaled.s0, factor * ours.s0, rtol=1e-6)
    np.testing.assert_allclose(scaled.offset, factor * ours.offset, rtol=1e-5, atol=1e-7 * factor)


@each_model
@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_very_small_and_very_large_signals_are_no_other(factor, model):
    signals = magnitudes(decays(np.linspace(25, 70, 20)), 15.0)
    ours, scaled = (fit_t2(each, ECHO_TIMES_MS, model=model) for each in (signals, factor * signals))
    np.testing.assert_array_equal(ours.quality, scaled.quality)
    np.testing.assert_allclose(scaled.t2_ms, ours.t2_ms, rtol=1e-6)


@each_model
@pytest.mark.parametrize("exponents", [(-300, 300), (-323, -308), (307, 308)])
def test_no_voxel_counts_as_fitted_without_numbers(exponents, model):
    signals = 10 ** np.random.default_rng(0).uniform(*exponents, (7, 3000))
    signals = -np.sort(-signals, axis=0)
    found = fit_t2(signals, ECHO_TIMES_MS, model=model, sigma=1.0)
    fitted = np.isin(found.quality, (Quality.CONVERGED, Quality.AT_BOUND))
    for values in (found.t2_ms, found.s0, found.offset):
        np.testing.assert_array_equal(np.isfinite(values), fitted)


def test_what_lies_at_a_bound_lies_there_exactly():
    rng = np.random.default_rng(0)
    signals = magnitudes(decays(np.resize([2.0, 40.0, 900.0], 600), rng.uniform(100, 1000, 600)), 5.0)
    found = fit_t2(signals, ECHO_TIMES_MS, t2_bounds_ms=(3.3, 71.7), offset_bounds=(7.3, 21.7))
    at_bound = found.quality == Quality.AT_BOUND
    assert set(found.t2_ms[at_bound]) == {3.3, 71.7}
    assert np.nanmin(found.offset) == 7.3 and np.nanmax(found.offset) == 21.7


@pytest.mark.parametrize("model", ["offset", "mono", "rician"])
def test_what_has_not_converged_says_so(model, monkeypatch):
    signals = magnitudes(decays(np.linspace(25, 70, 200)), 15.0)
    complete = fit_t2(signals, ECHO_TIMES_MS, model=model, sigma=15.0)
    monkeypatch.setattr(rician if model == "rician" else variable_projection, "_MOST_STEPS", 3)
    found = fit_t2(signals, ECHO_TIMES_MS, model=model, sigma=15.0)
    missed = found.quality == Quality.NOT_CONVERGED
    assert missed.sum() > 20
    for name in ("t2_ms", "s0", "offset", "standard_error_ms"):
        assert np.isnan(getattr(found, name)[missed]).all()
    np.testing.assert_allclose(found.t2_ms[~missed], complete.t2_ms[~missed], rtol=1e-6)


def test_by_default_the_offset_is_not_negative():
    found = fit_t2(magnitudes(decays(np.full(500, 60.0)), 15.0), ECHO_TIMES_MS)
    assert np.nanmin(found.offset) == 0 and (found.offset > 0).any()


@each_model
@pytest.mark.parametrize(
    "changed",
    [
        lambda stack: np.asfortranarray(stack),
        lambda stack: stack[:, ::-1, :, ::-1][:, ::-1, :, ::-1],
        lambda stack: np.repeat(stack, 2, axis=3)[..., ::2],
        lambda stack: stack.astype(">f8"),
        lambda stack: stack.astype(np.float32),
        lambda stack: stack.astype(np.uint16),
        lambda stack: stack.astype(np.int64),
    ],
    ids=["Fortran", "turned", "every second", "big-endian", "float32", "uint16", "int64"],
)
def test_the_layout_and_type_of_signals_do_not_matter(changed, model):
    stack = np.clip(magnitudes(decays(np.linspace(25, 70, 24), 90_000.0), 500.0), 0, 65535).round()
    stack = stack.reshape(7, 2, 3, 4)
    other = changed(stack)
    other.flags.writeable = False
    mask = np.ones((2, 3, 4), bool)
    for where in (None, mask):
        ours, theirs = (fit_t2(each, ECHO_TIMES_MS, mask=where, model=model) for each in (stack, other))
        np.testing.assert_array_equal(ours.quality, theirs.quality)
        np.testing.assert_allclose(theirs.t2_ms, ours.t2_ms, rtol=1e-9)


@each_model
def test_echoes_may_come_in_descending_order(model):
    signals = magnitudes(decays(np.linspace(25, 70, 20)), 15.0)
    ours, turned = (fit_t2(signals[::way], ECHO_TIMES_MS[::way], model=model) for way in (1, -1))
    np.testing.assert_array_equal(ours.t2_ms, turned.t2_ms)
    np.testing.assert_array_equal(ours.quality, turned.quality)


@given(st.permutations(ECHO_TIMES_MS.tolist()))
def test_echo_times_in_no_order_are_refused(times_ms):
    if times_ms in (sorted(times_ms), sorted(times_ms, reverse=True)):
        return
    with pytest.raises(InputError, match="not monotone"):
        fit_t2(decays(40), times_ms)


@pytest.mark.parametrize(
    ("times_ms", "message"),
    [
        (ECHO_TIMES_MS / 1000, "seconds"),
        ([10, 20, 20, 30, 40, 50, 60], "not monotone"),
        ([0, 10, 20, 30, 40, 50, 60], "above 0"),
        ([10, 20, 30, 40, 50, 60, math.nan], "finite"),
    ],
)
def test_wrong_echo_times_say_what_is_wrong(times_ms, message):
    with pytest.raises(InputError, match=message):
        fit_t2(decays(40), times_ms)


@pytest.mark.parametrize(("model", "echoes"), [(model, unknowns) for model, unknowns in UNKNOWNS.items()])
def test_fewer_echoes_than_unknowns_are_refused(model, echoes):
    signals = decays(40, offset=20.0 if model == "offset" else 0.0)[:echoes]
    with pytest.raises(InputError, match=rf"'{model}' needs {echoes} echoes or more; without the first there are"):
        fit_t2(signals, ECHO_TIMES_MS[:echoes], model=model)
    found = fit_t2(signals, ECHO_TIMES_MS[:echoes], model=model, skip_first=False, sigma=1.0)
    np.testing.assert_allclose(found.t2_ms, 40, rtol=1e-2)
    assert np.isfinite(found.standard_error_ms).all()
    if model != "rician":  # without sigma, nothing is left to tell the error from
        found = fit_t2(signals, ECHO_TIMES_MS[:echoes], model=model, skip_first=False)
        assert found.quality.tolist() == [Quality.CONVERGED] and np.isnan(found.standard_error_ms).all()


def test_two_echoes_leave_nothing_to_estimate_sigma_from():
    with pytest.raises(InputError, match="leave nothing to estimate sigma from"):
        fit_t2(decays(40)[:2], ECHO_TIMES_MS[:2], model="rician", skip_first=False)


LINE = 100.0 - ECHO_TIMES_MS
STRANGE = {
    "zero": (np.zeros(7), Quality.NO_SIGNAL),
    "negative": (-decays(40)[:, 0], Quality.NO_SIGNAL),
    "constant": (np.full(7, 0.1), Quality.NOT_DECAYING),
    "rising": (ECHO_TIMES_MS, Quality.NOT_DECAYING),
    "NaN": (np.where(ECHO_TIMES_MS == 30, np.nan, LINE), Quality.INVALID),
    "infinite": (np.where(ECHO_TIMES_MS == 70, np.inf, LINE), Quality.INVALID),
    "hardly falling": (1000 - 0.01 * ECHO_TIMES_MS, Quality.AT_BOUND),
    "T2 of 0.8 ms": (decays(0.8)[:, 0], Quality.AT_BOUND),
}


@each_model
@pytest.mark.parametrize("name", STRANGE)
def test_what_is_no_decay_is_told_and_changes_no_other_voxel(name, model):
    strange, expected = STRANGE[name]
    if model == "rician":  # a magnitude is not negative, and 1e-8 in noise of 15 is nothing
        expected = {"negative": Quality.INVALID, "T2 of 0.8 ms": Quality.NO_SIGNAL}.get(name, expected)
    good = magnitudes(decays(np.linspace(25, 70, 20)), 15.0)
    alone = fit_t2(good, ECHO_TIMES_MS, model=model, sigma=15.0)
    both = fit_t2(np.column_stack([good, strange]), ECHO_TIMES_MS, model=model, sigma=15.0)
    assert Quality(both.quality[-1]) == expected
    assert np.isnan(both.standard_error_ms[-1])
    if expected == Quality.AT_BOUND:
        np.testing.assert_allclose(both.t2_ms[-1], 1000.0 if name == "hardly falling" else 1.0)
    else:
        assert np.isnan([both.t2_ms[-1], both.s0[-1], both.offset[-1]]).all()
    np.testing.assert_allclose(both.t2_ms[:-1], alone.t2_ms, rtol=1e-9)


def test_negative_echoes_are_numbers_to_least_squares_and_weigh_nothing_in_logarithms():
    signals = decays(np.array([15.0, 15.0]))
    signals[-1, 0] = -1.0
    for model, expected in (
        ("mono", Quality.CONVERGED),
        ("log_linear", Quality.CONVERGED),
        ("rician", Quality.INVALID),
    ):
        assert fit_t2(signals, ECHO_TIMES_MS, model=model, sigma=1.0).quality[0] == expected
    np.testing.assert_allclose(fit_t2(signals, ECHO_TIMES_MS, model="log_linear").t2_ms, 15.0)


def test_echoes_without_a_logarithm_count_for_nothing_in_the_standard_error():
    signals = magnitudes(decays(np.linspace(15, 40, 20)), 10.0)
    complete = fit_t2(signals[:5], ECHO_TIMES_MS[:5], model="log_linear")
    signals[5:] = [[0.0], [-3.0]]
    found = fit_t2(signals, ECHO_TIMES_MS, model="log_linear")
    np.testing.assert_allclose(found.standard_error_ms, complete.standard_error_ms, rtol=1e-9)


def test_one_positive_echo_has_no_logarithmic_line():
    signals = np.zeros((7, 1))
    signals[1] = 5.0
    assert fit_t2(signals, ECHO_TIMES_MS, model="log_linear").quality.tolist() == [Quality.NO_SIGNAL]


@each_model
def test_voxels_outside_the_mask_are_not_fitted(model):
    stack = magnitudes(decays(np.full(24, 40.0)), 10.0).reshape(7, 2, 3, 4).astype(np.uint16)
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[1, :2] = 3
    found = fit_t2(stack, ECHO_TIMES_MS, mask=mask, model=model, sigma=np.full((3, 4), 10.0))
    np.testing.assert_array_equal(found.quality, np.where(mask, Quality.CONVERGED, Quality.NOT_FITTED))
    assert found.quality.dtype == np.uint8
    listed = fit_t2(stack[:, mask != 0], ECHO_TIMES_MS, model=model, sigma=10.0)
    for name in ("t2_ms", "s0", "offset", "standard_error_ms"):
        np.testing.assert_array_equal(getattr(found, name)[mask != 0], getattr(listed, name))
        assert np.isnan(getattr(found, name)[mask == 0]).all()


@each_model
def test_an_empty_mask_gives_empty_maps(model):
    found = fit_t2(np.ones((7, 2, 3)), ECHO_TIMES_MS, mask=np.zeros((2, 3), bool), model=model)
    assert np.isnan(found.t2_ms).all() and not found.quality.any() and found.t2_ms.shape == (2, 3)


def test_chunks_are_put_together_in_order():
    t2_ms = np.linspace(20, 80, 70_000)
    found = fit_t2(decays(t2_ms), ECHO_TIMES_MS, model="mono")
    np.testing.assert_allclose(found.t2_ms, t2_ms, rtol=1e-9)


@pytest.mark.parametrize("bounds", [(0.0, 100.0), (50.0, 20.0), (1.0, math.inf), (math.nan, 5.0), (0.01, 100.0)])
def test_wrong_bounds_of_t2_are_refused(bounds):
    with pytest.raises(SettingsError, match="T2"):
        fit_t2(decays(40), ECHO_TIMES_MS, t2_bounds_ms=bounds)


def test_other_wrong_arguments_are_refused():
    with pytest.raises(SettingsError, match="one of offset, mono"):
        fit_t2(decays(40), ECHO_TIMES_MS, model="biexponential")
    with pytest.raises(SettingsError, match="offset"):
        fit_t2(decays(40), ECHO_TIMES_MS, offset_bounds=(5, 1))
    with pytest.raises(GeometryError, match="7 echo times for signals of shape"):
        fit_t2(decays(40)[1:], ECHO_TIMES_MS)
    with pytest.raises(GeometryError, match="mask"):
        fit_t2(decays(40), ECHO_TIMES_MS, mask=np.ones(2, bool))
    with pytest.raises(LabelError, match="float64"):
        fit_t2(decays(40), ECHO_TIMES_MS, mask=np.ones(1))
    with pytest.raises(GeometryError, match="sigma"):
        fit_t2(decays(40), ECHO_TIMES_MS, sigma=np.ones(3))
    with pytest.raises(InputError, match="above 0"):
        fit_t2(decays(40), ECHO_TIMES_MS, sigma=0.0)
    with pytest.raises(InputError, match="complex"):
        fit_t2(decays(40).astype(complex), ECHO_TIMES_MS)


@pytest.mark.parametrize("given_sigma", [False, True])
@pytest.mark.parametrize(
    ("model", "sigma", "offset_bounds"),
    [("offset", 3, FREE), ("mono", 10, FREE), ("log_linear", 5, FREE), ("rician", 20, FREE)],
)
def test_standard_errors_are_the_spread_of_many_fits(model, sigma, offset_bounds, given_sigma):
    signals = magnitudes(decays(np.full(6000, 40.0)), sigma)
    known = {"sigma": float(sigma)} if given_sigma else {}
    found = fit_t2(signals, ECHO_TIMES_MS, model=model, offset_bounds=offset_bounds, **known)
    assert (found.quality == Quality.CONVERGED).all()
    assert np.sqrt(np.mean(found.standard_error_ms**2)) == pytest.approx(found.t2_ms.std(), rel=0.05)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("t2_ms", [30.0, 45.0, 60.0])
@pytest.mark.parametrize("s0_over_sigma", [50, 200])
def test_maximum_likelihood_is_hardly_biased_and_nearly_as_good_as_can_be(t2_ms, s0_over_sigma, known):
    sigma = 1000 / s0_over_sigma
    signals = magnitudes(decays(np.full(6000, t2_ms)), sigma)
    found = fit_t2(signals, ECHO_TIMES_MS, model="rician", sigma=sigma if known else None)
    assert (found.quality == Quality.CONVERGED).all()
    np.testing.assert_allclose(found.sigma, sigma, rtol=0.05)
    bias_ms, spread_ms = found.t2_ms.mean() - t2_ms, np.sqrt(np.mean((found.t2_ms - t2_ms) ** 2))
    bound_ms = cramer_rao_bound_ms(t2_ms, s0_over_sigma, ECHO_TIMES_MS[1:])
    assert abs(bias_ms) < 0.02 * t2_ms
    assert spread_ms < 1.15 * bound_ms


def test_maximum_likelihood_without_noise_is_least_squares():
    signals = magnitudes(decays(np.linspace(25, 70, 50)), 5.0)
    found = fit_t2(signals, ECHO_TIMES_MS, model="rician", sigma=1e-300)
    np.testing.assert_allclose(found.t2_ms, fit_t2(signals, ECHO_TIMES_MS, model="mono").t2_ms, rtol=1e-6)


def test_sigma_is_estimated_from_a_limited_number_of_voxels(monkeypatch):
    seen = []
    monkeypatch.setattr(t2_fit, "residual_sigma", lambda signals, *_: seen.append(signals.shape[1]) or 1.0)
    for count in (6000, 15_000, 45_000):
        fit_t2(decays(np.full(count, 40.0)), ECHO_TIMES_MS, model="rician")
    assert seen[0] == 6000 and min(seen) >= 5000 and max(seen) <= 10_000


@pytest.mark.parametrize(("s0_over_sigma", "most"), [(10, 0.08), (20, 0.03), (50, 0.03)])
def test_sigma_of_weak_signals_is_found_but_for_a_little(s0_over_sigma, most):
    signals = magnitudes(decays(np.random.default_rng(1).uniform(25, 70, 10_000)), 1000 / s0_over_sigma)
    found = fit_t2(signals, ECHO_TIMES_MS, model="rician")
    assert found.sigma == pytest.approx(1000 / s0_over_sigma, rel=most)


def test_sigma_is_found_where_most_voxels_hold_noise_alone():
    tissue = np.arange(6000) % 10 == 0
    found = fit_t2(magnitudes(decays(np.linspace(25, 70, 6000)) * tissue, 10.0), ECHO_TIMES_MS, model="rician")
    assert found.sigma == pytest.approx(10.0, rel=0.06)


def test_vessels_and_fluid_in_the_mask_do_not_raise_sigma():
    tissue = magnitudes(decays(np.linspace(30, 60, 2700)), 20.0)
    others = magnitudes(decays(np.full(300, 5.0), 2000) + decays(np.full(300, 300.0), 600), 20.0)
    found = fit_t2(np.column_stack([tissue, others]), ECHO_TIMES_MS, model="rician")
    assert found.sigma == pytest.approx(20.0, rel=0.06)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", UNKNOWNS)
def test_a_gpu_finds_the_same(model):
    signals = magnitudes(decays(np.linspace(20, 90, 3000)), 15.0)
    ours, theirs = (fit_t2(signals, ECHO_TIMES_MS, model=model, device=device) for device in ("cuda", "cpu"))
    np.testing.assert_array_equal(ours.quality, theirs.quality)
    np.testing.assert_allclose(ours.t2_ms, theirs.t2_ms, rtol=1e-6)
    np.testing.assert_allclose(ours.standard_error_ms, theirs.standard_error_ms, rtol=1e-4)
