"""The command ``nnunet-anomaly add-cases``: corrected cases become training cases, checked and counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.cli.main import main

DATASET = "Dataset110_Hips"
SPACING_MM_XYZ = (0.8, 0.8, 1.5)


def write(array: np.ndarray, path: Path, spacing_mm_xyz=SPACING_MM_XYZ, origin_mm=(1.0, 2.0, 3.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm_xyz)
    image.SetOrigin(origin_mm)
    sitk.WriteImage(image, str(path))


def ct(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 100, (6, 8, 10)).astype(np.int16)


def labels(first: int = 2) -> np.ndarray:
    label_map = np.zeros((6, 8, 10), np.uint8)
    label_map[2:4, first : first + 3, 2:5], label_map[2:4, 2:5, 6:9] = 1, 2
    return label_map


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """Two training cases, four test images, corrected label maps of two of these."""
    raw = tmp_path / "nnUNet_raw" / DATASET
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for index in range(2):
        write(ct(index), raw / f"imagesTr/hip_{index}_0000.nii.gz")
        write(labels(), raw / f"labelsTr/hip_{index}.nii.gz")
    for index in range(2, 6):
        write(ct(index), raw / f"imagesTs/hip_{index}_0000.nii.gz")
    for index in (2, 3):
        write(labels(1).astype(np.int16), tmp_path / f"corrected/hip_{index}.nii.gz")
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "femur_left": 1, "femur_right": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def add(workspace: Path, *extra: str, images: str = f"nnUNet_raw/{DATASET}/imagesTs") -> int:
    command = ["add-cases", "-d", "110", "-i", str(workspace / images), "-l", str(workspace / "corrected")]
    return main([*command, "-np", "1", *extra])


def training(workspace: Path) -> dict[str, bytes]:
    """All images and label maps of training cases, and dataset.json."""
    raw = workspace / "nnUNet_raw" / DATASET
    files = [*raw.glob("*Tr/*"), raw / "dataset.json"]
    return {path.relative_to(raw).as_posix(): path.read_bytes() for path in sorted(files)}


def test_corrected_cases_are_added_and_counted(workspace, capsys):
    before = training(workspace)
    assert add(workspace) == 0
    raw = workspace / "nnUNet_raw" / DATASET
    after = training(workspace)
    assert set(after) - set(before) == {
        f"{f}Tr/hip_{i}{e}.nii.gz" for i in (2, 3) for f, e in (("images", "_0000"), ("labels", ""))
    }
    assert all(after[name] == content for name, content in before.items() if name != "dataset.json")
    assert after["imagesTr/hip_2_0000.nii.gz"] == (raw / "imagesTs/hip_2_0000.nii.gz").read_bytes()
    label, image = (sitk.ReadImage(str(raw / path)) for path in ("labelsTr/hip_2.nii.gz", "imagesTr/hip_2_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), labels(1))
    assert label.GetPixelID() == sitk.sitkUInt8
    assert (label.GetSpacing(), label.GetOrigin()) == (image.GetSpacing(), image.GetOrigin())
    content = json.loads((raw / "dataset.json").read_text())
    assert content.pop("numTraining") == 4
    assert content == {key: value for key, value in json.loads(before["dataset.json"]).items() if key != "numTraining"}
    printed = capsys.readouterr().out
    assert "2 added" in printed and "has 4 training cases" in printed
    assert "In imagesTs too: hip_2, hip_3" in printed
    assert "nnUNetv2_plan_and_preprocess -d 110" in printed


def test_a_damaged_record_says_nothing_and_replace_is_named(workspace, capsys):
    assert add(workspace) == 0
    (record,) = (workspace / "nnUNet_raw" / DATASET).glob("**/hip_2.json")
    record.write_text("{")
    assert add(workspace) == 2
    assert "--replace" in capsys.readouterr().err
    assert add(workspace, "--replace") == 0


def test_nnunet_finds_the_dataset_in_order(workspace):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    assert add(workspace) == 0
    verify_dataset_integrity(str(workspace / "nnUNet_raw" / DATASET), num_processes=1)


def test_what_to_do_next_is_said_with_the_plans_and_the_folds(workspace, capsys):
    preprocessed = workspace / "nnUNet_preprocessed" / DATASET
    preprocessed.mkdir(parents=True)
    (preprocessed / "nnUNetAnomalyPlans.json").write_text('{"configurations": {}}')
    (preprocessed / "dataset_fingerprint.json").write_text("{}")
    (preprocessed / "splits_final.json").write_text('[{"train": ["hip_0", "hip_2"], "val": ["hip_1"]}]')
    splits = (preprocessed / "splits_final.json").read_bytes()
    assert add(workspace) == 0
    printed = capsys.readouterr().out
    assert "none of its folds has hip_3." in printed and "fold 'all'" in printed
    assert (preprocessed / "splits_final.json").read_bytes() == splits
    assert "nnUNetv2_preprocess -d 110 -plans_name nnUNetAnomalyPlans -c 3d_fullres" in printed
    assert "--save-as nnUNetAnomalyPlans_4cases" in printed and "nnUNetv2_train 110 3d_fullres all" in printed
    (preprocessed / "otherPlans.json").write_text('{"configurations": {}}')
    assert add(workspace) == 0
    printed = capsys.readouterr().out
    assert "nnUNetAnomalyPlans, otherPlans" in printed and "-plans_name PLANS" in printed
    (preprocessed / "otherPlans_3d_fullres").mkdir()  # the only ones with images of their own
    assert add(workspace) == 0
    assert "-plans_name otherPlans" in capsys.readouterr().out


def test_a_second_run_changes_nothing_and_a_corrected_one_needs_replace(workspace, capsys):
    assert add(workspace) == 0
    once = training(workspace)
    assert add(workspace) == 0
    assert "0 added, 2 were added before" in capsys.readouterr().out
    write(labels(3), workspace / "corrected/hip_2.nii.gz")
    assert add(workspace) == 2
    assert "hip_2 already" in capsys.readouterr().err
    assert training(workspace) == once
    assert add(workspace, "--replace") == 0
    raw = workspace / "nnUNet_raw" / DATASET
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTr/hip_2.nii.gz"))), labels(3))
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 4


def test_a_training_case_of_the_dataset_is_not_overwritten(workspace, capsys):
    write(labels(1), workspace / "corrected/hip_1.nii.gz")
    write(ct(1), workspace / "new/hip_1_0000.nii.gz")
    before = training(workspace)
    assert add(workspace, "--cases", "hip_1", images="new") == 2
    assert "hip_1" in capsys.readouterr().err and training(workspace) == before
    assert add(workspace, "--cases", "hip_1", "--replace", images="new") == 0
    after = training(workspace)
    assert after["labelsTr/hip_1.nii.gz"] != before["labelsTr/hip_1.nii.gz"]
    assert after["dataset.json"] == before["dataset.json"]


def test_replace_writes_what_it_is_given_though_it_was_added_before(workspace, capsys):
    """Another label map has come to the dataset since: it is neither passed over, nor overwritten without --replace."""
    assert add(workspace) == 0
    path = workspace / "nnUNet_raw" / DATASET / "labelsTr/hip_2.nii.gz"
    once = path.read_bytes()
    write(labels(3), path)
    changed = path.read_bytes()
    capsys.readouterr()
    assert add(workspace) == 2
    assert "hip_2 already" in capsys.readouterr().err and path.read_bytes() == changed
    assert add(workspace, "--replace") == 0
    assert "1 added, 1 were added before" in capsys.readouterr().out
    assert path.read_bytes() == once
    path.unlink()
    assert add(workspace, "--replace") == 0 and path.read_bytes() == once


def test_a_run_that_was_killed_is_taken_up(workspace, monkeypatch):
    from nnunet_anomaly.workflow import add_cases as module

    def die(image, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_image", die)
        assert add(workspace) == 130
    raw = workspace / "nnUNet_raw" / DATASET
    assert (raw / "imagesTr/hip_2_0000.nii.gz").exists() and not (raw / "labelsTr/hip_2.nii.gz").exists()
    assert add(workspace) == 0
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 4


def test_chosen_cases_alone(workspace, capsys):
    assert add(workspace, "--cases", "hip_3") == 0
    names = set(training(workspace))
    assert "labelsTr/hip_3.nii.gz" in names and "labelsTr/hip_2.nii.gz" not in names
    assert add(workspace, "--cases", "hip_9") == 2
    assert "hip_9" in capsys.readouterr().err


def unknown_labels(workspace: Path) -> str:
    write(np.where(labels() == 2, 9, labels()).astype(np.uint8), workspace / "corrected/hip_2.nii.gz")
    return "[9], which dataset.json does not have; it has [1, 2]"


def another_grid(workspace: Path) -> str:
    write(labels(), workspace / "corrected/hip_2.nii.gz", (0.8, 0.8, 1.6))
    return "spacing (0.8, 0.8, 1.5) against (0.8, 0.8, 1.6)"


def moved(workspace: Path) -> str:
    write(labels(), workspace / "corrected/hip_2.nii.gz", origin_mm=(1.0, 2.2, 3.0))
    return "origin"


def empty(workspace: Path) -> str:
    write(0 * labels(), workspace / "corrected/hip_2.nii.gz")
    return "is empty"


def no_whole_numbers(workspace: Path) -> str:
    write(labels() * 0.5, workspace / "corrected/hip_2.nii.gz")
    return "not whole numbers"


def no_image(workspace: Path) -> str:
    (workspace / "nnUNet_raw" / DATASET / "imagesTs/hip_2_0000.nii.gz").unlink()
    return "has no image hip_2_0000"


def damaged_image(workspace: Path) -> str:
    path = workspace / "nnUNet_raw" / DATASET / "imagesTs/hip_2_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])
    return "cut off or damaged"


def flat_image(workspace: Path) -> str:
    write(0 * ct(0), workspace / "nnUNet_raw" / DATASET / "imagesTs/hip_2_0000.nii.gz")
    return "every voxel is 0"


@pytest.mark.parametrize(
    "spoil",
    [unknown_labels, another_grid, moved, empty, no_whole_numbers, no_image, damaged_image, flat_image],
    ids=lambda spoil: spoil.__name__,
)
def test_a_bad_case_is_named_and_the_others_are_added(workspace, capsys, spoil):
    message = spoil(workspace)
    assert add(workspace) == 1
    error = capsys.readouterr().err
    assert "hip_2" in error and message in error
    raw = workspace / "nnUNet_raw" / DATASET
    assert not list(raw.glob("*Tr/hip_2*")) and (raw / "labelsTr/hip_3.nii.gz").exists()
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": {}}, 'lists its cases under "dataset"'),
        ({"file_ending": ".png"}, "'.png'"),
        ({"labels": {"background": 0}}, "no label but the background"),
    ],
)
def test_datasets_that_cannot_be_added_to(workspace, capsys, change, message):
    path = workspace / "nnUNet_raw" / DATASET / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert add(workspace) == 2
    assert message in capsys.readouterr().err


def test_wrong_folders(workspace, capsys):
    raw = workspace / "nnUNet_raw" / DATASET
    command = ["add-cases", "-d", "110", "-i", str(raw / "imagesTs"), "-l"]
    assert main([*command, str(raw / "labelsTr")]) == 2
    assert "nothing to add" in capsys.readouterr().err
    (workspace / "nothing").mkdir()
    assert main([*command, str(workspace / "nothing")]) == 2
    assert "no label map" in capsys.readouterr().err


def test_other_formats_become_that_of_the_dataset_and_regions_are_known(workspace):
    raw = workspace / "nnUNet_raw" / DATASET
    content = json.loads((raw / "dataset.json").read_text())
    regions = {"labels": {"background": 0, "both": [1, 2], "right": 2, "ignore": 3}, "regions_class_order": [1, 2]}
    (raw / "dataset.json").write_text(json.dumps(content | regions))
    write(ct(7), workspace / "new/hip_7_0000.mha")
    write(labels(), workspace / "corrected/hip_7.nrrd")
    assert add(workspace, "--cases", "hip_7", images="new") == 0
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTr/hip_7_0000.nii.gz")))
    np.testing.assert_array_equal(found, ct(7))
    assert (raw / "labelsTr/hip_7.nii.gz").is_file()
