"""``nnunet-anomaly evaluate-anomaly``: anomaly maps against lesion masks, beside the raw intensity."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nnunet_anomaly import __version__
from nnunet_anomaly.cli.evaluate import add_missing, name_methods, record_path
from nnunet_anomaly.cli.output import mean_and_sd, print_failures, print_table
from nnunet_anomaly.errors import AnomalyError, InputError
from nnunet_anomaly.files import Outcome, is_up_to_date, load_json, made_from, run_cases, save_json, written_whole

if TYPE_CHECKING:
    import numpy as np

    from nnunet_anomaly.evaluation.anomaly import BinnedDetection

    Counts = dict[str, np.ndarray]

EXAMPLE = (
    "nnunet-anomaly evaluate-anomaly -ref lesion_masks -pred error_maps -o evaluation -m predictions "
    "--mask-labels 1 3 --baseline nnUNet_raw/Dataset101_Knee/imagesTs"
)

BASELINE = "raw_intensity"
POOLED = ("average_precision_pooled", "best_dice_pooled", "best_dice_threshold_pooled")
PER_CASE = ("average_precision", "best_dice", "best_dice_threshold")
# of a histogram: the interval that holds the exact value (its best Dice is the lower end itself)
BOUNDS = ("average_precision_low", "average_precision_high", "best_dice_high")
VOXELS = ("lesion_voxels", "healthy_voxels", "lesion_voxels_outside_mask")


class CaseFiles(NamedTuple):
    """Files of one case and one method; without ``mask`` the whole image counts."""

    truth: Path
    scores: Path
    mask: Path | None
    mask_labels: tuple[int, ...]
    is_baseline: bool
    histogram: bool

    @property
    def source(self) -> Any:
        """What the figures of this case are made from."""
        paths = [path for path in (self.truth, self.scores, self.mask) if path is not None]
        settings = {name: getattr(self, name) for name in ("mask_labels", "is_baseline", "histogram")}
        return made_from(paths, settings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate-anomaly``."""
    parser.add_argument("-ref", type=Path, required=True, help="folder of lesion masks, <case>.nii.gz; not 0 is lesion")
    parser.add_argument(
        "-pred",
        type=Path,
        required=True,
        action="append",
        help="folder of anomaly maps, <case>.nii.gz, higher is more anomalous; give it again for every further method",
    )
    parser.add_argument("-o", type=Path, required=True, help="folder for the tables (JSON and CSV)")
    parser.add_argument("--names", nargs="+", help="names of the methods; default: names of the folders")
    parser.add_argument(
        "--channel", type=int, help="channel that holds the anomaly map: 1 for <case>_0001.nii.gz (default: no channel)"
    )
    parser.add_argument("-m", type=Path, help="folder of label maps, <case>.nii.gz; voxels outside them are left out")
    parser.add_argument("--mask-labels", type=int, nargs="+", default=[], help="labels of -m to look in (default: all)")
    parser.add_argument(
        "--baseline", type=Path, help="folder of images: their intensity, z-scored inside the mask, as a method beside"
    )
    parser.add_argument("--baseline-channel", type=int, default=0, help="channel of the images (default: 0)")
    parser.add_argument(
        "--histogram",
        action="store_true",
        help="count scores by the upper 16 bits of their float32 instead of sorting them: many times faster, each case "
        "is read once, and every figure comes with the interval that holds the exact one",
    )
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Evaluate every case of every method, then all cases pooled; write the tables and print them."""
    from nnunet_anomaly.label_maps import files_by_case

    references = files_by_case(args.ref)
    methods = name_methods(args.pred, args.names)
    maps = {name: files_by_case(folder, args.channel) for name, folder in methods.items()}
    if args.baseline:
        if BASELINE in methods:
            raise InputError(f"'{BASELINE}' is the name of the baseline; name the methods otherwise by --names.")
        methods[BASELINE] = args.baseline
        maps[BASELINE] = files_by_case(args.baseline, args.baseline_channel)
    jobs, unmasked = _find_jobs(args, references, maps)
    work = [(f"{method}: {case}", (files, record_path(args.o, method, case))) for (method, case), files in jobs.items()]
    outcome = run_cases(_evaluate_file, work, args.np, "evaluate")
    outcome.failed.update({name: f"{args.m} has no mask for this case." for name in unmasked})
    add_missing(outcome, references, maps, methods)
    finished = {key: files for key, files in jobs.items() if f"{key[0]}: {key[1]}" not in outcome.failed}
    pool = _pool_histograms if args.histogram else _pool
    pooled = {
        method: pool({case: files for (name, case), files in finished.items() if name == method}, method, args)
        for method in methods
    }
    _report(args, methods, list(finished), pooled, outcome)
    print_failures(outcome)
    return outcome.exit_code


def _find_jobs(
    args: argparse.Namespace, references: Mapping[str, Path], maps: Mapping[str, Mapping[str, Path]]
) -> tuple[dict[tuple[str, str], CaseFiles], list[str]]:
    """Files of every method and case, and the names of those that have no mask although ``-m`` is given.

    Raises:
        InputError: there is nothing to evaluate.
    """
    from nnunet_anomaly.label_maps import files_by_case

    if args.mask_labels and args.m is None:
        raise InputError("--mask-labels chooses labels of -m, which is not given.")
    masks = files_by_case(args.m) if args.m else {}
    jobs, unmasked = {}, []
    for method, files in maps.items():
        for case in (case for case in references if case in files):
            if args.m and case not in masks:
                unmasked.append(f"{method}: {case}")
                continue
            is_baseline = args.baseline is not None and method == BASELINE
            labels = tuple(args.mask_labels)
            paths = (references[case], files[case], masks.get(case))
            jobs[method, case] = CaseFiles(*paths, labels, is_baseline, args.histogram)
    if not jobs:
        folders = ", ".join(str(folder) for folder in (*args.pred, args.m) if folder)
        raise InputError(f"No case of {args.ref} has its files in {folders}.")
    return jobs, unmasked


def _read(files: CaseFiles) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Scores, truth and mask (None: everywhere) of one case, after a check that they lie on the same grid."""
    import numpy as np
    import SimpleITK as sitk

    from nnunet_anomaly.evaluation.anomaly import standardised_intensity
    from nnunet_anomaly.files import read_image
    from nnunet_anomaly.label_maps import check_same_grid, read_label_map

    truth, grid = read_label_map(files.truth)
    image = read_image(files.scores)
    check_same_grid(grid, files.truth, image, files.scores)
    scores = sitk.GetArrayFromImage(image)
    mask = None
    if files.mask is not None:
        labels, other = read_label_map(files.mask)
        check_same_grid(grid, files.truth, other, files.mask)
        mask = np.isin(labels, files.mask_labels) if files.mask_labels else labels != 0
        if not mask.any():
            wanted = f"none of the labels {list(files.mask_labels)}" if files.mask_labels else "no label"
            raise InputError(f"{files.mask} holds {wanted}: there is nowhere to look for an anomaly.")
    return standardised_intensity(scores, mask) if files.is_baseline else scores, truth, mask


def _evaluate_file(files: CaseFiles, record: Path) -> bool:
    """Worker: write the figures of one case and what pooling needs; False when they are there already."""
    import numpy as np

    from nnunet_anomaly.evaluation.cohort import json_safe

    source = files.source
    if is_up_to_date(record, source):
        return False
    scores, truth, mask = _read(files)
    try:
        figures, counts = (_binned_figures if files.histogram else _exact_figures)(scores, truth, mask)
    except AnomalyError as error:
        raise type(error)(f"{files.scores}: {error}") from None
    figures["lesion_voxels_outside_mask"] = int(np.count_nonzero(truth)) - figures["lesion_voxels"]
    with written_whole(record.with_suffix(".npz")) as temporary:
        np.savez(temporary, **counts)  # type: ignore[arg-type]
    # last, since it says that the case is finished
    save_json({"made_from": source, "figures": json_safe(figures)}, record)
    return True


def _exact_figures(scores: np.ndarray, truth: np.ndarray, mask: np.ndarray | None) -> tuple[dict[str, Any], Counts]:
    """Figures of one case, and its distinct lesion scores with how many voxels have each."""
    import numpy as np

    from nnunet_anomaly.evaluation.anomaly import average_precision, best_dice, detection_curve

    curve = detection_curve(scores, truth, mask)
    figures: dict[str, Any] = dict(zip(PER_CASE, (average_precision(curve), *best_dice(curve)), strict=True))
    figures |= {"lesion_voxels": curve.lesion_voxels, "healthy_voxels": curve.healthy_voxels}
    counts = np.diff(curve.true_positives, prepend=0)[::-1]
    return figures, {"thresholds": curve.thresholds[::-1], "counts": counts}


def _binned_figures(scores: np.ndarray, truth: np.ndarray, mask: np.ndarray | None) -> tuple[dict[str, Any], Counts]:
    """Figures of one case with their bounds, and the bins of its histogram that are not empty."""
    import numpy as np

    from nnunet_anomaly.evaluation.anomaly import binned_detection, score_histogram

    histogram = score_histogram(scores, truth, mask)
    figures = _with_bounds(binned_detection(histogram))
    figures |= {"lesion_voxels": int(histogram.lesion.sum()), "healthy_voxels": int(histogram.healthy.sum())}
    bins = np.flatnonzero(histogram.lesion + histogram.healthy)
    return figures, {"bins": bins, "lesion": histogram.lesion[bins], "healthy": histogram.healthy[bins]}


def _with_bounds(found: BinnedDetection) -> dict[str, Any]:
    values = (found.average_precision, found.best_dice, found.best_dice_threshold)
    bounds = (*found.average_precision_interval, found.best_dice_interval[1])
    return dict(zip((*PER_CASE, *BOUNDS), (*values, *bounds), strict=True))


def _pool_histograms(cases: Mapping[str, CaseFiles], method: str, args: argparse.Namespace) -> dict[str, float]:
    """Figures over the voxels of all cases, from the sum of their histograms."""
    import numpy as np

    from nnunet_anomaly.evaluation.anomaly import HISTOGRAM_BITS, ScoreHistogram, binned_detection

    lesion, healthy = np.zeros((2, 1 << HISTOGRAM_BITS), dtype=np.int64)
    for case in cases:
        with np.load(record_path(args.o, method, case).with_suffix(".npz"), allow_pickle=False) as content:
            lesion[content["bins"]] += content["lesion"]
            healthy[content["bins"]] += content["healthy"]
    found = _with_bounds(binned_detection(ScoreHistogram(lesion, healthy)))
    voxels = int(lesion.sum() + healthy.sum())
    return {
        **{f"{name}_pooled": found[name] for name in (*PER_CASE, *BOUNDS)},
        "prevalence": int(lesion.sum()) / voxels if voxels else math.nan,
        "n_cases": len(cases),
    }


def _pool(cases: Mapping[str, CaseFiles], method: str, args: argparse.Namespace) -> dict[str, float]:
    """Figures over the voxels of all cases; reads every case once more, for the thresholds that are now known."""
    import numpy as np

    from nnunet_anomaly.evaluation.anomaly import average_precision, best_dice, curve_from_counts, merge_lesion_scores

    thresholds, lesion_counts = merge_lesion_scores(
        _load_lesion_scores(record_path(args.o, method, case).with_suffix(".npz")) for case in cases
    )
    false_positives, healthy_voxels = np.zeros(thresholds.size, dtype=np.int64), 0
    with tempfile.TemporaryDirectory(prefix=".partial_", dir=args.o) as name:
        folder = Path(name)
        np.save(folder / "thresholds.npy", thresholds)
        work = [(case, (files, folder, f"{i}.npy")) for i, (case, files) in enumerate(cases.items())]
        outcome = run_cases(_count_false_positives, work, args.np, f"pool {method}")
        if outcome.failed:
            raise InputError(f"Files changed while they were evaluated: {outcome.failed}. Run it again.")
        for _, (_, _, target) in work:
            false_positives += np.load(folder / target, allow_pickle=False)
    for case in cases:
        healthy_voxels += load_json(record_path(args.o, method, case))["figures"]["healthy_voxels"]
    curve = curve_from_counts(thresholds, lesion_counts, false_positives, healthy_voxels)
    dice, threshold = best_dice(curve)
    voxels = curve.lesion_voxels + curve.healthy_voxels
    return {
        "average_precision_pooled": average_precision(curve),
        "best_dice_pooled": dice,
        "best_dice_threshold_pooled": threshold,
        "prevalence": curve.lesion_voxels / voxels if voxels else math.nan,
        "n_cases": len(cases),
    }


def _load_lesion_scores(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    with np.load(path, allow_pickle=False) as content:
        return content["thresholds"], content["counts"]


def _count_false_positives(files: CaseFiles, folder: Path, target: str) -> None:
    """Worker: healthy voxels of one case at every common threshold."""
    import numpy as np

    from nnunet_anomaly.evaluation.anomaly import count_at_least, split_scores

    _, healthy_scores = split_scores(*_read(files))
    np.save(folder / target, count_at_least(healthy_scores, np.load(folder / "thresholds.npy", allow_pickle=False)))


def _report(
    args: argparse.Namespace,
    methods: Mapping[str, Path],
    finished: list[tuple[str, str]],
    pooled: Mapping[str, Mapping[str, float]],
    outcome: Outcome,
) -> None:
    """Write cases.csv, summary.csv and summary.json, and print the summary."""
    from dataclasses import asdict

    from nnunet_anomaly.evaluation.anomaly import DEFINITIONS, HISTOGRAM_DEFINITIONS
    from nnunet_anomaly.evaluation.cohort import json_safe, save_table, summarise

    rows: list[dict[str, Any]] = []
    for method, case in finished:
        figures = load_json(record_path(args.o, method, case))["figures"]
        values = {key: math.nan if value is None else value for key, value in figures.items()}
        rows.append({"method": method, "case": case, **values})
    per_case = {
        method: {
            metric: asdict(summarise([row[metric] for row in rows if row["method"] == method]))
            for metric in ("average_precision", "best_dice")
        }
        for method in methods
    }
    bounds = BOUNDS if args.histogram else ()
    save_table(rows, args.o / "cases.csv", ("method", "case", *PER_CASE, *bounds, *VOXELS))
    flat = [
        {
            "method": method,
            **pooled[method],
            **{f"{metric}_{key}": value for metric, values in metrics.items() for key, value in values.items()},
        }
        for method, metrics in per_case.items()
    ]
    save_table(flat, args.o / "summary.csv")
    summary = {
        "version": __version__,
        "definitions": DEFINITIONS | (HISTOGRAM_DEFINITIONS if args.histogram else {}),
        "settings": {"reference": str(args.ref), "mask": str(args.m) if args.m else None, "labels": args.mask_labels},
        "methods": {name: str(folder) for name, folder in methods.items()},
        "results": {method: {"pooled": pooled[method], "per_case": per_case[method]} for method in methods},
        "failed": outcome.failed,
    }
    save_json(json_safe(summary), args.o / "summary.json")
    _print_summary(DEFINITIONS, pooled, per_case)
    if args.histogram:
        print("By histogram: the exact pooled values lie in")
        for method, found in pooled.items():
            low, high, dice = (found[f"{name}_pooled"] for name in BOUNDS)
            print(f"  {method}: average precision {low:.4f} to {high:.4f}, best Dice up to {dice:.4f}")


def _print_summary(
    definitions: Mapping[str, str], pooled: Mapping[str, Mapping[str, float]], per_case: Mapping[str, Any]
) -> None:
    rows = [[definitions[key], *(f"{values[key]:.4f}" for values in pooled.values())] for key in POOLED]
    rows.append([definitions["prevalence"], *(f"{values['prevalence']:.4f}" for values in pooled.values())])
    rows += [
        [f"{definitions[key]}, mean ± SD", *(mean_and_sd(metrics[key], 4) for metrics in per_case.values())]
        for key in ("average_precision", "best_dice")
    ]
    rows.append(["cases", *(str(values["n_cases"]) for values in pooled.values())])
    print_table(["", *pooled], rows, left_columns=1)
