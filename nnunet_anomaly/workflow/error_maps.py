"""What ``nnunet-anomaly error-maps`` does: derived datasets of out-of-fold maps, and maps of new images."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_anomaly.error_maps import collect
from nnunet_anomaly.error_maps.model import load_model
from nnunet_anomaly.error_maps.provenance import check_split
from nnunet_anomaly.errors import InputError, LeakageError, MissingCheckpointError
from nnunet_anomaly.files import (
    Outcome,
    load_json,
    made_from,
    place,
    remove_left_overs,
    save_json,
)
from nnunet_anomaly.workflow.error_map_cases import is_finished, map_cases
from nnunet_anomaly.workflow.error_map_job import Case, Job
from nnunet_anomaly.workflow.two_passes import (
    check_masks_are_needed,
    given_mask,
    held_out_label_maps,
    mask_checkpoints,
    masks_predicted,
)

IMAGE_FOLDERS = ("imagesTr", "imagesTs", "labelsTr", "labelsTs")
RECORDS = "made_from"  # folder with a record for every finished case


def derive(job: Job) -> Outcome:
    """Collect the maps of all folds into a derived dataset; with ``masks_from`` they are made by two passes first.

    Raises:
        LeakageError: the maps would be those of G's own validation, in which the reference labels were erased.
    """
    target = _target_folder(job)
    erases = bool(getattr(recursive_find_trainer_class_by_name(job.model.name.split("__")[0]), "erase", False))
    if erases and not job.masks_from:
        raise LeakageError(
            f"{job.model.name} erases what a mask marks, and in its validation that is the reference: such error maps "
            "tell S where the labels are, and new images have none. Give --masks-from (two passes), or take the maps "
            "of nnUNetTrainerInpaintingMimic."
        )
    splits = load_json(job.preprocessed / "splits_final.json")
    masks = [held_out_label_maps(job, fold, split) for fold, split in enumerate(splits)] if job.masks_from else []
    origin = job.origin(range(len(splits)), [path for files in masks for path in files.values()])
    collect.check_target(target, origin)
    ending = job.dataset_json["file_ending"]
    _check_reconstructions_folder(job, *(folder / name for folder in (job.raw, target) for name in IMAGE_FOLDERS))
    cases = collect.case_names(job.raw / "imagesTr", ending)
    outcome, folds = Outcome(), []
    for fold, split in enumerate(splits):
        if job.masks_from:
            made, maps = _two_pass_fold(job, fold, split, masks[fold])
            outcome.failed.update(made.failed)
            folds.append(maps)
        else:
            folds.append(collect.fold_maps(job.model, fold, split, job.checkpoint, job.command(fold)))
    if outcome.failed:
        return outcome
    chosen = collect.out_of_fold(folds, cases, job.allow_leak)
    collect.write_derived_dataset(job.raw, target, chosen, splits, origin, job.copy)
    outcome.done.extend(chosen)
    if job.test and collect.case_names(job.raw / "imagesTs", ending):
        tested = for_new_images(job, job.raw / "imagesTs", target / "imagesTs")
        outcome.done += tested.done
        outcome.skipped += tested.skipped
        outcome.failed.update(tested.failed)
        if (job.raw / "labelsTs").is_dir():
            for label in sorted((job.raw / "labelsTs").iterdir()):
                place(label, target / "labelsTs" / label.name, copy=job.copy)
    number, plans = int(target.name[7:10]), load_json(job.model / "plans.json")
    print(
        f"{target} is ready. Next, for example:\n  nnUNetv2_plan_and_preprocess -d {number} "
        f"-pl {plans['experiment_planner_used']} -c 3d_fullres\n"
        f"  nnUNetv2_train {number} 3d_fullres 0 -tr nnUNetTrainerAnomalyAware -p (the plans' name that it prints)"
    )
    return outcome


def for_new_images(job: Job, images: Path, output: Path) -> Outcome:
    """Error maps of a folder of images by the ensemble of folds: an input folder for ``nnUNetv2_predict``.

    Raises:
        LeakageError: an image bears the name of a training case (and ``allow_leak`` was not given).
        InputError: there are no images, or the output folder holds maps of another model.
    """
    ending = job.dataset_json["file_ending"]
    cases = collect.case_names(images, ending)
    if not cases:
        raise InputError(f"{images} holds no image named <case>_0000{ending}.")
    if others := collect.files_without_channel(images, ending):
        print(f"Left out, as their names end in no channel number such as _0000: {', '.join(others)}", file=sys.stderr)
    if output.resolve() == images.resolve():
        raise InputError(f"-o is the folder of the images, {images}. Choose another one.")
    _check_reconstructions_folder(job, images, output, *(job.raw / name for name in IMAGE_FOLDERS))
    folds = job.all_folds()
    model = load_model(job.model, folds, job.checkpoint)
    model.masks_are_filled = job.masks_are_filled
    check_masks_are_needed(job, model)
    seen = (model.learnt_from | set(collect.case_names(job.raw / "imagesTr", ending))) & set(cases)
    if seen and not job.allow_leak:
        raise LeakageError(
            f"{', '.join(sorted(seen))} are training cases of {job.raw.name}: the folds' networks saw them. Use their "
            "out-of-fold maps (without -i), or say --allow-leak."
        )
    origin = job.origin(folds, mask_checkpoints(job)) | {"folds": folds}
    if model.residual == "output":  # one network, several kinds of maps
        origin["distillation"] = model.settings.to_dict()["distillation"]
    _claim(output, origin)
    todo = []
    for name in cases:
        files, mask = job.images(images, name), given_mask(job, name)
        source = made_from([*files, *([mask] if mask and mask.is_file() else [])], origin)
        target, record = output / f"{name}_{len(files):04d}{ending}", output / RECORDS / f"{name}.json"
        todo.append(Case(name, files, mask, target, record, source))

    def place_images(files: list[Path]) -> None:
        for path in files:
            place(path, output / path.name, copy=job.copy)

    for case in todo:
        if is_finished(job, case):
            for path in case.images:
                placed = output / path.name
                if not placed.exists() or (job.copy and placed.is_symlink()):
                    place(path, placed, copy=job.copy)
    with masks_predicted(job, todo) as with_masks:
        return map_cases(job, model, with_masks, place_images)


def _two_pass_fold(
    job: Job, fold: int, split: collect.Split, masks: Mapping[str, Path]
) -> tuple[Outcome, collect.FoldMaps]:
    """Maps of a fold's held-out cases by its G, with what a segmentation model of the same fold found erased.

    Maps that an earlier run made of other images, label maps or networks are made again.
    """
    checkpoint = job.model / f"fold_{fold}" / job.checkpoint
    if not checkpoint.is_file():
        raise MissingCheckpointError(
            f"Fold {fold} is missing: {checkpoint} does not exist. Train it to its end: {job.command(fold)}"
        )
    model = load_model(job.model, [fold], job.checkpoint)
    check_split(model.splits[0], split, str(checkpoint))
    check_masks_are_needed(job, model)
    folder = job.model / f"fold_{fold}" / f"validation_two_pass_{Path(str(job.masks_from)).name}"
    remove_left_overs(folder)
    origin = job.origin([fold]) | {"training_cases": sorted(model.learnt_from)}
    save_json(origin, folder / "error_maps.json")
    ending = job.dataset_json["file_ending"]
    cases = []
    for name in sorted(split["val"]):
        files = job.images(job.raw / "imagesTr", name)
        target, record = folder / "error_maps" / f"{name}{ending}", folder / RECORDS / f"{name}.json"
        cases.append(Case(name, files, masks[name], target, record, made_from([*files, masks[name]], origin)))
    outcome = map_cases(job, model, cases)
    maps = {case.name: case.target for case in cases}
    return outcome, collect.FoldMaps(fold, maps, sorted(model.learnt_from), folder, model.pretrained)


def _check_reconstructions_folder(job: Job, *taken: Path) -> None:
    """Reconstructions are named like the images: never write them over these.

    Raises:
        InputError: the folder for reconstructions is one of those that are taken.
    """
    folder = job.reconstructions
    if folder and folder.resolve() in {path.resolve() for path in taken}:
        raise InputError(f"--save-reconstructions names {folder}, which is for images. Choose a folder of its own.")


def _target_folder(job: Job) -> Path:
    parent = job.raw.parent
    if re.fullmatch(r"Dataset\d{3}_\w+", job.output):
        return parent / job.output
    if not job.output.isdigit():
        raise InputError(f"-o is '{job.output}'; without -i it is a number such as 201, or DatasetXXX_Name.")
    existing = sorted(parent.glob(f"Dataset{int(job.output):03d}_*"))
    if existing:
        return existing[0]
    return parent / f"Dataset{int(job.output):03d}_{job.raw.name.split('_', 1)[1]}ErrorMaps"


def _claim(folder: Path, origin: dict[str, Any]) -> None:
    """Write down what a folder's maps are made from, and remove what a killed run left half-written.

    Raises:
        InputError: the folder holds something else, or maps of another model, other folds or other checkpoints.
    """
    record = folder / "error_maps.json"
    if folder.is_dir():
        remove_left_overs(folder)
        if not record.is_file() and any(folder.iterdir()):
            raise InputError(f"{folder} holds other files. Choose an empty or a new folder.")
    if record.is_file() and load_json(record) != json.loads(json.dumps(origin)):
        raise InputError(
            f"{folder} holds error maps of another model, other folds or networks that were trained again since "
            f"({record}). Choose another folder, or remove it."
        )
    save_json(origin, record)
