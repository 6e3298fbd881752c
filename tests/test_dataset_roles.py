import pytest

from nnunet_anomaly.dataset_roles import error_channels, image_channels, roi_labels
from nnunet_anomaly.errors import InputError

LABELS = {"background": 0, "femur": 1, "cartilage": 2, "tibia": 3}


def description(names, roles=None, **anomaly):
    block = {"channel_roles": roles} if roles else {}
    return {"channel_names": dict(enumerate_as_text(names)), "labels": LABELS, "anomaly": {**block, **anomaly}}


def enumerate_as_text(names):
    return ((str(index), name) for index, name in enumerate(names))


def test_without_our_key_all_channels_are_images():
    plain = {"channel_names": {"0": "MR", "1": "T2"}, "labels": LABELS}
    assert error_channels(plain) == ()
    assert image_channels(plain) == (0, 1)


def test_error_channels_are_found():
    dataset = description(["MR", "noNorm"], {"0": "image", "1": "error_map"})
    assert error_channels(dataset) == (1,)
    assert image_channels(dataset) == (0,)


@pytest.mark.parametrize(
    ("names", "roles", "message"),
    [
        (["MR", "error"], {"1": "error_map"}, "name it 'noNorm'"),
        (["noNorm", "MR"], {"0": "error_map"}, "after all image channels"),
        (["MR"], {"0": "mask"}, "roles are"),
        (["MR"], {"3": "error_map"}, "roles are"),
    ],
)
def test_wrong_roles_are_refused(names, roles, message):
    with pytest.raises(InputError, match=message):
        error_channels(description(names, roles))


def test_region_of_interest_by_name():
    assert roi_labels(description(["MR"], roi_labels=["tibia", "femur"])) == (1, 3)
    assert roi_labels(description(["MR"])) == (1, 2, 3)


def test_regions_count_each_label_once():
    dataset = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "whole": [1, 2], "core": [2]}}
    assert roi_labels(dataset) == (1, 2)


def test_an_unknown_region_is_refused():
    with pytest.raises(InputError, match="fibula"):
        roi_labels(description(["MR"], roi_labels=["fibula"]))


def test_no_foreground_is_refused():
    with pytest.raises(InputError, match="no foreground"):
        roi_labels({"channel_names": {"0": "MR"}, "labels": {"background": 0}})
