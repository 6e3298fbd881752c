"""Folds: every case validated once, no subject on both sides, the same for the same subjects."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_anomaly.dataset_conversion.splits import folds_by_subject, held_out_cases, read_id_list, two_folds
from nnunet_anomaly.errors import InputError, LeakageError

subjects = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.sampled_from([str(n) for n in range(9)]))


@settings(deadline=None)  # the first call imports scikit-learn
@given(subjects)
def test_every_case_is_validated_once_and_subjects_are_kept_together(subjects):
    splits = folds_by_subject(subjects)
    people = set(subjects.values())
    if len(people) < 2:
        assert splits == []
        return
    assert len(splits) == min(5, len(people))
    assert sorted(case for split in splits for case in split["val"]) == sorted(subjects)
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(subjects)
        assert not {subjects[case] for case in split["train"]} & {subjects[case] for case in split["val"]}
        assert split["val"]
        assert split["train"]


def test_order_of_cases_does_not_matter():
    pairs = [(f"case{index}", f"subject{index // 2}") for index in range(20)]
    assert folds_by_subject(dict(pairs)) == folds_by_subject(dict(reversed(pairs)))


def test_with_one_case_a_subject_they_are_nnunets_own():
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    names = [f"case{index:02d}" for index in range(13)]
    ours = folds_by_subject({name: name for name in names})
    assert ours == [
        {part: [str(name) for name in split[part]] for part in split} for split in generate_crossval_split(names)
    ]


def test_two_folds_keep_visits_together():
    people = {"a_00m": "a", "a_12m": "a", "b_00m": "b"}
    assert two_folds(["a", "x"], ["b"], people) == [
        {"train": ["a_00m", "a_12m"], "val": ["b_00m"]},
        {"train": ["b_00m"], "val": ["a_00m", "a_12m"]},
    ]
    with pytest.raises(LeakageError, match="a are in both"):
        two_folds(["a"], ["a", "b"], people)
    with pytest.raises(InputError, match="b_00m are in neither"):
        two_folds(["a"], [], people)


def test_held_out_by_case_or_subject():
    people = {"a_00m": "a", "a_12m": "a", "b_00m": "b"}
    assert held_out_cases(["a"], people) == {"a_00m", "a_12m"}
    assert held_out_cases(["a_00m", "a_12m"], people) == {"a_00m", "a_12m"}
    assert held_out_cases([], people) == set()
    with pytest.raises(LeakageError, match="a_12m would be trained on"):
        held_out_cases(["a_00m"], people)
    with pytest.raises(InputError, match="c, which are no cases"):
        held_out_cases(["b", "c"], people)


def test_list_of_names(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"# comment\r\n a \r\n\r\nb\r\n")
    assert read_id_list(path) == ["a", "b"]
    path.write_text("")
    assert read_id_list(path) == []
    path.write_text("a\nb\na\n")
    with pytest.raises(InputError, match="a twice"):
        read_id_list(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        read_id_list(path)
    with pytest.raises(InputError, match="does not exist"):
        read_id_list(tmp_path / "none.txt")
