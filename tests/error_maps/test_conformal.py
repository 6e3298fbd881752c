"""Conformal thresholds and p-values: exact over every exchange of cases, against loops and scipy, and by simulation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from nnunet_anomaly.error_maps import conformal
from nnunet_anomaly.error_maps.calibrate import (
    ErrorHistogram,
    Guarantee,
    Threshold,
    anomaly_mask,
    bins_of,
    highest_of_bin,
    peak_error,
)
from nnunet_anomaly.error_maps.conformal import (
    BENJAMINI_HOCHBERG,
    BENJAMINI_YEKUTIELI,
    HealthyErrors,
    adjusted_p_values,
    case_p_values,
    case_rate_interval,
    case_threshold,
    cases_needed,
    clopper_pearson,
    implausible_cases,
    share_interval,
)
from nnunet_anomaly.error_maps.guarantee import (
    Wish,
    check_number_of_cases,
    find_threshold,
    in_words,
    threshold_of_case,
    warnings,
)
from nnunet_anomaly.errors import InputError

RATES = st.sampled_from([0.02, 0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.9])
ERRORS = st.floats(0, 100, width=32)
CASES = st.lists(st.lists(ERRORS, min_size=1, max_size=12), min_size=2, max_size=12)


def together(cases) -> HealthyErrors:
    """Cases given as lists of errors."""
    arrays = {str(index): np.array(errors, np.float32) for index, errors in enumerate(cases)}
    histograms = {name: ErrorHistogram.of(errors) for name, errors in arrays.items()}
    return HealthyErrors.of(histograms, {name: errors.max() for name, errors in arrays.items()}, 0.0)


def each_left_out(cases):
    """Every case in turn as the new one, and the others: what exchangeability takes the mean of."""
    for index, case in enumerate(cases):
        yield case, cases[:index] + cases[index + 1 :]


def smooth_cases(rng: np.random.Generator, n_cases: int, spread: float = 0.3, n_voxels: int = 400) -> np.ndarray:
    """Smoothed squared noise, (n_cases, n_voxels): neighbours depend on each other, and noise differs by case."""
    errors = ndimage.gaussian_filter1d(rng.standard_normal((n_cases, n_voxels)) ** 2, 2.0, axis=1)
    return (errors * np.exp(spread * rng.standard_normal((n_cases, 1)))).astype(np.float32)


def histograms_of(cases: np.ndarray) -> dict[str, ErrorHistogram]:
    return {f"case_{index:02d}": ErrorHistogram.of(errors) for index, errors in enumerate(cases)}


def healthy_of(cases: np.ndarray) -> HealthyErrors:
    histograms = histograms_of(cases)
    return HealthyErrors.of(histograms, dict(zip(histograms, cases.max(axis=1), strict=True)), 0.0)


# --- per case --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(ERRORS, min_size=2, max_size=30), RATES)
def test_per_case_the_rate_holds_exactly_over_all_exchanges(peaks, rate):
    exceeds = [new > case_threshold(others, rate) for new, others in each_left_out(peaks)]
    assert np.mean(exceeds) <= rate + 1e-12
    p_values = [case_p_values([new], others)[0] for new, others in each_left_out(peaks)]
    assert np.mean(np.array(p_values) <= rate) <= rate + 1e-12
    if len(set(peaks)) == len(peaks):  # and nothing is given away
        assert sum(exceeds) == math.floor(len(peaks) * rate + 1e-9)


def test_the_threshold_per_case_by_hand():
    assert case_threshold([3, 1, 2, 4], 0.2) == 4  # (4 + 1) * 0.8 = 4th
    assert case_threshold([3, 1, 2, 4], 0.4) == 3
    assert case_threshold([3, 1, 2, 4], 0.19) == math.inf
    assert case_threshold([], 0.5) == math.inf
    np.testing.assert_allclose(case_p_values([5, 4, 2.5, 0], [3, 1, 2, 4]), [0.2, 0.4, 0.6, 1])
    np.testing.assert_allclose(case_p_values([5.0], []), [1])
    for rate in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match="rate"):
            case_threshold([1, 2], rate)
    with pytest.raises(ValueError, match="NaN"):
        case_threshold([1, math.nan], 0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2000))
def test_the_number_of_cases_needed_is_the_smallest_that_gives_a_threshold(number):
    for rate in (1 / (number + 1), number / 2001):
        needed = cases_needed(rate)
        assert math.isfinite(case_threshold(np.arange(needed), rate))
        assert case_threshold(np.arange(needed - 1), rate) == math.inf


def test_the_threshold_per_voxel_needs_as_many_cases():
    for rate in (0.05, 0.1, 0.03, 0.3):
        cases = [[float(index)] for index in range(cases_needed(rate))]
        assert math.isfinite(together(cases).voxel_threshold(rate))
        assert together(cases[1:]).voxel_threshold(rate) == math.inf


def test_numbers_of_cases_needed_by_hand():
    assert [cases_needed(rate) for rate in (0.5, 0.2, 0.1, 0.05, 0.01, 0.03)] == [1, 4, 9, 19, 99, 33]


def test_the_rate_of_one_set_of_calibration_cases_is_beta_distributed():
    rng, rate, n_cases = np.random.default_rng(0), 0.1, 40
    # uniform peaks: the share of new cases above a threshold t is 1 - t
    found = np.array([1 - case_threshold(rng.random(n_cases), rate) for _ in range(2000)])
    assert stats.kstest(found, stats.beta(4, 37).cdf).pvalue > 0.01
    low, high = case_rate_interval(n_cases, rate)
    assert np.mean((found >= low) & (found <= high)) == pytest.approx(0.95, abs=0.015)
    assert case_rate_interval(8, 0.1) == (0, 0)


@pytest.mark.parametrize(("found", "of"), [(0, 10), (3, 10), (10, 10), (7, 200)])
def test_clopper_pearson_is_scipys(found, of):
    expected = stats.binomtest(found, of).proportion_ci(method="exact")
    assert clopper_pearson(found, of) == pytest.approx((expected.low, expected.high))


def test_clopper_pearson_of_nothing():
    assert clopper_pearson(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="no proportion"):
        clopper_pearson(3, 2)


# --- per voxel -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(CASES, RATES)
def test_per_voxel_the_rate_holds_exactly_over_all_exchanges(cases, rate):
    shares, called = [], []
    for new, others in each_left_out(cases):
        errors, healthy = np.array(new, np.float32), together(others)
        shares.append((errors > np.float32(healthy.voxel_threshold(rate))).mean())
        called.append((healthy.p_values(errors) <= rate).mean())
    assert np.mean(shares) <= rate + 1e-9
    assert np.mean(called) <= rate + 1e-9


@settings(max_examples=60, deadline=None)
@given(CASES, st.lists(ERRORS, min_size=1, max_size=20))
def test_p_values_are_those_of_a_loop_over_cases(cases, errors):
    errors = np.array(errors, np.float32)
    found = together(cases).p_values(errors)
    for error, p_value in zip(errors, found, strict=True):
        shares = [np.mean(bins_of(np.array(case, np.float32)) >= bins_of(error)) for case in cases]
        exact = (1 + sum(shares)) / (len(cases) + 1)
        assert exact - 1e-12 <= p_value <= exact + 2e-7
    assert found.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(CASES, st.lists(ERRORS, min_size=1, max_size=20), st.floats(0.03, 0.97))
def test_what_a_p_value_calls_is_what_the_threshold_calls(cases, errors, rate):
    errors, healthy = np.array(errors, np.float32), together(cases)
    p_values = healthy.p_values(errors)
    clear = np.abs(p_values - rate) > 1e-6
    np.testing.assert_array_equal(
        (p_values <= rate)[clear], (errors > np.float32(healthy.voxel_threshold(rate)))[clear]
    )


def test_every_case_weighs_the_same():
    # 1 of 2 voxels of one case and none of 998 of the other: a quarter, not a thousandth
    healthy = together([[1.0, 5.0], [1.0] * 998])
    assert healthy.share_at_or_above(bins_of(np.float32(5.0))) == pytest.approx(0.25)
    assert healthy.p_values(np.array([0.0, 5.0, 9.0])) == pytest.approx([1, 1.5 / 3, 1 / 3])
    assert healthy.voxels_per_case == 500


def test_cases_without_voxels_count_for_nothing_and_none_is_an_error():
    one, empty = ErrorHistogram.of(np.ones(3)), ErrorHistogram.of(np.zeros(0))
    healthy = HealthyErrors.of({"a": empty, "b": one}, {"a": 0.0, "b": 1.0}, 20)
    assert healthy.n_cases == 1 and healthy.peaks.tolist() == [1] and healthy.min_volume_mm3 == 20
    with pytest.raises(InputError, match="inside the region"):
        HealthyErrors.of({"a": empty}, {"a": 0.0}, 20)


def test_leaving_one_out_is_to_start_without_it():
    cases = smooth_cases(np.random.default_rng(1), 5)
    left = healthy_of(cases).without(ErrorHistogram.of(cases[2]))
    expected = healthy_of(np.delete(cases, 2, axis=0))
    probe = np.arange(bins_of(cases.min()) - 5, bins_of(cases.max()) + 5)
    np.testing.assert_allclose(left.share_at_or_above(probe), expected.share_at_or_above(probe), atol=1e-12)
    assert (left.n_cases, left.voxels_per_case) == (4, 400)
    with pytest.raises(ValueError, match="nothing is left"):
        together([[1.0]]).without(ErrorHistogram.of(np.ones(1)))


def test_healthy_errors_come_back_from_their_file(tmp_path):
    healthy = healthy_of(smooth_cases(np.random.default_rng(2), 3))
    healthy.save(tmp_path / "healthy.npz")
    again = HealthyErrors.load(tmp_path / "healthy.npz")
    for name, value in vars(healthy).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    (tmp_path / "healthy.npz").write_bytes(b"PK no archive")
    for name in ("healthy.npz", "nowhere.npz"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            HealthyErrors.load(tmp_path / name)


def test_the_interval_of_a_mean_share():
    assert share_interval([]) == share_interval([0.3]) == (0, 1)
    assert share_interval(np.zeros(40)) == clopper_pearson(0, 40)
    shares = np.array([0.02, 0.05, 0.01, 0.04, 0.03])
    low, high = share_interval(shares)
    t = stats.ttest_1samp(shares, 0).confidence_interval(0.95)
    assert low * high == pytest.approx(shares.mean() ** 2)
    assert math.log(high / 0.03) == pytest.approx((t.high - 0.03) / 0.03)
    assert share_interval([1.0, 0.0, 0.9])[1] == 1


# --- by simulation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_cases", "rate", "spread"), [(40, 0.05, 0.3), (40, 0.1, 0.0), (100, 0.02, 0.5)])
def test_both_rates_and_their_intervals_hold_on_new_cases(n_cases, rate, spread):
    rng = np.random.default_rng(3)
    population = smooth_cases(rng, 3000, spread)
    peaks = population.max(axis=1)
    per_case, per_voxel, covered = [], [], []
    for _ in range(40):
        cases = smooth_cases(rng, n_cases, spread)
        value = case_threshold(cases.max(axis=1), rate)
        per_case.append((peaks > value).mean())
        value, found = find_threshold(Wish("voxel", rate), histograms_of(cases), healthy_of(cases))
        per_voxel.append((population > value).mean())
        low, high = found.interval95
        covered.append(low <= per_voxel[-1] <= high)
    # means over draws of calibration cases, within three standard errors (draws, and population) of the promise
    expected = math.floor((n_cases + 1) * rate) / (n_cases + 1)
    assert np.mean(per_case) == pytest.approx(expected, abs=3 * math.hypot(stats.sem(per_case), math.sqrt(rate / 3000)))
    assert np.mean(per_voxel) <= rate
    assert np.mean(per_voxel) >= (rate - 1 / (n_cases + 1)) / 2  # and it is not empty
    assert np.mean(covered) > 0.85


def odd_cases(rng: np.random.Generator, n_cases: int, kind: str) -> list[np.ndarray]:
    """Lesion-free cases as no theory likes them: few that are far noisier, few values, zeros, sizes from 5 to 800."""
    errors, n_voxels = smooth_cases(rng, n_cases), rng.integers(5, 800, n_cases)
    if kind == "heavy tails":
        return list(errors * rng.pareto(1.0, (n_cases, 1)).astype(np.float32))
    if kind == "ties and zeros":
        return list(np.round(errors) * (rng.random((n_cases, 1)) < 0.7))
    return [smooth_cases(rng, 1, n_voxels=n)[0] * np.float32(n / 400) for n in n_voxels]


@pytest.mark.parametrize("kind", ["heavy tails", "ties and zeros", "sizes"])
def test_both_rates_hold_whatever_the_errors_are(kind):
    rng, n_cases, rate = np.random.default_rng(16), 29, 0.1
    population = odd_cases(rng, 1500, kind)
    peaks, per_case, per_voxel = np.array([errors.max() for errors in population]), [], []
    for _ in range(40):
        cases = {str(index): errors for index, errors in enumerate(odd_cases(rng, n_cases, kind))}
        highest = {name: highest_of_bin(int(bins_of(errors.max()))) for name, errors in cases.items()}
        healthy = HealthyErrors.of({name: ErrorHistogram.of(errors) for name, errors in cases.items()}, highest, 0.0)
        per_case.append((peaks > case_threshold(healthy.peaks, rate)).mean())
        value = healthy.voxel_threshold(rate)
        per_voxel.append(np.mean([(errors > value).mean() for errors in population]))
    for rates in (per_case, per_voxel):
        assert np.mean(rates) <= rate + 3 * math.hypot(stats.sem(rates), math.sqrt(rate / 1500))
    if kind != "ties and zeros":  # nothing is given away where peaks differ
        assert np.mean(per_case) >= rate - 3 * math.hypot(stats.sem(per_case), math.sqrt(rate / 1500))


def test_a_lesion_free_case_rarely_has_a_false_discovery():
    rng, rate = np.random.default_rng(4), 0.05
    called = {BENJAMINI_HOCHBERG: [], BENJAMINI_YEKUTIELI: []}
    for _ in range(15):
        healthy = healthy_of(smooth_cases(rng, 40))
        for errors in smooth_cases(rng, 30):
            for procedure, found in called.items():
                found.append(math.isfinite(healthy.discovery_threshold(ErrorHistogram.of(errors), rate, procedure)))
    assert clopper_pearson(sum(called[BENJAMINI_HOCHBERG]), 450)[0] <= rate
    assert sum(called[BENJAMINI_YEKUTIELI]) <= sum(called[BENJAMINI_HOCHBERG])


def test_the_false_discovery_rate_holds_with_a_lesion_and_finds_it():
    rng, rate = np.random.default_rng(5), 0.1
    proportions, power = [], []
    for _ in range(10):
        healthy = healthy_of(smooth_cases(rng, 40))
        for errors in smooth_cases(rng, 20):
            lesion = np.zeros(errors.size, bool)
            lesion[100:140] = True
            errors[lesion] += 12
            called = errors > healthy.discovery_threshold(ErrorHistogram.of(errors), rate)
            proportions.append((called & ~lesion).sum() / max(called.sum(), 1))
            power.append(called[lesion].mean())
    assert np.mean(proportions) <= rate + 2 * stats.sem(proportions)
    assert np.mean(power) > 0.95


# --- false discoveries -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=40))
def test_adjusted_p_values_are_scipys(p_values):
    for procedure, method in ((BENJAMINI_HOCHBERG, "bh"), (BENJAMINI_YEKUTIELI, "by")):
        expected = stats.false_discovery_control(p_values, method=method)
        np.testing.assert_allclose(adjusted_p_values(p_values, procedure), expected, rtol=1e-9)


def test_adjusted_p_values_of_nothing_and_by_another_name():
    assert adjusted_p_values([]).size == 0
    with pytest.raises(ValueError, match="'holm'"):
        adjusted_p_values([0.5], "holm")


@settings(max_examples=60, deadline=None)
@given(CASES, st.lists(ERRORS, min_size=1, max_size=30), st.sampled_from([0.05, 0.2, 0.4, 0.8]))
def test_discoveries_in_a_case_are_scipys_over_its_voxels(cases, errors, rate):
    errors, healthy = np.array(errors, np.float32), together(cases)
    one_voxel = len(cases) / sum(map(len, cases))
    p_values = []
    for error in errors:
        shares = [np.mean(bins_of(np.array(case, np.float32)) >= bins_of(error)) for case in cases]
        p_values.append((one_voxel + sum(shares)) / (one_voxel + len(cases)))
    for procedure, method in ((BENJAMINI_HOCHBERG, "bh"), (BENJAMINI_YEKUTIELI, "by")):
        threshold = healthy.discovery_threshold(ErrorHistogram.of(errors), rate, procedure)
        adjusted = stats.false_discovery_control(p_values, method=method)
        clear = np.abs(adjusted - rate) > 1e-8
        np.testing.assert_array_equal((errors > np.float32(threshold))[clear], (adjusted <= rate)[clear])


def test_an_empty_case_has_no_discovery():
    assert together([[1.0]]).discovery_threshold(ErrorHistogram.of(np.zeros(0)), 0.1) == math.inf


# --- peaks -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 2.0, 5.0, 20.0, 500.0]))
def test_a_mask_is_empty_exactly_at_thresholds_from_the_peak_on(seed, min_volume_mm3):
    rng = np.random.default_rng(seed)
    region = rng.integers(0, 3, (4, 6, 7)).astype(np.uint8)
    smoothed = np.where(region > 0, rng.integers(0, 9, region.shape) / 4, 0).astype(np.float32)
    peak = peak_error(smoothed, region, (2, 0.5, 1), min_volume_mm3=min_volume_mm3)
    for index in np.unique(bins_of(smoothed[region > 0])):
        threshold = highest_of_bin(int(index))
        found = anomaly_mask(smoothed, region, (2, 0.5, 1), threshold, min_volume_mm3=min_volume_mm3).any()
        assert found == (peak > threshold)


def test_the_peak_without_a_volume_is_the_highest_error_and_nothing_is_zero():
    smoothed = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    region = np.ones(smoothed.shape, np.uint8)
    assert peak_error(smoothed, region, (1, 1, 1), min_volume_mm3=0) == highest_of_bin(int(bins_of(smoothed.max())))
    assert peak_error(smoothed, region, (1, 1, 1), min_volume_mm3=1000) == 0
    assert peak_error(smoothed, np.zeros_like(region), (1, 1, 1), min_volume_mm3=0) == 0


# --- implausible calibration cases -----------------------------------------------------------------------------------


def test_lesions_in_a_fifth_of_the_calibration_cases_are_named():
    rng = np.random.default_rng(6)
    peaks = {f"healthy_{index}": value for index, value in enumerate(smooth_cases(rng, 24).max(axis=1))}
    ill = {f"ill_{index}": value * 15 for index, value in enumerate(smooth_cases(rng, 6).max(axis=1))}
    assert implausible_cases(peaks) == {}
    assert set(implausible_cases({**peaks, **ill})) == set(ill)
    scores = list(implausible_cases({**peaks, "nothing": 0.0, "much": 1e6}).values())
    assert scores[0] == -math.inf and scores[1] > 5


def test_too_few_or_equal_cases_name_nobody():
    assert implausible_cases({}) == {}
    assert implausible_cases({str(index): 1.0 for index in range(6)} | {"far": 100.0}) == {}
    assert implausible_cases({str(index): 1.0 for index in range(20)}) == {}
    assert list(implausible_cases({str(index): 1.0 for index in range(20)} | {"far": 2.0})) == ["far"]
    for nothing in (0.0, highest_of_bin(0)):  # what a map of zeros has by its histogram
        assert implausible_cases({str(index): nothing for index in range(20)} | {"far": 2.0}) == {}
        assert implausible_cases({str(index): 1.0 for index in range(20)} | {"none": nothing}) == {"none": -math.inf}
    # figures on few levels: more than half are equal, and the others are no further apart than many
    assert implausible_cases({str(index): 1.0 + (index < 8) for index in range(20)}) == {}


def test_false_alarms_are_rare():
    rng = np.random.default_rng(7)
    alarms = [bool(implausible_cases(dict(enumerate(smooth_cases(rng, 40).max(axis=1))))) for _ in range(200)]
    assert np.mean(alarms) < 0.15


def test_warnings_name_lesions_and_maps_of_another_size():
    cases = smooth_cases(np.random.default_rng(8), 12, spread=0.1)
    histograms = histograms_of(cases)
    peaks = dict(zip(histograms, map(float, cases.max(axis=1)), strict=True))
    assert warnings(histograms, peaks) == []
    (text,) = warnings(histograms, {**peaks, "case_03": 80.0})
    assert "case_03 (80, " in text and "lesions" in text
    quiet = {**histograms, "case_05": ErrorHistogram.of(cases[5] / 100)}
    (text,) = warnings(quiet, {**peaks, "case_05": peaks["case_05"] / 100})
    assert "median errors" in text and "case_05" in text
    (text,) = warnings(histograms, {**peaks, "case_07": 0.0})
    assert "No component of --min-volume-mm3 fits" in text and text.count("case_") == 1 and "case_07" in text


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_lesions_are_named_among_cases_of_any_noise(spread):
    """A noisy case's peak is high by its noise; its ratio to the case's median error is not."""
    rng, named, alarms = np.random.default_rng(13), [], []
    for _ in range(30):
        cases = smooth_cases(rng, 30, spread)
        histograms, peaks = histograms_of(cases), cases.max(axis=1)
        ill = peaks * np.where(np.arange(30) < 3, 6, 1)
        lesion_free, found = (
            " ".join(warnings(histograms, dict(zip(histograms, map(float, values), strict=True))))
            for values in (peaks, ill)
        )
        alarms.append("Do they have lesions?" in lesion_free)
        named.append([f"case_{index:02d} (" in found for index in range(3)])
    assert np.mean(named) > 0.95 and np.mean(alarms) < 0.15


def test_few_cases_are_not_checked_and_maps_of_zeros_name_nobody():
    cases = smooth_cases(np.random.default_rng(14), 7)
    (text,) = warnings(
        histograms_of(cases), dict(zip(histograms_of(cases), map(float, cases.max(axis=1)), strict=True))
    )
    assert "these 7 calibration cases" in text and "is not checked: it takes 8" in text
    zeros = histograms_of(np.zeros((12, 400)))
    assert warnings(zeros, dict.fromkeys(zeros, highest_of_bin(0))) == []
    mostly_zeros = histograms_of(np.where(np.arange(400) < 300, 0, smooth_cases(np.random.default_rng(15), 12, 0.1)))
    assert warnings(mostly_zeros, dict.fromkeys(mostly_zeros, 3.0)) == []


# --- guarantees by name ----------------------------------------------------------------------------------------------


def guaranteed(value: float, guarantee: Guarantee | None) -> Threshold:
    return Threshold(value, 0.1, "lesion-free cases", ["a"], 100, [1, 1, 1], 1.0, 0.5, {"femur": 1}, 1, guarantee)


@pytest.mark.parametrize("wish", [Wish("voxel", 0.1), Wish("case", 0.1), Wish("discoveries", 0.1, BENJAMINI_HOCHBERG)])
def test_a_guarantee_travels_and_says_what_it_is(tmp_path, wish):
    cases = smooth_cases(np.random.default_rng(9), 30)
    value, guarantee = find_threshold(wish, histograms_of(cases), healthy_of(cases))
    threshold = guaranteed(value, guarantee)
    threshold.save(tmp_path / "threshold.json")
    assert Threshold.load(tmp_path / "threshold.json") == threshold
    low, high = guarantee.interval95
    assert low <= guarantee.expected_rate <= high and guarantee.n_cases == 30
    words = in_words(threshold)
    assert "10 %" in words and "30 lesion-free cases" in words and "95 %" in words
    with pytest.raises(ValueError, match="guarantees nothing"):
        in_words(guaranteed(value, None))


def test_stricter_rates_have_higher_thresholds():
    cases = smooth_cases(np.random.default_rng(10), 60)
    for kind in ("voxel", "case"):
        values = [
            find_threshold(Wish(kind, rate), histograms_of(cases), healthy_of(cases))[0] for rate in (0.3, 0.1, 0.02)
        ]
        assert all(first <= second for first, second in pairwise(values)) and math.isfinite(values[-1])


def test_too_few_cases_say_how_many_are_needed():
    cases = smooth_cases(np.random.default_rng(11), 40)
    for kind in ("voxel", "case", "discoveries"):
        with pytest.raises(InputError, match=r"at least 99 .* there are 40\. .* 0\.0244"):
            find_threshold(Wish(kind, 0.01, BENJAMINI_HOCHBERG), histograms_of(cases), healthy_of(cases))
    check_number_of_cases(Wish("case", 0.0244), 40)  # the rate that the message names
    with pytest.raises(ValueError, match="kind is 'slice'"):
        find_threshold(Wish("slice", 0.1), histograms_of(cases), healthy_of(cases))


def test_a_rate_per_case_of_components_that_fit_nowhere_is_refused():
    histograms = histograms_of(smooth_cases(np.random.default_rng(17), 20))
    healthy = HealthyErrors.of(histograms, dict.fromkeys(histograms, 0.0), 5000)
    with pytest.raises(InputError, match=r"No component of 5000 mm3 fits into .* of 20 of 20 calibration cases"):
        find_threshold(Wish("case", 0.1), histograms, healthy)
    assert math.isfinite(find_threshold(Wish("voxel", 0.1), histograms, healthy)[0])


def test_discoveries_have_a_threshold_for_each_case_never_below_the_common_one():
    cases = smooth_cases(np.random.default_rng(12), 40)
    healthy = healthy_of(cases)
    value, guarantee = find_threshold(Wish("discoveries", 0.1, BENJAMINI_HOCHBERG), histograms_of(cases), healthy)
    threshold = guaranteed(value, guarantee)
    with_lesions = [
        ErrorHistogram.of(np.concatenate([cases[0], np.full(size, 40, np.float32)])) for size in (5, 50, 400)
    ]
    found = [threshold_of_case(threshold, histogram, healthy) for histogram in with_lesions]
    assert found[0] >= found[1] >= found[2] >= value and found[2] < found[0]  # more lesion, lower threshold
    assert threshold_of_case(guaranteed(3.0, None), with_lesions[0], None) == 3.0
    with pytest.raises(ValueError, match="errors of lesion-free cases"):
        threshold_of_case(threshold, with_lesions[0], None)


def test_a_false_discovery_rate_that_does_not_hold_is_said():
    guarantee = Guarantee("discoveries", 0.05, 40, 0.3, [0.17, 0.46], 20.0, BENJAMINI_HOCHBERG)
    assert "does not hold here" in in_words(guaranteed(1.0, guarantee))
    guarantee = Guarantee("discoveries", 0.05, 40, 0.075, [0.016, 0.204], 20.0, BENJAMINI_HOCHBERG)
    assert "perhaps by chance" in in_words(guaranteed(1.0, guarantee))
    guarantee = Guarantee("discoveries", 0.05, 40, 0.025, [0.001, 0.132], 20.0, BENJAMINI_HOCHBERG)
    assert "more than asked" not in in_words(guaranteed(1.0, guarantee))
    assert conformal.healthy_discoveries({}, together([[1.0]]), 0.05, BENJAMINI_HOCHBERG) == 0
