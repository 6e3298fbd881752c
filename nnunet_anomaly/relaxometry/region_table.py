"""The table of regions: one row for each case, time point and region, as CSV; change from time point 1 to 2."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.relaxometry.subregions import REGIONS, Subregions, region_figures
from nnunet_anomaly.twins import LEFT, RIGHT

FILE_NAME = "regions.csv"
COLUMNS = (
    "case",
    "time_point",
    "side",
    "region",
    "voxels",
    "t2_voxels",
    "t2_mean_ms",
    "t2_sd_ms",
    "volume_mm3",
    "area_mm2",
)
# what a reader of the table needs; others may be missing
NEEDED = ("case", "time_point", "region", "t2_mean_ms", "t2_voxels")
FIRST, SECOND = 1, 2

Key = tuple[str, int, str]
Row = dict[str, Any]


def region_rows(case: str, time_point: int, regions: Subregions, t2_ms: Any) -> list[Row]:
    """Rows of one case and time point, with a value for each of ``COLUMNS``; see ``subregions.region_figures``."""
    key = {"case": case, "time_point": time_point, "side": regions.side}
    return [key | row for row in region_figures(regions, t2_ms)]


def change_rows(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Change of every case and region that has both time points, in order of appearance.

    Args:
        rows: as ``region_rows`` or ``read_region_table`` give them.

    Returns:
        ``case``, ``side``, ``region``, ``t2_first_ms``, ``t2_second_ms`` and ``t2_change_ms``, time point 2 minus time
        point 1; NaN where one of the two has no value. ``t2_voxels`` is the smaller one of both.
    """
    rows = list(rows)
    second = {(row["case"], row["region"]): row for row in rows if row["time_point"] == SECOND}
    return [
        {
            "case": row["case"],
            "side": row["side"],
            "region": row["region"],
            "t2_first_ms": row["t2_mean_ms"],
            "t2_second_ms": other["t2_mean_ms"],
            "t2_change_ms": other["t2_mean_ms"] - row["t2_mean_ms"],
            "t2_voxels": min(row["t2_voxels"], other["t2_voxels"]),
        }
        for row in rows
        if row["time_point"] == FIRST and (other := second.get((row["case"], row["region"])))
    ]


def read_region_table(path: Path) -> dict[Key, Row]:
    """Rows of a table by case, time point and region.

    Args:
        path: a CSV file; or a folder, of which ``regions.csv`` is read, or where there is none, that of each of its
            folders.

    Returns:
        ``case``, ``time_point``, ``side`` (empty where the column is missing), ``region``, ``t2_mean_ms`` (NaN where
        the cell is empty) and ``t2_voxels`` of every row.

    Raises:
        InputError: there is no such file, a column is missing, a value is none of those that it may be, a row is there
            twice, or the time points of one case differ in side. The message names the file and the line.
    """
    found: dict[Key, Row] = {}
    sides: dict[str, tuple[str, Path]] = {}
    for file in _files(path):
        for line, cells in _cells(file):
            try:
                row = _row(cells)
            except ValueError as error:
                raise InputError(f"{file}, line {line}: {error}.") from None
            key = (row["case"], row["time_point"], row["region"])
            if key in found:
                raise InputError(f"{file}, line {line}: {', '.join(map(str, key))} is there twice in {path}.")
            if row["side"]:
                known, where = sides.setdefault(row["case"], (row["side"], file))
                if row["side"] != known:
                    raise InputError(
                        f"{file}, line {line}: {row['case']} is a {row['side']} knee, in {where} a {known} one."
                    )
            found[key] = row
    return found


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [path / FILE_NAME] if (path / FILE_NAME).is_file() else sorted(path.glob(f"*/{FILE_NAME}"))
    if not files:
        raise InputError(f"{path} is neither a table nor a folder with {FILE_NAME} in it or in its folders.")
    return files


def _cells(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Lines with their numbers, after a check of the heading."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{file} has no column {', '.join(missing)}; is it a table of regions?")
            return [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is not readable as CSV: {error}") from error


def _row(cells: Mapping[str, str | None]) -> Row:
    """One row, checked.

    Raises:
        ValueError: with what is wrong.
    """
    case, region, side = ((cells.get(name) or "").strip() for name in ("case", "region", "side"))
    if not case:
        raise ValueError("there is no case")
    if region not in REGIONS:
        raise ValueError(f"there is no region '{region}'; there are {', '.join(REGIONS)}")
    if side not in (LEFT, RIGHT, ""):
        raise ValueError(f"the side is '{side}'; it must be '{LEFT}' or '{RIGHT}'")
    if cells["time_point"] not in (str(FIRST), str(SECOND)):
        raise ValueError(f"the time point is '{cells['time_point']}'; it must be {FIRST} or {SECOND}")
    mean, voxels = (cells["t2_mean_ms"] or "").strip(), (cells["t2_voxels"] or "").strip()
    t2_ms = float(mean) if mean else math.nan
    if math.isinf(t2_ms) or t2_ms < 0:
        raise ValueError(f"t2_mean_ms is {mean}; it must be a time in ms, or empty")
    if not voxels.isdigit():
        raise ValueError(f"t2_voxels is '{voxels}'; it must be a whole number")
    return {
        "case": case,
        "time_point": int(cells["time_point"] or 0),
        "side": side,
        "region": region,
        "t2_mean_ms": t2_ms,
        "t2_voxels": int(voxels),
    }
