"""Gaps open evenly, nearest voxels first, and no structure vanishes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from nnunet_anomaly.errors import GeometryError, LabelError, SettingsError
from nnunet_anomaly.postprocessing.collisions import collision_set
from nnunet_anomaly.postprocessing.gap_opening import open_gaps, open_gaps_with_record

MM = (1.0, 1.0, 1.0)
SPACING_MM = (0.9, 0.5, 0.5)
LABEL_MAPS = hnp.arrays(np.uint8, (3, 4, 5), elements=st.sampled_from([0, 0, 1, 1, 2, 3]))


def by_definition(label_map: np.ndarray, spacing_mm, distance_mm: float) -> np.ndarray:
    """Pair by pair, shortest first; a component that vanished is taken out, and all begins anew."""
    parts = {
        (label, number): numbers == number
        for label in np.unique(label_map[label_map > 0])
        for numbers, count in [ndimage.label(label_map == label, np.ones((3,) * label_map.ndim))]
        for number in range(1, count + 1)
    }
    considered = label_map.copy()
    while True:
        left = considered.copy()
        voxels = np.argwhere(considered)
        pairs = [
            (round(math.dist(a * spacing_mm, b * spacing_mm), 6), tuple(a), tuple(b))
            for a, b in itertools.combinations(voxels, 2)
            if considered[tuple(a)] != considered[tuple(b)]
        ]
        for length, group in itertools.groupby(sorted(pairs), key=lambda pair: pair[0]):
            if length <= distance_mm + 1e-6:
                gone = [(a, b) for _, a, b in group if left[a] and left[b]]
                for voxel in itertools.chain.from_iterable(gone):
                    left[voxel] = 0
        removed = (considered != 0) & (left == 0)
        lost = [part for part in parts.values() if considered[part].any() and removed[part].all()]
        if not lost:
            return np.where(removed, 0, label_map)
        for part in lost:
            considered[part] = 0


@settings(max_examples=40, deadline=None)
@given(LABEL_MAPS, st.sampled_from([0.5, 0.75, 1.0, 1.5]))
def test_equal_to_the_definition_pair_by_pair(label_map, distance_mm):
    spacing_mm = np.array(SPACING_MM)
    found = open_gaps(label_map, SPACING_MM, distance_mm=distance_mm)
    np.testing.assert_array_equal(found, by_definition(label_map, spacing_mm, distance_mm))


def test_where_walls_curve_more_goes_than_it_takes():
    """A ball in a socket, as in a hip joint: some of the voxels could be put back without a new collision."""
    radius = np.sqrt(((np.indices((17, 17, 17)) - 8) ** 2).sum(axis=0))
    label_map = np.where(radius <= 5, 1, np.where(radius <= 8, 2, 0)).astype(np.uint8)
    opened = open_gaps(label_map, MM, distance_mm=2)
    assert not collision_set(opened, MM, distance_mm=2).any()
    removed = [tuple(voxel) for voxel in np.argwhere(opened != label_map)]
    put_back = 0
    for voxel in removed:
        opened[voxel] = label_map[voxel]
        around = tuple(slice(max(0, at - 2), at + 3) for at in voxel)
        if collision_set(opened[around], MM, distance_mm=2).any():
            opened[voxel] = 0
        else:
            put_back += 1
    assert 0 < put_back < len(removed) / 2


@settings(max_examples=40, deadline=None)
@given(LABEL_MAPS, st.sampled_from([0.5, 1.0, 1.5]), st.permutations([1, 2, 3]), st.sampled_from([0, 1, 2]))
def test_only_collisions_go_and_neither_names_nor_sides_matter(label_map, distance_mm, names, axis):
    found, record = open_gaps_with_record(label_map, SPACING_MM, distance_mm=distance_mm)
    collisions = collision_set(label_map, SPACING_MM, distance_mm=distance_mm)
    np.testing.assert_array_equal(found[~collisions], label_map[~collisions])
    assert ((found == label_map) | (found == 0)).all()
    numbers = sum(entry.get("removed_voxels", 0) for entry in record.values())
    assert numbers == np.count_nonzero(found != label_map)
    if not any("components_left_alone" in entry for entry in record.values()):
        assert not collision_set(found, SPACING_MM, distance_mm=distance_mm).any()
    renamed = np.array([0, *names], np.uint8)
    np.testing.assert_array_equal(open_gaps(renamed[label_map], SPACING_MM, distance_mm=distance_mm), renamed[found])
    mirrored = open_gaps(np.flip(label_map, axis), SPACING_MM, distance_mm=distance_mm)
    np.testing.assert_array_equal(mirrored, np.flip(found, axis))


@settings(max_examples=40, deadline=None)
@given(LABEL_MAPS, st.sampled_from([0.5, 1.0, 2.0]))
def test_every_component_leaves_something(label_map, distance_mm):
    found = open_gaps(label_map, SPACING_MM, distance_mm=distance_mm)
    for label in (1, 2, 3):
        numbers, count = ndimage.label(label_map == label, np.ones((3, 3, 3)))
        assert set(np.unique(numbers[found == label])) == set(range(1, count + 1))


@pytest.mark.parametrize(
    ("gap_voxels", "distance_mm", "layers"),
    [(0, 1, 1), (0, 2, 1), (0, 3, 2), (0, 4, 2), (1, 1, 0), (1, 2, 1), (2, 2, 0)],
)
def test_two_walls_lose_as_many_layers_as_it_takes(gap_voxels, distance_mm, layers):
    """Walls whose nearest voxels are g apart need floor((distance - g) / 2) + 1 layers less on both sides."""
    label_map = np.zeros((5, 6, 30), np.uint8)
    label_map[..., 3:13], label_map[..., 13 + gap_voxels : 26] = 1, 2
    expected = label_map.copy()
    expected[..., 13 - layers : 13 + gap_voxels + layers] = 0
    found, record = open_gaps_with_record(label_map, MM, distance_mm=distance_mm)
    np.testing.assert_array_equal(found, expected)
    removed = {label: entry["removed_voxels"] for label, entry in record.items()}
    assert removed == ({"1": layers * 30, "2": layers * 30} if layers else {})


def test_a_small_structure_inside_a_large_one_is_left_alone():
    label_map = np.full((7, 7, 7), 1, np.uint8)
    label_map[3, 3, 3] = 2
    found, record = open_gaps_with_record(label_map, MM, distance_mm=2)
    np.testing.assert_array_equal(found, label_map)
    assert record == {"2": {"components_left_alone": 1}}


def test_other_labels_stay_and_count_as_background():
    label_map = np.zeros((4, 4, 12), np.int16)
    label_map[..., :4], label_map[..., 4:8], label_map[..., 8:] = 1, 2, 300
    found = open_gaps(label_map, MM, distance_mm=1, labels=[1, 300])
    np.testing.assert_array_equal(found, label_map)
    found = open_gaps(label_map, MM, distance_mm=1, labels=[1, 2])
    assert found.dtype == np.int16 and (found[..., 8:] == 300).all() and not found[..., 3:5].any()


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5), (0, 3, 3)])
def test_empty_label_maps_single_voxels_and_single_classes(shape):
    label_map, spacing_mm = np.zeros(shape, np.uint8), (1.0,) * len(shape)
    np.testing.assert_array_equal(open_gaps(label_map, spacing_mm), label_map)
    if label_map.size:
        label_map[(1,) * label_map.ndim] = 2
        np.testing.assert_array_equal(open_gaps(label_map, spacing_mm), label_map)
        np.testing.assert_array_equal(open_gaps(np.full(shape, 7), spacing_mm), np.full(shape, 7))


def test_two_dimensions():
    label_map = np.zeros((6, 8), np.uint8)
    label_map[:, :4], label_map[:, 4:] = 1, 2
    expected = label_map.copy()
    expected[:, 3:5] = 0
    np.testing.assert_array_equal(open_gaps(label_map, (1.0, 1.0), distance_mm=1), expected)


def test_any_layout_and_the_input_is_not_changed():
    label_map = np.zeros((4, 4, 12), np.uint8)
    label_map[..., :6], label_map[..., 6:] = 1, 2
    expected = open_gaps(label_map, MM)
    for variant in (np.asfortranarray(label_map), np.repeat(label_map, 2, 1)[:, ::2], label_map.astype(">i4")):
        before = variant.copy()
        variant.flags.writeable = False
        np.testing.assert_array_equal(open_gaps(variant, MM), expected)
        np.testing.assert_array_equal(variant, before)


def test_bad_input_is_named():
    label_map = np.ones((3, 3, 3), np.uint8)
    for distance_mm in (-1, math.inf, math.nan, "1", True):
        with pytest.raises(SettingsError, match="distance_mm"):
            open_gaps(label_map, MM, distance_mm=distance_mm)
    with pytest.raises(SettingsError, match="connectivity"):
        open_gaps(label_map, MM, connectivity=8)
    with pytest.raises(LabelError, match="background"):
        open_gaps(label_map, MM, labels=[0])
    with pytest.raises(GeometryError, match="spacing_mm"):
        open_gaps(label_map, (1, 1))
