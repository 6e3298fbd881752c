"""Workers of ``nnunet-anomaly evaluate``: the figures of one case, kept in a record, and tables from the records."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.errors import InputError, LabelError
from nnunet_anomaly.evaluation.cohort import absent_structure, json_safe, structure_metrics
from nnunet_anomaly.evaluation.gap import gap_dice, gap_region
from nnunet_anomaly.evaluation.overlap import overlap_counts
from nnunet_anomaly.files import Outcome, is_up_to_date, load_json, made_from, save_json, save_volume
from nnunet_anomaly.label_maps import case_name, check_same_grid, finest_voxels_mm, read_label_map, spacing_zyx_mm
from nnunet_anomaly.postprocessing.collisions import collision_set, out_of_reach

GAP_FIGURES = ("gap_voxels", "gap_dsc_mean", "gap_dsc_pooled", "collision_voxels")
Structures = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Gaps:
    """What counts as a gap and as a collision."""

    width_mm: float
    collision_mm: float


@dataclass(frozen=True)
class Measures:
    """What is measured in every case.

    Attributes:
        structures: the labels of each structure; None: every label that a case holds.
        known: labels that a file may hold; None: any.
        nsd_tolerance_mm: of the normalized surface Dice.
        gaps: None: gaps and collisions are not looked at.
    """

    structures: Structures | None
    known: frozenset[int] | None
    nsd_tolerance_mm: float
    gaps: Gaps | None = None

    def settings(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "known": sorted(self.known or ())}


def name_methods(folders: Sequence[Path], names: Sequence[str] | None) -> dict[str, Path]:
    """Folder of every method by its name: as given, else the folder's name, with its parent's where two are alike.

    Raises:
        InputError: the number of names is wrong, two are alike, or one cannot be a folder's name.
    """
    if names is None:
        names = [folder.resolve().name for folder in folders]
        if len(set(names)) < len(names):
            names = [f"{folder.resolve().parent.name}_{folder.resolve().name}" for folder in folders]
    if len(names) != len(folders) or len(set(names)) < len(names):
        raise InputError(f"--names must give {len(folders)} different names, one for each -pred; got {list(names)}.")
    for name in names:
        if not name or name.startswith(".") or Path(name).name != name:
            raise InputError(f"--names: '{name}' cannot be a method's name, since a folder is named so.")
    return dict(zip(names, folders, strict=True))


def add_missing(
    outcome: Outcome,
    references: Iterable[str],
    predictions: Mapping[str, Mapping[str, Path]],
    methods: Mapping[str, Path],
) -> None:
    """Count every reference without a prediction as a failed case."""
    for method, files in predictions.items():
        for case in references:
            if case not in files:
                outcome.failed[f"{method}: {case}"] = f"{methods[method]} has no file for this case."


def record_path(output: Path, method: str, case: str) -> Path:
    """Where the figures of one case are kept, so that a later run need not repeat it."""
    return output / "cases" / method / f"{case}.json"


def evaluate_file(reference_file: Path, prediction_file: Path, measures: Measures, record: Path) -> bool:
    """Write the figures of one case; False when they are there already, of the same files and settings.

    Raises:
        InputError, GeometryError: a file is damaged, or the two lie on different grids.
        LabelError: not a label map, or labels that are not known.
    """
    source = made_from([reference_file, prediction_file], measures.settings())
    if is_up_to_date(record, source):
        return False
    reference, image = read_label_map(reference_file)
    prediction, other = read_label_map(prediction_file)
    check_same_grid(image, reference_file, other, prediction_file)
    if measures.known is not None and (stray := sorted(set(overlap_counts(reference, prediction)) - measures.known)):
        raise LabelError(
            f"{reference_file} or {prediction_file} holds labels {stray}, which dataset.json does not have. Correct "
            "one of them, or choose labels by -l."
        )
    spacing_mm = spacing_zyx_mm(image)
    figures = structure_metrics(reference, prediction, spacing_mm, measures.structures, measures.nsd_tolerance_mm)
    found: dict[str, Any] = {"made_from": source, "structures": figures}
    if measures.gaps is not None:
        found["gaps"] = measure_gaps(reference, prediction, spacing_mm, figures, measures.structures, measures.gaps)
    save_json(json_safe(found), record)
    return True


def measure_gaps(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    figures: dict[str, dict[str, Any]],
    structures: Structures | None,
    gaps: Gaps,
) -> dict[str, Any]:
    """Figures of the gaps of one case; ``gap_dsc`` is added to the figures of every structure."""
    labels = {name: structures[name][0] if structures else int(name) for name in figures}
    in_gap = gap_dice(reference, prediction, spacing_mm, width_mm=gaps.width_mm, labels=list(labels.values()))
    for name, label in labels.items():
        figures[name]["gap_dsc"] = in_gap.by_label[label]
    collisions = collision_set(prediction, spacing_mm, distance_mm=gaps.collision_mm, labels=list(labels.values()))
    found = (in_gap.region_voxels, in_gap.mean, in_gap.pooled, int(np.count_nonzero(collisions)))
    return dict(zip(GAP_FIGURES, found, strict=True))


def collisions_out_of_reach(
    references: Mapping[str, Path], gap_rows: Iterable[Mapping[str, Any]], gaps: Gaps | None
) -> dict[str, Any] | None:
    """In which of the cases that were measured nothing can collide, see ``collisions.out_of_reach``."""
    if gaps is None:
        return None
    measured = {row["case"]: references[row["case"]] for row in gap_rows}
    return out_of_reach(finest_voxels_mm(measured), gaps.collision_mm)


def forget_gap_regions(folder: Path, references: Container[str]) -> None:
    """Remove the gap regions that an earlier run made of references that are gone, their records first."""
    for record in (folder / "made_from").glob("*.json"):
        if record.stem not in references:
            record.unlink()
            (folder / f"{record.stem}.nii.gz").unlink(missing_ok=True)


def save_gap_region(reference_file: Path, folder: Path, measures: Measures) -> bool:
    """Write the gap region of a reference as ``<case>.nii.gz`` (uint8, 1 in the gap); False when it is there already.

    Empty where no two structures are that near. What it is made from is kept in ``made_from/`` beside it.
    """
    assert measures.gaps is not None
    case = case_name(reference_file)
    record, target = folder / "made_from" / f"{case}.json", folder / f"{case}.nii.gz"
    labels = None if measures.structures is None else [values[0] for values in measures.structures.values()]
    source = made_from([reference_file], {"width_mm": measures.gaps.width_mm, "labels": labels})
    if target.is_file() and is_up_to_date(record, source):
        return False
    record.unlink(missing_ok=True)
    target.unlink(missing_ok=True)
    reference, image = read_label_map(reference_file)
    gap = gap_region(reference, spacing_zyx_mm(image), width_mm=measures.gaps.width_mm, labels=labels)
    region = np.zeros(reference.shape, dtype=np.uint8)
    if gap is not None:
        box, inside = gap
        region[box] = inside
    save_volume(region, target, image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    save_json({"made_from": source}, record)
    return True


def collect_rows(
    references: Iterable[str], methods: Iterable[str], outcome: Outcome, output: Path, measures: Measures
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for every method, case and structure, and (with gaps) one for every method and case.

    What a case does not have counts as empty on both sides. Cases with most collisions come first.
    """
    found = {
        (method, case): load_json(record_path(output, method, case))
        for method in methods
        for case in references
        if f"{method}: {case}" not in outcome.failed
    }
    names = list(
        measures.structures or sorted({name for record in found.values() for name in record["structures"]}, key=int)
    )
    rows, gap_rows = [], []
    for (method, case), record in found.items():
        key = {"method": method, "case": case}
        for name in names:
            figures = record["structures"].get(name, absent_structure() | ({"gap_dsc": None} if measures.gaps else {}))
            rows.append(key | {"structure": name} | _with_nan(figures))
        if measures.gaps:
            gap_rows.append(key | _with_nan(record["gaps"]))
    return rows, sorted(gap_rows, key=lambda row: -row["collision_voxels"])


def _with_nan(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in figures.items()}
