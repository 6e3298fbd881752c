"""What ``nnunet-anomaly error-maps`` does: find models and cases, run networks, gather maps."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_anomaly.dataset_roles import channel_names
from nnunet_anomaly.error_maps import collect
from nnunet_anomaly.error_maps.model import PreparedCase, ReconstructionModel, case_maps, load_model, prepare_case
from nnunet_anomaly.error_maps.predict import map_file_ending, save_in_original_geometry
from nnunet_anomaly.error_maps.provenance import check_split
from nnunet_anomaly.errors import InputError, LeakageError, MissingCheckpointError
from nnunet_anomaly.files import (
    FATAL_ERRNOS,
    Outcome,
    find_dataset_folder,
    is_up_to_date,
    load_json,
    made_from,
    nnunet_folder,
    open_pool,
    place,
    read_image,
    remove_left_overs,
    save_json,
    sha256_of,
)
from nnunet_anomaly.settings import BLOCK

MASKS_CHECKPOINT = "checkpoint_final.pth"
IMAGE_FOLDERS = ("imagesTr", "imagesTs", "labelsTr", "labelsTs")
RECORDS = "made_from"  # folder with a record for every finished case
RECONSTRUCTIONS = "reconstructions"
PlaceImages = Callable[[list[Path]], None]


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
    folds: list[int] | None
    checkpoint: str
    copy: bool
    test: bool
    reconstructions: Path | None
    allow_leak: bool
    num_processes: int
    device: torch.device

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

    def origin(self, folds: Sequence[int], masks: Sequence[Path] = ()) -> dict[str, Any]:
        """Which networks the maps are by; written beside them, so that a rerun knows its own work from another's.

        Args:
            folds: of the model.
            masks: files that say what is erased in all cases: checkpoints that predict it, or label maps.
        """
        folder = self.masks_folder()
        checkpoints = [self.model / f"fold_{fold}" / self.checkpoint for fold in folds]
        return {
            "dataset": self.raw.name,
            "model": self.model.name,
            "checkpoint": self.checkpoint,
            "checkpoints_sha256": [sha256_of([path]) if path.is_file() else None for path in checkpoints],
            # the region that two passes erase depends on them
            "settings": load_json(self.model / "plans.json").get(BLOCK, {}).get("roi"),
            "masks_from": folder.name if folder else None,
            "masks_sha256": sha256_of(masks) if masks else None,
        }

    def all_folds(self) -> list[int]:
        """The folds asked for, else all that have the checkpoint."""
        return sorted(self.folds) if self.folds else _folds_of(self.model, self.checkpoint)

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
    masks = [_held_out_label_maps(job, fold, split) for fold, split in enumerate(splits)] if job.masks_from else []
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
    _check_masks_are_needed(job, model)
    seen = (model.learnt_from | set(collect.case_names(job.raw / "imagesTr", ending))) & set(cases)
    if seen and not job.allow_leak:
        raise LeakageError(
            f"{', '.join(sorted(seen))} are training cases of {job.raw.name}: the folds' networks saw them. Use their "
            "out-of-fold maps (without -i), or say --allow-leak."
        )
    origin = job.origin(folds, _mask_checkpoints(job)) | {"folds": folds}
    _claim(output, origin)
    todo = []
    for name in cases:
        files, mask = job.images(images, name), _given_mask(job, name)
        source = made_from([*files, *([mask] if mask and mask.is_file() else [])], origin)
        target, record = output / f"{name}_{len(files):04d}{ending}", output / RECORDS / f"{name}.json"
        todo.append(Case(name, files, mask, target, record, source))

    def place_images(files: list[Path]) -> None:
        for path in files:
            place(path, output / path.name, copy=job.copy)

    for case in todo:
        if _is_finished(job, case):
            for path in case.images:
                placed = output / path.name
                if not placed.exists() or (job.copy and placed.is_symlink()):
                    place(path, placed, copy=job.copy)
    with _masks_predicted(job, todo) as with_masks:
        return _run(job, model, with_masks, place_images)


def _check_reconstructions_folder(job: Job, *taken: Path) -> None:
    """Reconstructions are named like the images: never write them over these.

    Raises:
        InputError: the folder for reconstructions is one of those that are taken.
    """
    folder = job.reconstructions
    if folder and folder.resolve() in {path.resolve() for path in taken}:
        raise InputError(f"--save-reconstructions names {folder}, which is for images. Choose a folder of its own.")


def _check_masks_are_needed(job: Job, model: ReconstructionModel) -> None:
    if job.masks_from and not model.needs_masks:
        raise InputError(
            f"{model.trainer} takes no mask; --masks-from goes with nnUNetTrainerInpainting. Leave one of them out."
        )


def _folds_of(model: Path, checkpoint: str) -> list[int]:
    """Folds of a model folder that have a checkpoint."""
    return sorted(int(path.parent.name[5:]) for path in model.glob(f"fold_[0-9]*/{checkpoint}"))


def _mask_checkpoints(job: Job) -> list[Path]:
    """Checkpoints of the segmentation model that says what is erased; none without, or with a folder of label maps."""
    folder = job.masks_folder()
    if folder is None or not (folder / "plans.json").is_file():
        return []
    folds = sorted(job.folds) if job.folds else _folds_of(folder, MASKS_CHECKPOINT)
    return [path for fold in folds if (path := folder / f"fold_{fold}" / MASKS_CHECKPOINT).is_file()]


def _given_mask(job: Job, case: str) -> Path | None:
    """Label map of a case in a folder of them; None without, or where a segmentation model predicts it."""
    folder = job.masks_folder()
    if folder is None or (folder / "plans.json").is_file():
        return None
    return folder / f"{case}{job.dataset_json['file_ending']}"


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
    _check_masks_are_needed(job, model)
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
    outcome = _run(job, model, cases)
    maps = {case.name: case.target for case in cases}
    return outcome, collect.FoldMaps(fold, maps, sorted(model.learnt_from), folder, model.pretrained)


def _held_out_label_maps(job: Job, fold: int, split: collect.Split) -> dict[str, Path]:
    """By case, the label maps that a segmentation model predicted for exactly this fold's held-out cases.

    Raises:
        InputError: a folder of label maps lacks one.
        LeakageError: they are of other cases, or nothing says which network they come from (a folder of label maps is
            taken with ``--allow-leak`` only).
    """
    model = job.masks_folder()
    assert model is not None
    ending = job.dataset_json["file_ending"]
    if not (model / "plans.json").is_file():
        if not job.allow_leak:
            raise LeakageError(
                f"{model} is no model folder, so that nothing says which network its label maps come from: reference "
                "labels, or maps of a network that saw these cases, would leak into the error maps. Name a model "
                "(TRAINER__PLANS__CONFIGURATION), or say --allow-leak."
            )
        paths = {case: model / f"{case}{ending}" for case in sorted(split["val"])}
        missing = [path.name for path in paths.values() if not path.is_file()]
        if missing:
            raise InputError(f"--masks-from: {model} lacks {', '.join(missing)}.")
        return paths
    folder = model / f"fold_{fold}" / "validation"
    predicted = {path.name.removesuffix(ending) for path in folder.glob(f"*{ending}")}
    if predicted != set(split["val"]):
        raise LeakageError(
            f"{folder} does not hold the label maps of exactly the held-out cases of fold {fold} "
            f"({len(predicted)} files for {len(split['val'])} cases). Train and validate that fold with this split."
        )
    return {case: folder / f"{case}{ending}" for case in sorted(split["val"])}


@contextmanager
def _masks_predicted(job: Job, cases: Sequence[Case]) -> Iterator[list[Case]]:
    """The cases, those that are not finished with a label map that a segmentation model predicts, if one is to."""
    model = job.masks_folder()
    todo = [case for case in cases if not _is_finished(job, case)]
    if model is None or not (model / "plans.json").is_file() or not todo:
        yield list(cases)
        return
    with tempfile.TemporaryDirectory(prefix="nnunet_anomaly_masks_") as folder:
        _predict_label_maps(job, model, [case.images for case in todo if _readable(case.images)], Path(folder))
        ending = job.dataset_json["file_ending"]
        yield [dataclasses.replace(case, mask=Path(folder) / f"{case.name}{ending}") for case in cases]


def _readable(files: Sequence[Path]) -> bool:
    """Whether nnU-Net's predictor can be given these images; what is wrong with others is said later."""
    try:
        for path in files:
            read_image(path)
    except InputError:
        return False
    return True


def _predict_label_maps(job: Job, model: Path, images: Sequence[Sequence[Path]], output: Path) -> None:
    """Run a segmentation model by nnU-Net's own predictor."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    on_device = job.device.type == "cuda"
    predictor = nnUNetPredictor(perform_everything_on_device=on_device, device=job.device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), job.folds, MASKS_CHECKPOINT)
    channels = len(channel_names(job.dataset_json))
    complete = [[str(path) for path in files] for files in images if len(files) == channels]
    suffix = len(f"_0000{job.dataset_json['file_ending']}")
    names = [str(output / Path(files[0]).name[:-suffix]) for files in complete]
    processes = max(1, job.num_processes)
    if complete:
        predictor.predict_from_files(
            complete, names, num_processes_preprocessing=processes, num_processes_segmentation_export=processes
        )


def _run(
    job: Job,
    model: ReconstructionModel,
    cases: Sequence[Case],
    place_images: Callable[[list[Path]], None] | None = None,
) -> Outcome:
    """Prepare cases in the background, reconstruct them here, write them in the background; finished ones are kept."""
    from tqdm import tqdm

    todo = [case for case in cases if not _is_finished(job, case)]
    for case in todo:  # what is left of it is of another image, label map or network
        case.record.unlink(missing_ok=True)
        case.target.unlink(missing_ok=True)
    finished = {case.name for case in cases} - {case.name for case in todo}
    outcome = Outcome(skipped=[case.name for case in cases if case.name in finished])
    with (
        open_pool(job.num_processes) as pool,
        tqdm(total=len(cases), initial=len(outcome.skipped), desc="Error maps", unit="case") as bar,
    ):
        writing: deque[tuple[str, Future[None]]] = deque()
        for case, preparing in _prepared_ahead(pool, model, todo, max(2, job.num_processes)):
            try:
                writing.append((case.name, _map_case(job, model, pool, case, preparing, place_images)))
            except Exception as problem:
                _note_failure(outcome, case.name, problem)
            _settle(outcome, writing, at_most=4 * max(1, job.num_processes))
            bar.update()
        _settle(outcome, writing)
    outcome.done = [case.name for case in todo if case.name not in outcome.failed]
    return outcome


def _is_finished(job: Job, case: Case) -> bool:
    """Whether all that is asked for of a case is there, made from what is there now."""
    if not (case.target.is_file() and is_up_to_date(case.record, case.source)):
        return False
    folder = job.reconstructions
    return folder is None or (
        load_json(case.record)[RECONSTRUCTIONS] == str(folder.resolve())
        and all((folder / path.name).is_file() for path in case.images)
    )


def _prepared_ahead(
    pool: Executor, model: ReconstructionModel, todo: Sequence[Case], ahead: int
) -> Iterator[tuple[Case, Future[PreparedCase]]]:
    """Cases in order, each with its preprocessing under way; never more than ``ahead`` wait in memory."""
    waiting = deque(todo)
    started: deque[tuple[Case, Future[PreparedCase]]] = deque()
    while waiting or started:
        while waiting and len(started) < ahead:
            case = waiting.popleft()
            arguments = (case.images, case.mask, model.plans, model.configuration, model.dataset_json)
            started.append((case, pool.submit(prepare_case, *arguments)))
        yield started.popleft()


def _map_case(
    job: Job,
    model: ReconstructionModel,
    pool: Executor,
    case: Case,
    preparing: Future[PreparedCase],
    place_images: PlaceImages | None,
) -> Future[None]:
    """Reconstruct one case and have its maps written, and then the record that says that it is finished."""
    prepared = preparing.result()
    error, reconstruction = case_maps(model, prepared, job.device)
    if place_images:
        place_images(case.images)
    maps = [(error, [case.target])]
    folder = job.reconstructions
    if folder:
        maps.insert(0, (reconstruction, [folder / path.name for path in case.images]))
    record = {"made_from": case.source, RECONSTRUCTIONS: str(folder.resolve()) if folder else None}
    grid = (prepared.properties, model.plans, model.configuration.spacing)
    return pool.submit(_write_maps, maps, *grid, case.record, record)


def _write_maps(
    maps: Sequence[tuple[torch.Tensor, list[Path]]],
    properties: Mapping[str, Any],
    plans: Any,
    spacing_mm: Any,
    record_path: Path,
    record: Mapping[str, Any],
) -> None:
    """Worker: write the maps of one case, then its record."""
    for values, paths in maps:
        save_in_original_geometry(values, paths, properties, plans, spacing_mm)
    save_json(dict(record), record_path)


def _settle(outcome: Outcome, writing: deque[tuple[str, Future[None]]], at_most: int = 0) -> None:
    """Wait until at most so many writes are left, so that they do not pile up and a full disk is noticed soon."""
    while writing and (len(writing) > at_most or writing[0][1].done()):
        case, written = writing.popleft()
        try:
            written.result()
        except Exception as problem:
            _note_failure(outcome, case, problem)


def _note_failure(outcome: Outcome, case: str, problem: Exception) -> None:
    """Name a failed case and go on; but stop where no case after it could succeed either."""
    if isinstance(problem, BrokenProcessPool) or (isinstance(problem, OSError) and problem.errno in FATAL_ERRNOS):
        raise problem
    outcome.failed[case] = f"{type(problem).__name__}: {problem}"
