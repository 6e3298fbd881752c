"""One case of the hip phantom: anatomy, joint spaces, metal, inferior labels."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_anomaly.phantoms.hip import (
    GAP_RANGE_MM,
    SMALL_GRID,
    grid_axes,
    identifier_of,
    implant_of,
    inferior_labels,
    make_case,
)
from nnunet_anomaly.phantoms.metal import REPLACEMENT, SCREW, metal_distance, streaks
from nnunet_anomaly.phantoms.pelvis import LABELS, draw_pelvis, in_mm, pelvis_coordinates, pelvis_fields

GRID = (52, 80, 91)


@pytest.fixture(scope="module")
def case():
    return make_case(3, 0, grid=GRID)


@pytest.fixture(scope="module")
def with_screw():
    return make_case(3, 0, (SCREW, "left"), GRID)


@pytest.fixture(scope="module")
def replaced():
    return make_case(3, 0, (REPLACEMENT, "left"), GRID)


def surface_distances(one, other, spacing_mm):
    """Distance from every voxel of one mask to the nearest voxel of the other, by scipy."""
    return ndimage.distance_transform_edt(~other, sampling=spacing_mm)[one]


def test_all_bones_are_there_and_whole(case):
    assert case.image.dtype == np.int16 and case.image.shape == GRID
    assert set(np.unique(case.labels)) == {0, 1, 2, 3, 4, 5}
    for label in range(1, 6):
        _, parts = ndimage.label(case.labels == label, np.ones((3, 3, 3)))
        assert parts == 1, label


def test_volumes_are_those_of_bones(case):
    voxel_ml = np.prod(case.spacing_mm) / 1000
    volume = {name: (case.labels == value).sum() * voxel_ml for name, value in LABELS.items()}
    for side in ("left", "right"):
        assert 80 < volume[f"femur_{side}"] < 260
        assert 150 < volume[f"hip_{side}"] < 450
    assert 100 < volume["sacrum"] < 320


def test_left_lies_on_the_left_and_sides_are_alike_but_not_the_same(case):
    image = case.as_image(case.labels)
    middles = {
        name: np.array(
            image.TransformContinuousIndexToPhysicalPoint(np.argwhere(case.labels == value).mean(axis=0)[::-1].tolist())
        )
        for name, value in LABELS.items()
    }
    for bone in ("femur", "hip"):
        assert middles[f"{bone}_left"][0] > middles["sacrum"][0] + 40 > middles[f"{bone}_right"][0] + 80
        assert middles[f"{bone}_left"][2] < middles["sacrum"][2]
    assert middles["sacrum"][1] > middles["hip_left"][1]  # behind
    left, right = case.record["label_voxels"]["femur_left"], case.record["label_voxels"]["femur_right"]
    assert left != right and abs(left - right) < 0.15 * right


@pytest.mark.parametrize("label", range(1, 6))
def test_intensities_are_those_of_ct(case, label):
    inside = ndimage.distance_transform_edt(case.labels == label, sampling=case.spacing_mm)
    marrow = case.image[inside > 7] if label != 3 and label != 4 else case.image[inside > 6]
    cortex = case.image[(inside > 0) & (inside < 4)]
    assert 100 < marrow.mean() < 300 < cortex.mean() < 1100
    assert case.image[0, 0, 0] < -900  # air


def test_bones_never_touch_and_joints_are_as_wide_as_drawn(case):
    diagonal = float(np.linalg.norm(case.spacing_mm))
    for side, femur, hip in (("left", 1, 3), ("right", 2, 4)):
        space = case.record["joint_space_mm"][side]
        away = surface_distances(case.labels == femur, case.labels == hip, case.spacing_mm)
        assert away.min() == pytest.approx(space["smallest"], abs=1e-3)
        # voxel centres lie inside of both surfaces
        assert space["drawn"] - 0.3 <= space["smallest"] <= space["drawn"] + diagonal
        assert space["drawn"] <= space["median_in_socket"] <= space["drawn"] + 1.5 * diagonal
    for one, other in itertools.combinations(range(1, 6), 2):
        away = surface_distances(case.labels == one, case.labels == other, case.spacing_mm)
        assert away.min() > GAP_RANGE_MM[0] - 0.3, (one, other)


def test_cut_joint_is_as_wide_as_drawn_on_a_fine_grid():
    """Against distances of the femoral head, which is a ball: a fine box around one socket."""
    shape = draw_pelvis(np.random.default_rng(1), (3.0, 3.0))
    spacing_mm = (0.7, 0.7, 0.7)
    axes = [np.arange(size) * 0.7 + start for size, start in ((60, -15.0), (60, -20.0), (64, 50.0))]
    point = pelvis_coordinates(shape, axes)
    noise = [np.zeros(point[0].shape, np.float32)] * 2
    bones = pelvis_fields(shape, point, noise, spacing_mm).bones_mm
    away = surface_distances(bones[2] < 0, bones[0] < 0, spacing_mm)
    assert 3.0 - 0.3 < away.min() < 3.0 + np.linalg.norm(spacing_mm)


def test_distance_is_in_mm_whatever_its_slope():
    x = np.arange(-20.0, 20.0)[None, None, :] * np.ones((5, 5, 1))
    assert np.allclose(in_mm((3.0 * x).astype(np.float32), (1.0, 1.0, 1.0))[:, :, 10:30], x[:, :, 10:30], atol=1e-4)


def test_inferior_labels_close_the_joints_and_keep_the_rest(case):
    diagonal = float(np.linalg.norm(case.spacing_mm))
    for femur, hip in ((1, 3), (2, 4)):
        assert surface_distances(case.inferior == femur, case.inferior == hip, case.spacing_mm).min() <= diagonal
        one, other = case.inferior == femur, case.labels == femur
        assert 0.75 < 2 * (one & other).sum() / (one.sum() + other.sum()) < 0.97
    assert (case.inferior > 0).sum() > (case.labels > 0).sum()
    # no bone takes another one's place
    both = (case.inferior > 0) & (case.labels > 0)
    assert (case.inferior[both] == case.labels[both]).all()


def test_inferior_labels_of_far_bones_stay_apart():
    bones = np.full((5, 20, 20, 20), 60.0, np.float32)
    z = np.arange(20.0)[:, None, None] * np.ones((1, 20, 20))
    bones[0], bones[2] = z - 3.0, 16.0 - z
    shape = draw_pelvis(np.random.default_rng(0), (2.0, 2.0))
    labels = inferior_labels(bones, shape, (1.0, 1.0, 1.0), np.random.default_rng(0))
    assert set(np.unique(labels)) == {0, 1, 3}
    assert (labels[9:11] == 0).all()


def test_screw_changes_the_image_alone(case, with_screw):
    np.testing.assert_array_equal(case.labels, with_screw.labels)
    metal = with_screw.image > 2500
    assert metal.sum() > 20
    assert (with_screw.labels[metal] == LABELS["femur_left"]).mean() > 0.6
    changed = (case.image != with_screw.image).any(axis=(1, 2))
    assert 0 < changed.sum() < GRID[0]  # streaks lie in slices with metal
    assert with_screw.record["implant"] == {"kind": SCREW, "side": "left"}


def test_replaced_femur_has_no_label_and_the_others_stay(case, replaced):
    assert replaced.record["label_voxels"]["femur_left"] == 0
    assert replaced.record["joint_space_mm"]["left"] is None
    for name in ("femur_right", "hip_right", "sacrum", "hip_left"):
        np.testing.assert_array_equal(case.labels == LABELS[name], replaced.labels == LABELS[name])
    assert (replaced.image[case.labels == LABELS["femur_left"]] > 2500).mean() > 0.25
    assert not (replaced.inferior == LABELS["femur_left"]).any()


def test_unknown_metal_is_refused():
    side = draw_pelvis(np.random.default_rng(0), (3.0, 4.0)).left
    with pytest.raises(ValueError, match="plate"):
        metal_distance("plate", [np.zeros(1)] * 3, side)


def test_streaks_are_where_metal_is_and_fade():
    share = np.zeros((3, 61, 61), np.float32)
    share[1, 29:32, 29:32] = 1.0
    added = streaks(share, (2.0, 2.0, 2.0), np.random.default_rng(0))
    assert not added[[0, 2]].any()
    assert added.min() < 0 < added.max()
    assert np.abs(added[1, 25:36, 25:36]).mean() > 2 * np.abs(added[1, :10]).mean()


def test_same_seed_same_case_and_other_seed_another(case):
    again, other = make_case(3, 0, grid=GRID), make_case(4, 0, grid=GRID)
    np.testing.assert_array_equal(case.image, again.image)
    np.testing.assert_array_equal(case.inferior, again.inferior)
    assert case.record == again.record and case.identifier == again.identifier
    assert (case.labels != other.labels).any() and case.identifier != other.identifier
    assert len({identifier_of(0, index) for index in range(1000)}) == 1000


def test_case_is_the_same_on_another_grid(case):
    finer = make_case(3, 0, grid=SMALL_GRID)
    onto = sitk.Resample(
        case.as_image(case.labels), finer.as_image(finer.labels), sitk.Transform(), sitk.sitkNearestNeighbor
    )
    ours = sitk.GetArrayFromImage(onto)
    for label in range(1, 6):
        one, other = ours == label, finer.labels == label
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.85, label


def test_slabs_do_not_show(case, monkeypatch):
    axes, spacing_mm = grid_axes(GRID)
    assert [len(axis) for axis in axes] == list(GRID) and spacing_mm == case.spacing_mm
    monkeypatch.setattr("nnunet_anomaly.phantoms.hip.SLAB_VOXELS", 7 * GRID[1] * GRID[2])
    by_slabs = make_case(3, 0, grid=GRID)
    np.testing.assert_array_equal(by_slabs.labels, case.labels)
    np.testing.assert_array_equal(by_slabs.image, case.image)


@pytest.mark.parametrize("share,kinds", [(0.0, []), (0.5, [SCREW, REPLACEMENT] * 5), (0.1, [SCREW, REPLACEMENT])])
def test_share_of_implants(share, kinds):
    found = [implant_of(0, index, share) for index in range(20)]
    assert [implant[0] for implant in found if implant] == kinds
    assert len({implant_of(0, index, 1.0)[1] for index in range(20)}) == 2  # both sides
