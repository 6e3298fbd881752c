"""Cases as they are read and measured: integers, colours, single slices, missing channels."""

from __future__ import annotations

import csv
import json
import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage import io

from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.evaluation.stress_case import corrupted_case_figures
from nnunet_anomaly.files import load_json
from nnunet_anomaly.phantoms.stress_corruptions import CORRUPTIONS
from nnunet_anomaly.workflow.stress import measure, stacked
from nnunet_anomaly.workflow.stress_cases import as_integers, channel_files, held_out_groups, read_case
from nnunet_anomaly.workflow.stress_plan import CaseFiles, StressTest

PLANS, PLAIN = "nnUNetAnomalyTinyPlans", "nnUNetTrainerSeeded"
DATA = "Dataset101_Tiny"
TEST = StressTest(
    corruptions={name: (1.0,) for name in CORRUPTIONS},
    seed=0,
    sizes_mm={},
    channels=("MR",),
    region_labels=(1,),
    structures={"bone": (1,), "cartilage": (2,)},
    nsd_tolerance_mm=1.0,
    cleaned_share=None,
    mirroring=False,
)


def write(path: Path, array: np.ndarray, spacing_mm=(2.0, 1.5, 1.5)) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(size) for size in spacing_mm[::-1][: array.ndim]])
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def tiny(models) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels of a case."""
    raw = models.root / "nnUNet_raw" / DATA
    paths = raw / "imagesTr" / "case_03_0000.nii.gz", raw / "labelsTr" / "case_03.nii.gz"
    image, labels = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths)
    return image, labels


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32], ids=lambda dtype: dtype.__name__)
def test_whole_numbers_stay_whole_numbers(tiny, tmp_path, dtype):
    image, labels = tiny
    values = image.astype(dtype)
    files = CaseFiles("a", (write(tmp_path / "a_0000.nii.gz", values),), write(tmp_path / "a.nii.gz", labels))
    case, properties = read_case(files, TEST, SimpleITKIO())
    assert np.array_equal(case.images[0], values) and np.array_equal(case.labels, labels)
    assert case.spacing_mm == (2.0, 1.5, 1.5) and properties["spacing"] == [2.0, 1.5, 1.5]
    for grade in TEST.grades:
        corrupted = stacked(TEST.corrupted(case, *grade))
        assert corrupted.dtype == np.float32 and corrupted.shape == (1, *image.shape)
        assert np.array_equal(corrupted[0], values) == (grade[0] == "none")
        assert np.array_equal(corrupted, np.rint(corrupted)) == (dtype is not np.float32), grade


def test_what_is_a_whole_number():
    assert as_integers(np.array([1.0, -3.0], np.float32)).dtype == np.int32
    for values in ([1.5], [np.nan], [np.inf], [2.0**31]):
        array = np.array(values, np.float32)
        assert as_integers(array) is array
    assert as_integers(np.zeros(0, np.float32)).size == 0


def test_missing_channels_are_named(tiny, tmp_path):
    image, labels = tiny
    label_map = write(tmp_path / "a.nii.gz", labels)
    test = replace(TEST, channels=("T1", "T2"))
    for channel in (0, 2):
        write(tmp_path / f"a_{channel:04d}.nii.gz", image)
    files = CaseFiles("a", channel_files(tmp_path, "a", ".nii.gz"), label_map)
    assert [path.name for path in files.images] == [f"a_000{channel}.nii.gz" for channel in range(3)]
    with pytest.raises(InputError, match=r"a_0001\.nii\.gz does not exist"):
        read_case(files, test, SimpleITKIO())  # not the error map in its place
    (tmp_path / "a_0002.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1 of 2 channels are there: \['a_0000.nii.gz'\]"):
        read_case(CaseFiles("a", channel_files(tmp_path, "a", ".nii.gz"), label_map), test, SimpleITKIO())
    (nothing,) = channel_files(tmp_path, "b", ".nii.gz")
    with pytest.raises(InputError, match=r"b_0000\.nii\.gz does not exist"):
        read_case(CaseFiles("b", (nothing,), label_map), TEST, SimpleITKIO())
    write(tmp_path / "a_0001.nii.gz", image)
    write(tmp_path / "a_0002.nii.gz", image)  # an error map: left out
    case, _ = read_case(CaseFiles("a", channel_files(tmp_path, "a", ".nii.gz"), label_map), test, SimpleITKIO())
    assert case.channel_names == ("T1", "T2") and len(case.images) == 2


def test_labels_that_do_not_fit_are_refused(tiny, tmp_path):
    image, labels = tiny
    images = (write(tmp_path / "a_0000.nii.gz", image),)

    def read(array, spacing_mm=(2.0, 1.5, 1.5)):
        return read_case(CaseFiles("a", images, write(tmp_path / "a.nii.gz", array, spacing_mm)), TEST, SimpleITKIO())

    for array, spacing_mm in ((labels[1:], (2.0, 1.5, 1.5)), (labels, (1.0, 1.5, 1.5))):
        with pytest.raises(GeometryError, match="has another grid than"):
            read(array, spacing_mm)
    with pytest.raises(LabelError, match=r"holds the labels \[3\]"):
        read(labels + 1)
    with pytest.raises(LabelError, match="labels must be integers"):
        read(labels + np.float32(0.5))
    with pytest.raises(InputError, match="no voxel of 1"):
        read(np.zeros_like(labels))
    path = write(tmp_path / "a.nii.gz", labels)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError):
        read_case(CaseFiles("a", images, path), TEST, SimpleITKIO())


def test_a_colour_image_is_one_file_of_three_channels(tiny, tmp_path):
    image, labels = (array[8] for array in tiny)
    colours = np.stack([image, image / 2, 255 - image], -1).clip(0, 255).astype(np.uint8)
    io.imsave(tmp_path / "a_0000.png", colours, check_contrast=False)
    io.imsave(tmp_path / "a.png", labels, check_contrast=False)
    files = CaseFiles("a", channel_files(tmp_path, "a", ".png"), tmp_path / "a.png")
    case, _ = read_case(files, replace(TEST, channels=("R", "G", "B")), NaturalImage2DIO())
    assert len(case.images) == 3 and case.spacing_mm == (999, 1, 1)
    for name in CORRUPTIONS:
        corrupted = TEST.corrupted(case, name, 1.0)
        assert stacked(corrupted).shape == (3, 1, *image.shape)
        assert np.array_equal(stacked(corrupted), np.rint(stacked(corrupted)))


def test_a_single_slice_is_measured_as_a_2d_image(tiny, tmp_path):
    reference = tiny[1][8]
    prediction = np.roll(reference, 2, axis=0)
    anomaly = np.zeros(reference.shape, bool)
    anomaly[8:14, 8:14] = True
    record = tmp_path / "record.json"
    test = replace(TEST, cleaned_share=0.2)
    measure(test, reference[None], prediction[None], anomaly[None], (999.0, 1.5, 1.0), record, "source", {})
    expected = corrupted_case_figures(reference, prediction, anomaly, (1.5, 1.0), TEST.structures)
    found = load_json(record)
    assert found["made_from"] == "source"
    for key in ("structures", "cleaned"):
        for structure, figures in expected.items():
            assert found[key][structure] == pytest.approx(figures)
    solid = corrupted_case_figures(reference[None], prediction[None], anomaly[None], (999.0, 1.5, 1.0), TEST.structures)
    assert solid["bone"]["asd_mm"] < expected["bone"]["asd_mm"]  # all of a slice of a volume is its surface


def test_what_workers_are_given_can_be_sent_to_them(tiny, tmp_path):
    image, labels = tiny
    files = CaseFiles("a", (write(tmp_path / "a_0000.nii.gz", image),), write(tmp_path / "a.nii.gz", labels))
    case, _ = read_case(files, TEST, SimpleITKIO())
    corrupted = TEST.corrupted(case, "deformation", 1.0)
    work = (TEST, corrupted.labels, labels, corrupted.anomaly, case.spacing_mm, tmp_path / "a.json", "source")
    function, arguments = pickle.loads(pickle.dumps((measure, (*work, corrupted.record))))
    function(*arguments)
    assert load_json(tmp_path / "a.json")["corruption"]["corruption"] == "deformation"


def test_cases_that_dataset_json_lists_have_files_of_any_name(models, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nowhere"))
    raw = Path(shutil.copytree(models.root / "nnUNet_raw" / DATA, tmp_path / DATA))
    description = load_json(raw / "dataset.json")
    description["dataset"] = {"mine": {"images": ["there/scan_2019.nii.gz"], "label": "there/outline.nii.gz"}}
    (raw / "dataset.json").write_text(json.dumps(description))
    (raw / "splits_final.json").write_text(json.dumps([{"train": ["case_00"], "val": ["mine"]}]))
    (group,) = held_out_groups(raw, [0])
    assert group.cases == (CaseFiles("mine", (raw / "there/scan_2019.nii.gz",), raw / "there/outline.nii.gz"),)


@pytest.mark.parametrize("ending", [".png", ".nii.gz"])
def test_a_dataset_of_single_slices(tiny_slices, tmp_path, monkeypatch, ending):
    monkeypatch.setattr("nnunet_anomaly.workflow.stress_report._add_metric", lambda *_: None)  # curves take their time
    result = tiny_slices(ending).run(
        "nnunet-anomaly", "stress", "-d", "103", "-tr", PLAIN, "-p", PLANS, "-c", "2d", "-f", "0", "-device", "cpu",
        "-np", "1", "-o", str(tmp_path / "out"), "--severities", "1", "--cases", "1", "--worst", "1", "--cleaned",
    )  # fmt: skip
    assert "Mean Dice" in result.stdout
    with open(tmp_path / "out" / "cases.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2 * 2 * (1 + len(CORRUPTIONS))
    diagonal_mm = math.hypot(24 * 1.5, 24 * 1.5)
    distances = [float(row["hd_mm"]) for row in rows if not row["empty"]]
    assert distances and max(distances) <= diagonal_mm  # 999 mm is no distance in a slice
    assert len(list((tmp_path / "out" / "pictures").glob("*_1_slice_*.png"))) == 1
