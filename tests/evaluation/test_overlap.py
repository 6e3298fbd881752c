"""Dice and voxel counts against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nnunet_anomaly.errors import GeometryError, LabelError
from nnunet_anomaly.evaluation.overlap import OverlapCounts, dice, overlap_counts

PAIRS = st.tuples(
    arrays.arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 3)),
    arrays.arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 3)),
)


@given(PAIRS)
def test_counts_equal_voxelwise_counting(pair):
    reference, prediction = pair
    counts = overlap_counts(reference, prediction, [1, 2, 3, 9])
    for label, found in counts.items():
        a, b = reference == label, prediction == label
        assert found == OverlapCounts(a.sum(), b.sum(), (a & b).sum())


@given(PAIRS)
def test_without_labels_those_that_occur_are_counted(pair):
    occurring = sorted(set(np.unique(pair[0])) | set(np.unique(pair[1])))
    assert list(overlap_counts(*pair)) == [label for label in occurring if label != 0]


def test_dice_of_known_counts():
    assert dice(OverlapCounts(6, 4, 3)) == 0.6
    assert dice(OverlapCounts(5, 5, 5)) == 1.0


def test_dice_of_empty_masks():
    assert math.isnan(dice(OverlapCounts(0, 0, 0)))
    assert dice(OverlapCounts(0, 7, 0)) == 0.0
    assert dice(OverlapCounts(7, 0, 0)) == 0.0
    assert overlap_counts(np.zeros((2, 2), int), np.zeros((2, 2), int)) == {}


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, ">i4", np.int64, np.uint64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_integers_of_any_width_and_layout(dtype, order):
    reference = np.zeros((4, 5, 6), dtype=np.int64)
    reference[1:3, 1:3, 1:3] = 101
    prediction = np.roll(reference, 1, axis=2)
    counts = overlap_counts(np.asarray(reference, dtype, order=order), np.asarray(prediction, dtype, order=order)[:])
    assert counts == {101: OverlapCounts(8, 8, 4)}


def test_highest_label_and_masks():
    label_map = np.full((2, 2), 65535)
    assert overlap_counts(label_map, label_map) == {65535: OverlapCounts(4, 4, 4)}
    mask = np.eye(3, dtype=bool)
    assert overlap_counts(mask, mask) == {1: OverlapCounts(3, 3, 3)}


def test_no_voxel_at_all():
    assert overlap_counts(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8), [1]) == {1: OverlapCounts(0, 0, 0)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, 2)), "float64"),
        (np.full((2, 2), -1), "from -1 to -1"),
        (np.full((2, 2), 70000), "70000"),
        (np.zeros(4, np.uint8), "1 axes"),
    ],
)
def test_what_is_no_label_map_is_refused(wrong, message):
    with pytest.raises(LabelError, match=message):
        overlap_counts(wrong, wrong)


def test_shapes_must_agree_and_background_is_no_label():
    with pytest.raises(GeometryError, match=r"\(2, 2\).*\(2, 3\)"):
        overlap_counts(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(LabelError, match="background"):
        overlap_counts(np.zeros((2, 2), int), np.zeros((2, 2), int), [0, 1])
