"""Planes of several directions by nnU-Net's own commands: training, going on, prediction, export and import."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.files import load_json

PLANS, TRAINER = "nnUNetMultiPlanarTinyPlans", "nnUNetTrainerMultiPlanar_1epoch"


def test_planes_by_stock_commands(planned_planar, write_tiny_image, tmp_path):
    run = planned_planar.run
    planned_planar.train(101, "3d_multiplanar", 0, TRAINER, plans=PLANS)
    model = planned_planar.root / "nnUNet_results" / "Dataset101_Tiny" / f"{TRAINER}__{PLANS}__3d_multiplanar"
    summary = load_json(model / "fold_0" / "validation" / "summary.json")
    assert summary["foreground_mean"]["Dice"] > 0.8
    assert "Training done" in planned_planar.train(101, "3d_multiplanar", 0, TRAINER, "--c", plans=PLANS)

    names = ["-d", "101", "-tr", TRAINER, "-p", PLANS, "-c", "3d_multiplanar", "-f", "0"]
    run("nnUNetv2_export_model_to_zip", *names, "-o", str(tmp_path / "model.zip"))
    elsewhere = {"nnUNet_results": str(tmp_path / "imported")}
    (tmp_path / "imported").mkdir()
    run("nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "model.zip"), **elsewhere)

    image = write_tiny_image(tmp_path / "images" / "new_0000.nii.gz", 20)
    command = ["nnUNetv2_predict", "-i", str(tmp_path / "images"), "-o", str(tmp_path / "predicted"), *names]
    run(*command, "-device", "cpu", "-npp", "1", "-nps", "1", here=True, **elsewhere)
    predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "predicted" / "new.nii.gz")))
    truth = np.select([image < 70, image > 150], [1, 2], 0)  # as they were painted
    for label in (1, 2):
        both = ((predicted == label) & (truth == label)).sum()
        assert 2 * both / ((predicted == label).sum() + (truth == label).sum()) > 0.7
    assert np.unique(predicted).tolist() == [0, 1, 2]
