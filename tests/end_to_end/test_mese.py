"""One echo of three by nnU-Net's own commands: planning, training, export and import, prediction."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.files import load_json, read_image
from nnunet_anomaly.multi_echo import MultiEcho
from nnunet_anomaly.workflow.t2_model import Predictor, open_model

PLANS, TRAINER = "nnUNetMESETinyPlans", "nnUNetTrainerMESE_1epoch"


def dice(predicted, labels):
    return 2 * ((predicted == 1) & (labels == 1)).sum() / ((predicted == 1).sum() + (labels == 1).sum())


def test_echoes_by_stock_commands(planned_mese, write_mese_images, tmp_path):
    run = planned_mese.run
    planned_mese.train(104, "2d", 0, TRAINER, plans=PLANS)
    model = planned_mese.root / "nnUNet_results" / "Dataset104_MESE" / f"{TRAINER}__{PLANS}__2d"
    assert load_json(model / "fold_0" / "validation" / "summary.json")["foreground_mean"]["Dice"] > 0.5

    names = ["-d", "104", "-tr", TRAINER, "-p", PLANS, "-c", "2d", "-f", "0"]
    run("nnUNetv2_export_model_to_zip", *names, "-o", str(tmp_path / "model.zip"))
    elsewhere = {"nnUNet_results": str(tmp_path / "imported")}
    (tmp_path / "imported").mkdir()
    run("nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "model.zip"), **elsewhere)

    labels = write_mese_images(tmp_path / "images", "new", 20)
    write_mese_images(tmp_path / "images", "other", 20)
    for channel in (0, 2):  # the same knee, but for the echoes that are not looked at
        path = tmp_path / "images" / f"other_{channel:04d}.nii.gz"
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(sitk.Cast(sitk.AdditiveGaussianNoise(image, 500), sitk.sitkFloat32), str(path))
    command = ["nnUNetv2_predict", "-i", str(tmp_path / "images"), "-o", str(tmp_path / "predicted"), *names]
    run(*command, "-device", "cpu", "-npp", "1", "-nps", "1", **elsewhere)
    predicted, other = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "predicted" / f"{name}.nii.gz")))
        for name in ("new", "other")
    )
    assert dice(predicted, labels) > 0.5
    np.testing.assert_array_equal(predicted, other)

    # and ``nnunet-anomaly t2`` sees what nnUNetv2_predict sees
    echoes = tuple(read_image(tmp_path / "images" / f"new_{channel:04d}.nii.gz") for channel in range(3))
    stack = MultiEcho(echoes, (10.0, 20.0, 30.0), "right", "1.2.3", "new")
    probability = Predictor(open_model(model), "cpu").probability(stack)
    np.testing.assert_array_equal(probability > 0.5, predicted == 1)
