"""Which labels are twins, by their names."""

import numpy as np
import pytest

from nnunet_anomaly.twins import cosine_to_the_left, pairs_by_name, swapped_labels


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


def test_regions_have_no_twin():
    assert pairs_by_name({"background": 0, "left lung": [1, 2], "right lung": [3, 4]}) == ()


def test_swapping_twice_is_nothing():
    swap = swapped_labels([(1, 2), (3, 4)])
    assert swap == {1: 2, 2: 1, 3: 4, 4: 3}
    assert all(swap[swap[label]] == label for label in swap)


IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)


def two_points(first, second):
    label_map = np.zeros((9, 9, 9), np.uint8)
    label_map[first], label_map[second] = 1, 2
    return label_map


@pytest.mark.parametrize(
    "first, direction, expected",
    [
        ((4, 4, 8), IDENTITY, 1),  # x runs to the patient's left
        ((4, 4, 0), IDENTITY, -1),
        ((4, 8, 4), IDENTITY, 0),
        ((8, 4, 4), IDENTITY, 0),
        ((4, 4, 8), (-1, 0, 0, 0, 1, 0, 0, 0, 1), -1),  # stored from left to right
        ((8, 4, 4), (0, 0, 1, 0, 1, 0, 1, 0, 0), 1),  # sagittal slices
        ((8, 4, 8), IDENTITY, 4 / 5),  # 6 mm up (1.5 mm slices), 8 mm to the left (2 mm)
        ((4, 4, 8), (0.6, -0.8, 0, 0.8, 0.6, 0, 0, 0, 1), 0.6),  # oblique
    ],
)
def test_cosine_to_the_left(first, direction, expected):
    label_map = two_points(first, (4, 4, 4))
    assert cosine_to_the_left(label_map, (1, 2), (1.5, 1, 2), direction) == pytest.approx(expected)
    assert cosine_to_the_left(label_map, (2, 1), (1.5, 1, 2), direction) == pytest.approx(-expected)


def test_an_absent_side_says_nothing_and_one_centre_is_no_side():
    label_map = two_points((4, 4, 8), (4, 4, 4))
    assert cosine_to_the_left(label_map, (1, 3), (1, 1, 1), IDENTITY) is None
    assert cosine_to_the_left(0 * label_map, (1, 2), (1, 1, 1), IDENTITY) is None
    rings = np.zeros((3, 5, 5), np.uint8)
    rings[:, 1:4, 1:4] = 1
    rings[:, 2, 2] = 2
    assert cosine_to_the_left(rings, (1, 2), (1, 1, 1), IDENTITY) == 0
    assert cosine_to_the_left(rings[0, :, :], (1, 2), (1, 1), (1, 0, 0, 1)) == 0


def test_a_piece_of_the_twin_hardly_moves_the_centre():
    label_map = np.zeros((10, 6, 30), np.uint8)
    label_map[..., 20:], label_map[..., :10] = 1, 2
    label_map[7:, :, 20:] = 2
    assert cosine_to_the_left(label_map, (1, 2), (1, 1, 1), IDENTITY) > 0.95
