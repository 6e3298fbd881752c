import copy
import itertools

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_anomaly import gap_weight_maps
from nnunet_anomaly.augmentation.elastic import ElasticSpatialTransform
from nnunet_anomaly.errors import InputError, MissingCheckpointError, SettingsError
from nnunet_anomaly.gap_weight_maps import gap_weights_above_one
from nnunet_anomaly.seeding import seed_everything
from nnunet_anomaly.trainers import gap_weighted
from nnunet_anomaly.trainers.anomaly_aware import nnUNetTrainerAnomalyAware
from nnunet_anomaly.trainers.gap_weighted import nnUNetTrainerGapWeighted

CONFIGURATIONS = ["3d_fullres", "2d"]
# maps of the tiny cases, whose structures are thin, without erosion
WEIGHTS = {"gap_weights__erosion_mm": 0.0}


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """progress.png takes longer to draw than an epoch to train."""
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)


def initialised(trainer, seed=3):
    trainer.initialize()
    seed_everything(seed, 0)
    for module in trainer.network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return trainer


def batch_for(trainer, channels, seed=0):
    """A random batch on the trainer's patch, its last channel (w - 1) 0, with targets at every scale."""
    generator = torch.Generator().manual_seed(seed)
    size = trainer.configuration_manager.patch_size
    data = torch.cat((torch.randn((2, 1, *size), generator=generator), torch.zeros(2, channels - 1, *size)), dim=1)
    targets = []
    for scale in trainer._get_deep_supervision_scales():
        shape = [round(length * factor) for length, factor in zip(size, scale, strict=True)]
        targets.append(torch.randint(0, 3, (2, 1, *shape), generator=generator).float())
    return {"data": data, "target": targets}


def weights_of(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_with_weights_of_1_and_dice_it_is_plain_nnunet(new_trainer, configuration):
    plain = initialised(new_trainer(nnUNetTrainer, configuration))
    ours = initialised(new_trainer(nnUNetTrainerGapWeighted, configuration, gap_weights__dice_weight=1.0))
    for seed in range(2):
        losses = [float(t.train_step(batch_for(t, c, seed))["loss"]) for t, c in ((plain, 1), (ours, 2))]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(weights_of(plain), weights_of(ours), rtol=0, atol=1e-6)


def test_weights_count_in_training_and_validation(new_trainer):
    trainer = initialised(new_trainer(nnUNetTrainerGapWeighted, "3d_fullres"))
    batch = batch_for(trainer, 2)
    heavy = {**batch, "data": batch["data"].clone()}
    heavy["data"][:, 1] = 4.0
    with torch.no_grad():
        one, five = (float(trainer.validation_step(copy.deepcopy(each))["loss"]) for each in (batch, heavy))
    assert five == pytest.approx(5 * one, rel=1e-4)
    assert float(trainer.train_step(heavy)["loss"]) == pytest.approx(five, rel=1e-4)
    assert trainer.loss.cross_entropy.error is None


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_loaded_weights_are_those_of_the_cases(new_trainer, configuration, monkeypatch):
    trainer = new_trainer(nnUNetTrainerGapWeighted, configuration, **WEIGHTS, gap_weights__elastic_probability=0.0)
    trainer.initialize()
    training, held_out = trainer.get_tr_and_val_datasets()
    assert not set(training.identifiers) & set(held_out.identifiers)
    data, segmentation, _, properties = training.load_case(training.identifiers[0])
    settings = trainer.map_settings()
    spacing_mm = settings.spacing_mm
    if configuration == "2d":
        spacing_mm = (properties["spacing"][trainer.plans_manager.transpose_forward[0]], *spacing_mm)
    expected = gap_weights_above_one(segmentation[0], spacing_mm, settings)
    np.testing.assert_array_equal(data[:][1], expected)
    assert expected.max() > 1
    monkeypatch.setattr(gap_weight_maps, "write_map", lambda *arguments: pytest.fail("computed again"))
    trainer.get_tr_and_val_datasets()


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_batches_carry_weights_and_the_network_sees_images_alone(new_trainer, configuration):
    trainer = new_trainer(nnUNetTrainerGapWeighted, configuration, **WEIGHTS, gap_weights__elastic_probability=1.0)
    trainer.initialize()
    training, held_out = trainer.get_dataloaders()
    batch, validation = next(training), next(held_out)
    assert batch["data"].shape[1] == validation["data"].shape[1] == 2
    assert batch["data"][:, 1].min() == pytest.approx(1 / 3 - 1, abs=1e-5)  # deformed, all of them
    assert validation["data"][:, 1].min() == 0 < validation["data"][:, 1].max()
    seen, above_one = trainer.without_weights(batch)
    torch.testing.assert_close(seen["data"], batch["data"][:, :1])
    torch.testing.assert_close(above_one, batch["data"][:, 1:])
    assert trainer.num_input_channels == 1


def test_in_a_cascade_the_weights_lie_between_the_image_and_the_labels_before(new_trainer):
    trainer = new_trainer(nnUNetTrainerGapWeighted, "3d_fullres")
    data = torch.arange(4.0).reshape(1, 4, 1, 1).expand(2, 4, 8, 8)
    seen, above_one = trainer.without_weights({"data": data})
    assert seen["data"][0, :, 0, 0].tolist() == [0, 2, 3] and (above_one == 1).all()
    size = trainer.configuration_manager.patch_size
    pipeline = trainer.get_training_transforms(
        size, (0, 0), None, (), False, is_cascaded=True, foreground_labels=[1, 2]
    )
    sample = torch.rand(2, *size) + 100
    labels = torch.zeros(2, *size, dtype=torch.int16)
    found = pipeline(image=sample.clone(), segmentation=labels)["image"]
    assert found.shape[0] == 4 and found[1].max() > 50 and found[2:].max() <= 1


def test_intensity_transforms_do_not_reach_weights(new_trainer):
    trainer = new_trainer(nnUNetTrainerGapWeighted, "3d_fullres", gap_weights__elastic_probability=0.0)
    size = trainer.configuration_manager.patch_size
    pipeline = trainer.get_training_transforms(size, (0, 0), None, (), False)
    assert sum(isinstance(step, ElasticSpatialTransform) for step in pipeline.transforms) == 1
    for step in pipeline.transforms:
        if hasattr(step, "p_rotation"):
            step.p_rotation = step.p_scaling = 0
        if hasattr(step, "apply_probability"):
            step.apply_probability = 1
    sample = torch.rand(2, *size)
    found = pipeline(image=sample.clone(), segmentation=torch.zeros(1, *size, dtype=torch.int16))["image"]
    assert torch.equal(found[1], sample[1]) and not torch.allclose(found[0], sample[0])


def test_amplitude_0_needs_no_maps(new_trainer, monkeypatch):
    monkeypatch.setattr(gap_weighted, "write_maps", lambda *arguments: pytest.fail("no maps are needed"))
    trainer = new_trainer(nnUNetTrainerGapWeighted, "2d", gap_weights__amplitude=0.0)
    trainer.initialize()
    training, _ = trainer.get_tr_and_val_datasets()
    assert not training.load_case(training.identifiers[0])[0][:][1].any()


def with_scores(trainer, scores):
    """Let validation log these mean pseudo-Dice, whatever the network does."""
    given = iter(scores)
    measure = trainer.on_validation_epoch_end

    def log(outputs):
        measure(outputs)
        score = next(given)
        logged = trainer.logger.local_logger.my_fantastic_logging
        logged["mean_fg_dice"][-1] = logged["ema_fg_dice"][-1] = score

    trainer.on_validation_epoch_end = log
    trainer.num_epochs = 12
    trainer.num_iterations_per_epoch = 1
    return trainer


EARLY = {"fine_tuning__early_stopping_epochs": 3, **WEIGHTS}
PLATEAU = {
    "fine_tuning__optimizer": "adam",
    "fine_tuning__learning_rate": 1e-5,
    "fine_tuning__learning_rate_schedule": "plateau",
}


def test_early_stopping_ends_as_training_does(new_trainer):
    trainer = with_scores(new_trainer(nnUNetTrainerGapWeighted, "2d", **EARLY), [0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    trainer.run_training()
    assert trainer.current_epoch == 5  # the second was the best, and three after it were no better
    folder = trainer.output_folder
    final, best = (torch.load(f"{folder}/checkpoint_{n}.pth", weights_only=False) for n in ("final", "best"))
    assert (final["current_epoch"], best["current_epoch"]) == (5, 2)
    assert final["logging"]["mean_fg_dice"] == [0.1, 0.5, 0.4, 0.5, 0.3]
    again = new_trainer(nnUNetTrainerGapWeighted, "2d", **EARLY)
    again.num_epochs = 12
    again.load_checkpoint(f"{folder}/checkpoint_final.pth")  # --c on a training that had stopped
    again.run_training()
    assert again.current_epoch == 5
    assert torch.equal(weights_of(again), weights_of(trainer))
    assert torch.load(f"{folder}/checkpoint_final.pth", weights_only=False)["current_epoch"] == 5


def test_a_training_that_goes_on_has_the_schedule_of_one_that_never_stopped(new_trainer):
    scores, settings = [0.5, 0.4, 0.4, 0.4, 0.4, 0.6], {**EARLY, **PLATEAU, "fine_tuning__early_stopping_epochs": 0}
    whole = with_scores(new_trainer(nnUNetTrainerGapWeighted, "2d", **settings), scores)
    whole.num_epochs, whole.save_every = 6, 3  # so that the third epoch's network is kept
    save = whole.save_checkpoint
    whole.save_checkpoint = lambda name: save(name.replace("latest", "kept"))  # nnU-Net removes it in the end
    whole.run_training()
    rates = whole.logger.get_value("lrs", step=None)
    assert rates == pytest.approx([1e-5, 1e-5, 1e-5, 0.9e-5, 0.9e-5, 0.81e-5])
    assert isinstance(whole.optimizer, torch.optim.Adam) and whole.optimizer.param_groups[0]["weight_decay"] == 0
    resumed = with_scores(new_trainer(nnUNetTrainerGapWeighted, "2d", **settings), scores[3:])
    resumed.num_epochs = 6
    resumed.load_checkpoint(f"{whole.output_folder}/checkpoint_kept.pth")
    resumed.run_training()
    assert resumed.logger.get_value("lrs", step=None) == rates


@pytest.mark.parametrize(("optimizer", "schedule"), [*itertools.product(["nnunet", "adam"], ["poly", "plateau"])])
def test_optimiser_and_schedule_are_chosen_apart(new_trainer, optimizer, schedule):
    trainer = new_trainer(
        nnUNetTrainerGapWeighted,
        "2d",
        fine_tuning__optimizer=optimizer,
        fine_tuning__learning_rate_schedule=schedule,
        fine_tuning__learning_rate=3e-3,
        fine_tuning__epochs=7,
    )
    trainer.num_epochs = 7
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.Adam if optimizer == "adam" else torch.optim.SGD)
    trainer.lr_scheduler.step(3)
    rate = 3e-3 * (1 - 3 / 7) ** 0.9 if schedule == "poly" else 3e-3
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_epochs_come_from_the_plans_or_from_the_name(new_trainer):
    trainer = new_trainer(nnUNetTrainerGapWeighted, "2d", fine_tuning__epochs=2)
    assert trainer.settings.fine_tuning.epochs == 2 and trainer.num_epochs == 2
    assert new_trainer(gap_weighted.nnUNetTrainerGapWeighted_1epoch, "2d").num_epochs == 1


# -- transfer -------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(new_trainer):
    """A trained nnU-Net and its checkpoint."""
    trainer = new_trainer(nnUNetTrainer, "2d")
    trainer.num_epochs = 1
    trainer.run_training()
    return trainer, f"{trainer.output_folder}/checkpoint_final.pth"


class Reached(Exception):
    """Training would begin now."""


def before_training(trainer, monkeypatch):
    """Start a training and stop where nnU-Net's own start is over."""

    def stop(self):
        raise Reached

    monkeypatch.setattr(nnUNetTrainer, "get_dataloaders", stop)
    with pytest.raises(Reached):
        trainer.run_training()
    return trainer


@pytest.mark.parametrize("relative", [False, True])
def test_the_first_forward_pass_is_that_of_the_source(new_trainer, source, monkeypatch, relative):
    trained, checkpoint = source
    path = checkpoint.split("nnUNet_results/")[1] if relative else checkpoint
    trainer = new_trainer(nnUNetTrainerGapWeighted, "2d", transfer__checkpoint=path)
    before_training(trainer, monkeypatch)
    image = torch.randn(2, 1, *trainer.configuration_manager.patch_size)
    with torch.no_grad():
        for one, other in zip(trained.network.train()(image), trainer.network.train()(image), strict=True):
            assert torch.equal(one, other)
    assert all(parameter.requires_grad for parameter in trainer.network.parameters())
    with open(trainer.log_file) as log:
        assert f"All weights, the last layers' too, are those of {checkpoint} (nnUNetTrainer, 1 epochs)" in log.read()


def test_other_trainers_of_ours_take_weights_too(new_trainer, source, monkeypatch):
    trained, checkpoint = source
    trainer = new_trainer(nnUNetTrainerAnomalyAware, "2d", transfer__checkpoint=checkpoint)
    before_training(trainer, monkeypatch)
    assert torch.equal(weights_of(trainer), weights_of(trained))


def test_a_continued_training_does_not_need_the_file(new_trainer, source):
    trainer = new_trainer(nnUNetTrainerGapWeighted, "2d", transfer__checkpoint="nowhere.pth", **WEIGHTS)
    with pytest.raises(MissingCheckpointError, match=r"nnUNet_results/nowhere\.pth, which does not exist"):
        trainer.run_training()
    first = new_trainer(nnUNetTrainerGapWeighted, "2d", **WEIGHTS)
    first.num_epochs = 1
    first.run_training()
    resumed = new_trainer(nnUNetTrainerGapWeighted, "2d", transfer__checkpoint="nowhere.pth", **WEIGHTS)
    resumed.num_epochs = 2
    resumed.load_checkpoint(f"{first.output_folder}/checkpoint_final.pth")
    resumed.run_training()
    assert resumed.current_epoch == 2


def test_other_classes_are_listed_before_anything_is_computed(new_trainer, source, monkeypatch):
    _, checkpoint = source
    trainer = new_trainer(nnUNetTrainerGapWeighted, "2d", transfer__checkpoint=checkpoint)
    trainer.dataset_json = {**trainer.dataset_json, "labels": {"background": 0, "cartilage": 1, "bone": 2}}
    monkeypatch.setattr(nnUNetTrainer, "get_dataloaders", lambda self: pytest.fail("too late"))
    with pytest.raises(InputError, match=r"'bone' is 1 in the checkpoint and 2 in the dataset; 'cartilage' is 2"):
        trainer.run_training()


def test_pretrained_weights_besides_are_refused(new_trainer, source):
    _, checkpoint = source
    trainer = new_trainer(nnUNetTrainerGapWeighted, "2d", transfer__checkpoint=checkpoint)
    trainer.initialize()  # as -pretrained_weights does before the training
    with pytest.raises(SettingsError, match="-pretrained_weights"):
        trainer.run_training()
