"""Voxel counts and figures of binary masks against scikit-learn, and what they are where masks are empty."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from nnunet_anomaly.errors import GeometryError, LabelError
from nnunet_anomaly.evaluation.confusion import DEFINITIONS, METRICS, Confusion, confusion, confusion_by_slice


def masks(seed, shape=(4, 5, 6)):
    rng = np.random.default_rng(seed)
    densities = rng.random(3)
    return [rng.random(shape) < density for density in densities]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_as_by_scikit_learn(seed):
    reference, prediction, bone = masks(seed)
    found = confusion(reference, prediction.astype(np.uint8) * 3, bone)
    truth, called = reference[bone], prediction[bone]
    table = metrics.confusion_matrix(truth, called, labels=[False, True]) if truth.size else np.zeros((2, 2), int)
    (rest, alarm), (miss, hit) = table
    assert found == Confusion(hit, alarm, miss, rest)
    assert found.lesion_voxels == truth.sum()
    figures = found.figures()
    assert tuple(figures) == METRICS == tuple(DEFINITIONS)
    by_sklearn = {
        "dice": metrics.f1_score(truth, called, zero_division=np.nan) if truth.size else math.nan,
        "iou": metrics.jaccard_score(truth, called, zero_division=0) if truth.any() or called.any() else math.nan,
        "sensitivity": metrics.recall_score(truth, called, zero_division=np.nan) if truth.size else math.nan,
        "specificity": metrics.recall_score(~truth, ~called, zero_division=np.nan) if truth.size else math.nan,
        "accuracy": metrics.accuracy_score(truth, called) if truth.size else math.nan,
    }
    assert figures == pytest.approx(by_sklearn, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 2))
def test_slices_are_cases_of_their_own_and_add_up(seed, axis):
    arrays = masks(seed)
    found = confusion_by_slice(*arrays, axis=axis)
    expected = [
        confusion(*(array.take(index, axis=axis) for array in arrays)) for index in range(arrays[0].shape[axis])
    ]
    assert found == expected
    counts = np.array([[each.true_positives, each.false_positives, each.lesion_voxels] for each in found]).sum(axis=0)
    whole = confusion(*arrays)
    assert counts.tolist() == [whole.true_positives, whole.false_positives, whole.lesion_voxels]
    flat = [array[0] for array in arrays]
    assert confusion_by_slice(*flat) == [confusion(*flat)]


def test_empty_masks():
    some, none = np.ones((2, 3), bool), np.zeros((2, 3), bool)
    nan = math.nan

    def figures(*arrays):
        return pytest.approx(list(confusion(*arrays).figures().values()), nan_ok=True)

    assert figures(none, none, some) == [nan, nan, nan, 1, 1]
    assert figures(none, some, some) == [0, 0, nan, 0, 0]
    assert figures(some, none, some) == [0, 0, 0, nan, 0]
    assert figures(some, some, some) == [1, 1, 1, nan, 1]  # a lesion that fills the bone
    assert figures(some, some, none) == [nan] * 5  # no bone


def test_what_is_refused():
    mask = np.ones((2, 3), bool)
    for wrong in ((mask, mask[1:], mask), (mask, mask, mask[:, 1:])):
        with pytest.raises(GeometryError):
            confusion(*wrong)
    with pytest.raises(LabelError):
        confusion_by_slice(mask, mask.astype(float), mask)
