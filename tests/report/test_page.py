"""Tables and pages against Markdown written by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnunet_anomaly.report.page import Page, markdown_table

ROWS = [
    {"case": "knee_00", "dice": 0.91234, "n": 3},
    {"case": "knee|01", "dice": math.nan, "n": None},
    {"case": "two\nlines", "dice": np.float32(0.5)},
]


def test_table_with_formats_and_gaps():
    assert markdown_table(ROWS, formats={"dice": ".3f"}) == (
        "| case | dice | n |\n"
        "| --- | ---: | ---: |\n"
        "| knee_00 | 0.912 | 3 |\n"
        "| knee\\|01 | – | – |\n"
        "| two lines | 0.500 | – |\n"
    )


def test_table_with_chosen_columns_and_headings():
    assert (
        markdown_table(ROWS[:1], {"n": "number", "case": "Case"})
        == "| number | Case |\n| ---: | --- |\n| 3 | knee_00 |\n"
    )
    assert markdown_table(ROWS[:1], ["case"]) == "| case |\n| --- |\n| knee_00 |\n"


@pytest.mark.parametrize(
    ("value", "shown"), [(math.inf, "inf"), (-math.inf, "-inf"), (True, "True"), (7, "7.00"), (-0.001, "0.00")]
)
def test_unusual_values(value, shown):
    assert markdown_table([{"x": value}], formats={"x": ".2f"}).splitlines()[-1] == f"| {shown} |"


def test_empty_tables():
    assert markdown_table([], ["a", "b"]) == "| a | b |\n| --- | --- |\n"
    assert markdown_table([]) == ""


def test_page(tmp_path):
    folder = tmp_path / "out"
    picture = folder / "pictures" / "knee 00.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"png")
    page = Page("Anomaly-aware or not", folder)
    page.text("What was compared.  ")
    page.section("Commands")
    page.commands(["nnUNetv2_train 101 3d_fullres 0", "nnunet-anomaly evaluate"])
    page.commands([])
    page.section("Results", level=3)
    page.table(ROWS[:1], ["case", "n"])
    page.table([])
    page.picture(picture, "A severe case")
    assert page.write() == folder / "report.md"
    assert (folder / "report.md").read_text(encoding="utf-8") == (
        "# Anomaly-aware or not\n\n"
        "What was compared.\n\n"
        "## Commands\n\n"
        "```bash\nnnUNetv2_train 101 3d_fullres 0\nnnunet-anomaly evaluate\n```\n\n"
        "### Results\n\n"
        "| case | n |\n| --- | ---: |\n| knee_00 | 3 |\n\n"
        "No rows.\n\n"
        "![A severe case](pictures/knee%2000.png)\n\n*A severe case*\n"
    )


def test_a_missing_picture_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Page("x", tmp_path).picture(tmp_path / "nowhere.png", "nothing")
