import numpy as np
import pytest

from nnunet_anomaly.planners.normalization import ZScoreClipped01Normalization


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
