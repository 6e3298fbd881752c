"""``nnunet-anomaly evaluate-anomaly``: anomaly maps against lesion masks, beside the raw intensity."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_anomaly.cli.filter_residuals import add_filter_arguments

EXAMPLE = (
    "nnunet-anomaly evaluate-anomaly -ref lesion_masks -pred error_maps -o evaluation -m predictions "
    "--mask-labels 1 3 --baseline nnUNet_raw/Dataset101_Knee/imagesTs"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate-anomaly``."""
    parser.add_argument("-ref", type=Path, required=True, help="folder of lesion masks, <case>.nii.gz; not 0 is lesion")
    parser.add_argument(
        "-pred",
        type=Path,
        required=True,
        action="append",
        help="folder of anomaly maps, <case>.nii.gz, higher is more anomalous; give it again for every further method",
    )
    parser.add_argument("-o", type=Path, required=True, help="folder for tables (JSON and CSV) and pictures")
    parser.add_argument("--names", nargs="+", help="names of the methods; default: names of the folders")
    parser.add_argument(
        "--channel", type=int, help="channel that holds the anomaly map: 1 for <case>_0001.nii.gz (default: no channel)"
    )
    parser.add_argument("-m", type=Path, help="folder of label maps, <case>.nii.gz; voxels outside them are left out")
    parser.add_argument("--mask-labels", type=int, nargs="+", default=[], help="labels of -m to look in (default: all)")
    parser.add_argument(
        "--baseline", type=Path, help="folder of images: their intensity, z-scored inside the mask, as a method beside"
    )
    parser.add_argument(
        "--baseline-dark", action="store_true", help="the same images once more, now with dark voxels as anomalous"
    )
    parser.add_argument("--baseline-channel", type=int, default=0, help="channel of the images (default: 0)")
    _add_threshold_arguments(parser)
    parser.add_argument(
        "--filters",
        action=argparse.BooleanOptionalAction,
        help="show every -pred once more with the filters of filter-residuals (default: where -m is given)",
    )
    add_filter_arguments(parser)
    _add_picture_arguments(parser)
    add_detection_arguments(parser, slice_plane="axial")
    parser.add_argument(
        "--lesion-size-edges-mm3", type=float, nargs="+", help="groups of lesions by volume (default: thirds)"
    )
    parser.add_argument(
        "--histogram",
        action="store_true",
        help="count scores by the upper 16 bits of their float32 instead of sorting them: many times faster, and "
        "every figure comes with the interval that holds the exact one",
    )
    parser.add_argument(
        "--memory-gb",
        type=float,
        default=2.0,
        help="memory of all processes: where sorting could take more, cases are pooled by histogram, and it is said "
        "(default: 2.0)",
    )
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def add_detection_arguments(parser: argparse.ArgumentParser, slice_plane: str) -> None:
    """Add what says where slices lie and when a lesion is hit, which ``evaluate-lesions`` has too."""
    parser.add_argument(
        "--slice-plane",
        choices=("axial", "coronal", "sagittal"),
        default=slice_plane,
        help=f"slices of the slice-wise figures and of pictures (default: {slice_plane})",
    )
    parser.add_argument(
        "--hit-overlap",
        type=float,
        default=0.0,
        help="share of a lesion's voxels that must be found for it to count as hit (default: 0, any voxel)",
    )
    parser.add_argument(
        "--component-overlap",
        type=float,
        default=0.1,
        help="share of a found component's own voxels that must lie in lesions for it to hit any; else it is a false "
        "positive (default: 0.1; 0: any voxel)",
    )


def _add_threshold_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--validation-ref", type=Path, help="lesion masks of cases to search the thresholds on")
    parser.add_argument(
        "--validation-pred",
        type=Path,
        action="append",
        help="anomaly maps of these cases; give it as often as -pred, in the same order",
    )
    parser.add_argument("--validation-mask", type=Path, help="label maps of these cases, as -m")
    parser.add_argument("--validation-baseline", type=Path, help="images of these cases, as --baseline")
    parser.add_argument(
        "--threshold-file", type=Path, help="thresholds.json of an earlier run, instead of validation cases"
    )
    parser.add_argument(
        "--greedy-upper",
        type=float,
        help="upper end of the interval that the greedy search starts with; the lower one is 0 (default: 1, or the "
        "highest validation score if that is more)",
    )
    parser.add_argument(
        "--allow-validation-cases",
        action="store_true",
        help="evaluate cases with the names of validation cases too (another data set with the same names)",
    )


def _add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--training-sizes", type=float, nargs="+", help="size of the training set of every -pred, for a curve over it"
    )
    parser.add_argument(
        "--curve-names", nargs="+", help="curve over the training-set size that every -pred belongs to (default: one)"
    )
    parser.add_argument("--images", type=Path, help="folder of images, for pictures of cases (default: --baseline)")
    parser.add_argument("--image-channel", type=int, default=0, help="channel of the images (default: 0)")
    parser.add_argument(
        "--reconstructions",
        type=Path,
        action="append",
        help="reconstructions, <case>_0000.nii.gz or <case>.nii.gz, for the pictures; give it as often as -pred",
    )
    parser.add_argument("--pictures", type=int, default=4, help="cases in the pictures of a method (default: 4)")


def run(args: argparse.Namespace) -> int:
    """Evaluate every case of every method, then all cases pooled; write tables and pictures, and print a summary."""
    from nnunet_anomaly.workflow.evaluate_anomaly import evaluate

    return evaluate(args)
