"""Is a converted dataset complete, and what is in it: the report that every conversion ends with."""

from __future__ import annotations

from collections import Counter, defaultdict
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
        JSON. ``complete`` is true when there is a training case, no case failed and no fold has an empty side. What no
        converter of this dataset tells (laterality, visits, alignments, sides) is empty.
    """
    training = [case_id for case_id, record in records.items() if not record["test"]]
    problems = [
        f"fold {index} would have no {part} case and is not in splits_final.json"
        + (
            ", so that later folds are counted one less: mend the failed cases before any fold is trained"
            * bool(failed)
        )
        for index, split in enumerate(splits or [])
        for part in ("train", "val")
        if not split[part]
    ]
    if splits is not None and not splits:
        problems.append("no folds: there are fewer than two subjects to train on")
    has_visits = any(record.get("visit") for record in records.values())
    return {
        "dataset": name,
        "complete": bool(training) and not failed and not problems,
        "training_cases": len(training),
        "test_cases": len(records) - len(training),
        "failed": dict(sorted(failed.items())),
        "notes": {case_id: record["notes"] for case_id, record in records.items() if record.get("notes")},
        "splits": [{part: len(split[part]) for part in ("train", "val")} for split in whole_folds(splits or [])],
        "splits_problems": problems,
        "label_voxels": {
            label: _label_statistics(label, records) for label, value in labels.items() if value != 0 and records
        },
        "shapes": _count(records, lambda record: " x ".join(map(str, record["shape"]))),
        "spacings_mm": _count(records, lambda record: " x ".join(f"{size:.4g}" for size in record["spacing_mm"])),
        "laterality": _count(_with("laterality", records), lambda record: record["laterality"] or "unknown"),
        "visits": _count(records if has_visits else {}, lambda record: record["visit"] or "unknown"),
        "alignments": _count(_with("alignment", records), lambda one: one["alignment"].get("flip", "none needed")),
        "sides": _sides(records),
    }


def whole_folds(splits: Sequence[Mapping[str, Sequence[str]]]) -> list[Mapping[str, Sequence[str]]]:
    """The folds that have cases to train on and to validate on; nnU-Net cannot train the others."""
    return [split for split in splits if split["train"] and split["val"]]


def _sides(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What became of left and right, which ``sides`` of the records tell; empty where none does.

    Returns:
        ``names_agree`` and ``names_disagree``: cases whose names of left and right are where they say, and others;
        ``by_place``: what those became whose names tell no side, and in how many cases.
    """
    found = [record["sides"]["structures"] for record in records.values() if "sides" in record]
    if not found:
        return {}
    said = [[one["says"] == one["lies"] for one in case.values() if one.get("says")] for case in found]
    by_place: dict[str, Counter[str]] = defaultdict(Counter)
    for case in found:
        for name, one in case.items():
            if one["lies"] and not one.get("says"):
                by_place[one["named"]][name] += 1
    return {
        "names_agree": sum(bool(agrees) and all(agrees) for agrees in said),
        "names_disagree": sum(not all(agrees) for agrees in said),
        "by_place": {named: dict(became.most_common()) for named, became in sorted(by_place.items())},
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


def _with(key: str, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The records that have it."""
    return {case_id: record for case_id, record in records.items() if key in record}


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
        if counted or title in ("shapes", "spacings_mm"):
            lines.append(f"  {title.replace('_', ' ')}: {counted or 'none'}")
    if report["sides"]:
        lines.append(f"  sides: by patient coordinates; {_sides_as_text(report['sides'])}")
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


def _sides_as_text(sides: Mapping[str, Any]) -> str:
    """Whether names and places agree, and what became of labels whose names tell no side."""
    facts = []
    if named := sides["names_agree"] + sides["names_disagree"]:
        facts.append(f"names and places agree in {sides['names_agree']} of {named} finished cases")
    for name, became in sides["by_place"].items():
        facts.append(f"{name} became {', '.join(f'{side} ({number})' for side, number in became.items())}")
    return "; ".join(facts) or "no structure is of a pair"
