"""Writes the hip phantom as the CTPEL release is shipped, NIfTI copies if asked for, and the truth.

::

    DIR/phantom.json                                          what was asked for
    DIR/CTPEL/<16 hex digits>/im_1/i0000,0000b.dcm, ...       CT slices, from the head to the feet
    DIR/CTPEL/<16 hex digits>/im_2/x0000.dcm                  landmarks (SR)
    DIR/CTPEL/<16 hex digits>/im_3/x0000.dcm                  binary segments (SEG), the inferior ones if asked for
    DIR/nifti/{images, labels}/<16 hex digits>.nii.gz         the same, labels 1 to 5 in the order of ``SEGMENTS``
    DIR/truth/labels/<16 hex digits>.nii.gz                   accurate labels, numbered as ``pelvis.LABELS``
    DIR/truth/cases/<16 hex digits>.json, DIR/truth/joints.json      joint spaces and metal

A case is built in ``DIR/.partial/<case>`` and moved to its place piece by piece, its record in ``truth/cases`` last: a
case with a record is whole and is not made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.extras import import_highdicom
from nnunet_anomaly.files import Outcome, load_json, run_cases, save_json, write_image
from nnunet_anomaly.phantoms.dicom import make_uid, read_series, write_slice
from nnunet_anomaly.phantoms.dicom_seg import write_landmarks, write_segmentation
from nnunet_anomaly.phantoms.hip import (
    GAP_RANGE_MM,
    SMALL_GRID,
    HipCase,
    identifier_of,
    implant_of,
    make_case,
)
from nnunet_anomaly.phantoms.pelvis import FEMUR_LEFT, FEMUR_RIGHT, HIP_LEFT, HIP_RIGHT, LABELS, SACRUM
from nnunet_anomaly.phantoms.release import STAGING, check_grid, claim_folder, move_into_place

# raised whenever the same parameters give other files, so that two makes never mix in one folder
VERSION = 1
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
RELEASE, COPIES = Path("CTPEL"), Path("nifti")
SMALLEST_GRID, LARGEST_GRID = (24, 32, 40), (320, 480, 728)
WIDEST_GAP_MM = 12.0
# names of the release's segments, in its order, and the numbers that NIfTI copies of it have
SEGMENTS = {
    "Right Femur": FEMUR_RIGHT,
    "Left Femur": FEMUR_LEFT,
    "Right Hip": HIP_RIGHT,
    "Left Hip": HIP_LEFT,
    "Sacrum": SACRUM,
}
COPY_NUMBERS = {label: number for number, label in enumerate(SEGMENTS.values(), start=1)}


@dataclass(frozen=True)
class HipPhantom:
    """What a hip phantom consists of.

    ``inferior`` puts labels with closed joints into the release, ``implants`` is the share of cases with metal,
    ``nifti`` adds NIfTI copies, ``grid`` is slices, rows and columns.
    """

    seed: int
    cases: int
    inferior: bool = False
    implants: float = 0.0
    nifti: bool = False
    grid: tuple[int, int, int] = SMALL_GRID
    gap_range_mm: tuple[float, float] = GAP_RANGE_MM


def make_hip_phantom(folder: Path, phantom: HipPhantom, num_processes: int = 1) -> Outcome:
    """Make a hip phantom, or finish one that was interrupted, or add cases to one.

    Args:
        folder: empty, new, or one that holds the same phantom with no more cases.
        phantom: what to make; case i is the same however many there are.
        num_processes: cases made at a time.

    Raises:
        SettingsError: a parameter is out of range.
        InputError: the folder holds something else.
        AnomalyError: highdicom is not installed.
    """
    _check(phantom)
    import_highdicom()
    folder = Path(folder)
    parameters = {
        "phantom": "hip",
        "version": VERSION,
        "seed": phantom.seed,
        "grid": list(phantom.grid),
        "inferior": phantom.inferior,
        "implants": phantom.implants,
        "nifti": phantom.nifti,
        "gap_range_mm": list(phantom.gap_range_mm),
    }
    claim_folder(folder, parameters, {"cases": phantom.cases})
    named = [(identifier_of(phantom.seed, index), (folder, phantom, index)) for index in range(phantom.cases)]
    outcome = run_cases(write_case, named, num_processes, "hip phantom")
    _write_summary(folder, [name for name, _ in named if name not in outcome.failed])
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    for left_over in folder.glob(".partial_*"):  # of save_json, when a run was killed
        left_over.unlink()
    return outcome


def _check(phantom: HipPhantom) -> None:
    if phantom.cases < 1:
        raise SettingsError(f"--cases is {phantom.cases}; a phantom has at least one case.")
    if phantom.seed < 0:
        raise SettingsError(f"--seed is {phantom.seed}; it cannot be negative.")
    if not 0 <= phantom.implants <= 1:
        raise SettingsError(f"--implant is {phantom.implants}; it is a share of the cases, from 0 to 1.")
    low, high = phantom.gap_range_mm
    if not 0 < low <= high <= WIDEST_GAP_MM:
        raise SettingsError(f"--gap-mm is {low} {high}; it must rise, from more than 0 to {WIDEST_GAP_MM:g} at most.")
    check_grid(phantom.grid, SMALLEST_GRID, LARGEST_GRID)


def write_case(folder: Path, phantom: HipPhantom, index: int) -> bool:
    """Make one case and move it into place; False where it is there already."""
    name = identifier_of(phantom.seed, index)
    done = Path("truth/cases") / f"{name}.json"
    if (folder / done).exists():
        return False
    staging = folder / STAGING / name
    shutil.rmtree(staging, ignore_errors=True)
    implant = implant_of(phantom.seed, index, phantom.implants)
    case = make_case(phantom.seed, index, implant, phantom.grid, phantom.gap_range_mm)
    labels = case.inferior if phantom.inferior else case.labels
    series = RELEASE / name / "im_1"
    _write_release(staging / RELEASE / name, case, labels, repr(phantom))
    # what a reader sees, to the last digit, is the geometry of the truth
    image = read_series(staging / series)
    if not np.array_equal(sitk.GetArrayFromImage(image), case.image):
        raise OSError(f"the DICOM series of {name} does not read back as it was written; is the disk full?")
    pieces = {Path("truth/labels") / f"{name}.nii.gz": case.labels}
    if phantom.nifti:
        pieces[COPIES / "images" / f"{name}.nii.gz"] = case.image
        pieces[COPIES / "labels" / f"{name}.nii.gz"] = copy_numbers(labels)
    for path, array in pieces.items():
        written = sitk.GetImageFromArray(array)
        written.CopyInformation(image)
        write_image(written, staging / path)
    save_json({**case.record, "spacing_mm": case.spacing_mm, "ct": series.as_posix()}, staging / done)
    for path in [RELEASE / name, *pieces, done]:
        move_into_place(staging / path, folder / path)
    shutil.rmtree(staging, ignore_errors=True)
    return True


def copy_numbers(labels: np.ndarray) -> np.ndarray:
    """Our labels as the NIfTI copies of the release number them."""
    table = np.zeros(len(LABELS) + 1, dtype=np.uint8)
    for label, number in COPY_NUMBERS.items():
        table[label] = number
    return table[labels]


def _write_release(folder: Path, case: HipCase, labels: np.ndarray, phantom: str) -> None:
    """CT, landmarks and segmentation of one case as the release has them."""
    for number in (1, 2, 3):
        (folder / f"im_{number}").mkdir(parents=True)
    image = case.as_image(case.image)
    identity = f"{phantom}/{case.identifier}"
    tags = dicom_tags(case, identity)
    files = []
    for height in range(image.GetSize()[2]):
        number = image.GetSize()[2] - 1 - height
        files.append(folder / "im_1" / f"i{number:04d},0000b.dcm")
        own = {"0008|0018": make_uid(tags["0020|000e"], number), "0020|0013": str(number + 1)}
        write_slice(image[:, :, height : height + 1], files[-1], {**tags, **own})
    masks = {name: labels == label for name, label in SEGMENTS.items() if (labels == label).any()}
    write_segmentation(folder / "im_3" / "x0000.dcm", masks, files, identity)
    middles = {
        f"Middle of {name}": image.TransformContinuousIndexToPhysicalPoint(
            [float(part) for part in np.argwhere(mask).mean(axis=0)[::-1]]
        )
        for name, mask in masks.items()
    }
    write_landmarks(folder / "im_2" / "x0000.dcm", middles, files[0], identity)


def dicom_tags(case: HipCase, identity: str) -> dict[str, str]:
    """Tags of the CT series; ``identity`` is what the identifiers depend on."""
    return {
        "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
        "0008|0016": CT_IMAGE_STORAGE,
        "0008|0020": "20190101",
        "0008|0021": "20190101",
        "0008|0023": "20190101",
        "0008|0030": "120000",
        "0008|0031": "120000",
        "0008|0033": "120000",
        "0008|0050": "1",
        "0008|0060": "CT",
        "0008|0070": "nnunet-anomaly phantom",
        "0008|0090": "",
        "0008|103e": "PELVIS",
        "0010|0010": f"{case.identifier}^",
        "0010|0020": case.identifier,
        "0010|0030": "",
        "0010|0040": "O",
        "0018|0015": "PELVIS",
        "0018|0050": f"{case.spacing_mm[0]:.6g}",
        "0018|0060": "120",
        "0018|0088": f"{case.spacing_mm[0]:.6g}",
        "0018|1120": "0",
        "0018|5100": "HFS",
        "0020|000d": make_uid("study", identity),
        "0020|000e": make_uid("series", identity),
        "0020|0010": "1",
        "0020|0011": "1",
        "0020|0052": make_uid("frame", identity),
        "0028|1052": "-1024",
        "0028|1053": "1",
        "0028|1054": "HU",
    }


def _write_summary(folder: Path, names: Sequence[str]) -> None:
    """The truth of all cases, from the finished cases' own records."""
    records: dict[str, Any] = {name: load_json(folder / "truth/cases" / f"{name}.json") for name in sorted(names)}
    summary = {"phantom": load_json(folder / "phantom.json"), "labels": LABELS, "cases": records}
    save_json(summary, folder / STAGING / "joints.json")
    move_into_place(folder / STAGING / "joints.json", folder / "truth" / "joints.json")
