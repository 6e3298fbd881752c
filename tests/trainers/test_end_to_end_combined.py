"""A inside S together with what else nnU-Net and ours do: left and right, cascades, a code, several folds, a zip."""

import copy
import shutil
import sys
import zipfile
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.entry_points import export_pretrained_model_entry, install_from_zip_entry_point

from nnunet_anomaly.error_maps.model import case_maps, load_model, prepare_case
from nnunet_anomaly.losses.reconstruction import denoising_loss
from nnunet_anomaly.trainers.anomaly_aware_end_to_end import nnUNetTrainerAnomalyAwareEndToEnd as EndToEnd
from nnunet_anomaly.trainers.anomaly_aware_joint import nnUNetTrainerAnomalyAwareJoint as Joint

PLANS = "nnUNetAnomalyTinyPlans"
PAIR = {"symmetry__pairs": [[1, 2]], "symmetry__side_axis": 2}
TWINS = [0, 2, 1]  # outputs, of which label 1 is the left one and label 2 the right one


def settings_of(folder, **settings):
    return {"end_to_end__model": str(folder), **{f"end_to_end__{key}": value for key, value in settings.items()}}


def weights_of(folder, fold):
    return torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)["network_weights"]


def same(network, weights):
    return all(torch.equal(values, weights[name]) for name, values in network.state_dict().items())


def train(trainer):
    trainer.num_epochs = 1
    trainer.run_training()
    return trainer


def predictor_of(trainer, folds=(0,)):
    """nnU-Net's, from the folder alone; for images of one window, whose weights are not symmetric if Gaussian."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_gaussian=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, folds, "checkpoint_final.pth")
    return predictor


def image_for(trainer, slices=2, channels=1, seed=0):
    """(C, z, y, x) as preprocessed, of one window."""
    size = trainer.configuration_manager.patch_size
    shape = (channels, *([slices] if len(size) == 2 else []), *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def transformed(trainer, image, labels, mirrored):
    """What the training transforms make of a patch when these axes are mirrored and nothing else happens."""
    size, axes = trainer.configuration_manager.patch_size, trainer.inference_allowed_mirroring_axes or ()
    pipeline = trainer.get_training_transforms(size, (0, 0), None, tuple(axes) or (0,), False)
    for step in pipeline.transforms:
        if hasattr(step, "p_rotation"):
            step.p_rotation = step.p_scaling = 0
        if hasattr(step, "apply_probability"):
            step.apply_probability = 0
        if isinstance(step, MirrorTransform):
            step.get_parameters = lambda **data: {"axes": mirrored}
    return pipeline(image=image.clone(), segmentation=labels.clone())


# -- left and right ---------------------------------------------------------------------------------------------------


def test_both_sides_are_predicted_alike_and_a_looks_at_the_mirror_image_too(new_trainer, trained_a):
    trainer = train(new_trainer(EndToEnd, "2d", **settings_of(trained_a["2d_inpainting"]), **PAIR))
    image = image_for(trainer)
    predictor = predictor_of(trainer)
    assert predictor.allowed_mirroring_axes == (0,)  # the network does the other one itself
    met = []
    predictor.network.reconstructors[0].register_forward_hook(lambda *_: met.append("A"))
    logits = predictor.predict_logits_from_preprocessed_data(image)
    assert met == ["A", "A"] * 2  # of every slice and of its mirror image
    mirrored = predictor.predict_logits_from_preprocessed_data(image.flip(3)).flip(3)[TWINS]
    torch.testing.assert_close(logits, mirrored, rtol=0, atol=2e-3)  # nnU-Net sums in half precision

    network = trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    alone = copy.deepcopy(network)
    alone._forward_hooks.clear()
    slices = image.transpose(0, 1)
    with torch.inference_mode():
        for networks in ([network.reconstructors[0]], [trainer.folds.networks[1]]):  # as in training and validation
            with network.reconstructed_by(networks), alone.reconstructed_by(networks):
                once, again = alone(slices), alone(slices.flip(3)).flip(3)[:, TWINS]
                torch.testing.assert_close(network(slices), (once + again) / 2)
        assert not torch.allclose(once, again, atol=1e-4)


@pytest.mark.parametrize("cls", [EndToEnd, Joint])
def test_what_a_sees_is_mirrored_with_the_patch_and_labels_are_exchanged(new_trainer, trained_a, cls):
    trainer = new_trainer(cls, "2d", **settings_of(trained_a["2d_inpainting"]), **PAIR)
    trainer.initialize()
    image, labels = image_for(trainer)[:, 0], torch.zeros(1, *trainer.configuration_manager.patch_size)
    labels = labels.to(torch.int16)
    labels[:, 4:9, 3:8], labels[:, 4:9, 8:11] = 1, 2
    plain, mirrored = (transformed(trainer, image, labels, axes) for axes in ([], [1]))
    assert torch.equal(plain["image"][:2], torch.cat((image, image)))
    assert len(plain["image"]) == {EndToEnd: 2, Joint: 4}[cls]
    for channel in (0, 1, -1):  # the image, the same for A, and the region of the joint one's own loss
        assert torch.equal(mirrored["image"][channel], plain["image"][channel].flip(1))
    assert torch.equal(mirrored["segmentation"], (-labels % 3).flip(2))


# -- cascade ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cascade(planned, tmp_path):
    """Make plans with a cascade, for a trainer whose first stage has given the reference as its labels."""

    def make(cls):
        folder = planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
        plans = load_json(str(folder / f"{PLANS}.json"))
        plans["configurations"]["3d_lowres"] = {**plans["configurations"]["3d_fullres"], "next_stage": "3d_cascade"}
        plans["configurations"]["3d_cascade"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        first = tmp_path / "nnUNet_results" / "Dataset101_Tiny" / f"{cls.__name__}__{PLANS}__3d_lowres"
        previous = first / "predicted_next_stage" / "3d_cascade"
        previous.mkdir(parents=True)
        for path in (folder / plans["configurations"]["3d_fullres"]["data_identifier"]).glob("*_seg.b2nd"):
            labels = np.ascontiguousarray(np.maximum(blosc2.open(str(path))[0], 0))
            blosc2.asarray(labels, urlpath=str(previous / path.name.replace("_seg", "")))
        return plans

    return make


@pytest.mark.parametrize("cls", [EndToEnd, Joint])
def test_a_cascade_has_the_labels_of_its_first_stage_between_image_and_error_map(new_trainer, trained_a, cascade, cls):
    settings = settings_of(trained_a["3d_inpainting"])
    trainer = new_trainer(cls, "3d_cascade", plans=cascade(cls), **settings, **PAIR)
    trainer.initialize()
    network, seen, given = trainer.bare_network(), [], []
    network.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    network.segmenter.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    first, made_error_map = next(network.segmenter.modules()), network.error_map
    assert first.encoder.stages[0][0].convs[0].conv.in_channels == 4  # image, two labels, error map
    shown = []
    network.error_map = lambda image: shown.append(image) or made_error_map(image)
    batch = next(trainer.get_dataloaders()[0])
    trainer.train_step(batch)
    ((given,), (seen,), (shown,)) = given, seen, shown
    assert given.shape[1] == 4 and torch.equal(shown, given[:, 1:2])  # without augmented intensities
    assert torch.equal(seen[:, :3], given[:, [0, 2, 3]])
    assert torch.equal(seen[:, 1:3], batch["data"][:, -2:])
    for label in (1, 2):  # nnU-Net opens, closes and drops parts of some
        assert set(seen[:, label].unique().tolist()) == {0, 1}

    trainer.on_train_start()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    image = image_for(trainer)
    onehot = torch.stack([torch.zeros(image.shape[1:]), torch.zeros(image.shape[1:])])
    onehot[0, 4:9, 4:9, 4:9] = onehot[1, 4:9, 4:9, 9:11] = 1
    predictor = predictor_of(trainer)
    logits = predictor.predict_logits_from_preprocessed_data(torch.cat((image, onehot)))
    without = predictor.predict_logits_from_preprocessed_data(torch.cat((image, 0 * onehot)))
    assert not torch.allclose(logits, without, atol=1e-2)
    exchanged = torch.cat((image, onehot[[1, 0]])).flip(3)
    mirrored = predictor.predict_logits_from_preprocessed_data(exchanged).flip(3)[TWINS]
    torch.testing.assert_close(logits, mirrored, rtol=0, atol=2e-3)


# -- a code -----------------------------------------------------------------------------------------------------------


def test_an_a_with_a_code_is_trained_with_predicts_and_stays_what_it_was(new_trainer, a_with_code, planned):
    trainer = train(new_trainer(EndToEnd, "2d", **settings_of(a_with_code, exported="mean")))
    assert (
        load_json(str(Path(trainer.output_folder_base) / "plans.json"))["anomaly"]["end_to_end"]["code_channels"] == 2
    )
    for fold, network in enumerate(trainer.network.reconstructors):
        assert network.compressor is not None and same(network, weights_of(a_with_code, fold))
    raw = [planned.root / "nnUNet_raw" / "Dataset101_Tiny" / "imagesTr" / "case_03_0000.nii.gz"]
    managers = trainer.plans_manager, trainer.configuration_manager
    image = torch.from_numpy(np.asarray(prepare_case(raw, None, *managers, trainer.dataset_json).image))
    predictor, errors = predictor_of(trainer), []
    predictor.network.segmenter.register_forward_pre_hook(lambda module, inputs: errors.append(inputs[0][0, 1:]))
    predictor.predict_logits_from_preprocessed_data(image)

    model = load_model(a_with_code, [0, 1])
    case = prepare_case(raw, None, model.plans, model.configuration, model.dataset_json)
    expected, _ = case_maps(model, case)
    assert case.image.shape == image.shape and expected.max() > 1e-2
    sizes = [(whole - size) // 2 for whole, size in zip(errors[0].shape[1:], image.shape[2:], strict=True)]
    (y, x), (height, width) = sizes, image.shape[2:]
    found = torch.stack([error[:, y : y + height, x : x + width] for error in errors], 1)  # from nnU-Net's padding
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cls", [EndToEnd, Joint])
def test_an_a_that_learns_keeps_its_compressor(new_trainer, a_with_code, cls):
    trainer = new_trainer(cls, "2d", **settings_of(a_with_code, exported="mean", fine_tuned=True))
    trainer.initialize()
    (fold,) = trainer.exported_folds()
    trainer.train_step(next(trainer.get_dataloaders()[0]))
    (network,) = trainer.network.reconstructors
    before = weights_of(a_with_code, fold)
    changed = {name for name, values in network.state_dict().items() if not torch.equal(values, before[name])}
    assert changed and not any(name.startswith("compressor.") for name in changed)
    learning = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert not learning & {id(parameter) for parameter in network.compressor.parameters()}


def test_g_and_a_with_a_code_learn_together(new_trainer, a_with_code):
    trainer = new_trainer(Joint, "2d", **settings_of(a_with_code))
    trainer.initialize()
    size = trainer.configuration_manager.patch_size
    clean, shown = torch.randn(2, 2, 1, *size)
    region = torch.zeros(2, 1, *size)
    region[..., 4:12, 4:12] = 1
    network = trainer.bare_network()
    image, corrupted = ((values.clamp(-5, 5) + 5) / 10 for values in (clean, shown))
    with torch.no_grad():
        taught, mimicked = trainer.teacher(torch.cat((image, region), 1)), network.reconstructors[0](corrupted)
    found = trainer.reconstruction_loss(clean, shown, region)
    torch.testing.assert_close(found, denoising_loss(taught, mimicked), atol=1e-6, rtol=1e-4)


# -- several folds ----------------------------------------------------------------------------------------------------


def test_an_ensemble_has_the_a_of_each_fold(new_trainer, trained_a):
    folder = trained_a["2d_inpainting"]
    trainers = [train(new_trainer(EndToEnd, "2d", fold, **settings_of(folder))) for fold in (0, 1)]
    image = image_for(trainers[0])
    predictor = predictor_of(trainers[0], (0, 1))
    together = predictor.predict_logits_from_preprocessed_data(image)
    alone = []
    for fold, trainer in enumerate(trainers):
        assert same(trainer.network.reconstructors[0], weights_of(folder, fold))
        trainer.set_deep_supervision_enabled(False)
        with torch.inference_mode():
            alone.append(trainer.network.eval()(image.transpose(0, 1)).transpose(0, 1))
    assert not torch.allclose(*alone, atol=1e-1)
    torch.testing.assert_close(together.float(), sum(alone) / 2, rtol=0, atol=5e-3)  # nnU-Net sums in half precision


# -- a zip ------------------------------------------------------------------------------------------------------------

CLIMBING = ["../climbs", "../../climbs", "Dataset101_Tiny/../../climbs", "..\\climbs", "./../climbs"]


def test_a_zip_whose_paths_climb_out_is_installed_inside_alone(new_trainer, trained_a, tmp_path, monkeypatch):
    """By nnU-Net's own command, with our model in it."""
    trainer = train(new_trainer(EndToEnd, "2d", **settings_of(trained_a["2d_inpainting"])))
    folder = Path(trainer.output_folder_base)
    (folder / "fold_0" / "validation").mkdir()
    (folder / "fold_0" / "validation" / "summary.json").write_text("{}")  # exported with the rest
    archive = tmp_path / "model.zip"
    where = ["-d", "101", "-c", "2d", "-f", "0", "-tr", EndToEnd.__name__, "-p", PLANS, "-o", str(archive)]
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_export_model_to_zip", *where])
    export_pretrained_model_entry()
    outside = tmp_path / "outside"
    outside.mkdir()
    with zipfile.ZipFile(archive, "a") as content:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16  # a symbolic link
        content.writestr(link, str(outside))
        for name in [*CLIMBING, str(tmp_path / "climbs"), f"{folder}/climbs"]:
            content.writestr(name, "evil")
    shutil.copy(archive, tmp_path / "with_link.zip")
    with zipfile.ZipFile(tmp_path / "with_link.zip", "a") as content:
        content.writestr("link/climbs", "evil")

    def files():
        return {
            path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and results not in path.parents
        }

    results = tmp_path / "a" / "b" / "nnUNet_results"
    results.mkdir(parents=True)
    monkeypatch.setenv("nnUNet_results", str(results))
    before = files()
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_install_pretrained_model_from_zip", str(archive)])
    install_from_zip_entry_point()
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "with_link.zip")])
    with pytest.raises(OSError):  # the link was written as a file, which is no folder
        install_from_zip_entry_point()
    assert files() == before and not any(outside.iterdir())
    assert not any(path.is_symlink() for path in results.rglob("*"))
    assert len([path for path in results.rglob("*climbs*") if path.is_file()]) >= 3
    installed = results / "Dataset101_Tiny" / folder.name
    for name in ("plans.json", "fold_0/checkpoint_final.pth"):
        assert (installed / name).read_bytes() == (folder / name).read_bytes()
