"""Writes the multi-echo phantom as an OAI tree with masks of femoral cartilage beside it, and the truth.

::

    DIR/phantom.json                                            what was asked for
    DIR/oai/{00m, 48m}/0.C.2/<subject>/<date>/<barcode>/001, 002, ...    DICOM, series SAG_T2_MAP_RIGHT or _LEFT
    DIR/labels/<subject>_<visit>.nii.gz                         femoral cartilage, the first reader: the truth
    DIR/labels_2/<subject>_<visit>.nii.gz                       the second reader
    DIR/truth/{t2, regions, lesions}/<case>.nii.gz              <case> is <subject>_<visit>_<side>, as when converted
    DIR/truth/change/<case of the second visit>.nii.gz          T2 less that of the first visit
    DIR/truth/cases/<knee>.json, DIR/truth/knees.json           what was drawn; <knee> is <subject>_<side>
    DIR/truth/regions.csv                                       mean true T2 of the 27 regions at both visits

A knee is built in ``DIR/.partial/<knee>`` and moved to its place piece by piece, its record in ``truth/cases`` last: a
knee with a record is whole and is not made again.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.files import Outcome, load_json, run_cases, save_json, write_image, written_whole
from nnunet_anomaly.phantoms.dicom import MR_IMAGE_STORAGE, make_uid, write_slice
from nnunet_anomaly.phantoms.mese import ECHO_TIMES_MS, SLICE_SHARE, SMALL_GRID, SNR, MeseVisit, make_mese_visit
from nnunet_anomaly.phantoms.mese_knee import VISITS, draw_mese_knee
from nnunet_anomaly.phantoms.mese_reader import dice, second_reader
from nnunet_anomaly.phantoms.release import STAGING, check_grid, claim_folder, move_into_place
from nnunet_anomaly.relaxometry.region_table import COLUMNS, FILE_NAME, region_rows
from nnunet_anomaly.relaxometry.subregions import LABELS, subregions
from nnunet_anomaly.relaxometry.unroll import unroll

# raised whenever the same parameters give other files, so that two makes never mix in one folder
VERSION = 1
SMALLEST_GRID = (7, 64, 64)
LARGEST_GRID = (63, 768, 768)
SNR_RANGE = (5.0, 1000.0)
MOST_SUBJECTS = 1000


def make_mese_phantom(
    folder: Path,
    subjects: int,
    seed: int,
    grid: Sequence[int] = SMALL_GRID,
    snr: float = SNR,
    num_processes: int = 1,
) -> Outcome:
    """Make a multi-echo phantom, or finish one that was interrupted, or add subjects to one.

    Args:
        folder: empty, new, or one that holds a phantom of the same seed, grid and noise with no more subjects.
        subjects: how many, each with one knee at two visits; subject i is the same however many there are.
        seed: not negative.
        grid: slices, rows, columns.
        snr: signal of cartilage at echo time 0 divided by sigma of the noise.
        num_processes: knees made at a time.

    Raises:
        SettingsError: a parameter is out of range.
        InputError: the folder holds something else.
    """
    _check(subjects, seed, snr)
    check_grid(grid, SMALLEST_GRID, LARGEST_GRID)
    folder, grid = Path(folder), [int(size) for size in grid]
    parameters = {"phantom": "mese", "version": VERSION, "seed": seed, "grid": grid, "snr": float(snr)}
    claim_folder(folder, parameters, {"subjects": subjects})
    named = [(draw_mese_knee(seed, index).name, (folder, seed, index, grid, snr)) for index in range(subjects)]
    outcome = run_cases(write_knee, named, num_processes, "multi-echo phantom")
    _describe(folder, [name for name, _ in named if name not in outcome.failed])
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    for left_over in folder.glob(".partial_*"):  # of save_json, when a run was killed
        left_over.unlink()
    return outcome


def _check(subjects: int, seed: int, snr: float) -> None:
    if not 1 <= subjects <= MOST_SUBJECTS:
        raise SettingsError(f"--subjects is {subjects}; it must lie between 1 and {MOST_SUBJECTS}.")
    if seed < 0:
        raise SettingsError(f"--seed is {seed}; it cannot be negative.")
    if not SNR_RANGE[0] <= snr <= SNR_RANGE[1]:  # NaN is not
        raise SettingsError(f"--snr is {snr:g}; it must lie between {SNR_RANGE[0]:g} and {SNR_RANGE[1]:g}.")


def write_knee(folder: Path, seed: int, index: int, grid: Sequence[int], snr: float) -> bool:
    """Make both visits of one knee and move them into place; False where they are there already."""
    knee = draw_mese_knee(seed, index)
    done = Path("truth/cases") / f"{knee.name}.json"
    if (folder / done).exists():
        return False
    staging = folder / STAGING / knee.name
    shutil.rmtree(staging, ignore_errors=True)
    pieces: list[Path] = []
    visits: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(VISITS):
        visit = make_mese_visit(knee, number, grid, snr)
        written, visits[name] = _write_visit(staging, visit, (seed, index, *grid, snr))
        pieces += written
        direction = visit.as_image(visit.mask).GetDirection()
        regions = subregions(unroll(visit.mask, visit.spacing_mm, direction), knee.side)
        rows += [_without_nan(row) for row in region_rows(knee.name, number + 1, regions, visit.t2_ms)]
    record = {
        "index": index,
        "subject": knee.subject.identifier,
        "side": knee.side,
        **knee.record(),
        "visits": visits,
        "regions": rows,
    }
    save_json(record, staging / done)
    for piece in [*pieces, done]:
        move_into_place(staging / piece, folder / piece)
    shutil.rmtree(staging, ignore_errors=True)
    return True


def _write_visit(root: Path, visit: MeseVisit, identity: Sequence[object]) -> tuple[list[Path], dict[str, Any]]:
    """Write one visit below ``root``; the files and folders that were written, and what is known of it."""
    knee, name = visit.knee, VISITS[visit.visit]
    series = series_path(visit)
    image = write_echoes(visit, root / series, identity)
    case, label = f"{knee.case_name(visit.visit)}.nii.gz", f"{knee.subject.identifier}_{name}.nii.gz"
    second = second_reader(visit)
    volumes = {
        Path("labels") / label: visit.mask,
        Path("labels_2") / label: second,
        Path("truth/t2") / case: visit.t2_ms,
        Path("truth/regions") / case: visit.regions,
        Path("truth/lesions") / case: visit.lesions,
    }
    if visit.visit:
        volumes[Path("truth/change") / case] = visit.change_ms
    for path, array in volumes.items():
        written = sitk.GetImageFromArray(array)
        written.CopyInformation(image)  # what a reader sees, to the last digit, is the geometry of the truth
        write_image(written, root / path)
    facts = {
        "case": knee.case_name(visit.visit),
        "image": series.as_posix(),
        "spacing_mm": [round(size, 6) for size in visit.spacing_mm],
        "sigma": round(visit.sigma, 4),
        "first_echo": round(visit.first_echo, 4),
        "turned_degrees_of_first_visit": round(_turn_degrees(knee.poses[visit.visit].turn), 3),
        "shifted_mm_of_first_visit": [round(float(shift), 3) for shift in knee.poses[visit.visit].shift_mm],
        "cartilage_voxels": int(np.count_nonzero(visit.mask)),
        "second_reader_dice": round(dice(visit.mask, second), 4),
        "true_regions": _true_means(visit),
        "lesion_voxels": {
            str(lesion.number): int((visit.lesions == lesion.number).sum()) for lesion in knee.t2.lesions
        },
    }
    return [series, *volumes], facts


def _turn_degrees(turn: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1.0, 1.0))))


def _true_means(visit: MeseVisit) -> dict[str, dict[str, float | int | None]]:
    """Voxels and mean true T2 of the twelve subregions by the knee's own shape, without any unrolling."""
    means: dict[str, dict[str, float | int | None]] = {}
    for name, label in LABELS.items():
        values = visit.t2_ms[visit.regions == label].astype(np.float64)
        means[name] = {"voxels": values.size, "t2_mean_ms": round(float(values.mean()), 4) if values.size else None}
    return means


def series_path(visit: MeseVisit) -> Path:
    """Folder of a visit's series in the phantom's folder."""
    subject = visit.knee.subject
    return Path("oai", VISITS[visit.visit], subject.release, subject.identifier, _date(visit), _barcode(visit))


def _date(visit: MeseVisit) -> str:
    """Of the scan, four years later at the second visit."""
    date = visit.knee.subject.date
    return f"{int(date[:4]) + 4 * visit.visit}{date[4:]}"


def _barcode(visit: MeseVisit) -> str:
    return str(int(visit.knee.subject.barcode) + 10_000_000 * visit.visit)


def write_echoes(visit: MeseVisit, folder: Path, identity: Sequence[object]) -> sitk.Image:
    """Write all echoes as one DICOM series; the first echo as it reads back.

    Files and InstanceNumbers count the slices of an echo first, against the slices' normal, and then the echoes; all
    AcquisitionTimes are the same. So none of them orders the volume.

    Raises:
        OSError: what was written does not read back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tags = dicom_tags(visit, identity)
    slices = visit.mask.shape[0]
    files = []
    for echo, time_ms in enumerate(ECHO_TIMES_MS):
        image = visit.as_image(visit.echoes[echo])
        for index in range(slices):
            number = echo * slices + slices - index
            files.append(folder / f"{number:03d}")
            own = {
                "0008|0018": make_uid(tags["0020|000e"], number),
                "0018|0081": f"{time_ms:g}",
                "0018|0086": str(echo + 1),
                "0020|0013": str(number),
                "0020|1041": f"{index * visit.spacing_mm[0]:.6g}",
            }
            write_slice(image[:, :, index : index + 1], files[-1], {**tags, **own})
    echoes = [_read(files[start : start + slices]) for start in range(0, len(files), slices)]
    if not np.array_equal(np.stack([sitk.GetArrayViewFromImage(echo) for echo in echoes]), visit.echoes):
        raise OSError(f"the DICOM series of {visit.knee.name} does not read back as it was written; is the disk full?")
    return echoes[0]


def _read(files: Sequence[Path]) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in files])
    return reader.Execute()


def dicom_tags(visit: MeseVisit, identity: Sequence[object]) -> dict[str, str]:
    """Tags of all files of a series; ``identity`` is what the identifiers depend on."""
    subject, date = visit.knee.subject, _date(visit)
    identity = ("mese", *identity, VISITS[visit.visit])
    return {
        "0008|0008": "ORIGINAL\\PRIMARY\\M\\SE",
        "0008|0016": MR_IMAGE_STORAGE,
        "0008|0020": date,
        "0008|0021": date,
        "0008|0022": date,
        "0008|0023": date,
        "0008|0030": "120000",
        "0008|0031": "121500",
        "0008|0032": "121500",
        "0008|0033": "121500",
        "0008|0050": _barcode(visit),
        "0008|0060": "MR",
        "0008|0070": "nnunet-anomaly phantom",
        "0008|1030": f"OAI MR KNEE {VISITS[visit.visit]}",
        "0008|103e": f"SAG_T2_MAP_{subject.side}",
        "0010|0010": subject.identifier,
        "0010|0020": subject.identifier,
        "0010|0040": subject.sex,
        "0010|1010": f"{subject.age + 4 * visit.visit:03d}Y",
        "0018|0015": "KNEE",
        "0018|0020": "SE",
        "0018|0021": "SK",
        "0018|0023": "2D",
        "0018|0050": f"{visit.spacing_mm[0] * SLICE_SHARE:.6g}",
        "0018|0080": "2700",
        "0018|0083": "1",
        "0018|0087": "2.89",
        "0018|0088": f"{visit.spacing_mm[0]:.6g}",
        "0018|1030": f"SAG_T2_MAP_{subject.side}",
        "0018|1314": "180",
        "0018|5100": "FFS",
        "0020|000d": make_uid("study", *identity),
        "0020|000e": make_uid("series", *identity),
        "0020|0010": "1",
        "0020|0011": "9",
        "0020|0052": make_uid("frame", *identity),
        "0020|0060": subject.side[0],
    }


def _describe(folder: Path, names: Sequence[str]) -> None:
    """The truth of all knees in one file, and the table of regions, from the finished knees' own records."""
    records = {name: load_json(folder / "truth/cases" / f"{name}.json") for name in sorted(names)}
    rows = [row for record in records.values() for row in record.pop("regions")]
    summary = {
        "phantom": load_json(folder / "phantom.json"),
        "visits": VISITS,
        "echo_times_ms": ECHO_TIMES_MS,
        "region_labels": LABELS,
        "knees": records,
    }
    save_json(summary, folder / "truth/knees.json")
    with (
        written_whole(folder / "truth" / FILE_NAME) as partial,
        open(partial, "w", newline="", encoding="utf-8") as handle,
    ):
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(row[key]) for key in COLUMNS} for row in rows)


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """NaN as None, which JSON knows."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _cell(value: Any) -> Any:
    """A value as the table has it: numbers in short, nothing where there is none."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
