"""Distances to the two nearest classes, and what is made of them, against scipy's distance transforms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from nnunet_anomaly import class_distances
from nnunet_anomaly.class_distances import two_nearest_classes
from nnunet_anomaly.errors import GeometryError, LabelError
from nnunet_anomaly.evaluation.gap import gap_dice, gap_region
from nnunet_anomaly.geometry import distance_to_mm, erode_mm
from nnunet_anomaly.losses.gap_weighted import gap_weights
from nnunet_anomaly.postprocessing.collisions import collision_set

SPACINGS = st.tuples(*[st.floats(0.5, 3)] * 3)


@st.composite
def label_maps(draw):
    """Blocks of several voxels, so that something is left after erosion; a few classes, and a lot of background."""
    coarse = draw(hnp.arrays(np.uint8, (4, 5, 4), elements=st.sampled_from([0, 0, 0, 1, 2, 5])))
    return np.kron(coarse, np.ones((4, 3, 5), np.uint8))


def expected_distances(label_map, spacing_mm, erosion_mm=0.0, labels=None):
    """Distances to the two nearest classes, everywhere, from one distance transform a class."""
    found = [np.full(label_map.shape, np.inf)] * 2
    for label in np.unique(label_map[label_map > 0]) if labels is None else labels:
        mask = erode_mm(label_map == label, erosion_mm, spacing_mm)
        if mask.any():
            found = [*found, ndimage.distance_transform_edt(~mask, sampling=spacing_mm)]
    return np.sort(np.stack(found), axis=0)[:2]


@settings(max_examples=60, deadline=None)
@given(label_maps(), SPACINGS, st.floats(0.5, 12), st.sampled_from([0.0, 1.1]))
def test_two_nearest_classes(label_map, spacing_mm, cutoff_mm, erosion_mm):
    expected = expected_distances(label_map, spacing_mm, erosion_mm)
    sure_of = np.abs(expected - cutoff_mm) > 1e-3  # on the cutoff rounding decides
    expected[expected > cutoff_mm] = np.inf
    found = two_nearest_classes(label_map, spacing_mm, cutoff_mm=cutoff_mm, erosion_mm=erosion_mm)
    if found is None:
        assert np.isinf(expected[1][sure_of[1]]).all()
        return
    outside = sure_of[1].copy()
    outside[found.box] = False
    assert np.isinf(expected[1][outside]).all()
    for ours, theirs, sure in zip((found.nearest_mm, found.second_mm), expected, sure_of, strict=True):
        np.testing.assert_allclose(ours[sure[found.box]], theirs[found.box][sure[found.box]], rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(label_maps(), SPACINGS, st.floats(0.5, 4), st.sampled_from([0.0, 1.1]))
def test_weights_are_xus_to_a_thousandth(label_map, spacing_mm, sigma_mm, erosion_mm):
    total_mm = expected_distances(label_map, spacing_mm, erosion_mm).sum(axis=0)
    weights = gap_weights(label_map, spacing_mm, sigma_mm=sigma_mm, erosion_mm=erosion_mm)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, 1 + 20 * np.exp(-(total_mm**2) / (2 * sigma_mm**2)), atol=1.01e-3)


def test_the_weight_between_two_planes_is_that_of_the_formula():
    label_map = np.zeros((3, 5, 40), np.uint8)
    label_map[..., :10], label_map[..., 16:] = 1, 2
    weights = gap_weights(label_map, (1, 1, 0.5), amplitude=10, sigma_mm=2, erosion_mm=0)
    # seven steps of half a millimetre from one plane of centres to the other, wherever one stands in between
    np.testing.assert_allclose(weights[..., 9:17], 1 + 10 * np.exp(-(3.5**2) / 8), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(label_maps(), st.integers(-2, 2), SPACINGS, st.floats(1, 8))
def test_gap_dice_counts_inside_the_gap_of_the_reference(reference, shift, spacing_mm, width_mm):
    prediction = np.roll(reference, shift, axis=1)
    total_mm = expected_distances(reference, spacing_mm).sum(axis=0)
    region = total_mm < width_mm * (1 - 1e-9)
    if ((np.abs(total_mm - width_mm) < 1e-4 * width_mm) & (np.abs(total_mm - width_mm) > 1e-9 * width_mm)).any():
        return  # rounding decides
    found = gap_dice(reference, prediction, spacing_mm, width_mm=width_mm)
    assert found.region_voxels == np.count_nonzero(region)
    numerator = denominator = 0
    for label, value in found.by_label.items():
        ours, theirs = (reference == label) & region, (prediction == label) & region
        both, sizes = 2 * np.count_nonzero(ours & theirs), np.count_nonzero(ours) + np.count_nonzero(theirs)
        assert value == pytest.approx(both / sizes if sizes else np.nan, nan_ok=True)
        numerator, denominator = numerator + both, denominator + sizes
    assert found.pooled == pytest.approx(numerator / denominator if denominator else np.nan, nan_ok=True)
    values = [value for value in found.by_label.values() if not np.isnan(value)]
    assert found.mean == pytest.approx(np.mean(values) if values else np.nan, nan_ok=True)


@pytest.mark.parametrize("spacing_mm", [(0.78, 0.78, 0.78), (0.7, 0.365, 0.365), (0.31, 1.7, 0.9)])
@pytest.mark.parametrize("axis", range(3))
def test_a_gap_as_wide_as_the_width_is_not_in_the_region(spacing_mm, axis):
    label_map = np.zeros([500 if each == axis else 3 for each in range(3)], np.uint8)
    planes = np.moveaxis(label_map, axis, 0)
    planes[:421], planes[430:] = 1, 2
    assert not gap_region(label_map, spacing_mm, width_mm=10 * spacing_mm[axis])[1].any()
    assert gap_region(label_map, spacing_mm, width_mm=10.01 * spacing_mm[axis])[1].any()


@settings(max_examples=40, deadline=None)
@given(label_maps(), SPACINGS, st.floats(0, 6))
def test_collisions_are_voxels_near_another_class(label_map, spacing_mm, distance_mm):
    expected = np.zeros(label_map.shape, bool)
    for label in np.unique(label_map[label_map > 0]):
        other = (label_map != 0) & (label_map != label)
        if other.any():
            away_mm = ndimage.distance_transform_edt(~other, sampling=spacing_mm)
            if (np.abs(away_mm - distance_mm) < 1e-3).any():
                return  # rounding decides
            expected |= (label_map == label) & (away_mm <= distance_mm)
    np.testing.assert_array_equal(collision_set(label_map, spacing_mm, distance_mm=distance_mm), expected)


def test_labels_that_are_not_named_are_background():
    label_map = np.zeros((6, 6, 30), np.uint16)
    label_map[..., 2:8], label_map[..., 9:11], label_map[..., 13:20] = 7, 300, 65535
    named = [7, 65535]
    without = np.where(label_map == 300, 0, label_map)
    np.testing.assert_array_equal(
        gap_weights(label_map, (1, 1, 1), erosion_mm=0, labels=named), gap_weights(without, (1, 1, 1), erosion_mm=0)
    )
    assert (
        collision_set(label_map, (1, 1, 1), distance_mm=5, labels=named).sum()
        == collision_set(without, (1, 1, 1), distance_mm=5).sum()
    )
    assert not collision_set(label_map, (1, 1, 1), distance_mm=5, labels=named)[label_map == 300].any()


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6), (1, 6, 7), (0, 4, 4)])
@pytest.mark.parametrize("classes", [0, 1])
def test_fewer_than_two_classes(shape, classes):
    label_map = np.full(shape, classes, np.uint8)
    spacing_mm = (1.0,) * len(shape)
    assert two_nearest_classes(label_map, spacing_mm, cutoff_mm=5) is None
    assert (gap_weights(label_map, spacing_mm) == 1).all() and gap_weights(label_map, spacing_mm).shape == shape
    assert not collision_set(label_map, spacing_mm).any()
    assert gap_region(label_map, spacing_mm) is None
    found = gap_dice(label_map, label_map, spacing_mm)
    assert found.region_voxels == 0 and np.isnan(found.pooled) and np.isnan(found.mean)


def test_a_class_that_erosion_removes_makes_no_gap():
    label_map = np.zeros((9, 9, 30), np.uint8)
    label_map[..., :10], label_map[..., 14] = 1, 2
    assert (gap_weights(label_map, (1, 1, 1), erosion_mm=2) == 1).all()
    assert gap_weights(label_map, (1, 1, 1), erosion_mm=0).max() > 5


def test_any_layout_gives_the_same_and_nothing_is_changed():
    label_map = np.kron(np.random.default_rng(1).integers(0, 4, (3, 4, 3)), np.ones((4, 4, 4), np.int64))
    expected = gap_weights(label_map, (1, 2, 1)), collision_set(label_map, (1, 2, 1))
    for variant in (np.asfortranarray(label_map, np.uint16), np.repeat(label_map, 2, axis=0)[::2].astype(np.int8)):
        before = variant.copy()
        variant.flags.writeable = False
        np.testing.assert_array_equal(gap_weights(variant, (1, 2, 1)), expected[0])
        np.testing.assert_array_equal(collision_set(variant, (1, 2, 1)), expected[1])
        np.testing.assert_array_equal(variant, before)


@pytest.mark.parametrize("function", [gap_weights, collision_set, gap_region])
def test_bad_input_is_named(function):
    with pytest.raises(LabelError, match="float"):
        function(np.full((3, 3, 3), np.nan), (1, 1, 1))
    with pytest.raises(LabelError, match="-1"):
        function(np.full((3, 3, 3), -1), (1, 1, 1))
    with pytest.raises(GeometryError, match="spacing_mm"):
        function(np.zeros((3, 3, 3), int), (1, 1))


def test_one_distance_transform_a_class_each_no_larger_than_it_must_be(monkeypatch):
    """Counts work instead of seconds: the box of every class, widened by the cutoff."""
    sizes = []
    monkeypatch.setattr(
        class_distances,
        "distance_to_mm",
        lambda mask, spacing_mm: sizes.append(mask.size) or distance_to_mm(mask, spacing_mm),
    )
    label_map = np.zeros((100, 100, 100), np.uint8)
    label_map[40:50, 40:50, 40:50], label_map[40:50, 40:50, 54:64] = 1, 2
    label_map[:5, :5, :5] = 3  # too far from the others to share a gap with them
    two_nearest_classes(label_map, (1, 1, 1), cutoff_mm=6)
    assert len(sizes) == 2 and sum(sizes) <= 2 * 22**3
