"""Refinement against loops over voxels and slices, in every orientation, and on nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nnunet_anomaly.errors import GeometryError, InputError
from nnunet_anomaly.relaxometry.decay_models import Quality
from nnunet_anomaly.relaxometry.refine import candidates, refine_mask, refine_probability

# slices along axis 0, 1 and 2 of the array
DIRECTIONS = {
    0: (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    1: (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    2: (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
}
RANGE_MS = (0.0, 100.0)


def maps(seed, shape=(5, 7, 6)):
    rng = np.random.default_rng(seed)
    probability = rng.choice([0, 0.005, 0.01, 0.02, 0.4, 0.501, 0.6, 1], shape).astype(np.float32)
    t2_ms = rng.choice([0.0, 1.0, 35.0, 99.9, 100.0, 100.1, 1000.0], shape)
    quality = rng.choice([Quality.CONVERGED] * 6 + list(Quality), shape).astype(np.uint8)
    t2_ms[~np.isin(quality, [Quality.CONVERGED, Quality.AT_BOUND])] = np.nan
    return probability, t2_ms, quality


def by_loops(probability, t2_ms, quality, axis, area_mm2, threshold, minimum_mm2):
    mask = np.zeros(probability.shape, bool)
    counts = dict.fromkeys(("candidates", "without_t2", "outside_range", "improbable", "in_small_slices"), 0)
    for index in np.ndindex(probability.shape):
        if not float(probability[index]) > 0.01:
            continue
        counts["candidates"] += 1
        if quality[index] != Quality.CONVERGED:
            counts["without_t2"] += 1
        elif not 0 < t2_ms[index] <= 100:
            counts["outside_range"] += 1
        elif float(probability[index]) < threshold:
            counts["improbable"] += 1
        else:
            mask[index] = True
    small = []
    for number in range(mask.shape[axis]):
        plane = np.moveaxis(mask, axis, 0)[number]  # a view
        if plane.sum() > 0 and plane.sum() * area_mm2 < minimum_mm2 - 1e-9:
            counts["in_small_slices"] += int(plane.sum())
            small.append(number)
            plane[:] = False
    return mask, counts | {"small_slices": tuple(small), "kept": int(mask.sum())}


@pytest.mark.parametrize(("axis", "seed"), list(itertools.product(DIRECTIONS, range(4))))
def test_against_loops(axis, seed):
    probability, t2_ms, quality = maps(seed)
    spacing_mm = (3.0, 0.5, 0.4)
    area_mm2 = float(np.prod([size for other, size in enumerate(spacing_mm) if other != axis]))
    for threshold, voxels in itertools.product((0.0, 0.4, 0.5, 1.0), (0, 1, 3, 6, 100)):
        found = refine_probability(
            probability,
            t2_ms,
            quality,
            spacing_mm=spacing_mm,
            direction=DIRECTIONS[axis],
            range_ms=RANGE_MS,
            candidate_probability=0.01,
            threshold=threshold,
            minimum_slice_mm2=voxels * area_mm2,
        )
        mask, counts = by_loops(probability, t2_ms, quality, axis, area_mm2, threshold, voxels * area_mm2)
        np.testing.assert_array_equal(found.mask, mask)
        assert found.counts() == counts


def test_an_experts_mask_keeps_its_small_slices_and_loses_only_what_has_no_t2_of_cartilage():
    _, t2_ms, quality = maps(9)
    mask = np.random.default_rng(1).random(t2_ms.shape) < 0.3
    found = refine_mask(mask.astype(np.uint8), t2_ms, quality, RANGE_MS)
    expected = np.array(
        [
            mask[index] and quality[index] == Quality.CONVERGED and 0 < t2_ms[index] <= 100
            for index in np.ndindex(mask.shape)
        ]
    ).reshape(mask.shape)
    np.testing.assert_array_equal(found.mask, expected)
    counts = found.counts()
    assert counts["candidates"] == counts["without_t2"] + counts["outside_range"] + counts["kept"]
    assert counts["improbable"] == counts["in_small_slices"] == 0 and not found.small_slices
    assert counts["outside_range"] and counts["without_t2"]


def test_425_pixels_of_the_paper_are_kept_by_the_default_area_and_424_are_not():
    from nnunet_anomaly.settings import T2Settings

    for pixels, kept in ((425, True), (424, False)):
        probability = np.zeros((2, 20, 30))
        probability[0].ravel()[:pixels] = 1
        found = refine_probability(
            probability,
            np.full(probability.shape, 40.0),
            np.full(probability.shape, Quality.CONVERGED),
            spacing_mm=(3.5, 0.446, 0.313),
            direction=DIRECTIONS[0],
            range_ms=RANGE_MS,
            candidate_probability=0.01,
            threshold=0.501,
            minimum_slice_mm2=T2Settings().minimum_slice_mm2,
        )
        assert found.mask.any() == kept, pixels


def test_nothing_in_nothing_out():
    empty = np.zeros((3, 4, 5))
    t2_ms, quality = np.full(empty.shape, np.nan), np.zeros(empty.shape, np.uint8)
    nothing = {name: 0 for name in ("candidates", "without_t2", "outside_range", "improbable", "in_small_slices")}
    nothing |= {"kept": 0, "small_slices": ()}
    assert refine_mask(empty != 0, t2_ms, quality, RANGE_MS).counts() == nothing
    settings = {"range_ms": RANGE_MS, "candidate_probability": 0.01, "threshold": 0.5, "minimum_slice_mm2": 60.0}
    place = {"spacing_mm": (3.0, 1.0, 1.0), "direction": DIRECTIONS[0]}
    assert refine_probability(empty, t2_ms, quality, **place, **settings).counts() == nothing


def test_what_is_no_probability_or_does_not_fit_is_refused():
    shape = (3, 4, 5)
    for value in (-0.1, 1.1, np.nan):
        with pytest.raises(InputError, match="from 0 to 1"):
            candidates(np.full(shape, value), 0.01)
    with pytest.raises(GeometryError, match=r"\(3, 4, 5\)"):
        refine_mask(np.ones((2, 2, 2), bool), np.ones(shape), np.ones(shape, np.uint8), RANGE_MS)
