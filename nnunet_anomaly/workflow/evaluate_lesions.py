"""What ``nnunet-anomaly evaluate-lesions`` does: figures of every case, then tables, a picture and a report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_anomaly import __version__
from nnunet_anomaly.cli.output import mean_and_sd, print_failures, print_table, print_without_reference
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.evaluation.cohort import json_safe, save_table
from nnunet_anomaly.evaluation.confusion import DEFINITIONS, METRICS
from nnunet_anomaly.files import Outcome, load_json, run_cases, save_json
from nnunet_anomaly.label_maps import files_by_case
from nnunet_anomaly.workflow.evaluate import add_missing, name_methods, record_path
from nnunet_anomaly.workflow.lesion_cases import CaseFiles, Looks, measure_case
from nnunet_anomaly.workflow.lesion_report import PICTURE, REPORT, write_report
from nnunet_anomaly.workflow.lesion_results import ANY_CASE, CASE, LESION_FREE, SLICE, Results, results_of

TABLES = ("cases.csv", "slices.csv", "lesions.csv", "summary.csv", "sizes.csv", "detection.csv", "comparison.csv")
UNIT_DEFINITIONS = {
    CASE: "figures of whole cases that have a lesion voxel inside the bone",
    SLICE: "figures of single slices that have a lesion voxel inside the bone, over the slices of all cases (the unit "
    "of Qin 2024); slices of one case are not independent, so that methods are compared by case alone",
    LESION_FREE: "cases without a lesion voxel inside the bone, which no figure of lesions has",
    ANY_CASE: "all cases",
    "lesion": "connected component of the reference (26 neighbours); of its voxels those inside the bone count",
    "lesion_sensitivity": "share of lesions that are hit, by case or over all lesions",
    "group": "fifth by size of lesion, the smallest first; by area in slices, by volume in cases and of lesions",
    "sd": "standard deviation (n - 1)",
    "n_undefined": "left out, since the figure is not applicable to them",
}


def evaluate(args: argparse.Namespace) -> int:
    """Measure all cases, write what follows from them, print a summary; returns the exit code."""
    looks = _looks(args)
    references, bones = files_by_case(args.ref), files_by_case(args.b)
    methods = name_methods(args.pred, args.names)
    predictions = {name: files_by_case(folder) for name, folder in methods.items()}
    outcome = Outcome()
    add_missing(outcome, references, predictions, methods)
    jobs = {}
    for method, files in predictions.items():
        for case in (case for case in references if case in files):
            if case in bones:
                jobs[method, case] = CaseFiles(references[case], files[case], bones[case])
            else:
                outcome.failed[f"{method}: {case}"] = f"{args.b} has no bone mask for this case."
    if not jobs:
        folders = ", ".join(map(str, (*args.pred, args.b)))
        raise InputError(f"No case of {args.ref} has its files in {folders}.")
    records = {key: record_path(args.o, *key) for key in jobs}
    work = [(f"{method}: {case}", (jobs[method, case], looks, path)) for (method, case), path in records.items()]
    outcome.failed |= run_cases(measure_case, work, args.np, "evaluate").failed
    finished = {key: load_json(path) for key, path in records.items() if ": ".join(key) not in outcome.failed}
    for name in (*TABLES, "summary.json", REPORT, PICTURE):  # of an earlier run
        (args.o / name).unlink(missing_ok=True)
    without_reference = {method: sorted(set(files) - set(references)) for method, files in predictions.items()}
    if finished:
        results = results_of(finished, list(methods))
        _save(args, looks, results, methods, outcome, without_reference)
        write_report(args.o, results, _about(args, looks), outcome.failed)
        _print(results)
    else:
        print("No case could be evaluated: there are no tables.")
    print_without_reference(without_reference)
    print_failures(outcome)
    return outcome.exit_code


def _looks(args: argparse.Namespace) -> Looks:
    for option in ("hit_overlap", "component_overlap"):
        if not 0 <= getattr(args, option) <= 1:
            flag = f"--{option.replace('_', '-')}"
            raise InputError(f"{flag} is {getattr(args, option)}; it must be a share from 0 to 1.")
    return Looks(tuple(args.bone_labels), args.slice_plane, args.hit_overlap, args.component_overlap)


def _about(args: argparse.Namespace, looks: Looks) -> str:
    """What was compared with what, in words."""
    labels = f" (labels {', '.join(map(str, looks.bone_labels))})" if looks.bone_labels else ""
    return (
        f"References: `{args.ref}`, looked at inside the bone: `{args.b}`{labels}. Slices are {looks.slice_plane}. A "
        f"component of which less than a share of {looks.component_overlap:g} lies in lesions is a false positive and "
        "finds nothing."
    )


def _save(
    args: argparse.Namespace,
    looks: Looks,
    results: Results,
    methods: Mapping[str, Path],
    outcome: Outcome,
    without_reference: Mapping[str, Sequence[str]],
) -> None:
    rows: tuple[list[dict[str, Any]], ...] = (
        results.case_rows,
        results.slice_rows,
        results.lesion_rows,
        results.summaries,
        results.size_rows,
        results.detection_rows,
        results.comparisons,
    )
    for name, table in zip(TABLES, rows, strict=True):
        if name != "comparison.csv" or len(methods) > 1:
            save_table(table, args.o / name)
    tree: dict[str, Any] = {}
    for row in results.summaries:
        values = {key: value for key, value in row.items() if key not in ("unit", "method", "metric")}
        tree.setdefault(row["method"], {}).setdefault(row["unit"], {})[row["metric"]] = values
    summary = {
        "version": __version__,
        "definitions": DEFINITIONS | UNIT_DEFINITIONS,
        "settings": {"reference": str(args.ref), "bone": str(args.b), **vars(looks)},
        "methods": {name: str(folder) for name, folder in methods.items()},
        "results": tree,
        "detection": {
            row["method"]: {key: row[key] for key in row if key != "method"} for row in results.detection_rows
        },
        "sizes": results.size_rows,
        "comparisons": results.comparisons,
        "cases_without_lesion": sorted({row["case"] for row in results.by_unit[LESION_FREE]}),
        "failed": outcome.failed,
        "predictions_without_reference": without_reference,
    }
    save_json(json_safe(summary), args.o / "summary.json")


def _print(results: Results) -> None:
    by_key = {(row["method"], row["unit"], row["metric"]): row for row in results.summaries}
    rows = [
        [method, unit, str(by_key[method, unit, "accuracy"]["n"])]
        + [mean_and_sd(by_key[method, unit, metric], 4) for metric in METRICS]
        for method in results.methods
        for unit in (CASE, SLICE)
        if (method, unit, "accuracy") in by_key
    ]
    print("Mean ± SD over cases, and over slices, with a lesion")
    print_table(["method", "by", "n", *METRICS], rows)
    print("\nLesions")
    print_table(
        ["method", "lesions", "hit", "share", "false ones a case"],
        [
            [
                row["method"],
                str(row["lesions"]),
                str(row["lesions_hit"]),
                f"{row['lesion_sensitivity']:.3f}",
                f"{row['false_positives_per_case']:.2f}",
            ]
            for row in results.detection_rows
        ],
        left_columns=1,
    )
