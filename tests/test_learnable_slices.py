"""Which slices a network of healthy bone learns from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from skimage.transform import resize

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.learnable_slices import learnable_slices, read_slice_list, stored_slices


def of_whole(labels):
    return {"bbox_used_for_cropping": [[0, size] for size in labels.shape]}


@given(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.integers(0, 3)))
def test_slices_hold_the_region_and_no_lesion(labels):
    expected = [
        number
        for number, plane in enumerate(labels)
        if any(value == 1 for value in plane.flat) and not any(value == 3 for value in plane.flat)
    ]
    assert learnable_slices(labels, labels, of_whole(labels), (1, 3), (3,)) == expected
    listed = {0, 2, 7}
    some = [number for number in expected if number in listed]
    assert learnable_slices(labels, labels, of_whole(labels), (1, 3), (3,), listed) == some


def test_without_lesion_labels_every_slice_of_the_region_counts():
    labels = np.zeros((4, 3, 3), np.int16)
    labels[1, 0, 0], labels[2, 1, 1] = 1, -1
    assert learnable_slices(labels, labels, of_whole(labels), (1,)) == [1]
    assert learnable_slices(np.zeros((2, 3, 3), np.int16), labels, of_whole(labels), (1,), (2,)) == []


def test_a_lesion_that_vanishes_in_preprocessing_counts():
    stored = np.ones((9, 8, 8), np.uint8)
    stored[[1, 4, 8], 3, 3] = 2
    labels = np.ones((6, 4, 4), np.int16)  # cropped to slices 2 to 7, resampled, and no lesion is left
    cropped = {"bbox_used_for_cropping": [[2, 8], [0, 8], [0, 8]]}
    assert learnable_slices(labels, stored, cropped, (1,), (2,)) == [0, 1, 3, 4, 5]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2))
def test_stored_slices_are_those_that_resampling_mixes(stored, count, cropped):
    """Against scikit-image's, which nnU-Net resamples with: where one stored slice alone is not 0."""
    properties = {"bbox_used_for_cropping": [[cropped, cropped + stored], [0, 1], [0, 1]]}
    made_of = [set(range(*stored_slices(number, count, properties).indices(99))) for number in range(count)]
    for number in range(stored):
        impulse = (np.arange(stored) == number).astype(float)[:, None, None]
        for order in (0, 1):
            found = resize(impulse, (count, 1, 1), order, mode="edge", anti_aliasing=False)[:, 0, 0]
            assert all(cropped + number in made_of[place] for place in np.flatnonzero(found > 1e-6))
    assert set().union(*made_of) == set(range(cropped, cropped + stored))
    if stored == count:
        assert made_of == [{cropped + number} for number in range(stored)]


def test_a_list_names_the_slices(tmp_path):
    path = tmp_path / "healthy.csv"
    path.write_text("slice,case,note\n3,knee_1,\n4,knee_1,\n0,knee_2,good\n", encoding="utf-8")
    assert read_slice_list(path) == {"knee_1": {3, 4}, "knee_2": {0}}


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
