import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnunet_anomaly.geometry import bounding_box, dilate_mm


@given(hnp.arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)), st.floats(0, 4), st.tuples(*[st.floats(0.3, 3)] * 3))
def test_dilation_is_the_distance_to_the_nearest_voxel(mask, radius_mm, spacing_mm):
    points = np.argwhere(mask) * spacing_mm
    everywhere = np.argwhere(np.ones_like(mask)) * spacing_mm
    expected = mask.copy()
    if len(points):
        distances = np.linalg.norm(everywhere[:, None] - points[None], axis=-1).min(axis=1)
        if np.any(np.abs(distances - radius_mm) < 1e-9):
            return  # on the very edge, rounding decides
        expected = (distances <= radius_mm).reshape(mask.shape)
    np.testing.assert_array_equal(dilate_mm(mask, radius_mm, spacing_mm), expected)


def test_an_empty_mask_stays_empty():
    assert not dilate_mm(np.zeros((3, 4), bool), 5, (1, 1)).any()


@pytest.mark.parametrize(("radius_mm", "spacing_mm"), [(-1, (1, 1)), (1, (1, 1, 1))])
def test_wrong_arguments_are_refused(radius_mm, spacing_mm):
    with pytest.raises(ValueError, match=r"radius_mm|spacing_mm"):
        dilate_mm(np.ones((3, 3), bool), radius_mm, spacing_mm)


def test_bounding_box_with_margin_is_cut_off_at_the_edge():
    mask = np.zeros((10, 10), bool)
    mask[2:4, 9] = True
    assert bounding_box(mask) == (slice(2, 4), slice(9, 10))
    assert bounding_box(mask, 3) == (slice(0, 7), slice(6, 10))
    assert bounding_box(np.zeros((2, 2), bool)) is None
