"""Is a converted dataset complete, and what is in it: the report that every conversion ends with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any


def integrity_report(
    name: str,
    labels: Mapping[str, int],
    records: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, str],
    splits: Sequence[Mapping[str, Sequence[str]]] | None,
) -> dict[str, Any]:
    """Facts about a dataset as it now lies on the disk (nothing about the run, so that a resumed run reports alike).

    Args:
        name: of the dataset.
        labels: name to value.
        records: of the finished cases, by case (see ``DatasetWriter.write_case``).
        failed: reason for every case that is not finished.
        splits: folds of the finished training cases; ``None`` where a dataset has none on purpose.

    Returns:
        JSON. ``complete`` is true when there is a training case, no case failed and no fold has an empty side.
    """
    training = [case_id for case_id, record in records.items() if not record["test"]]
    problems = [
        f"fold {index} has no {part} case"
        for index, split in enumerate(splits or [])
        for part in ("train", "val")
        if not split[part]
    ]
    if splits is not None and not splits:
        problems.append("no folds: there are fewer than two subjects to train on")
    return {
        "dataset": name,
        "complete": bool(training) and not failed and not problems,
        "training_cases": len(training),
        "test_cases": len(records) - len(training),
        "failed": dict(sorted(failed.items())),
        "notes": {case_id: record["notes"] for case_id, record in records.items() if record.get("notes")},
        "splits": [{part: len(split[part]) for part in ("train", "val")} for split in splits or []],
        "splits_problems": problems,
        "label_voxels": {
            label: _label_statistics(label, records) for label, value in labels.items() if value != 0 and records
        },
        "shapes": _count(records, lambda record: " x ".join(map(str, record["shape"]))),
        "spacings_mm": _count(records, lambda record: " x ".join(f"{size:.4g}" for size in record["spacing_mm"])),
        "laterality": _count(records, lambda record: record.get("laterality") or "unknown"),
        "visits": _count(records, lambda record: record.get("visit") or "unknown"),
        "alignments": _count(records, lambda record: record.get("alignment", {}).get("flip", "none needed")),
    }


def _label_statistics(label: str, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Smallest, median and largest number of voxels of a label, and the cases without it."""
    voxels = {case_id: record["label_voxels"][label] for case_id, record in records.items() if "label_voxels" in record}
    if not voxels:
        return {"min": 0, "median": 0, "max": 0, "absent_in": []}
    return {
        "min": min(voxels.values()),
        "median": median(voxels.values()),
        "max": max(voxels.values()),
        "absent_in": [case_id for case_id, number in voxels.items() if number == 0],
    }


def _count(records: Mapping[str, Mapping[str, Any]], key: Any) -> dict[str, int]:
    """How many cases have which value of ``key``, most frequent first."""
    return dict(Counter(key(record) for record in records.values()).most_common())


def as_text(report: Mapping[str, Any], most_failures: int = 30) -> str:
    """The report for people, one fact a line; of very many failures the first ones."""
    lines = [
        f"{report['dataset']}: {report['training_cases']} training and {report['test_cases']} test cases are finished, "
        f"{len(report['failed'])} failed; the dataset is {'complete' if report['complete'] else 'NOT complete'}."
    ]
    for title in ("shapes", "spacings_mm", "laterality", "visits", "alignments"):
        counted = ", ".join(f"{value} ({number})" for value, number in report[title].items())
        lines.append(f"  {title.replace('_', ' ')}: {counted or 'none'}")
    for label, voxels in report["label_voxels"].items():
        absent = f", absent in {', '.join(voxels['absent_in'][:10])}" if voxels["absent_in"] else ""
        lines.append(
            f"  {label}: {voxels['min']} to {voxels['max']} voxels a case, median {voxels['median']:.0f}{absent}"
        )
    folds = "; ".join(f"{split['train']} / {split['val']}" for split in report["splits"])
    lines.append(f"  splits (train / val): {folds or 'none'}")
    lines += [f"  problem: {problem}" for problem in report["splits_problems"]]
    lines += [f"  note on {case_id}: {note}" for case_id, notes in report["notes"].items() for note in notes]
    failures = list(report["failed"].items())
    lines += [f"  FAILED {case_id}: {reason}" for case_id, reason in failures[:most_failures]]
    if len(failures) > most_failures:
        lines.append(f"  ... and {len(failures) - most_failures} more, all named in integrity_report.json")
    return "\n".join(lines)
