"""A report as one HTML file that opens anywhere: pictures inside, no script, nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nnunet_anomaly.files import written_whole
from nnunet_anomaly.report.page import cell_text, is_numeric

STYLE = """
body { font: 15px/1.45 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; color: #1b1f24; background: #fff;
  max-width: 62rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid #d0d7de; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
div.wide { overflow-x: auto; }
th, td { padding: .22rem .7rem; text-align: left; border-bottom: 1px solid #e4e8ec; vertical-align: top;
  overflow-wrap: anywhere; }
th { background: #f3f5f7; font-weight: 600; overflow-wrap: normal; }
td.whole { white-space: pre; }
th.number, td.number { text-align: right; white-space: nowrap; }
tr:hover td { background: #f8fafb; }
a { color: #0550ae; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #57606a; font-size: .9rem; }
ul.notes { background: #fff8e5; border-left: 4px solid #bf8700; margin: .8rem 0; padding: .7rem 1rem .7rem 2rem; }
footer { color: #57606a; font-size: .85rem; margin-top: 3rem; border-top: 1px solid #d0d7de; padding-top: .6rem; }
@media print { body { margin: 0; max-width: none; } tr, figure { break-inside: avoid; } }
"""


class HtmlPage:
    """A report that grows block by block. Text is plain text: whatever a name holds, it is shown as it is."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._blocks = [f"<h1>{escape(title)}</h1>"]

    def section(self, heading: str) -> None:
        """Start a section."""
        self._blocks.append(f"<h2>{escape(heading)}</h2>")

    def text(self, paragraph: str) -> None:
        """Add a paragraph."""
        self._blocks.append(f"<p>{escape(paragraph)}</p>")

    def notes(self, lines: Sequence[str]) -> None:
        """Add warnings in a box of their own; none adds nothing."""
        if lines:
            items = "".join(f"<li>{escape(line)}</li>" for line in lines)
            self._blocks.append(f'<ul class="notes">{items}</ul>')

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        columns: Sequence[str] | Mapping[str, str] | None = None,
        formats: Mapping[str, str] | None = None,
        links: Mapping[str, Sequence[str]] | None = None,
        whole: Collection[str] = (),
    ) -> None:
        """Add a table; no rows at all are said to be none.

        Args:
            rows, columns, formats: as those of ``page.markdown_table``.
            links: for a column the file that each of its cells leads to, relative to the page.
            whole: columns whose cells are never broken into lines.
        """
        if not rows:
            self.text("None.")
            return
        keys = columns if columns is not None else list(dict.fromkeys(key for row in rows for key in row))
        headings = dict(keys) if isinstance(keys, Mapping) else {key: key for key in keys}
        kinds = {key: ' class="number"' if is_numeric(rows, key) else "" for key in headings}
        kinds |= {key: ' class="whole"' for key in headings if key in whole}
        cells = [f"<th{kinds[key]}>{escape(name)}</th>" for key, name in headings.items()]
        lines = ["".join(cells)]
        for place, row in enumerate(rows):
            texts = {key: escape(cell_text(row.get(key), (formats or {}).get(key, ""))) for key in headings}
            for key, files in (links or {}).items():
                texts[key] = f'<a href="{quote(files[place])}">{texts[key]}</a>'
            lines.append("".join(f"<td{kinds[key]}>{text}</td>" for key, text in texts.items()))
        body = "\n".join(f"<tr>{line}</tr>" for line in lines)
        self._blocks.append(f'<div class="wide"><table>\n{body}\n</table></div>')

    def picture(self, path: Path | str, caption: str) -> None:
        """Add a PNG file, which becomes part of the page.

        Raises:
            FileNotFoundError: there is no such file.
        """
        data = base64.b64encode(Path(path).read_bytes()).decode("ascii")
        text = escape(caption)
        image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
        self._blocks.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")

    def footer(self, text: str) -> None:
        """Close the page with a line in small print."""
        self._blocks.append(f"<footer>{escape(text)}</footer>")

    def write(self, path: Path | str) -> None:
        """Write the page, whole."""
        head = (
            f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>"
        )
        body = "\n".join(self._blocks)
        with written_whole(path) as temporary:
            temporary.write_text(
                f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n',
                encoding="utf-8",
            )
