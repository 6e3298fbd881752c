"""BraTS: four MR sequences of people with glioma, registered and skull-stripped, with the parts of the tumour.

One command for the releases of 2019, 2020, 2021 and, of the gliomas (GLI), 2023 and 2024. Label 4 is the enhancing
tumour up to 2021, which is 3 from 2023 on; in 2024 label 4 is the resection cavity.
"""

from __future__ import annotations

import argparse
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_anomaly.dataset_conversion.brain import add_brain_arguments
from nnunet_anomaly.dataset_conversion.brats_mapping import Origin, read_mappings
from nnunet_anomaly.dataset_conversion.grids import on_grid_of, read_placed
from nnunet_anomaly.dataset_conversion.lesions import BRAIN_AND_LESION, add_lesion_arguments, convert_lesion_release
from nnunet_anomaly.dataset_conversion.roles import UNLABELLED, add_role_arguments
from nnunet_anomaly.dataset_conversion.runner import Case, add_common_arguments
from nnunet_anomaly.dataset_conversion.writer import DatasetDescription
from nnunet_anomaly.errors import InputError, LabelError
from nnunet_anomaly.label_maps import case_name

if TYPE_CHECKING:
    import SimpleITK as sitk

EXAMPLE = (
    "nnunet-anomaly convert brats /data/MICCAI_BraTS_2019_Data_Training -d 301 "
    "--sequences t1 --validation 133 --test 202"
)
LAYOUT = """\
Releases, which are told apart by the names of their case folders (.nii.gz or .nii, one more folder between allowed):
  2019  MICCAI_BraTS_2019_Data_Training/{HGG,LGG}/BraTS19_2013_2_1/BraTS19_2013_2_1_{t1,t1ce,t2,flair,seg}.nii.gz
  2020  MICCAI_BraTS2020_TrainingData/BraTS20_Training_001/BraTS20_Training_001_{t1,t1ce,t2,flair,seg}.nii
  2021  RSNA_ASNR_MICCAI_BraTS2021_TrainingData/BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz
  2023, 2024  ...BraTS2023-GLI.../BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz
A name_mapping.csv, as 2019 and 2020 have one, tells grades and by the cases' older names the institutions.
Cases in a folder with 'validation' in its name may lack the seg; they go to imagesTs.

"""
SEQUENCES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
OLD_SUFFIXES = {sequence: f"_{sequence}" for sequence in SEQUENCES} | {"seg": "_seg"}
NEW_SUFFIXES = {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f", "seg": "-seg"}
ODD_SEG_NAMES = {"BraTS20_Training_355": "W39_1998.09.19_Segm"}  # instead of BraTS20_Training_355_seg
YEAR_IN_NAME = re.compile(r"BraTS[-_ ]?(GLI[-_ ]?)?(?P<year>2023|2024)(?![-_.]?\d)", re.IGNORECASE)  # but no date
DEEPEST = 4  # folders between the release and a case

CORE, EDEMA, ENHANCING, CAVITY = 1, 2, 3, 4
PARTS = {"non_enhancing_tumor_core": CORE, "edema": EDEMA, "enhancing_tumor": ENHANCING, "resection_cavity": CAVITY}


@dataclass(frozen=True)
class Release:
    """How one release names cases and files, and what its labels mean.

    Attributes:
        case: pattern of a case's name; ``subject`` and ``visit`` in it tell a person's scans.
        suffixes: what follows the case's name in a file, by sequence and for ``seg``.
        parts: label in the release to ``CORE``, ``EDEMA``, ``ENHANCING`` or ``CAVITY``.
    """

    case: re.Pattern[str]
    suffixes: Mapping[str, str]
    parts: Mapping[int, int]


OLD_PARTS = {1: CORE, 2: EDEMA, 4: ENHANCING}
NEW_PARTS = {1: CORE, 2: EDEMA, 3: ENHANCING}
GLI = re.compile(r"(?P<subject>BraTS-GLI-\d{5})-(?P<visit>\d{3})")
RELEASES = {
    "2019": Release(
        re.compile(r"(?P<subject>BraTS19_(?P<site>[A-Za-z0-9]+)_\w+)_(?P<visit>\d+)"), OLD_SUFFIXES, OLD_PARTS
    ),
    "2020": Release(re.compile(r"(?P<subject>BraTS20_(Training|Validation)_\d+)"), OLD_SUFFIXES, OLD_PARTS),
    "2021": Release(re.compile(r"(?P<subject>BraTS2021_\d{5})"), OLD_SUFFIXES, OLD_PARTS),
    "2023": Release(GLI, NEW_SUFFIXES, NEW_PARTS),
    "2024": Release(GLI, NEW_SUFFIXES, {**NEW_PARTS, 4: CAVITY}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``nnunet-anomaly convert brats``."""
    parser.add_argument(
        "release",
        type=Path,
        metavar="RELEASE",
        help="folder of the release's training part, or the one above all parts",
    )
    parser.add_argument(
        "--sequences",
        nargs="+",
        choices=list(SEQUENCES),
        default=list(SEQUENCES),
        help="which become channels, in this order; a case without one of them is named and left out (default: all)",
    )
    parser.add_argument(
        "--year",
        choices=["2023", "2024"],
        help="of a GLI release where no folder, in it or above it, is named as BraTS2023 or BraTS2024: they are alike, "
        "but 2024 has resection cavities",
    )
    parser.add_argument(
        "--target",
        choices=["lesion", "regions"],
        default="lesion",
        help="lesion: labels 1 brain and 2 lesion, which is every part of the tumour and the resection cavity; "
        "regions: brain, whole tumor, tumor core, enhancing tumor and resection cavity as overlapping regions of "
        "nnU-Net (default: %(default)s)",
    )
    add_brain_arguments(parser, stripped=True)
    add_lesion_arguments(parser)
    add_role_arguments(parser)
    add_common_arguments(parser, default_name="BraTS")


def run(args: argparse.Namespace) -> int:
    """Convert the release; see ``add_arguments``."""
    if len(set(args.sequences)) != len(args.sequences):
        raise InputError(f"--sequences names one twice: {' '.join(args.sequences)}.")
    year, cases = list_cases(args.release, args.sequences, args.year)
    print(f"{args.release} is BraTS {year}.")
    reader = partial(tumour, dict(RELEASES[year].parts), args.target == "lesion")
    origin = {"sequences": args.sequences, "year": year, "target": args.target}
    return convert_lesion_release(args, cases, describe(year, args.sequences, args.target), reader, origin)


def describe(year: str, sequences: Sequence[str], target: str) -> DatasetDescription:
    """Names, labels and, for ``regions``, regions of the dataset.

    A region's values are one above those of ``PARTS``, as the brain is 1.
    """
    present = {name: value + 1 for name, value in PARTS.items() if value in RELEASES[year].parts.values()}
    regions: dict[str, list[int]] = {
        "brain": [1, *present.values()],
        "whole_tumor": [CORE + 1, EDEMA + 1, ENHANCING + 1],
        "tumor_core": [CORE + 1, ENHANCING + 1],
        "enhancing_tumor": [ENHANCING + 1],
    }
    class_order = [1, EDEMA + 1, CORE + 1, ENHANCING + 1]
    if "resection_cavity" in present:
        regions["resection_cavity"] = [CAVITY + 1]
        class_order.append(CAVITY + 1)
    has_regions = target == "regions"
    return DatasetDescription(
        channel_names=[SEQUENCES[sequence] for sequence in sequences],
        labels={"background": 0, "brain": 1, **present} if has_regions else BRAIN_AND_LESION,
        roi_labels=["brain"] if has_regions else ["brain", "lesion"],
        converted_by="nnunet-anomaly convert brats",
        description=f"Skull-stripped MR of the head with glioma, BraTS {year}.",
        reference="Menze et al., IEEE Transactions on Medical Imaging 34 (2015) 1993-2024, "
        "doi:10.1109/TMI.2014.2377694; Bakas et al., Scientific Data 4 (2017) 170117, doi:10.1038/sdata.2017.117",
        licence="See the release; it needs a registration.",
        release=year,
        regions=regions if has_regions else None,
        regions_class_order=class_order if has_regions else None,
    )


# ---- the release on the disk


def list_cases(release: Path, sequences: Sequence[str], year: str | None) -> tuple[str, list[Case]]:
    """The release's year and all of its cases, sorted; each with its problem, if any.

    Raises:
        InputError: no case folder, case folders of more than one release, a GLI release of an unknown year, or a
            name mapping that is not readable.
    """
    if not release.is_dir():
        raise InputError(f"The release folder {release} does not exist.")
    folders: dict[str, list[Path]] = defaultdict(list)
    every = list(folders_in(release))
    for folder in every:
        if any(names.case.fullmatch(folder.name) for names in RELEASES.values()):
            folders[folder.name].append(folder)
    year = which_release(release, folders, year)
    known = read_mappings(every, year)
    cases = [
        _case(name, folders[name], release, year, sequences, known.get(name, Origin())) for name in sorted(folders)
    ]
    return year, cases


def folders_in(release: Path) -> Iterator[Path]:
    """The folder and those below it, links followed, down to that of a case within a folder of its own name."""
    for name, inner, _ in os.walk(release, followlinks=True):
        folder = Path(name)
        yield folder
        inner.sort()
        if len(folder.relative_to(release).parts) > DEEPEST:
            inner.clear()


def which_release(release: Path, folders: Mapping[str, Sequence[Path]], year: str | None) -> str:
    """Year of a release from the names of its cases and, for 2023 and 2024, of folders above them.

    Raises:
        InputError: see ``list_cases``.
    """
    alike = {frozenset(year for year, names in RELEASES.items() if names.case.fullmatch(case)) for case in folders}
    if not alike:
        raise InputError(
            f"{release} has no case folder of BraTS 2019, 2020, 2021 or GLI of 2023 or 2024. Folders are named as "
            "--help says."
        )
    if len(alike) > 1:
        found = ", ".join(sorted("/".join(sorted(years)) for years in alike))
        raise InputError(f"{release} has cases of more than one release of BraTS: {found}. Give the folder of one.")
    years = alike.pop()
    if year is not None and year not in years:
        raise InputError(f"--year is {year}, but the cases in {release} are named as in BraTS {'/'.join(years)}.")
    if len(years) > 1:
        said = _years_by_folders(release, folders)
        names = ", ".join(sorted(set(said.values())))
        if year is not None and said and year not in said:
            raise InputError(
                f"--year is {year}, but a folder's name says {'/'.join(said)}: {names}. Correct one of them."
            )
        if year is None and len(said) != 1:
            why = f"names of folders say both ({names})" if said else "no folder is named as BraTS2023 or BraTS2024"
            raise InputError(
                f"{release}: BraTS GLI of 2023 and of 2024 look alike, and {why}. Give --year 2023 or --year 2024; in "
                "2024 label 4 is the resection cavity."
            )
        years = frozenset(said)
    return year or next(iter(years))


def _years_by_folders(release: Path, folders: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Years, ascending, with a folder that is named for each: between release and cases, else the nearest one above."""
    between = {part for paths in folders.values() for path in paths for part in _parts(path, release)[:-1]}
    for names in (sorted(between), *([parent.name] for parent in release.resolve().parents)):
        found = {match["year"]: name for name in names for match in YEAR_IN_NAME.finditer(name)}
        if found:
            return dict(sorted(found.items()))
    return {}


def _parts(path: Path, release: Path) -> tuple[str, ...]:
    return (release.resolve().name, *path.relative_to(release).parts)


def _case(
    name: str, folders: Sequence[Path], release: Path, year: str, sequences: Sequence[str], known: Origin
) -> Case:
    """One case with its files, or with what is wrong with them."""
    match = RELEASES[year].case.fullmatch(name)
    assert match is not None
    files, notes = files_of(name, folders, RELEASES[year].suffixes)
    parts = [part.casefold() for folder in folders for part in _parts(folder, release)]
    held_out = any("validation" in part and "train" not in part for part in parts)
    needed = [*sequences, *([] if held_out and not files["seg"] else ["seg"])]
    listed = {role: ", ".join(path.relative_to(release).as_posix() for path in files[role]) for role in needed}
    wrong = [f"one {role} file is needed; found: {listed[role] or 'none'}" for role in needed if len(files[role]) != 1]
    sources = {SEQUENCES.get(role, "lesion"): files[role][0] for role in needed if len(files[role]) == 1}
    grade = next((part.upper() for part in parts if part in ("hgg", "lgg")), known.grade)
    site = match.groupdict().get("site", known.site)
    details = {
        "grade": grade,
        "sources": {role: path.relative_to(release).as_posix() for role, path in sources.items()},
        "notes": notes,
    }
    return Case(
        name,
        match["subject"],
        match.groupdict().get("visit"),
        sources,
        details,
        test=held_out,
        role=None if "seg" in needed else UNLABELLED,
        stratum=" ".join(word for word in (grade, site) if word) or None,
        problem="; ".join(wrong) or None,
    )


def files_of(
    name: str, folders: Sequence[Path], suffixes: Mapping[str, str]
) -> tuple[dict[str, list[Path]], list[str]]:
    """Files of a case by role, and a note where the seg has its odd name; what is named otherwise is none of them."""
    roles = {name + suffix: role for role, suffix in suffixes.items()}
    if odd := ODD_SEG_NAMES.get(name):
        roles[odd] = "seg"
    files: dict[str, list[Path]] = {role: [] for role in suffixes}
    for path in sorted(path for folder in folders for path in folder.glob("*.nii*")):
        if not path.name.endswith((".nii", ".nii.gz")) or path.name.startswith(".") or not path.is_file():
            continue
        if role := roles.get(case_name(path)):
            files[role].append(path)
    return files, [f"its seg is named {path.name}" for path in files["seg"] if case_name(path) == odd]


def tumour(parts: Mapping[int, int], is_binary: bool, case: Case, image: sitk.Image) -> tuple[np.ndarray, list[str]]:
    """Parts of the tumour on the image's grid: uint8 (z, y, x), values of ``PARTS``, or 1 for all; no notes.

    Raises:
        LabelError: labels that the release has not.
        GeometryError: the seg is on another grid.
    """
    import SimpleITK as sitk

    path = case.sources["lesion"]
    seg = sitk.GetArrayFromImage(on_grid_of(read_placed(path), image, f"seg {path.name}"))
    result = np.zeros(seg.shape, np.uint8)
    for value in np.unique(seg[seg != 0]):
        if value not in parts:
            raise LabelError(
                f"{path} has label {value:g}; this release of BraTS has {', '.join(map(str, parts))}. Is it another "
                "release (--year)?"
            )
        result[seg == value] = 1 if is_binary else parts[value]
    return result, []
