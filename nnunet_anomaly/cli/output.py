"""What several verbs print: tables, warnings, and the cases that failed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_anomaly.files import Outcome


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], left_columns: int = 2) -> None:
    """Print a table, its first columns aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if column < left_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def mean_and_sd(summary: Mapping[str, Any], digits: int) -> str:
    """``mean ± sd`` of a summary (one case: the mean alone), with the number of cases left out if there are any."""
    if not summary["n"]:
        return "-"
    text = f"{summary['mean']:.{digits}f}"
    if summary["n"] > 1:
        text += f" ± {summary['sd']:.{digits}f}"
    return f"{text} ({summary['n_undefined']} undefined)" if summary["n_undefined"] else text


def print_without_reference(by_method: Mapping[str, Sequence[str]]) -> None:
    """Name the predictions that have no reference. They are left out; that is no failure."""
    for method, names in by_method.items():
        if names:
            print(f"{method}: {len(names)} predictions have no reference and were left out: {', '.join(names)}")


def warn_out_of_reach(found: Mapping[str, Any] | None, option: str, distance_mm: float) -> None:
    """Say on the error stream where a distance reaches no other voxel, as ``collisions.out_of_reach`` found."""
    if found:
        print(
            f"Warning: in {found['cases']} of {found['of']} cases {option} {distance_mm:g} is less than the finest "
            f"voxel size ({found['finest_voxel_mm']:g} mm or more): no two structures count as too near there, even "
            "where they touch. The smallest distance that reaches in all of them is "
            f"{found['smallest_distance_mm']:g}; Xu's is 2 voxels.",
            file=sys.stderr,
        )


def print_failures(outcome: Outcome) -> None:
    """Name every failed case, and why it failed, on the error stream."""
    if outcome.failed:
        print(f"{len(outcome.failed)} failed:", file=sys.stderr)
    for name, reason in outcome.failed.items():
        print(f"  {name}: {reason}", file=sys.stderr)
