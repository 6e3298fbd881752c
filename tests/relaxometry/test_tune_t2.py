"""``tune t2``: every combination against the refinement itself, and the command on folders as nnU-Net leaves them."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.files import load_json
from nnunet_anomaly.relaxometry import t2_fit
from nnunet_anomaly.relaxometry.decay_models import Quality
from nnunet_anomaly.relaxometry.refine import known_and_inside, refine_probability
from nnunet_anomaly.settings import T2Settings
from nnunet_anomaly.workflow import tune_t2
from nnunet_anomaly.workflow.tune_t2 import Grid, agreement_of, at_the_edge, best_row, overlap, search_table

MODEL = "nnUNetTrainer__nnUNetPlans__2d"
DIRECTIONS = {
    0: (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    2: (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
}


@pytest.mark.parametrize("axis", DIRECTIONS)
def test_every_combination_is_what_the_refinement_finds(axis):
    grid = Grid((0.0, 0.02, 0.4, 0.501, 0.6, 1.0), (0.0, 2.0, 3.0, 5.0, 40.0))
    spacing_mm = (0.5, 0.5, 0.5)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        shape = (6, 7, 5)
        probability = rng.choice([0, 0.005, 0.02, 0.4, 0.501, 0.6, 1], shape).astype(np.float32)
        quality = rng.choice([Quality.CONVERGED] * 5 + [Quality.NO_SIGNAL], shape).astype(np.uint8)
        t2_ms = np.where(quality == Quality.CONVERGED, rng.choice([40.0, 99.0, 101.0], shape), np.nan)
        drawn = rng.random(shape) < 0.4
        _, inside = known_and_inside(t2_ms, quality, (0, 100))
        reference = drawn & inside
        likely = probability.astype(np.float64) > 0.01
        counts = tune_t2.count(np.where(likely & inside, probability, -1), reference, axis, grid.probability)
        record = {"pixel_mm2": 0.25, **counts}
        for (index, threshold), minimum_mm2 in itertools.product(enumerate(grid.probability), grid.minimum_slice_mm2):
            mask = refine_probability(
                probability,
                t2_ms,
                quality,
                spacing_mm=spacing_mm,
                direction=DIRECTIONS[axis],
                range_ms=(0, 100),
                candidate_probability=0.01,
                threshold=threshold,
                minimum_slice_mm2=minimum_mm2,
            ).mask
            found = overlap(record, index, minimum_mm2)
            assert found.prediction_voxels == mask.sum() and found.intersection_voxels == (mask & reference).sum()
            assert found.reference_voxels == reference.sum()


def record(reference, found, hit):
    return {"pixel_mm2": 1.0, "fold": 0, "reference_voxels": reference, "found": found, "hit": hit}


def test_cases_without_cartilage_count_where_something_is_found():
    grid = Grid((0.5, 0.6), (0.0, 3.0))
    records = {
        "a": record(4, [[4, 2], [4, 0]], [[4, 0], [4, 0]]),
        "empty": record(0, [[2, 0], [0, 0]], [[0, 0], [0, 0]]),
    }
    rows = {(row["probability"], row["minimum_slice_mm2"]): row["dice"] for row in search_table(records, grid)}
    # a: 8 / 10, then without the slice of 2 pixels all is right
    assert rows == {(0.5, 0.0): 0.4, (0.5, 3.0): 1.0, (0.6, 0.0): 1.0, (0.6, 3.0): 1.0}
    assert agreement_of(overlap(records["empty"], 1, 0.0)) == 1


def test_of_equal_ones_the_smallest_area_and_the_middle_probability():
    rows = [
        {"probability": p, "minimum_slice_mm2": a, "dice": d}
        for p, a, d in ((0.2, 0.0, 0.9), (0.6, 10.0, 0.9), (0.55, 0.0, 0.9), (0.5, 0.0, 0.8))
    ]
    assert rows[best_row(rows)]["probability"] == 0.55


def test_what_lies_at_the_edge_of_the_grid_is_said():
    grid = Grid((0.1, 0.5, 0.9), (0.0, 10.0, 20.0))
    assert at_the_edge({"probability": 0.5, "minimum_slice_mm2": 0.0}, grid) == []
    smallest, largest = at_the_edge({"probability": 0.1, "minimum_slice_mm2": 20.0}, grid)
    assert "smallest of those tried" in smallest and "larger ones may be better" in largest
    assert at_the_edge({"probability": 0.5, "minimum_slice_mm2": 20.0}, Grid((0.5,), (20.0,))) == []


@pytest.mark.parametrize("values", [(), (0.5, 0.5), (0.6, 0.5), (1.5,)])
def test_grids_that_are_none(values):
    with pytest.raises(SettingsError, match=r"t2\.probability"):
        Grid(values)


def test_the_default_grid_has_the_papers_values():
    assert T2Settings().probability in Grid().probability and T2Settings().minimum_slice_mm2 in Grid().minimum_slice_mm2
    assert 0 in Grid().minimum_slice_mm2


# ---- the command


@pytest.fixture
def validated(tmp_path, drawn, put_knee, make_echoes, monkeypatch):
    """A model folder after validation, which finds cartilage from 0.7 on, and an island in a slice without."""
    knee = drawn(spacing_mm=(3.0, 1.0, 1.0), pixels=64)
    raw, model = tmp_path / "raw" / "Dataset104_Knee", tmp_path / "results" / "Dataset104_Knee" / MODEL
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for index, case in enumerate(("a_00m", "b_00m")):
        _, mask = put_knee(raw, case, knee, make_echoes(knee, seed=index))
        (raw / "labelsTr").mkdir(exist_ok=True)
        mask.rename(raw / "labelsTr" / mask.name)
        rng = np.random.default_rng(index)
        cartilage = np.where(knee.mask, rng.uniform(0.72, 1, knee.mask.shape), rng.uniform(0, 0.3, knee.mask.shape))
        cartilage[(knee.radii_mm > 20) & (knee.radii_mm < 25) & (knee.angles_degrees > 0)] = 0.68
        cartilage[0, 30:34, 30:34] = 0.9
        folder = model / f"fold_{index}" / "validation"
        folder.mkdir(parents=True)
        (model / f"fold_{index}" / "checkpoint_final.pth").touch()
        (folder / f"{case}.nii.gz").touch()
        np.savez(folder / f"{case}.npz", probabilities=np.stack([1 - cartilage, cartilage]).astype(np.float32))
    description = {"channel_names": {"0": "MESE_echo1"}, "labels": {"background": 0, "femoral_cartilage": 1}}
    (model / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))
    (model / "plans.json").write_text(json.dumps({"dataset_name": raw.name, "image_reader_writer": "SimpleITKIO"}))
    return model


def tune(model, output, *more, expect=0):
    assert main(["tune", "t2", "-m", str(model), "-o", str(output), "-np", "1", *map(str, more)]) == expect


def test_the_search_finds_what_was_drawn_and_the_plans_keep_it(validated, tmp_path, capsys):
    output = tmp_path / "tuning"
    tune(validated, output)
    said = capsys.readouterr().out
    assert "2 done, 0 were there already" in said and "Best: probability 0.7" in said
    best = load_json(output / "search.json")["best"]
    assert best["probability"] == 0.7 and 10 < best["minimum_slice_mm2"] <= 20 and best["dice"] > 0.98
    settings = load_json(output / "settings.json")["t2"]
    assert settings["probability"] == 0.7 and settings["model"] == "rician"
    plans = load_json(validated / "plans.json")
    assert plans["anomaly"]["t2"] == settings and plans["image_reader_writer"] == "SimpleITKIO"
    with open(output / "search.csv", newline="", encoding="utf-8") as handle:
        rows = {(row["probability"], row["minimum_slice_mm2"]): float(row["dice"]) for row in csv.DictReader(handle)}
    assert len(rows) == len(Grid().probability) * len(Grid().minimum_slice_mm2)
    assert max(rows.values()) == pytest.approx(best["dice"]) and rows["0.501", "0.0"] < 0.8
    assert (output / "pictures" / "dice.png").is_file() and "pictures/dice.png" in (output / "report.md").read_text(
        "utf-8"
    )
    tune(validated, output, "--minimum-slice-mm2", "0", "5")
    said = capsys.readouterr()
    assert "0 done, 2 were there already" in said.out, "other areas are the same counts"
    assert (
        "t2.minimum_slice_mm2" not in said.err and load_json(output / "search.json")["best"]["minimum_slice_mm2"] == 0
    )
    tune(validated, output, "--probabilities", "0.3", "0.4", "--minimum-slice-mm2", "20")
    assert "The best t2.probability (0.4) is the largest of those tried" in capsys.readouterr().err


def test_what_has_no_t2_of_cartilage_counts_on_neither_side(validated, tmp_path, drawn, put_knee, make_echoes):
    knee = drawn(spacing_mm=(3.0, 1.0, 1.0), pixels=64)
    fluid = knee.mask & (knee.angles_degrees > 40)
    put_knee(tmp_path / "raw" / "Dataset104_Knee", "a_00m", knee, make_echoes(knee, rise=lambda _: 150.0 * fluid))
    tune(validated, tmp_path / "o", "-f", "0", "--probabilities", "0.7", "--minimum-slice-mm2", "20")
    with open(tmp_path / "o" / "cases.csv", newline="", encoding="utf-8") as handle:
        (row,) = csv.DictReader(handle)
    assert 0.1 * knee.mask.sum() < fluid.sum() < 0.5 * knee.mask.sum()
    for name in ("reference_voxels", "found_voxels", "hit_voxels"):
        assert int(row[name]) == pytest.approx((knee.mask & ~fluid).sum(), rel=0.01), name


def test_t2_is_fitted_as_the_settings_say(validated, tmp_path, monkeypatch):
    seen, fit = [], t2_fit.fit_t2
    monkeypatch.setattr(
        t2_fit,
        "fit_t2",
        lambda *given, **named: seen.append((named["model"], named["skip_first"])) or fit(*given, **named),
    )
    tune(validated, tmp_path / "o", "-f", "0")
    tune(validated, tmp_path / "o", "-f", "0", "--preset", "paper", "--set", "t2.skip_first_echo=false")
    assert seen == [("rician", True), ("offset", False)]


def test_missing_probabilities_are_an_error_with_the_command_that_makes_them(validated, tmp_path, capsys):
    (validated / "fold_1" / "validation" / "b_00m.npz").unlink()
    tune(validated, tmp_path / "o", expect=2)
    command = "nnUNetv2_train Dataset104_Knee 2d 1 -tr nnUNetTrainer -p nnUNetPlans --val --npz"
    error = capsys.readouterr().err
    assert "no probabilities of b_00m" in error and command in error
    tune(validated, tmp_path / "o", "-f", "0")  # the other fold alone
    (validated / "fold_1" / "validation" / "b_00m.nii.gz").unlink()
    capsys.readouterr()
    tune(validated, tmp_path / "o", expect=2)
    assert "holds no validation" in capsys.readouterr().err
    tune(validated, tmp_path / "o", "-f", "all", expect=2)
    assert "has no held-out cases" in capsys.readouterr().err
    tune(validated, tmp_path / "o", "--label", "meniscus", expect=2)
    assert "no label 'meniscus'; it has femoral_cartilage (1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no archive", "not readable"),
        ({"softmax": np.zeros((2, 22, 64, 64))}, "not readable"),
        ({"probabilities": np.zeros((1, 22, 64, 64))}, "no output 1"),
        ({"probabilities": np.zeros((2, 64, 22, 64))}, r"\(64, 22, 64\)"),
        ({"probabilities": np.array([None])}, "not readable"),
    ],
)
def test_a_failed_case_is_named_and_nothing_is_chosen(validated, tmp_path, content, said, capsys):
    import re

    path = validated / "fold_0" / "validation" / "a_00m.npz"
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    output = tmp_path / "o"
    output.mkdir()
    (output / "settings.json").write_text("{}")  # of an earlier search
    tune(validated, output, expect=1)
    error = capsys.readouterr().err
    assert "1 failed" in error and "a_00m" in error and re.search(said, error) and "Nothing was chosen" in error
    assert not (output / "settings.json").exists() and (output / "cases" / "b_00m.json").is_file()
    assert "anomaly" not in load_json(validated / "plans.json")


def test_no_cartilage_anywhere(validated, tmp_path, capsys):
    for fold, case in ((0, "a_00m"), (1, "b_00m")):
        path = validated / f"fold_{fold}" / "validation" / f"{case}.npz"
        with np.load(path) as content:
            nothing = np.zeros_like(content["probabilities"])
        np.savez(path, probabilities=nothing)
    tune(validated, tmp_path / "o", expect=2)
    assert "No combination finds cartilage" in capsys.readouterr().err
