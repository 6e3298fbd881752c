"""Pages of one file: every block as it was given, nothing taken as markup, pictures inside."""

from __future__ import annotations

import base64
import math
from html.parser import HTMLParser

import pytest

from nnunet_anomaly.report.html_page import HtmlPage

EVIL = '<script>alert("1")</script> & <b>'


class Cells(HTMLParser):
    """Tags, attributes and the text of every cell."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.cells, self.classes, self.sources, self.text = [], [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
            self.classes.append(dict(attributes).get("class"))
        self.sources += [value for name, value in attributes if name == "src"]

    def handle_data(self, data):
        self.text += data
        if self.cells and self.tags[-1] in ("td", "th"):
            self.cells[-1] += data.strip()


def test_text_is_text(tmp_path):
    page = HtmlPage(EVIL)
    page.section(EVIL)
    page.text(EVIL)
    page.notes([EVIL, "second"])
    page.table([{EVIL: EVIL}])
    page.footer(EVIL)
    page.write(tmp_path / "page.html")
    read = Cells(tmp_path / "page.html")
    assert "script" not in read.tags and "b" not in read.tags
    assert read.text.count(EVIL) == 8  # title twice
    assert read.tags.count("li") == 2


def test_tables_as_in_markdown(tmp_path):
    page = HtmlPage("Table")
    rows = [{"name": "a", "value": 1.234}, {"name": "b", "value": math.nan}, {"name": "c"}]
    page.table(rows, {"name": "Name", "value": "Value"}, {"value": ".1f"})
    page.table([])
    page.notes([])
    page.write(tmp_path / "page.html")
    read = Cells(tmp_path / "page.html")
    assert read.cells == ["Name", "Value", "a", "1.2", "b", "–", "c", "–"]
    assert read.classes == [None, "number"] * 4
    assert "None." in read.text and "ul" not in read.tags


def test_cells_that_are_not_to_be_broken(tmp_path):
    page = HtmlPage("Table")
    page.table([{"name": "a long one", "value": 1}], whole=["name"])
    page.write(tmp_path / "page.html")
    assert Cells(tmp_path / "page.html").classes == ["whole", "number"] * 2


def test_cells_that_lead_to_other_pages(tmp_path):
    page = HtmlPage("Links")
    page.table([{"name": "a & b", "n": 1}, {"name": "c", "n": 2}], links={"name": ["a & b/x.html", "c/x.html"]})
    page.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<a href="a%20%26%20b/x.html">a &amp; b</a>' in text and '<a href="c/x.html">c</a>' in text
    assert text.count("<a ") == 2


def test_pictures_are_part_of_the_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG picture")
    page = HtmlPage("Picture")
    page.picture(tmp_path / "a.png", 'a "quoted" caption')
    page.write(tmp_path / "page.html")
    (source,) = Cells(tmp_path / "page.html").sources
    head, _, data = source.partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == b"\x89PNG picture"
    with pytest.raises(FileNotFoundError):
        page.picture(tmp_path / "none.png", "")
