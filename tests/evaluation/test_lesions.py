"""Lesions one by one against scipy and by hand: found shares, false-positive components, FROC, size groups, fits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_anomaly.errors import GeometryError, LabelError
from nnunet_anomaly.evaluation.lesions import (
    find_lesions,
    found_shares,
    froc,
    is_hit,
    part_components,
    quantile_edges,
    size_groups,
    third_order_fit,
    thirds_mm3,
)

SPACING_MM = (2.0, 0.5, 0.5)
STRUCTURE = np.ones((3, 3, 3))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_shares_and_components_as_by_scipy(seed, masked):
    rng = np.random.default_rng(seed)
    truth, scores = rng.random((5, 6, 7)) < 0.12, rng.random((5, 6, 7)).astype(np.float32)
    mask = rng.random((5, 6, 7)) < 0.7 if masked else None
    inside = np.ones_like(truth) if mask is None else mask
    lesions = find_lesions(truth, SPACING_MM, mask)
    regions, number = ndimage.label(truth, STRUCTURE)
    sizes = [int(((regions == region) & inside).sum()) for region in range(1, number + 1)]
    assert sorted(lesions.sizes_voxels) == sorted(size for size in sizes if size)
    assert lesions.n_outside == sizes.count(0)
    np.testing.assert_allclose(lesions.volumes_mm3, lesions.sizes_voxels * 0.5)
    assert lesions.voxel_weights.sum() == pytest.approx(lesions.sizes_voxels.size)
    for value in (0.9, 0.8, 0.5, 0.1):
        for overlap in (0, 0.1, 0.3, 1):
            called = (scores >= value) & inside
            hitting, false_positives = part_components(called, truth, overlap)
            components, count = ndimage.label(called, STRUCTURE)
            inside_lesions = [truth[components == component].mean() for component in range(1, count + 1)]
            hits = [component for component, share in enumerate(inside_lesions, 1) if share and share >= overlap]
            np.testing.assert_array_equal(hitting, np.isin(components, hits))
            assert false_positives == count - len(hits)
            shares = found_shares(hitting[truth & inside], lesions)
            expected = [hitting[(regions == i + 1) & inside].mean() for i, size in enumerate(sizes) if size]
            assert sorted(shares) == pytest.approx(sorted(expected))


def test_a_lesion_that_the_mask_cuts_in_two_is_one():
    truth, mask = np.ones((1, 1, 9), bool), np.ones((1, 1, 9), bool)
    mask[..., 4] = False
    lesions = find_lesions(truth, (1, 1, 1), mask)
    assert lesions.sizes_voxels.tolist() == [8] and lesions.n_outside == 0
    empty = find_lesions(np.zeros((2, 3), np.uint8), (1, 1))
    assert empty.sizes_voxels.size == 0 and empty.voxel_weights.size == 0
    assert found_shares(np.zeros(0, bool), empty).shape == (0,)
    with pytest.raises(GeometryError):
        find_lesions(truth, (1, 1))
    with pytest.raises(GeometryError):
        find_lesions(truth, (1, 1, 1), mask[..., 1:])
    for wrong in (np.full((1, 1, 9), np.nan), np.ones((1, 1, 9)), mask.astype(object)):
        with pytest.raises(LabelError):
            find_lesions(wrong, (1, 1, 1))
        with pytest.raises(LabelError):
            find_lesions(truth, (1, 1, 1), wrong)


def test_hit_by_any_voxel_or_by_a_share():
    shares = np.array([0, 0.1, 0.5, 1])
    assert is_hit(shares).tolist() == [False, True, True, True]
    assert is_hit(shares, 0.5).tolist() == [False, False, True, True]


def test_froc_by_hand():
    shares = np.array([[1, 0.2, 0], [1, 1, 1], [0.5, 0, 0]])  # at 0.1, 0.5, 0.9
    false_positives = np.array([[6, 1, 0], [2, 0, 0]])
    curve = froc(np.array([0.1, 0.5, 0.9]), shares, false_positives)
    assert curve.thresholds.tolist() == [0.9, 0.5, 0.1]
    assert curve.sensitivity.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert curve.false_positives_per_case.tolist() == [0, 0.5, 4]
    assert [curve.sensitivity_at(rate) for rate in (0.25, 0.5, 3.9, 4)] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])
    assert froc(np.array([0.1, 0.5, 0.9]), shares, false_positives, 0.5).sensitivity.tolist()[1] == pytest.approx(1 / 3)
    assert froc(np.array([0.1]), np.ones((2, 1)), np.array([[3]])).sensitivity_at(2) == 0
    none = froc(np.array([0.1]), np.zeros((0, 1)), np.array([[3]]))
    assert none.n_lesions == 0 and math.isnan(none.sensitivity[0]) and none.false_positives_per_case[0] == 3
    assert math.isnan(none.sensitivity_at(1))


def test_components_merge_so_that_false_positives_need_not_grow():
    truth = np.zeros((1, 1, 9), bool)
    scores = np.array([[[3, 1, 3, 1, 3, 1, 3, 1, 3]]])
    assert part_components(scores >= 3, truth)[1] == 5
    assert part_components(scores >= 1, truth)[1] == 1
    truth[..., 0] = True
    assert part_components(scores >= 1, truth)[1] == 0
    assert part_components(scores >= 9, truth)[1] == 0


def test_a_component_that_is_hardly_in_lesions_finds_none():
    truth = np.zeros((1, 1, 20), bool)
    truth[..., 3] = truth[..., 17] = True
    called = np.ones_like(truth)
    called[..., 16] = False  # 16 voxels with one in a lesion, 3 with one
    hitting, false_positives = part_components(called, truth)
    assert false_positives == 1 and not hitting[..., :17].any() and hitting[..., 17:].all()
    assert part_components(called, truth, 0)[1] == 0 and part_components(called, truth, 0.4)[1] == 2
    assert part_components(called, truth, 1 / 3)[1] == 1
    nothing, none = part_components(np.zeros_like(truth), truth)
    assert not nothing.any() and none == 0


def test_thirds_and_groups():
    volumes = np.array([1.0, 2, 3, 10, 20, 30])
    edges = thirds_mm3(volumes)
    assert edges == [2, 10]
    groups = size_groups(volumes, edges)
    assert list(groups) == ["up to 2 mm3", "2 to 10 mm3", "above 10 mm3"]
    assert [int(group.sum()) for group in groups.values()] == [2, 2, 2]
    assert thirds_mm3(np.zeros(0)) == [] and thirds_mm3(np.full(5, 7.0)) == []
    assert list(size_groups(volumes, [])) == ["all sizes"]


@pytest.mark.parametrize("start, step", [(270.0, 0.001), (123456.0, 0.02), (9999.6, 0.1), (0.00123, 1e-9)])
def test_groups_of_nearly_equal_sizes_have_names_of_their_own(start, step):
    sizes = start + step * np.arange(10)
    groups = size_groups(sizes, quantile_edges(sizes, 5))
    assert [int(group.sum()) for group in groups.values()] == [2] * 5
    assert not any("e+" in name for name in groups)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 6))
def test_groups_by_quantiles_hold_everything_and_none_is_empty(sizes, number):
    sizes = np.array(sizes, float) * 1000
    edges = quantile_edges(sizes, number)
    groups = size_groups(sizes, edges, "mm2")
    assert 1 <= len(groups) == len(edges) + 1 <= number
    assert np.array_equal(np.sum(list(groups.values()), axis=0), np.ones(sizes.size))
    assert all(group.any() for group in groups.values())
    if np.unique(sizes).size == sizes.size >= number:  # equally many in each, but for the rest
        counts = [int(group.sum()) for group in groups.values()]
        assert len(counts) == number and max(counts) - min(counts) <= 1
    assert not any("e+" in name for name in groups)


def test_a_cubic_is_found_again_and_too_few_points_give_none():
    volumes = np.linspace(100, 90_000, 12)
    values = 0.1 + 3e-5 * volumes - 6e-10 * volumes**2 + 3e-15 * volumes**3
    values[3] = np.nan
    fit = third_order_fit(volumes, values)
    np.testing.assert_allclose(fit.convert().coef, [0.1, 3e-5, -6e-10, 3e-15], rtol=1e-6)
    assert third_order_fit(volumes[:3], values[:3]) is None
    assert third_order_fit(np.full(9, 5.0), np.arange(9.0)) is None
