import os

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.dataset_roles import error_channels
from nnunet_anomaly.error_maps.collect import (
    FoldMaps,
    case_names,
    derived_dataset_json,
    files_without_channel,
    fold_maps,
    out_of_fold,
    write_derived_dataset,
)
from nnunet_anomaly.errors import InputError, LeakageError, MissingCheckpointError
from nnunet_anomaly.files import load_json, save_json, sha256_of

FINAL = "checkpoint_final.pth"
SPLITS = [{"train": ["a", "b"], "val": ["c", "d"]}, {"train": ["c", "d"], "val": ["a", "b"]}]
DESCRIPTION = {
    "channel_names": {"0": "MR"},
    "labels": {"background": 0, "femur": 1},
    "numTraining": 4,
    "file_ending": ".nii.gz",
    "anomaly": {"roi_labels": ["femur"]},
}
ORIGIN = {"dataset": "Dataset101_Knee", "model": "A__plans__3d_inpainting", "masks_from": None}


def write_image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.full((2, 3, 4), value, np.float32)), str(path))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "Dataset101_Knee"
    for index, case in enumerate("abcd"):
        write_image(folder / "imagesTr" / f"{case}_0000.nii.gz", index)
        write_image(folder / "labelsTr" / f"{case}.nii.gz", 1)
    save_json(DESCRIPTION, folder / "dataset.json")
    return folder


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    save_json(DESCRIPTION, folder / "dataset.json")
    for fold, split in enumerate(SPLITS):
        validation = folder / f"fold_{fold}" / "validation"
        for case in split["val"]:
            write_image(validation / "error_maps" / f"{case}.nii.gz", 0.5)
        checkpoint = folder / f"fold_{fold}" / FINAL
        checkpoint.write_bytes(f"weights of fold {fold}".encode())
        digest = sha256_of([checkpoint])
        record = {"training_cases": split["train"], "held_out_cases": split["val"], "checkpoint": FINAL}
        save_json(record | {"checkpoint_sha256": digest, "pretrained": False}, validation / "error_maps.json")
    return folder


def all_folds(model):
    return [fold_maps(model, fold, split, FINAL, "TRAIN") for fold, split in enumerate(SPLITS)]


def test_every_case_gets_the_map_of_the_fold_that_held_it_out(model):
    chosen = out_of_fold(all_folds(model), list("abcd"))
    assert {case: path.parts[-4] for case, path in chosen.items()} == {
        "a": "fold_1",
        "b": "fold_1",
        "c": "fold_0",
        "d": "fold_0",
    }


def test_a_missing_fold_names_the_command(model):
    (model / "fold_1" / "validation" / "error_maps.json").unlink()
    with pytest.raises(MissingCheckpointError, match=r"Fold 1 is missing.*TRAIN"):
        all_folds(model)


def test_a_missing_map_names_the_case(model):
    (model / "fold_0" / "validation" / "error_maps" / "d.nii.gz").unlink()
    with pytest.raises(InputError, match=r"Fold 0 lacks the error maps of d\."):
        all_folds(model)


def test_a_changed_split_is_a_leak(model):
    with pytest.raises(LeakageError, match="split changed"):
        fold_maps(model, 0, {"train": ["a", "c"], "val": ["b", "d"]}, FINAL, "TRAIN")


def test_maps_by_another_checkpoint_are_refused(model):
    with pytest.raises(InputError, match=r"are by checkpoint_final.*, not checkpoint_best.*TRAIN --val --val_best"):
        fold_maps(model, 0, SPLITS[0], "checkpoint_best.pth", "TRAIN")


def test_maps_of_a_network_that_was_trained_again_since_are_refused(model):
    checkpoint = model / "fold_1" / FINAL
    os.utime(checkpoint, (0, 0))  # copying a folder changes times, not networks
    all_folds(model)
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"Fold 1 was trained again since .*: TRAIN --val"):
        all_folds(model)
    checkpoint.unlink()
    with pytest.raises(MissingCheckpointError, match=r"fold_1.*does not exist.*TRAIN"):
        all_folds(model)


def test_cases_are_listed_by_any_channel_and_other_files_by_name(tmp_path):
    for name in ("a_0000", "a_0001", "b_0001", "scan", ".hidden"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert case_names(tmp_path, ".nii.gz") == ["a", "b"]
    assert files_without_channel(tmp_path, ".nii.gz") == ["scan.nii.gz"]


def test_datasets_with_the_old_key_modality(source, model, tmp_path):
    description = {key: value for key, value in DESCRIPTION.items() if key != "channel_names"}
    save_json({**description, "modality": {"0": "MR"}}, source / "dataset.json")
    target = tmp_path / "Dataset201_KneeErrorMaps"
    write_derived_dataset(source, target, out_of_fold(all_folds(model), list("abcd")), SPLITS, ORIGIN, copy=True)
    written = load_json(target / "dataset.json")
    assert written["channel_names"] == {"0": "MR", "1": "noNorm"} and "modality" not in written


def test_a_map_by_a_network_that_saw_the_case_is_refused_unless_named(model):
    folds = all_folds(model)
    leaking = FoldMaps(0, folds[0].maps, ["a", "b", "c"], folds[0].source)
    with pytest.raises(LeakageError, match="trained on c"):
        out_of_fold([leaking, folds[1]], list("abcd"))
    assert set(out_of_fold([leaking, folds[1]], list("abcd"), allow_leak=True)) == set("abcd")


def test_maps_of_pretrained_networks_are_refused_unless_named(model):
    record = model / "fold_1" / "validation" / "error_maps.json"
    save_json(load_json(record) | {"pretrained": True}, record)
    with pytest.raises(LeakageError, match="fold 1 began with -pretrained_weights"):
        out_of_fold(all_folds(model), list("abcd"))
    assert set(out_of_fold(all_folds(model), list("abcd"), allow_leak=True)) == set("abcd")


def test_maps_of_a_network_that_was_not_saved_are_refused(model):
    record = model / "fold_1" / "validation" / "error_maps.json"
    save_json(load_json(record) | {"checkpoint": None, "checkpoint_sha256": None}, record)
    with pytest.raises(InputError, match="by a network that was not saved, not checkpoint_final"):
        all_folds(model)


def test_folds_must_cover_the_dataset_once(model):
    folds = all_folds(model)
    with pytest.raises(InputError, match="No fold holds out a, b"):
        out_of_fold(folds[:1], list("abcd"))
    with pytest.raises(InputError, match="More than one fold holds out c, d"):
        out_of_fold([folds[0], folds[0]], list("abcd"))


@pytest.mark.parametrize("copy", [False, True])
def test_the_derived_dataset_is_a_standard_one(source, model, tmp_path, copy):
    target = tmp_path / "Dataset201_KneeErrorMaps"
    write_derived_dataset(source, target, out_of_fold(all_folds(model), list("abcd")), SPLITS, ORIGIN, copy)
    description = load_json(target / "dataset.json")
    assert description["channel_names"] == {"0": "MR", "1": "noNorm"}
    assert error_channels(description) == (1,)
    assert description["anomaly"]["roi_labels"] == ["femur"]
    assert description["labels"] == DESCRIPTION["labels"]
    assert load_json(target / "splits_final.json") == SPLITS
    assert sorted(path.name for path in (target / "imagesTr").iterdir()) == [
        f"{case}_{channel:04d}.nii.gz" for case in "abcd" for channel in (0, 1)
    ]
    for case in "abcd":
        assert (target / "imagesTr" / f"{case}_0000.nii.gz").is_symlink() != copy
        assert not (target / "imagesTr" / f"{case}_0001.nii.gz").is_symlink()
        image = sitk.ReadImage(str(target / "imagesTr" / f"{case}_0000.nii.gz"))
        assert sitk.GetArrayFromImage(image).max() == "abcd".index(case)
        assert sitk.ReadImage(str(target / "labelsTr" / f"{case}.nii.gz")).GetSize() == (4, 3, 2)


def test_a_rerun_gives_the_same_bytes_and_a_stranger_is_refused(source, model, tmp_path):
    target = tmp_path / "Dataset201_KneeErrorMaps"
    maps = out_of_fold(all_folds(model), list("abcd"))
    write_derived_dataset(source, target, maps, SPLITS, ORIGIN, False)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    write_derived_dataset(source, target, maps, SPLITS, ORIGIN, False)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    with pytest.raises(InputError, match="already holds another dataset"):
        write_derived_dataset(source, target, maps, SPLITS, {**ORIGIN, "model": "other"}, False)
    with pytest.raises(InputError, match="already holds another dataset"):
        write_derived_dataset(source, source, maps, SPLITS, ORIGIN, False)


def test_what_a_killed_run_left_is_removed(source, model, tmp_path):
    target = tmp_path / "Dataset201_KneeErrorMaps"
    maps = out_of_fold(all_folds(model), list("abcd"))
    write_derived_dataset(source, target, maps, SPLITS, ORIGIN, False)
    left_over = target / "imagesTr" / ".partial_abc.nii.gz"
    left_over.write_bytes(b"half")
    write_derived_dataset(source, target, maps, SPLITS, ORIGIN, False)
    assert not left_over.exists()


def test_roles_of_earlier_error_channels_are_kept():
    once = derived_dataset_json(DESCRIPTION, "Once", ORIGIN)
    assert error_channels(derived_dataset_json(once, "Twice", ORIGIN)) == (1, 2)
