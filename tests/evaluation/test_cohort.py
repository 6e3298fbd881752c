"""Figures of a case, means over cases and paired comparisons against scipy, numpy and hand-made numbers."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from scipy import stats

from nnunet_anomaly.evaluation.cohort import (
    METRICS,
    absent_structure,
    compare_paired,
    comparison_rows,
    json_safe,
    save_table,
    structure_metrics,
    summarise,
    summary_rows,
)


def label_maps() -> tuple[np.ndarray, np.ndarray]:
    reference = np.zeros((6, 12, 12), dtype=np.uint8)
    reference[1:5, 1:6, 1:6] = 1
    reference[1:5, 6:11, 1:6] = 2
    prediction = np.roll(reference, 1, axis=2)
    prediction[0, 0, 11] = 4
    return reference, prediction


def test_without_structures_all_labels_found_are_measured():
    found = structure_metrics(*label_maps(), (1, 1, 1))
    assert list(found) == ["1", "2", "4"]
    assert set(METRICS) <= set(found["1"])
    assert (found["1"]["dsc"], found["1"]["hd_mm"], found["1"]["empty"]) == (0.8, 1, "")
    assert (found["4"]["dsc"], found["4"]["nsd"], found["4"]["hd_mm"]) == (0, 0, math.inf)
    assert found["4"]["empty"] == "reference"


def test_a_region_is_the_union_of_its_labels():
    reference, prediction = label_maps()
    structures = {"bone": (1, 2), "first": (1,), "third": (3,)}
    found = structure_metrics(reference, prediction, (2, 1, 1), structures, nsd_tolerance_mm=0.5)
    bone, found_bone = np.isin(reference, (1, 2)), np.isin(prediction, (1, 2))
    assert found["bone"] == structure_metrics(bone, found_bone, (2, 1, 1), nsd_tolerance_mm=0.5)["1"]
    assert found["bone"]["reference_voxels"] == 200
    assert found["third"]["empty"] == "both"
    np.testing.assert_equal(found["third"], absent_structure())
    assert all(math.isnan(found["third"][metric]) for metric in METRICS)


def test_tolerance_reaches_the_surface_dice():
    label_map, shifted = label_maps()
    tight, wide = (structure_metrics(label_map, shifted, (1, 1, 1), None, mm)["1"]["nsd"] for mm in (0.5, 1))
    assert tight < wide == 1


def test_summary_leaves_out_and_counts_what_is_not_finite():
    summary = summarise([1, 2, 6, math.nan, math.inf])
    assert (summary.n, summary.n_undefined, summary.mean, summary.median) == (3, 2, 3, 2)
    assert summary.sd == pytest.approx(math.sqrt(7))
    single, empty = summarise([5.0]), summarise([math.nan])
    assert single.mean == 5
    assert math.isnan(single.sd)
    assert (empty.n, empty.n_undefined) == (0, 1)
    assert math.isnan(empty.mean)


def test_comparison_equals_scipy():
    rng = np.random.default_rng(5)
    a = rng.normal(10, 2, 30)
    b = a + rng.normal(0.5, 1, 30)
    names = [f"case_{i}" for i in range(30)]
    found = compare_paired(dict(zip(names, a, strict=True)), dict(zip(names[::-1], b[::-1], strict=True)))
    expected = stats.ttest_rel(b, a)
    interval = expected.confidence_interval(0.95)
    assert found.n == 30
    assert found.mean_difference == pytest.approx((b - a).mean())
    assert (found.t, found.p_t) == pytest.approx((expected.statistic, expected.pvalue))
    assert (found.ci95_low, found.ci95_high) == pytest.approx((interval.low, interval.high))
    assert found.cohen_dz == pytest.approx((b - a).mean() / (b - a).std(ddof=1))
    # independent of ours: the normal approximation of the signed ranks, exact enough at n = 30
    ranks = stats.rankdata(abs(b - a))
    assert found.wilcoxon == min(ranks[b > a].sum(), ranks[b < a].sum())
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(b - a, method="approx").pvalue, abs=0.01)
    assert found.bootstrap95_low == pytest.approx(found.ci95_low, abs=0.1)
    assert found.bootstrap95_high == pytest.approx(found.ci95_high, abs=0.1)


def test_comparison_repeats_and_follows_its_seed():
    values = {f"case_{i}": float(i * i) for i in range(9)}
    zeros = dict.fromkeys(values, 0.0)
    assert compare_paired(zeros, values) == compare_paired(zeros, values)
    assert compare_paired(zeros, values).bootstrap95_low != compare_paired(zeros, values, seed=1).bootstrap95_low


def test_cases_without_a_pair_are_named():
    first = {"a": 1.0, "b": math.inf, "c": 3.0, "d": 4.0}
    second = {"c": 5.0, "a": 2.0, "b": 1.0, "e": 1.0}
    found = compare_paired(first, second)
    assert (found.n, found.excluded) == (2, ["b", "d", "e"])
    assert (found.mean_first, found.mean_second, found.mean_difference) == (2, 3.5, 1.5)


def test_comparison_of_too_few_or_equal_cases():
    nothing = compare_paired({"a": math.nan}, {"a": 1.0})
    assert (nothing.n, nothing.excluded) == (0, ["a"])
    assert math.isnan(nothing.mean_difference) and math.isnan(nothing.p_t)
    one = compare_paired({"a": 1.0}, {"a": 3.0})
    assert (one.n, one.mean_difference) == (1, 2)
    assert math.isnan(one.sd_difference) and math.isnan(one.p_t) and math.isnan(one.ci95_low)
    equal = compare_paired({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0})
    assert (equal.p_t, equal.p_wilcoxon, equal.cohen_dz, equal.ci95_low, equal.ci95_high) == (1, 1, 0, 0, 0)
    shifted = compare_paired({"a": 1.0, "b": 2.0}, {"a": 0.0, "b": 1.0})
    assert (shifted.cohen_dz, shifted.p_t) == (-math.inf, 0)


def rows() -> list[dict]:
    values = {"plain": [1.0, 2.0, math.nan], "aware": [2.0, 4.0, 6.0], "other": [0.0, 0.0, 0.0]}
    return [
        {"method": method, "case": f"case_{i}", "structure": "bone", "dsc": value}
        for method, column in values.items()
        for i, value in enumerate(column)
    ]


def test_tables():
    summaries = summary_rows(rows(), ["dsc"])
    assert [(row["method"], row["n"], row["mean"]) for row in summaries] == [
        ("plain", 2, 1.5),
        ("aware", 3, 4.0),
        ("other", 3, 0.0),
    ]
    comparisons = comparison_rows(rows(), ["dsc"])
    assert [(row["first"], row["second"], row["n"], row["excluded"]) for row in comparisons] == [
        ("plain", "aware", 2, ["case_2"]),
        ("plain", "other", 2, ["case_2"]),
    ]
    assert comparisons[0]["mean_difference"] == 1.5
    assert comparison_rows(rows()[:3], ["dsc"]) == []


def test_files_hold_no_nan(tmp_path):
    safe = json_safe({"a": [math.nan, np.float32(1.5), (math.inf, 2)], "b": {"c": "nan"}})
    assert json.loads(json.dumps(safe, allow_nan=False)) == {"a": [None, 1.5, [None, 2]], "b": {"c": "nan"}}
    save_table([{"x": math.nan, "y": ["p", "q"], "z": 0.1}], tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as handle:
        assert list(csv.DictReader(handle)) == [{"x": "", "y": "p q", "z": "0.1"}]
