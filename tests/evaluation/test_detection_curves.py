"""Average precision and best Dice against scikit-learn and against trying every threshold."""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.evaluation.anomaly import (
    au_pro,
    auroc,
    average_precision,
    best_dice,
    count_healthy,
    curve_from_counts,
    detection_curve,
    distinct_lesion_scores,
    merge_lesion_scores,
    pooling_bytes,
    split_scores,
    standardised_intensity,
)
from nnunet_anomaly.evaluation.score_histogram import (
    HISTOGRAM_DEFINITIONS,
    ScoreHistogram,
    binned_detection,
    score_histogram,
)

SIZE = 40
# few distinct values make ties, many make none
SCORES = st.one_of(
    arrays.arrays(np.float32, SIZE, elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
    arrays.arrays(np.float64, SIZE, elements=st.floats(-5, 5)),
    arrays.arrays(np.int16, SIZE, elements=st.integers(-3, 3)),
)
TRUTH = arrays.arrays(bool, SIZE)


def dice_by_trying_every_threshold(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    values = {}
    for threshold in np.unique(scores):
        found = scores >= threshold
        values[float(threshold)] = 2 * np.count_nonzero(found & truth) / (found.sum() + truth.sum())
    best = max(values.values())
    return best, max(threshold for threshold, value in values.items() if value == best)


@settings(max_examples=150, deadline=None)
@given(SCORES, TRUTH)
def test_equal_to_scikit_learn_and_brute_force(scores, truth):
    curve = detection_curve(scores, truth)
    if not truth.any():
        assert math.isnan(average_precision(curve)) and all(map(math.isnan, best_dice(curve)))
        return
    assert average_precision(curve) == pytest.approx(average_precision_score(truth, scores), rel=1e-12)
    precision, recall, _ = precision_recall_curve(truth, scores)
    assert average_precision(curve) == pytest.approx(-np.sum(np.diff(recall) * precision[:-1]), rel=1e-12)
    if truth.all():
        assert math.isnan(auroc(curve))
    else:
        assert auroc(curve) == pytest.approx(roc_auc_score(truth, scores), rel=1e-12)
    dice, threshold = best_dice(curve)
    expected_dice, expected_threshold = dice_by_trying_every_threshold(scores, truth)
    assert dice == pytest.approx(expected_dice, rel=1e-15)
    assert threshold == expected_threshold


@settings(max_examples=50, deadline=None)
@given(SCORES, TRUTH, arrays.arrays(np.uint8, SIZE, elements=st.integers(0, 2)))
def test_mask_leaves_out_all_other_voxels(scores, truth, mask):
    inside = mask > 0
    masked = detection_curve(scores, truth, mask)
    cut_out = detection_curve(scores[inside], truth[inside])
    assert (masked.lesion_voxels, masked.healthy_voxels) == (cut_out.lesion_voxels, cut_out.healthy_voxels)
    np.testing.assert_array_equal(masked.thresholds, cut_out.thresholds)
    np.testing.assert_array_equal(masked.true_positives, cut_out.true_positives)
    np.testing.assert_array_equal(masked.false_positives, cut_out.false_positives)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(SCORES, TRUTH), min_size=1, max_size=4))
def test_pooling_by_counts_equals_pooling_voxels(cases):
    parts = [split_scores(*case) for case in cases]
    thresholds, lesion_counts = merge_lesion_scores(distinct_lesion_scores(lesion_scores) for lesion_scores, _ in parts)
    counts = np.sum([count_healthy(healthy_scores, thresholds) for _, healthy_scores in parts], axis=0)
    pooled = curve_from_counts(
        thresholds, lesion_counts, *counts, sum(healthy_scores.size for _, healthy_scores in parts)
    )
    together = detection_curve(*(np.concatenate([case[i] for case in cases]) for i in range(2)))
    assert pooled.lesion_voxels == together.lesion_voxels
    assert pooled.healthy_voxels == together.healthy_voxels
    np.testing.assert_equal(average_precision(pooled), average_precision(together))
    np.testing.assert_equal(best_dice(pooled), best_dice(together))
    np.testing.assert_equal(auroc(pooled), auroc(together))


def test_known_curve():
    scores = np.array([0.9, 0.8, 0.7, 0.7, 0.1])
    truth = np.array([1, 0, 1, 0, 0])
    curve = detection_curve(scores, truth)
    np.testing.assert_array_equal(curve.thresholds, [0.9, 0.7])
    np.testing.assert_array_equal(curve.true_positives, [1, 2])
    np.testing.assert_array_equal(curve.false_positives, [0, 2])
    assert average_precision(curve) == 0.5 * 1 + 0.5 * 0.5
    # 2/3 at both thresholds: the higher one, which marks fewer voxels, is taken
    assert best_dice(curve) == (2 / 3, 0.9)


def test_a_map_that_tells_nothing_reaches_the_prevalence():
    truth = np.arange(100) < 7
    assert average_precision(detection_curve(np.zeros(100), truth)) == 0.07


def test_perfect_map_and_nothing_but_lesion():
    truth = np.arange(10) < 3
    assert average_precision(detection_curve(truth.astype(float), truth)) == 1
    assert best_dice(detection_curve(truth.astype(float), truth)) == (1, 1)
    everything = detection_curve(np.arange(10), np.ones(10, bool))
    assert (average_precision(everything), best_dice(everything)) == (1, (1, 0))


def test_empty_mask_and_empty_array():
    for curve in (
        detection_curve(np.ones((2, 3)), np.ones((2, 3), bool), np.zeros((2, 3), bool)),
        detection_curve(np.zeros((0, 3)), np.zeros((0, 3), bool)),
    ):
        assert (curve.lesion_voxels, curve.healthy_voxels) == (0, 0)
        assert math.isnan(average_precision(curve))
        assert all(map(math.isnan, best_dice(curve)))
        assert math.isnan(auroc(curve))
    assert merge_lesion_scores([])[0].size == 0


def test_bad_input_is_named():
    truth = np.ones(4, dtype=bool)
    for bad in (math.nan, math.inf):
        with pytest.raises(InputError, match="NaN or infinity"):
            detection_curve(np.array([0, 1, bad, 2]), truth)
    with pytest.raises(InputError, match="complex128"):
        detection_curve(np.zeros(4, complex), truth)
    with pytest.raises(GeometryError, match="lesion mask"):
        detection_curve(np.zeros(5), truth)
    with pytest.raises(LabelError, match="float64"):
        detection_curve(np.zeros(4), truth, np.ones(4))


def test_what_is_outside_the_mask_may_be_anything():
    scores = np.array([math.nan, 1.0, 2.0])
    curve = detection_curve(scores, np.array([True, False, True]), np.array([False, True, True]))
    assert average_precision(curve) == 1


def test_standardised_intensity():
    image = np.array([[1, 3], [5, 100]], dtype=np.int16)
    mask = np.array([[1, 1], [1, 0]])
    found = standardised_intensity(image, mask)
    assert found[mask > 0].mean() == pytest.approx(0, abs=1e-15)
    assert found[mask > 0].std() == pytest.approx(1)
    assert found[1, 1] == pytest.approx((100 - 3) / math.sqrt(8 / 3))
    assert not standardised_intensity(np.full((2, 2), 7)).any()
    assert not standardised_intensity(image, np.zeros_like(mask)).any()
    with pytest.raises(InputError, match="NaN"):
        standardised_intensity(np.array([1.0, math.nan]))


def binned(scores, truth, mask=None, bits=16):
    return binned_detection(score_histogram(scores, truth, mask, bits=bits))


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(
        arrays.arrays(np.float32, 60, elements=st.floats(-1e6, 1e6, width=32)),
        # ties within bins that are shared with other scores
        arrays.arrays(np.float32, 60, elements=st.sampled_from([1.0001, 1.0005, 1.001, 3, -1.0001, -1.0005])),
    ),
    arrays.arrays(bool, 60),
    st.sampled_from([12, 16, 20, 24]),
)
def test_binned_figures_hold_the_exact_ones_in_their_intervals(scores, truth, bits):
    curve = detection_curve(scores, truth)
    found = binned(scores, truth, bits=bits)
    if not truth.any():
        assert np.isnan([found.average_precision, found.best_dice, *found.average_precision_interval]).all()
        return
    low, high = found.average_precision_interval
    assert low - 1e-12 <= average_precision(curve) <= high + 1e-12 and low <= found.average_precision <= high + 1e-12
    low, high = found.best_dice_interval
    assert low - 1e-12 <= best_dice(curve)[0] <= high + 1e-12 and low == found.best_dice
    low, high = found.auroc_interval
    if truth.all():
        assert math.isnan(low)
    else:
        assert low - 1e-12 <= auroc(curve) <= high + 1e-12 and low <= found.auroc <= high + 1e-12
    called = scores >= found.best_dice_threshold
    assert 2 * np.count_nonzero(called & truth) / (called.sum() + truth.sum()) == pytest.approx(found.best_dice)


def test_lesion_voxels_that_tie_are_within_the_interval():
    scores = np.repeat(np.array([3, 1.0005, 1.0001], np.float32), [1, 10, 10])
    truth = np.repeat([False, True, False], [1, 10, 10])
    found = binned(scores, truth)
    assert average_precision_score(truth, scores) == pytest.approx(10 / 11)
    assert found.average_precision_interval[1] == pytest.approx(10 / 11)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 1 - 2**-9, 1 + 2**-7]), st.sampled_from([1e-9, 1e-7, 1e-2]))
def test_the_intervals_hold_the_exact_figures_of_float64_too(seed, base, width):
    rng = np.random.default_rng(seed)
    truth = rng.random(200) < 0.3
    truth[:2] = True, False
    scores = base + width * (rng.random(200) - 0.5 + rng.choice([-0.3, 0.3]) * truth)  # many are equal as float32
    found = binned(scores, truth)
    low, high = found.average_precision_interval
    assert low - 1e-12 <= average_precision_score(truth, scores) <= high + 1e-12
    low, high = found.auroc_interval
    assert low - 1e-12 <= roc_auc_score(truth, scores) <= high + 1e-12
    low, high = found.best_dice_interval
    assert low - 1e-12 <= best_dice(detection_curve(scores, truth))[0] <= high + 1e-12
    assert "float64, whose order rounding keeps" in HISTOGRAM_DEFINITIONS["average_precision_low"]


def test_binned_figures_are_exact_where_no_bin_is_shared():
    scores = np.array([-8.0, -1.0, 0.0, 1.0, 2.0, 4.0])
    truth = np.array([0, 1, 0, 1, 0, 1])
    found = binned(scores, truth)
    assert found.average_precision == pytest.approx(average_precision_score(truth, scores))
    assert found.average_precision_interval[0] == pytest.approx(found.average_precision)
    assert -1 - 2**-7 <= found.best_dice_threshold <= -1  # the edge of the bin that holds the exact one


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.float32, 60, elements=st.floats(-5, 5, width=32)), arrays.arrays(bool, 60), st.integers(1, 59))
def test_histograms_of_cases_add_up(scores, truth, cut):
    parts = score_histogram(scores[:cut], truth[:cut]) + score_histogram(scores[cut:], truth[cut:])
    np.testing.assert_equal(binned_detection(parts), binned(scores, truth))


def test_histograms_look_inside_the_mask_and_refuse_what_the_exact_figures_refuse():
    rng = np.random.default_rng(0)
    scores, truth, mask = rng.normal(size=500), rng.random(500) < 0.2, rng.random(500) < 0.5
    inside = binned(scores[mask], truth[mask])
    scores[~mask] = np.nan
    assert binned(scores, truth, mask) == inside
    for wrong in (np.nan, np.inf, -np.inf, 1e300):
        scores[np.flatnonzero(mask)[0]] = wrong
        with pytest.raises(InputError, match="NaN, infinity"):
            binned(scores, truth, mask)
    with pytest.raises(InputError, match="bits"):
        score_histogram(np.zeros(3), np.ones(3, int), bits=30)


def test_the_largest_and_smallest_numbers_are_scores():
    largest = float(np.finfo(np.float32).max)
    found = binned(np.array([-largest, 0, largest]), np.array([True, False, True]))
    assert found.average_precision == pytest.approx((1 + 2 / 3) / 2)


def au_pro_by_bergmann(scores: np.ndarray, truth: np.ndarray, limit: float) -> float:
    """Definition of Bergmann et al. 2021: mean overlap of regions at every threshold, over the false-positive rate."""
    regions, number = ndimage.label(truth, np.ones((3,) * truth.ndim))
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(scores)[::-1]:
        called = scores >= threshold
        rates.append(float(called[~truth].mean()))
        overlaps.append(float(np.mean([called[regions == region].mean() for region in range(1, number + 1)])))
    end = np.interp(limit, rates, overlaps) if limit not in rates else max(np.array(overlaps)[np.array(rates) == limit])
    below = np.array(rates) <= limit
    x, y = np.append(np.array(rates)[below], limit), np.append(np.array(overlaps)[below], end)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit)


def weights_of(truth: np.ndarray) -> np.ndarray:
    regions, _ = ndimage.label(truth, np.ones((3,) * truth.ndim))
    return 1 / np.bincount(regions.ravel())[regions[truth]]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(9, 11), (5, 6, 7)]), st.sampled_from([0.05, 0.3, 1.0]), st.booleans())
def test_au_pro_is_the_area_of_its_definition(seed, shape, limit, with_ties):
    rng = np.random.default_rng(seed)
    truth = rng.random(shape) < 0.15
    truth.flat[0], truth.flat[-1] = True, False
    scores = truth * rng.random() + rng.random(shape)
    scores = np.round(scores * 5) if with_ties else scores
    weights = weights_of(truth)
    curve = detection_curve(scores, truth, lesion_weights=weights)
    assert au_pro(curve, limit) == pytest.approx(au_pro_by_bergmann(scores, truth, limit), rel=1e-9)
    if limit == 0.3:
        found = binned_detection(score_histogram(scores, truth, lesion_weights=weights))
        low, high = found.au_pro_interval
        assert low - 1e-12 <= au_pro(curve) <= high + 1e-12


def test_au_pro_weighs_small_lesions_as_much_as_large_ones():
    truth = np.zeros((1, 10), dtype=bool)
    truth[0, :6] = truth[0, 8] = True
    scores = truth.astype(float)
    scores[0, 8] = 0  # the small one is missed: it enters with the healthy voxels, at the end
    curve = detection_curve(scores, truth, lesion_weights=weights_of(truth))
    assert curve.region_overlap.tolist() == pytest.approx([0.5, 1])
    assert au_pro(curve, 0.5) == pytest.approx(0.5 + 0.25 / 2)
    assert au_pro(curve, 1.0) == pytest.approx(0.75)
    assert au_pro(detection_curve(truth * 1.0, truth, lesion_weights=weights_of(truth))) == 1
    with pytest.raises(ValueError, match="lesion_weights"):
        au_pro(detection_curve(scores, truth))
    with pytest.raises(ValueError, match="limit"):
        au_pro(curve, 0)


def test_auroc_up_to_a_limit_is_that_of_the_roc_curve():
    rng = np.random.default_rng(3)
    truth = rng.random(500) < 0.2
    scores = np.round(truth + rng.normal(size=500), 1)
    curve = detection_curve(scores, truth, lesion_weights=np.full(truth.sum(), 1 / truth.sum()))
    rates, found, _ = roc_curve(truth, scores, drop_intermediate=False)
    grid = np.union1d(rates[rates <= 0.3], [0.3])
    expected = sum(
        (right - left) * (np.interp([left + 1e-12, right - 1e-12], rates, found).sum() / 2)
        for left, right in pairwise(grid)
    )
    assert au_pro(curve, 0.3) == pytest.approx(expected / 0.3, rel=1e-6)  # of a single region


def test_pooling_stays_within_the_memory_that_is_announced():
    """Peak of what this process allocates while scores of many cases are merged and counted."""
    rng = np.random.default_rng(0)
    for n_cases in (3, 12):
        cases = [distinct_lesion_scores(rng.random(40_000), np.full(40_000, 1e-3)) for _ in range(n_cases)]
        healthy = rng.random(1000)
        tracemalloc.start()
        thresholds, counts, weights = merge_lesion_scores(cases)
        total = np.stack(count_healthy(healthy, thresholds))
        total += np.stack(count_healthy(healthy, thresholds))
        curve = curve_from_counts(thresholds, counts, *total, 2000, weights)
        assert 0 < auroc(curve) < 1 and 0 < au_pro(curve) < 1 and best_dice(curve)[0] > 0
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert thresholds.size == n_cases * 40_000
        assert 0.3 * pooling_bytes(thresholds.size, 1) < peak < pooling_bytes(thresholds.size, 1)


@pytest.mark.parametrize(("healthy", "lesion"), [(150_000_000, 6), (10_000_000_000, 1), (5, 100_000)])
def test_the_lower_bound_holds_where_almost_all_voxels_share_a_bin(healthy, lesion):
    counts = np.zeros((2, 1 << 16), dtype=np.int64)
    counts[0, 40_000], counts[1, 40_000] = lesion, healthy
    low, high = binned_detection(ScoreHistogram(*counts)).average_precision_interval
    hits = np.arange(1.0, lesion + 1)
    exact_at_worst = float(np.mean(hits / (hits + healthy)))  # every healthy voxel before every lesion voxel
    assert 0 <= low <= exact_at_worst * (1 + 1e-9) and high == 1
