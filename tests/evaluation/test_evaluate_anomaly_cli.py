"""The command ``nnunet-anomaly evaluate-anomaly`` against scikit-learn over pooled voxels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from sklearn.metrics import average_precision_score, precision_recall_curve

from nnunet_anomaly.cli.main import main

SHAPE = (4, 12, 10)


def write(array: np.ndarray, path: Path, spacing_mm_xyz=(1.0, 1.0, 2.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm_xyz)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def folders(tmp_path) -> Path:
    """Four cases; the last has no lesion. Bone (labels 1 and 3) is the left part; two lesions lie partly outside."""
    for i in range(4):
        rng = np.random.default_rng(i)
        lesion = np.zeros(SHAPE, dtype=np.uint8)
        if i < 3:
            lesion[1:3, 2 + i : 6 + i, 3 : 6 + i] = 1
        labels = np.zeros(SHAPE, dtype=np.uint8)
        labels[:, :6, :7] = 1
        labels[:, 6:, :7] = 3
        labels[:, :, 9] = 2
        image = (100 + 20 * i + (30 * lesion + rng.normal(0, 25, SHAPE))).astype(np.int16)
        write(lesion, tmp_path / f"ref/case_{i}.nii.gz")
        write(labels, tmp_path / f"bone/case_{i}.nii.gz")
        write(image, tmp_path / f"images/case_{i}_0000.nii.gz")
        write((lesion + rng.normal(0, 0.4, SHAPE)).astype(np.float32), tmp_path / f"maps/case_{i}.nii.gz")
        # few distinct values, so that cases share thresholds
        coarse = np.round(lesion + rng.normal(0, 0.6, SHAPE)).astype(np.float32)
        write(coarse, tmp_path / f"coarse/case_{i}_0001.nii.gz")
    return tmp_path


def evaluate(folder: Path, *extra: str, pred: str = "maps") -> int:
    folders = ["-ref", str(folder / "ref"), "-pred", str(folder / pred), "-o", str(folder / "out")]
    return main(["evaluate-anomaly", *folders, "-np", "1", "--no-filters", *extra])


def summary(folder: Path) -> dict:
    return json.loads((folder / "out/summary.json").read_text(encoding="utf-8"))


def load(folder: Path, pattern: str) -> list[np.ndarray]:
    return [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / pattern.format(i)))) for i in range(4)]


def best_dice(truth: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(truth, scores)
    return np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-30))


def assert_pooled_and_per_case(found: dict, truths: list[np.ndarray], scores: list[np.ndarray]) -> None:
    truth, score = np.concatenate(truths), np.concatenate(scores)
    assert found["pooled"]["average_precision_pooled"] == pytest.approx(
        average_precision_score(truth, score), rel=1e-12
    )
    assert found["pooled"]["best_dice_pooled"] == pytest.approx(best_dice(truth, score), rel=1e-12)
    assert found["pooled"]["prevalence"] == pytest.approx(truth.mean())
    assert found["pooled"]["n_cases"] == 4
    per_case = [average_precision_score(*pair) for pair in zip(truths[:3], scores[:3], strict=True)]
    assert found["per_case"]["average_precision"]["mean"] == pytest.approx(np.mean(per_case), rel=1e-12)
    assert found["per_case"]["average_precision"]["sd"] == pytest.approx(np.std(per_case, ddof=1))
    assert found["per_case"]["average_precision"]["n_undefined"] == 1
    dice = [best_dice(*pair) for pair in zip(truths[:3], scores[:3], strict=True)]
    assert found["per_case"]["best_dice"]["mean"] == pytest.approx(np.mean(dice), rel=1e-12)


@pytest.mark.parametrize("bone", [False, True])
def test_by_histogram_the_exact_figures_lie_in_the_intervals(folders, capsys, bone):
    extra = ("-m", str(folders / "bone"), "--mask-labels", "1", "3") if bone else ()
    assert evaluate(folders, *extra) == 0
    exact, rows = summary(folders)["results"]["maps"], cases_of(folders)
    assert evaluate(folders, *extra, "--histogram") == 0  # and takes nothing that the exact run left for finished
    found = summary(folders)
    pooled = found["results"]["maps"]["pooled"]
    low, high = (pooled[f"average_precision_{end}_pooled"] for end in ("low", "high"))
    assert low <= exact["pooled"]["average_precision_pooled"] <= high
    assert low <= pooled["average_precision_pooled"] <= high and high - low < 0.02
    assert pooled["best_dice_pooled"] <= exact["pooled"]["best_dice_pooled"] <= pooled["best_dice_high_pooled"]
    assert pooled["prevalence"] == exact["pooled"]["prevalence"] and pooled["n_cases"] == 4
    for ours, theirs in zip(cases_of(folders), rows, strict=True):
        assert [ours[name] for name in ("lesion_voxels", "healthy_voxels")] == [
            theirs[name] for name in ("lesion_voxels", "healthy_voxels")
        ]
        if theirs["average_precision"]:
            assert float(ours["average_precision_low"]) <= float(theirs["average_precision"]) + 1e-9
            assert float(theirs["average_precision"]) <= float(ours["average_precision_high"]) + 1e-9
    assert "16 bits" in found["definitions"]["histogram"]
    assert "the exact pooled values lie in" in capsys.readouterr().out
    first = (folders / "out/summary.json").read_bytes()
    assert evaluate(folders, *extra, "--histogram", "-np", "2") == 0
    assert (folders / "out/summary.json").read_bytes() == first


def cases_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "out/cases.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_whole_images(folders, capsys):
    assert evaluate(folders) == 0
    truths = [array.ravel() > 0 for array in load(folders, "ref/case_{}.nii.gz")]
    assert_pooled_and_per_case(
        summary(folders)["results"]["maps"], truths, [a.ravel() for a in load(folders, "maps/case_{}.nii.gz")]
    )
    assert "average precision, pooled over voxels of all cases" in capsys.readouterr().out
    assert not list((folders / "out").glob(".partial_*"))


def test_channel_with_shared_thresholds(folders):
    assert evaluate(folders, "--channel", "1", "--names", "error", pred="coarse") == 0
    truths = [array.ravel() > 0 for array in load(folders, "ref/case_{}.nii.gz")]
    scores = [a.ravel() for a in load(folders, "coarse/case_{}_0001.nii.gz")]
    assert_pooled_and_per_case(summary(folders)["results"]["error"], truths, scores)


def test_inside_bone_beside_the_raw_intensity(folders):
    extra = ("-m", str(folders / "bone"), "--mask-labels", "1", "3", "--baseline", str(folders / "images"))
    assert evaluate(folders, *extra, "--baseline-dark") == 0
    inside = [np.isin(array, (1, 3)) for array in load(folders, "bone/case_{}.nii.gz")]
    lesions = load(folders, "ref/case_{}.nii.gz")
    truths = [lesion[bone] > 0 for lesion, bone in zip(lesions, inside, strict=True)]
    maps = [a[bone] for a, bone in zip(load(folders, "maps/case_{}.nii.gz"), inside, strict=True)]
    images = [
        a[bone].astype(float) for a, bone in zip(load(folders, "images/case_{}_0000.nii.gz"), inside, strict=True)
    ]
    results = summary(folders)["results"]
    assert_pooled_and_per_case(results["maps"], truths, maps)
    assert_pooled_and_per_case(results["raw_intensity"], truths, [(a - a.mean()) / a.std() for a in images])
    dark = [(a.mean() - a) / a.std() for a in images]
    assert_pooled_and_per_case(results["raw_intensity_dark"], truths, dark)
    with open(folders / "out/cases.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 3 * 4
    assert int(rows[2]["lesion_voxels_outside_mask"]) == lesions[2].sum() - truths[2].sum() > 0
    assert (rows[3]["lesion_voxels"], rows[3]["average_precision"]) == ("0", "")


def test_two_processes_and_a_second_run_give_the_same(folders):
    assert evaluate(folders) == 0
    first = (folders / "out/summary.json").read_bytes()
    records = {path: path.stat().st_mtime_ns for path in (folders / "out/cases").rglob("*.*")}
    assert evaluate(folders) == 0
    assert records == {path: path.stat().st_mtime_ns for path in records}
    assert (folders / "out/summary.json").read_bytes() == first
    for path in records:
        path.unlink()
    assert evaluate(folders, "-np", "2") == 0
    assert (folders / "out/summary.json").read_bytes() == first


def test_bad_cases_are_named_and_left_out_of_the_pool(folders):
    (folders / "maps/case_0.nii.gz").unlink()
    write(np.zeros(SHAPE, dtype=np.float32), folders / "maps/case_1.nii.gz", (1.0, 1.0, 1.0))
    broken = np.zeros(SHAPE, dtype=np.float32)
    broken[0, 0, 0] = np.nan
    (folders / "maps/case_3.nii.gz").unlink()
    write(broken, folders / "maps/case_3.nrrd")
    assert evaluate(folders) == 1
    found = summary(folders)
    assert set(found["failed"]) == {"maps: case_0", "maps: case_1", "maps: case_3"}
    assert "spacing" in found["failed"]["maps: case_1"]
    assert "case_3.nrrd: The anomaly map holds NaN" in found["failed"]["maps: case_3"]
    truth, score = (load(folders, f"{name}/case_2.nii.gz")[0].ravel() for name in ("ref", "maps"))
    assert found["results"]["maps"]["pooled"]["n_cases"] == 1
    expected = average_precision_score(truth > 0, score)
    assert found["results"]["maps"]["pooled"]["average_precision_pooled"] == pytest.approx(expected)


def test_masks_missing_or_empty_are_named(folders):
    (folders / "bone/case_0.nii.gz").unlink()
    write(np.full(SHAPE, 2, dtype=np.uint8), folders / "bone/case_1.nii.gz")
    assert evaluate(folders, "-m", str(folders / "bone"), "--mask-labels", "1", "3") == 1
    failed = summary(folders)["failed"]
    assert "no mask" in failed["maps: case_0"]
    assert "none of the labels [1, 3]" in failed["maps: case_1"]
    assert len(failed) == 2


def test_without_a_mask_for_any_case_the_baseline_is_named_too(folders, capsys):
    for i in range(4):
        write(np.full(SHAPE, 2, dtype=np.uint8), folders / f"bone/case_{i}.nii.gz")
    extra = ("-m", str(folders / "bone"), "--mask-labels", "1", "--baseline", str(folders / "images"))
    assert evaluate(folders, *extra) == 1
    assert "raw_intensity: case_3: " in capsys.readouterr().err


def test_no_lesion_anywhere(folders):
    for i in range(3):
        (folders / f"ref/case_{i}.nii.gz").unlink()
    assert evaluate(folders) == 0
    pooled = summary(folders)["results"]["maps"]["pooled"]
    assert (pooled["average_precision_pooled"], pooled["best_dice_pooled"], pooled["prevalence"]) == (None, None, 0)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--mask-labels", "1"), "-m"),
        (("--channel", "5"), "No case of"),
        (("--names", "raw_intensity", "--baseline", "."), "raw_intensity"),
        (("-m", "nowhere"), "nowhere is not a folder"),
    ],
)
def test_wrong_arguments(folders, capsys, extra, message):
    assert evaluate(folders, *extra) == 2
    assert message in capsys.readouterr().err
