"""What ``nnunet-anomaly tune bml`` does: a grid search over the settings of ``bml_morphology`` on validation cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.evaluation.overlap import OverlapCounts, dice
from nnunet_anomaly.files import Outcome, is_up_to_date, load_json, made_from, run_cases, save_json
from nnunet_anomaly.geometry import open_mm
from nnunet_anomaly.label_maps import check_same_grid, read_label_map
from nnunet_anomaly.postprocessing.bml_morphology import (
    above_otsu,
    closed_in_bone,
    element_spacing_mm,
    in_plane_mm,
    slice_axis,
)
from nnunet_anomaly.postprocessing.residual_filters import are_small
from nnunet_anomaly.settings import AnomalySettings, BmlSettings
from nnunet_anomaly.workflow.bml_lesions import RECORDS, Case, CaseFiles, ErrorMapCase, ErrorMapFiles, read_case

# multiples of a pixel; smallest volumes are those of discs of so many pixels' radius, one slice thick
OPENING_PIXELS, CLOSING_PIXELS, MINIMUM_RADIUS_PIXELS = (0, 1, 2, 3), (0, 1, 2, 4), (0, 2, 4, 8)


@dataclass(frozen=True)
class Grid:
    """Values to try, each with all others; where scopes and equalisations tie, the first one is taken.

    ``equalisation`` is ``None`` for error maps, which are not equalised: no combination has it then.

    Raises:
        SettingsError: a value that ``BmlSettings`` does not take, none at all, or one twice.
    """

    equalisation: tuple[str, ...] | None
    otsu: tuple[str, ...]
    opening_mm: tuple[float, ...]
    closing_mm: tuple[float, ...]
    minimum_mm3: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in self.tried().items():
            if not values or len(set(values)) < len(values):
                raise SettingsError(f"bml.{name}: {list(values)} must be at least one value, and none of them twice.")
            for value in values:
                AnomalySettings.from_dict({f"bml.{name}": value})

    def tried(self) -> dict[str, tuple[Any, ...]]:
        """Values by names of settings."""
        return {name: values for name, values in asdict(self).items() if values is not None}

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination, by names of settings; the last name changes fastest."""
        tried = self.tried()
        return [dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())]

    def largest_mm(self) -> float:
        """Largest radius."""
        return max(*self.opening_mm, *self.closing_mm)


def derived_radii(
    cases: Mapping[str, CaseFiles | ErrorMapFiles], settings: BmlSettings
) -> dict[str, tuple[float, ...]]:
    """Radii and smallest volumes to try, from the median voxel size of the cases that can be read.

    A pixel is the coarser voxel size in a slice, so that every radius but 0 reaches all neighbours.

    Returns:
        ``opening_mm``, ``closing_mm`` and ``minimum_mm3``, rounded up to three digits after the point.

    Raises:
        InputError: no image, or error map, can be read.
    """
    pixels_mm, thicknesses_mm = [], []
    for spacing_mm in _spacings_mm(cases):
        axis = slice_axis(spacing_mm, settings.slice_axis)
        pixels_mm.append(max(in_plane_mm(spacing_mm, axis)))
        thicknesses_mm.append(1.0 if axis is None else spacing_mm[axis])
    if not pixels_mm:
        raise InputError("None of the images or error maps can be read.")
    pixel_mm, thickness_mm = median(pixels_mm), median(thicknesses_mm)
    disc_mm3 = math.pi * pixel_mm**2 * thickness_mm
    return {
        "opening_mm": tuple(_rounded_up(pixels * pixel_mm) for pixels in OPENING_PIXELS),
        "closing_mm": tuple(_rounded_up(pixels * pixel_mm) for pixels in CLOSING_PIXELS),
        "minimum_mm3": tuple(_rounded_up(pixels**2 * disc_mm3) for pixels in MINIMUM_RADIUS_PIXELS),
    }


def _spacings_mm(cases: Mapping[str, CaseFiles | ErrorMapFiles]) -> Iterator[tuple[float, ...]]:
    """Voxel sizes (z, y, x) from the headers of the images, or error maps, that have one."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    for files in cases.values():
        path = files.error_map if isinstance(files, ErrorMapFiles) else files.image
        if path is not None:
            reader.SetFileName(str(path))
            try:
                reader.ReadImageInformation()
            except RuntimeError:
                continue  # it is named when it is its turn
            yield reader.GetSpacing()[::-1]


def _rounded_up(value: float) -> float:
    # what NIfTI's float32 adds to a spacing is no digit of it
    return math.ceil(value * 1000 * (1 - 1e-6)) / 1000


def refuse_without_lesion(references: Mapping[str, Path]) -> None:
    """Look for one lesion before any work.

    Raises:
        InputError: none of the reference masks that can be read has a lesion.
    """
    for path in references.values():
        try:
            if read_label_map(path)[0].any():
                return
        except InputError:
            continue  # it is named when it is its turn
    raise InputError(
        f"None of the {len(references)} reference masks has a lesion: there is nothing to tune by. Give validation "
        "cases of which some have lesions; those without then tell how much is found where there is none."
    )


def count_cases(
    cases: Mapping[str, CaseFiles | ErrorMapFiles],
    references: Mapping[str, Path],
    labels: Sequence[int],
    base: BmlSettings,
    grid: Grid,
    output: Path,
    num_processes: int,
) -> tuple[dict[str, dict[str, Any]], Outcome]:
    """Try every combination on every case; cases that are finished with the same grid are not repeated.

    Args:
        cases: files of every case, all of them in ``references``.
        references: reference mask of every case, not 0 is lesion.
        labels: of the bone; none: all but 0.
        base: what the grid does not change: element and slice axis.
        grid: what is tried; with an equalisation of ``None`` for error maps, and for nothing else.
        output: folder; ``cases/<case>.json`` are written there.
        num_processes: cases at a time.

    Returns:
        Record of every case that did not fail: ``reference_voxels``, ``outside_bone_voxels`` (of the reference),
        ``voxel_mm3``, ``finest_in_plane_mm``, and ``found`` and ``hit`` (voxels, of which in the reference; ``None``:
        see ``count_overlaps``) for every combination in the order of ``grid.combinations()``; and what became of all
        cases.
    """
    folder = output / RECORDS
    work = [
        (case, (files, references[case], tuple(labels), base, grid, folder / f"{case}.json"))
        for case, files in cases.items()
    ]
    outcome = run_cases(_count_file, work, num_processes, "search")
    return {case: load_json(folder / f"{case}.json") for case in cases if case not in outcome.failed}, outcome


def _count_file(
    files: CaseFiles | ErrorMapFiles,
    reference_path: Path,
    labels: tuple[int, ...],
    base: BmlSettings,
    grid: Grid,
    record: Path,
) -> bool:
    """Worker: one case; False when it is finished already."""
    kept = {"labels": labels, "element": base.element, "slice_axis": base.slice_axis, "tried": asdict(grid)}
    source = made_from([*(path for path in files if path is not None), reference_path], kept)
    if is_up_to_date(record, source):
        return False
    record.unlink(missing_ok=True)
    case = read_case(files, labels)
    lesion, lesion_grid = read_label_map(reference_path)
    check_same_grid(case.grid, files.residual_from, lesion_grid, reference_path)
    try:
        found = count_overlaps(case, lesion != 0, base, grid)
    except InputError as error:
        raise type(error)(f"{files.residual_from}: {error}") from None
    figures = {
        "reference_voxels": int(np.count_nonzero(lesion)),
        "outside_bone_voxels": int(np.count_nonzero((lesion != 0) & ~case.bone)),
        "voxel_mm3": math.prod(case.spacing_mm),
        "finest_in_plane_mm": min(in_plane_mm(case.spacing_mm, slice_axis(case.spacing_mm, base.slice_axis))),
        "found": [found_voxels for found_voxels, _ in found],
        "hit": [hit_voxels for _, hit_voxels in found],
    }
    save_json({"made_from": source, **figures}, record)
    return True


def count_overlaps(
    case: Case | ErrorMapCase, lesion: np.ndarray, base: BmlSettings, grid: Grid
) -> list[tuple[int | None, int | None]]:
    """Voxels found, and those of them in the lesion, by every combination; what combinations share is done once.

    Args:
        case: arrays and spacing.
        lesion: reference, bool, of the same shape.
        base: element and slice axis.
        grid: what is tried.

    Returns:
        Two numbers a combination, in the order of ``grid.combinations()``: those of the masks of ``case.lesions``.
        ``None`` without equalisation where the bone fills the image, but others are tried (see ``to_scale_of``).
    """
    axis = slice_axis(case.spacing_mm, base.slice_axis)
    element_mm = element_spacing_mm(case.spacing_mm, axis, base.element, grid.largest_mm())
    equalisations = grid.equalisation or ("none",)
    counts: list[tuple[int | None, int | None]] = []
    for equalisation in equalisations:
        if equalisation == "none" and len(equalisations) > 1 and case.bone.all():
            counts += [(None, None)] * (len(grid.combinations()) // len(equalisations))
            continue
        residual = case.residual(equalisation, axis)  # type: ignore[arg-type]
        for otsu in grid.otsu:
            raw = above_otsu(residual, case.bone, otsu, axis)  # type: ignore[arg-type]
            for opening_mm in grid.opening_mm:
                opened = open_mm(raw, opening_mm, element_mm)
                for closing_mm in grid.closing_mm:
                    closed = closed_in_bone(opened, case.bone, closing_mm, element_mm)
                    counts += _by_minimum(closed, lesion, case.spacing_mm, grid.minimum_mm3)
    return counts


def _by_minimum(
    mask: np.ndarray, lesion: np.ndarray, spacing_mm: Sequence[float], minimum_mm3: Sequence[float]
) -> list[tuple[int, int]]:
    """Voxels of a mask, and those of them in the lesion, without components below each of several volumes."""
    components = label_components(mask)
    sizes = components.sizes_voxels
    hits = np.bincount(components.numbers[lesion[components.mask]], minlength=sizes.size)
    kept = [~are_small(sizes, spacing_mm, volume_mm3) for volume_mm3 in minimum_mm3]
    return [(int(sizes[large].sum()), int(hits[large].sum())) for large in kept]


def without_uncounted(
    records: dict[str, dict[str, Any]], grid: Grid
) -> tuple[dict[str, dict[str, Any]], Grid, list[str]]:
    """Records and grid without the equalisation ``none`` where a case could not count it, and the names of such cases.

    Combinations are compared on the same cases.
    """
    names = [case for case, record in records.items() if None in record["found"]]
    if not names or grid.equalisation is None:
        return records, grid, names
    kept = [index for index, row in enumerate(grid.combinations()) if row["equalisation"] != "none"]
    fewer = {
        case: {**record, **{name: [record[name][index] for index in kept] for name in ("found", "hit")}}
        for case, record in records.items()
    }
    return fewer, replace(grid, equalisation=tuple(each for each in grid.equalisation if each != "none")), names


def search_table(records: Mapping[str, Mapping[str, Any]], grid: Grid) -> list[dict[str, Any]]:
    """A row for every combination: its settings, ``dice``, ``dice_pooled`` and ``lesion_free_mm3``.

    ``dice`` is the mean over cases with a lesion; ``dice_pooled`` counts the voxels of all cases together, those found
    in cases without lesion too; ``lesion_free_mm3`` is the mean volume found in cases without lesion, ``None`` where
    every case has one.

    Args:
        records: see ``count_cases`` and ``without_uncounted``; at least one has a lesion.
        grid: of these records.
    """
    rows = []
    for index, combination in enumerate(grid.combinations()):
        counts = {case: counts_of(record, index) for case, record in records.items()}
        lesion_free_mm3 = [
            count.prediction_voxels * records[case]["voxel_mm3"]
            for case, count in counts.items()
            if not count.reference_voxels
        ]
        by_case = [dice(count) for count in counts.values() if count.reference_voxels]
        rows.append(
            {
                **combination,
                "dice": round(fmean(by_case), 12),
                "dice_pooled": round(dice(_together(counts.values())), 12),
                "lesion_free_mm3": round(fmean(lesion_free_mm3), 3) if lesion_free_mm3 else None,
            }
        )
    return rows


def _together(counts: Collection[OverlapCounts]) -> OverlapCounts:
    """Sums over cases."""
    names = ("reference_voxels", "prediction_voxels", "intersection_voxels")
    return OverlapCounts(*(sum(getattr(count, name) for count in counts) for name in names))


def counts_of(record: Mapping[str, Any], index: int) -> OverlapCounts:
    """What a combination found in a case."""
    return OverlapCounts(record["reference_voxels"], record["found"][index], record["hit"][index])


def best_row(rows: Sequence[Mapping[str, Any]], grid: Grid, criterion: str) -> int:
    """Index of the row that comes first, see ``preference``.

    Raises:
        InputError: no combination hits a lesion.
    """
    if not any(row[criterion] for row in rows):
        raise InputError(
            "No combination hits a lesion in any case. Are these the reconstructions (or error maps) and the reference "
            "masks of these cases, and are the lesions brighter than the bone around them (or in the error maps)?"
        )

    return min(range(len(rows)), key=lambda index: preference(rows[index], grid, criterion))


def preference(row: Mapping[str, Any], grid: Grid, criterion: str) -> tuple[float, ...]:
    """Sorts rows, the best first: highest criterion, then what finds least in cases without lesion.

    Then the smallest filters, as it costs a lesion least: opening first, then closing, then volume; then the order in
    the grid.
    """
    smallest = (row["opening_mm"], row["closing_mm"], row["minimum_mm3"])
    order = [grid.tried()[name].index(row[name]) for name in ("otsu", "equalisation") if name in row]
    return (-row[criterion], row["lesion_free_mm3"] or 0.0, *smallest, *order)


def at_the_edge(row: Mapping[str, Any], grid: Grid) -> list[str]:
    """Settings whose best value is the largest of several that were tried: a larger one may be better."""
    values = {name: getattr(grid, name) for name in ("opening_mm", "closing_mm", "minimum_mm3")}
    return [name for name, tried in values.items() if len(tried) > 1 and row[name] == max(tried)]
