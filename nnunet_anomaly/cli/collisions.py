"""``nnunet-anomaly collisions``: where predicted structures are too near to one another, and which case to correct."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_anomaly.cli.output import print_failures, print_table, warn_out_of_reach
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import load_json

EXAMPLE = "nnunet-anomaly collisions -i predictions -o collisions --distance-mm 1.56 -np 4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``collisions``."""
    parser.add_argument("-i", type=Path, required=True, help="folder of label maps")
    parser.add_argument("-o", type=Path, required=True, help="folder for the collision sets and the tables")
    parser.add_argument(
        "--distance-mm",
        type=float,
        default=1.56,
        metavar="MM",
        help="voxels of two structures collide whose centres are not further apart (default: 1.56, Xu's 2 voxels of "
        "0.78 mm). Give 2 of your voxels, at least the largest voxel size; below the finest one nothing collides",
    )
    parser.add_argument(
        "-l",
        "--labels",
        type=int,
        nargs="+",
        help="labels that should be apart; others count as background (default: all)",
    )
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Find the collisions of every label map, write them and print the ranking."""
    from nnunet_anomaly.dataset_roles import label_values
    from nnunet_anomaly.label_maps import check_labels, files_by_case
    from nnunet_anomaly.workflow.collisions import SUMMARY, collide_cases

    if not 0 <= args.distance_mm < math.inf:
        raise InputError(f"--distance-mm is {args.distance_mm}; it must be finite and cannot be negative.")
    if args.i.resolve() == args.o.resolve():
        raise InputError(f"{args.i} is input and output; name another output folder, so that nothing is lost.")
    files = files_by_case(args.i)
    if not files:
        raise InputError(f"{args.i} holds no label map (.nii.gz, .nii, .nrrd, .mha).")
    known = label_values(args.i / "dataset.json")
    check_labels(args.labels or ())
    if known is not None and (unknown := sorted(set(args.labels or ()) - set(known))):
        raise InputError(f"-l: {args.i / 'dataset.json'} has no labels {unknown}; it has {list(known)}.")
    outcome = collide_cases(files, args.o, args.distance_mm, args.labels, known, args.np)
    summary = load_json(args.o / SUMMARY)
    _print_summary(summary)
    print(f"{len(outcome.done)} done, {len(outcome.skipped)} were there already, {len(outcome.failed)} failed.")
    warn_out_of_reach(summary["out_of_reach"], "--distance-mm", args.distance_mm)
    print_failures(outcome)
    return outcome.exit_code


def _print_summary(summary: Mapping[str, Any], shown: int = 10) -> None:
    if not summary["cases"]:
        return
    voxels, volume = summary["collision_voxels"], summary["collision_mm3"]
    print(
        f"|E| at {summary['settings']['distance_mm']:g} mm, {summary['cases']} cases: {voxels['total']} voxels, "
        f"mean {voxels['mean']:.1f}; {volume['total']:.1f} mm^3, mean {volume['mean']:.1f}. "
        f"Cases without any: {summary['cases_without_collision']}."
    )
    if summary["pairs"]:
        print("\nLabels that collide")
        pairs = [
            [f"{row['label']}:{row['other']}", str(row["voxels"]), f"{row['mm3']:.1f}", str(row["cases"])]
            for row in summary["pairs"]
        ]
        print_table(["labels", "voxels", "mm^3", "cases"], pairs, left_columns=1)
        first = [row for row in summary["ranking"] if row["collision_voxels"]][:shown]
        print(f"\nCorrect next ({len(first)} of {len(summary['ranking'])})")
        cases = [
            [row["case"], row["most_between"], str(row["collision_voxels"]), f"{row['collision_mm3']:.1f}"]
            for row in first
        ]
        print_table(["case", "most between", "voxels", "mm^3"], cases)
