"""Thresholds: searched on validation cases, read from a file, the oracle's, and those of FROC curves."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.cli.output import print_failures
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.evaluation.anomaly import count_healthy, split_scores
from nnunet_anomaly.evaluation.thresholds import (
    THRESHOLD_DEFINITIONS,
    FoundThreshold,
    check_lesions,
    greedy_levels,
    greedy_threshold,
    warnings_of,
)
from nnunet_anomaly.files import load_json
from nnunet_anomaly.workflow.anomaly_cases import read_case
from nnunet_anomaly.workflow.anomaly_cohort import BASELINES, FILTERED, CaseFiles, Cohort, refuse_common_cases
from nnunet_anomaly.workflow.anomaly_pooling import Pooled, arrays_in_turn, measure_cases

# false-positive rates over voxels, four a decade up to 1 %: the thresholds of FROC curves are those that reach them.
# Beyond, components merge, so that there would be fewer false positives the more is called anomalous.
FROC_VOXEL_RATES = 10.0 ** np.arange(-6, -1.9, 0.25)


def search_thresholds(validation: Cohort, args: argparse.Namespace) -> dict[str, Any]:
    """Both thresholds of every method, from validation cases alone, as they are written to thresholds.json.

    A method has none where none of its validation cases could be evaluated.

    Raises:
        InputError: the validation cases of a method have no lesion voxel, or none of any method could be evaluated.
    """
    print("Validation cases:")
    pooled, pooled_by = measure_cases(validation, args)
    if not pooled:
        print_failures(validation.outcome)
        raise InputError(f"{args.validation_ref}: none of the validation cases could be evaluated.")
    searched: dict[str, Any] = {}
    for method, found in pooled.items():
        cases = validation.finished(method)
        try:
            check_lesions(found.figures["lesion_voxels"])
            exact = _best(found)
            highest = max(validation.figures(method, case)["highest_score"] for case in cases)
            upper = max(1.0, highest) if args.greedy_upper is None else args.greedy_upper
            greedy = _search_greedily(validation, method, upper, found.figures["lesion_voxels"], args)
        except InputError as error:
            print_failures(validation.outcome)
            raise type(error)(f"{args.validation_ref}, {method}: {error}") from None
        thresholds = {"validation_greedy": greedy, "validation_exact": exact}
        searched[method] = {
            "cases": list(cases),
            "conditions": validation.methods[method].conditions(args),
            "greedy_interval": [0.0, upper],
            "exact_search": pooled_by,
            "thresholds": {kind: asdict(threshold) for kind, threshold in thresholds.items()},
            "warnings": warnings_of(thresholds),
        }
    return searched


def _search_greedily(
    validation: Cohort, method: str, upper: float, lesion_voxels: int, args: argparse.Namespace
) -> FoundThreshold:
    levels = greedy_levels(0.0, upper)
    counts = np.zeros((2, levels.size), dtype=np.int64)
    with tempfile.TemporaryDirectory(prefix=".partial_", dir=validation.folder) as name:
        np.save(Path(name) / "thresholds.npy", levels)
        files = list(validation.finished(method).values())
        for found in arrays_in_turn(_write_level_counts, files, Path(name), args.np, f"thresholds {method}"):
            counts += found
    return greedy_threshold(levels, counts[0], counts[1], lesion_voxels)


def _write_level_counts(files: CaseFiles, folder: Path, target: Path) -> None:
    """Worker: lesion and other voxels of one case that score at least every level."""
    levels = np.load(folder / "thresholds.npy", allow_pickle=False)
    np.save(target, np.stack([count_healthy(part, levels)[0] for part in split_scores(*read_case(files)[:3])]))


def load_thresholds(cohort: Cohort, args: argparse.Namespace) -> dict[str, Any]:
    """Thresholds of an earlier run.

    Raises:
        InputError: the file is not one of ours, has no thresholds for a method, or they were searched otherwise.
        LeakageError: they were searched on cases that are to be evaluated.
    """
    content = load_json(args.threshold_file)
    methods = content.get("methods") if isinstance(content, dict) else None
    if not isinstance(methods, dict) or not all(isinstance(found, dict) for found in methods.values()):
        raise _not_ours(args.threshold_file)
    for method, source in cohort.methods.items():
        if method in BASELINES and method not in methods:
            continue
        if method not in methods:
            advice = "give --no-filters" if method.endswith(FILTERED) else "see --names"
            known = ", ".join(methods)
            raise InputError(f"{args.threshold_file} has no thresholds for '{method}', only for {known}; {advice}.")
        found = methods[method]
        if not {"cases", "conditions", "thresholds"} <= set(found):
            raise InputError(f"{args.threshold_file} does not say what its thresholds hold for: search them again.")
        if not _is_sound(**{name: found[name] for name in ("cases", "conditions", "thresholds")}):
            raise _not_ours(args.threshold_file)
        _refuse_other_conditions(method, found["conditions"], source.conditions(args), args.threshold_file)
        refuse_common_cases(cohort, found["cases"], args)
    return methods


def _not_ours(threshold_file: Path) -> InputError:
    return InputError(f"{threshold_file} is no thresholds.json that evaluate-anomaly wrote, or it was changed.")


def _is_sound(cases: Any, conditions: Any, thresholds: Any) -> bool:
    """Whether what a file says of a method has the form that ``search_thresholds`` gives it."""
    return (
        isinstance(cases, list)
        and all(isinstance(case, str) for case in cases)
        and isinstance(conditions, dict)
        and isinstance(thresholds, dict)
        and set(thresholds) <= set(THRESHOLD_DEFINITIONS) - {"oracle"}
        and all(
            isinstance(values, dict)
            and set(values) == {field.name for field in fields(FoundThreshold)}
            and all(type(value) in (int, float) and math.isfinite(value) for value in values.values())
            for values in thresholds.values()
        )
    )


def _refuse_other_conditions(
    method: str, searched: Mapping[str, Any], asked: Mapping[str, Any], threshold_file: Path
) -> None:
    differing = [name for name, value in asked.items() if searched.get(name, "unknown") != value]
    if differing:
        pairs = "; ".join(f"{name} was {searched.get(name, 'unknown')}, is {asked[name]}" for name in differing)
        raise InputError(
            f"{threshold_file}: thresholds of '{method}' were searched under other conditions ({pairs}). Evaluate as "
            "they were searched, or search them again."
        )


def thresholds_of(pooled: Pooled, searched: Mapping[str, Any]) -> dict[str, FoundThreshold]:
    """Thresholds of a method by kind: what was searched of it, if any, and the oracle's where there are lesions."""
    found = {kind: FoundThreshold(**values) for kind, values in searched.get("thresholds", {}).items()}
    return found | ({"oracle": _best(pooled)} if pooled.figures["lesion_voxels"] else {})


def _best(pooled: Pooled) -> FoundThreshold:
    return FoundThreshold(pooled.figures["best_dice_threshold_pooled"], pooled.figures["best_dice_pooled"])


def froc_thresholds_of(pooled: Pooled) -> list[float]:
    """Edges of the histogram that at most the rates of other voxels reach, highest first.

    The highest edge is one of them unless even that is reached by more: then there is none.
    """
    healthy = pooled.histogram.healthy
    at_least = np.cumsum(healthy[::-1])[::-1]
    occupied = np.flatnonzero(pooled.histogram.lesion + healthy)
    shares = at_least[occupied] / max(at_least[0], 1)
    places = {int(np.argmax(shares <= rate)) for rate in FROC_VOXEL_RATES if (shares <= rate).any()}
    if places:
        places.add(occupied.size - 1)
    values = pooled.histogram.lowest_scores(occupied[sorted(places, reverse=True)])
    return [float(value) for value in values]
