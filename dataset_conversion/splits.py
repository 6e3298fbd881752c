"""Folds by subject: the scans of one person are never on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_anomaly.errors import InputError, LeakageError

Splits = list[dict[str, list[str]]]


def folds_by_subject(subjects: Mapping[str, str], number: int = 5, strata: Mapping[str, str] | None = None) -> Splits:
    """Folds over subjects instead of cases: nnU-Net's own shuffled ones (its fixed seed), or stratified.

    Args:
        subjects: subject of every training case.
        number: of folds; fewer when there are fewer subjects.
        strata: scanner, site or the like of every subject. With at least two different ones, the subjects of each are
            dealt out in turn, so that their numbers differ by one at most between folds, and so do the folds' sizes.

    Returns:
        ``splits_final.json``: for every fold ``train`` and ``val``, sorted. Empty for fewer than two subjects.
    """
    cases_of = defaultdict(list)
    for case_id, subject in sorted(subjects.items()):
        cases_of[subject].append(case_id)
    number = min(number, len(cases_of))
    if number < 2:
        return []
    if strata is not None and len({strata[subject] for subject in cases_of}) > 1:
        dealt = sorted(cases_of, key=lambda subject: (strata[subject], order_key("folds", subject)))
        held_out = [set(dealt[fold::number]) for fold in range(number)]
        parts = [{"train": cases_of.keys() - fold, "val": fold} for fold in held_out]
    else:
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        parts = [
            {part: set(map(str, split[part])) for part in split}
            for split in generate_crossval_split(sorted(cases_of), n_splits=number)
        ]
    return [
        {part: sorted(case_id for subject in split[part] for case_id in cases_of[subject]) for part in split}
        for split in parts
    ]


def order_key(*words: object) -> int:
    """A number of 64 bits that looks random and is the same everywhere: ordering by it shuffles for good.

    Unlike a shuffled list, the order of two names does not change when further names come in.
    """
    return int.from_bytes(hashlib.sha256("/".join(map(str, words)).encode()).digest()[:8], "big")


def two_folds(first: Sequence[str], second: Sequence[str], subjects: Mapping[str, str]) -> Splits:
    """Two folds from a release's two lists: fold 0 trains on the first and validates on the second, fold 1 reversed.

    Args:
        first: subjects of the first list; what is in no training case is ignored.
        second: subjects of the second list.
        subjects: subject of every training case.

    Raises:
        LeakageError: a subject is in both lists.
        InputError: a training case is in neither.
    """
    both = sorted(set(first) & set(second))
    if both:
        raise LeakageError(f"{some_of(both)} are in both fold lists; each subject may be in one. Mend the lists.")
    neither = sorted(case_id for case_id, subject in subjects.items() if subject not in {*first, *second})
    if neither:
        raise InputError(
            f"{some_of(neither)} are in neither of the two fold lists. Add them to one, hold them out with "
            "--test-list, or leave out --two-fold."
        )
    halves = [
        sorted(case_id for case_id, subject in subjects.items() if subject in set(half)) for half in (first, second)
    ]
    return [{"train": halves[0], "val": halves[1]}, {"train": halves[1], "val": halves[0]}]


def read_id_list(path: Path) -> list[str]:
    """Names from a text file, one a line; empty lines and lines that begin with ``#`` are left out.

    Raises:
        InputError: the file is missing or not text, or a name is in it twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise InputError(f"The list {path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"The list {path} is not a text file.") from error
    names = [line for line in lines if line and not line.startswith("#")]
    twice = sorted(name for name, number in Counter(names).items() if number > 1)
    if twice:
        raise InputError(f"{path} has {some_of(twice)} twice. Each name may be in it once.")
    return names


def held_out_cases(names: Sequence[str], subjects: Mapping[str, str]) -> set[str]:
    """Test cases from a list of case names or subjects; a subject means all of its cases.

    Args:
        names: as read from the list.
        subjects: subject of every case of the release.

    Raises:
        InputError: a name is no case and no subject.
        LeakageError: another scan of a held-out subject would be trained on.
    """
    wanted = set(names)
    unknown = sorted(wanted - set(subjects) - set(subjects.values()))
    if unknown:
        raise InputError(f"The test list has {some_of(unknown)}, which are no cases of this release.")
    held_out = {case_id for case_id, subject in subjects.items() if case_id in wanted or subject in wanted}
    of_subjects = {subjects[case_id] for case_id in held_out}
    left = sorted(
        case_id for case_id, subject in subjects.items() if subject in of_subjects and case_id not in held_out
    )
    if left:
        raise LeakageError(
            f"{some_of(left)} would be trained on, while other scans of the same subjects are held out. Put them on "
            "the test list too, or the subjects instead of the cases."
        )
    return held_out


def some_of(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
