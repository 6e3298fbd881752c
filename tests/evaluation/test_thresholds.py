"""The greedy search against one that reads the cases at every step, and slice scores against a loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.evaluation.anomaly import best_dice, count_healthy, detection_curve
from nnunet_anomaly.evaluation.slices import slice_scores
from nnunet_anomaly.evaluation.thresholds import check_lesions, greedy_levels, greedy_threshold


def greedy_by_reading_again(scores: np.ndarray, truth: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Bengs 2021, section 2.3, word by word."""

    def dice(threshold: float) -> float:
        called = scores >= threshold
        return 2 * np.count_nonzero(called & truth) / (np.count_nonzero(called) + np.count_nonzero(truth))

    tried = {}
    for _ in range(10):
        centre, quarter = (low + high) / 2, (high - low) / 4
        tried |= {value: dice(value) for value in (centre - quarter, centre + quarter)}
        if tried[centre + quarter] > tried[centre - quarter]:
            low = centre
        else:
            high = centre
    best = max(tried.values())
    return max(value for value, found in tried.items() if found == best), best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 0.25, 7.3]))
def test_greedy_search_from_counts_is_the_search(seed, upper):
    rng = np.random.default_rng(seed)
    truth = rng.random(300) < 0.2
    truth[0] = True
    scores = upper * np.clip(0.3 * truth + rng.gamma(2, 0.1, 300), 0, 1)
    levels = greedy_levels(0.0, upper)
    assert levels.size == 2049 and levels[-1] == upper
    hits, alarms = (count_healthy(part, levels)[0] for part in (scores[truth], scores[~truth]))
    found = greedy_threshold(levels, hits, alarms, int(truth.sum()))
    threshold, dice = greedy_by_reading_again(scores, truth, 0.0, upper)
    assert (found.value, found.dice) == (pytest.approx(threshold, rel=1e-12), pytest.approx(dice, rel=1e-12))
    # the exact search cannot be worse
    assert best_dice(detection_curve(scores, truth))[0] >= found.dice - 1e-12


def test_the_greedy_search_finds_the_only_peak():
    scores = np.array([0.05, 0.1, 0.2, 0.62, 0.7, 0.9])
    truth = np.array([0, 0, 0, 1, 1, 1], dtype=bool)
    levels = greedy_levels(0, 1)
    counts = [count_healthy(part, levels)[0] for part in (scores[truth], scores[~truth])]
    found = greedy_threshold(levels, *counts, 3)
    assert found.dice == 1 and 0.2 < found.value <= 0.62


def test_without_a_lesion_there_is_no_threshold():
    levels = greedy_levels(0, 1)
    nothing = np.zeros(levels.size, dtype=int)
    with pytest.raises(InputError, match="no lesion voxel"):
        greedy_threshold(levels, nothing, nothing, 0)
    with pytest.raises(InputError, match="no lesion voxel"):
        check_lesions(0)
    with pytest.raises(InputError, match="no threshold to search"):
        greedy_levels(0.0, 0.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_slice_scores_as_by_a_loop(axis, masked):
    rng = np.random.default_rng(axis)
    scores, truth = rng.random((4, 5, 6)).astype(np.float32), rng.random((4, 5, 6)) < 0.02
    mask = np.ones((4, 5, 6), dtype=np.uint8)
    if masked:
        mask = (rng.random((4, 5, 6)) < 0.5).astype(np.uint8)
        mask[(slice(None),) * axis + (1,)] = 0
        scores[mask == 0] = np.nan  # what is outside may be anything
    found, abnormal = slice_scores(scores, truth, mask if masked else None, axis)
    expected = [
        (np.float64(np.take(scores, i, axis)[np.take(mask, i, axis) > 0]).mean(), np.take(truth, i, axis).any())
        for i in range(scores.shape[axis])
        if np.take(mask, i, axis).any()
    ]
    assert len(found) == len(expected) == scores.shape[axis] - masked
    np.testing.assert_allclose(found, [value for value, _ in expected])
    assert abnormal.tolist() == [any_lesion for _, any_lesion in expected]


def test_a_plane_image_is_one_slice():
    found, abnormal = slice_scores(np.array([[1.0, 3.0]]), np.array([[0, 1]]), np.array([[1, 0]]))
    assert (found.tolist(), abnormal.tolist()) == ([1], [True])
    nothing = np.zeros((2, 2), np.uint8)
    assert slice_scores(np.ones((2, 2)), nothing, nothing)[0].size == 0
    with pytest.raises(LabelError):
        slice_scores(np.ones((2, 2)), np.full((2, 2), np.nan))
    with pytest.raises(GeometryError):
        slice_scores(np.ones((2, 2)), nothing, np.zeros((2, 3), bool))
