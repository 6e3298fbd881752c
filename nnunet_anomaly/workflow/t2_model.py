"""A segmentation model that sees echoes, as ``nnunet-anomaly t2`` and ``tune t2`` use it: what it needs, what it gives.

Any nnU-Net model folder will do whose channels are echoes of the series.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.dataset_roles import channel_names, labels_by_name
from nnunet_anomaly.error_maps.folds import ALL, Fold, folds_of
from nnunet_anomaly.errors import InputError, LabelError, MissingCheckpointError
from nnunet_anomaly.files import load_json
from nnunet_anomaly.label_maps import spacing_zyx_mm
from nnunet_anomaly.multi_echo import FOLDER, MultiEcho
from nnunet_anomaly.settings import BLOCK

CARTILAGE = "femoral_cartilage"
FINAL = "checkpoint_final.pth"
# their arrays lie as SimpleITK's do
_READERS = ("SimpleITKIO", "NibabelIO")
_ECHO = re.compile(r"echo\D{0,3}(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Label:
    """What a model calls cartilage.

    Attributes:
        name: in dataset.json.
        values: in label maps; several for a region of nnU-Net's.
        output: index among the model's probabilities.
    """

    name: str
    values: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class CartilageModel:
    """A trained model.

    Attributes:
        folder: ``TRAINER__PLANS__CONFIGURATION``.
        folds: whose probabilities are averaged.
        checkpoint: file name.
        echoes: which echo every channel is, counted from 1.
        label: cartilage.
        dataset: name of the raw dataset that it was trained on.
        plans_sha256: see ``digest_of_plans``.
    """

    folder: Path
    folds: tuple[Fold, ...]
    checkpoint: str
    echoes: tuple[int, ...]
    label: Label
    dataset: str
    plans_sha256: str

    def checkpoints(self) -> list[Path]:
        """Of all folds."""
        return [self.folder / f"fold_{fold}" / self.checkpoint for fold in self.folds]

    def has_learnt_from(self, source: Path) -> bool:
        """Whether a series is a training case of the model's dataset that not every fold has held out.

        What a fold has held out is what nnU-Net has validated it with; ``all`` has held out nothing. Of a series
        elsewhere nothing is known: False.
        """
        folder, name = source.resolve().parent, source.name
        is_training_case = (folder.name, folder.parent.name) == (FOLDER, self.dataset) and (
            folder.parent / "labelsTr" / name
        ).is_file()
        held_out = (
            fold != ALL and (self.folder / f"fold_{fold}" / "validation" / name).is_file() for fold in self.folds
        )
        return is_training_case and not all(held_out)

    def check_series(self, number_of_echoes: int, source: Path) -> None:
        """Raise an ``InputError`` where a series has fewer echoes than the model wants to see."""
        if number_of_echoes < max(self.echoes):
            raise InputError(
                f"{source} has {number_of_echoes} echoes, but the model {self.folder} sees echo "
                f"{', '.join(map(str, self.echoes))}. Take a model of fewer echoes."
            )


def open_model(
    folder: Path, folds: Sequence[Fold] | None = None, checkpoint: str = FINAL, label: str | None = None
) -> CartilageModel:
    """Look at a model folder, without loading a network.

    Args:
        folder: ``TRAINER__PLANS__CONFIGURATION``.
        folds: default: every number that is there, else ``all``.
        checkpoint: file name.
        label: name or number of cartilage; see ``label_of``.

    Raises:
        InputError: it is no model folder, or its images are read in another orientation.
        LabelError: see ``label_of``.
        MissingCheckpointError: a fold, or every one, is not trained.
    """
    dataset_json, plans = contents(folder)
    reader = plans.get("image_reader_writer")
    if reader not in _READERS:
        raise InputError(
            f"{folder} reads images by {reader}; only models of {' and '.join(_READERS)} can be used here."
        )
    found = tuple(folds or folds_of(folder, checkpoint))
    cartilage = label_of(dataset_json, folder, label)
    chosen = CartilageModel(
        folder, found, checkpoint, echoes_of(dataset_json), cartilage, plans["dataset_name"], digest_of_plans(plans)
    )
    missing = [path for path in chosen.checkpoints() if not path.is_file()]
    if missing or not found:
        what = f"{missing[0]} does not exist" if missing else f"{folder} has no fold with {checkpoint}"
        raise MissingCheckpointError(f"{what}. Train it first (nnUNetv2_train), or name others by -f and -chk.")
    return chosen


def digest_of_plans(plans: Mapping[str, Any]) -> str:
    """SHA-256 of what prediction may depend on: all but the group ``t2``, which ``tune t2`` writes."""
    block = {name: value for name, value in plans.get(BLOCK, {}).items() if name != "t2"}
    others = {name: value for name, value in plans.items() if name != BLOCK}
    return hashlib.sha256(json.dumps([others, block], sort_keys=True).encode()).hexdigest()


def contents(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """dataset.json and plans.json of a model folder.

    Raises:
        InputError: it is none.
    """
    for name in ("dataset.json", "plans.json"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} has no {name}: it is no model folder of nnU-Net (TRAINER__PLANS__CONFIGURATION)."
            )
    return load_json(folder / "dataset.json"), load_json(folder / "plans.json")


def echoes_of(dataset_json: Mapping[str, Any]) -> tuple[int, ...]:
    """Which echo every channel is: by its name (``MESE_echo2``), or where not all are named so, by its place."""
    names = channel_names(dataset_json)
    matches = [_ECHO.search(names[key]) for key in sorted(names, key=int)]
    named = tuple(int(match[1]) for match in matches if match)
    return named if len(named) == len(matches) and min(named) >= 1 else tuple(range(1, len(matches) + 1))


def label_of(dataset_json: Mapping[str, Any], folder: Path, label: str | None) -> Label:
    """The label that is cartilage.

    Args:
        dataset_json: of the model.
        folder: for messages.
        label: its name or number; default: ``femoral_cartilage``, or the only one.

    Raises:
        LabelError: there is no such label, or several and none is called so.
    """
    names = {name: values for name, values in labels_by_name(dataset_json, folder / "dataset.json").items()}
    names.pop("ignore", None)
    listed = ", ".join(f"{name} ({' '.join(map(str, values))})" for name, values in names.items())
    numbers = {str(values[0]): name for name, values in names.items() if len(values) == 1}
    if label is None:
        chosen = CARTILAGE if CARTILAGE in names else next(iter(names)) if len(names) == 1 else None
        if chosen is None:
            raise LabelError(f"None of the labels of {folder} is called {CARTILAGE}: {listed}. Name one by --label.")
    else:
        chosen = label if label in names else numbers.get(label)
        if chosen is None:
            raise LabelError(f"{folder} has no label '{label}'; it has {listed}.")
    has_regions = any(len(values) > 1 for values in names.values())
    # with regions nnU-Net has one output each, without background
    return Label(chosen, names[chosen], list(names).index(chosen) if has_regions else names[chosen][0])


class Predictor:
    """The model, loaded once."""

    def __init__(self, model: CartilageModel, device: str) -> None:
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        self.model = model
        place = torch.device(device)
        self._predictor = nnUNetPredictor(
            perform_everything_on_device=place.type == "cuda", device=place, allow_tqdm=False
        )
        self._predictor.initialize_from_trained_model_folder(str(model.folder), list(model.folds), model.checkpoint)

    def probability(self, stack: MultiEcho) -> np.ndarray:
        """Probability of cartilage (z, y, x), float32, as nnU-Net's own predictor gives it on the series' grid."""
        import SimpleITK as sitk

        channels = [sitk.GetArrayFromImage(stack.images[echo - 1]) for echo in self.model.echoes]
        image = np.stack(channels).astype(np.float32)
        properties = {"spacing": list(spacing_zyx_mm(stack.images[0]))}
        _, probabilities = self._predictor.predict_single_npy_array(
            image, properties, save_or_return_probabilities=True
        )
        return np.clip(np.asarray(probabilities)[self.model.label.output], 0, 1).astype(np.float32)
