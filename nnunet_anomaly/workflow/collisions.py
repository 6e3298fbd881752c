"""What ``nnunet-anomaly collisions`` does: the collision set of every case, and which case to correct next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly import __version__
from nnunet_anomaly.evaluation.cohort import save_table
from nnunet_anomaly.files import Outcome, is_up_to_date, load_json, made_from, run_cases, save_json, save_volume
from nnunet_anomaly.label_maps import finest_voxels_mm, read_label_map, spacing_zyx_mm
from nnunet_anomaly.postprocessing.collisions import find_collisions, out_of_reach

ENDING = ".nii.gz"
RECORDS = "cases"
SUMMARY = "collisions.json"
CASE_COLUMNS = ("rank", "case", "collision_voxels", "collision_mm3", "most_between", "most_between_voxels")


def collide_cases(
    files: Mapping[str, Path],
    output: Path,
    distance_mm: float,
    labels: Sequence[int] | None,
    known: Sequence[int] | None,
    num_processes: int,
) -> Outcome:
    """Find the collision set E of every case; cases that are finished with the same settings are not repeated.

    Writes E as ``<case>.nii.gz`` (uint8, 1 in E), ``collisions.csv`` with the most collisions first, ``pairs.csv``,
    ``collisions.json``, and ``cases/`` for later runs. A case that fails or is gone has no E afterwards.

    Args:
        files: label map of every case.
        output: another folder than theirs.
        distance_mm, labels: see ``collisions.collision_set``.
        known: labels that a label map may hold; None: any.
        num_processes: cases at a time.
    """
    for record in (output / RECORDS).glob("*.json"):
        if record.stem not in files:
            _forget(record)
    work = [
        (case, (path, output / RECORDS / f"{case}.json", distance_mm, labels, known)) for case, path in files.items()
    ]
    outcome = run_cases(_collide_file, work, num_processes, "collisions")
    records = {case: load_json(output / RECORDS / f"{case}.json") for case in files if case not in outcome.failed}
    cases = rank_cases(records)
    save_table(cases, output / "collisions.csv", CASE_COLUMNS)
    by_case = [{"case": row["case"], **pair} for row in cases for pair in records[row["case"]]["pairs"]]
    save_table(by_case, output / "pairs.csv", ("case", "label", "other", "voxels", "mm3"))
    summary = {
        "version": __version__,
        "settings": {"distance_mm": distance_mm, "labels": labels},
        "out_of_reach": out_of_reach(finest_voxels_mm({case: files[case] for case in records}), distance_mm),
        **summarise(cases),
        "pairs": _sum_pairs(by_case),
        "ranking": cases,
        "failed": outcome.failed,
    }
    save_json(summary, output / SUMMARY)
    return outcome


def rank_cases(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for every case, that with the largest volume of E first; cases alike by name."""
    rows = []
    for case, record in records.items():
        worst = max(record["pairs"], key=lambda pair: pair["voxels"], default=None)
        rows.append(
            {
                "case": case,
                "collision_voxels": record["collision_voxels"],
                "collision_mm3": record["collision_mm3"],
                "most_between": f"{worst['label']}:{worst['other']}" if worst else "",
                "most_between_voxels": worst["voxels"] if worst else 0,
            }
        )
    rows.sort(key=lambda row: (-row["collision_mm3"], row["case"]))
    return [{"rank": rank, **row} for rank, row in enumerate(rows, start=1)]


def summarise(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Total and mean of |E| over cases, in voxels and mm^3, and how many cases have no collision; no mean of none."""
    found: dict[str, Any] = {
        "cases": len(cases),
        "cases_without_collision": sum(not row["collision_voxels"] for row in cases),
    }
    for key in ("collision_voxels", "collision_mm3"):
        total = sum(row[key] for row in cases)
        found[key] = {"total": round(total, 3), "mean": round(total / len(cases), 3) if cases else None}
    return found


def _sum_pairs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Voxels of every two labels that are too near to one another, over cases, most first."""
    totals: dict[tuple[int, int], Counter[str]] = {}
    for row in rows:
        total = totals.setdefault((row["label"], row["other"]), Counter())
        total.update({"voxels": row["voxels"], "mm3": row["mm3"], "cases": 1})
    return [
        {"label": label, "other": other, **{key: round(value, 3) for key, value in total.items()}}
        for (label, other), total in sorted(totals.items(), key=lambda item: (-item[1]["voxels"], item[0]))
    ]


def _collide_file(
    path: Path, record: Path, distance_mm: float, labels: Sequence[int] | None, known: Sequence[int] | None
) -> bool:
    """Worker: one case; False when it is finished already."""
    target = _target(record)
    source = made_from([path], {"distance_mm": distance_mm, "labels": labels, "known_labels": known})
    if target.is_file() and is_up_to_date(record, source):
        return False
    _forget(record)
    label_map, image = read_label_map(path, known)
    spacing_mm = spacing_zyx_mm(image)
    collisions, by_pair = find_collisions(label_map, spacing_mm, distance_mm=distance_mm, labels=labels)
    voxel_mm3 = math.prod(spacing_mm)
    voxels = int(np.count_nonzero(collisions))
    save_volume(collisions.astype(np.uint8), target, image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    found = {
        "collision_voxels": voxels,
        "collision_mm3": round(voxels * voxel_mm3, 3),
        "pairs": [
            {"label": label, "other": other, "voxels": number, "mm3": round(number * voxel_mm3, 3)}
            for (label, other), number in by_pair.items()
        ],
    }
    save_json({"made_from": source, **found}, record)
    return True


def _target(record: Path) -> Path:
    return record.parents[1] / f"{record.stem}{ENDING}"


def _forget(record: Path) -> None:
    """Remove what an earlier run made of a case, the record first."""
    record.unlink(missing_ok=True)
    _target(record).unlink(missing_ok=True)
