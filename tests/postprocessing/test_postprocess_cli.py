"""The command ``nnunet-anomaly postprocess`` and the runner behind it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.postprocessing.components import keep_components
from nnunet_anomaly.postprocessing.runner import apply_steps, check_steps

SPACING_MM_XYZ = (0.4, 0.5, 2.0)
VOXEL_MM3 = 0.4


def label_map(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    array = np.zeros((6, 20, 20), dtype=np.uint8)
    array[1:5, 2:10, 2:10] = 1
    array[1:5, 12:18, 2:10] = 2
    for label in (1, 2):
        z, y, x = rng.integers(0, 5), rng.integers(0, 18), rng.integers(12, 18)
        array[z, y : y + 2, x : x + 2] = label
    return array


def write(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_MM_XYZ[: array.ndim])
    image.SetOrigin((5, -6, 7)[: array.ndim])
    sitk.WriteImage(image, str(path))


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(4):
        write(label_map(i), tmp_path / f"in/case_{i}.nii.gz")
    (tmp_path / "in/dataset.json").write_text('{"labels": {"background": 0}}')
    return tmp_path


def postprocess(folder: Path, *extra: str) -> int:
    return main(["postprocess", "-i", str(folder / "in"), "-o", str(folder / "out"), "-np", "1", *extra])


def test_label_maps_are_cleaned_and_what_was_done_is_recorded(folder, capsys):
    assert postprocess(folder) == 0
    removed = 0
    for i in range(4):
        array = label_map(i)
        cleaned = read(folder / f"out/case_{i}.nii.gz")
        np.testing.assert_array_equal(cleaned, keep_components(array, (2, 0.5, 0.4)))
        assert cleaned.dtype == np.uint8
        record = json.loads((folder / f"out/postprocessing/case_{i}.json").read_text())
        counts = record["steps"][0]["labels_found"]
        assert counts["1"]["removed_voxels"] == np.count_nonzero((array == 1) & (cleaned != 1)) > 0
        removed += counts["1"]["removed_voxels"]
    image = sitk.ReadImage(str(folder / "out/case_0.nii.gz"))
    assert image.GetSpacing() == pytest.approx(SPACING_MM_XYZ)
    assert image.GetOrigin() == pytest.approx((5, -6, 7))
    summary = json.loads((folder / "out/postprocessing.json").read_text())
    assert summary["removed"][0]["1"] == {
        "removed_components": 4,
        "removed_voxels": removed,
        "removed_mm3": pytest.approx(removed * VOXEL_MM3),
        "changed_cases": 4,
    }
    of_one = {"from": 1, "to": 0, "voxels": removed, "mm3": pytest.approx(removed * VOXEL_MM3), "cases": 4}
    assert summary["changes"][0] == of_one
    assert summary["steps"] == [{"step": "keep_components", "min_share_of_largest": 0.2, "connectivity": 26}]
    assert (folder / "out/dataset.json").is_file()
    printed = capsys.readouterr().out
    assert "removed voxels" in printed and "removed mm^3" in printed and "4 done" in printed
    # of either label, by the step and by all steps together
    assert printed.count(f" {removed * VOXEL_MM3:.1f} ") == 4


def test_pairs_are_put_right_and_it_is_said(folder, capsys):
    array = np.zeros((6, 20, 20), np.uint8)
    array[1:5, 2:10, 2:10], array[1:5, 12:18, 2:10] = 1, 2
    truth = array.copy()
    array[1, 2:10, 2:10], array[4, 12:18, 2:10] = 2, 1
    array[0, 0, 19] = 2
    for name in ("case_0", "case_1", "case_2", "case_3"):
        write(array, folder / f"in/{name}.nii.gz")
    assert postprocess(folder, "--pairs", "1:2") == 0
    np.testing.assert_array_equal(read(folder / "out/case_0.nii.gz"), truth)
    summary = json.loads((folder / "out/postprocessing.json").read_text())
    counts = summary["removed"][0]["2"]
    assert (counts["relabelled_components"], counts["relabelled_voxels"], counts["changed_cases"]) == (8, 4 * 65, 4)
    assert "relabelled voxels" in capsys.readouterr().out
    (folder / "steps.json").write_text('{"steps": [{"step": "symmetric_components", "pairs": [[1, 2]]}]}')
    assert (
        main(
            [
                "postprocess",
                "-i",
                str(folder / "in"),
                "-o",
                str(folder / "by_file"),
                "--settings",
                str(folder / "steps.json"),
            ]
        )
        == 0
    )
    np.testing.assert_array_equal(read(folder / "by_file/case_3.nii.gz"), truth)


def sides() -> np.ndarray:
    """A left (1) and a right (2) bone: x runs to the patient's left, so that the left one has the higher index."""
    array = np.zeros((6, 20, 30), np.uint8)
    array[1:5, 2:18, 18:28], array[1:5, 2:18, 2:12] = 1, 2
    return array


def confused() -> np.ndarray:
    """The upper end of the left bone under the label of the right one, and an island."""
    array = sides()
    array[4][array[4] == 1] = 2
    array[0, 0, 0] = 1
    return array


@pytest.fixture
def predicted(tmp_path) -> Path:
    """What stock nnUNetv2_predict leaves: label maps, dataset.json and plans.json."""
    for index in range(3):
        write(confused(), tmp_path / f"in/hip_{index}.nii.gz")
    labels = {"background": 0, "femur_left": 1, "femur_right": 2, "sacrum": 3}
    (tmp_path / "in/dataset.json").write_text(json.dumps({"labels": labels}))
    (tmp_path / "in/plans.json").write_text("{}")
    return tmp_path


def test_pairs_are_found_by_the_names_of_labels(predicted, capsys):
    assert postprocess(predicted, "--pairs") == 0
    np.testing.assert_array_equal(read(predicted / "out/hip_2.nii.gz"), sides())
    printed = capsys.readouterr().out
    assert "Pairs of left and right: 1:2 (names of labels in" in printed
    assert "patient's right" not in printed
    summary = json.loads((predicted / "out/postprocessing.json").read_text())
    assert summary["steps"] == [{"step": "symmetric_components", "pairs": [[1, 2]], "connectivity": 26}]
    island = {"from": 1, "to": 0, "voxels": 3, "mm3": pytest.approx(3 * VOXEL_MM3), "cases": 3}
    piece = {"from": 2, "to": 1, "voxels": 480, "mm3": pytest.approx(480 * VOXEL_MM3), "cases": 3}
    assert summary["changes"] == [island, piece]


def test_pairs_are_found_in_the_plans(predicted, capsys):
    from nnunet_anomaly.settings import AnomalySettings

    (predicted / "in/dataset.json").unlink()
    block = AnomalySettings().with_values({"symmetry.pairs": [[1, 2]]}).to_dict()
    (predicted / "in/plans.json").write_text(json.dumps({"anomaly": block}))
    assert postprocess(predicted, "--pairs") == 0
    np.testing.assert_array_equal(read(predicted / "out/hip_0.nii.gz"), sides())
    assert "anomaly.symmetry.pairs of" in capsys.readouterr().out


def test_left_on_the_right_is_said(predicted, capsys):
    for index in range(3):
        write(confused()[..., ::-1], predicted / f"in/hip_{index}.nii.gz")
    assert postprocess(predicted, "--pairs") == 0
    assert "1:2: the one named left lies on the patient's right" in capsys.readouterr().out
    np.testing.assert_array_equal(read(predicted / "out/hip_0.nii.gz"), sides()[..., ::-1])


def test_pairs_that_do_not_lie_side_by_side_are_refused(predicted, capsys):
    for index in range(3):
        write(np.swapaxes(np.pad(sides(), ((0, 0), (0, 10), (0, 0))), 1, 2), predicted / f"in/hip_{index}.nii.gz")
    assert postprocess(predicted, "--pairs") == 2
    error = capsys.readouterr().err
    assert "1:2 is left out: of 3 label maps with both" in error and "--pairs 1:2 3:4" in error
    assert postprocess(predicted, "--pairs", "1:2") == 0
    write(sides()[..., ::-1], predicted / "in/hip_0.nii.gz")  # two this way round, one that way
    for index in (1, 2):
        write(sides(), predicted / f"in/hip_{index}.nii.gz")
    assert postprocess(predicted, "--pairs") == 2
    assert "to the patient's left in 2 and to the right in 1" in capsys.readouterr().err


def test_a_case_that_lies_otherwise_than_nearly_all_is_named(predicted, capsys):
    for index in range(10):
        write(sides()[..., ::-1] if index == 4 else sides(), predicted / f"in/hip_{index}.nii.gz")
    assert postprocess(predicted, "--pairs") == 0
    assert "1:2: not so in hip_4, of 10 that were looked at" in capsys.readouterr().out


def test_where_one_side_is_absent_nothing_is_relabelled_into_existence(predicted, capsys):
    alone = np.where(sides() == 2, 0, sides())
    alone[0, 0, 0] = 1
    for index in range(3):
        write(alone, predicted / f"in/hip_{index}.nii.gz")
    assert postprocess(predicted, "--pairs") == 0
    assert "shows both sides" in capsys.readouterr().out
    np.testing.assert_array_equal(read(predicted / "out/hip_1.nii.gz"), np.where(sides() == 2, 0, sides()))
    summary = json.loads((predicted / "out/postprocessing.json").read_text())
    assert [(change["from"], change["to"]) for change in summary["changes"]] == [(1, 0)]


def test_without_names_it_is_said_what_to_give(predicted, capsys):
    (predicted / "in/dataset.json").write_text('{"labels": {"background": 0, "femur": 1, "hip": 2}}')
    assert postprocess(predicted, "--pairs") == 2
    assert "--pairs 1:2 3:4" in capsys.readouterr().err
    assert not (predicted / "out").exists()


def test_a_damaged_label_map_does_not_hide_the_pairs(predicted, capsys):
    (predicted / "in/hip_0.nii.gz").write_bytes(b"no image")
    assert postprocess(predicted, "--pairs") == 1
    assert "hip_0" in capsys.readouterr().err
    np.testing.assert_array_equal(read(predicted / "out/hip_1.nii.gz"), sides())


def test_labels_that_are_not_known_are_listed(predicted, capsys):
    stray = confused()
    stray[0, 0, 5], stray[0, 0, 7] = 4, 8
    write(stray, predicted / "in/hip_1.nii.gz")
    assert postprocess(predicted) == 1
    error = capsys.readouterr().err
    assert "hip_1.nii.gz holds the labels [4, 8]" in error and "[1, 2, 3]" in error
    assert not (predicted / "out/hip_1.nii.gz").exists()
    assert postprocess(predicted, "--pairs", "1:7") == 2
    assert "the labels [7]" in capsys.readouterr().err
    assert postprocess(predicted, "-l", "1", "9") == 2
    assert "the labels [9]" in capsys.readouterr().err
    # once dataset.json knows them, the case is done
    names = {"background": 0, "femur_left": 1, "femur_right": 2, "sacrum": 3, "screw": 4, "plate": 8}
    (predicted / "in/dataset.json").write_text(json.dumps({"labels": names}))
    assert postprocess(predicted) == 0


def test_closed_gaps_are_opened_at_last(predicted, capsys):
    touching = np.zeros((6, 20, 30), np.uint8)
    touching[..., :15], touching[..., 15:] = 2, 1
    for index in range(3):
        write(touching, predicted / f"in/hip_{index}.nii.gz")
    assert postprocess(predicted, "--pairs", "--open-gaps-mm", "0.4") == 0
    expected = touching.copy()
    expected[..., 14:16] = 0
    np.testing.assert_array_equal(read(predicted / "out/hip_0.nii.gz"), expected)
    summary = json.loads((predicted / "out/postprocessing.json").read_text())
    assert [step["step"] for step in summary["steps"]] == ["symmetric_components", "open_gaps"]
    assert summary["removed"][1]["1"]["removed_voxels"] == 3 * 120
    assert "open_gaps: distance_mm 0.4" in capsys.readouterr().out


def test_a_distance_too_small_to_open_any_gap_is_said(predicted, capsys):
    finest_mm = min(sitk.ReadImage(str(predicted / "in/hip_0.nii.gz")).GetSpacing())
    assert postprocess(predicted, "--open-gaps-mm", str(finest_mm)) == 0
    assert "Warning" not in capsys.readouterr().err
    assert json.loads((predicted / "out/postprocessing.json").read_text())["out_of_reach"] == []
    steps = [{"step": "open_gaps", "distance_mm": 0.9 * finest_mm}, {"step": "open_gaps"}]
    (predicted / "steps.json").write_text(json.dumps({"steps": steps}))
    assert postprocess(predicted, "--settings", str(predicted / "steps.json")) == 0
    error = capsys.readouterr().err
    assert error.count("Warning") == 1 and f"in 3 of 3 cases distance_mm of open_gaps {0.9 * finest_mm:g} is" in error
    (entry,) = json.loads((predicted / "out/postprocessing.json").read_text())["out_of_reach"]
    assert entry["distance_mm"] == 0.9 * finest_mm and entry["cases"] == entry["of"] == 3


def test_records_of_another_make_are_made_again(predicted, capsys):
    assert postprocess(predicted) == 0
    record = predicted / "out/postprocessing/hip_1.json"
    content = json.loads(record.read_text())
    content["made_from"]["version"] = "0.0.1"
    record.write_text(json.dumps(content))
    assert postprocess(predicted) == 0
    assert "1 done, 2 were there already" in capsys.readouterr().out
    content = json.loads(record.read_text())
    content["made_from"]["settings"] = content["made_from"]["settings"]["steps"]  # as it was once
    record.write_text(json.dumps(content))
    assert postprocess(predicted) == 0
    assert "1 done, 2 were there already" in capsys.readouterr().out


@pytest.mark.parametrize("pairs", [["1"], ["1:x"], ["1:1"], ["1:2", "2:3"]])
def test_pairs_that_are_none(folder, capsys, pairs):
    assert postprocess(folder, "--pairs", *pairs) == 2
    assert "pair" in capsys.readouterr().err


def test_options_reach_the_step(folder):
    halves = np.zeros((4, 20, 20), dtype=np.uint8)
    halves[:, 2:8, 2:8] = 1
    halves[:, 2:8, 10:15] = 1
    halves[:, 10:14, 2:8] = 2
    halves[:, 14:18, 8:12] = 2
    write(halves, folder / "in/case_0.nii.gz")
    assert postprocess(folder, "--largest-only", "--connectivity", "6", "-l", "1") == 0
    expected = halves.copy()
    expected[:, 2:8, 10:15] = 0
    np.testing.assert_array_equal(read(folder / "out/case_0.nii.gz"), expected)
    assert postprocess(folder, "--min-share", "0.7", "--connectivity", "6") == 0
    np.testing.assert_array_equal(read(folder / "out/case_0.nii.gz") == 1, halves == 1)
    assert (read(folder / "out/case_0.nii.gz") == 2).sum() == 4 * 24
    assert postprocess(folder, "--min-share", "0.7") == 0
    np.testing.assert_array_equal(read(folder / "out/case_0.nii.gz"), halves)


def test_settings_file_gives_the_same_as_options(folder):
    assert postprocess(folder, "--largest-only") == 0
    by_options = {path.name: path.read_bytes() for path in (folder / "out").glob("*.nii.gz")}
    settings = {"steps": [{"step": "keep_components", "min_share_of_largest": 1.0, "connectivity": 26}]}
    (folder / "settings.json").write_text(json.dumps(settings))
    assert postprocess(folder, "--settings", str(folder / "settings.json"), "-np", "2") == 0
    assert by_options == {path.name: path.read_bytes() for path in (folder / "out").glob("*.nii.gz")}


def test_finished_cases_are_not_repeated_and_changed_ones_are(folder, capsys):
    assert postprocess(folder) == 0
    times = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*.nii.gz")}
    (folder / "out/case_1.nii.gz").unlink()
    write(label_map(99), folder / "in/case_2.nii.gz")
    capsys.readouterr()
    assert postprocess(folder) == 0
    assert "2 done, 2 were there already" in capsys.readouterr().out
    same = [path.name for path, time in times.items() if path.stat().st_mtime_ns == time]
    assert sorted(same) == ["case_0.nii.gz", "case_3.nii.gz"]
    np.testing.assert_array_equal(read(folder / "out/case_2.nii.gz"), keep_components(label_map(99), (2, 0.5, 0.4)))
    assert postprocess(folder, "--min-share", "0") == 0
    np.testing.assert_array_equal(read(folder / "out/case_0.nii.gz"), label_map(0))


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_other_formats_and_dtypes_are_kept(tmp_path, ending):
    array = label_map(0).astype(np.int16) * 150
    write(array, tmp_path / f"in/case{ending}")
    assert postprocess(tmp_path) == 0
    cleaned = read(tmp_path / f"out/case{ending}")
    assert cleaned.dtype == np.int16
    np.testing.assert_array_equal(cleaned, keep_components(array, (1, 1, 1)))


@pytest.mark.parametrize(("factor", "expected"), [(1, np.uint8), (150, np.uint16)])
def test_floating_point_numbers_become_the_integers_that_hold_them(tmp_path, factor, expected):
    array = label_map(0).astype(np.float64) * factor
    write(array, tmp_path / "in/case.nii.gz")
    assert postprocess(tmp_path) == 0
    assert read(tmp_path / "out/case.nii.gz").dtype == expected


def test_empty_label_map_stays_empty(tmp_path):
    write(np.zeros((3, 4, 5), dtype=np.uint8), tmp_path / "in/case.nii.gz")
    assert postprocess(tmp_path) == 0
    assert not read(tmp_path / "out/case.nii.gz").any()
    assert json.loads((tmp_path / "out/postprocessing.json").read_text())["removed"] == [{}]


def test_two_dimensions_and_single_voxels(tmp_path, capsys):
    touching = np.zeros((8, 12), np.uint8)
    touching[:, :6], touching[:, 6:] = 1, 2
    one = np.zeros((8, 12), np.uint8)
    one[3, 4] = 2
    write(touching, tmp_path / "in/touching.mha")
    write(one, tmp_path / "in/one.mha")
    assert postprocess(tmp_path, "--pairs", "1:2", "--open-gaps-mm", "0.4") == 0
    expected = touching.copy()
    expected[:, 5:7] = 0
    np.testing.assert_array_equal(read(tmp_path / "out/touching.mha"), expected)
    np.testing.assert_array_equal(read(tmp_path / "out/one.mha"), one)
    changes = json.loads((tmp_path / "out/postprocessing.json").read_text())["changes"]
    assert [change["mm3"] for change in changes] == [pytest.approx(8 * 0.2)] * 2  # of 1 mm thickness


def test_bad_cases_are_named_and_the_others_go_on(folder, capsys):
    path = folder / "in/case_1.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])
    write(np.full((3, 4, 5), 0.5, dtype=np.float32), folder / "in/case_2.nii.gz")
    assert postprocess(folder) == 1
    error = capsys.readouterr().err
    assert "case_1" in error and "case_2" in error and "not whole numbers" in error
    assert sorted(path.name for path in (folder / "out").glob("*.nii.gz")) == ["case_0.nii.gz", "case_3.nii.gz"]
    assert set(json.loads((folder / "out/postprocessing.json").read_text())["failed"]) == {"case_1", "case_2"}


def test_nothing_of_an_earlier_run_is_taken_for_a_case_that_failed_or_is_gone(folder, capsys):
    assert postprocess(folder) == 0
    (folder / "in/case_1.nii.gz").write_bytes(b"no image")
    (folder / "in/case_2.nii.gz").unlink()
    (folder / "out/other.nii.gz").write_bytes(b"of someone else")
    assert postprocess(folder) == 1
    kept = ["case_0.nii.gz", "case_3.nii.gz", "other.nii.gz"]
    assert sorted(path.name for path in (folder / "out").glob("*.nii.gz")) == kept
    assert sorted(path.stem for path in (folder / "out/postprocessing").glob("*")) == ["case_0", "case_3"]


@pytest.mark.parametrize("content", ["[]", "{", "null"])
def test_a_record_that_is_none_is_written_anew(folder, content, capsys):
    assert postprocess(folder) == 0
    record = folder / "out/postprocessing/case_1.json"
    whole = record.read_text()
    record.write_text(content)
    assert postprocess(folder) == 0
    assert record.read_text() == whole and "1 done, 3 were there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "at least one"),
        ({"step": "keep_components"}, "must be a list"),
        ([{"step": "keep_component"}], "Did you mean 'keep_components'"),
        ([{"min_share_of_largest": 0.2}], "None is not a step"),
        ([{"step": "keep_components", "min_share": 0.2}], "Did you mean 'min_share_of_largest'"),
        ([{"step": "keep_components", "spacing_mm": [1, 1, 1]}], "not a setting"),
        ([{"step": "keep_components", "min_share_of_largest": 2}], "from 0 to 1"),
        ([{"step": "keep_components", "connectivity": 8}], "connectivity"),
        ([{"step": "keep_components", "labels": 3}], "keep_components"),
        ([{"step": "keep_components", "labels": [0]}], "background"),
        ([{"step": ["keep_components"]}], "is not a step"),
        ([{"step": "keep_components", "labels": [1.5]}], "1.5"),
        ([{"step": "keep_components", "min_share_of_largest": True}], "min_share_of_largest"),
        ([{"step": "symmetric_components"}], "needs 'pairs'"),
        ([{"step": "symmetric_components", "pairs": [[1.0, 2]]}], "1.0"),
        ([{"step": "symmetric_components", "pairs": [1, 2]}], "pairs of two"),
        ([{"step": "symmetric_components", "pairs": [[1, 2]], "keep_largest": "no"}], "keep_largest"),
        ([{"step": "open_gaps", "distance_mm": -1}], "distance_mm"),
        ([{"step": "open_gaps", "distance": 1}], "Did you mean 'distance_mm'"),
    ],
)
def test_wrong_steps_are_found_before_the_work(steps, message):
    with pytest.raises(SettingsError, match=message):
        check_steps(steps)


def test_steps_follow_one_another():
    array = label_map(0)
    steps = check_steps(
        [
            {"step": "keep_components", "labels": [1], "min_share_of_largest": 1},
            {"step": "keep_components", "labels": [2], "min_share_of_largest": 1},
        ]
    )
    cleaned, records = apply_steps(array, (1, 1, 1), steps)
    np.testing.assert_array_equal(cleaned, keep_components(array, (1, 1, 1), min_share_of_largest=1))
    assert [record["labels"] for record in records] == [[1], [2]]
    np.testing.assert_array_equal(array, label_map(0))


def test_wrong_folders_and_arguments(folder, capsys):
    assert main(["postprocess", "-i", str(folder / "in"), "-o", str(folder / "in")]) == 2
    assert "another output folder" in capsys.readouterr().err
    (folder / "nothing").mkdir()
    assert main(["postprocess", "-i", str(folder / "nothing"), "-o", str(folder / "out")]) == 2
    assert "no label map" in capsys.readouterr().err
    (folder / "settings.json").write_text('{"step": []}')
    assert postprocess(folder, "--settings", str(folder / "settings.json")) == 2
    assert "nothing else" in capsys.readouterr().err
    assert postprocess(folder, "--settings", str(folder / "settings.json"), "-l", "1") == 2
    assert "leave out" in capsys.readouterr().err
    assert not (folder / "out").exists()
