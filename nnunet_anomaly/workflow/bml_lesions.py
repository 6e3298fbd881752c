"""What ``nnunet-anomaly lesions`` does: masks of lesions in bone, from reconstructions or from error maps."""

from __future__ import annotations

import math
import re
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
    read_grey_image,
    run_cases,
    save_json,
    save_volume,
)
from nnunet_anomaly.label_maps import check_same_grid, files_by_case, read_region, spacing_zyx_mm
from nnunet_anomaly.postprocessing.bml_morphology import (
    Equalisation,
    bml_morphology,
    bright_residual,
    error_map_morphology,
    error_residual,
    in_plane_mm,
    reaches_nothing,
    slice_axis,
)
from nnunet_anomaly.settings import BmlSettings

ENDING = ".nii.gz"
CHANNEL = re.compile(r"_\d{4}$")
RECORDS = "cases"
SUMMARY = "lesions.json"
TABLE = "lesions.csv"
COLUMNS = ("case", "bone_mm3", "lesions", "lesion_mm3", "largest_mm3")


class CaseFiles(NamedTuple):
    """Files of one case with a reconstruction; one that is not there is ``None``."""

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

    @property
    def residual_from(self) -> Path:
        """The file that messages name."""
        return self.reconstruction


class ErrorMapFiles(NamedTuple):
    """Files of one case with an error map; a bone mask that is not there is ``None``, and so is an image not given."""

    error_map: Path
    bone: Path | None
    image: Path | None = None

    @property
    def residual_from(self) -> Path:
        """The file that messages name."""
        return self.error_map


class Case(NamedTuple):
    """One case with a reconstruction, read: arrays (z, y, x), and spacing and geometry of its image."""

    image: np.ndarray
    reconstruction: np.ndarray
    bone: np.ndarray
    spacing_mm: tuple[float, ...]
    grid: Any

    def residual(self, equalisation: Equalisation, axis: int | None) -> np.ndarray:
        """D, see ``bright_residual``."""
        return bright_residual(self.image, self.reconstruction, self.bone, equalisation, axis)

    def lesions(self, settings: BmlSettings) -> tuple[np.ndarray, np.ndarray]:
        """Mask and D, see ``bml_morphology``."""
        return bml_morphology(self.image, self.reconstruction, self.bone, self.spacing_mm, settings)


class ErrorMapCase(NamedTuple):
    """One case with an error map, read: arrays (z, y, x), and spacing and geometry of the error map."""

    error_map: np.ndarray
    bone: np.ndarray
    spacing_mm: tuple[float, ...]
    grid: Any

    def residual(self, equalisation: Equalisation, axis: int | None) -> np.ndarray:
        """D, see ``error_residual``; neither equalisation nor axis counts."""
        return error_residual(self.error_map, self.bone)

    def lesions(self, settings: BmlSettings) -> tuple[np.ndarray, np.ndarray]:
        """Mask and D, see ``error_map_morphology``."""
        return error_map_morphology(self.error_map, self.bone, self.spacing_mm, settings)


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
    found = _files_of(reconstructions, channel, "reconstructions")
    if not found:
        raise InputError(
            f"{', '.join(map(str, reconstructions))}: no reconstruction, <case>_{channel:04d}.nii.gz. Trainings of "
            "reconstruction networks write them to fold_*/validation/reconstructions, and 'nnunet-anomaly error-maps' "
            "with --save-reconstructions."
        )
    image_files, bone_files = files_by_case(images, channel), files_by_case(bones)
    return {case: CaseFiles(image_files.get(case), path, bone_files.get(case)) for case, path in sorted(found.items())}


def find_error_maps(
    error_maps: Sequence[Path], bones: Path, channel: int | None = None, images: Path | None = None
) -> dict[str, ErrorMapFiles]:
    """Files of every case that has an error map.

    Args:
        error_maps: folders, such as ``fold_*/validation/error_maps`` or what ``error-maps -i`` wrote.
        bones: folder of bone masks or label maps, ``<case>``.
        channel: of the error maps, 1 for ``<case>_0001``; ``None``: they are ``<case>``.
        images: folder of images, ``<case>_0000``, on whose grid the error maps must lie; not needed.

    Raises:
        InputError: a folder is missing, there is no error map at all, a case has two, or a channel needs to be named.
    """
    found = _files_of(error_maps, channel, "error maps")
    folders = ", ".join(map(str, error_maps))
    if not found:
        raise InputError(
            f"{folders}: no error map, <case>{'' if channel is None else f'_{channel:04d}'}.nii.gz. Trainings of "
            "reconstruction networks write <case>.nii.gz to fold_*/validation/error_maps, and 'nnunet-anomaly "
            "error-maps' a channel of <case> (--channel)."
        )
    bone_files = files_by_case(bones)
    if channels := [case for case in found if case not in bone_files and CHANNEL.sub("", case) in bone_files]:
        raise InputError(
            f"{folders}: {channels[0]} is a channel of {CHANNEL.sub('', channels[0])}. Say by --channel which one is "
            "the error map, such as 1 for <case>_0001."
        )
    # an image that is missing fails its case when it is read
    image_files = files_by_case(images, 0) if images else {}
    return {
        case: ErrorMapFiles(
            path,
            bone_files.get(case),
            image_files.get(case, images / f"{case}_0000{ENDING}") if images else None,
        )
        for case, path in sorted(found.items())
    }


def _files_of(folders: Sequence[Path], channel: int | None, what: str) -> dict[str, Path]:
    """Files of several folders by case.

    Raises:
        InputError: a folder is missing, or a case has two files.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for case, path in files_by_case(folder, channel).items():
            if case in found:
                raise InputError(f"There are two {what} of {case}: {found[case]} and {path}. Leave one.")
            found[case] = path
    return found


def read_case(files: CaseFiles | ErrorMapFiles, labels: Sequence[int]) -> Case | ErrorMapCase:
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

    if isinstance(files, ErrorMapFiles):
        return _read_error_map(files, labels)
    image_path, reconstruction_path, bone_path = files.existing()
    image, reconstruction = read_grey_image(image_path), read_grey_image(reconstruction_path)
    check_same_grid(image, image_path, reconstruction, reconstruction_path)
    bone = read_region(bone_path, labels, image, image_path)
    ours, theirs = (sitk.GetArrayFromImage(each) for each in (image, reconstruction))
    return Case(ours, theirs, bone, spacing_zyx_mm(image), image)


def _read_error_map(files: ErrorMapFiles, labels: Sequence[int]) -> ErrorMapCase:
    import SimpleITK as sitk

    if files.bone is None:
        raise InputError(f"There is no bone mask of the same name as {files.error_map}.")
    image = read_grey_image(files.error_map)
    if files.image is not None:
        check_same_grid(read_grey_image(files.image), files.image, image, files.error_map)
    bone = read_region(files.bone, labels, image, files.error_map)
    return ErrorMapCase(sitk.GetArrayFromImage(image), bone, spacing_zyx_mm(image), image)


def find_lesions(
    cases: Mapping[str, CaseFiles | ErrorMapFiles],
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
        cases: files of every case, all with reconstructions or all with error maps.
        labels: of the bone; none: all but 0.
        settings: see ``bml_morphology``.
        output: folder to write to.
        num_processes: cases at a time; the result does not depend on it.
        residuals: also write the residual D as ``residuals/<case>.nii.gz`` (float32).
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
        **_what_counts(cases.values(), settings),
        "labels": list(labels),
        "cases": len(records),
        "cases_without_lesion": sum(not record["found"]["lesions"] for record in records.values()),
        "out_of_reach": out_of_reach(settings, [record["finest_in_plane_mm"] for record in records.values()]),
        "failed": outcome.failed,
    }
    save_json(summary, output / SUMMARY)
    return outcome


def _what_counts(files: Iterable[CaseFiles | ErrorMapFiles], settings: BmlSettings) -> dict[str, Any]:
    """What masks are made of, and the settings that count for it."""
    if all(isinstance(each, CaseFiles) for each in files):
        return {"made_of": "reconstructions", "settings": asdict(settings)}
    counting = {name: value for name, value in asdict(settings).items() if name != "equalisation"}
    return {"made_of": "error maps", "settings": counting}


def out_of_reach(settings: BmlSettings, finest_mm: Iterable[float]) -> dict[str, int]:
    """In how many cases opening or closing (by name) does nothing, as its radius is below the finest voxel size."""
    finest_mm = list(finest_mm)
    found = {
        name: sum(reaches_nothing(getattr(settings, name), size_mm) for size_mm in finest_mm)
        for name in ("opening_mm", "closing_mm")
    }
    return {name: cases for name, cases in found.items() if cases}


def said_out_of_reach(name: str, radius_mm: float, cases: int, of_cases: int) -> str:
    """A sentence for each of ``out_of_reach``."""
    return (
        f"In {cases} of {of_cases} cases bml.{name} {radius_mm:g} is less than the finest voxel size in a slice, so "
        "that it does nothing there."
    )


def _find_in_file(
    files: CaseFiles | ErrorMapFiles, labels: tuple[int, ...], settings: BmlSettings, record: Path, residuals: bool
) -> bool:
    """Worker: one case; False when it is finished already."""
    target, residual_target = _targets(record)
    wanted = [target, residual_target] if residuals else [target]
    kept = {"labels": labels, **_what_counts([files], settings), "residuals": residuals}
    source = made_from([path for path in files if path is not None], kept)
    if all(path.is_file() for path in wanted) and is_up_to_date(record, source):
        return False
    _forget(record)
    case = read_case(files, labels)
    try:
        mask, residual = case.lesions(settings)
    except InputError as error:
        raise type(error)(f"{files.residual_from}: {error}") from None
    geometry = (case.grid.GetSpacing(), case.grid.GetOrigin(), case.grid.GetDirection())
    if residuals:
        save_volume(residual, residual_target, *geometry)
    save_volume(mask.astype(np.uint8), target, *geometry)
    save_json({"made_from": source, **_found(case, mask, settings)}, record)
    return True


def _found(case: Case | ErrorMapCase, mask: np.ndarray, settings: BmlSettings) -> dict[str, Any]:
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
