"""Large-mask inpainting by nnU-Net's trainer: what it learns from, both optimisers, and that it resumes."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_anomaly.architectures.fourier_convolution import LaMaGenerator
from nnunet_anomaly.architectures.vgg import VGG16Features
from nnunet_anomaly.error_maps.model import load_model
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.trainers.inpainting import nnUNetTrainerInpainting
from nnunet_anomaly.trainers.lama import PERCEPTUAL_LAYERS, nnUNetTrainerLaMa

SMALL = {
    "lama__features": 4,
    "lama__blocks": 1,
    "lama__downsamplings": 2,
    "lama__discriminator_features": 4,
    "lama__bias_field_probability": 1.0,
}
TERMS = {"l1_known", "l1_region", "adversarial", "feature_matching", "discriminator", "r1"}


@pytest.fixture
def lama(new_trainer):
    """Make a small LaMa trainer on the tiny dataset."""

    def make(configuration="2d_inpainting", **more):
        return new_trainer(nnUNetTrainerLaMa, configuration, **{**SMALL, **more})

    return make


def weights_of(module):
    return torch.cat([value.detach().flatten().float() for value in module.state_dict().values()])


def test_it_trains_and_writes_its_maps(lama, planned):
    trainer = lama()
    trainer.run_training()
    trainer.perform_actual_validation()
    log = trainer.logger.local_logger.my_fantastic_logging
    times = {"epoch_start_timestamps", "epoch_end_timestamps"}
    assert set(log) == {"train_losses", "val_losses", "lrs", *times, *TERMS}
    assert all(len(values) == 2 and np.isfinite(values).all() for values in log.values())
    lama_settings = trainer.settings.lama
    weighted = (
        lama_settings.l1_known_weight * log["l1_known"][0]
        + lama_settings.l1_region_weight * log["l1_region"][0]
        + lama_settings.adversarial_weight * log["adversarial"][0]
        + lama_settings.feature_matching_weight * log["feature_matching"][0]
    )
    assert log["train_losses"][0] == pytest.approx(weighted, rel=1e-4)
    folder = Path(trainer.output_folder)
    assert (folder / "progress.png").is_file()
    record = json.loads((folder / "validation" / "error_maps.json").read_text(encoding="utf-8"))
    assert record["held_out_cases"] == ["case_03", "case_04", "case_05"]
    original = sitk.ReadImage(str(planned.root / "nnUNet_raw/Dataset101_Tiny/imagesTr/case_03_0000.nii.gz"))
    for name in ("error_maps/case_03.nii.gz", "reconstructions/case_03_0000.nii.gz"):
        image = sitk.ReadImage(str(folder / "validation" / name))
        assert image.GetSize() == original.GetSize()
        assert np.isfinite(sitk.GetArrayFromImage(image)).all()
    model = load_model(folder.parent, [0])
    assert isinstance(model.network, LaMaGenerator) and model.needs_masks and model.margin_mm == 0


def test_both_optimisers_go_on_where_they_stopped(lama):
    """Two epochs in one go, and one after the other: the same networks and optimisers, bit by bit."""
    whole = lama(lama__learning_rate_schedule="constant")
    whole.on_train_start()
    parts = lama(lama__learning_rate_schedule="constant")
    batches = [next(whole.dataloader_train) for _ in range(4)]

    def learn(trainer, some):
        trainer.network.train()
        for batch in some:
            trainer.train_step(copy.deepcopy(batch))

    parts.on_train_start()
    learn(whole, batches[:2])
    learn(parts, batches[:2])
    path = Path(whole.output_folder) / "checkpoint_best.pth"
    parts.epochs_trained = 1
    parts.logger.log("epoch_start_timestamps", 0.0, 0)
    parts.save_checkpoint(str(path))
    again = lama(lama__learning_rate_schedule="constant")
    again.load_checkpoint(str(path))
    learn(whole, batches[2:])
    learn(again, batches[2:])
    assert torch.equal(weights_of(whole.network), weights_of(again.network))
    assert torch.equal(weights_of(whole.discriminator), weights_of(again.discriminator))
    for name in ("generator", "discriminator"):
        states = [getattr(trainer.optimizer, name).state_dict()["state"] for trainer in (whole, again)]
        assert states[0].keys() == states[1].keys() and states[0]
        for number in states[0]:
            assert all(torch.equal(states[0][number][key], states[1][number][key]) for key in states[0][number])
    assert not torch.equal(weights_of(parts.discriminator), weights_of(again.discriminator))


def test_rates_fall_together_from_values_of_their_own(lama):
    trainer = lama()
    trainer.initialize()
    trainer.lr_scheduler.step(0)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-3, 1e-4]
    trainer.lr_scheduler.step(trainer.num_epochs // 2)
    expected = 0.5**0.9
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx(
        [expected * 1e-3, expected * 1e-4]
    )


def test_only_slices_of_bone_without_a_lesion_are_learnt_from(lama, tmp_path):
    trainer = lama(slices__lesion_labels=[2])  # cartilage stands for lesions: it is in every slice with bone
    trainer.initialize()
    dataset, _ = nnUNetTrainer.get_tr_and_val_datasets(trainer)
    labels = {case: np.asarray(dataset.load_case(case)[1][0]) for case in dataset.identifiers}
    with_bone = {case: {n for n, plane in enumerate(one) if (plane == 1).any()} for case, one in labels.items()}
    healthy = {case: {n for n in with_bone[case] if not (labels[case][n] == 2).any()} for case in labels}
    assert not any(healthy.values())
    with pytest.raises(InputError, match=r"No slice of the training cases of fold 0 .*\[1\].*\[2\]"):
        trainer.get_tr_and_val_datasets()

    listed = tmp_path / "healthy.csv"
    first = {case: dataset.load_case(case)[3]["bbox_used_for_cropping"][0][0] for case in labels}
    rows = [f"{case},{first[case] + min(numbers)}" for case, numbers in with_bone.items()]
    held_out = "".join(f"case_0{number},8\n" for number in (3, 4, 5))
    listed.write_text("case,slice\n" + "\n".join(rows) + "\n" + held_out, encoding="utf-8")
    trainer = lama(slices__file=str(listed))
    trainer.initialize()
    training, validation = trainer.get_tr_and_val_datasets()
    assert sorted(training.identifiers) == sorted(f"{case}/{min(numbers)}" for case, numbers in with_bone.items())
    assert len(validation.identifiers) == 3
    image, some, previous, properties = training.load_case(training.identifiers[0])
    assert image.shape[1] == some.shape[1] == 1 and previous is None and properties["class_locations"] == {}
    case, number = training.places[training.identifiers[0]]
    np.testing.assert_array_equal(some[0, 0], labels[case][number])


def test_other_networks_learn_from_the_same_slices_where_wanted(new_trainer, lama):
    reference = lama()
    wanted = new_trainer(nnUNetTrainerInpainting, "2d_inpainting", slices__healthy_only=True)
    for trainer in (reference, wanted):
        trainer.initialize()
    ours, theirs = (trainer.get_tr_and_val_datasets()[0].identifiers for trainer in (reference, wanted))
    assert ours == theirs and "/" in ours[0]
    usual = new_trainer(nnUNetTrainerInpainting, "2d_inpainting")
    usual.initialize()
    assert sorted(usual.get_tr_and_val_datasets()[0].identifiers) == ["case_00", "case_01", "case_02"]
    volumes = new_trainer(nnUNetTrainerInpainting, "3d_inpainting", slices__healthy_only=True)
    volumes.initialize()
    with pytest.raises(SettingsError, match="3d_inpainting' is 3-D"):
        volumes.get_tr_and_val_datasets()


def test_batches_have_image_and_region(lama):
    trainer = lama(lama__bias_field_probability=0.0)
    trainer.on_train_start()
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        data = next(loader)["data"]
        assert data.shape[1] == 2 and set(np.unique(data[:, 1])) == {0.0, 1.0}
        assert all(region.any() for region in data[:, 1])
    masked = lama(lama__large_mask_probability=1.0)
    masked.on_train_start()
    share = [float(next(trainer.dataloader_train)["data"][:, 1].mean()) for trainer in (trainer, masked)]
    assert share[1] > share[0]


def test_each_of_the_two_learns_alone(lama):
    trainer = lama()
    trainer.initialize()
    image, region = torch.rand(2, 1, 32, 32), (torch.rand(2, 1, 32, 32) > 0.5).float()

    def parameters(network):
        return torch.cat([value.detach().flatten() for value in network.parameters()])

    before = parameters(trainer.network), parameters(trainer.discriminator)
    trainer.train_discriminator(image, torch.rand(2, 1, 32, 32), region)
    learnt = parameters(trainer.discriminator)
    assert torch.equal(before[0], parameters(trainer.network)) and not torch.equal(before[1], learnt)
    trainer.train_generator(image, trainer.network(torch.cat((image, region), 1)), region)
    assert not torch.equal(before[0], parameters(trainer.network))
    assert torch.equal(learnt, parameters(trainer.discriminator))


def test_the_perceptual_term_needs_its_file(lama, tmp_path):
    path = tmp_path / "nnUNet_results" / "vgg" / "vgg16.pth"
    path.parent.mkdir(parents=True)
    torch.save(VGG16Features(None, PERCEPTUAL_LAYERS).state_dict(), path)
    trainer = lama(lama__perceptual_checkpoint="vgg/vgg16.pth")
    trainer.on_train_start()
    image = torch.rand(1, 1, 32, 32)
    region = (torch.rand(1, 1, 32, 32) > 0.5).float()
    total, terms = trainer.train_generator(image, trainer.network(torch.cat((image, region), 1)), region)
    assert float(terms["perceptual"].detach()) > 0 and "perceptual" in trainer.extra_metrics and math.isfinite(total)
    path.unlink()
    missing = lama(lama__perceptual_checkpoint="vgg/vgg16.pth")
    with pytest.raises(InputError, match=r"nnUNet_results.vgg.vgg16\.pth, the weights of VGG-16, is not a file"):
        missing.run_training()
    assert not missing.was_initialized


def test_validation_needs_no_perceptual_file(lama):
    first = lama()
    first.on_train_start()
    path = Path(first.output_folder) / "checkpoint_final.pth"
    first.save_checkpoint(str(path))
    again = lama(lama__perceptual_checkpoint="/nowhere/vgg16.pth")
    again.load_checkpoint(str(path))
    again.perform_actual_validation()
    assert (path.parent / "validation" / "error_maps.json").is_file()


def test_other_configurations_are_refused(lama):
    with pytest.raises(SettingsError, match=r"inpaints slices\. Train it on 2d_inpainting"):
        lama("3d_inpainting")


def test_checkpoints_are_those_of_the_plans(lama, planned):
    """The generator that error maps are made with has the shape that the plans say."""
    trainer = lama(lama__global_ratio=0.5)
    network = trainer.build_reconstruction_network(trainer.plans_manager, trainer.configuration_manager, 1, 0)
    other = LaMaGenerator(1, features=4, n_downsamplings=2, n_blocks=1, global_ratio=0.5)
    assert [value.shape for value in network.state_dict().values()] == [v.shape for v in other.state_dict().values()]
    folder = planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
    assert load_json(str(folder / "nnUNetAnomalyTinyPlans.json"))["anomaly"]["slices"]["lesion_labels"] == []
