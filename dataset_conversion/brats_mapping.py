"""``name_mapping.csv`` of BraTS 2018 to 2020: grade of a tumour, and by the case's older names where it was scanned.

A row has a case's names in several releases, in columns such as ``BraTS_2019_subject_ID``, ``NA`` where it was in
none, and in the training part ``Grade``. Names of 2017 to 2019 hold the institution, as in ``BraTS19_CBICA_AAB_1``;
later ones do not.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from nnunet_anomaly.errors import InputError

PATTERN = "name_mapping*.csv"
NAME_WITH_SITE = re.compile(r"Brats1[789]_(?P<site>[A-Za-z0-9]+)_\w+", re.IGNORECASE)
GRADES = ("HGG", "LGG")


class Origin(NamedTuple):
    """What is known of a case beside its files; ``None`` is unknown."""

    grade: str | None = None
    site: str | None = None


def read_mappings(folders: Iterable[Path], year: str) -> dict[str, Origin]:
    """Grade and site by the name that a case has in the release of this year, from all tables in these folders.

    Tables without the year's column are of another release and say nothing.

    Raises:
        InputError: a table is not readable.
    """
    column = f"BraTS_{year}_subject_ID"
    found: dict[str, Origin] = {}
    for path in sorted(path for folder in folders for path in folder.glob(PATTERN)):
        try:
            with open(path, newline="", encoding="utf-8-sig") as handle:
                rows = list(csv.DictReader(handle))
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} is not readable as CSV: {error}. Mend it or move it away.") from error
        found.update({row[column].strip(): _origin(row) for row in rows if row.get(column)})
    return found


def _origin(row: Mapping[str, str | None]) -> Origin:
    """Grade and site of a row; the site by the newest name that tells it."""
    grade = (row.get("Grade") or "").strip().upper()
    names = [(row.get(f"BraTS_{year}_subject_ID") or "").strip() for year in (2019, 2018, 2017)]
    sites = [match["site"] for name in names if (match := NAME_WITH_SITE.fullmatch(name))]
    return Origin(grade if grade in GRADES else None, sites[0] if sites else None)
