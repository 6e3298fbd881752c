"""The command ``nnunet-anomaly collisions``: E of every case, by pairs of labels, and the ranking."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.postprocessing.collisions import collision_set, find_collisions, out_of_reach

SPACING_MM_XYZ = (0.5, 0.5, 2.0)
VOXEL_MM3 = 0.5


def write(array: np.ndarray, path: Path, spacing_mm_xyz=SPACING_MM_XYZ) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm_xyz)
    image.SetOrigin((4, -3, 2)[: array.ndim])
    sitk.WriteImage(image, str(path))


def bones(gap_voxels: int) -> np.ndarray:
    """Two bones of 4 x 10 x 6 voxels, side by side along x, and a third one far away."""
    label_map = np.zeros((8, 20, 30), np.uint8)
    label_map[2:6, 2:12, 2:8], label_map[2:6, 2:12, 8 + gap_voxels : 14 + gap_voxels] = 1, 2
    label_map[2:6, 17:19, 20:28] = 3
    return label_map


@pytest.fixture
def folder(tmp_path) -> Path:
    for case, gap_voxels in (("apart", 4), ("near", 2), ("touching", 0)):
        write(bones(gap_voxels), tmp_path / f"in/{case}.nii.gz")
    labels = {"background": 0, "left": 1, "right": 2, "middle": 3}
    (tmp_path / "in/dataset.json").write_text(json.dumps({"labels": labels}))
    return tmp_path


def collide(folder: Path, *extra: str) -> int:
    return main(["collisions", "-i", str(folder / "in"), "-o", str(folder / "out"), "-np", "1", *extra])


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.uint8, (3, 4, 4), elements=st.sampled_from([0, 0, 1, 2, 3])),
    st.sampled_from([0.5, 0.75, 1.0, 2.0]),
    st.sampled_from([None, [1, 3]]),
)
def test_pairs_are_those_counted_voxel_by_voxel(label_map, distance_mm, labels):
    spacing_mm = np.array([2.0, 0.5, 0.5])
    voxels = [tuple(v) for v in np.argwhere(label_map) if labels is None or label_map[tuple(v)] in labels]
    near = {
        (voxel, int(label_map[other]))
        for voxel, other in itertools.permutations(voxels, 2)
        if label_map[voxel] != label_map[other]
        and np.linalg.norm((np.array(voxel) - other) * spacing_mm) <= distance_mm + 1e-6
    }
    expected: dict[tuple[int, int], int] = {}
    for voxel, other in near:
        pair = tuple(sorted((int(label_map[voxel]), other)))
        expected[pair] = expected.get(pair, 0) + 1
    collisions, by_pair = find_collisions(label_map, tuple(spacing_mm), distance_mm=distance_mm, labels=labels)
    assert by_pair == expected and list(by_pair) == sorted(expected)
    assert np.count_nonzero(collisions) == len({voxel for voxel, _ in near})


def test_cases_are_ranked_and_e_is_written(folder, capsys):
    assert collide(folder, "--distance-mm", "1.5") == 0
    rows = rows_of(folder / "out/collisions.csv")
    assert [row["case"] for row in rows] == ["touching", "near", "apart"]
    # within 1.5 mm: layers 1 to 3 on both sides where they touch, the outermost ones where two voxels lie between
    assert [int(row["collision_voxels"]) for row in rows] == [2 * 3 * 40, 2 * 40, 0]
    assert [float(row["collision_mm3"]) for row in rows] == [240 * VOXEL_MM3, 80 * VOXEL_MM3, 0]
    assert [row["most_between"] for row in rows] == ["1:2", "1:2", ""]
    assert rows_of(folder / "out/pairs.csv")[0] == {
        "case": "touching",
        "label": "1",
        "other": "2",
        "voxels": "240",
        "mm3": "120.0",
    }
    image, source = (sitk.ReadImage(str(folder / of / "touching.nii.gz")) for of in ("out", "in"))
    found = sitk.GetArrayFromImage(image)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found == 1, collision_set(bones(0), (2, 0.5, 0.5), distance_mm=1.5))
    assert (image.GetSpacing(), image.GetOrigin()) == (source.GetSpacing(), source.GetOrigin())
    summary = json.loads((folder / "out/collisions.json").read_text())
    assert summary["collision_voxels"] == {"total": 320, "mean": pytest.approx(320 / 3, abs=1e-3)}
    assert summary["collision_mm3"]["total"] == 160 and summary["cases_without_collision"] == 1
    assert summary["settings"] == {"distance_mm": 1.5, "labels": None} and summary["failed"] == {}
    assert summary["pairs"] == [{"label": 1, "other": 2, "voxels": 320, "mm3": 160.0, "cases": 2}]
    printed = capsys.readouterr().out
    assert "320 voxels, mean 106.7; 160.0 mm^3, mean 53.3. Cases without any: 1." in printed
    assert printed.index("touching") < printed.index("near ")


def test_finished_cases_are_not_repeated_and_changed_ones_are(folder, capsys):
    assert collide(folder) == 0
    times = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*.nii.gz")}
    tables = {path: path.read_bytes() for path in (folder / "out").glob("*.csv")}
    write(bones(1), folder / "in/near.nii.gz")
    (folder / "out/apart.nii.gz").unlink()
    capsys.readouterr()
    assert collide(folder) == 0
    assert "2 done, 1 were there already" in capsys.readouterr().out
    assert [path.name for path, time in times.items() if path.stat().st_mtime_ns == time] == ["touching.nii.gz"]
    assert any(path.read_bytes() != content for path, content in tables.items())
    assert collide(folder, "--distance-mm", "0.5") == 0
    assert "3 done" in capsys.readouterr().out
    (folder / "in/near.nii.gz").unlink()
    assert collide(folder, "--distance-mm", "0.5") == 0
    assert not (folder / "out/near.nii.gz").exists() and len(rows_of(folder / "out/collisions.csv")) == 2


def test_a_distance_that_reaches_no_other_voxel_is_said(folder, capsys):
    write(bones(0), folder / "in/coarse.nii.gz", (1.7, 2.5, 3.0))
    write(bones(0), folder / "in/coarser.nii.gz", (2.0001, 3.2, 4.0))
    assert collide(folder) == 0
    error = capsys.readouterr().err
    assert error.count("Warning") == 1
    assert "in 2 of 5 cases --distance-mm 1.56 is less than the finest voxel size (1.7 mm or more)" in error
    assert "reaches in all of them is 2.001" in error
    summary = json.loads((folder / "out/collisions.json").read_text())
    expected = {"cases": 2, "of": 5, "finest_voxel_mm": 1.7, "smallest_distance_mm": 2.001}
    assert summary["out_of_reach"] == expected
    assert collide(folder) == 0 and "Warning" in capsys.readouterr().err  # of finished cases too
    assert collide(folder, "--distance-mm", "2.001") == 0
    assert "Warning" not in capsys.readouterr().err
    assert json.loads((folder / "out/collisions.json").read_text())["out_of_reach"] is None
    assert all(
        int(row["collision_voxels"]) for row in rows_of(folder / "out/collisions.csv") if "coarse" in row["case"]
    )


@given(st.lists(st.floats(0.1, 5), max_size=4), st.floats(0, 5))
def test_out_of_reach_is_where_two_voxels_side_by_side_do_not_collide(sizes_mm, distance_mm):
    def collide_at(distance_mm: float, size_mm: float) -> bool:
        return bool(collision_set(np.array([[1, 2]]), (2 * size_mm, size_mm), distance_mm=distance_mm).any())

    blind = [size_mm for size_mm in sizes_mm if not collide_at(distance_mm, size_mm)]
    found = out_of_reach({str(number): size_mm for number, size_mm in enumerate(sizes_mm)}, distance_mm)
    assert (found["cases"] if found else 0) == len(blind)
    if found:
        assert all(collide_at(found["smallest_distance_mm"], size_mm) for size_mm in blind)
        assert found["smallest_distance_mm"] - max(blind) < 0.00101 and found["of"] == len(sizes_mm)


def test_two_processes_give_the_same(folder):
    assert collide(folder) == 0
    first = {path.name: path.read_bytes() for path in (folder / "out").glob("*.*")}
    for path in (folder / "out").rglob("*.*"):
        path.unlink() if path.is_file() else None
    assert collide(folder, "-np", "2") == 0
    assert first == {path.name: path.read_bytes() for path in (folder / "out").glob("*.*")}


def test_labels_that_are_not_named_count_as_background(folder):
    assert collide(folder, "-l", "1", "3") == 0
    assert {row["collision_voxels"] for row in rows_of(folder / "out/collisions.csv")} == {"0"}


def test_bad_cases_are_named_and_the_others_go_on(folder, capsys):
    assert collide(folder) == 0
    unknown = bones(0)
    unknown[0, 0, 0], unknown[0, 0, 1] = 7, 9
    write(unknown, folder / "in/near.nii.gz")
    (folder / "in/apart.nii.gz").write_bytes(b"no image")
    assert collide(folder) == 1
    error = capsys.readouterr().err
    assert "near" in error and "[7, 9]" in error and "[1, 2, 3]" in error and "apart.nii.gz" in error
    assert [path.name for path in (folder / "out").glob("*.nii.gz")] == ["touching.nii.gz"]
    assert set(json.loads((folder / "out/collisions.json").read_text())["failed"]) == {"near", "apart"}
    for path in (folder / "in").glob("*.nii.gz"):
        path.write_bytes(b"no image")
    assert collide(folder) == 1
    summary = json.loads((folder / "out/collisions.json").read_text())
    assert summary["cases"] == 0 and summary["collision_voxels"] == {"total": 0, "mean": None}


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5)])
def test_empty_label_maps_one_voxel_and_two_dimensions(tmp_path, shape):
    empty = np.zeros(shape, np.uint8)
    write(empty, tmp_path / "in/empty.mha", SPACING_MM_XYZ[: len(shape)])
    one = empty.copy()
    one[(1,) * len(shape)] = 1
    write(one, tmp_path / "in/one.mha", SPACING_MM_XYZ[: len(shape)])
    two = one.copy()
    two[(1,) * (len(shape) - 1) + (2,)] = 2
    write(two, tmp_path / "in/two.mha", SPACING_MM_XYZ[: len(shape)])
    assert collide(tmp_path) == 0
    assert [row["collision_voxels"] for row in rows_of(tmp_path / "out/collisions.csv")] == ["2", "0", "0"]
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out/two.nii.gz"))).shape == shape


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--distance-mm", "-1"), "--distance-mm"),
        (("--distance-mm", "nan"), "--distance-mm"),
        (("-l", "0"), "background"),
        (("-l", "1", "5"), "no labels [5]; it has [1, 2, 3]"),
    ],
)
def test_wrong_arguments(folder, capsys, extra, message):
    assert collide(folder, *extra) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_wrong_folders(folder, capsys):
    assert main(["collisions", "-i", str(folder / "in"), "-o", str(folder / "in")]) == 2
    assert "another output folder" in capsys.readouterr().err
    (folder / "nothing").mkdir()
    assert main(["collisions", "-i", str(folder / "nothing"), "-o", str(folder / "out")]) == 2
    assert "no label map" in capsys.readouterr().err
