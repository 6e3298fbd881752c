"""What ``nnunet-anomaly error-maps`` does: find models and cases, run networks, gather maps."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_anomaly.error_maps import collect
from nnunet_anomaly.error_maps.model import PreparedCase, ReconstructionModel, case_maps, load_model, prepare_case
from nnunet_anomaly.error_maps.predict import save_in_original_geometry
from nnunet_anomaly.errors import InputError, LeakageError
from nnunet_anomaly.files import FATAL_ERRNOS, Outcome, find_dataset_folder, load_json, nnunet_folder, place, save_json


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
        ending = load_json(raw / "dataset.json")["file_ending"]
        if ending != ".nii.gz":
            raise InputError(
                f"{raw.name} has {ending} files. Error maps are made for .nii.gz datasets only; convert it."
            )
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

    def origin(self) -> dict[str, Any]:
        """What the maps are made from; written beside them, so that a rerun knows its own work."""
        return {"dataset": self.raw.name, "model": self.model.name, "masks_from": self.masks_from}

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
    trainer = recursive_find_trainer_class_by_name(job.model.name.split("__")[0])
    if getattr(trainer, "erase", False) and not job.masks_from:
        raise LeakageError(
            f"{trainer.__name__} erases what a mask marks, and in its validation that is the reference: such error "
            "maps tell S where the labels are, and new images have none. Give --masks-from (two passes), or take the "
            "maps of nnUNetTrainerInpaintingMimic."
        )
    collect.check_target(target, job.origin())
    splits = load_json(job.preprocessed / "splits_final.json")
    cases = collect.case_names(job.raw / "imagesTr", job.dataset_json["file_ending"])
    outcome, folds = Outcome(), []
    for fold, split in enumerate(splits):
        if job.masks_from:
            made, maps = _two_pass_fold(job, fold, split)
            outcome.failed.update(made.failed)
            folds.append(maps)
        else:
            folds.append(collect.fold_maps(job.model, fold, split, job.command(fold)))
    if outcome.failed:
        return outcome
    chosen = collect.out_of_fold(folds, cases, job.allow_leak)
    collect.write_derived_dataset(job.raw, target, chosen, splits, job.origin(), job.copy)
    outcome.done.extend(chosen)
    if job.test and (job.raw / "imagesTs").is_dir():
        tested = for_new_images(job, job.raw / "imagesTs", target / "imagesTs")
        outcome.done += tested.done
        outcome.skipped += tested.skipped
        outcome.failed.update(tested.failed)
        if (job.raw / "labelsTs").is_dir():
            for label in sorted((job.raw / "labelsTs").iterdir()):
                place(label, target / "labelsTs" / label.name, copy=job.copy)
    number = int(target.name[7:10])
    print(
        f"{target} is ready. Next:\n  nnUNetv2_plan_and_preprocess -d {number} -pl nnUNetPlannerAnomaly -c 3d_fullres\n"
        f"  nnUNetv2_train {number} 3d_fullres 0 -tr nnUNetTrainerAnomalyAware -p nnUNetAnomalyPlans"
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
    seen = set(collect.case_names(job.raw / "imagesTr", ending)) & set(cases)
    if seen and not job.allow_leak:
        raise LeakageError(
            f"{', '.join(sorted(seen))} are training cases of {job.raw.name}: the folds' networks saw them. Use their "
            "out-of-fold maps (without -i), or say --allow-leak."
        )
    model = load_model(job.model, job.folds, job.checkpoint)
    origin = job.origin() | {"folds": job.folds, "checkpoint": job.checkpoint}
    _claim(output, origin)

    def place_images(files: list[Path]) -> None:
        for path in files:
            place(path, output / path.name, copy=job.copy)

    with _masks(job, images, cases) as mask_of:
        return _run(
            job,
            model,
            [(case, job.images(images, case), mask_of(case)) for case in cases],
            lambda case, files: output / f"{case}_{len(files):04d}{ending}",
            place_images,
        )


def _target_folder(job: Job) -> Path:
    parent = job.raw.parent
    if job.output.startswith("Dataset"):
        return parent / job.output
    if not job.output.isdigit():
        raise InputError(f"-o is '{job.output}'; without -i it is a number such as 201, or DatasetXXX_Name.")
    existing = sorted(parent.glob(f"Dataset{int(job.output):03d}_*"))
    if existing:
        return existing[0]
    return parent / f"Dataset{int(job.output):03d}_{job.raw.name.split('_', 1)[1]}ErrorMaps"


def _claim(folder: Path, origin: dict[str, Any]) -> None:
    """Write down what a folder's maps are made from; refuse one that holds maps of another model."""
    record = folder / "error_maps.json"
    if record.is_file() and load_json(record) != origin:
        raise InputError(
            f"{folder} holds error maps of another model or other folds ({record}). Choose another folder."
        )
    save_json(origin, record)


def _two_pass_fold(job: Job, fold: int, split: collect.Split) -> tuple[Outcome, collect.FoldMaps]:
    """Maps of a fold's held-out cases by its G, with what a segmentation model of the same fold found erased."""
    assert job.masks_from is not None
    model = load_model(job.model, [fold], job.checkpoint)
    masks = _held_out_label_maps(job, fold, split)
    name = Path(job.masks_from).name
    folder = job.model / f"fold_{fold}" / f"validation_two_pass_{name}"
    _claim(folder, job.origin() | {"checkpoint": job.checkpoint, "training_cases": sorted(split["train"])})
    ending = job.dataset_json["file_ending"]
    cases = sorted(split["val"])
    outcome = _run(
        job,
        model,
        [(case, job.images(job.raw / "imagesTr", case), masks / f"{case}{ending}") for case in cases],
        lambda case, files: folder / "error_maps" / f"{case}{ending}",
    )
    maps = {case: folder / "error_maps" / f"{case}{ending}" for case in cases}
    return outcome, collect.FoldMaps(fold, maps, split["train"], folder)


def _held_out_label_maps(job: Job, fold: int, split: collect.Split) -> Path:
    """Folder with the label maps that a segmentation model predicted for exactly this fold's held-out cases."""
    assert job.masks_from is not None
    model = job.results / job.masks_from if (job.results / job.masks_from).is_dir() else Path(job.masks_from)
    ending = job.dataset_json["file_ending"]
    if not (model / "plans.json").is_file():
        if not model.is_dir():
            raise InputError(f"--masks-from: neither {job.results / job.masks_from} nor {model} is a folder.")
        return model
    folder = model / f"fold_{fold}" / "validation"
    predicted = {path.name.removesuffix(ending) for path in folder.glob(f"*{ending}")}
    if predicted != set(split["val"]):
        raise LeakageError(
            f"{folder} does not hold the label maps of exactly the held-out cases of fold {fold} "
            f"({len(predicted)} files for {len(split['val'])} cases). Train and validate that fold with this split."
        )
    return folder


@contextmanager
def _masks(job: Job, images: Path, cases: Sequence[str]) -> Iterator[Callable[[str], Path | None]]:
    """A function from a new case to the label map of what is to be erased, or to None without ``masks_from``."""
    if job.masks_from is None:
        yield lambda case: None
        return
    ending = job.dataset_json["file_ending"]
    model = job.results / job.masks_from if (job.results / job.masks_from).is_dir() else Path(job.masks_from)
    if not (model / "plans.json").is_file():
        yield lambda case: model / f"{case}{ending}"
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="nnunet_anomaly_masks_") as folder:
        _predict_label_maps(job, model, images, Path(folder))
        yield lambda case: Path(folder) / f"{case}{ending}"


def _predict_label_maps(job: Job, model: Path, images: Path, output: Path) -> None:
    """Run a segmentation model by nnU-Net's own predictor."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    on_device = job.device.type == "cuda"
    predictor = nnUNetPredictor(perform_everything_on_device=on_device, device=job.device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), job.folds, "checkpoint_final.pth")
    processes = max(1, job.num_processes)
    predictor.predict_from_files(
        str(images), str(output), num_processes_preprocessing=processes, num_processes_segmentation_export=processes
    )


def _run(
    job: Job,
    model: ReconstructionModel,
    cases: Sequence[tuple[str, list[Path], Path | None]],
    target_of: Callable[[str, list[Path]], Path],
    place_images: Callable[[list[Path]], None] | None = None,
) -> Outcome:
    """Prepare cases in the background, reconstruct them here, write them in the background; finished ones are kept."""
    from tqdm import tqdm

    todo = [(case, files, mask) for case, files, mask in cases if not target_of(case, files).is_file()]
    outcome = Outcome(skipped=[case for case, files, _ in cases if target_of(case, files).is_file()])
    with (
        ProcessPoolExecutor(max(1, job.num_processes), mp_context=get_context("spawn")) as pool,
        tqdm(total=len(cases), initial=len(outcome.skipped), desc="Error maps", unit="case") as bar,
    ):
        writing: list[tuple[str, Future[None]]] = []
        for case, files, preparing in _prepared_ahead(pool, model, todo, max(2, job.num_processes)):
            try:
                writing += [
                    (case, future) for future in _map_case(job, model, pool, files, target_of(case, files), preparing)
                ]
                if place_images:
                    place_images(files)
            except Exception as problem:
                _note_failure(outcome, case, problem)
            bar.update()
        for case, written in writing:
            try:
                written.result()
            except Exception as problem:
                _note_failure(outcome, case, problem)
    outcome.done = [case for case, _, _ in todo if case not in outcome.failed]
    return outcome


def _prepared_ahead(
    pool: ProcessPoolExecutor,
    model: ReconstructionModel,
    todo: Sequence[tuple[str, list[Path], Path | None]],
    ahead: int,
) -> Iterator[tuple[str, list[Path], Future[PreparedCase]]]:
    """Cases in order, each with its preprocessing under way; never more than ``ahead`` wait in memory."""
    waiting = deque(todo)
    started: deque[tuple[str, list[Path], Future[PreparedCase]]] = deque()
    while waiting or started:
        while waiting and len(started) < ahead:
            case, files, mask = waiting.popleft()
            arguments = (files, mask, model.plans, model.configuration, model.dataset_json)
            started.append((case, files, pool.submit(prepare_case, *arguments)))
        yield started.popleft()


def _map_case(
    job: Job,
    model: ReconstructionModel,
    pool: ProcessPoolExecutor,
    files: list[Path],
    target: Path,
    preparing: Future[PreparedCase],
) -> list[Future[None]]:
    """Reconstruct one case and have its maps written, the error map last: where it is, the case is finished."""
    case = preparing.result()
    error, reconstruction = case_maps(model, case, job.device)
    maps = [(error, [target])]
    if job.reconstructions:
        maps.insert(0, (reconstruction, [job.reconstructions / path.name for path in files]))
    return [
        pool.submit(save_in_original_geometry, values, paths, case.properties, model.plans, model.configuration.spacing)
        for values, paths in maps
    ]


def _note_failure(outcome: Outcome, case: str, problem: Exception) -> None:
    """Name a failed case and go on; but stop where no case after it could succeed either."""
    if isinstance(problem, OSError) and problem.errno in FATAL_ERRNOS:
        raise problem
    outcome.failed[case] = f"{type(problem).__name__}: {problem}"
