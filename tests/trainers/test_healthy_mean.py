"""The mean of healthy images as a model."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from nnunet_anomaly.architectures.healthy_mean import HealthyMean
from nnunet_anomaly.trainers.healthy_mean import nnUNetTrainerHealthyMean


def test_error_maps_are_z_scores_of_numpys_mean_and_deviation():
    images = np.random.default_rng(0).normal(0.5, 0.1, (40, 2, 5, 6)).astype(np.float32)
    model = HealthyMean(2, (5, 6))
    for start in (0, 7, 20):
        model.update(torch.from_numpy(images[start : {0: 7, 7: 20, 20: 40}[start]]))
    image = torch.rand(1, 2, 5, 6)
    with torch.no_grad():
        found = (image - model(image)).abs() / 0.1
    expected = np.abs(image.numpy() - images.mean(0)) / images.std(0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3)


def test_background_that_never_varies_is_no_division_by_zero():
    model = HealthyMean(1, (4,))
    model.update(torch.zeros(10, 1, 4))
    with torch.no_grad():
        assert torch.isfinite(model(torch.ones(1, 1, 4))).all()
        assert (model(torch.zeros(1, 1, 4)) == 0).all()


def test_it_goes_by_the_same_commands(planned_whole, new_trainer):
    trainer = new_trainer(
        nnUNetTrainerHealthyMean, "3d_whole", plans_name="nnUNetWholeVolumePlans_16voxels", vae__batch_size=4
    )
    assert trainer.num_epochs == 1
    trainer.run_training()
    assert float(trainer.network.count) == 8  # two steps of four
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "validation" / "error_maps" / "case_03.nii.gz")))
    assert np.isfinite(values).all() and values.max() > 0
    assert (folder / "checkpoint_final.pth").is_file()
