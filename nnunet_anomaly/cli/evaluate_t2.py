"""``nnunet-anomaly evaluate-t2``: T2 of cartilage regions, and its change, against a reader's."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "nnunet-anomaly evaluate-t2 -ref t2_reader_1 -pred t2_model -pred t2_reader_2 -o evaluation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate-t2``."""
    parser.add_argument(
        "-ref",
        type=Path,
        required=True,
        help="table of regions of the reference (CSV), or a folder with regions.csv in it or in its folders",
    )
    parser.add_argument(
        "-pred",
        type=Path,
        required=True,
        action="append",
        help="table or folder of the other segmentation or reader; give it again for every further one, each of which "
        "is compared with the reference",
    )
    parser.add_argument("-o", type=Path, required=True, help="folder for tables (JSON and CSV), pictures and report.md")
    parser.add_argument("--names", nargs="+", help="names of the methods; default: names of the folders or tables")
    parser.add_argument(
        "--min-voxels",
        type=int,
        default=1,
        metavar="N",
        help="leave out a region of a case where one of the two has fewer voxels with a T2 value (default: 1)",
    )


def run(args: argparse.Namespace) -> int:
    """Compare all regions of all methods; write tables, pictures and a report, and print a summary."""
    from nnunet_anomaly.workflow.evaluate_t2 import evaluate

    return evaluate(args)
