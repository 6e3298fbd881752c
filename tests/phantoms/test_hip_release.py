"""The hip phantom as the CTPEL release: tree, bytes, truth, what its DICOM files say."""

import filecmp
import re
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.errors import AnomalyError, InputError, SettingsError
from nnunet_anomaly.files import load_json
from nnunet_anomaly.phantoms.dicom import read_series
from nnunet_anomaly.phantoms.hip import FULL_GRID, identifier_of, make_case
from nnunet_anomaly.phantoms.hip_release import HipPhantom, copy_numbers, make_hip_phantom

pytest.importorskip("highdicom", reason="the extra seg is not installed")

GRID = (32, 40, 48)
PHANTOM = HipPhantom(seed=1, cases=2, inferior=True, implants=0.5, nifti=True, grid=GRID)
NAMES = [identifier_of(1, index) for index in range(2)]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Two cases with inferior labels in the release; the second has a screw."""
    folder = tmp_path_factory.mktemp("hips") / "phantom"
    outcome = make_hip_phantom(folder, PHANTOM)
    assert len(outcome.done) == 2 and outcome.exit_code == 0
    return folder


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def segments(path):
    """Masks of a SEG by SegmentDescription, slices from the feet to the head; by pydicom alone, frame by frame."""
    from pydicom import dcmread

    seg = dcmread(path)
    names = {item.SegmentNumber: item.SegmentDescription for item in seg.SegmentSequence}
    frames = seg.pixel_array
    places = [
        (
            names[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber],
            float(frame.PlanePositionSequence[0].ImagePositionPatient[2]),
        )
        for frame in seg.PerFrameFunctionalGroupsSequence
    ]
    return {name: {z: frames[i] for i, (one, z) in enumerate(places) if one == name} for name in names.values()}


def test_tree_is_the_releases_file_for_file(phantom):
    expected = ["phantom.json", "truth/joints.json"]
    for name in NAMES:
        assert re.fullmatch(r"[0-9a-f]{16}", name)
        expected += [f"CTPEL/{name}/im_1/i{number:04d},0000b.dcm" for number in range(GRID[0])]
        expected += [f"CTPEL/{name}/im_2/x0000.dcm", f"CTPEL/{name}/im_3/x0000.dcm"]
        expected += [f"nifti/images/{name}.nii.gz", f"nifti/labels/{name}.nii.gz"]
        expected += [f"truth/labels/{name}.nii.gz", f"truth/cases/{name}.json"]
    assert tree(phantom) == sorted(expected)


def test_images_and_labels_are_those_of_the_cases(phantom):
    case = make_case(1, 0, None, GRID)
    image = read_series(phantom / "CTPEL" / NAMES[0] / "im_1")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), case.image)
    np.testing.assert_array_equal(read(phantom / "nifti/images" / f"{NAMES[0]}.nii.gz"), case.image)
    np.testing.assert_array_equal(read(phantom / "truth/labels" / f"{NAMES[0]}.nii.gz"), case.labels)
    copies = read(phantom / "nifti/labels" / f"{NAMES[0]}.nii.gz")
    for number, label in enumerate((2, 1, 4, 3, 5), start=1):
        np.testing.assert_array_equal(copies == number, case.inferior == label)
    truth = sitk.ReadImage(str(phantom / "truth/labels" / f"{NAMES[0]}.nii.gz"))
    np.testing.assert_allclose(truth.GetOrigin(), image.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(image.GetSpacing(), case.spacing_mm[::-1], atol=1e-4)


def test_segments_are_named_and_lie_on_the_ct(phantom):
    case = make_case(1, 0, None, GRID)
    image = read_series(phantom / "CTPEL" / NAMES[0] / "im_1")
    found = segments(phantom / "CTPEL" / NAMES[0] / "im_3" / "x0000.dcm")
    assert list(found) == ["Right Femur", "Left Femur", "Right Hip", "Left Hip", "Sacrum"]
    heights = [image.TransformIndexToPhysicalPoint((0, 0, index))[2] for index in range(GRID[0])]
    for name, label in zip(found, (2, 1, 4, 3, 5), strict=True):
        for index, height in enumerate(heights):
            frame = next((plane for z, plane in found[name].items() if abs(z - height) < 1e-3), None)
            expected = case.inferior[index] == label
            assert expected.any() == (frame is not None)
            if frame is not None:
                np.testing.assert_array_equal(frame > 0, expected)


def test_landmarks_name_the_middles(phantom):
    from pydicom import dcmread

    report = dcmread(phantom / "CTPEL" / NAMES[0] / "im_2" / "x0000.dcm")
    assert report.Modality == "SR" and len(report.ContentSequence) == 5
    points = {item.ConceptNameCodeSequence[0].CodeMeaning: item.GraphicData for item in report.ContentSequence}
    assert points["Middle of Left Femur"][0] > points["Middle of Right Femur"][0] + 100


def test_file_names_run_from_head_to_feet(phantom):
    from pydicom import dcmread

    folder = phantom / "CTPEL" / NAMES[0] / "im_1"
    heights = [float(dcmread(path).ImagePositionPatient[2]) for path in sorted(folder.iterdir())]
    assert heights == sorted(heights, reverse=True)


def test_truth_tells_joints_and_metal(phantom):
    truth = load_json(phantom / "truth" / "joints.json")
    assert truth["labels"]["femur_left"] == 1
    assert [truth["cases"][name]["implant"] is None for name in NAMES] == [True, False]
    space = truth["cases"][NAMES[0]]["joint_space_mm"]["left"]
    assert 5.0 <= space["drawn"] <= 8.0 and space["smallest"] > 0


def test_same_seed_same_bytes_and_more_cases_change_none(phantom, tmp_path):
    again = tmp_path / "again"
    make_hip_phantom(again, PHANTOM)
    assert tree(again) == tree(phantom)
    _, different, unreadable = filecmp.cmpfiles(again, phantom, tree(phantom), shallow=False)
    assert not different and not unreadable
    before = {name: (again / name).stat().st_mtime_ns for name in tree(again) if name.startswith("CTPEL")}
    outcome = make_hip_phantom(again, HipPhantom(**{**PHANTOM.__dict__, "cases": 3}))
    assert (len(outcome.done), len(outcome.skipped)) == (1, 2)
    assert before.items() <= {name: (again / name).stat().st_mtime_ns for name in tree(again)}.items()


def test_killed_run_is_finished(phantom, tmp_path):
    first = tmp_path / "first"
    make_hip_phantom(first, HipPhantom(**{**PHANTOM.__dict__, "cases": 1}))
    (first / "truth/cases" / f"{NAMES[0]}.json").unlink()  # written last
    (first / ".partial").mkdir()
    assert make_hip_phantom(first, PHANTOM).done == NAMES
    assert tree(first) == tree(phantom)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"cases": 0}, "--cases is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"implants": 1.5}, "--implant is 1.5"),
        ({"gap_range_mm": (4.0, 3.0)}, "--gap-mm is 4.0 3.0"),
        ({"gap_range_mm": (0.0, 3.0)}, "--gap-mm"),
        ({"grid": (8, 40, 40)}, "--grid is 8 40 40"),
    ],
)
def test_parameters_out_of_range(tmp_path, change, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        make_hip_phantom(tmp_path / "new", HipPhantom(**{**PHANTOM.__dict__, **change}))
    assert not (tmp_path / "new").exists()


def test_folder_of_another_phantom_is_refused(phantom):
    with pytest.raises(InputError, match="inferior True instead of False"):
        make_hip_phantom(phantom, HipPhantom(**{**PHANTOM.__dict__, "inferior": False}))


def test_missing_highdicom_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(AnomalyError, match=r"need the package highdicom.*pip install"):
        make_hip_phantom(tmp_path / "new", PHANTOM)
    assert not (tmp_path / "new").exists()


def test_copies_number_the_right_side_first():
    np.testing.assert_array_equal(copy_numbers(np.arange(6)), [0, 2, 1, 4, 3, 5])


def test_command(tmp_path, capsys):
    words = ["phantom", "hip", "--cases", "1", "--grid", "24", "32", "40", "--gap-mm", "6", "6", "-o"]
    assert main([*words, str(tmp_path / "a p")]) == 0
    said = capsys.readouterr().out
    assert "1 cases made" in said and f"nnunet-anomaly convert ctpel '{tmp_path / 'a p' / 'CTPEL'}' -d 401" in said
    record = next(iter(load_json(tmp_path / "a p/truth/joints.json")["cases"].values()))
    assert record["joint_space_mm"]["right"]["drawn"] == 6.0
    assert not (tmp_path / "a p" / "nifti").exists()


def test_full_grid_is_finer_than_a_millimetre_or_so():
    assert max(extent / size for extent, size in zip((208, 240, 364), FULL_GRID, strict=True)) <= 1.0
