"""``nnunet-anomaly postprocess``: clean label maps: islands, left and right, closed gaps."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_anomaly.cli.output import print_failures, print_table, warn_out_of_reach
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.files import load_json

EXAMPLE = "nnunet-anomaly postprocess -i predictions -o predictions_clean --min-share 0.2 -np 4"
# what steps count, and how the table calls it
COLUMNS = {
    "relabelled_components": "relabelled components",
    "relabelled_voxels": "relabelled voxels",
    "relabelled_mm3": "relabelled mm^3",
    "removed_components": "removed components",
    "removed_voxels": "removed voxels",
    "removed_mm3": "removed mm^3",
    "components_left_alone": "components left alone",
    "changed_cases": "changed cases",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``postprocess``."""
    parser.add_argument("-i", type=Path, required=True, help="folder of label maps")
    parser.add_argument("-o", type=Path, required=True, help="folder for the cleaned label maps")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument(
        "--min-share",
        type=float,
        help="drop components smaller than this share of the largest one of their label (default: 0.2)",
    )
    kept.add_argument("--largest-only", action="store_true", help="keep only the largest component of every label")
    kept.add_argument(
        "--settings", type=Path, help='JSON: {"steps": [{"step": "keep_components", "min_share_of_largest": 0.2}]}'
    )
    parser.add_argument(
        "--pairs",
        nargs="*",
        metavar="LEFT:RIGHT",
        help="the whole of Xu's post-processing for paired labels, for example 1:2 3:4: give every component but the "
        "largest of a label to its twin, then keep the largest component alone, or what --min-share says. Without "
        "pairs they are those of plans.json or by the names in dataset.json in -i, and must lie side by side",
    )
    parser.add_argument(
        "--open-gaps-mm",
        type=float,
        metavar="MM",
        help="at last open closed gaps: make voxels background, nearest first, until no two structures are within this "
        "distance (Xu's: 1.56, 2 voxels of 0.78 mm; give 2 of your voxels, at least the largest voxel size)",
    )
    parser.add_argument(
        "--connectivity", type=int, choices=(6, 18, 26), help="voxels connect by faces, edges or corners (default: 26)"
    )
    parser.add_argument("-l", "--labels", type=int, nargs="+", help="labels to clean (default: all)")
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Clean every label map of the folder and print what was changed."""
    from nnunet_anomaly.postprocessing.runner import RECORDS, postprocess_folder

    outcome = postprocess_folder(args.i, args.o, _steps(args), args.np)
    summary = load_json(args.o / f"{RECORDS}.json")
    for step, by_label in zip(summary["steps"], summary["removed"], strict=True):
        print(f"{step['step']}: {', '.join(f'{key} {value}' for key, value in step.items() if key != 'step')}")
        _print_step(by_label)
    _print_changes(summary["changes"])
    print(f"{len(outcome.done)} done, {len(outcome.skipped)} were there already, {len(outcome.failed)} failed.")
    for found in summary["out_of_reach"]:
        warn_out_of_reach(found, "distance_mm of open_gaps", found["distance_mm"])
    print_failures(outcome)
    return outcome.exit_code


def _print_step(by_label: Mapping[str, Mapping[str, Any]]) -> None:
    """What a step did with each label, in the columns that it counts."""
    found = {key for counts in by_label.values() for key in counts}
    keys = [key for key in COLUMNS if key in found]
    rows = [[label, *(_cell(key, counts.get(key, 0)) for key in keys)] for label, counts in by_label.items()]
    if rows:
        print_table(["label", *(COLUMNS[key] for key in keys)], rows, left_columns=1)


def _print_changes(changes: Sequence[Mapping[str, Any]]) -> None:
    """What became of which label after all steps."""
    print("\nChanged by all steps together" + ("" if changes else ": nothing"))
    rows = [
        [
            str(entry["from"]),
            str(entry["to"] or "removed"),
            *(_cell(key, entry[key]) for key in ("voxels", "mm3", "cases")),
        ]
        for entry in changes
    ]
    if rows:
        print_table(["label", "becomes", "voxels", "mm^3", "cases"], rows)


def _cell(key: str, value: float) -> str:
    return f"{value:.1f}" if key.endswith("mm3") else str(value)


def _steps(args: argparse.Namespace) -> Any:
    if args.settings:
        if args.connectivity or args.labels or args.pairs is not None or args.open_gaps_mm is not None:
            raise SettingsError(
                "--settings holds all settings; leave out --pairs, --open-gaps-mm, --connectivity and -l."
            )
        content = load_json(args.settings)
        if not isinstance(content, dict) or list(content) != ["steps"]:
            raise SettingsError(f'{args.settings} must hold {{"steps": [...]}} and nothing else.')
        return content["steps"]
    share = 0.2 if args.min_share is None else args.min_share
    common: dict[str, Any] = {"connectivity": args.connectivity or 26}
    if args.labels:
        common["labels"] = args.labels
    keep = {"step": "keep_components", "min_share_of_largest": 1.0 if args.largest_only else share, **common}
    steps = [keep]
    if args.pairs is not None:
        relabel = {"step": "symmetric_components", "pairs": _pairs(args), **common}
        steps = [relabel] if args.min_share is None else [relabel | {"keep_largest": False}, keep]
    if args.open_gaps_mm is not None:
        steps.append({"step": "open_gaps", "distance_mm": args.open_gaps_mm, **common})
    return steps


def _pairs(args: argparse.Namespace) -> list[list[int]]:
    """As given, else those of the folder, which are said."""
    if args.pairs:
        return [_pair(text) for text in args.pairs]
    from nnunet_anomaly.label_maps import files_by_case
    from nnunet_anomaly.workflow.pairs import find_pairs

    pairs, said = find_pairs(args.i, files_by_case(args.i))
    print("\n".join(said))
    return pairs


def _pair(text: str) -> list[int]:
    left, separator, right = text.partition(":")
    if not (separator and left.isdecimal() and right.isdecimal()):
        raise SettingsError(f"--pairs: '{text}' is not a pair of labels such as 1:2.")
    return [int(left), int(right)]
