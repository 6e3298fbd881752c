"""Writes the intermediate-weighted knee phantom as a raw nnU-Net dataset, as docs/how-to/qin-bml.md wants it.

::

    DatasetXXX_Name/phantom.json                                 what was asked for
    DatasetXXX_Name/imagesTr/knee_000_0000.nii.gz                training cases
    DatasetXXX_Name/labelsTr/knee_000.nii.gz                     1 femur, 2 bml
    DatasetXXX_Name/dataset.json, cases.json                     for nnU-Net; side of every knee
    DatasetXXX_Name/{imagesVal, imagesTest}/knee_val_000_0000.nii.gz, ...
    DatasetXXX_Name/{lesionsVal, lesionsTest, bonesVal, bonesTest}/knee_val_000.nii.gz, ...
    DatasetXXX_Name/truth/lesion_instances/<case>.nii.gz         lesions by number
    DatasetXXX_Name/truth/cases/<case>.json, truth/lesions.json  which cases have which lesions

A case is built in ``.partial/<case>`` and moved to its place file by file, its record in ``truth/cases`` last: a case
with a record is whole and is not made again.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.files import Outcome, load_json, run_cases, save_json, write_image
from nnunet_anomaly.phantoms.knee import KneeCase
from nnunet_anomaly.phantoms.knee_iw import BML, FEMUR, GRID, make_iw_case
from nnunet_anomaly.phantoms.release import STAGING, check_grid, claim_folder, move_into_place

# raised whenever the same parameters give other files, so that two makes never mix in one folder
VERSION = 1
MOST_CASES = 1000  # of each part
SMALLEST_GRID = (8, 48, 48)
LARGEST_GRID = (80, 768, 768)
LABELS = {"background": 0, "femur": FEMUR, "bml": BML}


class Part(NamedTuple):
    """One part of the dataset: how its cases are called and numbered for the seed, and where they lie."""

    prefix: str
    first_index: int
    images: str


TRAINING = Part("knee", 0, "imagesTr")
VALIDATION = Part("knee_val", 100_000, "imagesVal")
TEST = Part("knee_test", 200_000, "imagesTest")
PARTS = {"training": TRAINING, "validation": VALIDATION, "test": TEST}


@dataclass(frozen=True)
class BmlPhantom:
    """What a phantom for bone marrow lesions consists of: numbers of cases, seed, and slices, rows, columns."""

    training: int
    validation: int = 0
    test: int = 0
    seed: int = 0
    grid: tuple[int, int, int] = GRID

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of cases, which may grow in a later run."""
        return {name: getattr(self, name) for name in PARTS}


def case_has_lesions(part: str, number: int) -> bool:
    """Every second training case, every validation case but the second one, five of six test cases."""
    return {"training": number % 2 == 1, "validation": number != 1, "test": number % 6 != 2}[part]


def make_bml_phantom(folder: Path, phantom: BmlPhantom, num_processes: int = 1) -> Outcome:
    """Make a phantom for bone marrow lesions, or finish one that was interrupted, or add cases to one.

    Args:
        folder: ``DatasetXXX_Name``; empty, new, or one that holds the same phantom with no more cases of any part.
        phantom: what to make; case i of each part is the same however many there are.
        num_processes: cases made at a time.

    Raises:
        SettingsError: a parameter is out of range, or nnU-Net could not use a folder of this name.
        InputError: the folder holds something else.
    """
    folder = Path(folder).absolute()
    _check(folder, phantom)
    parameters = {"phantom": "knee-bml", "version": VERSION, "seed": phantom.seed, "grid": list(phantom.grid)}
    claim_folder(folder, parameters, phantom.counts)
    named = [
        (case_name(part, number), (folder, part, number, phantom.seed, phantom.grid))
        for part, count in phantom.counts.items()
        for number in range(count)
    ]
    outcome = run_cases(write_case, named, num_processes, "knee phantom")
    _describe(folder, [name for name, _ in named if name not in outcome.failed])
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    for left_over in folder.glob(".partial_*"):  # of save_json, when a run was killed
        left_over.unlink()
    return outcome


def case_name(part: str, number: int) -> str:
    """Name of a case, unique over all parts."""
    return f"{PARTS[part].prefix}_{number:03d}"


def _check(folder: Path, phantom: BmlPhantom) -> None:
    if not re.fullmatch(r"Dataset\d{3}_.+", folder.name):
        raise SettingsError(f"-o ends in '{folder.name}'; nnU-Net needs a folder such as Dataset120_Knee.")
    for name, number in phantom.counts.items():
        least = 1 if name == "training" else 0
        if not least <= number <= MOST_CASES:
            raise SettingsError(f"--{name} is {number}; it must lie between {least} and {MOST_CASES}.")
    if phantom.seed < 0:
        raise SettingsError(f"--seed is {phantom.seed}; it cannot be negative.")
    check_grid(phantom.grid, SMALLEST_GRID, LARGEST_GRID)


def write_case(folder: Path, part: str, number: int, seed: int, grid: Sequence[int]) -> bool:
    """Make one case and move it into place; False where it is there already."""
    name = case_name(part, number)
    done = Path("truth/cases") / f"{name}.json"
    if (folder / done).exists():
        return False
    staging = folder / STAGING / name
    shutil.rmtree(staging, ignore_errors=True)
    case = make_iw_case(seed, PARTS[part].first_index + number, case_has_lesions(part, number), grid)
    files = {Path(PARTS[part].images) / f"{name}_0000.nii.gz": case.image}
    if part == "training":
        files[Path(f"labelsTr/{name}.nii.gz")] = case.labels
    else:
        suffix = PARTS[part].images.removeprefix("images")
        files[Path(f"lesions{suffix}/{name}.nii.gz")] = (case.lesions > 0).astype(np.uint8)
        files[Path(f"bones{suffix}/{name}.nii.gz")] = (case.labels > 0).astype(np.uint8)
    files[Path(f"truth/lesion_instances/{name}.nii.gz")] = case.lesions
    for path, array in files.items():
        write_image(case.as_image(array), staging / path)
    save_json(_case_record(case, part), staging / done)
    for path in [*files, done]:
        move_into_place(staging / path, folder / path)
    shutil.rmtree(staging, ignore_errors=True)
    return True


def _case_record(case: KneeCase, part: str) -> dict[str, Any]:
    lesion_mm3 = round(float((case.lesions > 0).sum() * np.prod(case.spacing_mm)), 3)
    return {
        "part": part,
        "laterality": case.subject.side.lower(),
        "spacing_mm": [round(size, 6) for size in case.spacing_mm],
        "has_lesions": bool(case.records),
        "lesion_mm3": lesion_mm3,
        "lesions": case.records,
    }


def _describe(folder: Path, names: Sequence[str]) -> None:
    """dataset.json, cases.json and the truth of all cases, from the finished cases' own records."""
    records = {name: load_json(folder / "truth/cases" / f"{name}.json") for name in sorted(names)}
    summary = {
        "phantom": load_json(folder / "phantom.json"),
        "lesion_instances": "voxels of lesion_instances/<case>.nii.gz hold the 'instance' of the lesion they belong to",
        "cases": records,
    }
    known = ("part", "laterality", "spacing_mm")
    described = {name: {key: record[key] for key in known} for name, record in records.items()}
    documents = {Path("truth/lesions.json"): summary, Path("cases.json"): described}
    if trained := sum(record["part"] == "training" for record in records.values()):
        documents[Path("dataset.json")] = _dataset_json(folder.name, trained)
    for path, content in documents.items():
        save_json(content, folder / STAGING / path)
        move_into_place(folder / STAGING / path, folder / path)


def _dataset_json(name: str, num_training_cases: int) -> dict[str, Any]:
    """nnU-Net's own dataset.json, with our block: the lesion belongs to the bone, so both are the region."""
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    with tempfile.TemporaryDirectory() as temporary:
        generate_dataset_json(
            temporary,
            channel_names={"0": "IW"},
            labels=LABELS,
            num_training_cases=num_training_cases,
            file_ending=".nii.gz",
            dataset_name=name,
            description="Generated knees, intermediate-weighted and fat-suppressed, with bone marrow lesions",
            overwrite_image_reader_writer="SimpleITKIO",
            license="generated, free of any right",
            converted_by="nnunet-anomaly phantom knee-bml",
            anomaly={"channel_roles": {"0": "image"}, "roi_labels": ["femur", "bml"]},
        )
        return load_json(Path(temporary) / "dataset.json")
