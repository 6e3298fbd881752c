"""All weights of a trained network as the start of another training of the same classes (Xu 2022, transfer learning).

nnU-Net's ``-pretrained_weights`` leaves out the last layers, because it is made for other classes. Where the classes
are the same, the last layers know them already: these are taken too, and nothing is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_anomaly.dataset_roles import channel_names
from nnunet_anomaly.errors import InputError, MissingCheckpointError

NAMED = 5  # so many tensors are named in a message


def transfer_weights(network: torch.nn.Module, path: Path, dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Load all weights and buffers of a checkpoint of nnU-Net into a network; the network is changed only if all fit.

    Args:
        network: may be wrapped by ``DistributedDataParallel`` and ``torch.compile``.
        path: checkpoint that an nnU-Net trainer saved; loaded as nnU-Net does, by pickle: only use one that you trust.
        dataset_json: of the dataset that will be trained on.

    Returns:
        The checkpoint's other content, such as ``trainer_name``, ``current_epoch`` and ``init_args``.

    Raises:
        MissingCheckpointError: there is no such file.
        InputError: it is no checkpoint of nnU-Net; its classes, its channels or its architecture are others.
    """
    checkpoint = read_checkpoint(path)
    there = checkpoint["init_args"]["dataset_json"]
    problems = [*differing_classes(there["labels"], dataset_json["labels"]), *differing_channels(there, dataset_json)]
    weights = checkpoint.pop("network_weights")
    bare = unwrapped(network)
    problems = problems or differing_tensors(weights, bare.state_dict())
    if problems:
        raise InputError(
            f"The weights in {path} do not fit what is to be trained: {'; '.join(problems)}. A transfer takes all "
            "weights: it needs the same labels, channels and architecture. Use plans of the first training's dataset "
            "for the second as well (nnUNetv2_move_plans_between_datasets)."
        )
    bare.load_state_dict(weights)
    return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of nnU-Net, on the CPU.

    Raises:
        MissingCheckpointError: there is no such file.
        InputError: it is a folder, not readable, or not a checkpoint of nnU-Net.
    """
    if path.is_dir():
        raise InputError(
            f"transfer.checkpoint is {path}, which is a folder. Name a file, for example fold_0/checkpoint_final.pth "
            "in the folder of a model."
        )
    if not path.is_file():
        raise MissingCheckpointError(f"transfer.checkpoint is {path}, which does not exist. Train that network first.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # whatever unpickling a file of another kind may raise
        raise InputError(f"{path} is not readable as a checkpoint ({type(error).__name__}: {error}).") from error
    if not isinstance(checkpoint, dict) or not {"network_weights", "init_args"} <= checkpoint.keys():
        raise InputError(f"{path} is no checkpoint of nnU-Net: it has no network_weights or no init_args.")
    init_args = checkpoint["init_args"]
    dataset_json = init_args.get("dataset_json") if isinstance(init_args, dict) else None
    if (
        not isinstance(dataset_json, dict)
        or not isinstance(dataset_json.get("labels"), dict)
        or not {"channel_names", "modality"} & dataset_json.keys()
    ):
        raise InputError(
            f"{path} does not say what its network was trained on: the dataset.json in it (init_args) is missing, or "
            "has no labels or no channel_names. Take a checkpoint as nnU-Net wrote it."
        )
    return checkpoint


def differing_classes(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Classes whose name or value differ, in words; empty where there are none.

    nnU-Net's ignore label is no class, and no output of the network.

    Args:
        there: ``labels`` of the checkpoint's dataset.json: values, or lists of them for regions.
        here: those of the dataset that is to be trained on.
    """

    def plain(labels: Mapping[str, Any]) -> dict[str, Any]:
        """A list of one is its value, and a region is the same in whichever order it is written."""
        classes = {name: value for name, value in labels.items() if name != "ignore"}
        lists = {name: sorted(value) if isinstance(value, list | tuple) else [value] for name, value in classes.items()}
        return {name: values if len(values) > 1 else values[0] for name, values in lists.items()}

    before, now = plain(there), plain(here)
    found = []
    for name in [*before, *(name for name in now if name not in before)]:
        if name not in now:
            found.append(f"'{name}' ({before[name]}) is a class of the checkpoint alone")
        elif name not in before:
            found.append(f"'{name}' ({now[name]}) is a class of the dataset alone")
        elif before[name] != now[name]:
            found.append(f"'{name}' is {before[name]} in the checkpoint and {now[name]} in the dataset")
    has_regions = any(isinstance(value, list) for value in now.values())
    if not found and has_regions and list(before) != list(now):  # the order of regions is that of the outputs
        found.append(f"the regions come in another order, {list(before)} in the checkpoint and {list(now)} here")
    return found


def differing_channels(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs in the names of channels of two dataset.json, upper and lower case aside; empty where nothing."""

    def names(dataset_json: Mapping[str, Any]) -> list[str]:
        channels = channel_names(dataset_json)
        return [channels[index].casefold() for index in sorted(channels, key=int)]

    if names(there) == names(here):
        return []
    return [f"the channels are {names(there)} in the checkpoint and {names(here)} in the dataset"]


def differing_tensors(there: Mapping[str, torch.Tensor], here: Mapping[str, torch.Tensor]) -> list[str]:
    """What differs in the names and shapes of two state dicts; empty where nothing does."""

    def some(names: list[str]) -> str:
        return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

    kinds = {
        "the architecture has tensors that the checkpoint lacks": [name for name in here if name not in there],
        "the checkpoint has tensors that the architecture lacks": [name for name in there if name not in here],
        "shapes differ (checkpoint, architecture)": [
            f"{name} {tuple(there[name].shape)}, {tuple(here[name].shape)}"
            for name in here
            if name in there and there[name].shape != here[name].shape
        ],
    }
    return [f"{kind}: {some(names)}" for kind, names in kinds.items() if names]


def differences_in_preprocessing(there: Mapping[str, Any], here: Mapping[str, Any], configuration: str) -> list[str]:
    """How images look otherwise to the network than before, by two plans; for a warning, not an error.

    Args:
        there: plans of the checkpoint.
        here: plans of the training.
        configuration: of the training; nothing is compared where the other plans do not have it.
    """
    one, other = (plans["configurations"].get(configuration, {}) for plans in (there, here))
    keys = ("spacing", "normalization_schemes", "patch_size")
    found = [f"{key} {one[key]} before, {other[key]} now" for key in keys if key in one and one[key] != other.get(key)]
    intensities = "foreground_intensity_properties_per_channel"
    if "CTNormalization" in one.get("normalization_schemes", []) and there[intensities] != here[intensities]:
        found.append("statistics of CT intensities")
    return found


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """The network without what DDP and torch.compile wrap around it."""
    module: Any = network.module if isinstance(network, DistributedDataParallel) else network
    return module._orig_mod if isinstance(module, OptimizedModule) else module
