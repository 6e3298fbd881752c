"""Folds as nnU-Net names them."""

import argparse

import pytest

from nnunet_anomaly.error_maps.folds import fold_of, folds_of, in_order


def test_folds_are_numbers_or_all():
    assert [fold_of(text) for text in ("0", "12", "all")] == [0, 12, "all"]
    assert in_order(["all", 10, 2, 2]) == [2, 10, "all"]
    for text in ("-1", "fold_0", "", "ALL"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no fold"):
            fold_of(text)


def test_numbered_folds_come_before_all(tmp_path):
    assert folds_of(tmp_path, "final.pth") == []
    for fold, expected in (("0_old", []), ("all", ["all"]), (10, [10]), (2, [2, 10])):
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / "final.pth").touch()
        assert folds_of(tmp_path, "final.pth") == expected
    assert folds_of(tmp_path, "best.pth") == []
