"""``nnunet-anomaly postprocess``: clean label maps by their connected components."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_anomaly.cli.output import print_failures, print_table
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.files import load_json

EXAMPLE = "nnunet-anomaly postprocess -i predictions -o predictions_clean --min-share 0.2 -np 4"


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
        nargs="+",
        metavar="LEFT:RIGHT",
        help="paired labels, for example 1:2 3:4: first give every component but the largest of a label to its twin. "
        "Then the largest component alone is kept, or what --min-share says",
    )
    parser.add_argument(
        "--connectivity", type=int, choices=(6, 18, 26), help="voxels connect by faces, edges or corners (default: 26)"
    )
    parser.add_argument("-l", "--labels", type=int, nargs="+", help="labels to clean (default: all)")
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Clean every label map of the folder and print what was removed."""
    from nnunet_anomaly.postprocessing.runner import RECORDS, postprocess_folder

    outcome = postprocess_folder(args.i, args.o, _steps(args), args.np)
    summary = load_json(args.o / f"{RECORDS}.json")
    for step, removed in zip(summary["steps"], summary["removed"], strict=True):
        print(f"{step['step']}: {', '.join(f'{key} {value}' for key, value in step.items() if key != 'step')}")
        keys = ["removed_components", "removed_voxels", "changed_cases"]
        if step["step"] == "symmetric_components":
            keys = ["relabelled_components", "relabelled_voxels", *keys]
        rows = [[label, *(str(counts.get(key, 0)) for key in keys)] for label, counts in removed.items()]
        print_table(["label", *(key.replace("_", " ") for key in keys)], rows, left_columns=1)
    print(f"{len(outcome.done)} done, {len(outcome.skipped)} were there already, {len(outcome.failed)} failed.")
    print_failures(outcome)
    return outcome.exit_code


def _steps(args: argparse.Namespace) -> Any:
    if args.settings:
        if args.connectivity or args.labels or args.pairs:
            raise SettingsError("--settings holds all settings; leave out --pairs, --connectivity and -l.")
        content = load_json(args.settings)
        if not isinstance(content, dict) or list(content) != ["steps"]:
            raise SettingsError(f'{args.settings} must hold {{"steps": [...]}} and nothing else.')
        return content["steps"]
    share = 0.2 if args.min_share is None else args.min_share
    common: dict[str, Any] = {"connectivity": args.connectivity or 26}
    if args.labels:
        common["labels"] = args.labels
    keep = {"step": "keep_components", "min_share_of_largest": 1.0 if args.largest_only else share, **common}
    if not args.pairs:
        return [keep]
    relabel = {"step": "symmetric_components", "pairs": [_pair(text) for text in args.pairs], **common}
    return [relabel] if args.min_share is None else [relabel | {"keep_largest": False}, keep]


def _pair(text: str) -> list[int]:
    left, separator, right = text.partition(":")
    if not (separator and left.isdecimal() and right.isdecimal()):
        raise SettingsError(f"--pairs: '{text}' is not a pair of labels such as 1:2.")
    return [int(left), int(right)]
