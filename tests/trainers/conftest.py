"""Fixtures of the trainers' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json

PLANS = "nnUNetAnomalyTinyPlans"


@pytest.fixture(scope="session")
def trained_a(planned, tmp_path_factory) -> dict[str, Path]:
    """Model folders of A, hardly trained, of both folds: in 2-D and in 3-D."""
    from nnunet_anomaly.trainers.inpainting import nnUNetTrainerInpainting, nnUNetTrainerInpaintingMimic

    results, folders = tmp_path_factory.mktemp("a_results"), {}
    preprocessed = planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            patch.setenv(name, str(planned.root / name))
        patch.setenv("nnUNet_results", str(results))
        patch.setenv("nnUNet_n_proc_DA", "0")
        for configuration in ("2d_inpainting", "3d_inpainting"):
            for fold in (0, 1):
                for cls in (nnUNetTrainerInpainting, nnUNetTrainerInpaintingMimic):
                    plans = load_json(str(preprocessed / f"{PLANS}.json")) | {"continue_training": False}
                    dataset_json = load_json(str(preprocessed / "dataset.json"))
                    trainer = cls(plans, configuration, fold, dataset_json, torch.device("cpu"))
                    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch, trainer.num_epochs = 2, 1, 1
                    trainer.run_training()
            folders[configuration] = Path(trainer.output_folder_base)
    torch.set_num_threads(threads)
    return folders
