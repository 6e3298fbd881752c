"""Surface distances against brute force, scipy's distance transform and shapes with known answers."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from scipy.spatial import cKDTree

from nnunet_anomaly.errors import GeometryError, LabelError
from nnunet_anomaly.evaluation import surface
from nnunet_anomaly.evaluation.surface import (
    SurfaceDistances,
    average_surface_distance_mm,
    hausdorff_distance_mm,
    mean_directed_surface_distance_mm,
    normalized_surface_dice,
    pooled_hausdorff_distance_mm,
    surface_distances,
)

KNEE_SPACING_MM = (0.7, 0.365, 0.365)
REDUCERS = (
    average_surface_distance_mm,
    mean_directed_surface_distance_mm,
    hausdorff_distance_mm,
    lambda distances: hausdorff_distance_mm(distances, 95),
    lambda distances: pooled_hausdorff_distance_mm(distances, 95),
)


def measure(reference, prediction, spacing_mm, label=1) -> SurfaceDistances:
    return surface_distances(reference, prediction, spacing_mm, [label])[label]


def boundary_points(mask: np.ndarray) -> np.ndarray:
    """Indices of voxels with a face neighbour outside, by looking at each of them."""
    points = []
    for index in map(tuple, np.argwhere(mask)):
        for axis, step in product(range(mask.ndim), (-1, 1)):
            neighbour = list(index)
            neighbour[axis] += step
            if not 0 <= neighbour[axis] < mask.shape[axis] or not mask[tuple(neighbour)]:
                points.append(index)
                break
    return np.array(points, dtype=float).reshape(-1, mask.ndim)


def brute_force(reference: np.ndarray, prediction: np.ndarray, spacing_mm) -> tuple[np.ndarray, np.ndarray]:
    a, b = (boundary_points(mask) * spacing_mm for mask in (reference, prediction))
    if not len(a) or not len(b):
        return np.full(len(a), np.inf), np.full(len(b), np.inf)
    pairs = np.linalg.norm(a[:, None] - b[None], axis=2)
    return pairs.min(axis=1), pairs.min(axis=0)


def masks(*shape: int):
    return arrays.arrays(bool, shape)


def assert_same_distances(found: SurfaceDistances, expected: tuple[np.ndarray, np.ndarray]) -> None:
    for ours, theirs in zip((found.from_reference_mm, found.from_prediction_mm), expected, strict=True):
        np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(masks(4, 6, 5), masks(4, 6, 5), st.sampled_from([(1, 1, 1), KNEE_SPACING_MM, (5.0, 0.5, 0.4)]))
def test_all_pairs_of_dense_masks(reference, prediction, spacing_mm):
    assert_same_distances(measure(reference, prediction, spacing_mm), brute_force(reference, prediction, spacing_mm))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 15)] * 3), max_size=6),
    st.lists(st.tuples(*[st.integers(0, 15)] * 3), max_size=6),
    st.sampled_from([(1, 1, 1), KNEE_SPACING_MM, (5.0, 0.5, 0.4)]),
)
def test_all_pairs_of_far_voxels(ours, theirs, spacing_mm):
    reference, prediction = np.zeros((2, 16, 16, 16), dtype=bool)
    for mask, points in ((reference, ours), (prediction, theirs)):
        for point in points:
            mask[point] = True
    assert_same_distances(measure(reference, prediction, spacing_mm), brute_force(reference, prediction, spacing_mm))


@settings(max_examples=40, deadline=None)
@given(masks(9, 8), masks(9, 8))
def test_two_dimensions(reference, prediction):
    assert_same_distances(measure(reference, prediction, (0.4, 0.7)), brute_force(reference, prediction, (0.4, 0.7)))


@settings(max_examples=30, deadline=None)
@given(
    arrays.arrays(np.uint8, (5, 6, 4), elements=st.integers(0, 3)),
    arrays.arrays(np.uint8, (5, 6, 4), elements=st.integers(0, 3)),
)
def test_labels_are_measured_each_by_itself(reference, prediction):
    together = surface_distances(reference, prediction, KNEE_SPACING_MM, [1, 2, 3])
    for label, found in together.items():
        assert_same_distances(found, brute_force(reference == label, prediction == label, KNEE_SPACING_MM))


@settings(max_examples=30, deadline=None)
@given(masks(4, 5, 6), masks(4, 5, 6))
def test_swapping_permuting_shifting_and_scaling(reference, prediction):
    found = measure(reference, prediction, KNEE_SPACING_MM)
    swapped = measure(prediction, reference, KNEE_SPACING_MM)
    assert_same_distances(swapped, (found.from_prediction_mm, found.from_reference_mm))
    expected = (found.from_reference_mm, found.from_prediction_mm)
    permuted = measure(reference.transpose(2, 0, 1), prediction.transpose(2, 0, 1), (0.365, 0.7, 0.365))
    assert_same_distances(permuted, expected)
    margins = ((1, 2), (0, 3), (2, 0))
    shifted = measure(np.pad(reference, margins), np.pad(prediction, margins), KNEE_SPACING_MM)
    assert_same_distances(shifted, expected)
    in_um = measure(reference, prediction, [1000 * size for size in KNEE_SPACING_MM])
    assert_same_distances(in_um, (expected[0] * 1000, expected[1] * 1000))


def edt_distances(reference, prediction, spacing_mm):
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (reference, prediction)]
    to_reference, to_prediction = (ndimage.distance_transform_edt(~edge, sampling=spacing_mm) for edge in edges)
    return to_prediction[edges[0]], to_reference[edges[1]]


def test_smooth_shapes_with_a_far_island_against_distance_transforms():
    rng = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(rng.normal(size=(30, 60, 60)), 4)
    reference = noise > np.quantile(noise, 0.8)
    prediction = ndimage.shift(noise, (0.6, -1.3, 0.8), order=1, mode="nearest") > np.quantile(noise, 0.78)
    prediction[27:29, 2:5, 2:5] = True
    found = measure(reference, prediction, KNEE_SPACING_MM)
    assert found.from_reference_mm.max() > 1
    assert_same_distances(found, edt_distances(reference, prediction, KNEE_SPACING_MM))


@pytest.mark.parametrize("near_voxels", [1, 2, 4])
def test_reach_of_the_neighbour_search_changes_nothing(near_voxels, monkeypatch):
    rng = np.random.default_rng(0)
    reference, prediction = rng.random((2, 12, 14, 10)) < 0.02
    expected = measure(reference, prediction, (1.1, 0.5, 0.8))
    monkeypatch.setattr(surface, "NEAR_VOXELS", near_voxels)
    found = measure(reference, prediction, (1.1, 0.5, 0.8))
    assert_same_distances(found, (expected.from_reference_mm, expected.from_prediction_mm))


def test_small_errors_need_no_tree(monkeypatch):
    reference = np.zeros((12, 12, 12), dtype=bool)
    reference[3:9, 3:9, 3:9] = True
    prediction = np.roll(reference, 1, axis=1)
    made = []
    monkeypatch.setattr(surface, "cKDTree", lambda *args, **kwargs: made.append(args))
    assert hausdorff_distance_mm(measure(reference, prediction, (1, 1, 1))) == 1
    assert not made


def test_only_far_points_are_looked_for_in_a_tree(monkeypatch):
    """Counts work instead of seconds: of all surface points those of the island alone are searched for."""
    reference = np.zeros((30, 30, 60), dtype=bool)
    reference[5:25, 5:25, 5:25] = True
    prediction = np.roll(reference, 1, axis=1)
    prediction[10:12, 10:12, 50:52] = True
    searched, made = [], []

    class CountingTree(cKDTree):
        def __init__(self, points, **options):
            made.append(len(points))
            super().__init__(points, **options)

        def query(self, points):
            searched.append(len(points))
            return super().query(points)

    monkeypatch.setattr(surface, "cKDTree", CountingTree)
    assert hausdorff_distance_mm(measure(reference, prediction, (1, 1, 1))) == pytest.approx(27)
    assert searched == [8]
    assert made == [20**3 - 18**3]


def cube_pair(size: int, shift: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    cube = np.zeros((size + 6,) * 3, dtype=np.uint8)
    cube[(slice(3, 3 + size),) * 3] = 1
    return cube, np.roll(cube, shift, axis=axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_two_cubes_shifted_by_one_voxel(axis):
    size, voxel_mm = 5, KNEE_SPACING_MM[axis]
    reference, prediction = cube_pair(size, 1, axis)
    found = measure(reference, prediction, KNEE_SPACING_MM)
    # of the 98 boundary voxels of a 5-cube, 25 lie outside the other cube, and 9 inside: those are next to its face, or
    # nearer to a side wall, 1, 2 or 1 voxels away
    sides = [KNEE_SPACING_MM[other] for other in range(3) if other != axis]
    inside = [min(voxel_mm, i * sides[0], j * sides[1]) for i in (1, 2, 1) for j in (1, 2, 1)]
    expected = np.sort([0.0] * (98 - 25 - 9) + [voxel_mm] * 25 + inside)
    np.testing.assert_allclose(np.sort(found.from_reference_mm), expected, rtol=1e-12)
    np.testing.assert_allclose(np.sort(found.from_prediction_mm), expected, rtol=1e-12)
    assert average_surface_distance_mm(found) == pytest.approx(expected.mean())
    assert mean_directed_surface_distance_mm(found) == pytest.approx(expected.mean())
    assert hausdorff_distance_mm(found) == pytest.approx(voxel_mm)
    assert hausdorff_distance_mm(found, 95) == pytest.approx(voxel_mm)
    assert normalized_surface_dice(found, 0.99 * min(KNEE_SPACING_MM)) == pytest.approx(64 / 98)
    assert normalized_surface_dice(found, voxel_mm) == 1


def test_tolerance_is_reached_in_spite_of_rounding():
    reference, prediction = np.zeros((2, 1, 1, 9), dtype=bool)
    reference[..., 0] = prediction[..., 3] = True
    found = measure(reference, prediction, (1, 1, 0.1))
    assert found.from_reference_mm[0] != 0.3
    assert normalized_surface_dice(found, 0.3) == 1


def test_spheres_of_different_radius():
    z, y, x = np.ogrid[-20:21, -40:41, -40:41]
    spacing_mm = (1.0, 0.5, 0.5)
    radius_mm = np.sqrt((z * 1.0) ** 2 + (y * 0.5) ** 2 + (x * 0.5) ** 2)
    found = measure(radius_mm <= 12, radius_mm <= 15, spacing_mm)
    # the centre of a boundary voxel lies up to one voxel inside its sphere
    assert average_surface_distance_mm(found) == pytest.approx(3, abs=0.25)
    assert found.pooled_mm.min() >= 2
    assert found.pooled_mm.max() <= 4


def test_definitions_part_where_they_should():
    distances = SurfaceDistances(np.zeros(20), np.array([0.0, 0.0, 10.0, 20.0]))
    assert average_surface_distance_mm(distances) == pytest.approx(30 / 24)
    assert mean_directed_surface_distance_mm(distances) == pytest.approx(7.5 / 2)
    assert hausdorff_distance_mm(distances) == 20
    assert hausdorff_distance_mm(distances, 95) == pytest.approx(18.5)
    assert pooled_hausdorff_distance_mm(distances, 95) == pytest.approx(0.85 * 10)
    assert normalized_surface_dice(distances, 1.0) == pytest.approx(22 / 24)


def test_identical_masks():
    reference, _ = cube_pair(4, 0, 0)
    found = measure(reference, reference, KNEE_SPACING_MM)
    assert [reduce(found) for reduce in REDUCERS] == [0] * 5
    assert normalized_surface_dice(found, 0) == 1


def test_single_voxels():
    reference, prediction = np.zeros((2, 20, 20, 20), dtype=bool)
    reference[1, 2, 3] = prediction[13, 18, 15] = True
    found = measure(reference, prediction, (1, 2, 3))
    distance_mm = math.hypot(12, 32, 36)
    assert [reduce(found) for reduce in REDUCERS] == pytest.approx([distance_mm] * 5)


def test_array_edge_counts_as_boundary():
    everything = np.ones((4, 4, 4), dtype=bool)
    assert measure(everything, everything, (1, 1, 1)).from_reference_mm.size == 4**3 - 2**3


def test_one_slice_is_all_boundary_and_the_2d_slice_is_not():
    block = np.zeros((1, 9, 9), dtype=bool)
    block[0, 2:7, 2:7] = True
    assert measure(block, block, (3, 1, 1)).from_reference_mm.size == 25
    assert measure(block[0], block[0], (1, 1)).from_reference_mm.size == 16


def test_empty_masks():
    nothing = np.zeros((5, 5, 5), dtype=np.uint8)
    something = nothing.copy()
    something[2, 2, 1:4] = 1
    both = measure(nothing, nothing, (1, 1, 1))
    absent = measure(something, something, (1, 1, 1), label=7)
    for distances in (both, absent):
        assert distances.pooled_mm.size == 0
        assert all(math.isnan(reduce(distances)) for reduce in REDUCERS)
        assert math.isnan(normalized_surface_dice(distances, 1))
    for one in (measure(something, nothing, (1, 1, 1)), measure(nothing, something, (1, 1, 1))):
        assert one.pooled_mm.size == 3
        assert [reduce(one) for reduce in REDUCERS] == [math.inf] * 5
        assert normalized_surface_dice(one, 1000) == 0


@pytest.mark.parametrize("dtype", [np.int16, ">u2", np.int64])
@pytest.mark.parametrize("layout", ["C", "F", "strided", "memmap"])
def test_any_integers_in_any_layout_unchanged(dtype, layout, tmp_path):
    rng = np.random.default_rng(1)
    pair = []
    for index in range(2):
        plain = (rng.integers(0, 3, (6, 7, 8)) * 300).astype(dtype)
        if layout == "strided":
            wide = np.zeros((6, 14, 8), dtype)
            wide[:, ::2] = plain
            pair.append(wide[:, ::2])
        elif layout == "memmap":
            np.save(tmp_path / f"{index}.npy", plain)
            pair.append(np.load(tmp_path / f"{index}.npy", mmap_mode="r"))
        else:
            pair.append(np.asarray(plain, order=layout))
    before = [np.array(array) for array in pair]
    found = surface_distances(pair[0], pair[1], KNEE_SPACING_MM, [300, 600])
    for label in (300, 600):
        assert_same_distances(found[label], brute_force(before[0] == label, before[1] == label, KNEE_SPACING_MM))
    for array, copy in zip(pair, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_bad_input_is_named():
    mask = np.ones((3, 3, 3), dtype=bool)
    with pytest.raises(GeometryError, match="same grid"):
        measure(mask, mask[1:], (1, 1, 1))
    for spacing_mm in ((1, 1), (1, 0, 1), (1, math.nan, 1), (1, -1, 1)):
        with pytest.raises(GeometryError, match="spacing_mm"):
            measure(mask, mask, spacing_mm)
    with pytest.raises(LabelError, match="float32"):
        measure(mask.astype(np.float32), mask, (1, 1, 1))
    with pytest.raises(LabelError, match="background"):
        measure(mask, mask, (1, 1, 1), label=0)
    with pytest.raises(ValueError, match="negative"):
        normalized_surface_dice(measure(mask, mask, (1, 1, 1)), -1)
