import copy
import pickle

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy import ndimage

from nnunet_anomaly.augmentation.corruptions import (
    Lesion,
    SyntheticLesionTransform,
    apply_lesions,
    lesion_map,
    sample_lesions,
)
from nnunet_anomaly.augmentation.protected_channels import insert_after_resampling, protect_channels

DRAWS = {"max_lesions": 3, "radius_mm": (2.0, 5.0), "contrast_sd": (0.7, 3.0), "bright_probability": 0.5}
CASES = {
    "2d": ((60, 50), (0.5, 0.8)),
    "3d": ((30, 40, 36), (1.0, 0.7, 0.7)),
    "thick slices": ((9, 48, 48), (4.0, 0.6, 0.6)),
}


def ball(shape, spacing_mm, share=0.8):
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) / (n / 2 * share) for n in shape], indexing="ij")
    return torch.from_numpy(sum(axis**2 for axis in axes) < 1)


def draw(roi, spacing_mm, seed=0, channels=1, **changes):
    return sample_lesions(roi, spacing_mm, channels, rng=np.random.default_rng(seed), **{**DRAWS, **changes})


def transform(spacing_mm, **changes):
    return SyntheticLesionTransform((1, 2), spacing_mm, **{"probability": 1.0, **DRAWS, **changes})


@pytest.mark.parametrize("name", CASES)
def test_lesions_lie_in_the_region_and_their_maps_in_the_unit_interval(name):
    shape, spacing_mm = CASES[name]
    roi = ball(shape, spacing_mm)
    beyond = ~ndimage.binary_dilation(roi, np.ones([3] * len(shape)))
    reached_surface = False
    surface = roi.numpy() & ~ndimage.binary_erosion(roi.numpy())
    for seed in range(20):
        lesions = draw(roi, spacing_mm, seed)
        assert 1 <= len(lesions) <= 3
        soft = lesion_map(lesions, shape)
        assert soft.dtype == torch.float32 and soft.shape == shape
        assert soft.min() == 0 and 0.5 < soft.max() <= 1
        assert not soft[beyond].any()
        assert not (soft >= 0.5)[~roi].any()
        # a lesion is ill-defined: a share of it lies between nothing and all
        assert ((soft > 0.1) & (soft < 0.9)).sum() > 0.1 * (soft > 0).sum()
        reached_surface |= bool((soft.numpy() >= 0.5)[surface].any())
    assert reached_surface


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.5, 0.8, 0.8)])
@pytest.mark.parametrize("radius_mm", [3.0, 5.0])
def test_radius_is_in_millimetres(radius_mm, spacing_mm):
    """The mask's volume is that of a ball of the radius, within the spread of the shapes' draws."""
    shape = tuple(int(110 / size) for size in spacing_mm)
    roi = torch.ones(shape, dtype=torch.bool)
    volumes = []
    for seed in range(40):
        lesion = draw(roi, spacing_mm, seed, max_lesions=1, radius_mm=(radius_mm, radius_mm))[0]
        if all(cut.start > 0 and cut.stop < size for cut, size in zip(lesion.box, shape, strict=True)):
            volumes.append(float((lesion.soft >= 0.5).sum()) * np.prod(spacing_mm))
    assert len(volumes) > 8
    assert 0.7 < np.median(volumes) / (4 / 3 * np.pi * radius_mm**3) < 1.8


def test_whole_lesions_have_zeros_on_their_box():
    """No lesion is cut off by its box, wherever the box ends inside the patch."""
    shape, spacing_mm = (64, 64, 64), (1.0, 1.3, 0.8)
    roi = torch.ones(shape, dtype=torch.bool)
    for seed in range(20):
        for lesion in draw(roi, spacing_mm, seed):
            for axis, cut in enumerate(lesion.box):
                if cut.start > 0:
                    assert lesion.soft.select(axis, 0).max() == 0
                if cut.stop < shape[axis]:
                    assert lesion.soft.select(axis, -1).max() == 0


def test_the_same_generator_state_gives_the_same_lesions():
    roi = ball((30, 40), (1, 1))
    first, again, other = (lesion_map(draw(roi, (1, 1), seed), roi.shape) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_numbers_signs_and_contrasts_follow_their_settings():
    roi = ball((20, 24), (1, 1))
    lesions = [lesion for seed in range(300) for lesion in draw(roi, (1, 1), seed, channels=2, bright_probability=0.8)]
    contrasts = np.array([lesion.contrast_sd for lesion in lesions])
    assert contrasts.shape == (len(lesions), 2)
    assert 0.7 <= abs(contrasts).min() < 0.75 and 2.95 < abs(contrasts).max() <= 3.0
    assert (contrasts > 0).mean() == pytest.approx(0.8, abs=0.05)
    assert len(lesions) / 300 == pytest.approx(2, abs=0.15)
    assert not np.allclose(contrasts[:, 0], contrasts[:, 1])


def test_empty_region_means_no_lesion():
    roi = torch.zeros(10, 12, dtype=torch.bool)
    image = torch.randn(1, 10, 12)
    assert draw(roi, (1, 1)) == []
    assert not lesion_map([], (10, 12)).any()
    result = apply_lesions(image, [], roi)
    assert torch.equal(result, image) and result is not image


@pytest.mark.parametrize("shape", [(1, 1), (1, 8, 8), (3, 3, 3)])
def test_tiny_patches_and_single_voxels(shape):
    roi = torch.zeros(shape, dtype=torch.bool)
    roi[(0,) * len(shape)] = True
    image = torch.randn(1, *shape)
    lesions = draw(roi, (1.0,) * len(shape))
    result = apply_lesions(image, lesions, roi)
    assert torch.isfinite(result).all()
    assert lesion_map(lesions, shape)[(0,) * len(shape)] > 0.5
    assert lesion_map(lesions, shape).sum() < 4


def hand_made(smoothing=0.0):
    """A lesion over columns 2 to 4 of one row, with soft values 0, 0.5, 1; contrast +2 and -1."""
    return Lesion((slice(1, 2), slice(2, 5)), torch.tensor([[0.0, 0.5, 1.0]]), (2.0, -1.0), smoothing)


def test_contrast_is_added_in_units_of_the_regions_deviation():
    roi = torch.ones(4, 8, dtype=torch.bool)
    image = torch.randn(2, 4, 8)
    before = image.clone()
    result = apply_lesions(image, [hand_made()], roi)
    deviation = image.numpy().reshape(2, -1).std(1)
    expected = image.numpy().copy()
    expected[:, 1, 3] += 0.5 * np.array([2, -1]) * deviation
    expected[:, 1, 4] += 1.0 * np.array([2, -1]) * deviation
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert torch.equal(image, before)


def test_only_the_region_sets_the_unit_unless_it_is_flat():
    image = torch.zeros(2, 4, 8)
    image[:, :2, ::2] = 1.0  # deviation 0.5 in the region
    image[:, 2:] = 100.0 * torch.randn(2, 2, 8)
    roi = torch.zeros(4, 8, dtype=torch.bool)
    roi[:2] = True
    change = (apply_lesions(image, [hand_made()], roi) - image)[0, 1, 4]
    floor = 0.1 * image[0].std(correction=0)
    assert change == pytest.approx(2 * max(0.5, float(floor)), rel=1e-4)
    image[:, 2:] = 0
    assert (apply_lesions(image, [hand_made()], roi) - image)[0, 1, 4] == pytest.approx(1.0)


def test_full_smoothing_replaces_the_texture_by_its_local_mean():
    roi = torch.ones(4, 8, dtype=torch.bool)
    image = torch.randn(2, 4, 8)
    result = apply_lesions(image, [hand_made(smoothing=1.0)], roi)
    # the mean is taken in the lesion's box, here the two columns around column 4
    mean = image[:, 1, 3:5].mean(1)
    unit = image.reshape(2, -1).std(1, correction=0)
    np.testing.assert_allclose(result[:, 1, 4], mean + torch.tensor([2.0, -1.0]) * unit, rtol=1e-5)


def test_limits_hold_inside_lesions_and_leave_the_rest_alone():
    roi = torch.ones(4, 8, dtype=torch.bool)
    image = torch.rand(2, 4, 8)
    image[:, 0, 0] = 1.5
    result = apply_lesions(image, [hand_made()] * 5, roi, limits=(0.0, 1.0))
    assert result[0, 1, 4] == 1 and result[1, 1, 4] == 0
    untouched = torch.ones(4, 8, dtype=torch.bool)
    untouched[1, 3:5] = False
    assert torch.equal(result[:, untouched], image[:, untouched])


def test_transform_changes_the_image_alone_and_keeps_clean_image_and_mask(seed_everything):
    shape, spacing_mm = (24, 30, 30), (1.0, 1.0, 1.0)
    labels = ball(shape, spacing_mm).to(torch.int16)[None] * 2
    image = torch.randn(2, *shape)
    seed_everything(0)
    data = {"image": image.clone(), "segmentation": labels.clone()}
    result = transform(spacing_mm, keep_clean=True, keep_mask=True)(**data)
    clean, mask = result["regression_target"][:2], result["regression_target"][2].bool()
    assert torch.equal(result["segmentation"], labels)
    assert torch.equal(clean, image) and torch.equal(data["image"], image)
    assert mask.any() and not mask[labels[0] == 0].any()
    difference = result["image"] - image
    assert (difference[:, mask] != 0).float().mean() > 0.99
    grown = ndimage.binary_dilation(labels[0] > 0, np.ones((3, 3, 3)))
    assert not difference[:, torch.from_numpy(~grown)].any()


def test_transform_draws_from_numpys_global_state_only(seed_everything):
    labels = torch.ones(1, 20, 20, dtype=torch.int16)
    image = torch.randn(1, 20, 20)

    def run(numpy_seed, torch_seed):
        seed_everything(numpy_seed)
        torch.manual_seed(torch_seed)
        return transform((1, 1))(image=image.clone(), segmentation=labels)["image"]

    assert torch.equal(run(0, 0), run(0, 1)) and not torch.equal(run(0, 0), run(1, 0))


def test_probability_and_absent_labels_keep_the_image_but_the_number_of_channels(seed_everything):
    image = torch.randn(1, 20, 20)
    labels = torch.ones(1, 20, 20, dtype=torch.int16)
    for step, seg in (
        (transform((1, 1), probability=0.0, keep_clean=True, keep_mask=True), labels),
        (transform((1, 1), keep_clean=True, keep_mask=True), -labels),
    ):
        result = step(image=image.clone(), segmentation=seg)
        assert torch.equal(result["image"], image)
        assert torch.equal(result["regression_target"][0], image[0]) and not result["regression_target"][1].any()
    changed = 0
    seed_everything(0)
    half = transform((1, 1), probability=0.3)
    for _ in range(300):
        changed += not torch.equal(half(image=image.clone(), segmentation=labels)["image"], image)
    assert changed / 300 == pytest.approx(0.3, abs=0.08)


def test_clean_image_passes_the_real_pipeline_without_its_intensity_transforms(seed_everything):
    """Clean and corrupted image agree wherever no lesion lies, when only spatial transforms and lesions act."""
    patch_size, spacing_mm = (16, 24, 24), (1.0, 1.0, 1.0)
    pipeline = nnUNetTrainer.get_training_transforms(patch_size, (-0.5, 0.5), None, (0, 1, 2), False)
    pipeline.transforms = [step for step in pipeline.transforms if "Random" not in type(step).__name__]
    pipeline.transforms[0].p_rotation = 1
    lesions = transform(spacing_mm, keep_clean=True, keep_mask=True)
    pipeline = protect_channels(insert_after_resampling(pipeline, [lesions]), [1])
    labels = ball(patch_size, spacing_mm).to(torch.int16)[None]
    image = torch.cat((torch.randn(1, *patch_size), torch.full((1, *patch_size), 3.0)))
    for seed in range(3):
        seed_everything(seed)
        result = pipeline(image=image.clone(), segmentation=labels.clone())["image"]
        corrupted, error, clean, mask = result
        assert torch.allclose(error[6:10, 10:14, 10:14], torch.tensor(3.0))
        assert ((corrupted - clean)[mask == 1] != 0).float().mean() > 0.99
        away = torch.from_numpy(~ndimage.binary_dilation(mask > 0, iterations=9))
        assert torch.equal(corrupted[away], clean[away])


def test_workers_can_receive_the_transform():
    step = transform((1.0, 1.0), limits=(0.0, 1.0))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(step)))
    assert twin.__dict__ == step.__dict__


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="roi_labels is empty"):
        SyntheticLesionTransform((), (1, 1), probability=1, **DRAWS)
    with pytest.raises(ValueError, match="radius_mm is"):
        transform((1, 1), radius_mm=(5.0, 2.0))
