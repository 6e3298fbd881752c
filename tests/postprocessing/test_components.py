"""Component cleaning against scipy's labelling, label by label, and against nnU-Net's own function."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.errors import GeometryError, LabelError, SettingsError
from nnunet_anomaly.postprocessing.components import keep_components, keep_components_with_record

SPACING_MM = (0.7, 0.4, 0.4)
LABEL_MAPS = arrays.arrays(np.uint8, (5, 6, 7), elements=st.sampled_from([0, 0, 0, 1, 2]))


def keep_by_scipy(label_map: np.ndarray, share: float, connectivity: int, labels=(1, 2)) -> np.ndarray:
    rank = {6: 1, 18: 2, 26: 3, 4: 1, 8: 2}[connectivity]
    structure = ndimage.generate_binary_structure(label_map.ndim, rank)
    cleaned = label_map.copy()
    for label in labels:
        numbers, count = ndimage.label(label_map == label, structure)
        sizes = [int((numbers == number).sum()) for number in range(1, count + 1)]
        for number, size in enumerate(sizes, start=1):
            if size / max(sizes) < share:
                cleaned[numbers == number] = 0
    return cleaned


@settings(max_examples=60, deadline=None)
@given(LABEL_MAPS, st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.sampled_from([6, 18, 26]))
def test_equal_to_labelling_each_label_by_scipy(label_map, share, connectivity):
    found = keep_components(label_map, SPACING_MM, min_share_of_largest=share, connectivity=connectivity)
    np.testing.assert_array_equal(found, keep_by_scipy(label_map, share, connectivity))


@settings(max_examples=25, deadline=None)
@given(LABEL_MAPS)
def test_in_two_dimensions_6_means_faces_and_26_corners(label_map):
    for ours, theirs in ((6, 4), (18, 8), (26, 8)):
        found = keep_components(label_map[0], (1, 1), min_share_of_largest=1.0, connectivity=ours)
        np.testing.assert_array_equal(found, keep_by_scipy(label_map[0], 1.0, theirs))


@settings(max_examples=25, deadline=None)
@given(LABEL_MAPS)
def test_largest_only_equals_nnunet(label_map):
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

    expected = label_map
    for label in (1, 2):
        if (label_map == label).any():
            expected = remove_all_but_largest_component_from_segmentation(expected, label)
    np.testing.assert_array_equal(keep_components(label_map, SPACING_MM, min_share_of_largest=1.0), expected)


def broken_bone() -> np.ndarray:
    label_map = np.zeros((4, 30, 30), dtype=np.uint8)
    label_map[:, 2:12, 2:12] = 3  # 400 voxels
    label_map[:, 2:12, 20:28] = 3  # 320 voxels: the other plateau
    label_map[0:2, 25:28, 25:28] = 3  # 18 voxels: an island
    label_map[0, 20, 0:15] = 1  # 15 voxels
    label_map[0, 22, 0:3] = 1  # 3 voxels: exactly 20 %
    label_map[0, 24, 0:2] = 1
    return label_map


def test_islands_go_and_both_parts_stay():
    label_map = broken_bone()
    cleaned, record = keep_components_with_record(label_map, SPACING_MM)
    expected = label_map.copy()
    expected[0:2, 25:28, 25:28] = 0
    expected[0, 24] = 0
    np.testing.assert_array_equal(cleaned, expected)
    assert record == {
        "1": {"components": 3, "voxels": 20, "removed_components": 1, "removed_voxels": 2},
        "3": {"components": 3, "voxels": 738, "removed_components": 1, "removed_voxels": 18},
    }


def test_labels_not_named_stay():
    label_map = broken_bone()
    cleaned = keep_components(label_map, SPACING_MM, min_share_of_largest=1, labels=[1])
    np.testing.assert_array_equal(cleaned == 3, label_map == 3)
    assert (cleaned == 1).sum() == 15


def test_equally_large_components_all_stay():
    label_map = np.array([[1, 0, 1, 0, 1]])
    np.testing.assert_array_equal(keep_components(label_map, (1, 1), min_share_of_largest=1), label_map)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, ">i4", np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dtype_is_kept_and_input_not_changed(dtype, order):
    label_map = np.asarray(broken_bone(), dtype=dtype, order=order)
    label_map.flags.writeable = False
    cleaned = keep_components(label_map, SPACING_MM)
    assert cleaned.dtype == label_map.dtype
    assert cleaned.flags.writeable
    value = 1 if dtype is bool else 3
    np.testing.assert_array_equal(cleaned[2], label_map[2])
    assert not cleaned[0, 25, 25] and cleaned[0, 2, 2] == value


def test_labels_up_to_65535():
    label_map = np.zeros((1, 3, 9), dtype=np.int32)
    label_map[0, 0, :] = 65535
    label_map[0, 2, 4] = 65535
    assert (keep_components(label_map, (1, 1, 1)) == 65535).sum() == 9


def test_empty_and_trivial_label_maps():
    for shape in ((3, 4, 5), (0, 4, 5), (4, 5)):
        empty = np.zeros(shape, dtype=np.uint8)
        cleaned, record = keep_components_with_record(empty, (1.0,) * len(shape))
        assert cleaned.shape == shape and not cleaned.any() and record == {}
        assert label_components(empty).sizes_voxels.size == 0
    single = np.zeros((3, 3, 3), dtype=np.uint8)
    single[1, 1, 1] = 9
    np.testing.assert_array_equal(keep_components(single, (1, 1, 1)), single)


def test_bad_input_is_named():
    label_map = broken_bone()
    with pytest.raises(LabelError, match="float64"):
        keep_components(label_map.astype(float), SPACING_MM)
    with pytest.raises(LabelError, match="background"):
        keep_components(label_map, SPACING_MM, labels=[0])
    with pytest.raises(GeometryError, match="spacing_mm"):
        keep_components(label_map, (1, 1))
    with pytest.raises(SettingsError, match="connectivity"):
        keep_components(label_map, SPACING_MM, connectivity=8)
    for share in (-0.1, 1.1, "0.2", float("nan")):
        with pytest.raises(SettingsError, match="min_share_of_largest"):
            keep_components(label_map, SPACING_MM, min_share_of_largest=share)
