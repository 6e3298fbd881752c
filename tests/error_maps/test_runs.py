"""What one run of error-maps does when writing fails, without networks."""

from __future__ import annotations

import errno
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from nnunet_anomaly.errors import InputError, LeakageError
from nnunet_anomaly.files import save_json
from nnunet_anomaly.workflow import error_map_cases, error_maps, two_passes


def test_a_full_disk_stops_the_run_at_its_first_cases(tmp_path, monkeypatch):
    mapped = []

    def map_case(job, model, pool, case, preparing, place_images):
        mapped.append(case.target)
        writing = Future()
        writing.set_exception(OSError(errno.ENOSPC, "No space left on device"))
        return writing

    def prepared(pool, model, todo, ahead):
        return ((case, None) for case in todo)

    monkeypatch.setattr(error_map_cases, "_map_case", map_case)
    monkeypatch.setattr(error_map_cases, "_prepared_ahead", prepared)
    cases = [
        error_maps.Case(f"case_{index}", [], None, tmp_path / str(index), tmp_path / f"{index}.json", {})
        for index in range(50)
    ]
    job = SimpleNamespace(num_processes=1, reconstructions=None)
    with pytest.raises(OSError, match="No space left"):
        error_map_cases.map_cases(job, None, cases)
    assert len(mapped) == 1


@pytest.fixture
def folders(tmp_path):
    """A dataset of one training case and one test case, and a model of one fold; no networks."""
    raw, model = tmp_path / "raw" / "Dataset001_X", tmp_path / "results" / "Dataset001_X" / "G__P__2d"
    for path in (raw / "imagesTr/a_0000.nii.gz", raw / "imagesTs/t_0000.nii.gz", model / "fold_0/checkpoint_final.pth"):
        path.parent.mkdir(parents=True)
        path.touch()
    save_json({"file_ending": ".nii.gz", "channel_names": {"0": "MR"}}, raw / "dataset.json")
    save_json({}, model / "plans.json")
    return tmp_path


def job_of(folders, **changes):
    standard = {
        "raw": folders / "raw" / "Dataset001_X",
        "preprocessed": folders / "preprocessed",
        "results": folders / "results" / "Dataset001_X",
        "model": folders / "results" / "Dataset001_X" / "G__P__2d",
        "masks_from": None,
        "output": "",
        "folds": [0],
        "checkpoint": "checkpoint_final.pth",
        "copy": False,
        "test": True,
        "reconstructions": None,
        "allow_leak": False,
        "num_processes": 1,
        "device": None,
    }
    return error_maps.Job(**{**standard, **changes})


def learnt_from(*cases):
    """A model whose network has learnt from these cases."""
    return SimpleNamespace(splits=[{"train": cases, "val": []}], learnt_from=set(cases), pretrained=False)


def test_cases_are_known_by_the_network_that_learnt_from_them_not_by_todays_folders(folders, monkeypatch):
    monkeypatch.setattr(error_maps, "load_model", lambda *_: learnt_from("a", "t"))  # t was moved to imagesTs since
    job = job_of(folders)
    with pytest.raises(LeakageError, match="t are training cases"):
        error_maps.for_new_images(job, job.raw / "imagesTs", folders / "out")
    assert not (folders / "out").exists()


def test_two_passes_take_a_network_of_this_split_alone(folders, monkeypatch):
    monkeypatch.setattr(error_maps, "load_model", lambda *_: learnt_from("a"))
    job = job_of(folders, masks_from="S__P__2d")
    with pytest.raises(LeakageError, match="not trained on the training cases that this fold has now"):
        error_maps._two_pass_fold(job, 0, {"train": ["b"], "val": ["a"]}, {})


@pytest.mark.parametrize("where", ["raw/Dataset001_X/imagesTs", "raw/Dataset001_X/labelsTr", "out", "new"])
def test_reconstructions_never_overwrite_images(folders, where):
    (folders / "new").mkdir()
    (folders / "new/n_0000.nii.gz").touch()
    job = job_of(folders, reconstructions=folders / "out" / ".." / where)
    with pytest.raises(InputError, match="--save-reconstructions names"):
        error_maps.for_new_images(job, folders / "new", folders / "out")


def test_the_order_of_folds_does_not_matter(folders):
    masks = folders / "results" / "Dataset001_X" / "S__P__2d"
    for fold in (0, 1):
        (masks / f"fold_{fold}").mkdir(parents=True)
        (masks / f"fold_{fold}" / "checkpoint_final.pth").write_bytes(bytes([fold]))
    save_json({}, masks / "plans.json")
    one, other = (
        job.origin(job.all_folds(), two_passes.mask_checkpoints(job))
        for job in (job_of(folders, masks_from="S__P__2d", folds=folds) for folds in ([0, 1], [1, 0]))
    )
    assert one == other and one["masks_sha256"] is not None
