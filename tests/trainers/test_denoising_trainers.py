"""Networks that take coarse noise or foreign patches away."""

from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

from nnunet_anomaly.trainers.denoising import nnUNetTrainerDenoisingAutoencoder, nnUNetTrainerForeignPatch


@pytest.mark.parametrize("cls", [nnUNetTrainerDenoisingAutoencoder, nnUNetTrainerForeignPatch])
@pytest.mark.parametrize("configuration", ["3d_inpainting", "2d_inpainting"])
def test_they_train_on_corrupted_images_and_write_residuals(new_trainer, cls, configuration):
    trainer = new_trainer(cls, configuration)
    trainer.num_epochs = 1
    trainer.run_training()
    loader = trainer.get_dataloaders()[0]
    batches = [trainer.input_and_target(next(loader)["data"]) for _ in range(3)]
    assert all(data.shape == target.shape for data, target in batches)
    assert any(not torch.equal(data, target) for data, target in batches)
    trainer.perform_actual_validation()
    maps = sorted((Path(trainer.output_folder) / "validation" / "error_maps").glob("*.nii.gz"))
    assert len(maps) == 3
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(maps[0]))).min() >= 0


def test_the_foreign_patch_network_begins_by_taking_little_away(new_trainer):
    trainer = new_trainer(nnUNetTrainerForeignPatch)
    trainer.initialize()
    image = torch.rand(1, 1, *trainer.configuration_manager.patch_size)
    with torch.no_grad():
        assert float((trainer.network.eval()(image) - image).abs().mean()) < 0.2
