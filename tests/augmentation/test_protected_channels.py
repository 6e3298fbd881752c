import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_anomaly.augmentation.protected_channels import (
    RestoreChannels,
    SetAsideChannels,
    insert_after_resampling,
    protect_channels,
    set_aside,
)
from nnunet_anomaly.errors import SettingsError

SPATIAL = (Convert3DTo2DTransform, SpatialTransform, Convert2DTo3DTransform)
PIPELINES = {
    "2d": ((24, 28), False),
    "3d": ((12, 20, 16), False),
    "3d with dummy 2d": ((6, 28, 24), True),
}


def training_pipeline(patch_size, dummy_2d, **changes) -> ComposeTransforms:
    """nnU-Net's own transforms with everything that is drawn at random switched on."""
    arguments = {
        "patch_size": patch_size,
        "rotation_for_DA": (-0.5, 0.5),
        "deep_supervision_scales": [[1.0] * len(patch_size), [0.5] * len(patch_size)],
        "mirror_axes": tuple(range(len(patch_size))),
        "do_dummy_2d_data_aug": dummy_2d,
        "use_mask_for_norm": [True, False],
    }
    pipeline = nnUNetTrainer.get_training_transforms(**{**arguments, **changes})
    for transform in pipeline.transforms:
        if isinstance(transform, RandomTransform):
            transform.apply_probability = 1
        if isinstance(transform, SpatialTransform):
            transform.p_rotation = transform.p_scaling = 1
    return pipeline


def patch(patch_size, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    loaded = [size if len(patch_size) == 3 and axis == 0 else size + 8 for axis, size in enumerate(patch_size)]
    labels = torch.randint(-1, 3, (1, *loaded), generator=generator, dtype=torch.int16)
    return torch.randn(channels, *loaded, generator=generator), labels


@pytest.fixture
def mirrored_axes(monkeypatch):
    """The axes that each MirrorTransform drew, in order."""
    drawn = []
    original = MirrorTransform.get_parameters

    def recording(self, **data_dict):
        parameters = original(self, **data_dict)
        drawn.append(parameters["axes"])
        return parameters

    monkeypatch.setattr(MirrorTransform, "get_parameters", recording)
    return drawn


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PIPELINES)
def test_error_channel_is_exactly_the_spatially_transformed_channel(name, seed, mirrored_axes, seed_everything):
    patch_size, dummy_2d = PIPELINES[name]
    image, labels = patch(patch_size, 2, seed)
    pipeline = training_pipeline(patch_size, dummy_2d)

    seed_everything(seed)
    result = protect_channels(pipeline, [1])(image=image.clone(), segmentation=labels.clone())

    seed_everything(seed)
    spatial = ComposeTransforms([step for step in pipeline.transforms if isinstance(step, SPATIAL)])
    expected = spatial(image=image.clone(), segmentation=labels.clone())["image"]
    expected = torch.flip(expected, [axis + 1 for axis in mirrored_axes[0]])

    assert set(result) == {"image", "segmentation"}
    assert result["image"].shape == (2, *patch_size)
    assert torch.equal(result["image"][1], expected[1])
    assert not torch.allclose(result["image"][0], expected[0], atol=1e-2)
    assert result["segmentation"][0].shape == (1, *patch_size)


def test_without_protection_the_channel_would_be_changed(mirrored_axes, seed_everything):
    image, labels = patch((24, 28), 2)
    pipeline = training_pipeline((24, 28), False)
    spatial = ComposeTransforms([step for step in pipeline.transforms if isinstance(step, SPATIAL)])
    seed_everything(0)
    result = pipeline(image=image.clone(), segmentation=labels.clone())["image"]
    seed_everything(0)
    expected = spatial(image=image.clone(), segmentation=labels.clone())["image"]
    expected = torch.flip(expected, [axis + 1 for axis in mirrored_axes[0]])
    assert not torch.allclose(result[1], expected[1], atol=1e-2)


def test_protection_leaves_what_the_other_channels_meet_as_it_is(seed_everything):
    """One image channel and a protected one: the image comes out as if the protected one were not there."""
    image, labels = patch((12, 20, 16), 2)
    pipeline = training_pipeline((12, 20, 16), False)
    seed_everything(5)
    protected = protect_channels(pipeline, [1])(image=image.clone(), segmentation=labels.clone())
    seed_everything(5)
    alone = pipeline(image=image[:1].clone(), segmentation=labels.clone())
    assert torch.equal(protected["image"][:1], alone["image"])
    assert all(torch.equal(a, b) for a, b in zip(protected["segmentation"], alone["segmentation"], strict=True))


def test_protected_channel_is_resampled_linearly_with_zeros_outside():
    ramp = torch.arange(40, dtype=torch.float32).repeat(40, 1)[None]
    transform = SpatialTransform((40, 40), 0, False, p_scaling=1, scaling=(2, 2), p_synchronize_scaling_across_axes=1)
    result = transform(image=torch.zeros_like(ramp), regression_target=ramp)["regression_target"][0]
    middle = result[20]
    # at twice the size, column c of the patch looks at column 2 c - 19.5 of the loaded ramp
    inside = np.arange(10, 30)
    np.testing.assert_allclose(middle[inside], 2 * inside - 19.5, rtol=1e-4)
    assert not middle[:9].any() and not middle[31:].any() and not result[:9].any()


def test_pipelines_with_draws_switched_off_give_back_the_patch():
    image = torch.randn(3, 10, 12)
    pipeline = ComposeTransforms([ImageOnlyPlus(1.0)])
    result = protect_channels(pipeline, [1, 2])(image=image.clone(), segmentation=torch.zeros(1, 10, 12))
    assert torch.equal(result["image"][1:], image[1:])
    assert torch.equal(result["image"][0], image[0] + 1)


def test_protecting_nothing_is_the_pipeline_itself(seed_everything):
    image, labels = patch((24, 28), 2)
    pipeline = training_pipeline((24, 28), False)
    seed_everything(1)
    expected = pipeline(image=image.clone(), segmentation=labels.clone())
    seed_everything(1)
    result = protect_channels(pipeline)(image=image.clone(), segmentation=labels.clone())
    assert torch.equal(result["image"], expected["image"]) and set(result) == set(expected)


def test_cascade_keeps_the_order_that_the_predictor_uses():
    """nnU-Net appends the previous stage's labels after all channels of the data set."""
    image, labels = patch((12, 20, 16), 2)
    labels = torch.cat((labels, torch.ones_like(labels)))
    pipeline = training_pipeline((12, 20, 16), False, is_cascaded=True, foreground_labels=(1, 2))
    position = [isinstance(step, MoveSegAsOneHotToDataTransform) for step in pipeline.transforms].index(True)
    pipeline.transforms = [*pipeline.transforms[: position + 1], pipeline.transforms[-1]]
    image[1] = 7
    result = protect_channels(pipeline, [1])(image=image, segmentation=labels)["image"]
    assert result.shape[0] == 4
    assert torch.allclose(result[1, 4:8, 8:12, 6:10], torch.tensor(7.0))
    assert (result[2, 4:8, 8:12, 6:10] == 1).all() and not result[3].any()


def test_set_aside_appends_to_what_is_there():
    image = torch.randn(3, 4, 5)
    data = {"image": image, "regression_target": torch.ones(2, 4, 5)}
    data = SetAsideChannels([1, 2])(**data)
    set_aside(data, torch.zeros(1, 4, 5))
    assert torch.equal(data["image"], image[:1])
    assert torch.equal(data["regression_target"], torch.cat((torch.ones(2, 4, 5), image[1:], torch.zeros(1, 4, 5))))
    restored = RestoreChannels(5)(**data)
    assert "regression_target" not in restored and restored["image"].shape == (6, 4, 5)


@pytest.mark.parametrize("channels", [(), (0,), (0, 1), (1, 3), (2, 1), (-1,)])
def test_channels_must_be_consecutive_and_leave_the_image(channels):
    with pytest.raises(ValueError, match="consecutive"):
        SetAsideChannels(channels)


@pytest.mark.parametrize("channels", [(1,), (3,), (2, 3)])
def test_channels_must_be_the_last_ones(channels):
    with pytest.raises(ValueError, match="last of the image's channels is 2"):
        SetAsideChannels(channels)(image=torch.zeros(3, 4, 4))


def test_restoring_checks_the_number():
    with pytest.raises(ValueError, match="0 channels were set aside, not 1"):
        RestoreChannels(1)(image=torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="2 channels were set aside, not 1"):
        RestoreChannels(1)(image=torch.zeros(1, 4, 4), regression_target=torch.zeros(2, 4, 4))


def test_masked_error_channel_is_refused():
    pipeline = training_pipeline((24, 28), False, use_mask_for_norm=[False, True])
    with pytest.raises(SettingsError, match=r"mask channel 1 .*\"noNorm\""):
        protect_channels(pipeline, [1])


def test_added_transforms_come_after_resampling_and_before_intensities():
    for patch_size, dummy_2d in PIPELINES.values():
        pipeline = training_pipeline(patch_size, dummy_2d)
        added = ImageOnlyPlus(1.0)
        steps = insert_after_resampling(pipeline, [added]).transforms
        position = steps.index(added)
        assert isinstance(steps[position - 1], Convert2DTo3DTransform if dummy_2d else SpatialTransform)
        assert isinstance(steps[position + 1], RandomTransform)
        assert added not in pipeline.transforms


def test_added_transforms_lead_where_nothing_is_resampled():
    pipeline = nnUNetTrainer.get_validation_transforms(None)
    added = ImageOnlyPlus(1.0)
    assert insert_after_resampling(pipeline, [added]).transforms[0] is added
    steps = insert_after_resampling(protect_channels(pipeline, [1]), [added]).transforms
    assert isinstance(steps[0], SetAsideChannels) and steps[1] is added


class ImageOnlyPlus(ImageOnlyTransform):
    def __init__(self, amount: float):
        super().__init__()
        self.amount = amount

    def _apply_to_image(self, img, **params):
        return img + self.amount
