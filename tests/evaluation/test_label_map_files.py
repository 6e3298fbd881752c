"""Label maps from files: dtypes, damaged files, grids that differ, names of cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.label_maps import (
    case_name,
    check_same_grid,
    common_box,
    files_by_case,
    read_label_map,
    spacing_zyx_mm,
)


def write(array: np.ndarray, path: Path, spacing_mm_xyz=(0.4, 0.5, 0.7), origin_mm=(1, 2, 3)) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm_xyz)
    image.SetOrigin(origin_mm)
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_array_spacing_and_dtype_come_back(tmp_path, ending, dtype):
    array = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    found, image = read_label_map(write(array, tmp_path / f"case{ending}"))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)
    assert spacing_zyx_mm(image) == pytest.approx((0.7, 0.5, 0.4))


def test_whole_numbers_of_float_type_are_labels(tmp_path):
    found, _ = read_label_map(write(np.full((2, 3, 4), 300, dtype=np.float32), tmp_path / "case.nii.gz"))
    assert found.dtype == np.uint16
    assert (found == 300).all()


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (0.5, np.float32, "not whole numbers"),
        (-1, np.int16, "-1"),
        (70000, np.int32, "70000"),
    ],
)
def test_other_values_are_refused_with_the_file(tmp_path, value, dtype, message):
    path = write(np.full((2, 3, 4), value, dtype=dtype), tmp_path / "case.nii.gz")
    with pytest.raises(LabelError, match=message) as error:
        read_label_map(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_seen_in_every_format(tmp_path, ending, dtype, value):
    array = np.ones((3, 200, 300), dtype=dtype)
    path = write(array, tmp_path / f"case{ending}")
    assert read_label_map(path)[0].all()
    array[-1, -1, -1] = value
    write(array, path)
    with pytest.raises((InputError, LabelError), match=f"case{ending}"):
        read_label_map(path)


def test_damaged_and_missing_files(tmp_path):
    path = write(np.random.default_rng(0).integers(0, 9, (20, 30, 40)).astype(np.uint8), tmp_path / "case.nii.gz")
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(InputError, match=r"case\.nii\.gz"):
        read_label_map(path)
    with pytest.raises(InputError, match="does not exist"):
        read_label_map(tmp_path / "other.nii.gz")


def test_every_difference_of_the_grid_is_named(tmp_path):
    array = np.zeros((2, 3, 4), dtype=np.uint8)
    paths = [
        write(array, tmp_path / "a.nii.gz"),
        write(array, tmp_path / "b.nii.gz", origin_mm=(1.005, 2, 3)),
        write(np.zeros((2, 3, 5), np.uint8), tmp_path / "c.nii.gz", (0.4, 0.5, 0.8), (1, 2, 4)),
    ]
    images = [sitk.ReadImage(str(path)) for path in paths]
    check_same_grid(images[0], paths[0], images[1], paths[1])
    with pytest.raises(GeometryError, match=r"size .4, 3, 2. against .5, 3, 2.; spacing .*; origin") as error:
        check_same_grid(images[0], paths[0], images[2], paths[2])
    assert "direction" not in str(error.value)
    images[1].SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    with pytest.raises(GeometryError, match="direction"):
        check_same_grid(images[0], paths[0], images[1], paths[1])


def test_names_of_cases(tmp_path):
    assert case_name(Path("a.b.nii.gz")) == "a.b"
    with pytest.raises(InputError, match=r"\.nrrd"):
        case_name(Path("a.png"))
    for name in ("b.nii.gz", "a.mha", "plans.json", ".partial_x.nii.gz", "c_0001.nii.gz", "c_0000.nii.gz"):
        (tmp_path / name).touch()
    assert list(files_by_case(tmp_path)) == ["a", "b", "c_0000", "c_0001"]
    assert files_by_case(tmp_path, channel=1) == {"c": tmp_path / "c_0001.nii.gz"}
    (tmp_path / "a.nrrd").touch()
    with pytest.raises(InputError, match="'a' twice"):
        files_by_case(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        files_by_case(tmp_path / "nowhere")


def test_common_box():
    a, b = np.zeros((2, 5, 6), dtype=np.uint8)
    assert common_box(a, b) is None
    a[1, 2] = 1
    b[3, 0] = 1
    assert common_box(a, b) == (slice(1, 4), slice(0, 3))
