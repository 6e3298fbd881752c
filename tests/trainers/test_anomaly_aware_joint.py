"""A and S learning together; fixtures and what both share: test_anomaly_aware_end_to_end."""

import shutil
from pathlib import Path

import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_anomaly.errors import LeakageError, MissingCheckpointError, SettingsError
from nnunet_anomaly.losses.reconstruction import denoising_loss, mimic_loss
from nnunet_anomaly.trainers.anomaly_aware_joint import nnUNetTrainerAnomalyAwareJoint as Joint

PLANS = "nnUNetAnomalyTinyPlans"


def settings_of(folder, **settings):
    return {"end_to_end__model": str(folder), **{f"end_to_end__{key}": value for key, value in settings.items()}}


def weights_of(folder, fold):
    return torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)["network_weights"]


def test_all_cases_meet_the_a_of_the_fold_which_learns(new_trainer, trained_a):
    folder = trained_a["2d_inpainting"]
    trainer = new_trainer(Joint, "2d", fold=1, **settings_of(folder))
    trainer.initialize()
    assert set(trainer.fold_of_case.values()) == {1}
    (network,) = trainer.network.reconstructors
    before = weights_of(folder, 1)
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())
    result = trainer.train_step(next(trainer.get_dataloaders()[0]))
    assert result["reconstruction_loss"] > 0
    assert any(not torch.equal(values, before[name]) for name, values in network.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.teacher.parameters())
    noted = trainer.plans_manager.plans["anomaly"]["end_to_end"]
    assert (noted["networks"], noted["exported"], noted["fine_tuned"]) == (1, "fold", True)


@pytest.mark.parametrize("weight", [0.0, 50.0])
def test_the_loss_is_that_of_s_and_that_of_a(new_trainer, trained_a, weight):
    trainer = new_trainer(Joint, "2d", **settings_of(trained_a["2d_inpainting"], reconstruction_weight=weight))
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[0])
    parts, outputs = [], []
    reconstruction_loss, segmentation = trainer.reconstruction_loss, trainer.loss.loss
    trainer.reconstruction_loss = lambda *inputs: parts.append(reconstruction_loss(*inputs)) or parts[-1]
    trainer.loss.loss.register_forward_hook(lambda module, inputs, output: outputs.append(float(output.detach())))
    result = trainer.train_step(batch)
    assert segmentation is trainer.loss.loss and len(parts) == len(outputs) == 1
    assert float(result["loss"]) == pytest.approx(outputs[0] + weight * float(parts[0]), rel=1e-5)
    assert float(result["reconstruction_loss"]) == pytest.approx(float(parts[0]))
    assert trainer.loss.second is None and trainer.loss.cross_entropy.error is None


@pytest.mark.parametrize("denoising", [True, False])
def test_a_is_taught_by_g_on_its_own_scale_and_grid(new_trainer, trained_a, denoising):
    trainer = new_trainer(Joint, "2d", **settings_of(trained_a["2d_inpainting"]))
    trainer.initialize()
    if not denoising:
        model = trainer.folds.model
        model.settings = model.settings.with_values({"mimic.objective": "paper"})
    network = trainer.bare_network()
    shape = trainer.configuration_manager.patch_size
    clean, shown = torch.randn(2, 2, 1, *shape)
    region = torch.zeros(2, 1, *shape)
    region[..., 4:12, 4:12] = 1
    found = trainer.reconstruction_loss(clean, shown, region)
    image, corrupted = ((values.clamp(-5, 5) + 5) / 10 for values in (clean, shown))
    assert network.shape_of_reconstruction(shape) == network.window(shape) == tuple(shape)
    with torch.no_grad():
        taught = trainer.teacher(torch.cat((image, region), 1))
        mimicked = network.reconstructors[0](corrupted)
    expected = denoising_loss(taught, mimicked) if denoising else mimic_loss(image, taught, mimicked)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_s_sees_no_synthetic_lesion_and_a_does(new_trainer, trained_a):
    folder = trained_a["2d_inpainting"]
    trainer = new_trainer(Joint, "2d", **settings_of(folder))
    trainer.initialize()
    settings = trainer.folds.model.settings
    trainer.folds.model.settings = settings.with_values({"corruption.probability": 1.0})
    size = trainer.configuration_manager.patch_size
    pipeline = trainer.get_training_transforms(size, (0, 0), None, (), False)
    for transform in pipeline.transforms:
        if hasattr(transform, "p_rotation"):
            transform.p_rotation = transform.p_scaling = 0
        if hasattr(transform, "apply_probability"):
            transform.apply_probability = 0
    image, labels = torch.randn(1, *size), torch.zeros(1, *size, dtype=torch.int16)
    labels[(0, *[slice(4, -4)] * len(size))] = 1
    result = pipeline(image=image.clone(), segmentation=labels)["image"]
    assert torch.equal(result[0], image[0]) and torch.equal(result[1], image[0])
    assert (result[2] != image[0]).any()
    assert set(result[3].unique().tolist()) == {0, 1} and result[3][labels[0] > 0].all()


def test_it_trains_says_as_loss_and_builds_from_its_plans(new_trainer, trained_a):
    trainer = new_trainer(Joint, "2d", **settings_of(trained_a["2d_inpainting"]))
    trainer.num_epochs = 1
    trainer.run_training()
    log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log_*.txt"))
    assert "train_reconstruction_loss 0." in log
    plans = PlansManager(load_json(str(Path(trainer.output_folder_base) / "plans.json")))
    network = Joint.build_network_architecture(plans, plans.get_configuration("2d"), 1, 3, False)
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    network.load_state_dict(checkpoint["network_weights"])


def test_without_g_or_with_an_a_of_other_cases_it_is_refused(new_trainer, trained_a, tmp_path):
    folder = trained_a["2d_inpainting"]
    alone = Path(shutil.copytree(folder, tmp_path / "Dataset101_Tiny" / folder.name))
    with pytest.raises(MissingCheckpointError, match=r"2d_inpainting 0 -tr nnUNetTrainerInpainting -p"):
        new_trainer(Joint, "2d", **settings_of(alone)).initialize()
    checkpoint = alone / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=False)
    content["init_args"]["split"]["train"][0] = "case_03"  # held out by fold 0 of S
    torch.save(content, checkpoint)
    with pytest.raises(LeakageError, match="A of fold 0"):
        new_trainer(Joint, "2d", **settings_of(alone)).initialize()


def test_lesions_in_what_its_teacher_takes_for_clean_are_refused(new_trainer, trained_a):
    settings = settings_of(trained_a["2d_inpainting"], lesion_augmentation=True)
    with pytest.raises(SettingsError, match="lesion_augmentation is not for"):
        new_trainer(Joint, "2d", **settings)
