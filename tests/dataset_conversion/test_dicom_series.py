"""DICOM series: sorted, complete, one; on tiny series and on a real one."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_anomaly.dataset_conversion.dicom_series import (
    laterality,
    pick_series,
    read_series,
    series_in,
    slice_order,
)
from nnunet_anomaly.errors import GeometryError, InputError


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(-50, 900, (5, 6, 7)).astype(np.int16)


def test_volume_comes_back_with_its_geometry(tools, volume, tmp_path):
    expected = tools.write_series(tmp_path / "a", volume)
    image = read_series(pick_series(tmp_path / "a", "dess"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume)
    assert image.GetPixelID() == sitk.sitkInt16
    for ours, theirs in (
        (image.GetSpacing(), expected.GetSpacing()),
        (image.GetOrigin(), expected.GetOrigin()),
        (image.GetDirection(), expected.GetDirection()),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_file_names_do_not_order_slices(tools, volume, tmp_path):
    tools.write_series(tmp_path / "a", volume)
    for old, new in (("001", "b"), ("002", "a"), ("005", "0")):
        (tmp_path / "a" / old).rename(tmp_path / "a" / new)
    image = read_series(pick_series(tmp_path / "a", "DESS"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume)


def test_series_without_description_is_taken_if_alone(tools, volume, tmp_path):
    tools.write_series(tmp_path / "a", volume, description="")
    assert pick_series(tmp_path / "a", "DESS").description == ""
    tools.write_series(tmp_path / "a", volume, description="", uid="1.2.826.0.1.3680043.2.1125.9", first_file=50)
    with pytest.raises(InputError, match=r"2 DICOM series.*none of them"):
        pick_series(tmp_path / "a", "DESS")


def test_other_files_beside_a_series_are_no_trouble(tools, volume, tmp_path):
    tools.write_series(tmp_path / "a", volume)
    (tmp_path / "a" / "notes.txt").write_text("fine")
    (tmp_path / "a" / ".hidden").write_text("fine")
    for name, sop_class in (("DICOMDIR", b"1.2.840.10008.1.3.10"), ("report", b"1.2.840.10008.5.1.4.1.1.88.11")):
        meta = b"\2\0\0\0UL\4\0\x2a\0\0\0\2\0\2\0UI" + bytes([len(sop_class), 0]) + sop_class
        (tmp_path / "a" / name).write_bytes(b"\0" * 128 + b"DICM" + meta)
    assert len(series_in(tmp_path / "a")) == 1


@pytest.mark.parametrize("size", [0, 50, 400, 700])
def test_every_cut_off_file_is_named(tools, volume, tmp_path, size):
    tools.write_series(tmp_path / "a", volume)
    with open(tmp_path / "a" / "003", "rb+") as handle:
        handle.truncate(size)
    with pytest.raises(InputError, match=r"1 of 5 files are not readable as DICOM.*003"):
        series_in(tmp_path / "a")


def test_missing_and_empty_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        series_in(tmp_path / "none")
    with pytest.raises(InputError, match="no readable DICOM series"):
        series_in(tmp_path)


@pytest.mark.parametrize(
    ("description", "tag", "side", "notes"),
    [
        ("SAG_3D_DESS_RIGHT", "R", "right", 0),
        ("SAG_3D_DESS_LEFT", None, "left", 0),
        ("SAG_3D_DESS", "L", "left", 0),
        ("SAG_3D_DESS_LEFT", "R", None, 1),
        ("SAG_3D_DESS", None, None, 1),
        ("BRIGHT DESS", None, None, 1),
    ],
)
def test_laterality(tools, volume, tmp_path, description, tag, side, notes):
    tools.write_series(tmp_path / "a", volume, description=description, side=tag)
    found, said = laterality(pick_series(tmp_path / "a", "DESS"))
    assert found == side
    assert len(said) == notes


# ---- the order of slices

SAGITTAL = (0, 1, 0, 0, 0, -1)


def order_of(places_mm, orientations=None):
    positions = [(-place, 3.0, 4.0) for place in places_mm]  # the normal of SAGITTAL points to -x
    names = [f"{index:03d}" for index in range(len(places_mm))]
    return slice_order(positions, orientations or [SAGITTAL] * len(places_mm), names, "folder")


@settings(deadline=None)
@given(st.permutations(range(8)), st.floats(0.1, 10), st.floats(-500, 500))
def test_any_order_is_sorted(permutation, step_mm, start_mm):
    places_mm = [start_mm + step_mm * index for index in permutation]
    assert [permutation[index] for index in order_of(places_mm)] == list(range(8))


@settings(deadline=None)
@given(st.integers(1, 6))
def test_any_inner_missing_slice_is_found(missing):
    with pytest.raises(GeometryError, match="about 1 slice is missing"):
        order_of([0.7 * index for index in range(8) if index != missing])


@settings(deadline=None)
@given(st.integers(0, 7))
def test_any_doubled_slice_is_found(doubled):
    with pytest.raises(GeometryError, match="doubled"):
        order_of([0.7 * index for index in [*range(8), doubled]])


def test_uneven_slices_are_no_missing_ones():
    with pytest.raises(GeometryError, match=r"3\.8 mm lie between 002 and 003, elsewhere 3\.5 mm: slices are uneven"):
        order_of([0, 3.5, 7, 10.8, 14.3])


@given(st.integers(1, 6), st.floats(0.3, 20), st.booleans())
def test_one_slice_beside_the_others_is_named(index, shift_mm, along_rows):
    positions = [[-2.0 * place, 3.0, 4.0] for place in range(8)]
    positions[index][1 if along_rows else 2] += shift_mm
    with pytest.raises(GeometryError, match=rf"folder: s{index} is shifted sideways by"):
        slice_order(positions, [SAGITTAL] * 8, [f"s{place}" for place in range(8)], "folder")


def test_slices_that_are_not_parallel_or_have_no_place():
    with pytest.raises(GeometryError, match="not parallel"):
        order_of([0, 1, 2], [SAGITTAL, SAGITTAL, (1, 0, 0, 0, 1, 0)])
    with pytest.raises(InputError, match="b has no ImagePositionPatient"):
        slice_order([(0, 0, 0), None], [SAGITTAL] * 2, ["a", "b"], "folder")
    with pytest.raises(InputError, match="one slice"):
        order_of([0])
    with pytest.raises(GeometryError, match="doubled"):
        order_of([1, 1, 1])


def test_real_oblique_series(real_data, tmp_path):
    """24 slices x 8 echoes without a description: all together have doubled slices, one echo is a volume."""
    with zipfile.ZipFile(real_data / "knee_mese" / "mese_dicom.zip") as archive:
        archive.extractall(tmp_path / "all")
    series = pick_series(tmp_path / "all", "DESS")
    assert len(series.files) == 24 * 8
    with pytest.raises(GeometryError, match="doubled"):
        read_series(series)

    (tmp_path / "echo").mkdir()
    for path in series.files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        if float(reader.GetMetaData("0018|0081")) < 7:
            path.rename(tmp_path / "echo" / path.name)
    image = read_series(pick_series(tmp_path / "echo", "DESS"))
    assert image.GetSize() == (256, 256, 24)
    np.testing.assert_allclose(image.GetSpacing(), (0.625, 0.625, 4), atol=1e-3)


@given(
    tilt_deg=st.one_of(st.floats(-30, -0.5), st.floats(0.5, 30)),
    number=st.integers(2, 40),
    step_mm=st.floats(0.5, 8),
    start_mm=st.floats(-900, 900),
    along_rows=st.booleans(),
)
def test_tilted_gantry_is_refused_with_its_angle(tilt_deg, number, step_mm, start_mm, along_rows):
    shift = np.tan(np.deg2rad(tilt_deg))
    heights = start_mm + step_mm * np.arange(number)
    positions = [[z * shift, 5.0, z] if along_rows else [5.0, z * shift, z] for z in heights]
    with pytest.raises(GeometryError, match="the slices are shifted sideways") as caught:
        slice_order(positions, [[1, 0, 0, 0, 1, 0]] * number, ["slice"] * number, "folder")
    said = float(str(caught.value).split("tilted by ")[1].split(" degrees")[0])
    assert said == pytest.approx(abs(tilt_deg), rel=0.01)


@given(angles=st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3), number=st.integers(2, 60))
def test_oblique_stacks_along_their_normal_are_no_tilt(angles, number):
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), *angles).GetMatrix()
    rows, columns, normal = np.round(np.reshape(turn, (3, 3)), 6).T
    positions = [np.round(normal * 2.5 * index + [3, -7, 90], 4).tolist() for index in range(number)]
    orientation = [*rows.tolist(), *columns.tolist()]
    assert slice_order(positions, [orientation] * number, ["slice"] * number, "folder") == list(range(number))
