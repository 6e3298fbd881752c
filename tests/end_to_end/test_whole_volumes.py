"""A VAE by console commands: plans, training, error maps of new images, evaluation."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.files import load_json

PLANS, TRAINER = "nnUNetWholeVolumeSmallPlans", "nnUNetTrainerVAECubeZero_1epoch"


def test_a_vae_by_stock_commands(planned_whole, write_tiny_image, tmp_path):
    run = planned_whole.run
    given = "nnUNetWholeVolumePlans_16voxels"
    run("nnunet-anomaly", "plan", "-d", "101", "-p", given, "--set", "vae.batch_size=2", "--save-as", PLANS)
    planned_whole.train(101, "3d_whole", 0, TRAINER, plans=PLANS)
    model = planned_whole.root / "nnUNet_results" / "Dataset101_Tiny" / f"{TRAINER}__{PLANS}__3d_whole"
    assert (model / "fold_0" / "validation" / "latent_space.png").is_file()
    losses = [
        line for line in next(model.glob("fold_0/training_log*")).read_text().splitlines() if "val_losses" in line
    ]
    assert float(losses[0].split("val_losses ")[1]) < 0.2

    images, truth = tmp_path / "images", tmp_path / "truth"
    truth.mkdir()
    for index in (20, 21):
        array = write_tiny_image(images / f"new_{index}_0000.nii.gz", index)
        image = sitk.ReadImage(str(images / f"new_{index}_0000.nii.gz"))
        lesion = sitk.GetImageFromArray((array > np.percentile(array, 97)).astype(np.uint8))
        lesion.CopyInformation(image)
        sitk.WriteImage(lesion, str(truth / f"new_{index}.nii.gz"))
    turned = sitk.DICOMOrient(sitk.ReadImage(str(images / "new_20_0000.nii.gz")), "PSL")
    sitk.WriteImage(turned, str(images / "turned_0000.nii.gz"))

    command = ["-d", "101", "-tr", TRAINER, "-p", PLANS, "-c", "3d_whole", "-device", "cpu", "-np", "1"]
    maps = tmp_path / "maps"
    result = run("nnunet-anomaly", "error-maps", *command, "-i", str(images), "-o", str(maps), expect=1)
    assert "FAILED turned: InputError: The image lies as PSL" in result.stdout and "2 done" in result.stdout
    error = sitk.ReadImage(str(maps / "new_20_0001.nii.gz"))
    assert error.GetSize() == sitk.ReadImage(str(images / "new_20_0000.nii.gz")).GetSize()

    out = tmp_path / "evaluation"
    evaluate = ["-ref", str(truth), "-pred", str(maps), "--channel", "1", "-o", str(out), "-np", "1"]
    run("nnunet-anomaly", "evaluate-anomaly", *evaluate)
    assert load_json(out / "summary.json")["results"]["maps"]["pooled"]["n_cases"] == 2
