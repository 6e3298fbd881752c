"""Removes what an earlier ``evaluate-anomaly`` wrote into the same folder, so that nobody takes it for this run's.

Files of ours alone, by name. Records that spare a later run its work stay (``cases``, ``at_thresholds``).
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

from nnunet_anomaly.workflow.filter_residuals import ENDING, RECORDS, SETTINGS

TABLES = ("cases.csv", "summary.csv", "summary.json", "thresholds.csv", "froc.csv", "lesions.csv")
PICTURES = re.compile(r"(precision_recall|froc|froc_size_\d+|dice_over_lesion_size|training_size)\.png")


def remove_results(output: Path, *, keep_thresholds: bool) -> None:
    """Remove all tables and pictures, and ``thresholds.json`` unless this run wrote or read it."""
    names = [*TABLES, *([] if keep_thresholds else ["thresholds.json"])]
    stale = [output / name for name in names]
    stale += [path for path in output.glob("*.png") if PICTURES.fullmatch(path.name)]
    # every method of every run has a folder of records
    stale += [output / "pictures" / f"{folder.name}.png" for folder in (output / "cases").glob("*/")]
    for path in stale:
        path.unlink(missing_ok=True)
    _remove_if_empty(output / "pictures")


def remove_filtered(output: Path, filtered_now: Container[str]) -> None:
    """Remove the maps below ``filtered/`` of all methods but those that are filtered now."""
    for settings in (output / "filtered").glob(f"*/{SETTINGS}"):
        folder = settings.parent
        if folder.name not in filtered_now:
            remove_maps(folder)
            settings.unlink()
            _remove_if_empty(folder / RECORDS)
            _remove_if_empty(folder)
    _remove_if_empty(output / "filtered")


def remove_maps(folder: Path, cases: Container[str] = ()) -> None:
    """Remove the filtered maps of all cases but these, and their records."""
    for record in (folder / RECORDS).glob("*.json"):
        if record.stem not in cases:
            (folder / f"{record.stem}{ENDING}").unlink(missing_ok=True)
            record.unlink()


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
