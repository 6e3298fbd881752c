"""What ``nnunet-anomaly t2`` does: one knee, or all knees of a dataset."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import (
    FATAL_ERRNOS,
    Outcome,
    is_up_to_date,
    remove_left_overs,
    run_cases,
    save_json,
    save_volume,
)
from nnunet_anomaly.workflow.t2_knee import (
    PROBABILITY,
    PROBABILITY_RECORD,
    Knee,
    Method,
    is_finished,
    probability_source,
)
from nnunet_anomaly.workflow.t2_model import CartilageModel, Predictor
from nnunet_anomaly.workflow.t2_results import forget, measure_and_save
from nnunet_anomaly.workflow.t2_series import Series, check_pair, knee_name, read_series


def open_knee(
    sources: Sequence[Path], masks: Sequence[Path], output: Path, side: str | None, method: Method
) -> tuple[Knee, list[Series]]:
    """One knee as the command line names it, and its series, which are looked at first.

    Raises:
        AnomalyError: see ``read_series`` and ``check_pair``; masks that are not there, or a model of more echoes.
    """
    series = [read_series(source, side) for source in sources]
    if len(series) == 2:
        check_pair(*series)
    if missing := [path for path in masks if not path.is_file()]:
        raise InputError(f"{missing[0]} does not exist.")
    for each in series:
        if method.model:
            method.model.check_series(len(each.stack.images), each.source)
    first = series[0].stack
    return Knee(knee_name(first.subject, first.side), tuple(sources), tuple(masks), output, side), series


def measure_one(knee: Knee, series: Sequence[Series], method: Method, device: str) -> bool:
    """Everything about one knee; False when it is finished already.

    Raises:
        AnomalyError: see ``t2_knee.measure``.
    """
    if is_finished(knee, method):
        return False
    remove_left_overs(knee.output)
    if method.model:
        forget(knee)  # else a prediction that fails would leave the results of an earlier run
        predictor = None
        for place, each in enumerate(series):
            if not _is_predicted(knee, place, method.model):
                predictor = predictor or Predictor(method.model, device)
                predict_probability(predictor, each, knee.folder(place))
    return measure_and_save(knee, method, series)


def measure_all(knees: Sequence[Knee], method: Method, device: str, num_processes: int) -> Outcome:
    """Every knee; one that fails is named and the others go on."""
    for knee in knees:
        remove_left_overs(knee.output)
    failed = predict_all(knees, method, device) if method.model else {}
    work = [(knee.name, (knee, method)) for knee in knees if knee.name not in failed]
    outcome = run_cases(measure_and_save, work, num_processes, "T2")
    together = failed | outcome.failed
    return Outcome(
        outcome.done, outcome.skipped, {knee.name: together[knee.name] for knee in knees if knee.name in together}
    )


def predict_all(knees: Sequence[Knee], method: Method, device: str) -> dict[str, str]:
    """Probability maps of all knees that are not finished, by a model that is loaded once; returns why some failed.

    Raises:
        OSError: the disk is full or read-only.
    """
    from tqdm import tqdm

    model, failed, predictor = method.model, {}, None
    assert model is not None
    unfinished = [knee for knee in knees if not is_finished(knee, method)]
    for knee in unfinished:
        forget(knee)
    todo = [
        (knee, place)
        for knee in unfinished
        for place in range(len(knee.sources))
        if not _is_predicted(knee, place, model)
    ]
    for knee, place in tqdm(todo, desc="cartilage", unit="series", disable=not todo):
        if knee.name in failed:
            continue
        try:
            series = read_series(knee.sources[place], knee.side)
            model.check_series(len(series.stack.images), series.source)
            predictor = predictor or Predictor(model, device)
            predict_probability(predictor, series, knee.folder(place))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (*FATAL_ERRNOS, errno.EACCES):
                raise
            failed[knee.name] = f"{type(error).__name__}: {error}"
    return failed


def _is_predicted(knee: Knee, place: int, model: CartilageModel) -> bool:
    folder = knee.folder(place)
    record = folder / PROBABILITY_RECORD
    return (folder / PROBABILITY).is_file() and is_up_to_date(record, probability_source(knee.sources[place], model))


def predict_probability(predictor: Predictor, series: Series, folder: Path) -> None:
    """Write the probability map of a series, and last what it is made from."""
    source = probability_source(series.source, predictor.model)
    (folder / PROBABILITY_RECORD).unlink(missing_ok=True)
    grid = series.stack.images[0]
    probability = predictor.probability(series.stack)
    save_volume(probability, folder / PROBABILITY, grid.GetSpacing(), grid.GetOrigin(), grid.GetDirection())
    save_json({"made_from": source}, folder / PROBABILITY_RECORD)
