"""``nnunet-anomaly evaluate-t2`` on tables of known disagreement."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from scipy import stats

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.relaxometry.subregions import REGIONS
from nnunet_anomaly.workflow import evaluate_t2

CASES = [f"knee_{number}" for number in range(6)]


def table(bias_ms=0.0, change_bias_ms=0.0, noise_ms=1.0, seed=1, side="right"):
    """Rows by case, time point and region; the same knees whatever the reader."""
    truth, reader = np.random.default_rng(0), np.random.default_rng(seed)
    rows = {}
    for case in CASES:
        for region in REGIONS:
            first = truth.uniform(30, 50)
            second = first + truth.normal(1, 2)
            error = bias_ms + noise_ms * reader.normal(size=2)
            rows[case, 1, region] = (side, first + error[0], 100)
            rows[case, 2, region] = (side, second + error[1] + change_bias_ms, 100)
    return rows


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["case", "time_point", "side", "region", "t2_mean_ms", "t2_voxels"])
        for (case, time_point, region), (side, t2_ms, voxels) in rows.items():
            writer.writerow([case, time_point, side, region, "" if math.isnan(t2_ms) else t2_ms, voxels])
    return path


@pytest.fixture
def without_pictures(monkeypatch):
    """They take most of the time."""
    monkeypatch.setattr(evaluate_t2, "FIGURES", {})


def run(*arguments):
    return main(["evaluate-t2", *map(str, arguments)])


def read(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.usefixtures("without_pictures")
def test_two_methods(tmp_path, capsys):
    tables = {
        "reader_1": table(noise_ms=0.0),
        "model": table(bias_ms=0.5, noise_ms=0.2, seed=2),
        "reader_2": table(bias_ms=-2.0, change_bias_ms=1.0, seed=3),
    }
    for name, rows in tables.items():
        write(tmp_path / name / "regions.csv", rows)
    output = tmp_path / "evaluation"
    assert (
        run("-ref", tmp_path / "reader_1", "-pred", tmp_path / "model", "-pred", tmp_path / "reader_2", "-o", output)
        == 0
    )
    rows = {(row["method"], row["quantity"], row["region"]): row for row in read(output / "agreement.csv")}
    assert len(rows) == 2 * 2 * 27
    for method in ("model", "reader_2"):
        for region in ("All", "Deep medial central"):
            pairs = np.array(
                [
                    [tables[name][case, time, region][1] for name in ("reader_1", method)]
                    for case in CASES
                    for time in (1, 2)
                ]
            )
            row, difference = rows[method, "t2", region], np.diff(pairs)[:, 0]
            assert int(row["n"]) == 12 and float(row["bias"]) == pytest.approx(difference.mean())
            assert float(row["mae"]) == pytest.approx(np.abs(difference).mean())
            assert float(row["spearman"]) == pytest.approx(stats.spearmanr(*pairs.T).statistic)
            changes = np.diff(pairs.reshape(6, 2, 2), axis=1)[:, 0]
            row = rows[method, "change", region]
            assert int(row["n"]) == 6 and row["rms_cv_percent"] == ""
            assert float(row["pearson"]) == pytest.approx(stats.pearsonr(*changes.T).statistic)
            assert float(row["p_bias"]) == pytest.approx(stats.ttest_rel(*changes.T[::-1]).pvalue)
    values = read(output / "values.csv")
    assert len(values) == 2 * 27 * (12 + 6)
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert summary["results"]["model"]["t2"]["All"]["n"] == 12 and summary["failed"] == {}
    assert summary["results"]["model"]["change"]["All"]["rms_cv_percent"] is None
    assert "Superficial lateral anterior" in capsys.readouterr().out


def test_pictures_are_in_the_report(tmp_path):
    reference, prediction = write(tmp_path / "a.csv", table()), write(tmp_path / "b.csv", table(seed=2))
    assert run("-ref", reference, "-pred", prediction, "-o", tmp_path / "out") == 0
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for picture in ("bland_altman_t2", "bland_altman_change", "scatter_t2", "scatter_change"):
        assert (tmp_path / f"out/pictures/b/{picture}.png").stat().st_size > 10_000
        assert f"(pictures/b/{picture}.png)" in report
    assert "Mean T2 of a region" in report and "as in Thomas 2021. Two" in report
    assert "## Change of T2: b" in report and "| Superficial medial posterior | 6 |" in report


@pytest.mark.usefixtures("without_pictures")
def test_what_is_missing_is_named(tmp_path, capsys):
    reference, prediction = table(noise_ms=0.0), table()
    reference = {key: row for key, row in reference.items() if key[:2] != ("knee_5", 2)}
    prediction = {key: row for key, row in prediction.items() if key[:2] != ("knee_0", 2)}
    prediction["knee_1", 1, "Deep"] = ("right", math.nan, 0)
    prediction["knee_2", 1, "Deep"] = ("right", 99.0, 9)
    prediction["knee_1", 2, "Deep"] = ("right", 40.0, 10)
    del prediction["knee_3", 1, "Deep"]
    for key, row in table(side="left").items():
        if key[0] == "knee_4":
            prediction[key] = row
    output = tmp_path / "evaluation"
    arguments = (
        "-ref",
        write(tmp_path / "a.csv", reference),
        "-pred",
        write(tmp_path / "b.csv", prediction),
        "-o",
        output,
    )
    assert run(*arguments, "--min-voxels", 10) == 1
    printed = capsys.readouterr()
    assert (
        "b: knee_0, time point 2" in printed.err
        and "b: knee_4: a right knee in the reference, a left one" in printed.err
    )
    assert "b: 1 predictions have no reference and were left out: knee_5, time point 2" in printed.out
    rows = {(row["quantity"], row["region"]): row for row in read(output / "agreement.csv")}
    assert int(rows["t2", "All"]["n"]) == 8 and int(rows["change", "All"]["n"]) == 3
    assert int(rows["t2", "Deep"]["n"]) == 5 and int(rows["change", "Deep"]["n"]) == 0
    assert rows["t2", "Deep"]["excluded"] == "knee_1, time point 1; knee_2, time point 1; knee_3, time point 1"
    assert rows["change", "Deep"]["bias"] == ""


@pytest.mark.usefixtures("without_pictures")
def test_change_that_is_positive_everywhere_has_no_coefficient_of_variation_either(tmp_path):
    rows = {key: (side, 40.0 + 5 * key[1] + len(key[2]), n) for key, (side, _, n) in table().items()}
    paths = write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", table())
    assert run("-ref", paths[0], "-pred", paths[0], "-pred", paths[1], "-o", tmp_path / "out") == 0
    cells = {row["quantity"]: row["rms_cv_percent"] for row in read(tmp_path / "out" / "agreement.csv")[:54]}
    assert cells == {"t2": "0.0", "change": ""}


@pytest.mark.usefixtures("without_pictures")
def test_names_of_methods(tmp_path, monkeypatch):
    for name in ("ref", "reader.1", "reader.2"):
        write(tmp_path / name / "regions.csv", table())
    other = write(tmp_path / "model.v2.csv", table())
    monkeypatch.chdir(tmp_path / "reader.1")
    assert run("-ref", "../ref", "-pred", ".", "-pred", "../reader.2", "-pred", other, "-o", "../out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["methods"]) == ["reader.1", "reader.2", "model.v2"]


@pytest.mark.usefixtures("without_pictures")
def test_a_side_in_some_rows_alone_counts(tmp_path, capsys):
    reference = {key: ("right", *row[1:]) if key[2] == "All" else ("", *row[1:]) for key, row in table().items()}
    paths = write(tmp_path / "a.csv", reference), write(tmp_path / "b.csv", table(side="left"))
    assert run("-ref", paths[0], "-pred", paths[1], "-o", tmp_path / "out") == 2
    assert "knee_0: a right knee in the reference, a left one" in capsys.readouterr().err


@pytest.mark.usefixtures("without_pictures")
def test_one_time_point_has_no_change(tmp_path):
    rows = {key: row for key, row in table().items() if key[1] == 1 and key[0] == "knee_0"}
    write(tmp_path / "a" / "knee_0" / "regions.csv", rows)
    output = tmp_path / "evaluation"
    assert run("-ref", tmp_path / "a", "-pred", tmp_path / "a", "-o", output, "--names", "same") == 0
    found = read(output / "agreement.csv")
    assert {row["quantity"] for row in found} == {"t2"} and {row["n"] for row in found} == {"1"}
    assert {row["bias"] for row in found} == {"0.0"} and {row["spearman"] for row in found} == {""}


@pytest.mark.usefixtures("without_pictures")
def test_wrong_input(tmp_path, capsys):
    right = write(tmp_path / "a.csv", table())
    other = {("other", *key[1:]): row for key, row in table().items()}
    for arguments, message in (
        (("-ref", tmp_path / "none", "-pred", right), "neither a table nor a folder"),
        (("-ref", right, "-pred", tmp_path / "none.csv"), "none.csv does not exist"),
        (("-ref", right, "-pred", right, "-pred", right), "--names must give 2 different names"),
        (("-ref", right, "-pred", write(tmp_path / "b.csv", other)), "No case and time point of"),
        (("-ref", right, "-pred", right, "--min-voxels", 0), "must be at least 1"),
    ):
        assert run(*arguments, "-o", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
