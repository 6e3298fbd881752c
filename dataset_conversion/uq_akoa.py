"""Bone, cartilage and bone-lesion labels of OAI images by the University of Queensland (OAI_ZIB-UQ and OAI_AKOA).

Files ``<subject>_*.nii.gz`` (baseline) or ``<subject>_<visit>m_*.nii.gz``. Their headers say where they lie; the image
is the one DESS series of that subject and visit in the OAI archive whose voxels coincide with the label's.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_anomaly.dataset_conversion.grids import on_grid_of
from nnunet_anomaly.dataset_conversion.oai_tree import BASELINE, series_folders
from nnunet_anomaly.dataset_conversion.runner import Case, add_common_arguments, convert_cases, open_writer
from nnunet_anomaly.dataset_conversion.splits import folds_by_subject
from nnunet_anomaly.dataset_conversion.writer import DatasetDescription, DatasetWriter
from nnunet_anomaly.errors import GeometryError, InputError
from nnunet_anomaly.files import read_image

if TYPE_CHECKING:
    import SimpleITK as sitk

    from nnunet_anomaly.dataset_conversion.dicom_series import Series

EXAMPLE = "nnunet-anomaly convert uq-akoa /data/Anomaly-Aware-3D-Segmentation --oai-root /data/OAI/results -d 103 -np 8"

LABELS = {
    "background": 0,
    "femoral_bone": 1,
    "femoral_cartilage": 2,
    "tibial_bone": 3,
    "tibial_cartilage": 4,
    "patellar_bone": 5,
    "patellar_cartilage": 6,
    "femoral_bone_lesion": 7,
    "tibial_bone_lesion": 8,
    "patellar_bone_lesion": 9,
}
BONE, CARTILAGE = (1, 3, 5, 7, 8, 9), (2, 4, 6)
DESCRIPTION = DatasetDescription(
    channel_names=["MR"],
    labels=LABELS,
    # a lesion's voxels are bone too: the region in which anomalies are looked for has to hold them
    roi_labels=[name for name, value in LABELS.items() if value in BONE],
    converted_by="nnunet-anomaly convert uq-akoa",
    description="Sagittal 3D DESS MR of the knee with bones, cartilages and bone lesions.",
    reference="Woo et al., Automated anomaly-aware 3D segmentation of bones and cartilages in knee MR images from the "
    "Osteoarthritis Initiative, arXiv:2211.16696; images: Osteoarthritis Initiative",
    licence="See the release; the images are under the OAI's data use agreement.",
)
FILE_NAME = re.compile(r"(?P<subject>\d+)(?:_(?P<visit>\d+m))?_.*\.nii(\.gz)?")
SEQUENCE = "DESS"
HEADER = "header"
HEADER_ADVICE = "; if the header is wrong, use --flip per-case"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``nnunet-anomaly convert uq-akoa``."""
    from nnunet_anomaly.dataset_conversion.mask_alignment import FLIPS, PER_CASE

    parser.add_argument(
        "release", type=Path, metavar="RELEASE", help="folder with the label files, or with their folders"
    )
    parser.add_argument(
        "--oai-root", type=Path, required=True, metavar="ROOT", help="folder of the OAI images, with 00m/, 12m/, ..."
    )
    parser.add_argument(
        "--flip",
        choices=[HEADER, PER_CASE, *FLIPS],
        default=HEADER,
        help="header: labels lie where their headers say (default); otherwise the headers are not looked at, and the "
        "axes (z slices, y rows, x columns) named here are reversed, or those that fit the image (per-case)",
    )
    parser.add_argument("--side", choices=["left", "right"], help="take the DESS series of this knee alone")
    add_common_arguments(parser, default_name="KneeUQ")


def run(args: argparse.Namespace) -> int:
    """Convert the release; see ``add_arguments``."""
    cases = list_cases(args.release, args.oai_root)
    options = {"oai_root": str(args.oai_root.resolve()), "flip": args.flip, "side": args.side}
    writer = open_writer(args, cases, DESCRIPTION, options)
    extra = (args.oai_root, args.flip, args.side)
    return convert_cases(args, writer, cases, convert_case, extra, folds_by_subject)


def list_cases(release: Path, oai_root: Path) -> list[Case]:
    """All label files in the release, one level of folders deep; each with its problem, if any.

    Raises:
        InputError: a folder is missing, or no file is named like a label.
    """
    for folder, what in ((release, "release folder"), (oai_root, "folder of the OAI images,")):
        if not folder.is_dir():
            raise InputError(f"The {what} {folder} does not exist.")
    files: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in sorted([*release.glob("*.nii*"), *release.glob("*/*.nii*")]):
        if match := FILE_NAME.fullmatch(path.name):
            files[match["subject"], match["visit"] or BASELINE].append(path)
    if not files:
        raise InputError(f"{release} has no files <subject>_*.nii.gz or <subject>_<visit>m_*.nii.gz.")
    return [_case(subject, visit, paths, release, oai_root) for (subject, visit), paths in sorted(files.items())]


def _case(subject: str, visit: str, paths: list[Path], release: Path, oai_root: Path) -> Case:
    """One case with its files, or with what is wrong with them."""
    name = f"{subject}_{visit}"
    if len(paths) > 1:
        listed = ", ".join(path.relative_to(release).as_posix() for path in paths)
        return Case(name, subject, visit, problem=f"more than one label file: {listed}")
    if not series_folders(oai_root, subject, visit):
        return Case(name, subject, visit, problem=f"{oai_root} has no {visit}/*/{subject} with images")
    return Case(name, subject, visit, {"label": paths[0]}, {})


@dataclass(frozen=True)
class Fit:
    """A DESS series on which a label map lies.

    Attributes:
        folder: of the series.
        image: its volume.
        label: the label map on the image's grid.
        side: of the body, ``None`` if unknown.
        alignment: how the label map was laid on the image; JSON.
        notes: for the report.
    """

    folder: Path
    image: sitk.Image
    label: sitk.Image
    side: str | None
    alignment: dict[str, Any]
    notes: list[str]


def convert_case(
    writer: DatasetWriter, case: Case, test: bool, oai_root: Path, option: str, wanted_side: str | None
) -> None:
    """Convert one case into the dataset."""
    fit = fitting_series(case, oai_root, option, wanted_side)
    sources = {"image": fit.folder.relative_to(oai_root).as_posix(), "label": case.sources["label"].name}
    details = case.to_record(laterality=fit.side, alignment=fit.alignment, sources=sources, notes=fit.notes)
    writer.write_case(case.case_id, [fit.image], fit.label, test=test, details=details)


def fitting_series(case: Case, oai_root: Path, option: str, wanted_side: str | None) -> Fit:
    """The one DESS series of the subject's visit, of the wanted side if given, on which the label map lies.

    Raises:
        GeometryError: it lies on none of them.
        InputError: it lies on more than one.
    """
    from nnunet_anomaly.dataset_conversion.dicom_series import laterality, read_series

    label = read_image(case.sources["label"])
    fits, reasons = [], []
    for series in knee_series(oai_root, case):
        folder = series.files[0].parent
        side, side_notes = laterality(series)
        if wanted_side is not None and side != wanted_side:
            continue
        try:
            image = read_series(series)
            placed, alignment, notes = place_label(label, image, option)
        except GeometryError as error:
            reasons.append(f"{folder.relative_to(oai_root)}: {error}")
        else:
            fits.append(Fit(folder, image, placed, side, alignment, side_notes + notes))
    if not fits:
        side_text = f" of the {wanted_side} knee" if wanted_side else ""
        raise GeometryError(f"no {SEQUENCE} series{side_text} fits its label. {'; '.join(reasons)}".strip())
    if len(fits) > 1:
        folders = ", ".join(str(fit.folder.relative_to(oai_root)) for fit in fits)
        raise InputError(f"more than one {SEQUENCE} series fits: {folders}. Choose with --side left or right.")
    return fits[0]


def knee_series(oai_root: Path, case: Case) -> list[Series]:
    """All DESS series of the case's subject and visit.

    Raises:
        InputError: there is none.
    """
    from nnunet_anomaly.dataset_conversion.dicom_series import first_description, series_in

    found = []
    folders = series_folders(oai_root, case.subject, case.visit or BASELINE)
    for folder in folders:
        if SEQUENCE in first_description(folder).upper():
            found += [series for series in series_in(folder) if SEQUENCE in series.description.upper()]
    if not found:
        raise InputError(f"none of its {len(folders)} image folders has a {SEQUENCE} series")
    return found


def place_label(label: sitk.Image, image: sitk.Image, option: str) -> tuple[sitk.Image, dict[str, Any], list[str]]:
    """Lay a label map on its image, by its header or by flips of its array.

    Returns:
        The label map on the image's grid, what to record of it, notes for the report.

    Raises:
        GeometryError: it does not lie on the image.
    """
    import SimpleITK as sitk

    from nnunet_anomaly.dataset_conversion.mask_alignment import best_alignment, decide_flip, flip_scores, flipped

    grey = sitk.GetArrayFromImage(image)
    if option == HEADER:
        array = sitk.GetArrayFromImage(on_grid_of(label, image, advice=HEADER_ADVICE))
    else:
        array = sitk.GetArrayFromImage(label)
        array = array if array.shape == grey.shape else np.moveaxis(array, -1, 0)
        if array.shape != grey.shape:
            raise GeometryError(f"the label has {label.GetSize()[::-1]} voxels (z, y, x), the image {grey.shape}")
    scores = flip_scores(grey, array, image.GetSpacing()[::-1], BONE, CARTILAGE)
    flip, notes = decide_flip(scores, "none" if option == HEADER else option)
    if option == HEADER:
        notes = [f"by its header it lies on the image, but: {best_alignment(scores)}"] if notes else []
    placed = sitk.GetImageFromArray(np.ascontiguousarray(flipped(array, flip)))
    placed.CopyInformation(image)
    return placed, {"option": option, "flip": flip, "score": round(scores[flip], 3)}, notes
