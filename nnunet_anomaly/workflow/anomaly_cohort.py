"""What there is to evaluate: methods, cases, and the files of each."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnunet_anomaly.cli.filter_residuals import filters_of
from nnunet_anomaly.errors import InputError, LeakageError
from nnunet_anomaly.files import Outcome, load_json, made_from
from nnunet_anomaly.label_maps import files_by_case
from nnunet_anomaly.workflow.anomaly_stale import remove_maps
from nnunet_anomaly.workflow.evaluate import add_missing

if TYPE_CHECKING:
    from nnunet_anomaly.postprocessing.residual_filters import ResidualFilters


# baselines without a network, and what is anomalous to them
BASELINES = {"raw_intensity": 1, "raw_intensity_dark": -1}
FILTERED = "_filtered"


class CaseFiles(NamedTuple):
    """Files of one case and one method, and how it is looked at; without ``mask`` the whole image counts."""

    truth: Path
    scores: Path
    mask: Path | None
    mask_labels: tuple[int, ...]
    baseline_sign: int
    histogram: bool
    slice_plane: str

    def source(self, **more: Any) -> Any:
        """What figures of this case are made from."""
        paths = [path for path in (self.truth, self.scores, self.mask) if path is not None]
        settings = {name: getattr(self, name) for name in ("mask_labels", "baseline_sign", "histogram", "slice_plane")}
        return made_from(paths, settings | more)


class Source(NamedTuple):
    """Where the anomaly maps of a method lie; those of a baseline are images (1: bright is anomalous, -1: dark).

    With ``filters`` the folder holds maps that were filtered by them, and ``channel`` is where they came from.
    """

    folder: Path
    channel: int | None
    baseline_sign: int = 0
    filters: ResidualFilters | None = None

    def files(self) -> dict[str, Path]:
        """Map of every case."""
        return files_by_case(self.folder, self.channel)

    def conditions(self, args: argparse.Namespace) -> dict[str, Any]:
        """What decides on a method's scores and where they are looked at: a threshold holds for no other."""
        return {
            "mask": args.m is not None,
            "mask_labels": sorted(args.mask_labels),
            "channel": self.channel,
            "baseline_sign": self.baseline_sign,
            "filters": asdict(self.filters) if self.filters else None,
        }


@dataclass
class Cohort:
    """Cases of one set (those to evaluate, or validation cases) with the maps of every method.

    Attributes:
        folder: where records and pooled files go.
        references: lesion mask of every case.
        methods: where their maps lie.
        jobs: files by method and case, of those that can be evaluated.
        outcome: what became of them, by "method: case".
        without_reference: by method, maps of cases that have no lesion mask; named and left out.
        median_reaches_voxels: of the median's window along x, y and z, wherever they differ.
        filter_warnings: what the filters do not do.
    """

    folder: Path
    references: dict[str, Path]
    methods: dict[str, Source]
    jobs: dict[tuple[str, str], CaseFiles]
    outcome: Outcome
    without_reference: dict[str, list[str]]
    median_reaches_voxels: list[tuple[int, ...]] = field(default_factory=list)
    filter_warnings: list[str] = field(default_factory=list)

    def record(self, method: str, case: str, kind: str = "cases") -> Path:
        """Where the figures of one case are kept, so that a later run need not repeat it."""
        return self.folder / kind / method / f"{case}.json"

    def finished(self, method: str) -> dict[str, CaseFiles]:
        """Files of the cases of a method that did not fail."""
        return {
            case: files
            for (name, case), files in self.jobs.items()
            if name == method and f"{name}: {case}" not in self.outcome.failed
        }

    def load(self, method: str, case: str, *names: str, kind: str = "cases") -> list[np.ndarray]:
        """Arrays beside the record of a case."""
        with np.load(self.record(method, case, kind).with_suffix(".npz"), allow_pickle=False) as content:
            return [content[name] for name in names]

    def figures(self, method: str, case: str) -> dict[str, Any]:
        """Figures of one case; NaN where they are not applicable."""
        figures = load_json(self.record(method, case))["figures"]
        return {name: math.nan if value is None else value for name, value in figures.items()}


def filters_on(args: argparse.Namespace) -> bool:
    """Whether every method is shown with filters too: wherever there is a mask, unless it is said."""
    return args.m is not None if args.filters is None else args.filters


def find_cohort(
    args: argparse.Namespace,
    names: Sequence[str],
    folder: Path,
    references: Path,
    predictions: Sequence[Path],
    mask_folder: Path | None,
    baseline: Path | None,
) -> Cohort:
    """Files of every method and case, all but filtered maps (``add_filtered_maps``); nothing is written.

    Raises:
        InputError: there is nothing to evaluate.
    """
    truths = files_by_case(references)
    masks = files_by_case(mask_folder) if mask_folder else {}
    methods = {name: Source(path, args.channel) for name, path in zip(names, predictions, strict=True)}
    for name in names if filters_on(args) else ():
        source = Source(folder / "filtered" / name, args.channel, filters=filters_of(args))
        methods[f"{name}{FILTERED}"] = source
    for name, sign in BASELINES.items():
        if baseline and (sign > 0 or args.baseline_dark):
            methods[name] = Source(baseline, args.baseline_channel, sign)
    maps = {name: source.files() for name, source in methods.items() if not source.filters}
    outcome = Outcome()
    jobs: dict[tuple[str, str], CaseFiles] = {}
    add_missing(outcome, truths, maps, {name: source.folder for name, source in methods.items()})
    for method, files in maps.items():
        for case in (case for case in truths if case in files):
            if mask_folder and case not in masks:
                outcome.failed[f"{method}: {case}"] = f"{mask_folder} has no mask for this case."
                continue
            look = (tuple(args.mask_labels), methods[method].baseline_sign, args.histogram, args.slice_plane)
            jobs[method, case] = CaseFiles(truths[case], files[case], masks.get(case), *look)
    if not jobs:
        folders = ", ".join(str(path) for path in (*predictions, mask_folder) if path)
        raise InputError(f"No case of {references} has its files in {folders}.")
    without = {
        name: sorted(set(maps.get(name, ())) - set(truths))
        for name, source in methods.items()
        if not source.baseline_sign
    }
    return Cohort(folder, truths, methods, jobs, outcome, without)


def add_filtered_maps(cohort: Cohort, args: argparse.Namespace) -> None:
    """Filter the maps of every method that is shown with filters too, and add them to what is evaluated.

    Filtered maps of an earlier run are overwritten: call it when nothing can be refused any more.
    """
    for method, source in cohort.methods.items():
        if source.filters:
            _filter(cohort, method, source, args)
    places = {method: place for place, method in enumerate(cohort.methods)}
    cohort.jobs = dict(sorted(cohort.jobs.items(), key=lambda item: places[item[0][0]]))


def _filter(cohort: Cohort, method: str, source: Source, args: argparse.Namespace) -> None:
    """Filter the maps of a method; its filtered twin fails where they are missing, and where filtering fails."""
    from nnunet_anomaly.workflow.filter_residuals import ENDING, filter_maps, median_reach, median_warning

    assert source.filters is not None
    plain = method.removesuffix(FILTERED)
    files = cohort.finished(plain)
    for case in cohort.references:
        if case not in files:
            cohort.outcome.failed[f"{method}: {case}"] = cohort.outcome.failed[f"{plain}: {case}"]
    maps = {case: each.scores for case, each in files.items()}
    masks = {case: each.mask for case, each in files.items() if each.mask is not None}
    remove_maps(source.folder, maps)
    filtered = filter_maps(maps, masks, args.mask_labels, source.folder, source.filters, args.np)
    advice = "" if args.filters else " (--no-filters leaves the filters out.)"
    cohort.outcome.failed.update({f"{method}: {case}": reason + advice for case, reason in filtered.failed.items()})
    done = {case: source.folder / f"{case}{ENDING}" for case in maps if case not in filtered.failed}
    for case, path in done.items():
        cohort.jobs[method, case] = files[case]._replace(scores=path)
    reach = median_reach(done.values(), source.filters)
    cohort.median_reaches_voxels = sorted({*cohort.median_reaches_voxels, *reach.values()})
    if (said := median_warning(reach, source.filters)) and said not in cohort.filter_warnings:
        cohort.filter_warnings.append(said)


def refuse_common_cases(cohort: Cohort, validation_cases: Sequence[str], args: argparse.Namespace) -> None:
    """Raise a ``LeakageError`` where thresholds would be used on cases that they were searched on."""
    common = sorted({case for _, case in cohort.jobs} & set(validation_cases))
    if common and not args.allow_validation_cases:
        raise LeakageError(
            f"Thresholds would be searched on cases that they are used on: {', '.join(common)}. Take them out of "
            f"{args.ref}; or say --allow-validation-cases if only their names are the same."
        )
