"""Models under the stress test: from what was typed to networks that predict an image in memory."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from nnunet_anomaly.dataset_roles import KEY, channel_names, error_channels, image_channels, labels_by_name
from nnunet_anomaly.error_maps.collect import DERIVED_FROM
from nnunet_anomaly.error_maps.folds import Fold, folds_of
from nnunet_anomaly.error_maps.model import ReconstructionModel, case_maps, load_model, prepare_arrays
from nnunet_anomaly.error_maps.predict import to_original_grid
from nnunet_anomaly.error_maps.provenance import SPLIT
from nnunet_anomaly.errors import InputError, LeakageError, MissingCheckpointError
from nnunet_anomaly.files import load_json, nnunet_folder, sha256_of
from nnunet_anomaly.settings import BLOCK

PREFIX = "nnUNetTrainer"
CLEANED = ", cleaned"  # behind the name of a model whose components were cleaned


@dataclass(frozen=True)
class StressModel:
    """One segmentation model, of any trainer.

    Attributes:
        name: what tables call it.
        folder: ``TRAINER__PLANS__CONFIGURATION``.
        checkpoint: name of the file in every fold.
        dataset_json: of the dataset that it was trained on.
    """

    name: str
    folder: Path
    checkpoint: str
    dataset_json: dict[str, Any]

    @property
    def error_maps(self) -> Mapping[str, Any] | None:
        """Where its error-map channel comes from, as ``nnunet-anomaly error-maps`` noted it; None without one."""
        channels = error_channels(self.dataset_json)
        if not channels:
            return None
        if len(channels) > 1:
            raise InputError(
                f"{self.folder / 'dataset.json'} has {len(channels)} error-map channels; the stress test can make one."
            )
        origin: Mapping[str, Any] | None = self.dataset_json.get(KEY, {}).get(DERIVED_FROM)
        if origin is None:
            raise InputError(
                f"{self.folder / 'dataset.json'} has an error-map channel, but does not say which networks it comes "
                "from (anomaly.derived_from), so that corrupted images cannot have one. Make the dataset by "
                "nnunet-anomaly error-maps."
            )
        return origin

    @property
    def networks_inside(self) -> int:
        """How many A are inside its network; 0 where it makes no error maps itself."""
        block = load_json(self.folder / "plans.json").get(BLOCK, {})
        return int(block.get("end_to_end", {}).get("networks") or 0)  # written by the trainer alone

    def checkpoints(self, folds: Sequence[Fold]) -> list[Path]:
        """Files of some folds, and of the networks that make its error maps."""
        paths = [self.folder / f"fold_{fold}" / self.checkpoint for fold in folds]
        if origin := self.error_maps:
            a, masks = reconstruction_folder(origin), masks_folder(origin)
            paths += [a / f"fold_{fold}" / origin["checkpoint"] for fold in folds]
            paths += [masks / f"fold_{fold}" / "checkpoint_final.pth" for fold in folds] if masks else []
        return paths

    def described(self, folds: Sequence[Fold]) -> dict[str, Any]:
        """For the report."""
        origin = self.error_maps
        maps = None
        if origin:
            maps = f"{origin['dataset']}/{origin['model']}"
            maps += f", erasing what {origin['masks_from']} finds" if origin["masks_from"] else ""
        elif self.networks_inside:
            maps = "made inside the network"
        where = {"folder": self.folder.name, "dataset": self.folder.parent.name, "folds": list(folds)}
        return {"name": self.name, **where, "error_maps": maps}


def reconstruction_folder(origin: Mapping[str, Any]) -> Path:
    """Folder of the reconstruction model that error maps come from."""
    return nnunet_folder("nnUNet_results") / origin["dataset"] / origin["model"]


def masks_folder(origin: Mapping[str, Any]) -> Path | None:
    """Folder of the segmentation model that says what two passes erase; None for one pass.

    Raises:
        InputError: the masks came from a folder of label maps, which there are none of for corrupted images.
    """
    if origin["masks_from"] is None:
        return None
    folder = nnunet_folder("nnUNet_results") / origin["dataset"] / origin["masks_from"]
    if not (folder / "plans.json").is_file():
        raise InputError(
            f"The error maps were made with label maps from '{origin['masks_from']}', which is no trained model of "
            f"{origin['dataset']}: nothing can say what to erase in a corrupted image. Make them with --masks-from a "
            "model."
        )
    return folder


# -- from what was typed to folders -----------------------------------------------------------------------------------


def find_model(text: str, dataset: str, plans: str, configuration: str, unpacked: Path) -> Path:
    """Folder of a model: named by trainer, folder (absolute or below ``$nnUNet_results``), or an exported zip file.

    Args:
        text: what was typed.
        dataset, plans, configuration: complete the name of a trainer.
        unpacked: folder for what zip files hold.

    Raises:
        InputError: there is no such model; or the zip file is none, has paths that lead out of it, or holds no model,
            or several.
    """
    results = nnunet_folder("nnUNet_results")
    if text.endswith(".zip"):
        return unpack_model(Path(text), unpacked)
    typed = Path(text).expanduser()
    places = [typed, results / typed] if len(typed.parts) > 1 or "__" in text else []
    places += [results / dataset / text] if "__" in text else [results / dataset / f"{text}__{plans}__{configuration}"]
    for folder in places:
        if (folder / "plans.json").is_file() and (folder / "dataset.json").is_file():
            return folder.resolve()
    there = sorted(path.name for path in (results / dataset).glob("*__*__*")) if (results / dataset).is_dir() else []
    raise InputError(
        f"-tr {text}: there is no trained model at {' or '.join(map(str, places))}. {dataset} has "
        f"{', '.join(there) or 'none'}. Plans and configuration are those of -p and -c; a model of another dataset is "
        "named DATASET/TRAINER__PLANS__CONFIGURATION."
    )


def unpack_model(path: Path, folder: Path) -> Path:
    """Unpack the one model of a file by ``nnUNetv2_export_model_to_zip``, once: a rerun finds the same files again.

    Raises:
        InputError: not such a file, a damaged one, or paths in it lead out of the folder.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no zip file, or does not exist.")
    target = folder / f"{path.stem}_{sha256_of([path])[:12]}"  # two files of one name are two models
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial_", dir=folder) as partial:
            _extract(path, Path(partial) / "whole")
            (Path(partial) / "whole").rename(target)
    models = sorted(plans.parent for plans in target.rglob("plans.json") if (plans.parent / "dataset.json").is_file())
    if len(models) != 1:
        shutil.rmtree(target)
        found = ", ".join(model.name for model in models) or "none"
        raise InputError(f"{path} must hold one model as nnUNetv2_export_model_to_zip writes it; it holds {found}.")
    return models[0]


def _extract(path: Path, target: Path) -> None:
    target.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                parts = PurePosixPath(name.replace("\\", "/"))
                if parts.is_absolute() or ".." in parts.parts or (parts.parts and ":" in parts.parts[0]):
                    raise InputError(f"{path} holds '{name}', which leads out of the folder: do not trust this file.")
            archive.extractall(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # damaged, or encrypted
        raise InputError(f"{path} cannot be unpacked ({error}). Fetch or export it again.") from error


def name_models(folders: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    """A name for every model: as given, else its trainer without nnU-Net's prefix, with more where two are alike.

    Raises:
        InputError: another number of names, two that are alike, one that no folder can have, or one that means a
            cleaned model.
    """
    if names is None:
        parts = [[folder.parent.name, *folder.name.split("__")] for folder in folders]
        names = [trainer.removeprefix(PREFIX).lstrip("_") or PREFIX for _, trainer, *_ in parts]
        for place in (2, 3, 0):  # plans, configuration, dataset
            if len(set(names)) < len(names) and len({each[place] for each in parts}) > 1:
                names = [f"{name}_{each[place]}" for name, each in zip(names, parts, strict=True)]
    if len(names) != len(folders) or len(set(names)) < len(names):
        raise InputError(f"--names must give {len(folders)} different names, one for each -tr; got {list(names)}.")
    for name in names:
        if not name or name.startswith(".") or Path(name).name != name:
            raise InputError(f"--names: '{name}' cannot be a model's name, since a folder is named so.")
        if name.endswith(CLEANED):
            raise InputError(f"--names: '{name}' ends in '{CLEANED}', as the names of cleaned models do.")
    return list(names)


# -- does it fit the dataset? -----------------------------------------------------------------------------------------


def check_model(model: StressModel, dataset_json: Mapping[str, Any], reader: str, folds: Sequence[Fold]) -> None:
    """A model takes the dataset's images as they are, and gives its labels.

    Raises:
        InputError: other channels or another order of them, other labels, another reader of images (whose axes may be
            in another order), or a second stage of a cascade.
        MissingCheckpointError: a fold has no checkpoint.
    """
    path = model.folder / "dataset.json"
    ours, theirs = _image_names(dataset_json), _image_names(model.dataset_json)
    if [name.casefold() for name in ours] != [name.casefold() for name in theirs]:
        raise InputError(
            f"{model.name} was trained on the channels {', '.join(theirs)} ({path}), but the dataset has "
            f"{', '.join(ours)}, in this order. It cannot be given these images."
        )
    ours_labels, theirs_labels = labels_by_name(dataset_json, path), labels_by_name(model.dataset_json, path)
    if ours_labels != theirs_labels:
        raise InputError(
            f"{model.name} gives the labels {theirs_labels} ({path}), but the dataset has {ours_labels}. Compare "
            "models of the same labels."
        )
    plans = load_json(model.folder / "plans.json")
    _check_reader(model.name, plans, reader)
    configuration = model.folder.name.split("__")[-1]
    if plans["configurations"].get(configuration, {}).get("previous_stage"):
        raise InputError(f"{model.name} is the second stage of a cascade, which the stress test does not run.")
    missing = [fold for fold in folds if not (model.folder / f"fold_{fold}" / model.checkpoint).is_file()]
    if missing:
        there = ", ".join(map(str, folds_of(model.folder, model.checkpoint))) or "no fold"
        raise MissingCheckpointError(
            f"{model.folder} has no {model.checkpoint} for fold {', '.join(map(str, missing))}; it has {there}. Name "
            "trained folds by -f, or train the others."
        )


def check_error_maps(model: StressModel, reader: str, folds: Sequence[Fold]) -> None:
    """The networks that made the error maps of a model's training cases are there, and are the same.

    Raises:
        MissingCheckpointError: one is gone.
        InputError: one was trained again since, so that its maps are others than those that the model has learnt from;
            or they read images by another reader.
    """
    origin = model.error_maps
    if origin is None:
        return
    folder, masks = reconstruction_folder(origin), masks_folder(origin)
    for fold in folds:
        for path in [folder / f"fold_{fold}" / origin["checkpoint"]] + (
            [masks / f"fold_{fold}" / "checkpoint_final.pth"] if masks else []
        ):
            if not path.is_file():
                raise MissingCheckpointError(f"{model.name} needs error maps by {path}, which is not there.")
            plans = load_json(path.parents[1] / "plans.json")
            _check_reader(f"{path.parents[1].name}, which makes error maps for {model.name},", plans, reader)
        known, now = origin["checkpoints_sha256"], sha256_of([folder / f"fold_{fold}" / origin["checkpoint"]])
        if isinstance(fold, int) and fold < len(known) and known[fold] not in (None, now):
            raise InputError(
                f"Fold {fold} of {folder} was trained again since {model.folder.parent.name} was made, so that "
                f"{model.name} has learnt from other error maps. Make that dataset again, and train on it."
            )


def _check_reader(name: str, plans: Mapping[str, Any], reader: str) -> None:
    if plans["image_reader_writer"] != reader:
        raise InputError(
            f"{name} reads images by {plans['image_reader_writer']}, but the dataset is read by {reader}, whose axes "
            "may be in another order. Plan with one reader: overwrite_image_reader_writer in dataset.json."
        )


def check_not_seen(model: StressModel, fold: Fold, cases: Sequence[str], allow_leak: bool) -> None:
    """No network of a fold, and none of those that make its error maps, has learnt from the cases.

    By what its checkpoint says, or else ``splits_final.json`` of its preprocessed dataset.

    Raises:
        LeakageError: one has; or nothing says so.
    """
    if allow_leak:
        return
    for path in model.checkpoints([fold]):
        folder, network = path.parents[1], f"Fold {fold} of {model.name}"
        if folder != model.folder:
            network = f"Fold {fold} of {folder.name}, which makes error maps for {model.name},"
        learnt = _learnt_from(path, fold)
        if learnt is None:
            raise LeakageError(
                f"Nothing says which cases fold {fold} of {folder.name} has learnt from: there is no splits_final.json "
                f"of {folder.parent.name}. If it has seen none of the cases to test on, say --allow-leak."
            )
        if seen := sorted(learnt & set(cases)):
            raise LeakageError(
                f"{network} has learnt from {_listed(seen)}. Test it on cases that it held out (the folds of "
                "splits_final.json changed since?), or say --allow-leak."
            )
    if model.networks_inside > 1:
        _check_not_seen_inside(model, cases)


def _check_not_seen_inside(model: StressModel, cases: Sequence[str]) -> None:
    """Several A in one network are of several folds: together they have seen every training case."""
    splits = _splits_of(model.folder.parent.name) or []
    if seen := sorted({case for split in splits for case in (*split["train"], *split["val"])} & set(cases)):
        raise LeakageError(
            f"{model.name} has A of {model.networks_inside} folds inside (end_to_end.exported=mean), and every "
            f"training case is known to one of them, also {_listed(seen)}. Test it on other cases by -i, or say "
            "--allow-leak."
        )


def _learnt_from(path: Path, fold: Fold) -> set[str] | None:
    """Cases that a checkpoint has learnt from; None where nothing says so."""
    content = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    if split := content["init_args"].get(SPLIT):
        return set(split["train"])
    splits = _splits_of(path.parents[2].name)
    if splits is None:
        return None
    if isinstance(fold, int):
        return set(splits[fold]["train"]) if fold < len(splits) else None
    return {case for split in splits for case in (*split["train"], *split["val"])}


def _splits_of(dataset: str) -> list[dict[str, list[str]]] | None:
    path = nnunet_folder("nnUNet_preprocessed") / dataset / "splits_final.json"
    return load_json(path) if path.is_file() else None


def _listed(cases: Sequence[str]) -> str:
    return f"{', '.join(cases[:5])}{' ...' if len(cases) > 5 else ''}"


def _image_names(dataset_json: Mapping[str, Any]) -> list[str]:
    names = channel_names(dataset_json)
    return [names[str(channel)] for channel in image_channels(dataset_json)]


# -- prediction -------------------------------------------------------------------------------------------------------


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
