"""Trained reconstruction models on raw images: what is refused before a network runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_anomaly.error_maps.model import check_orientation, prepare_case, two_pass_region
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.settings import AnomalySettings

TWO_CHANNELS = {"channel_names": {"0": "MR", "1": "CT"}, "file_ending": ".nii.gz"}


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ((0,), "1 channels, but the model takes 2"),
        ((0, 2), "Channel 1 is missing: there is case_0002.nii.gz"),
        ((1, 2), "Channel 0 is missing: there is case_0001.nii.gz"),
        ((0, 1, 2), "3 channels, but the model takes 2"),
    ],
)
def test_the_channels_are_those_of_the_model(channels, words):
    images = [Path(f"case_{channel:04d}.nii.gz") for channel in channels]
    with pytest.raises(InputError, match=words):
        prepare_case(images, None, None, None, TWO_CHANNELS)


def test_an_image_that_lies_otherwise_than_the_training_images_is_refused():
    properties = {"sitk_stuff": {"direction": (0, 0, 1, 1, 0, 0, 0, 1, 0)}}
    check_orientation(properties, "PSL")
    check_orientation(properties, "")
    with pytest.raises(InputError, match=r"lies as PSL, but .* as LPS.*DICOMOrient\(image, 'LPS'\)"):
        check_orientation(properties, "LPS")


def test_masks_that_were_filled_before_are_erased_as_they_are():
    labels = np.zeros((1, 5, 30, 30), np.int16)
    labels[:, 1:4, 2:28, 2:28] = 1
    labels[:, 1:4, 5:25, 5:25] = 0  # a wide ring, open towards other slices
    model = SimpleNamespace(
        settings=AnomalySettings().with_values({"roi.labels": [1]}),
        configuration=SimpleNamespace(spacing=[1.0, 1.0]),
        plans=SimpleNamespace(transpose_forward=[0, 1, 2]),
        margin_mm=0.0,
        masks_are_filled=False,
    )
    case = SimpleNamespace(labels=labels, properties={"spacing": [3.0, 1.0, 1.0]})
    assert two_pass_region(model, case)[1:4, 2:28, 2:28].all()
    model.masks_are_filled = True
    np.testing.assert_array_equal(two_pass_region(model, case), labels[0] == 1)
    model.margin_mm = 1.0
    assert two_pass_region(model, case).sum() > (labels == 1).sum()
