import filecmp
import os

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.compartments import femur_compartments, sides_of_cases
from nnunet_anomaly.dataset_roles import roi_labels
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import load_json, save_json
from nnunet_anomaly.phantoms import knee_iw_dataset
from nnunet_anomaly.phantoms.knee_iw import make_iw_case
from nnunet_anomaly.phantoms.knee_iw_dataset import BmlPhantom, case_has_lesions, case_name, make_bml_phantom
from nnunet_anomaly.settings import AnomalySettings

GRID = (9, 64, 64)
NAME = "Dataset120_Knee"
PHANTOM = BmlPhantom(training=2, validation=2, test=1, seed=1, grid=GRID)
CASES = ["knee_000", "knee_001", "knee_val_000", "knee_val_001", "knee_test_000"]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / NAME
    outcome = make_bml_phantom(folder, PHANTOM)
    assert outcome.done == CASES and outcome.exit_code == 0
    return folder


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def assert_same_bytes(first, second):
    assert tree(first) == tree(second)
    _, different, unreadable = filecmp.cmpfiles(first, second, tree(first), shallow=False)
    assert not different and not unreadable


def read(folder, path):
    return sitk.ReadImage(str(folder / path))


def test_folders_are_those_of_the_how_to(phantom):
    expected = ["phantom.json", "dataset.json", "cases.json", "truth/lesions.json"]
    for case in CASES:
        expected += [f"truth/cases/{case}.json", f"truth/lesion_instances/{case}.nii.gz"]
    for case in CASES[:2]:
        expected += [f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz"]
    for part, cases in (("Val", CASES[2:4]), ("Test", CASES[4:])):
        for case in cases:
            expected += [
                f"images{part}/{case}_0000.nii.gz",
                f"lesions{part}/{case}.nii.gz",
                f"bones{part}/{case}.nii.gz",
            ]
    assert tree(phantom) == sorted(expected)


def test_files_of_a_case_hold_what_was_made_on_one_grid(phantom):
    case = make_iw_case(1, 100_000, True, GRID)
    image = read(phantom, "imagesVal/knee_val_000_0000.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), case.image)
    for path, array in (
        ("lesionsVal/knee_val_000.nii.gz", case.labels == 2),
        ("bonesVal/knee_val_000.nii.gz", case.labels > 0),
        ("truth/lesion_instances/knee_val_000.nii.gz", case.lesions),
    ):
        mask = read(phantom, path)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), array.astype(np.uint8))
        for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(mask, get)(), getattr(image, get)(), atol=1e-5)
    training = make_iw_case(1, 1, True, GRID)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(phantom, "labelsTr/knee_001.nii.gz")), training.labels)


def test_nnunet_accepts_the_dataset(phantom):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    verify_dataset_integrity(str(phantom), 1)
    described = load_json(phantom / "dataset.json")
    assert described["numTraining"] == 2 and described["labels"] == {"background": 0, "femur": 1, "bml": 2}
    assert roi_labels(described) == (1, 2)


def test_settings_take_the_lesion_for_a_lesion(phantom, tmp_path, monkeypatch):
    """After planning: slices with label 2 are not learnt from, and both labels are the region."""
    from nnunet_anomaly.planners.lama import nnUNetPlannerLaMaTiny

    (tmp_path / NAME).mkdir()
    monkeypatch.setenv("nnUNet_raw", str(phantom.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    spacing_mm = load_json(phantom / "cases.json")["knee_000"]["spacing_mm"]
    properties = dict.fromkeys(("mean", "std", "percentile_00_5", "percentile_99_5", "median", "min", "max"), 1)
    fingerprint = {
        "spacings": [spacing_mm] * 2,
        "shapes_after_crop": [GRID] * 2,
        "foreground_intensity_properties_per_channel": {"0": properties},
        "median_relative_size_after_cropping": 1.0,
    }
    save_json(fingerprint, tmp_path / NAME / "dataset_fingerprint.json")
    nnUNetPlannerLaMaTiny(NAME).plan_experiment()
    plans = load_json(tmp_path / NAME / "nnUNetLaMaTinyPlans.json")
    settings = AnomalySettings.from_plans(plans)
    assert settings.roi.labels == (1, 2) and settings.slices.lesion_labels == (2,)
    assert plans["transpose_forward"] == [0, 1, 2]  # slices are the sagittal ones


def test_cases_json_has_the_side_of_every_knee(phantom):
    sides = sides_of_cases(phantom / "cases.json")
    assert sorted(sides) == sorted(CASES)
    for case, side in sides.items():
        folder = "Tr" if case in CASES[:2] else "Val" if case in CASES[2:4] else "Test"
        middle = read(phantom, f"images{folder}/{case}_0000.nii.gz")
        place = middle.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in middle.GetSize()])
        assert (place[0] > 0) == (side == "left")


@pytest.mark.parametrize("index", [0, 5])
def test_compartments_of_the_truth_are_those_by_geometry(index):
    """The lesion's middle lies in the compartment that its record names; case 5 is a left knee."""
    case = make_iw_case(4, index, True, (28, 64, 64))
    image = case.as_image(case.image)
    parts = femur_compartments(case.labels > 0, case.spacing_mm, image.GetDirection(), case.subject.side.lower())
    numbers = {"medial": 1, "lateral": 2, "trochlea": 3}
    for record in case.records:
        inside = parts.label_map[case.lesions == record["instance"]]
        assert np.bincount(inside, minlength=4).argmax() == numbers[record["compartment"]]


def test_truth_agrees_with_the_lesion_masks(phantom):
    truth = load_json(phantom / "truth/lesions.json")
    assert truth["phantom"] == load_json(phantom / "phantom.json")
    assert sorted(truth["cases"]) == sorted(CASES)
    for case, record in truth["cases"].items():
        assert record == load_json(phantom / "truth/cases" / f"{case}.json")
        instances = sitk.GetArrayFromImage(read(phantom, f"truth/lesion_instances/{case}.nii.gz"))
        assert record["has_lesions"] == instances.any()
        assert [one["voxels"] for one in record["lesions"]] == list(np.bincount(instances.ravel())[1:])
        for lesion in record["lesions"]:
            assert {"instance", "site", "compartment", "volume_mm3", "contrast", "radius_mm"} <= set(lesion)
        if record["part"] == "training":
            labels = sitk.GetArrayFromImage(read(phantom, f"labelsTr/{case}.nii.gz"))
            np.testing.assert_array_equal(labels == 2, instances > 0)


def test_which_cases_have_lesions(phantom):
    has = {part: [case_has_lesions(part, number) for number in range(12)] for part in knee_iw_dataset.PARTS}
    assert sum(has["training"]) == 6 and sum(has["validation"]) == 11 and sum(has["test"]) == 10
    for case, record in load_json(phantom / "truth/lesions.json")["cases"].items():
        assert record["has_lesions"] == case_has_lesions(record["part"], int(case[-3:]))


def test_names_are_unique_over_all_parts():
    names = [case_name(part, number) for part in knee_iw_dataset.PARTS for number in range(1000)]
    assert len(set(names)) == 3000


def test_fewer_cases_first_or_in_parallel_give_the_same_bytes(phantom, tmp_path):
    folder = tmp_path / NAME
    assert len(make_bml_phantom(folder, BmlPhantom(training=1, seed=1, grid=GRID)).done) == 1
    assert load_json(folder / "dataset.json")["numTraining"] == 1
    outcome = make_bml_phantom(folder, PHANTOM, num_processes=2)
    assert (len(outcome.done), len(outcome.skipped)) == (4, 1)
    assert_same_bytes(phantom, folder)


def test_a_killed_run_is_finished_and_no_case_made_again(phantom, tmp_path):
    folder = tmp_path / NAME
    make_bml_phantom(folder, PHANTOM)
    # as a kill leaves it: one case without its record and an image, another begun, no description
    (folder / "truth/cases/knee_001.json").unlink()
    (folder / "imagesTr/knee_001_0000.nii.gz").unlink()
    (folder / ".partial/knee_001").mkdir(parents=True)
    (folder / ".partial/knee_001/junk").write_text("half")
    (folder / ".partial_x1y2.json").write_text("{")
    (folder / "dataset.json").unlink()
    kept = folder / "imagesTr/knee_000_0000.nii.gz"
    os.utime(kept, (1, 1))
    outcome = make_bml_phantom(folder, PHANTOM)
    assert outcome.done == ["knee_001"] and len(outcome.skipped) == 4
    assert kept.stat().st_mtime == 1
    assert_same_bytes(phantom, folder)


def test_a_failed_case_is_named_and_left_out_of_the_description(tmp_path, monkeypatch):
    def failing(seed, index, has_lesions, grid):
        if index == 1:
            raise OSError("no such luck")
        return make_iw_case(seed, index, has_lesions, grid)

    monkeypatch.setattr(knee_iw_dataset, "make_iw_case", failing)
    folder = tmp_path / NAME
    outcome = make_bml_phantom(folder, BmlPhantom(training=2, seed=1, grid=GRID))
    assert outcome.exit_code == 1 and "no such luck" in outcome.failed["knee_001"]
    assert load_json(folder / "dataset.json")["numTraining"] == 1
    assert list(load_json(folder / "cases.json")) == ["knee_000"]
    assert not [path for path in tree(folder) if "knee_001" in path]


@pytest.mark.parametrize(
    "changes,word", [({"seed": 3}, "seed"), ({"grid": (10, 64, 64)}, "grid"), ({"validation": 1}, "validation")]
)
def test_a_folder_with_another_phantom_is_refused(phantom, changes, word):
    before = tree(phantom)
    with pytest.raises(InputError, match=word):
        make_bml_phantom(phantom, BmlPhantom(**{**vars(PHANTOM), **changes}))
    assert tree(phantom) == before


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="not an empty folder"):
        make_bml_phantom(tmp_path / NAME, PHANTOM)
    assert tree(tmp_path / NAME) == ["thesis.tex"]


@pytest.mark.parametrize(
    "name,changes,word",
    [
        (NAME, {"training": 0}, "--training"),
        (NAME, {"test": 1001}, "--test"),
        (NAME, {"seed": -1}, "--seed"),
        (NAME, {"grid": (4, 64, 64)}, "--grid"),
        (NAME, {"grid": (9, 64)}, "--grid"),
        ("knees", {}, "Dataset120_Knee"),
    ],
)
def test_bad_parameters_are_refused_before_anything_is_written(tmp_path, name, changes, word):
    with pytest.raises(SettingsError, match=word):
        make_bml_phantom(tmp_path / name, BmlPhantom(**{**vars(PHANTOM), **changes}))
    assert not (tmp_path / name).exists()


def test_command(tmp_path, capsys):
    folder = tmp_path / NAME
    arguments = ["phantom", "knee-bml", "--training", "1", "--seed", "1", "-o", str(folder)]
    assert main([*arguments, "--grid", "9", "64", "64"]) == 0
    said = capsys.readouterr().out
    assert "1 cases made" in said and "nnUNetv2_plan_and_preprocess -d 120 -pl nnUNetPlannerLaMa" in said
    assert main(arguments) == 2
    assert "another phantom" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--full-grid", "--grid", "9", "64", "64"])
