"""Knowledge distillation by nnU-Net's loop, with random weights in the place of ImageNet's."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_anomaly.architectures.knowledge_distillation import CRITICAL_LAYERS
from nnunet_anomaly.architectures.vgg import VGG16Features
from nnunet_anomaly.error_maps.model import case_maps, load_model, prepare_case
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.trainers import knowledge_distillation
from nnunet_anomaly.trainers.knowledge_distillation import nnUNetTrainerKnowledgeDistillation

TRAINER, PLANS = nnUNetTrainerKnowledgeDistillation, "nnUNetAnomalyTinyPlans"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as torchvision's, with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(VGG16Features(None, CRITICAL_LAYERS).state_dict(), path)
    return path


@pytest.fixture
def new_distillation(new_trainer, weights):
    """Batches of two slices and one step an epoch: VGG-16 is large."""

    def make(configuration="2d_inpainting", **settings):
        settings.setdefault("distillation__weights", str(weights))
        trainer = new_trainer(TRAINER, configuration, **settings)
        trainer.configuration_manager.configuration["batch_size"] = 2
        trainer.num_iterations_per_epoch = 1
        return trainer

    return make


def read(path):
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image


def test_it_trains_validates_and_maps_new_images(new_distillation, planned, weights, tmp_path):
    trainer = new_distillation(distillation__map="gradient", distillation__smoothing_mm=1.5)
    trainer.run_training()
    network = trainer.bare_network()
    given = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, given[key]) for key, value in network.source.state_dict().items())
    losses = trainer.logger.get_value("val_losses", step=None)
    assert len(losses) == 2 and np.isfinite(losses).all()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    record = json.loads((folder / "validation" / "error_maps.json").read_text(encoding="utf-8"))
    assert record["held_out_cases"] == ["case_03", "case_04", "case_05"] and record["pretrained"] is False
    raw = planned.root / "nnUNet_raw" / "Dataset101_Tiny" / "imagesTr" / "case_03_0000.nii.gz"
    error, image = read(folder / "validation" / "error_maps" / "case_03.nii.gz")
    assert image.GetSize() == read(raw)[1].GetSize() and image.GetPixelID() == sitk.sitkFloat32
    assert error.min() >= 0 and error.max() > error.min() and np.isfinite(error).all()
    assert not (folder / "validation" / "reconstructions").exists()

    model = load_model(folder.parent, [0])  # without the file of weights
    case = prepare_case([raw], None, model.plans, model.configuration, model.dataset_json)
    found, output = case_maps(model, case)
    torch.testing.assert_close(found, output * torch.from_numpy(case.inside))
    assert found.shape == case.image.shape and found.min() >= 0 and found.max() > 0

    new_images = ["-i", str(tmp_path / "images"), "-o", str(tmp_path / "maps"), "-device", "cpu", "-np", "1"]
    (tmp_path / "images").mkdir()
    shutil.copy(raw, tmp_path / "images" / "new_0000.nii.gz")
    command = ["nnunet-anomaly", "error-maps", "-d", "101", "-tr", TRAINER.__name__, "-p", PLANS, "-c", "2d_inpainting"]
    results = {"nnUNet_results": str(tmp_path / "nnUNet_results")}
    refused = planned.run(*command, *new_images, "--save-reconstructions", str(tmp_path / "r"), expect=2, **results)
    assert "makes error maps without a reconstruction" in refused.stderr
    planned.run(*command, *new_images, **results)
    again, _ = read(tmp_path / "maps" / "new_0001.nii.gz")
    np.testing.assert_allclose(again, error, rtol=1e-3, atol=1e-3)  # of the same case, by the same fold

    bones, labels = tmp_path / "bones", planned.root / "nnUNet_raw" / "Dataset101_Tiny" / "labelsTr"
    shutil.copytree(labels, bones)
    shutil.copy(labels / "case_03.nii.gz", bones / "new.nii.gz")
    for case, *maps in (
        ("case_03", folder / "validation" / "error_maps"),
        ("new", tmp_path / "maps", "--channel", "1"),
    ):
        output = tmp_path / f"lesions_{case}"
        lesions = ["nnunet-anomaly", "lesions", "-e", *map(str, maps), "-b", str(bones), "-o", str(output), "-np", "1"]
        planned.run(*lesions, "--save-residuals")
        bone = read(bones / f"{case}.nii.gz")[0] > 0
        np.testing.assert_allclose(read(output / "residuals" / f"{case}.nii.gz")[0], error * bone, rtol=1e-3, atol=1e-3)

    plans = folder.parent / "plans.json"
    plans.write_text(plans.read_text(encoding="utf-8").replace('"map": "gradient"', '"map": "distance"'))
    refused = planned.run(*command, *new_images, expect=2, **results)  # maps of two kinds in one folder
    assert "holds error maps of another model" in refused.stderr


def test_it_goes_on_and_validates_without_the_file(new_distillation, weights):
    first = new_distillation(distillation__map="distance")
    first.num_epochs = 1
    first.run_training()
    again = new_distillation(distillation__map="distance", distillation__weights="gone.pth")
    again.load_checkpoint(str(Path(first.output_folder) / "checkpoint_final.pth"))
    source = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, source[key]) for key, value in again.bare_network().source.state_dict().items())
    again.num_epochs = 2
    again.run_training()
    assert len(again.logger.get_value("train_losses", step=None)) == 2


def test_a_cloner_with_weights_from_elsewhere_is_noted(new_distillation):
    trainer = new_distillation()
    trainer.initialize()
    assert not trainer.is_pretrained()
    with torch.no_grad():
        next(trainer.bare_network().source.parameters()).mul_(2)
    assert not trainer.is_pretrained()
    with torch.no_grad():
        next(trainer.bare_network().cloner.parameters()).mul_(2)
    assert trainer.is_pretrained()


def test_it_learns_what_the_source_says(new_distillation, weights):
    trainer = new_distillation()
    trainer.initialize()
    trainer.network.train()
    torch.manual_seed(0)
    batch = {"data": torch.rand(2, 1, 32, 32)}
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_without_weights_it_says_which_file_it_needs(new_distillation):
    with pytest.raises(SettingsError, match=r"vgg16-397923af\.pth.*--set distillation\.weights=") as error:
        new_distillation(distillation__weights="").run_training()
    assert "-d Dataset101_Tiny -p nnUNetAnomalyTinyPlans" in str(error.value)
    trainer = new_distillation(distillation__weights="vgg/none.pth")
    with pytest.raises(InputError, match=r"nnUNet_results.vgg.none\.pth, the weights of VGG-16, is not a file"):
        trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("checkpoint*"))


def test_slices_alone(new_distillation, planned_whole):
    with pytest.raises(SettingsError, match=r"3d_inpainting' is 3-D. Train it on 2d_inpainting"):
        new_distillation("3d_inpainting")
    with pytest.raises(SettingsError, match=r"'2d' has ZScoreNormalization.*2d_inpainting"):
        new_distillation("2d")


def test_slices_of_whole_volumes(new_trainer, planned_whole, weights):
    options = {"plans_name": "nnUNetWholeVolumePlans_16voxels", "distillation__weights": str(weights)}
    with pytest.raises(SettingsError, match=r"3d_whole' is 3-D. Train it on 2d_whole"):
        new_trainer(TRAINER, "3d_whole", **options)
    trainer = new_trainer(TRAINER, "2d_whole", **options)
    trainer.initialize()
    loader = trainer.get_dataloaders()[0]
    data, _ = trainer.input_and_target(next(loader)["data"][:2])
    assert data.shape == (2, 1, 16, 16)
    assert torch.isfinite(trainer.loss(trainer.network(data), data))


def test_epochs_by_name_and_by_settings(new_distillation):
    assert knowledge_distillation.nnUNetTrainerKnowledgeDistillation_5epochs.__name__.endswith("_5epochs")
    trainer = new_distillation(distillation__epochs=1, distillation__mirror_axes=[1])
    assert trainer.num_epochs == 1 and trainer.initial_lr == 1e-3
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] == (1,)
