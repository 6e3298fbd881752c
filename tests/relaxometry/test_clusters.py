"""Registration of projections, difference and clusters: known shifts, hand values, brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_anomaly.errors import GeometryError, InputError
from nnunet_anomaly.relaxometry.clusters import Shift, change, find_clusters, moved, register
from nnunet_anomaly.relaxometry.unroll import project, unroll

BINS = 72


def plate(slices=24, first=4, last=20, start=18, stop=52):
    """A thickness map that is thicker in the middle."""
    rows, columns = np.arange(slices)[:, None], np.arange(BINS)[None]
    inside = (rows >= first) & (rows < last) & (columns >= start) & (columns < stop)
    thickness = 2 + np.sin((rows - first) / (last - first) * 3) + 0.5 * np.cos((columns - start) / 9)
    return np.where(inside, thickness, np.nan)


@settings(max_examples=40, deadline=None)
@given(slices=st.integers(-4, 4), bins=st.integers(-6, 6))
def test_whole_shifts_are_found(slices, bins):
    first = plate()
    second = np.full_like(first, np.nan)
    rows = np.arange(24)
    kept = (rows - slices >= 0) & (rows - slices < 24)
    second[rows[kept] - slices] = np.roll(first, -bins, axis=1)[kept]
    found = register(first, second)
    assert (found.slices, found.bins) == (slices, bins)
    assert found.similarity == pytest.approx(1)
    back = moved(second, found, 24)
    np.testing.assert_array_equal(back, first)
    np.testing.assert_array_equal(
        change(first, second + 3, found)[np.isfinite(first)], (first + 3 - first)[np.isfinite(first)]
    )


@pytest.mark.parametrize("numbers", [(7, 5), (12, 3), (3, 12), (1, 9), (9, 1)])
def test_the_best_of_all_shifts_by_brute_force(numbers):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        one, two = (np.where(rng.random((n, 12)) < 0.5, rng.random((n, 12)), np.nan) for n in numbers)
        found = register(one, two, most_degrees=60)
        best, filled = {}, np.nan_to_num(one)
        for slices in range(1 - len(two), len(one)):
            for bins in (-2, -1, 0, 1, 2):
                there = np.nan_to_num(moved(two, Shift(slices, bins, 0), len(one)))
                best[slices, bins] = (filled * there).sum()
        assert (found.slices, found.bins) == max(best, key=best.get)
        norm = math.sqrt((filled**2).sum() * np.nansum(two**2))
        assert found.similarity == pytest.approx(max(best.values()) / norm)


def test_a_scan_of_few_slices_lies_anywhere_in_one_of_many():
    whole = plate(30, 20, 28)
    for first, second, slices in ((whole, whole[20:28], 20), (whole[20:28], whole, -20)):
        found = register(first, second)
        assert (found.slices, found.bins) == (slices, 0)
        assert np.array_equal(moved(second, found, len(first)), first, equal_nan=True)


@pytest.mark.parametrize("by", [(0.5, 0.0), (0.0, 0.4), (-1.3, 2.6)])
def test_shifts_between_whole_ones(by):
    first = np.nan_to_num(plate())
    second = ndimage.shift(first, (-by[0], -by[1]), order=1)
    found = register(first, second, subpixel=True)
    np.testing.assert_allclose((found.slices, found.bins), by, atol=0.25)
    whole = register(first, second)
    assert whole.slices == round(whole.slices) and whole.bins == round(whole.bins)
    assert abs(whole.slices - by[0]) <= 0.6 and abs(whole.bins - by[1]) <= 0.6


def test_interpolation_takes_what_has_a_value():
    values = np.array([[1.0, 2.0, np.nan, 4.0]])
    # halfway between neighbours, round the circle
    np.testing.assert_allclose(moved(values, Shift(0, 0.5, 1), 1), [[2.5, 1.5, 2.0, 4.0]])
    np.testing.assert_allclose(moved(values, Shift(0, 0.25, 1), 1), [[1.75, 1.75, np.nan, 4.0]])
    np.testing.assert_array_equal(moved(values, Shift(2, 0, 1), 4), [[np.nan] * 4] * 2 + [values[0], [np.nan] * 4])


def test_a_knee_turned_and_moved_between_time_points(knee, drawn):
    later = drawn(10.0)
    mask = np.zeros_like(later.mask)
    mask[2:] = later.mask[:-2]  # two slices to the left
    first, second = (
        project(unroll(each, knee.spacing_mm, knee.direction), knee.radii_mm) for each in (knee.mask, mask)
    )
    found = register(first.thickness_mm, second.thickness_mm)
    assert (found.slices, found.bins) == (-2, -2)
    difference = change(first.mean, second.mean, found)
    assert np.mean(np.isfinite(difference) == np.isfinite(first.mean)) > 0.98


def test_nothing_to_register():
    empty = np.full((5, BINS), np.nan)
    found = register(empty, plate())
    assert (found.slices, found.bins) == (0, 0) and math.isnan(found.similarity)
    assert np.isnan(change(empty, plate(), found)).all()
    with pytest.raises(GeometryError, match="bins"):
        register(plate(), np.zeros((24, 36)))
    with pytest.raises(GeometryError, match="bins"):
        change(plate(), np.zeros((24, 36)), found)


def bumped():
    """A plate of 20 x 30 without change, with rises of 12, 8, 6 and 7 bins, and a fall."""
    difference = np.full((24, BINS), np.nan)
    difference[2:22, 20:50] = 0.0
    difference[4:7, 22:26] = 10.0
    difference[10:12, 22:26] = 9.0
    difference[15:17, 40:43] = 12.0
    difference[18, 22:29] = 12.0
    difference[4:10, 40:48] = -15.0
    return difference


def test_clusters_by_hand():
    difference = bumped()
    found = find_clusters(difference)
    values = difference[np.isfinite(difference)]
    assert found.plate_bins == 600
    assert found.mean_ms == pytest.approx(values.mean()) and found.sd_ms == pytest.approx(values.std())
    # 1 % of 600 bins are 6: a cluster needs more
    assert [row["bins"] for row in found.rows] == [12, 8, 7]
    assert [row["mean_change_ms"] for row in found.rows] == [10, 9, 12]
    assert found.rows[0]["percent_of_plate"] == pytest.approx(2)
    assert found.percent_of_plate == pytest.approx(100 * 27 / 600)
    assert found.label_map[5, 23] == 1 and found.label_map[10, 22] == 2 and found.label_map[18, 22] == 3
    assert not found.label_map[difference < 0].any()  # what falls is none
    assert [row["bins"] for row in find_clusters(difference, 0).rows] == [12, 8, 7, 6]
    assert [row["bins"] for row in find_clusters(-difference).rows] == [48]


def test_bins_that_touch_at_a_corner_are_one_cluster():
    difference = np.zeros((20, 20))
    difference[np.arange(6), np.arange(6)] = 5
    assert [row["bins"] for row in find_clusters(difference).rows] == [6]


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.1, 50), offset=st.floats(-20, 20))
def test_scale_and_offset_change_no_cluster(scale, offset):
    np.testing.assert_array_equal(find_clusters(bumped() * scale + offset).label_map, find_clusters(bumped()).label_map)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_an_even_change_has_no_cluster(value):
    rng = np.random.default_rng(0)
    found = find_clusters((rng.uniform(30, 50, (10, 20)) * 0 + value) * (1 + 1e-15 * rng.random((10, 20))))
    assert not found.rows and found.percent_of_plate == 0


def test_no_plate():
    found = find_clusters(np.full((4, BINS), np.nan))
    assert not found.rows and found.plate_bins == 0 and math.isnan(found.percent_of_plate) and math.isnan(found.mean_ms)
    with pytest.raises(GeometryError):
        find_clusters(np.zeros(4))
    with pytest.raises(InputError):
        find_clusters(np.zeros((4, 4)), 120)
