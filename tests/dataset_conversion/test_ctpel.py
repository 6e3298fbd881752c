"""The CTPEL converter on a generated release, whole and damaged, on NIfTI copies, and on a real CT."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.dataset_conversion.ctpel import on_grid_of_ct, structure_named, unused_names
from nnunet_anomaly.errors import GeometryError, LabelError
from nnunet_anomaly.phantoms.dicom_seg import write_segmentation
from nnunet_anomaly.phantoms.hip import identifier_of
from nnunet_anomaly.phantoms.hip_release import SEGMENTS, HipPhantom, make_hip_phantom

pytest.importorskip("highdicom", reason="the extra seg is not installed")

from pydicom import dcmread

# tags as they are in a file
SERIES_UID, FRAME_UID, RESCALE_SLOPE = b"\x20\0\x0e\0", b"\x20\0\x52\0", b"\x28\0\x53\x10"
NAMES = [identifier_of(0, index) for index in range(3)]
NAME = NAMES[0]


@pytest.fixture(scope="session")
def whole_phantom(tmp_path_factory):
    """Three cases on a coarse grid with NIfTI copies; not to be changed."""
    folder = tmp_path_factory.mktemp("hips") / "phantom"
    assert make_hip_phantom(folder, HipPhantom(0, 3, nifti=True, grid=(26, 40, 52))).exit_code == 0
    return folder


@pytest.fixture
def phantom(whole_phantom, tmp_path):
    """A copy of two cases, to be damaged at will."""
    shutil.copytree(whole_phantom, tmp_path / "phantom", ignore=shutil.ignore_patterns(f"{NAMES[2]}*"))
    return tmp_path / "phantom"


def convert(release, *options):
    return main(["convert", "ctpel", str(release), "-d", "401", "-np", "1", *map(str, options)])


def load(raw, name):
    return json.loads((raw / "Dataset401_CTPEL" / f"{name}.json").read_text())


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def converted(raw, name, kind="labelsTr"):
    suffix = "_0000" if kind.startswith("images") else ""
    return read(raw / "Dataset401_CTPEL" / kind / f"{name}{suffix}.nii.gz")


def truth(phantom, name=NAME):
    return read(phantom / "truth/labels" / f"{name}.nii.gz")


def slices(phantom, name=NAME):
    """Files of the CT from the feet to the head."""
    return sorted((phantom / "CTPEL" / name / "im_1").iterdir(), reverse=True)


def rewrite_seg(phantom, masks):
    """Another SEG for the first case."""
    write_segmentation(phantom / "CTPEL" / NAME / "im_3" / "x0000.dcm", masks, slices(phantom), "again")


def masks_of(phantom):
    return {name: truth(phantom) == label for name, label in SEGMENTS.items()}


def change(path, **values):
    dataset = dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


# ---- what is converted


def test_release_is_converted_exactly(whole_phantom, raw):
    assert convert(whole_phantom / "CTPEL") == 0
    for name in NAMES:
        np.testing.assert_array_equal(converted(raw, name), truth(whole_phantom, name))
        np.testing.assert_array_equal(
            converted(raw, name, "imagesTr"), read(whole_phantom / "nifti/images" / f"{name}.nii.gz")
        )
    dataset = load(raw, "dataset")
    assert dataset["channel_names"] == {"0": "CT"}
    assert list(dataset["labels"]) == ["background", "femur_left", "femur_right", "hip_left", "hip_right", "sacrum"]
    splits = load(raw, "splits_final")
    assert sorted(name for split in splits for name in split["val"]) == sorted(NAMES)
    sides = load(raw, "cases")[NAME]["sides"]
    assert sides["structures"]["femur_left"]["named"] == "Left Femur"
    assert sides["structures"]["femur_left"]["left_of_midline_mm"] > 60
    assert sides["structures"]["hip_right"]["lies"] == "right"


def test_finished_cases_are_kept(whole_phantom, raw, capsys):
    assert convert(whole_phantom / "CTPEL") == 0
    assert convert(whole_phantom / "CTPEL") == 0
    assert "0 cases converted now, 3 kept from before." in capsys.readouterr().out


def test_folders_and_segments_have_any_number(phantom, raw):
    folder = phantom / "CTPEL" / NAME
    rewrite_seg(phantom, dict(reversed(masks_of(phantom).items())))
    for old, new in (("im_1", "im_8"), ("im_3", "im_1"), ("im_2", "im_3")):
        (folder / old).rename(folder / new)
    assert convert(phantom / "CTPEL") == 0
    np.testing.assert_array_equal(converted(raw, NAME), truth(phantom))


def test_segments_are_named_by_description_else_by_label(phantom, raw):
    path = phantom / "CTPEL" / NAME / "im_3" / "x0000.dcm"
    dataset = dcmread(path)
    for item in dataset.SegmentSequence:
        del item.SegmentDescription
    dataset.save_as(path)
    other = phantom / "CTPEL" / NAMES[1] / "im_3" / "x0000.dcm"
    dataset = dcmread(other)
    for item in dataset.SegmentSequence:
        item.SegmentLabel = "Segment"
    dataset.save_as(other)
    assert convert(phantom / "CTPEL") == 0
    for name in NAMES[:2]:
        np.testing.assert_array_equal(converted(raw, name), truth(phantom, name))


def test_nifti_copies_have_their_sides_by_geometry(whole_phantom, raw):
    assert convert(whole_phantom / "nifti") == 0
    for name in NAMES:
        np.testing.assert_array_equal(converted(raw, name), truth(whole_phantom, name))
    assert load(raw, "cases")[NAME]["sides"]["structures"]["femur_right"]["named"] == "label 1"


def test_axes_of_any_order_come_out_as_lps(phantom, raw):
    for kind in ("images", "labels"):
        path = phantom / "nifti" / kind / f"{NAME}.nii.gz"
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "SRA"), str(path))
    assert convert(phantom / "nifti") == 0
    np.testing.assert_array_equal(converted(raw, NAME), truth(phantom))


def test_image_without_label_map_is_for_prediction(phantom, raw):
    (phantom / "nifti/labels" / f"{NAME}.nii.gz").unlink()
    assert convert(phantom / "nifti", "--crop", 5) == 0
    assert converted(raw, NAME, "imagesTs").shape == truth(phantom).shape  # not cropped
    assert not (raw / "Dataset401_CTPEL/labelsTs").exists()
    assert load(raw, "roles")["cases"][NAME]["role"] == "unlabelled"


def test_corrected_labels_of_some_cases(phantom, raw, tmp_path):
    corrected = tmp_path / "corrected"
    corrected.mkdir()
    shutil.rmtree(phantom / "CTPEL" / NAME / "im_3")  # not needed
    label = sitk.ReadImage(str(phantom / "truth/labels" / f"{NAME}.nii.gz"))
    label[20, 12, 10] = 3
    sitk.WriteImage(label[3:40, 2:, :], str(corrected / f"{NAME}.nii.gz"))  # as of a cropped dataset
    assert convert(phantom / "CTPEL", "--labels", corrected) == 0
    assert list(load(raw, "cases")) == [NAME]
    expected = np.zeros_like(truth(phantom))
    expected[:, 2:, 3:40] = sitk.GetArrayFromImage(label)[:, 2:, 3:40]
    np.testing.assert_array_equal(converted(raw, NAME), expected)
    assert load(raw, "cases")[NAME]["sources"]["labels"] == f"{NAME}.nii.gz"


def test_cases_of_a_list_and_roles(whole_phantom, raw, tmp_path):
    (tmp_path / "list").write_text("\n".join(NAMES[:2]))
    assert convert(whole_phantom / "CTPEL", "--cases", tmp_path / "list", "--test", 1) == 0
    assert sorted(load(raw, "cases")) == sorted(NAMES[:2])
    assert sorted(load(raw, "roles")["numbers"].items()) == [("test", 1), ("train", 1)]


@pytest.mark.parametrize("margin_mm", [0, 20])
def test_crop_leaves_the_labels_and_a_margin(whole_phantom, raw, margin_mm):
    assert convert(whole_phantom / "CTPEL", "--crop", margin_mm) == 0
    expected = truth(whole_phantom)
    image = sitk.ReadImage(str(raw / "Dataset401_CTPEL/imagesTr" / f"{NAME}_0000.nii.gz"))
    whole = sitk.ReadImage(str(whole_phantom / "nifti/images" / f"{NAME}.nii.gz"))
    lines = [np.flatnonzero(expected.any(axis=other)) for other in ((1, 2), (0, 2), (0, 1))]
    margins = [int(np.ceil(margin_mm / size)) for size in whole.GetSpacing()[::-1]]
    box = tuple(
        slice(max(0, line[0] - margin), line[-1] + 1 + margin) for line, margin in zip(lines, margins, strict=True)
    )
    np.testing.assert_array_equal(converted(raw, NAME), expected[box])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(whole)[box])
    start = whole.TransformIndexToPhysicalPoint([int(part.start) for part in box[::-1]])
    np.testing.assert_allclose(image.GetOrigin(), start, atol=1e-2)


def test_missing_femur_is_allowed_and_noted(phantom, raw, capsys):
    rewrite_seg(phantom, {name: mask for name, mask in masks_of(phantom).items() if name != "Left Femur"})
    assert convert(phantom / "CTPEL") == 0
    assert f"note on {NAME}: WARNING: one femur is absent" in capsys.readouterr().out
    label = truth(phantom)
    np.testing.assert_array_equal(converted(raw, NAME), np.where(label == 1, 0, label))


# ---- left and right


def exchanged(phantom):
    masks = masks_of(phantom)
    masks["Left Hip"], masks["Right Hip"] = masks["Right Hip"], masks["Left Hip"]
    return masks


def test_wrong_sides_fail_with_all_places(phantom, raw):
    rewrite_seg(phantom, exchanged(phantom))
    assert convert(phantom / "CTPEL") == 1
    reason = load(raw, "integrity_report")["failed"][NAME]
    assert "'Right Hip', 'Left Hip' lie on the other side than their names say" in reason
    assert "mm to the left" in reason and "--sides geometry" in reason and str(phantom) in reason
    assert load(raw, "dataset")["numTraining"] == 1  # the other one went on


def test_report_tells_of_left_and_right(whole_phantom, raw, capsys):
    assert convert(whole_phantom / "CTPEL") == 0
    output = capsys.readouterr().out
    assert "  sides: by patient coordinates; names and places agree in 3 of 3 finished cases\n" in output
    assert not re.search("laterality|visits|alignments", output)


def test_report_tells_what_numbers_of_copies_became(whole_phantom, raw, capsys):
    assert convert(whole_phantom / "nifti") == 0
    assert (
        "  sides: by patient coordinates; label 1 became femur_right (3); label 2 became femur_left (3); "
        "label 3 became hip_right (3); label 4 became hip_left (3)\n"
    ) in capsys.readouterr().out


def test_wrong_sides_are_exchanged_or_kept_by_option(phantom, raw, capsys):
    rewrite_seg(phantom, exchanged(phantom))
    assert convert(phantom / "CTPEL", "--sides", "geometry") == 0
    assert "names and places agree in 1 of 2 finished cases" in capsys.readouterr().out
    np.testing.assert_array_equal(converted(raw, NAME), truth(phantom))
    assert "they were exchanged" in load(raw, "cases")[NAME]["notes"][0]
    assert convert(phantom / "CTPEL", "--sides", "names") == 0  # converted again
    label = truth(phantom)
    np.testing.assert_array_equal(converted(raw, NAME), np.array([0, 1, 2, 4, 3, 5], np.uint8)[label])
    assert "their names were kept" in load(raw, "cases")[NAME]["notes"][0]


def test_single_femur_on_the_wrong_side_is_found(phantom, raw):
    masks = masks_of(phantom)
    masks["Right Femur"] = masks.pop("Left Femur")
    rewrite_seg(phantom, masks)
    assert convert(phantom / "CTPEL") == 1
    assert "'Right Femur' lie on the other side" in load(raw, "integrity_report")["failed"][NAME]


def test_label_names_of_another_numbering(phantom, raw, tmp_path):
    for name in NAMES[:2]:
        path = phantom / "nifti/labels" / f"{name}.nii.gz"
        label = sitk.ReadImage(str(phantom / "truth/labels" / f"{name}.nii.gz"))
        table = np.array([0, 3, 4, 1, 2, 9], np.uint8)
        other = sitk.GetImageFromArray(table[sitk.GetArrayFromImage(label)])
        other.CopyInformation(label)
        other[0, 0, 0] = 7
        sitk.WriteImage(other, str(path))
    names = tmp_path / "names.json"
    names.write_text(
        json.dumps({"1": "hip_left", "2": "hip_right", "3": "femur", "4": "femur", "7": None, "9": "sacrum"})
    )
    assert convert(phantom / "nifti", "--label-names", names) == 0
    for name in NAMES[:2]:
        np.testing.assert_array_equal(converted(raw, name), truth(phantom, name))


def test_segments_that_are_left_out_erase_nothing(phantom, raw, tmp_path):
    masks = masks_of(phantom)
    rewrite_seg(phantom, {**masks, "Marrow": ndimage.binary_erosion(masks["Left Hip"]), "Body": truth(phantom) >= 0})
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"Marrow": None, "Body": None}))
    for option in ("refuse", "background"):
        assert convert(phantom / "CTPEL", "--label-names", names, "--overlaps", option) == 0
        np.testing.assert_array_equal(converted(raw, NAME), truth(phantom))
        case = load(raw, "cases")[NAME]
        assert case["left_out"] == ["Marrow", "Body"] and case["notes"] == []


def test_labels_that_are_left_out_may_lie_outside_of_the_ct(phantom, raw, tmp_path):
    path = phantom / "nifti/labels" / f"{NAME}.nii.gz"
    label = sitk.ConstantPad(sitk.ReadImage(str(path)), [0, 0, 9], [0, 0, 0], 0)
    label[0, 0, 0] = 7
    sitk.WriteImage(label, str(path))
    names = tmp_path / "names.json"
    table = {"1": "femur", "2": "femur", "3": "hip", "4": "hip", "5": "sacrum"}
    names.write_text(json.dumps({**table, "7": None}))
    assert convert(phantom / "nifti", "--label-names", names) == 0
    np.testing.assert_array_equal(converted(raw, NAME), truth(phantom))


def test_label_names_that_no_case_has_are_named(phantom, raw, tmp_path, capsys):
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"Rigth Femur": "femur_right", "Sacrum": "sacrum", "Body": None}))
    assert convert(phantom / "CTPEL", "--label-names", names) == 0
    error = capsys.readouterr().err
    assert f"WARNING: {names} has 'Rigth Femur', 'Body', which no finished case has." in error


@pytest.mark.parametrize(
    "names,unused",
    [({"1": "femur", "7": None, "8": None}, ["8"]), ({"label 1": "femur"}, []), ({}, [])],
)
def test_unused_names(names, unused):
    records = [{"left_out": ["label 7"], "sides": {"structures": {"femur_left": {"named": "label 1"}}}}, {}]
    assert unused_names(names, records) == unused
    assert unused_names(names, [{}]) == []  # without any label map nothing is known


def test_bones_taken_for_each_other_are_found(phantom, raw):
    path = phantom / "nifti/labels" / f"{NAME}.nii.gz"
    label = sitk.ReadImage(str(path))
    other = sitk.GetImageFromArray(np.array([0, 3, 4, 1, 2, 5], np.uint8)[sitk.GetArrayFromImage(label)])
    other.CopyInformation(label)
    sitk.WriteImage(other, str(path))
    assert convert(phantom / "nifti") == 1
    reason = load(raw, "integrity_report")["failed"][NAME]
    assert "'label 1', a femur, lies above 'label 3', a hip bone" in reason and "--label-names" in reason


@pytest.mark.parametrize(
    "name,expected",
    [
        ("Right Femur", ("femur", "right")),
        ("LEFT HIP BONE", ("hip", "left")),
        ("hip_left", ("hip", "left")),
        ("Sacrum", ("sacrum", None)),
    ],
)
def test_segment_names(name, expected, tmp_path):
    assert structure_named(name, None, tmp_path) == expected


@pytest.mark.parametrize("name", ["Femur", "Left Sacrum", "Left Femur Implant", "Left Right Hip", "Bladder", ""])
def test_unknown_segment_names(name, tmp_path):
    with pytest.raises(LabelError, match="none of the known structures"):
        structure_named(name, None, tmp_path)
    assert structure_named(name, {name: None}, tmp_path) is None
    assert structure_named(name, {name: "hip"}, tmp_path) == ("hip", None)


# ---- bad input


def rename_segment(phantom):
    path = phantom / "CTPEL" / NAME / "im_3" / "x0000.dcm"
    dataset = dcmread(path)
    dataset.SegmentSequence[1].SegmentDescription = "Bladder"
    dataset.save_as(path)


def without(*names):
    return lambda phantom: rewrite_seg(
        phantom, {name: mask for name, mask in masks_of(phantom).items() if name not in names}
    )


def overlap(phantom):
    masks = masks_of(phantom)
    masks["Left Femur"] = masks["Left Femur"] | ndimage.binary_erosion(masks["Left Hip"])
    rewrite_seg(phantom, masks)


def one_voxel(phantom):
    masks = masks_of(phantom)
    place = tuple(np.argwhere(masks["Left Femur"])[0])
    masks["Left Femur"] = np.zeros_like(masks["Left Femur"])
    masks["Left Femur"][place] = True
    rewrite_seg(phantom, masks)


def move_seg(phantom):
    path = phantom / "CTPEL" / NAME / "im_3" / "x0000.dcm"
    dataset = dcmread(path)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        x, y, z = map(float, place.ImagePositionPatient)
        place.ImagePositionPatient = [x + 150, y, z]
    dataset.save_as(path)


def same_names(phantom):
    path = phantom / "CTPEL" / NAME / "im_3" / "x0000.dcm"
    dataset = dcmread(path)
    dataset.SegmentSequence[0].SegmentDescription = "Left Femur"
    dataset.save_as(path)


def tilt(phantom):
    for path in slices(phantom):
        x, y, z = map(float, dcmread(path).ImagePositionPatient)
        change(path, ImagePositionPatient=[x, y + 0.2 * z, z])


def second_ct(phantom):
    folder = phantom / "CTPEL" / NAME
    shutil.copytree(folder / "im_1", folder / "im_7")
    for path in (folder / "im_7").iterdir():
        change(path, SeriesInstanceUID="1.2.3", SeriesDescription="THIN")


def second_seg(phantom):
    folder = phantom / "CTPEL" / NAME
    shutil.copytree(folder / "im_3", folder / "im_7")


def seg(phantom):
    return phantom / "CTPEL" / NAME / "im_3" / "x0000.dcm"


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def cut_in_its_header(after, more=0):
    """A slice cut off so many bytes after the tag begins."""

    def damage(phantom):
        path = slices(phantom)[4]
        content = path.read_bytes()
        path.write_bytes(content[: content.index(after) + more])

    return damage


def drop(path, *keywords):
    dataset = dcmread(path)
    for keyword in keywords:
        delattr(dataset, keyword)
    dataset.save_as(path)


def without_rescale(phantom):
    for path in slices(phantom):
        drop(path, "RescaleSlope", "RescaleIntercept")


@pytest.mark.parametrize(
    "damage,message",
    [
        (rename_segment, r"im_3/x0000.dcm has 'Bladder', which is none of the known structures.*--label-names"),
        (without("Sacrum"), r"has 0 of 1 sacrum structures; it has 'Right Femur', 'Left Femur'"),
        (without("Left Hip"), r"has 1 of 2 hip structures"),
        (without("Left Femur", "Right Femur"), r"has 0 of 2 femur structures"),
        (overlap, r"im_3/x0000.dcm: Left Femur and Left Hip share \d+ voxels. --overlaps background"),
        (one_voxel, r"'Left Femur' has 1 voxels, .* mm\^3: too little for a femur"),
        (same_names, r"im_3/x0000.dcm has more than one segment named 'Left Femur'"),
        (
            lambda phantom: change(phantom / "CTPEL" / NAME / "im_3" / "x0000.dcm", FrameOfReferenceUID="1.2.3"),
            r"im_3/x0000.dcm is of the frame of reference 1.2.3, the CT of 2.25",
        ),
        (move_seg, r"im_3/x0000.dcm: \d+ of its \d+ labelled voxels lie outside of the CT"),
        (tilt, r"im_1: the slices are shifted sideways by .* tilted by 11.3 degrees"),
        (lambda phantom: slices(phantom)[9].unlink(), r"im_1: 16 mm lie between .* about 1 slice is missing"),
        (second_ct, r"has 2 series of CT: 'PELVIS' in .*im_1 \(26 files\); 'THIN' in .*im_7 \(26 files\)"),
        (
            lambda phantom: shutil.rmtree(phantom / "CTPEL" / NAME / "im_1"),
            r"has no CT. Its DICOM files are: Comprehensive 3D SR Storage \(1 files\), Segmentation Storage \(1",
        ),
        (
            lambda phantom: shutil.rmtree(phantom / "CTPEL" / NAME / "im_3"),
            r"has no segmentation \(SEG\). Its DICOM files are: CT Image Storage \(26 files\)",
        ),
        (second_seg, r"im_3/x0000.dcm and .*im_7/x0000.dcm are both segmentations"),
        (lambda phantom: cut(slices(phantom)[4], 0.02), r"i0021,0000b.dcm is not readable as DICOM"),
        (cut_in_its_header(SERIES_UID), r"i0021,0000b.dcm is cut off or damaged: its header is not all there"),
        (cut_in_its_header(SERIES_UID, 16), r"i0021,0000b.dcm is cut off or damaged: its header is not all there"),
        (cut_in_its_header(FRAME_UID), r"i0021,0000b.dcm is cut off or damaged: its header is not all there"),
        (cut_in_its_header(RESCALE_SLOPE), r"i0021,0000b.dcm is cut off or damaged: its header is not all there"),
        (lambda phantom: cut(seg(phantom), 0.99), r"im_3/x0000.dcm is cut off or damaged: its pixels are not all"),
        (lambda phantom: cut(seg(phantom), 0.5), r"im_3/x0000.dcm is cut off or damaged: its header is not all"),
        (lambda phantom: cut(seg(phantom), 0.1), r"im_3/x0000.dcm is cut off or damaged: its header is not all"),
        (lambda phantom: drop(seg(phantom), "SegmentSequence"), r"im_3/x0000.dcm has no SegmentSequence"),
        (lambda phantom: drop(seg(phantom), "FrameOfReferenceUID"), r"im_3/x0000.dcm has no FrameOfReferenceUID"),
        (without_rescale, r"b.dcm: RescaleSlope is \(none\) and RescaleIntercept \(none\), so its .* not in HU"),
        (lambda phantom: change(slices(phantom)[4], RescaleSlope=0), r"i0021,0000b.dcm: RescaleSlope is 0"),
        (lambda phantom: drop(slices(phantom)[4], "PixelSpacing"), r"i0021,0000b.dcm has no PixelSpacing"),
        (
            lambda phantom: change(slices(phantom)[4], PixelSpacing=[6.0, 6.9]),
            r"i0021,0000b.dcm has 40 x 52 pixels of 6 x 6.9 mm .* first slice 40 x 52 pixels of 6 x 7 mm",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else "",
)
def test_damaged_case_is_named_with_its_file(phantom, raw, tmp_path, damage, message):
    damage(phantom)
    (tmp_path / "list").write_text(NAME)
    assert convert(phantom / "CTPEL", "--cases", tmp_path / "list") == 1
    failed = load(raw, "integrity_report")["failed"]
    assert list(failed) == [NAME]
    assert re.search(message, failed[NAME]), failed[NAME]
    assert NAME in failed[NAME]  # the path


def test_damaged_file_of_any_name_is_named(phantom, raw):
    path = slices(phantom)[-1]  # without it the CT would be whole, and shorter
    path.write_bytes(path.read_bytes()[:154])
    path.rename(path.with_suffix(""))
    assert convert(phantom / "CTPEL") == 1
    assert f"{path.with_suffix('')} is not readable as DICOM" in load(raw, "integrity_report")["failed"][NAME]


def test_overlaps_can_become_background(phantom, raw):
    overlap(phantom)
    shared = ndimage.binary_erosion(truth(phantom) == 3)
    assert convert(phantom / "CTPEL", "--overlaps", "background") == 0
    np.testing.assert_array_equal(converted(raw, NAME), np.where(shared, 0, truth(phantom)))
    assert f"Left Femur and Left Hip share {shared.sum()} voxels, which became background" in str(
        load(raw, "cases")[NAME]["notes"]
    )


@pytest.mark.parametrize(
    "options,message",
    [
        (["--crop", "-1"], "--crop is -1.0; it is a margin in mm"),
        (["--labels", "{tmp}/none"], "none is not a folder"),
        (["--labels", "{tmp}/foreign"], "has label maps of other, which are no cases"),
        (["--cases", "{tmp}/list"], "has other, which are no cases of this release"),
        (["--label-names", "{tmp}/list"], "is not readable as JSON"),
        (["--label-names", "{tmp}/names.json"], "has 'pelvis'; names are femur_left"),
        (["--label-names", "{tmp}/empty.json"], "must be a JSON object"),
    ],
)
def test_bad_options(whole_phantom, raw, tmp_path, capsys, options, message):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "other.nii.gz").touch()
    (tmp_path / "list").write_text("other\n")
    (tmp_path / "names.json").write_text('{"1": "pelvis"}')
    (tmp_path / "empty.json").write_text("[]")
    assert convert(whole_phantom / "CTPEL", *[option.format(tmp=tmp_path) for option in options]) == 2
    assert message in capsys.readouterr().err
    assert not list(raw.iterdir())


@pytest.mark.parametrize("make,message", [(False, "does not exist"), (True, "neither images/ nor folders named by 16")])
def test_folder_without_cases(raw, tmp_path, capsys, make, message):
    if make:
        (tmp_path / "release").mkdir()
    assert convert(tmp_path / "release") == 2
    assert message in capsys.readouterr().err


def test_label_map_without_image_fails_alone(phantom, raw):
    (phantom / "nifti/images" / f"{NAME}.nii.gz").unlink()
    assert convert(phantom / "nifti") == 1
    assert "has no image in" in load(raw, "integrity_report")["failed"][NAME]


def test_missing_highdicom_is_said(whole_phantom, raw, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert convert(whole_phantom / "CTPEL") == 1
    assert "need the package highdicom" in load(raw, "integrity_report")["failed"][NAME]


# ---- resampling


def volume(array, spacing_mm=(2.0, 2.0, 2.0), origin_mm=(0.0, 0.0, 0.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm)
    image.SetOrigin(origin_mm)
    return image


def test_labels_of_another_grid_are_resampled_by_nearest_neighbour(tmp_path):
    rng = np.random.default_rng(0)
    array = np.zeros((9, 10, 11), np.uint8)
    array[2:7, 2:8, 2:9] = rng.integers(0, 4, (5, 6, 7))
    image = volume(np.zeros((20, 21, 22), np.int16), (1.0, 1.1, 0.9), (-0.31, 0.23, 0.13))
    placed, notes = on_grid_of_ct(volume(array), image, tmp_path)
    assert placed.shape == (20, 21, 22) and "were brought from voxels of 2 x 2 x 2 mm" in notes[0]
    for index in rng.integers(0, (20, 21, 22), (300, 3)):
        point = image.TransformIndexToPhysicalPoint(index[::-1].tolist())
        nearest = np.rint(np.array(point[::-1]) / 2.0).astype(int)
        expected = array[tuple(nearest)] if (nearest < array.shape).all() and (nearest >= 0).all() else 0
        assert placed[tuple(index)] == expected


@pytest.mark.parametrize("axes", ["LPS", "RAI", "SLP", "IPR"])
def test_labels_in_other_axes_and_of_a_part_come_back_exactly(tmp_path, axes):
    array = np.random.default_rng(1).integers(0, 3, (6, 7, 8)).astype(np.uint8)
    image = volume(np.zeros((10, 11, 12), np.int16), (1.0, 2.0, 3.0))
    part = volume(array, (1.0, 2.0, 3.0), image.TransformIndexToPhysicalPoint((3, 2, 1)))
    placed, notes = on_grid_of_ct(sitk.DICOMOrient(part, axes), image, tmp_path)
    assert notes == []
    expected = np.zeros((10, 11, 12), np.uint8)
    expected[1:7, 2:9, 3:11] = array
    np.testing.assert_array_equal(placed, expected)


def test_labels_outside_of_the_ct_are_refused_and_none_are_fine(tmp_path):
    array = np.zeros((5, 5, 5), np.uint8)
    image = volume(np.zeros((5, 5, 5), np.int16))
    far = volume(array, origin_mm=(2.0, 0.0, 0.0))
    assert not on_grid_of_ct(far, image, tmp_path)[0].any()
    far[4, 2, 2] = 1
    with pytest.raises(GeometryError, match="1 of its 1 labelled voxels lie outside"):
        on_grid_of_ct(far, image, tmp_path)


# ---- a real CT


def test_real_ct_with_a_metal_screw(real_data, raw, tmp_path):
    source = real_data / "hip_ct"
    for kind, name in (("images", "example_ct"), ("labels", "derived_hip_labels")):
        (tmp_path / "release" / kind).mkdir(parents=True)
        shutil.copyfile(source / f"{name}.nii.gz", tmp_path / "release" / kind / "hip.nii.gz")
    names = tmp_path / "names.json"
    table = {"1": "hip_left", "2": "hip_right", "3": "femur_left", "4": "femur_right", "5": "sacrum"}
    names.write_text(json.dumps(table))
    assert convert(tmp_path / "release", "--label-names", names) == 0
    image = sitk.DICOMOrient(sitk.ReadImage(str(source / "example_ct.nii.gz")), "LPS")
    label = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(source / "derived_hip_labels.nii.gz")), "LPS"))
    np.testing.assert_array_equal(converted(raw, "hip", "imagesTr"), sitk.GetArrayFromImage(image))
    np.testing.assert_array_equal(converted(raw, "hip"), np.array([0, 3, 4, 1, 2, 5])[label])
    metal = converted(raw, "hip", "imagesTr") > 2500
    assert metal.any() and (converted(raw, "hip")[metal] == 1).mean() > 0.9  # the screw is in the left femur
    # taken for copies of the release, it is refused: hip bones would become femora
    assert main(["convert", "ctpel", str(tmp_path / "release"), "-d", "402", "--name", "Wrong"]) == 1
