"""What planning derives for left and right, from names and from label maps on disk."""

import json
import shutil
import warnings

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.planners import symmetry
from nnunet_anomaly.planners.symmetry import derived_symmetry

LABELS = {"background": 0, "femur_left": 1, "femur_right": 2, "sacrum": 3}
PLANS = {"image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2]}


def write_label_map(path, left=1, right=2, orientation="LPS", dimension=3):
    """Two boxes, ``left`` on the patient's left (x rises to it), turned into an orientation."""
    array = np.zeros((6, 8, 20), np.uint8)
    array[2:4, 2:6, 3:7], array[2:4, 2:6, 13:17] = right, left
    image = sitk.GetImageFromArray(array[3] if dimension == 2 else array)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.DICOMOrient(image, orientation) if dimension == 3 else image, str(path))
    return path


@pytest.fixture
def write(tmp_path):
    """Write label maps, one for every dictionary of ``write_label_map``'s arguments; returns their paths."""

    def write(*cases, ending=".nii.gz"):
        return [write_label_map(tmp_path / f"case_{i:02d}{ending}", **case) for i, case in enumerate(cases)]

    return write


def derive(label_maps, labels=LABELS, **plans):
    """What is derived, and what is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = derived_symmetry({"labels": labels}, label_maps, {**PLANS, **plans})
    return found, " ".join(str(warning.message) for warning in caught)


def test_names_and_places_make_a_pair(write, capsys):
    found, warned = derive(write(*[{}] * 3))
    assert found == {"symmetry.pairs": [(1, 2)], "symmetry.side_axis": 2} and not warned
    assert "'femur_left' (1) and 'femur_right' (2) are a pair; left lies on the patient's left in 3 of 3" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("orientations", "transpose_forward", "expected"),
    [
        (["LPS", "LAI"], [0, 1, 2], 2),  # flips along other axes do not matter
        (["RPS", "RPS"], [0, 1, 2], 2),  # nor does one that all have
        (["LPS", "LPS"], [2, 0, 1], 0),  # as nnU-Net orders axes where slices are sagittal
        (["PSL", "PIL"], [0, 1, 2], 0),
        (["PLS"], [0, 1, 2], 1),
        (["PLS"], [1, 0, 2], 0),
    ],
)
def test_the_axis_is_that_of_preprocessed_arrays(write, orientations, transpose_forward, expected):
    label_maps = write(*[{"orientation": orientation} for orientation in orientations])
    found, warned = derive(label_maps, transpose_forward=transpose_forward)
    assert found == {"symmetry.pairs": [(1, 2)], "symmetry.side_axis": expected} and not warned


def test_images_that_lie_differently_have_no_common_axis(write):
    label_maps = write({}, {"orientation": "PSL"})
    found, warned = derive(label_maps)
    assert found == {"symmetry.pairs": [(1, 2)], "symmetry.side_axis": -1}
    assert "not the same in all images" in warned and "DICOMOrient" in warned
    turned, warned = derive(label_maps, image_reader_writer="SimpleITKIOWithReorient")  # nnU-Net brings them to RAS
    assert turned == {"symmetry.pairs": [(1, 2)], "symmetry.side_axis": 2} and not warned


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_arrays_in_which_left_and_right_change_places_are_said(write, reader):
    label_maps = write({}, {"orientation": "RPS"}, {"orientation": "LPI"})
    found, warned = derive(label_maps, image_reader_writer=reader)
    assert found == {"symmetry.pairs": [(1, 2)], "symmetry.side_axis": 2}
    assert f"left in 2 images and to the right in 1. {reader} leaves them so" in warned
    assert "DICOMOrient" in warned and '"overwrite_image_reader_writer": "NibabelIOWithReorient"' in warned
    assert derive(label_maps, image_reader_writer="NibabelIOWithReorient") == (found, "")


def test_labels_in_lists_of_one_value_are_labels(write):
    labels = {"background": 0, "femurs": [1, 2], "femur_left": [1], "femur_right": [2], "sacrum": 3}
    assert derive(write({}), labels) == ({"symmetry.pairs": [(1, 2)], "symmetry.side_axis": 2}, "")


def test_a_left_one_on_the_right_is_a_pair_and_is_said(write):
    found, warned = derive(write(*[{"left": 2, "right": 1}] * 2))
    assert found["symmetry.pairs"] == [(1, 2)]
    assert "'femur_left' (1) and 'femur_right' (2): what is called left lies on the patient's RIGHT" in warned


def test_names_that_label_maps_do_not_confirm_are_left_out_and_said(write):
    found, warned = derive(write({}, {"left": 2, "right": 1}, {"left": 3}))
    assert found == {"symmetry.pairs": [], "symmetry.side_axis": 2}
    assert "of 2 that hold both, the left one lies on the patient's left in 1, on the right in 1" in warned
    assert "--set symmetry.pairs=[[1,2]]" in warned


def test_cases_with_one_side_say_nothing(write):
    found, _ = derive(write({}, {"left": 3}, {"right": 3}))
    assert found["symmetry.pairs"] == [(1, 2)]
    found, warned = derive(write({"left": 3}, {"right": 3}))  # one knee in every image
    assert found["symmetry.pairs"] == [] and "of 0 that hold both" in warned


def test_pictures_have_left_and_right_in_their_columns(write):
    found, _ = derive(write(*[{"dimension": 2}] * 2, ending=".png"), image_reader_writer="NaturalImage2DIO")
    assert found == {"symmetry.pairs": [(1, 2)], "symmetry.side_axis": 2}


def test_a_reader_that_knows_no_patient_is_said(write):
    found, warned = derive(write({}), image_reader_writer="Tiff3DIO")
    assert not found and "Tiff3DIO does not say how images lie" in warned and "symmetry.side_axis" in warned
    with pytest.warns(UserWarning, match=r"Tiff3DIO does not say.*symmetry\.side_axis=2"):
        assert symmetry.derived_side_axis([], {**PLANS, "image_reader_writer": "Tiff3DIO"}) == -1


def test_a_damaged_label_map_is_named_and_the_others_count(write):
    label_maps = write({}, {}, {})
    label_maps[1].write_bytes(b"\x1f\x8b" + bytes(50))
    with pytest.raises(InputError, match=r"case_01\.nii\.gz is missing or not readable"):  # the axis needs every header
        derive(label_maps)
    whole = label_maps[0].read_bytes()
    label_maps[1].write_bytes(whole[: len(whole) - 20])
    found, warned = derive(label_maps)
    assert found["symmetry.pairs"] == [(1, 2)] and "case_01.nii.gz" in warned


def test_without_names_of_left_and_right_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(symmetry, "read_label_map", None)
    labels = {"background": 0, "bone": 1, "cartilage": 2}
    assert derive([tmp_path / "missing.nii.gz"], labels) == ({}, "")


def test_ten_label_maps_are_enough(write, monkeypatch):
    label_maps = write(*[{}] * 3) * 40
    read = []
    original = symmetry.read_label_map
    monkeypatch.setattr(symmetry, "read_label_map", lambda path: read.append(path) or original(path))
    found, _ = derive(label_maps)
    assert found["symmetry.pairs"] == [(1, 2)] and len(read) == 10
    places = [round(place * 119 / 9) for place in range(10)]
    assert read == [label_maps[place] for place in places]


@pytest.fixture
def sided(planned, tmp_path, monkeypatch):
    """The tiny dataset under names of left and right: plans of nnU-Net's, and label maps with two sides."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(tmp_path / name))
    raw, preprocessed = (tmp_path / name / "Dataset101_Tiny" for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    for name in ("imagesTr/case_00_0000.nii.gz", "imagesTr/case_01_0000.nii.gz"):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(planned.root / "nnUNet_raw" / "Dataset101_Tiny" / name, raw / name)
        write_label_map(raw / "labelsTr" / name[9:].replace("_0000", ""))
    source = planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
    preprocessed.mkdir(parents=True)
    plans = json.loads((source / "nnUNetAnomalyTinyPlans.json").read_text())
    del plans["anomaly"]
    (preprocessed / "stock.json").write_text(json.dumps(plans | {"plans_name": "stock"}))
    dataset = json.loads((source / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "knee left": 1, "knee right": 2}
    del dataset["anomaly"]["roi_labels"]
    for folder in (raw, preprocessed):
        (folder / "dataset.json").write_text(json.dumps(dataset))
    shutil.copy(source / "dataset_fingerprint.json", preprocessed)
    return preprocessed


def test_the_block_that_is_added_to_plans_has_pairs(sided, monkeypatch, capsys):
    command = ["plan", "-d", "101", "-p", "stock"]
    assert main([*command, "--add-block"]) == 0
    found = json.loads((sided / "stock.json").read_text())["anomaly"]["symmetry"]
    assert (found["pairs"], found["side_axis"], found["mirroring"]) == ([[1, 2]], 2, "swap")
    monkeypatch.delenv("nnUNet_raw")
    assert main([*command, "--preset", "paper", "--save-as", "other"]) == 0  # what images say stays
    found = json.loads((sided / "other.json").read_text())["anomaly"]["symmetry"]
    assert (found["pairs"], found["side_axis"], found["mirroring"]) == ([[1, 2]], 2, "off")
    assert main([*command, "--set", "symmetry.pairs=[[1,4]]"]) == 2
    assert "symmetry.pairs has [4]; the dataset's labels are [1, 2]" in capsys.readouterr().err


def test_pairs_that_are_set_take_the_axis_from_headers(sided, monkeypatch, capsys):
    for folder in (sided, sided.parents[1] / "nnUNet_raw" / sided.name):
        dataset = json.loads((folder / "dataset.json").read_text())
        dataset["labels"] = {"background": 0, "knee": 1, "other knee": 2}
        (folder / "dataset.json").write_text(json.dumps(dataset))

    def planned(*values):
        assert main(["plan", "-d", "101", "-p", "stock", *(f"--set={value}" for value in values)]) == 0
        return json.loads((sided / "stock.json").read_text())["anomaly"]["symmetry"]["side_axis"]

    assert main(["plan", "-d", "101", "-p", "stock", "--add-block"]) == 0
    assert planned("seed=1") == -1
    assert planned("symmetry.pairs=[[1,2]]", "symmetry.side_axis=0") == 0
    assert planned("symmetry.side_axis=-1") == -1
    assert planned("symmetry.pairs=[[1,2]]") == 2
    monkeypatch.delenv("nnUNet_raw")
    assert planned("symmetry.pairs=[[1,2]]") == 2  # known already
    assert planned("symmetry.side_axis=-1") == -1
    assert main(["plan", "-d", "101", "-p", "stock", "--set", "symmetry.pairs=[[1,2]]"]) == 2
    assert "--set symmetry.side_axis=2" in capsys.readouterr().err
    assert planned("symmetry.pairs=[]", "symmetry.side_axis=-1") == -1
    plain = [f"symmetry.{name}=plain" for name in ("mirroring", "test_time_mirroring")]
    assert planned("symmetry.pairs=[[1,2]]", *plain) == -1  # it does not matter then


def test_our_planner_writes_pairs(sided, monkeypatch):
    from nnunet_anomaly.planners.anomaly import nnUNetPlannerAnomalyTiny

    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    planner = nnUNetPlannerAnomalyTiny("Dataset101_Tiny")
    planner.plan_experiment()
    found = json.loads((sided / "nnUNetAnomalyTinyPlans.json").read_text())["anomaly"]["symmetry"]
    assert (found["pairs"], found["side_axis"]) == ([[1, 2]], 2)
