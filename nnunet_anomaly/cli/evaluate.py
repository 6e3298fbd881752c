"""``nnunet-anomaly evaluate``: label maps against references, and two or more methods against each other."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_anomaly import __version__
from nnunet_anomaly.cli.output import (
    mean_and_sd,
    print_failures,
    print_table,
    print_without_reference,
    warn_out_of_reach,
)
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import load_json, run_cases, save_json

if TYPE_CHECKING:
    from nnunet_anomaly.workflow.evaluate import Measures, Structures

EXAMPLE = (
    "nnunet-anomaly evaluate -ref nnUNet_raw/Dataset101_Knee/labelsTs -pred predictions_plain -pred predictions_aware "
    "-o evaluation -np 4"
)

GAP_WIDTH_MM, COLLISION_MM = 7.8, 1.56  # 10 and 2 voxels of Xu's 0.78 mm
WHOLE_CASE = "(case)"  # in place of a structure, for figures of all structures together
CASE_COLUMNS = ("method", "case", "structure", "reference_voxels", "prediction_voxels", "empty")
Row = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate``."""
    parser.add_argument("-ref", type=Path, required=True, help="folder of reference label maps")
    parser.add_argument(
        "-pred",
        type=Path,
        required=True,
        action="append",
        help="folder of predicted label maps with the same file names; give it again for every further method, which "
        "is then compared with the first",
    )
    parser.add_argument("-o", type=Path, required=True, help="folder for the tables (JSON and CSV)")
    parser.add_argument("--names", nargs="+", help="names of the methods; default: names of the folders")
    parser.add_argument(
        "-l",
        "--labels",
        nargs="+",
        help="labels to evaluate, by number or by their name in dataset.json; others count as background. Default: "
        "all in dataset.json, else all found",
    )
    parser.add_argument(
        "--dataset-json",
        type=Path,
        help="default: dataset.json in a folder of predictions, of references, or the one above",
    )
    parser.add_argument(
        "--nsd-tolerance-mm", type=float, default=1.0, help="tolerance of the normalized surface Dice (default: 1.0)"
    )
    parser.add_argument(
        "--gaps",
        action="store_true",
        help="also measure where structures lie side by side: Dice inside the gaps, and voxels that are too near to "
        "another structure (collisions), in gaps.csv with the most collisions first",
    )
    parser.add_argument(
        "--gap-width-mm",
        type=float,
        help="with --gaps: a voxel is in a gap when its distances to the two nearest structures of the reference add "
        f"up to less (default: {GAP_WIDTH_MM})",
    )
    parser.add_argument(
        "--collision-mm",
        type=float,
        help="with --gaps: voxels of two structures collide whose centres are not further apart (default: "
        f"{COLLISION_MM}, Xu's 2 voxels of 0.78 mm). Give 2 of your voxels, at least the largest voxel size; below the "
        "finest one nothing collides",
    )
    parser.add_argument(
        "--save-gaps",
        type=Path,
        metavar="DIR",
        help="with --gaps: folder for the gap region of every reference, <case>.nii.gz",
    )
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Evaluate every case of every method, write the tables and print the means."""
    from nnunet_anomaly.evaluation.cohort import (
        METRICS,
        comparison_rows,
        save_table,
        summary_rows,
    )
    from nnunet_anomaly.label_maps import files_by_case
    from nnunet_anomaly.workflow.evaluate import (
        GAP_FIGURES,
        add_missing,
        collect_rows,
        collisions_out_of_reach,
        evaluate_file,
        forget_gap_regions,
        name_methods,
        record_path,
        save_gap_region,
    )

    for option in ("nsd_tolerance_mm", "gap_width_mm", "collision_mm"):
        if (value := getattr(args, option)) is not None and not 0 <= value < math.inf:
            raise InputError(f"--{option.replace('_', '-')} is {value}; it must be finite and cannot be negative.")
    references = files_by_case(args.ref)
    methods = name_methods(args.pred, args.names)
    predictions = {name: files_by_case(folder) for name, folder in methods.items()}
    measures = _measures(args)
    cases = [
        (f"{method}: {case}", (references[case], files[case], measures, record_path(args.o, method, case)))
        for method, files in predictions.items()
        for case in references
        if case in files
    ]
    if not cases:
        raise InputError(f"No file in {', '.join(map(str, args.pred))} has the name of one in {args.ref}.")
    outcome = run_cases(evaluate_file, cases, args.np, "evaluate")
    if args.save_gaps:
        forget_gap_regions(args.save_gaps, references)
        work = [(f"gap region: {case}", (path, args.save_gaps, measures)) for case, path in references.items()]
        outcome.failed |= run_cases(save_gap_region, work, args.np, "gap regions").failed
    add_missing(outcome, references, predictions, methods)
    rows, gap_rows = collect_rows(references, methods, outcome, args.o, measures)
    metrics = (*METRICS, "gap_dsc") if measures.gaps else METRICS
    summaries, comparisons = summary_rows(rows, metrics), comparison_rows(rows, metrics)
    by_case = [{**row, "structure": WHOLE_CASE} for row in gap_rows]
    gap_summaries, gap_comparisons = summary_rows(by_case, GAP_FIGURES), comparison_rows(by_case, GAP_FIGURES)
    beyond = collisions_out_of_reach(references, gap_rows, measures.gaps)
    settings = {key: value for key, value in measures.settings().items() if key != "known"}
    extra = {method: sorted(set(files) - set(references)) for method, files in predictions.items()}
    summary = {
        "settings": settings | {"reference": str(args.ref)},
        "methods": {name: str(folder) for name, folder in methods.items()},
        "results": nested(summaries),
        **({"gaps": {method: by[WHOLE_CASE] for method, by in nested(gap_summaries).items()}} if measures.gaps else {}),
        **({"collisions_out_of_reach": beyond} if measures.gaps else {}),
        "failed": outcome.failed,
        "predictions_without_reference": extra,
    }
    _save(args.o, rows, [*summaries, *gap_summaries], [*comparisons, *gap_comparisons], summary, metrics)
    if measures.gaps:
        save_table(gap_rows, args.o / "gaps.csv", ("method", "case", *GAP_FIGURES))
    else:
        (args.o / "gaps.csv").unlink(missing_ok=True)  # of an earlier run
    _print_summary(summaries, args.nsd_tolerance_mm)
    _print_gaps(gap_summaries)
    _print_collisions(gap_rows)
    _print_comparisons(comparisons)
    print_without_reference(extra)
    if measures.gaps:
        warn_out_of_reach(beyond, "--collision-mm", measures.gaps.collision_mm)
    print_failures(outcome)
    return outcome.exit_code


def nested(summaries: Iterable[Row]) -> dict[str, Any]:
    """Summary rows as method, structure, metric; each with n, n_undefined, mean, sd, median."""
    tree: dict[str, Any] = {}
    for row in summaries:
        values = {key: value for key, value in row.items() if key not in ("method", "structure", "metric")}
        tree.setdefault(row["method"], {}).setdefault(row["structure"], {})[row["metric"]] = values
    return tree


def _measures(args: argparse.Namespace) -> Measures:
    from nnunet_anomaly.workflow.evaluate import Gaps, Measures

    structures, known = _find_structures(args)
    gaps = (
        Gaps(_or_else(args.gap_width_mm, GAP_WIDTH_MM), _or_else(args.collision_mm, COLLISION_MM))
        if args.gaps
        else None
    )
    if not gaps and any(value is not None for value in (args.gap_width_mm, args.collision_mm, args.save_gaps)):
        raise InputError("--gap-width-mm, --collision-mm and --save-gaps are of --gaps, which is not given.")
    if args.save_gaps and args.save_gaps.resolve() in [folder.resolve() for folder in (args.ref, *args.pred)]:
        raise InputError(
            f"--save-gaps: {args.save_gaps} holds label maps; name another folder, so that nothing is lost."
        )
    if gaps and structures and len(structures) < 2:
        raise InputError("--gaps: there are no gaps with fewer than two structures.")
    regions = [name for name, labels in (structures or {}).items() if len(labels) > 1]
    if gaps and regions:
        raise InputError(
            f"--gaps: {', '.join(regions)} are of several labels, so that gaps lie inside them. Choose by -l."
        )
    return Measures(structures, known, args.nsd_tolerance_mm, gaps)


def _or_else(value: float | None, default: float) -> float:
    return default if value is None else value


def _find_structures(args: argparse.Namespace) -> tuple[Structures | None, frozenset[int] | None]:
    """Structures to evaluate, and the labels that a file may hold; None where nothing says so.

    Raises:
        InputError: a name without a dataset.json that has it, a dataset.json with an ignore label and no ``-l``, or one
            whose labels are none.
    """
    from nnunet_anomaly.dataset_roles import labels_by_name

    folders = (*args.pred, args.ref, args.ref.resolve().parent)
    found = [folder / "dataset.json" for folder in folders if (folder / "dataset.json").is_file()]
    path = args.dataset_json or next(iter(found), None)
    by_name = labels_by_name(load_json(path), path) if path else {}
    if args.labels:
        return dict(_chosen(label, by_name) for label in args.labels), None
    if "ignore" in by_name:
        raise InputError(
            f"{path} has an ignore label, where distances between surfaces mean nothing. Name the labels to evaluate "
            "by -l; the ignored region then counts as background."
        )
    if not by_name:
        return None, None
    print(f"Labels: {', '.join(by_name)} ({path})")
    return by_name, frozenset(label for labels in by_name.values() for label in labels)


def _chosen(label: str, by_name: Structures) -> tuple[str, tuple[int, ...]]:
    from nnunet_anomaly.label_maps import LARGEST_LABEL

    if label in by_name:
        return label, tuple(by_name[label])
    if not label.isdecimal() or not 1 <= int(label) <= LARGEST_LABEL:
        known = ", ".join(by_name) or "no names"
        raise InputError(f"-l: '{label}' is neither a number from 1 to {LARGEST_LABEL} nor one of {known}.")
    names = [name for name, labels in by_name.items() if tuple(labels) == (int(label),)]
    return (names[0] if names else label), (int(label),)


def _save(
    output: Path,
    rows: Sequence[Row],
    summaries: Sequence[Row],
    comparisons: Sequence[Row],
    summary: dict[str, Any],
    metrics: Sequence[str],
) -> None:
    from nnunet_anomaly.evaluation.cohort import DEFINITIONS, GAP_DEFINITIONS, json_safe, save_table

    definitions = (
        DEFINITIONS
        | (GAP_DEFINITIONS if "gap_dsc" in metrics else {})
        | {
            "sd": "standard deviation over cases (n - 1)",
            "n_undefined": "cases left out",
        }
    )
    save_table(rows, output / "cases.csv", (*CASE_COLUMNS, *metrics))
    save_table(summaries, output / "summary.csv")
    save_json(json_safe({"version": __version__, "definitions": definitions, **summary}), output / "summary.json")
    if len(summary["methods"]) > 1:
        note = "second minus first; two-sided p-values, not adjusted for the number of comparisons"
        save_table(comparisons, output / "comparison.csv")
        save_json(json_safe({"difference": note, "comparisons": comparisons}), output / "comparison.json")


def _print_summary(summaries: Sequence[Row], tolerance_mm: float) -> None:
    digits = {"dsc": 4, "asd_mm": 3, "hd_mm": 2, "hd95_mm": 2, "nsd": 4, "gap_dsc": 4}
    titles = ["DSC", "ASD mm", "HD mm", "HD95 mm", f"NSD at {tolerance_mm:g} mm", "gap DSC"]
    by_method = nested(summaries)
    shown = [metric for metric in digits if any(row["metric"] == metric for row in summaries)]
    rows = [
        [method, structure, *(mean_and_sd(metrics[metric], digits[metric]) for metric in shown)]
        for method, structures in by_method.items()
        for structure, metrics in structures.items()
    ]
    print("Mean ± SD over cases")
    print_table(["method", "structure", *titles[: len(shown)]], rows)


def _print_gaps(gap_summaries: Sequence[Row]) -> None:
    """GapDice both ways, and collisions, of all structures together."""
    digits = {"gap_dsc_mean": 4, "gap_dsc_pooled": 4, "collision_voxels": 1}
    rows = [
        [method, *(mean_and_sd(by[WHOLE_CASE][figure], places) for figure, places in digits.items())]
        for method, by in nested(gap_summaries).items()
    ]
    if rows:
        print("\nGaps, all structures together")
        header = ["method", "gap DSC, class mean", "gap DSC, pooled", "collision voxels"]
        print_table(header, rows, left_columns=1)


def _print_collisions(gap_rows: Sequence[Row], shown: int = 5) -> None:
    if gap_rows:
        print(f"\nMost collisions ({min(shown, len(gap_rows))} of {len(gap_rows)})")
        rows = [
            [row["method"], row["case"], str(row["collision_voxels"]), f"{row['gap_dsc_pooled']:.4f}"]
            for row in gap_rows[:shown]
        ]
        print_table(["method", "case", "collision voxels", "gap DSC, pooled"], rows)


def _print_comparisons(comparisons: Sequence[Row]) -> None:
    rows = [
        [
            f"{row['second']} - {row['first']}",
            row["structure"],
            row["metric"],
            str(row["n"]),
            _number(row["mean_difference"], "+.4f"),
            " to ".join(_number(row[end], "+.4f") for end in ("ci95_low", "ci95_high")),
            _number(row["cohen_dz"], "+.2f"),
            _number(row["p_t"], ".3g"),
            _number(row["p_wilcoxon"], ".3g"),
        ]
        for row in comparisons
        if row["n"] and row["metric"] in ("dsc", "asd_mm", "hd_mm", "hd95_mm", "nsd", "gap_dsc")
    ]
    if rows:
        print("\nPaired differences")
        header = ["methods", "structure", "metric", "n", "mean", "95 % CI", "dz", "p (t)", "p (Wilcoxon)"]
        print_table(header, rows, left_columns=3)


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
