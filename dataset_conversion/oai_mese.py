"""The OAI's multi-echo spin-echo series of the knee (T2 maps), and any other multi-echo DICOM series.

Networks see the three first echoes, one channel each; all echoes are kept beside them for the fit of T2
(``nnunet_anomaly/multi_echo.py``). Labels are of femoral cartilage (``cartilage_masks``). The side of the knee, without
which nobody knows medial from lateral later, has to be known: by the header or by ``--side``.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_anomaly.dataset_conversion.oai_tree import VISIT, all_series_folders
from nnunet_anomaly.dataset_conversion.roles import TEST, TRAIN, VALIDATION
from nnunet_anomaly.dataset_conversion.runner import Case, add_common_arguments, convert_cases, open_writer
from nnunet_anomaly.dataset_conversion.splits import Splits, folds_by_subject
from nnunet_anomaly.dataset_conversion.thomas_split import SUBJECTS, role_of
from nnunet_anomaly.dataset_conversion.writer import DatasetDescription, DatasetWriter, check_images
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.multi_echo import MultiEcho
from nnunet_anomaly.sides import LEFT, RIGHT

if TYPE_CHECKING:
    import SimpleITK as sitk

    from nnunet_anomaly.dataset_conversion.cartilage_masks import MaskFiles

EXAMPLE = "nnunet-anomaly convert oai-mese /data/OAI --labels /data/T2_masks --years 4=48m 8=96m -d 104 -np 8"
LAYOUT = """RELEASE is one of

  an OAI tree   [results/]48m/{0.C.2,0.E.1}/<subject>/<date>/<barcode>/     series 'SAG_T2_MAP_RIGHT' or '_LEFT'
  one series    a folder of DICOM files, or a .zip of them
  many series   a folder with such folders or .zip files

and the folder after --labels has, at any depth, for NAME <subject>_<year>, <subject>_<visit> or a case's name

  NAME_0.mat, NAME_1.mat, ...   one slice each, key femoral_cartilage, (rows, columns)
  NAME.npy                      (slices, rows, columns)
  NAME_fc.nii.gz                transposed, (columns, rows, slices); its header is not looked at
  NAME.nii.gz                   a mask on the grid of the image

"""

CHANNELS = ("MESE_echo1", "MESE_echo2", "MESE_echo3")
DESCRIPTION = DatasetDescription(
    channel_names=CHANNELS,
    labels={"background": 0, "femoral_cartilage": 1},
    roi_labels=["femoral_cartilage"],
    converted_by="nnunet-anomaly convert oai-mese",
    description="Sagittal multi-echo spin-echo MR of the knee, the three first echoes, with femoral cartilage.",
    reference="Thomas et al., Cartilage (2021), doi:10.1177/19476035211042406; images: Osteoarthritis Initiative",
    licence="See the source; the OAI's images are under its data use agreement.",
)
SEQUENCE = "T2_MAP"
THOMAS = "thomas"
# The knee that is scanned lies beside the scanner's middle, on its side. Nearer than this, its place tells nothing.
LEAST_OFF_CENTRE_MM = 30.0
PATIENT_ID, STUDY_DATE = "0010|0020", "0008|0020"
_MONTHS_A_YEAR = 12
_NAME_WITH_YEAR = re.compile(r"(?P<subject>\d{7})_(?P<year>\d{1,2})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``nnunet-anomaly convert oai-mese``."""
    from nnunet_anomaly.dataset_conversion.cartilage_masks import INSTANCE, SLICE_ORDERS

    parser.add_argument(
        "release", type=Path, metavar="RELEASE", help="folder of the OAI images, or a series, or a folder of series"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FOLDER",
        help="masks of femoral cartilage: series that have none are left out (default: no labels, all series go to "
        "imagesTs)",
    )
    parser.add_argument(
        "--years",
        nargs="+",
        default=[],
        metavar="YEAR=VISIT",
        help="which visit of the OAI a year in the labels' names means, such as 4=48m 8=96m (default: 12 months a year "
        "after the baseline, 00m, where there are labels of year 0; else it has to be said)",
    )
    parser.add_argument(
        "--label-slices",
        choices=SLICE_ORDERS,
        default=INSTANCE,
        help="in which order labels that are bare arrays count slices: by the InstanceNumbers of the images, by "
        "position along the slices' normal, or reversed (default: %(default)s)",
    )
    parser.add_argument(
        "--side",
        choices=[LEFT, RIGHT],
        help="the knee: series whose headers tell no side are of this one, and those of the other one are left out",
    )
    parser.add_argument(
        "--echoes", type=int, metavar="N", help="a series with another number of echoes fails (default: any from 3 on)"
    )
    parser.add_argument(
        "--split",
        choices=[THOMAS],
        help="thomas: the subjects of Thomas et al. 2021 alone, their test subjects in imagesTs and labelsTs, and one "
        "fold, which holds out their validation subjects (default: five folds by subject)",
    )
    add_common_arguments(parser, default_name="KneeMESE")


def run(args: argparse.Namespace) -> int:
    """Convert the release; see ``add_arguments``."""
    _check_options(args)
    cases, left_out = list_cases(args.release, args.labels, args.side, years_of(args.years))
    if args.split == THOMAS:
        cases, others = in_thomas_split(cases)
        left_out["of subjects that are not in the split"] = others
    for reason, number in left_out.items():
        if number:
            print(f"Left out: {number} series {reason}.")
    options = {
        "labels": str(args.labels.resolve()) if args.labels is not None else None,
        "label_slices": args.label_slices,
        "echoes": args.echoes,
        "split": args.split,
    }
    writer = open_writer(args, cases, DESCRIPTION, options)
    if args.labels is None:
        print("Without --labels there is nothing to train on: all series go to imagesTs.")
    make_splits = thomas_fold if args.split == THOMAS else folds_by_subject
    return convert_cases(args, writer, cases, convert_case, (args.label_slices, args.echoes), make_splits)


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if not args.release.exists():
        raise InputError(f"{args.release} does not exist.")
    if args.split is not None and args.labels is None:
        raise InputError("--split needs --labels: without them there is nothing to train on.")
    if args.split is not None and args.test_list is not None:
        raise InputError("--split names test subjects and --test-list names them too: give one of the two.")
    if args.labels is None and (args.years or args.test_list is not None):
        raise InputError("--years and --test-list need --labels: without them every series goes to imagesTs.")
    if args.echoes is not None and args.echoes < len(CHANNELS):
        raise InputError(f"--echoes is {args.echoes}; {len(CHANNELS)} are needed at least.")


# ---- what is in the release


@dataclass(frozen=True)
class Scan:
    """One series of the release.

    Attributes:
        name: of its case.
        subject: whose it is.
        visit: when it was made; ``None`` if unknown.
        source: its folder, or ``.zip`` file.
        side: by the header; ``None`` if it tells none.
        label_names: names that a label of it may have.
        notes: on its side, for the report.
        problem: why it cannot be converted; ``None`` if it can be tried.
    """

    name: str
    subject: str
    visit: str | None
    source: Path
    side: str | None
    label_names: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    problem: str | None = None


def list_cases(
    release: Path, labels: Path | None, side: str | None, years: Mapping[str, str]
) -> tuple[list[Case], dict[str, int]]:
    """All cases, each with its problem, if any, and how many series are left out for what reason.

    Args:
        release: see ``LAYOUT``.
        labels: folder of the masks; ``None``: all cases are test cases without labels.
        side: of ``--side``.
        years: year in the names of labels to visit; may be empty.

    Raises:
        InputError: no series, no label, or it is unknown which visits the labels' years mean.
    """
    from nnunet_anomaly.dataset_conversion.cartilage_masks import masks_in

    masks = masks_in(labels) if labels is not None else {}
    scans = oai_scans(release, visits_of_years(masks, years)) or other_scans(release)
    if not scans:
        raise InputError(
            f"{release} has no multi-echo series: neither DICOM files nor .zip files of them, nor an OAI tree with a "
            f"{SEQUENCE} series (--help shows how it lies on the disk)."
        )
    chosen = [replace(scan, side=scan.side or side) for scan in scans if side is None or scan.side in (side, None)]
    if not chosen:
        raise InputError(
            f"By their headers all {len(scans)} series of {release} are of the other knee than --side {side}."
        )
    left_out = {"of the other knee": len(scans) - len(chosen)}
    if labels is None:
        return [_case(scan, release) for scan in chosen], left_out
    left_out["without a label"] = sum(not scan.label_names & masks.keys() for scan in chosen)
    cases = _labelled_cases(chosen, masks, release, labels)
    orphans = masks.keys() - {name for scan in scans for name in scan.label_names}
    cases += [
        Case(name, name.split("_")[0], problem=f"it has a label, {_listed(masks[name][0], labels)}, but no series")
        for name in orphans
    ]
    return sorted(cases, key=lambda case: case.case_id), left_out


def oai_scans(root: Path, years: Mapping[str, str]) -> list[Scan]:
    """The T2 series of an OAI tree, of which a knee has one a visit; none where the root is no such tree."""
    from tqdm import tqdm

    from nnunet_anomaly.dataset_conversion.dicom_series import SERIES_DESCRIPTION, first_tags, side_by_tags

    folders = all_series_folders(root) if root.is_dir() else []
    of_case: dict[str, list[Scan]] = defaultdict(list)
    for visit, subject, folder in tqdm(
        folders, desc=f"Looking for {SEQUENCE} series", unit="folder", disable=not folders
    ):
        tags = first_tags(folder)
        if SEQUENCE not in tags.get(SERIES_DESCRIPTION, "").upper():
            continue
        side, notes = side_by_tags(tags)
        name = f"{subject}_{visit}" + (f"_{side}" if side else "")
        stems = {name, f"{subject}_{visit}", *(f"{subject}_{year}" for year in years if years[year] == visit)}
        of_case[name].append(Scan(name, subject, visit, folder, side, frozenset(stems), tuple(notes)))
    for name, found in of_case.items():
        if len(found) > 1:
            listed = ", ".join(str(scan.source.relative_to(root)) for scan in found)
            problem = f"{len(found)} {SEQUENCE} series of one knee and visit: {listed}. Leave one of them"
            of_case[name] = [replace(found[0], problem=problem)]
    return [scan for (scan,) in of_case.values()]


def other_scans(release: Path) -> list[Scan]:
    """A series that is given itself, or all folders and ``.zip`` files in a folder that hold one; sorted.

    The subject is the PatientID, where there is one, else each series has its own; the visit is the date of the study.
    """
    from nnunet_anomaly.dataset_conversion.dicom_series import SERIES_UID, first_tags, side_by_tags
    from nnunet_anomaly.dataset_conversion.multi_echo_series import is_archive, opened

    inner = sorted(release.rglob("*")) if release.is_dir() else []
    scans = []
    sources_of: dict[str, list[Path]] = defaultdict(list)
    for source in [release, *inner]:
        if not (source.is_dir() or is_archive(source)):
            continue
        parts = source.relative_to(release).parts or (source.resolve().name,)
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", "_".join(parts).removesuffix(".zip"))
        try:
            with opened(source) as folder:
                tags = first_tags(folder)
        except InputError as error:
            scans.append(Scan(name, name, None, source, None, frozenset([name]), problem=str(error)))
            continue
        if tags:
            side, notes = side_by_tags(tags)
            subject, visit = tags.get(PATIENT_ID) or name, date_of(tags)
            scans.append(Scan(name, subject, visit, source, side, frozenset([name]), tuple(notes)))
            sources_of[tags[SERIES_UID]].append(source)
    problem_of = {
        source: f"{', '.join(map(str, sources))} hold one series (one SeriesInstanceUID): put its files into one "
        "folder, or leave one of the copies"
        for sources in sources_of.values()
        for source in sources
        if len(sources) > 1
    }
    return [replace(scan, problem=problem_of.get(scan.source, scan.problem)) for scan in scans]


def date_of(tags: Mapping[str, str]) -> str | None:
    """The date of the study, YYYYMMDD; ``None`` where there is none, as anonymised ones are of year 1."""
    date = tags.get(STUDY_DATE, "")
    return date if date.isdecimal() and int(date[:4]) > 1900 else None


def years_of(options: Sequence[str]) -> dict[str, str]:
    """``["4=48m"]`` as ``{"4": "48m"}``.

    Raises:
        InputError: not so.
    """
    pairs = [option.partition("=") for option in options]
    wrong = [
        option
        for option, (year, _, visit) in zip(options, pairs, strict=True)
        if not year.isdecimal() or not VISIT.fullmatch(visit)
    ]
    if wrong:
        raise InputError(f"--years {wrong[0]}: give year and visit as in 4=48m.")
    return {year: visit for year, _, visit in pairs}


def visits_of_years(names: Sequence[str] | Mapping[str, Any], years: Mapping[str, str]) -> dict[str, str]:
    """The visit that every year in the names of labels means.

    Years 4 and 8, which the authors' code uses, are ambiguous: their paper has the baseline and year 4.

    Raises:
        InputError: a year is not in ``years``, or without these there is no year 0 to tell that they count from the
            baseline.
    """
    found = sorted({match["year"] for name in names if (match := _NAME_WITH_YEAR.fullmatch(name))}, key=int)
    if years:
        missing = [year for year in found if year not in years]
        if missing:
            raise InputError(f"There are labels of year {', '.join(missing)}, for which --years names no visit.")
        return dict(years)
    visits = {year: f"{_MONTHS_A_YEAR * int(year):02d}m" for year in found}
    if found and "0" not in found:
        given = " ".join(f"{year}={visit}" for year, visit in visits.items())
        shifted = " ".join(f"{year}={_MONTHS_A_YEAR * (int(year) - int(found[0])):02d}m" for year in found)
        raise InputError(
            f"Labels are named by year {' and '.join(found)}, none by year 0: nothing tells whether these count from "
            f"the OAI's baseline (--years {given}) or from the first one (--years {shifted}). Give one of the two."
        )
    return visits


def _labelled_cases(
    scans: Sequence[Scan], masks: Mapping[str, Sequence[MaskFiles]], release: Path, labels: Path
) -> list[Case]:
    """Cases of the series that have a label; one that may be of two knees is the problem of both."""
    wanted_by: dict[str, list[str]] = defaultdict(list)
    for scan in scans:
        for name in scan.label_names & masks.keys():
            wanted_by[name].append(scan.name)
    cases = []
    for scan in scans:
        names = sorted(scan.label_names & masks.keys())
        others = sorted({other for name in names for other in wanted_by[name]} - {scan.name})
        if others:
            problem = f"the label {', '.join(names)} may be of {', '.join(others)} too: choose the knee with --side"
            scan = replace(scan, problem=scan.problem or f"{problem}, or name the label {scan.name}")
        if names:
            cases.append(_case(scan, release, [mask for name in names for mask in masks[name]], labels))
    return cases


def _case(scan: Scan, release: Path, masks: Sequence[MaskFiles] = (), labels: Path | None = None) -> Case:
    """One case of a series with the files of its label, or a test case without; two labels are its problem."""
    shown = scan.source.name if scan.source == release else scan.source.relative_to(release).as_posix()
    details: dict[str, Any] = {"laterality": scan.side, "sources": {"series": shown}, "notes": list(scan.notes)}
    sources, problem = {"series": scan.source}, scan.problem
    if labels is not None:
        details["sources"]["label"] = _listed(masks[0], labels)
        details["label_kind"] = masks[0].kind
        sources.update({f"label_{index:04d}": path for index, path in enumerate(masks[0].paths)})
        if len(masks) > 1:
            problem = problem or f"more than one label: {'; '.join(_listed(mask, labels) for mask in masks)}"
    return Case(scan.name, scan.subject, scan.visit, sources, details, test=labels is None, problem=problem)


def _listed(mask: MaskFiles, labels: Path) -> str:
    names = [path.relative_to(labels).as_posix() for path in mask.paths]
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} slices)"


# ---- the authors' split


def in_thomas_split(cases: Sequence[Case]) -> tuple[list[Case], int]:
    """The cases of the paper's subjects with their roles, and how many others there are; prints what is missing.

    Raises:
        InputError: there is none of the paper's subjects.
    """
    chosen = [replace(case, role=role, test=role == TEST) for case in cases if (role := role_of(case.subject))]
    if not chosen:
        raise InputError("None of the cases is of a subject of Thomas et al. (supplement SM.1).")
    here = {case.subject for case in chosen}
    numbers = Counter(case.role for case in chosen)
    for role, subjects in SUBJECTS.items():
        print(
            f"Split of Thomas et al., {role}: {len(subjects & here)} of {len(subjects)} subjects, {numbers[role]} MRIs."
        )
    return chosen, len(cases) - len(chosen)


def thomas_fold(subjects: Mapping[str, str]) -> Splits:
    """The one fold of the paper: trained on its training subjects, validated on its validation subjects."""
    of = {role: sorted(case for case, subject in subjects.items() if role_of(subject) == role) for role in SUBJECTS}
    return [{"train": of[TRAIN], "val": of[VALIDATION]}]


# ---- one case


def convert_case(writer: DatasetWriter, case: Case, test: bool, label_slices: str, number: int | None) -> None:
    """Convert one case into the dataset.

    Raises:
        InputError: see ``multi_echo_series`` and ``cartilage_masks``; too few echoes, or an unknown side.
    """
    from nnunet_anomaly.dataset_conversion.cartilage_masks import MaskFiles, read_mask
    from nnunet_anomaly.dataset_conversion.multi_echo_series import only_series, opened, read_echo_series

    source = case.sources["series"]
    with opened(source) as folder:
        series = read_echo_series(only_series(folder))
    found, first = len(series.images), series.images[0]
    if found < len(CHANNELS) or (number is not None and found != number):
        listed = ", ".join(f"{time_ms:g}" for time_ms in series.echo_times_ms)
        wanted = f"--echoes asks for {number}" if number is not None else f"at least {len(CHANNELS)} are needed"
        raise InputError(f"{source} has {found} echoes ({listed} ms); {wanted}.")
    check_images(case.case_id, series.images, [f"of the echo at {time_ms:g} ms" for time_ms in series.echo_times_ms])
    notes = [*case.details["notes"], *place_notes(first, case.details["laterality"], source), *series.notes]
    label = None
    if "label_kind" in case.details:
        paths = tuple(path for role, path in sorted(case.sources.items()) if role.startswith("label_"))
        files = MaskFiles(case.details["label_kind"], paths)
        label, label_notes = read_mask(files, series.images[1], series.instance_numbers, label_slices)
        notes += label_notes
    side = case.details["laterality"]
    stack = MultiEcho(series.images, series.echo_times_ms, side, series.uid, case.subject, case.visit)
    details = case.to_record(echo_times_ms=list(series.echo_times_ms), notes=notes)
    writer.write_case(case.case_id, series.images[: len(CHANNELS)], label, test=test, multi_echo=stack, details=details)


def place_notes(image: sitk.Image, side: str | None, source: Path) -> list[str]:
    """What the place of a knee in the scanner says of its side.

    Of two legs that lie in the scanner the left one lies to the patient's left of its middle. That is no proof, since
    the patient may lie aside: where it contradicts the side, a note says so.

    Raises:
        InputError: the side is unknown; the message tells where the knee lies.
    """
    middle = [(size - 1) / 2 for size in image.GetSize()]
    left_mm = image.TransformContinuousIndexToPhysicalPoint(middle)[0]
    lies = LEFT if left_mm > 0 else RIGHT
    place = (
        f"the middle of its slices lies {abs(left_mm):.0f} mm to the {lies} of the scanner's, where a {lies} knee lies"
    )
    tells = abs(left_mm) >= LEAST_OFF_CENTRE_MM
    if side is None:
        hint = f" By geometry, {place}." if tells else ""
        raise InputError(f"{source}: the side of the knee is unknown; give --side left or right.{hint}")
    if tells and lies != side:
        return [f"it is a {side} knee by header or --side, but {place}: is the side right?"]
    return []
