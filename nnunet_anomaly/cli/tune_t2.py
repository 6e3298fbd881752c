"""``nnunet-anomaly tune t2``: search the thresholds of cartilage on the held-out cases of a model's folds."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from nnunet_anomaly.cli.output import print_failures
from nnunet_anomaly.cli.t2 import add_settings_arguments, settings_of
from nnunet_anomaly.error_maps.folds import fold_of

EXAMPLE = "nnunet-anomaly tune t2 -m nnUNet_results/Dataset104_KneeMESE/MODEL -o tuning -np 4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tune t2``."""
    parser.add_argument(
        "-m",
        type=Path,
        required=True,
        metavar="MODEL",
        help="folder of a trained model, whose folds were validated with --npz; the best values are written into its "
        "plans.json",
    )
    parser.add_argument(
        "-d", metavar="DATASET", help="raw dataset with labelsTr and multi_echo (default: that of the plans)"
    )
    parser.add_argument("-f", nargs="+", type=fold_of, help="folds (default: every number that is trained)")
    parser.add_argument("-o", type=Path, required=True, help="folder for settings.json, the search's table and a page")
    parser.add_argument("--label", help="name or number of cartilage (default: femoral_cartilage, or the only label)")
    parser.add_argument(
        "--probabilities",
        type=float,
        nargs="+",
        metavar="P",
        help="probabilities to try (default: 0.05 to 0.95 in steps of 0.05, but 0.501 for 0.5)",
    )
    parser.add_argument(
        "--minimum-slice-mm2",
        type=float,
        nargs="+",
        metavar="MM2",
        help="smallest areas of a slice to try (default: 0 to 200, with the paper's, 59.3)",
    )
    add_settings_arguments(parser)
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Search, write what was found, print it."""
    from nnunet_anomaly.files import find_dataset_folder, nnunet_folder
    from nnunet_anomaly.workflow.t2_model import contents, label_of
    from nnunet_anomaly.workflow.tune_t2 import (
        MINIMUM_SLICES_MM2,
        PROBABILITIES,
        Grid,
        best_row,
        count_cases,
        search_table,
        validation_cases,
    )
    from nnunet_anomaly.workflow.tune_t2_report import forget_search, save_search
    from nnunet_anomaly.workflow.tuned_settings import write_into_plans

    dataset_json, plans = contents(args.m)
    settings, label = settings_of(args), label_of(dataset_json, args.m, args.label)
    grid = Grid(
        tuple(sorted(args.probabilities or PROBABILITIES)), tuple(sorted(args.minimum_slice_mm2 or MINIMUM_SLICES_MM2))
    )
    dataset = find_dataset_folder(nnunet_folder("nnUNet_raw"), args.d or plans["dataset_name"])
    cases = validation_cases(args.m, args.f, dataset, dataset_json["file_ending"])
    forget_search(args.o)
    print(f"{len(grid.probability) * len(grid.minimum_slice_mm2)} combinations on {len(cases)} held-out cases.")
    records, outcome = count_cases(cases, label, settings, grid.probability, args.o, args.np)
    print(f"{len(outcome.done)} done, {len(outcome.skipped)} were there already, {len(outcome.failed)} failed.")
    if outcome.failed:
        print_failures(outcome)
        print("Nothing was chosen. Mend these cases, and go on.", file=sys.stderr)
        return outcome.exit_code
    rows = search_table(records, grid)
    best = best_row(rows)
    chosen, warnings = save_search(args.o, settings, grid, rows, best, records)
    write_into_plans(args.m / "plans.json", "t2", asdict(chosen))
    _print_best(args, rows[best])
    for warning in warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    return 0


def _print_best(args: argparse.Namespace, row: dict[str, float]) -> None:
    from nnunet_anomaly.workflow.tune_t2_report import PAGE, SETTINGS

    print(
        f"Best: probability {row['probability']:g}, at least {row['minimum_slice_mm2']:g} mm^2 in a slice. "
        f"Mean Dice {row['dice']:.4f}."
    )
    print(f"Written to {args.o / SETTINGS} and {args.m / 'plans.json'}. Table: {args.o / PAGE}")
