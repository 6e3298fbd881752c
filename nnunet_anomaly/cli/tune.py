"""``nnunet-anomaly tune``: search settings on validation cases."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_anomaly.cli import tune_t2
from nnunet_anomaly.cli.lesions import (
    add_case_arguments,
    add_settings_arguments,
    cases_of,
    check_output,
    labels_of,
    settings_of,
)
from nnunet_anomaly.cli.output import print_failures, print_without_reference
from nnunet_anomaly.errors import InputError, SettingsError

if TYPE_CHECKING:
    from nnunet_anomaly.settings import BmlSettings
    from nnunet_anomaly.workflow.bml_lesions import CaseFiles, ErrorMapFiles
    from nnunet_anomaly.workflow.tune_bml import Grid

EXAMPLE = (
    "nnunet-anomaly tune bml -i imagesVal -r reconstructions -b bones -ref lesionsVal -o tuning \\\n"
    "      -m nnUNet_results/Dataset101_Knee/TRAINER__PLANS__2d_inpainting -np 4"
)

EQUALISATIONS = ("slice", "volume", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one sub-command a method."""
    kinds = parser.add_subparsers(dest="method", metavar="METHOD", required=True)
    _add_bml(
        kinds.add_parser(
            "bml",
            help="lesions in bone: the settings of 'lesions'",
            description="Try all combinations of settings of 'nnunet-anomaly lesions' on validation cases with "
            "reference masks, and keep the best.",
            epilog=f"Example:\n  {EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    tune_t2.add_arguments(
        kinds.add_parser(
            "t2",
            help="cartilage for T2: the thresholds of 't2'",
            description="Try all combinations of the two thresholds of 'nnunet-anomaly t2' on the held-out cases of a "
            "model's folds, and keep the best.",
            epilog=f"Example:\n  {tune_t2.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )


def _add_bml(parser: argparse.ArgumentParser) -> None:
    add_case_arguments(parser)
    parser.add_argument(
        "-ref", type=Path, required=True, help="folder of lesion masks of validation cases, <case>.nii.gz"
    )
    parser.add_argument("-o", type=Path, required=True, help="folder for settings.json, the search's table and a page")
    add_settings_arguments(parser)
    parser.add_argument(
        "--equalisations",
        nargs="+",
        choices=EQUALISATIONS,
        help="histogram equalisations to try (default: all three); not with -e, as error maps are not equalised",
    )
    parser.add_argument(
        "--otsu",
        nargs="+",
        choices=("slice", "volume"),
        default=["slice", "volume"],
        help="scopes of Otsu's threshold to try (default: both)",
    )
    for name, what in (("opening", "radii of the opening"), ("closing", "radii of the closing")):
        pixels = "0, 1, 2 and 3" if name == "opening" else "0, 1, 2 and 4"
        parser.add_argument(
            f"--{name}-mm", type=float, nargs="+", metavar="MM", help=f"{what} to try (default: {pixels} pixels)"
        )
    parser.add_argument(
        "--minimum-mm3",
        type=float,
        nargs="+",
        metavar="MM3",
        help="smallest volumes to try (default: 0 and those of discs of 2, 4 and 8 pixels' radius, one slice thick)",
    )
    parser.add_argument(
        "--pooled",
        action="store_true",
        help="choose by the Dice of all cases' voxels together, those found in cases without lesion too (default: by "
        "the mean Dice of cases with a lesion)",
    )
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Search, write what was found, print it."""
    return {"bml": _tune_bml, "t2": tune_t2.run}[args.method](args)


def _tune_bml(args: argparse.Namespace) -> int:
    from nnunet_anomaly.workflow.tune_bml import (
        best_row,
        count_cases,
        refuse_without_lesion,
        search_table,
        without_uncounted,
    )
    from nnunet_anomaly.workflow.tune_bml_report import chosen_settings, forget_search, save_search
    from nnunet_anomaly.workflow.tuned_settings import write_into_plans

    settings = settings_of(args)
    check_output(args, args.ref)
    forget_search(args.o)
    cases, references, without = _cases_with_reference(args)
    refuse_without_lesion(references)
    grid = _grid(args, cases, settings.bml)
    print(f"{len(grid.combinations())} combinations on {len(cases)} cases.")
    print_without_reference({"error maps" if args.e else "reconstructions": without})
    records, outcome = count_cases(cases, references, labels_of(args, settings), settings.bml, grid, args.o, args.np)
    print(f"{len(outcome.done)} done, {len(outcome.skipped)} were there already, {len(outcome.failed)} failed.")
    if outcome.failed:
        print_failures(outcome)
        print("Nothing was chosen. Mend these cases, or take their reference masks away, and go on.", file=sys.stderr)
        return outcome.exit_code
    records, grid, unscaled = without_uncounted(records, grid)
    rows, criterion = search_table(records, grid), "dice_pooled" if args.pooled else "dice"
    best = best_row(rows, grid, criterion)
    warnings = save_search(args.o, settings.bml, grid, rows, best, criterion, records, unscaled)
    if args.m:
        write_into_plans(args.m / "plans.json", "bml", asdict(chosen_settings(settings.bml, rows[best])))
    _print_best(rows[best], args)
    for warning in warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    return 0


def _cases_with_reference(
    args: argparse.Namespace,
) -> tuple[dict[str, CaseFiles | ErrorMapFiles], dict[str, Path], list[str]]:
    """Cases with their reference masks, and names of the cases that have none and are left out.

    Raises:
        InputError: there is no reference mask, or one without reconstruction or error map.
    """
    from nnunet_anomaly.label_maps import files_by_case

    found, references = cases_of(args), files_by_case(args.ref)
    if not references:
        raise InputError(f"{args.ref} holds no lesion mask (.nii.gz, .nii, .nrrd, .mha).")
    if missing := [case for case in references if case not in found]:
        what = "error map in -e" if args.e else "reconstruction in -r"
        raise InputError(f"There is no {what} for: {', '.join(missing)}.")
    cases = {case: found[case] for case in references}
    return cases, references, [case for case in found if case not in references]


def _grid(args: argparse.Namespace, cases: Mapping[str, CaseFiles | ErrorMapFiles], settings: BmlSettings) -> Grid:
    """Values as given, else derived from the voxel sizes.

    Raises:
        SettingsError: see ``Grid``; or equalisations of error maps.
    """
    from nnunet_anomaly.workflow.tune_bml import Grid, derived_radii

    if args.e and args.equalisations:
        raise SettingsError("--equalisations: error maps (-e) are not equalised. Leave it out.")
    equalisations = None if args.e else tuple(args.equalisations or EQUALISATIONS)
    given = {name: getattr(args, name) for name in ("opening_mm", "closing_mm", "minimum_mm3")}
    radii: dict[str, Any] = {name: tuple(values) for name, values in given.items() if values}
    if len(radii) < len(given):
        radii = derived_radii(cases, settings) | radii
    return Grid(equalisations, tuple(args.otsu), **radii)


def _print_best(row: Mapping[str, Any], args: argparse.Namespace) -> None:
    from nnunet_anomaly.workflow.tune_bml_report import PAGE, SETTINGS

    names = ("equalisation", "otsu", "opening_mm", "closing_mm", "minimum_mm3")
    print(f"Best: {', '.join(f'{name} {row[name]}' for name in names if name in row)}")
    print(f"Mean Dice {row['dice']:.4f}, pooled {row['dice_pooled']:.4f}", end="")
    found_mm3 = row["lesion_free_mm3"]
    print("." if found_mm3 is None else f"; found in cases without lesion: {found_mm3:.1f} mm^3 on average.")
    written = [args.o / SETTINGS, *([args.m / "plans.json"] if args.m else [])]
    print(f"Written to {' and '.join(map(str, written))}. Table: {args.o / PAGE}")
