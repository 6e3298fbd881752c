"""``nnunet-anomaly t2``: from a multi-echo series to T2 of cartilage in 27 regions, and its change."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_anomaly.cli.output import print_failures, print_table
from nnunet_anomaly.error_maps.folds import fold_of
from nnunet_anomaly.errors import InputError, SettingsError

if TYPE_CHECKING:
    from nnunet_anomaly.settings import T2Settings
    from nnunet_anomaly.workflow.t2_knee import Method

EXAMPLE = (
    "nnunet-anomaly t2 -i baseline -i2 follow_up.zip -m nnUNet_results/Dataset104_KneeMESE/MODEL -o knee\n"
    "  nnunet-anomaly t2 -i baseline --mask mask.nii.gz -o knee\n"
    "  nnunet-anomaly t2 -i nnUNet_raw/Dataset104_KneeMESE --test-cases -m MODEL -o knees -np 4"
)
GROUP = "t2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t2``."""
    parser.add_argument(
        "-i",
        type=Path,
        required=True,
        metavar="SERIES",
        help="a folder of DICOM files of one multi-echo series, a .zip of them, or multi_echo/<case>.nii.gz of a "
        "converted dataset; or the dataset's folder: then all its knees, time points in order of the visits (of more "
        "than two the first and the last)",
    )
    parser.add_argument("-i2", type=Path, metavar="SERIES", help="the same knee later")
    cartilage = parser.add_mutually_exclusive_group(required=True)
    cartilage.add_argument(
        "-m",
        type=Path,
        metavar="MODEL",
        help="folder of a trained nnU-Net model (TRAINER__PLANS__CONFIGURATION) whose channels are echoes",
    )
    cartilage.add_argument(
        "--mask", type=Path, help="cartilage by hand on the grid of -i; for a dataset a folder of them, <case>.nii.gz"
    )
    parser.add_argument("--mask2", type=Path, help="cartilage of -i2")
    parser.add_argument("-o", type=Path, required=True, help="folder for maps, tables, pictures and report.html")
    parser.add_argument(
        "--side", choices=("left", "right"), help="the knee, where neither DICOM header nor JSON tells it"
    )
    parser.add_argument(
        "--label",
        help="name or number of cartilage among the labels of the model, number of it in the masks (default: "
        "femoral_cartilage, or the only one)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--cases", nargs="+", metavar="CASE", help="of a dataset only these")
    which.add_argument("--test-cases", action="store_true", help="of a dataset only those in imagesTs")
    add_settings_arguments(parser)
    parser.add_argument(
        "--convention",
        choices=("thomas", "dosma"),
        help="borders of the central part: -30 and 30, or -15 and 15 degrees (default: t2.central_degrees)",
    )
    parser.add_argument(
        "-f", nargs="+", type=fold_of, help="folds of the model (default: every number that is there, else 'all')"
    )
    parser.add_argument("-chk", default="checkpoint_final.pth", help="checkpoint of the model (default: %(default)s)")
    parser.add_argument(
        "-device", choices=("cuda", "cpu", "mps"), help="for model and fit (default: cuda where there is one, else cpu)"
    )
    parser.add_argument("-np", type=int, default=2, help="knees at a time, after prediction (default: 2)")


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the settings are from, which ``tune t2`` has too."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--settings", type=Path, metavar="FILE", help="settings.json that 'tune t2' wrote")
    source.add_argument(
        "--preset",
        choices=("robust", "paper"),
        help="values of a preset (default: those in the model's plans, where tune t2 writes; else robust)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="change one setting, e.g. t2.model=offset; may be given several times",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, and print the main figures and all warnings."""
    from nnunet_anomaly.workflow.t2_cohort import is_dataset

    is_cohort = is_dataset(args.i)
    _check_options(args, is_cohort)
    device = device_of(args.device)
    method = _method(args, device)
    return _run_cohort(args, method, device) if is_cohort else _run_one(args, method, device)


def _check_options(args: argparse.Namespace, is_cohort: bool) -> None:
    """Refuse options that do not go together."""
    from nnunet_anomaly.workflow.t2_knee import TIME_FOLDERS

    if not args.i.exists():
        raise InputError(f"{args.i} does not exist.")
    if is_cohort and (args.i2 or args.mask2):
        raise InputError(
            f"{args.i} is a dataset, whose time points are found by their visits: leave -i2 and --mask2 out."
        )
    if not is_cohort and (args.cases or args.test_cases):
        raise InputError(f"--cases and --test-cases are of a dataset; {args.i} has no folder multi_echo.")
    if is_cohort and args.mask and not args.mask.is_dir():
        raise InputError(f"{args.mask} is no folder: masks of a dataset are files <case>.nii.gz in one.")
    if not is_cohort and bool(args.mask and args.i2) != bool(args.mask2):
        raise InputError("--mask2 goes with -i2 and --mask: every series needs a mask, or all of them a model.")
    output = args.o.resolve()
    for path in filter(None, (args.i, args.i2, args.mask, args.mask2)):
        if path.resolve() == output:
            raise InputError(f"{args.o} is input and output; name another output folder.")
        if path.resolve().parent in [output / name for name in TIME_FOLDERS]:
            raise InputError(
                f"{path} is among what is written anew, and would be lost: copy it out of {args.o}, or name another "
                "output folder."
            )


def device_of(name: str | None) -> str:
    """The device that was named, else a GPU if there is one.

    Raises:
        InputError: there is no such device.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name and not there[name]:
        raise InputError(f"There is no {name.upper()} device here; give -device cpu.")
    return name or ("cuda" if there["cuda"] else "cpu")


def _method(args: argparse.Namespace, device: str) -> Method:
    from nnunet_anomaly.workflow.t2_knee import Method
    from nnunet_anomaly.workflow.t2_model import open_model

    if args.mask and args.label is not None and not args.label.isdecimal():
        raise InputError(f"--label {args.label}: labels of masks are numbers.")
    model = open_model(args.m, args.f, args.chk, args.label) if args.m else None
    label = int(args.label) if args.mask and args.label is not None else None
    # the fit is in float64, which mps does not know
    return Method(settings_of(args), model, label, "cpu" if device == "mps" else device)


def settings_of(args: argparse.Namespace) -> T2Settings:
    """The group ``t2``: of a preset, of the model's plans, or the defaults, with ``--convention`` and ``--set``.

    Raises:
        SettingsError: ``--set`` of another group, or a wrong value.
    """
    from nnunet_anomaly.files import load_json
    from nnunet_anomaly.relaxometry.subregions import CONVENTIONS, central_borders
    from nnunet_anomaly.relaxometry.unroll import bins_of_circle
    from nnunet_anomaly.settings import BLOCK, AnomalySettings, parse_assignment
    from nnunet_anomaly.workflow.tuned_settings import read_settings_file

    settings = AnomalySettings.for_preset(args.preset or "robust")
    if args.settings:
        settings = read_settings_file(args.settings, GROUP)
    elif args.m and not args.preset:
        plans = load_json(args.m / "plans.json")
        settings = AnomalySettings.from_plans(plans) if BLOCK in plans else settings
    values: dict[str, Any] = {}
    if getattr(args, "convention", None):  # tune t2 has none
        values[f"{GROUP}.central_degrees"] = list(CONVENTIONS[args.convention])
    values |= dict(parse_assignment(text) for text in args.assignments)
    if others := [key for key in values if not key.startswith(f"{GROUP}.")]:
        raise SettingsError(f"--set {others[0]}: only settings of the group {GROUP} count here.")
    chosen = settings.with_values(values).t2
    # else every knee would fail, after a model has seen it
    bins_of_circle(chosen.bin_degrees)
    central_borders(chosen.central_degrees)
    return chosen


def _run_one(args: argparse.Namespace, method: Method, device: str) -> int:
    from nnunet_anomaly.files import load_json
    from nnunet_anomaly.relaxometry.region_table import FILE_NAME, read_region_table
    from nnunet_anomaly.workflow.t2 import measure_one, open_knee
    from nnunet_anomaly.workflow.t2_knee import RECORD
    from nnunet_anomaly.workflow.t2_report import PAGE

    sources, masks = [path for path in (args.i, args.i2) if path], [path for path in (args.mask, args.mask2) if path]
    knee, series = open_knee(sources, masks, args.o, args.side, method)
    if not measure_one(knee, series, method, device):
        print("It was there already.")
    record = load_json(args.o / RECORD)
    _print_knee(record, list(read_region_table(args.o / FILE_NAME).values()))
    _print_warnings(record["warnings"])
    print(f"Report: {args.o / PAGE}")
    return 0


def _print_knee(record: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    """The whole plate and its halves, and what became of the voxels."""
    from nnunet_anomaly.report.page import cell_text
    from nnunet_anomaly.workflow.t2_results import summary_rows

    times, change = record["time_points"], record["change"]
    print(f"{record['case']}, a {record['side']} knee. T2 in ms:")
    by_region: dict[str, list[float]] = {}
    for row in summary_rows(rows):
        by_region.setdefault(row["region"], []).append(row["t2_mean_ms"])
    header = ["region", *(f"time {place}" for place in range(1, len(times) + 1)), *(["change"] if change else [])]
    lines = [
        [
            region,
            *(cell_text(value, ".1f") for value in values),
            *([cell_text(values[1] - values[0], "+.1f")] if change else []),
        ]
        for region, values in by_region.items()
    ]
    print_table(header, lines, left_columns=1)
    for place, time in enumerate(times, start=1):
        counts = time["refinement"]
        out = {name: counts[name] for name in ("without_t2", "outside_range", "improbable", "in_small_slices")}
        said = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in out.items() if number)
        print(f"Time {place}: {counts['kept']} of {counts['candidates']} voxels are cartilage ({said or 'all kept'}).")
    if change:
        percent = change["cluster_percent_of_plate"]
        covered = "" if percent is None else f", {percent:.1f} % of the plate"
        print(f"Clusters of rising T2: {change['clusters']}{covered}.")


def _print_warnings(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"Warning: {warning}", file=sys.stderr)


def _run_cohort(args: argparse.Namespace, method: Method, device: str) -> int:
    from nnunet_anomaly.files import Outcome, load_json
    from nnunet_anomaly.workflow.t2 import measure_all
    from nnunet_anomaly.workflow.t2_cohort import cases_of, knees_of, save_summary
    from nnunet_anomaly.workflow.t2_knee import RECORD
    from nnunet_anomaly.workflow.t2_report import PAGE

    cases = cases_of(args.i, args.cases, args.test_cases)
    knees, failed = knees_of(cases, args.mask, args.side, args.o)
    print(f"{len(cases)} series of {len(knees)} knees.")
    outcome = measure_all(knees, method, device, args.np)
    outcome = Outcome(outcome.done, outcome.skipped, failed | outcome.failed)
    rows = save_summary(knees, outcome, args.o)
    if rows:
        _print_cohort(rows)
    for knee in knees:
        if knee.name not in outcome.failed:
            _print_warnings([f"{knee.name}: {text}" for text in load_json(knee.output / RECORD)["warnings"]])
    print(f"{len(outcome.done)} done, {len(outcome.skipped)} were there already, {len(outcome.failed)} failed.")
    print(f"Report: {args.o / PAGE}")
    print_failures(outcome)
    return outcome.exit_code


def _print_cohort(rows: list[dict[str, Any]]) -> None:
    def shown(value: float | None, specification: str) -> str:
        return "-" if value is None else format(value, specification)

    print_table(
        ["knee", "side", "visits", "T2 1", "T2 2", "change", "clusters"],
        [
            [
                row["case"],
                row["side"],
                row["visits"],
                shown(row["t2_first_ms"], ".1f"),
                shown(row["t2_second_ms"], ".1f"),
                shown(row["t2_change_ms"], "+.1f"),
                shown(row["clusters"], "d"),
            ]
            for row in rows
        ],
        left_columns=3,
    )
