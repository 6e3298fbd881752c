"""Pieces under the twin's label go back to their side, and nothing is made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from nnunet_anomaly.errors import GeometryError, LabelError, SettingsError
from nnunet_anomaly.geometry import bounding_box
from nnunet_anomaly.postprocessing import symmetric_components as module
from nnunet_anomaly.postprocessing.collisions import collision_set
from nnunet_anomaly.postprocessing.gap_opening import open_gaps
from nnunet_anomaly.postprocessing.symmetric_components import symmetric_components, symmetric_components_with_record

MM = (1.0, 1.0, 1.0)
PAIRS = [(1, 2), (3, 4)]


def by_scipy(label_map: np.ndarray, keep_largest: bool) -> np.ndarray:
    """The definition, label by label."""
    result = label_map.copy()
    twins = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
    for label, twin in twins.items():
        numbers, count = ndimage.label(label_map == label, np.ones((3,) * label_map.ndim))
        sizes = np.bincount(numbers.ravel())[1:]
        if count and (label_map == twin).any():
            for number in np.flatnonzero(sizes < sizes.max()) + 1:
                result[numbers == number] = twin
    for label in np.unique(result[result > 0]) if keep_largest else ():
        numbers, _ = ndimage.label(result == label, np.ones((3,) * label_map.ndim))
        sizes = np.bincount(numbers.ravel())[1:]
        result[np.isin(numbers, np.flatnonzero(sizes < sizes.max()) + 1)] = 0
    return result


def two_bones() -> np.ndarray:
    """A left (1) and a right (2) bone, and a single one (5) between them."""
    label_map = np.zeros((20, 20, 40), np.uint8)
    label_map[4:16, 4:16, 2:14], label_map[4:16, 4:16, 26:38], label_map[8:12, 8:12, 18:22] = 1, 2, 5
    return label_map


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 7)] * 3), elements=st.sampled_from([0, 0, 1, 2, 3, 5])),
    st.booleans(),
)
def test_equal_to_the_definition_by_scipy(label_map, keep_largest):
    found = symmetric_components(label_map, MM, pairs=PAIRS, keep_largest=keep_largest)
    np.testing.assert_array_equal(found, by_scipy(label_map, keep_largest))
    assert found.dtype == label_map.dtype


def test_swapped_pieces_and_islands_are_mended_exactly():
    truth = two_bones()
    wrong = truth.copy()
    wrong[4:7][truth[4:7] == 1] = 2  # the upper end of the left bone
    wrong[14:][truth[14:] == 2] = 1
    wrong[0, 0, :2] = 1
    wrong[0, 19, 39] = 5
    found, record = symmetric_components_with_record(wrong, MM, pairs=PAIRS)
    np.testing.assert_array_equal(found, truth)
    # what lay under the left bone's label on the right, and the island beside
    assert record["1"]["relabelled_voxels"] == np.count_nonzero((truth == 2) & (wrong == 1)) + 2
    assert record["1"]["twin"] == 2 and record["5"]["removed_voxels"] == 1
    assert record["2"]["removed_voxels"] == 2  # the island became the twin's, and then fell off


def test_nothing_is_relabelled_into_existence():
    only_left = np.where(two_bones() == 2, 0, two_bones())
    only_left[0, 0, 0] = 1
    found, record = symmetric_components_with_record(only_left, MM, pairs=PAIRS)
    assert not (found == 2).any()
    np.testing.assert_array_equal(found, np.where(two_bones() == 2, 0, two_bones()))
    assert "relabelled_voxels" not in record["1"]


def test_twins_that_touch_stay_apart():
    label_map = np.zeros((6, 6, 12), np.uint8)
    label_map[..., :6], label_map[..., 6:] = 1, 2
    np.testing.assert_array_equal(symmetric_components(label_map, MM, pairs=[(1, 2)]), label_map)


def test_what_the_method_cannot_restore():
    """By its definition; the record names every voxel of it."""
    truth = np.zeros((12, 6, 20), np.uint8)
    truth[..., :8], truth[..., 12:] = 1, 2
    # the middle of a bone under its twin's label: the smaller end is taken for the twin's, and dropped
    middle = truth.copy()
    middle[4:8, :, :8] = 2
    middle[8:10, :, :8] = 1
    middle[10:, :, :8] = 0
    found, record = symmetric_components_with_record(middle, MM, pairs=[(1, 2)])
    np.testing.assert_array_equal(found[:8], truth[:8])
    assert not found[8:, :, :8].any() and record["2"]["removed_voxels"] == 2 * 6 * 8
    # most of both bones under the other's label: left and right are exchanged
    most = np.where(np.arange(12)[:, None, None] < 8, (3 - truth) * (truth > 0), truth)
    np.testing.assert_array_equal(symmetric_components(most, MM, pairs=[(1, 2)]), (3 - truth) * (truth > 0))
    # a piece that touches the twin whose label it bears is a part of that
    touching = np.zeros((12, 6, 20), np.uint8)
    touching[..., :10], touching[..., 10:] = 1, 2
    touching[:3, :, 5:10] = 2
    np.testing.assert_array_equal(symmetric_components(touching, MM, pairs=[(1, 2)]), touching)


def test_equally_large_components_stay_where_they_are():
    label_map = np.zeros((3, 3, 12), np.int16)
    label_map[..., :2], label_map[..., 4:6], label_map[..., 8:] = 1, 1, 2
    np.testing.assert_array_equal(symmetric_components(label_map, MM, pairs=[(1, 2)]), label_map)


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5), (0, 3, 3)])
def test_empty_and_single_voxels(shape):
    label_map, spacing_mm = np.zeros(shape, np.uint8), (1.0,) * len(shape)
    np.testing.assert_array_equal(symmetric_components(label_map, spacing_mm, pairs=PAIRS), label_map)
    if label_map.size:
        label_map[(1,) * label_map.ndim] = 2
        np.testing.assert_array_equal(symmetric_components(label_map, spacing_mm, pairs=PAIRS), label_map)


def test_any_layout_and_the_input_is_not_changed():
    rng = np.random.default_rng(3)
    label_map = ndimage.zoom(rng.integers(0, 5, (4, 4, 4)), 3, order=0).astype(np.uint16)
    expected = symmetric_components(label_map, MM, pairs=PAIRS)
    for variant in (np.asfortranarray(label_map), np.repeat(label_map, 2, 1)[:, ::2], label_map.astype(">i4")):
        before = variant.copy()
        variant.flags.writeable = False
        np.testing.assert_array_equal(symmetric_components(variant, MM, pairs=PAIRS), expected)
        np.testing.assert_array_equal(variant, before)


@pytest.mark.parametrize("pairs", [[], [(1, 1)], [(1, 2), (2, 3)], [(1, 2, 3)]])
def test_pairs_that_are_none(pairs):
    with pytest.raises(SettingsError, match="pairs"):
        symmetric_components(two_bones(), MM, pairs=pairs)


def test_bad_input_is_named():
    with pytest.raises(LabelError, match="not labels"):
        symmetric_components(two_bones(), MM, pairs=[(0, 1)])
    with pytest.raises(LabelError, match="float"):
        symmetric_components(two_bones().astype(float), MM, pairs=PAIRS)
    with pytest.raises(GeometryError, match="spacing_mm"):
        symmetric_components(two_bones(), (1, 1), pairs=PAIRS)


def test_two_labellings_do_it_all(monkeypatch):
    """Counts work instead of seconds: components are found once before and once after."""
    calls = []
    for target in (module, __import__("nnunet_anomaly.postprocessing.components", fromlist=["x"])):
        original = target.label_components
        monkeypatch.setattr(target, "label_components", lambda *args, f=original: calls.append(1) or f(*args))
    symmetric_components(two_bones(), MM, pairs=PAIRS)
    assert len(calls) == 2


@pytest.mark.parametrize("number", range(6))
def test_real_pelves_with_swapped_pieces_and_islands_are_restored_exactly(real_data: Path, number: int):
    """E is large where a bone bears two labels, and that of the untouched label map afterwards."""
    paths = sorted((real_data / "hip_labels").glob("*.nii.gz"))
    assert len(paths) == 6
    image = sitk.ReadImage(str(paths[number]))
    truth = sitk.GetArrayFromImage(image).astype(np.uint8)
    truth = truth[bounding_box(truth != 0, margin_voxels=4)]
    spacing_mm = image.GetSpacing()[::-1]
    assert np.array_equal(symmetric_components(truth, spacing_mm, pairs=PAIRS), truth)
    wrong = truth.copy()
    for label, twin in ((1, 2), (2, 1), (3, 4), (4, 3)):
        slices = np.flatnonzero((truth == label).any(axis=(1, 2)))
        end = slices[: max(1, len(slices) // 8)]
        wrong[end] = np.where(truth[end] == label, twin, wrong[end])
    corner = tuple(slice(0, 3) for _ in range(3))
    wrong[corner] = np.where(truth[corner] == 0, 5, truth[corner])
    assert np.count_nonzero(wrong != truth) > 1000
    found = symmetric_components(wrong, spacing_mm, pairs=PAIRS)
    assert np.array_equal(found, truth)
    before, after = (np.count_nonzero(collision_set(of, spacing_mm)) for of in (wrong, found))
    print(f"{paths[number].name}: |E| {before} voxels before, {after} after")
    assert after < 1100 and before > after + 1000
    # and what is left of E can be opened
    opened = open_gaps(found, spacing_mm)
    assert not collision_set(opened, spacing_mm).any()
