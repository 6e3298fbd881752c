"""What the user knows of cases and their names do not tell: a CSV table of scanners or sites, and of subjects."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_anomaly.dataset_conversion.runner import Case
from nnunet_anomaly.dataset_conversion.splits import some_of
from nnunet_anomaly.errors import InputError

COLUMNS = ("stratum", "subject")

Table = Mapping[str, Mapping[str, str]]


def read_case_table(path: Path) -> Table:
    """What is told of every case or subject: by its name in the column ``case``, ``stratum`` or ``subject`` or both.

    Other columns are ignored.

    Raises:
        InputError: no such file, no such columns, a field of them that is empty, or a name twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            header = reader.fieldnames or ()
            rows = list(reader)
    except FileNotFoundError:
        raise InputError(f"The table --strata {path} does not exist.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not readable as CSV: {error}") from error
    columns = [column for column in COLUMNS if column in header]
    if "case" not in header or not columns:
        raise InputError(f"{path} needs the column case, and stratum or subject or both.")
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        name, *values = ((row[column] or "").strip() for column in ("case", *columns))
        if not name or not all(values):
            raise InputError(f"{path}: every row needs a value for case and {' and '.join(columns)}; one is {row}.")
        if name in table:
            raise InputError(f"{path} has {name} twice.")
        table[name] = dict(zip(columns, values, strict=True))
    return table


def row_of(case: Case, table: Table) -> Mapping[str, str] | None:
    """The row of a case, else of its subject, else ``None``."""
    return table.get(case.case_id, table.get(case.subject))


def with_table(cases: Sequence[Case], table: Table) -> list[Case]:
    """The cases with stratum and subject by the table, where it has a row for them."""
    return [replace(case, **(row_of(case, table) or {})) for case in cases]


def check_rows(path: Path, table: Table, cases: Sequence[Case]) -> None:
    """Raise an ``InputError`` that names the cases without a row, for which the file says nothing."""
    missing = [case.case_id for case in cases if row_of(case, table) is None]
    if missing:
        raise InputError(f"{path} has no row for {some_of(missing)}, nor for their subjects.")
