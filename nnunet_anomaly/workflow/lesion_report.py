"""Picture and report of ``evaluate-lesions``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_anomaly.cli.output import mean_and_sd
from nnunet_anomaly.evaluation.confusion import DEFINITIONS, METRICS
from nnunet_anomaly.report.anomaly_figures import size_groups_figure
from nnunet_anomaly.report.figures import save_figure
from nnunet_anomaly.report.page import Page
from nnunet_anomaly.workflow.lesion_results import CASE, LESION, LESION_FREE, SLICE, Results

REPORT, PICTURE = "report.md", "lesion_size.png"
TITLES = {
    SLICE: "Slices with a lesion, by area of lesion",
    CASE: "Cases with a lesion, by volume of lesion",
    LESION: "Lesions that are hit, by volume",
}


def write_report(folder: Path, results: Results, about: str, failed: Mapping[str, str]) -> None:
    """Write the curve over lesion size (where there is a lesion) and the report."""
    page = Page("Lesion masks against references", folder)
    page.text(about)
    _add_means(page, results)
    _add_detection(page, results)
    if results.size_rows:
        save_figure(size_groups_figure(results.size_rows, TITLES), folder / PICTURE)
        page.section("By size of lesion")
        page.text("Fifths by size of lesion, the smallest first; mean ± SD, of lesions the share that is hit.")
        page.picture(folder / PICTURE, "Figures by fifths of lesion size")
        _add_sizes(page, results)
    if results.comparisons:
        _add_comparisons(page, results.comparisons)
    if failed:
        page.section("Failed")
        page.table([{"case": name, "why": reason} for name, reason in failed.items()])
    page.write(REPORT)


def _add_means(page: Page, results: Results) -> None:
    by_key = {(row["method"], row["unit"], row["metric"]): row for row in results.summaries}
    page.section("Inside the bone")
    for unit, heading in ((SLICE, "slices with a lesion"), (CASE, "cases with a lesion")):
        rows = [
            {"method": method, "n": by_key[method, unit, "accuracy"]["n"]}
            | {metric: mean_and_sd(by_key[method, unit, metric], 3) for metric in METRICS}
            for method in results.methods
            if (method, unit, "accuracy") in by_key
        ]
        page.text(f"Mean ± SD over {heading}:")
        page.table(rows)
    page.text("\n".join(f"- {metric}: {text}" for metric, text in DEFINITIONS.items()))
    free = [
        {"method": method, "n": by_key[method, LESION_FREE, "specificity"]["n"]}
        | {
            metric: mean_and_sd(by_key[method, LESION_FREE, metric], 3)
            for metric in ("specificity", "false_positives_mm3")
        }
        for method in results.methods
        if (method, LESION_FREE, "specificity") in by_key
    ]
    if free:
        page.text("Cases without a lesion, mean ± SD:")
        page.table(free)


def _add_detection(page: Page, results: Results) -> None:
    page.section("Lesion by lesion")
    formats = {"lesion_sensitivity": ".3f", "false_positives_per_case": ".2f"}
    page.table(results.detection_rows, formats=formats)


def _add_sizes(page: Page, results: Results) -> None:
    for unit, title in TITLES.items():
        found = [row for row in results.size_rows if row["unit"] == unit]
        keys = dict.fromkeys((row["method"], row["group"], row["size"]) for row in found)
        rows = []
        for method, group, size in keys:
            row: dict[str, Any] = {"method": method, "fifth": group, "size": size}
            for each in found:
                if (each["method"], each["group"]) == (method, group):
                    shown = f"{each['mean']:.3f}" if unit == LESION else mean_and_sd(each, 3)
                    row |= {"n": each["n"] + each["n_undefined"], each["metric"]: shown}
            rows.append(row)
        if rows:
            page.text(f"{title}:")
            page.table(rows)


def _add_comparisons(page: Page, comparisons: Sequence[Mapping[str, Any]]) -> None:
    page.section("Paired differences")
    page.text(
        "Second method minus first, case by case, over cases with a lesion (false-positive components: over all "
        "cases). Two-sided p-values, not adjusted for the number of comparisons."
    )
    columns = {
        "first": "first",
        "second": "second",
        "metric": "figure",
        "n": "n",
        "mean_difference": "mean",
        "bootstrap95_low": "95 % bootstrap, from",
        "bootstrap95_high": "to",
        "p_t": "p (t)",
        "p_wilcoxon": "p (Wilcoxon)",
    }
    formats = {key: "+.4f" for key in ("mean_difference", "bootstrap95_low", "bootstrap95_high")}
    page.table(comparisons, columns, formats | {"p_t": ".3g", "p_wilcoxon": ".3g"})
