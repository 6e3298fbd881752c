"""Fixtures of the trainers' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunet_anomaly.planners.anomaly import write_settings
from nnunet_anomaly.settings import AnomalySettings

PLANS = "nnUNetAnomalyTinyPlans"


def train_a(planned, results: Path, configuration: str, **settings) -> Path:
    """G and A of both folds, hardly trained; the model folder of A. Settings have ``__`` for their dot."""
    from nnunet_anomaly.trainers.inpainting import nnUNetTrainerInpainting, nnUNetTrainerInpaintingMimic

    preprocessed = planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
    values = {key.replace("__", "."): value for key, value in settings.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            patch.setenv(name, str(planned.root / name))
        patch.setenv("nnUNet_results", str(results))
        patch.setenv("nnUNet_n_proc_DA", "0")
        for fold in (0, 1):
            for cls in (nnUNetTrainerInpainting, nnUNetTrainerInpaintingMimic):
                plans = load_json(str(preprocessed / f"{PLANS}.json")) | {"continue_training": False}
                write_settings(plans, AnomalySettings.from_plans(plans).with_values(values))
                dataset_json = load_json(str(preprocessed / "dataset.json"))
                trainer = cls(plans, configuration, fold, dataset_json, torch.device("cpu"))
                trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch, trainer.num_epochs = 2, 1, 1
                trainer.run_training()
    torch.set_num_threads(threads)
    return Path(trainer.output_folder_base)


@pytest.fixture(scope="session")
def trained_a(planned, tmp_path_factory) -> dict[str, Path]:
    """Model folders of A, hardly trained, of both folds: in 2-D and in 3-D."""
    results = tmp_path_factory.mktemp("a_results")
    return {name: train_a(planned, results, name) for name in ("2d_inpainting", "3d_inpainting")}


@pytest.fixture(scope="session")
def a_with_code(planned, tmp_path_factory) -> Path:
    """The model folder of a 2-D A, hardly trained, of both folds, with a compressor C and its code of 2 channels."""
    return train_a(planned, tmp_path_factory.mktemp("code_results"), "2d_inpainting", inpainting__code_channels=2)
