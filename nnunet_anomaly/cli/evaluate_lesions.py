"""``nnunet-anomaly evaluate-lesions``: binary lesion masks against references, inside the bone."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_anomaly.cli.evaluate_anomaly import add_detection_arguments

EXAMPLE = (
    "nnunet-anomaly evaluate-lesions -ref lesion_masks -pred lama_448 -pred lama_128 -b bone_masks -o evaluation -np 4"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate-lesions``."""
    parser.add_argument("-ref", type=Path, required=True, help="folder of lesion masks, <case>.nii.gz; not 0 is lesion")
    parser.add_argument(
        "-pred",
        type=Path,
        required=True,
        action="append",
        help="folder of predicted lesion masks with the same file names, on the grid of the references; give it again "
        "for every further method or resolution, which is then compared with the first",
    )
    parser.add_argument(
        "-b", type=Path, required=True, help="folder of bone masks or label maps, <case>.nii.gz; only bone is looked at"
    )
    parser.add_argument("--bone-labels", type=int, nargs="+", default=[], help="labels of -b to look in (default: all)")
    parser.add_argument("-o", type=Path, required=True, help="folder for tables (JSON and CSV), pictures and report.md")
    parser.add_argument("--names", nargs="+", help="names of the methods; default: names of the folders")
    add_detection_arguments(parser, slice_plane="sagittal")
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Evaluate every case of every method; write tables, a picture and a report, and print a summary."""
    from nnunet_anomaly.workflow.evaluate_lesions import evaluate

    return evaluate(args)
