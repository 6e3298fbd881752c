"""VAE trainers on tiny whole volumes, in 2-D and 3-D, by the same code."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_anomaly.error_maps.predict import reconstruct
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.trainers import vae
from nnunet_anomaly.trainers.vae import nnUNetTrainerVAE, nnUNetTrainerVAECubeNoise, nnUNetTrainerVAEHalfNoise

PLANS = "nnUNetWholeVolumePlans_16voxels"
TABLE_1 = {
    "": (None, "zero"),
    "CubeZero": ("cube", "zero"),
    "CubeNoise": ("cube", "noise"),
    "MultiZero": ("multi", "zero"),
    "MultiNoise": ("multi", "noise"),
    "HalfZero": ("half", "zero"),
    "HalfNoise": ("half", "noise"),
}


@pytest.fixture
def new_vae(planned_whole, new_trainer):
    def make(cls=nnUNetTrainerVAE, dimension=3, **settings):
        settings.setdefault("vae__batch_size", 4)
        return new_trainer(cls, f"{dimension}d_whole", plans_name=PLANS, **settings)

    return make


def test_the_names_of_table_1():
    for name, (kind, fill) in TABLE_1.items():
        cls = getattr(vae, f"nnUNetTrainerVAE{name}")
        assert (cls.kind, cls.fill) == (kind, fill)
    assert issubclass(vae.nnUNetTrainerVAECubeNoise_5epochs, nnUNetTrainerVAECubeNoise)


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("dimension", [2, 3])
def test_every_volume_lies_in_the_middle_whole(new_vae, dimension, part):
    """But for the odd voxel of a volume that is smaller than the patch; a moved one would lose what is cut off."""
    trainer = new_vae(nnUNetTrainerVAE, dimension, vae__batch_size=6)
    trainer.initialize()
    dataset_class = trainer.dataset_class
    dataset = dataset_class(trainer.preprocessed_dataset_folder, trainer.split()[part])
    volumes = {name: np.asarray(dataset.load_case(name)[0][:]) for name in dataset.identifiers}
    loader = trainer.get_dataloaders()[0 if part == "train" else 1]
    size = trainer.configuration_manager.patch_size[0]
    for batch in (next(loader) for _ in range(3)):
        for target, name in zip(batch["data"][:, -1].numpy(), batch["keys"], strict=True):
            volume = volumes[name][0]
            slices = [centred(plane, size) for plane in volume] if dimension == 2 else [centred(volume, size)]
            assert any(np.array_equal(target, place) for places in slices for place in places)


def centred(volume, size):
    """The volume padded with zeros to ``size`` along every axis; twice along an axis whose padding is odd."""
    ways = []
    for length in volume.shape:
        low = (size - length) // 2
        ways.append({(low, size - length - low), (size - length - low, low)})
    return [np.pad(volume, pads) for pads in itertools.product(*ways)]


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("cls", [nnUNetTrainerVAE, nnUNetTrainerVAEHalfNoise])
def test_it_trains_and_writes_absolute_residuals(new_vae, planned_whole, dimension, cls):
    trainer = new_vae(cls, dimension)
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    assert (folder / "checkpoint_best.pth").is_file() and (folder / "progress.png").is_file()
    losses = trainer.logger.get_value("val_losses", step=None)
    assert len(losses) == 2 and np.isfinite(losses).all()
    record = json.loads((folder / "validation" / "error_maps.json").read_text())
    assert record["held_out_cases"] == ["case_03", "case_04", "case_05"]
    error = sitk.ReadImage(str(folder / "validation" / "error_maps" / "case_03.nii.gz"))
    reconstruction = sitk.ReadImage(str(folder / "validation" / "reconstructions" / "case_03_0000.nii.gz"))
    raw = planned_whole.root / "nnUNet_raw" / "Dataset101_Tiny" / "imagesTr" / "case_03_0000.nii.gz"
    assert error.GetSize() == reconstruction.GetSize() == sitk.ReadImage(str(raw)).GetSize()
    values = sitk.GetArrayFromImage(error)
    assert values.min() >= 0 and 0.01 < values.mean() < 1
    assert (folder / "validation" / "latent_space.png").read_bytes().startswith(b"\x89PNG")


def test_latent_sizes_are_those_of_the_dimension(new_vae):
    for dimension, size in ((2, 128), (3, 512)):
        trainer = new_vae(dimension=dimension)
        trainer.initialize()
        assert trainer.network.latent_size == size
        assert trainer.network.patch_size == (16,) * dimension


def test_the_input_is_erased_and_the_target_whole_and_validation_erases_nothing(new_vae):
    trainer = new_vae(nnUNetTrainerVAECubeNoise, erasing__probability=1.0)
    trainer.initialize()
    training, validation = trainer.get_dataloaders()
    data, target = trainer.input_and_target(next(training)["data"])
    assert data.shape == target.shape == (4, 1, 16, 16, 16)
    assert all(not torch.equal(*pair) for pair in zip(data, target, strict=True))
    data, target = trainer.input_and_target(next(validation)["data"])
    assert torch.equal(data, target)


def test_learning_rates_schedules_and_warm_up(new_vae):
    trainer = new_vae(vae__kl_warmup_epochs=4, vae__kl_weight=2.0)
    trainer.initialize()
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3
    trainer.lr_scheduler.step(1)
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3
    weights = []
    for trainer.current_epoch in (0, 1, 4, 9):
        weights.append(trainer.kl_weight)
    eighths = (16 / 64) ** 3  # of 64 voxels along every axis, at which the setting is meant
    assert weights == [0, 0.5 * eighths, 2 * eighths, 2 * eighths]


@pytest.mark.parametrize("dimension", [2, 3])
def test_error_and_divergence_keep_their_proportion_at_all_sizes(new_vae, dimension):
    """Per voxel, the code of an image costs what it would at 64 voxels along every axis."""
    trainer = new_vae(dimension=dimension)
    trainer.initialize()
    image = torch.zeros(2, 1, *trainer.configuration_manager.patch_size)
    mean, log_variance = torch.full((2, 5), 2.0), torch.zeros(2, 5)
    found = vae.Reconstruction(image + 0.25, mean, log_variance)
    assert trainer.loss(found, image).item() == pytest.approx(0.25 + 5 * 2.0 / 64**dimension)


def test_other_configurations_are_refused(new_trainer, planned):
    with pytest.raises(SettingsError, match=r"not made for configuration '3d_inpainting'.*3d_whole or 2d_whole"):
        new_trainer(nnUNetTrainerVAE, "3d_inpainting")
    with pytest.raises(SettingsError, match=r"3d_whole or 2d_whole of plans made by -pl nnUNetPlannerWholeVolume"):
        new_trainer(nnUNetTrainerVAE, "3d_fullres")


def test_a_slice_without_two_sides_cannot_be_halved(new_vae):
    trainer = new_vae(nnUNetTrainerVAEHalfNoise, 2, erasing__side_axis=0)
    with pytest.raises(SettingsError, match="Train 3d_whole"):
        trainer.erasing()


def test_a_volume_larger_than_the_common_size_is_an_error(new_vae):
    trainer = new_vae()
    trainer.initialize()
    with pytest.raises(InputError, match="takes at most"):
        reconstruct(trainer.network, torch.zeros(1, 16, 18, 16), (16, 16, 16))
    assert reconstruct(trainer.network, torch.zeros(1, 12, 16, 9), (16, 16, 16)).shape == (1, 12, 16, 9)


def test_the_same_seed_gives_the_same_network(new_vae):
    weights = []
    for seed in (1, 1, 2):
        trainer = new_vae(nnUNetTrainerVAECubeNoise, seed=seed)
        trainer.num_epochs = 1
        trainer.run_training()
        weights.append(torch.cat([values.flatten() for values in trainer.network.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
