"""Filters of residual maps against scipy, and the command ``nnunet-anomaly filter-residuals``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.errors import GeometryError, InputError, SettingsError
from nnunet_anomaly.geometry import erode_mm
from nnunet_anomaly.postprocessing.residual_filters import (
    ResidualFilters,
    drop_small_components,
    filter_residual,
    median_filter,
    median_reach_voxels,
)
from nnunet_anomaly.workflow.filter_residuals import median_warning

SPACING_MM = (2.0, 1.0, 0.5)
OFF = ResidualFilters(erode_mm=0, median_radius_mm=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.9, 1.0, 2.0]), st.floats(0, 0.9))
def test_median_as_by_scipy(seed, radius_mm, zeros):
    rng = np.random.default_rng(seed)
    residual = rng.random((6, 9, 12)).astype(np.float32) * (rng.random((6, 9, 12)) >= zeros)
    size = [2 * int(radius_mm / size_mm) + 1 for size_mm in SPACING_MM]
    expected = ndimage.median_filter(residual, size=size, mode="constant")
    np.testing.assert_array_equal(median_filter(residual, radius_mm, SPACING_MM), expected)
    plane = median_filter(residual[0], radius_mm, SPACING_MM[1:])
    np.testing.assert_array_equal(plane, ndimage.median_filter(residual[0], size=size[1:], mode="constant"))


def test_reach_of_the_median_and_what_is_said_where_it_is_none():
    assert median_reach_voxels(2.0, (2.5, 2.0, 0.9)) == (0, 1, 2)
    assert median_reach_voxels(0.3, (0.1,) * 3) == (3, 3, 3)  # 0.3 / 0.1 is below 3 in floating point
    filters = ResidualFilters(median_radius_mm=2.0)
    assert median_warning({(1.0, 1.0, 2.0): (2, 2, 1)}, filters) is None
    assert median_warning({(3.0, 3.0, 3.0): (0, 0, 0)}, OFF) is None
    said = median_warning({(1.0, 1.0, 2.0): (2, 2, 1), (2.5, 1.0, 3.33339): (0, 2, 0)}, filters)
    assert "along x, z, where voxels are 2.5 to 3.33339 mm" in said and "--median-radius-mm 3.334;" in said


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 2.0, 3.5]))
def test_components_as_by_scipy(seed, min_volume_mm3):
    residual = np.random.default_rng(seed).random((5, 6, 7)).astype(np.float32)
    found, count = ndimage.label(residual >= 0.85, np.ones((3, 3, 3)))
    expected = residual.copy()
    for number in range(1, count + 1):
        if (found == number).sum() * 1.0 < min_volume_mm3:
            expected[found == number] = 0
    np.testing.assert_array_equal(drop_small_components(residual, SPACING_MM, 0.85, min_volume_mm3), expected)


def test_all_filters_in_their_order():
    rng = np.random.default_rng(1)
    brain = np.zeros((10, 16, 20), np.uint8)
    brain[1:9, 2:14, 2:18] = 3
    residual = rng.random(brain.shape)
    residual[0, 0, 0] = np.nan  # outside the brain anything may be
    filters = ResidualFilters(2.0, 1.0, 6.0, 0.55)
    inside = erode_mm(brain > 0, 2.0, SPACING_MM)
    expected = ndimage.median_filter(np.where(inside, residual, 0).astype(np.float32), (1, 3, 5), mode="constant")
    expected = drop_small_components(np.where(inside, expected, 0), SPACING_MM, 0.55, 6.0)
    found = filter_residual(residual, brain, SPACING_MM, filters)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32 and found.any() and not found[~inside].any()


def test_switched_off_the_residual_inside_the_brain_is_left():
    rng = np.random.default_rng(2)
    residual, brain = rng.random((3, 4, 5)).astype(np.float32), rng.random((3, 4, 5)) < 0.5
    np.testing.assert_array_equal(filter_residual(residual, brain, SPACING_MM, OFF), residual * brain)
    assert not filter_residual(residual, np.zeros_like(brain), SPACING_MM, ResidualFilters()).any()
    single = np.ones((1, 1, 1), np.float32)
    assert filter_residual(single, single > 0, SPACING_MM, OFF).item() == 1


def test_bad_input_is_named():
    ones = np.ones((2, 3, 4))
    with pytest.raises(GeometryError, match="brain mask"):
        filter_residual(ones, ones[0], SPACING_MM, OFF)
    with pytest.raises(GeometryError, match="spacing_mm"):
        filter_residual(ones, ones > 0, (1, 1), OFF)
    for wrong in (np.nan, np.inf, -1):
        with pytest.raises(InputError, match="negative"):
            filter_residual(np.where(ones == 1, wrong, 0), ones > 0, SPACING_MM, OFF)
    for settings_ in ({"erode_mm": -1}, {"median_radius_mm": np.inf}, {"min_volume_mm3": 5}):
        with pytest.raises(SettingsError, match=next(iter(settings_))):
            ResidualFilters(**settings_)
    with pytest.raises(SettingsError, match="go together"):
        ResidualFilters(component_threshold=0.2)


def write(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_MM[::-1])
    image.SetOrigin((1, -2, 3))
    sitk.WriteImage(image, str(path))


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(3):
        rng = np.random.default_rng(i)
        brain = np.zeros((6, 10, 12), np.uint8)
        brain[1:5, 2:8, 1:11] = 2
        write(rng.random(brain.shape).astype(np.float32), tmp_path / f"maps/case_{i}_0001.nii.gz")
        write(brain, tmp_path / f"masks/case_{i}.nii.gz")
    return tmp_path


def run(folder: Path, *extra: str) -> int:
    folders = ["-i", str(folder / "maps"), "-m", str(folder / "masks"), "-o", str(folder / "out")]
    return main(["filter-residuals", *folders, "--channel", "1", "-np", "1", *extra])


def test_a_folder_is_filtered_once(folder, capsys):
    assert run(folder, "--erode-mm", "1", "--median-radius-mm", "1") == 0
    image = sitk.ReadImage(str(folder / "out/case_1.nii.gz"))
    expected = filter_residual(
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "maps/case_1_0001.nii.gz"))),
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "masks/case_1.nii.gz"))),
        SPACING_MM,
        ResidualFilters(1, 1),
    )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)
    assert image.GetOrigin() == pytest.approx((1, -2, 3)) and image.GetSpacing() == pytest.approx(SPACING_MM[::-1])
    assert json.loads((folder / "out/filters.json").read_text())["erode_mm"] == 1
    assert run(folder, "--erode-mm", "1", "--median-radius-mm", "1") == 0
    printed = capsys.readouterr()
    assert "0 done, 3 were there already" in printed.out
    assert printed.err.count("along z, where voxels are 2 mm and --median-radius-mm is 1.") == 2
    assert run(folder, "--mask-labels", "2") == 0
    assert "3 done" in (said := capsys.readouterr()).out and "Warning" not in said.err


def test_bad_cases_are_named_and_leave_no_old_map(folder, capsys):
    assert run(folder) == 0
    (folder / "masks/case_0.nii.gz").unlink()
    write(np.zeros((6, 10, 12), np.uint8), folder / "masks/case_1.nii.gz")
    assert run(folder) == 1
    error = capsys.readouterr().err
    assert "case_0: There is no mask" in error and "holds no label" in error
    assert [path.name for path in sorted((folder / "out").glob("*.nii.gz"))] == ["case_2.nii.gz"]
    assert run(folder, "--min-volume-mm3", "4") == 2
    assert main(["filter-residuals", "-i", str(folder), "-m", str(folder), "-o", str(folder)]) == 2
    assert "another output folder" in capsys.readouterr().err
