"""ATLAS: T1 images of people after a stroke with their lesions traced by hand (Liew et al.), releases 1.1, 1.2, 2.0.

The images are in MNI space and not skull-stripped. A case's lesions lie in one or several files, whose union is taken.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_anomaly.dataset_conversion.brain import add_brain_arguments, nifti_files, read_mask
from nnunet_anomaly.dataset_conversion.lesions import BRAIN_AND_LESION, add_lesion_arguments, convert_lesion_release
from nnunet_anomaly.dataset_conversion.roles import UNLABELLED, add_role_arguments
from nnunet_anomaly.dataset_conversion.runner import Case, add_common_arguments
from nnunet_anomaly.dataset_conversion.writer import DatasetDescription
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.label_maps import case_name

if TYPE_CHECKING:
    import SimpleITK as sitk

EXAMPLE = (
    "nnunet-anomaly convert atlas /data/ATLAS_R1.1 --brain-masks /data/ATLAS_masks -d 302 --validation 121 --test 183"
)
LAYOUT = """\
Releases, which are told apart by their file names (.nii.gz or .nii):
  R1.1  [Only_Data/]Site1/031769/t01/031769_{t1w_deface_stx,LesionSmooth_stx,LesionSmooth_1_stx ...}.nii.gz
  R1.2  .../c0003s0002t01_{t1w_stx,LesionSmooth_stx,LesionSmooth_1_stx ...}.nii.gz
  2.0   {Training,Testing}/R001/sub-r001s001/ses-1/anat/
            sub-r001s001_ses-1_space-MNI152NLin2009aSym_{T1w,label-L_desc-T1lesion_mask}.nii.gz

"""
DESCRIPTION = DatasetDescription(
    channel_names=["T1"],
    labels=BRAIN_AND_LESION,
    roi_labels=["brain", "lesion"],
    converted_by="nnunet-anomaly convert atlas",
    description="T1-weighted MR of the head after stroke with the brain and the lesion.",
    reference="Liew et al., Scientific Data 5 (2018) 180011, doi:10.1038/sdata.2018.11; Liew et al., Scientific Data 9 "
    "(2022) 320, doi:10.1038/s41597-022-01401-7",
    licence="See the release; it needs a registration.",
)


@dataclass(frozen=True)
class Release:
    """How one release names its files: patterns of names without ending."""

    image: re.Pattern[str]
    lesion: re.Pattern[str]


LESION_SMOOTH = r"_LesionSmooth(_\d+)?_stx"
RELEASES = {
    "R1.1": Release(
        re.compile(r"(?P<subject>\d+)_t1w_deface_stx", re.IGNORECASE),
        re.compile(r"(?P<subject>\d+)" + LESION_SMOOTH, re.IGNORECASE),
    ),
    "R1.2": Release(
        re.compile(r"(?P<subject>(?P<site>c\d+)s\d+)(?P<visit>t\d+)_t1w_stx", re.IGNORECASE),
        re.compile(r"(?P<subject>(?P<site>c\d+)s\d+)(?P<visit>t\d+)" + LESION_SMOOTH, re.IGNORECASE),
    ),
    "2.0": Release(
        re.compile(r"(?P<subject>sub-(?P<site>r\d+)s\d+)_(?P<visit>ses-[^_]+)_space-[^_]+_T1w"),
        re.compile(
            r"(?P<subject>sub-(?P<site>r\d+)s\d+)_(?P<visit>ses-[^_]+)_space-[^_]+_label-[^_]+_desc-T1lesion_mask"
        ),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``nnunet-anomaly convert atlas``."""
    parser.add_argument("release", type=Path, metavar="RELEASE", help="folder into which the release was unpacked")
    add_brain_arguments(parser, stripped=False)
    add_lesion_arguments(parser)
    add_role_arguments(parser)
    add_common_arguments(parser, default_name="ATLAS")


def run(args: argparse.Namespace) -> int:
    """Convert the release; see ``add_arguments``."""
    return convert_lesion_release(args, list_cases(args.release), DESCRIPTION, union_of_lesions, {})


def list_cases(release: Path) -> list[Case]:
    """All cases that an image or a lesion file names, sorted; each with its problem, if any.

    Raises:
        InputError: no file, or files of more than one release.
    """
    files = nifti_files(release)
    releases = {name for name, names in RELEASES.items() if any(names.image.fullmatch(case_name(f)) for f in files)}
    if len(releases) != 1:
        found = f"images of the releases {', '.join(sorted(releases))}" if releases else "no T1 image of ATLAS"
        raise InputError(f"{release} has {found}; give the folder of one release. Its files are named as --help says.")
    names = RELEASES[releases.pop()]
    images, lesions = defaultdict(list), defaultdict(list)
    for path in files:
        if match := names.image.fullmatch(case_name(path)):
            images[_key(match, path)].append(path)
        elif match := names.lesion.fullmatch(case_name(path)):
            lesions[_key(match, path)].append(path)
    return [_case(key, images[key], lesions[key], release) for key in sorted(images.keys() | lesions.keys())]


def _key(match: re.Match[str], path: Path) -> tuple[str, str, str]:
    """Subject, visit and site of a file: from its name, in R1.1 from the folders ``Site1/031769/t01``."""
    parts = match.groupdict()
    if "visit" in parts:
        return parts["subject"], parts["visit"], parts["site"].upper()
    visit = path.parent.name if re.fullmatch(r"t\d+", path.parent.name) else ""
    site = next((part for part in reversed(path.parts[:-1]) if re.fullmatch(r"site\d+", part, re.IGNORECASE)), "")
    return parts["subject"], visit, site


def _case(key: tuple[str, str, str], images: list[Path], lesions: list[Path], release: Path) -> Case:
    """One case with its files, or with what is wrong with them."""
    subject, visit, site = key
    joint = "" if re.fullmatch(r"c\d+s\d+", subject, re.IGNORECASE) or not visit else "_"
    folders = {
        part.casefold() for path in images for part in (release.resolve().name, *path.relative_to(release).parts)
    }
    held_out = "testing" in folders
    problem = None
    if len(images) != 1:
        found = ", ".join(path.relative_to(release).as_posix() for path in images) or "none"
        problem = f"one T1 image is needed; found: {found}"
    elif not lesions and not held_out:
        problem = "it has no lesion file"
    sources = {f"lesion_{number}": path for number, path in enumerate(lesions)}
    if images:
        sources["T1"] = images[0]
    return Case(
        f"{subject}{joint}{visit}",
        subject,
        visit or None,
        sources,
        {"sources": {role: path.relative_to(release).as_posix() for role, path in sorted(sources.items())}},
        test=held_out,
        role=UNLABELLED if held_out and not lesions else None,
        stratum=site or None,
        problem=problem,
    )


def union_of_lesions(case: Case, image: sitk.Image) -> tuple[np.ndarray, list[str]]:
    """1 where any of the case's lesion files is above 0, on the image's grid (uint8, z, y, x); notes on empty files.

    Raises:
        InputError: a file is damaged.
        GeometryError: a file is on another grid.
    """
    union, notes = np.zeros(image.GetSize()[::-1], bool), []
    for role, path in case.sources.items():
        if role.startswith("lesion_"):
            lesion = read_mask(path, image, "lesion file")
            union |= lesion
            notes += [] if lesion.any() else [f"its lesion file {path.name} is empty"]
    return union.astype(np.uint8), notes
