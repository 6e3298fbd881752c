"""The shared writer: what it accepts, what it refuses, and that a refused case leaves nothing."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.dataset_conversion.writer import DatasetDescription, DatasetWriter
from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.workflow.add_cases import RawDataset, add_cases

DESCRIPTION = DatasetDescription(
    channel_names=["T1", "T2"],
    labels={"background": 0, "organ": 1, "lesion": 2},
    roi_labels=["organ"],
    converted_by="test",
    description="a test",
    reference="none",
    licence="none",
)


def volume(array: np.ndarray, spacing=(0.5, 0.6, 0.7), origin=(1.0, 2.0, 3.0)) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def grey(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (4, 5, 6)).astype(np.float32)


def labels() -> np.ndarray:
    array = np.zeros((4, 5, 6), np.int32)
    array[1:3, 1:4, 2] = 1
    return array


@pytest.fixture
def writer(tmp_path) -> DatasetWriter:
    writer = DatasetWriter(tmp_path / "Dataset007_Test", DESCRIPTION, {"release": "a"})
    writer.claim(["a", "b"])
    return writer


def files_of(writer: DatasetWriter) -> set[str]:
    return {path.relative_to(writer.folder).as_posix() for path in writer.folder.rglob("*") if path.is_file()}


def write(writer: DatasetWriter, case_id: str = "a", **options):
    return writer.write_case(case_id, [volume(grey(0)), volume(grey(1))], volume(labels()), **options)


def test_case_is_written_and_recorded(writer):
    record = write(writer, details={"subject": "x"})
    assert files_of(writer) == {
        "conversion/origin.json",
        "conversion/case_a.json",
        "imagesTr/a_0000.nii.gz",
        "imagesTr/a_0001.nii.gz",
        "labelsTr/a.nii.gz",
    }
    assert record["subject"] == "x"
    assert record["shape"] == [4, 5, 6]
    assert record["spacing_mm"] == [0.7, 0.6, 0.5]
    assert record["label_voxels"] == {"organ": 6, "lesion": 0}
    assert record["intensity_range"][1] == [grey(1).min(), grey(1).max()]
    assert writer.record("a") == json.loads(json.dumps(record))
    back = sitk.ReadImage(str(writer.folder / "imagesTr/a_0001.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), grey(1))
    assert sitk.ReadImage(str(writer.folder / "labelsTr/a.nii.gz")).GetPixelID() == sitk.sitkUInt8


def test_test_case_may_have_no_label(writer):
    record = writer.write_case("b", [volume(grey(0)), volume(grey(1))], None, test=True)
    assert files_of(writer) >= {"imagesTs/b_0000.nii.gz", "imagesTs/b_0001.nii.gz"}
    assert "label_voxels" not in record
    assert writer.is_finished("b")
    with pytest.raises(InputError, match="no label map"):
        writer.write_case("a", [volume(grey(0)), volume(grey(1))], None)


def test_masks_are_files_of_the_case(writer):
    mask = volume((labels() > 0).astype(np.uint8))
    record = write(writer, masks={"lesionsTr": mask})
    assert record["files"].keys() >= {"lesionsTr/a.nii.gz", "labelsTr/a.nii.gz"}
    (writer.folder / "lesionsTr/a.nii.gz").unlink()
    assert not writer.is_finished("a")
    writer.claim(["a", "b"])
    assert files_of(writer) == {"conversion/origin.json"}
    with pytest.raises(GeometryError, match="mask for lesionsTr begins at"):
        write(writer, masks={"lesionsTr": volume(labels(), origin=(9, 2, 3))})
    with pytest.raises(ValueError, match="others is none of lesionsTr"):
        write(writer, masks={"others": mask})
    assert files_of(writer) == {"conversion/origin.json"}
    (writer.folder / "lesionsVal").mkdir()
    (writer.folder / "lesionsVal/c.nii.gz").touch()
    with pytest.raises(InputError, match="of no case of this release"):
        writer.claim(["a", "b"])


def spoiled(index: tuple[int, ...], value: float) -> np.ndarray:
    array = grey(1)
    array[index] = value
    return array


BAD = {
    "one channel too few": (lambda: [volume(grey())], labels, InputError, r"1 channels; the dataset has 2 \(T1, T2\)"),
    "NaN": (lambda: [volume(grey()), volume(spoiled((0, 0, 0), np.nan))], labels, InputError, "T2: 1 voxels are NaN"),
    "infinity": (
        lambda: [volume(grey()), volume(spoiled((1, 1), np.inf))],
        labels,
        InputError,
        "6 voxels are NaN or inf",
    ),
    "all zero": (lambda: [volume(grey()), volume(0 * grey())], labels, InputError, "every voxel is 0"),
    "all one value": (lambda: [volume(0 * grey() + 3), volume(grey())], labels, InputError, "every voxel is 3"),
    "channel of another shape": (
        lambda: [volume(grey()), volume(grey()[1:])],
        labels,
        GeometryError,
        "channel T2 has 3 x 5 x 6",
    ),
    "channel elsewhere": (
        lambda: [volume(grey()), volume(grey(1), origin=(1, 2, 4))],
        labels,
        GeometryError,
        "channel T2 begins at",
    ),
    "four axes": (
        lambda: [sitk.GetImageFromArray(np.ones((2, 3, 4, 5)), isVector=False)] * 2,
        labels,
        GeometryError,
        "4 axes",
    ),
    "colours": (
        lambda: [sitk.GetImageFromArray(np.ones((3, 4, 5, 3)), isVector=True)] * 2,
        labels,
        GeometryError,
        "3 val",
    ),
    "label of another shape": (None, lambda: labels()[:, :4], GeometryError, "label map has 4 x 4 x 6"),
    "label not in the list": (None, lambda: labels() * 3, LabelError, "label map has 3; the labels are 0 background"),
    "negative label": (None, lambda: -labels(), LabelError, "label map has -1"),
    "label with fractions": (None, lambda: labels() * 0.5, LabelError, r"label map has 0\.5"),
    "empty label": (None, lambda: labels() * 0, LabelError, "all of it is background"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_case_is_refused_and_leaves_nothing(writer, name):
    images, label, error, message = BAD[name]
    with pytest.raises(error, match=message):
        writer.write_case("a", images() if images else [volume(grey(0)), volume(grey(1))], volume(label()))
    assert files_of(writer) == {"conversion/origin.json"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.SetSpacing((0.5, 0.6, 0.8)), "voxels of 0.8 x 0.6 x 0.5 mm"),
        (lambda image: image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, 1)), "oriented otherwise"),
        (lambda image: image.SetOrigin((1, 2, 3.2)), "label map begins at"),
    ],
)
def test_label_on_another_grid_is_refused(writer, change, message):
    label = volume(labels())
    change(label)
    with pytest.raises(GeometryError, match=message):
        writer.write_case("a", [volume(grey(0)), volume(grey(1))], label)


def test_rounded_header_is_no_other_grid(writer):
    label = volume(labels(), spacing=(0.50001, 0.6, 0.7), origin=(1.00002, 2, 3))
    writer.write_case("a", [volume(grey(0)), volume(grey(1))], label)
    assert writer.is_finished("a")


def test_second_case_of_a_name_is_refused(writer):
    write(writer)
    with pytest.raises(InputError, match="two cases of the release have the same name"):
        write(writer)


def test_damaged_or_missing_file_makes_a_case_unfinished(writer):
    write(writer)
    (writer.folder / "labelsTr/a.nii.gz").write_bytes(b"short")
    assert not writer.is_finished("a")
    writer.claim(["a", "b"])
    assert files_of(writer) == {"conversion/origin.json"}


LATER = ", so that later folds are counted one less: mend the failed cases before any fold is trained"


def test_description_is_of_finished_cases_alone(writer):
    write(writer)
    splits = [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]
    report = writer.finish(["a", "b"], {"b": "it is damaged"}, splits)
    assert report["complete"] is False
    assert report["failed"] == {"b": "it is damaged"}
    assert report["splits_problems"] == [
        f"fold 0 would have no train case and is not in splits_final.json{LATER}",
        f"fold 1 would have no val case and is not in splits_final.json{LATER}",
    ]
    assert report["splits"] == []
    assert not (writer.folder / "splits_final.json").exists()
    assert list(json.loads((writer.folder / "cases.json").read_text())) == ["a"]
    description = json.loads((writer.folder / "dataset.json").read_text())
    assert description["numTraining"] == 1
    assert description["channel_names"] == {"0": "T1", "1": "T2"}
    assert description["anomaly"] == {"channel_roles": {"0": "image", "1": "image"}, "roi_labels": ["organ"]}

    write(writer, "b")
    assert writer.finish(["a", "b"], {}, splits)["complete"] is True


def test_folds_without_a_finished_case_to_validate_on_are_left_out(writer):
    write(writer)
    write(writer, "b")
    splits = [{"train": [name for name in "abc" if name != held_out], "val": [held_out]} for held_out in "abc"]
    report = writer.finish(["a", "b", "c"], {"c": "it is damaged"}, splits)
    written = json.loads((writer.folder / "splits_final.json").read_text())
    assert written == [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]
    assert report["splits"] == [{"train": 1, "val": 1}] * 2
    assert report["splits_problems"] == [f"fold 2 would have no val case and is not in splits_final.json{LATER}"]


def test_one_subject_alone_makes_no_folds_and_no_complete_dataset(writer):
    write(writer)
    report = writer.finish(["a"], {}, [])
    assert report["complete"] is False
    assert "fewer than two subjects" in report["splits_problems"][0]
    assert not (writer.folder / "splits_final.json").exists()
    assert writer.finish(["a"], {}, None)["complete"] is True  # none on purpose


def test_no_finished_case_makes_no_dataset_json(writer):
    report = writer.finish(["a", "b"], {"a": "x", "b": "y"}, None)
    assert report["complete"] is False
    assert not (writer.folder / "dataset.json").exists()


def test_going_on_with_something_else_is_refused(writer, tmp_path):
    write(writer)
    for other, message in (
        (DatasetWriter(writer.folder, DESCRIPTION, {"release": "b"}), "release = 'a'; now it is 'b'"),
        (DatasetWriter(writer.folder, DESCRIPTION, {"release": "a", "more": 1}), "more = None; now it is 1"),
        (DatasetWriter(tmp_path / "Dataset007_Other", DESCRIPTION, {"release": "a"}), "already has Dataset007_Test"),
    ):
        with pytest.raises(InputError, match=message):
            other.claim(["a", "b"])
    with pytest.raises(InputError, match="of no case of this release"):
        writer.claim(["b"])
    assert writer.is_finished("a")


def test_a_dataset_that_add_cases_changed_is_not_converted_again(writer, tmp_path):
    for case_id in ("a", "b"):
        write(writer, case_id)
    writer.finish(["a", "b"], {}, None)
    corrected = labels()
    corrected[0, 0, 0] = 2
    (tmp_path / "corrected").mkdir()
    sitk.WriteImage(volume(corrected.astype(np.uint8)), str(tmp_path / "corrected/a.nii.gz"))
    dataset = RawDataset.read(writer.folder)
    assert add_cases(dataset, writer.folder / "imagesTr", tmp_path / "corrected", replace=True).done == ["a"]
    before = {name: (writer.folder / name).read_bytes() for name in files_of(writer)}
    with pytest.raises(InputError, match=r"add-cases put there or replaced \(a\)"):
        writer.claim(["a", "b"])
    assert before == {name: (writer.folder / name).read_bytes() for name in files_of(writer)}


def test_writer_travels_to_workers(writer):
    assert pickle.loads(pickle.dumps(writer)) == writer


def test_description_is_checked():
    options = {"converted_by": "", "description": "", "reference": "", "licence": "", "channel_names": ["MR"]}
    with pytest.raises(ValueError, match="0, 1, 2"):
        DatasetDescription(labels={"background": 0, "a": 2}, roi_labels=[], **options)
    with pytest.raises(ValueError, match="roi_labels has"):
        DatasetDescription(labels={"background": 0, "a": 1}, roi_labels=["b"], **options)
    regions = {"labels": {"background": 0, "a": 1, "b": 2}, "regions": {"both": [1, 2], "b": [2]}, **options}
    DatasetDescription(roi_labels=["both"], regions_class_order=[1, 2], **regions)
    with pytest.raises(ValueError, match="roi_labels has"):
        DatasetDescription(roi_labels=["a"], regions_class_order=[1, 2], **regions)
    with pytest.raises(ValueError, match="one value for each"):
        DatasetDescription(roi_labels=["both"], regions_class_order=[1], **regions)
