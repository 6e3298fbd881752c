"""Head MR of healthy people, to learn from them alone what is normal: IXI, OASIS, or any folder of NIfTI files.

Every file is a case of one channel. The brain is label 1, because nnU-Net cannot plan for label maps of nothing but
background, and because it is the region in which anomalies are looked for later.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_anomaly.dataset_conversion.brain import (
    MASK_SUFFIXES,
    BrainOptions,
    add_brain_arguments,
    brain_mask,
    brain_options,
    check_in_brain,
    nifti_files,
    prepared,
    with_brain_masks,
)
from nnunet_anomaly.dataset_conversion.grids import read_oriented
from nnunet_anomaly.dataset_conversion.lesions import mask_image
from nnunet_anomaly.dataset_conversion.roles import add_role_arguments, make_folds, role_options, save_roles, with_roles
from nnunet_anomaly.dataset_conversion.runner import Case, add_common_arguments, convert_cases, open_writer
from nnunet_anomaly.dataset_conversion.splits import some_of
from nnunet_anomaly.dataset_conversion.writer import DatasetDescription, DatasetWriter
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.label_maps import case_name

EXAMPLE = "nnunet-anomaly convert healthy /data/IXI-T1 --brain-masks /data/IXI-masks -d 300 --validation 58 --n4"
LAYOUT = """\
Every .nii.gz or .nii file at any depth is a case, but for brain masks. Subject, visit and site are told from names like
  IXI     IXI002-Guys-0828-T1.nii.gz                       subject IXI002, site Guys
  OASIS   OAS1_0001_MR1..., OAS2_0001_MR1..., OAS30001_..._d0129..., in the name of a file or of a folder above it
  BIDS    sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz, in the name of the file or of the folders above it
In all other folders every file is a subject, unless a table names subjects (--strata). OASIS-1 and OASIS-2 come as
Analyze files, which do not tell left from right: convert them to NIfTI first.

"""
SESSION = re.compile(r"ses-[A-Za-z0-9]+")
NAMES = (
    re.compile(r"(?P<subject>IXI\d+)-(?P<site>[A-Za-z]+)-"),
    re.compile(r"(?P<subject>OAS[12]_\d{4})_(?P<visit>MR\d+)"),
    re.compile(r"(?P<subject>OAS3\d{4})_(?:\w*?_)??(?:ses-)?(?P<visit>d\d{4})"),
    re.compile(r"(?<![A-Za-z0-9])(?P<subject>sub-[A-Za-z0-9]+)(?:_(?P<visit>ses-[A-Za-z0-9]+))?"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``nnunet-anomaly convert healthy``."""
    parser.add_argument("release", type=Path, metavar="RELEASE", help="folder of the images, at any depth")
    parser.add_argument(
        "--pattern",
        default="*",
        metavar="GLOB",
        help="take only files whose names fit, such as '*-T1.nii.gz' (default: all)",
    )
    parser.add_argument("--channel", default="T1", metavar="NAME", help="name of the channel (default: %(default)s)")
    add_brain_arguments(parser, stripped=False)
    add_role_arguments(parser)
    add_common_arguments(parser, default_name="Healthy")


def run(args: argparse.Namespace) -> int:
    """Convert the folder; see ``add_arguments``."""
    options = brain_options(args)
    by_name = list_cases(args.release, args.pattern, options.masks)
    cases = with_brain_masks(with_roles(args, by_name), options)
    check_visits(cases, by_name, args.release)
    if said := what_may_be_one_subject(cases, args.release):
        print(f"WARNING: {said}", file=sys.stderr)
    more = {
        "pattern": args.pattern,
        "channel": args.channel,
        "brain": options.to_origin(),
        **role_options(args, cases),
    }
    writer = open_writer(args, cases, describe(args.channel), more)
    save_roles(args, writer, cases)
    return convert_cases(args, writer, cases, convert_case, (options,), lambda subjects: make_folds(cases, subjects))


def describe(channel: str) -> DatasetDescription:
    """Names and texts of the dataset."""
    return DatasetDescription(
        channel_names=[channel],
        labels={"background": 0, "brain": 1},
        roi_labels=["brain"],
        converted_by="nnunet-anomaly convert healthy",
        description="MR of the head of healthy people with the brain.",
        reference="See the release.",
        licence="See the release.",
    )


def list_cases(release: Path, pattern: str, masks: Path | None) -> list[Case]:
    """Every image file below the folder as a case, sorted; what lies in a folder of masks within it is none.

    A case has its file's name; where two files have one name, the names of the folders come before it.

    Raises:
        InputError: there is no such folder or no such file, or two files would be cases of one name.
    """
    not_an_image = "mask" if masks is None else tuple(suffix for suffix in MASK_SUFFIXES if suffix)
    inner = masks if masks is not None and masks.resolve() != release.resolve() else None
    fitting = [
        path
        for path in nifti_files(release)
        if path.match(pattern) and (inner is None or not path.resolve().is_relative_to(inner.resolve()))
    ]
    names = set(map(case_name, fitting))
    # X_bet is the mask or the stripped image of X; where there is no X it is an image like any other
    is_mask = {
        name: name.endswith(not_an_image) and (not name.endswith("_bet") or name.removesuffix("_bet") in names)
        for name in names
    }
    files = [path for path in fitting if not is_mask[case_name(path)]]
    if not files:
        analyze = next((path for path in release.rglob("*.img") if not path.name.startswith(".")), None)
        advice = f" {analyze} is of Analyze format: convert such files to NIfTI first." if analyze else ""
        left_out = f" Left out, as they are named like masks: {some_of(sorted(names))}." if names else ""
        raise InputError(f"{release} has no NIfTI image that fits '{pattern}'.{left_out}{advice}")
    number = Counter(map(case_name, files))
    cases = [_case(path, release, number[case_name(path)] > 1) for path in files]
    number = Counter(case.case_id for case in cases)
    alike = [case.details["sources"]["image"] for case in cases if number[case.case_id] > 1]
    if alike:
        raise InputError(f"{release} has files that would be cases of one name: {some_of(alike)}. Rename some of them.")
    return cases


def check_visits(cases: Sequence[Case], by_name: Sequence[Case], release: Path) -> None:
    """Raise an ``InputError`` where a subject's visit has several images: they may well be of different sequences.

    Those are one subject that are one by their names and, where there is a table of subjects, by the table too: it
    tells apart people whose names are alike. Names that tell no subject are not compared.

    Args:
        cases: with subjects by the table, where there is one.
        by_name: the same in this order, with subjects by their names.
        release: for the message.
    """
    visits = [(case.subject, named.subject, case.visit) for case, named in zip(cases, by_name, strict=True)]
    number = Counter(visits)
    doubled = [case.case_id for case, visit in zip(cases, visits, strict=True) if number[visit] > 1]
    if doubled:
        raise InputError(
            f"{release} has more than one image of the same visit of a subject: {some_of(doubled)}. Choose one "
            "sequence and one run by --pattern, such as '*-T1.nii.gz'. If they are of different people, name each in "
            "the column subject of a table (--strata)."
        )


def _case(path: Path, release: Path, by_folders: bool) -> Case:
    """One image file."""
    words = path.relative_to(release).parts[:-1] if by_folders else ()
    case_id = re.sub(r"[^A-Za-z0-9_-]", "_", "_".join([*words, case_name(path)]))
    details = {"sources": {"image": path.relative_to(release).as_posix()}}
    case = Case(case_id, case_id, None, {"image": path}, details)
    folders = path.relative_to(release).parts[-2::-1]
    session = next((name for name in folders if SESSION.fullmatch(name)), None)
    for name in (case_name(path), *folders):
        for known in NAMES:
            if match := known.search(name):
                found = match.groupdict()
                visit = found.get("visit") or session
                return replace(case, subject=found["subject"], visit=visit, stratum=found.get("site"))
    return case


def what_may_be_one_subject(cases: Sequence[Case], release: Path) -> str | None:
    """What to say of files that are each taken as a subject of their own, since no name tells one; ``None`` without.

    Those that lie in one folder below the release are likely to be of one person.
    """
    unknown = [case.sources["image"].relative_to(release) for case in cases if case.subject == case.case_id]
    folders = Counter(path.parts[0] for path in unknown if len(path.parts) > 1)
    shared = [f"{name} ({number})" for name, number in sorted(folders.items()) if number > 1]
    if not shared and len(unknown) < 2:
        return None
    what = f"files of one folder: {some_of(shared)}" if shared else f"{len(unknown)} files, such as {unknown[0]}"
    return (
        f"each file is taken as a subject of its own where its name tells none ({what}). If some are of one person, "
        "who would be trained on and tested on, name subjects by --strata with a table of the columns case and subject."
    )


def convert_case(writer: DatasetWriter, case: Case, test: bool, options: BrainOptions) -> None:
    """Convert one case: its image as asked for, and its brain as label 1."""
    image = read_oriented(case.sources["image"])
    brain = brain_mask(case, [image], options)
    check_in_brain(case.case_id, [image], writer.description.channel_names, brain)
    label = mask_image(brain, image)
    writer.write_case(case.case_id, [prepared(image, brain, options)], label, test=test, details=case.to_record())
