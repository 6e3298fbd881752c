"""A report in Markdown: tables, text, commands and pictures, in one file beside its pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nnunet_anomaly.files import written_whole

NOTHING = "–"


def markdown_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | Mapping[str, str] | None = None,
    formats: Mapping[str, str] | None = None,
) -> str:
    """Table in GitHub's Markdown; columns that hold numbers alone are set to the right.

    Args:
        rows: a mapping each. A key that is missing, None and NaN are shown as a dash.
        columns: keys in order, or key to heading (default: the keys of all rows as they first come).
        formats: format specification of a column's numbers, such as ``{"dice": ".3f"}``.

    Returns:
        The table with a line break at its end. Without rows: the heading alone; without columns: an empty string.
    """
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    headings = dict(columns) if isinstance(columns, Mapping) else {key: key for key in columns}
    if not headings:
        return ""
    formats = formats or {}
    lines = [list(headings.values()), ["---:" if is_numeric(rows, key) else "---" for key in headings]]
    lines += [[cell_text(row.get(key), formats.get(key, "")) for key in headings] for row in rows]
    return "".join(f"| {' | '.join(_escape(cell) for cell in line)} |\n" for line in lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)


def is_numeric(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether a column holds numbers alone; None does not count."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return bool(values) and all(_is_number(value) for value in values)


def cell_text(value: Any, specification: str) -> str:
    """A value as a table shows it: None and NaN as a dash, numbers by a format specification, without -0.0."""
    if value is None or (_is_number(value) and value != value):
        return NOTHING
    if not _is_number(value):
        return str(value)
    text = format(value, specification)
    return text if text.strip("-0.") or not text.startswith("-") else format(0.0, specification)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


class Page:
    """A report that grows block by block and is then written into a folder, in which its pictures lie too."""

    def __init__(self, title: str, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._blocks = [f"# {title}"]

    def section(self, heading: str, level: int = 2) -> None:
        """Start a section."""
        self._blocks.append(f"{'#' * level} {heading}")

    def text(self, paragraph: str) -> None:
        """Add a paragraph, in Markdown."""
        self._blocks.append(paragraph.strip())

    def commands(self, lines: Sequence[str]) -> None:
        """Add shell commands to copy; none adds nothing."""
        if lines:
            self._blocks.append("\n".join(["```bash", *lines, "```"]))

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        columns: Sequence[str] | Mapping[str, str] | None = None,
        formats: Mapping[str, str] | None = None,
    ) -> None:
        """Add a table (see ``markdown_table``); no rows at all are said to be none."""
        self._blocks.append(markdown_table(rows, columns, formats).strip() if rows else "No rows.")

    def picture(self, path: Path | str, caption: str) -> None:
        """Add a picture by a link relative to the report, so that the folder can be moved as a whole.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; write the picture before the report")
        link = quote(Path(os.path.relpath(path, self.folder)).as_posix())
        self._blocks.append(f"![{caption}]({link})\n\n*{caption}*")

    def write(self, name: str = "report.md") -> Path:
        """Write the report, whole, and return its path."""
        path = self.folder / name
        with written_whole(path) as temporary:
            temporary.write_text("\n\n".join(self._blocks) + "\n", encoding="utf-8")
        return path
