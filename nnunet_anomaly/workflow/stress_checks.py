"""Does a model fit the dataset under the stress test, and has it, or what makes its error maps, seen the cases?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nnunet_anomaly.dataset_roles import channel_names, image_channels, labels_by_name
from nnunet_anomaly.error_maps.folds import Fold, folds_of
from nnunet_anomaly.error_maps.provenance import SPLIT
from nnunet_anomaly.errors import InputError, LeakageError, MissingCheckpointError
from nnunet_anomaly.files import load_json, nnunet_folder, sha256_of
from nnunet_anomaly.workflow.error_map_job import MASKS_CHECKPOINT
from nnunet_anomaly.workflow.stress_models import StressModel, masks_folder, reconstruction_folder


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
    networks = [(reconstruction_folder(origin), origin["checkpoint"], origin["checkpoints_sha256"])]
    if masks := masks_folder(origin):
        networks.append((masks, MASKS_CHECKPOINT, origin.get("masks_checkpoints_sha256", [])))
    for folder, checkpoint, known in networks:
        for fold in folds:
            path = folder / f"fold_{fold}" / checkpoint
            if not path.is_file():
                raise MissingCheckpointError(f"{model.name} needs error maps by {path}, which is not there.")
            name = f"{folder.name}, which makes error maps for {model.name},"
            _check_reader(name, load_json(folder / "plans.json"), reader)
            then = known[fold] if isinstance(fold, int) and fold < len(known) else None
            if then not in (None, sha256_of([path])):
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
                f"of {folder.parent.name} that has this fold. If it has seen none of the cases to test on, say "
                "--allow-leak."
            )
        if seen := sorted(learnt & set(cases)):
            raise LeakageError(
                f"{network} has learnt from {_listed(seen)}. Test it on cases that it held out (the folds of "
                "splits_final.json changed since?), or say --allow-leak."
            )
    if model.holds_other_folds:
        _check_not_seen_inside(model, cases)


def _check_not_seen_inside(model: StressModel, cases: Sequence[str]) -> None:
    """A of other folds in a network have seen what it held out; several together, every training case."""
    splits = _splits_of(model.folder.parent.name) or []
    if seen := sorted({case for split in splits for case in (*split["train"], *split["val"])} & set(cases)):
        raise LeakageError(
            f"{model.name} has A of other folds inside (end_to_end.exported=mean), and training cases are known to "
            f"them, also {_listed(seen)}. Test it on other cases by -i, or say --allow-leak."
        )


def _learnt_from(path: Path, fold: Fold) -> set[str] | None:
    """Cases that a checkpoint has learnt from; None where nothing says so."""
    content = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    if split := content["init_args"].get(SPLIT):
        return set(split["train"])
    dataset = path.parents[2].name
    splits = _splits_of(dataset)
    if isinstance(fold, int):
        return set(splits[fold]["train"]) if splits and fold < len(splits) else None
    # fold all has learnt from whatever is preprocessed, be it in a split or not
    known = _preprocessed_cases(dataset) | {case for split in splits or () for case in (*split["train"], *split["val"])}
    return known or None


def _preprocessed_cases(dataset: str) -> set[str]:
    """Cases of a preprocessed dataset, by the label maps that nnU-Net keeps of all of them."""
    folder = nnunet_folder("nnUNet_preprocessed") / dataset
    if not (folder / "dataset.json").is_file():
        return set()
    ending = load_json(folder / "dataset.json")["file_ending"]
    return {path.name.removesuffix(ending) for path in (folder / "gt_segmentations").glob(f"*{ending}")}


def _splits_of(dataset: str) -> list[dict[str, list[str]]] | None:
    path = nnunet_folder("nnUNet_preprocessed") / dataset / "splits_final.json"
    return load_json(path) if path.is_file() else None


def _listed(cases: Sequence[str]) -> str:
    return f"{', '.join(cases[:5])}{' ...' if len(cases) > 5 else ''}"


def _image_names(dataset_json: Mapping[str, Any]) -> list[str]:
    names = channel_names(dataset_json)
    return [names[str(channel)] for channel in image_channels(dataset_json)]
