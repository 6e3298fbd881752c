"""What ``nnunet-anomaly evaluate-anomaly`` does, pass by pass; a pass reads one case a process at a time.

1. Every case: its figures, and what pooling needs (distinct scores of its lesion voxels, a histogram, slices, lesions).
2. Pooled: other voxels at all common thresholds, added up case by case; where sorting would not fit into the memory
   that is allowed, by the histograms, and it is said.
3. Thresholds: searched on validation cases, which go through passes 1 and 2 too.
4. Every case at these thresholds, at the oracle's and at those of the FROC curve.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnunet_anomaly.cli.filter_residuals import filters_of
from nnunet_anomaly.cli.output import print_failures, print_without_reference
from nnunet_anomaly.errors import AnomalyError, InputError, LeakageError
from nnunet_anomaly.evaluation.anomaly import (
    DetectionCurve,
    au_pro,
    auroc,
    average_precision,
    best_dice,
    count_healthy,
    curve_from_counts,
    detection_curve,
    distinct_lesion_scores,
    merge_lesion_scores,
    pooling_bytes,
    split_scores,
    standardised_intensity,
)
from nnunet_anomaly.evaluation.cohort import json_safe
from nnunet_anomaly.evaluation.lesions import find_lesions, found_shares, part_components
from nnunet_anomaly.evaluation.score_histogram import (
    HISTOGRAM_BITS,
    BinnedDetection,
    ScoreHistogram,
    binned_detection,
    score_histogram,
)
from nnunet_anomaly.evaluation.slices import slice_scores
from nnunet_anomaly.evaluation.thresholds import (
    FoundThreshold,
    check_lesions,
    greedy_levels,
    greedy_threshold,
    warnings_of,
)
from nnunet_anomaly.files import (
    Outcome,
    is_up_to_date,
    load_json,
    made_from,
    open_pool,
    read_image,
    run_cases,
    save_json,
    written_whole,
)
from nnunet_anomaly.label_maps import check_same_grid, files_by_case, read_label_map, read_region, spacing_zyx_mm
from nnunet_anomaly.planes import plane_of
from nnunet_anomaly.workflow.anomaly_stale import remove_filtered, remove_maps, remove_results
from nnunet_anomaly.workflow.evaluate import add_missing, name_methods

if TYPE_CHECKING:
    from nnunet_anomaly.postprocessing.residual_filters import ResidualFilters

# baselines without a network, and what is anomalous to them
BASELINES = {"raw_intensity": 1, "raw_intensity_dark": -1}
FILTERED = "_filtered"
PER_CASE = ("average_precision", "auroc", "au_pro", "best_dice", "best_dice_threshold")
# of a histogram: the interval that holds the exact value (its best Dice is the lower end itself)
BOUNDS = (*(f"{name}_{end}" for name in PER_CASE[:3] for end in ("low", "high")), "best_dice_high")
# false-positive rates over voxels, four a decade up to 1 %: the thresholds of FROC curves are those that reach them.
# Beyond, components merge, so that there would be fewer false positives the more is called anomalous.
FROC_VOXEL_RATES = 10.0 ** np.arange(-6, -1.9, 0.25)


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
        return files_by_case(self.folder, None if self.filters else self.channel)

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
    """

    folder: Path
    references: dict[str, Path]
    methods: dict[str, Source]
    jobs: dict[tuple[str, str], CaseFiles]
    outcome: Outcome
    without_reference: dict[str, list[str]]

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


@dataclass
class Pooled:
    """All cases of a method together: figures by name, and the histogram of their scores."""

    figures: dict[str, Any]
    histogram: ScoreHistogram


def evaluate(args: argparse.Namespace) -> int:
    """All passes, then tables, pictures and a printed summary; returns the exit code."""
    from nnunet_anomaly.workflow.anomaly_report import Results, write_results

    _check_arguments(args)
    names = list(name_methods(args.pred, args.names))
    added = [*(BASELINES if args.baseline else ()), *(f"{name}{FILTERED}" for name in names if filters_on(args))]
    if taken := sorted(set(names) & set(added)):
        raise InputError(f"'{taken[0]}' is the name of a method that is added; name the methods otherwise by --names.")
    cohort = _find_cohort(args, names, args.o, args.ref, args.pred, args.m, args.baseline)
    validation = None
    if args.validation_ref:
        folders = (args.validation_pred, args.validation_mask, args.validation_baseline)
        validation = _find_cohort(args, names, args.o / "validation", args.validation_ref, *folders)
        _refuse_common_cases(cohort, list(validation.references), args)
    searched = _load_thresholds(cohort, args) if args.threshold_file else {}
    if validation:
        searched = _search(validation, args)
        save_json({"methods": searched}, args.o / "thresholds.json")
    pooled, pooled_by = _measure(cohort, args)
    thresholds = {
        method: {
            kind: FoundThreshold(**values) for kind, values in searched.get(method, {}).get("thresholds", {}).items()
        }
        | ({"oracle": _best(found)} if found.figures["lesion_voxels"] else {})
        for method, found in pooled.items()
    }
    froc_thresholds = {method: _froc_thresholds(found) for method, found in pooled.items()}
    work = [
        (
            f"{method}: {case}",
            (
                files,
                [found.value for found in thresholds[method].values()] + froc_thresholds[method],
                args.component_overlap,
                cohort.record(method, case, "at_thresholds"),
            ),
        )
        for method in pooled
        for case, files in cohort.finished(method).items()
    ]
    cohort.outcome.failed.update(run_cases(_measure_at, work, args.np, "at thresholds").failed)
    thresholds = {method: kinds for method, kinds in thresholds.items() if cohort.finished(method)}
    _remove_stale(args, names)
    if thresholds:
        write_results(args, Results(cohort, pooled, pooled_by, thresholds, froc_thresholds))
    else:
        print("No case could be evaluated: there are no tables.")
    outcomes = [cohort.outcome, *([validation.outcome] if validation else [])]
    print_without_reference(cohort.without_reference)
    for outcome in outcomes:
        print_failures(outcome)
    return max(outcome.exit_code for outcome in outcomes)


def _remove_stale(args: argparse.Namespace, names: Sequence[str]) -> None:
    thresholds = args.o / "thresholds.json"
    is_read = args.threshold_file is not None and args.threshold_file.resolve() == thresholds.resolve()
    remove_results(args.o, keep_thresholds=is_read or args.validation_ref is not None)
    filtered = names if filters_on(args) else ()
    remove_filtered(args.o, filtered)
    remove_filtered(args.o / "validation", filtered if args.validation_ref else ())


# --- what there is to evaluate ---------------------------------------------------------------------------------------


def _check_arguments(args: argparse.Namespace) -> None:
    if args.mask_labels and args.m is None:
        raise InputError("--mask-labels chooses labels of -m, which is not given.")
    if args.filters and args.m is None:
        raise InputError("--filters erodes the mask of -m, which is not given.")
    given = [args.erode_mm, args.median_radius_mm, args.min_volume_mm3, args.component_threshold]
    if not filters_on(args) and any(value is not None for value in given):
        raise InputError("Settings of the filters are given, but filters are off: give -m, and not --no-filters.")
    if args.baseline_dark and not args.baseline:
        raise InputError("--baseline-dark is about the images of --baseline, which is not given.")
    for option in ("hit_overlap", "component_overlap"):
        if not 0 <= getattr(args, option) <= 1:
            flag = f"--{option.replace('_', '-')}"
            raise InputError(f"{flag} is {getattr(args, option)}; it must be a share from 0 to 1.")
    if not args.memory_gb > 0:
        raise InputError(f"--memory-gb is {args.memory_gb}; it must be above 0.")
    if bool(args.validation_ref) != bool(args.validation_pred) or (args.validation_ref and args.threshold_file):
        raise InputError("Give --validation-ref and --validation-pred together, or --threshold-file instead of both.")
    if args.validation_ref and bool(args.m) != bool(args.validation_mask):
        raise InputError("Give -m and --validation-mask both or none: thresholds hold for where they were searched.")
    for option in ("validation_pred", "training_sizes", "curve_names", "reconstructions"):
        values = getattr(args, option)
        if values and len(values) != len(args.pred):
            flag = f"--{option.replace('_', '-')}"
            raise InputError(f"{flag} must be given {len(args.pred)} times, once for each -pred; got {len(values)}.")


def filters_on(args: argparse.Namespace) -> bool:
    """Whether every method is shown with filters too: wherever there is a mask, unless it is said."""
    return args.m is not None if args.filters is None else args.filters


def _find_cohort(
    args: argparse.Namespace,
    names: Sequence[str],
    folder: Path,
    references: Path,
    predictions: Sequence[Path],
    mask_folder: Path | None,
    baseline: Path | None,
) -> Cohort:
    """Files of every method and case; error maps are filtered first where that is asked for.

    Raises:
        InputError: there is nothing to evaluate.
    """
    truths = files_by_case(references)
    masks = files_by_case(mask_folder) if mask_folder else {}
    methods = {name: Source(path, args.channel) for name, path in zip(names, predictions, strict=True)}
    outcome = Outcome()
    for name in names if filters_on(args) else ():
        methods[f"{name}{FILTERED}"] = _filter(args, methods[name], truths, masks, folder, name, outcome)
    for name, sign in BASELINES.items():
        if baseline and (sign > 0 or args.baseline_dark):
            methods[name] = Source(baseline, args.baseline_channel, sign)
    maps = {name: source.files() for name, source in methods.items()}
    jobs: dict[tuple[str, str], CaseFiles] = {}
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
    missing = Outcome()
    add_missing(missing, truths, maps, {name: source.folder for name, source in methods.items()})
    outcome.failed = missing.failed | outcome.failed
    without = {
        name: sorted(set(files) - set(truths)) for name, files in maps.items() if not methods[name].baseline_sign
    }
    return Cohort(folder, truths, methods, jobs, outcome, without)


def _filter(
    args: argparse.Namespace,
    source: Source,
    truths: Mapping[str, Path],
    masks: Mapping[str, Path],
    folder: Path,
    name: str,
    outcome: Outcome,
) -> Source:
    """Filter the maps of a method; its filtered twin."""
    from nnunet_anomaly.workflow.filter_residuals import filter_maps

    target = folder / "filtered" / name
    filters = filters_of(args)
    maps = {case: path for case, path in source.files().items() if case in truths}
    remove_maps(target, maps)
    filtered = filter_maps(maps, masks, args.mask_labels, target, filters, args.np)
    advice = "" if args.filters else " (--no-filters leaves the filters out.)"
    outcome.failed.update({f"{name}{FILTERED}: {case}": reason + advice for case, reason in filtered.failed.items()})
    return Source(target, source.channel, filters=filters)


def _refuse_common_cases(cohort: Cohort, validation_cases: Sequence[str], args: argparse.Namespace) -> None:
    common = sorted({case for _, case in cohort.jobs} & set(validation_cases))
    if common and not args.allow_validation_cases:
        raise LeakageError(
            f"Thresholds would be searched on cases that they are used on: {', '.join(common)}. Take them out of "
            f"{args.ref}; or say --allow-validation-cases if only their names are the same."
        )


# --- passes 1 and 2 --------------------------------------------------------------------------------------------------


def read_case(files: CaseFiles) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Any]:
    """Scores, truth, mask (None: everywhere) and image of one case, after a check that they lie on the same grid."""
    import SimpleITK as sitk

    truth, grid = read_label_map(files.truth)
    image = read_image(files.scores)
    check_same_grid(grid, files.truth, image, files.scores)
    scores = sitk.GetArrayFromImage(image)
    mask = None if files.mask is None else read_region(files.mask, files.mask_labels, grid, files.truth)
    if files.baseline_sign:
        scores = files.baseline_sign * standardised_intensity(scores, mask)
    return scores, truth, mask, image


def _measure(cohort: Cohort, args: argparse.Namespace) -> tuple[dict[str, Pooled], str]:
    """Figures of every case, then of all pooled, by "sorting" or by "histogram"; why is printed.

    A method without a case that could be evaluated is left out.
    """
    work = [
        (f"{method}: {case}", (files, cohort.record(method, case))) for (method, case), files in cohort.jobs.items()
    ]
    outcome = run_cases(_measure_case, work, args.np, "evaluate")
    cohort.outcome.failed.update(outcome.failed)
    found = [[cohort.figures(method, case) for case in cohort.finished(method)] for method in cohort.methods]
    scores = max(sum(int(figures["distinct_lesion_scores"]) for figures in cases) for cases in found)
    voxels = max((int(figures["image_voxels"]) for cases in found for figures in cases), default=0)
    cases_gb, pooling_gb = _reading_bytes(voxels, args.np) / 1e9, pooling_bytes(scores, args.np) / 1e9
    by_histogram = args.histogram or cases_gb + pooling_gb > args.memory_gb
    if args.histogram:
        sentence = "Pooled by histogram, as --histogram says."
    elif by_histogram:
        sentence = (
            f"Pooled by histogram: sorting {scores} distinct lesion scores could take {pooling_gb:.2g} GB, which with "
            f"{cases_gb:.2g} GB for cases ({args.np} at a time) is more than --memory-gb {args.memory_gb:g}. The "
            "figures of single cases are exact."
        )
    else:
        sentence = f"Pooled exactly, by sorting: in all processes up to {cases_gb + pooling_gb:.2g} GB."
    if cases_gb > args.memory_gb:
        sentence += f" Cases alone can take up to {cases_gb:.2g} GB; a smaller -np takes less."
    print(sentence)
    cohort.folder.mkdir(parents=True, exist_ok=True)
    pooled = {method: _pool(cohort, method, args, by_histogram) for method in cohort.methods if cohort.finished(method)}
    return pooled, "histogram" if by_histogram else "sorting"


def _reading_bytes(voxels: int, num_processes: int) -> int:
    """Memory of all processes without what pooling adds: libraries, and a case of so many voxels in each."""
    return (200_000_000 + 32 * voxels) * (num_processes + 1 if num_processes > 1 else 1)


def _measure_case(files: CaseFiles, record: Path) -> bool:
    """Worker: write the figures of one case and what pooling needs; False when they are there already."""
    if is_up_to_date(record, files.source()):
        return False
    scores, truth, mask, image = read_case(files)
    try:
        figures, arrays = _figures_of_case(files, scores, truth, mask, image)
    except AnomalyError as error:
        raise type(error)(f"{files.scores}: {error}") from None
    _save_record(record, files.source(), figures, arrays)
    return True


def _save_record(record: Path, source: Any, figures: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    with written_whole(record.with_suffix(".npz")) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
    # last, since it says that the case is finished
    save_json({"made_from": source, "figures": json_safe(figures)}, record)


def _figures_of_case(
    files: CaseFiles, scores: np.ndarray, truth: np.ndarray, mask: np.ndarray | None, image: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    lesions = find_lesions(truth, spacing_zyx_mm(image), mask)
    weights = lesions.voxel_weights
    histogram = score_histogram(scores, truth, mask, lesion_weights=weights)
    lesion_voxels, healthy_voxels = int(histogram.lesion.sum()), int(histogram.healthy.sum())
    if files.histogram:
        figures, distinct = _binned_figures(histogram), []
    else:
        figures = _exact_figures(detection_curve(scores, truth, mask, weights))
        distinct = distinct_lesion_scores(split_scores(scores, truth, mask)[0], weights)
    inside = scores if mask is None else scores[mask]
    figures |= {
        "lesion_voxels": lesion_voxels,
        "healthy_voxels": healthy_voxels,
        "lesion_voxels_outside_mask": int(np.count_nonzero(truth)) - lesion_voxels,
        "lesions": int(lesions.sizes_voxels.size),
        "lesions_outside_mask": lesions.n_outside,
        "lesion_volume_mm3": float(lesions.volumes_mm3.sum()),
        "highest_score": float(inside.max()) if inside.size else math.nan,
        "distinct_lesion_scores": int(distinct[0].size) if distinct else 0,
        "image_voxels": int(scores.size),
    }
    axis = plane_of(image.GetDirection(), files.slice_plane).axes[0] if scores.ndim == 3 else 0
    slices, abnormal = slice_scores(scores, truth, mask, axis)
    bins = np.flatnonzero(histogram.lesion + histogram.healthy)
    columns = (histogram.lesion, histogram.healthy, histogram.lesion_weight)
    arrays = {"bins": bins} | {
        name: column[bins] for name, column in zip(_BIN_COLUMNS, columns, strict=True) if column is not None
    }
    arrays |= dict(zip(_SCORE_COLUMNS, distinct, strict=False))
    return figures, arrays | {"slices": slices, "abnormal": abnormal, "volumes_mm3": lesions.volumes_mm3}


_BIN_COLUMNS = ("lesion", "healthy", "weight")
_SCORE_COLUMNS = ("scores", "score_counts", "score_weights")


def _exact_figures(curve: DetectionCurve) -> dict[str, Any]:
    return dict(zip(PER_CASE, (average_precision(curve), auroc(curve), au_pro(curve), *best_dice(curve)), strict=True))


def _binned_figures(histogram: ScoreHistogram) -> dict[str, Any]:
    found: BinnedDetection = binned_detection(histogram)
    assert found.au_pro is not None and found.au_pro_interval is not None
    values = (found.average_precision, found.auroc, found.au_pro, found.best_dice, found.best_dice_threshold)
    intervals = (*found.average_precision_interval, *found.auroc_interval, *found.au_pro_interval)
    return dict(zip((*PER_CASE, *BOUNDS), (*values, *intervals, found.best_dice_interval[1]), strict=True))


def _pool(cohort: Cohort, method: str, args: argparse.Namespace, by_histogram: bool) -> Pooled:
    """Figures over the voxels of all cases."""
    columns = np.zeros((3, 1 << HISTOGRAM_BITS))
    slices, abnormal = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    cases = cohort.finished(method)
    for case in cases:
        bins, *counts = cohort.load(method, case, "bins", *_BIN_COLUMNS)
        for total, part in zip(columns, counts, strict=True):
            total[bins] += part
        for parts, array in zip((slices, abnormal), cohort.load(method, case, "slices", "abnormal"), strict=True):
            parts.append(array)
    histogram = ScoreHistogram(columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2])
    curve = histogram.curve() if by_histogram else _pool_exactly(cohort, method, args)
    figures = _binned_figures(histogram) if by_histogram else _exact_figures(curve)
    voxels = curve.lesion_voxels + curve.healthy_voxels
    by_slice = detection_curve(np.concatenate(slices), np.concatenate(abnormal))
    return Pooled(
        {
            **{f"{name}_pooled": value for name, value in figures.items()},
            "prevalence": curve.lesion_voxels / voxels if voxels else math.nan,
            "average_precision_slices": average_precision(by_slice),
            "auroc_slices": auroc(by_slice),
            "abnormal_slices": by_slice.lesion_voxels,
            "slices": by_slice.lesion_voxels + by_slice.healthy_voxels,
            "lesion_voxels": curve.lesion_voxels,
            "n_cases": len(cases),
        },
        histogram,
    )


def _pool_exactly(cohort: Cohort, method: str, args: argparse.Namespace) -> DetectionCurve:
    """Reads every case once more, for the thresholds that are now known."""
    cases = cohort.finished(method)
    thresholds, lesion_counts, weights = merge_lesion_scores(
        cohort.load(method, case, *_SCORE_COLUMNS) for case in cases
    )
    false_positives = (np.zeros(thresholds.size, dtype=np.int64), np.zeros(thresholds.size, dtype=np.int64))
    with tempfile.TemporaryDirectory(prefix=".partial_", dir=cohort.folder) as name:
        np.save(Path(name) / "thresholds.npy", thresholds)
        for counts in _in_turn(_count_healthy, list(cases.values()), Path(name), args.np, f"pool {method}"):
            for total, row in zip(false_positives, counts, strict=True):
                total += row
    healthy_voxels = sum(int(cohort.figures(method, case)["healthy_voxels"]) for case in cases)
    return curve_from_counts(thresholds, lesion_counts, *false_positives, healthy_voxels, weights)


def _in_turn(function: Any, cases: Sequence[CaseFiles], folder: Path, num_processes: int, description: str) -> Any:
    """Arrays that a worker makes of every case, one after the other, few of them at a time on disk.

    Raises:
        InputError: a case that went well before now fails.
    """
    from tqdm import tqdm

    waiting: deque[tuple[Path, Future[None]]] = deque()
    processes = min(num_processes, len(cases))

    def collect() -> np.ndarray:
        path, future = waiting.popleft()
        try:
            future.result()
        except AnomalyError as error:
            raise InputError(f"A file changed while it was evaluated; run it again. {error}") from error
        counts = np.load(path, allow_pickle=False)
        path.unlink()
        bar.update()
        return counts

    with tqdm(total=len(cases), desc=description, unit="case") as bar, open_pool(processes) as pool:
        for index, files in enumerate(cases):
            target = folder / f"{index}.npy"
            waiting.append((target, pool.submit(function, files, folder, target)))
            if len(waiting) > processes:
                yield collect()
        while waiting:
            yield collect()


def _count_healthy(files: CaseFiles, folder: Path, target: Path) -> None:
    """Worker: healthy voxels of one case at, and above, every common threshold."""
    healthy_scores = split_scores(*read_case(files)[:3])[1]
    thresholds = np.load(folder / "thresholds.npy", mmap_mode="r", allow_pickle=False)
    np.save(target, np.stack(count_healthy(healthy_scores, thresholds)))


# --- pass 3: thresholds ----------------------------------------------------------------------------------------------


def _search(validation: Cohort, args: argparse.Namespace) -> dict[str, Any]:
    """Both thresholds of every method, from validation cases alone, as they are written to thresholds.json.

    A method has none where none of its validation cases could be evaluated.

    Raises:
        InputError: the validation cases of a method have no lesion voxel, or none of any method could be evaluated.
    """
    print("Validation cases:")
    pooled, pooled_by = _measure(validation, args)
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
        for found in _in_turn(_count_levels, files, Path(name), args.np, f"thresholds {method}"):
            counts += found
    return greedy_threshold(levels, counts[0], counts[1], lesion_voxels)


def _count_levels(files: CaseFiles, folder: Path, target: Path) -> None:
    """Worker: lesion and other voxels of one case that score at least every level."""
    levels = np.load(folder / "thresholds.npy", allow_pickle=False)
    np.save(target, np.stack([count_healthy(part, levels)[0] for part in split_scores(*read_case(files)[:3])]))


def _load_thresholds(cohort: Cohort, args: argparse.Namespace) -> dict[str, Any]:
    """Thresholds of an earlier run.

    Raises:
        InputError: the file is not one of ours, has no thresholds for a method, or they were searched otherwise.
        LeakageError: they were searched on cases that are to be evaluated.
    """
    content = load_json(args.threshold_file)
    methods = content.get("methods") if isinstance(content, dict) else None
    if not isinstance(methods, dict):
        raise InputError(f"{args.threshold_file} is no thresholds.json that evaluate-anomaly wrote.")
    for method, source in cohort.methods.items():
        if method in BASELINES and method not in methods:
            continue
        found = methods.get(method)
        if not isinstance(found, dict) or not {"cases", "conditions", "thresholds"} <= set(found):
            known = ", ".join(methods)
            raise InputError(f"{args.threshold_file} has no thresholds for '{method}', only for {known}; see --names.")
        _refuse_other_conditions(method, found["conditions"], source.conditions(args), args.threshold_file)
        _refuse_common_cases(cohort, found["cases"], args)
    return methods


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


def _best(pooled: Pooled) -> FoundThreshold:
    return FoundThreshold(pooled.figures["best_dice_threshold_pooled"], pooled.figures["best_dice_pooled"])


def _froc_thresholds(pooled: Pooled) -> list[float]:
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


# --- pass 4: at thresholds -------------------------------------------------------------------------------------------


def _measure_at(files: CaseFiles, thresholds: list[float], component_overlap: float, record: Path) -> bool:
    """Worker: voxels, lesions and components found in one case at every threshold; False when they are there."""
    source = files.source(thresholds=thresholds, component_overlap=component_overlap)
    if is_up_to_date(record, source):
        return False
    scores, truth, mask, image = read_case(files)
    lesion_scores, healthy_scores = split_scores(scores, truth, mask)
    lesions = find_lesions(truth, spacing_zyx_mm(image), mask)
    lesion = truth != 0 if mask is None else (truth != 0) & mask
    # as arrays, since a number would be rounded to the precision of the scores before it is compared
    values = [np.array([value], dtype=float) for value in thresholds]
    false_positives = np.array([np.count_nonzero(healthy_scores >= value) for value in values])
    components, shares = np.zeros(len(values), dtype=np.int64), np.zeros((lesions.sizes_voxels.size, len(values)))
    for place, value in enumerate(values):
        called = scores >= value if mask is None else (scores >= value) & mask
        hitting, components[place] = part_components(called, truth, component_overlap)
        shares[:, place] = found_shares(hitting[lesion], lesions)
    arrays = {
        "true_positives": np.array([np.count_nonzero(lesion_scores >= value) for value in values]),
        "false_positives": false_positives,
        "false_positives_mm3": false_positives * math.prod(map(float, image.GetSpacing())),
        "false_positive_components": components,
        "shares": shares,
    }
    _save_record(record, source, {}, arrays)
    return True
