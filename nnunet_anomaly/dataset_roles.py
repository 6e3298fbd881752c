"""What our keys in dataset.json say: which channels are error maps, and which labels the region of interest is.

nnU-Net's channel names decide normalisation alone, so that roles have a key of their own::

    "anomaly": {"channel_roles": {"0": "image", "1": "error_map"}, "roi_labels": ["femoral_bone", "tibial_bone"],
                "lesion_labels": ["bml"]}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import load_json
from nnunet_anomaly.label_maps import LARGEST_LABEL, is_whole_number

KEY = "anomaly"
IMAGE, ERROR_MAP = "image", "error_map"
LESION = re.compile(r"lesion|(?<![a-z])bml(?![a-z])|tumou?r|stroke|oedema|edema", re.IGNORECASE)


def error_channels(dataset_json: Mapping[str, Any]) -> tuple[int, ...]:
    """Indices of the error-map channels, which must be the last ones; empty when there are none.

    Raises:
        InputError: a role is unknown, an error map is followed by an image or is not named ``noNorm``.
    """
    names = channel_names(dataset_json)
    roles = dataset_json.get(KEY, {}).get("channel_roles", {})
    for index, role in roles.items():
        if role not in (IMAGE, ERROR_MAP) or index not in names:
            raise InputError(
                f"dataset.json: anomaly.channel_roles has {index}: {role!r}; roles are '{IMAGE}' and '{ERROR_MAP}', "
                f"and the channels are {', '.join(names)}."
            )
    channels = tuple(sorted(int(index) for index, role in roles.items() if role == ERROR_MAP))
    if channels != tuple(range(len(names) - len(channels), len(names))):
        raise InputError("dataset.json: error-map channels must come after all image channels.")
    for channel in channels:
        if names[str(channel)].casefold() != "nonorm":
            raise InputError(
                f"dataset.json: channel {channel} is an error map but is named '{names[str(channel)]}'. nnU-Net "
                "z-scores every name it does not know; name it 'noNorm', plan and preprocess again."
            )
    return channels


def image_channels(dataset_json: Mapping[str, Any]) -> tuple[int, ...]:
    """Indices of the channels that are images."""
    return tuple(range(len(channel_names(dataset_json)) - len(error_channels(dataset_json))))


def channel_names(dataset_json: Mapping[str, Any]) -> Mapping[str, str]:
    """Name of every channel; old datasets call the key ``modality``, as nnU-Net still allows."""
    return dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"]


def all_labels(dataset_json: Mapping[str, Any]) -> set[int]:
    """Every label value but background, those inside regions too."""
    values: set[int] = set()
    for value in dataset_json["labels"].values():
        values.update([value] if isinstance(value, int) else value)
    return values - {0}


def labels_by_name(dataset_json: Any, path: Path) -> dict[str, tuple[int, ...]]:
    """Labels of every structure but the background, one or (a region) several; nnU-Net v1's {"1": "name"} too.

    Args:
        dataset_json: content of the file.
        path: the file, for messages.

    Raises:
        InputError: there are no such labels.
    """
    labels = dataset_json.get("labels", {}) if isinstance(dataset_json, Mapping) else None
    if not isinstance(labels, Mapping):
        raise InputError(f'{path} has no "labels" as nnU-Net knows them: {{"background": 0, "name": 1, ...}}.')
    if labels and all(key.isdecimal() and isinstance(name, str) for key, name in labels.items()):
        labels = {name: int(key) for key, name in labels.items()}
    found = {}
    for name, value in labels.items():
        if name == "background":
            continue
        values = tuple(value) if isinstance(value, list) else (value,)
        if not values or not all(is_whole_number(label) and 1 <= label <= LARGEST_LABEL for label in values):
            raise InputError(f"{path}: the label of '{name}' is {value!r}; labels are 1 to {LARGEST_LABEL}.")
        found[name] = values
    return found


def label_values(path: Path) -> tuple[int, ...] | None:
    """Every label that a label map may hold by a dataset.json, ascending; None without such a file, or any label in it.

    With regions these are the values of ``regions_class_order`` too, which predictions hold.

    Raises:
        InputError: its labels are none.
    """
    if not path.is_file():
        return None
    dataset_json = load_json(path)
    values = {value for group in labels_by_name(dataset_json, path).values() for value in group}
    return tuple(sorted(values | set(dataset_json.get("regions_class_order") or ()))) or None


def roi_labels(dataset_json: Mapping[str, Any]) -> tuple[int, ...]:
    """Labels of the region of interest: ``anomaly.roi_labels`` by name, else every foreground label.

    Raises:
        InputError: a name in ``roi_labels`` is not among the labels, or there is no foreground label.
    """
    labels = {name: value for name, value in dataset_json["labels"].items() if name not in ("background", "ignore")}
    names = dataset_json.get(KEY, {}).get("roi_labels") or list(labels)
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise InputError(f"dataset.json: anomaly.roi_labels names {unknown}, but the labels are {list(labels)}.")
    values: set[int] = set()
    for name in names:
        value = labels[name]
        values.update([value] if isinstance(value, int) else value)  # region-based labels are lists
    values.discard(0)
    if not values:
        raise InputError("dataset.json: there is no foreground label to take as region of interest.")
    return tuple(sorted(values))


def lesion_labels(dataset_json: Mapping[str, Any]) -> tuple[int, ...]:
    """Labels of lesions: ``anomaly.lesion_labels`` by name, else those whose names say so (``bml``, ``lesion``, ...).

    Raises:
        InputError: a name in ``lesion_labels`` is not among the labels.
    """
    labels = {name: value for name, value in dataset_json["labels"].items() if name not in ("background", "ignore")}
    names = dataset_json.get(KEY, {}).get("lesion_labels")
    if names is None:
        names = [name for name in labels if LESION.search(name)]
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise InputError(f"dataset.json: anomaly.lesion_labels names {unknown}, but the labels are {list(labels)}.")
    values: set[int] = set()
    for name in names:
        values.update([labels[name]] if isinstance(labels[name], int) else labels[name])
    return tuple(sorted(values - {0}))
