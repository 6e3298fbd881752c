"""``nnunet-anomaly predict``: a folder of images in, masks of bone marrow lesions and their tables out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_anomaly.cli.output import print_failures
from nnunet_anomaly.error_maps.folds import fold_of
from nnunet_anomaly.errors import InputError, SettingsError

if TYPE_CHECKING:
    from nnunet_anomaly.settings import AnomalySettings
    from nnunet_anomaly.workflow.error_map_job import Job

EXAMPLE = (
    "nnunet-anomaly predict -d 101 -i new_images -o found \\\n"
    "      --bones nnUNetTrainerUNetPlusPlus__nnUNetUNetPlusPlusPlans__3d_fullres --side right"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("-d", "--dataset", required=True, help="dataset that the inpainting network learned from")
    parser.add_argument("-tr", "--trainer", default="nnUNetTrainerLaMa", help="default: %(default)s")
    parser.add_argument("-p", "--plans", default="nnUNetLaMaPlans", help="plans name (default: %(default)s)")
    parser.add_argument("-c", "--configuration", default="2d_inpainting", help="default: %(default)s")
    parser.add_argument("-i", "--input", type=Path, required=True, help="folder of images, <case>_0000.nii.gz")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for masks and tables")
    parser.add_argument(
        "--bones",
        required=True,
        metavar="MODEL_OR_FOLDER",
        help="what says where the bone is: a segmentation model of the dataset (TRAINER__PLANS__CONFIGURATION), the "
        "path of any nnU-Net model folder, or a folder of label maps, <case>.nii.gz",
    )
    parser.add_argument(
        "--labels", type=int, nargs="+", help="labels of the bone in its label maps (default: roi.labels of the plans)"
    )
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--side", choices=("left", "right"), help="of all knees, for the compartments of the femur")
    side.add_argument(
        "--cases", type=Path, metavar="FILE", help="cases.json of a converted dataset, with the side of every knee"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="change one setting of the model, of the group bml or roi.closing_mm; may be given several times",
    )
    parser.add_argument("--channel", type=int, default=0, help="channel in which lesions are bright (default: 0)")
    parser.add_argument(
        "-f",
        "--folds",
        nargs="+",
        type=fold_of,
        help="folds of both models, numbers or 'all' (default: every number that is there, else 'all')",
    )
    parser.add_argument("-chk", "--checkpoint", default="checkpoint_final.pth", help="default: %(default)s")
    parser.add_argument("--allow-leak", action="store_true", help="take images of training cases too")
    parser.add_argument("-np", "--num-processes", type=int, default=2, help="background processes (default: 2)")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Find lesions in every image, and say what was found."""
    from nnunet_anomaly.workflow.error_map_job import Job
    from nnunet_anomaly.workflow.predict_lesions import CASE_TABLE, LESION_TABLE, RECONSTRUCTIONS, Plan, predict_lesions

    args.masks_from, args.copy, args.no_test = args.bones, False, True
    args.save_reconstructions = str(args.output / RECONSTRUCTIONS)
    job = Job.from_arguments(args)
    settings = _settings(args, job)
    labels = tuple(args.labels or settings.roi.labels)
    femur, others = _bones(job, labels)
    plan = Plan(job, args.input, args.output, labels, femur, others, settings, _sides(args), args.channel)
    outcome = predict_lesions(plan)
    print(f"{len(outcome.done)} done, {len(outcome.skipped)} were there already, {len(outcome.failed)} failed.")
    print(
        f"Masks are in {args.output / 'lesions'}, tables {args.output / CASE_TABLE} and {args.output / LESION_TABLE}."
    )
    print_failures(outcome)
    return outcome.exit_code


def _settings(args: argparse.Namespace, job: Job) -> AnomalySettings:
    """The model's, with those of ``--set``."""
    from nnunet_anomaly.files import load_json
    from nnunet_anomaly.settings import AnomalySettings, parse_assignment

    values = dict(parse_assignment(text) for text in args.assignments)
    if others := [key for key in values if not key.startswith("bml.") and key != "roi.closing_mm"]:
        raise SettingsError(f"--set {others[0]}: only settings of the group bml, and roi.closing_mm, count here.")
    return AnomalySettings.from_plans(load_json(job.model / "plans.json")).with_values(values)


def _bones(job: Job, labels: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the labels of the bone those of the femur, and those of other bones; a lesion's label is of neither.

    By the names in the dataset.json beside the bone masks, or in that of the dataset.
    """
    from nnunet_anomaly.compartments import femur_labels
    from nnunet_anomaly.dataset_roles import labels_by_name, lesion_labels
    from nnunet_anomaly.files import load_json

    folder = job.masks_folder()
    assert folder is not None
    beside = folder / "dataset.json"
    path = beside if beside.is_file() else job.raw / "dataset.json"
    content = load_json(path)
    names = labels_by_name(content, path)
    femur = tuple(label for label in femur_labels(names) if label in labels)
    if not femur:
        print(f"No label of the bone is called femur in {path}: lesions have no compartment.")
    lesions = lesion_labels({**content, "labels": names})
    return femur, tuple(label for label in labels if label not in (*femur, *lesions))


def _sides(args: argparse.Namespace) -> Mapping[str, str | None]:
    """Side of every knee."""
    from nnunet_anomaly.compartments import sides_of_cases
    from nnunet_anomaly.label_maps import files_by_case

    if args.cases:
        return sides_of_cases(args.cases)
    if not args.input.is_dir():
        raise InputError(f"{args.input} is not a folder.")
    if not args.side:
        print("The side of the knees is not known (--side, --cases): lesions have no compartment.")
    return dict.fromkeys(files_by_case(args.input, args.channel), args.side)
