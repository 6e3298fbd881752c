"""Which case is for what: validation and test cases drawn by a seed, by subject and in proportion to strata.

A seed paper's split (Bengs et al. 2021: 133 validation and 202 test images of BraTS 2019; 121 and 183 of ATLAS; 201
validation images of 2008 healthy ones, stratified by scanner) is made again by three numbers.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunet_anomaly.dataset_conversion.case_table import check_rows, read_case_table, with_table
from nnunet_anomaly.dataset_conversion.runner import Case, held_out_of, subjects_of
from nnunet_anomaly.dataset_conversion.splits import Splits, folds_by_subject, order_key
from nnunet_anomaly.dataset_conversion.writer import DatasetWriter
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import save_json

TRAIN, VALIDATION, TEST, UNLABELLED = "train", "validation", "test", "unlabelled"


def add_role_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the converters that draw roles."""
    parser.add_argument(
        "--validation",
        type=int,
        default=0,
        metavar="N",
        help="draw N labelled cases for validation: they stay in imagesTr, and the one fold of splits_final.json holds "
        "them out; where no case is left to train on, there are five folds as usual (default: none)",
    )
    parser.add_argument(
        "--test",
        type=int,
        default=0,
        metavar="N",
        help="draw N labelled cases for imagesTs and labelsTs; not together with --test-list (default: none)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of both draws (default: %(default)s)")
    parser.add_argument(
        "--strata",
        type=Path,
        metavar="CSV",
        help="table with the columns case (a case or a subject) and stratum (its scanner, site ...), for folds and "
        "draws in proportion, or subject (whose scan it is), or both; what it does not tell is by file names and "
        "folders",
    )


def with_roles(args: argparse.Namespace, cases: Sequence[Case]) -> list[Case]:
    """The cases with stratum, subject, role and ``test``.

    Cases with a problem are drawn too, so that mending them moves no other.

    Raises:
        InputError: a number is negative or cannot be drawn by whole subjects, the table of strata is not usable, or no
            case is left for imagesTr.
        LeakageError: see ``held_out_of``.
    """
    if args.test and args.test_list is not None:
        raise InputError("--test draws test cases and --test-list names them: give one of the two.")
    table = read_case_table(args.strata) if args.strata is not None else {}
    named = cases
    cases = with_table(named, table)
    held_out = held_out_of(args, cases)
    cases = [replace(case, test=case.case_id in held_out) for case in cases]
    free = [case for case in cases if not case.test]
    if args.strata is not None:  # of those alone that are drawn or dealt out to folds
        check_rows(args.strata, table, [case for case in named if case.case_id not in held_out])
    test = draw(free, args.test, args.seed, "--test")
    validation = draw([case for case in free if case.case_id not in test], args.validation, args.seed, "--validation")
    if len(test) == len(free):
        raise InputError(
            f"{args.release}: no case is left for imagesTr, and nnU-Net needs one: of {len(cases)} cases "
            f"{len(cases) - len(free)} are held out by the release or by --test-list, and --test draws {len(test)}. "
            "Draw fewer, or give the folder that holds the training part too."
        )
    return [
        replace(case, test=case.test or case.case_id in test, role=case.role or _role(case, test, validation))
        for case in cases
    ]


def _role(case: Case, test: set[str], validation: set[str]) -> str:
    if case.test or case.case_id in test:
        return TEST
    return VALIDATION if case.case_id in validation else TRAIN


def stratum_of_subjects(cases: Sequence[Case]) -> dict[str, str]:
    """Stratum of every subject; one whose cases are of several has all their names, one without any ``unknown``."""
    found = defaultdict(set)
    for case in cases:
        found[case.subject].add(case.stratum or "unknown")
    return {subject: " + ".join(sorted(strata)) for subject, strata in found.items()}


def draw(cases: Sequence[Case], number: int, seed: int, option: str) -> set[str]:
    """Names of ``number`` cases, all of a subject's or none, from every stratum in proportion to its cases.

    Shares are rounded by largest remainder, so that a stratum's differs from its exact one by less than a case. Where
    subjects with several cases do not add up to the shares, the numbers nearest to them (least squares) that do.

    Raises:
        InputError: there are not so many cases, or whole subjects do not add up to the number.
    """
    if not 0 <= number <= len(cases):
        raise InputError(f"{option} is {number}; there are {len(cases)} cases to draw from.")
    names, sizes = defaultdict(list), Counter[str]()
    stratum_of = stratum_of_subjects(cases)
    for case in cases:
        names[case.subject].append(case.case_id)
        sizes[stratum_of[case.subject]] += 1
    subjects = defaultdict(list)
    for subject in sorted(names, key=lambda subject: order_key(seed, subject)):
        subjects[stratum_of[subject]].append(subject)
    cases_per_subject = {stratum: [len(names[one]) for one in members] for stratum, members in subjects.items()}
    possible = {stratum: bits_of(sums_of(members)[0]) for stratum, members in cases_per_subject.items()}
    numbers = nearest_numbers(possible, shares(sizes, number, seed), number)
    if numbers is None:
        every = bits_of(sums_of([len(members) for members in names.values()])[0])
        near = [max(n for n in every if n < number), min(n for n in every if n > number)]
        raise InputError(
            f"{option} {number} would part the scans of a subject: whole subjects of the {len(cases)} cases to draw "
            f"from do not add up to it; try {' or '.join(str(n) for n in near if n)}."
        )
    return {
        name
        for stratum, members in subjects.items()
        for subject, is_drawn in zip(members, first_with_sum(cases_per_subject[stratum], numbers[stratum]), strict=True)
        if is_drawn
        for name in names[subject]
    }


def sums_of(sizes: Sequence[int]) -> list[int]:
    """What some of ``sizes[i:]`` can add up to, for every i up to ``len(sizes)``: bit n is set if it can be n."""
    sums = [1]
    for size in reversed(sizes):
        sums.append(sums[-1] | sums[-1] << size)
    return sums[::-1]


def bits_of(sums: int) -> list[int]:
    """The numbers whose bits are set, ascending."""
    return [number for number in range(sums.bit_length()) if sums >> number & 1]


def first_with_sum(sizes: Sequence[int], total: int) -> list[bool]:
    """Which of ``sizes`` to take for them to add up to ``total``, each in turn if the later ones can make up the rest.

    Args:
        sizes: all above 0.
        total: what some of them add up to.
    """
    taken = []
    for size, later in zip(sizes, sums_of(sizes)[1:], strict=True):
        taken.append(total >= size and bool(later >> (total - size) & 1))
        total -= size * taken[-1]
    return taken


def nearest_numbers(
    possible: Mapping[str, Sequence[int]], wanted: Mapping[str, int], total: int
) -> dict[str, int] | None:
    """One possible number a stratum, ``total`` together, of least squared distance to the wanted ones.

    ``None`` if no choice adds up to ``total``. By dynamic programming over strata.
    """
    best = {0: 0}  # cost of every total within reach
    last: list[dict[int, int]] = []  # for every stratum, the number by which a total is reached at that cost
    for stratum, numbers in possible.items():
        costs = [(number, (number - wanted[stratum]) ** 2) for number in numbers]
        longer: dict[int, int] = {}
        taken: dict[int, int] = {}
        for so_far, cost in sorted(best.items()):
            for number, more in costs:
                together = so_far + number
                if together <= total and (together not in longer or cost + more < longer[together]):
                    longer[together], taken[together] = cost + more, number
        best = longer
        last.append(taken)
    if total not in best:
        return None
    chosen = []
    for taken in reversed(last):
        chosen.append(taken[total])
        total -= chosen[-1]
    return dict(zip(possible, reversed(chosen), strict=True))


def shares(sizes: Mapping[str, int], number: int, seed: int) -> dict[str, int]:
    """``number`` parted in proportion to ``sizes``, rounded by largest remainder; the seed decides between equals."""
    total = sum(sizes.values())
    parts = {name: divmod(number * size, total) for name, size in sizes.items()}
    ranked = sorted(parts, key=lambda name: (-parts[name][1], order_key(seed, "stratum", name)))
    more = set(ranked[: number - sum(whole for whole, _ in parts.values())])
    return {name: whole + (name in more) for name, (whole, _) in parts.items()}


def make_folds(cases: Sequence[Case], subjects: Mapping[str, str]) -> Splits:
    """One fold where validation cases were drawn and others are left to train on, else five by subject and stratum.

    Args:
        cases: of the release, with roles.
        subjects: subject of every training case.
    """
    role = {case.case_id: case.role for case in cases}
    parts = {
        part: sorted(name for name in subjects if (role[name] == VALIDATION) == (part == "val"))
        for part in ("train", "val")
    }
    if parts["train"] and parts["val"]:
        return [parts]
    return folds_by_subject(subjects, strata=stratum_of_subjects([c for c in cases if c.case_id in subjects]))


def role_options(args: argparse.Namespace, cases: Sequence[Case]) -> dict[str, Any]:
    """What a later run must have the same to go on in the dataset folder; test cases are looked at anyhow."""
    return {"validation_cases": sorted(case.case_id for case in cases if case.role == VALIDATION)}


def save_roles(args: argparse.Namespace, writer: DatasetWriter, cases: Sequence[Case]) -> None:
    """Write ``roles.json``, with every case of the release, whether it can be converted or not, and print the sum."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        table[case.stratum or "unknown"][case.role or TRAIN] += 1
    content = {
        "seed": args.seed,
        "numbers": dict(Counter(case.role for case in cases)),
        "strata": {stratum: dict(numbers) for stratum, numbers in sorted(table.items())},
        "cases": {
            case.case_id: {"role": case.role, "subject": case.subject, "stratum": case.stratum} for case in cases
        },
    }
    save_json(content, writer.folder / "roles.json")
    numbers = ", ".join(f"{number} {role}" for role, number in content["numbers"].items())
    print(f"{len(cases)} cases of {len(set(subjects_of(cases).values()))} subjects in {len(table)} strata: {numbers}.")
