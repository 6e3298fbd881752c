"""Trained reconstruction models on raw images: what is refused before a network runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_anomaly.error_maps.model import check_orientation, prepare_case
from nnunet_anomaly.errors import InputError

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
