"""Which labels are twins, by their names and by where they lie."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation
from scipy.stats import median_abs_deviation

from nnunet_anomaly import twins
from nnunet_anomaly.errors import GeometryError, SettingsError
from nnunet_anomaly.settings import SymmetrySettings
from nnunet_anomaly.twins import (
    LEFT,
    NEITHER,
    RIGHT,
    agreed_side,
    check_pairs,
    pairs_by_name,
    side_axis_of_patch,
    side_of_left,
    swapped_labels,
    twin_channels,
)


@pytest.mark.parametrize(
    "names, expected",
    [
        (["femur_left", "femur_right"], ((1, 2),)),
        (["Right Femur", "Left Femur", "Right Hip", "Left Hip", "Sacrum"], ((2, 1), (4, 3))),
        (["hipL", "hipR"], ((1, 2),)),
        (["kidney-l", "kidney-r", "liver"], ((1, 2),)),
        (["left femur head", "right femur"], ()),
        (["left femur", "left Femur", "right femur"], ()),
        (["leftover", "rightover"], ()),
        (["left_to_right", "right_to_left"], ()),
        (["left", "right"], ((1, 2),)),
        ([], ()),
    ],
)
def test_pairs_differ_by_the_side_alone(names, expected):
    labels = {"background": 0, **{name: number for number, name in enumerate(names, start=1)}}
    assert pairs_by_name(labels) == expected


def test_regions_have_no_twin_but_lists_of_one_value_are_labels():
    assert pairs_by_name({"background": 0, "left lung": [1, 2], "right lung": [3, 4]}) == ()
    hips = {"background": 0, "hip": [3, 4], "hip_left": [3], "hip_right": (4,), "femur_left": [1], "femur_right": 2}
    assert pairs_by_name(hips) == ((1, 2), (3, 4))


def test_swapping_twice_is_nothing():
    swap = swapped_labels([(1, 2), (3, 4)])
    assert swap == {1: 2, 2: 1, 3: 4, 4: 3}
    assert all(swap[swap[label]] == label for label in swap)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [([(1, 7)], r"has \[7\]"), ([(1, 2), (2, 3)], r"\[2\] more than once"), ([(1, 1)], r"\[1\] more than once")],
)
def test_pairs_that_make_no_sense_are_refused(pairs, message):
    with pytest.raises(SettingsError, match=message):
        check_pairs(pairs, [0, 1, 2, 3])
    check_pairs([(1, 2)], [0, 1, 2, 3])


def test_channels_of_labels_and_of_regions():
    assert twin_channels(range(6), [(1, 2), (5, 3)]) == (0, 2, 1, 5, 4, 3)
    assert twin_channels([(1, 2, 3, 4), (1, 3), (4, 2), 3, 4], [(1, 2), (3, 4)]) == (0, 2, 1, 4, 3)
    assert twin_channels([], [(1, 2)]) == ()
    with pytest.raises(SettingsError, match=r"channel of \[1, 2\] becomes one of \[1, 4\].*test_time_mirroring"):
        twin_channels([(1, 2), (3, 4), 2, 4], [(2, 4)])


@pytest.mark.parametrize(
    ("side_axis", "dimensions", "expected"),
    [(0, 3, 0), (1, 3, 1), (2, 3, 2), (0, 2, None), (1, 2, 0), (2, 2, 1)],
)
def test_the_axis_of_a_patch(side_axis, dimensions, expected):
    """nnU-Net cuts slices along the first axis, so that sagittal ones have left and right across them."""
    assert side_axis_of_patch(SymmetrySettings(pairs=((1, 2),), side_axis=side_axis), dimensions) == expected
    assert side_axis_of_patch(SymmetrySettings(side_axis=side_axis), dimensions) is None
    plain = SymmetrySettings(((1, 2),), side_axis, "plain", "plain")
    assert side_axis_of_patch(plain, dimensions) is None


def test_an_axis_that_is_not_known_is_an_error_that_says_what_to_do():
    advice = r"symmetry\.pairs=\[\[1,2\],\[3,4\]\].*DICOMOrient.*symmetry\.side_axis=2.*symmetry\.mirroring=plain"
    with pytest.raises(SettingsError, match=advice):
        side_axis_of_patch(SymmetrySettings(pairs=((1, 2), (3, 4))), 3)
    assert side_axis_of_patch(SymmetrySettings(((1, 2),), -1, "plain", "plain"), 3) is None


def image_with_balls(left_mm, right_mm, direction=None, spacing_mm=(1.5, 2.0, 3.0)):
    """Label map with ball 1 and ball 2 (radius 9 mm) around two places in the patient (left, back, head)."""
    image = sitk.Image(50, 40, 30, sitk.sitkUInt8)
    image.SetSpacing(spacing_mm)
    if direction is not None:
        image.SetDirection([float(cosine) for cosine in np.ravel(direction)])
    image.SetOrigin([-float(x) for x in image.TransformContinuousIndexToPhysicalPoint((25.0, 20.0, 15.0))])
    for index in np.ndindex(50, 40, 30):
        place_mm = np.array(image.TransformIndexToPhysicalPoint(index))
        for label, center_mm in ((1, left_mm), (2, right_mm)):
            if np.sum((place_mm - center_mm) ** 2) < 9**2:
                image[index] = label
    return image


def sides(image, pairs=((1, 2),)):
    return side_of_left(sitk.GetArrayFromImage(image), pairs, image.GetSpacing()[::-1], image.GetDirection())


ROTATIONS = [Rotation.from_euler("xyz", angles, degrees=True).as_matrix() for angles in ((20, -15, 25), (0, 0, 40))]


@pytest.mark.parametrize("direction", [None, *ROTATIONS], ids=["straight", "oblique", "turned by 40 degrees"])
def test_the_side_is_that_of_the_patient_however_the_image_lies(direction):
    image = image_with_balls((14, 2, 3), (-14, 0, 0), direction)
    assert sides(image) == {(1, 2): LEFT}
    assert sides(image, [(2, 1)]) == {(2, 1): RIGHT}
    for orientation in ("RAS", "PSR", "SLA", "IPR"):  # ITK permutes and flips the array, and mends the header
        assert sides(sitk.DICOMOrient(image, orientation)) == {(1, 2): LEFT}


@pytest.mark.parametrize(
    ("left_mm", "right_mm"),
    [((0, 12, 0), (0, -12, 0)), ((12, 15, 0), (-12, -12, 0))],
    ids=["in front of each other", "further off than sideways"],
)
def test_what_is_not_apart_from_left_to_right_is_no_pair(left_mm, right_mm):
    assert sides(image_with_balls(left_mm, right_mm)) == {(1, 2): NEITHER}


def test_pieces_of_the_twin_and_islands_far_away_change_nothing():
    """As in predictions of networks that confuse the sides: 2 of 5 voxels bear the wrong label."""
    label_map = np.zeros((10, 6, 40), np.uint8)
    label_map[..., 25:35], label_map[..., :10] = 1, 2
    label_map[6:, :, 25:35], label_map[6:, :, :10] = 2, 1
    label_map[:2, :2, 38:] = 2
    assert side_of_left(label_map, [(1, 2)], (1, 1, 1), np.eye(3).ravel()) == {(1, 2): LEFT}


def test_a_structure_within_the_other_is_no_pair():
    shell = np.ones((8, 8, 12), np.uint8)
    shell[2:6, 2:6, 5:11] = 2  # its centroid lies off the middle
    assert side_of_left(shell, [(1, 2)], (1, 1, 1), np.eye(3).ravel()) == {(1, 2): NEITHER}


def test_an_absent_side_says_nothing():
    image = image_with_balls((14, 0, 0), (-14, 0, 0))
    assert sides(image, [(1, 3), (4, 2), (5, 6)]) == {}
    assert side_of_left(np.zeros((3, 3, 3), np.uint8), [(1, 2)], (1, 1, 1), np.eye(3).ravel()) == {}
    assert side_of_left(np.zeros((0, 3, 3), np.uint8), [(1, 2)], (1, 1, 1), np.eye(3).ravel()) == {}


def test_twins_may_touch_and_one_voxel_each_is_enough():
    halves = np.ones((4, 6, 10), np.uint8)
    halves[..., 5:] = 2
    assert side_of_left(halves, [(1, 2)], (1, 1, 1), np.eye(3).ravel()) == {(1, 2): RIGHT}
    line = np.array([[[2, 1]]], np.uint8)
    assert side_of_left(line, [(1, 2)], (1, 1, 1), np.eye(3).ravel()) == {(1, 2): LEFT}


def test_columns_of_a_picture_lead_to_the_left():
    picture = np.zeros((10, 20), np.uint8)
    picture[4:6, 2:5], picture[4:6, 14:18] = 1, 2  # as seen from the front, the patient's right is on the left
    assert side_of_left(picture, [(1, 2)], (1, 1), (1, 0, 0, 1)) == {(1, 2): RIGHT}
    assert side_of_left(picture, [(1, 2)], (1, 1), (-1, 0, 0, 1)) == {(1, 2): LEFT}
    assert side_of_left(picture.T, [(1, 2)], (1, 1), (1, 0, 0, 1)) == {(1, 2): NEITHER}
    with pytest.raises(GeometryError, match="direction has 9 numbers"):
        side_of_left(picture, [(1, 2)], (1, 1), np.eye(3).ravel())


def test_thinning_a_large_label_map_out_changes_nothing(monkeypatch):
    image = image_with_balls((14, 2, 3), (-14, 0, 0), ROTATIONS[0])
    array = sitk.GetArrayFromImage(image)
    monkeypatch.setattr(twins, "MOST_VOXELS", array.size // 8)
    seen = []
    original = twins._centre_and_spread
    monkeypatch.setattr(
        twins, "_centre_and_spread", lambda *given: seen.append((given, original(*given))) or seen[-1][1]
    )
    assert sides(image) == {(1, 2): LEFT}
    monkeypatch.setattr(twins, "MOST_VOXELS", array.size)
    assert sides(image) == {(1, 2): LEFT}
    for (given, thinned), (given_whole, whole) in zip(seen[:2], seen[2:], strict=True):
        assert given_whole[0].sum() > 6 * given[0].sum() > 0
        np.testing.assert_allclose(thinned[0], whole[0], atol=2)


def test_centre_and_spread_are_those_of_the_voxels_in_the_patient():
    image = image_with_balls((10, 5, -7), (-10, 0, 4), ROTATIONS[0])
    array = sitk.GetArrayFromImage(image)
    to_mm = np.reshape(image.GetDirection(), (3, 3))[:, ::-1] * image.GetSpacing()[::-1]
    for label in (1, 2):
        voxels = [tuple(int(number) for number in index[::-1]) for index in np.argwhere(array == label)]
        places_mm = np.array([image.TransformIndexToPhysicalPoint(index) for index in voxels])
        centre_mm, spread_mm = twins._centre_and_spread(array == label, to_mm)
        np.testing.assert_allclose(centre_mm, np.median(places_mm, axis=0) - image.GetOrigin(), atol=1e-6)
        assert spread_mm == pytest.approx(median_abs_deviation(places_mm[:, 0]))


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ([], None),
        ([LEFT], LEFT),
        ([LEFT] * 9 + [RIGHT], LEFT),
        ([RIGHT] * 9 + [NEITHER], RIGHT),
        ([LEFT] * 8 + [RIGHT], None),
        ([NEITHER] * 5, None),
        ([LEFT, RIGHT], None),
    ],
)
def test_nearly_all_label_maps_must_agree(findings, expected):
    assert agreed_side(findings) == expected


def test_real_hips(real_data):
    """In six label maps from CT label 1 lies on the patient's right; in another one the names say where."""
    for path in sorted((real_data / "hip_labels").glob("*.nii.gz")):
        assert sides(sitk.ReadImage(str(path)), [(1, 2), (4, 3)]) == {(1, 2): RIGHT, (4, 3): LEFT}
    image = sitk.ReadImage(str(real_data / "hip_ct" / "derived_hip_labels.nii.gz"))
    assert sides(image, [(1, 2), (3, 4)]) == {(1, 2): LEFT, (3, 4): LEFT}
