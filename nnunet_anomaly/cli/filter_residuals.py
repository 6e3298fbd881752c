"""``nnunet-anomaly filter-residuals``: clean a folder of error maps."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_anomaly.cli.output import print_failures
from nnunet_anomaly.errors import InputError

if TYPE_CHECKING:
    from nnunet_anomaly.postprocessing.residual_filters import ResidualFilters

EXAMPLE = "nnunet-anomaly filter-residuals -i error_maps -m brain_masks -o error_maps_filtered --erode-mm 3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``filter-residuals``."""
    parser.add_argument("-i", type=Path, required=True, help="folder of error maps, <case>.nii.gz")
    parser.add_argument("-m", type=Path, required=True, help="folder of brain masks or label maps, <case>.nii.gz")
    parser.add_argument("-o", type=Path, required=True, help="folder for the filtered error maps")
    parser.add_argument(
        "--channel", type=int, help="channel that holds the error map: 1 for <case>_0001.nii.gz (default: no channel)"
    )
    parser.add_argument("--mask-labels", type=int, nargs="+", default=[], help="labels of -m (default: all)")
    add_filter_arguments(parser)
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings of the filters, which ``evaluate-anomaly`` has too."""
    parser.add_argument("--erode-mm", type=float, help="rim of the mask to leave out (default: 3.0; 0: none)")
    parser.add_argument(
        "--median-radius-mm",
        type=float,
        help="reach of the median's window to every side: 2 is 5 voxels of 1 mm; voxels that are larger it does not "
        "reach, and a warning says so (default: 2.0; 0: no median)",
    )
    parser.add_argument(
        "--min-volume-mm3", type=float, help="drop smaller components of what scores at least --component-threshold"
    )
    parser.add_argument("--component-threshold", type=float, help="for --min-volume-mm3, in the error map's unit")


def filters_of(args: argparse.Namespace) -> ResidualFilters:
    """The filters that the arguments ask for; what is not given has its default."""
    from dataclasses import fields

    from nnunet_anomaly.postprocessing.residual_filters import ResidualFilters

    given = {item.name: getattr(args, item.name) for item in fields(ResidualFilters)}
    return ResidualFilters(**{name: value for name, value in given.items() if value is not None})


def run(args: argparse.Namespace) -> int:
    """Filter every error map of the folder."""
    from nnunet_anomaly.label_maps import files_by_case
    from nnunet_anomaly.workflow.filter_residuals import ENDING, filter_maps, median_reach, median_warning

    if args.i.resolve() == args.o.resolve():
        raise InputError(f"{args.i} is input and output; name another output folder, so that nothing is lost.")
    maps = files_by_case(args.i, args.channel)
    if not maps:
        raise InputError(f"{args.i} holds no error map (.nii.gz, .nii, .nrrd, .mha; see --channel).")
    filters = filters_of(args)
    outcome = filter_maps(maps, files_by_case(args.m), args.mask_labels, args.o, filters, args.np)
    print(f"{len(outcome.done)} done, {len(outcome.skipped)} were there already, {len(outcome.failed)} failed.")
    finished = (args.o / f"{case}{ENDING}" for case in (*outcome.done, *outcome.skipped))
    if said := median_warning(median_reach(finished, filters), filters):
        print(f"Warning: {said}", file=sys.stderr)
    print_failures(outcome)
    return outcome.exit_code
