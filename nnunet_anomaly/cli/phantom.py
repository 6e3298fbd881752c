"""``nnunet-anomaly phantom``: images with known truth, written as a release folder."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "nnunet-anomaly phantom knee --cases 12 --seed 1 --lesions severe -o phantom_severe -np 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one sub-command a phantom."""
    kinds = parser.add_subparsers(dest="phantom", metavar="PHANTOM", required=True)
    knee = kinds.add_parser(
        "knee",
        help="sagittal DESS-like MR of knees, as the OAI-ZIB release and an OAI tree",
        description="Write sagittal DESS-like MR images of knees with masks, file for file as the OAI-ZIB release and "
        "the OAI's baseline tree, and the true labels and lesions. The same seed gives the same bytes.",
        epilog=f"Example:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    knee.add_argument(
        "--cases", type=int, required=True, metavar="N", help="how many knees; knee i does not depend on N"
    )
    knee.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    knee.add_argument(
        "--lesions",
        choices=("none", "mild", "severe"),
        default="none",
        help="none; mild: one small lesion in every second case; severe: large ones in four of five cases, some "
        "reaching the bone's surface (default: none). The knees themselves are the same for one seed",
    )
    knee.add_argument(
        "-o", required=True, type=Path, metavar="DIR", help="output folder; an unfinished one is finished"
    )
    size = knee.add_mutually_exclusive_group()
    size.add_argument(
        "--full-grid", action="store_true", help="the OAI's 160 x 384 x 384 voxels of 0.7 x 0.36 x 0.36 mm"
    )
    size.add_argument(
        "--grid",
        type=int,
        nargs=3,
        metavar=("SLICES", "ROWS", "COLUMNS"),
        help="another number of voxels over the same 112 x 140 x 140 mm (default: 40 96 96)",
    )
    knee.add_argument(
        "-np",
        type=int,
        default=1,
        metavar="N",
        help="cases made at a time (default: 1); a case on the full grid takes 2.5 GB",
    )


def run(args: argparse.Namespace) -> int:
    """Make the phantom; 1 if a case failed."""
    from nnunet_anomaly.cli.output import print_failures
    from nnunet_anomaly.phantoms.knee import FULL_GRID, SMALL_GRID
    from nnunet_anomaly.phantoms.release import make_knee_phantom

    grid = FULL_GRID if args.full_grid else args.grid or SMALL_GRID
    outcome = make_knee_phantom(args.o, args.cases, args.seed, args.lesions, grid, args.np)
    print_failures(outcome)
    print(
        f"{len(outcome.done)} cases made, {len(outcome.skipped)} were there, {len(outcome.failed)} failed: {args.o}\n"
        f"Next: nnunet-anomaly convert oai-zib {args.o / 'OAI-ZIB'} --oai-root {args.o / 'oai'} -d 101"
    )
    return outcome.exit_code
