"""Smoothing, regions, quantiles and masks against scipy, numpy and counts by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from nnunet_anomaly.error_maps.calibrate import (
    FROM_LESION_FREE_CASES,
    ErrorHistogram,
    Threshold,
    anomaly_mask,
    anomaly_volumes,
    region_inside,
    robust_threshold,
    smooth_error,
    smoothed_error_inside,
    threshold_at_false_positive_rate,
)
from nnunet_anomaly.errors import InputError

SPACING_MM = (2.0, 0.5, 1.0)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Squared Gaussian noise, as an error map has it."""
    return np.square(np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


# --- smoothing -------------------------------------------------------------------------------------------------------


def test_smoothing_in_mm_is_scipys_in_voxels():
    error = noise((12, 30, 20))
    expected = ndimage.gaussian_filter(error, (0.75, 3.0, 1.5), mode="nearest")
    np.testing.assert_allclose(smooth_error(error, SPACING_MM, 1.5), expected, rtol=1e-5)


def test_smoothing_of_a_point_is_as_wide_in_mm_along_every_axis():
    error = np.zeros((41, 161, 81), np.float32)
    error[20, 80, 40] = 1
    smoothed = smooth_error(error, SPACING_MM, 4.0)
    for axis, size_mm in enumerate(SPACING_MM):
        line = smoothed.sum(axis=tuple(other for other in range(3) if other != axis), dtype=float)
        offsets_mm = (np.arange(line.size) - line.size // 2) * size_mm
        assert math.sqrt((line * offsets_mm**2).sum() / line.sum()) == pytest.approx(4.0, rel=0.01)


def test_normalised_smoothing_is_the_weighted_mean_of_the_mask():
    error, mask = noise((5, 6, 7)), np.random.default_rng(1).random((5, 6, 7)) < 0.4
    smoothed = smooth_error(error, SPACING_MM, 1.0, mask)
    places_mm = np.argwhere(mask) * SPACING_MM
    distances_mm = (places_mm[:, None] - places_mm[None]) ** 2
    # scipy cuts the kernel off at four standard deviations, where it is below 0.001
    weights = np.exp(-0.5 * distances_mm.sum(-1))
    expected = (weights * error[mask]).sum(axis=1) / weights.sum(axis=1)
    np.testing.assert_allclose(smoothed[mask], expected, rtol=2e-3)
    assert not smoothed[~mask].any()


def test_nothing_outside_the_mask_matters():
    error, mask = noise((8, 20, 20)), np.zeros((8, 20, 20), bool)
    mask[2:6, 5:15, 4:16] = True
    expected = smooth_error(error, SPACING_MM, 1.0, mask)
    error[~mask] = 1e6
    np.testing.assert_array_equal(smooth_error(error, SPACING_MM, 1.0, mask), expected)


def test_a_constant_stays_constant_up_to_the_rim():
    mask = ndimage.binary_dilation(np.random.default_rng(0).random((10, 20, 20)) < 0.01)
    smoothed = smooth_error(np.full(mask.shape, 0.25, np.float32), SPACING_MM, 1.0, mask)
    np.testing.assert_allclose(smoothed[mask], 0.25, rtol=1e-5)


@pytest.mark.parametrize("mask", [None, np.ones((4, 5), bool)])
def test_sigma_zero_changes_nothing(mask):
    error = noise((4, 5))
    np.testing.assert_array_equal(smooth_error(error, (1, 1), 0, mask), error)


def test_smoothing_without_a_mask_voxel_is_zero():
    assert not smooth_error(noise((4, 5, 6)), SPACING_MM, 1.0, np.zeros((4, 5, 6), bool)).any()


def test_smoothing_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="negative"):
        smooth_error(noise((4, 5)), (1, 1), -1)
    with pytest.raises(ValueError, match="axes"):
        smooth_error(noise((4, 5)), (1, 1, 1), 1)
    with pytest.raises(ValueError, match="shape"):
        smooth_error(noise((4, 5)), (1, 1), 1, np.ones((4, 4), bool))


# --- region ----------------------------------------------------------------------------------------------------------


def test_region_keeps_its_labels_and_fills_their_holes():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:8, 1:8, 1:8] = 3
    labels[3:5, 3:5, 3:5] = 0  # a lesion that was left out
    labels[6, 6, 6] = 7  # a lesion with a label of its own
    labels[0] = 2
    region = region_inside(labels, [3], (1, 1, 1), erode_mm=0)
    expected = np.zeros_like(labels)
    expected[1:8, 1:8, 1:8] = 3
    np.testing.assert_array_equal(region, expected)
    unfilled = region_inside(labels, [3], (1, 1, 1), erode_mm=0, fill_holes=False)
    np.testing.assert_array_equal(unfilled == 3, labels == 3)


def test_a_bone_inside_another_keeps_its_label():
    labels = np.full((7, 7, 7), 1, np.uint8)
    labels[3, 3, 3] = 2
    assert region_inside(labels, [1, 2], (1, 1, 1), erode_mm=0)[3, 3, 3] == 2


@settings(max_examples=30, deadline=None)
@given(arrays(bool, st.sampled_from([(4, 6, 5), (7, 6)])))
def test_holes_are_scipys(mask):
    region = region_inside(mask.astype(np.uint8), [1], (1,) * mask.ndim, erode_mm=0)
    np.testing.assert_array_equal(region > 0, ndimage.binary_fill_holes(mask))


def test_a_single_slice_has_holes_in_its_plane():
    ring = np.ones((1, 5, 5), np.uint8)
    ring[0, 2, 2] = 0
    assert region_inside(ring, [1], (3, 1, 1), erode_mm=0).all()


@pytest.mark.parametrize("erode_mm", [0.5, 1.0, 2.0, 3.1])
def test_erosion_is_by_distance_in_mm(erode_mm):
    bone = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal((14, 40, 30)), (1, 4, 2)) > 0
    region = region_inside(bone.astype(np.uint8), [1], SPACING_MM, erode_mm=erode_mm, fill_holes=False)
    expected = ndimage.distance_transform_edt(bone, sampling=SPACING_MM) > erode_mm
    np.testing.assert_array_equal(region > 0, expected)
    assert expected.any()


def test_the_edge_of_the_image_is_no_rim():
    assert region_inside(np.ones((4, 5, 6), np.uint8), [1], (1, 1, 1), erode_mm=2).all()


def test_region_of_absent_labels_is_empty():
    assert not region_inside(np.ones((4, 5, 6), np.uint8), [2], (1, 1, 1)).any()
    assert not region_inside(np.ones((4, 5, 6), np.uint8), [], (1, 1, 1)).any()
    with pytest.raises(ValueError, match="background"):
        region_inside(np.ones((4, 5, 6), np.uint8), [0], (1, 1, 1))
    with pytest.raises(ValueError, match="negative"):
        region_inside(np.ones((4, 5, 6), np.uint8), [1], (1, 1, 1), erode_mm=-1)


@pytest.mark.parametrize(("value", "words"), [(np.nan, "NaN"), (np.inf, "infinite"), (-0.1, "negative")])
def test_error_maps_that_are_none_are_refused(value, words):
    error = noise((4, 5, 6))
    error[0, 0, 0] = value
    with pytest.raises(InputError, match=words):
        smoothed_error_inside(error, np.ones((4, 5, 6), np.uint8), (1, 1, 1), [1], sigma_mm=1, erode_mm=0)


# --- thresholds ------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float32, st.integers(1, 200), elements=st.floats(0, 1e6, width=32)),
    st.sampled_from([0.0, 0.001, 0.01, 0.07, 0.29, 0.5, 0.9]),
)
def test_upper_quantile_is_numpys_to_a_thousandth_and_never_lower(values, rate):
    exact = float(np.quantile(values, 1 - rate, method="inverted_cdf"))
    found = ErrorHistogram.of(values).upper_quantile(rate)
    assert exact <= found <= max(exact * (1 + 2**-10), 2.0**-126)
    assert (values > np.float32(found)).mean() <= rate + 1e-12
    assert ErrorHistogram.of(values).share_above(found) == (values > np.float32(found)).mean()


def test_pooling_counts_all_voxels_of_all_cases():
    parts = [noise((size,), seed) for seed, size in enumerate((10, 1000, 0, 300))]
    pool, whole = ErrorHistogram.pooled(map(ErrorHistogram.of, parts)), ErrorHistogram.of(np.concatenate(parts))
    np.testing.assert_array_equal(pool.bins, whole.bins)
    np.testing.assert_array_equal(pool.counts, whole.counts)
    assert pool.n_voxels == 1310


def test_minus_zero_is_zero():
    assert ErrorHistogram.of(np.array([-0.0, 0.0], np.float32)).bins.tolist() == [0]


def test_empty_histograms():
    empty = ErrorHistogram.pooled([ErrorHistogram.of(np.zeros(0))])
    assert empty.n_voxels == 0 and math.isnan(empty.share_above(1.0))
    with pytest.raises(ValueError, match="empty"):
        empty.upper_quantile(0.01)
    for find in (threshold_at_false_positive_rate, robust_threshold):
        with pytest.raises(InputError, match="inside the region"):
            find({"a": empty}, 0.01)
        with pytest.raises(InputError, match="inside the region"):
            find({}, 0.01)
    one = ErrorHistogram.of(np.array([0.5]))
    assert threshold_at_false_positive_rate({"a": empty, "b": one}, 0.01) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_rates_out_of_range(rate):
    with pytest.raises(ValueError, match="rate"):
        ErrorHistogram.of(np.ones(3)).upper_quantile(rate)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_histogram_takes_errors_alone(value):
    with pytest.raises(ValueError, match="finite"):
        ErrorHistogram.of(np.array([0.0, value]))


def case(seed: int, lesion: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed error and region of a synthetic case, with a tenth of the bone abnormal if asked for."""
    labels = np.zeros((16, 40, 40), np.uint8)
    labels[2:14, 4:36, 4:36] = 1
    error = noise(labels.shape, seed)
    if lesion:
        error[4:10, 10:20, 10:30] += 20
    return smoothed_error_inside(error, labels, SPACING_MM, [1], sigma_mm=1, erode_mm=1)


def histogram(seed: int, lesion: bool = False) -> ErrorHistogram:
    smoothed, region = case(seed, lesion)
    return ErrorHistogram.of(smoothed[region > 0])


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_the_rate_holds_on_cases_not_seen(rate):
    threshold = threshold_at_false_positive_rate({str(seed): histogram(seed) for seed in range(8)}, rate)
    held_out = ErrorHistogram.pooled(histogram(seed) for seed in range(100, 108))
    assert held_out.share_above(threshold) == pytest.approx(rate, rel=0.2)


def test_the_robust_threshold_bears_lesions_in_less_than_half_of_the_cases():
    healthy = {str(seed): histogram(seed) for seed in range(9)}
    some_ill = {str(seed): histogram(seed, lesion=seed < 4) for seed in range(9)}
    alone = [case.upper_quantile(0.01) for case in healthy.values()]
    assert min(alone) <= robust_threshold(some_ill, 0.01) <= max(alone)
    # what the median is there for: the pooled quantile goes up into the lesions
    assert threshold_at_false_positive_rate(some_ill, 0.01) > 2 * max(alone)


def test_a_threshold_comes_back_from_its_file(tmp_path):
    threshold = Threshold(
        0.1 + 0.2, 0.01, FROM_LESION_FREE_CASES, ["a", "b"], 100, [0.7, 0.36, 0.36], 1.0, 0.5, {"femur": 1}, 1
    )
    threshold.save(tmp_path / "threshold.json")
    assert Threshold.load(tmp_path / "threshold.json") == threshold


@pytest.mark.parametrize(
    ("change", "named"),
    [({"value": "high"}, "value"), ({"sigma": 1.0}, "sigma"), ({"cases": None}, "cases")],
)
def test_a_damaged_threshold_file_is_named(tmp_path, change, named):
    path = tmp_path / "threshold.json"
    Threshold(0.3, 0.01, FROM_LESION_FREE_CASES, ["a"], 100, [1, 1, 1], 1.0, 0.5, {"femur": 1}, 1).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=rf"threshold\.json.*: {named} "):
        Threshold.load(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="not a threshold"):
        Threshold.load(path)


# --- masks -----------------------------------------------------------------------------------------------------------


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Two bones that touch; voxels of 1 mm^3 above 1: ten in the first, three in the second, one outside."""
    region = np.zeros((4, 10, 10), np.uint8)
    region[:, :, :5], region[:, :, 5:9] = 1, 3
    smoothed = np.zeros(region.shape, np.float32)
    smoothed[1, 1:6, 1:3] = 2
    smoothed[2, 7, 5], smoothed[3, 8, 6], smoothed[2, 9, 7] = 5, 5, 5  # joined by corners
    smoothed[2, 7, 9] = 5
    return smoothed, region


@pytest.mark.parametrize(("min_volume_mm3", "voxels"), [(0, 13), (3, 13), (3.1, 10), (10, 10), (11, 0)])
def test_small_components_are_dropped(min_volume_mm3, voxels):
    smoothed, region = blobs()
    # half the voxel size along two axes and four times along the third: the same volume
    mask = anomaly_mask(smoothed, region, (0.5, 0.5, 4.0), 1.0, min_volume_mm3=min_volume_mm3)
    assert mask.dtype == bool and mask.sum() == voxels
    assert not mask[region == 0].any()


def test_the_threshold_itself_is_no_anomaly():
    smoothed, region = blobs()
    assert anomaly_mask(smoothed, region, (1, 1, 1), 2.0, min_volume_mm3=0).sum() == 3


def test_components_end_where_a_bone_ends():
    region = np.ones((1, 1, 4), np.uint8)
    region[..., 2:] = 2
    assert not anomaly_mask(np.ones((1, 1, 4)), region, (1, 1, 1), 0.5, min_volume_mm3=3).any()


def test_volumes_by_hand():
    smoothed, region = blobs()
    spacing_mm = (2, 0.5, 0.5)
    mask = anomaly_mask(smoothed, region, spacing_mm, 1.0, min_volume_mm3=0)
    mask[0, 9, 0] = True  # a second component of bone 1, with no error
    femur, tibia, patella = anomaly_volumes(mask, smoothed, region, spacing_mm, {"femur": 1, "tibia": 3, "patella": 5})
    assert femur == {
        "bone": "femur",
        "label": 1,
        "region_volume_mm3": 100.0,
        "n_components": 2,
        "volume_mm3": 5.5,
        "largest_component_mm3": 5.0,
        "mean_smoothed_error": pytest.approx(20 / 11),
        "max_smoothed_error": 2.0,
    }
    assert (tibia["n_components"], tibia["volume_mm3"], tibia["mean_smoothed_error"]) == (1, 1.5, 5.0)
    assert patella["region_volume_mm3"] == patella["volume_mm3"] == patella["n_components"] == 0
    assert patella["mean_smoothed_error"] is None and patella["max_smoothed_error"] is None


def test_an_empty_region_has_an_empty_mask():
    smoothed, region = smoothed_error_inside(
        noise((4, 5, 6)), np.zeros((4, 5, 6), np.uint8), (1, 1, 1), [1], sigma_mm=1, erode_mm=1
    )
    assert not anomaly_mask(smoothed, region, (1, 1, 1), 0.0).any()


def test_a_flat_image_works_like_a_slice():
    smoothed, region = smoothed_error_inside(
        noise((30, 40)), np.ones((30, 40), np.uint8), (1, 2), [1], sigma_mm=2, erode_mm=1
    )
    flat = anomaly_mask(smoothed, region, (1, 2), 1.2, min_volume_mm3=8)
    slab = anomaly_mask(smoothed[None], region[None], (1, 1, 2), 1.2, min_volume_mm3=8)
    assert flat.any()
    np.testing.assert_array_equal(flat, slab[0])


def test_a_lesion_is_found_and_healthy_bone_is_left_alone():
    threshold = threshold_at_false_positive_rate({str(seed): histogram(seed) for seed in range(4)}, 0.01)
    smoothed, region = case(50, lesion=True)
    mask = anomaly_mask(smoothed, region, SPACING_MM, threshold, min_volume_mm3=20)
    lesion = np.zeros_like(mask)
    lesion[4:10, 10:20, 10:30] = True
    assert mask[lesion].all()
    assert mask[(region > 0) & ~ndimage.binary_dilation(lesion, iterations=8)].mean() < 0.01
