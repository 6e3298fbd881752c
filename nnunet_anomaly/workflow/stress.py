"""The stress test: held-out cases are corrupted, predicted by every model, and measured.

Images stay in memory, so that a test of hundreds of corrupted volumes takes no room on the disk. A record of every
prediction is kept, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_anomaly.evaluation.cohort import json_safe
from nnunet_anomaly.evaluation.stress_case import corrupted_case_figures
from nnunet_anomaly.files import FATAL_ERRNOS, is_up_to_date, load_json, made_from, open_pool, save_json
from nnunet_anomaly.label_maps import as_label_map
from nnunet_anomaly.phantoms.stress_corruptions import Corrupted
from nnunet_anomaly.postprocessing.components import keep_components
from nnunet_anomaly.workflow.stress_cases import read_case
from nnunet_anomaly.workflow.stress_models import CLEANED, StressModel
from nnunet_anomaly.workflow.stress_plan import CaseFiles, Group, StressTest
from nnunet_anomaly.workflow.stress_predictor import Predictor

RECORDS = "cases"


def record_path(output: Path, model: str, case: str, corruption: str, severity: float) -> Path:
    """Where the figures of one prediction are kept."""
    return output / RECORDS / model / case / f"{corruption}_{severity:g}.json"


def run_stress_test(
    test: StressTest,
    models: Sequence[StressModel],
    groups: Sequence[Group],
    reader: Any,
    output: Path,
    num_processes: int,
    device: torch.device,
) -> dict[str, str]:
    """Corrupt, predict and measure what is not done yet; returns why some cases failed, by model, case and grade."""
    from tqdm import tqdm

    failed: dict[str, str] = {}
    total = sum(len(group.cases) for group in groups) * len(test.grades) * len(models)
    with open_pool(num_processes) as pool, tqdm(total=total, desc="Stress test", unit="prediction") as bar:
        for group in groups:
            sources = {model.name: model.checkpoints(group.folds) for model in models}
            predictors: dict[str, Predictor] = {}
            for files in group.cases:
                todo = _todo(test, models, sources, files, output)
                bar.update(len(test.grades) * len(models) - sum(map(len, todo.values())))
                for model in models:  # loaded once a group, and only where there is something to do
                    if model.name not in predictors and any(model in waiting for waiting in todo.values()):
                        predictors[model.name] = Predictor.load(model, group.folds, device, test.mirroring)
                failed |= _run_case(test, files, todo, predictors, sources, reader, output, pool, bar)
    return failed


def _source(test: StressTest, files: CaseFiles, checkpoints: Sequence[Path], grade: tuple[str, float]) -> Any:
    return made_from([*files.images, files.labels, *checkpoints], test.settings(*grade))


def _todo(
    test: StressTest,
    models: Sequence[StressModel],
    sources: Mapping[str, Sequence[Path]],
    files: CaseFiles,
    output: Path,
) -> dict[tuple[str, float], list[StressModel]]:
    """Models without figures of a case, by grade; grades that are finished are left out."""
    todo = {
        grade: [
            model
            for model in models
            if not is_up_to_date(
                record_path(output, model.name, files.name, *grade), _source(test, files, sources[model.name], grade)
            )
        ]
        for grade in test.grades
    }
    return {grade: waiting for grade, waiting in todo.items() if waiting}


def _run_case(
    test: StressTest,
    files: CaseFiles,
    todo: Mapping[tuple[str, float], Sequence[StressModel]],
    predictors: Mapping[str, Predictor],
    sources: Mapping[str, Sequence[Path]],
    reader: Any,
    output: Path,
    pool: Executor,
    bar: Any,
) -> dict[str, str]:
    """All grades of one case; what fails is named."""
    failed: dict[str, str] = {}
    if not todo:
        return failed
    try:
        case, properties = read_case(files, test, reader)
    except Exception as problem:
        bar.update(sum(map(len, todo.values())))
        _note_failure(failed, files.name, problem)
        return failed
    measuring: deque[tuple[str, Future[None]]] = deque()
    for grade, waiting in todo.items():
        name = f"{files.name}, {grade[0]} {grade[1]:g}"
        try:
            corrupted = test.corrupted(case, *grade)
        except Exception as problem:
            _note_failure(failed, name, problem)
            bar.update(len(waiting))
            continue
        image = stacked(corrupted)
        for model in waiting:
            try:
                prediction = predictors[model.name].predict(image, properties)
                record = record_path(output, model.name, files.name, *grade)
                source = _source(test, files, sources[model.name], grade)
                work = (test, corrupted.labels, prediction, corrupted.anomaly, case.spacing_mm, record, source)
                measuring.append((f"{model.name}: {name}", pool.submit(measure, *work, corrupted.record)))
            except Exception as problem:
                _note_failure(failed, f"{model.name}: {name}", problem)
            bar.update()
            failed |= _settled(measuring, at_most=16)
    return failed | _settled(measuring)


def stacked(corrupted: Corrupted) -> np.ndarray:
    """All channels, float32 (C, ...), as nnU-Net's reader gives them."""
    return np.stack([channel.astype(np.float32) for channel in corrupted.images])


def _settled(measuring: deque[tuple[str, Future[None]]], at_most: int = 0) -> dict[str, str]:
    failed: dict[str, str] = {}
    while len(measuring) > at_most:
        name, future = measuring.popleft()
        try:
            future.result()
        except Exception as problem:
            _note_failure(failed, name, problem)
    return failed


def _note_failure(failed: dict[str, str], name: str, problem: Exception) -> None:
    """Name what failed and go on; but stop where nothing after it could succeed either."""
    if isinstance(problem, BrokenProcessPool) or (isinstance(problem, OSError) and problem.errno in FATAL_ERRNOS):
        raise problem
    failed[name] = f"{type(problem).__name__}: {problem}"


def measure(
    test: StressTest,
    reference: np.ndarray,
    prediction: np.ndarray,
    anomaly: np.ndarray,
    spacing_mm: Sequence[float],
    record: Path,
    source: Any,
    drawn: Mapping[str, Any],
) -> None:
    """Worker: figures of one prediction, and of what cleaning makes of it, into its record."""
    # a single slice is measured as the 2-D image that it is: as a volume, all of a structure would be its surface
    shape = tuple(size for size in reference.shape if size > 1)
    spacing_mm = [mm for mm, size in zip(spacing_mm, reference.shape, strict=True) if size > 1]
    reference, prediction, anomaly = (each.reshape(shape) for each in (reference, prediction, anomaly))
    label_map = as_label_map(prediction, "prediction")
    known = (anomaly, spacing_mm, test.structures, test.nsd_tolerance_mm)
    found = {"structures": corrupted_case_figures(reference, label_map, *known)}
    if test.cleaned_share is not None:
        cleaned = keep_components(label_map, spacing_mm, min_share_of_largest=test.cleaned_share)
        found["cleaned"] = corrupted_case_figures(reference, cleaned, *known)
    save_json(json_safe({"made_from": source, **found, "corruption": dict(drawn)}), record)


def collect_rows(
    test: StressTest, models: Sequence[StressModel], groups: Sequence[Group], output: Path
) -> list[dict[str, Any]]:
    """A row for every model, grade, case and structure that is finished; cleaned ones under a name of their own."""
    rows = []
    for model, group, files, grade in _predictions(test, models, groups):
        path = record_path(output, model.name, files.name, *grade)
        checkpoints = model.checkpoints(group.folds)
        if not is_up_to_date(path, _source(test, files, checkpoints, grade)):
            continue
        record = load_json(path)
        for key, suffix in (("structures", ""), ("cleaned", CLEANED)):
            for structure, figures in record.get(key, {}).items():
                what = {"model": model.name + suffix, "corruption": grade[0], "severity": grade[1]}
                where = {"case": files.name, "fold": group.fold, "structure": structure}
                rows.append(what | where | _with_nan(figures))
    return sorted(rows, key=lambda row: str(row["model"]).endswith(CLEANED))  # stable: cleaned ones come last


def _predictions(
    test: StressTest, models: Sequence[StressModel], groups: Sequence[Group]
) -> Iterator[tuple[StressModel, Group, CaseFiles, tuple[str, float]]]:
    for model in models:
        for group in groups:
            for files in group.cases:
                for grade in test.grades:
                    yield model, group, files, grade


def _with_nan(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a record; JSON has no NaN and no infinity (distances to an empty structure)."""
    distances = ("asd_mm", "hd_mm", "hd95_mm")
    empty = figures["empty"] in ("reference", "prediction")
    return {
        key: (np.inf if empty and key in distances else np.nan) if value is None else value
        for key, value in figures.items()
    }


def say_what_is_compared(models: Sequence[StressModel], groups: Sequence[Group], test: StressTest) -> None:
    """Print what is about to be done."""
    cases = sum(len(group.cases) for group in groups)
    print(
        f"{cases} cases ({', '.join(f'{len(group.cases)} by fold {group.fold}' for group in groups)}), "
        f"{len(test.grades)} versions of each, {len(models)} models: {cases * len(test.grades) * len(models)} "
        "predictions.",
        file=sys.stderr,
    )
