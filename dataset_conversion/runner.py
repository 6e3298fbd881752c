"""What all converters share on the command line and around their cases: arguments, resuming, the report."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_anomaly.dataset_conversion.integrity import as_text
from nnunet_anomaly.dataset_conversion.splits import Splits, held_out_cases, read_id_list
from nnunet_anomaly.dataset_conversion.writer import DatasetDescription, DatasetWriter
from nnunet_anomaly.errors import InputError, NnunetFolderError
from nnunet_anomaly.files import load_json, made_from, nnunet_folder, run_cases


@dataclass(frozen=True)
class Case:
    """One case of a release.

    Attributes:
        case_id: its name in the dataset.
        subject: whose scan it is; a subject's cases share a fold.
        visit: when it was made, as the release names it; ``None`` if unknown.
        sources: the files and folders that it is made from, by role.
        details: what else to record of it; JSON.
        test: whether the release itself holds it out.
        role: train, validation, test or unlabelled, where the converter draws roles; else ``None``.
        stratum: its scanner, site or the like; ``None`` if unknown.
        problem: why it cannot be converted as the release is now; ``None`` if it can be tried.
    """

    case_id: str
    subject: str
    visit: str | None = None
    sources: Mapping[str, Path] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    test: bool = False
    role: str | None = None
    stratum: str | None = None
    problem: str | None = None

    def made_from(self) -> Any:
        """Its files as they are now, and what is recorded of it, to tell whether it must be converted again."""
        return made_from([path for _, path in sorted(self.sources.items())], self.to_record())

    def to_record(self, **more: Any) -> dict[str, Any]:
        """What is recorded of it in ``cases.json``."""
        drawn = {} if self.role is None else {"role": self.role, "stratum": self.stratum}
        return {"subject": self.subject, "visit": self.visit, **drawn, **self.details, **more}


def other_folds(dataset: Path) -> Path | None:
    """The dataset's folder in nnUNet_preprocessed if it has other folds than the raw one; without either: None."""
    try:
        theirs = nnunet_folder("nnUNet_preprocessed") / dataset.name / "splits_final.json"
    except NnunetFolderError:
        return None
    ours = dataset / "splits_final.json"
    if not ours.is_file() or not theirs.is_file():
        return None
    folds = [[{part: set(split[part]) for part in split} for split in load_json(path)] for path in (ours, theirs)]
    return None if folds[0] == folds[1] else theirs.parent


def subjects_of(cases: Sequence[Case]) -> dict[str, str]:
    """Subject of every case."""
    return {case.case_id: case.subject for case in cases}


def add_common_arguments(parser: argparse.ArgumentParser, default_name: str) -> None:
    """The arguments that every converter has."""
    parser.add_argument("-d", type=int, required=True, metavar="ID", help="number of the new dataset, for example 101")
    parser.add_argument(
        "--name", default=default_name, help="name of the new dataset: DatasetXXX_NAME (default: %(default)s)"
    )
    parser.add_argument(
        "--test-list",
        type=Path,
        metavar="FILE",
        help="cases or subjects, one a line, that go to imagesTs and labelsTs and into no fold",
    )
    parser.add_argument("-np", type=int, default=4, metavar="N", help="cases at the same time (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="print what became of every case")


def dataset_folder(args: argparse.Namespace) -> Path:
    """``$nnUNet_raw/DatasetXXX_Name`` for the arguments; not made yet.

    Raises:
        NnunetFolderError: nnUNet_raw is not set.
        InputError: number or name cannot be a dataset's.
    """
    if not 1 <= args.d <= 999:
        raise InputError(f"-d is {args.d}; nnU-Net's dataset numbers go from 1 to 999.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", args.name):
        raise InputError(f"--name is '{args.name}'; use letters, digits, '_' and '-' alone.")
    return nnunet_folder("nnUNet_raw") / f"Dataset{args.d:03d}_{args.name}"


def held_out_of(args: argparse.Namespace, cases: Sequence[Case]) -> set[str]:
    """Names of the cases that are held out, by the release itself or by ``--test-list``."""
    names = [case.case_id for case in cases if case.test]
    names += read_id_list(args.test_list) if args.test_list is not None else []
    return held_out_cases(names, subjects_of(cases))


def open_writer(
    args: argparse.Namespace, cases: Sequence[Case], description: DatasetDescription, options: Mapping[str, Any]
) -> DatasetWriter:
    """Take the dataset folder for a release (see ``DatasetWriter.claim``).

    Args:
        args: parsed; with ``release``, the release's folder.
        cases: all cases of the release.
        description: for dataset.json.
        options: further options that change what is written; going on with other ones is refused.

    Raises:
        InputError: no case can be tried, two cases have one name, or the folder holds something else.
    """
    twice = sorted(name for name, number in Counter(case.case_id for case in cases).items() if number > 1)
    if twice:
        raise InputError(f"{args.release}: more than one case is named {', '.join(twice[:8])}.")
    if not any(case.problem is None for case in cases):
        hint = f" The first one, {cases[0].case_id}: {cases[0].problem}" if cases else ""
        raise InputError(f"{args.release} has no case that could be converted.{hint}")
    origin = {
        "converted_by": description.converted_by,
        "release": str(args.release.resolve()),
        "test_cases": sorted(held_out_of(args, cases)),
        **options,
    }
    sources = {case.case_id: case.made_from() for case in cases}
    writer = DatasetWriter(dataset_folder(args), description, origin, sources)
    writer.claim([case.case_id for case in cases])
    return writer


def convert_cases(
    args: argparse.Namespace,
    writer: DatasetWriter,
    cases: Sequence[Case],
    function: Callable[..., Any],
    extra: Sequence[Any],
    make_splits: Callable[[dict[str, str]], Splits],
) -> int:
    """Convert what is not finished yet, describe the dataset, print the report.

    Args:
        args: parsed common arguments.
        writer: of ``open_writer``.
        cases: all cases of the release.
        function: ``function(writer, case, test, *extra)`` converts one case; at module level.
        extra: further arguments of ``function``.
        make_splits: subject of every training case to folds. It gets those that cannot be converted too, so that
            mending them moves no other case to another fold.

    Returns:
        Exit code: 0, or 1 if a case failed.
    """
    held_out = set(writer.origin["test_cases"])
    splits = make_splits(subjects_of([case for case in cases if case.case_id not in held_out]))
    kept = {case.case_id for case in cases if writer.is_finished(case.case_id)}
    pending = [case for case in cases if case.problem is None and case.case_id not in kept]
    outcome = run_cases(
        function,
        [(case.case_id, (writer.for_case(case.case_id), case, case.case_id in held_out, *extra)) for case in pending],
        args.np,
        f"Converting to {writer.folder.name}",
    )
    problems = {case.case_id: case.problem for case in cases if case.problem and case.case_id not in kept}
    failed = {**problems, **outcome.failed}
    report = writer.finish([case.case_id for case in cases], failed, splits)
    if args.verbose:
        for case in cases:
            name = case.case_id
            print(f"{name}: {'kept' if name in kept else 'failed' if name in failed else 'converted'}")
    print(f"{len(outcome.done)} cases converted now, {len(kept)} kept from before.")
    print(as_text(report))
    if other := other_folds(writer.folder):
        print(
            f"WARNING: {other} has other folds, from an earlier conversion. nnU-Net will not plan on top of it, and "
            "networks trained by it do not fit the new folds: remove that folder, or convert to another number.",
            file=sys.stderr,
        )
    if failed:
        print("Mend the failed cases and run the same command again: finished cases are kept.", file=sys.stderr)
    return 1 if failed else 0
