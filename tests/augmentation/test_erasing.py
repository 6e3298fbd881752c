"""Spatial erasing: limits, places and sides, and that the target stays whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_anomaly.augmentation.erasing import SpatialErasingTransform, cubes, erased, grown_box, half, midline_of

SHAPES = st.one_of(st.tuples(*[st.integers(1, 24)] * 3), st.tuples(*[st.integers(2, 40)] * 2))
OPTIONS = {"share": (0.01, 0.25), "most_cubes": 10, "most_slices": 8, "side_axis": 2, "slice_axis": 0}


@settings(max_examples=150, deadline=None)
@given(SHAPES, st.integers(0, 2**32), st.integers(1, 10))
def test_cubes_erase_between_one_and_twenty_five_per_cent(shape, seed, most_cubes):
    region = cubes(shape, (0.01, 0.25), most_cubes, np.random.default_rng(seed))
    voxels = int(np.prod(shape))
    assert region.shape == shape and region.dtype == torch.bool
    assert max(1, 0.01 * voxels) <= int(region.sum()) <= max(1, 0.25 * voxels)
    assert torch.equal(region, cubes(shape, (0.01, 0.25), most_cubes, np.random.default_rng(seed)))


def test_shares_of_a_cube_are_uniform_and_reach_both_limits():
    shares = [
        float(cubes((32, 32, 32), (0.01, 0.25), 1, np.random.default_rng(seed)).float().mean()) for seed in range(600)
    ]
    assert min(shares) < 0.02 and max(shares) > 0.24
    assert np.mean(shares) == pytest.approx(0.13, abs=0.012)


def test_centres_are_uniform_over_the_image():
    """Boxes of one voxel show where centres fall: in every eighth of the image alike."""
    rng = np.random.default_rng(0)
    places = np.array([np.argwhere(cubes((8, 8, 8), (1e-9, 2e-3), 1, rng).numpy())[0] for _ in range(4000)])
    counts = np.histogramdd(places, bins=[[0, 4, 8]] * 3)[0].ravel()
    assert ((counts - 500) ** 2 / 500).sum() < 24.3  # chi square, 7 degrees of freedom, p = 0.001


@settings(max_examples=80, deadline=None)
@given(st.tuples(*[st.integers(4, 20)] * 3), st.data())
def test_a_box_away_from_the_edges_is_a_cube_but_for_one_layer(shape, data):
    centre = [data.draw(st.integers(0, size - 1)) for size in shape]
    voxels = data.draw(st.integers(1, int(np.prod(shape)) // 4))
    box = grown_box(shape, centre, voxels, int(np.prod(shape)))
    lengths = [part.stop - part.start for part in box]
    assert all(0 <= part.start <= c < part.stop <= size for part, c, size in zip(box, centre, shape, strict=True))
    assert np.prod(lengths) >= voxels
    touches = any(part.start == 0 or part.stop == size for part, size in zip(box, shape, strict=True))
    assert touches or max(lengths) - min(lengths) <= 1


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(1, 20))
def test_half_is_one_side_of_consecutive_slices(seed, midline, most_slices):
    region = half((10, 9, 14), midline, 2, 0, most_slices, np.random.default_rng(seed)).numpy()
    slices = np.flatnonzero(region.any(axis=(1, 2)))
    assert 1 <= len(slices) <= min(10, most_slices) and slices[-1] - slices[0] == len(slices) - 1
    for number in slices:
        left, right = region[number, :, :midline], region[number, :, midline:]
        assert (left.all() and not right.any()) or (right.all() and not left.any())


def test_both_sides_and_all_slices_are_erased():
    found = np.mean([half((10, 4, 8), 4, 2, 0, 5, np.random.default_rng(seed)).numpy() for seed in range(2000)], axis=0)
    assert found[:, 0, 0] == pytest.approx(found[:, 0, 7], abs=0.06)
    assert (found > 0.02).all()
    flat = half((4, 8), 3, 1, None, 5, np.random.default_rng(0)).numpy()
    assert flat[:, :3].all() != flat[:, 3:].all() and flat.any(axis=1).all()


def test_the_midline_is_that_of_the_brain_wherever_it_lies():
    image = torch.zeros(2, 6, 6, 20)
    image[1, 2:4, 1:5, 3:13] = 1
    assert midline_of(image, 2) == 8
    assert midline_of(torch.zeros(1, 4, 10), 1) == 5
    assert midline_of(torch.ones(1, 7), 0) == 3


def test_zeros_and_the_images_own_values():
    image = torch.arange(2 * 60, dtype=torch.float32).reshape(2, 3, 4, 5)
    region = torch.zeros(3, 4, 5, dtype=torch.bool)
    region[1] = True
    before = image.clone()
    zero, noise = (erased(image, region, fill, np.random.default_rng(0)) for fill in ("zero", "noise"))
    assert torch.equal(image, before)
    assert (zero[:, region] == 0).all() and torch.equal(zero[:, ~region], image[:, ~region])
    assert torch.equal(noise[:, ~region], image[:, ~region]) and not torch.equal(noise, image)
    assert torch.equal(noise[1] - noise[0], image[1] - image[0])  # all channels of one voxel
    assert torch.equal(erased(image, torch.zeros_like(region), "noise", np.random.default_rng(0)), image)


@pytest.mark.parametrize("kind", [None, "cube", "multi", "half"])
@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_the_target_is_whole_and_half_of_the_inputs_are_erased(kind, fill):
    transform = SpatialErasingTransform(kind, fill, probability=0.5, **OPTIONS)
    image = torch.rand(1, 12, 12, 12) + 0.1
    changed = 0
    np.random.seed(3)  # noqa: NPY002 - the state that nnU-Net's workers seed
    for _ in range(60):
        result = transform(image=image.clone())
        assert torch.equal(result["regression_target"], image)
        changed += int(not torch.equal(result["image"], image))
    assert (changed == 0) if kind is None else (18 <= changed <= 42)


def test_the_same_seed_erases_the_same():
    transform = SpatialErasingTransform("multi", "noise", probability=1.0, **OPTIONS)
    found = []
    for _ in range(2):
        np.random.seed(5)  # noqa: NPY002
        found.append(transform(image=torch.rand(1, 9, 9, 9, generator=torch.Generator().manual_seed(0)))["image"])
    assert torch.equal(*found)


def test_narrow_limits_are_refused():
    with pytest.raises(ValueError, match="at least twice"):
        SpatialErasingTransform("cube", "zero", probability=1.0, **{**OPTIONS, "share": (0.2, 0.25)})
