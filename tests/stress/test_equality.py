"""Predictions in memory are those that nnU-Net's own predictor makes of the same corrupted images in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_anomaly.files import load_json
from nnunet_anomaly.phantoms.stress_corruptions import CORRUPTIONS
from nnunet_anomaly.workflow.stress import stacked
from nnunet_anomaly.workflow.stress_cases import held_out_groups, read_case
from nnunet_anomaly.workflow.stress_checks import check_error_maps, check_model
from nnunet_anomaly.workflow.stress_models import StressModel
from nnunet_anomaly.workflow.stress_plan import StressTest
from nnunet_anomaly.workflow.stress_predictor import Predictor, nnunet_predictor

PLANS = "nnUNetAnomalyTinyPlans"
DATA, FOLD = "Dataset101_Tiny", 0
TEST = StressTest(
    corruptions={name: (0.5,) for name in CORRUPTIONS},
    seed=3,
    sizes_mm={},
    channels=("MR",),
    region_labels=(1,),
    structures={"bone": (1,), "cartilage": (2,)},
    nsd_tolerance_mm=1.0,
    cleaned_share=None,
    mirroring=True,
)


@pytest.fixture(scope="module")
def corrupted(models, tmp_path_factory):
    """Every corruption of one held-out case, in memory and as files; whole numbers as such in every second."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    folder = tmp_path_factory.mktemp("corrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(models.root / "nnUNet_preprocessed"))
        (group,) = held_out_groups(models.root / "nnUNet_raw" / DATA, [FOLD])
    case, properties = read_case(group.cases[0], TEST, SimpleITKIO())
    image = sitk.ReadImage(str(group.cases[0].images[0]))
    images = {}
    for grade in TEST.grades:
        images[grade[0]] = stacked(TEST.corrupted(case, *grade))
        file = sitk.GetImageFromArray(images[grade[0]][0])
        file.CopyInformation(image)
        sitk.WriteImage(file, str(folder / f"{grade[0]}_0000.nii.gz"))
    return images, properties, folder


def by_stock_predictor(model: StressModel, images: Path, output: Path) -> dict[str, np.ndarray]:
    """What ``nnUNetv2_predict`` writes of a folder."""
    output.mkdir()
    predictor = nnunet_predictor(model.folder, [FOLD], model.checkpoint, torch.device("cpu"), True)
    predictor.predict_from_files_sequential(str(images), str(output), save_probabilities=False)
    return {
        path.name.removesuffix(".nii.gz"): sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in output.glob("*.nii.gz")
    }


@pytest.mark.parametrize(
    "dataset, trainer, error_maps",
    [
        (DATA, "nnUNetTrainerSeeded", None),
        (DATA, "nnUNetTrainerAnomalyAwareEndToEnd", None),
        ("Dataset201_TinyErrorMaps", "nnUNetTrainerAnomalyAware", ("-tr", "nnUNetTrainerInpaintingMimic")),
        (
            "Dataset202_TinyTwoPasses",
            "nnUNetTrainerAnomalyAware",
            ("-tr", "nnUNetTrainerInpainting", "--masks-from", f"nnUNetTrainerSeeded__{PLANS}__2d"),
        ),
    ],
    ids=["plain", "end to end", "error maps", "two passes"],
)
def test_in_memory_and_by_files_are_bit_for_bit_the_same(
    models, corrupted, tmp_path, monkeypatch, dataset, trainer, error_maps
):
    images, properties, folder = corrupted
    for name, path in models.workspace.environment.items():
        monkeypatch.setenv(name, path)
    path = models.root / "nnUNet_results" / dataset / f"{trainer}__{PLANS}__2d"
    model = StressModel(trainer, path, "checkpoint_final.pth", load_json(path / "dataset.json"))
    check_model(model, models.dataset_json, "SimpleITKIO", [FOLD])
    check_error_maps(model, "SimpleITKIO", [FOLD])
    if error_maps:
        command = ("nnunet-anomaly", "error-maps", "-d", "101", "-p", PLANS, "-c", "2d_inpainting", *error_maps)
        where = ("-i", str(folder), "-o", str(tmp_path / "with_error_maps"), "-f", str(FOLD))
        models.workspace.run(*command, *where, "-device", "cpu", "-np", "1")
        folder = tmp_path / "with_error_maps"
    expected = by_stock_predictor(model, folder, tmp_path / "predicted")
    predictor = Predictor.load(model, [FOLD], torch.device("cpu"), mirroring=True)
    predicted = {name: predictor.predict(image, properties) for name, image in images.items()}
    assert sorted(expected) == sorted(predicted) and len(predicted) == 1 + len(CORRUPTIONS)
    for name, label_map in predicted.items():
        assert np.array_equal(label_map, expected[name]), name
    # else the maps could be the same whatever the input
    assert all(len(np.unique(label_map)) > 1 for label_map in predicted.values())
    assert sum(np.array_equal(label_map, predicted["none"]) for label_map in predicted.values()) == 1
    unmirrored = Predictor.load(model, [FOLD], torch.device("cpu"), mirroring=False)
    assert not np.array_equal(unmirrored.predict(images["none"], properties), predicted["none"])
