"""Rows of lesions and cases by hand and by brute force, and lesions that are empty, single voxels, or all the bone."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import pdist

from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.evaluation.cohort import save_table
from nnunet_anomaly.evaluation.lesion_table import (
    CASE_COLUMNS,
    LESION_COLUMNS,
    csv_rows,
    largest_distance,
    lesion_table,
)

SPACING_MM = (3.0, 0.5, 0.5)
ORIGIN_MM = (-20.0, 4.0, 30.0)
SAGITTAL = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
SHAPE = (6, 30, 30)


@pytest.fixture
def case():
    """Two lesions in bone of marrow 100 +- 10 beside a rim of background."""
    rng = np.random.default_rng(0)
    image = rng.normal(100, 10, SHAPE).astype(np.float32)
    bone = np.zeros(SHAPE, bool)
    bone[1:5, 3:27, 3:27] = True
    lesions = np.zeros(SHAPE, np.uint8)
    lesions[2, 5:9, 6:8] = 1
    lesions[3:5, 20:27, 20:25] = 2
    image[lesions > 0] += 50
    image[~bone] = 1000
    return lesions, image, bone


def table(lesions, image, bone, compartments=None, **options):
    return lesion_table(lesions, image, bone, SPACING_MM, ORIGIN_MM, SAGITTAL, compartments, **options)


def test_two_lesions_by_hand(case):
    lesions, image, bone = case
    compartments = np.where(bone, 1, 0)
    compartments[:, 24:] = np.where(bone[:, 24:], 3, 0)
    found = table(*case, compartments)
    small, large = sorted(found.lesions, key=lambda row: row["volume_mm3"])
    assert (small["volume_mm3"], large["volume_mm3"]) == (8 * 0.75, 70 * 0.75)
    assert small["diameter_mm"] == pytest.approx(math.hypot(1.5, 0.5))
    assert large["diameter_mm"] == pytest.approx(math.sqrt(3**2 + 3**2 + 2**2))
    # x is minus the slices, y the columns, z minus the rows
    place = (small["centroid_left_mm"], small["centroid_posterior_mm"], small["centroid_superior_mm"])
    assert place == pytest.approx((-20 - 6, 4 + 3.25, 30 - 3.25))
    assert (small["compartment"], large["compartment"]) == ("medial", "medial")
    background = bone & (lesions == 0)
    sd = 1.4826 * np.median(np.abs(image[background] - np.median(image[background])))
    for row, mask in ((small, lesions == 1), (large, lesions == 2)):
        near = background & (ndimage.distance_transform_edt(~mask, sampling=SPACING_MM) <= 5)
        expected = (image[mask].mean(dtype=float) - image[near].mean(dtype=float)) / sd
        assert row["contrast"] == pytest.approx(expected) and 3 < row["contrast"] < 7
        assert row["mean_intensity"] == pytest.approx(image[mask].mean(dtype=float))
    assert found.case == {
        "lesions": 2,
        "lesions_outside_bone": 0,
        "volume_mm3": 78 * 0.75,
        "mean_contrast": pytest.approx((small["contrast"] + large["contrast"]) / 2),
        "volume_medial_mm3": (8 + 40) * 0.75,  # voxel by voxel, not by the compartment of a whole lesion
        "volume_lateral_mm3": 0,
        "volume_trochlea_mm3": 30 * 0.75,
        "volume_elsewhere_mm3": 0,
    }
    assert [row["lesion"] for row in found.lesions] == [1, 2]


def test_inputs_are_left_alone(case):
    before = [array.copy() for array in case]
    table(*case, case[2].astype(np.uint8))
    for array, kept in zip(case, before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_what_lies_outside_the_bone_does_not_count(case):
    lesions, image, bone = case
    lesions[0, 0, 0] = 1
    lesions[2, 5:9, 0:6] = 1  # the small lesion goes on beyond the bone
    found = table(lesions, image, bone)
    assert found.case["lesions"] == 2 and found.case["lesions_outside_bone"] == 1
    assert min(row["volume_mm3"] for row in found.lesions) == (8 + 12) * 0.75


def test_no_lesion(case):
    _, image, bone = case
    found = table(np.zeros(SHAPE, bool), image, bone, np.zeros(SHAPE, np.uint8))
    assert found.lesions == []
    assert math.isnan(found.case.pop("mean_contrast"))
    assert set(found.case.values()) == {0}
    nowhere = table(np.ones(SHAPE, bool), image, np.zeros(SHAPE, bool))
    assert nowhere.lesions == [] and nowhere.case["lesions_outside_bone"] == 1


def test_one_voxel(case):
    _, image, bone = case
    lesions = np.zeros(SHAPE, bool)
    lesions[2, 10, 10] = True
    (row,) = table(lesions, image, bone).lesions
    assert (row["volume_mm3"], row["diameter_mm"], row["mean_intensity"]) == (0.75, 0, float(image[2, 10, 10]))
    assert math.isfinite(row["contrast"]) and row["compartment"] == "unknown"


def test_contrast_without_surroundings_is_not_applicable(case):
    _, image, bone = case
    filled = table(bone, image, bone)
    assert math.isnan(filled.lesions[0]["contrast"]) and math.isnan(filled.case["mean_contrast"])
    assert filled.case["volume_mm3"] == bone.sum() * 0.75
    two_bones = bone.copy()
    two_bones[:, 14:17] = False
    lesions = two_bones.copy()
    lesions[:, 17:] = False  # fills one bone; the other is too far away
    assert math.isnan(table(lesions, image, two_bones, surroundings_mm=1).lesions[0]["contrast"])
    assert math.isfinite(table(lesions, image, two_bones, surroundings_mm=3).lesions[0]["contrast"])
    flat = np.full(SHAPE, 7, np.uint8)
    lesions = np.zeros(SHAPE, bool)
    lesions[2, 10, 10] = True
    assert math.isnan(table(lesions, flat, bone).lesions[0]["contrast"])  # the bone has one value


def test_compartment_of_most_voxels(case):
    lesions, image, bone = case
    compartments = np.zeros(SHAPE, np.uint8)
    compartments[2, 5:7, 6:8], compartments[2, 7:9, 6:8] = 2, 3  # four voxels each
    rows = {row["volume_mm3"]: row["compartment"] for row in table(lesions, image, bone, compartments).lesions}
    assert rows == {8 * 0.75: "lateral", 70 * 0.75: "elsewhere"}
    unknown = table(lesions, image, bone).case
    assert all(math.isnan(unknown[f"volume_{name}_mm3"]) for name in ("medial", "lateral", "trochlea", "elsewhere"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_largest_distance_as_by_all_pairs(seed):
    rng = np.random.default_rng(seed)
    points = np.argwhere(rng.random((5, 6, 7)) < rng.random()) * np.array(rng.uniform(0.2, 4, 3))
    if len(points):
        assert largest_distance(points) == pytest.approx(pdist(points).max(initial=0))


def test_signed_and_8_bit_images(case):
    lesions, image, bone = case
    exact = table(lesions, np.rint(image), bone)
    signed = table(lesions, np.rint(image).astype(np.int16), bone)
    assert signed.lesions == exact.lesions
    narrow = table(lesions, np.where(bone, np.rint(image), 255).astype(np.uint8), bone)
    assert narrow.lesions == exact.lesions


def test_rows_for_csv(case, tmp_path):
    rows, row = csv_rows("knee_1", table(*case))
    save_table(rows, tmp_path / "lesions.csv", LESION_COLUMNS)
    save_table([row], tmp_path / "cases.csv", CASE_COLUMNS)
    assert tuple(row) == CASE_COLUMNS and tuple(rows[0]) == LESION_COLUMNS
    with open(tmp_path / "cases.csv", newline="") as handle:
        (read,) = csv.DictReader(handle)
    assert (read["case"], read["lesions"], read["volume_medial_mm3"]) == ("knee_1", "2", "")


def test_what_is_refused(case):
    lesions, image, bone = case
    image[2, 5, 6] = np.nan
    with pytest.raises(InputError, match="NaN"):
        table(lesions, image, bone)
    image[2, 5, 6], image[0, 0, 0] = 0, np.nan  # outside the bone
    table(lesions, image, bone)
    with pytest.raises(GeometryError):
        table(lesions[1:], image, bone)
    with pytest.raises(GeometryError):
        table(lesions, image, bone, bone[1:])
    with pytest.raises(GeometryError):
        lesion_table(lesions, image, bone, SPACING_MM, ORIGIN_MM[:2], SAGITTAL)
    with pytest.raises(LabelError):
        table(lesions.astype(float), image, bone)
