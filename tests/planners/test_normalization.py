import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.planners.normalization import (
    MedianQuartileNormalization,
    QuartileFingerprintNormalization,
    QuartileNormalization,
    ZScoreClipped01Normalization,
)


def normalise(image, seg=None, use_mask=False, **properties):
    return ZScoreClipped01Normalization(use_mask, properties).run(image.astype(np.float32), seg)


def test_it_is_z_score_clip_and_rescale():
    image = np.random.default_rng(0).normal(100, 20, (4, 30, 30))
    image[0, 0, 0] = 1e4  # beyond 5 standard deviations
    z = (image - image.mean()) / image.std()
    np.testing.assert_allclose(normalise(image), (np.clip(z, -5, 5) + 5) / 10, atol=1e-5)


def test_the_clip_comes_from_the_plans():
    image = np.random.default_rng(0).normal(size=(2, 50, 50))
    narrow = normalise(image, anomaly_clip_sd=1.0)
    assert narrow.min() == 0 and narrow.max() == 1
    assert np.mean(narrow == 1) == pytest.approx(0.1587, abs=0.02)  # above one standard deviation


def test_a_constant_image_becomes_the_middle():
    np.testing.assert_allclose(normalise(np.full((2, 3, 3), 7.0)), 0.5)


def test_outside_the_mask_it_is_black():
    image = np.random.default_rng(0).normal(50, 5, (2, 8, 8))
    seg = np.zeros_like(image, dtype=int)
    seg[:, :4] = -1
    result = normalise(image, seg, use_mask=True)
    assert (result[:, :4] == 0).all()
    inside = image[:, 4:]
    np.testing.assert_allclose(result[:, 4:], ((inside - inside.mean()) / inside.std() + 5) / 10, atol=1e-5)


def by_quartiles(image):
    return QuartileNormalization(False, {}).run(image.astype(np.float32))


def test_quartiles_are_those_of_what_is_not_below_0_hu():
    image = np.random.default_rng(0).normal(50, 300, (6, 20, 20)).round()
    body = np.sort(image[image >= 0])
    low, high = np.percentile(body, (25, 75))
    expected = (np.where(image < 0, 0, image) - body.sum() / len(body)) / (high - low)
    np.testing.assert_allclose(by_quartiles(image), expected, atol=1e-5)
    air = np.full((6, 20, 100), -1000.0)
    with_air = by_quartiles(np.concatenate((image, air), axis=2))
    np.testing.assert_allclose(with_air[..., :20], expected, atol=1e-5)
    assert with_air.dtype == np.float32 and with_air[..., 20:].std() == 0


@pytest.mark.parametrize("value", [700.0, 0.0, -1000.0])
def test_a_constant_image_and_one_of_air_become_0(value):
    assert (by_quartiles(np.full((2, 3, 4), value)) == 0).all()


def test_where_quartiles_are_equal_the_standard_deviation_counts():
    image = np.zeros((4, 10, 10))
    image[0, 0, 0] = 1000  # metal in nothing
    values = image.ravel()
    np.testing.assert_allclose(by_quartiles(image), (image - values.mean()) / values.std(), rtol=1e-5)


def test_statistics_of_all_cases_come_from_the_plans():
    image = np.array([[[-50.0, 100.0, 300.0]]])
    properties = {"anomaly_quartile_mean": 200.0, "anomaly_quartile_scale": 50.0}
    found = QuartileFingerprintNormalization(False, properties).run(image.astype(np.float32))
    np.testing.assert_array_equal(found, [[[-4, -2, 2]]])
    with pytest.raises(SettingsError, match="no anomaly_quartile_mean and no anomaly_quartile_scale"):
        QuartileFingerprintNormalization(False, {}).run(image)


def by_median_and_quartiles(image):
    return MedianQuartileNormalization(False, {}).run(np.asarray(image, dtype=np.float32))


def extrapolating_line(value, knots):
    """The value on the line through three points (x, -1), (x, 0), (x, 1), one voxel at a time."""
    low, median, high = knots
    return (value - median) / (median - low if value < median else high - median)


def test_median_and_quartiles_are_where_the_paper_wants_them():
    image = np.random.default_rng(0).gamma(2, 80, (5, 41, 29)).astype(np.float32)  # percentiles are voxels of it
    found = by_median_and_quartiles(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.percentile(found, (25, 50, 75)), (-1, 0, 1), atol=1e-5)

    low, median, high = np.percentile(image, (25, 50, 75))
    assert high - median > 1.2 * (median - low)
    inside = (image >= low) & (image <= high)
    np.testing.assert_allclose(found[inside], np.interp(image[inside], (low, median, high), (-1, 0, 1)), atol=1e-5)
    trimmed = np.clip(image, *np.percentile(image, (3, 97)))
    expected = [extrapolating_line(float(value), (low, median, high)) for value in trimmed.flat]
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4, atol=1e-4)
    assert (found == found.max()).sum() == pytest.approx(0.03 * image.size, abs=2)
    assert (found == found.min()).sum() == pytest.approx(0.03 * image.size, abs=2)


def test_it_neither_changes_its_input_nor_looks_at_the_mask():
    image = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    before, seg = image.copy(), np.full(image.shape, -1)
    found = MedianQuartileNormalization(True, {}).run(image, seg)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(found, by_median_and_quartiles(image))


@pytest.mark.parametrize("image", [np.zeros((2, 3, 4)), np.full((2, 3, 4), -7.5), [[[1e4]]], [7.0] * 99 + [900.0]])
def test_where_trimming_leaves_one_value_it_becomes_0(image):
    assert (by_median_and_quartiles(image) == 0).all()


def test_without_voxels_there_are_none():
    assert by_median_and_quartiles(np.zeros((0, 4, 4))).shape == (0, 4, 4)


def test_where_the_median_is_a_quartile_the_other_side_gives_the_scale():
    low_side_flat = np.repeat([0.0, 10.0, 30.0, 50.0], [10, 45, 30, 15])  # quartiles 10, 10, 30
    np.testing.assert_array_equal(np.unique(by_median_and_quartiles(low_side_flat)), [-0.5, 0, 1, 2])
    np.testing.assert_array_equal(np.unique(by_median_and_quartiles(-low_side_flat)), [-2, -1, 0, 0.5])


def test_where_it_is_both_the_standard_deviation_does():
    image = np.repeat([0.0, 8.0], [80, 20])
    np.testing.assert_allclose(by_median_and_quartiles(image), image / image.std(), rtol=1e-6)


whole_numbers = arrays(np.int16, array_shapes(min_dims=1, max_dims=3, max_side=9), elements=st.integers(-500, 500))


@given(whole_numbers, st.integers(1, 50), st.integers(-1000, 1000))
def test_scale_and_offset_of_the_scanner_do_not_matter(image, factor, offset):
    other = image.astype(np.float32) * factor + offset
    np.testing.assert_allclose(by_median_and_quartiles(other), by_median_and_quartiles(image), rtol=1e-4, atol=1e-4)


@given(whole_numbers)
def test_it_is_finite_keeps_the_order_and_has_the_median_at_0(image):
    found = by_median_and_quartiles(image)
    assert np.isfinite(found).all()
    order = np.argsort(image.ravel(), kind="stable")
    assert (np.diff(found.ravel()[order]) >= 0).all()
    assert np.sum(found > 0) <= image.size / 2 and np.sum(found < 0) <= image.size / 2
