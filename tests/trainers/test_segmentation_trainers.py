import copy

import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.seeding import seed_everything
from nnunet_anomaly.trainers.anomaly_augmentation import nnUNetTrainerAnomalyAugmentation
from nnunet_anomaly.trainers.anomaly_aware import nnUNetTrainerAnomalyAware
from nnunet_anomaly.trainers.seeded import nnUNetTrainerSeeded

CONFIGURATIONS = ["3d_fullres", "2d"]


@pytest.fixture
def with_error_channel(planned):
    """Plans and dataset.json of the tiny dataset as they would be with one error channel."""
    folder = planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
    plans = load_json(str(folder / "nnUNetAnomalyTinyPlans.json"))
    for name in CONFIGURATIONS:
        plans["configurations"][name]["normalization_schemes"] = ["ZScoreNormalization", "NoNormalization"]
        plans["configurations"][name]["use_mask_for_norm"] = [False, False]
    dataset_json = load_json(str(folder / "dataset.json"))
    dataset_json["channel_names"]["1"] = "noNorm"
    dataset_json["anomaly"]["channel_roles"]["1"] = "error_map"
    return {"plans": plans, "dataset_json": dataset_json}


def batch_for(trainer, channels, seed=0):
    """A random batch on the trainer's patch, with targets at every deep-supervision scale."""
    generator = torch.Generator().manual_seed(seed)
    size = trainer.configuration_manager.patch_size
    data = torch.randn((2, channels, *size), generator=generator)
    if channels == 2:
        data[:, 1] = data[:, 1].square() * 0.01  # an error map on the paper's scale
    targets = []
    for scale in trainer._get_deep_supervision_scales():
        shape = [round(length * factor) for length, factor in zip(size, scale, strict=True)]
        targets.append(torch.randint(0, 3, (2, 1, *shape), generator=generator).float())
    return {"data": data, "target": targets}


def initialised(trainer, seed=3):
    trainer.initialize()
    seed_everything(seed, 0)
    for module in trainer.network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return trainer


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_alpha_1_beta_0_without_a_channel_is_plain_nnunet(new_trainer, configuration):
    plain = initialised(new_trainer(nnUNetTrainer, configuration))
    aware = initialised(new_trainer(nnUNetTrainerAnomalyAware, configuration, focal__alpha=1, focal__beta=0))
    for seed in range(3):
        losses = [float(trainer.train_step(batch_for(trainer, 1, seed))["loss"]) for trainer in (plain, aware)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for one, other in zip(plain.network.parameters(), aware.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_alpha_0_is_dice_only(new_trainer):
    plain = initialised(new_trainer(nnUNetTrainer, "3d_fullres"))
    dice_only = initialised(new_trainer(nnUNetTrainerAnomalyAware, "3d_fullres", focal__alpha=0))
    plain.loss.loss.weight_ce = 0
    batch = batch_for(plain, 1)
    expected = float(plain.train_step(copy.deepcopy(batch))["loss"])
    assert float(dice_only.train_step(batch)["loss"]) == pytest.approx(expected, abs=1e-6)


def test_the_error_map_of_the_batch_weighs_its_loss(new_trainer, with_error_channel):
    losses = []
    for beta in (0.0, 99.0):
        plans = copy.deepcopy(with_error_channel["plans"])
        trainer = initialised(
            new_trainer(
                nnUNetTrainerAnomalyAware,
                "3d_fullres",
                plans=plans,
                dataset_json=with_error_channel["dataset_json"],
                focal__beta=beta,
            )
        )
        losses.append(float(trainer.train_step(batch_for(trainer, 2))["loss"]))
        assert trainer.loss.cross_entropy.error is None  # nothing is left for the next batch
    assert losses[1] > losses[0] + 0.1


def test_the_error_channel_starts_at_the_scale_of_the_image(new_trainer, with_error_channel):
    weights = []
    for gain in (1.0, 100.0):
        trainer = new_trainer(
            nnUNetTrainerAnomalyAware,
            "3d_fullres",
            plans=copy.deepcopy(with_error_channel["plans"]),
            dataset_json=with_error_channel["dataset_json"],
            error_map__input_gain=gain,
        )
        trainer.initialize()
        first = next(layer for layer in trainer.network.modules() if isinstance(layer, torch.nn.Conv3d))
        weights.append(first.weight.detach().clone())
    torch.testing.assert_close(weights[1][:, 1], 100 * weights[0][:, 1])
    torch.testing.assert_close(weights[1][:, 0], weights[0][:, 0])


def test_intensity_transforms_do_not_reach_the_error_channel(new_trainer, with_error_channel):
    trainer = new_trainer(nnUNetTrainerAnomalyAware, "3d_fullres", **with_error_channel)
    size = trainer.configuration_manager.patch_size
    pipeline = trainer.get_training_transforms(size, (0, 0), None, (), False)  # no rotation, no mirroring
    for transform in pipeline.transforms:
        if hasattr(transform, "p_rotation"):
            transform.p_rotation = transform.p_scaling = 0
        if hasattr(transform, "apply_probability"):
            transform.apply_probability = 1
    torch.manual_seed(0)
    image, labels = torch.rand(2, *size), torch.zeros(1, *size, dtype=torch.int16)
    result = pipeline(image=image.clone(), segmentation=labels)["image"]
    assert torch.equal(result[1], image[1])
    assert not torch.allclose(result[0], image[0])


def test_plans_that_normalise_the_error_map_are_refused(new_trainer, with_error_channel):
    with_error_channel["plans"]["configurations"]["3d_fullres"]["normalization_schemes"][1] = "ZScoreNormalization"
    with pytest.raises(SettingsError, match="channel 1, by ZScoreNormalization"):
        new_trainer(nnUNetTrainerAnomalyAware, "3d_fullres", **with_error_channel)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_lesions_are_put_into_training_images_alone(new_trainer, configuration):
    trainer = new_trainer(nnUNetTrainerAnomalyAugmentation, configuration, corruption__probability=1.0)
    size = trainer.configuration_manager.patch_size
    pipeline = trainer.get_training_transforms(size, (0, 0), None, (), False)
    for transform in pipeline.transforms:
        if hasattr(transform, "p_rotation"):
            transform.p_rotation = transform.p_scaling = 0
        if hasattr(transform, "apply_probability"):
            transform.apply_probability = 0
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32))
    labels = torch.zeros((1, *size), dtype=torch.int16)
    labels[(0, *[slice(4, -4)] * len(size))] = 1
    result = pipeline(image=image.clone(), segmentation=labels.clone())
    assert torch.equal(result["segmentation"], labels)
    changed = result["image"] != image
    assert changed[labels > 0].any()
    assert not changed[..., 0].any() and not changed[..., -1].any()  # far from the region of interest


@pytest.mark.parametrize(
    "trainer_class", [nnUNetTrainerAnomalyAugmentation, nnUNetTrainerAnomalyAware, nnUNetTrainerSeeded]
)
def test_it_trains_and_the_seed_decides(new_trainer, trainer_class):
    weights = []
    for seed in (1, 1, 2):
        trainer = new_trainer(trainer_class, "3d_fullres", seed=seed)
        trainer.num_epochs = 1
        trainer.run_training()
        weights.append(torch.cat([parameter.flatten() for parameter in trainer.network.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
