"""``nnunet-anomaly lesions``: images and their reconstructions, or error maps, in; masks of lesions in bone out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_anomaly.cli.output import print_failures
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import load_json

if TYPE_CHECKING:
    from nnunet_anomaly.settings import AnomalySettings
    from nnunet_anomaly.workflow.bml_lesions import CaseFiles, ErrorMapFiles

EXAMPLE = (
    "nnunet-anomaly lesions -i imagesTr -r MODEL/fold_0/validation/reconstructions -b labelsTr --labels 1 2 \\\n"
    "      -o lesions -m MODEL -np 4\n"
    "  nnunet-anomaly lesions -e MODEL/fold_0/validation/error_maps -b labelsTr --labels 1 2 -o lesions -m MODEL"
)
GROUP = "bml"
EQUALISATION = f"{GROUP}.equalisation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``lesions``."""
    add_case_arguments(parser)
    parser.add_argument("-o", type=Path, required=True, help="folder for the lesion masks and the table")
    add_settings_arguments(parser)
    parser.add_argument(
        "--save-residuals",
        action="store_true",
        help="also write the residuals that the masks are made of: the bright ones, with -e the error maps in bone",
    )
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def add_case_arguments(parser: argparse.ArgumentParser) -> None:
    """Add images, reconstructions or error maps, and bone masks, which ``tune bml`` has too."""
    parser.add_argument(
        "-i",
        type=Path,
        help="folder of images, <case>_0000.nii.gz; needed with -r. With -e they only tell whether every error map "
        "lies on the grid of its image",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "-r",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of reconstructions of -i, <case>_0000.nii.gz, on any scale: fold_*/validation/reconstructions "
        "of a trained reconstruction model, or what error-maps --save-reconstructions wrote. What is brighter in the "
        "image is looked for",
    )
    source.add_argument(
        "-e",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of error maps, <case>.nii.gz: fold_*/validation/error_maps of a trained model; or, with "
        "--channel, what error-maps -i wrote. They are not equalised. Most, such as squared differences, have no "
        "sign: dark lesions are found as well as bright ones",
    )
    parser.add_argument("-b", type=Path, required=True, help="folder of bone masks or label maps, <case>.nii.gz")
    parser.add_argument(
        "--labels", type=int, nargs="+", help="labels of the bones in -b (default: roi.labels of -m, else all)"
    )
    parser.add_argument(
        "--channel",
        type=int,
        help="with -r: channel of images and reconstructions (default: 0); with -e: channel that holds the error map, "
        "1 for <case>_0001.nii.gz (default: no channel, <case>.nii.gz)",
    )


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the settings are from, which ``tune bml`` has too."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "-m", type=Path, metavar="MODEL", help="folder of a trained reconstruction model; its plans.json has settings"
    )
    source.add_argument("--settings", type=Path, metavar="FILE", help="settings.json that 'tune bml' wrote")
    source.add_argument("--preset", choices=("robust", "paper"), help="values of a preset (default: robust)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="change one setting, e.g. bml.opening_mm=0.8; may be given several times",
    )


def settings_of(args: argparse.Namespace) -> AnomalySettings:
    """Settings as ``-m``, ``--settings`` or ``--preset`` say, with those of ``--set``.

    Raises:
        InputError: the file is missing.
        SettingsError: see ``AnomalySettings``; or ``--set`` of another group, or of the equalisation of error maps.
    """
    from nnunet_anomaly.settings import AnomalySettings, parse_assignment
    from nnunet_anomaly.workflow.tuned_settings import read_settings_file

    if args.m:
        settings = AnomalySettings.from_plans(load_json(args.m / "plans.json"))
    elif args.settings:
        settings = read_settings_file(args.settings, GROUP)
    else:
        settings = AnomalySettings.for_preset(args.preset or "robust")
    values = dict(parse_assignment(text) for text in args.assignments)
    if others := [key for key in values if not key.startswith(f"{GROUP}.")]:
        raise SettingsError(f"--set {others[0]}: only settings of the group {GROUP} count here.")
    if args.e and EQUALISATION in values:
        raise SettingsError(f"--set {EQUALISATION}: error maps (-e) are not equalised. Leave it out.")
    return settings.with_values(values)


def labels_of(args: argparse.Namespace, settings: AnomalySettings) -> tuple[int, ...]:
    """Labels of the bones: as given, else as the model's plans say, else none (all); said."""
    from nnunet_anomaly.label_maps import check_labels

    labels = tuple(args.labels or (settings.roi.labels if args.m else ()))
    check_labels(labels)
    if labels and not args.labels:
        print(f"Labels of the bones: {', '.join(map(str, labels))} (roi.labels of {args.m / 'plans.json'}).")
    return labels


def cases_of(args: argparse.Namespace) -> Mapping[str, CaseFiles | ErrorMapFiles]:
    """Files of every case with a reconstruction, or with an error map.

    Raises:
        InputError: see ``find_cases`` and ``find_error_maps``; there are reconstructions without images; or the output
            folder is one of the input folders.
    """
    from nnunet_anomaly.workflow.bml_lesions import find_cases, find_error_maps

    check_output(args)
    if args.e:
        return find_error_maps(args.e, args.b, args.channel, args.i)
    if not args.i:
        raise InputError("Reconstructions (-r) are compared with their images: name the folder of these with -i.")
    return find_cases(args.i, args.r, args.b, args.channel or 0)


def check_output(args: argparse.Namespace, *more: Path) -> None:
    """Nothing is written, or removed, among the input.

    Args:
        args: of the command.
        more: further folders of input.

    Raises:
        InputError: the output folder is one of the input folders.
    """
    inputs = [args.b, *(args.r or args.e), *([args.i] if args.i else []), *more]
    if args.o.resolve() in {folder.resolve() for folder in inputs}:
        raise InputError(f"{args.o} is input and output; name another output folder, so that nothing is lost.")


def run(args: argparse.Namespace) -> int:
    """Find the lesions of every case and print what was found."""
    from nnunet_anomaly.workflow.bml_lesions import SUMMARY, find_lesions

    cases, settings = cases_of(args), settings_of(args)
    outcome = find_lesions(cases, labels_of(args, settings), settings.bml, args.o, args.np, args.save_residuals)
    summary = load_json(args.o / SUMMARY)
    print(f"{summary['cases']} cases, {summary['cases_without_lesion']} of them without lesion: {args.o}")
    print(f"{len(outcome.done)} done, {len(outcome.skipped)} were there already, {len(outcome.failed)} failed.")
    warn_out_of_reach(summary)
    print_failures(outcome)
    return outcome.exit_code


def warn_out_of_reach(summary: Mapping[str, Any]) -> None:
    """Say on the error stream which radii reach no other voxel."""
    from nnunet_anomaly.workflow.bml_lesions import said_out_of_reach

    for name, cases in summary["out_of_reach"].items():
        said = said_out_of_reach(name, summary["settings"][name], cases, summary["cases"])
        print(f"Warning: {said}", file=sys.stderr)
