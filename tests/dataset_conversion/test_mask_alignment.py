"""Which way round a mask lies: on tiny knees, and on a real knee's labels with painted intensities."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_anomaly.dataset_conversion.mask_alignment import (
    FLIPS,
    LEAST_SCORE,
    best_alignment,
    common_alignment,
    decide_flip,
    flip_scores,
    flipped,
)
from nnunet_anomaly.errors import GeometryError, InputError

BONE, CARTILAGE = (1, 3), (2, 4)
SPACING_MM = (0.7, 0.36, 0.36)


@pytest.mark.parametrize("flip", FLIPS)
def test_flipped_reverses_the_named_axes_and_is_its_own_inverse(flip):
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    axes = [] if flip == "none" else ["zyx".index(axis) for axis in flip]
    np.testing.assert_array_equal(flipped(array, flip), np.flip(array, axes))
    np.testing.assert_array_equal(flipped(flipped(array, flip), flip), array)


def test_unknown_flip():
    with pytest.raises(ValueError, match="'xy'"):
        flipped(np.zeros((1, 1, 1)), "xy")


@pytest.mark.parametrize("flip", FLIPS)
def test_every_flip_is_found(tools, flip):
    image, label = tools.knee(1)
    found = best_alignment(flip_scores(image, flipped(label, flip), SPACING_MM, BONE, CARTILAGE))
    assert found.is_clear
    assert found.flip == flip


def test_score_by_hand():
    """Contrast term of a volume of flat tissues with one odd voxel each, and a gradient that is the same everywhere."""
    label = np.zeros((1, 2, 4), np.uint8)
    label[0, 0], label[0, 1] = 1, 2
    image = np.array([[[0, 10, 0, 10], [50, 60, 50, 60]]], dtype=np.int16)
    scores = flip_scores(np.repeat(image, 2, axis=0), np.repeat(label, 2, axis=0), (1, 1, 1), (1,), (2,))
    gradient = np.hypot(np.full((2, 4), 50.0), np.array([[10, 0, 0, 10], [10, 0, 0, 10]]))
    border = (gradient.mean() - gradient.mean()) / gradient.std()  # all voxels are border
    assert scores["none"] == pytest.approx((55 - 5) / 5 + border, rel=1e-5)
    assert scores["y"] == pytest.approx(-10, rel=1e-5)


@pytest.mark.parametrize(("label", "missing"), [(0, "bone"), (1, "cartilage"), (2, "bone")])
def test_mask_without_bone_or_cartilage(label, missing):
    with pytest.raises(InputError, match=f"no {missing}"):
        flip_scores(np.ones((3, 3, 3)), np.full((3, 3, 3), label), (1, 1, 1), BONE, CARTILAGE)


def test_flat_image_fits_no_way_round(tools):
    scores = flip_scores(np.full((12, 16, 16), 7.0), tools.knee(1)[1], SPACING_MM, BONE, CARTILAGE)
    assert set(scores.values()) == {0.0}
    assert not best_alignment(scores).is_clear


def test_symmetric_knee_is_unclear_alone():
    label = np.zeros((8, 12, 8), np.uint8)
    label[2:6, 1:5, 2:6], label[2:6, 5:6, 2:6], label[2:6, 6:7, 2:6], label[2:6, 7:11, 2:6] = 1, 2, 4, 3
    image = np.array([100, 40, 200, 40, 200])[label] + np.random.default_rng(0).normal(0, 5, label.shape)
    scores = flip_scores(image, label, (1, 1, 1), BONE, CARTILAGE)
    assert best_alignment(scores).score > LEAST_SCORE
    assert not best_alignment(scores).is_clear
    with pytest.raises(GeometryError, match="unclear"):
        decide_flip(scores, "per-case")


def scores_with(**values: float) -> dict[str, float]:
    return {flip: values.get(flip, 0.0) for flip in FLIPS}


@pytest.mark.parametrize(
    ("scores", "option", "common", "flip", "note"),
    [
        (scores_with(zy=4, z=1), "auto", "zy", "zy", None),
        (scores_with(zy=4, y=3.9), "auto", "zy", "zy", "image alone does not say"),
        (scores_with(zy=3.9, y=4), "auto", "zy", "zy", "image alone does not say"),
        (scores_with(zy=4, z=1), "per-case", None, "zy", None),
        (scores_with(zy=4, z=1), "zy", None, "zy", None),
        (scores_with(zy=4, z=1), "x", None, "x", "fits better otherwise: best flip zy"),
        (scores_with(zy=4, z=3.9), "x", None, "x", None),
    ],
)
def test_decision(scores, option, common, flip, note):
    found, notes = decide_flip(scores, option, common)
    assert found == flip
    assert (note is None and not notes) or note in notes[0]


@pytest.mark.parametrize(
    ("scores", "option", "common", "message"),
    [
        (scores_with(zy=0.1), "auto", "zy", "does not fit the image"),
        (scores_with(zy=1, y=4), "auto", "zy", "lies otherwise than those of the release"),
        (scores_with(zy=1, y=4, x=3.9), "auto", "zy", "lies otherwise"),
        (scores_with(zy=4, y=3.9), "per-case", None, "unclear"),
        (scores_with(zy=0.2), "per-case", None, "unclear"),
    ],
)
def test_no_decision(scores, option, common, message):
    with pytest.raises(GeometryError, match=message):
        decide_flip(scores, option, common)


def test_cases_decide_together_what_one_cannot():
    unclear = scores_with(zy=3, y=2.9)
    assert not common_alignment([unclear]).is_clear
    together = common_alignment([unclear, scores_with(zy=4, y=1), scores_with(zy=4, z=1)])
    assert together.is_clear
    assert together.flip == "zy"
    assert together.score == pytest.approx(11 / 3)


@pytest.mark.parametrize(("noise", "lesions"), [(25, 0), (60, 5), (90, 8)])
def test_real_knee_with_painted_intensities(real_data, noise, lesions):
    """A real right knee (pymskt), a quarter of its resolution, with noise, a bias field and bright marrow lesions."""
    file = real_data / "knee_dess_labels" / "SAG_3D_DESS_RIGHT_bones_cart_men_fib-label.nrrd"
    image = sitk.ReadImage(str(file))
    anatomy = sitk.GetArrayFromImage(image)[::2, ::4, ::4]
    spacing_mm = [size * step for size, step in zip(image.GetSpacing()[::-1], (2, 4, 4), strict=True)]
    label = np.array([0, 2, 4, 4, 0, 1, 3, 0, 0, 0, 0])[anatomy]
    rng = np.random.default_rng(noise)
    grey = np.array([90, 200, 190, 190, 200, 45, 45, 45, 60, 40, 40], float)[anatomy]
    grey[anatomy == 0] += 35 * ndimage.gaussian_filter(rng.normal(0, 6, anatomy.shape), 3)[anatomy == 0]
    places = np.argwhere(np.isin(label, BONE))
    for place in places[rng.integers(0, len(places), lesions)]:
        distance = np.linalg.norm((np.indices(anatomy.shape).T - place).T, axis=0)
        grey[np.isin(label, BONE)] += 150 * np.exp(-((distance / 6) ** 2))[np.isin(label, BONE)]
    grey *= np.linspace(0.6, 1.4, anatomy.shape[2])
    grey = np.hypot(grey + rng.normal(0, noise, grey.shape), rng.normal(0, noise, grey.shape))
    for flip in ("none", "z", "zy"):
        found = best_alignment(flip_scores(grey, flipped(label, flip), spacing_mm, BONE, CARTILAGE))
        assert found.is_clear, found
        assert found.flip == flip
