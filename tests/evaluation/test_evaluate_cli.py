"""The command ``nnunet-anomaly evaluate`` on small generated folders and on real label maps."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_anomaly.cli.main import main

SPACING_MM_XYZ = (0.5, 0.5, 2.0)


def write(array: np.ndarray, path: Path, spacing_mm_xyz=SPACING_MM_XYZ) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm_xyz)
    sitk.WriteImage(image, str(path))


def blocks() -> np.ndarray:
    label_map = np.zeros((6, 20, 20), dtype=np.uint8)
    label_map[1:5, 3:9, 3:9] = 1
    label_map[1:5, 11:17, 3:9] = 2
    return label_map


@pytest.fixture
def folders(tmp_path) -> Path:
    """Five references; ``plain`` is two voxels off in x and ``aware`` one, each a little more or less by case."""
    for i in range(5):
        reference = np.roll(blocks(), i, axis=2)
        write(reference, tmp_path / f"ref/case_{i}.nii.gz")
        write(np.roll(reference, 2 + i % 2, axis=2), tmp_path / f"plain/case_{i}.nii.gz")
        write(np.roll(reference, 1, axis=2), tmp_path / f"aware/case_{i}.nii.gz")
    return tmp_path


def evaluate(folder: Path, *extra: str, pred: tuple[str, ...] = ("plain", "aware")) -> int:
    predictions = [word for name in pred for word in ("-pred", str(folder / name))]
    return main(["evaluate", "-ref", str(folder / "ref"), *predictions, "-o", str(folder / "out"), "-np", "1", *extra])


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def read_json(path: Path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_two_methods_are_measured_and_compared(folders, capsys):
    assert evaluate(folders) == 0
    cases = read_csv(folders / "out/cases.csv")
    assert len(cases) == 2 * 5 * 2
    first = cases[0]
    assert (first["method"], first["case"], first["structure"]) == ("plain", "case_0", "1")
    assert float(first["dsc"]) == pytest.approx(4 / 6)
    assert float(first["hd_mm"]) == 1.0
    results = read_json(folders / "out/summary.json")["results"]
    assert results["aware"]["2"]["hd_mm"] == {"n": 5, "n_undefined": 0, "mean": 0.5, "sd": 0, "median": 0.5}
    assert results["plain"]["1"]["hd_mm"]["mean"] == pytest.approx((1 + 1.5 + 1 + 1.5 + 1) / 5)
    comparison = {
        (row["structure"], row["metric"]): row for row in read_json(folders / "out/comparison.json")["comparisons"]
    }
    found = comparison["1", "hd_mm"]
    assert (found["first"], found["second"], found["n"], found["excluded"]) == ("plain", "aware", 5, [])
    assert found["mean_difference"] == pytest.approx(-0.7)
    assert found["ci95_high"] < 0 and found["p_t"] < 0.05
    assert len(read_csv(folders / "out/comparison.csv")) == 2 * 7
    assert len(read_csv(folders / "out/summary.csv")) == 2 * 2 * 7
    printed = capsys.readouterr().out
    assert "HD95 mm" in printed and "aware - plain" in printed


def test_finished_cases_are_not_repeated_and_changed_ones_are(folders):
    assert evaluate(folders) == 0
    records = {path: path.stat().st_mtime_ns for path in (folders / "out/cases").rglob("*.json")}
    tables = {path.name: path.read_bytes() for path in (folders / "out").glob("*.*")}
    assert evaluate(folders) == 0
    assert records == {path: path.stat().st_mtime_ns for path in records}
    assert tables == {path.name: path.read_bytes() for path in (folders / "out").glob("*.*")}
    write(blocks(), folders / "aware/case_0.nii.gz")
    assert evaluate(folders) == 0
    changed = [path for path, time in records.items() if path.stat().st_mtime_ns != time]
    assert changed == [folders / "out/cases/aware/case_0.json"]
    assert evaluate(folders, "--nsd-tolerance-mm", "0.1") == 0
    assert all(path.stat().st_mtime_ns != time for path, time in records.items())


def test_two_processes_give_the_same_tables(folders):
    assert evaluate(folders) == 0
    one = {path.name: path.read_bytes() for path in (folders / "out").glob("*.*")}
    for path in (folders / "out").rglob("*.json"):
        path.unlink()
    assert evaluate(folders, "-np", "2") == 0
    assert one == {path.name: path.read_bytes() for path in (folders / "out").glob("*.*")}


def test_failed_cases_are_listed_in_order_by_any_number_of_processes(folders, capsys):
    for name, keep in (("case_0", 4000), ("case_1", 10), ("case_3", 10)):  # the first takes longest to fail
        path = folders / f"aware/{name}.nii.gz"
        path.write_bytes((path.read_bytes() * 40)[:keep])
    said = []
    for processes in ("1", "2", "3"):
        assert evaluate(folders, "-np", processes) == 1
        said.append((capsys.readouterr().err.split("failed:")[1], (folders / "out/summary.json").read_bytes()))
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("damage", ["flipped", "cut off"])
def test_damage_in_the_middle_of_a_cohort_is_named_in_every_format(tmp_path, ending, damage):
    rng = np.random.default_rng(0)
    for i in range(3):
        image = sitk.GetImageFromArray(rng.integers(0, 3, (12, 40, 40)).astype(np.uint8))
        for name in ("ref", "plain"):
            (tmp_path / name).mkdir(exist_ok=True)
            sitk.WriteImage(image, str(tmp_path / name / f"case_{i}{ending}"), useCompression=True)
    path = tmp_path / f"plain/case_1{ending}"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(255 - value for value in content[middle : middle + 40])
    path.write_bytes(content if damage == "flipped" else content[:middle])
    assert evaluate(tmp_path, pred=("plain",)) == 1
    assert list(read_json(tmp_path / "out/summary.json")["failed"]) == ["plain: case_1"]
    assert {row["case"] for row in read_csv(tmp_path / "out/cases.csv")} == {"case_0", "case_2"}


def test_a_tolerance_of_whole_voxels_is_reached_with_the_rounding_of_nifti(tmp_path):
    reference = np.zeros((20, 20, 20), np.uint8)
    reference[5:10, 5:10, 5:10] = 1
    for ending in (".nii.gz", ".mha"):
        write(reference, tmp_path / f"ref/case{ending}", (0.365, 0.365, 0.7))
        write(np.roll(reference, 2, axis=2), tmp_path / f"plain/case{ending}", (0.365, 0.365, 0.7))
        assert evaluate(tmp_path, "--nsd-tolerance-mm", "0.73", pred=("plain",)) == 0
        assert read_csv(tmp_path / "out/cases.csv")[0]["nsd"] == "1.0"
        for name in ("ref", "plain"):
            (tmp_path / name / f"case{ending}").unlink()


def test_bad_cases_are_named_and_the_others_go_on(folders, capsys):
    (folders / "aware/case_0.nii.gz").unlink()
    write(blocks(), folders / "aware/case_1.nii.gz", (0.5, 0.5, 1.0))
    path = folders / "aware/case_2.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    write(blocks(), folders / "aware/case_9.nii.gz")
    assert evaluate(folders) == 1
    failed = read_json(folders / "out/summary.json")["failed"]
    assert set(failed) == {"aware: case_0", "aware: case_1", "aware: case_2"}
    assert "no file" in failed["aware: case_0"]
    assert "spacing (0.5, 0.5, 2.0) against (0.5, 0.5, 1.0)" in failed["aware: case_1"]
    assert "case_2.nii.gz" in failed["aware: case_2"]
    assert len([row for row in read_csv(folders / "out/cases.csv") if row["method"] == "aware"]) == 2 * 2
    found = read_json(folders / "out/comparison.json")["comparisons"][0]
    assert (found["n"], found["excluded"]) == (2, ["case_0", "case_1", "case_2"])
    captured = capsys.readouterr()
    assert "aware: case_0" in captured.err
    assert "case_9" in captured.out


def test_empty_masks_are_null_and_counted(folders):
    nothing = np.zeros_like(blocks())
    write(nothing, folders / "plain/case_0.nii.gz")
    write(nothing, folders / "plain/case_1.nii.gz")
    write(nothing, folders / "ref/case_1.nii.gz")
    assert evaluate(folders, pred=("plain",)) == 0
    rows = {(row["case"], row["structure"]): row for row in read_csv(folders / "out/cases.csv")}
    assert rows["case_0", "1"]["empty"] == "prediction"
    assert (rows["case_0", "1"]["dsc"], rows["case_0", "1"]["nsd"], rows["case_0", "1"]["hd_mm"]) == ("0.0", "0.0", "")
    assert rows["case_1", "1"]["empty"] == "both"
    assert (rows["case_1", "1"]["dsc"], rows["case_1", "1"]["reference_voxels"]) == ("", "0")
    results = read_json(folders / "out/summary.json")["results"]["plain"]["1"]
    assert (results["dsc"]["n"], results["dsc"]["n_undefined"]) == (4, 1)
    assert (results["hd_mm"]["n"], results["hd_mm"]["n_undefined"]) == (3, 2)
    assert not (folders / "out/comparison.json").exists()


def test_nothing_but_empty_masks(tmp_path):
    write(np.zeros_like(blocks()), tmp_path / "ref/case.nii.gz")
    write(np.zeros_like(blocks()), tmp_path / "plain/case.nii.gz")
    assert evaluate(tmp_path, pred=("plain",)) == 0
    assert read_csv(tmp_path / "out/cases.csv") == []
    assert evaluate(tmp_path, "-l", "1", pred=("plain",)) == 0
    assert read_csv(tmp_path / "out/cases.csv")[0]["empty"] == "both"
    assert read_json(tmp_path / "out/summary.json")["results"]["plain"]["1"]["dsc"]["mean"] is None


def dataset_json(folder: Path, labels: dict) -> None:
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")


def test_names_and_regions_of_dataset_json(folders):
    dataset_json(folders / "plain", {"background": 0, "both": [1, 2], "second": 2, "third": 3})
    assert evaluate(folders, pred=("plain",)) == 0
    results = read_json(folders / "out/summary.json")["results"]["plain"]
    assert list(results) == ["both", "second", "third"]
    assert results["third"]["dsc"]["n_undefined"] == 5
    assert results["both"]["dsc"]["n"] == 5
    assert evaluate(folders, "-l", "second", "1", pred=("plain",)) == 0
    assert list(read_json(folders / "out/summary.json")["results"]["plain"]) == ["second", "1"]


def test_names_of_nnunet_v1_are_understood(folders):
    dataset_json(folders / "plain", {"0": "background", "1": "first", "2": "second"})
    assert evaluate(folders, pred=("plain",)) == 0
    assert list(read_json(folders / "out/summary.json")["results"]["plain"]) == ["first", "second"]


@pytest.mark.parametrize(
    "labels", [["a", "b"], {"background": 0, "a": [0, 1]}, {"a": 1.0}, {"a": -2}, {"a": "one"}, {"a": True}, {"a": []}]
)
def test_a_dataset_json_without_labels_is_named(folders, labels, capsys):
    dataset_json(folders / "plain", labels)
    assert evaluate(folders, pred=("plain",)) == 2
    assert "dataset.json" in capsys.readouterr().err


def test_a_label_that_dataset_json_does_not_have(folders):
    dataset_json(folders, {"background": 0, "first": 1, "second": 2})
    stray = blocks()
    stray[0, 0, 0] = 7
    write(stray, folders / "plain/case_3.nii.gz")
    assert evaluate(folders, pred=("plain",)) == 1
    failed = read_json(folders / "out/summary.json")["failed"]
    assert list(failed) == ["plain: case_3"]
    assert "[7]" in failed["plain: case_3"]


def test_a_label_that_no_reference_has_is_shown_with_its_empty_reference(folders):
    extra = blocks()
    extra[0, 0, :4] = 9
    write(extra, folders / "plain/case_3.nii.gz")
    assert evaluate(folders, pred=("plain",)) == 0
    rows = {(row["case"], row["structure"]): row for row in read_csv(folders / "out/cases.csv")}
    found = rows["case_3", "9"]
    assert (found["empty"], found["dsc"], found["nsd"], found["hd_mm"]) == ("reference", "0.0", "0.0", "")
    assert rows["case_0", "9"]["empty"] == "both"
    results = read_json(folders / "out/summary.json")["results"]["plain"]["9"]
    assert (results["dsc"]["n"], results["dsc"]["n_undefined"], results["dsc"]["mean"]) == (1, 4, 0)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("-l", "femur"), "'femur'"),
        (("-l", "0"), "'0'"),
        (("-l", "²"), "'²'"),
        (("-l", "70000"), "'70000'"),
        (("--nsd-tolerance-mm", "inf"), "finite"),
        (("--gaps", "--gap-width-mm", "nan"), "--gap-width-mm"),
        (("--gaps", "--collision-mm", "-1"), "--collision-mm"),
        (("--collision-mm", "1"), "--gaps, which is not given"),
        (("--gaps", "-l", "1"), "fewer than two structures"),
        (("--save-gaps", "regions"), "--gaps, which is not given"),
        (("--names", "one"), "--names must give 2"),
        (("--names", "one", "one"), "--names must give 2"),
        (("--names", "one", "a/b"), "'a/b'"),
        (("--nsd-tolerance-mm", "-1"), "negative"),
        (("--dataset-json", "nowhere.json"), "nowhere.json does not exist"),
    ],
)
def test_wrong_arguments(folders, capsys, extra, message):
    assert evaluate(folders, *extra) == 2
    assert message in capsys.readouterr().err


def expected_gaps(reference, prediction, width_mm, collision_mm):
    """Gap Dice by label and pooled, and collisions, from scipy's distance transforms of the whole image."""
    spacing_mm = SPACING_MM_XYZ[::-1]
    distances_mm = [ndimage.distance_transform_edt(reference != label, sampling=spacing_mm) for label in (1, 2)]
    region = sum(distances_mm) < width_mm
    inside = [[(array == label) & region for label in (1, 2)] for array in (reference, prediction)]
    shared = [np.sum(a & b) for a, b in zip(*inside, strict=True)]
    sizes = [np.sum(a) + np.sum(b) for a, b in zip(*inside, strict=True)]
    away_mm = [ndimage.distance_transform_edt(prediction != label, sampling=spacing_mm) for label in (1, 2)]
    collisions = sum(np.sum((prediction == label) & (away_mm[2 - label] <= collision_mm)) for label in (1, 2))
    by_label = [2 * a / b for a, b in zip(shared, sizes, strict=True)]
    return by_label, 2 * sum(shared) / sum(sizes), np.sum(region), collisions


def test_gaps_and_collisions(folders, capsys):
    """The second structure of ``near`` has grown towards the first one, in case 3 until they meet."""
    for i in range(5):
        reference = np.roll(blocks(), i, axis=2)
        grown = reference.copy()
        grown[2:4, 11 - (3 if i == 3 else 1) : 11, 3 + i : 9 + i] = 2
        write(grown, folders / f"near/case_{i}.nii.gz")
    assert evaluate(folders, "--gaps", "--gap-width-mm", "3", "--collision-mm", "0.6", pred=("near", "aware")) == 0
    cases = {(row["method"], row["case"]): row for row in read_csv(folders / "out/gaps.csv")}
    rows = {(row["method"], row["case"], row["structure"]): row for row in read_csv(folders / "out/cases.csv")}
    assert next(iter(cases)) == ("near", "case_3")
    for method, case in cases:
        pair = [sitk.GetArrayFromImage(sitk.ReadImage(str(folders / f"{of}/{case}.nii.gz"))) for of in ("ref", method)]
        by_label, pooled, voxels, collisions = expected_gaps(*pair, 3, 0.6)
        assert (collisions > 0) == ((method, case) == ("near", "case_3"))
        found = cases[method, case]
        assert (int(found["gap_voxels"]), int(found["collision_voxels"])) == (voxels, collisions)
        np.testing.assert_allclose(float(found["gap_dsc_pooled"]), pooled)
        np.testing.assert_allclose(float(found["gap_dsc_mean"]), np.mean(by_label))
        for label, value in zip("12", by_label, strict=True):
            np.testing.assert_allclose(float(rows[method, case, label]["gap_dsc"]), value)
    summary = read_json(folders / "out/summary.json")
    assert summary["gaps"]["near"]["collision_voxels"]["n"] == 5
    assert summary["results"]["near"]["1"]["gap_dsc"]["n"] == 5 and "gap_dsc" in summary["definitions"]
    assert {row["metric"] for row in read_csv(folders / "out/comparison.csv")} > {"gap_dsc"}
    printed = capsys.readouterr().out
    assert "Most collisions" in printed and "gap DSC, class mean" in printed and "gap DSC, pooled" in printed
    whole = {row["metric"] for row in read_csv(folders / "out/comparison.csv") if row["structure"] == "(case)"}
    assert whole == {"gap_voxels", "gap_dsc_mean", "gap_dsc_pooled", "collision_voxels"} <= set(summary["definitions"])
    # other widths are measured anew
    assert evaluate(folders, "--gaps", "--gap-width-mm", "2", "--collision-mm", "1.1", pred=("near",)) == 0
    again = {row["case"]: row for row in read_csv(folders / "out/gaps.csv")}
    assert int(again["case_0"]["gap_voxels"]) < int(cases["near", "case_0"]["gap_voxels"])
    assert int(again["case_0"]["collision_voxels"]) > int(cases["near", "case_0"]["collision_voxels"])
    # without --gaps nothing of it is left
    assert evaluate(folders, pred=("near",)) == 0
    assert "gap_dsc" not in read_csv(folders / "out/cases.csv")[0] and not (folders / "out/gaps.csv").exists()


def test_gap_regions_are_saved(folders):
    saved = folders / "regions"
    options = ("--gaps", "--gap-width-mm", "3", "--save-gaps", str(saved))
    assert evaluate(folders, *options) == 0
    assert sorted(path.name for path in saved.glob("*.nii.gz")) == [f"case_{i}.nii.gz" for i in range(5)]
    for i in (0, 4):
        image = sitk.ReadImage(str(saved / f"case_{i}.nii.gz"))
        reference = np.roll(blocks(), i, axis=2)
        distances_mm = [
            ndimage.distance_transform_edt(reference != label, sampling=SPACING_MM_XYZ[::-1]) for label in (1, 2)
        ]
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sum(distances_mm) < 3)
        assert image.GetSpacing() == SPACING_MM_XYZ and image.GetPixelID() == sitk.sitkUInt8
    times = {path: path.stat().st_mtime_ns for path in saved.glob("*.nii.gz")}
    write(blocks() * 0, folders / "ref/case_0.nii.gz")
    assert evaluate(folders, *options) == 0
    assert [path.name for path, time in times.items() if path.stat().st_mtime_ns != time] == ["case_0.nii.gz"]
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(saved / "case_0.nii.gz"))).any()


def test_gap_regions_of_references_that_are_gone_are_removed(folders):
    saved = folders / "regions"
    assert evaluate(folders, "--gaps", "--save-gaps", str(saved)) == 0
    (folders / "ref/case_1.nii.gz").unlink()
    write(blocks(), saved / "of_another_make.nii.gz")
    assert evaluate(folders, "--gaps", "--save-gaps", str(saved)) == 0
    names = [f"case_{i}.nii.gz" for i in (0, 2, 3, 4)]
    assert sorted(path.name for path in saved.glob("*.nii.gz")) == [*names, "of_another_make.nii.gz"]
    assert sorted(path.name for path in (saved / "made_from").iterdir()) == [f"case_{i}.json" for i in (0, 2, 3, 4)]


def test_a_distance_at_which_nothing_can_collide_is_said(folders, capsys):
    assert evaluate(folders, "--gaps", "--collision-mm", "0.5") == 0
    assert "Warning" not in capsys.readouterr().err
    assert read_json(folders / "out/summary.json")["collisions_out_of_reach"] is None
    for folder in ("ref", "plain", "aware"):
        write(blocks(), folders / folder / "case_2.nii.gz", (0.3, 0.5, 2.0))
    assert evaluate(folders, "--gaps", "--collision-mm", "0.4") == 0
    error = capsys.readouterr().err
    assert error.count("Warning") == 1
    assert "in 4 of 5 cases --collision-mm 0.4 is less than the finest voxel size (0.5 mm or more)" in error
    found = read_json(folders / "out/summary.json")["collisions_out_of_reach"]
    assert found == {"cases": 4, "of": 5, "finest_voxel_mm": 0.5, "smallest_distance_mm": 0.5}
    assert evaluate(folders) == 0
    assert "Warning" not in capsys.readouterr().err
    assert "collisions_out_of_reach" not in read_json(folders / "out/summary.json")


def test_only_structures_that_are_evaluated_have_gaps(folders):
    crowded = blocks()
    crowded[1:5, 9:11, 3:9] = 3
    for name in ("ref", "near"):
        write(crowded, folders / name / "case_0.nii.gz")
    for labels, expected in (("12", False), ("123", True)):
        assert evaluate(folders, "--gaps", "--collision-mm", "0.6", "-l", *labels, pred=("near",)) == 1
        (row,) = read_csv(folders / "out/gaps.csv")
        assert (int(row["collision_voxels"]) > 0) == expected


def test_gaps_of_structures_that_are_far_apart_or_missing(folders):
    alone = np.where(blocks() == 1, 1, 0).astype(np.uint8)
    write(alone, folders / "ref/case_0.nii.gz")
    write(alone, folders / "plain/case_0.nii.gz")
    assert evaluate(folders, "--gaps", "--gap-width-mm", "0.4", pred=("plain",)) == 0
    rows = read_csv(folders / "out/cases.csv")
    assert {row["gap_dsc"] for row in rows} == {""}
    gaps = read_json(folders / "out/summary.json")["gaps"]["plain"]
    assert gaps["gap_dsc_pooled"]["n_undefined"] == 5 and gaps["gap_voxels"]["mean"] == 0


def test_gaps_are_not_those_inside_a_region_of_several_labels(folders, capsys):
    dataset_json(folders, {"background": 0, "both": [1, 2], "second": 2})
    assert evaluate(folders, "--gaps", pred=("plain",)) == 2
    assert "both" in capsys.readouterr().err
    assert evaluate(folders, "--gaps", "-l", "1", "2", pred=("plain",)) == 0


def test_gaps_of_real_hips(real_data, tmp_path):
    """Hips against themselves: Dice 1 in gaps; bones of these label maps do collide."""
    source = sorted((real_data / "hip_labels").glob("*.nii*"))[0]
    for name in ("ref", "same"):
        (tmp_path / name).mkdir()
        (tmp_path / name / source.name).symlink_to(source)
    assert evaluate(tmp_path, "--gaps", pred=("same",)) == 0
    (row,) = read_csv(tmp_path / "out/gaps.csv")
    assert float(row["gap_dsc_pooled"]) == 1 and int(row["gap_voxels"]) > 0 and int(row["collision_voxels"]) > 0


def test_ignore_label_needs_a_choice(folders, capsys):
    dataset_json(folders, {"background": 0, "first": 1, "ignore": 2})
    assert evaluate(folders) == 2
    assert "ignore label" in capsys.readouterr().err
    assert evaluate(folders, "-l", "first") == 0


def test_no_case_in_common(folders, capsys):
    write(blocks(), folders / "elsewhere/other.nii.gz")
    assert evaluate(folders, pred=("elsewhere",)) == 2
    assert "has the name of one in" in capsys.readouterr().err


def test_folders_of_the_same_name_are_told_apart(folders):
    write(blocks(), folders / "fold_0/validation/case_0.nii.gz")
    write(blocks(), folders / "fold_1/validation/case_0.nii.gz")
    for i in range(1, 5):
        (folders / f"ref/case_{i}.nii.gz").unlink()
    assert evaluate(folders, pred=("fold_0/validation", "fold_1/validation")) == 0
    assert list(read_json(folders / "out/summary.json")["methods"]) == ["fold_0_validation", "fold_1_validation"]


def test_real_hippocampus_labels_against_themselves_shifted(real_data, tmp_path):
    for path in sorted((real_data / "hippocampus/labels").glob("*.nii.gz"))[:3]:
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        for name, content in (("ref", array), ("shifted", np.roll(array, 1, axis=0)), ("same", array)):
            write(content, tmp_path / name / path.name, image.GetSpacing())
    assert evaluate(tmp_path, pred=("shifted", "same")) == 0
    results = read_json(tmp_path / "out/summary.json")["results"]
    for structure in ("1", "2"):
        shifted, same = results["shifted"][structure], results["same"][structure]
        assert (same["dsc"]["mean"], same["hd_mm"]["mean"], same["nsd"]["mean"]) == (1, 0, 1)
        assert 0.8 < shifted["dsc"]["mean"] < 0.99
        assert shifted["hd_mm"]["mean"] == 1
        assert 0 < shifted["asd_mm"]["mean"] < 1
        assert shifted["nsd"]["mean"] == 1
