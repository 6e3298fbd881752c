import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from nnunet_anomaly import geometry
from nnunet_anomaly.errors import GeometryError, LabelError
from nnunet_anomaly.geometry import ROUNDING, bounding_box, close_mm, dilate_mm, distance_to_mm, erode_mm, open_mm


@given(hnp.arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)), st.floats(0, 4), st.tuples(*[st.floats(0.3, 3)] * 3))
def test_dilation_is_the_distance_to_the_nearest_voxel(mask, radius_mm, spacing_mm):
    points = np.argwhere(mask) * spacing_mm
    everywhere = np.argwhere(np.ones_like(mask)) * spacing_mm
    expected = mask.copy()
    if len(points):
        distances = np.linalg.norm(everywhere[:, None] - points[None], axis=-1).min(axis=1)
        if np.any(np.abs(distances - radius_mm) <= 1e-4 * radius_mm):
            return  # on the very edge, rounding decides
        expected = (distances <= radius_mm).reshape(mask.shape)
    np.testing.assert_array_equal(dilate_mm(mask, radius_mm, spacing_mm), expected)


# the last as a NIfTI header, which has float32, gives it
SPACINGS_MM = [
    (0.78, 0.78, 0.78),
    (0.7, 0.365, 0.365),
    (0.31, 1.7, 0.9),
    (3.3, 0.4871, 0.5123),
    (1.2345678, 0.9876543, 1.7),  # in no unit whole numbers
    (0.699999988, 0.364583343267, 0.3125),
    (1.25, 0.77734399, 0.77734399),
    (1.25, 0.90820301, 0.90820301),
]


@pytest.mark.parametrize("spacing_mm", [*SPACINGS_MM[-2:], (0.7, 0.36458, 0.36458), (3.0, 0.937500119, 0.937500119)])
def test_sizes_as_scanners_have_them_are_measured_by_the_fast_transform(spacing_mm, monkeypatch):
    def slow(*args, **kwargs):
        raise AssertionError("scipy's transform was called")

    monkeypatch.setattr(ndimage, "distance_transform_edt", slow)
    mask = np.zeros((4, 300, 300), bool)
    mask[0, 0, 0] = True
    far_mm = np.linalg.norm(np.multiply((3, 299, 299), spacing_mm))
    assert distance_to_mm(mask, spacing_mm)[-1, -1, -1] == pytest.approx(far_mm, rel=5e-7)


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_distances_in_a_large_array_are_scipys(spacing_mm):
    rng = np.random.default_rng(0)
    mask = np.zeros((160, 90, 300), bool)
    mask[tuple(rng.integers(size, size=40) for size in mask.shape)] = True
    expected = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    np.testing.assert_allclose(distance_to_mm(mask, spacing_mm), expected, rtol=5e-7)


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
@pytest.mark.parametrize("axis", range(3))
def test_a_distance_of_the_radius_is_within_it_wherever_it_is_in_the_array(spacing_mm, axis):
    size_mm, steps = spacing_mm[axis], 30
    mask = np.zeros([500 if each == axis else 2 for each in range(3)], bool)
    planes = np.moveaxis(mask, axis, 0)
    planes[440] = True
    expected = mask.copy()
    np.moveaxis(expected, axis, 0)[440 - steps : 440 + steps + 1] = True
    np.testing.assert_array_equal(distance_to_mm(mask, spacing_mm) <= steps * size_mm * (1 + ROUNDING), expected)
    np.testing.assert_array_equal(dilate_mm(mask, steps * size_mm, spacing_mm), expected)


def test_an_empty_mask_stays_empty():
    assert not dilate_mm(np.zeros((3, 4), bool), 5, (1, 1)).any()


@pytest.mark.parametrize("radius_mm", [-1, np.inf, np.nan])
def test_wrong_radii_are_refused(radius_mm):
    with pytest.raises(ValueError, match="radius_mm"):
        dilate_mm(np.ones((3, 3), bool), radius_mm, (1, 1))


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (1, 0), (1, -1), (1, np.inf), (1, np.nan)])
@pytest.mark.parametrize("operation", [dilate_mm, erode_mm, open_mm, close_mm])
def test_wrong_spacings_are_refused(operation, spacing_mm):
    with pytest.raises(GeometryError, match="spacing_mm"):
        operation(np.ones((3, 3), bool), 1, spacing_mm)
    with pytest.raises(GeometryError, match="spacing_mm"):
        distance_to_mm(np.ones((3, 3), bool), spacing_mm)


NO_MASKS = [np.ones((3, 3)), np.full((3, 3), np.nan), np.full((3, 3), -1), np.ones((2, 2, 2, 2), int)]


@pytest.mark.parametrize("mask", NO_MASKS)
def test_what_is_no_mask_is_refused(mask):
    for operation in (dilate_mm, erode_mm, open_mm, close_mm):
        with pytest.raises(LabelError, match="mask"):
            operation(mask, 1, (1,) * mask.ndim)


def test_bounding_box_with_margin_is_cut_off_at_the_edge():
    mask = np.zeros((10, 10), bool)
    mask[2:4, 9] = True
    assert bounding_box(mask) == (slice(2, 4), slice(9, 10))
    assert bounding_box(mask, 3) == (slice(0, 7), slice(6, 10))
    assert bounding_box(np.zeros((2, 2), bool)) is None


MASKS = hnp.arrays(bool, st.tuples(*[st.integers(1, 8)] * 3))


def ball(radius_voxels: int, axes: int = 3) -> np.ndarray:
    return (np.square(np.indices([2 * radius_voxels + 1] * axes) - radius_voxels)).sum(axis=0) <= radius_voxels**2


def padded(operation, mask: np.ndarray, radius_voxels: int) -> np.ndarray:
    """scipy's result as if there were background around the array, without end."""
    wide = np.pad(mask, 2 * radius_voxels + 1)
    return operation(wide, ball(radius_voxels, mask.ndim))[
        (slice(2 * radius_voxels + 1, -2 * radius_voxels - 1),) * mask.ndim
    ]


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(0, 4))
def test_balls_of_whole_voxels_are_scipys(mask, radius_voxels):
    spacing_mm = (1, 1, 1)
    for ours, theirs in (
        (dilate_mm, ndimage.binary_dilation),
        (erode_mm, ndimage.binary_erosion),
        (open_mm, ndimage.binary_opening),
        (close_mm, ndimage.binary_closing),
    ):
        np.testing.assert_array_equal(ours(mask, radius_voxels, spacing_mm), padded(theirs, mask, radius_voxels))


@settings(max_examples=60, deadline=None)
@given(MASKS, st.floats(0, 4), st.tuples(*[st.floats(0.5, 3)] * 3))
def test_opening_and_closing_hold_what_they_should(mask, radius_mm, spacing_mm):
    opened, closed = open_mm(mask, radius_mm, spacing_mm), close_mm(mask, radius_mm, spacing_mm)
    assert not (opened & ~mask).any() and not (mask & ~closed).any()
    np.testing.assert_array_equal(open_mm(opened, radius_mm, spacing_mm), opened)  # once is enough
    turned = open_mm(mask.transpose(2, 0, 1), radius_mm, (spacing_mm[2], *spacing_mm[:2]))
    np.testing.assert_array_equal(turned, opened.transpose(2, 0, 1))


@settings(max_examples=40, deadline=None)
@given(MASKS, st.floats(0, 9), st.tuples(*[st.floats(0.5, 3)] * 3))
def test_both_ways_to_dilate_agree(mask, radius_mm, spacing_mm):
    results = []
    for most_shifts in (0, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(geometry, "MOST_SHIFTS", most_shifts)
            results.append(dilate_mm(mask, radius_mm, spacing_mm))
    np.testing.assert_array_equal(*results)


@settings(max_examples=60, deadline=None)
@given(MASKS, st.tuples(*[st.floats(0.3, 3)] * 3))
def test_distances_are_scipys(mask, spacing_mm):
    found = distance_to_mm(mask, spacing_mm)
    assert found.dtype == np.float32
    if mask.any():
        expected = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    else:
        assert np.isinf(found).all()


def test_a_radius_is_reached_in_spite_of_rounding():
    line = np.zeros((1, 1, 200), bool)
    line[0, 0, 100] = True
    for voxels, method in itertools.product((2, 50), (0, 10**9)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(geometry, "MOST_SHIFTS", method)
            grown = dilate_mm(line, voxels * 0.365, (0.7, 0.365, 0.365))
        assert np.count_nonzero(grown) == 2 * voxels + 1


def test_in_two_dimensions_and_any_memory_layout():
    mask = np.random.default_rng(0).random((20, 31)) < 0.6
    before = mask.copy()
    for ours, theirs in ((open_mm, ndimage.binary_opening), (close_mm, ndimage.binary_closing)):
        expected = padded(theirs, mask, 2)
        for layout in (mask, np.asfortranarray(mask), np.repeat(mask, 2, axis=1)[:, ::2], mask.astype(np.int16)):
            np.testing.assert_array_equal(ours(layout, 2, (1, 1)), expected)
    np.testing.assert_array_equal(mask, before)


def test_a_large_radius_takes_one_distance_transform_and_a_small_one_none(monkeypatch):
    taken = []
    monkeypatch.setattr(geometry, "distance_to_mm", lambda *args: taken.append(1) or distance_to_mm(*args))
    mask = np.zeros((40, 40, 40), bool)
    mask[15:25, 15:25, 15:25] = True
    open_mm(mask, 3, (1, 1, 1))
    close_mm(mask, 3, (1, 1, 1))
    assert not taken
    dilate_mm(mask, 18, (1, 1, 1))
    assert len(taken) == 1
