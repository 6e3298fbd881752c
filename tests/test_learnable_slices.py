"""Which slices a network of healthy bone learns from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.learnable_slices import first_slice, learnable_slices, read_slice_list


@given(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.integers(0, 3)))
def test_slices_hold_the_region_and_no_lesion(labels):
    expected = [
        number
        for number, plane in enumerate(labels)
        if any(value == 1 for value in plane.flat) and not any(value == 3 for value in plane.flat)
    ]
    assert learnable_slices(labels, (1, 3), (3,)) == expected


def test_without_lesion_labels_every_slice_of_the_region_counts():
    labels = np.zeros((4, 3, 3), np.int16)
    labels[1, 0, 0], labels[2, 1, 1] = 1, -1
    assert learnable_slices(labels, (1,)) == [1]
    assert learnable_slices(np.zeros((2, 3, 3), np.int16), (1,), (2,)) == []


def test_a_list_names_the_slices(tmp_path):
    path = tmp_path / "healthy.csv"
    path.write_text("slice,case,note\n3,knee_1,\n4,knee_1,\n0,knee_2,good\n", encoding="utf-8")
    assert read_slice_list(path) == {"knee_1": {3, 4}, "knee_2": {0}}
    assert first_slice({"bbox_used_for_cropping": [[2, 9], [0, 4], [0, 4]]}) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,number\na,1\n", "needs the columns case, slice"),
        ("case,slice\n", "at least one row"),
        ("case,slice\na,1\nb,-1\n", "line 3 of"),
        ("case,slice\n,1\n", "line 2 of"),
        ("case,slice\na,\n", "line 2 of"),
    ],
)
def test_a_list_that_is_none_is_named(tmp_path, text, message):
    path = tmp_path / "healthy.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_slice_list(path)
    with pytest.raises(InputError, match="does not exist"):
        read_slice_list(tmp_path / "none.csv")
