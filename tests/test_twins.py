"""Which labels are twins, by their names."""

import pytest

from nnunet_anomaly.twins import pairs_by_name, swapped_labels


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
