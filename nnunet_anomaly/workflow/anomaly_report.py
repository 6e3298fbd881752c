"""What ``nnunet-anomaly evaluate-anomaly`` writes and prints in the end."""

from __future__ import annotations

import argparse
import sys

from nnunet_anomaly.cli.output import mean_and_sd, print_table
from nnunet_anomaly.evaluation.anomaly import DEFINITIONS
from nnunet_anomaly.evaluation.lesions import FROC_RATES
from nnunet_anomaly.workflow.anomaly_cases import BOUNDS, PER_CASE
from nnunet_anomaly.workflow.anomaly_pictures import draw_pictures
from nnunet_anomaly.workflow.anomaly_results import SUMMARISED, Results
from nnunet_anomaly.workflow.anomaly_tables import MORE_DEFINITIONS, save_summary, save_tables


def write_results(args: argparse.Namespace, results: Results) -> None:
    """Write all tables and pictures, and print the summary."""
    save_tables(args, results)
    save_summary(args, results)
    draw_pictures(args, results)
    _print_areas(results)
    _print_thresholds(results)
    for warning in results.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    if results.without_lesion:
        _print_lesion_free(results)
    _print_frocs(results)


def _print_areas(results: Results) -> None:
    """Areas under curves and best Dice, pooled and by case."""
    pooled = {method: found.figures for method, found in results.pooled.items()}
    keys = [f"{name}_pooled" for name in PER_CASE] + ["average_precision_slices", "prevalence"]
    definitions = (
        DEFINITIONS | MORE_DEFINITIONS | {"average_precision_slices": "average precision, slices of all cases"}
    )
    rows = [[definitions[key], *(f"{values[key]:.4f}" for values in pooled.values())] for key in keys]
    rows += [
        [f"{definitions[key]}, mean ± SD", *(mean_and_sd(metrics[key], 4) for metrics in results.per_case.values())]
        for key in SUMMARISED
    ]
    rows.append(["cases", *(str(values["n_cases"]) for values in pooled.values())])
    print_table(["", *pooled], rows, left_columns=1)
    if results.pooled_by == "histogram":
        print("By histogram: the exact pooled values lie in")
        for method, found in pooled.items():
            low, high, dice_high = (found[f"{name}_pooled"] for name in (*BOUNDS[:2], BOUNDS[-1]))
            print(f"  {method}: average precision {low:.4f} to {high:.4f}, best Dice up to {dice_high:.4f}")


def _print_thresholds(results: Results) -> None:
    print("\nAt one threshold for all cases")
    print_table(
        ["method", "threshold from", "value", "Dice, set", "Dice, subjects", "lesions hit", "false ones a case"],
        [
            [
                row["method"],
                row["kind"].replace("_", ", "),
                f"{row['threshold']:.4g}",
                f"{row['dice_set']:.4f}",
                mean_and_sd({name: row[f"dice_subject_{name}"] for name in ("n", "n_undefined", "mean", "sd")}, 4),
                f"{row['lesion_sensitivity']:.3f}",
                f"{row['false_positives_per_case']:.1f}",
            ]
            for row in results.threshold_rows
        ],
    )


def _print_lesion_free(results: Results) -> None:
    names = ", ".join(results.without_lesion)
    print(f"\nWithout a lesion voxel inside the mask, so that no figure by subject has them: {names}")
    print_table(
        ["method", "threshold from", "cases", "share called", "called, mm3"],
        [
            [
                row["method"],
                row["kind"].replace("_", ", "),
                str(row["lesion_free_cases"]),
                f"{row['lesion_free_called_share']:.3f}",
                f"{row['lesion_free_called_mm3_mean']:.4g}",
            ]
            for row in results.threshold_rows
        ],
    )


def _print_frocs(results: Results) -> None:
    print("\nShare of lesions hit, by false positives a case")
    print_table(
        ["method", "lesions", "number", *(f"{rate:g}" for rate in FROC_RATES)],
        [
            [method, group, str(curve.n_lesions), *(f"{curve.sensitivity_at(rate):.3f}" for rate in FROC_RATES)]
            for method, curves in results.frocs.items()
            for group, curve in curves.items()
        ],
    )
