"""The command ``nnunet-anomaly evaluate-lesions`` on small generated masks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from sklearn import metrics

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.evaluation.confusion import METRICS

SPACING_MM_XYZ = (0.5, 0.5, 3.0)
SAGITTAL = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
SHAPE = (6, 24, 24)


def write(array: np.ndarray, path: Path, spacing_mm_xyz=SPACING_MM_XYZ) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(spacing_mm_xyz)
    image.SetDirection(SAGITTAL)
    sitk.WriteImage(image, str(path))


def masks(seed):
    """Bone (2, beside soft tissue 1), two lesions, and what a good and a poor method make of them."""
    rng = np.random.default_rng(seed)
    bone = np.zeros(SHAPE, np.uint8)
    bone[1:, :, :4], bone[1:, 2:22, 4:22] = 1, 2
    lesions = np.zeros(SHAPE, bool)
    size = 3 + seed
    lesions[2, 4 : 4 + size, 6 : 6 + size] = True
    lesions[4, 15:18, 15:18] = True
    lesions[2, 4, 0:6] = True  # partly outside the bone
    good = np.roll(lesions, 1, axis=1)
    poor = good | (rng.random(SHAPE) < 0.02)
    return bone, lesions, good, poor


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six cases; the last has no lesion."""
    for seed in range(6):
        bone, lesions, good, poor = masks(seed)
        if seed == 5:
            lesions, good = np.zeros(SHAPE), np.zeros(SHAPE)
        for name, array in (("bones", bone), ("ref", lesions), ("good", good), ("poor", poor)):
            write(array, tmp_path / name / f"case_{seed}.nii.gz")
    return tmp_path


def evaluate(folder: Path, *extra: str, pred: tuple[str, ...] = ("good", "poor")) -> int:
    predictions = [word for name in pred for word in ("-pred", str(folder / name))]
    words = ["evaluate-lesions", "-ref", str(folder / "ref"), *predictions, "-b", str(folder / "bones")]
    return main([*words, "--bone-labels", "2", "-o", str(folder / "out"), "-np", "1", *extra])


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def read_json(path: Path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def number(text: str) -> float:
    return float(text) if text else float("nan")


def test_tables_are_those_of_scikit_learn(folder, capsys):
    assert evaluate(folder) == 0
    cases = {(row["method"], row["case"]): row for row in read_csv(folder / "out/cases.csv")}
    slices = read_csv(folder / "out/slices.csv")
    assert len(cases) == 12 and len(slices) == 2 * 5 * 2
    for seed in range(5):
        bone, lesions, good, poor = masks(seed)
        inside = bone == 2
        for method, called in (("good", good), ("poor", poor)):
            row = cases[method, f"case_{seed}"]
            truth, found = lesions[inside], called[inside]
            expected = {
                "dice": metrics.f1_score(truth, found),
                "iou": metrics.jaccard_score(truth, found),
                "sensitivity": metrics.recall_score(truth, found),
                "specificity": metrics.recall_score(~truth, ~found),
                "accuracy": metrics.accuracy_score(truth, found),
            }
            assert {key: number(row[key]) for key in METRICS} == pytest.approx(expected)
            assert number(row["lesion_volume_mm3"]) == pytest.approx(truth.sum() * 0.75)
            assert row["lesion_voxels_outside_bone"] == "4"
            assert (row["lesions"], row["lesions_hit"]) == ("2", "2")
            of_case = [each for each in slices if (each["method"], each["case"]) == (method, f"case_{seed}")]
            assert [each["slice"] for each in of_case] == ["2", "4"]
            for each in of_case:
                index = int(each["slice"])
                truth, found = lesions[index][inside[index]], called[index][inside[index]]
                assert number(each["lesion_area_mm2"]) == pytest.approx(truth.sum() * 0.25)
                assert number(each["dice"]) == pytest.approx(metrics.f1_score(truth, found))
                assert number(each["accuracy"]) == pytest.approx(metrics.accuracy_score(truth, found))
    free = cases["good", "case_5"]
    assert [free[key] for key in METRICS] == ["", "", "", "1.0", "1.0"] and free["lesion_sensitivity"] == ""
    assert number(cases["poor", "case_5"]["dice"]) == 0
    assert "Mean ± SD" in capsys.readouterr().out


def test_summary_means_are_of_cases_and_of_slices(folder):
    assert evaluate(folder) == 0
    summary = read_json(folder / "out/summary.json")
    rows = [row for row in read_csv(folder / "out/cases.csv") if row["method"] == "poor" and row["case"] != "case_5"]
    values = [number(row["iou"]) for row in rows]
    by_case = summary["results"]["poor"]["case"]["iou"]
    assert (by_case["n"], by_case["n_undefined"]) == (5, 0)
    assert (by_case["mean"], by_case["sd"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    values = [number(row["iou"]) for row in read_csv(folder / "out/slices.csv") if row["method"] == "poor"]
    by_slice = summary["results"]["poor"]["slice"]["iou"]
    assert (by_slice["n"], by_slice["mean"]) == (10, pytest.approx(np.mean(values)))
    assert summary["results"]["good"]["lesion_free_case"]["specificity"]["n"] == 1
    assert summary["cases_without_lesion"] == ["case_5"]
    assert set(METRICS) | {"case", "slice", "lesion_free_case"} <= set(summary["definitions"])
    found = summary["detection"]
    assert (found["good"]["lesions"], found["good"]["lesion_sensitivity"]) == (10, 1.0)
    assert found["good"]["false_positives_per_case"] == 0 < found["poor"]["false_positives_per_case"]
    (row,) = [
        row
        for row in read_csv(folder / "out/comparison.csv")
        if (row["unit"], row["metric"]) == ("case", "specificity")
    ]
    assert (row["first"], row["second"], row["n"]) == ("good", "poor", "5") and number(row["mean_difference"]) < 0


def test_fifths_of_lesion_size(folder):
    assert evaluate(folder) == 0
    rows = [row for row in read_csv(folder / "out/sizes.csv") if row["method"] == "good"]
    by_unit = {unit: [row for row in rows if row["unit"] == unit] for unit in ("slice", "case", "lesion")}
    cases = [row for row in by_unit["case"] if row["metric"] == "dice"]
    assert [row["group"] for row in cases] == list("12345") and {row["n"] for row in cases} == {"1"}
    dices = [number(row["mean"]) for row in cases]
    assert dices == sorted(dices) and dices[0] < dices[-1]  # a shift by one voxel costs a small lesion more
    assert [row["metric"] for row in by_unit["lesion"]] == ["hit"] * len(by_unit["lesion"])
    assert sum(int(row["n"]) for row in by_unit["lesion"]) == 10
    # half of the slices have lesions of one size, so that there are fewer groups
    slices = [row for row in by_unit["slice"] if row["metric"] == "iou"]
    assert 1 < len(slices) < 5 and sum(int(row["n"]) for row in slices) == 10
    sizes = [number(row["mean_size"]) for row in slices]
    assert sizes == sorted(sizes)
    assert (folder / "out/lesion_size.png").stat().st_size > 10_000
    report = (folder / "out/report.md").read_text(encoding="utf-8")
    assert "lesion_size.png" in report and "Paired differences" in report


def test_a_component_must_lie_in_lesions_and_a_share_must_be_found(folder):
    for seed in range(6):
        write(np.ones(SHAPE), folder / f"all/case_{seed}.nii.gz")
    assert evaluate(folder, pred=("all",)) == 0
    detection = read_json(folder / "out/summary.json")["detection"]["all"]
    assert (detection["lesions_hit"], detection["false_positives_per_case"]) == (0, 1)
    assert evaluate(folder, "--component-overlap", "0", pred=("all",)) == 0
    assert read_json(folder / "out/summary.json")["detection"]["all"]["lesions_hit"] == 10
    assert evaluate(folder, "--hit-overlap", "0.9", pred=("good",)) == 0
    assert read_json(folder / "out/summary.json")["detection"]["good"]["lesions_hit"] == 0
    assert not (folder / "out/comparison.csv").exists()


def test_a_second_run_repeats_no_case_and_leaves_nothing_stale(folder):
    assert evaluate(folder) == 0
    records = sorted((folder / "out/cases").rglob("*.json"))
    times = [path.stat().st_mtime_ns for path in records]
    first = (folder / "out/cases.csv").read_bytes()
    write(np.zeros(SHAPE), folder / "poor/case_3.nii.gz")
    assert evaluate(folder) == 0
    assert sum(path.stat().st_mtime_ns != time for path, time in zip(records, times, strict=True)) == 1
    assert (folder / "out/cases.csv").read_bytes() != first
    assert evaluate(folder, "--slice-plane", "axial", pred=("good",)) == 0
    # rows of the array, from head to foot, are now the slices
    assert len(read_csv(folder / "out/slices.csv")) > 10
    assert not (folder / "out/comparison.csv").exists()


def test_failed_cases_are_named_and_the_others_go_on(folder, capsys):
    write(np.ones((6, 24, 23)), folder / "good/case_0.nii.gz")
    (folder / "bones/case_1.nii.gz").unlink()
    write(np.ones(SHAPE), folder / "bones/case_2.nii.gz")  # no label 2: no bone
    (folder / "good/case_3.nii.gz").unlink()
    write(np.ones(SHAPE), folder / "good/stranger.nii.gz")
    assert evaluate(folder, pred=("good",)) == 1
    failed = read_json(folder / "out/summary.json")["failed"]
    assert [key.split(": ")[1] for key in failed] == ["case_3", "case_1", "case_0", "case_2"]
    assert "same grid" in failed["good: case_0"] and "no bone mask" in failed["good: case_1"]
    assert "none of the labels [2]" in failed["good: case_2"] and "no file" in failed["good: case_3"]
    assert {row["case"] for row in read_csv(folder / "out/cases.csv")} == {"case_4", "case_5"}
    captured = capsys.readouterr()
    assert "stranger" in captured.out and "4 failed" in captured.err
    assert "case_2" in (folder / "out/report.md").read_text(encoding="utf-8")


def test_no_lesion_anywhere(folder):
    for seed in range(6):
        write(np.zeros(SHAPE), folder / f"ref/case_{seed}.nii.gz")
    assert evaluate(folder) == 0
    results = read_json(folder / "out/summary.json")["results"]
    assert list(results["good"]) == ["lesion_free_case", "any_case"]
    assert results["good"]["lesion_free_case"]["specificity"]["n"] == 6
    assert read_csv(folder / "out/sizes.csv") == []
    assert not (folder / "out/lesion_size.png").exists()


def test_when_no_case_can_be_evaluated(folder, capsys):
    assert evaluate(folder) == 0
    for seed in range(6):
        write(np.ones((6, 24, 23)), folder / f"good/case_{seed}.nii.gz")
    assert evaluate(folder, pred=("good",)) == 1
    assert not (folder / "out/cases.csv").exists() and not (folder / "out/report.md").exists()
    assert "No case could be evaluated" in capsys.readouterr().out


def test_slices_of_two_dimensional_images(tmp_path):
    for name, array in (("ref", np.eye(12)), ("good", np.eye(12)), ("bones", 2 * np.ones((12, 12)))):
        path = tmp_path / name / "slice.nii.gz"
        path.parent.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8)), str(path))
    assert evaluate(tmp_path, pred=("good",)) == 0
    (row,) = read_csv(tmp_path / "out/slices.csv")
    assert (number(row["dice"]), number(row["lesion_area_mm2"])) == (1, 12)


def test_what_is_refused(folder, capsys):
    assert evaluate(folder, "--hit-overlap", "1.5") == 2
    assert "--hit-overlap is 1.5" in capsys.readouterr().err
    assert evaluate(folder, "--names", "one") == 2
    (folder / "empty").mkdir()
    assert evaluate(folder, pred=("empty",)) == 2
    assert "has its files in" in capsys.readouterr().err
    assert not (folder / "out").exists()
