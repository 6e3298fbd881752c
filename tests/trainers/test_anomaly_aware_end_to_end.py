"""A inside S: which A a case meets, what learns, what is refused. Prediction by commands: tests/end_to_end."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_anomaly.error_maps.end_to_end import CONFIGURATION
from nnunet_anomaly.error_maps.model import case_maps, load_model, prepare_case
from nnunet_anomaly.errors import InputError, LeakageError, MissingCheckpointError, SettingsError
from nnunet_anomaly.trainers.anomaly_aware import nnUNetTrainerAnomalyAware
from nnunet_anomaly.trainers.anomaly_aware_end_to_end import nnUNetTrainerAnomalyAwareEndToEnd
from nnunet_anomaly.trainers.denoising import nnUNetTrainerDenoisingAutoencoder

PLANS = "nnUNetAnomalyTinyPlans"
CASES = [f"case_{index:02d}" for index in range(6)]
END_TO_END = nnUNetTrainerAnomalyAwareEndToEnd


def settings_of(folder, **settings):
    return {"end_to_end__model": str(folder), **{f"end_to_end__{key}": value for key, value in settings.items()}}


def copy_of(folder, tmp_path):
    """A model folder that may be changed."""
    return Path(shutil.copytree(folder, tmp_path / "a" / "Dataset101_Tiny" / folder.name))


@pytest.fixture
def copied_a(trained_a, tmp_path):
    """The 2-D model folder, to be changed."""
    return copy_of(trained_a["2d_inpainting"], tmp_path)


def change(checkpoint, edit):
    content = torch.load(checkpoint, weights_only=False)
    edit(content)
    torch.save(content, checkpoint)


def weights_of(folder, fold):
    return torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)["network_weights"]


def same(network, weights):
    return all(torch.equal(values, weights[name]) for name, values in network.state_dict().items())


def first_batch(trainer):
    trainer.initialize()
    return next(trainer.get_dataloaders()[0])


# -- which A a case meets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("fold", [0, 1])
def test_training_cases_meet_the_a_that_held_them_out(new_trainer, trained_a, configuration, fold):
    folder = trained_a[f"{configuration[:2]}_inpainting"]
    trainer = new_trainer(END_TO_END, configuration, fold, **settings_of(folder))
    trainer.initialize()
    splits = load_json(str(Path(trainer.preprocessed_dataset_folder_base) / "splits_final.json"))
    assert trainer.fold_of_case == {case: int(case in splits[1]["val"]) for case in CASES}
    for case in splits[fold]["train"]:
        assert same(trainer.network_of_fold(trainer.fold_of_case[case]), weights_of(folder, 1 - fold))
    (exported,) = trainer.network.reconstructors
    assert same(exported, weights_of(folder, fold))
    met = []
    trainer.bare_network().reconstructors.register_forward_pre_hook(lambda *_: met.append("exported"))
    for number, network in trainer.folds.networks.items():
        network.register_forward_pre_hook(lambda *_, number=number: met.append(number))
    batch = next(trainer.get_dataloaders()[0])
    assert set(batch["keys"]) <= set(splits[fold]["train"])
    trainer.train_step(batch)
    assert met == [1 - fold]


def test_the_steps_error_map_is_the_stand_alone_one_of_the_chosen_network(new_trainer, trained_a):
    folder = trained_a["2d_inpainting"]
    trainer = new_trainer(END_TO_END, "2d", **settings_of(folder))
    batch = first_batch(trainer)
    network, seen = trainer.bare_network(), []
    network.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], module.error)))
    trainer.train_step(batch)
    assert network.error is None and trainer.loss.cross_entropy.error is None
    ((data, error),) = seen
    assert data.shape[1] == 2  # what S sees, and the same without augmented intensities for A
    with torch.no_grad(), network.reconstructed_by([trainer.folds.networks[1]]):
        torch.testing.assert_close(error, network.error_map(data[:, 1:]), atol=1e-6, rtol=1e-5)


def test_fold_all_meets_the_folds_too_and_needs_an_a_of_all_cases_to_export_one(new_trainer, trained_a):
    folder = trained_a["2d_inpainting"]
    with pytest.raises(MissingCheckpointError, match="2d_inpainting all -tr nnUNetTrainerInpaintingMimic"):
        new_trainer(END_TO_END, "2d", "all", **settings_of(folder)).initialize()
    trainer = new_trainer(END_TO_END, "2d", "all", **settings_of(folder, exported="mean"))
    trainer.initialize()
    assert set(trainer.fold_of_case.values()) == {0, 1}
    assert len(trainer.network.reconstructors) == 2


def test_by_default_a_is_that_of_the_same_plans_and_epochs(new_trainer, planned):
    from nnunet_anomaly.trainers import anomaly_aware_end_to_end

    trainer = new_trainer(anomaly_aware_end_to_end.nnUNetTrainerAnomalyAwareEndToEnd_5epochs, "3d_fullres")
    with pytest.raises(MissingCheckpointError) as raised:
        trainer.initialize()
    assert f"nnUNetTrainerInpaintingMimic_5epochs__{PLANS}__3d_inpainting has no" in str(raised.value)
    assert "nnUNetv2_train Dataset101_Tiny 3d_inpainting FOLD -tr nnUNetTrainerInpaintingMimic_5epochs" in str(
        raised.value
    )


# -- equality with the stand-alone path -------------------------------------------------------------------------------


def test_on_a_preprocessed_case_it_is_the_error_map_that_error_maps_makes(new_trainer, trained_a, planned):
    """The tiny images are one patch of 3d_inpainting and, at another spacing, of 3d_fullres."""
    folder = trained_a["3d_inpainting"]
    trainer = new_trainer(END_TO_END, "3d_fullres", **settings_of(folder))
    trainer.initialize()
    network = trainer.bare_network().eval()
    model = load_model(folder, [0])
    images = [planned.root / "nnUNet_raw" / "Dataset101_Tiny" / "imagesTr" / "case_03_0000.nii.gz"]
    prepared = prepare_case(images, None, model.plans, model.configuration, model.dataset_json)
    expected, _ = case_maps(model, prepared)
    ours = prepare_case(images, None, trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json)
    assert list(trainer.configuration_manager.spacing) == list(model.configuration.spacing)
    assert network.window(ours.image.shape[1:]) == tuple(model.configuration.patch_size)
    with torch.no_grad():
        error = network.error_map(torch.from_numpy(np.asarray(ours.image[None])))[0]
    assert float(expected.max()) > 1e-2
    torch.testing.assert_close(error, expected, atol=1e-4, rtol=0)


# -- what learns ------------------------------------------------------------------------------------------------------


def test_a_frozen_a_stays_as_it_is(new_trainer, trained_a):
    folder = trained_a["2d_inpainting"]
    trainer = new_trainer(END_TO_END, "2d", **settings_of(folder, exported="mean"))
    batch = first_batch(trainer)
    before = copy.deepcopy(trainer.network.segmenter.state_dict())
    trainer.train_step(batch)
    assert not same(trainer.network.segmenter, before)
    for fold, network in enumerate(trainer.network.reconstructors):
        assert same(network, weights_of(folder, fold))


def test_a_fine_tuned_a_learns_by_the_loss_of_s_at_its_own_rate(new_trainer, trained_a):
    folder = trained_a["2d_inpainting"]
    rates = []
    for factor in (0.1, 0.0):
        trainer = new_trainer(
            END_TO_END, "2d", **settings_of(folder, exported="mean", fine_tuned=True, learning_rate_factor=factor)
        )
        batch = first_batch(trainer)
        assert trainer.exported_folds() == [1]  # the A of fold 0 is never met in training
        trainer.train_step(batch)
        (network,) = trainer.network.reconstructors
        assert all(parameter.grad is not None for parameter in network.parameters())
        assert same(network, weights_of(folder, 1)) == (factor == 0)
        trainer.lr_scheduler.step(1)
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        assert trainer.network_of_fold(0) is trainer.folds.networks[0]  # held-out cases meet it, as it was
        trainer.validation_step(next(trainer.get_dataloaders()[1]))
        assert same(trainer.folds.networks[0], weights_of(folder, 0))
    assert rates[0][1] == pytest.approx(rates[0][0] / 10) and rates[1][1] == 0
    learning = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert learning == {id(parameter) for parameter in trainer.network.parameters()}


def test_s_begins_as_the_one_with_a_precomputed_channel(new_trainer, trained_a):
    trainer = new_trainer(END_TO_END, "2d", **settings_of(trained_a["2d_inpainting"]), error_map__input_gain=100.0)
    trainer.initialize()
    folder = Path(trainer.preprocessed_dataset_folder_base)
    plans, dataset_json = (load_json(str(folder / name)) for name in (f"{PLANS}.json", "dataset.json"))
    plans["configurations"]["2d"]["normalization_schemes"] = ["ZScoreNormalization", "NoNormalization"]
    plans["configurations"]["2d"]["use_mask_for_norm"] = [False, False]
    dataset_json["channel_names"]["1"] = "noNorm"
    dataset_json["anomaly"]["channel_roles"]["1"] = "error_map"
    beside = new_trainer(nnUNetTrainerAnomalyAware, "2d", plans=plans, dataset_json=dataset_json)
    beside.initialize()
    for name, values in beside.network.state_dict().items():
        assert torch.equal(values, trainer.network.segmenter.state_dict()[name]), name


@pytest.mark.parametrize("augmented", [False, True])
def test_a_sees_augmented_intensities_where_it_is_to(new_trainer, trained_a, augmented):
    settings = settings_of(trained_a["2d_inpainting"], intensity_augmentation=augmented)
    trainer = new_trainer(END_TO_END, "2d", **settings)
    trainer.initialize()
    size = trainer.configuration_manager.patch_size
    pipeline = trainer.get_training_transforms(size, (0, 0), None, (), False)
    for transform in pipeline.transforms:
        if hasattr(transform, "p_rotation"):
            transform.p_rotation = transform.p_scaling = 0
        if hasattr(transform, "apply_probability"):
            transform.apply_probability = 1
    image = torch.rand(1, *size)
    result = pipeline(image=image.clone(), segmentation=torch.zeros(1, *size, dtype=torch.int16))["image"]
    assert len(result) == 1 + (not augmented)
    assert not torch.allclose(result[0], image[0])
    assert augmented or torch.equal(result[1], image[0])


@pytest.mark.parametrize("augmented", [False, True])
def test_a_and_s_see_the_same_synthetic_lesions(new_trainer, trained_a, augmented):
    settings = settings_of(trained_a["2d_inpainting"], intensity_augmentation=augmented, lesion_augmentation=True)
    trainer = new_trainer(END_TO_END, "2d", **settings, corruption__probability=1.0)
    trainer.initialize()
    size = trainer.configuration_manager.patch_size
    pipeline = trainer.get_training_transforms(size, (0, 0), None, (), False)
    for transform in pipeline.transforms:
        if hasattr(transform, "p_rotation"):
            transform.p_rotation = transform.p_scaling = 0
        if type(transform).__name__ == "RandomTransform":
            transform.apply_probability = 0
    image, labels = torch.randn(1, *size), torch.zeros(1, *size, dtype=torch.int16)
    labels[:, 8:-8, 8:-8] = 1
    assert 1 in trainer.settings.roi.labels
    result = pipeline(image=image.clone(), segmentation=labels.clone())
    changed = result["image"][0] != image[0]
    assert 0 < changed.sum() < changed.numel()
    assert len(result["image"]) == 1 + (not augmented)
    assert torch.equal(result["image"][-1], result["image"][0])
    assert torch.equal(result["segmentation"][0], labels) or torch.equal(result["segmentation"], labels)


def test_it_trains_resumes_and_says_when_a_is_another(new_trainer, copied_a):
    settings = settings_of(copied_a, exported="mean")
    trainer = new_trainer(END_TO_END, "2d", **settings)
    trainer.save_every = 1
    trainer.num_epochs = 1
    trainer.run_training()
    latest = Path(trainer.output_folder) / "checkpoint_final.pth"
    weights = {name: values.clone() for name, values in trainer.network.state_dict().items()}

    def resumed():
        again = new_trainer(END_TO_END, "2d", **settings)
        again.load_checkpoint(str(latest))
        return again

    again = resumed()
    assert all(torch.equal(values, weights[name]) for name, values in again.network.state_dict().items())
    again.num_epochs = 2
    again.run_training()
    assert again.current_epoch == 2
    change(copied_a / "fold_1" / "checkpoint_final.pth", lambda content: content.update(current_epoch=9))
    again = resumed()
    again.num_epochs = 3
    with pytest.raises(InputError, match=r"Fold 1 of .* was trained again since this training began"):
        again.run_training()


def test_what_is_validated_or_gone_on_with_is_the_network_that_was_trained(new_trainer, copied_a):
    """Also where A's folder, whose weights it has already, is another one since."""
    trainer = new_trainer(END_TO_END, "2d", **settings_of(copied_a))
    trainer.num_epochs = 1
    trainer.run_training()
    checkpoint = str(Path(trainer.output_folder) / "checkpoint_final.pth")
    new_trainer(END_TO_END, "2d", **settings_of(copied_a)).load_checkpoint(checkpoint)  # --val
    with pytest.raises(SettingsError, match=r"networks was 1 and is 2; end_to_end\.exported was fold and is mean"):
        new_trainer(END_TO_END, "2d", **settings_of(copied_a, exported="mean")).load_checkpoint(checkpoint)
    # as many networks, but of fold 1, which has seen the cases that fold 0 is validated with
    other = new_trainer(END_TO_END, "2d", **settings_of(copied_a, exported="mean", fine_tuned=True))
    with pytest.raises(SettingsError, match=r"was trained with another A inside .*fine_tuned was False and is True"):
        other.load_checkpoint(checkpoint)
    plans = load_json(str(copied_a / "plans.json"))
    plans["anomaly"]["error_map"]["clip_sd"] = 4.0
    save_json(plans, str(copied_a / "plans.json"))
    with pytest.raises(SettingsError, match=r"clip_sd was 5\.0 and is 4\.0\. Bring them and A's folder, .* back"):
        new_trainer(END_TO_END, "2d", **settings_of(copied_a)).load_checkpoint(checkpoint)


def test_plans_of_the_model_build_the_network_without_a(new_trainer, copied_a):
    change_settings = settings_of(copied_a, exported="mean")
    trainer = new_trainer(END_TO_END, "2d", **change_settings)
    trainer.num_epochs = 1
    trainer.run_training()
    shutil.rmtree(copied_a)
    plans = PlansManager(load_json(str(Path(trainer.output_folder_base) / "plans.json")))
    network = END_TO_END.build_network_architecture(plans, plans.get_configuration("2d"), 1, 3, False)
    network.load_state_dict(
        torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)["network_weights"]
    )
    image = torch.randn(2, 1, *trainer.configuration_manager.patch_size)
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        assert torch.equal(network.eval()(image), trainer.network.eval()(image))
    untrained = PlansManager(load_json(str(Path(trainer.preprocessed_dataset_folder_base) / f"{PLANS}.json")))
    with pytest.raises(SettingsError, match=r"Take the plans\.json of the trained model's folder"):
        END_TO_END.build_network_architecture(untrained, untrained.get_configuration("2d"), 1, 3, False)


def test_another_process_predicts_by_stock_commands_without_a(new_trainer, trained_a, new_workspace, tmp_path, planned):
    copied_a = copy_of(trained_a["3d_inpainting"], tmp_path)
    trainer = new_trainer(END_TO_END, "3d_fullres", **settings_of(copied_a, exported="mean"))
    trainer.num_epochs = 1
    trainer.run_training()
    met = []
    for fold, network in enumerate(trainer.network.reconstructors):
        network.register_forward_pre_hook(lambda *_, fold=fold: met.append(fold))
    trainer.perform_actual_validation()
    assert set(met) == {0}  # of both that are exported the one that has not seen the held-out cases
    shutil.rmtree(copied_a)
    images = tmp_path / "images"
    images.mkdir()
    raw = planned.root / "nnUNet_raw" / "Dataset101_Tiny" / "imagesTr" / "case_03_0000.nii.gz"
    shutil.copy(raw, images / "new_0000.nii.gz")
    where = ["-d", "101", "-c", "3d_fullres", "-f", "0", "-tr", END_TO_END.__name__, "-p", PLANS]
    elsewhere = new_workspace("elsewhere")
    here = type(elsewhere)(tmp_path)
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / name).mkdir()
    here.run("nnUNetv2_export_model_to_zip", *where, "-o", str(tmp_path / "model.zip"))
    elsewhere.run("nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "model.zip"))
    command = ["nnUNetv2_predict", *where, "-i", str(images), "-device", "cpu", "-npp", "1", "-nps", "1"]
    elsewhere.run(*command, "--save_probabilities", "--disable_tta", "-o", str(tmp_path / "predicted"))
    found = np.load(tmp_path / "predicted" / "new.npz")["probabilities"]

    managers = (trainer.plans_manager, trainer.configuration_manager)
    data = prepare_case([raw], None, *managers, trainer.dataset_json).image
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"))
    trainer.set_deep_supervision_enabled(False)
    predictor.manual_initialization(trainer.network.eval(), *managers, None, trainer.dataset_json, "", None)
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(np.asarray(data)))
    np.testing.assert_allclose(found, logits.float().softmax(0).numpy(), atol=1e-5)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_cases_that_no_a_held_out_are_a_leak(new_trainer, copied_a):
    shutil.rmtree(copied_a / "fold_1")
    with pytest.raises(LeakageError) as raised:
        new_trainer(END_TO_END, "2d", **settings_of(copied_a)).initialize()
    assert "has held out case_00, case_01, case_02 (folds that are there: 0)" in str(raised.value)
    assert "2d_inpainting FOLD -tr nnUNetTrainerInpaintingMimic" in str(raised.value)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda args: args["split"]["train"].append("case_00"), LeakageError, "held out case_00 "),
        (lambda args: args.update(pretrained=True), LeakageError, "began with -pretrained_weights"),
        (lambda args: args.pop("split"), LeakageError, "does not say which cases it learnt from"),
    ],
)
def test_an_a_that_may_have_seen_a_case_is_a_leak(new_trainer, copied_a, edit, error, message):
    change(copied_a / "fold_1" / "checkpoint_final.pth", lambda content: edit(content["init_args"]))
    with pytest.raises(error, match=message):
        new_trainer(END_TO_END, "2d", **settings_of(copied_a)).initialize()


@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.parametrize("fold", [0, "all"])
def test_every_a_was_trained_on_its_folds_cases(new_trainer, copied_a, changed, fold):
    """Splits are by subject: an A of other splits may have held out a case and learnt from another scan of the knee."""

    def less(content):
        content["init_args"]["split"]["train"].pop()

    change(copied_a / f"fold_{changed}" / "checkpoint_final.pth", less)
    message = rf"A of fold {changed} .* was not trained on the training cases that this fold has"
    with pytest.raises(LeakageError, match=message):
        new_trainer(END_TO_END, "2d", fold, **settings_of(copied_a, exported="mean")).initialize()


@pytest.mark.parametrize(
    ("file", "edit", "error", "message"),
    [
        ("dataset.json", lambda there: there["channel_names"].update({"0": "T2"}), InputError, r"\['t2'\] in A and"),
        ("plans.json", lambda there: there.update(dataset_name="Dataset102_B"), InputError, "Dataset102_B, not on"),
        ("plans.json", lambda there: there.update(transpose_forward=[1, 0, 2]), SettingsError, "its axes are"),
        (
            "plans.json",
            lambda there: there["configurations"]["2d_inpainting"].update(use_mask_for_norm=[True]),
            SettingsError,
            "inside the non-zero region",
        ),
    ],
)  # fmt: skip
def test_an_a_of_other_images_is_refused(new_trainer, copied_a, file, edit, error, message):
    content = load_json(str(copied_a / file))
    edit(content)
    save_json(content, str(copied_a / file))
    with pytest.raises(error, match=message):
        new_trainer(END_TO_END, "2d", **settings_of(copied_a)).initialize()


def test_another_dimension_is_refused(new_trainer, trained_a):
    for configuration, other in (("2d", "3d_inpainting"), ("3d_fullres", "2d_inpainting")):
        with pytest.raises(SettingsError, match=f"it is {other[0]}-D and the segmentation {configuration[0]}-D"):
            new_trainer(END_TO_END, configuration, **settings_of(trained_a[other])).initialize()


def test_images_from_which_as_do_not_follow_are_refused(new_trainer, trained_a):
    trainer = new_trainer(END_TO_END, "2d", **settings_of(trained_a["2d_inpainting"]))
    trainer.configuration_manager.configuration["normalization_schemes"] = ["CTNormalization"]
    with pytest.raises(SettingsError, match="these are by CTNormalization, ZScoreClipped01Normalization"):
        trainer.initialize()


def test_models_of_another_kind_are_refused(new_trainer, trained_a):
    g = trained_a["2d_inpainting"].with_name(f"nnUNetTrainerInpainting__{PLANS}__2d_inpainting")
    with pytest.raises(SettingsError, match="cannot be taken into a segmentation network"):
        new_trainer(END_TO_END, "2d", **settings_of(g)).initialize()
    other = new_trainer(nnUNetTrainerDenoisingAutoencoder, "2d_inpainting")
    other.num_epochs = 1
    other.run_training()
    with pytest.raises(SettingsError, match="cannot be taken into a segmentation network"):
        new_trainer(END_TO_END, "2d", **settings_of(other.output_folder_base)).initialize()


def test_a_dataset_with_an_error_channel_and_a_fine_tuned_export_of_one_fold_are_refused(new_trainer, trained_a):
    folder = trained_a["2d_inpainting"]
    with pytest.raises(SettingsError, match=r"Set end_to_end\.exported=mean"):
        new_trainer(END_TO_END, "2d", **settings_of(folder, fine_tuned=True))
    dataset_json = load_json(str(folder / "dataset.json"))
    dataset_json["channel_names"]["1"] = "noNorm"
    dataset_json["anomaly"]["channel_roles"]["1"] = "error_map"
    plans = load_json(str(folder / "plans.json"))
    plans["configurations"]["2d"]["normalization_schemes"] = ["ZScoreNormalization", "NoNormalization"]
    with pytest.raises(InputError, match="has an error-map channel already"):
        new_trainer(END_TO_END, "2d", dataset_json=dataset_json, plans=plans)


def test_folds_of_a_folder_hold_as_many_a(new_trainer, trained_a):
    folder = trained_a["2d_inpainting"]
    first = new_trainer(END_TO_END, "2d", 0, **settings_of(folder))
    first.num_epochs = 1
    first.run_training()
    new_trainer(END_TO_END, "2d", 1, **settings_of(folder)).initialize()
    with pytest.raises(SettingsError, match=r"has fold_0 with another A inside .*networks was 1 and is 2"):
        new_trainer(END_TO_END, "2d", 1, **settings_of(folder, exported="mean")).initialize()
    with pytest.raises(InputError, match="is not a model's folder"):
        new_trainer(END_TO_END, "2d", 1, **settings_of(folder.parent)).initialize()


def test_a_is_written_into_the_plans(new_trainer, trained_a):
    folder = trained_a["2d_inpainting"]
    trainer = new_trainer(END_TO_END, "2d", **settings_of(folder))
    trainer.initialize()
    plans = trainer.plans_manager.plans
    assert (
        plans["configurations"][CONFIGURATION]
        == load_json(str(folder / "plans.json"))["configurations"]["2d_inpainting"]
    )
    noted = plans["anomaly"]["end_to_end"]
    assert (noted["networks"], noted["code_channels"], noted["upsampling"]) == (1, 0, "interpolated")
