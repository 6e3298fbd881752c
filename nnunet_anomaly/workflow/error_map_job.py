"""What one call of ``nnunet-anomaly error-maps`` works on: folders, networks, cases."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_anomaly.error_maps.folds import Fold, folds_of, in_order
from nnunet_anomaly.error_maps.predict import map_file_ending
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import (
    find_dataset_folder,
    load_json,
    nnunet_folder,
    sha256_of,
)
from nnunet_anomaly.settings import BLOCK, AnomalySettings

MASKS_CHECKPOINT = "checkpoint_final.pth"


@dataclass(frozen=True)
class Case:
    """One case: its images, the label map of what is erased (None without), and where its error map goes."""

    name: str
    images: list[Path]
    mask: Path | None
    target: Path
    record: Path
    source: Any  # what the map is made from, see ``files.made_from``


@dataclass
class Job:
    """Where everything is that one call works on."""

    raw: Path
    preprocessed: Path
    results: Path
    model: Path
    masks_from: str | None
    output: str
    folds: list[Fold] | None
    checkpoint: str
    copy: bool
    test: bool
    reconstructions: Path | None
    allow_leak: bool
    num_processes: int
    device: torch.device
    masks_are_filled: bool = False  # those of masks_from, see ReconstructionModel

    @staticmethod
    def from_arguments(args: argparse.Namespace) -> Job:
        """Resolve names to folders; every missing thing is an error here, before the work starts."""
        raw = find_dataset_folder(nnunet_folder("nnUNet_raw"), args.dataset)
        results = nnunet_folder("nnUNet_results") / raw.name
        model = results / f"{args.trainer}__{args.plans}__{args.configuration}"
        if not model.is_dir():
            raise InputError(
                f"{model} does not exist. Train it first: nnUNetv2_train {raw.name} {args.configuration} 0 "
                f"-tr {args.trainer} -p {args.plans}"
            )
        map_file_ending(load_json(raw / "dataset.json"))
        if args.save_reconstructions:
            check_it_reconstructs(args.trainer)
        if args.device == "cuda" and not torch.cuda.is_available():
            raise InputError("There is no CUDA device here; give -device cpu.")
        return Job(
            raw=raw,
            preprocessed=nnunet_folder("nnUNet_preprocessed") / raw.name,
            results=results,
            model=model,
            masks_from=args.masks_from,
            output=args.output,
            folds=args.folds,
            checkpoint=args.checkpoint,
            copy=args.copy,
            test=not args.no_test,
            reconstructions=Path(args.save_reconstructions) if args.save_reconstructions else None,
            allow_leak=args.allow_leak,
            num_processes=args.num_processes,
            device=torch.device(args.device),
        )

    @property
    def dataset_json(self) -> dict[str, Any]:
        """The source dataset's description."""
        return load_json(self.raw / "dataset.json")

    def origin(self, folds: Sequence[Fold], masks: Sequence[Path] = ()) -> dict[str, Any]:
        """Which networks the maps are by; written beside them, so that a rerun knows its own work from another's.

        Args:
            folds: of the model.
            masks: files that say what is erased in all cases: checkpoints that predict it, or label maps.
        """
        folder = self.masks_folder()
        return {
            "dataset": self.raw.name,
            "model": self.model.name,
            "checkpoint": self.checkpoint,
            "checkpoints_sha256": _digests(self.model, folds, self.checkpoint),
            # the region that two passes erase depends on them
            "settings": self._region_settings(),
            "masks_from": folder.name if folder else None,
            "masks_sha256": sha256_of(masks) if masks else None,
            # of a model; the files above may be what it predicted
            **({"masks_checkpoints_sha256": _digests(folder, folds, MASKS_CHECKPOINT)} if is_model(folder) else {}),
            **({"masks_are_filled": True} if self.masks_are_filled else {}),
        }

    def _region_settings(self) -> dict[str, Any] | None:
        """Settings of the region, with the margin that this model's trainer erases."""
        plans = load_json(self.model / "plans.json")
        region = plans.get(BLOCK, {}).get("roi")
        if region is None:
            return None
        trainer = recursive_find_trainer_class_by_name(self.model.name.split("__")[0])
        return region | {"dilation_mm": trainer.erased_margin_mm(AnomalySettings.from_plans(plans))}

    def all_folds(self) -> list[Fold]:
        """The folds asked for, else all that have the checkpoint."""
        return in_order(self.folds) if self.folds else folds_of(self.model, self.checkpoint)

    def masks_folder(self) -> Path | None:
        """Folder of the segmentation model, or of label maps, that says what is erased.

        Raises:
            InputError: there is no such folder.
        """
        if self.masks_from is None:
            return None
        for folder in (self.results / self.masks_from, Path(self.masks_from)):
            if folder.is_dir():
                return folder
        raise InputError(f"--masks-from: neither {self.results / self.masks_from} nor {self.masks_from} is a folder.")

    def command(self, fold: int) -> str:
        """The command that trains a fold of the model."""
        trainer, plans, configuration = self.model.name.split("__")
        return f"nnUNetv2_train {self.raw.name} {configuration} {fold} -tr {trainer} -p {plans}"

    def images(self, folder: Path, case: str) -> list[Path]:
        """Files of all channels of a case."""
        ending = self.dataset_json["file_ending"]
        return sorted(folder.glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}"))


def is_model(folder: Path | None) -> bool:
    """Whether this is the folder of a trained model, rather than one of label maps."""
    return folder is not None and (folder / "plans.json").is_file()


def _digests(model: Path | None, folds: Sequence[Fold], checkpoint: str) -> list[str | None]:
    """SHA-256 of the checkpoint of each fold; None where there is none."""
    assert model is not None
    paths = [model / f"fold_{fold}" / checkpoint for fold in folds]
    return [sha256_of([path]) if path.is_file() else None for path in paths]


def check_it_reconstructs(trainer: str) -> None:
    """There are reconstructions to save.

    Raises:
        InputError: the trainer's networks give error maps without one.
    """
    if getattr(recursive_find_trainer_class_by_name(trainer), "residual", None) == "output":
        raise InputError(f"{trainer} makes error maps without a reconstruction. Leave --save-reconstructions out.")
