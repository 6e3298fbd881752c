"""Error maps case by case: prepared in the background, reconstructed here, written in the background."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from nnunet_anomaly.error_maps.model import PreparedCase, ReconstructionModel, case_maps, prepare_case
from nnunet_anomaly.error_maps.predict import save_in_original_geometry
from nnunet_anomaly.files import (
    FATAL_ERRNOS,
    Outcome,
    is_up_to_date,
    load_json,
    open_pool,
    save_json,
)
from nnunet_anomaly.workflow.error_map_job import Case, Job

RECONSTRUCTIONS = "reconstructions"
PlaceImages = Callable[[list[Path]], None]


def map_cases(
    job: Job,
    model: ReconstructionModel,
    cases: Sequence[Case],
    place_images: Callable[[list[Path]], None] | None = None,
) -> Outcome:
    """Prepare cases in the background, reconstruct them here, write them in the background; finished ones are kept."""
    from tqdm import tqdm

    todo = [case for case in cases if not is_finished(job, case)]
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


def is_finished(job: Job, case: Case) -> bool:
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
