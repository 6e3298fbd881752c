"""From out-of-fold error maps to a derived dataset, in which they are one more channel (law 3: no leak)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_anomaly.dataset_roles import ERROR_MAP, IMAGE, KEY, channel_names
from nnunet_anomaly.error_maps.predict import map_file_ending
from nnunet_anomaly.error_maps.provenance import PRETRAINED, Split
from nnunet_anomaly.errors import InputError, LeakageError, MissingCheckpointError
from nnunet_anomaly.files import load_json, place, remove_left_overs, save_json, sha256_of

DERIVED_FROM = "derived_from"


@dataclass(frozen=True)
class FoldMaps:
    """Error maps of one fold: a map per case, and the cases that the network was trained on."""

    fold: int
    maps: Mapping[str, Path]
    training_cases: Sequence[str]
    source: Path
    pretrained: bool = False  # it began with weights that have learnt from nobody knows which cases


def fold_maps(model_folder: Path, fold: int, split: Split, checkpoint: str, command: str) -> FoldMaps:
    """Error maps that a reconstruction trainer's validation wrote for its held-out fold.

    Raises:
        MissingCheckpointError: the fold has not been validated; the message has the command.
        LeakageError: the network was trained with other folds than the split says.
        InputError: a map is missing, or the maps are by another checkpoint than asked for.
    """
    folder = model_folder / f"fold_{fold}" / "validation"
    record = fold_record(model_folder, fold, split, command)
    again = f"{command} --val" + (" --val_best" if checkpoint == "checkpoint_best.pth" else "")
    if record["checkpoint"] != checkpoint:
        made_by = record["checkpoint"] or "a network that was not saved"
        raise InputError(f"The maps in {folder} are by {made_by}, not {checkpoint}. Make them again: {again}")
    ending = map_file_ending(load_json(model_folder / "dataset.json"))
    path = model_folder / f"fold_{fold}" / checkpoint
    if not path.is_file():
        raise MissingCheckpointError(f"{path} does not exist. Train this fold: {command}")
    if record["checkpoint_sha256"] != sha256_of([path]):
        raise InputError(f"Fold {fold} was trained again since {folder} was made. Make the maps again: {again}")
    maps = {case: folder / "error_maps" / f"{case}{ending}" for case in record["held_out_cases"]}
    absent = sorted(case for case, path in maps.items() if not path.is_file())
    if absent:
        raise InputError(f"Fold {fold} lacks the error maps of {', '.join(absent)}. Make them again: {again}")
    return FoldMaps(fold, maps, record["training_cases"], folder / "error_maps.json", record.get(PRETRAINED, False))


def fold_record(model_folder: Path, fold: int, split: Split, command: str) -> dict[str, Any]:
    """What a reconstruction trainer wrote down of a fold; its cases are those of the split.

    Raises:
        MissingCheckpointError: the fold has not been validated; the message has the command.
        LeakageError: the network was trained with other folds than the split says.
    """
    record_path = model_folder / f"fold_{fold}" / "validation" / "error_maps.json"
    if not record_path.is_file():
        raise MissingCheckpointError(
            f"Fold {fold} is missing: {record_path} does not exist. Train it to its end (or, when it is trained, make "
            f"its error maps with --val): {command}"
        )
    record = load_json(record_path)
    if set(record["training_cases"]) != set(split["train"]) or set(record["held_out_cases"]) != set(split["val"]):
        raise LeakageError(
            f"{record_path} lists other cases than fold {fold} of splits_final.json: the split changed since that "
            f"training. Train this fold again: {command}"
        )
    return record


def out_of_fold(folds: Sequence[FoldMaps], cases: Sequence[str], allow_leak: bool = False) -> dict[str, Path]:
    """One error map per case, from a network that never saw it.

    Args:
        folds: maps of every fold.
        cases: all training cases of the dataset; each needs a map.
        allow_leak: take maps of cases that their network was, or may have been, trained on; only by name.

    Raises:
        LeakageError: a case's network was trained on it, or began with weights from elsewhere.
        InputError: a case has no map, or more than one.
    """
    chosen: dict[str, Path] = {}
    for fold in folds:
        leaking = sorted(set(fold.maps) & set(fold.training_cases))
        if leaking and not allow_leak:
            raise LeakageError(
                f"The network of fold {fold.fold} was trained on {', '.join(leaking)} ({fold.source}), so that its "
                "error maps of them are not out of fold."
            )
        if fold.pretrained and not allow_leak:
            raise LeakageError(
                f"The network of fold {fold.fold} began with -pretrained_weights ({fold.source}), and nothing says "
                "which cases these have learnt from. If they saw none of this dataset, say --allow-leak."
            )
        twice = sorted(set(fold.maps) & set(chosen))
        if twice:
            raise InputError(f"More than one fold holds out {', '.join(twice)}; splits_final.json is not a partition.")
        chosen.update(fold.maps)
    missing = sorted(set(cases) - set(chosen))
    if missing:
        raise InputError(
            f"No fold holds out {', '.join(missing)}: the folds do not cover the dataset, so that these cases have no "
            "out-of-fold error map. Use splits in which every training case is held out once."
        )
    return {case: chosen[case] for case in cases}


def case_names(images_folder: Path, file_ending: str) -> list[str]:
    """Cases of an nnU-Net image folder, sorted; also those that lack their first channel, so that they are missed."""
    length = len(f"_0000{file_ending}")
    return sorted({path.name[:-length] for path in images_folder.glob(f"*_[0-9][0-9][0-9][0-9]{file_ending}")})


def files_without_channel(images_folder: Path, file_ending: str) -> list[str]:
    """Images of a folder that are no nnU-Net case's, by their name; sorted, hidden ones left out."""
    images = {path.name for path in images_folder.glob(f"*{file_ending}") if not path.name.startswith(".")}
    return sorted(images - {path.name for path in images_folder.glob(f"*_[0-9][0-9][0-9][0-9]{file_ending}")})


def derived_dataset_json(source: Mapping[str, Any], name: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """dataset.json with one more channel: named ``noNorm`` for nnU-Net, its role under a key of our own."""
    names = channel_names(source)
    channel = str(len(names))
    ours = dict(source.get(KEY, {}))
    roles = dict.fromkeys(names, IMAGE) | dict(ours.get("channel_roles", {}))
    ours |= {"channel_roles": {**roles, channel: ERROR_MAP}, DERIVED_FROM: dict(origin)}
    rest = {key: value for key, value in source.items() if key != "modality"}
    return {**rest, "name": name, "channel_names": {**names, channel: "noNorm"}, KEY: ours}


def write_case(images: Sequence[Path], error: Path, case: str, folder: Path, file_ending: str, copy: bool) -> None:
    """Place a case's images and, as its last channel, a copy of its error map into an nnU-Net image folder."""
    for channel, path in enumerate(images):
        place(path, folder / f"{case}_{channel:04d}{file_ending}", copy=copy)
    place(error, folder / f"{case}_{len(images):04d}{file_ending}", copy=True)


def check_target(folder: Path, origin: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another dataset; one that an earlier run of the same began is gone on with.

    Raises:
        InputError: the folder holds something else.
    """
    description = folder / "dataset.json"
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not description.is_file():
        if (folder / ".derived.json").is_file() and load_json(folder / ".derived.json") == origin:
            return
    elif load_json(description).get(KEY, {}).get(DERIVED_FROM) == dict(origin):
        return
    raise InputError(
        f"{folder} already holds another dataset (or was made from other checkpoints). Choose another number or name, "
        "or remove it."
    )


def write_derived_dataset(
    source: Path, target: Path, maps: Mapping[str, Path], splits: Sequence[Split], origin: Mapping[str, Any], copy: bool
) -> None:
    """Write the derived dataset: images and labels linked or copied, error maps, splits, and dataset.json last."""
    check_target(target, origin)
    if target.is_dir():
        remove_left_overs(target)
    save_json(dict(origin), target / ".derived.json")
    description = load_json(source / "dataset.json")
    ending = description["file_ending"]
    for case, error in maps.items():
        channels = range(len(channel_names(description)))
        images = [source / "imagesTr" / f"{case}_{channel:04d}{ending}" for channel in channels]
        write_case(images, error, case, target / "imagesTr", ending, copy)
        place(source / "labelsTr" / f"{case}{ending}", target / "labelsTr" / f"{case}{ending}", copy=copy)
    save_json(list(splits), target / "splits_final.json")
    name = target.name.split("_", 1)[1]
    save_json(derived_dataset_json(description, name, origin), target / "dataset.json")
    (target / ".derived.json").unlink()
