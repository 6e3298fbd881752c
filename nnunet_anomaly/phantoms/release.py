"""Writes the knee phantom as the OAI-ZIB release is shipped, beside an OAI tree with its images, and the truth.

::

    DIR/phantom.json                                            what was asked for
    DIR/OAI-ZIB/segmentation/doc/{2foldCrossValidation-List1.txt, 2foldCrossValidation-List2.txt, oai_mri_paths.txt}
    DIR/OAI-ZIB/segmentation/segmentation_masks/<ID>.segmentation_masks.{mhd, raw}
    DIR/oai/00m/{0.C.2, 0.E.1}/<ID>/<date>/<barcode>/001, 002, ...     DICOM
    DIR/truth/{labels, lesions, lesion_instances}/<ID>.nii.gz   in the image's geometry
    DIR/truth/cases/<ID>.json, DIR/truth/lesions.json           which cases have which lesions

A case is built in ``DIR/.partial/<ID>`` and moved to its place piece by piece, its record in ``truth/cases`` last: a
case with a record is whole and is not made again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import Outcome, load_json, run_cases, save_json, write_image
from nnunet_anomaly.phantoms.dicom import MR_IMAGE_STORAGE, make_uid, read_series, write_series
from nnunet_anomaly.phantoms.knee import SMALL_GRID, KneeCase, Subject, draw_subject, make_case
from nnunet_anomaly.phantoms.knee_lesions import LEVELS

# raised whenever the same parameters give other files, so that two makes never mix in one folder
VERSION = 2
STAGING = ".partial"
MASKS = Path("OAI-ZIB/segmentation/segmentation_masks")
DOCUMENTS = Path("OAI-ZIB/segmentation/doc")
BASELINE = Path("oai/00m")
SMALLEST_GRID = (16, 32, 32)
LARGEST_GRID = (320, 768, 768)

# how an array read from a mask file (rows, columns, slices) becomes one in the image's order (slices, rows, columns)
MOVED_AXIS = (-1, 0)
FLIPPED_AXES = (0, 1)


def mask_from_labels(labels: np.ndarray) -> np.ndarray:
    """Array as a mask file holds it, from one in the image's order: slices and rows flipped, slices last."""
    return np.ascontiguousarray(np.moveaxis(np.flip(labels, FLIPPED_AXES), 0, -1))


def labels_from_mask(mask: np.ndarray) -> np.ndarray:
    """The inverse of ``mask_from_labels``: the truth that a converter has to find out."""
    return np.flip(np.moveaxis(mask, *MOVED_AXIS), FLIPPED_AXES)


def make_knee_phantom(
    folder: Path,
    cases: int,
    seed: int,
    lesions: str = "none",
    grid: Sequence[int] = SMALL_GRID,
    num_processes: int = 1,
) -> Outcome:
    """Make a knee phantom, or finish one that was interrupted, or add cases to one.

    Args:
        folder: empty, new, or one that holds a phantom of the same seed, lesions and grid with no more cases.
        cases: how many; case i is the same however many there are.
        seed: not negative.
        lesions: "none", "mild" (every second case, one small lesion) or "severe" (four of five cases, several).
        grid: slices, rows, columns.
        num_processes: cases made at a time.

    Raises:
        SettingsError: a parameter is out of range.
        InputError: the folder holds something else.
    """
    grid = _check(cases, seed, lesions, grid)
    folder = Path(folder)
    parameters = {"phantom": "knee", "version": VERSION, "seed": seed, "lesions": lesions, "grid": grid}
    claim_folder(folder, parameters, {"cases": cases})
    named = [(draw_subject(seed, index).identifier, (folder, seed, index, lesions, grid)) for index in range(cases)]
    outcome = run_cases(write_case, named, num_processes, "knee phantom")
    _write_lists(folder, [name for name, _ in named if name not in outcome.failed])
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    for left_over in folder.glob(".partial_*"):  # of save_json, when a run was killed
        left_over.unlink()
    return outcome


def _check(cases: int, seed: int, lesions: str, grid: Sequence[int]) -> list[int]:
    if cases < 1:
        raise SettingsError(f"--cases is {cases}; a phantom has at least one case.")
    if seed < 0:
        raise SettingsError(f"--seed is {seed}; it cannot be negative.")
    if lesions not in LEVELS:
        raise SettingsError(f"--lesions is '{lesions}'; it must be one of {', '.join(LEVELS)}.")
    check_grid(grid, SMALLEST_GRID, LARGEST_GRID)
    return [int(size) for size in grid]


def check_grid(grid: Sequence[int], smallest: Sequence[int], largest: Sequence[int]) -> None:
    """A phantom's numbers of slices, rows and columns lie within limits.

    Raises:
        SettingsError: they do not, or these are not three numbers.
    """
    if len(grid) != 3 or any(not low <= size <= high for size, low, high in zip(grid, smallest, largest, strict=True)):
        raise SettingsError(
            f"--grid is {' '.join(str(size) for size in grid)}; it must be three numbers (slices, rows, columns) "
            f"from {smallest} to {largest}."
        )


def claim_folder(folder: Path, parameters: dict[str, Any], counts: dict[str, int]) -> None:
    """Write ``phantom.json`` into a new folder, or check that the one there is of the same phantom.

    Args:
        folder: of the phantom.
        parameters: what has to be the same.
        counts: numbers of cases by name; they may only grow.

    Raises:
        InputError: the folder holds other files, another phantom, or more cases.
    """
    record = folder / "phantom.json"
    if record.exists():
        found = load_json(record)
        differences = [
            f"{key} {found.get(key)} instead of {value}" for key, value in parameters.items() if found.get(key) != value
        ]
        for name, number in counts.items():
            if found.get(name, 0) > number:
                differences.append(f"{name} {found[name]} instead of {number}")
        if differences:
            raise InputError(f"{folder} holds another phantom ({'; '.join(differences)}). Choose another folder.")
    elif folder.exists() and (
        not folder.is_dir() or any(not path.name.startswith(".partial_") for path in folder.iterdir())
    ):
        raise InputError(f"{folder} is not an empty folder, and holds no phantom to go on with. Choose another folder.")
    save_json({**parameters, **counts}, record)


def write_case(folder: Path, seed: int, index: int, level: str, grid: Sequence[int]) -> bool:
    """Make one case and move it into place; False where it is there already."""
    subject = draw_subject(seed, index)
    name = subject.identifier
    done = Path("truth/cases") / f"{name}.json"
    if (folder / done).exists():
        return False
    staging = folder / STAGING / name
    shutil.rmtree(staging, ignore_errors=True)
    case = make_case(seed, index, level, grid)

    series = BASELINE / scan_path(subject)
    write_series(case.as_image(case.image), staging / series, dicom_tags(case, (seed, index, level, *grid)))
    # what a reader sees, to the last digit, is the geometry of the truth
    image = read_series(staging / series)
    if not np.array_equal(sitk.GetArrayFromImage(image), case.image):
        raise OSError(f"the DICOM series of {name} does not read back as it was written; is the disk full?")
    truth = {"labels": case.labels, "lesions": (case.lesions > 0).astype(np.uint8), "lesion_instances": case.lesions}
    pieces = [series]
    for kind, array in truth.items():
        pieces.append(Path("truth") / kind / f"{name}.nii.gz")
        written = sitk.GetImageFromArray(array)
        written.CopyInformation(image)
        write_image(written, staging / pieces[-1])
    pieces += _write_mask(staging, name, case.labels)
    save_json(_case_record(case, index, series), staging / done)
    for piece in [*pieces, done]:
        move_into_place(staging / piece, folder / piece)
    shutil.rmtree(staging, ignore_errors=True)
    return True


def move_into_place(source: Path, target: Path) -> None:
    """Move a finished file or folder to its place, instead of what a killed run left there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():  # of a run that was killed before the case was whole
        shutil.rmtree(target)
    os.replace(source, target)


def scan_path(subject: Subject) -> Path:
    """Folder of a subject's scan below the baseline visit, as ``oai_mri_paths.txt`` gives it."""
    return Path(subject.release) / subject.identifier / subject.date / subject.barcode


def _write_mask(root: Path, name: str, labels: np.ndarray) -> list[Path]:
    """The release's mask: a header without any geometry, and raw bytes."""
    mask = mask_from_labels(labels)
    header, raw = (MASKS / f"{name}.segmentation_masks.{ending}" for ending in ("mhd", "raw"))
    (root / MASKS).mkdir(parents=True, exist_ok=True)
    (root / raw).write_bytes(mask.astype(np.uint8).tobytes())
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "DimSize": " ".join(str(length) for length in reversed(mask.shape)),
        "ElementType": "MET_UCHAR",
        "ElementDataFile": raw.name,
    }
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    (root / header).write_bytes(text.encode("ascii"))
    return [raw, header]


def dicom_tags(case: KneeCase, identity: Sequence[object]) -> dict[str, str]:
    """Tags of a sagittal 3-D DESS series as the OAI has them; ``identity`` is what the identifiers depend on."""
    subject = case.subject
    return {
        "0008|0008": "ORIGINAL\\PRIMARY\\M\\ND",
        "0008|0016": MR_IMAGE_STORAGE,
        "0008|0020": subject.date,
        "0008|0021": subject.date,
        "0008|0022": subject.date,
        "0008|0023": subject.date,
        "0008|0030": "120000",
        "0008|0031": "120500",
        "0008|0032": "120500",
        "0008|0033": "120500",
        "0008|0050": subject.barcode,
        "0008|0060": "MR",
        "0008|0070": "nnunet-anomaly phantom",
        "0008|1030": "OAI MR KNEE BASELINE",
        "0008|103e": f"SAG_3D_DESS_{subject.side}",
        "0010|0010": subject.identifier,
        "0010|0020": subject.identifier,
        "0010|0040": subject.sex,
        "0010|1010": f"{subject.age:03d}Y",
        "0018|0015": "KNEE",
        "0018|0020": "GR",
        "0018|0021": "SK\\SP",
        "0018|0023": "3D",
        "0018|0050": f"{case.spacing_mm[0]:.6g}",
        "0018|0080": "16.32",
        "0018|0081": "4.71",
        "0018|0083": "1",
        "0018|0087": "2.89",
        "0018|1030": f"SAG_3D_DESS_{subject.side}",
        "0018|1314": "25",
        "0018|5100": "FFS",
        "0020|000d": make_uid("study", *identity),
        "0020|000e": make_uid("series", *identity),
        "0020|0010": "1",
        "0020|0011": "5",
        "0020|0052": make_uid("frame", *identity),
        "0020|0060": subject.side[0],
    }


def _case_record(case: KneeCase, index: int, series: Path) -> dict[str, Any]:
    lesion_mm3 = round(float((case.lesions > 0).sum() * np.prod(case.spacing_mm)), 3)
    return {
        "index": index,
        "side": case.subject.side,
        "image": series.as_posix(),
        "spacing_mm": [round(size, 6) for size in case.spacing_mm],
        "has_lesions": bool(case.records),
        "lesion_mm3": lesion_mm3,
        "highest_grade": max((record["grade"] for record in case.records), default=0),
        "lesions": case.records,
    }


def _write_lists(folder: Path, names: Sequence[str]) -> None:
    """The release's documents and the truth of all cases, from the finished cases' own records."""
    records = {name: load_json(folder / "truth/cases" / f"{name}.json") for name in sorted(names)}

    def write(name: str, lines: Sequence[str]) -> None:
        staged = folder / STAGING / name
        staged.parent.mkdir(exist_ok=True)
        staged.write_bytes("".join(f"{line}\n" for line in lines).encode("ascii"))
        move_into_place(staged, folder / DOCUMENTS / name)

    for fold in (0, 1):
        # pairs of neighbours, so that either list has cases with and without lesions
        chosen = [name for name, record in records.items() if record["index"] // 2 % 2 == fold]
        write(f"2foldCrossValidation-List{fold + 1}.txt", chosen)
    paths = [f"{name}: {Path(record['image']).relative_to(BASELINE).as_posix()}" for name, record in records.items()]
    write("oai_mri_paths.txt", paths)
    summary = {
        "phantom": load_json(folder / "phantom.json"),
        "mask_to_image": {"move_axis": MOVED_AXIS, "then_flip_axes": FLIPPED_AXES},
        "lesion_instances": "voxels of lesion_instances/<ID>.nii.gz hold the 'instance' of the lesion they belong to",
        "cases": records,
    }
    save_json(summary, folder / STAGING / "lesions.json")
    move_into_place(folder / STAGING / "lesions.json", folder / "truth" / "lesions.json")
