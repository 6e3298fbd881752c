"""``nnunet-anomaly evaluate``: label maps against references, and two or more methods against each other."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_anomaly import __version__
from nnunet_anomaly.cli.output import mean_and_sd, print_failures, print_table, print_without_reference
from nnunet_anomaly.errors import InputError, LabelError
from nnunet_anomaly.files import Outcome, is_up_to_date, load_json, made_from, run_cases, save_json

EXAMPLE = (
    "nnunet-anomaly evaluate -ref nnUNet_raw/Dataset101_Knee/labelsTs -pred predictions_plain -pred predictions_aware "
    "-o evaluation -np 4"
)

CASE_COLUMNS = ("method", "case", "structure", "reference_voxels", "prediction_voxels", "empty")
Structures = Mapping[str, Sequence[int]]
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
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Evaluate every case of every method, write the tables and print the means."""
    from nnunet_anomaly.evaluation.cohort import comparison_rows, summary_rows
    from nnunet_anomaly.label_maps import files_by_case

    if not 0 <= args.nsd_tolerance_mm < math.inf:
        raise InputError(f"--nsd-tolerance-mm is {args.nsd_tolerance_mm}; it must be finite and cannot be negative.")
    references = files_by_case(args.ref)
    methods = name_methods(args.pred, args.names)
    predictions = {name: files_by_case(folder) for name, folder in methods.items()}
    structures, known = _find_structures(args)
    cases = [
        (
            f"{method}: {case}",
            (
                references[case],
                files[case],
                structures,
                known,
                args.nsd_tolerance_mm,
                record_path(args.o, method, case),
            ),
        )
        for method, files in predictions.items()
        for case in references
        if case in files
    ]
    if not cases:
        raise InputError(f"No file in {', '.join(map(str, args.pred))} has the name of one in {args.ref}.")
    outcome = run_cases(_evaluate_file, cases, args.np, "evaluate")
    add_missing(outcome, references, predictions, methods)
    rows = _collect_rows(references, methods, outcome, args.o, structures)
    summaries, comparisons = summary_rows(rows), comparison_rows(rows)
    settings = {"nsd_tolerance_mm": args.nsd_tolerance_mm, "structures": structures, "reference": str(args.ref)}
    extra = {method: sorted(set(files) - set(references)) for method, files in predictions.items()}
    summary = {
        "settings": settings,
        "methods": {name: str(folder) for name, folder in methods.items()},
        "results": nested(summaries),
        "failed": outcome.failed,
        "predictions_without_reference": extra,
    }
    _save(args.o, rows, summaries, comparisons, summary)
    _print_summary(summaries, args.nsd_tolerance_mm)
    _print_comparisons(comparisons)
    print_without_reference(extra)
    print_failures(outcome)
    return outcome.exit_code


def name_methods(folders: Sequence[Path], names: Sequence[str] | None) -> dict[str, Path]:
    """Folder of every method by its name: as given, else the folder's name, with its parent's where two are alike.

    Raises:
        InputError: the number of names is wrong, two are alike, or one cannot be a folder's name.
    """
    if names is None:
        names = [folder.resolve().name for folder in folders]
        if len(set(names)) < len(names):
            names = [f"{folder.resolve().parent.name}_{folder.resolve().name}" for folder in folders]
    if len(names) != len(folders) or len(set(names)) < len(names):
        raise InputError(f"--names must give {len(folders)} different names, one for each -pred; got {list(names)}.")
    for name in names:
        if not name or name.startswith(".") or Path(name).name != name:
            raise InputError(f"--names: '{name}' cannot be a method's name, since a folder is named so.")
    return dict(zip(names, folders, strict=True))


def record_path(output: Path, method: str, case: str) -> Path:
    """Where the figures of one case are kept, so that a later run need not repeat it."""
    return output / "cases" / method / f"{case}.json"


def add_missing(
    outcome: Outcome,
    references: Iterable[str],
    predictions: Mapping[str, Mapping[str, Path]],
    methods: Mapping[str, Path],
) -> None:
    """Count every reference without a prediction as a failed case."""
    for method, files in predictions.items():
        for case in references:
            if case not in files:
                outcome.failed[f"{method}: {case}"] = f"{methods[method]} has no file for this case."


def nested(summaries: Iterable[Row]) -> dict[str, Any]:
    """Summary rows as method, structure, metric; each with n, n_undefined, mean, sd, median."""
    tree: dict[str, Any] = {}
    for row in summaries:
        values = {key: value for key, value in row.items() if key not in ("method", "structure", "metric")}
        tree.setdefault(row["method"], {}).setdefault(row["structure"], {})[row["metric"]] = values
    return tree


def _find_structures(args: argparse.Namespace) -> tuple[Structures | None, frozenset[int] | None]:
    """Structures to evaluate, and the labels that a file may hold; None where nothing says so.

    Raises:
        InputError: a name without a dataset.json that has it, or a dataset.json with an ignore label and no ``-l``.
    """
    folders = (*args.pred, args.ref, args.ref.resolve().parent)
    found = [folder / "dataset.json" for folder in folders if (folder / "dataset.json").is_file()]
    path = args.dataset_json or next(iter(found), None)
    by_name = {
        name: tuple(value) if isinstance(value, list) else (int(value),)
        for name, value in (load_json(path).get("labels", {}) if path else {}).items()
        if name != "background"
    }
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


def _evaluate_file(
    reference_file: Path,
    prediction_file: Path,
    structures: Structures | None,
    known: frozenset[int] | None,
    nsd_tolerance_mm: float,
    record: Path,
) -> bool:
    """Worker: write the figures of one case; False when they are there already, of the same files and settings."""
    from nnunet_anomaly.evaluation.cohort import json_safe, structure_metrics
    from nnunet_anomaly.evaluation.overlap import overlap_counts
    from nnunet_anomaly.label_maps import check_same_grid, read_label_map, spacing_zyx_mm

    settings = {"structures": structures, "known": sorted(known or ()), "nsd_tolerance_mm": nsd_tolerance_mm}
    source = made_from([reference_file, prediction_file], settings)
    if is_up_to_date(record, source):
        return False
    reference, image = read_label_map(reference_file)
    prediction, other = read_label_map(prediction_file)
    check_same_grid(image, reference_file, other, prediction_file)
    if known is not None and (stray := sorted(set(overlap_counts(reference, prediction)) - known)):
        raise LabelError(
            f"{reference_file} or {prediction_file} holds labels {stray}, which dataset.json does not have. Correct "
            "one of them, or choose labels by -l."
        )
    figures = structure_metrics(reference, prediction, spacing_zyx_mm(image), structures, nsd_tolerance_mm)
    save_json({"made_from": source, "structures": json_safe(figures)}, record)
    return True


def _collect_rows(
    references: Iterable[str],
    methods: Iterable[str],
    outcome: Outcome,
    output: Path,
    structures: Structures | None,
) -> list[dict[str, Any]]:
    """A row for every method, case and structure; what a case does not have counts as empty on both sides."""
    from nnunet_anomaly.evaluation.cohort import absent_structure

    found = {
        (method, case): load_json(record_path(output, method, case))["structures"]
        for method in methods
        for case in references
        if f"{method}: {case}" not in outcome.failed
    }
    names = list(structures or sorted({name for figures in found.values() for name in figures}, key=int))
    rows = []
    for (method, case), by_structure in found.items():
        for name in names:
            figures = by_structure.get(name, absent_structure())
            values = {key: math.nan if value is None else value for key, value in figures.items()}
            rows.append({"method": method, "case": case, "structure": name, **values})
    return rows


def _save(
    output: Path, rows: Sequence[Row], summaries: Sequence[Row], comparisons: Sequence[Row], summary: dict[str, Any]
) -> None:
    from nnunet_anomaly.evaluation.cohort import DEFINITIONS, METRICS, json_safe, save_table

    definitions = DEFINITIONS | {"sd": "standard deviation over cases (n - 1)", "n_undefined": "cases left out"}
    save_table(rows, output / "cases.csv", (*CASE_COLUMNS, *METRICS))
    save_table(summaries, output / "summary.csv")
    save_json(json_safe({"version": __version__, "definitions": definitions, **summary}), output / "summary.json")
    if len(summary["methods"]) > 1:
        note = "second minus first; two-sided p-values, not adjusted for the number of comparisons"
        save_table(comparisons, output / "comparison.csv")
        save_json(json_safe({"difference": note, "comparisons": comparisons}), output / "comparison.json")


def _print_summary(summaries: Sequence[Row], tolerance_mm: float) -> None:
    digits = {"dsc": 4, "asd_mm": 3, "hd_mm": 2, "hd95_mm": 2, "nsd": 4}
    rows = [
        [method, structure, *(mean_and_sd(metrics[metric], places) for metric, places in digits.items())]
        for method, structures in nested(summaries).items()
        for structure, metrics in structures.items()
    ]
    print("Mean ± SD over cases")
    print_table(["method", "structure", "DSC", "ASD mm", "HD mm", "HD95 mm", f"NSD at {tolerance_mm:g} mm"], rows)


def _print_comparisons(comparisons: Sequence[Row]) -> None:
    rows = [
        [
            f"{row['second']} - {row['first']}",
            row["structure"],
            row["metric"],
            str(row["n"]),
            f"{row['mean_difference']:+.4f}",
            f"{row['ci95_low']:+.4f} to {row['ci95_high']:+.4f}",
            f"{row['cohen_dz']:+.2f}",
            f"{row['p_t']:.3g}",
            f"{row['p_wilcoxon']:.3g}",
        ]
        for row in comparisons
        if row["metric"] in ("dsc", "asd_mm", "hd_mm", "hd95_mm", "nsd")
    ]
    if rows:
        print("\nPaired differences")
        header = ["methods", "structure", "metric", "n", "mean", "95 % CI", "dz", "p (t)", "p (Wilcoxon)"]
        print_table(header, rows, left_columns=3)
