"""What ``nnunet-anomaly tune t2`` writes in the end: the whole search as CSV, a page with a picture, the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly import __version__
from nnunet_anomaly.evaluation.cohort import save_table
from nnunet_anomaly.files import save_json
from nnunet_anomaly.report.figures import save_figure
from nnunet_anomaly.report.page import Page
from nnunet_anomaly.report.t2_figures import dice_surface_figure
from nnunet_anomaly.settings import T2Settings
from nnunet_anomaly.workflow.tune_t2 import Grid, agreement_of, at_the_edge, overlap

SETTINGS, TABLE, CASES, SUMMARY, PAGE = "settings.json", "search.csv", "cases.csv", "search.json", "report.md"
PICTURE = Path("pictures", "dice.png")
FORMATS = {"dice": ".4f", "probability": "g", "minimum_slice_mm2": "g"}
COLUMNS = {"probability": "probability", "minimum_slice_mm2": "smallest area of a slice (mm²)", "dice": "mean Dice"}
SHOWN = 20


def forget_search(output: Path) -> None:
    """Remove what an earlier search came to, so that it is not taken for that of one that fails; its cases stay."""
    for name in (SETTINGS, TABLE, CASES, SUMMARY, PAGE, PICTURE):
        (output / name).unlink(missing_ok=True)


def save_search(
    output: Path,
    base: T2Settings,
    grid: Grid,
    rows: Sequence[Mapping[str, Any]],
    best: int,
    records: Mapping[str, Mapping[str, Any]],
) -> tuple[T2Settings, list[str]]:
    """Write all of it; returns the chosen settings and warnings."""
    row = rows[best]
    chosen = replace(base, probability=row["probability"], minimum_slice_mm2=row["minimum_slice_mm2"])
    warnings, cases = at_the_edge(row, grid), case_rows(records, grid, row)
    if empty := [case["case"] for case in cases if not case["reference_voxels"]]:
        warnings.append(
            f"The reference of {', '.join(empty)} has no cartilage: where nothing is found its Dice counts as 1, else "
            "as 0. Is it the right label?"
        )
    save_table(rows, output / TABLE)
    save_table(cases, output / CASES)
    summary = {
        "version": __version__,
        "criterion": "mean Dice of cases",
        "best": dict(row),
        "grid": asdict(grid),
        "cases": len(cases),
        "warnings": warnings,
    }
    save_json(summary, output / SUMMARY)
    save_json({"t2": asdict(chosen)}, output / SETTINGS)
    _write_page(output, summary, rows, cases, chosen)
    return chosen, warnings


def case_rows(records: Mapping[str, Mapping[str, Any]], grid: Grid, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every case, with what one combination found."""
    found = []
    for case, record in records.items():
        counts = overlap(record, grid.probability.index(row["probability"]), row["minimum_slice_mm2"])
        found.append(
            {
                "case": case,
                "fold": record["fold"],
                "dice": agreement_of(counts),
                "reference_voxels": counts.reference_voxels,
                "found_voxels": counts.prediction_voxels,
                "hit_voxels": counts.intersection_voxels,
            }
        )
    return found


def _write_page(
    output: Path,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    cases: Sequence[Mapping[str, Any]],
    chosen: T2Settings,
) -> None:
    grid, best = summary["grid"], summary["best"]
    surface = np.array([row["dice"] for row in rows]).reshape(len(grid["probability"]), -1)
    figure = dice_surface_figure(
        surface, grid["probability"], grid["minimum_slice_mm2"], (best["probability"], best["minimum_slice_mm2"])
    )
    save_figure(figure, output / PICTURE, dpi=110)
    page = Page("Search for the thresholds of cartilage", output)
    page.text(
        f"{len(rows)} combinations on {len(cases)} held-out cases. Criterion: {summary['criterion']}. These cases "
        "chose the settings: on others figures will be lower."
    )
    page.table([{"setting": f"`t2.{name}`", "value": str(value)} for name, value in asdict(chosen).items()])
    for warning in summary["warnings"]:
        page.text(f"**Note.** {warning}")
    page.picture(output / PICTURE, "Mean Dice of every combination; the cross is the best one")
    page.section(f"The best {min(SHOWN, len(rows))} of {len(rows)}")
    page.text(f"All of them: [{TABLE}]({TABLE}).")
    page.table(sorted(rows, key=lambda row: -row["dice"])[:SHOWN], COLUMNS, FORMATS)
    page.section("Cases, with the chosen settings")
    page.table(cases, formats={"dice": ".4f"})
    page.write(PAGE)
