"""Subregions: a partition whose unions are sums, on a drawn knee of known T2, mirrored, and on a real right knee."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.compartments import CENTRE_OF_MASS, NOTCH
from nnunet_anomaly.errors import GeometryError, SettingsError
from nnunet_anomaly.label_maps import spacing_zyx_mm
from nnunet_anomaly.relaxometry.subregions import (
    CONVENTIONS,
    LABELS,
    PARTS,
    REGIONS,
    region_figures,
    side_by_shape,
    subregions,
)
from nnunet_anomaly.relaxometry.unroll import unroll

STRAIGHT = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # of the drawn knee
MIRRORED = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


@pytest.fixture(scope="module")
def regions(knee):
    return subregions(unroll(knee.mask, knee.spacing_mm, STRAIGHT), "right")


def known_labels(knee, border_degrees):
    """Labels of the drawn knee from what it was drawn by; its lateral side is at the right."""
    part = np.digitize(knee.angles_degrees, border_degrees)
    layer = knee.radii_mm > 26.5
    labels = np.where(layer, 7, 1) + 3 * (knee.left_mm > 0) + part
    return np.where(knee.mask, labels, 0)


def test_names_are_those_of_the_papers_table():
    assert len(REGIONS) == 27 and len(LABELS) == 12 and sorted(LABELS.values()) == list(range(1, 13))
    assert list(REGIONS)[:9] == [
        "All",
        "Deep",
        "Superficial",
        "Lateral",
        "Medial",
        "Deep lateral",
        "Superficial lateral",
        "Deep medial",
        "Superficial medial",
    ]
    assert list(REGIONS)[9] == "Lateral anterior" and list(REGIONS)[-1] == "Superficial medial posterior"
    assert REGIONS["All"] == tuple(range(1, 13))
    assert REGIONS["Deep medial"] == (4, 5, 6) and REGIONS["Medial central"] == (5, 11)
    assert LABELS["Superficial lateral anterior"] == 7


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_drawn_knee_has_its_regions(knee, convention):
    found = subregions(unroll(knee.mask, knee.spacing_mm, STRAIGHT), "right", convention)
    assert found.parted_at == NOTCH and abs(found.parted_mm) <= 1.5
    expected = known_labels(knee, CONVENTIONS[convention])
    away = knee.mask & (np.abs(knee.radii_mm - 26.5) > 0.4)  # a voxel of the middle may be deep or not
    for border in CONVENTIONS[convention]:
        away &= np.abs(knee.angles_degrees - border) > 1
    assert away.sum() > 0.6 * knee.mask.sum()
    np.testing.assert_array_equal(found.label_map()[away], expected[away])


def test_the_authors_borders_are_those_of_their_bins():
    # as their program says: the lower edge of a bin of 5 degrees up to -35 is anterior, above 25 posterior
    edges = np.arange(-180, 180, 5)
    theirs = np.where(edges <= -35, 0, np.where(edges <= 25, 1, 2))
    np.testing.assert_array_equal(np.digitize(edges + 2.5, CONVENTIONS["thomas"]), theirs)
    assert np.ptp(CONVENTIONS["dosma"]) == 30


def test_known_t2_comes_back(knee, regions):
    t2_of_labels = np.append(np.nan, 30.0 + 2 * np.arange(12))
    t2_ms = t2_of_labels[regions.label_map()]
    rows = {row["region"]: row for row in region_figures(regions, t2_ms)}
    assert list(rows) == list(REGIONS)
    for name, label in LABELS.items():
        assert rows[name]["t2_mean_ms"] == pytest.approx(28.0 + 2 * label)
        assert rows[name]["t2_sd_ms"] == pytest.approx(0)
    medial = [rows[f"{layer} medial central"] for layer in ("Deep", "Superficial")]
    weighted = sum(row["t2_mean_ms"] * row["voxels"] for row in medial) / sum(row["voxels"] for row in medial)
    assert rows["Medial central"]["t2_mean_ms"] == pytest.approx(weighted)
    # T2 as drawn, which the middle voxels blur a little
    drawn = t2_of_labels[known_labels(knee, CONVENTIONS["thomas"])]
    for row in region_figures(regions, drawn):
        assert row["t2_mean_ms"] == pytest.approx(rows[row["region"]]["t2_mean_ms"], abs=2)


def test_regions_part_the_mask_and_unions_are_sums(knee, regions):
    label_map = regions.label_map()
    assert label_map.dtype == np.uint8 and label_map.shape == knee.mask.shape
    np.testing.assert_array_equal(label_map > 0, knee.mask)
    rows = {row["region"]: row for row in region_figures(regions, np.ones(knee.mask.shape))}
    counts = np.bincount(label_map.ravel(), minlength=13)
    for name, labels in REGIONS.items():
        assert rows[name]["voxels"] == rows[name]["t2_voxels"] == counts[list(labels)].sum()
        assert rows[name]["volume_mm3"] == pytest.approx(counts[list(labels)].sum() * 0.75)
    assert rows["All"]["voxels"] == knee.mask.sum()
    for name in (*("Lateral", "Medial"), *(f"{side} {part}" for side in ("Lateral", "Medial") for part in PARTS)):
        area_mm2 = rows[name]["area_mm2"]
        both = [rows[f"{layer} {name.lower()}"]["area_mm2"] for layer in ("Deep", "Superficial")]
        assert max(both) <= area_mm2 <= sum(both)
    sides = rows["Lateral"]["area_mm2"] + rows["Medial"]["area_mm2"]
    assert rows["All"]["area_mm2"] == pytest.approx(sides)  # no bin lies on both sides
    # a cylinder's: both condyles have 8 slices of 150 degrees; the rest of the trochlea adds to it
    assert rows["Medial posterior"]["area_mm2"] == pytest.approx(8 * 3 * math.radians(75) * 26.5, rel=0.05)


def test_a_mirrored_knee_is_the_other_sides(knee, regions):
    left = subregions(unroll(knee.mask, knee.spacing_mm, MIRRORED), "left")
    np.testing.assert_array_equal(left.label_map(), regions.label_map())
    by_voxels = subregions(unroll(knee.mask[::-1], knee.spacing_mm, STRAIGHT), "left")
    np.testing.assert_array_equal(by_voxels.label_map()[::-1], regions.label_map())
    np.testing.assert_array_equal(by_voxels.parts_of_bins[::-1], regions.parts_of_bins)
    t2_ms = knee.radii_mm + knee.angles_degrees
    rows = [region_figures(each, t2_ms) for each in (regions, left)]
    assert rows[0] == rows[1]
    wrong = subregions(unroll(knee.mask, knee.spacing_mm, STRAIGHT), "left").label_map()
    exchanged = np.array([0, *(label + (3 if (label - 1) // 3 % 2 == 0 else -3) for label in range(1, 13))])
    np.testing.assert_array_equal(exchanged[wrong], regions.label_map())


def test_a_map_and_its_image_agree(regions):
    labels = np.where(regions.labels > 6, regions.labels - 6, regions.labels)
    unrolled = regions.unrolled
    np.testing.assert_array_equal(regions.parts_of_bins[unrolled.slices, unrolled.bins], labels)
    occupied = np.zeros(unrolled.shape, bool)
    occupied[unrolled.slices, unrolled.bins] = True
    np.testing.assert_array_equal(regions.parts_of_bins > 0, occupied)


def test_the_shape_tells_a_wrong_side(knee, regions):
    assert regions.side_by_shape == "right" and regions.warning is None
    wrong = subregions(regions.unrolled, "left")
    assert wrong.side_by_shape == "right"
    assert "given as a left one" in wrong.warning and "as a right knee's" in wrong.warning
    assert side_by_shape(unroll(knee.mask, knee.spacing_mm, MIRRORED)) == "left"
    even = knee.mask | knee.mask[::-1]
    assert side_by_shape(unroll(even, knee.spacing_mm, STRAIGHT)) is None
    assert subregions(unroll(even, knee.spacing_mm, STRAIGHT), "left").warning is None


def test_one_condyle_is_parted_at_its_centre(knee):
    mask = knee.mask & (knee.left_mm > 6)
    found = subregions(unroll(mask, knee.spacing_mm, STRAIGHT), "right")
    assert found.parted_at == CENTRE_OF_MASS and found.side_by_shape is None
    lateral = found.label_map()[mask & (knee.left_mm < 15)]
    assert np.isin(lateral, REGIONS["Lateral"]).all()
    mirrored = subregions(unroll(mask, knee.spacing_mm, MIRRORED), "left")
    np.testing.assert_array_equal(mirrored.label_map(), found.label_map())
    # uneven, so that the plane is not in the middle
    mask &= (knee.left_mm < 15) | (np.abs(knee.angles_degrees) < 20)
    found = subregions(unroll(mask, knee.spacing_mm, STRAIGHT), "right")
    middle_mm = (knee.left_mm[mask].min() + knee.left_mm[mask].max()) / 2
    assert found.parted_mm == pytest.approx(knee.left_mm[mask].mean() - middle_mm) and abs(found.parted_mm) > 1


def test_a_slice_on_the_plane_is_medial(knee):
    condyle = knee.mask & (np.abs(knee.angles_degrees) < 40)
    slices = [12, 13, 14]  # alike, so that the plane goes through the middle one
    mask = np.zeros_like(condyle)
    mask[slices] = condyle[14]
    for direction, side in ((STRAIGHT, "right"), (MIRRORED, "left")):
        found = subregions(unroll(mask, knee.spacing_mm, direction), side)
        assert found.parted_mm == 0
        is_medial = [bool(np.isin(found.label_map()[index], REGIONS["Medial"]).any()) for index in slices]
        assert is_medial == [False, True, True]


def test_an_island_changes_no_region_of_the_plate(knee, regions):
    mask = knee.mask.copy()
    mask[15:17, 108:113, 2:8] = 1  # below and in front, as large as it may be overlooked
    mask[2, 3:6, 100:110] = 1
    found = subregions(unroll(mask, knee.spacing_mm, STRAIGHT), "right")
    assert (found.parted_at, found.side_by_shape) == (regions.parted_at, regions.side_by_shape)
    np.testing.assert_array_equal(found.label_map()[knee.mask], regions.label_map()[knee.mask])
    assert (found.label_map() > 0)[mask].all()  # it is labelled all the same
    condyle = knee.mask & (knee.left_mm > 6)
    mask = condyle.copy()
    mask[0, 50:60, 50:60] = 1
    one, other = (subregions(unroll(each, knee.spacing_mm, STRAIGHT), "right") for each in (condyle, mask))
    assert other.parted_at == CENTRE_OF_MASS
    np.testing.assert_array_equal(other.label_map()[condyle], one.label_map()[condyle])


def test_nothing_has_27_empty_regions():
    empty = np.zeros((4, 5, 6), bool)
    found = subregions(unroll(empty, (3, 1, 1), STRAIGHT), "left")
    assert not found.label_map().any() and not found.parts_of_bins.any() and found.warning is None
    rows = region_figures(found, np.ones(empty.shape))
    assert len(rows) == 27
    for row in rows:
        assert row["voxels"] == row["t2_voxels"] == row["volume_mm3"] == row["area_mm2"] == 0
        assert math.isnan(row["t2_mean_ms"]) and math.isnan(row["t2_sd_ms"])


def test_voxels_without_t2_are_left_out(knee, regions):
    t2_ms = np.where(knee.left_mm > 0, np.where(knee.angles_degrees > 50, 43.0, 40.0), np.nan)
    rows = {row["region"]: row for row in region_figures(regions, np.where(np.isnan(t2_ms), np.inf, t2_ms))}
    values = t2_ms[knee.mask & (knee.left_mm > 0)]
    assert rows["All"]["t2_voxels"] == rows["Medial"]["t2_voxels"] == values.size
    assert rows["Medial"]["t2_mean_ms"] == pytest.approx(values.mean())
    assert rows["All"]["t2_sd_ms"] == pytest.approx(
        math.sqrt(((values - values.mean()) ** 2).sum() / (len(values) - 1))
    )
    t2_ms = np.where(np.isnan(t2_ms), np.nan, 40.0)
    rows = {row["region"]: row for row in region_figures(regions, t2_ms)}
    assert rows["Lateral"]["voxels"] > 0 == rows["Lateral"]["t2_voxels"]
    assert math.isnan(rows["Lateral"]["t2_mean_ms"]) and rows["All"]["t2_mean_ms"] == 40


def test_wrong_arguments(regions):
    for side in ("RIGHT", "", None):
        with pytest.raises(SettingsError, match="side of the knee"):
            subregions(regions.unrolled, side)
    with pytest.raises(SettingsError, match="thomas, dosma"):
        subregions(regions.unrolled, "left", "monu")
    for central in ((30, -30), (0, 200), (1, 2, 3)):
        with pytest.raises(SettingsError, match="ascending"):
            subregions(regions.unrolled, "left", central)
    with pytest.raises(GeometryError, match="shape"):
        region_figures(regions, np.zeros((2, 2, 2)))


def test_real_right_knee(real_data):
    image = sitk.ReadImage(str(next((real_data / "knee_dess_labels").glob("*.nrrd"))))
    labels, spacing_mm, direction = sitk.GetArrayFromImage(image), spacing_zyx_mm(image), image.GetDirection()
    mask = labels == 1
    found = subregions(unroll(mask, spacing_mm, direction), "right")
    assert found.parted_at == NOTCH and found.side_by_shape == "right"
    label_map = found.label_map()
    np.testing.assert_array_equal(label_map > 0, mask)
    # tibial cartilage of the medial side lies in the slices of medial regions, that of the lateral side likewise
    medial_slices, lateral_slices = (
        {int(index) for index in np.nonzero(np.isin(label_map, REGIONS[name]))[0]} for name in ("Medial", "Lateral")
    )
    assert not medial_slices & lateral_slices
    medial_tibia, lateral_tibia = (set(np.nonzero(labels == label)[0].tolist()) for label in (2, 3))
    assert len(medial_tibia & medial_slices) > 30 and not medial_tibia & lateral_slices
    assert len(lateral_tibia & lateral_slices) > 30 and not lateral_tibia & medial_slices
    # the trochlea lies in front of both menisci, the back of the condyles behind
    back_mm = (np.reshape(direction, (3, 3))[:, ::-1] * spacing_mm @ np.nonzero(mask))[1]
    means = [back_mm[np.isin(label_map[mask], REGIONS[f"Medial {part}"])].mean() for part in PARTS]
    assert means == sorted(means)
    # the same image turned, and its mirror image
    whole = sitk.GetImageFromArray(mask.astype(np.uint8))
    whole.CopyInformation(image)
    turned = sitk.DICOMOrient(whole, "RAS")
    again = subregions(
        unroll(sitk.GetArrayFromImage(turned), spacing_zyx_mm(turned), turned.GetDirection()), "right"
    ).label_map()
    expected = sitk.GetImageFromArray(label_map)
    expected.CopyInformation(image)
    np.testing.assert_array_equal(again, sitk.GetArrayFromImage(sitk.DICOMOrient(expected, "RAS")))
    mirrored = (np.diag([-1.0, 1.0, 1.0]) @ np.reshape(direction, (3, 3))).ravel()
    np.testing.assert_array_equal(subregions(unroll(mask, spacing_mm, mirrored), "left").label_map(), label_map)
