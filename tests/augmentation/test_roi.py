import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy import ndimage

from nnunet_anomaly.augmentation.protected_channels import insert_after_resampling, protect_channels
from nnunet_anomaly.augmentation.roi import RoiChannelTransform, closed_and_filled_region, region_of_interest


def ball_offsets(radius_mm, spacing_mm):
    reach = [int(radius_mm / size) for size in spacing_mm]
    offsets = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), -1).reshape(-1, len(reach))
    return offsets[((offsets * spacing_mm) ** 2).sum(1) <= radius_mm**2 + 1e-9]


def brute_dilation(mask, radius_mm, spacing_mm):
    result = np.zeros_like(mask)
    for offset in ball_offsets(radius_mm, spacing_mm):
        places = np.argwhere(mask) + offset
        places = places[((places >= 0) & (places < mask.shape)).all(1)]
        result[tuple(places.T)] = True
    return result


@pytest.mark.parametrize("shape, spacing_mm", [((9, 10), (1.0, 0.5)), ((5, 8, 9), (3.0, 1.0, 0.5))])
def test_region_is_the_dilated_union(shape, spacing_mm):
    labels = np.zeros(shape, np.int16)
    labels[tuple(size // 2 for size in shape)] = 2
    labels[(0,) * len(shape)] = 5
    labels[(1,) * len(shape)] = 1
    labels[(2,) * len(shape)] = -1
    expected = brute_dilation(np.isin(labels, (2, 5)), 1.6, spacing_mm)
    assert np.array_equal(region_of_interest(labels, (2, 5), 1.6, spacing_mm), expected)
    assert np.array_equal(region_of_interest(labels, (2, 5), 0, spacing_mm), np.isin(labels, (2, 5)))


def test_regions_without_the_labels_are_empty():
    labels = np.ones((6, 6, 6), np.int16)
    assert not region_of_interest(labels, (2,), 5, (1, 1, 1)).any()
    assert not closed_and_filled_region(labels, (2,), 5, (1, 1, 1)).any()


def test_an_empty_list_of_labels_is_an_error():
    with pytest.raises(ValueError, match="at least one label"):
        region_of_interest(np.zeros((3, 3), int), (), 0, (1, 1))
    with pytest.raises(ValueError, match="at least one label"):
        RoiChannelTransform((), 0, (1, 1))


def test_closing_takes_in_gaps_up_to_the_ball_and_no_wider_ones():
    labels = np.zeros((40, 12, 12), np.int16)
    labels[0:10] = labels[13:20] = labels[27:40] = 1
    region = closed_and_filled_region(labels, (1,), 2.0, (1.0, 1.0, 1.0))
    assert region[10:13, 4:8, 4:8].all()
    assert not region[21:26].any()


def test_spacing_counts_in_closing():
    labels = np.zeros((40, 12), np.int16)
    labels[0:10] = labels[13:40] = 1
    assert closed_and_filled_region(labels, (1,), 2.0, (1.0, 1.0))[11, 6]
    assert not closed_and_filled_region(labels, (1,), 2.0, (4.0, 1.0))[11, 6]


def test_union_of_labels_is_closed():
    labels = np.zeros((30, 10), np.int16)
    labels[0:14], labels[16:30] = 1, 2
    assert closed_and_filled_region(labels, (1, 2), 2, (1, 1))[:, 2:8].all()
    assert not closed_and_filled_region(labels, (1,), 2, (1, 1))[14:].any()


def test_holes_are_filled_in_three_dimensions_and_in_slices():
    labels = np.zeros((7, 12, 12), np.int16)
    labels[1:6, 1:11, 1:11] = 1
    labels[3, 4:8, 4:8] = 0  # enclosed
    labels[1, 4:8, 4:8] = 0  # open towards the neighbouring slice only
    region = closed_and_filled_region(labels, (1,), 0, (1, 1, 1))
    assert region[1:6, 1:11, 1:11].all() and region.sum() == 5 * 10 * 10


def test_large_holes_of_slices_stay_but_all_that_is_enclosed_is_filled():
    labels = np.zeros((9, 20, 20), np.int16)
    labels[:, 1:19, 1:19] = 1
    labels[:, 3:6, 3:7] = 0  # 12 pixels of 0.5 mm^2
    labels[:, 9:13, 9:14] = 0  # 20
    labels[2:7, 14:18, 4:12] = 0  # 32, enclosed
    expected = labels.astype(bool)
    expected[:, 3:6, 3:7] = expected[2:7, 14:18, 4:12] = True
    region = closed_and_filled_region(labels, (1,), 0, (2, 1, 0.5), largest_hole_mm2=6.0)
    assert np.array_equal(region, expected)
    assert not closed_and_filled_region(labels, (1,), 0, (2, 1, 0.5), largest_hole_mm2=5.9)[:, 3:6, 3:7].any()
    assert closed_and_filled_region(labels, (1,), 0, (2, 1, 0.5), largest_hole_mm2=10.0)[:, 1:19, 1:19].all()
    plane = closed_and_filled_region(labels[0], (1,), 0, (1, 0.5), largest_hole_mm2=6.0)
    assert np.array_equal(plane, expected[0])
    across = closed_and_filled_region(labels.T, (1,), 0, (0.5, 1, 2), (2,), 6.0)
    assert np.array_equal(across, expected.T)


def test_openings_in_the_slice_plane_stay_open():
    labels = np.zeros((3, 12, 12), np.int16)
    labels[:, 1:11, 1:11] = 1
    labels[:, 4:8, 4:12] = 0
    region = closed_and_filled_region(labels, (1,), 0, (1, 1, 1))
    assert not region[:, 4:8, 4:12].any()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1.3, 2.2]), st.tuples(*[st.sampled_from([0.7, 1.1, 3.0])] * 3))
def test_closing_and_filling_agree_with_brute_force(seed, closing_mm, spacing_mm):
    rng = np.random.default_rng(seed)
    labels = (ndimage.gaussian_filter(rng.standard_normal((6, 8, 9)), 1.2) > 0.1).astype(np.int16)
    dilated = brute_dilation(np.pad(labels == 1, 5), closing_mm, spacing_mm)
    expected = ~brute_dilation(~dilated, closing_mm, spacing_mm)[5:-5, 5:-5, 5:-5]
    expected = ndimage.binary_fill_holes(expected)
    expected = np.stack([ndimage.binary_fill_holes(plane) for plane in expected])
    region = closed_and_filled_region(labels, (1,), closing_mm, spacing_mm)
    assert np.array_equal(region, expected)
    assert region[labels == 1].all()


def test_closing_agrees_with_scipy():
    rng = np.random.default_rng(3)
    mask = ndimage.gaussian_filter(rng.standard_normal((30, 34)), 2) > 0.05
    spacing_mm, radius_mm = (1.0, 0.7), 2.5
    offsets = ball_offsets(radius_mm, spacing_mm)
    element = np.zeros(2 * abs(offsets).max(0) + 1, bool)
    element[tuple((offsets + abs(offsets).max(0)).T)] = True
    expected = ndimage.binary_closing(np.pad(mask, 8), element)[8:-8, 8:-8]
    expected = ndimage.binary_fill_holes(expected)
    assert np.array_equal(closed_and_filled_region(mask.astype(int), (1,), radius_mm, spacing_mm), expected)


@pytest.mark.parametrize("patch_size, dummy_2d", [((24, 28), False), ((12, 20, 16), False), ((6, 28, 24), True)])
def test_channel_is_the_region_of_the_augmented_labels(patch_size, dummy_2d, seed_everything):
    spacing_mm = (2.0, 1.0, 0.8)[-len(patch_size) :]
    pipeline = nnUNetTrainer.get_training_transforms(
        patch_size, (-0.5, 0.5), None, tuple(range(len(patch_size))), dummy_2d
    )
    roi = RoiChannelTransform((2,), 2.0, spacing_mm)
    pipeline = protect_channels(insert_after_resampling(pipeline, [roi]))
    labels = np.zeros((1, *patch_size), np.int16)
    labels[(0, *[slice(size // 3, 2 * size // 3) for size in patch_size])] = 2
    for seed in range(4):
        seed_everything(seed)
        result = pipeline(image=torch.randn(1, *patch_size), segmentation=torch.from_numpy(labels.copy()))
        assert result["image"].shape == (2, *patch_size) and result["image"].dtype == torch.float32
        expected = region_of_interest(result["segmentation"][0].numpy(), (2,), 2.0, spacing_mm)
        assert expected.any() and not expected.all()
        assert np.array_equal(result["image"][1].numpy(), expected)
