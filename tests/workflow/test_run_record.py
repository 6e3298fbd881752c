"""A run's record: what is saved is what is loaded, moved or not; stages end one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.workflow.run_record import (
    CaseFolders,
    Run,
    load_run,
    load_stages,
    save_run,
    save_stage,
)


def a_run(folder, elsewhere):
    cases = CaseFolders(
        images=elsewhere / "imagesTs",
        channel=2,
        predictions={"plain": folder / "predicted" / "plain", 'with "quotes"': folder / "predicted" / "b c"},
        error_maps=folder / "maps",
        error_channel=3,
        label_names={1: "femur"},
    )
    return Run("Knees", {"train_0": "S, fold 0", "predict": "prediction"}, {"Segmentation": folder / "e"}, cases)


def test_a_run_is_loaded_as_it_was_saved(tmp_path):
    folder = tmp_path / "run"
    run = a_run(folder, tmp_path / "elsewhere")
    save_run(run, folder)
    assert load_run(folder) == run
    assert list(load_run(folder).cases.predictions) == ["plain", 'with "quotes"']
    save_run(Run("Nothing", {}), folder)
    assert load_run(folder) == Run("Nothing", {})


def test_a_run_that_is_moved_finds_its_own_folders_and_those_elsewhere(tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    save_run(a_run(folder, tmp_path / "elsewhere"), folder)
    folder.rename(moved)
    assert load_run(moved) == a_run(moved, tmp_path / "elsewhere")


def test_a_relative_folder_of_a_run_is_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    save_run(a_run(Path("run"), tmp_path / "elsewhere"), Path("run"))
    assert load_run(tmp_path / "run") == a_run(tmp_path / "run", tmp_path / "elsewhere")


def test_stages_are_missing_failed_or_done(tmp_path):
    run = a_run(tmp_path, tmp_path)
    save_run(run, tmp_path)
    assert [stage.state for stage in load_stages(tmp_path, run)] == ["missing", "missing"]
    save_stage(tmp_path, "train_0", ["nnUNetv2_train 1"], 3.14159, 1, tmp_path / "logs" / "train_0.log")
    first, second = load_stages(tmp_path, run)
    assert (first.state, first.exit_code, first.seconds, first.title) == ("failed", 1, 3.1, "S, fold 0")
    assert first.commands == ["nnUNetv2_train 1"] and first.log == tmp_path / "logs" / "train_0.log"
    assert second.state == "missing" and second.seconds is None
    save_stage(tmp_path, "train_0", ["nnUNetv2_train 1 --c"], 2, 0)
    assert [stage.state for stage in load_stages(tmp_path, run)] == ["done", "missing"]
    assert load_stages(tmp_path, run)[0].log is None


@pytest.mark.parametrize("content", [[], {}, {"title": "x", "stages": [], "evaluations": [], "cases": None}, "text"])
def test_another_json_is_no_run(content, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"run\.json"):
        load_run(tmp_path)


def test_no_run_and_a_damaged_stage_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"run\.json does not exist"):
        load_run(tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "predict.json").write_text('{"exit_code": "none"}')
    with pytest.raises(InputError, match=r"predict\.json"):
        load_stages(tmp_path, a_run(tmp_path, tmp_path))
