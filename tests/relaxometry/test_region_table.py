"""The table of regions: written, read again, and change from the first time point to the second."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.evaluation.cohort import save_table
from nnunet_anomaly.relaxometry.region_table import COLUMNS, change_rows, read_region_table, region_rows
from nnunet_anomaly.relaxometry.subregions import REGIONS, subregions
from nnunet_anomaly.relaxometry.unroll import unroll

HEAD = "case,time_point,side,region,t2_mean_ms,t2_voxels\n"


@pytest.fixture(scope="module")
def rows(knee):
    regions = subregions(unroll(knee.mask, knee.spacing_mm, knee.direction), "right")
    t2_ms = np.where(knee.left_mm < -25, np.nan, 30 + knee.radii_mm)
    return [
        *region_rows("knee_1", 1, regions, t2_ms),
        *region_rows("knee_1", 2, regions, t2_ms + np.where(knee.left_mm > 0, 2, -1)),
        *region_rows("knee_2", 1, regions, np.full(t2_ms.shape, np.nan)),
    ]


def written(folder, text, name="regions.csv"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(HEAD + text, encoding="utf-8")
    return folder / name


def test_a_table_comes_back(tmp_path, rows):
    save_table(rows, tmp_path / "regions.csv", COLUMNS)
    for path in (tmp_path, tmp_path / "regions.csv"):
        found = read_region_table(path)
        assert len(found) == 3 * 27
        for row in rows:
            other = found[row["case"], row["time_point"], row["region"]]
            np.testing.assert_equal({key: row[key] for key in other}, other)


def test_change_is_the_second_minus_the_first(tmp_path, rows):
    save_table(rows, tmp_path / "regions.csv", COLUMNS)
    for source in (rows, read_region_table(tmp_path).values()):
        found = change_rows(source)
        assert [row["region"] for row in found] == list(REGIONS)  # knee_2 has one time point
        by_region = {row["region"]: row for row in found}
        assert by_region["Medial"]["t2_change_ms"] == pytest.approx(2)
        assert by_region["Deep lateral central"]["t2_change_ms"] == pytest.approx(-1)
        assert -1 < by_region["All"]["t2_change_ms"] < 2
    more, fewer = ({**rows[0], "time_point": time, "t2_voxels": 90 - 10 * time} for time in (1, 2))
    assert [row["t2_voxels"] for row in change_rows([more, fewer])] == [70]
    assert change_rows([fewer]) == []


def test_tables_of_folders_are_joined(tmp_path):
    written(tmp_path / "a", "one,1,left,All,40.5,10\n")
    written(tmp_path / "b", "two,1,right,All,,0\n")
    found = read_region_table(tmp_path)
    assert found["one", 1, "All"]["t2_mean_ms"] == 40.5 and found["one", 1, "All"]["side"] == "left"
    assert math.isnan(found["two", 1, "All"]["t2_mean_ms"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one,1,left,Al,40,10\n", "line 2: there is no region 'Al'"),
        ("one,3,left,All,40,10\n", "time point is '3'"),
        ("one,1,L,All,40,10\n", "the side is 'L'"),
        (",1,left,All,40,10\n", "there is no case"),
        ("one,1,left,All,forty,10\n", "line 2: could not convert"),
        ("one,1,left,All,-4,10\n", "must be a time in ms"),
        ("one,1,left,All,inf,10\n", "must be a time in ms"),
        ("one,1,left,All,40,1.5\n", "must be a whole number"),
        ("one,1,left,All,40\n", "t2_voxels is ''"),
        ("one,1,left,All,40,10\none,1,left,All,41,10\n", "line 3: one, 1, All is there twice"),
        ("one,1,left,All,40,10\none,2,right,All,41,10\n", "a right knee, in .* a left one"),
        ("one,1,,All,40,10\none,1,left,Deep,40,10\none,2,right,All,41,10\n", "line 4: one is a right knee"),
    ],
)
def test_wrong_tables(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_region_table(written(tmp_path, text))


def test_no_tables(tmp_path):
    with pytest.raises(InputError, match="neither a table nor a folder"):
        read_region_table(tmp_path)
    (tmp_path / "other.csv").write_text("case,region\n", encoding="utf-8")
    with pytest.raises(InputError, match="has no column time_point, t2_mean_ms"):
        read_region_table(tmp_path / "other.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not readable as CSV"):
        read_region_table(tmp_path / "binary.csv")
