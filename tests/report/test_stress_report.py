"""Tables and page of the stress test: what they hold, with odd names, failures, few cases and empty predictions."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from nnunet_anomaly.evaluation.stress import COMPARED, COMPARISON_COLUMNS, compare, headline
from nnunet_anomaly.report.figures import save_figure
from nnunet_anomaly.workflow.stress_report import write_report


class Read(HTMLParser):
    """Tags, sources, all text, and rows of cells."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.sources, self.text, self.rows, self.headings = [], [], "", [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.tags and self.tags[-1] in ("td", "th") and self.rows:
            self.rows[-1][-1] += data.strip("\n")
        if self.tags and self.tags[-1] == "h2" and data.strip():
            self.headings.append(data)

    def row(self, first, place=0):
        """The cells behind the first one of a row."""
        return [row[1:] for row in self.rows if row[0] == first][place]


def settings_of(rows, error_maps=None):
    models = list(dict.fromkeys(row["model"] for row in rows))
    return {
        "dataset": "Dataset101_Knee",
        "version": "1.2.3",
        "seed": 7,
        "models": [
            {
                "name": name,
                "folder": f"/models/{name}",
                "dataset": "Dataset101_Knee",
                "folds": [0, 1],
                "error_maps": (error_maps or {}).get(name),
                "cleaned": False,
            }
            for name in models
        ],
        "corruptions": {
            name: {"severities": [0.5, 1.0], "summary": f"what {name} does", "reference": "unchanged"}
            for name in dict.fromkeys(row["corruption"] for row in rows)
            if name != "none"
        },
        "structures": {"bone": [1], "cartilage": [2, 3]},
        "cases": {row["case"]: row["fold"] for row in rows},
        "mirroring": False,
    }


def report(tmp_path, rows, failed=None, pictures=(), **options):
    path = write_report(tmp_path, rows, settings_of(rows, **options), failed or {}, pictures)
    assert path == tmp_path / "report.html"
    return Read(path)


def table(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_the_page_answers_first_and_holds_everything(stress_rows, tmp_path):
    rows = stress_rows()
    picture = tmp_path / "pictures" / "worst.png"
    save_figure(Figure(figsize=(1, 1)), picture)
    read = report(tmp_path, rows, pictures=[(picture, "case_0: noise")], error_maps={"aware": "two passes"})
    for sentence in headline(rows, simple=["plain"]):
        assert sentence in read.text
    assert read.text.index("Shown to have a higher Dice than plain") < read.text.index("Difference to plain")
    assert read.headings == ["Dice", "Hausdorff distance (mm)", "Component errors", "Recall inside the anomaly",
                             "Dice by structure", "Uncorrupted cases", "Worst cases", "What was tested",
                             "How to read it"]  # fmt: skip
    assert "case_0: noise" in read.text and "two passes" in read.text and "1.2.3" in read.text
    assert "5 (5 by fold 0)" in read.text and "cartilage (2, 3)" in read.text
    assert all(source.startswith("data:image/png;base64,") for source in read.sources)
    assert read.tags.count("img") == len(COMPARED) + 1
    assert "script" not in read.tags and "link" not in read.tags


def test_verdicts_of_the_page_are_those_of_the_comparison(stress_rows, tmp_path):
    rows = stress_rows()
    read = report(tmp_path, rows)
    (found,) = (row for row in compare(rows) if (row["structure"], row["metric"], row["corruption"])
                == ("(all)", "dsc", "bright_lesion"))  # fmt: skip
    ends = f"{found['simultaneous95_low']:+.3f} to {found['simultaneous95_high']:+.3f}"
    assert read.row("bright lesion") == [f"{found['mean_difference']:+.3f} ({ends}): better"]
    assert read.row("uncorrupted")[0].endswith("no difference shown")
    assert read.row("corruption") == ["aware"]
    # recall has no row of uncorrupted cases: Dice, HD and component errors have
    assert sum(row[0] == "uncorrupted" for row in read.rows) == 3


def test_many_models_are_rows_and_the_answer_is_not_hidden_behind_them(stress_rows, tmp_path):
    few = report(tmp_path / "few", stress_rows(models=("plain", "a", "b", "c", "d")))
    assert "Model by model" not in few.headings and few.row("corruption") == ["a", "b", "c", "d"]
    rows = stress_rows(models=("plain", "a", "b", "c", "d", "aware"))
    read = report(tmp_path / "many", rows)
    assert "Model by model" in read.headings
    corruptions = read.row("model")
    assert corruptions[:2] == ["uncorrupted", "all corruptions"]
    (found,) = (row for row in compare(rows) if (row["structure"], row["metric"], row["corruption"], row["second"])
                == ("(all)", "dsc", "bright_lesion", "aware"))  # fmt: skip
    ends = f"{found['simultaneous95_low']:+.3f} to {found['simultaneous95_high']:+.3f}"
    cell = f"{found['mean_difference']:+.3f}\n({ends}): {found['verdict']}"
    assert read.row("aware")[corruptions.index("bright lesion")] == cell
    for sentence in headline(rows, simple=["plain", "a", "b", "c", "d", "aware"]):
        assert sentence in read.text
    assert read.text.index("Difference to plain") < read.text.index("aware against plain")


def test_tables_hold_all_rows(stress_rows, tmp_path):
    rows = stress_rows()
    report(tmp_path, rows)
    cases, points, comparisons = (table(tmp_path / f"{name}.csv") for name in ("cases", "curves", "comparison"))
    assert len(cases) == len(rows) and list(cases[0]) == list(rows[0])
    assert {row["structure"] for row in points} == {"bone", "cartilage", "(all)"}
    assert list(comparisons[0]) == list(COMPARISON_COLUMNS)
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["headline"] == headline(rows, simple=["plain", "aware"])
    assert summary["settings"]["seed"] == 7 and summary["failed"] == {}
    assert {row["structure"] for row in summary["comparisons"]} == {"(all)"}


def test_names_are_shown_as_they_are(stress_rows, tmp_path):
    evil = "<script>x</script> & $a$"
    rows = stress_rows(models=("<plain>", evil), structures=("<i>bone", "a & b"))
    read = report(tmp_path, rows, failed={"case <9> & co": "too <large>"})
    assert "script" not in read.tags and "i" not in read.tags
    assert evil in read.row("corruption")
    assert "Failed: case <9> & co: too <large>" in read.text
    assert "<i>bone" in read.text


def test_a_model_may_be_called_as_a_column(stress_rows, tmp_path):
    read = report(tmp_path, stress_rows(models=("corruption", "figure", "structure")))
    assert read.row("corruption") == ["figure", "structure"]
    assert len(read.row("noise")) == 2


def test_failed_cases_stand_in_a_box(stress_rows, tmp_path):
    read = report(tmp_path, stress_rows(), failed={"plain: case_7, metal 1": "InputError: no place"})
    assert "Failed: plain: case_7, metal 1: InputError: no place" in read.text
    assert read.tags.count("ul") == 1 and "ul" not in report(tmp_path, stress_rows()).tags


def test_one_case_has_no_interval_and_the_page_says_so(stress_rows, tmp_path):
    read = report(tmp_path, stress_rows(cases=1))
    assert "Tested on 1 case with 2 corruptions." in read.text
    assert "fewer than 3 cases there are no intervals" in read.text
    assert read.row("noise")[0].endswith(": too few cases") and "(" not in read.row("noise")[0]
    assert "No pictures were asked for" in read.text
    assert not any(row["ci95_low"] for row in table(tmp_path / "comparison.csv"))


def test_all_predictions_empty(stress_rows, tmp_path):
    read = report(tmp_path, stress_rows(empty=True))
    assert read.row("noise", place=1) == ["no value; 10 of 10 pairs left out"]
    assert read.row("Hausdorff distance (mm)") == ["no value"] * 2
    assert {row["hd_mm"] for row in table(tmp_path / "cases.csv")} == {""}
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)


def test_one_model_is_shown_without_a_comparison(stress_rows, tmp_path):
    read = report(tmp_path, stress_rows(models=["plain"]))
    assert "only one model, plain," in read.text and "Difference to" not in read.text
    assert read.tags.count("img") == len(COMPARED)
    with open(tmp_path / "comparison.csv", newline="", encoding="utf-8") as handle:
        assert list(csv.reader(handle)) == [list(COMPARISON_COLUMNS)]


def test_without_a_corruption_there_are_no_curves(stress_rows, tmp_path):
    read = report(tmp_path, stress_rows(corruptions=[]))
    assert "img" not in read.tags and read.row("uncorrupted")


def test_a_case_that_failed_in_one_model_is_named(stress_rows, tmp_path):
    rows = [
        row for row in stress_rows() if (row["model"], row["corruption"], row["case"]) != ("aware", "noise", "case_1")
    ]
    read = report(tmp_path, rows)
    assert read.row("noise")[0].endswith("better; 2 failed in one model")
    assert "A pair is a case at one severity" in read.text
