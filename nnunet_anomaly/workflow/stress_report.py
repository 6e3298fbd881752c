"""What ``nnunet-anomaly stress`` writes in the end: tables, figures, and one page that answers whether it helps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_anomaly.evaluation.cohort import json_safe, save_table
from nnunet_anomaly.evaluation.stress import (
    ALL_CORRUPTIONS,
    ALL_STRUCTURES,
    COMPARED,
    COMPARISON_COLUMNS,
    METRICS,
    NO_VALUE,
    UNCORRUPTED,
    compare,
    curves,
    headline,
    signed,
)
from nnunet_anomaly.files import save_json
from nnunet_anomaly.report.figures import save_figure
from nnunet_anomaly.report.html_page import HtmlPage
from nnunet_anomaly.report.stress_figures import severity_figure

CASES, CURVES, COMPARISON = "cases.csv", "curves.csv", "comparison.csv"
SUMMARY, PICTURES, PAGE = "summary.json", "pictures", "report.html"
MANY_MODELS = 6  # from here on a column for each would be too narrow to read
Row = Mapping[str, Any]

HOW_TO_READ = (
    "Severity goes from 0 (the image as it is) to 1. It is a scale of what is put in, not of harm: one severity of two "
    "corruptions does not compare. A deformation moves the reference with the image; for all others the reference "
    "is that of the uncorrupted image.",
    "Figures of a case are means over its structures, component errors and false components sums. Dice is 0 where a "
    "structure is missed altogether; a Hausdorff distance is then undefined, and the case is left out and counted. So "
    "a model that loses structures can have a short mean distance: look at both.",
    "A component error is the difference in the number of connected parts. Recall inside the anomaly is the share of "
    "the reference inside the anomaly that the prediction has. Of a bias field and of noise the anomaly is the whole "
    "image.",
    "Bands are 95 % intervals of the mean over cases (Student's t). In the tables a case's differences to the first "
    "model are averaged over severities, then over cases; their intervals hold for all corruptions together "
    "(Bonferroni), and verdicts follow from them. Every case counts as a subject of its own: with several scans of one "
    "subject intervals are too narrow. Nothing is adjusted for the number of models and of figures: of many "
    "models, one may look better by chance.",
    "No difference shown does not mean that there is none: the interval tells how large it could be.",
    "Each model is one training. What another training of the same network would give is in no interval.",
    "The corruptions are made to be plausible, not to be pathology. A model that does well here has been shown to bear "
    "them on these cases, and no more.",
)


@dataclass(frozen=True)
class _Results:
    """Everything that the page shows."""

    rows: Sequence[Row]
    points: Sequence[Row]
    comparisons: Sequence[Row]
    sentences: Sequence[str]
    settings: Mapping[str, Any]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(row["model"] for row in self.rows))

    @property
    def structures(self) -> list[str]:
        return list(dict.fromkeys(row["structure"] for row in self.rows))


def write_report(
    output: Path,
    rows: Sequence[Row],
    settings: Mapping[str, Any],
    failed: Mapping[str, str],
    pictures: Sequence[tuple[Path, str]],
) -> Path:
    """Write all tables, figures and the page; returns the page.

    Args:
        output: folder. ``cases.csv`` (the rows), ``curves.csv``, ``comparison.csv``, ``summary.json``, ``report.html``
            and, in ``pictures``, the figures against severity.
        rows: of structures (see ``evaluation.stress``).
        settings: ``dataset``, ``version``, ``seed``; ``models``, each with ``name``, ``folder``, ``dataset``,
            ``folds``, ``error_maps`` (where they come from, None without) and ``cleaned``; ``corruptions`` by name,
            with ``severities``, ``summary`` and ``reference``; ``structures`` (labels by name); ``cases`` (fold by
            name). What is beside these is shown as it is.
        failed: why, by what failed.
        pictures: PNG files of the worst cases with their captions, the worst first.
    """
    comparisons = compare(rows)
    without_error_maps = [model["name"] for model in settings["models"] if model["error_maps"] is None]
    sentences = headline(rows, comparisons, without_error_maps)
    results = _Results(rows, curves(rows), comparisons, sentences, settings)
    _save_tables(output, results, failed)
    page = HtmlPage(f"Stress test: {settings['dataset']}")
    # one sentence of each further model, the last ones, would hide the answer where models are many
    model_by_model = sentences[1 - len(results.models) :] if len(results.models) >= MANY_MODELS else []
    for sentence in sentences[: len(sentences) - len(model_by_model)]:
        page.text(sentence)
    page.notes([f"Failed: {name}: {reason}" for name, reason in failed.items()])
    for metric in COMPARED:
        _add_metric(page, output, results, metric)
    _add_structures(page, results)
    if model_by_model:
        page.section("Model by model")
    for sentence in model_by_model:
        page.text(sentence)
    _add_uncorrupted(page, results)
    _add_worst_cases(page, pictures)
    _add_settings(page, settings)
    page.section("How to read it")
    for text in HOW_TO_READ:
        page.text(text)
    page.footer(f"nnunet-anomaly {settings['version']}. All figures: {CASES}, {CURVES}, {COMPARISON}, {SUMMARY}.")
    page.write(output / PAGE)
    return output / PAGE


def _save_tables(output: Path, results: _Results, failed: Mapping[str, str]) -> None:
    save_table(results.rows, output / CASES)
    save_table(results.points, output / CURVES)
    save_table(results.comparisons, output / COMPARISON, COMPARISON_COLUMNS)
    summary = {
        "headline": list(results.sentences),
        "comparisons": [row for row in results.comparisons if row["structure"] == ALL_STRUCTURES],
        "uncorrupted": _whole(results.points, UNCORRUPTED),
        "failed": dict(failed),
        "settings": results.settings,
    }
    save_json(json_safe(summary), output / SUMMARY)


def _whole(points: Sequence[Row], corruption: str) -> list[Row]:
    return [row for row in points if (row["structure"], row["corruption"]) == (ALL_STRUCTURES, corruption)]


# ---- one figure of all models


def _add_metric(page: HtmlPage, output: Path, results: _Results, metric: str) -> None:
    """Table of verdicts and the figure against severity."""
    title = METRICS[metric].title
    page.section(title[0].upper() + title[1:])
    rows = [row for row in results.comparisons if (row["structure"], row["metric"]) == (ALL_STRUCTURES, metric)]
    if metric == "anomaly_recall":  # an uncorrupted case has no anomaly
        rows = [row for row in rows if row["corruption"] != UNCORRUPTED]
    if rows:
        direction = "Higher" if METRICS[metric].higher_is_better else "Lower"
        text = f"Difference to {results.models[0]}, with its interval. {direction} is better. "
        page.text(text + "The intervals of single corruptions hold together." + _left_out(rows))
        _add_by_model(page, _verdict_table(rows, "corruption"), "corruption", results.models[1:])
    points = [row for row in results.points if row["structure"] == ALL_STRUCTURES]
    if any(row["corruption"] != UNCORRUPTED for row in points):
        path = output / PICTURES / f"severity_{metric}.png"
        save_figure(severity_figure(points, metric), path, dpi=110)
        page.picture(path, f"{title[0].upper() + title[1:]} against severity: means over cases, with 95 % intervals")


def _left_out(rows: Sequence[Row]) -> str:
    """What it means that pairs are left out, where some are."""
    if not any(row["n_undefined"] or row["n_missing"] for row in rows):
        return ""
    return (
        " A pair is a case at one severity, predicted by both models. Left out are those without a value of both: a "
        f"distance to an empty label map, or no part of a structure inside the anomaly; {COMPARISON} has their numbers."
    )


_LONG_NAMES = {UNCORRUPTED: "uncorrupted", ALL_CORRUPTIONS: "all corruptions"}


def _model_columns(first: str, models: Sequence[str]) -> dict[str, str]:
    return {first: first} | {_key(model): model for model in models}


def _key(model: str) -> str:
    """Of a model's column: a model may be called as the first column is."""
    return f"model {model}"


def _add_by_model(page: HtmlPage, lines: Sequence[Mapping[str, str]], first: str, models: Sequence[str]) -> None:
    """A table of lines that begin with the column ``first``, a column for each model; of many models turned over."""
    if len(models) < MANY_MODELS - 1:
        page.table(lines, _model_columns(first, models), whole=[first])
        return
    columns = {"model": "model"} | {f"{first} {place}": line[first] for place, line in enumerate(lines)}
    turned = [
        {"model": model}
        | {f"{first} {place}": _in_two_lines(line.get(_key(model), "")) for place, line in enumerate(lines)}
        for model in models
    ]
    page.table(turned, columns, whole=list(columns))


def _in_two_lines(cell: str) -> str:
    return cell.replace(" (", "\n(", 1)


def _verdict_table(rows: Sequence[Row], by: str) -> list[dict[str, str]]:
    """A row for each corruption (or structure), a column for each further model."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        name = str(_LONG_NAMES.get(row[by], row[by]))
        shown = name.replace("_", " ") if by == "corruption" else name
        lines.setdefault(name, {by: shown})[_key(row["second"])] = _verdict_cell(row)
    return list(lines.values())


def _verdict_cell(row: Row) -> str:
    if row["verdict"] == NO_VALUE:
        text = NO_VALUE
    else:
        digits = _digits(row["metric"])
        text = signed(row["mean_difference"], digits)
        if math.isfinite(row["simultaneous95_low"]):
            ends = (signed(row[key], digits) for key in ("simultaneous95_low", "simultaneous95_high"))
            text += f" ({' to '.join(ends)})"
        text += f": {row['verdict']}"
    if row["n_undefined"]:
        text += f"; {row['n_undefined']} of {row['n_undefined'] + row['n_pairs']} pairs left out"
    return f"{text}; {row['n_missing']} failed in one model" if row["n_missing"] else text


def _digits(metric: str) -> int:
    return 3 if METRICS[metric].largest == 1 else 2


def _add_structures(page: HtmlPage, results: _Results) -> None:
    if len(results.structures) < 2 or len(results.models) < 2:
        return
    rows = [
        row
        for row in results.comparisons
        if (row["metric"], row["corruption"]) == ("dsc", ALL_CORRUPTIONS) and row["structure"] != ALL_STRUCTURES
    ]
    if rows:
        page.section("Dice by structure")
        page.text(
            f"Difference to {results.models[0]} over all corruptions; single intervals, which do not hold together."
        )
        _add_by_model(page, _verdict_table(rows, "structure"), "structure", results.models[1:])


# ---- the rest of the page


def _add_uncorrupted(page: HtmlPage, results: _Results) -> None:
    """Mean and interval of every figure (there is no anomaly in which to recall anything), a table a structure."""
    page.section("Uncorrupted cases")
    page.text("Mean over cases (95 % interval).")
    structures = [ALL_STRUCTURES, *results.structures] if len(results.structures) > 1 else results.structures
    for structure in structures:
        points = [row for row in results.points if (row["structure"], row["corruption"]) == (structure, UNCORRUPTED)]
        lines: dict[str, dict[str, str]] = {}
        for row in points:
            if row["metric"] != "anomaly_recall":
                line = lines.setdefault(row["metric"], {"figure": METRICS[row["metric"]].title})
                line[_key(row["model"])] = _mean_cell(row)
        page.text("All structures:" if structure == ALL_STRUCTURES else f"{structure}:")
        _add_by_model(page, list(lines.values()), "figure", results.models)


def _mean_cell(row: Row) -> str:
    if not row["n"]:
        return NO_VALUE
    digits = _digits(row["metric"])
    text = f"{row['mean']:.{digits}f}"
    if math.isfinite(row["ci95_low"]):
        text += f" ({row['ci95_low']:.{digits}f} to {row['ci95_high']:.{digits}f})"
    if row["n_undefined"]:
        text += f"; {row['n_undefined']} of {row['n'] + row['n_undefined']} cases left out"
    return text


def _add_worst_cases(page: HtmlPage, pictures: Sequence[tuple[Path, str]]) -> None:
    page.section("Worst cases")
    if not pictures:
        page.text("No pictures were asked for, or no case has a Dice with and without corruption.")
        return
    page.text(
        "Of each corruption, at its highest severity, the case that lost most Dice in any model; the largest losses "
        "first. They show what goes wrong, not how often. Pictures and losses are of predictions before any cleaning."
    )
    for path, caption in pictures:
        page.picture(path, caption)


def _add_settings(page: HtmlPage, settings: Mapping[str, Any]) -> None:
    page.section("What was tested")
    folds = Counter(settings["cases"].values())
    known = ("models", "corruptions", "structures", "cases")
    rows = [
        {"setting": name.replace("_", " "), "value": _text(settings[name])} for name in settings if name not in known
    ]
    by_fold = ", ".join(f"{number} by fold {fold}" for fold, number in folds.items())
    rows.append({"setting": "cases", "value": f"{len(settings['cases'])} ({by_fold})"})
    labels = {name: ", ".join(map(str, values)) for name, values in settings["structures"].items()}
    rows.append({"setting": "structures", "value": "; ".join(f"{name} ({text})" for name, text in labels.items())})
    page.table(rows)
    page.table(
        [
            {
                **{key: _text(model[key]) for key in ("name", "dataset", "folds", "folder")},
                "error maps": "none" if model["error_maps"] is None else model["error_maps"],
                "cleaned": "yes" if model["cleaned"] else "no",
            }
            for model in settings["models"]
        ],
        ["name", "error maps", "cleaned", "dataset", "folds", "folder"],
        whole=["name"],
    )
    page.table(
        [
            {
                "corruption": name.replace("_", " "),
                "what": each["summary"],
                "severities": _text(each["severities"]),
                "reference": each["reference"],
            }
            for name, each in settings["corruptions"].items()
        ],
        whole=["corruption"],
    )


def _text(value: Any) -> str:
    """A setting in plain words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
