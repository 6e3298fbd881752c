"""Networks under the stress test, in memory: they predict an image that was never written to a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_anomaly.error_maps.folds import Fold
from nnunet_anomaly.error_maps.model import ReconstructionModel, case_maps, load_model, prepare_arrays
from nnunet_anomaly.error_maps.predict import to_original_grid
from nnunet_anomaly.workflow.stress_models import StressModel, masks_folder, reconstruction_folder


@dataclass
class Predictor:
    """The networks of some folds of one model, and of what makes its error maps, in memory."""

    segmenter: Any  # nnUNetPredictor
    reconstruction: ReconstructionModel | None = None
    masks: Any = None  # nnUNetPredictor
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @staticmethod
    def load(model: StressModel, folds: Sequence[Fold], device: torch.device, mirroring: bool) -> Predictor:
        """Load checkpoints; several folds are an ensemble, as in ``nnUNetv2_predict``."""
        segmenter = nnunet_predictor(model.folder, folds, model.checkpoint, device, mirroring)
        origin = model.error_maps
        if origin is None:
            return Predictor(segmenter, device=device)
        reconstruction = load_model(reconstruction_folder(origin), folds, origin["checkpoint"])
        reconstruction.masks_are_filled = bool(origin.get("masks_are_filled"))
        folder = masks_folder(origin)
        masks = nnunet_predictor(folder, folds, "checkpoint_final.pth", device, True) if folder else None
        return Predictor(segmenter, reconstruction, masks, device)

    def predict(self, image: np.ndarray, properties: dict[str, Any]) -> np.ndarray:
        """Label map of an image (C, ...) with nnU-Net's properties, of the shape of one channel."""
        if self.reconstruction is not None:
            image = np.concatenate([image, self.error_map(image, properties)])
        return self.segmenter.predict_single_npy_array(image.astype(np.float32), dict(properties))

    def error_map(self, image: np.ndarray, properties: dict[str, Any]) -> np.ndarray:
        """E (1, ...), float32, on the image's own grid, as ``nnunet-anomaly error-maps`` writes it."""
        model = self.reconstruction
        assert model is not None
        mask = None
        if self.masks is not None:
            mask = self.masks.predict_single_npy_array(image.astype(np.float32), dict(properties))[None]
            mask = mask.astype(np.float32)  # as nnU-Net's readers give it; outside the image it gets -1
        known = (dict(properties), model.plans, model.configuration, model.dataset_json)
        case = prepare_arrays(image.astype(np.float32), mask, *known)
        error, _ = case_maps(model, case, self.device)
        return to_original_grid(error, case.properties, model.plans, model.configuration.spacing)


def nnunet_predictor(
    folder: Path, folds: Sequence[Fold], checkpoint: str, device: torch.device, mirroring: bool
) -> Any:
    """nnU-Net's predictor with networks loaded."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    on_device = device.type == "cuda"
    predictor = nnUNetPredictor(
        use_mirroring=mirroring, perform_everything_on_device=on_device, device=device, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), list(folds), checkpoint)
    return predictor
