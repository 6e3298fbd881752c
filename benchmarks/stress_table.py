"""Tables over the seeds of ``benchmarks/stress_study.py``: which arm bears what, against plain nnU-Net.

    python benchmarks/stress_table.py OUTPUT/hippocampus

``OUTPUT/hippocampus`` has a folder for every seed. A difference is that of one case, one corruption and one seed, mean
over severities; then the mean over seeds is taken case by case, and its mean over cases with a 95 % interval (Student's
t over cases). "+" (better) or "-" (worse) stands behind it where that interval leaves out 0 and every seed by itself
has the same sign; else nothing is shown.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.evaluation.stress import per_case, t_interval
from nnunet_anomaly.report.page import markdown_table

FIGURES = {"dsc": (True, 3), "hd_mm": (False, 1), "component_error": (False, 2), "anomaly_recall": (True, 3)}
TITLES = {"dsc": "Dice", "hd_mm": "HD mm", "component_error": "component errors", "anomaly_recall": "recall in anomaly"}
FIRST, CLEANED, NONE = "plain nnU-Net", ", cleaned", "none"
# model, corruption, case -> values of all severities
Values = Mapping[tuple[str, str, str], list[float]]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of one seed's ``cases.csv``, one for each model, corruption, severity and case, over structures."""
    texts = ("model", "corruption", "case", "fold", "structure", "empty")
    rows = []
    with open(path, newline="", encoding="utf-8") as handle:
        for line in csv.DictReader(handle):
            row: dict[str, Any] = {key: value if key in texts else float(value or "nan") for key, value in line.items()}
            if row["empty"] in ("reference", "prediction"):
                row |= dict.fromkeys(("asd_mm", "hd_mm", "hd95_mm"), math.inf)  # CSV has no infinity
            rows.append(row)
    return per_case(rows)


def values_of(rows: Iterable[Mapping[str, Any]], figure: str) -> Values:
    """Finite values by model, corruption and case."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        if math.isfinite(row[figure]):
            found[row["model"], row["corruption"], row["case"]].append(row[figure])
    return found


def differences(seeds: list[Values], first: str, second: str, corruptions: list[str]) -> np.ndarray:
    """Second minus first, (seeds, cases), mean over severities and then over corruptions; NaN where undefined."""
    cases = sorted({case for values in seeds for _, _, case in values})
    table = np.full((len(seeds), len(cases), len(corruptions)), np.nan)
    for seed, values in enumerate(seeds):
        for place, case in enumerate(cases):
            for number, corruption in enumerate(corruptions):
                pair = [values.get((model, corruption, case)) for model in (first, second)]
                if pair[0] and pair[1]:
                    table[seed, place, number] = np.mean(pair[1]) - np.mean(pair[0])
    return mean_of_finite(table, 2)


def mean_of_finite(table: np.ndarray, axis: int) -> np.ndarray:
    """Mean along an axis without NaN; NaN where there is nothing else."""
    count = np.isfinite(table).sum(axis)
    return np.where(count > 0, np.nansum(table, axis) / np.maximum(count, 1), np.nan)


def difference_cell(table: np.ndarray, higher_is_better: bool, digits: int) -> str:
    """Mean difference, interval over cases, and a sign where every seed agrees."""
    by_case = mean_of_finite(table, 0)
    by_case = by_case[np.isfinite(by_case)]
    if not by_case.size:
        return "–"
    mean, (low, high) = float(by_case.mean()), t_interval(by_case.tolist())
    by_seed = mean_of_finite(table, 1)
    agreed = (low > 0 and (by_seed > 0).all()) or (high < 0 and (by_seed < 0).all())
    sign = (" **+**" if (mean > 0) == higher_is_better else " **-**") if agreed else ""
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f}){sign}"


def absolute_cell(seeds: list[Values], model: str, corruptions: list[str], digits: int) -> str:
    """Mean over cases and corruptions, mean and SD over seeds."""
    means = []
    for values in seeds:
        numbers = [
            np.mean(found)
            for (name, corruption, _), found in values.items()
            if name == model and corruption in corruptions
        ]
        means.append(float(np.mean(numbers)) if numbers else math.nan)
    spread = f" ± {np.std(means, ddof=1):.{digits}f}" if len(means) > 1 else ""
    return f"{np.mean(means):.{digits}f}{spread}"


def write_tables(folder: Path) -> str:
    """All tables of one dataset, as Markdown."""
    paths = sorted(folder.glob("seed*/stress/cases.csv"))
    rows = [read_rows(path) for path in paths]
    models = list(dict.fromkeys(row["model"] for row in rows[0]))
    corruptions = [name for name in dict.fromkeys(row["corruption"] for row in rows[0]) if name != NONE]
    cases = {row["case"] for row in rows[0]}
    by_figure = {figure: [values_of(each, figure) for each in rows] for figure in FIGURES}
    parts = [f"{len(paths)} seeds, {len(cases)} cases.\n\nMean, and SD over seeds:\n"]
    table = []
    for model in models:
        line = {"arm": model, "Dice, uncorrupted": absolute_cell(by_figure["dsc"], model, [NONE], 3)}
        for figure, (_, digits) in FIGURES.items():
            line[TITLES[figure]] = absolute_cell(by_figure[figure], model, corruptions, digits)
        table.append(line)
    parts.append(markdown_table(table))
    for figure in ("dsc", "hd_mm"):
        better, digits = FIGURES[figure]
        for suffix in ("", CLEANED):
            parts.append(f"\n{TITLES[figure]} minus that of {FIRST}{suffix}:\n")
            table = []
            for model in models:
                if model.endswith(CLEANED) != bool(suffix) or model == FIRST + suffix:
                    continue
                line = {"arm": model}
                for name, chosen in {
                    "uncorrupted": [NONE],
                    "all corruptions": corruptions,
                    **{c: [c] for c in corruptions},
                }.items():
                    line[name] = difference_cell(
                        differences(by_figure[figure], FIRST + suffix, model, chosen), better, digits
                    )
                table.append(line)
            parts.append(markdown_table(table))
    return "\n".join(parts) + "\n"


def main() -> None:
    """Print the tables, and write them beside the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    text = write_tables(args.folder)
    (args.folder / "tables.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
