import numpy as np
import pytest

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.planners.normalization import (
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
