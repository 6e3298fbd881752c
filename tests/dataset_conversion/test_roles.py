"""Draws by subject and stratum, stratified folds, tables of strata."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_anomaly.dataset_conversion.case_table import check_rows, read_case_table, with_table
from nnunet_anomaly.dataset_conversion.roles import draw, make_folds, shares
from nnunet_anomaly.dataset_conversion.runner import Case
from nnunet_anomaly.dataset_conversion.splits import folds_by_subject
from nnunet_anomaly.errors import InputError


def cases_of(strata: dict[str, int]) -> list[Case]:
    """So many subjects of one case for every stratum."""
    return [
        Case(f"{stratum}{number}", f"{stratum}{number}", stratum=stratum)
        for stratum, total in strata.items()
        for number in range(total)
    ]


numbers_of_subjects = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 12), min_size=1)


@given(numbers_of_subjects, st.floats(0, 1), st.integers(0, 5))
def test_draw_is_exact_and_in_proportion(strata, share, seed):
    cases = cases_of(strata)
    number = round(share * len(cases))
    drawn = draw(cases, number, seed, "--test")
    assert len(drawn) == number
    by_stratum = Counter(name[0] for name in drawn)
    for stratum, total in strata.items():
        assert abs(by_stratum[stratum] - total * number / len(cases)) < 1
    assert drawn == draw(list(reversed(cases)), number, seed, "--test")


def test_seed_papers_sizes_are_drawn_and_another_seed_draws_others():
    cases = cases_of({"a": 259, "b": 76})  # HGG and LGG of BraTS 2019
    test = draw(cases, 202, 0, "--test")
    validation = draw([case for case in cases if case.case_id not in test], 133, 0, "--validation")
    assert len(test) == 202 and len(validation) == 133 and not test & validation
    assert Counter(name[0] for name in test) == {"a": 156, "b": 46}  # 202 / 335 of each
    assert draw(cases, 202, 1, "--test") != test


def test_scans_of_a_subject_are_drawn_together_or_not_at_all():
    cases = [Case(f"{subject}_{visit}", subject) for subject in "abcdefg" for visit in (1, 2)] + [Case("h_1", "h")]
    for number in (2, 3, 7, 8, 15):
        drawn = draw(cases, number, 0, "--test")
        assert len(drawn) == number
        assert all(f"{subject}_1" in drawn for subject in "abcdefg" if f"{subject}_2" in drawn)
    with pytest.raises(InputError, match=r"--test 3 would part the scans of a subject: .*; try 2 or 4"):
        draw(cases[:-1], 3, 0, "--test")
    with pytest.raises(InputError, match="--test is 16; there are 15 cases"):
        draw(cases, 16, 0, "--test")
    with pytest.raises(InputError, match="--test is -1"):
        draw(cases, -1, 0, "--test")


def all_sums(sizes) -> set[int]:
    return {sum(chosen) for n in range(len(sizes) + 1) for chosen in itertools.combinations(sizes, n)}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4)), min_size=1, max_size=7), st.integers(0, 3))
def test_every_number_that_whole_subjects_add_up_to_is_drawn(people, seed):
    cases = [Case(f"{i}_{visit}", str(i), stratum=s) for i, (s, size) in enumerate(people) for visit in range(size)]
    sizes = [size for _, size in people]
    feasible = all_sums(sizes)
    of_stratum = {stratum: [size for other, size in people if other == stratum] for stratum, _ in people}
    for number in range(len(cases) + 1):
        if number not in feasible:
            with pytest.raises(InputError, match="would part the scans"):
                draw(cases, number, seed, "--test")
            continue
        drawn = draw(cases, number, seed, "--test")
        assert len(drawn) == number
        assert Counter(name.split("_")[0] for name in drawn).items() <= {str(i): n for i, n in enumerate(sizes)}.items()
        wanted = shares({stratum: sum(members) for stratum, members in of_stratum.items()}, number, seed)
        found = Counter(people[int(name.split("_")[0])][0] for name in drawn)
        choices = itertools.product(*(all_sums(of_stratum[stratum]) for stratum in wanted))
        costs = [squares(choice, wanted.values()) for choice in choices if sum(choice) == number]
        assert squares([found[stratum] for stratum in wanted], wanted.values()) == min(costs)


def squares(numbers, wanted) -> int:
    return sum((one - other) ** 2 for one, other in zip(numbers, wanted, strict=True))


def test_a_number_that_needs_one_of_few_single_scans_is_drawn():
    cases = [Case(f"{i}_{visit}", f"{i}") for i in range(42) for visit in range(2 if i < 40 else 1)]
    drawn = {seed: draw(cases, 81, seed, "--test") for seed in range(10)}
    assert {len(names) for names in drawn.values()} == {81}
    assert len({frozenset(names) for names in drawn.values()}) > 1


@settings(deadline=None)  # the first example imports nnU-Net
@given(numbers_of_subjects)
def test_stratified_folds_differ_by_one_subject_at_most(strata):
    cases = cases_of(strata)
    subjects = {f"{case.case_id}_{visit}": case.case_id for case in cases for visit in ("t01", "t02")}
    folds = folds_by_subject(subjects, strata={case.case_id: case.stratum for case in cases})
    assert len(folds) == (0 if len(cases) < 2 else min(5, len(cases)))
    for split in folds:
        assert sorted(split["train"] + split["val"]) == sorted(subjects)
        assert not {subjects[name] for name in split["train"]} & {subjects[name] for name in split["val"]}
    if len(folds) and len(strata) > 1:
        for stratum in [*strata, ""]:
            sizes = [len({subjects[name] for name in split["val"] if name.startswith(stratum)}) for split in folds]
            assert max(sizes) - min(sizes) <= 1


def test_one_stratum_gives_nnunets_own_folds():
    subjects = {f"case{number}": f"subject{number}" for number in range(11)}
    strata = dict.fromkeys(subjects.values(), "same")
    assert folds_by_subject(subjects, strata=strata) == folds_by_subject(subjects)


def test_validation_cases_are_the_one_fold_unless_they_are_all_there_is():
    cases = [Case(name, name, role="validation" if name in "ab" else "train") for name in "abcdef"]
    subjects = {case.case_id: case.subject for case in cases}
    assert make_folds(cases, subjects) == [{"train": ["c", "d", "e", "f"], "val": ["a", "b"]}]
    validation = make_folds(cases, {"a": "a", "b": "b"})
    assert [split["val"] for split in validation] in ([["a"], ["b"]], [["b"], ["a"]])


def test_table_of_strata(tmp_path):
    cases = [Case("a_1", "a"), Case("a_2", "a"), Case("b_1", "b")]
    table = tmp_path / "strata.csv"
    table.write_text("\ufeffstratum,case,age\nGE,a,1\nSiemens,b_1,2\nPhilips,a_2,3\nGE,other,4\n", encoding="utf-8")
    assert [case.stratum for case in with_table(cases, read_case_table(table))] == ["GE", "Philips", "Siemens"]
    for text, message in (
        ("case,scanner\na,GE\n", "needs the column case, and stratum or subject"),
        ("stratum\nGE\n", "needs the column case"),
        ("case,stratum\na,\n", "every row needs a value for case and stratum; one is"),
        ("case,stratum,subject\na,GE\n", "every row needs a value for case and stratum and subject"),
        ("case,stratum\na,GE\na,GE\n", "has a twice"),
        ("", "needs the column case"),
    ):
        table.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_case_table(table)
    with pytest.raises(InputError, match="does not exist"):
        read_case_table(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"t\.csv has no row for b_1, nor"):
        check_rows(tmp_path / "t.csv", {"a": {"stratum": "GE"}}, cases)


def test_table_of_subjects(tmp_path):
    cases = [Case("a_1", "a_1", stratum="GE"), Case("b_1", "b_1")]
    table = tmp_path / "subjects.csv"
    table.write_text("case,subject\na_1,X\n", encoding="utf-8")
    known = with_table(cases, read_case_table(table))
    assert [(case.subject, case.stratum) for case in known] == [("X", "GE"), ("b_1", None)]
