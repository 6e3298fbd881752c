"""Writes the brain phantom as BraTS and ATLAS are shipped, beside a healthy folder like IXI's, and the truth.

::

    DIR/phantom.json                                          what was asked for
    DIR/IXI-T1/IXI002-Guys-0828-T1.nii.gz                     healthy heads
    DIR/MICCAI_BraTS_2019_Data_Training/{HGG,LGG}/BraTS19_..._1/BraTS19_..._1_{t1,t1ce,t2,flair,seg}.nii.gz
    DIR/MICCAI_BraTS2020_TrainingData/BraTS20_Training_001/BraTS20_Training_001_*.nii
    DIR/RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021/BraTS2021_00000/BraTS2021_00000_*.nii.gz
    DIR/ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz
    DIR/ATLAS_R1.1/Site1/031769/t01/031769_{t1w_deface_stx,LesionSmooth_stx,LesionSmooth_1_stx,...}.nii.gz
    DIR/ATLAS_2/Training/R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_*.nii.gz
    DIR/truth/{brain, lesions}/<case>.nii.gz                  in the image's geometry; no lesions for healthy heads
    DIR/truth/cases/<case>.json, DIR/truth/lesions.json       which cases have which lesions

One release of BraTS and one of ATLAS lie in one phantom. Cases without masks for a test lie in the release's own
folder for them. Where a release has patients with more than one visit (BraTS 2023, ATLAS), every fifth case is the
second visit of the patient before it. A case is built in ``DIR/.partial/<case>`` and moved to its place file by file,
its record in ``truth/cases`` last: a case with a record is whole and is not made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import Outcome, load_json, run_cases, save_json, sha256_of, write_image
from nnunet_anomaly.phantoms.brain_cases import (
    FRAMES,
    HEALTHY,
    STROKE,
    TUMOUR,
    BrainCase,
    CaseKey,
    Inputs,
    load_label_map,
    load_shape,
    make_case,
)
from nnunet_anomaly.phantoms.brain_lesions import ENHANCING
from nnunet_anomaly.phantoms.painting import PRESETS
from nnunet_anomaly.phantoms.release import STAGING, claim_folder, move_into_place

# raised whenever the same parameters give other files, so that two makes never mix in one folder
VERSION = 2
HEALTHY_FOLDER = "IXI-T1"
HEALTHY_CONTRASTS = tuple(name for name in PRESETS if name != "t1ce")
SMALLEST_SIZE, LARGEST_SIZE = 24, 320
MOST_CASES = {"healthy": 100_000, "tumours": 9_000, "strokes": 4_000, "test": 900}
FIRST_TEST_PATIENT = 9_000  # numbers of test patients begin here, above those of training patients
MISNAMED_CASE, MISNAMED_FILE = 355, "W39_1998.09.19_Segm.nii"
ATLAS_RELEASES = ("R1.1", "2.0")
VISIT_EVERY = 5


class BratsRelease(NamedTuple):
    """Names in one release of BraTS."""

    training: str
    test: str
    joint: str
    contrasts: tuple[str, str, str, str]  # T1, T1 with contrast medium, T2, FLAIR
    ending: str
    enhancing: int  # label
    has_visits: bool


_CLASSIC = ("t1", "t1ce", "t2", "flair")
BRATS_RELEASES = {
    "2019": BratsRelease(
        "MICCAI_BraTS_2019_Data_Training", "MICCAI_BraTS_2019_Data_Validation", "_", _CLASSIC, ".nii.gz", 4, False
    ),
    "2020": BratsRelease(
        "MICCAI_BraTS2020_TrainingData", "MICCAI_BraTS2020_ValidationData", "_", _CLASSIC, ".nii", 4, False
    ),
    "2021": BratsRelease(
        "RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021",
        "RSNA_ASNR_MICCAI_BraTS2021_ValidationData",
        "_",
        _CLASSIC,
        ".nii.gz",
        4,
        False,
    ),
    "2023": BratsRelease(
        "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData",
        "ASNR-MICCAI-BraTS2023-GLI-Challenge-ValidationData",
        "-",
        ("t1n", "t1c", "t2w", "t2f"),
        ".nii.gz",
        3,
        True,
    ),
}


@dataclass(frozen=True)
class BrainPhantom:
    """What a brain phantom consists of.

    ``labels`` and ``shapes`` are folders with label maps of heads and masks of lesions (NIfTI); ``grid`` is slices,
    rows and columns, None for each release's small one; ``misnamed_case`` gives BraTS 2020 its case 355, whose file of
    labels has a name of its own.
    """

    seed: int
    healthy: int = 0
    tumours: int = 0
    strokes: int = 0
    test: int = 0
    brats: str = "2021"
    atlas: str = "2.0"
    contrast: str = "t1"
    misnamed_case: bool = False
    labels: Path | None = None
    shapes: Path | None = None
    grid: tuple[int, int, int] | None = None
    full_grid: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of cases, which may grow in a later run."""
        return {name: getattr(self, name) for name in MOST_CASES}


class CasePlan(NamedTuple):
    """One case to write: its name, its folder in the phantom, and what it is made from."""

    name: str
    folder: Path
    key: CaseKey
    has_masks: bool = True
    high_grade: bool = True


def make_brain_phantom(folder: Path, phantom: BrainPhantom, num_processes: int = 1) -> Outcome:
    """Make a brain phantom, or finish one that was interrupted, or add cases to one.

    Args:
        folder: empty, new, or one that holds the same phantom with no more cases.
        phantom: what to make; case i of each kind is the same however many there are.
        num_processes: cases made at a time.

    Raises:
        SettingsError: a parameter is out of range.
        InputError: the folder holds something else, or a file of ``labels`` or ``shapes`` cannot be used.
    """
    _check(phantom)
    inputs = Inputs(_files_in(phantom.labels, "--labels"), _files_in(phantom.shapes, "--lesion-shapes"))
    for path in inputs.labels:
        load_label_map(path)
    for path in inputs.shapes:
        load_shape(path)
    folder = Path(folder)
    claim_folder(folder, _parameters(phantom, inputs), phantom.counts)
    plans = plan_cases(phantom)
    named = [(plan.name, (folder, plan, phantom, inputs)) for plan in plans]
    outcome = run_cases(write_case, named, num_processes, "brain phantom")
    _write_summary(folder, [plan.name for plan in plans if plan.name not in outcome.failed])
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    for left_over in folder.glob(".partial_*"):  # of save_json, when a run was killed
        left_over.unlink()
    return outcome


def _check(phantom: BrainPhantom) -> None:
    if not phantom.healthy + phantom.tumours + phantom.strokes + phantom.test:
        raise SettingsError("A phantom has at least one case. Give --healthy, --tumours or --strokes.")
    for name, number in phantom.counts.items():
        if not 0 <= number <= MOST_CASES[name]:
            raise SettingsError(f"--{name} is {number}; it must lie between 0 and {MOST_CASES[name]}.")
    if phantom.test and not phantom.tumours + phantom.strokes:
        raise SettingsError("--test adds cases to --tumours and --strokes; give at least one of them.")
    if phantom.test and phantom.strokes and phantom.atlas == "R1.1":
        raise SettingsError("ATLAS R1.1 has no folder for cases without masks. Leave out --test, or use --atlas 2.0.")
    if phantom.seed < 0:
        raise SettingsError(f"--seed is {phantom.seed}; it cannot be negative.")
    for option, value, allowed in (
        ("--brats", phantom.brats, tuple(BRATS_RELEASES)),
        ("--atlas", phantom.atlas, ATLAS_RELEASES),
        ("--contrast", phantom.contrast, HEALTHY_CONTRASTS),
    ):
        if value not in allowed:
            raise SettingsError(f"{option} is '{value}'; it must be one of {', '.join(allowed)}.")
    if phantom.misnamed_case and phantom.brats != "2020":
        raise SettingsError("--case-355 is a case of BraTS 2020; give --brats 2020 with it.")
    if phantom.grid is not None and (
        len(phantom.grid) != 3 or any(not SMALLEST_SIZE <= size <= LARGEST_SIZE for size in phantom.grid)
    ):
        raise SettingsError(
            f"--grid is {' '.join(str(size) for size in phantom.grid)}; it must be three numbers (slices, rows, "
            f"columns) from {SMALLEST_SIZE} to {LARGEST_SIZE}."
        )


def _files_in(folder: Path | None, option: str) -> tuple[Path, ...]:
    if folder is None:
        return ()
    paths = sorted(
        path
        for path in Path(folder).glob("*.nii*")
        if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".")  # ._name.nii.gz is macOS's
    )
    if not paths:
        raise InputError(f"{option}: there is no .nii or .nii.gz file in {folder}.")
    for path in paths:
        _check_is_volume(path, option)
    return tuple(paths)


def _check_is_volume(path: Path, option: str) -> None:
    """Raise an ``InputError`` for an image by whose header ITK fails in its own words: 2-D, or of complex numbers."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # read_image says why
        return
    is_complex = reader.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)
    if reader.GetDimension() == 2 or is_complex:
        raise InputError(f"{option}: {path} is {'of complex numbers' if is_complex else '2-D'}; a volume is needed.")


def _parameters(phantom: BrainPhantom, inputs: Inputs) -> dict[str, Any]:
    """What must be the same for two runs to make the same cases, as JSON gives it back."""
    return {
        "phantom": "brain",
        "version": VERSION,
        "seed": phantom.seed,
        "brats": phantom.brats,
        "case_355": phantom.misnamed_case,
        "atlas": phantom.atlas,
        "contrast": phantom.contrast,
        "grid": "full" if phantom.full_grid else "small" if phantom.grid is None else list(phantom.grid),
        "labels_sha256": sha256_of(inputs.labels) if inputs.labels else None,
        "lesion_shapes_sha256": sha256_of(inputs.shapes) if inputs.shapes else None,
    }


# ---- which cases there are, and what they are called ----


def plan_cases(phantom: BrainPhantom) -> list[CasePlan]:
    """All cases of a phantom, in order."""
    plans = [plan_healthy(phantom.seed, index) for index in range(phantom.healthy)]
    for count, plan in ((phantom.tumours, plan_tumour), (phantom.strokes, plan_stroke)):
        plans += [plan(phantom, index) for index in range(count)]
        plans += [plan(phantom, index, is_test=True) for index in range(phantom.test if count else 0)]
    return plans


def plan_healthy(seed: int, index: int) -> CasePlan:
    """Healthy head ``index``, named as IXI names its images: number, hospital, examination."""
    site = ("Guys", "HH", "IOP")[(index * 7 + index // 5) % 3]
    name = f"IXI{index + 2:03d}-{site}-{(828 + 61 * index) % 10_000:04d}-T1"
    return CasePlan(name, Path(HEALTHY_FOLDER), CaseKey(seed, HEALTHY, index))


def _patient_and_visit(index: int, has_visits: bool) -> tuple[int, int]:
    """Every fifth case is the second visit of the patient before it, where a release has more than one."""
    if not has_visits:
        return index, 0
    group, place = divmod(index, VISIT_EVERY)
    is_second = place == VISIT_EVERY - 1
    return group * (VISIT_EVERY - 1) + place - is_second, int(is_second)


def plan_tumour(phantom: BrainPhantom, index: int, *, is_test: bool = False) -> CasePlan:
    """Case ``index`` with a tumour; every fourth patient has one of low grade."""
    release = BRATS_RELEASES[phantom.brats]
    patient, visit = _patient_and_visit(index, release.has_visits)
    patient += FIRST_TEST_PATIENT if is_test else 0
    high_grade = patient % 4 != 3
    root = Path(release.test if is_test else release.training)
    if phantom.brats == "2019":
        name = f"BraTS19_{_centre_2019(patient)}_1"
        root = root if is_test else root / ("HGG" if high_grade else "LGG")
    elif phantom.brats == "2020":
        name = f"BraTS20_{'Validation' if is_test else 'Training'}_{_number_2020(phantom, index, is_test):03d}"
    elif phantom.brats == "2021":
        name = f"BraTS2021_{patient:05d}"
    else:
        name = f"BraTS-GLI-{patient:05d}-{visit:03d}"
    key = CaseKey(phantom.seed, TUMOUR, patient, visit)
    return CasePlan(name, root / name, key, not is_test, high_grade)


def _centre_2019(patient: int) -> str:
    """Where a patient of BraTS 2019 comes from, and the number there."""
    first, rest = divmod(patient, 26 * 26)
    letters = "".join(chr(ord("A") + number) for number in (first, *divmod(rest, 26)))
    origins = (f"2013_{patient + 2}", f"CBICA_{letters}", f"TCIA{patient % 10 + 1:02d}_{patient + 100}")
    return (*origins, f"TMC_{patient + 6643:05d}")[(patient + patient // 4) % 4]


def _number_2020(phantom: BrainPhantom, index: int, is_test: bool) -> int:
    """Number of a case of BraTS 2020; where case 355 is asked for, it is the first one."""
    if is_test or not phantom.misnamed_case:
        return index + 1
    return MISNAMED_CASE if index == 0 else index + (index >= MISNAMED_CASE)


def plan_stroke(phantom: BrainPhantom, index: int, *, is_test: bool = False) -> CasePlan:
    """Case ``index`` with strokes, at one of nine sites."""
    patient, visit = _patient_and_visit(index, True)
    key = CaseKey(phantom.seed, STROKE, patient + (FIRST_TEST_PATIENT if is_test else 0), visit)
    site, number = patient % 9 + 1 + (50 if is_test else 0), patient // 9 + 1
    if phantom.atlas == "R1.1":
        subject = f"{31_769 + patient:06d}"
        folder = Path("ATLAS_R1.1") / f"Site{site}" / subject / f"t{visit + 1:02d}"
        return CasePlan(f"{subject}_t{visit + 1:02d}", folder, key)
    subject, session = f"sub-r{site:03d}s{number:03d}", f"ses-{visit + 1}"
    part = "Testing" if is_test else "Training"
    folder = Path("ATLAS_2") / part / f"R{site:03d}" / subject / session / "anat"
    return CasePlan(f"{subject}_{session}", folder, key, not is_test)


# ---- writing ----


def write_case(folder: Path, plan: CasePlan, phantom: BrainPhantom, inputs: Inputs) -> bool:
    """Make one case and move it into place; False where it is there already."""
    done = Path("truth/cases") / f"{plan.name}.json"
    if (folder / done).exists():
        return False
    staging = folder / STAGING / plan.name
    shutil.rmtree(staging, ignore_errors=True)
    frame = FRAMES[plan.key.cohort]
    grid = frame.full_grid if phantom.full_grid else phantom.grid or frame.small_grid
    defaced = plan.key.cohort == STROKE and phantom.atlas == "R1.1"
    case = make_case(plan.key, grid, inputs, contrast=phantom.contrast, high_grade=plan.high_grade, defaced=defaced)
    files = release_files(plan, case, phantom)
    images = [path.as_posix() for path, array in files.items() if array.dtype == np.int16]
    files[Path("truth/brain") / f"{plan.name}.nii.gz"] = case.brain.astype(np.uint8)
    if plan.key.cohort != HEALTHY:
        files[Path("truth/lesions") / f"{plan.name}.nii.gz"] = case.lesions.astype(np.uint8)
    for path, array in files.items():
        write_image(case.as_image(array), staging / path)
    save_json(_case_record(plan, case, images), staging / done)
    for path in [*files, done]:
        move_into_place(staging / path, folder / path)
    shutil.rmtree(staging, ignore_errors=True)
    return True


def release_files(plan: CasePlan, case: BrainCase, phantom: BrainPhantom) -> dict[Path, np.ndarray]:
    """Files of a case as its release has them: images int16, masks uint8, arrays in the order (x, y, z)."""
    if plan.key.cohort == HEALTHY:
        return {plan.folder / f"{plan.name}.nii.gz": next(iter(case.images.values()))}
    if plan.key.cohort == TUMOUR:
        return _brats_files(plan, case, phantom)
    return _atlas_files(plan, case, phantom.atlas)


def _brats_files(plan: CasePlan, case: BrainCase, phantom: BrainPhantom) -> dict[Path, np.ndarray]:
    release = BRATS_RELEASES[phantom.brats]
    start = f"{plan.name}{release.joint}"
    files = {
        plan.folder / f"{start}{name}{release.ending}": image
        for name, image in zip(release.contrasts, case.images.values(), strict=True)
    }
    if plan.has_masks:
        assert case.tumour is not None
        labels = np.where(case.tumour == ENHANCING, np.uint8(release.enhancing), case.tumour)
        is_misnamed = phantom.misnamed_case and plan.name.endswith(f"Training_{MISNAMED_CASE}")
        files[plan.folder / (MISNAMED_FILE if is_misnamed else f"{start}seg{release.ending}")] = labels
    return files


def _atlas_files(plan: CasePlan, case: BrainCase, release: str) -> dict[Path, np.ndarray]:
    (image,) = case.images.values()
    if release == "R1.1":
        subject = plan.name.split("_")[0]
        files = {plan.folder / f"{subject}_t1w_deface_stx.nii.gz": image}
        for number, lesion in enumerate(case.strokes):
            middle = f"_{number}" if number else ""
            # masks of this release are grey images: 255 is lesion
            files[plan.folder / f"{subject}_LesionSmooth{middle}_stx.nii.gz"] = lesion.mask.astype(np.uint8) * 255
        return files
    start = f"{plan.name}_space-MNI152NLin2009aSym"
    files = {plan.folder / f"{start}_T1w.nii.gz": image}
    if plan.has_masks:
        files[plan.folder / f"{start}_label-L_desc-T1lesion_mask.nii.gz"] = case.lesions.astype(np.uint8)
    return files


def _case_record(plan: CasePlan, case: BrainCase, images: Sequence[str]) -> dict[str, Any]:
    voxel_mm3 = float(np.prod(case.spacing_mm))
    return {
        "kind": {HEALTHY: "healthy", TUMOUR: "tumour", STROKE: "stroke"}[plan.key.cohort],
        "patient": plan.key.patient,
        "visit": plan.key.visit,
        "head": case.head,
        "images": list(images),
        "masks_in_release": plan.has_masks and plan.key.cohort != HEALTHY,
        "brain_mm3": round(float(case.brain.sum()) * voxel_mm3, 3),
        "has_lesions": bool(case.records),
        "lesion_mm3": round(float(case.lesions.sum()) * voxel_mm3, 3),
        "lesions": case.records,
    }


def _write_summary(folder: Path, names: Sequence[str]) -> None:
    """The truth of all cases, from the finished cases' own records."""
    records = {name: load_json(folder / "truth/cases" / f"{name}.json") for name in sorted(names)}
    summary = {"phantom": load_json(folder / "phantom.json"), "cases": records}
    save_json(summary, folder / STAGING / "lesions.json")
    move_into_place(folder / STAGING / "lesions.json", folder / "truth" / "lesions.json")
