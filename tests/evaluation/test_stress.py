"""Statistics of the stress test against scipy, brute force and hand-made rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nnunet_anomaly.evaluation.stress import (
    ALL_CORRUPTIONS,
    ALL_STRUCTURES,
    BETTER,
    COMPARED,
    COMPARISON_COLUMNS,
    METRICS,
    NO_VALUE,
    NOT_SHOWN,
    TOO_FEW,
    WORSE,
    compare,
    curves,
    headline,
    per_case,
    t_interval,
    verdict,
    worst_cases,
)

GRADES = {"none": [0.0], "noise": [0.5, 1.0], "metal": [0.25, 1.0]}


def row(model="a", corruption="none", severity=0.0, case="c0", structure="bone", **figures):
    usual = {"dsc": 0.9, "asd_mm": 0.5, "hd_mm": 4.0, "hd95_mm": 2.0, "nsd": 0.8, "empty": ""}
    counts = {"reference_voxels": 100, "prediction_voxels": 90, "components_reference": 1, "components_prediction": 1}
    local = {"component_error": 0, "false_components": 0, "anomaly_voxels": 10, "anomaly_recall": 0.7}
    key = {"model": model, "corruption": corruption, "severity": severity, "case": case, "fold": "0"}
    return {**key, "structure": structure, **usual, **counts, **local, **figures}


def rows_of(models=("a", "b"), cases=6, structures=("bone", "cartilage"), value=None, grades=None):
    """Rows of every combination, each with a Dice of its own, or the figures that ``value`` gives."""
    rng = np.random.default_rng(0)
    rows = []
    for corruption, severities in (grades or GRADES).items():
        for severity, case, model, structure in itertools.product(severities, range(cases), models, structures):
            figures = value(model, corruption, severity, case, structure) if value else {"dsc": rng.uniform(0.5, 0.9)}
            rows.append(row(model, corruption, severity, f"c{case}", structure, **figures))
    return rows


def only(rows, **key):
    found = [each for each in rows if all(each[name] == value for name, value in key.items())]
    assert len(found) == 1, f"{len(found)} rows of {key}"
    return found[0]


# ---- over structures


def test_a_case_has_means_of_figures_and_sums_of_errors():
    bone = row(dsc=0.8, hd_mm=3.0, component_error=2, false_components=1, anomaly_recall=math.nan)
    cartilage = row(structure="cartilage", dsc=0.4, hd_mm=5.0, component_error=1, anomaly_recall=0.5)
    (found,) = per_case([bone, cartilage])
    assert (found["structure"], found["fold"], found["case"]) == (ALL_STRUCTURES, "0", "c0")
    assert found["dsc"] == pytest.approx(0.6)
    assert (found["hd_mm"], found["component_error"], found["false_components"]) == (4.0, 3, 1)
    assert (found["anomaly_recall"], found["reference_voxels"], found["components_prediction"]) == (0.5, 200, 2)


def test_a_lost_structure_is_not_left_out_of_a_case():
    lost = row(structure="cartilage", dsc=0.0, hd_mm=math.inf, asd_mm=math.inf, prediction_voxels=0)
    (found,) = per_case([row(dsc=0.8), lost])
    assert found["dsc"] == pytest.approx(0.4)
    assert math.isinf(found["hd_mm"]) and math.isinf(found["asd_mm"])


def test_a_structure_that_neither_has_is_left_out_of_a_case():
    absent = row(structure="cartilage", reference_voxels=0, prediction_voxels=0, **dict.fromkeys(METRICS, math.nan))
    (found,) = per_case([row(dsc=0.8, hd_mm=3.0), absent])
    assert (found["dsc"], found["hd_mm"], found["component_error"]) == (0.8, 3.0, 0)
    (found,) = per_case([absent])
    assert all(math.isnan(found[name]) for name in METRICS)
    assert found["empty"] == "both"


def test_two_rows_of_one_structure_and_odd_severities_are_refused():
    with pytest.raises(ValueError, match=r"two rows of a, none, 0\.0, c0, bone"):
        per_case([row(), row(dsc=0.1)])
    for wrong in (row(corruption="noise"), row(severity=0.5)):
        with pytest.raises(ValueError, match="has severity"):
            per_case([wrong])


# ---- intervals and curves


@pytest.mark.parametrize("comparisons", [1, 8])
def test_intervals_are_those_of_scipy(comparisons):
    values = np.random.default_rng(1).normal(0.3, 0.1, 9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(1 - 0.05 / comparisons)
    assert t_interval(values.tolist(), comparisons) == pytest.approx((expected.low, expected.high))


def test_no_interval_with_two_cases():
    assert all(math.isnan(end) for end in t_interval([0.1, 0.2]))
    assert not any(math.isnan(end) for end in t_interval([0.1, 0.2, 0.3]))


def test_simultaneous_intervals_hold_together():
    """Simulation: four independent means, all 0; all intervals hold 0 in 95 % of the trials, or a little more."""
    rng = np.random.default_rng(2)
    trials = rng.normal(size=(2000, 4, 7))
    held = [all(low <= 0 <= high for low, high in (t_interval(v.tolist(), 4) for v in trial)) for trial in trials]
    assert 0.94 < np.mean(held) < 0.97


def test_curves_against_brute_force():
    rows = rows_of()
    found = curves(rows)
    for model, (corruption, grades) in itertools.product("ab", GRADES.items()):
        for severity, structure in itertools.product({0.0, *grades}, ("bone", "cartilage")):
            at = "none" if severity == 0 else corruption
            values = [
                each["dsc"]
                for each in rows
                if (each["model"], each["corruption"], each["severity"], each["structure"])
                == (model, at, severity, structure)
            ]
            key = {"model": model, "corruption": corruption, "severity": severity, "metric": "dsc"}
            point = only(found, structure=structure, **key)
            assert (point["n"], point["n_undefined"]) == (6, 0)
            assert point["mean"] == pytest.approx(np.mean(values))
            half = stats.t.ppf(0.975, 5) * stats.sem(values)
            assert point["ci95_low"] == pytest.approx(max(0, np.mean(values) - half))
            assert point["ci95_high"] == pytest.approx(min(1, np.mean(values) + half))
    whole = only(found, model="a", corruption="noise", severity=1.0, structure=ALL_STRUCTURES, metric="dsc")
    halves = [
        only(found, model="a", corruption="noise", severity=1.0, structure=name, metric="dsc")["mean"]
        for name in ("bone", "cartilage")
    ]
    assert whole["mean"] == pytest.approx(np.mean(halves))


def test_a_curve_begins_with_the_uncorrupted_cases():
    noise = [each for each in curves(rows_of()) if (each["corruption"], each["metric"]) == ("noise", "hd_mm")]
    assert [each["severity"] for each in noise if (each["model"], each["structure"]) == ("b", "bone")] == [0, 0.5, 1]
    none = [each for each in curves(rows_of()) if each["corruption"] == "none"]
    assert {each["severity"] for each in none} == {0.0}


def test_without_uncorrupted_cases_a_curve_begins_with_the_first_severity():
    rows = [each for each in rows_of() if each["corruption"] == "noise"]
    assert {each["severity"] for each in curves(rows)} == {0.5, 1.0}


def test_intervals_stay_within_what_a_figure_can_be_and_undefined_values_are_counted():
    values = [0.0, 0.9, 1.0, 1.0]
    rows = [
        row(case=f"c{place}", dsc=value, hd_mm=math.inf if value == 0 else place, anomaly_recall=math.nan)
        for place, value in enumerate(values)
    ]
    points = {each["metric"]: each for each in curves(rows) if each["structure"] == "bone"}
    assert (points["dsc"]["n"], points["dsc"]["ci95_high"]) == (4, 1.0)
    assert (points["hd_mm"]["n"], points["hd_mm"]["n_undefined"], points["hd_mm"]["mean"]) == (3, 1, 2.0)
    assert points["hd_mm"]["ci95_low"] == 0.0  # 2 - 4.3 * 0.58 is below
    assert (points["anomaly_recall"]["n"], points["anomaly_recall"]["n_undefined"]) == (0, 4)
    assert math.isnan(points["anomaly_recall"]["mean"]) and math.isnan(points["anomaly_recall"]["ci95_low"])


# ---- comparisons


def brute_force(rows, corruption, metric="dsc", structure="bone"):
    """Differences b - a of each case, averaged over severities."""
    by_place = {(each["model"], each["corruption"], each["severity"], each["case"]): each[metric] for each in rows
                if each["structure"] == structure}  # fmt: skip
    return [
        np.mean([by_place["b", corruption, s, case] - by_place["a", corruption, s, case] for s in GRADES[corruption]])
        for case in sorted({each["case"] for each in rows})
    ]


def test_comparisons_against_brute_force_and_scipy():
    rows = rows_of()
    found = compare(rows)
    assert {each["metric"] for each in found} == set(COMPARED)
    assert {tuple(each) for each in found} == {COMPARISON_COLUMNS}
    for corruption in GRADES:
        differences = brute_force(rows, corruption)
        row_found = only(found, corruption=corruption, structure="bone", metric="dsc")
        test = stats.ttest_1samp(differences, 0)
        comparisons = 1 if corruption == "none" else 2
        wide = test.confidence_interval(1 - 0.05 / comparisons)
        assert (row_found["n"], row_found["n_pairs"], row_found["n_compared"]) == (
            6,
            6 * len(GRADES[corruption]),
            comparisons,
        )
        assert row_found["mean_difference"] == pytest.approx(np.mean(differences))
        assert row_found["mean_second"] - row_found["mean_first"] == pytest.approx(np.mean(differences))
        ends = test.confidence_interval(0.95)
        assert (row_found["ci95_low"], row_found["ci95_high"]) == pytest.approx((ends.low, ends.high))
        simultaneous = row_found["simultaneous95_low"], row_found["simultaneous95_high"]
        assert simultaneous == pytest.approx((wide.low, wide.high))
    differences = np.mean([brute_force(rows, "noise"), brute_force(rows, "metal")], axis=0)
    overall = only(found, corruption=ALL_CORRUPTIONS, structure="bone", metric="dsc")
    ends = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (overall["n"], overall["n_compared"]) == (6, 1)
    assert (overall["simultaneous95_low"], overall["simultaneous95_high"]) == pytest.approx((ends.low, ends.high))


def test_verdicts_know_which_direction_is_better():
    def better(model, corruption, severity, case, structure):
        gain = (0.1 if model == "b" else 0) * (corruption != "none")
        wobble = case * 0.01 * (model == "b")
        return {"dsc": 0.5 + gain + wobble, "hd_mm": 5 - gain - wobble, "anomaly_recall": 0.5 - gain - wobble,
                "component_error": 3 + 10 * gain}  # fmt: skip

    found = compare(rows_of(value=better))
    verdicts = {each["metric"]: each["verdict"] for each in found
                if (each["corruption"], each["structure"]) == ("noise", ALL_STRUCTURES)}  # fmt: skip
    assert verdicts == {"dsc": BETTER, "hd_mm": BETTER, "anomaly_recall": WORSE, "component_error": WORSE}
    assert verdict(5, -0.1, 0.0, True) == NOT_SHOWN
    assert verdict(5, 0.0, 0.0, False) == NOT_SHOWN
    assert verdict(5, 1e-16, 2e-16, True) == NOT_SHOWN  # rounding


def test_a_verdict_takes_the_simultaneous_interval():
    """A difference whose ordinary interval is above 0 and whose simultaneous one is not."""
    differences = [0.03, 0.1, 0.02, 0.08, 0.06, 0.0]

    def value(model, corruption, severity, case, structure):
        return {"dsc": 0.5 + differences[case] * (model == "b" and corruption == "noise")}

    grades = {"none": [0.0], "noise": [1.0], **{f"other{number}": [1.0] for number in range(7)}}
    found = only(compare(rows_of(value=value, grades=grades)), corruption="noise", structure="bone", metric="dsc")
    assert found["n_compared"] == 8
    assert found["ci95_low"] > 0 > found["simultaneous95_low"]
    assert found["verdict"] == NOT_SHOWN


def test_pairs_with_an_empty_prediction_are_left_out_and_named():
    def value(model, corruption, severity, case, structure):
        lost = model == "b" and corruption == "noise" and severity == 1.0 and case < 2
        return {"hd_mm": math.inf if lost else 4.0 + case * (model == "b"), "dsc": 0.0 if lost else 0.8}

    found = compare(rows_of(value=value))
    distance = only(found, corruption="noise", structure="bone", metric="hd_mm")
    assert (distance["n"], distance["n_pairs"], distance["n_undefined"]) == (6, 10, 2)
    assert (distance["n_undefined_first"], distance["n_undefined_second"]) == (0, 2)
    assert distance["note"] == "2 of 12 pairs left out, a label map being empty: a 0, b 2"
    assert distance["mean_difference"] == pytest.approx(2.5)  # mean of 0 to 5: the other severity stays
    overlap = only(found, corruption="noise", structure="bone", metric="dsc")
    assert (overlap["n_undefined"], overlap["note"]) == (0, "")
    overall = only(found, corruption=ALL_CORRUPTIONS, structure="bone", metric="hd_mm")
    assert (overall["n_undefined"], overall["n_undefined_second"]) == (2, 2)


def test_all_predictions_empty_gives_no_value():
    found = compare(rows_of(value=lambda *_: {"hd_mm": math.inf, "dsc": 0.0, "anomaly_recall": math.nan}))
    distance = only(found, corruption="metal", structure=ALL_STRUCTURES, metric="hd_mm")
    assert (distance["verdict"], distance["n"], distance["n_undefined"]) == (NO_VALUE, 0, 12)
    assert math.isnan(distance["mean_difference"])
    recall = only(found, corruption="metal", structure=ALL_STRUCTURES, metric="anomaly_recall")
    assert "nothing of the structures lying inside the anomaly" in recall["note"]
    overlap = only(found, corruption="metal", structure=ALL_STRUCTURES, metric="dsc")
    assert (overlap["verdict"], overlap["mean_difference"]) == (NOT_SHOWN, 0.0)


def test_a_case_that_failed_in_one_model_is_not_compared():
    rows = [each for each in rows_of() if (each["model"], each["case"], each["corruption"]) != ("b", "c3", "noise")]
    found = only(compare(rows), corruption="noise", structure="bone", metric="dsc")
    assert (found["n"], found["n_pairs"], found["n_missing"]) == (5, 10, 2)
    assert found["note"] == "2 without a prediction of both models"


@pytest.mark.parametrize("cases", [1, 2])
def test_few_cases_have_differences_and_no_interval(cases):
    for found in compare(rows_of(cases=cases)):
        assert found["verdict"] == TOO_FEW
        assert math.isnan(found["ci95_low"]) and math.isnan(found["simultaneous95_high"])
        assert math.isfinite(found["mean_difference"])


def test_one_model_is_compared_with_nothing():
    assert compare(rows_of(models=("a",))) == []


# ---- worst cases


def test_worst_cases_are_the_largest_losses_of_each_corruption():
    losses = {("noise", 2, "b"): 0.3, ("noise", 1, "a"): 0.2, ("metal", 4, "a"): 0.5, ("none", 0, "a"): 0.0}

    def value(model, corruption, severity, case, structure):
        loss = losses.get((corruption, case, model), 0.05) * (severity == 1.0)
        if corruption == "noise" and severity == 0.5:
            loss = 0.7  # not the highest severity
        return {"dsc": 0.9 - loss + (0.05 if structure == "bone" else -0.05)}

    found = worst_cases(rows_of(value=value), 5)
    assert [tuple(each[key] for key in ("corruption", "severity", "case", "model")) for each in found] == [
        ("metal", 1.0, "c4", "a"),
        ("noise", 1.0, "c2", "b"),
    ]
    assert [each["loss"] for each in found] == pytest.approx([0.5, 0.3])
    assert [each["dice_uncorrupted"] for each in found] == pytest.approx([0.9, 0.9])
    assert worst_cases(rows_of(value=value), 1) == found[:1]
    assert worst_cases(rows_of(value=value), 0) == []
    of_b = worst_cases(rows_of(value=value), 5, {"b"})
    assert (of_b[0]["corruption"], of_b[0]["case"], of_b[1]["corruption"]) == ("noise", "c2", "metal")
    assert {each["model"] for each in of_b} == {"b"} and of_b[1]["loss"] == pytest.approx(0.05)


def test_worst_cases_need_an_uncorrupted_figure():
    rows = [each for each in rows_of() if (each["corruption"], each["case"]) not in {("none", "c1"), ("none", "c2")}]
    for each in rows:
        if each["case"] in ("c1", "c2"):
            each["dsc"] = 0.0
    assert {each["case"] for each in worst_cases(rows, 9)}.isdisjoint({"c1", "c2"})


# ---- sentences


def gains(by_model, cost=None):
    """Rows in which models gain Dice under corruption, and lose some without it."""

    def value(model, corruption, severity, case, structure):
        gain = by_model.get(model, 0) if corruption == "noise" else -(cost or {}).get(model, 0)
        return {"dsc": 0.6 + gain + 0.001 * ((case * 7 + len(model)) % 3)}

    return rows_of(models=tuple(by_model), value=value, grades={"none": [0.0], "noise": [0.5, 1.0], "metal": [1.0]})


def sentences(rows, simple=()):
    found = headline(rows, simple=simple)
    assert found == headline(rows, compare(rows), simple)
    return " ".join(found)


def test_the_headline_says_what_helps_and_what_it_costs():
    text = sentences(gains({"plain": 0.0, "aware": 0.2}, cost={"aware": 0.05}), simple=["plain"])
    assert text.startswith("Tested on 6 cases with 2 corruptions.")
    assert "one training of each network" in text
    assert "Shown to have a higher Dice than plain over all corruptions together: aware." in text
    assert "of 2 corruptions it is better on 1 (noise), worse on 1 (metal)" in text
    assert "which is its cost" in text
    assert "not shown to be worse" not in text


def test_the_headline_says_where_nothing_helps():
    text = sentences(gains({"plain": 0.0, "aware": 0.0}))
    assert "No model is shown to have a higher Dice than plain, the first one" in text
    assert "no proof that none has" in text and "as good as" not in text
    assert "better on 0, worse on 0, no difference shown on 2" in text


def test_the_headline_names_models_that_are_lower():
    text = sentences(gains({"plain": 0.0, "aware": -0.3}))
    assert "Shown to have a lower Dice than plain: aware." in text


def test_the_headline_names_a_simple_model_that_is_as_good():
    rows = gains({"plain": 0.0, "augmentation": 0.2, "augmentation too": 0.2001, "aware": 0.2002})
    text = sentences(rows, simple=["plain", "augmentation"])
    assert "than plain over all corruptions together: augmentation, augmentation too and aware." in text
    assert "; augmentation, without error maps, is not shown to be worse." in text
    best = sentences(gains({"plain": 0.0, "augmentation": 0.2, "aware": 0.1}), simple=["plain", "augmentation"])
    assert "augmentation has the highest mean Dice under corruption, and needs no error maps." in best


def test_the_headline_of_one_model_of_few_cases_and_of_no_corruption():
    assert "only one model, a," in sentences(rows_of(models=("a",)))
    few = sentences(rows_of(cases=1))
    assert "Tested on 1 case with 2 corruptions." in few and "fewer than 3 cases" in few
    assert "hown to have" not in few and "too few cases on 2" in few
    none = sentences(rows_of(grades={"none": [0.0]}))
    assert "on uncorrupted cases it differs by" in none and "under corruption" not in none
    assert headline([]) == ["No case was tested."]


def test_the_headline_tells_of_distances_left_out():
    def value(model, corruption, severity, case, structure):
        return {"hd_mm": math.inf if (model, case) == ("b", 0) else 3.0 + 0.1 * case * (model == "b")}

    text = sentences(rows_of(value=value))
    assert "the Hausdorff distance under corruption differs by +0.30 mm" in text
    assert "4 of 24 pairs left out, a label map being empty: a 0, b 4" in text
