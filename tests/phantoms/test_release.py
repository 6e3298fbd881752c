import filecmp
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import load_json
from nnunet_anomaly.phantoms import release
from nnunet_anomaly.phantoms.dicom import make_uid, write_series, write_slice
from nnunet_anomaly.phantoms.knee import SMALL_GRID, draw_subject, make_case
from nnunet_anomaly.phantoms.release import labels_from_mask, make_knee_phantom, mask_from_labels

GRID = (20, 40, 36)
SEED = 2
DOCUMENTS = "OAI-ZIB/segmentation/doc"
MASKS = "OAI-ZIB/segmentation/segmentation_masks"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Six severe cases: case 4 without lesions, case 5 a left knee."""
    folder = tmp_path_factory.mktemp("knees") / "severe"
    outcome = make_knee_phantom(folder, 6, SEED, "severe", GRID)
    assert len(outcome.done) == 6 and outcome.exit_code == 0
    return folder


@pytest.fixture(scope="module")
def truth(phantom):
    return load_json(phantom / "truth" / "lesions.json")


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_same_bytes(first, second):
    assert tree(first) == tree(second)
    _, different, unreadable = filecmp.cmpfiles(first, second, tree(first), shallow=False)
    assert not different and not unreadable


def read_scan(phantom, record):
    reader = sitk.ImageSeriesReader()
    folder = str(phantom / record["image"])
    (series,) = reader.GetGDCMSeriesIDs(folder)
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder, series))
    reader.MetaDataDictionaryArrayUpdateOn()
    return reader.Execute(), reader


def test_tree_is_the_release_file_for_file(phantom):
    subjects = [draw_subject(SEED, index) for index in range(6)]
    expected = ["phantom.json", "truth/lesions.json"]
    expected += [f"{DOCUMENTS}/{name}" for name in ("oai_mri_paths.txt", "2foldCrossValidation-List1.txt")]
    expected += [f"{DOCUMENTS}/2foldCrossValidation-List2.txt"]
    for subject in subjects:
        name = subject.identifier
        expected += [f"{MASKS}/{name}.segmentation_masks.{ending}" for ending in ("mhd", "raw")]
        scan = f"oai/00m/{subject.release}/{name}/{subject.date}/{subject.barcode}"
        expected += [f"{scan}/{number:03d}" for number in range(1, GRID[0] + 1)]
        expected += [f"truth/{kind}/{name}.nii.gz" for kind in ("labels", "lesions", "lesion_instances")]
        expected += [f"truth/cases/{name}.json"]
        assert subject.release in ("0.C.2", "0.E.1")
    assert tree(phantom) == sorted(expected)


def test_documents_list_every_case_once(phantom):
    names = {draw_subject(SEED, index).identifier for index in range(6)}
    lists = [(phantom / DOCUMENTS / f"2foldCrossValidation-List{n}.txt").read_text().split() for n in (1, 2)]
    assert len(lists[0]) + len(lists[1]) == 6
    assert set(lists[0]) | set(lists[1]) == names
    assert all(len(one) >= 2 for one in lists)
    for line in (phantom / DOCUMENTS / "oai_mri_paths.txt").read_text().splitlines():
        name, path = line.split(": ")
        names.remove(name)
        assert Path(path).parts[1] == name
        assert (phantom / "oai" / "00m" / path / "001").is_file()
    assert not names


def test_masks_carry_no_geometry_and_slices_last(phantom, truth):
    for name in truth["cases"]:
        header = (phantom / MASKS / f"{name}.segmentation_masks.mhd").read_text()
        assert "DimSize = 20 36 40" in header
        assert not any(word in header for word in ("Spacing", "Transform", "Offset", "Orientation"))
        mask = sitk.ReadImage(str(phantom / MASKS / f"{name}.segmentation_masks.mhd"))
        assert sitk.GetArrayFromImage(mask).shape == (GRID[1], GRID[2], GRID[0])
        assert mask.GetSpacing() == (1, 1, 1) and mask.GetPixelID() == sitk.sitkUInt8


def test_series_reads_back_sagittal_with_the_right_grid(phantom, truth):
    for index in range(6):
        subject = draw_subject(SEED, index)
        image, reader = read_scan(phantom, truth["cases"][subject.identifier])
        assert image.GetSize() == (GRID[2], GRID[1], GRID[0])
        np.testing.assert_allclose(image.GetSpacing(), (140 / 36, 140 / 40, 112 / 20), rtol=1e-6)
        direction = np.array(image.GetDirection()).reshape(3, 3)
        # columns to the back, rows downwards, slices to the right, a few degrees oblique
        angle = np.cos(np.deg2rad(6.001))
        assert direction[1, 0] > angle and direction[2, 1] == pytest.approx(-1) and -direction[0, 2] > angle
        middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
        np.testing.assert_allclose(middle, subject.centre_mm, atol=1e-2)
        assert (middle[0] > 0) == (subject.side == "LEFT")
        np.testing.assert_array_equal(
            sitk.GetArrayFromImage(image), make_case(SEED, index, "severe", GRID).image.astype(np.int32)
        )
        assert reader.GetMetaData(0, "0020|0013").strip() == "1"


def test_tags_are_those_of_a_dess_series(phantom, truth):
    seen = set()
    for name, record in truth["cases"].items():
        _, reader = read_scan(phantom, record)
        subject = next(draw_subject(SEED, index) for index in range(6) if index == record["index"])
        for number in (0, GRID[0] - 1):

            def tag(key, reader=reader, number=number):
                return reader.GetMetaData(number, key).strip()

            assert tag("0010|0020") == name
            assert tag("0008|103e") == f"SAG_3D_DESS_{subject.side}"
            assert tag("0020|0060") == subject.side[0]
            assert tag("0008|0060") == "MR" and tag("0008|0016") == "1.2.840.10008.5.1.4.1.1.4"
            assert tag("0008|0020") == subject.date == Path(record["image"]).parts[-2]
            assert float(tag("0018|0050")) == pytest.approx(112 / 20, rel=1e-5)
            assert float(tag("0018|0081")) == 4.71 and float(tag("0018|0080")) == 16.32
            assert float(tag("0020|1041")) == pytest.approx(number * 112 / 20, rel=1e-5)
            assert len(tag("0020|0032").split("\\")) == 3 and len(tag("0020|0037").split("\\")) == 6
            uid = tag("0008|0018")
            assert uid not in seen and len(uid) <= 64
            seen.add(uid)
    assert {record["side"] for record in truth["cases"].values()} == {"LEFT", "RIGHT"}


def test_mask_goes_onto_the_image_as_the_truth_says(phantom, truth):
    assert truth["mask_to_image"] == {"move_axis": [-1, 0], "then_flip_axes": [0, 1]}
    for name, record in truth["cases"].items():
        image, _ = read_scan(phantom, record)
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(phantom / MASKS / f"{name}.segmentation_masks.mhd")))
        moved = np.flip(
            np.moveaxis(mask, *truth["mask_to_image"]["move_axis"]), truth["mask_to_image"]["then_flip_axes"]
        )
        labels = sitk.ReadImage(str(phantom / "truth" / "labels" / f"{name}.nii.gz"))
        np.testing.assert_array_equal(moved, sitk.GetArrayFromImage(labels))
        np.testing.assert_array_equal(labels_from_mask(mask), moved)
        np.testing.assert_array_equal(mask_from_labels(moved), mask)
        assert labels.GetSize() == image.GetSize()
        for get in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(labels, get)(), getattr(image, get)(), atol=1e-5)


def test_lesion_files_agree_with_the_records(phantom, truth):
    for name, record in truth["cases"].items():
        lesions, instances, labels = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(phantom / "truth" / kind / f"{name}.nii.gz")))
            for kind in ("lesions", "lesion_instances", "labels")
        )
        assert set(np.unique(lesions)) <= {0, 1}
        np.testing.assert_array_equal(lesions > 0, instances > 0)
        assert np.isin(labels[lesions > 0], (1, 3)).all()
        assert record["has_lesions"] == lesions.any() == (record["index"] != 4)
        assert [one["voxels"] for one in record["lesions"]] == list(np.bincount(instances.ravel())[1:])
        assert record["highest_grade"] == (3 if record["has_lesions"] else 0)
        assert record == load_json(phantom / "truth" / "cases" / f"{name}.json")


def test_fewer_cases_first_or_in_parallel_give_the_same_bytes(phantom, tmp_path):
    first = make_knee_phantom(tmp_path, 2, SEED, "severe", GRID)
    assert len(first.done) == 2
    second = make_knee_phantom(tmp_path, 6, SEED, "severe", GRID, num_processes=2)
    assert (len(second.done), len(second.skipped)) == (4, 2)
    assert_same_bytes(phantom, tmp_path)


def test_a_killed_run_is_finished_and_no_case_made_again(phantom, tmp_path):
    make_knee_phantom(tmp_path, 6, SEED, "severe", GRID)
    whole, broken = (draw_subject(SEED, index).identifier for index in (0, 1))
    # as a kill leaves it: one case without its record, half of its slices gone, another begun, no lists
    record = load_json(tmp_path / "truth" / "cases" / f"{broken}.json")
    (tmp_path / "truth" / "cases" / f"{broken}.json").unlink()
    for number in range(1, 10):
        (tmp_path / record["image"] / f"{number:03d}").unlink()
    (tmp_path / ".partial" / broken / "oai").mkdir(parents=True)
    (tmp_path / ".partial" / broken / "oai" / "junk").write_text("half")
    (tmp_path / ".partial_x1y2.json").write_text("{")
    (tmp_path / "truth" / "lesions.json").unlink()
    kept = tmp_path / "truth" / "labels" / f"{whole}.nii.gz"
    os.utime(kept, (1, 1))

    outcome = make_knee_phantom(tmp_path, 6, SEED, "severe", GRID)
    assert outcome.done == [broken] and len(outcome.skipped) == 5
    assert kept.stat().st_mtime == 1
    assert_same_bytes(phantom, tmp_path)


def test_a_series_that_was_not_written_whole_is_noticed(tmp_path, monkeypatch):
    def cut(image, folder, tags):
        write_series(image, folder, tags)
        path = folder / "003"
        path.write_bytes(path.read_bytes()[:-50] + bytes(50))

    monkeypatch.setattr(release, "write_series", cut)
    outcome = make_knee_phantom(tmp_path, 1, SEED, "none", GRID)
    assert "read back" in outcome.failed[draw_subject(SEED, 0).identifier]
    assert load_json(tmp_path / "truth" / "lesions.json")["cases"] == {}


def test_a_failed_case_is_named_and_left_out_of_the_lists(tmp_path, monkeypatch):
    bad = draw_subject(SEED, 1).identifier

    def failing(seed, index, level, grid):
        if index == 1:
            raise OSError("no such luck")
        return make_case(seed, index, level, grid)

    monkeypatch.setattr(release, "make_case", failing)
    outcome = make_knee_phantom(tmp_path, 3, SEED, "none", GRID)
    assert outcome.exit_code == 1 and list(outcome.failed) == [bad] and "no such luck" in outcome.failed[bad]
    assert bad not in (tmp_path / DOCUMENTS / "oai_mri_paths.txt").read_text()
    assert len(load_json(tmp_path / "truth" / "lesions.json")["cases"]) == 2
    assert not [path for path in tree(tmp_path) if bad in path]
    monkeypatch.undo()
    assert make_knee_phantom(tmp_path, 3, SEED, "none", GRID).done == [bad]
    assert bad in (tmp_path / DOCUMENTS / "oai_mri_paths.txt").read_text()


@pytest.mark.parametrize(
    "changes,word",
    [
        ({"seed": 3}, "seed"),
        ({"lesions": "none"}, "lesions"),
        ({"grid": (21, 40, 36)}, "grid"),
        ({"cases": 5}, "cases"),
    ],
)
def test_a_folder_with_another_phantom_is_refused(phantom, changes, word):
    before = tree(phantom)
    with pytest.raises(InputError, match=word):
        make_knee_phantom(**{"folder": phantom, "cases": 6, "seed": SEED, "lesions": "severe", "grid": GRID, **changes})
    assert tree(phantom) == before


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="not an empty folder"):
        make_knee_phantom(tmp_path, 1, 0, "none", GRID)
    assert tree(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    "changes,word",
    [
        ({"cases": 0}, "--cases"),
        ({"seed": -1}, "--seed"),
        ({"lesions": "huge"}, "--lesions"),
        ({"grid": (4, 40, 40)}, "--grid"),
        ({"grid": (40, 4000, 40)}, "--grid"),
        ({"grid": (40, 40)}, "--grid"),
    ],
)
def test_bad_parameters_are_refused_before_anything_is_written(tmp_path, changes, word):
    with pytest.raises(SettingsError, match=word):
        make_knee_phantom(**{"folder": tmp_path / "new", "cases": 1, "seed": 0, **changes})
    assert not (tmp_path / "new").exists()


def test_command(tmp_path, capsys):
    arguments = ["phantom", "knee", "--cases", "1", "--seed", "2", "--lesions", "mild", "-o", str(tmp_path / "a k")]
    assert main([*arguments, "--grid", "20", "40", "36"]) == 0
    said = capsys.readouterr().out
    assert (
        "1 cases made" in said and f"oai-zib '{tmp_path / 'a k/OAI-ZIB'}' --oai-root '{tmp_path / 'a k/oai'}'" in said
    )
    assert load_json(tmp_path / "a k" / "phantom.json")["grid"] == list(GRID)
    assert main(arguments) == 2
    assert "another phantom" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--full-grid", "--grid", "20", "40", "36"])


def test_default_grid_of_the_command_is_the_small_one(tmp_path):
    assert main(["phantom", "knee", "--cases", "1", "-o", str(tmp_path)]) == 0
    found = load_json(tmp_path / "phantom.json")
    assert (found["grid"], found["lesions"], found["seed"]) == (list(SMALL_GRID), "none", 0)


def test_a_slice_without_its_identifiers_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"0008\|0018"):
        write_slice(sitk.Image([4, 4, 1], sitk.sitkUInt16), tmp_path / "a", {"0008|0016": "1.2"})
    assert not (tmp_path / "a").exists()


def test_identifiers_depend_on_their_parts_alone():
    assert make_uid("series", 1, 2) == make_uid("series", 1, 2)
    assert len({make_uid("series", 1, 2), make_uid("series", 12), make_uid("study", 1, 2)}) == 3
    assert len(make_uid("a")) <= 64 and make_uid("a").startswith("2.25.")
