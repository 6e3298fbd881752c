import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_anomaly.errors import InputError, LeakageError, MissingCheckpointError, SettingsError
from nnunet_anomaly.trainers import inpainting
from nnunet_anomaly.trainers.inpainting import nnUNetTrainerInpainting, nnUNetTrainerInpaintingMimic
from nnunet_anomaly.trainers.reconstruction import EARLIER, ReconstructionTrainer

CONFIGURATIONS = ["3d_inpainting", "2d_inpainting"]
PRESETS = {
    "robust": {},
    "paper": {
        "roi__dilation_mm": 18.0,
        "inpainting__code_channels": 4,
        "inpainting__upsampling": "transposed",
        "inpainting__learning_rate_schedule": "constant",
        "mimic__objective": "paper",
    },
}


def folder_of(trainer):
    return Path(trainer.output_folder)


def record_of(trainer):
    return json.loads((folder_of(trainer) / "validation" / "error_maps.json").read_text())


def read(path):
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("preset", PRESETS)
def test_g_and_a_train_and_write_their_maps(new_trainer, planned, configuration, preset):
    g = new_trainer(nnUNetTrainerInpainting, configuration, **PRESETS[preset])
    g.run_training()
    g.perform_actual_validation()
    a = new_trainer(nnUNetTrainerInpaintingMimic, configuration, **PRESETS[preset])
    a.run_training()
    a.perform_actual_validation()

    for trainer, extra in ((g, set()), (a, {"leak"})):
        log = trainer.logger.local_logger.my_fantastic_logging
        times = {"epoch_start_timestamps", "epoch_end_timestamps"}
        assert set(log) == {"train_losses", "val_losses", "lrs", *times, *extra}
        assert all(len(values) == 2 and np.isfinite(values).all() for values in log.values())
        folder = folder_of(trainer)
        for name in ("checkpoint_final.pth", "checkpoint_best.pth", "progress.png"):
            assert (folder / name).is_file()
        record = json.loads((folder / "validation" / "error_maps.json").read_text())
        assert record["held_out_cases"] == ["case_03", "case_04", "case_05"]
        assert record["training_cases"] == ["case_00", "case_01", "case_02"]
        for case in record["held_out_cases"]:
            raw = planned.root / "nnUNet_raw" / "Dataset101_Tiny" / "imagesTr" / f"{case}_0000.nii.gz"
            _, original = read(raw)
            for path in (f"error_maps/{case}.nii.gz", f"reconstructions/{case}_0000.nii.gz"):
                values, image = read(folder / "validation" / path)
                assert image.GetPixelID() == sitk.sitkFloat32
                assert image.GetSize() == original.GetSize()
                np.testing.assert_allclose(image.GetSpacing(), original.GetSpacing())
                np.testing.assert_allclose(image.GetOrigin(), original.GetOrigin())
                assert np.isfinite(values).all() and values.max() > values.min()
            assert (read(folder / "validation" / "error_maps" / f"{case}.nii.gz")[0] >= 0).all()


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(new_trainer):
    trainer = new_trainer(nnUNetTrainerInpainting)
    trainer.initialize()
    saved = []
    trainer.save_checkpoint = lambda path: saved.append((trainer.current_epoch, Path(path).name))
    for loss in (0.5, 0.3, 0.4, 0.2):
        for name in ("epoch_start_timestamps", "train_losses", "lrs"):
            trainer.logger.log(name, 1.0, trainer.current_epoch)
        trainer.on_validation_epoch_end([{"loss": loss}, {"loss": loss}])
        trainer.on_epoch_end()
    assert [epoch for epoch, name in saved if name == "checkpoint_best.pth"] == [0, 1, 3]
    assert trainer._best_ema == 0.2


def test_training_goes_on_where_it_stopped(new_trainer):
    first = new_trainer(nnUNetTrainerInpainting)
    first.num_epochs = 1
    first.run_training()
    again = new_trainer(nnUNetTrainerInpainting)
    again.num_epochs = 2
    again.load_checkpoint(str(folder_of(first) / "checkpoint_final.pth"))
    assert again.current_epoch == 1
    for mine, theirs in zip(again.network.parameters(), first.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    again.run_training()
    assert len(again.logger.get_value("train_losses", step=None)) == 2


def test_the_same_seed_gives_the_same_network_and_another_another(new_trainer):
    networks = []
    for seed in (1, 1, 2):
        trainer = new_trainer(nnUNetTrainerInpainting, seed=seed)
        trainer.num_epochs = 1
        trainer.run_training()
        networks.append(torch.cat([weights.flatten() for weights in trainer.network.parameters()]))
    assert torch.equal(networks[0], networks[1])
    assert not torch.equal(networks[0], networks[2])


def test_a_missing_g_names_the_command_that_trains_it(new_trainer):
    trainer = new_trainer(inpainting.nnUNetTrainerInpaintingMimic_5epochs, fold=1)
    with pytest.raises(MissingCheckpointError) as error:
        trainer.initialize()
    command = (
        "nnUNetv2_train Dataset101_Tiny 3d_inpainting 1 -tr nnUNetTrainerInpainting_5epochs -p nnUNetAnomalyTinyPlans"
    )
    assert command in str(error.value)


def test_the_teacher_can_be_named(new_trainer):
    trainer = new_trainer(nnUNetTrainerInpaintingMimic, mimic__teacher_trainer="nnUNetTrainerInpainting_7epochs")
    with pytest.raises(MissingCheckpointError, match="-tr nnUNetTrainerInpainting_7epochs "):
        trainer.initialize()


@pytest.fixture
def pair(new_trainer):
    """A trained G and an A that learns from it, with C."""

    def make(**settings):
        g = new_trainer(nnUNetTrainerInpainting, inpainting__code_channels=3, **settings)
        g.num_epochs = 1
        g.run_training()
        a = new_trainer(nnUNetTrainerInpaintingMimic, inpainting__code_channels=3, **settings)
        a.initialize()
        return g, a

    return make


def test_c_comes_from_g_and_stays_as_it_is(pair):
    g, a = pair(mimic__objective="paper")
    given = {name: weights.clone() for name, weights in g.network.compressor.state_dict().items()}
    trained = [weights.clone() for weights in a.network.to_image.parameters()]
    a.num_epochs = 1
    a.run_training()
    for name, weights in a.network.compressor.state_dict().items():
        assert torch.equal(weights, given[name])
    assert not all(torch.equal(*both) for both in zip(a.network.to_image.parameters(), trained, strict=True))


def test_denoising_hides_lesions_from_a_but_not_from_its_target(pair):
    _, a = pair(corruption__probability=1.0)
    batch = next(a.get_dataloaders()[0])
    assert batch["data"].shape[1] == 3  # with lesions, clean, region
    data, (taught, clean) = a.input_and_target(batch["data"])
    changed = data != clean
    assert changed.any() and data.min() >= 0 and data.max() <= 1
    with torch.no_grad():
        torch.testing.assert_close(taught, a.teacher(batch["data"][:, 1:]))
    region = batch["data"][:, -1:]
    assert set(region.unique().tolist()) <= {0.0, 1.0}


def test_leak_of_the_identity_is_one_and_of_g_zero_and_a_leak_is_warned_about(pair, monkeypatch):
    _, a = pair(mimic__objective="paper")
    batch = next(a.get_dataloaders()[1])
    _, (taught, clean) = a.input_and_target(batch["data"])
    for output, expected in ((clean, 1.0), (taught, 0.0)):
        monkeypatch.setattr(a, "forward_pass", lambda data, output=output: output)
        a.on_validation_epoch_end([a.validation_step(batch)])
        assert a.logger.get_value("leak", step=-1) == pytest.approx(expected, abs=1e-5)
        said = []
        monkeypatch.setattr(a, "print_to_log_file", lambda *text, said=said, **_: said.append(" ".join(map(str, text))))
        for name in ("train_losses", "lrs", "epoch_start_timestamps"):
            a.logger.log(name, 1.0, a.current_epoch)
        a.on_epoch_end()
        assert any("WARNING: the leak is" in line for line in said) == (expected == 1.0)


def test_networks_of_another_split_are_refused(pair, new_trainer, monkeypatch):
    g, a = pair()
    a.run_training()
    paths = [str(folder_of(trainer) / "checkpoint_final.pth") for trainer in (g, a)]
    swapped = (["case_03", "case_04", "case_05"], ["case_00", "case_01", "case_02"])
    with monkeypatch.context() as patch:
        patch.setattr(ReconstructionTrainer, "do_split", lambda trainer: swapped)
        with pytest.raises(LeakageError, match=r"checkpoint_final.pth was not trained on the training cases"):
            new_trainer(nnUNetTrainerInpaintingMimic, inpainting__code_channels=3).initialize()
        with pytest.raises(LeakageError, match=r"Train this network again, without --c"):  # --c and --val load it so
            new_trainer(nnUNetTrainerInpainting, inpainting__code_channels=3).load_checkpoint(paths[0])
    again = new_trainer(nnUNetTrainerInpainting, inpainting__code_channels=3)
    again.load_checkpoint(paths[0])
    again.perform_actual_validation()
    record = record_of(again)
    assert record["training_cases"] == ["case_00", "case_01", "case_02"]


def test_without_checkpointing_nothing_is_written_or_overwritten(new_trainer):
    for existing in (None, b"the network of an earlier training"):
        trainer = new_trainer(nnUNetTrainerInpainting)
        trainer.num_epochs, trainer.disable_checkpointing = 1, True
        if existing:
            folder_of(trainer).mkdir(parents=True, exist_ok=True)
            (folder_of(trainer) / "checkpoint_final.pth").write_bytes(existing)
        trainer.run_training()
        trainer.perform_actual_validation()  # of the network in memory, which no file holds
        assert record_of(trainer)["checkpoint"] is record_of(trainer)["checkpoint_sha256"] is None
        left = {path.name: path.read_bytes() for path in folder_of(trainer).glob("*.pth")}
        assert left == ({"checkpoint_final.pth": existing} if existing else {})


def test_going_on_with_a_finished_training_leaves_its_checkpoint(new_trainer):
    first = new_trainer(nnUNetTrainerInpainting)
    first.run_training()
    path = folder_of(first) / "checkpoint_final.pth"
    before = path.stat().st_mtime_ns
    again = new_trainer(nnUNetTrainerInpainting)
    again.load_checkpoint(str(path))
    again.run_training()
    assert path.stat().st_mtime_ns == before


def test_training_anew_replaces_the_checkpoints_of_an_earlier_training(new_trainer):
    for seed in (1, 2):
        trainer = new_trainer(nnUNetTrainerInpainting, seed=seed)
        trainer.num_epochs = 1
        trainer.run_training()
        for name in ("checkpoint_best.pth", "checkpoint_final.pth"):
            saved = torch.load(folder_of(trainer) / name, weights_only=False)["network_weights"]
            for key, weights in trainer.network.state_dict().items():
                assert torch.equal(saved[key], weights), (name, seed)


def test_what_c_goes_on_with_is_never_an_earlier_training(new_trainer):
    first = new_trainer(nnUNetTrainerInpainting)
    first.run_training()
    final = (folder_of(first) / "checkpoint_final.pth").read_bytes()
    anew = new_trainer(nnUNetTrainerInpainting, seed=2)
    anew.on_train_start()  # and then it is killed
    earlier_final, earlier_best = (EARLIER.format(name) for name in ("final", "best"))
    assert {path.name for path in folder_of(anew).glob("*.pth")} == {earlier_final, earlier_best}
    assert (folder_of(anew) / earlier_final).read_bytes() == final
    going_on = new_trainer(nnUNetTrainerInpainting)
    going_on.save_checkpoint = lambda name: None
    going_on.load_checkpoint(str(folder_of(anew) / earlier_final))
    going_on.on_train_start()  # not anew: nothing is set aside
    assert (folder_of(anew) / earlier_final).is_file()
    again = new_trainer(nnUNetTrainerInpainting)
    again.num_epochs = 1
    again.run_training()
    names = {path.name for path in folder_of(again).glob("*.pth")}
    assert names == {"checkpoint_final.pth", "checkpoint_best.pth", earlier_final}


def test_weights_from_elsewhere_are_noted_and_what_a_learns_from_such_a_g_too(new_trainer):
    g = new_trainer(nnUNetTrainerInpainting)
    g.num_epochs = 1
    g.initialize()
    with torch.no_grad():
        next(g.network.parameters()).mul_(2)  # as nnU-Net's -pretrained_weights does, before the training starts
    g.run_training()
    g.perform_actual_validation()
    assert record_of(g)["pretrained"] is True
    a = new_trainer(nnUNetTrainerInpaintingMimic)
    a.num_epochs = 1
    a.run_training()
    a.perform_actual_validation()
    assert record_of(a)["pretrained"] is True


def test_a_goes_on_with_the_g_that_it_began_with(pair, new_trainer):
    _, a = pair()
    a.num_epochs = 1
    a.run_training()
    a.perform_actual_validation()
    assert record_of(a)["pretrained"] is False
    g = new_trainer(nnUNetTrainerInpainting, inpainting__code_channels=3, seed=2)
    g.num_epochs = 1
    g.run_training()
    path = str(folder_of(a) / "checkpoint_final.pth")
    for epochs in (1, 2):  # finished, and to be gone on with
        again = new_trainer(nnUNetTrainerInpaintingMimic, inpainting__code_channels=3)
        again.num_epochs = epochs
        again.load_checkpoint(path)
        if epochs == 1:
            again.run_training()
        else:
            with pytest.raises(InputError, match="A would learn from two networks"):
                again.run_training()


def test_a_validation_that_stops_half_way_leaves_no_record(new_trainer, monkeypatch):
    trainer = new_trainer(nnUNetTrainerInpainting)
    trainer.num_epochs = 1
    trainer.run_training()
    trainer.perform_actual_validation()
    record = folder_of(trainer) / "validation" / "error_maps.json"
    assert record.is_file()
    validate_case = trainer.validate_case

    def killed_at_the_second_case(case, *rest):
        if case == "case_04":
            raise KeyboardInterrupt
        return validate_case(case, *rest)

    monkeypatch.setattr(trainer, "validate_case", killed_at_the_second_case)
    with pytest.raises(KeyboardInterrupt):
        trainer.perform_actual_validation()
    assert not record.exists()


def test_nnunets_predictor_is_told_that_this_is_no_segmentation_model():
    with pytest.raises(InputError, match="nnunet-anomaly error-maps -d DATASET -tr nnUNetTrainerInpaintingMimic"):
        nnUNetTrainerInpaintingMimic.build_network_architecture(None, None, 1, 3, enable_deep_supervision=False)


def test_another_scale_of_intensities_is_refused(new_trainer):
    with pytest.raises(SettingsError, match=r"'3d_fullres' has ZScoreNormalization.*3d_inpainting"):
        new_trainer(nnUNetTrainerInpainting, "3d_fullres")


def test_a_loss_that_is_not_a_number_is_never_the_best(new_trainer):
    trainer = new_trainer(nnUNetTrainerInpainting)
    trainer.initialize()
    for loss in (float("nan"), 0.5):
        for name in ("epoch_start_timestamps", "train_losses", "lrs"):
            trainer.logger.log(name, 1.0, trainer.current_epoch)
        trainer.on_validation_epoch_end([{"loss": loss}])
        trainer.on_epoch_end()
    assert trainer._best_ema == 0.5


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_maps_have_the_file_ending_of_the_dataset(new_trainer, planned, ending):
    folder = planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
    description = {**json.loads((folder / "dataset.json").read_text()), "file_ending": ending}
    trainer = new_trainer(nnUNetTrainerInpainting, dataset_json=description)
    trainer.run_training()
    trainer.perform_actual_validation()
    values, image = read(folder_of(trainer) / "validation" / "error_maps" / f"case_03{ending}")
    assert image.GetPixelID() == sitk.sitkFloat32 and values.max() > 0


def test_files_that_hold_no_error_map_are_refused(new_trainer, planned):
    folder = planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
    description = {**json.loads((folder / "dataset.json").read_text()), "file_ending": ".png"}
    with pytest.raises(InputError, match="but the dataset has"):
        new_trainer(nnUNetTrainerInpainting, dataset_json=description)


def test_a_dataset_with_error_maps_is_refused(new_trainer):
    derived = {
        "channel_names": {"0": "MR", "1": "noNorm"},
        "labels": {"background": 0, "bone": 1, "cartilage": 2},
        "numTraining": 6,
        "file_ending": ".nii.gz",
        "anomaly": {"channel_roles": {"1": "error_map"}},
    }
    with pytest.raises(InputError, match="already has an error-map channel"):
        new_trainer(nnUNetTrainerInpainting, dataset_json=derived)
