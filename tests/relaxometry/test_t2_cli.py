"""``nnunet-anomaly t2`` with masks: drawn knees of known T2 and change, one real series, and all sorts of bad input."""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_anomaly.cli import t2
from nnunet_anomaly.cli.main import main
from nnunet_anomaly.dataset_conversion.dicom_series import tags_of
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import load_json, read_image, save_json
from nnunet_anomaly.phantoms.dicom import MR_IMAGE_STORAGE, make_uid, write_slice
from nnunet_anomaly.phantoms.mese_knee import rotation
from nnunet_anomaly.relaxometry.decay_models import Quality
from nnunet_anomaly.relaxometry.region_table import read_region_table
from nnunet_anomaly.relaxometry.subregions import REGIONS
from nnunet_anomaly.workflow import t2_report, t2_results

TINY = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


def run(*arguments, expect=0):
    assert main(["t2", *map(str, arguments), "-device", "cpu"]) == expect


def array_of(path):
    return sitk.GetArrayFromImage(read_image(path))


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def without_pictures(monkeypatch):
    """They take most of the time."""
    monkeypatch.setattr(t2_results, "write_report", lambda *_: None)


@pytest.fixture(scope="module")
def knee(drawn):
    """A coarser one than that of other tests."""
    return drawn(spacing_mm=(3.0, 0.75, 0.75), pixels=80)


def rise(knee):
    """6 ms more in a patch of the medial condyle, below."""
    return 6.0 * ((knee.left_mm > 12) & (knee.angles_degrees > 0) & (knee.angles_degrees < 30))


@pytest.fixture(scope="module")
def two(tmp_path_factory, knee, put_knee, make_echoes):
    """A right knee at two time points."""
    dataset = tmp_path_factory.mktemp("two")
    first = put_knee(dataset, "9000001_00m_right", knee, make_echoes(knee, seed=1))
    second = put_knee(dataset, "9000001_48m_right", knee, make_echoes(knee, seed=2, rise=rise))
    return first, second


@pytest.fixture(scope="module")
def measured(two, tmp_path_factory):
    """The output of both, with pictures and page."""
    (first, mask), (second, mask2) = two
    output = tmp_path_factory.mktemp("measured") / "knee"
    run("-i", first, "-i2", second, "--mask", mask, "--mask2", mask2, "-o", output)
    return output


def test_t2_regions_and_change_are_those_that_were_drawn(measured, knee):
    table = read_region_table(measured)
    assert len(table) == 2 * len(REGIONS) and {key[0] for key in table} == {"9000001_right"}
    for (_, time, region), row in table.items():
        if region.startswith(("Deep", "Superficial")):
            expected = 30 if region.startswith("Deep") else 45
            tolerance = 3.5 if time == 2 and "edial" in region else 1.5  # bins of the patch, and half a voxel of layers
            assert row["t2_mean_ms"] == pytest.approx(expected, abs=tolerance), (time, region)
    changes = {row["region"]: float(row["t2_change_ms"]) for row in rows_of(measured / "change.csv")}
    assert changes["Medial central"] == max(changes[f"{s} {p}"] for s in ("Lateral", "Medial") for p in PARTS)
    assert changes["Medial central"] > 1.5 and abs(changes["Lateral central"]) < 0.3
    assert changes["All"] == pytest.approx(
        table["9000001_right", 2, "All"]["t2_mean_ms"] - table["9000001_right", 1, "All"]["t2_mean_ms"], abs=1e-9
    )


PARTS = ("anterior", "central", "posterior")


def test_the_cluster_is_the_patch(measured, knee):
    (cluster, *others) = rows_of(measured / "clusters.csv")
    assert cluster["part"] == "medial central" and not others
    assert float(cluster["mean_change_ms"]) == pytest.approx(6, abs=0.3)
    found = array_of(measured / "clusters.nii.gz") > 0
    patch = knee.mask & (rise(knee) > 0)
    assert 2 * (found & patch).sum() / (found.sum() + patch.sum()) > 0.98
    record = load_json(measured / "record.json")
    assert record["change"]["shift_slices"] == record["change"]["shift_bins"] == 0
    assert record["change"]["similarity"] == pytest.approx(1, abs=1e-3)


def test_the_table_is_what_the_volumes_say(measured):
    table = read_region_table(measured)
    for time in (1, 2):
        t2_ms, labels = (array_of(measured / f"time_{time}" / f"{name}.nii.gz") for name in ("t2", "regions"))
        for region, numbers in REGIONS.items():
            values = t2_ms[np.isin(labels, numbers)]
            row = table["9000001_right", time, region]
            assert row["t2_voxels"] == values.size and row["t2_mean_ms"] == pytest.approx(values.mean(), rel=1e-5)
    percent = load_json(measured / "record.json")["change"]["cluster_percent_of_plate"]
    assert sum(float(row["percent_of_plate"]) for row in rows_of(measured / "clusters.csv")) == pytest.approx(percent)
    with np.load(measured / "unrolled.npz", allow_pickle=False) as maps:
        plate = np.isfinite(maps["change_ms"])
        assert 100 * np.count_nonzero(maps["clusters"]) / plate.sum() == pytest.approx(percent) and percent > 1


def test_volumes(measured, knee, two):
    reference = read_image(two[0][1])
    for time in ("time_1", "time_2"):
        volumes = {name: array_of(measured / time / f"{name}.nii.gz") for name in t2_results.VOLUMES}
        inside = volumes["segmentation"] == 1
        assert (inside <= knee.mask).all() and inside.sum() > 0.99 * knee.mask.sum()
        np.testing.assert_array_equal(volumes["quality"] != Quality.NOT_FITTED, knee.mask)
        for name in ("t2", "standard_error", "regions"):
            np.testing.assert_array_equal(volumes[name] > 0, inside)
        assert volumes["t2"].max() <= 100 and set(np.unique(volumes["regions"])) == set(range(13))
        image = read_image(measured / time / "t2.nii.gz")
        assert image.GetOrigin() == reference.GetOrigin() and image.GetDirection() == reference.GetDirection()
        assert not (measured / time / "probability.nii.gz").exists()
    with np.load(measured / "unrolled.npz", allow_pickle=False) as maps:
        assert {"t2_mean_1", "t2_deep_2", "thickness_mm_1", "parts_1", "change_ms", "clusters"} <= set(maps)
        np.testing.assert_allclose(maps["change_ms"], maps["t2_mean_2"] - maps["t2_mean_1"])


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_but_itself(measured):
    page = _Page()
    page.feed((measured / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("img") == 5 and "script" not in page.tags
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "Superficial medial posterior" in page.text and "9000001_right" in page.text
    assert sorted(path.stem for path in (measured / "pictures").iterdir()) == [
        "change",
        "overlay_1",
        "overlay_2",
        "unrolled_1",
        "unrolled_2",
    ]


def test_a_finished_knee_is_not_measured_again_but_with_others_it_is(measured, two, tmp_path, monkeypatch, capsys):
    (first, mask), (second, mask2) = two
    arguments = ("-i", first, "-i2", second, "--mask", mask, "--mask2", mask2, "-o", measured)
    stamp = (measured / "record.json").stat().st_mtime_ns
    run(*arguments)
    said = capsys.readouterr().out
    assert "It was there already" in said and (measured / "record.json").stat().st_mtime_ns == stamp
    assert re.search(r"^All +\d+\.\d +\d+\.\d +\+\d", said, re.MULTILINE)
    monkeypatch.setattr(t2_results, "write_report", lambda *_: None)
    copy = shutil.copytree(measured, tmp_path / "copy")
    run(*arguments[:-1], copy, "--convention", "dosma", "--set", "t2.model=mono")
    record = load_json(copy / "record.json")
    assert record["settings"]["central_degrees"] == [-15, 15] and record["settings"]["model"] == "mono"
    assert not (copy / "pictures").exists()  # what is out of date is gone
    run("-i", first, "--mask", mask, "-o", copy)
    assert not (copy / "change.csv").exists() and not any((copy / "time_2").iterdir())


@pytest.mark.usefixtures("without_pictures")
def test_settings_of_a_file_and_of_others_groups(two, tmp_path, capsys):
    (first, mask), _ = two
    save_json({"t2": {"model": "offset", "range_ms": [0, 40]}}, tmp_path / "settings.json")
    run("-i", first, "--mask", mask, "-o", tmp_path / "o", "--settings", tmp_path / "settings.json")
    record = load_json(tmp_path / "o" / "record.json")
    counts = record["time_points"][0]["refinement"]
    assert (
        counts["outside_range"] > 0.3 * counts["candidates"] and array_of(tmp_path / "o/time_1/t2.nii.gz").max() <= 40
    )
    assert any("have no T2 of cartilage" in text for text in record["warnings"])
    assert "outside 0 to 40 ms" in capsys.readouterr().err
    for wrong, said in (
        ("focal.beta=1", "only settings of the group t2"),
        ("t2.bin_degrees=7", "error: bin_degrees is 7.0; 360 must be a multiple"),  # before a series is read
        ("t2.central_degrees=[30,30]", "error: The central part is given as"),
    ):
        run("-i", first, "--mask", mask, "-o", tmp_path / "o", "--set", wrong, expect=2)
        assert said in capsys.readouterr().err


@pytest.mark.usefixtures("without_pictures")
def test_a_segmentation_that_was_corrected_in_its_place_is_not_lost(two, tmp_path, capsys):
    (first, mask), (second, _) = two
    output = tmp_path / "o"
    run("-i", first, "--mask", mask, "-o", output)
    corrected = output / "time_1" / "segmentation.nii.gz"
    run("-i", first, "--mask", corrected, "-o", output, expect=2)
    assert f"{corrected} is among what is written anew, and would be lost" in capsys.readouterr().err
    run("-i", first, "-i2", second, "--mask", mask, "--mask2", corrected, "-o", output, expect=2)
    assert corrected.is_file() and (output / "record.json").is_file()
    shutil.copy(corrected, output / "mask.nii.gz")
    run("-i", first, "--mask", output / "mask.nii.gz", "-o", output)


@pytest.mark.usefixtures("without_pictures")
def test_a_left_knee_given_as_a_right_one_is_said(tmp_path, drawn, put_knee, make_echoes, capsys):
    right = drawn(spacing_mm=(3.0, 1.0, 1.0), pixels=64)
    left = type(right)(**{**vars(right), "mask": right.mask[::-1]})
    series, mask = put_knee(tmp_path, "a_00m", left, make_echoes(left), side=None)
    run("-i", series, "--mask", mask, "-o", tmp_path / "o", expect=2)
    said = capsys.readouterr().err
    assert "the side of the knee is unknown; give --side" in said
    run("-i", series, "--mask", mask, "-o", tmp_path / "o", "--side", "right")
    assert "lies as a left knee's does" in capsys.readouterr().err
    run("-i", series, "--mask", mask, "-o", tmp_path / "o", "--side", "left")
    assert "knee's does" not in capsys.readouterr().err


@pytest.mark.usefixtures("without_pictures")
def test_two_time_points_that_do_not_belong_together(tmp_path, knee, put_knee, make_echoes, drawn, two, capsys):
    (first, mask), (second, mask2) = two
    output = tmp_path / "o"

    def pair(follow_up, follow_mask, expect):
        run("-i", first, "-i2", follow_up, "--mask", mask, "--mask2", follow_mask, "-o", output, expect=expect)
        return capsys.readouterr().err

    assert "are the same series" in pair(first, mask, 2)
    echoes = make_echoes(knee)
    assert "different subjects" in pair(*put_knee(tmp_path, "9000002_48m_right", knee, echoes), 0)
    assert "a right knee" in pair(*put_knee(tmp_path, "9000001_48m_left", knee, echoes, side="left"), 2)
    run("-i", second, "-i2", first, "--mask", mask2, "--mask2", mask, "-o", output)
    assert "is earlier than the first time point (48m)" in capsys.readouterr().err
    wide = drawn(spacing_mm=(3.5, 0.75, 0.75), pixels=80)
    error = pair(*put_knee(tmp_path, "9000001_96m_right", wide, make_echoes(wide)), 2)
    assert "3 mm apart" in error and "3.5 mm" in error and first.name in error


def masks_of(knee):
    few = np.zeros_like(knee.mask)
    few[tuple(index[:3] for index in np.nonzero(knee.mask))] = True
    return {"few": few, "empty": np.zeros_like(knee.mask), "two_labels": knee.mask * (1 + (knee.left_mm > 0))}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("few", "3 voxels"),
        ("empty", "is empty"),
        ("two_labels", r"labels \[1, 2\].*--label"),
        ("grid", "spacing.*Draw the mask on an echo"),
    ],
)
def test_masks_that_are_none(tmp_path, knee, put_knee, make_echoes, drawn, kind, said, capsys):
    series, mask = put_knee(tmp_path, "a_00m", knee, make_echoes(knee), mask=masks_of(knee).get(kind))
    if kind == "grid":
        other = drawn(spacing_mm=(3.0, 0.8, 0.75), pixels=80)
        _, mask = put_knee(tmp_path, "b_00m", other, make_echoes(other))
    run("-i", series, "--mask", mask, "-o", tmp_path / "o", expect=2)
    error = capsys.readouterr().err
    assert re.search(said, error) and str(mask) in error
    assert not (tmp_path / "o" / "record.json").exists()


@pytest.mark.usefixtures("without_pictures")
def test_one_label_of_several(tmp_path, knee, put_knee, make_echoes):
    mask = np.where(knee.mask, 4, 0)
    mask[:, :5] = 2
    series, path = put_knee(tmp_path, "a_00m", knee, make_echoes(knee), mask=mask)
    run("-i", series, "--mask", path, "-o", tmp_path / "o", "--label", "4")
    assert load_json(tmp_path / "o" / "record.json")["time_points"][0]["refinement"]["candidates"] == knee.mask.sum()
    run("-i", series, "--mask", path, "-o", tmp_path / "o", "--label", "3", expect=2)


@pytest.mark.usefixtures("without_pictures")
def test_voxels_that_do_not_decay_are_counted_and_left_out(tmp_path, knee, put_knee, make_echoes, capsys):
    echoes = make_echoes(knee)
    z, y, x = (index[::4] for index in np.nonzero(knee.mask))
    echoes[:, z[0::3], y[0::3], x[0::3]] = 500
    echoes[:, z[1::3], y[1::3], x[1::3]] = 0
    echoes[:, z[2::3], y[2::3], x[2::3]] = -7
    series, mask = put_knee(tmp_path, "a_00m", knee, echoes)
    run("-i", series, "--mask", mask, "-o", tmp_path / "o")
    assert "whose signal does not fall" in capsys.readouterr().err
    record = load_json(tmp_path / "o" / "record.json")["time_points"][0]
    assert record["quality"]["not_decaying"] == len(z[0::3]) and record["quality"]["no_signal"] >= len(z[1::3])
    assert record["quality"]["invalid"] == len(z[2::3])
    quality, cartilage = (array_of(tmp_path / "o/time_1" / f"{name}.nii.gz") for name in ("quality", "segmentation"))
    assert (quality[z[0::3], y[0::3], x[0::3]] == Quality.NOT_DECAYING).all() and not cartilage[z, y, x].any()
    all_of_them = np.full_like(echoes, 500)
    series, mask = put_knee(tmp_path, "b_00m", knee, all_of_them)
    run("-i", series, "--mask", mask, "-o", tmp_path / "none", expect=2)
    assert re.search(r"no cartilage is left.*\d+ whose signal does not fall.*the mask", capsys.readouterr().err)


@pytest.mark.usefixtures("without_pictures")
def test_masks_lose_small_slices_only_if_asked_to(tmp_path, knee, put_knee, make_echoes):
    mask = knee.mask.copy()
    first = int(np.flatnonzero(mask.any((1, 2)))[0])
    mask[first, :, : 3 * mask.shape[2] // 4] = False  # less is left of it than of any other slice
    source, drawn_mask = put_knee(tmp_path, "9000001_00m", knee, make_echoes(knee), mask=mask)
    area_mm2 = mask[first].sum() * math.prod(knee.spacing_mm[1:])
    kept = {}
    for asked in ("false", "true"):
        output = tmp_path / asked
        minimum = f"t2.minimum_slice_mm2={area_mm2 + 1}"
        asking = f"t2.slice_minimum_of_masks={asked}"
        run("-i", source, "--mask", drawn_mask, "-o", output, "--set", minimum, "--set", asking)
        kept[asked] = array_of(output / "time_1" / "segmentation.nii.gz") != 0
    assert kept["false"][first].any() and not kept["true"][first].any()
    np.testing.assert_array_equal(kept["false"][first + 1 :], kept["true"][first + 1 :])


@pytest.mark.usefixtures("without_pictures")
def test_cartilage_in_two_pieces(tmp_path, knee, put_knee, make_echoes):
    mask = knee.mask & ~((knee.angles_degrees > -5) & (knee.angles_degrees < 15))
    mask[0:3, 38:41, 38:41] = True  # an island near the centre
    series, path = put_knee(tmp_path, "a_00m", knee, make_echoes(knee), mask=mask)
    run("-i", series, "--mask", path, "-o", tmp_path / "o")
    table = read_region_table(tmp_path / "o")
    assert table["a_right", 1, "Deep"]["t2_mean_ms"] == pytest.approx(30, abs=2)
    assert table["a_right", 1, "Superficial"]["t2_mean_ms"] == pytest.approx(45, abs=2)


@pytest.mark.usefixtures("without_pictures")
def test_settings_of_unrolling_and_change_count(tmp_path, drawn, put_knee, make_echoes):
    knee, turned = (drawn(degrees, spacing_mm=(3.0, 1.0, 1.0), pixels=64) for degrees in (0, 3))
    first, mask = put_knee(tmp_path, "a_00m", knee, make_echoes(knee))
    second, mask2 = put_knee(tmp_path, "a_48m", turned, make_echoes(turned, seed=1, rise=rise))

    def measured_with(*more):
        run("-i", first, "-i2", second, "--mask", mask, "--mask2", mask2, "-o", tmp_path / "o", *more)
        central = read_region_table(tmp_path / "o")["a_right", 1, "Lateral central"]["t2_voxels"]
        with np.load(tmp_path / "o" / "unrolled.npz", allow_pickle=False) as maps:
            return load_json(tmp_path / "o" / "record.json")["change"], central, len(maps["bin_starts_degrees"])

    change, central, bins = measured_with()
    assert change["clusters"] > 0 and change["shift_bins"] % 1 == 0 and bins == 72
    more = ("t2.cluster_percent=50", "t2.subpixel_registration=true", "t2.bin_degrees=10")
    other, narrow, wide_bins = measured_with(
        "--convention", "dosma", *(word for one in more for word in ("--set", one))
    )
    assert other["clusters"] == 0 and other["shift_bins"] % 1 != 0 and wide_bins == 36
    assert narrow < 0.7 * central


@pytest.mark.usefixtures("without_pictures")
def test_the_first_echo_has_no_say(tmp_path, knee, put_knee, make_echoes):
    echoes = make_echoes(knee)
    echoes[0] //= 2
    series, mask = put_knee(tmp_path, "a_00m", knee, echoes)
    run("-i", series, "--mask", mask, "-o", tmp_path / "o")
    assert read_region_table(tmp_path / "o")["a_right", 1, "All"]["t2_mean_ms"] == pytest.approx(38, abs=1)
    run("-i", series, "--mask", mask, "-o", tmp_path / "o", "--set", "t2.skip_first_echo=false")
    assert read_region_table(tmp_path / "o")["a_right", 1, "All"]["t2_mean_ms"] > 45


@pytest.mark.usefixtures("without_pictures")
def test_parts_of_a_plate_are_said_to_be_parts(tmp_path, knee, put_knee, make_echoes, capsys):
    condyle, trochlea = knee.left_mm > 6, knee.angles_degrees < -60
    echoes = make_echoes(knee)
    first, mask = put_knee(tmp_path, "a_00m", knee, echoes, mask=knee.mask & condyle)
    second, mask2 = put_knee(tmp_path, "a_48m", knee, echoes, mask=knee.mask & trochlea)
    run("-i", first, "-i2", second, "--mask", mask, "--mask2", mask2, "-o", tmp_path / "o")
    said = capsys.readouterr()
    assert "time point 1: no intercondylar notch was found (is one condyle missing?): medial and lateral" in said.err
    assert "The two cartilages hardly match (similarity 0." in said.err


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there(name, monkeypatch):
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"There is no {name.upper()} device here; give -device cpu"):
        t2.device_of(name)
    assert t2.device_of(None) == t2.device_of("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda if name == "cuda" else torch.backends.mps, "is_available", lambda: True)
    assert t2.device_of(name) == name and t2.device_of(None) == ("cuda" if name == "cuda" else "cpu")


def test_where_settings_come_from(tmp_path):
    parser = argparse.ArgumentParser()
    t2.add_arguments(parser)
    (tmp_path / "m").mkdir()
    plans = {"anomaly": {"t2": {"model": "mono", "probability": 0.7, "central_degrees": [-20, 20]}}}
    save_json(plans, tmp_path / "m" / "plans.json")
    save_json({"t2": {"probability": 0.4}}, tmp_path / "settings.json")

    def found(*more):
        chosen = t2.settings_of(parser.parse_args(["-i", "x", "-o", "o", "-m", str(tmp_path / "m"), *more]))
        return chosen.model, chosen.probability, chosen.central_degrees

    assert found() == ("mono", 0.7, (-20, 20))
    assert found("--convention", "dosma", "--set", "t2.model=offset") == ("offset", 0.7, (-15, 15))
    assert found("--preset", "paper") == ("offset", 0.501, (-30, 30))
    assert found("--settings", str(tmp_path / "settings.json")) == ("rician", 0.4, (-30, 30))
    save_json({"dataset_name": "of nnU-Net's own plans"}, tmp_path / "m" / "plans.json")
    assert found() == ("rician", 0.501, (-30, 30))


@pytest.mark.usefixtures("without_pictures")
def test_a_region_without_cartilage_is_a_dash(tmp_path, knee, put_knee, make_echoes, capsys):
    one_slice = np.zeros_like(knee.mask)
    one_slice[5] = knee.mask[5]
    series, path = put_knee(tmp_path, "a_00m", knee, make_echoes(knee), mask=one_slice)
    run("-i", series, "--mask", path, "-o", tmp_path / "o")
    said = capsys.readouterr()
    assert (
        re.search(r"(Medial|Lateral) +–\n", said.out) and "nan" not in said.out and "no intercondylar notch" in said.err
    )


# ---- series that are none


@pytest.fixture
def dicom(tmp_path):
    """A folder of 4 slices by 4 echoes: ``slice * 4 + echo`` are the files' names."""
    folder = tmp_path / "dicom"
    folder.mkdir()
    tags = {"0008|0016": MR_IMAGE_STORAGE, "0008|103e": "SAG_T2_MAP_RIGHT", "0020|000d": make_uid("study")}
    tags |= {"0020|000e": make_uid("series"), "0020|0052": make_uid("frame"), "0010|0020": "77"}
    tags |= {"0008|0020": "20060101", "0008|0030": "120000"}
    for place in range(4):
        for echo in range(4):
            array = np.full((1, 8, 9), 400 - 80 * echo, np.uint16)
            image = sitk.GetImageFromArray(array)
            image.SetDirection(TINY)
            image.SetOrigin((-50.0 - 3.0 * place, 0.0, 0.0))
            own = {"0018|0081": f"{10 * (echo + 1)}", "0018|0086": f"{echo + 1}"}
            own |= {"0008|0018": make_uid(place, echo), "0020|0013": f"{4 * place + echo}"}
            write_slice(image, folder / f"{4 * place + echo:02d}", {**tags, **own})
    return folder


def rewrite(path, **tags):
    image = sitk.ReadImage(str(path))
    plane = sitk.GetImageFromArray(sitk.GetArrayFromImage(image))
    plane.CopyInformation(image)
    write_slice(plane, path, {**tags_of(path), **{key[1:].replace("_", "|"): value for key, value in tags.items()}})


def without_a_slice(folder):
    (folder / "05").unlink()


def without_an_echo(folder):
    for number in range(1, 16, 4):
        (folder / f"{number:02d}").unlink()


def doubled(folder):
    shutil.copy(folder / "05", folder / "copy")


def mixed(folder):
    for number in range(4):
        rewrite(folder / f"{number:02d}", g0020_000e=make_uid("another"))


def in_seconds(folder):
    for path in sorted(folder.iterdir()):
        rewrite(path, g0018_0081=f"{float(tags_of(path)['0018|0081']) / 1000:g}")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_a_slice, "are missing"),
        (without_an_echo, "an echo is missing"),
        (doubled, "copy"),
        (mixed, "2 DICOM series"),
        (in_seconds, "seem to be seconds"),
    ],
)
def test_series_that_are_not_whole(dicom, tmp_path, two, damage, said, capsys):
    damage(dicom)
    run("-i", dicom, "--mask", two[0][1], "-o", tmp_path / "o", expect=2)
    error = capsys.readouterr().err
    assert said in error and str(dicom) in error
    assert not (tmp_path / "o").exists()


def test_a_whole_one_is_read_by_folder_and_zip(dicom, tmp_path, two, capsys):
    archive = shutil.make_archive(str(tmp_path / "series"), "zip", dicom)
    for source in (dicom, archive):
        run("-i", source, "--mask", two[0][1], "-o", tmp_path / "o", expect=2)
        assert "do not lie on the same grid" in capsys.readouterr().err  # it came as far as the mask


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"-i": "nothing_here"}, "does not exist"),
        ({"--mask": "nothing_here"}, "does not exist"),
        ({"--mask2": "x"}, "--mask2 goes with -i2"),
        ({"--cases": "a"}, "are of a dataset"),
        ({"-i": "__file__"}, "is no multi-echo series"),
        ({"--label": "cartilage"}, "labels of masks are numbers"),
        ({"--side": "left"}, "is a right knee by its header or JSON"),
    ],
)
def test_what_does_not_go_together_is_said_before_the_work(two, tmp_path, change, said, capsys):
    options = {"-i": two[0][0], "--mask": two[0][1], "-o": tmp_path / "o", **change}
    if options["-i"] == "__file__":
        options["-i"] = __file__
    run(*(word for option in options.items() for word in option), expect=2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_name_is_not_markup(two, tmp_path, monkeypatch):
    monkeypatch.setattr(t2_report, "draw", lambda *_: dict.fromkeys(("unrolled_1", "overlay_1")))
    monkeypatch.setattr(t2_report.HtmlPage, "picture", lambda *_: None)
    folder = tmp_path / "a <script> & b"
    folder.mkdir()
    for path in (two[0][0], two[0][0].with_name(two[0][0].name.replace(".nii.gz", ".json"))):
        shutil.copy(path, folder / path.name)
    run("-i", folder / two[0][0].name, "--mask", two[0][1], "-o", tmp_path / "o")
    text = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "a &lt;script&gt; &amp; b" in text


def write_series(folder, knee, echoes, side, sign):
    """An oblique DICOM series, and its mask beside it; with a sign of -1 of the mirrored knee, in the same pixels."""
    folder.mkdir()
    image = sitk.GetImageFromArray(knee.mask[::-sign].astype(np.uint8))
    direction = rotation((3.0, 4.0, 5.0)) @ np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    direction[0, :2] *= sign
    direction[:, 2] = np.cross(direction[:, 0], direction[:, 1])  # slices run to the right
    image.SetDirection(direction.ravel().tolist())
    image.SetSpacing(knee.spacing_mm[::-1])
    middle = [(size - 1) / 2 * mm for size, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    image.SetOrigin((np.array([-sign * 80.0, 0, 0]) - direction @ middle).tolist())
    sitk.WriteImage(image, str(folder.with_suffix(".nii.gz")))
    tags = {"0008|0016": MR_IMAGE_STORAGE, "0008|103e": f"SAG_T2_MAP_{side}", "0020|000d": make_uid(side)}
    tags |= {"0020|000e": make_uid("series", side), "0020|0052": make_uid("frame", side), "0010|0020": "77"}
    tags |= {"0008|0020": "20060101", "0008|0030": "120000"}
    for number, (echo, place) in enumerate(np.ndindex(*echoes.shape[:2])):
        plane = sitk.GetImageFromArray(echoes[echo, ::-sign][place : place + 1].astype(np.uint16))
        plane.CopyInformation(image[:, :, place : place + 1])
        own = {"0018|0081": f"{10 * (echo + 1)}", "0008|0018": make_uid(side, number), "0020|0013": f"{number}"}
        write_slice(plane, folder / f"{number:03d}", {**tags, **own})


@pytest.mark.usefixtures("without_pictures")
def test_the_mirrored_knee_has_the_same_table(tmp_path, drawn, make_echoes):
    right = drawn(spacing_mm=(3.0, 1.0, 1.0), pixels=64)
    echoes = make_echoes(right, rise=rise)
    tables = {}
    for side, sign in (("right", 1), ("left", -1)):
        write_series(tmp_path / side, right, echoes, side.upper(), sign)
        run("-i", tmp_path / side, "--mask", tmp_path / f"{side}.nii.gz", "-o", tmp_path / f"o_{side}")
        tables[side] = rows_of(tmp_path / f"o_{side}" / "regions.csv")
        assert not load_json(tmp_path / f"o_{side}" / "record.json")["warnings"]
    for one, other in zip(tables["right"], tables["left"], strict=True):
        assert (one.pop("side"), other.pop("side")) == ("right", "left")
        assert (one.pop("case"), other.pop("case")) == ("77_right", "77_left")
        assert one.pop("region") == other.pop("region")
        for name, value in one.items():
            assert float(value) == pytest.approx(float(other[name]), rel=1e-6), name
    means = {row["region"]: float(row["t2_mean_ms"]) for row in rows_of(tmp_path / "o_left" / "regions.csv")}
    assert means["Medial central"] > means["Lateral central"] + 1


# ---- the real series


def test_the_real_series_with_a_shell_as_its_cartilage(real_data, tmp_path, monkeypatch, capsys):
    from nnunet_anomaly.dataset_conversion.multi_echo_series import only_series, opened, read_echo_series

    archive = real_data / "knee_mese" / "mese_dicom.zip"
    with opened(archive) as folder:
        grid = read_echo_series(only_series(folder)).images[1]
    # a ring of tissue around the femur of this knee, of which most is no cartilage: arrays (z, y, x), rows downwards
    _, row, column = np.meshgrid(*(np.arange(size) for size in grid.GetSize()[::-1]), indexing="ij")
    radii_mm, angles = 0.625 * np.hypot(row - 98, column - 120), np.degrees(np.arctan2(column - 120, row - 98))
    shell = (radii_mm > 26) & (radii_mm < 29) & (np.abs(angles) < 80)
    shell[:3] = shell[-3:] = shell[11:13] = False
    mask = sitk.GetImageFromArray(shell.astype(np.uint8))
    mask.CopyInformation(grid)
    sitk.WriteImage(mask, str(tmp_path / "mask.nii.gz"))
    run("-i", archive, "--mask", tmp_path / "mask.nii.gz", "-o", tmp_path / "o", "--side", "right")
    record = json.loads((tmp_path / "o" / "record.json").read_text(encoding="utf-8"))
    (time,) = record["time_points"]
    assert len(time["echo_times_ms"]) == 8 and time["slices"] == 24
    assert time["quality"]["converged"] > 0.9 * shell.sum() and 20 < time["t2_median_ms"] < 90
    assert (tmp_path / "o" / "report.html").stat().st_size > 100_000
    monkeypatch.setattr(t2_results, "write_report", lambda *_: None)
    run("-i", archive, "--mask", tmp_path / "mask.nii.gz", "-o", tmp_path / "left", "--side", "left")
    assert "88 mm to the right of the scanner's" in capsys.readouterr().err
