"""What ``nnunet-anomaly tune bml`` writes in the end: the whole search as CSV, a page, and the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_anomaly import __version__
from nnunet_anomaly.evaluation.cohort import save_table
from nnunet_anomaly.evaluation.overlap import dice
from nnunet_anomaly.files import save_json
from nnunet_anomaly.postprocessing.bml_morphology import reaches_nothing
from nnunet_anomaly.report.page import Page
from nnunet_anomaly.settings import AnomalySettings, BmlSettings
from nnunet_anomaly.workflow.bml_lesions import said_out_of_reach
from nnunet_anomaly.workflow.tune_bml import Grid, at_the_edge, counts_of, preference

SETTINGS, TABLE, CASES, SUMMARY, PAGE = "settings.json", "search.csv", "cases.csv", "search.json", "report.md"
CRITERIA = {"dice": "mean Dice of cases with a lesion", "dice_pooled": "Dice of all cases' voxels together"}
COLUMNS = {
    "equalisation": "equalisation",
    "otsu": "Otsu",
    "opening_mm": "opening (mm)",
    "closing_mm": "closing (mm)",
    "minimum_mm3": "minimum (mm³)",
    "dice": "mean Dice",
    "dice_pooled": "pooled Dice",
    "lesion_free_mm3": "found without lesion (mm³)",
}
FORMATS = {
    **dict.fromkeys(("dice", "dice_pooled"), ".4f"),
    **dict.fromkeys(("lesion_free_mm3", "reference_mm3", "found_mm3", "hit_mm3"), ".1f"),
    **dict.fromkeys(("opening_mm", "closing_mm", "minimum_mm3"), "g"),
}
SHOWN = 20


def forget_search(output: Path) -> None:
    """Remove what an earlier search came to, so that it is not taken for that of one that fails; its cases stay."""
    for name in (SETTINGS, TABLE, CASES, SUMMARY, PAGE):
        (output / name).unlink(missing_ok=True)


def case_rows(records: Mapping[str, Mapping[str, Any]], index: int) -> list[dict[str, Any]]:
    """A row for every case, with what the combination of this index found; no Dice without lesion."""
    rows = []
    for case, record in records.items():
        counts, voxel_mm3 = counts_of(record, index), record["voxel_mm3"]
        rows.append(
            {
                "case": case,
                "dice": dice(counts) if counts.reference_voxels else None,
                "reference_mm3": round(counts.reference_voxels * voxel_mm3, 3),
                "found_mm3": round(counts.prediction_voxels * voxel_mm3, 3),
                "hit_mm3": round(counts.intersection_voxels * voxel_mm3, 3),
            }
        )
    return rows


def warnings_of(
    row: Mapping[str, Any], grid: Grid, records: Mapping[str, Mapping[str, Any]], unscaled: Sequence[str]
) -> list[str]:
    """Sentences on what a reader of the result should know."""
    said = _out_of_reach(grid, [record["finest_in_plane_mm"] for record in records.values()])
    if unscaled:
        said.append(
            "bml.equalisation none was left out: the bone mask fills the image, so that nothing tells the scale of the "
            f"reconstruction, in {', '.join(unscaled)}."
        )
    said += [
        f"The best bml.{name} ({row[name]:g}) is the largest that was tried; larger ones may be better."
        for name in at_the_edge(row, grid)
    ]
    outside = {case: record["outside_bone_voxels"] for case, record in records.items() if record["outside_bone_voxels"]}
    if outside:
        share = sum(outside.values()) / sum(record["reference_voxels"] for record in records.values())
        said.append(
            f"In {len(outside)} cases the lesion reaches beyond the bone mask ({share:.1%} of all lesion voxels), "
            "where nothing is found: this part counts as missed."
        )
    return said


def _out_of_reach(grid: Grid, finest_mm: Sequence[float]) -> list[str]:
    """A sentence for every radius that does nothing in some case."""
    found = [
        (name, radius_mm, sum(reaches_nothing(radius_mm, size_mm) for size_mm in finest_mm))
        for name in ("opening_mm", "closing_mm")
        for radius_mm in getattr(grid, name)
    ]
    return [said_out_of_reach(*each, len(finest_mm)) for each in found if each[-1]]


def save_search(
    output: Path,
    base: BmlSettings,
    grid: Grid,
    rows: Sequence[Mapping[str, Any]],
    best: int,
    criterion: str,
    records: Mapping[str, Mapping[str, Any]],
    unscaled: Sequence[str] = (),
) -> list[str]:
    """Write ``search.csv``, ``cases.csv``, ``search.json``, ``settings.json`` and ``report.md``; return warnings.

    ``unscaled`` are the cases for which ``none`` was left out (see ``tune_bml.without_uncounted``).
    """
    chosen, warnings = chosen_settings(base, rows[best]), warnings_of(rows[best], grid, records, unscaled)
    cases = case_rows(records, best)
    save_table(rows, output / TABLE, list(_columns_of(rows)))
    save_table(cases, output / CASES)
    summary = {
        "version": __version__,
        "criterion": criterion,
        "best": dict(rows[best]),
        "grid": grid.tried(),
        "cases": len(cases),
        "cases_with_lesion": sum(row["dice"] is not None for row in cases),
        "warnings": warnings,
    }
    save_json(summary, output / SUMMARY)
    save_json({"bml": asdict(chosen)}, output / SETTINGS)
    ranked = sorted(rows, key=lambda row: preference(row, grid, criterion))
    _write_page(output, summary, ranked, criterion, cases, chosen)
    return warnings


def _columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Those of the search's table: without equalisation where error maps were searched."""
    return {name: title for name, title in COLUMNS.items() if name in rows[0]}


def chosen_settings(base: BmlSettings, row: Mapping[str, Any]) -> BmlSettings:
    """The settings of a row of the search, and all else as it was: element, slice axis, for error maps equalisation."""
    values = {f"bml.{name}": value for name, value in {**asdict(base), **row}.items() if name in asdict(base)}
    return AnomalySettings.from_dict(values).bml


def _write_page(
    output: Path,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    criterion: str,
    cases: Sequence[Mapping[str, Any]],
    chosen: BmlSettings,
) -> None:
    page = Page("Search for the settings of bml", output)
    page.text(
        f"{len(rows)} combinations on {summary['cases']} cases, {summary['cases_with_lesion']} of them with a lesion. "
        f"Criterion: {CRITERIA[criterion]}. These cases chose the settings: on others figures will be lower."
    )
    shown = {name: value for name, value in asdict(chosen).items() if name != "equalisation" or name in rows[0]}
    page.table([{"setting": f"`bml.{name}`", "value": str(value)} for name, value in shown.items()])
    if len(shown) < len(asdict(chosen)):
        page.text("Searched on error maps, which are not equalised: `bml.equalisation` stays as it was.")
    for warning in summary["warnings"]:
        page.text(f"**Note.** {warning}")
    page.section("What a setting is worth")
    page.text(f"The best {CRITERIA[criterion]} with this value, whatever the other settings.")
    page.table(_worth(rows, summary["grid"], criterion), formats={"best": ".4f"})
    page.section(f"The best {min(SHOWN, len(rows))} of {len(rows)}")
    page.text(f"All of them: [{TABLE}]({TABLE}).")
    page.table(rows[:SHOWN], _columns_of(rows), FORMATS)
    page.section("Cases, with the chosen settings")
    page.table(
        cases,
        {
            "case": "case",
            "dice": "Dice",
            "reference_mm3": "lesion (mm³)",
            "found_mm3": "found (mm³)",
            "hit_mm3": "found of the lesion (mm³)",
        },
        FORMATS,
    )
    page.write(PAGE)


def _worth(
    rows: Sequence[Mapping[str, Any]], grid: Mapping[str, Sequence[Any]], criterion: str
) -> list[dict[str, Any]]:
    """For every value of every setting of which several were tried, the best criterion with it."""
    return [
        {
            "setting": f"`bml.{name}`",
            "value": str(value),
            "best": max(row[criterion] for row in rows if row[name] == value),
        }
        for name, values in grid.items()
        if len(values) > 1
        for value in values
    ]
