"""``nnunet-anomaly t2`` on a dataset: which knees it takes, in which order, and what a failed one does to others."""

from __future__ import annotations

import csv
import json

import pytest

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import load_json
from nnunet_anomaly.multi_echo import FOLDER
from nnunet_anomaly.relaxometry.region_table import read_region_table
from nnunet_anomaly.settings import T2Settings
from nnunet_anomaly.workflow import t2_results
from nnunet_anomaly.workflow.t2 import measure_all
from nnunet_anomaly.workflow.t2_cohort import cases_of, knees_of
from nnunet_anomaly.workflow.t2_knee import Method
from nnunet_anomaly.workflow.t2_model import CartilageModel, Label


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def run(*arguments, expect=0):
    assert main(["t2", *map(str, arguments), "-device", "cpu", "-np", "1"]) == expect


@pytest.fixture
def dataset(tmp_path, drawn, put_knee, make_echoes, monkeypatch):
    """Three knees: one of two visits, one of three, one of one; the first in imagesTs."""
    monkeypatch.setattr(t2_results, "write_report", lambda *_: None)
    knee = drawn(spacing_mm=(3.0, 1.0, 1.0), pixels=64)
    folder = tmp_path / "Dataset104_Knee"
    for number, visit in enumerate(("1_48m", "1_00m", "2_12m", "2_00m", "2_96m", "3_00m")):
        later = 4.0 if "00m" not in visit else 0.0
        put_knee(folder, f"{visit}_right", knee, make_echoes(knee, seed=number, rise=lambda _, later=later: later))
    (folder / "imagesTs").mkdir()
    for case in ("1_48m_right", "1_00m_right"):
        (folder / "imagesTs" / f"{case}_0000.nii.gz").touch()
    return folder


def test_all_knees_with_their_visits_in_order(dataset, tmp_path, capsys):
    output = tmp_path / "o"
    run("-i", dataset, "--mask", dataset / "masks", "-o", output)
    said = capsys.readouterr()
    assert "6 series of 3 knees" in said.out and "3 done, 0 were there already, 0 failed" in said.out
    assert "2_right: of 3 visits (00m, 12m, 96m) the first and the last were measured" in said.err
    table = read_region_table(output)
    assert {key[:2] for key in table} == {(f"{n}_right", t) for n in (1, 2) for t in (1, 2)} | {("3_right", 1)}
    knees = {row["case"]: row for row in rows_of(output / "knees.csv")}
    assert knees["1_right"]["visits"] == "00m 48m" and knees["2_right"]["visits"] == "00m 96m"
    assert float(knees["1_right"]["t2_change_ms"]) == pytest.approx(4, abs=0.2)
    assert knees["3_right"]["t2_change_ms"] == ""
    assert len(rows_of(output / "change.csv")) == 2 * 27
    assert read_region_table(output / "1_right") == {key: row for key, row in table.items() if key[0] == "1_right"}
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "3 knees" in page and "2_right: of 3 visits" in page
    assert page.count("<a href") == 3 and '<a href="2_right/report.html">2_right</a>' in page

    run("-i", dataset, "--mask", dataset / "masks", "-o", output)
    assert "0 done, 3 were there already" in capsys.readouterr().out
    assert read_region_table(output) == table


def test_a_failed_knee_is_named_and_the_others_go_on(dataset, tmp_path, capsys):
    output = tmp_path / "o"
    image = dataset / FOLDER / "2_00m_right.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    mask = dataset / "masks" / "3_00m_right.nii.gz"
    kept = mask.read_bytes()
    mask.unlink()
    run("-i", dataset, "--mask", dataset / "masks", "-o", output, expect=1)
    error = capsys.readouterr().err
    assert "2 failed" in error and "2_00m_right.nii.gz is" in error and "has no mask of 3_00m_right" in error
    assert {key[0] for key in read_region_table(output)} == {"1_right"}
    assert "no mask of 3_00m" in (output / "report.html").read_text(encoding="utf-8")
    image.write_bytes(whole)
    mask.write_bytes(kept)
    stamp = (output / "1_right" / "record.json").stat().st_mtime_ns
    run("-i", dataset, "--mask", dataset / "masks", "-o", output)
    assert "2 done, 1 were there already, 0 failed" in capsys.readouterr().out
    assert (output / "1_right" / "record.json").stat().st_mtime_ns == stamp


def test_some_cases_only(dataset, tmp_path, capsys):
    run("-i", dataset, "--mask", dataset / "masks", "-o", tmp_path / "test", "--test-cases")
    assert {key[0] for key in read_region_table(tmp_path / "test")} == {"1_right"}
    run("-i", dataset, "--mask", dataset / "masks", "-o", tmp_path / "one", "--cases", "2_12m_right", "2_96m_right")
    assert load_json(tmp_path / "one" / "2_right" / "record.json")["time_points"][0]["visit"] == "12m"
    run("-i", dataset, "--mask", dataset / "masks", "-o", tmp_path / "no", "--cases", "4_00m_right", expect=2)
    assert "has no case 4_00m_right" in capsys.readouterr().err
    run("-i", dataset, "--mask", dataset / "masks" / "1_00m_right.nii.gz", "-o", tmp_path / "no", expect=2)
    assert "is no folder" in capsys.readouterr().err
    run("-i", dataset, "-i2", dataset, "--mask", dataset / "masks", "-o", tmp_path / "no", expect=2)
    assert "is a dataset" in capsys.readouterr().err


def write_facts(folder, case, **facts):
    known = {"echo_times_ms": [10.0, 20.0], "side": "right", "series": case, "subject": "1", "time_point": "00m"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{case}.nii.gz").touch()
    (folder / f"{case}.json").write_text(json.dumps({**known, **facts}))


def test_visits_whose_order_nobody_knows(tmp_path):
    folder = tmp_path / FOLDER
    write_facts(folder, "a")
    write_facts(folder, "b")  # of the same visit
    write_facts(folder, "c", subject="2", time_point="20060101")
    write_facts(folder, "d", subject="2", time_point="48m")
    write_facts(folder, "e", subject="3", time_point=None)
    write_facts(folder, "f", subject="4", time_point="20080101")
    write_facts(folder, "g", subject="4", time_point="20060101", side=None)
    write_facts(folder, "h", subject="5", echo_times_ms=[0.01, 0.02])
    write_facts(folder, "i", subject="x/6")
    write_facts(folder, "j", subject="x_6", time_point="48m")
    cases = cases_of(tmp_path, None, False)
    knees, failed = knees_of(cases, None, "right", tmp_path / "o")
    assert {knee.name: [path.name[0] for path in knee.sources] for knee in knees} == {
        "3_right": ["e"],
        "4_right": ["g", "f"],
    }
    assert set(failed) == {"1_right", "2_right", "x_6_right", "h"} and "seconds" in failed["h"]
    assert "x/6, x_6 would have one folder" in failed["x_6_right"]
    assert "which of a and b is earlier" in failed["1_right"] and "'20060101'" in failed["2_right"]
    with pytest.raises(InputError, match="no test case"):
        (tmp_path / "imagesTs").mkdir()
        cases_of(tmp_path, None, True)


def test_a_knee_of_unknown_side_fails_by_name(dataset, tmp_path, capsys):
    path = dataset / FOLDER / "3_00m_right.json"
    path.write_text(json.dumps({**load_json(path), "side": None}))
    run("-i", dataset, "--mask", dataset / "masks", "-o", tmp_path / "o", expect=1)
    assert "the side of the knee is unknown; give --side" in capsys.readouterr().err
    run("-i", dataset, "--mask", dataset / "masks", "-o", tmp_path / "o", "--side", "right")
    assert (tmp_path / "o" / "3_right" / "regions.csv").is_file()


def test_a_knee_that_a_model_cannot_predict_keeps_nothing_of_an_earlier_run(dataset, tmp_path):
    output = tmp_path / "o"
    run("-i", dataset, "--mask", dataset / "masks", "-o", output, "--cases", "3_00m_right")
    assert (output / "3_right" / "record.json").is_file()
    broken = CartilageModel(tmp_path / "model", (0,), "c.pth", (1, 2, 3), Label("x", (1,), 1), "D", "")
    knees, _ = knees_of(cases_of(dataset, ["3_00m_right"], False), None, None, output)
    outcome = measure_all(knees, Method(T2Settings(), broken, None, "cpu"), "cpu", 1)
    assert list(outcome.failed) == ["3_right"] and not outcome.done
    assert not list((output / "3_right").glob("*.*")) and not list((output / "3_right" / "time_1").iterdir())
