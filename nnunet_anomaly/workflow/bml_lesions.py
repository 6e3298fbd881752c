"""What ``nnunet-anomaly lesions`` does: masks of bright lesions in bone, from images and their reconstructions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_anomaly import __version__
from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.evaluation.cohort import save_table
from nnunet_anomaly.files import (
    Outcome,
    is_up_to_date,
    load_json,
    made_from,
    read_image,
    run_cases,
    save_json,
    save_volume,
)
from nnunet_anomaly.label_maps import check_same_grid, files_by_case, read_region, spacing_zyx_mm
from nnunet_anomaly.postprocessing.bml_morphology import bml_morphology, in_plane_mm, reaches_nothing, slice_axis
from nnunet_anomaly.settings import BmlSettings

ENDING = ".nii.gz"
RECORDS = "cases"
SUMMARY = "lesions.json"
TABLE = "lesions.csv"
COLUMNS = ("case", "bone_mm3", "lesions", "lesion_mm3", "largest_mm3")


class CaseFiles(NamedTuple):
    """Files of one case; one that is not there is ``None``."""

    image: Path | None
    reconstruction: Path
    bone: Path | None

    def existing(self) -> tuple[Path, Path, Path]:
        """All three.

        Raises:
            InputError: one is missing.
        """
        if self.image is None or self.bone is None:
            missing = "image" if self.image is None else "bone mask"
            raise InputError(f"There is no {missing} of the same name as {self.reconstruction}.")
        return self.image, self.reconstruction, self.bone


class Case(NamedTuple):
    """One case, read: arrays (z, y, x), and spacing and geometry of its image."""

    image: np.ndarray
    reconstruction: np.ndarray
    bone: np.ndarray
    spacing_mm: tuple[float, ...]
    grid: Any


def find_cases(images: Path, reconstructions: Sequence[Path], bones: Path, channel: int = 0) -> dict[str, CaseFiles]:
    """Files of every case that has a reconstruction, ``<case>_0000`` in its folder and among the images.

    Args:
        images: folder of images; others that it holds are left out.
        reconstructions: folders, such as ``fold_*/validation/reconstructions``.
        bones: folder of bone masks or label maps, ``<case>``.
        channel: of images and reconstructions.

    Raises:
        InputError: a folder is missing, there is no reconstruction at all, or a case has two.
    """
    found: dict[str, Path] = {}
    for folder in reconstructions:
        for case, path in files_by_case(folder, channel).items():
            if case in found:
                raise InputError(f"There are two reconstructions of {case}: {found[case]} and {path}. Leave one.")
            found[case] = path
    if not found:
        raise InputError(
            f"{', '.join(map(str, reconstructions))}: no reconstruction, <case>_{channel:04d}.nii.gz. Trainings of "
            "reconstruction networks write them to fold_*/validation/reconstructions, and 'nnunet-anomaly error-maps' "
            "with --save-reconstructions."
        )
    image_files, bone_files = files_by_case(images, channel), files_by_case(bones)
    return {case: CaseFiles(image_files.get(case), path, bone_files.get(case)) for case, path in sorted(found.items())}


def read_case(files: CaseFiles, labels: Sequence[int]) -> Case:
    """Read a case.

    Args:
        files: of the case.
        labels: of the bone; none: all but 0.

    Raises:
        GeometryError: the files lie on different grids.
        InputError: a file is missing or damaged, or the bone mask is empty.
        LabelError: the bone mask is no label map.
    """
    import SimpleITK as sitk

    image_path, reconstruction_path, bone_path = files.existing()
    image, reconstruction = read_image(image_path), read_image(reconstruction_path)
    check_same_grid(image, image_path, reconstruction, reconstruction_path)
    bone = read_region(bone_path, labels, image, image_path)
    ours, theirs = (sitk.GetArrayFromImage(each) for each in (image, reconstruction))
    return Case(ours, theirs, bone, spacing_zyx_mm(image), image)


def find_lesions(
    cases: Mapping[str, CaseFiles],
    labels: Sequence[int],
    settings: BmlSettings,
    output: Path,
    num_processes: int,
    residuals: bool = False,
) -> Outcome:
    """Find the lesions of every case; cases that are finished with the same settings are not repeated.

    Writes the mask as ``<case>.nii.gz`` (uint8, 1 in lesions), ``lesions.csv``, ``lesions.json`` with the settings and
    the failed cases, and ``cases/`` for later runs. A case that fails or is gone has no mask afterwards.

    Args:
        cases: files of every case.
        labels: of the bone; none: all but 0.
        settings: see ``bml_morphology``.
        output: folder to write to.
        num_processes: cases at a time; the result does not depend on it.
        residuals: also write the bright residual D as ``residuals/<case>.nii.gz`` (float32).
    """
    for record in (output / RECORDS).glob("*.json"):
        if record.stem not in cases:
            _forget(record)
    work = [
        (case, (files, tuple(labels), settings, output / RECORDS / f"{case}.json", residuals))
        for case, files in cases.items()
    ]
    outcome = run_cases(_find_in_file, work, num_processes, "lesions")
    records = {case: load_json(output / RECORDS / f"{case}.json") for case in cases if case not in outcome.failed}
    save_table([{"case": case, **record["found"]} for case, record in records.items()], output / TABLE, COLUMNS)
    summary = {
        "version": __version__,
        "settings": asdict(settings),
        "labels": list(labels),
        "cases": len(records),
        "cases_without_lesion": sum(not record["found"]["lesions"] for record in records.values()),
        "out_of_reach": out_of_reach(settings, [record["finest_in_plane_mm"] for record in records.values()]),
        "failed": outcome.failed,
    }
    save_json(summary, output / SUMMARY)
    return outcome


def out_of_reach(settings: BmlSettings, finest_mm: Iterable[float]) -> dict[str, int]:
    """In how many cases opening or closing (by name) does nothing, as its radius is below the finest voxel size."""
    finest_mm = list(finest_mm)
    found = {
        name: sum(reaches_nothing(getattr(settings, name), size_mm) for size_mm in finest_mm)
        for name in ("opening_mm", "closing_mm")
    }
    return {name: cases for name, cases in found.items() if cases}


def _find_in_file(
    files: CaseFiles, labels: tuple[int, ...], settings: BmlSettings, record: Path, residuals: bool
) -> bool:
    """Worker: one case; False when it is finished already."""
    target, residual_target = _targets(record)
    wanted = [target, residual_target] if residuals else [target]
    source = made_from(
        [path for path in files if path is not None], {"labels": labels, **asdict(settings), "residuals": residuals}
    )
    if all(path.is_file() for path in wanted) and is_up_to_date(record, source):
        return False
    _forget(record)
    case = read_case(files, labels)
    try:
        mask, residual = bml_morphology(case.image, case.reconstruction, case.bone, case.spacing_mm, settings)
    except InputError as error:
        raise type(error)(f"{files.reconstruction}: {error}") from None
    geometry = (case.grid.GetSpacing(), case.grid.GetOrigin(), case.grid.GetDirection())
    if residuals:
        save_volume(residual, residual_target, *geometry)
    save_volume(mask.astype(np.uint8), target, *geometry)
    save_json({"made_from": source, **_found(case, mask, settings)}, record)
    return True


def _found(case: Case, mask: np.ndarray, settings: BmlSettings) -> dict[str, Any]:
    """Number and volumes of the lesions of a case (2-D: of slices 1 mm thick), and its finest voxel size in a slice."""
    voxel_mm3 = math.prod(case.spacing_mm)
    sizes_mm3 = label_components(mask).sizes_voxels * voxel_mm3
    axis = slice_axis(case.spacing_mm, settings.slice_axis)
    return {
        "finest_in_plane_mm": min(in_plane_mm(case.spacing_mm, axis)),
        "found": {
            "bone_mm3": round(np.count_nonzero(case.bone) * voxel_mm3, 3),
            "lesions": int(sizes_mm3.size),
            "lesion_mm3": round(float(sizes_mm3.sum()), 3),
            "largest_mm3": round(float(sizes_mm3.max(initial=0)), 3),
        },
    }


def _targets(record: Path) -> tuple[Path, Path]:
    """Mask and residual of the case of a record."""
    folder, name = record.parents[1], f"{record.stem}{ENDING}"
    return folder / name, folder / "residuals" / name


def _forget(record: Path) -> None:
    """Remove what an earlier run made of a case, the record first."""
    for path in (record, *_targets(record)):
        path.unlink(missing_ok=True)
