"""``nnunet-anomaly evaluate-anomaly``: thresholds, lesions, slices, filters, memory and pictures, on small folders."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from nnunet_anomaly.cli.main import main

SHAPE = (8, 16, 14)
SPACING_MM_XYZ = (1.0, 1.0, 2.0)


def write(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_MM_XYZ)
    sitk.WriteImage(image, str(path))


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture
def folders(tmp_path) -> Path:
    """Five test and three validation cases with two lesions each, but for the last test case, which has none."""
    for prefix, number in (("test", 5), ("val", 3)):
        for i in range(number):
            rng = np.random.default_rng(i + 100 * (prefix == "val"))
            brain = np.zeros(SHAPE, np.uint8)
            brain[1:7, 2:14, 1:13] = 1
            lesion = np.zeros(SHAPE, np.uint8)
            if (prefix, i) != ("test", 4):
                lesion[2:5, 3 : 6 + i, 3:6] = 1
                lesion[6:8, 11:13, 9 : 11 + i] = 1  # reaches out of the brain
            image = (100 * brain + rng.normal(0, 5, SHAPE)).astype(np.float32)
            residual = np.clip(0.25 * lesion + rng.gamma(2, 0.08, SHAPE), 0, 1).astype(np.float32)
            name = f"{prefix}/{{}}/{prefix}_{i}{{}}.nii.gz"
            for array, parts in (
                (lesion, ("ref", "")),
                (brain, ("brain", "")),
                (residual, ("maps", "")),
                (image, ("images", "_0000")),
                (image + 1, ("outputs", "")),
            ):
                write(array, tmp_path / name.format(*parts))
    return tmp_path


def evaluate(folder: Path, *extra: str, out: str = "out", maps: str = "maps") -> int:
    """Filters stand beside by default, which is tested by itself; most tests are of the maps as they are."""
    filters = () if "--filters" in extra or "--default" in extra else ("--no-filters",)
    extra = (*filters, *(word for word in extra if word != "--default"))
    test = folder / "test"
    command = ["evaluate-anomaly", "-ref", str(test / "ref"), "-pred", str(test / maps), "-m", str(test / "brain")]
    return main([*command, "-o", str(folder / out), "-np", "1", *extra])


def validation(folder: Path, maps: str = "maps") -> list[str]:
    found = {"ref": "ref", "pred": maps, "mask": "brain"}
    return [text for key, name in found.items() for text in (f"--validation-{key}", str(folder / "val" / name))]


def summary(folder: Path, out: str = "out") -> dict:
    return json.loads((folder / out / "summary.json").read_text(encoding="utf-8"))


def table(folder: Path, name: str, out: str = "out") -> list[dict[str, str]]:
    with open(folder / out / name, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def load(folder: Path, prefix: str, number: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Scores, lesion and brain of every case."""
    return [
        tuple(read(folder / f"{prefix}/{name}/{prefix}_{i}.nii.gz") for name in ("maps", "ref", "brain"))
        for i in range(number)
    ]


def dice_at(threshold: float, cases) -> float:
    counts = np.zeros(3)
    for scores, lesion, brain in cases:
        called, truth = (scores >= threshold) & (brain > 0), (lesion > 0) & (brain > 0)
        counts += [np.count_nonzero(called & truth), called.sum(), truth.sum()]
    return float(2 * counts[0] / (counts[1] + counts[2]))


def test_thresholds_are_searched_on_validation_cases_alone(folders, capsys):
    assert evaluate(folders, *validation(folders)) == 0
    cases, others = load(folders, "test", 5), load(folders, "val", 3)
    found = summary(folders)["results"]["maps"]["thresholds"]
    assert list(found) == ["validation_greedy", "validation_exact", "oracle"]
    candidates = np.unique(np.concatenate([scores[brain > 0] for scores, _, brain in others])).astype(float)
    best = max(dice_at(value, others) for value in candidates)
    assert found["validation_exact"]["dice_of_search"] == pytest.approx(best, rel=1e-12)
    assert dice_at(found["validation_exact"]["threshold"], others) == pytest.approx(best, rel=1e-12)
    greedy = found["validation_greedy"]
    assert greedy["threshold"] * 2048 == round(greedy["threshold"] * 2048)
    assert greedy["dice_of_search"] == pytest.approx(dice_at(greedy["threshold"], others), rel=1e-12)
    for kind, row in found.items():
        assert row["dice_set"] == pytest.approx(dice_at(row["threshold"], cases), rel=1e-12), kind
        by_subject = [dice_at(row["threshold"], [case]) for case in cases[:4]]  # the last has no lesion
        assert row["dice_subject_mean"] == pytest.approx(np.mean(by_subject), rel=1e-12)
        assert row["dice_subject_sd"] == pytest.approx(np.std(by_subject, ddof=1), rel=1e-12)
        assert (row["dice_subject_n"], row["dice_subject_n_undefined"]) == (4, 0)
        called_mm3 = 2 * np.count_nonzero((cases[4][0] >= row["threshold"]) & (cases[4][2] > 0))
        assert (row["lesion_free_cases"], row["lesion_free_called_share"]) == (1, called_mm3 > 0)
        assert row["lesion_free_called_mm3_mean"] == called_mm3
        *in_table, last = table(folders, "cases.csv")
        assert [float(row[f"dice_{kind}"]) for row in in_table] == pytest.approx(by_subject)
        assert (last[f"dice_{kind}"], float(last[f"false_positives_mm3_{kind}"])) == ("", called_mm3)
    assert found["oracle"]["dice_set"] == summary(folders)["results"]["maps"]["pooled"]["best_dice_pooled"]
    assert all(found["oracle"]["dice_set"] >= row["dice_set"] for row in found.values())
    assert [row["kind"] for row in table(folders, "thresholds.csv")] == list(found)
    printed = capsys.readouterr().out
    assert "validation, greedy" in printed and "no figure by subject has them: test_4" in printed
    # the same thresholds again from the file, without the validation cases
    assert evaluate(folders, "--threshold-file", str(folders / "out/thresholds.json"), out="again") == 0
    assert summary(folders, "again")["results"] == summary(folders)["results"]


def test_thresholds_of_other_conditions_are_refused_by_name(folders, capsys):
    searched = (*validation(folders), "--filters", "--erode-mm", "0", "--median-radius-mm", "1")
    baselines = [f"--{prefix}baseline" for prefix in ("", "validation-")]
    images = (baselines[0], str(folders / "test/images"), baselines[1], str(folders / "val/images"))
    assert evaluate(folders, *searched, *images) == 0
    given = ("--threshold-file", str(folders / "out/thresholds.json"))
    same, out = ("--filters", "--erode-mm", "0", "--median-radius-mm", "1"), "again"
    assert evaluate(folders, *given, *same, *images[:2], out=out) == 0
    assert evaluate(folders, *given, "--filters", "--erode-mm", "1", "--median-radius-mm", "1", out=out) == 2
    assert "'maps_filtered'" in (said := capsys.readouterr().err) and "filters was" in said and "0.0" in said
    assert evaluate(folders, *given, "--mask-labels", "1", out=out) == 2
    assert "mask_labels was [], is [1]" in capsys.readouterr().err
    test = [str(folders / "test" / name) for name in ("ref", "maps")]
    command = ["evaluate-anomaly", "-ref", test[0], "-pred", test[1], "-o", str(folders / out), "-np", "1", *given]
    assert main(command) == 2
    assert "mask was True, is False" in capsys.readouterr().err
    content = json.loads((folders / "out/thresholds.json").read_text(encoding="utf-8"))
    content["methods"]["raw_intensity"]["conditions"]["baseline_sign"] = -1
    (folders / "dark.json").write_text(json.dumps(content), encoding="utf-8")
    assert evaluate(folders, "--threshold-file", str(folders / "dark.json"), *images[:2], out=out) == 2
    assert "baseline_sign was -1, is 1" in capsys.readouterr().err
    for i in range(5):
        write(read(folders / f"test/maps/test_{i}.nii.gz"), folders / f"test/maps/test_{i}_0001.nii.gz")
    assert evaluate(folders, *given, "--channel", "1", out=out) == 2
    assert "channel was None, is 1" in capsys.readouterr().err


def test_without_validation_cases_only_the_oracle_is_there(folders):
    assert evaluate(folders) == 0
    assert list(summary(folders)["results"]["maps"]["thresholds"]) == ["oracle"]
    assert summary(folders)["cases_without_lesion"] == ["test_4"]
    assert not (folders / "out/thresholds.json").exists()


def test_areas_slices_and_lesions(folders):
    assert evaluate(folders, "--lesion-size-edges-mm3", "30") == 0
    cases = load(folders, "test", 5)
    found = summary(folders)["results"]["maps"]
    truth = np.concatenate([(lesion > 0)[brain > 0] for _, lesion, brain in cases])
    scores = np.concatenate([scores[brain > 0] for scores, _, brain in cases])
    assert found["pooled"]["auroc_pooled"] == pytest.approx(roc_auc_score(truth, scores), rel=1e-12)
    slices = [
        ((lesion[z] > 0).any(), scores[z][brain[z] > 0].mean(dtype=float))
        for scores, lesion, brain in cases
        for z in range(SHAPE[0])
        if brain[z].any()
    ]
    expected = average_precision_score(*map(np.array, zip(*slices, strict=True)))
    assert found["pooled"]["average_precision_slices"] == pytest.approx(expected, rel=1e-9)
    assert found["pooled"]["slices"] == len(slices) == 5 * 6
    lesions = table(folders, "lesions.csv")
    assert len(lesions) == 8 and sum(float(row["volume_mm3"]) for row in lesions) == 2 * truth.sum()
    threshold = found["thresholds"]["oracle"]["threshold"]
    hits, alarms = [], 0
    for scores, lesion, brain in cases:
        called = (scores >= threshold) & (brain > 0)
        components, number = ndimage.label(called, np.ones((3, 3, 3)))
        shares = ndimage.mean(lesion > 0, components, np.arange(1, number + 1))
        alarms += np.count_nonzero(shares < 0.1)
        hitting = np.isin(components, 1 + np.flatnonzero(shares >= 0.1))
        regions, number = ndimage.label(lesion, np.ones((3, 3, 3)))
        hits += [hitting[regions == region].any() for region in range(1, number + 1)]
    row = found["thresholds"]["oracle"]
    assert row["lesion_sensitivity"] == np.mean(hits)
    assert row["false_positives_per_case"] == alarms / 5
    assert list(found["froc_sensitivity"]) == ["all sizes", "up to 30 mm3", "above 30 mm3"]
    curve = table(folders, "froc.csv")
    assert {row["size_group"] for row in curve} == set(found["froc_sensitivity"])
    values = [float(row["threshold"]) for row in curve if row["size_group"] == "all sizes"]
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values) > 5


def test_maps_that_tell_nothing_find_no_lesions(tmp_path):
    """Random, all zero, and one that shows the lesions: what has a component everywhere must not look good."""
    grid = np.ogrid[:20, :28, :28]
    for i in range(3):
        rng = np.random.default_rng(i)
        lesion = np.zeros((20, 28, 28), np.uint8)
        for centre in ((5, 6, 6), (14, 20, 8), (9, 15, 21)):
            lesion[sum((axis - at) ** 2 for axis, at in zip(grid, centre, strict=True)) <= 9] = 1
        noise = rng.random(lesion.shape, np.float32)
        maps = {"noise": noise, "zero": noise * 0, "shows": noise / 2 + 0.6 * lesion * rng.random(lesion.shape)}
        for name, array in {"ref": lesion, **maps}.items():
            write(array.astype(np.uint8 if name == "ref" else np.float32), tmp_path / name / f"case_{i}.nii.gz")
    predictions = [text for name in maps for text in ("-pred", str(tmp_path / name))]
    command = ["evaluate-anomaly", "-ref", str(tmp_path / "ref"), *predictions, "-o", str(tmp_path / "out"), "-np", "1"]
    assert main(command) == 0
    results = summary(tmp_path)["results"]
    at_two = {name: found["froc_sensitivity"]["all sizes"]["2"] for name, found in results.items()}
    assert at_two["noise"] < 0.35 and at_two["zero"] == 0 and at_two["shows"] == 1
    oracle = results["zero"]["thresholds"]["oracle"]
    assert (oracle["lesion_sensitivity"], oracle["false_positives_per_case"]) == (0, 1)
    assert {row["method"] for row in table(tmp_path, "froc.csv")} == {"noise", "shows"}
    definitions = summary(tmp_path)["definitions"]
    assert "at least 0.1 of its own voxels" in definitions["component"] and "0.01" in definitions["froc"]
    # with any voxel as enough, one component hits every lesion
    assert main([*command, "--component-overlap", "0"]) == 0
    assert summary(tmp_path)["results"]["zero"]["thresholds"]["oracle"]["lesion_sensitivity"] == 1
    assert "any of its own voxels" in summary(tmp_path)["definitions"]["component"]


def test_sagittal_slices_and_a_hit_by_a_share(folders):
    assert evaluate(folders, "--slice-plane", "sagittal", "--hit-overlap", "1") == 0
    found = summary(folders)
    assert found["results"]["maps"]["pooled"]["slices"] == 5 * 12
    assert found["results"]["maps"]["thresholds"]["oracle"]["lesion_sensitivity"] < 1
    assert "1 of its voxels" in found["definitions"]["lesion_sensitivity"]


def test_filters_are_on_by_default_and_refuse_maps_with_negative_scores(folders, capsys):
    for i in range(5):
        path = folders / f"test/maps/test_{i}.nii.gz"
        write(np.abs(read(path)), path)
    assert evaluate(folders, "--default") == 0
    assert list(summary(folders)["results"]) == ["maps", "maps_filtered"]
    negative = -read(folders / "test/maps/test_0.nii.gz")
    write(negative, folders / "test/maps/test_0.nii.gz")
    capsys.readouterr()
    assert evaluate(folders, "--default") == 1
    assert "maps_filtered: test_0" in (said := capsys.readouterr().err) and "--no-filters" in said


def test_filters_stand_beside_the_maps_as_they_are(folders):
    extra = ("--filters", "--erode-mm", "0", "--median-radius-mm", "1", *validation(folders))
    assert evaluate(folders, *extra) == 0
    results = summary(folders)["results"]
    assert list(results) == ["maps", "maps_filtered"]
    scores, brain = (read(folders / f"test/{name}/test_0.nii.gz") for name in ("maps", "brain"))
    expected = ndimage.median_filter(np.where(brain > 0, scores, 0), (1, 3, 3), mode="constant") * brain
    np.testing.assert_array_equal(read(folders / "out/filtered/maps/test_0.nii.gz"), expected)
    filtered, plain = (results[name]["pooled"]["average_precision_pooled"] for name in ("maps_filtered", "maps"))
    assert filtered > plain + 0.02
    assert results["maps_filtered"]["thresholds"]["validation_greedy"]["dice_set"] > 0


def test_what_does_not_fit_is_pooled_by_histogram_and_it_is_said(folders, capsys):
    assert evaluate(folders, *validation(folders), out="exact") == 0
    assert "Pooled exactly, by sorting" in capsys.readouterr().out
    assert evaluate(folders, *validation(folders), "--memory-gb", "1e-9") == 0
    printed = capsys.readouterr().out
    assert (
        "is more than --memory-gb 1e-09" in printed
        and "a smaller -np takes less" in printed
        and "the exact pooled values lie in" in printed
    )
    exact, found = (summary(folders, out) for out in ("exact", "out"))
    assert (exact["settings"]["pooled_by"], found["settings"]["pooled_by"]) == ("sorting", "histogram")
    ours, theirs = (content["results"]["maps"]["pooled"] for content in (found, exact))
    for name in ("average_precision", "auroc", "au_pro"):
        low, high = (ours[f"{name}_{end}_pooled"] for end in ("low", "high"))
        assert low <= theirs[f"{name}_pooled"] <= high and high - low < 0.03
    assert found["results"]["maps"]["per_case"] == exact["results"]["maps"]["per_case"]
    kinds = (content["results"]["maps"]["thresholds"]["validation_greedy"] for content in (found, exact))
    first, second = kinds
    assert first == second  # levels are counted exactly in any case


def test_pictures_and_the_training_set_size(folders):
    write(read(folders / "test/maps/test_0.nii.gz") * 0, folders / "test/less/test_0.nii.gz")
    for i in range(1, 5):
        write(read(folders / f"test/maps/test_{i}.nii.gz") ** 2, folders / f"test/less/test_{i}.nii.gz")
    outputs = str(folders / "test/outputs")
    extra = ["-pred", str(folders / "test/less"), "--training-sizes", "100", "20", "--reconstructions", outputs]
    extra += ["--reconstructions", outputs, "--baseline", str(folders / "test/images")]
    assert evaluate(folders, *extra) == 0
    names = {path.relative_to(folders / "out").as_posix() for path in (folders / "out").rglob("*.png")}
    expected = {"precision_recall", "froc", "dice_over_lesion_size", "training_size", "pictures/maps", "pictures/less"}
    assert expected <= {name.removesuffix(".png") for name in names}
    assert "pictures/raw_intensity.png" not in names
    fit = summary(folders)["results"]["maps"]["dice_over_lesion_volume_mm3"]
    assert fit["kind"] == "oracle" and len(fit["coefficients"]) == 4


def test_nothing_is_repeated(folders):
    extra = (*validation(folders), "--filters")
    assert evaluate(folders, *extra) == 0
    records = {path: path.stat().st_mtime_ns for path in (folders / "out").rglob("*.npz")}
    assert evaluate(folders, *extra) == 0
    assert records == {path: path.stat().st_mtime_ns for path in records} and len(records) == 2 * (5 + 5 + 3)


def test_what_an_earlier_run_left_and_this_one_does_not_write_is_removed(folders):
    out = folders / "out"
    images = ("--images", str(folders / "test/images"))
    filters = ("--filters", "--erode-mm", "0", "--training-sizes", "9", "--lesion-size-edges-mm3", "10", "20", "30")
    assert evaluate(folders, *validation(folders), *filters, *images) == 0
    stale = ["pictures/maps_filtered.png", "froc_size_4.png", "training_size.png"]
    stale += ["thresholds.json", "filtered/maps/test_0.nii.gz", "validation/filtered/maps/val_0.nii.gz"]
    assert all((out / name).is_file() for name in stale)
    for name in ("notes.txt", "pictures/mine.png", "filtered/maps/mine.txt", "froc_size_x.png"):
        (out / name).write_text("not ours", encoding="utf-8")
    # a case that is not evaluated any more has no filtered map either, and is not named as without a reference
    (folders / "test/ref/test_0.nii.gz").rename(folders / "test/elsewhere.nii.gz")
    assert evaluate(folders, "--filters", "--erode-mm", "0", "--threshold-file", str(out / "thresholds.json")) == 0
    assert (out / "thresholds.json").is_file()
    assert not (out / "filtered/maps/test_0.nii.gz").exists() and (out / "filtered/maps/test_1.nii.gz").is_file()
    assert summary(folders)["predictions_without_reference"] == {"maps": ["test_0"], "maps_filtered": []}
    assert evaluate(folders, *images) == 0
    assert not [name for name in stale if (out / name).exists()]
    theirs = {path.name for path in out.rglob("*") if path.is_file() and path.read_bytes() == b"not ours"}
    assert theirs == {"notes.txt", "mine.png", "mine.txt", "froc_size_x.png"}
    assert (out / "pictures/maps.png").is_file() and list((out / "validation/cases").rglob("*.npz"))
    # nor are there tables of an earlier run where none of this one's cases can be evaluated
    for i in range(1, 5):
        write(np.full(SHAPE, np.nan, np.float32), folders / f"test/maps/test_{i}.nii.gz")
    assert evaluate(folders) == 1
    assert not (out / "summary.json").exists() and not (out / "pictures/maps.png").exists()


def test_two_processes_give_the_same(folders):
    assert evaluate(folders, out="one") == 0
    assert evaluate(folders, "-np", "2") == 0
    assert (folders / "out/summary.json").read_bytes() == (folders / "one/summary.json").read_bytes()


def test_validation_cases_without_a_lesion_are_an_error(folders, capsys):
    for i in range(3):
        write(np.zeros(SHAPE, np.uint8), folders / f"val/ref/val_{i}.nii.gz")
    assert evaluate(folders, *validation(folders)) == 2
    assert "The validation cases have no lesion voxel" in capsys.readouterr().err
    assert not (folders / "out/summary.json").exists()


@pytest.mark.parametrize("searched", [True, False])
def test_a_method_whose_cases_all_fail_is_left_out_and_its_cases_are_named(folders, capsys, searched):
    bad = np.full(SHAPE, np.nan, np.float32)
    for i in range(5):
        write(bad, folders / f"test/bad/test_{i}.nii.gz")
    for i in range(3):
        write(bad, folders / f"val/bad/val_{i}.nii.gz")
    extra = ["--images", str(folders / "test/images"), "--training-sizes", "10", "20", "--names", "bad", "good"]
    if searched:
        extra += [*validation(folders, "bad"), "--validation-pred", str(folders / "val/maps")]
    # the bad one first, so that what belongs to the other is not found by its place
    assert evaluate(folders, "-pred", str(folders / "test/maps"), *extra, maps="bad") == 1
    error = capsys.readouterr().err
    assert all(f"bad: test_{i}: " in error for i in range(5)) and ("bad: val_2: " in error) == searched
    found = summary(folders)
    assert list(found["results"]) == ["good"] and len(found["failed"]) == 5
    assert {row["method"] for row in table(folders, "cases.csv")} == {"good"}
    assert (folders / "out/pictures/good.png").is_file() and not (folders / "out/pictures/bad.png").exists()
    if searched:
        assert list(json.loads((folders / "out/thresholds.json").read_text(encoding="utf-8"))["methods"]) == ["good"]


def test_validation_maps_that_are_all_bad_leave_the_oracle_alone_to_their_method(folders, capsys):
    for i in range(3):
        write(np.full(SHAPE, np.nan, np.float32), folders / f"val/bad/val_{i}.nii.gz")
    extra = (
        "-pred",
        str(folders / "test/maps"),
        "--names",
        "first",
        "second",
        "--images",
        str(folders / "test/images"),
    )
    assert evaluate(folders, *extra, *validation(folders), "--validation-pred", str(folders / "val/bad")) == 1
    assert "second: val_0: " in capsys.readouterr().err
    found = summary(folders)["results"]
    assert len(found["first"]["thresholds"]) == 3 and list(found["second"]["thresholds"]) == ["oracle"]
    assert evaluate(folders, *validation(folders, "bad")) == 2
    assert "maps: val_1: " in (error := capsys.readouterr().err) and "none of the validation cases" in error


def test_no_case_at_all_is_named_and_writes_no_table(folders, capsys):
    for i in range(5):
        write(np.full(SHAPE, np.nan, np.float32), folders / f"test/bad/test_{i}.nii.gz")
    assert evaluate(folders, maps="bad") == 1
    printed = capsys.readouterr()
    assert "No case could be evaluated" in printed.out and "bad: test_4: " in printed.err
    assert not (folders / "out/summary.json").exists()


def test_a_search_that_finds_nothing_says_so(folders, capsys):
    assert evaluate(folders, *validation(folders)) == 0
    assert "Warning" not in capsys.readouterr().err and summary(folders)["warnings"] == []
    for i in range(3):
        write(np.zeros(SHAPE, np.float32), folders / f"val/zero/val_{i}.nii.gz")
    assert evaluate(folders, *validation(folders, "zero")) == 0
    warning = "validation_greedy: the best Dice of the search is 0, so that the threshold 0.75 says nothing."
    assert f"Warning: maps, {warning}" in capsys.readouterr().err
    assert summary(folders)["warnings"] == [f"maps, {warning}"]
    found = json.loads((folders / "out/thresholds.json").read_text(encoding="utf-8"))["methods"]["maps"]
    assert found["warnings"] == [warning]
    assert evaluate(folders, "--threshold-file", str(folders / "out/thresholds.json")) == 0
    assert f"Warning: maps, {warning}" in capsys.readouterr().err


def test_a_threshold_file_of_other_methods_or_of_an_earlier_version_is_named(folders, capsys):
    for i in range(5):
        path = folders / f"test/maps/test_{i}.nii.gz"
        write(np.abs(read(path)), path)
    assert evaluate(folders, *validation(folders)) == 0
    file = folders / "thresholds.json"
    content = json.loads((folders / "out/thresholds.json").read_text(encoding="utf-8"))
    file.write_text(json.dumps(content))
    assert evaluate(folders, "--default", "--threshold-file", str(file)) == 2
    assert "no thresholds for 'maps_filtered', only for maps; give --no-filters" in capsys.readouterr().err
    del content["methods"]["maps"]["conditions"]
    file.write_text(json.dumps(content))
    assert evaluate(folders, "--threshold-file", str(file)) == 2
    assert "does not say what its thresholds hold for" in capsys.readouterr().err


def test_a_threshold_file_that_was_changed_is_named(folders, capsys):
    file = folders / "changed.json"
    conditions = {"mask": True, "mask_labels": [], "channel": None, "baseline_sign": 0, "filters": None}
    found = {"cases": [], "conditions": conditions, "thresholds": {"validation_exact": {"value": 0.5, "dice": 0.5}}}
    file.write_text(json.dumps({"methods": {"maps": found}}))
    assert evaluate(folders, "--threshold-file", str(file)) == 0
    for change in (
        {"cases": None},
        {"cases": [1]},
        {"conditions": []},
        {"thresholds": [0.5]},
        {"thresholds": {"validation_exact": 0.5}},
        {"thresholds": {"validation_exact": {"value": 0.5}}},
        {"thresholds": {"validation_exact": {"value": "0.5", "dice": 0.5}}},
        {"thresholds": {"validation_exact": {"value": math.nan, "dice": 0.5}}},
        {"thresholds": {"oracle": {"value": 0.5, "dice": 0.5}}},
    ):
        file.write_text(json.dumps({"methods": {"maps": found | change}}))
        assert evaluate(folders, "--threshold-file", str(file)) == 2, change
        assert "changed.json is no thresholds.json that evaluate-anomaly wrote" in capsys.readouterr().err


def test_a_summary_is_no_threshold_file(folders, capsys):
    assert evaluate(folders) == 0
    assert evaluate(folders, "--threshold-file", str(folders / "out/summary.json"), out="again") == 2
    assert "summary.json is no thresholds.json that evaluate-anomaly wrote" in capsys.readouterr().err


def test_what_is_refused_leaves_the_filtered_maps_of_an_earlier_run(folders, capsys):
    searched = (*validation(folders), "--filters", "--median-radius-mm", "1")
    assert evaluate(folders, *searched, "--erode-mm", "0") == 0
    maps = [folders / f"out/{part}filtered/maps" for part in ("", "validation/")]
    before = {path: path.read_bytes() for folder in maps for path in folder.glob("*.*")}
    other = ("--filters", "--erode-mm", "1", "--median-radius-mm", "1")
    assert evaluate(folders, *other, "--threshold-file", str(folders / "out/thresholds.json")) == 2
    assert "filters was" in capsys.readouterr().err
    for name in ("ref", "maps", "brain"):
        write(read(folders / f"test/{name}/test_1.nii.gz"), folders / f"val/{name}/test_1.nii.gz")
    assert evaluate(folders, *validation(folders), *other) == 2
    assert "searched on cases that they are used on" in capsys.readouterr().err
    assert evaluate(folders, *other, "--channel", "7") == 2
    assert "No case of" in capsys.readouterr().err
    assert len(before) == 5 + 3 + 2
    assert before == {path: path.read_bytes() for folder in maps for path in folder.glob("*.*")}


def test_a_median_that_reaches_no_voxel_is_said_once(folders, capsys):
    extra = (*validation(folders), "--filters", "-pred", str(folders / "test/maps"), "--validation-pred")
    extra = (*extra, str(folders / "val/maps"), "--names", "one", "two", "--erode-mm", "0")
    assert evaluate(folders, *extra, "--median-radius-mm", "1.5") == 0
    said = "the median filters nothing along z, where voxels are 2 mm and --median-radius-mm is 1.5."
    assert capsys.readouterr().err.count(said) == 1
    found = summary(folders)
    assert [said in warning for warning in found["warnings"]] == [True]
    assert found["settings"]["median_reaches_voxels"] == [[1, 1, 0]]
    assert found["settings"]["filters"]["median_radius_mm"] == 1.5
    for radius_mm, reach in (("2", [2, 2, 1]), ("0", [0, 0, 0])):  # enough, and none as was asked for
        assert evaluate(folders, *extra, "--median-radius-mm", radius_mm) == 0
        assert "the median" not in capsys.readouterr().err
        assert summary(folders)["settings"]["median_reaches_voxels"] == [reach]


def test_a_case_that_cannot_be_filtered_is_named_for_both(folders, capsys):
    (folders / "test/maps/test_0.nii.gz").unlink()
    (folders / "test/brain/test_1.nii.gz").unlink()
    assert evaluate(folders, "--filters") == 1
    failed = summary(folders)["failed"]
    assert set(failed) == {f"{method}: test_{i}" for method in ("maps", "maps_filtered") for i in range(2)}
    assert "has no file for this case" in failed["maps_filtered: test_0"]
    assert "has no mask for this case" in failed["maps_filtered: test_1"]
    assert summary(folders)["results"]["maps_filtered"]["pooled"]["n_cases"] == 3


def test_a_case_of_both_sets_is_refused(folders, capsys):
    for name in ("ref", "maps", "brain"):
        write(read(folders / f"test/{name}/test_1.nii.gz"), folders / f"val/{name}/test_1.nii.gz")
    assert evaluate(folders, *validation(folders)) == 2
    assert "test_1" in capsys.readouterr().err
    assert evaluate(folders, *validation(folders), "--allow-validation-cases") == 0
    assert evaluate(folders, "--threshold-file", str(folders / "out/thresholds.json")) == 2
    assert "searched on cases that they are used on: test_1" in capsys.readouterr().err


def test_lesion_files_that_are_empty_or_of_another_grid_are_named(folders, capsys):
    (folders / "test/ref/test_0.nii.gz").write_bytes(b"")
    write(np.ones((4, 4, 4), np.uint8), folders / "test/ref/test_1.nii.gz")
    assert evaluate(folders) == 1
    error = capsys.readouterr().err
    assert "test_0.nii.gz" in error and "not readable as an image" in error
    assert "test_1.nii.gz" in error and "do not lie on the same grid" in error
    assert summary(folders)["results"]["maps"]["pooled"]["n_cases"] == 3


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--erode-mm", "1"), "--no-filters"),
        (("--hit-overlap", "2"), "--hit-overlap"),
        (("--component-overlap", "-1"), "--component-overlap is -1.0"),
        (("--memory-gb", "0"), "--memory-gb"),
        (
            ("--filters", "-pred", ".", "--names", "a", "a_filtered"),
            "'a_filtered' is the name of a method that is added",
        ),
        (("--training-sizes", "1", "2"), "--training-sizes must be given 1 times"),
        (("--validation-ref", "val/ref"), "--validation-pred together"),
        (("--threshold-file", "nowhere.json"), "nowhere.json does not exist"),
    ],
)
def test_wrong_arguments(folders, capsys, extra, message):
    assert evaluate(folders, *extra) == 2
    assert message in capsys.readouterr().err
    (folders / "wrong.json").write_text('{"methods": {"other": {}}}')
    assert evaluate(folders, "--threshold-file", str(folders / "wrong.json")) == 2
    assert "no thresholds for 'maps', only for other" in capsys.readouterr().err
