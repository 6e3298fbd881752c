"""What ``evaluate-lesions`` makes of the records of all cases: rows, summaries, fifths of lesion size, comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nnunet_anomaly.evaluation.cohort import comparison_rows, summarise, summary_rows
from nnunet_anomaly.evaluation.confusion import METRICS
from nnunet_anomaly.evaluation.lesions import quantile_edges, size_groups

Row = dict[str, Any]

CASE, SLICE, LESION, LESION_FREE, ANY_CASE = "case", "slice", "lesion", "lesion_free_case", "any_case"
SUMMARISED = {
    CASE: (*METRICS, "lesion_sensitivity"),
    SLICE: METRICS,
    LESION_FREE: ("specificity", "accuracy", "false_positives_mm3"),
    ANY_CASE: ("false_positive_components",),
}
FIFTHS = 5
# by unit: what its size is, the unit of that, and what is looked at
SIZES = {
    SLICE: ("lesion_area_mm2", "mm2", ("dice", "iou")),
    CASE: ("lesion_volume_mm3", "mm3", ("dice", "iou")),
    LESION: ("volume_mm3", "mm3", ("hit",)),
}


@dataclass
class Results:
    """Rows of all methods.

    Attributes:
        methods: names, those without a finished case too.
        case_rows: one for each method and case.
        slice_rows: one for each method, case and slice with a lesion.
        lesion_rows: one for each method, case and lesion.
    """

    methods: Sequence[str]
    case_rows: list[Row]
    slice_rows: list[Row]
    lesion_rows: list[Row]

    @cached_property
    def by_unit(self) -> dict[str, list[Row]]:
        """Rows by what they are about; figures of lesions are of cases with a lesion alone."""
        return {
            CASE: [row for row in self.case_rows if row["lesions"]],
            SLICE: self.slice_rows,
            LESION: self.lesion_rows,
            LESION_FREE: [row for row in self.case_rows if not row["lesions"]],
            ANY_CASE: self.case_rows,
        }

    @cached_property
    def summaries(self) -> list[Row]:
        """A row for each unit, method and figure: n, n_undefined, mean, SD, median."""
        return [
            row
            for unit, metrics in SUMMARISED.items()
            for row in _of_unit(summary_rows(_with_structure(self.by_unit[unit], unit), metrics))
        ]

    @cached_property
    def comparisons(self) -> list[Row]:
        """Every further method against the first, case by case; slices of one case are no independent pairs."""
        return [
            row
            for unit in (CASE, ANY_CASE)
            for row in _of_unit(comparison_rows(_with_structure(self.by_unit[unit], unit), SUMMARISED[unit]))
        ]

    @cached_property
    def detection_rows(self) -> list[Row]:
        """A row for each method with a finished case: lesions that are hit, and false-positive components."""
        return [_detection(method, rows) for method, rows in self._by_method(ANY_CASE).items() if rows]

    @cached_property
    def size_rows(self) -> list[Row]:
        """A row for each unit, method, fifth of lesion size and figure; fewer groups where many are equally large."""
        return [row for unit in SIZES for row in self._size_rows(unit)]

    def _size_rows(self, unit: str) -> list[Row]:
        size, of_size, metrics = SIZES[unit]
        # the same lesions, however many methods looked for them
        place = {CASE: ("case",), SLICE: ("case", "slice"), LESION: ("case", "lesion")}[unit]
        sizes = {tuple(row[key] for key in place): row[size] for row in self.by_unit[unit]}
        edges = quantile_edges(np.array(list(sizes.values())), FIFTHS)
        rows = []
        for method, found in self._by_method(unit).items():
            values = np.array([row[size] for row in found])
            for number, (group, chosen) in enumerate(size_groups(values, edges, of_size).items(), start=1):
                for metric in metrics if sizes else ():
                    summary = summarise(row[metric] for row, kept in zip(found, chosen, strict=True) if kept)
                    mean_size = float(values[chosen].mean()) if chosen.any() else math.nan
                    rows.append(
                        {"unit": unit, "method": method, "group": number, "size": group, "mean_size": mean_size}
                        | {"metric": metric, **asdict(summary)}
                    )
        return rows

    def _by_method(self, unit: str) -> dict[str, list[Row]]:
        return {method: [row for row in self.by_unit[unit] if row["method"] == method] for method in self.methods}


def _with_structure(rows: Sequence[Row], unit: str) -> list[Row]:
    # what the tables of the cohort group by
    return [{**row, "structure": unit} for row in rows]


def _of_unit(rows: Sequence[Row]) -> list[Row]:
    return [{"unit": row["structure"], **{key: row[key] for key in row if key != "structure"}} for row in rows]


def _detection(method: str, rows: Sequence[Row]) -> Row:
    lesions, hit, false_ones = (
        sum(row[key] for row in rows) for key in ("lesions", "lesions_hit", "false_positive_components")
    )
    return {
        "method": method,
        "cases": len(rows),
        "lesion_free_cases": sum(not row["lesions"] for row in rows),
        "lesions": lesions,
        "lesions_hit": hit,
        "lesion_sensitivity": hit / lesions if lesions else math.nan,
        "false_positives_per_case": false_ones / len(rows),
    }


def results_of(records: Mapping[tuple[str, str], Mapping[str, Any]], methods: Sequence[str]) -> Results:
    """Rows of the records of all finished cases, by method and case; null becomes NaN."""
    cases, slices, lesions = [], [], []
    for (method, case), record in records.items():
        key = {"method": method, "case": case}
        cases.append(key | _with_nan(record["case"]))
        slices += [key | _with_nan(row) for row in record["slices"]]
        lesions += [key | row for row in record["lesions"]]
    return Results(methods, cases, slices, lesions)


def _with_nan(figures: Mapping[str, Any]) -> Row:
    return {key: math.nan if value is None else value for key, value in figures.items()}
