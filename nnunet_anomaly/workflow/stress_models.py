"""Models under the stress test: from what was typed to the folder of a trained model."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nnunet_anomaly.dataset_roles import KEY, error_channels
from nnunet_anomaly.error_maps.collect import DERIVED_FROM
from nnunet_anomaly.error_maps.folds import Fold
from nnunet_anomaly.errors import InputError
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

    @property
    def holds_other_folds(self) -> bool:
        """Whether A of other folds than its own are inside its network: these have seen what it held out.

        It may be a single one: of two folds, an A that is fine-tuned is that of the other fold.
        """
        block = load_json(self.folder / "plans.json").get(BLOCK, {}).get("end_to_end", {})
        return self.networks_inside > 1 or (self.networks_inside == 1 and block.get("exported") == "mean")

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
