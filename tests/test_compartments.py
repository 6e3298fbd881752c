"""Compartments of the femur: on the knee phantom, mirrored, turned, cut, and on a real right knee."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.compartments import (
    CENTRE_OF_MASS,
    COMPARTMENTS,
    LATERAL,
    MEDIAL,
    NOTCH,
    TROCHLEA,
    femur_compartments,
    femur_labels,
    femur_of,
    notch_mm,
    sides_of_cases,
)
from nnunet_anomaly.errors import GeometryError, InputError, LabelError, SettingsError
from nnunet_anomaly.label_maps import spacing_zyx_mm
from nnunet_anomaly.phantoms.knee import make_case

STRAIGHT = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # sagittal slices from left to right
RIGHT_CASE, LEFT_CASE = 0, 5


@pytest.fixture(scope="module", params=[RIGHT_CASE, LEFT_CASE], ids=["right", "left"])
def knee(request):
    """A phantom's femur as an image, with its lesions and its side."""
    case = make_case(3, request.param, "severe")
    return case, case.as_image((case.labels == 1).astype(np.uint8)), case.subject.side.lower()


def parted(image: sitk.Image, side, **options):
    array = sitk.GetArrayFromImage(image)
    return femur_compartments(array, spacing_zyx_mm(image), image.GetDirection(), side, **options)


def swapped(label_map):
    return np.array([0, LATERAL, MEDIAL, TROCHLEA], np.uint8)[label_map]


def test_lesions_of_the_phantom_lie_where_its_plan_says(knee):
    case, image, side = knee
    found = parted(image, side)
    assert found.parted_at == NOTCH
    assert found.label_map.dtype == np.uint8
    np.testing.assert_array_equal(found.label_map > 0, sitk.GetArrayFromImage(image) > 0)
    looked_at = 0
    for record in case.records:
        if record["kind"] == "bone_marrow_lesion" and record["bone"] == "femur":
            voxels = found.label_map[(case.lesions == record["instance"]) & (found.label_map > 0)]
            expected = record["site"].split("_")[0]
            assert np.mean(voxels == COMPARTMENTS[expected]) > 0.9, record["site"]
            looked_at += 1
    assert looked_at >= 2


def test_a_mirrored_knee_is_the_other_sides(knee):
    _, image, side = knee
    other = {"left": "right", "right": "left"}[side]
    array, spacing_mm = sitk.GetArrayFromImage(image), spacing_zyx_mm(image)
    expected = parted(image, side).label_map
    mirrored = np.diag([-1.0, 1.0, 1.0]) @ np.reshape(image.GetDirection(), (3, 3))
    np.testing.assert_array_equal(
        femur_compartments(array, spacing_mm, mirrored.ravel(), other).label_map, expected
    )  # by the header
    straight = femur_compartments(array, spacing_mm, STRAIGHT, side).label_map
    by_voxels = femur_compartments(array[::-1], spacing_mm, STRAIGHT, other).label_map[::-1]
    np.testing.assert_array_equal(by_voxels, straight)
    # the wrong side exchanges the condyles and leaves the trochlea
    wrong = femur_compartments(array, spacing_mm, STRAIGHT, other).label_map
    assert np.mean(swapped(wrong) != straight) < 1e-3  # voxels on the plane itself are medial either way


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "SLA", "ASL"])
def test_the_order_of_axes_and_slices_does_not_matter(knee, orientation):
    _, image, side = knee
    expected = sitk.GetImageFromArray(parted(image, side).label_map)
    expected.CopyInformation(image)
    turned = sitk.DICOMOrient(image, orientation)
    np.testing.assert_array_equal(
        parted(turned, side).label_map, sitk.GetArrayFromImage(sitk.DICOMOrient(expected, orientation))
    )


def test_the_share_moves_the_border_of_the_trochlea_alone(knee):
    _, image, side = knee
    maps = [parted(image, side, trochlea_share=share).label_map for share in (0, 0.3, 0.4, 1)]
    for narrow, wide in pairwise(maps):
        assert np.all(wide[narrow == TROCHLEA] == TROCHLEA)
        kept = (wide > 0) & (wide != TROCHLEA)
        np.testing.assert_array_equal(wide[kept], narrow[kept])
    counts = [np.count_nonzero(each == TROCHLEA) for each in maps]
    assert counts == sorted(counts) and len(set(counts)) == 4
    # share 1 leaves the most posterior voxels of the condyles and what lies behind them
    assert counts[-1] >= 0.99 * np.count_nonzero(maps[-1])


def test_one_condyle_alone_is_parted_at_its_centre(knee):
    _, image, side = knee
    array = sitk.GetArrayFromImage(image)
    array[parted(image, side).label_map == MEDIAL] = 0
    cut = sitk.GetImageFromArray(array)
    cut.CopyInformation(image)
    found = parted(cut, side)
    assert found.parted_at == CENTRE_OF_MASS
    assert {MEDIAL, LATERAL, TROCHLEA} <= set(np.unique(found.label_map).tolist())


def test_a_far_island_moves_no_plane(knee):
    _, image, side = knee
    array = sitk.GetArrayFromImage(image)
    assert not array[0, -1, 0]
    expected = parted(image, side).label_map
    array[0, -1, 0] = 1
    island = sitk.GetImageFromArray(array)
    island.CopyInformation(image)
    found = parted(island, side).label_map
    assert found[0, -1, 0] > 0
    found[0, -1, 0] = 0
    np.testing.assert_array_equal(found, expected)


def test_coarse_slices_give_the_same_parts(knee):
    _, image, side = knee
    fine = parted(image, side).label_map
    found = parted(image[:, :, ::2], side)
    assert found.parted_at == NOTCH
    assert np.mean(found.label_map != fine[::2]) < 0.02 * np.mean(fine > 0)


@pytest.mark.parametrize("slices", [7, 8, 9, 10])
def test_one_block_in_thick_slices_has_no_notch(slices):
    block = np.zeros((slices + 2, 20, 24), dtype=np.uint8)
    block[1:-1, 2:18, 2:22] = 1
    assert femur_compartments(block, (4.0, 2.0, 2.0), STRAIGHT, "right").parted_at == CENTRE_OF_MASS


def test_real_right_knee(real_data):
    image = sitk.ReadImage(str(next((real_data / "knee_dess_labels").glob("*.nrrd"))))
    labels, direction, spacing_mm = sitk.GetArrayFromImage(image), image.GetDirection(), spacing_zyx_mm(image)
    to_mm = np.reshape(direction, (3, 3))[:, ::-1] * spacing_mm
    found = femur_compartments(labels == 5, spacing_mm, direction, "right")
    assert found.parted_at == NOTCH
    left_mm = {part: (to_mm @ np.nonzero(found.label_map == part))[0] for part in COMPARTMENTS.values()}
    medial_mm, lateral_mm = ((to_mm @ np.nonzero(labels == label))[0] for label in (2, 3))  # tibial cartilage
    # the plane of the notch runs between the two plates of tibial cartilage
    assert medial_mm.min() > left_mm[MEDIAL].min() > lateral_mm.max()
    assert medial_mm.min() > left_mm[LATERAL].max() > lateral_mm.max()
    counts = np.bincount(found.label_map[found.label_map > 0])[1:]
    assert np.all(counts / counts.sum() > 0.2)


def test_unknown_and_empty():
    femur = np.zeros((4, 4, 4), bool)
    assert femur_compartments(femur, (1, 1, 1), STRAIGHT, "left") is None
    femur[1, 2, 3] = True
    assert femur_compartments(femur, (1, 1, 1), STRAIGHT, None) is None
    found = femur_compartments(femur, (1, 1, 1), STRAIGHT, "right")
    assert found.parted_at == CENTRE_OF_MASS
    assert found.label_map[1, 2, 3] == MEDIAL and found.label_map.sum() == MEDIAL


def test_what_is_refused():
    femur = np.ones((2, 2, 2), bool)
    with pytest.raises(SettingsError, match="'LEFT'"):
        femur_compartments(femur, (1, 1, 1), STRAIGHT, "LEFT")
    with pytest.raises(SettingsError, match="trochlea_share"):
        femur_compartments(femur, (1, 1, 1), STRAIGHT, "left", trochlea_share=1.5)
    with pytest.raises(GeometryError, match="direction"):
        femur_compartments(femur, (1, 1, 1), STRAIGHT[:4], "left")
    with pytest.raises(GeometryError, match="spacing"):
        femur_compartments(femur, (1, 1), STRAIGHT, "left")
    for wrong in (femur[0], femur.astype(float)):
        with pytest.raises(LabelError):
            femur_compartments(wrong, (1, 1, 1), STRAIGHT, "left")


def test_what_has_no_label_belongs_to_the_nearest_bone():
    rng = np.random.default_rng(0)
    spacing_mm = (2.0, 1.0, 0.6)
    labels = np.zeros((8, 12, 14), np.uint8)
    labels[:, :5], labels[:, 7:] = 5, 6
    labels[rng.random(labels.shape) < 0.4] = 2  # a lesion's label
    labels[rng.random(labels.shape) < 0.3] = 0  # holes
    bone = rng.random(labels.shape) < 0.9
    expected = np.zeros(labels.shape, bool)
    places = {label: np.argwhere(labels == label) * spacing_mm for label in (5, 6)}
    for place in np.argwhere(bone):
        far = {label: np.linalg.norm(places[label] - place * spacing_mm, axis=1).min() for label in places}
        expected[tuple(place)] = far[5] <= far[6] * (1 + 1e-9)
    np.testing.assert_array_equal(femur_of(labels, bone, (5,), (6,), spacing_mm), expected)
    np.testing.assert_array_equal(femur_of(labels.T, bone.T, (5,), (6,), spacing_mm[::-1]), expected.T)
    np.testing.assert_array_equal(femur_of(labels, bone, (5,), (), spacing_mm), bone)
    assert not femur_of(labels, bone, (9,), (6,), spacing_mm).any()


def test_names_of_the_femur():
    oai = {"femoral_bone": (1,), "femoral_cartilage": (2,), "tibial_bone": (3,), "femoral_bone_lesion": (7,)}
    assert femur_labels(oai) == (1, 7)
    assert femur_labels({"Femur": (5,), "femurCartilage": (1,), "bone": (2, 3)}) == (5,)
    assert femur_labels({"tibia": (1,)}) == ()


def test_sides_of_converted_cases(tmp_path):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"a": {"laterality": "left"}, "b": {"laterality": None}, "c": {}}))
    assert sides_of_cases(path) == {"a": "left", "b": None, "c": None}
    for wrong in ({"a": {"laterality": "R"}}, ["a"], {"a": "left"}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=r"cases\.json"):
            sides_of_cases(path)


@pytest.mark.parametrize(
    ("depth_mm", "length_mm", "is_notch"), [(9, 15, True), (7, 15, False), (9, 8, False), (9, 12, True), (30, 8, False)]
)
def test_how_deep_and_how_long_a_notch_has_to_be(depth_mm, length_mm, is_notch):
    left_mm, back_mm = (each.ravel() for each in np.meshgrid(np.arange(-30.0, 31), np.arange(61.0)))
    # behind the middle, nearer to one side
    is_valley = (np.abs(left_mm - 5) < 8) & (back_mm >= 40) & (back_mm < 40 + length_mm)
    points_mm = np.stack([left_mm, back_mm, np.where(is_valley, depth_mm, 0.0)])
    found = notch_mm(points_mm, 1.0)
    assert (found is not None) == is_notch
    assert not is_notch or found == pytest.approx(5, abs=1)
