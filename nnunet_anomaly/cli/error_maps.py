"""``nnunet-anomaly error-maps``: collect out-of-fold error maps as a channel, or make them for new images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_anomaly.error_maps.folds import fold_of

EXAMPLE = (
    "nnunet-anomaly error-maps -d 101 -tr nnUNetTrainerInpaintingMimic -o 201\n"
    "  nnunet-anomaly error-maps -d 101 -tr nnUNetTrainerInpainting -o 202 \\\n"
    "      --masks-from nnUNetTrainer__nnUNetAnomalyPlans__3d_fullres\n"
    "  nnunet-anomaly error-maps -d 101 -tr nnUNetTrainerInpaintingMimic -i NEW_IMAGES -o INPUT_FOR_PREDICT"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("-d", "--dataset", required=True, help="dataset that the reconstruction networks learned from")
    parser.add_argument("-tr", "--trainer", default="nnUNetTrainerInpaintingMimic", help="default: %(default)s")
    parser.add_argument("-p", "--plans", default="nnUNetAnomalyPlans", help="plans name (default: %(default)s)")
    parser.add_argument("-c", "--configuration", default="3d_inpainting", help="default: %(default)s")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        help="without -i: number, or DatasetXXX_Name, of the derived dataset; with -i: a folder",
    )
    parser.add_argument("-i", "--input", help="folder of new images; the mean reconstruction of the folds is taken")
    parser.add_argument(
        "-f",
        "--folds",
        nargs="+",
        type=fold_of,
        help="folds for new images and imagesTs, numbers or 'all' (default: every number that is there, else 'all')",
    )
    parser.add_argument("-chk", "--checkpoint", default="checkpoint_final.pth", help="default: %(default)s")
    parser.add_argument(
        "--masks-from",
        metavar="MODEL_OR_FOLDER",
        help="two passes, for an nnUNetTrainerInpainting: a segmentation model of this dataset "
        "(TRAINER__PLANS__CONFIGURATION) whose label maps say what is erased, or a folder of label maps",
    )
    parser.add_argument("--copy", action="store_true", help="copy images and labels instead of linking them")
    parser.add_argument("--no-test", action="store_true", help="leave the dataset's imagesTs out of the derived one")
    parser.add_argument(
        "--save-reconstructions",
        metavar="FOLDER",
        help="also write the reconstructions here: of new images, of imagesTs, and by two passes",
    )
    parser.add_argument(
        "--allow-leak",
        action="store_true",
        help="take error maps of cases that their network was, or may have been, trained on",
    )
    parser.add_argument("-np", "--num-processes", type=int, default=2, help="background processes (default: 2)")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Derived dataset, or error maps of a folder."""
    from nnunet_anomaly.workflow import error_maps

    job = error_maps.Job.from_arguments(args)
    outcome: Any = (
        error_maps.for_new_images(job, Path(args.input), Path(args.output)) if args.input else error_maps.derive(job)
    )
    for case, reason in outcome.failed.items():
        print(f"FAILED {case}: {reason}")
    print(f"{len(outcome.done)} done, {len(outcome.skipped)} were there already, {len(outcome.failed)} failed.")
    return outcome.exit_code
