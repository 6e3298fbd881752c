"""All knees of a converted dataset for ``nnunet-anomaly t2``: which there are, and tables over all of them."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cmp_to_key
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.evaluation.cohort import save_table
from nnunet_anomaly.files import Outcome, load_json
from nnunet_anomaly.label_maps import files_by_case
from nnunet_anomaly.multi_echo import FOLDER, json_beside, read_facts
from nnunet_anomaly.relaxometry.region_table import COLUMNS, FILE_NAME
from nnunet_anomaly.report.html_page import HtmlPage
from nnunet_anomaly.workflow.t2_knee import RECORD, Knee
from nnunet_anomaly.workflow.t2_report import PAGE
from nnunet_anomaly.workflow.t2_results import CHANGE_COLUMNS, CHANGE_TABLE, CLUSTER_COLUMNS, CLUSTER_TABLE
from nnunet_anomaly.workflow.t2_series import NIFTI, in_order, knee_name

KNEE_TABLE = "knees.csv"
KNEE_COLUMNS = {
    "case": "knee",
    "side": "side",
    "visits": "visits",
    "t2_first_ms": "T2 (ms), 1",
    "t2_second_ms": "T2 (ms), 2",
    "t2_change_ms": "change (ms)",
    "clusters": "clusters",
    "cluster_percent": "% of the plate",
    "warnings": "warnings",
}
_FORMATS = {
    **dict.fromkeys(("t2_first_ms", "t2_second_ms", "cluster_percent", "mean", "SD"), ".1f"),
    "t2_change_ms": "+.1f",
}


def is_dataset(source: Path) -> bool:
    """Whether a folder is a converted dataset with all echoes of its cases."""
    return (source / FOLDER).is_dir()


def cases_of(dataset: Path, chosen: Sequence[str] | None, test_only: bool) -> dict[str, Path]:
    """Echo files of a dataset by case: all of them, those that are named, or the test cases.

    Raises:
        InputError: there is none, or none of a name.
    """
    found = {path.name.removesuffix(NIFTI): path for path in sorted((dataset / FOLDER).glob(f"[!.]*{NIFTI}"))}
    if test_only:
        tested = files_by_case(dataset / "imagesTs", channel=0)
        found = {case: path for case, path in found.items() if case in tested}
    if missing := [case for case in chosen or () if case not in found]:
        what = "test case" if test_only else "case"
        raise InputError(f"{dataset / FOLDER} has no {what} {', '.join(missing)}.")
    if not found:
        raise InputError(f"{dataset / FOLDER} holds no {'test ' * test_only}case (<case>{NIFTI}).")
    return {case: path for case, path in found.items() if not chosen or case in chosen}


def knees_of(
    cases: Mapping[str, Path], masks: Path | None, side: str | None, output: Path
) -> tuple[list[Knee], dict[str, str]]:
    """Knees with their time points in order of the visits, and why others cannot be measured.

    Of more than two visits the first and the last one are taken, which a note says.

    Args:
        cases: echo file of every case.
        masks: folder of masks, ``<case>.nii.gz``; None: a model finds cartilage.
        side: of cases whose JSON tells none.
        output: a folder each is below it.
    """
    knees, failed = [], {}
    of_knee: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for case, path in cases.items():
        try:
            facts = read_facts(json_beside(path))
        except InputError as error:
            failed[case] = str(error)
            continue
        of_knee[knee_name(str(facts["subject"]), facts["side"] or side)].append((case, facts))
    given = files_by_case(masks) if masks else {}
    for name, visits in of_knee.items():
        try:
            chosen, notes = _first_and_last(visits)
        except InputError as error:
            failed[name] = str(error)
            continue
        if lacking := [case for case, _ in chosen if masks and case not in given]:
            failed[name] = f"{masks} has no mask of {', '.join(lacking)}."
            continue
        paths = tuple(cases[case] for case, _ in chosen)
        drawn = tuple(given[case] for case, _ in chosen) if masks else ()
        knees.append(Knee(name, paths, drawn, output / name, chosen[0][1]["side"] or side, tuple(notes)))
    return knees, failed


def _first_and_last(visits: Sequence[tuple[str, dict[str, Any]]]) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """At most two cases of a knee, the earlier one first, and what to say of it.

    Raises:
        InputError: their order is unknown, two are of one visit, or they are of subjects whose names differ in signs
            that a folder's name cannot have.
    """
    if len(subjects := {str(facts["subject"]) for _, facts in visits}) > 1:
        raise InputError(f"the subjects {', '.join(sorted(subjects))} would have one folder. Rename one of them.")
    for place, (case, facts) in enumerate(visits):
        for other, others in visits[:place]:
            if not in_order(others["time_point"], facts["time_point"]):
                raise InputError(
                    f"nothing tells which of {other} and {case} is earlier: their visits are {others['time_point']!r} "
                    f"and {facts['time_point']!r}. Leave one of them out (--cases), or correct their JSON files."
                )
    ordered = sorted(visits, key=cmp_to_key(_by_visit))
    if len(ordered) <= 2:
        return ordered, []
    listed = ", ".join(str(facts["time_point"]) for _, facts in ordered)
    return [ordered[0], ordered[-1]], [f"of {len(ordered)} visits ({listed}) the first and the last were measured."]


def _by_visit(one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> int:
    return in_order(one[1]["time_point"], other[1]["time_point"]) or 0


def save_summary(knees: Sequence[Knee], outcome: Outcome, output: Path) -> list[dict[str, Any]]:
    """Tables and a page over all knees that are finished; returns a row for each of them."""
    finished = [knee for knee in knees if knee.name in {*outcome.done, *outcome.skipped}]
    for name, columns in ((FILE_NAME, COLUMNS), (CHANGE_TABLE, CHANGE_COLUMNS), (CLUSTER_TABLE, CLUSTER_COLUMNS)):
        save_table([row for knee in finished for row in _rows(knee.output / name)], output / name, columns)
    records = [load_json(knee.output / RECORD) for knee in finished]
    rows = [_knee_row(record) for record in records]
    save_table(rows, output / KNEE_TABLE, list(KNEE_COLUMNS))
    _write_page(output, rows, records, outcome)
    return rows


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def _knee_row(record: Mapping[str, Any]) -> dict[str, Any]:
    times, change = record["time_points"], record["change"]
    means = [time["t2_mean_ms"] for time in times]
    return {
        "case": record["case"],
        "side": record["side"],
        "visits": " ".join(str(time["visit"] or "?") for time in times),
        "t2_first_ms": means[0],
        "t2_second_ms": means[1] if change else None,
        "t2_change_ms": means[1] - means[0] if change else None,
        "clusters": change["clusters"] if change else None,
        "cluster_percent": change["cluster_percent_of_plate"] if change else None,
        "warnings": len(record["warnings"]),
    }


def _write_page(
    output: Path, rows: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], outcome: Outcome
) -> None:
    page = HtmlPage(f"Cartilage T2 of {len(rows)} knees")
    if rows:
        settings = records[0]["settings"]
        page.text(
            f"T2 in ms of femoral cartilage, by the model '{settings['model']}'. The name of a knee leads to its page."
        )
    page.section("All knees")
    page.table(
        [_mean_row(rows, key, KNEE_COLUMNS[key]) for key in KNEE_COLUMNS if key.endswith("_ms")], formats=_FORMATS
    )
    page.section("Each knee")
    page.table(rows, KNEE_COLUMNS, _FORMATS, {"case": [f"{row['case']}/{PAGE}" for row in rows]})
    said = [f"{record['case']}: {text}" for record in records for text in record["warnings"]]
    if said:
        page.section("Warnings")
        page.notes(said)
    if outcome.failed:
        page.section("Failed")
        page.table([{"knee": name, "why": reason} for name, reason in outcome.failed.items()])
    page.write(output / PAGE)


def _mean_row(rows: Sequence[Mapping[str, Any]], key: str, name: str) -> dict[str, Any]:
    values = [row[key] for row in rows if row[key] is not None]
    return {
        "of the whole plate": name,
        "knees": len(values),
        "mean": fmean(values) if values else None,
        "SD": stdev(values) if len(values) > 1 else None,
    }
