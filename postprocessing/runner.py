"""Thin runner: applies steps, given as JSON, to every label map of a folder and records what they did."""

from __future__ import annotations

import difflib
import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly import __version__
from nnunet_anomaly.dataset_roles import label_values
from nnunet_anomaly.errors import InputError, LabelError, SettingsError
from nnunet_anomaly.files import (
    Outcome,
    is_up_to_date,
    load_json,
    made_from,
    place,
    run_cases,
    save_json,
    write_image,
)
from nnunet_anomaly.label_maps import ENDINGS, files_by_case, finest_voxels_mm, read_label_map, spacing_zyx_mm
from nnunet_anomaly.postprocessing.collisions import DISTANCE_MM, out_of_reach
from nnunet_anomaly.postprocessing.components import keep_components_with_record
from nnunet_anomaly.postprocessing.gap_opening import open_gaps_with_record
from nnunet_anomaly.postprocessing.symmetric_components import symmetric_components_with_record

# A step takes a label map, its spacing in mm and its settings by name; it gives the new label map and, as JSON, what it
# did.
Step = Callable[..., tuple[np.ndarray, dict[str, Any]]]
STEPS: dict[str, Step] = {
    "keep_components": keep_components_with_record,
    "symmetric_components": symmetric_components_with_record,
    "open_gaps": open_gaps_with_record,
}

RECORDS = "postprocessing"
# what tells later commands the names of the labels
COMPANIONS = ("dataset.json", "plans.json")


def check_steps(steps: Any) -> list[dict[str, Any]]:
    """Check a list of steps before any work: ``[{"step": "keep_components", "min_share_of_largest": 0.2}, ...]``.

    Raises:
        SettingsError: not such a list, an unknown step or setting (the nearest one is named), or a wrong value.
    """
    if not isinstance(steps, list) or not steps or not all(isinstance(step, Mapping) for step in steps):
        raise SettingsError('Steps must be a list of at least one entry such as {"step": "keep_components"}.')
    for entry in steps:
        settings = dict(entry)
        name = settings.pop("step", None)
        if not isinstance(name, str) or name not in STEPS:
            raise SettingsError(f"{name!r} is not a step.{_nearest(str(name), STEPS)}")
        parameters = inspect.signature(STEPS[name]).parameters.values()
        known = {parameter.name: parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
        missing = [
            key for key, parameter in known.items() if parameter.default is parameter.empty and key not in settings
        ]
        if missing:
            raise SettingsError(f"{name} needs '{missing[0]}'.")
        for key in settings:
            if key not in known:
                raise SettingsError(f"'{key}' is not a setting of {name}.{_nearest(key, known)}")
        try:
            # an empty label map meets all checks of the settings and costs nothing
            STEPS[name](np.zeros((1, 1, 1), dtype=np.uint8), (1.0, 1.0, 1.0), **settings)
        except (LabelError, TypeError) as error:
            raise SettingsError(f"{name}: {error}") from error
    return [dict(entry) for entry in steps]


def apply_steps(
    label_map: np.ndarray, spacing_mm: Sequence[float], steps: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Apply checked steps one after the other.

    Args:
        label_map: 2-D or 3-D integers; never changed.
        spacing_mm: voxel size along every axis.
        steps: see ``check_steps``.

    Returns:
        The new label map (same shape and dtype), and what each step did, in voxels and mm^3 (2-D: of 1 mm thickness).
    """
    records = []
    voxel_mm3 = math.prod(spacing_mm)
    for entry in steps:
        settings = {key: value for key, value in entry.items() if key != "step"}
        label_map, record = STEPS[entry["step"]](label_map, spacing_mm, **settings)
        found = {label: _with_volumes(counts, voxel_mm3) for label, counts in record.items()}
        records.append({**entry, "labels_found": found})
    return label_map, records


def count_changes(before: np.ndarray, after: np.ndarray, spacing_mm: Sequence[float]) -> list[dict[str, int | float]]:
    """What became of the labels of a label map, whatever the steps say: ``from`` one label ``to`` another.

    Args:
        before: integers in 0 to 65535.
        after: of the same shape.
        spacing_mm: voxel size along every axis.

    Returns:
        An entry for every two labels, with ``voxels`` and ``mm3``; empty where nothing changed.
    """
    changed = before != after
    shift = 1 << 16
    both = before[changed].astype(np.int64) * shift + after[changed].astype(np.int64)
    voxel_mm3 = math.prod(spacing_mm)
    return [
        {"from": code // shift, "to": code % shift, "voxels": voxels, "mm3": round(voxels * voxel_mm3, 3)}
        for code, voxels in zip(*(found.tolist() for found in np.unique(both, return_counts=True)), strict=True)
    ]


def postprocess_folder(
    input_folder: Path, output_folder: Path, steps: Sequence[Mapping[str, Any]], num_processes: int = 1
) -> Outcome:
    """Apply steps to every label map of a folder; cases that are finished with the same steps are not repeated.

    Writes the label maps under their names (integers in their dtype, floating-point numbers as uint8, or uint16 with
    labels above 255), what was done to each of them to ``postprocessing/<case>.json``, the sum over all cases to
    ``postprocessing.json``, and copies of dataset.json and plans.json where there are any. A case that fails has no
    label map afterwards, and one that is no longer among the input neither, so that none of an earlier run is taken for
    it. Where there is a dataset.json, a label map with a label that it does not have is a failed case.

    Args:
        input_folder: label maps (``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha``).
        output_folder: another folder.
        steps: see ``check_steps``.
        num_processes: cases at a time; the result does not depend on it.

    Raises:
        InputError: there is no label map, or both folders are the same.
        SettingsError: see ``check_steps``; or a step names a label that dataset.json does not have.
    """
    steps = check_steps(list(steps))
    if input_folder.resolve() == output_folder.resolve():
        raise InputError(f"{input_folder} is input and output; name another output folder, so that nothing is lost.")
    files = files_by_case(input_folder)
    if not files:
        raise InputError(f"{input_folder} holds no label map (.nii.gz, .nii, .nrrd, .mha).")
    known = label_values(input_folder / "dataset.json")
    _refuse_unknown_labels(steps, known, input_folder)
    for name in COMPANIONS:
        if (input_folder / name).is_file():
            place(input_folder / name, output_folder / name, copy=True)
    work = [
        (case, (path, output_folder / path.name, output_folder / RECORDS / f"{case}.json", steps, known))
        for case, path in files.items()
    ]
    for record in (output_folder / RECORDS).glob("*.json"):
        if record.stem not in files:
            _forget(record.stem, output_folder)
    outcome = run_cases(_postprocess_file, work, num_processes, "postprocess")
    finished = [case for case in files if case not in outcome.failed]
    records = [load_json(output_folder / RECORDS / f"{case}.json") for case in finished]
    summary = {
        "version": __version__,
        "steps": steps,
        "cases": len(finished),
        "removed": _sum_up([record["steps"] for record in records], len(steps)),
        "changes": _sum_changes([record["changes"] for record in records]),
        "out_of_reach": _steps_out_of_reach(steps, {case: files[case] for case in finished}),
    }
    save_json({**summary, "failed": outcome.failed}, output_folder / f"{RECORDS}.json")
    return outcome


def _steps_out_of_reach(steps: Sequence[Mapping[str, Any]], files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Distances of ``open_gaps`` that reach no other voxel, so that the step did nothing, and in which cases."""
    distances_mm = [step.get("distance_mm", DISTANCE_MM) for step in steps if step["step"] == "open_gaps"]
    if not distances_mm:
        return []
    finest_mm = finest_voxels_mm(files)
    found = ((distance_mm, out_of_reach(finest_mm, distance_mm)) for distance_mm in distances_mm)
    return [{"distance_mm": distance_mm, **entry} for distance_mm, entry in found if entry]


def _refuse_unknown_labels(steps: Sequence[Mapping[str, Any]], known: Sequence[int] | None, folder: Path) -> None:
    named = {
        label
        for step in steps
        for label in (*(step.get("labels") or ()), *(label for pair in step.get("pairs", ()) for label in pair))
    }
    if known is not None and (unknown := sorted(named - set(known))):
        raise SettingsError(
            f"The steps name the labels {unknown}, which {folder / 'dataset.json'} does not have; it has {list(known)}."
        )


def _postprocess_file(
    source_file: Path, target: Path, record: Path, steps: list[dict[str, Any]], known: Sequence[int] | None
) -> bool:
    """Worker: one case; False when it is finished already."""
    import SimpleITK as sitk

    source = made_from([source_file], {"steps": steps, "known_labels": known})
    if target.is_file() and is_up_to_date(record, source):
        return False
    _forget(record.stem, target.parent)
    label_map, image = read_label_map(source_file, known)
    cleaned, records = apply_steps(label_map, spacing_zyx_mm(image), steps)
    result = sitk.GetImageFromArray(cleaned)
    result.CopyInformation(image)
    write_image(result, target)
    changes = count_changes(label_map, cleaned, spacing_zyx_mm(image))
    save_json({"made_from": source, "steps": records, "changes": changes}, record)
    return True


def _forget(case: str, folder: Path) -> None:
    """Remove what an earlier run made of a case: its record and its label map, the record first."""
    (folder / RECORDS / f"{case}.json").unlink(missing_ok=True)
    for ending in ENDINGS:
        (folder / f"{case}{ending}").unlink(missing_ok=True)


def _with_volumes(counts: Mapping[str, int], voxel_mm3: float) -> dict[str, int | float]:
    """Beside every number of voxels the volume: ``removed_mm3`` after ``removed_voxels``."""
    figures: dict[str, int | float] = {}
    for key, value in counts.items():
        figures[key] = value
        if key.endswith("voxels"):
            figures[key.removesuffix("voxels") + "mm3"] = round(value * voxel_mm3, 3)
    return figures


def _sum_up(records: Sequence[Sequence[Mapping[str, Any]]], number_of_steps: int) -> list[dict[str, Any]]:
    """For every step: by label, the sum over cases of what was removed or relabelled, and in how many cases it was."""
    totals = []
    for index in range(number_of_steps):
        by_label: dict[str, Counter[str]] = {}
        for steps in records:
            for label, counts in steps[index]["labels_found"].items():
                change = {key: value for key, value in counts.items() if key.startswith(("removed_", "relabelled_"))}
                total = by_label.setdefault(label, Counter())
                total.update(change)
                total.update({"changed_cases": int(any(change.values()))})
                total.update({key: value for key, value in counts.items() if key == "components_left_alone"})
        totals.append(
            {
                label: {key: round(value, 3) for key, value in total.items()}
                for label, total in sorted(by_label.items(), key=lambda item: int(item[0]))
            }
        )
    return totals


def _sum_changes(records: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, int | float]]:
    """``count_changes`` of all cases together, with the number of ``cases`` in which a label became the other."""
    totals: dict[tuple[int, int], Counter[str]] = {}
    for change in (change for changes in records for change in changes):
        total = totals.setdefault((change["from"], change["to"]), Counter())
        total.update({"voxels": change["voxels"], "mm3": change["mm3"], "cases": 1})
    return [
        {"from": before, "to": after, **{key: round(value, 3) for key, value in total.items()}}
        for (before, after), total in sorted(totals.items())
    ]


def _nearest(name: str, known: Any) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else f" There are: {', '.join(known)}."
