"""``nnunet-anomaly anomalies`` on a tiny derived data set, through the command line's own entry."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage, stats

from nnunet_anomaly.cli.main import main

SHAPE, SPACING_MM_XYZ = (10, 24, 32), (0.5, 0.8, 1.2)
VOXEL_MM3 = 0.5 * 0.8 * 1.2
LESION = (slice(3, 7), slice(10, 16), slice(6, 12))
HEALTHY, ILL, TEST = ["knee_00", "knee_01", "knee_02"], ["knee_03"], ["test_00", "test_01"]


def write(array: np.ndarray, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_MM_XYZ)
    image.SetOrigin((10, -20, 30))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def labels() -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[1:9, 2:22, 2:18], array[1:9, 2:22, 18:20], array[1:9, 2:22, 20:30] = 1, 2, 3
    return array


def error(seed: int, lesion: bool = False) -> np.ndarray:
    array = np.square(np.random.default_rng(seed).standard_normal(SHAPE)).astype(np.float32)
    array[labels() == 2] += 50  # cartilage: outside the region, and must not bleed into it
    if lesion:
        array[LESION] += 30
    return array


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A derived data set of three healthy cases and one with a lesion, and two test cases, the second with a lesion."""
    raw = tmp_path / "raw"
    monkeypatch.setenv("nnUNet_raw", str(raw))
    dataset = raw / "Dataset201_Tiny"
    for seed, name in enumerate([*HEALTHY, *ILL, *TEST]):
        images, references = (dataset / "imagesTr", dataset / "labelsTr")
        if name in TEST:
            images, references = tmp_path / "images", tmp_path / "labels"
        write(np.full(SHAPE, seed, np.float32), images / f"{name}_0000.nii.gz")
        write(error(seed, lesion=name in ("knee_03", "test_01")), images / f"{name}_0001.nii.gz")
        write(labels(), references / f"{name}.nii.gz")
    content = {
        "channel_names": {"0": "MR", "1": "noNorm"},
        "labels": {"background": 0, "femur": 1, "cartilage": 2, "tibia": 3},
        "numTraining": 4,
        "file_ending": ".nii.gz",
        "anomaly": {"channel_roles": {"0": "image", "1": "error_map"}, "roi_labels": ["femur", "tibia"]},
    }
    (dataset / "dataset.json").write_text(json.dumps(content))
    (tmp_path / "healthy.txt").write_text("# lesion-free\nknee_00\n\nknee_01  # right knee\nknee_02\n")
    return tmp_path


def anomalies(data: Path, *options: object, output: str = "out") -> int:
    fixed = ["anomalies", "-i", data / "images", "-s", data / "labels", "-o", data / output, "-np", 1]
    return main([str(option) for option in (*fixed, *options)])


def healthy(data: Path) -> tuple[object, ...]:
    return "-d", 201, "--healthy-cases", data / "healthy.txt"


def volumes(folder: Path) -> list[dict[str, str]]:
    with open(folder / "volumes.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_masks_volumes_and_threshold(data, capsys):
    assert anomalies(data, *healthy(data)) == 0
    out = data / "out"
    threshold = json.loads((out / "threshold.json").read_text())
    assert threshold["method"] == "lesion-free cases" and threshold["cases"] == HEALTHY
    assert threshold["roi_labels"] == {"femur": 1, "tibia": 3} and threshold["channel"] == 1
    assert threshold["spacing_mm"] == pytest.approx(SPACING_MM_XYZ[::-1])

    mask = read(out / "test_01.nii.gz")
    lesion = np.zeros(SHAPE, bool)
    lesion[LESION] = True
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
    assert mask[lesion & (labels() == 1)].mean() > 0.9
    assert not mask[labels() == 2].any()
    image, ours = (sitk.ReadImage(str(path)) for path in (data / "images/test_01_0000.nii.gz", out / "test_01.nii.gz"))
    for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(ours, geometry)() == pytest.approx(getattr(image, geometry)())

    rows = {(row["case"], row["bone"]): row for row in volumes(out)}
    assert list(rows) == [(name, bone) for name in TEST for bone in ("femur", "tibia")]
    ill = rows["test_01", "femur"]
    assert float(ill["volume_mm3"]) == pytest.approx(mask[labels() == 1].sum() * VOXEL_MM3, rel=1e-5)
    assert float(ill["mean_smoothed_error"]) > threshold["value"] and ill["n_components"] == "1"
    well = rows["test_00", "tibia"]
    assert (well["volume_mm3"], well["mean_smoothed_error"], well["max_smoothed_error"]) == ("0", "", "")
    printed = capsys.readouterr().out
    assert "femur (1), tibia (3)" in printed and "3 lesion-free cases" in printed and "labelsTr" in printed


def test_the_threshold_is_the_quantile_of_the_lesion_free_voxels(data):
    from nnunet_anomaly.error_maps.calibrate import smoothed_error_inside

    rate = 0.05
    assert anomalies(data, *healthy(data), "--false-positive-rate", rate, "--sigma-mm", 0.7, "--erode-mm", 0.6) == 0
    values = []
    for seed in range(3):
        smoothed, region = smoothed_error_inside(
            error(seed), labels(), SPACING_MM_XYZ[::-1], [1, 3], sigma_mm=0.7, erode_mm=0.6
        )
        values.append(smoothed[region > 0])
    exact = np.quantile(np.concatenate(values), 1 - rate, method="inverted_cdf")
    threshold = json.loads((data / "out/threshold.json").read_text())
    assert exact <= threshold["value"] <= exact * 1.001
    assert threshold["n_voxels"] == sum(part.size for part in values)


def test_without_a_list_all_cases_count_and_it_is_said(data, capsys):
    assert anomalies(data, "-d", 201) == 0
    assert "no --healthy-cases given" in capsys.readouterr().out
    threshold = json.loads((data / "out/threshold.json").read_text())
    assert threshold["method"] == "robust quantile over all validation cases"
    assert threshold["cases"] == HEALTHY + ILL
    assert read(data / "out/test_01.nii.gz").any() and not read(data / "out/test_00.nii.gz").any()


def test_a_threshold_travels(data):
    assert anomalies(data, *healthy(data), "--sigma-mm", 0.8) == 0
    path = data / "out/threshold.json"
    (data / "raw").rename(data / "gone")
    assert anomalies(data, "--threshold-file", path, output="again") == 0
    assert not (data / "again/calibration").exists()
    for name in ("test_00.nii.gz", "test_01.nii.gz", "threshold.json", "volumes.csv"):
        assert (data / "again" / name).read_bytes() == (data / "out" / name).read_bytes()


def test_segmentations_of_several_folds_are_gathered(data, capsys):
    found = labels()
    found[5:] = 0  # the network found half a bone
    for fold, names in enumerate((["knee_00", "knee_03"], ["knee_01", "knee_02"])):
        for name in names:
            write(found, data / f"fold_{fold}/validation/{name}.nii.gz")
    folds = [data / f"fold_{fold}/validation" for fold in (0, 1)]
    assert anomalies(data, "-d", 201) == 0
    whole = json.loads((data / "out/threshold.json").read_text())["n_voxels"]
    capsys.readouterr()
    option = "--calibration-segmentations"
    assert anomalies(data, "-d", 201, option, folds[0], option, folds[1], output="half") == 0
    threshold = json.loads((data / "half/threshold.json").read_text())
    assert threshold["cases"] == HEALTHY + ILL and threshold["n_voxels"] < 0.6 * whole
    assert "labelsTr" not in capsys.readouterr().out

    assert anomalies(data, "-d", 201, option, folds[0], output="one") == 0
    assert "Not used for calibration, as they have no label map: knee_01, knee_02" in capsys.readouterr().out
    assert anomalies(data, *healthy(data), option, folds[0], output="other") == 2
    assert "No label map" in (message := capsys.readouterr().err) and "knee_01, knee_02" in message
    write(found, folds[1] / "knee_00.nii.gz")
    assert anomalies(data, "-d", 201, option, *folds, output="twice") == 2
    assert "more than one label map of knee_00" in capsys.readouterr().err


def test_roi_labels_and_channel_by_option(data):
    dataset = data / "raw/Dataset201_Tiny/dataset.json"
    content = json.loads(dataset.read_text())
    del content["anomaly"]
    dataset.write_text(json.dumps(content))
    assert anomalies(data, "-d", "Dataset201_Tiny", "--roi-labels", 3, "--channel", 1) == 0
    assert {row["bone"] for row in volumes(data / "out")} == {"tibia"}


def test_small_components_go(data):
    assert anomalies(data, *healthy(data), "--min-volume-mm3", 1000) == 0
    assert not read(data / "out/test_01.nii.gz").any()


def test_bones_that_were_not_found_are_named(data, capsys):
    write(np.zeros(SHAPE, np.uint8), data / "labels/test_00.nii.gz")
    assert anomalies(data, *healthy(data)) == 0
    assert "No region of interest in the label map, so the mask is empty: test_00" in capsys.readouterr().out
    assert float(volumes(data / "out")[0]["region_volume_mm3"]) == 0


def test_a_calibration_case_without_bone_is_left_out(data, capsys):
    write(np.zeros(SHAPE, np.uint8), data / "raw/Dataset201_Tiny/labelsTr/knee_01.nii.gz")
    assert anomalies(data, *healthy(data)) == 0
    assert "not used for calibration: knee_01" in capsys.readouterr().out
    assert json.loads((data / "out/threshold.json").read_text())["cases"] == ["knee_00", "knee_02"]


def test_other_voxel_sizes_are_named(data, capsys):
    assert anomalies(data, *healthy(data)) == 0
    for path in (data / "images/test_00_0001.nii.gz", data / "labels/test_00.nii.gz"):
        image = sitk.ReadImage(str(path))
        image.SetSpacing((1, 0.8, 1.2))
        sitk.WriteImage(image, str(path))
    capsys.readouterr()
    assert anomalies(data, *healthy(data)) == 0
    printed = capsys.readouterr().out
    assert "the rate may not hold: test_00." in printed and "1 were there already" in printed


# --- guarantees ------------------------------------------------------------------------------------------------------

SMALL = (6, 14, 16)


def small_labels() -> np.ndarray:
    array = np.zeros(SMALL, np.uint8)
    array[:, 1:13, 1:15] = 1
    return array


def cohort(root: Path, names: list[str], seed: int, images: Path, references: Path, lesion: bool = False) -> None:
    """Smooth error maps of cases that differ in noise, with a lesion or without."""
    rng = np.random.default_rng(seed)
    for index, name in enumerate(names):
        array = ndimage.gaussian_filter(rng.standard_normal(SMALL) ** 2, 0.8) * np.exp(0.2 * rng.standard_normal())
        if lesion:
            array[2:5, 4:9, 4:9] += 8
        write(np.full(SMALL, seed + index, np.float32), images / f"{name}_0000.nii.gz")
        write(array.astype(np.float32), images / f"{name}_0001.nii.gz")
        write(small_labels(), references / f"{name}.nii.gz")


def data_set(root: Path, n_healthy: int, new: int, ill: int = 0) -> Path:
    """Derived data set of healthy cases ``h000`` ..., and new cases: healthy ``new000`` ..., ill ``ill000`` ..."""
    dataset = root / "raw/Dataset201_Tiny"
    healthy_cases = [f"h{index:03d}" for index in range(n_healthy)]
    cohort(root, healthy_cases, 1000, dataset / "imagesTr", dataset / "labelsTr")
    cohort(root, [f"new{index:03d}" for index in range(new)], 5000, root / "images", root / "labels")
    cohort(root, [f"ill{index:03d}" for index in range(ill)], 9000, root / "images", root / "labels", lesion=True)
    content = {
        "channel_names": {"0": "MR", "1": "noNorm"},
        "labels": {"background": 0, "femur": 1},
        "numTraining": n_healthy,
        "file_ending": ".nii.gz",
        "anomaly": {"channel_roles": {"0": "image", "1": "error_map"}},
    }
    (dataset / "dataset.json").write_text(json.dumps(content))
    (root / "healthy.txt").write_text("\n".join(healthy_cases))
    return root


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 lesion-free calibration cases, 200 new lesion-free ones, and 5 with a lesion."""
    return data_set(tmp_path_factory.mktemp("many"), 40, 200, 5)


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return data_set(tmp_path, 19, 2, 1)


def case_table(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "cases.csv", newline="", encoding="utf-8") as handle:
        return {row["case"]: row for row in csv.DictReader(handle)}


def test_stated_rates_hold_on_200_new_cases(many, monkeypatch, capsys):
    """One draw of the calibration cases: the rates lie where the theory says that they lie for one draw."""
    monkeypatch.setenv("nnUNet_raw", str(many / "raw"))
    options = ("--sigma-mm", 0.8, "--erode-mm", 0, "--min-volume-mm3", 2)
    per_case = ("--guarantee", "case", "--false-positive-rate", 0.1, "--p-values", *options)
    assert anomalies(many, *healthy(many), *per_case) == 0
    out = many / "out"
    assert "in at most 10 % of new lesion-free cases" in capsys.readouterr().out
    guarantee = json.loads((out / "threshold.json").read_text())["guarantee"]
    assert guarantee["kind"] == "case" and guarantee["n_cases"] == 40 and guarantee["min_volume_mm3"] == 2
    assert guarantee["expected_rate"] == pytest.approx(4 / 41)
    table = case_table(out)
    new = [name for name in table if name.startswith("new")]

    # per case: 4 of 41 on average; for one set of calibration cases and 200 new ones beta-binomial
    not_empty = {name for name in table if read(out / f"{name}.nii.gz").any()}
    low, high = stats.betabinom.interval(0.99, 200, 4, 37)
    assert low <= sum(name in not_empty for name in new) <= high
    assert {name for name in table if name.startswith("ill")} <= not_empty
    # the mask is empty exactly where the case's p-value is above the rate
    assert not_empty == {name for name, row in table.items() if float(row["p_value"]) <= 0.1}
    assert all(float(row["q_value"]) >= float(row["p_value"]) >= 1 / 41 - 1e-6 for row in table.values())

    # per voxel: the mean share of voxels with p <= rate, within three standard errors of new and calibration cases
    maps = np.stack([read(out / f"p_values/{name}.nii.gz") for name in new])
    assert maps.dtype == np.float32 and (maps[:, small_labels() == 0] == 1).all()
    inside = maps[:, small_labels() > 0]
    assert inside.min() == pytest.approx(1 / 41) or inside.min() > 1 / 41
    for rate in (0.03, 0.05, 0.1, 0.3):
        shares = (inside <= rate).mean(axis=1)
        error = shares.std() * np.sqrt(1 / 200 + 1 / 40)
        assert rate - 1 / 41 - 3 * error <= shares.mean() <= rate + 3 * error

    # by false discovery rate, with the calibration that is there already
    stamp = (out / "calibration/h000.npz").stat().st_mtime_ns
    assert anomalies(many, *healthy(many), "--fdr", 0.1, *options) == 0
    assert (out / "calibration/h000.npz").stat().st_mtime_ns == stamp
    assert "benjamini-hochberg at a false discovery rate of 10 %" in capsys.readouterr().out
    guarantee = json.loads((out / "threshold.json").read_text())["guarantee"]
    wrong = sum(read(out / f"{name}.nii.gz").any() for name in new)
    assert stats.binomtest(wrong, 200).proportion_ci(method="exact").low <= 0.1
    assert guarantee["interval95"][0] <= guarantee["expected_rate"] <= guarantee["interval95"][1]
    found = np.stack([read(out / f"{name}.nii.gz") for name in table if name.startswith("ill")]) > 0
    assert found[:, 2:5, 4:9, 4:9].mean() > 0.9
    thresholds = {name: row["threshold"] for name, row in case_table(out).items()}
    assert len({value for name, value in thresholds.items() if name.startswith("ill")}) > 1
    assert "" in thresholds.values()  # where nothing is a discovery there is no threshold


def test_the_mask_per_voxel_is_where_the_p_value_is_at_most_the_rate(few):
    options = ("--erode-mm", 0, "--min-volume-mm3", 0, "--p-values")
    assert anomalies(few, *healthy(few), "--guarantee", "voxel", "--false-positive-rate", 0.12, *options) == 0
    for name in ("new000", "new001", "ill000"):
        p_values = read(few / f"out/p_values/{name}.nii.gz")
        np.testing.assert_array_equal(read(few / f"out/{name}.nii.gz"), p_values <= 0.12)
    image, ours = (
        sitk.ReadImage(str(few / path)) for path in ("images/new000_0000.nii.gz", "out/p_values/new000.nii.gz")
    )
    for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(ours, geometry)() == pytest.approx(getattr(image, geometry)())


@pytest.mark.parametrize("options", [("--guarantee", "case"), ("--fdr", 0.1, "--fdr-procedure", "benjamini-yekutieli")])
def test_a_guarantee_travels_with_its_errors(few, capsys, options):
    assert anomalies(few, *healthy(few), *options, "--min-volume-mm3", 4, "--p-values") == 0
    path = few / "out/threshold.json"
    (few / "raw").rename(few / "gone")
    assert anomalies(few, "--threshold-file", path, "--p-values", output="again") == 0
    whole = {name: content for name, content in snapshot(few / "out").items() if "calibration" not in name}
    assert snapshot(few / "again") == whole
    assert "p_values/ill000.nii.gz" in whole and "healthy_errors.npz" in whole

    other = few / "healthy_errors.npz"
    (few / "out/healthy_errors.npz").rename(other)
    capsys.readouterr()
    assert anomalies(few, "--threshold-file", path, "--p-values", output="third") == 2
    assert "copy it together with threshold.json" in capsys.readouterr().err
    (few / "out/healthy_errors.npz").write_bytes(other.read_bytes()[:-1] + b"x")
    assert anomalies(few, "--threshold-file", path, "--p-values", output="third") == 2
    assert "belongs to another threshold" in capsys.readouterr().err
    assert not (few / "third").exists()


def test_smaller_components_would_void_a_rate_per_case(few, capsys):
    assert anomalies(few, *healthy(few), "--guarantee", "case", "--min-volume-mm3", 4) == 0
    path = few / "out/threshold.json"
    assert anomalies(few, "--threshold-file", path, "--min-volume-mm3", 3, output="again") == 2
    assert "components of at least 4 mm3" in capsys.readouterr().err
    assert anomalies(few, "--threshold-file", path, "--min-volume-mm3", 5, output="again") == 0


def test_a_rate_per_case_of_components_that_fit_nowhere_is_refused(few, capsys):
    assert anomalies(few, *healthy(few), "--guarantee", "case", "--min-volume-mm3", 1e6) == 2
    message = capsys.readouterr().err
    assert "Are bones cut off?" in message and "No component of 1e+06 mm3 fits" in message
    assert not (few / "out/threshold.json").exists()


def test_what_is_said_of_a_guarantee_with_bones_from_elsewhere(few, capsys):
    said = "as in new cases: otherwise no rate is guaranteed where it errs"
    assert anomalies(few, *healthy(few)) == 0
    assert said not in capsys.readouterr().out
    assert anomalies(few, *healthy(few), "--guarantee", "case") == 0
    assert said in (printed := capsys.readouterr().out) and "a component of 20 mm3 or more" in printed
    assert anomalies(few, *healthy(few), "--fdr", 0.1) == 0
    printed = capsys.readouterr().out
    assert f"Voxels above {json.loads((few / 'out/threshold.json').read_text())['value']:.4g} by case" in printed
    few_cases = "\n".join(f"h{index:03d}" for index in range(5))
    (few / "healthy.txt").write_text(few_cases)
    assert anomalies(few, *healthy(few)) == 0
    assert "5 calibration cases are lesion-free is not checked" in capsys.readouterr().err


def test_too_few_cases_are_refused_before_any_is_read(few, capsys):
    assert anomalies(few, *healthy(few), "--guarantee", "voxel") == 2
    message = capsys.readouterr().err
    assert "at least 99 lesion-free calibration cases" in message and "there are 19" in message and "0.05" in message
    assert not (few / "out").exists()
    assert anomalies(few, *healthy(few), "--fdr", 0.04) == 2
    assert "at least 24" in capsys.readouterr().err
    # with 19 cases 0.05 is the lowest: only who is above all of them is called
    assert anomalies(few, *healthy(few), "--guarantee", "case") == 0


def test_a_lesion_in_a_case_that_is_listed_as_lesion_free_is_named(few, capsys):
    images = few / "raw/Dataset201_Tiny/imagesTr"
    assert anomalies(few, *healthy(few)) == 0
    assert "Warning" not in capsys.readouterr().err
    array = read(images / "h007_0001.nii.gz")
    array[2:5, 4:9, 4:9] += 30
    write(array, images / "h007_0001.nii.gz")
    write(read(images / "h011_0001.nii.gz") / 50, images / "h011_0001.nii.gz")
    (images / "h003_0000.nii.gz").write_bytes((images / "h002_0000.nii.gz").read_bytes())
    assert anomalies(few, *healthy(few)) == 0
    message = capsys.readouterr().err
    assert "Do they have lesions?" in message and "h007 (" in message
    assert "median errors" in message and "h011 (" in message and "h003 (h002)" in message


def test_the_image_of_a_calibration_case_under_another_name_is_refused(few, capsys):
    """Its error map differs, as it is by all folds' networks, but its image is the same file."""
    source = few / "raw/Dataset201_Tiny/imagesTr/h004_0000.nii.gz"
    (few / "images/new001_0000.nii.gz").write_bytes(source.read_bytes())
    assert anomalies(few, *healthy(few), "--guarantee", "case") == 2
    assert "new001 (h004)" in capsys.readouterr().err and not list((few / "out").glob("*.nii.gz"))
    assert anomalies(few, *healthy(few), "--guarantee", "case", "--allow-calibration-cases") == 0
    assert "No rate and no p-value holds for calibration cases: new001 (h004)" in capsys.readouterr().out


def test_what_an_earlier_run_wrote_otherwise_does_not_stay(few):
    assert anomalies(few, *healthy(few), "--p-values") == 0
    assert (few / "out/p_values/new000.nii.gz").exists() and len(case_table(few / "out")) == 3
    assert anomalies(few, "-d", 201) == 0
    assert not list((few / "out/p_values").glob("*")) and not (few / "out/cases.csv").exists()
    assert not (few / "out/healthy_errors.npz").exists()


def test_a_case_without_bone_has_no_p_value(few):
    write(np.zeros(SMALL, np.uint8), few / "labels/new001.nii.gz")
    assert anomalies(few, *healthy(few), "--guarantee", "case", "--p-values") == 0
    row = case_table(few / "out")["new001"]
    assert (row["p_value"], row["q_value"]) == ("", "") and (read(few / "out/p_values/new001.nii.gz") == 1).all()


# --- going on, and failing -------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_ends_the_same(data, capsys):
    assert anomalies(data, *healthy(data)) == 0
    out = data / "out"
    whole = snapshot(out)
    # as if killed: after one mask but before its record, and in one calibration case
    for name in ("cases/test_01.json", "calibration/knee_02.json", "volumes.csv"):
        (out / name).unlink()
    kept = (out / "test_00.nii.gz").stat().st_mtime_ns, (out / "calibration/knee_00.npz").stat().st_mtime_ns
    capsys.readouterr()
    assert anomalies(data, *healthy(data)) == 0
    assert "2 masks" in (printed := capsys.readouterr().out) and "1 were there already" in printed
    assert snapshot(out) == whole
    assert kept == ((out / "test_00.nii.gz").stat().st_mtime_ns, (out / "calibration/knee_00.npz").stat().st_mtime_ns)


def test_what_changed_is_made_again(data, capsys):
    assert anomalies(data, *healthy(data)) == 0
    before = read(data / "out/test_00.nii.gz")
    write(error(0, lesion=True), data / "images/test_00_0001.nii.gz")
    capsys.readouterr()
    assert anomalies(data, *healthy(data)) == 0
    assert "1 were there already" in capsys.readouterr().out
    assert read(data / "out/test_00.nii.gz").sum() > before.sum()
    assert anomalies(data, *healthy(data), "--sigma-mm", 0.5) == 0
    assert "0 were there already" in capsys.readouterr().out


def test_two_processes_give_the_same(data):
    assert anomalies(data, *healthy(data)) == 0
    assert anomalies(data, "--threshold-file", data / "out/threshold.json", "-np", 2, output="two") == 0
    whole = {name: content for name, content in snapshot(data / "out").items() if "calibration" not in name}
    assert snapshot(data / "two") == whole


def damage(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "NaN":
        array = error(0)
        array[0, 0, 0] = np.nan
        path.unlink()
        write(array, path.with_name("test_00_0001.mha"))  # ITK reads NaN in NIfTI files as 0
    elif how == "negative":
        write(error(0) - 1, path)
    elif how == "shape":
        write(error(0)[1:], path)
    else:
        write(labels() + 0.5, path.parent.parent / "labels/test_00.nii.gz")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "cut off or damaged"),
        ("NaN", "NaN or infinite"),
        ("negative", "negative values"),
        ("shape", "size (32, 24, 9)"),
        ("fraction", "not whole numbers"),
    ],
)
def test_a_damaged_case_is_named_and_the_other_goes_on(data, capsys, how, words):
    assert anomalies(data, *healthy(data)) == 0
    damage(data / "images/test_00_0001.nii.gz", how)
    assert anomalies(data, *healthy(data)) == 1
    message = capsys.readouterr().err
    assert "  test_00: " in message and words in message and "/test_00" in message
    assert (data / "out/test_01.nii.gz").exists() and not (data / "out/test_00.nii.gz").exists()
    assert {row["case"] for row in volumes(data / "out")} == {"test_01"}


def test_there_is_no_threshold_with_a_damaged_calibration_case(data, capsys):
    damage(data / "raw/Dataset201_Tiny/imagesTr/knee_01_0001.nii.gz", "truncated")
    assert anomalies(data, *healthy(data)) == 2
    message = capsys.readouterr().err
    assert "knee_01" in message and "cut off or damaged" in message
    assert not (data / "out/threshold.json").exists() and not list((data / "out").glob("*.nii.gz"))


def test_masks_of_calibration_cases_are_refused(data, capsys):
    images = data / "raw/Dataset201_Tiny/imagesTr"
    for name in ("knee_01_0000", "knee_01_0001"):
        os.symlink(images / f"{name}.nii.gz", data / f"images/{name}.nii.gz")
    write(labels(), data / "labels/knee_01.nii.gz")
    assert anomalies(data, *healthy(data)) == 2
    assert "that it would be used on: knee_01." in capsys.readouterr().err
    assert not (data / "out").exists()
    assert anomalies(data, *healthy(data), "--allow-calibration-cases") == 0
    assert anomalies(data, "--threshold-file", data / "out/threshold.json", output="again") == 2
    assert "knee_01" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-d", 202], "no dataset '202'"),
        (["-d", 201, "--channel", 2], "<case>_0002"),
        (["-d", 201, "--roi-labels", 1, 9], "[9] not among the labels [1, 2, 3]"),
        (["-d", 201, "--roi-labels", 0], "[0] not among"),
        (["-d", 201, "--sigma-mm", -1], "--sigma-mm is -1.0"),
        (["-d", 201, "--min-volume-mm3", "nan"], "--min-volume-mm3 is nan"),
        (["-d", 201, "--false-positive-rate", 1], "--false-positive-rate is 1.0"),
        (["-d", 201, "--healthy-cases", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--threshold-file", "nowhere.json"], "nowhere.json does not exist"),
        (["-d", 201, "--guarantee", "case"], "--guarantee takes calibration cases that are known to be lesion-free"),
        (["-d", 201, "--p-values"], "--p-values takes"),
        (["-d", 201, "--fdr", 1.5], "--fdr is 1.5"),
        (["-d", 201, "--fdr", 0.1, "--guarantee", "voxel"], "leave out --guarantee and --false-positive-rate"),
        (["-d", 201, "--fdr-procedure", "benjamini-yekutieli"], "belongs to --fdr"),
        (["--threshold-file", "x.json", "--guarantee", "case"], "--guarantee cannot be given with --threshold-file"),
        (["--threshold-file", "x.json", "--sigma-mm", 2, "--roi-labels", 1], "--sigma-mm, --roi-labels cannot"),
    ],
)
def test_wrong_options(data, capsys, options, words):
    assert anomalies(data, *options) == 2
    assert words in capsys.readouterr().err
    assert not (data / "out").exists()


def test_healthy_cases_that_are_not_there_are_listed(data, capsys):
    (data / "healthy.txt").write_text("knee_00\nknee_77\nknee_78\n")
    assert anomalies(data, *healthy(data)) == 2
    assert "knee_77, knee_78" in capsys.readouterr().err
    (data / "healthy.txt").write_text("# none\n\n")
    assert anomalies(data, *healthy(data)) == 2
    assert "lists no case" in capsys.readouterr().err


def test_wrong_folders(data, capsys):
    assert anomalies(data, *healthy(data), output="labels") == 2
    assert "is an input folder" in capsys.readouterr().err
    (data / "labels/test_00.nii.gz").rename(data / "labels/test_0.nii.gz")
    assert anomalies(data, *healthy(data)) == 2
    assert "No label map" in (message := capsys.readouterr().err) and "test_00" in message
    (data / "labels/test_0.nii.gz").rename(data / "labels/test_00.nii.gz")
    write(labels(), data / "out/hip_03.nii.gz")
    assert anomalies(data, *healthy(data)) == 2
    assert "holds files of other cases (hip_03.nii.gz)" in capsys.readouterr().err


def test_a_data_set_without_error_channel_is_refused(data, capsys):
    dataset = data / "raw/Dataset201_Tiny/dataset.json"
    content = json.loads(dataset.read_text())
    del content["anomaly"]
    dataset.write_text(json.dumps(content))
    assert anomalies(data, "-d", 201) == 2
    assert "names 0 error channels" in (message := capsys.readouterr().err) and "--channel" in message


def test_unset_nnunet_variables_are_named(data, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    assert anomalies(data, "-d", 201) == 2
    assert "nnUNet_raw is not set" in capsys.readouterr().err
