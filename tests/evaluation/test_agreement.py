"""Agreement of two readers against scipy and values worked out by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nnunet_anomaly.evaluation.agreement import DEFINITIONS, agreement


def named(values):
    return {f"case_{index}": float(value) for index, value in enumerate(values)}


def figures(reference, prediction, **options):
    found = agreement(named(reference), named(prediction), **options)
    assert list(found.as_row()) == [*DEFINITIONS, "excluded"]
    return found.as_row()


def defined(row):
    return {key for key, value in row.items() if key not in ("n", "excluded") and not math.isnan(value)}


def test_by_hand():
    row = figures([40, 42, 44, 50], [41, 42, 47, 50])
    assert row["n"] == 4 and row["mae"] == 1 and row["bias"] == 1
    assert row["sd_difference"] == pytest.approx(math.sqrt(2))
    assert row["sd_absolute_error"] == pytest.approx(math.sqrt(2))
    assert row["loa_low"] == pytest.approx(1 - 1.96 * math.sqrt(2))
    assert row["loa_high"] == pytest.approx(1 + 1.96 * math.sqrt(2))
    assert row["spearman"] == pytest.approx(1)
    # SD of two values is their distance over sqrt(2)
    variation = [1 / math.sqrt(2) / 40.5, 0, 3 / math.sqrt(2) / 45.5, 0]
    assert row["rms_cv_percent"] == pytest.approx(100 * math.sqrt(sum(each**2 for each in variation) / 4))
    swapped = figures([41, 42, 47, 50], [40, 42, 44, 50])
    assert swapped["bias"] == -1 and swapped["rms_cv_percent"] == pytest.approx(row["rms_cv_percent"])


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 40), st.integers(0, 2**31))
def test_against_scipy(n, seed):
    rng = np.random.default_rng(seed)
    first = rng.uniform(25, 60, n).round(1)
    second = first + rng.normal(0.3, 2, n).round(1)
    row = figures(first, second)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "spearman": stats.spearmanr(first, second).statistic,
            "p_spearman": stats.spearmanr(first, second).pvalue,
            "pearson": stats.pearsonr(first, second).statistic,
            "p_pearson": stats.pearsonr(first, second).pvalue,
            "p_bias": stats.ttest_rel(second, first).pvalue,
        }
        low, high = stats.ttest_rel(second, first).confidence_interval(0.95)
    for key, value in {**expected, "ci95_low": low, "ci95_high": high}.items():
        if np.ptp(first) > 0 and np.ptp(second) > 0 and np.ptp(second - first) > 1e-9:
            assert row[key] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), key
    variation = np.std([first, second], axis=0, ddof=1) / np.mean([first, second], axis=0)
    assert row["rms_cv_percent"] == pytest.approx(100 * np.sqrt(np.mean(variation**2)))


def test_few_pairs():
    nothing = figures([], [])
    assert nothing["n"] == 0 and not defined(nothing)
    one = figures([40], [41])
    assert defined(one) == {"mae", "bias", "rms_cv_percent"} and one["bias"] == 1
    two = figures([40, 42], [41, 45])
    assert defined(two) == set(DEFINITIONS) - {"n", "spearman", "p_spearman", "pearson", "p_pearson"}
    assert defined(figures([40, 42, 50], [41, 45, 46])) == set(DEFINITIONS) - {"n"}


def test_constant_values():
    row = figures([40, 40, 40], [39, 41, 43])
    assert math.isnan(row["spearman"]) and math.isnan(row["pearson"]) and math.isnan(row["p_pearson"])
    assert row["bias"] == pytest.approx(1) and 0 < row["p_bias"] < 1
    equal = figures([40, 42, 44], [40, 42, 44])
    assert equal["bias"] == equal["mae"] == equal["sd_difference"] == equal["rms_cv_percent"] == 0
    assert equal["p_bias"] == 1 and equal["pearson"] == pytest.approx(1)
    shifted = figures([40.1, 42.2, 44.7], [40.4, 42.5, 45.0])  # differences that differ by rounding alone
    assert shifted["sd_difference"] == 0 and shifted["p_bias"] == 0
    assert shifted["ci95_low"] == shifted["ci95_high"] == shifted["bias"] == pytest.approx(0.3)


def test_change_has_no_coefficient_of_variation():
    assert math.isnan(figures([1, -2, 3], [1.5, -1, 2])["rms_cv_percent"])
    assert math.isnan(figures([1, 2, 3], [1, 2, 4], is_ratio_scale=False)["rms_cv_percent"])


def test_pairs_without_a_value_are_named():
    found = agreement({"a": 1.0, "b": math.nan, "c": 3.0}, {"a": 2.0, "b": 2.0, "d": 4.0})
    assert found.n == 1 and found.excluded == ["b", "c", "d"] and found.figures["bias"] == 1
