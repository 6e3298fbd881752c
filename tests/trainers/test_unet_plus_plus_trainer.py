"""UNet++ in nnU-Net's training and prediction."""

import copy
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor, predict_entry_point
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

from nnunet_anomaly.architectures.unet_plus_plus import UNetPlusPlus
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.trainers.unet_plus_plus import nnUNetTrainerUNetPlusPlus

PLANS, TRAINER = "nnUNetAnomalyTinyPlans", "nnUNetTrainerUNetPlusPlus_2epochs"


@pytest.fixture
def make(new_trainer):
    """A trainer of UNet++ on the tiny dataset; settings as in ``new_trainer``."""

    def new(configuration="3d_fullres", **more):
        return new_trainer(nnUNetTrainerUNetPlusPlus, configuration, **more)

    return new


@pytest.fixture
def dataset_json(planned):
    return load_json(str(planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny" / "dataset.json"))


def depth_of(trainer):
    return len(trainer.configuration_manager.pool_op_kernel_sizes) - 1


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_all_heads_and_their_targets_lie_at_full_resolution(make, configuration):
    trainer = make(configuration)
    trainer.on_train_start()
    batch, depth = next(trainer.dataloader_train), depth_of(trainer)
    assert depth > 1 and isinstance(trainer.network, UNetPlusPlus)
    heads = trainer.network(batch["data"])
    assert len(heads) == len(batch["target"]) == depth
    for head, target in zip(heads, batch["target"], strict=True):
        assert head.shape == (*target.shape[:1], 3, *target.shape[2:])
        assert torch.equal(target, batch["target"][0])
        assert target.shape[2:] == tuple(trainer.configuration_manager.patch_size)


@pytest.mark.parametrize(("setting", "ratio"), [("equal", 1), ("halved", 0.5)])
def test_the_loss_is_the_weighted_mean_over_heads(make, setting, ratio):
    trainer = make(unet_plus_plus__head_weights=setting)
    loss, depth = trainer._build_loss(), depth_of(trainer)
    assert isinstance(loss, DeepSupervisionWrapper)
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, 3, 8, 8, 8, generator=generator) for _ in range(depth)]
    target = torch.randint(0, 3, (2, 1, 8, 8, 8), generator=generator).float()
    single = [float(loss.loss(head, target)) for head in heads]
    expected = np.average(single, weights=[ratio**index for index in range(depth)])
    assert float(loss(heads, [target] * depth)) == pytest.approx(expected, rel=1e-5)


def test_a_single_level_has_all_the_weight(make, planned):
    plans = load_json(str(planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny" / f"{PLANS}.json"))
    architecture = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    for key, number in (("features_per_stage", 2), ("kernel_sizes", 2), ("strides", 2), ("n_conv_per_stage", 2)):
        architecture[key] = architecture[key][:number]
    architecture.update(n_stages=2, n_conv_per_stage_decoder=[1])
    trainer = make(plans=plans)
    assert trainer._build_loss().weight_factors == (1,)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=-1))


def test_without_deep_supervision_there_is_one_output(make):
    trainer = make()
    trainer.enable_deep_supervision = False
    assert trainer._get_deep_supervision_scales() is None
    trainer.num_epochs = 1
    trainer.run_training()
    assert not isinstance(trainer._build_loss(), DeepSupervisionWrapper)


def test_regions_train(make, dataset_json):
    dataset_json["labels"] = {"background": 0, "whole": [1, 2], "cartilage": 2}
    dataset_json["regions_class_order"] = [1, 2]
    trainer = make(dataset_json=dataset_json)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("val_losses", step=-1))
    assert trainer.network.decoder.seg_layers[0].out_channels == 2


def test_ignored_voxels_do_not_count(make, dataset_json):
    dataset_json["labels"] = {"background": 0, "bone": 1, "ignore": 2}
    trainer = make(dataset_json=dataset_json)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    generator, size = torch.Generator().manual_seed(0), trainer.configuration_manager.patch_size
    target = torch.randint(0, 2, (2, 1, *size), generator=generator).float()
    target[..., :8] = 2
    heads = [torch.randn(2, 2, *size, generator=generator) for _ in range(depth_of(trainer))]
    changed = [torch.cat((torch.randn(2, 2, *size, generator=generator)[..., :8], head[..., 8:]), -1) for head in heads]
    targets = [target] * len(heads)
    assert float(trainer.loss(heads, targets)) == pytest.approx(float(trainer.loss(changed, targets)), rel=1e-6)
    batch = {"data": torch.randn(2, 1, *size, generator=generator), "target": [target.clone() for _ in heads]}
    assert np.isfinite(trainer.train_step(batch)["loss"])
    with torch.no_grad():
        assert np.isfinite(trainer.validation_step(batch)["loss"])


def test_residual_encoders_of_plans_are_taken(make, planned):
    plans = load_json(str(planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny" / f"{PLANS}.json"))
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    trainer = make(plans=plans)
    trainer.num_epochs = 1
    trainer.run_training()
    assert type(trainer.network.encoder).__name__ == "ResidualEncoder"


def test_what_does_not_fit_is_an_error(make, planned):
    plans = load_json(str(planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny" / f"{PLANS}.json"))
    with pytest.raises(SettingsError, match=r"prediction_depth is 9; the network of these plans has \d levels"):
        make(unet_plus_plus__prediction_depth=9).initialize()
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture.update(network_class_name="somewhere.Transformer", arch_kwargs={}, _kw_requires_import=[])
    with pytest.raises(SettingsError, match=r"are for somewhere\.Transformer.*-pl nnUNetPlannerUNetPlusPlus"):
        make(plans=plans).initialize()


def test_left_and_right_are_told_apart_in_prediction(make):
    trainer = make(symmetry__pairs=[[1, 2]], symmetry__side_axis=2)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(False)
    image = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    with torch.inference_mode():
        answer, mirrored = trainer.network.eval()(image), trainer.network(image.flip(4))
    torch.testing.assert_close(mirrored, answer.flip(4)[:, [0, 2, 1]])


def logits_of_model(folder, image):
    """As nnUNetv2_predict: from the plans beside the checkpoint and its weights alone."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(folder, (0,), "checkpoint_final.pth")
    return predictor.predict_logits_from_preprocessed_data(image).float()


def test_a_trained_model_predicts_as_its_plans_say(make):
    trainer = make()
    trainer.run_training()
    folder = trainer.output_folder_base
    shape = trainer.configuration_manager.patch_size
    image = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        heads = trainer.network.eval()(image[None])[::-1]
    plans = load_json(f"{folder}/plans.json")
    centre = (slice(None), *(slice(size // 4, -(size // 4)) for size in shape))  # weights are tiny in corners
    for values, expected in [
        ({}, heads[-1]),
        ({"prediction_depth": 1}, heads[0]),
        ({"prediction": "ensemble"}, sum(heads) / len(heads)),
        ({"prediction": "ensemble", "prediction_depth": 2}, (heads[0] + heads[1]) / 2),
    ]:
        changed = copy.deepcopy(plans)
        changed["anomaly"]["unet_plus_plus"].update(values)
        save_json(changed, f"{folder}/plans.json")
        torch.testing.assert_close(logits_of_model(folder, image)[centre], expected[0][centre], rtol=0, atol=5e-3)


def test_the_seed_decides_and_the_pseudo_dice_is_that_of_the_deepest_head(make):
    weights = []
    for seed in (1, 1, 2):
        trainer = make(seed=seed)
        trainer.num_epochs = 1
        trainer.run_training()
        weights.append(torch.cat([parameter.flatten() for parameter in trainer.network.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    trainer.network.eval()
    batch = next(trainer.dataloader_val)
    with torch.no_grad():
        result = trainer.validation_step(batch)
        deepest = trainer.network(batch["data"])[0].argmax(1, keepdim=True)
    hits = [int(((deepest == label) & (batch["target"][0] == label)).sum()) for label in (1, 2)]
    assert result["tp_hard"].tolist() == hits


class Killed(Exception):
    """Stands for a process that was ended from outside."""


def test_stock_commands_train_go_on_and_predict(make, planned, monkeypatch, write_tiny_image, tmp_path):
    """nnU-Net's own entry points, in this process and with 20 steps an epoch."""
    trained, epochs_begun = make("2d"), []
    name = f"{TRAINER}__{PLANS}__2d"
    initialize, begin = nnUNetTrainerUNetPlusPlus.initialize, nnUNetTrainerUNetPlusPlus.on_epoch_start

    def shortened(self):
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch, self.save_every = 20, 2, 1
        initialize(self)

    def killed_in_second_epoch(self):
        epochs_begun.append(self.current_epoch)
        if len(epochs_begun) == 2:
            raise Killed
        begin(self)

    monkeypatch.setattr(nnUNetTrainerUNetPlusPlus, "initialize", shortened)
    monkeypatch.setattr(nnUNetTrainerUNetPlusPlus, "on_epoch_start", killed_in_second_epoch)
    monkeypatch.setenv("nnUNet_def_n_proc", "1")

    def command(entry, *words):
        monkeypatch.setattr("sys.argv", ["nnunet", *words, "-device", "cpu"])
        entry()

    train = ["101", "2d", "0", "-tr", TRAINER, "-p", PLANS]
    with pytest.raises(Killed):
        command(run_training_entry, *train)
    command(run_training_entry, *train, "--c")
    assert epochs_begun == [0, 1, 1]
    model = Path(trained.output_folder_base).parent / name
    assert load_json(str(model / "fold_0" / "validation" / "summary.json"))["foreground_mean"]["Dice"] > 0.3

    image = write_tiny_image(tmp_path / "images" / "new_0000.nii.gz", 20)
    out = tmp_path / "predicted"
    names = ["-d", "101", "-tr", TRAINER, "-p", PLANS, "-c", "2d", "-f", "0"]
    options = ["-npp", "0", "-nps", "0", "--save_probabilities", "-step_size", "0.7"]
    command(predict_entry_point, "-i", str(tmp_path / "images"), "-o", str(out), *names, *options)
    predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "new.nii.gz")))
    assert np.load(out / "new.npz")["probabilities"].shape == (3, *image.shape)
    truth = (image < 70) | (image > 150)  # as they were painted
    assert 2 * ((predicted > 0) & truth).sum() / ((predicted > 0).sum() + truth.sum()) > 0.6
