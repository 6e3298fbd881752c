"""The multi-echo phantom as files: bytes, resuming, refusals, and what the converter makes of it."""

import filecmp
import math
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.dataset_conversion.dicom_series import tags_of
from nnunet_anomaly.dataset_conversion.multi_echo_series import only_series, read_echo_series
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import load_json
from nnunet_anomaly.multi_echo import read_multi_echo
from nnunet_anomaly.phantoms import mese_release
from nnunet_anomaly.phantoms.mese import ECHO_TIMES_MS, make_mese_visit
from nnunet_anomaly.phantoms.mese_knee import VISITS, draw_mese_knee
from nnunet_anomaly.phantoms.mese_reader import DICE_RANGE, dice, second_reader
from nnunet_anomaly.phantoms.mese_release import make_mese_phantom
from nnunet_anomaly.relaxometry.region_table import change_rows, read_region_table
from nnunet_anomaly.relaxometry.subregions import LABELS, REGIONS

GRID = (12, 64, 64)
SEED = 6  # knee 0 is a right one with a lesion that stays, knee 1 a left one with two new lesions


@pytest.fixture(scope="session")
def mese_phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "mese"
    outcome = make_mese_phantom(folder, 2, SEED, GRID)
    assert len(outcome.done) == 2 and outcome.exit_code == 0
    return folder


@pytest.fixture(scope="session")
def knees():
    return [draw_mese_knee(SEED, index) for index in (0, 1)]


@pytest.fixture(scope="session")
def made(knees):
    """All visits by name of their case."""
    return {knee.case_name(visit): make_mese_visit(knee, visit, GRID) for knee in knees for visit in (0, 1)}


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def assert_same_bytes(first, second, names=None):
    names = names or tree(first)
    _, different, missing = filecmp.cmpfiles(first, second, names, shallow=False)
    assert not different and not missing


def array(folder, path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / path)))


def series_of(folder, knee, visit):
    (series,) = (folder / "oai" / VISITS[visit] / "0.C.2" / knee.subject.identifier).glob("*/*")
    return series


def test_files(mese_phantom, knees):
    expected = ["phantom.json", "truth/knees.json", "truth/regions.csv"]
    for knee in knees:
        expected.append(f"truth/cases/{knee.name}.json")
        for visit, name in enumerate(VISITS):
            series = series_of(mese_phantom, knee, visit).relative_to(mese_phantom).as_posix()
            expected += [f"{series}/{number:03d}" for number in range(1, 7 * GRID[0] + 1)]
            expected += [f"{labels}/{knee.subject.identifier}_{name}.nii.gz" for labels in ("labels", "labels_2")]
            expected += [f"truth/{kind}/{knee.case_name(visit)}.nii.gz" for kind in ("t2", "regions", "lesions")]
        expected.append(f"truth/change/{knee.case_name(1)}.nii.gz")
    assert tree(mese_phantom) == sorted(expected)


def test_files_hold_what_was_made(mese_phantom, knees, made):
    visit = made[knees[1].case_name(1)]
    case, label = f"{knees[1].case_name(1)}.nii.gz", f"{knees[1].subject.identifier}_48m.nii.gz"
    for path, expected in (
        (f"labels/{label}", visit.mask),
        (f"labels_2/{label}", second_reader(visit)),
        (f"truth/t2/{case}", visit.t2_ms),
        (f"truth/regions/{case}", visit.regions),
        (f"truth/lesions/{case}", visit.lesions),
        (f"truth/change/{case}", visit.change_ms),
    ):
        found = array(mese_phantom, path)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_nothing_but_position_and_echo_time_orders_the_series(mese_phantom, knees):
    for knee in knees:
        series = series_of(mese_phantom, knee, 0)
        tags = [tags_of(path) for path in sorted(series.iterdir())]
        assert {tag["0008|103e"] for tag in tags} == {f"SAG_T2_MAP_{knee.side.upper()}"}
        assert len({tag["0008|0032"] for tag in tags}) == 1  # AcquisitionTime
        assert [int(tag["0020|0013"]) for tag in tags] == list(range(1, len(tags) + 1))
        times_ms = [float(tag["0018|0081"]) for tag in tags]
        assert times_ms == sorted(times_ms) and sorted(set(times_ms)) == list(ECHO_TIMES_MS)
        assert {tag["0018|0050"] for tag in tags} == {f"{73.5 / GRID[0] * 3 / 3.5:.6g}"}
        assert {tag["0018|0088"] for tag in tags} == {f"{73.5 / GRID[0]:.6g}"}
        places = [float(tag["0020|1041"]) for tag in tags[: GRID[0]]]
        assert places == sorted(places, reverse=True)
        # files count the slices from the patient's right to the left, in either knee
        left_mm = [float(tag["0020|0032"].split("\\")[0]) for tag in tags[: GRID[0]]]
        assert left_mm == sorted(left_mm)


def test_the_converter_reads_it_voxel_by_voxel(mese_phantom, knees, made, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    release, labels = str(mese_phantom / "oai"), str(mese_phantom / "labels")
    assert main(["convert", "oai-mese", release, "--labels", labels, "-d", "104"]) == 0
    (dataset,) = tmp_path.iterdir()
    assert {knee.side for knee in knees} == {"left", "right"}
    for knee in knees:
        for visit in (0, 1):
            case = knee.case_name(visit)
            found = read_multi_echo(dataset, case)
            assert found.echo_times_ms == ECHO_TIMES_MS and found.side == knee.side
            assert (found.subject, found.time_point) == (knee.subject.identifier, VISITS[visit])
            np.testing.assert_array_equal(found.signals(), made[case].echoes)
            np.testing.assert_array_equal(array(dataset, f"labelsTr/{case}.nii.gz"), made[case].mask)
            for channel in range(3):
                found_channel = array(dataset, f"imagesTr/{case}_{channel:04d}.nii.gz")
                np.testing.assert_array_equal(found_channel, made[case].echoes[channel])
            image, mask = found.images[0], made[case].as_image(made[case].mask)
            truth = sitk.ReadImage(str(mese_phantom / f"truth/t2/{case}.nii.gz"))
            for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
                np.testing.assert_allclose(getattr(image, get)(), getattr(truth, get)(), atol=1e-4)
                np.testing.assert_allclose(getattr(image, get)(), getattr(mask, get)(), rtol=0, atol=1e-4)


def test_a_series_alone_reads_as_well(mese_phantom, knees, made):
    series = read_echo_series(only_series(series_of(mese_phantom, knees[1], 1)))
    echoes = np.stack([sitk.GetArrayFromImage(image) for image in series.images])
    np.testing.assert_array_equal(echoes, made[knees[1].case_name(1)].echoes)
    assert series.notes == ()


# ---- the truth


def test_the_table_of_regions_is_that_of_the_true_maps(mese_phantom, knees):
    table = read_region_table(mese_phantom / "truth")
    assert len(table) == 2 * 2 * len(REGIONS)
    for knee in knees:
        for visit in (0, 1):
            t2_ms = array(mese_phantom, f"truth/t2/{knee.case_name(visit)}.nii.gz")
            row = table[(knee.name, visit + 1, "All")]
            assert row["side"] == knee.side and row["t2_voxels"] == np.count_nonzero(t2_ms)
            assert row["t2_mean_ms"] == pytest.approx(float(t2_ms[t2_ms > 0].mean()), abs=1e-3)
            deep, superficial = (table[(knee.name, visit + 1, name)]["t2_mean_ms"] for name in ("Deep", "Superficial"))
            assert superficial - deep > 3
    changes = {(row["case"], row["region"]): row["t2_change_ms"] for row in change_rows(table.values())}
    assert all(math.isfinite(change) for change in changes.values())


def test_the_table_of_regions_agrees_with_the_true_regions(mese_phantom, knees):
    """Means over the regions of the unrolled mask against those by the knee's own shape, on a coarse grid."""
    truth, table = load_json(mese_phantom / "truth/knees.json"), read_region_table(mese_phantom / "truth")
    pairs = []
    for knee in knees:
        for visit, visit_name in enumerate(VISITS):
            for name, mean in truth["knees"][knee.name]["visits"][visit_name]["true_regions"].items():
                pairs.append((mean["t2_mean_ms"], table[(knee.name, visit + 1, name)]["t2_mean_ms"]))
    true_ms, unrolled_ms = np.array(pairs).T
    assert np.corrcoef(true_ms, unrolled_ms)[0, 1] > 0.9 and np.abs(true_ms - unrolled_ms).mean() < 1.5


def test_records_agree_with_the_files(mese_phantom, knees):
    truth = load_json(mese_phantom / "truth/knees.json")
    assert truth["phantom"] == load_json(mese_phantom / "phantom.json") and truth["region_labels"] == LABELS
    assert truth["echo_times_ms"] == list(ECHO_TIMES_MS) and truth["visits"] == list(VISITS)
    for knee in knees:
        record = truth["knees"][knee.name]
        assert {key: record[key] for key in knee.record()} == knee.record()
        for visit, name in enumerate(VISITS):
            facts = record["visits"][name]
            assert facts["case"] == knee.case_name(visit) and (mese_phantom / facts["image"]).is_dir()
            first, second = (
                array(mese_phantom, f"{labels}/{knee.subject.identifier}_{name}.nii.gz")
                for labels in ("labels", "labels_2")
            )
            assert facts["cartilage_voxels"] == first.sum()
            assert facts["second_reader_dice"] == pytest.approx(dice(first > 0, second > 0), abs=1e-4)
            assert DICE_RANGE[0] <= facts["second_reader_dice"] <= DICE_RANGE[1]
            regions = array(mese_phantom, f"truth/regions/{knee.case_name(visit)}.nii.gz")
            assert [facts["true_regions"][region]["voxels"] for region in LABELS] == [
                (regions == label).sum() for label in LABELS.values()
            ]
            lesions = array(mese_phantom, f"truth/lesions/{knee.case_name(visit)}.nii.gz")
            assert facts["lesion_voxels"] == {
                str(lesion.number): (lesions == lesion.number).sum() for lesion in knee.t2.lesions
            }


# ---- making


def test_fewer_subjects_first_or_in_parallel_give_the_same_bytes(mese_phantom, tmp_path):
    folder = tmp_path / "mese"
    assert len(make_mese_phantom(folder, 1, SEED, GRID).done) == 1
    alone = [name for name in tree(folder) if "knees.json" not in name and "regions.csv" not in name]
    assert_same_bytes(mese_phantom, folder, [name for name in alone if name != "phantom.json"])
    outcome = make_mese_phantom(folder, 2, SEED, GRID, num_processes=2)
    assert (len(outcome.done), len(outcome.skipped)) == (1, 1)
    assert tree(mese_phantom) == tree(folder)
    assert_same_bytes(mese_phantom, folder)


def test_a_killed_run_is_finished_and_no_knee_made_again(mese_phantom, knees, tmp_path):
    folder = tmp_path / "mese"
    shutil.copytree(mese_phantom, folder)
    # as a kill leaves it: a knee without its record and some files, another begun, no table
    (folder / f"truth/cases/{knees[1].name}.json").unlink()
    (folder / f"labels/{knees[1].subject.identifier}_00m.nii.gz").unlink()
    next(series_of(folder, knees[1], 1).iterdir()).unlink()
    (folder / ".partial/junk").mkdir(parents=True)
    (folder / ".partial_x1y2.json").write_text("{")
    (folder / "truth/regions.csv").unlink()
    kept = folder / f"truth/t2/{knees[0].case_name(0)}.nii.gz"
    os.utime(kept, (1, 1))
    outcome = make_mese_phantom(folder, 2, SEED, GRID)
    assert outcome.done == [knees[1].name] and outcome.skipped == [knees[0].name]
    assert kept.stat().st_mtime == 1
    assert tree(mese_phantom) == tree(folder)
    assert_same_bytes(mese_phantom, folder)


def test_a_failed_knee_is_named_and_left_out_of_the_tables(knees, tmp_path, monkeypatch):
    def failing(knee, visit, grid, snr):
        if knee.index == 1 and visit == 1:
            raise OSError("no such luck")
        return make_mese_visit(knee, visit, grid, snr)

    monkeypatch.setattr(mese_release, "make_mese_visit", failing)
    outcome = make_mese_phantom(tmp_path / "mese", 2, SEED, GRID)
    assert outcome.exit_code == 1 and "no such luck" in outcome.failed[knees[1].name]
    assert list(load_json(tmp_path / "mese/truth/knees.json")["knees"]) == [knees[0].name]
    assert {key[0] for key in read_region_table(tmp_path / "mese/truth")} == {knees[0].name}
    assert not [path for path in tree(tmp_path / "mese") if knees[1].subject.identifier in path]


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"seed": 3}, "seed"), ({"grid": (13, 64, 64)}, "grid"), ({"snr": 60.0}, "snr"), ({"subjects": 1}, "subjects")],
)
def test_a_folder_with_another_phantom_is_refused(mese_phantom, changes, word):
    before = tree(mese_phantom)
    with pytest.raises(InputError, match=word):
        make_mese_phantom(mese_phantom, **{"subjects": 2, "seed": SEED, "grid": GRID, **changes})
    assert tree(mese_phantom) == before


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="not an empty folder"):
        make_mese_phantom(tmp_path, 1, 0, GRID)
    assert tree(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"subjects": 0}, "--subjects"),
        ({"subjects": 1001}, "--subjects"),
        ({"seed": -1}, "--seed"),
        ({"grid": (3, 64, 64)}, "--grid"),
        ({"grid": (21, 64)}, "--grid"),
        ({"snr": 1.0}, "--snr"),
        ({"snr": math.nan}, "--snr"),
    ],
)
def test_bad_parameters_are_refused_before_anything_is_written(tmp_path, changes, word):
    with pytest.raises(SettingsError, match=word):
        make_mese_phantom(tmp_path / "mese", **{"subjects": 1, "seed": 0, "grid": GRID, **changes})
    assert not (tmp_path / "mese").exists()


def test_command(tmp_path, capsys):
    arguments = ["phantom", "mese", "--subjects", "1", "--seed", "1", "-o", str(tmp_path / "a b")]
    assert main([*arguments, "--grid", "7", "64", "64", "--snr", "30"]) == 0
    said = capsys.readouterr().out
    assert "1 cases made" in said and f"nnunet-anomaly convert oai-mese '{tmp_path}/a b/oai' --labels" in said
    assert load_json(tmp_path / "a b/phantom.json")["snr"] == 30
    assert main(arguments) == 2
    assert "another phantom" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--full-grid", "--grid", "7", "64", "64"])
