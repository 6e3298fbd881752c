from dataclasses import replace

import cc3d
import numpy as np
import pytest
from scipy import ndimage, stats

from nnunet_anomaly.geometry import dilate_mm
from nnunet_anomaly.phantoms import knee_iw_findings
from nnunet_anomaly.phantoms.anatomy import knee_coordinates, knee_fields
from nnunet_anomaly.phantoms.knee import FIELD_OF_VIEW_MM, draw_scanner, grid_axes
from nnunet_anomaly.phantoms.knee_iw import (
    BML,
    FEMUR,
    NOISE_RANGE,
    TISSUE,
    Suppression,
    draw_knee,
    femur_labels,
    make_iw_case,
    make_signal,
    robust_sd,
)
from nnunet_anomaly.phantoms.knee_iw_findings import (
    CONTRAST_RANGE,
    LESION_SITES,
    PLATE_MM,
    VOLUME_RANGE_MM3,
    BoneMap,
    tube_points,
    tube_share,
)

GRID = (16, 64, 64)
SEED = 3
CASES = (0, 1, 5)  # 5 is a left knee


@pytest.fixture(scope="module")
def knees():
    """Pairs of the same knee without and with lesions."""
    return [[make_iw_case(SEED, index, has_lesions, GRID) for has_lesions in (False, True)] for index in CASES]


@pytest.fixture(scope="module")
def signals():
    return {index: make_signal(draw_knee(SEED, index, True), GRID) for index in CASES[:2]}


def test_a_case_has_its_shape_types_and_spacing(knees):
    for pair in knees:
        for knee in pair:
            assert knee.image.shape == knee.labels.shape == knee.lesions.shape == GRID
            assert (knee.image.dtype, knee.labels.dtype, knee.lesions.dtype) == (np.uint16, np.uint8, np.uint8)
            np.testing.assert_allclose(np.multiply(knee.spacing_mm, GRID), FIELD_OF_VIEW_MM)


def test_same_seed_and_case_give_the_same_and_others_differ(knees):
    again = make_iw_case(SEED, CASES[1], True, GRID)
    np.testing.assert_array_equal(again.image, knees[1][1].image)
    np.testing.assert_array_equal(again.lesions, knees[1][1].lesions)
    assert again.records == knees[1][1].records
    assert (knees[0][1].image != again.image).mean() > 0.5


def test_the_femur_is_one_piece_that_lesions_do_not_change(knees):
    for without, with_lesions in knees:
        np.testing.assert_array_equal(without.labels > 0, with_lesions.labels > 0)
        assert set(np.unique(without.labels)) == {0, FEMUR}
        assert set(np.unique(with_lesions.labels)) == {0, FEMUR, BML}
        assert cc3d.connected_components(without.labels).max() == 1
        assert 80 < (without.labels > 0).sum() * np.prod(without.spacing_mm) / 1000 < 260


def test_contrast_is_that_of_a_fat_suppressed_image(knees):
    for without, _ in knees:
        femur = without.labels == FEMUR
        marrow = np.median(without.image[ndimage.binary_erosion(femur, iterations=2)])
        around = dilate_mm(femur, 3.0, without.spacing_mm) & ~femur
        assert np.percentile(without.image[around], 95) > 1.8 * marrow  # cartilage and fluid
        assert marrow > 3 * np.median(without.image[:, :, :2])
    assert (
        TISSUE["cortex"] < TISSUE["fat"] < TISSUE["marrow"] < TISSUE["muscle"] < TISSUE["cartilage"] < TISSUE["fluid"]
    )


def test_lesions_lie_in_the_femur_on_brighter_voxels_and_nothing_else_changes(knees):
    for without, with_lesions in knees:
        difference = with_lesions.image.astype(int) - without.image
        lesion = with_lesions.labels == BML
        np.testing.assert_array_equal(lesion, with_lesions.lesions > 0)
        assert (without.labels[lesion] == FEMUR).all()
        assert difference.min() >= -1 and difference[lesion].min() > 0
        far = ~dilate_mm(lesion, 25.0, with_lesions.spacing_mm)
        assert not difference[far].any()


def test_contrast_is_in_its_limits_against_the_same_case_without_lesion(signals, knees):
    for signal, (without, with_lesions) in zip(signals.values(), knees[:2], strict=True):
        marrow = without.image[(without.labels == FEMUR) & (signal.marrow > 0.99)]
        sd = stats.median_abs_deviation(marrow, scale="normal")
        difference = with_lesions.image.astype(float) - without.image
        for record in with_lesions.records:
            peak = difference[with_lesions.lesions == record["instance"]].max()
            assert CONTRAST_RANGE[0] * sd - 1 <= peak <= CONTRAST_RANGE[1] * sd + 1  # intensities are rounded
            assert peak == pytest.approx(record["contrast"] * sd, abs=1.5)
            assert record["peak"] == pytest.approx(record["contrast"] * sd, abs=0.01)


def test_size_and_place_are_as_drawn(knees):
    for _, case in knees:
        outside = case.labels == 0
        for number, record in enumerate(case.records, start=1):
            own = case.lesions == record["instance"]
            assert record["instance"] == number and record["voxels"] == own.sum() > 0
            assert record["volume_mm3"] == pytest.approx(own.sum() * np.prod(case.spacing_mm), abs=1e-3)
            assert VOLUME_RANGE_MM3[0] <= record["drawn_mm3"] <= VOLUME_RANGE_MM3[1]
            assert record["compartment"] == LESION_SITES[record["site"].removesuffix("_central")][0]
            reaches_surface = (own & ndimage.binary_dilation(outside)).any()
            assert reaches_surface or record["site"].endswith("_central")
        assert len(case.records) == case.lesions.max()


def test_truth_is_what_exceeds_half_of_the_peak(signals, knees):
    """The lesion's contribution once more from distances and strengths, slice by slice, without the phantom's slabs."""
    for index, (_, case) in zip(signals, knees[:2], strict=True):
        knee = draw_knee(SEED, index, True)
        fine = (3 * GRID[0], *GRID[1:])
        axes, _ = grid_axes(fine, knee.subject.side)
        point = knee_coordinates(knee.shape, axes)
        flat = np.zeros(fine, dtype=np.float32)
        femur = knee_fields(knee.shape, point, (flat, flat), flat, 1.0).femur
        sensitivity, _ = draw_scanner(grid_axes(GRID, knee.subject.side)[0], SEED, index, NOISE_RANGE)
        expected = np.zeros(GRID, dtype=bool)
        for lesion in knee.lesions:
            strength = lesion.membership(axes) * (femur < -0.5)
            thick = sensitivity * np.stack([strength[3 * z : 3 * z + 3].mean(axis=0) for z in range(GRID[0])])
            expected |= thick > 0.5 * thick.max()
        found = case.labels == BML
        # soft edges of the bone alone may tell them apart
        assert 2 * (expected & found).sum() / (expected.sum() + found.sum()) > 0.9


def test_lesion_volume_in_the_bone_is_the_drawn_one():
    """On a grid of its own, what exceeds half of the peak has the drawn volume, wherever the bone cuts it off."""
    knee = draw_knee(SEED, 1, True)
    bones = BoneMap.of(knee.shape, FIELD_OF_VIEW_MM)
    for lesion in knee.lesions:
        axes = [np.arange(at - lesion.half_extent_mm, at + lesion.half_extent_mm, 0.8) for at in lesion.centre_mm]
        places = np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")], axis=1)
        inside = bones.sample(bones.femur, places).reshape([len(axis) for axis in axes]) < -PLATE_MM
        strength = lesion.membership(axes) * inside
        assert (strength > 0.5 * strength.max()).sum() * 0.8**3 == pytest.approx(lesion.volume_mm3, rel=0.1)


def test_lesions_have_no_sharp_edge():
    lesion = draw_knee(SEED, 0, True).lesions[0]
    whole = replace(lesion, patches=np.full_like(lesion.patches, -9.0), warp_mm=0 * lesion.warp_mm, stretch=np.eye(3))
    along = lesion.centre_mm[0] + np.arange(0.0, lesion.half_extent_mm, 0.05)
    profile = whole.membership([along, lesion.centre_mm[1:2], lesion.centre_mm[2:3]]).ravel()
    falling = (profile > 0.02) & (profile < 0.98)
    assert falling.sum() * 0.05 > 0.7 * lesion.edge_mm
    assert np.interp(lesion.radius_mm, along - along[0], profile) == pytest.approx(0.5, abs=0.02)


def test_a_thick_slice_is_the_mean_of_its_fine_slices():
    knee, grid = draw_knee(SEED, 5, True), (9, 48, 48)
    thick, fine = make_signal(knee, grid), make_signal(knee, (27, 48, 48), subslices=1)
    pairs = [(getattr(thick, name), getattr(fine, name)) for name in ("image", "femur", "marrow", "vessels")]
    for one, other in [*pairs, *zip(thick.lesions, fine.lesions, strict=True)]:
        np.testing.assert_allclose(one, other.reshape(9, 3, 48, 48).mean(axis=1), rtol=1e-4, atol=1e-3)


def test_slabs_make_no_difference(monkeypatch):
    knee, grid = draw_knee(SEED, 0, True), (9, 48, 48)
    whole = make_signal(knee, grid)
    monkeypatch.setattr("nnunet_anomaly.phantoms.knee_iw.SLAB_VOXELS", 1)
    np.testing.assert_allclose(make_signal(knee, grid).image, whole.image, rtol=1e-4, atol=1e-3)


# ---- vessels


def test_vessels_are_in_healthy_knees_and_outside_the_truth(signals, knees):
    for index, (_, with_lesions) in zip(signals, knees[:2], strict=True):
        knee = draw_knee(SEED, index, False)
        signal, bare = make_signal(knee, GRID), make_signal(replace(knee, vessels=[]), GRID)
        vessels = (signal.vessels > 0.02) & (signal.marrow > 0.99)
        assert vessels.sum() > 10 and not bare.vessels.any()
        assert ((signal.image - bare.image)[vessels] > 0.015 * knee.tissue["marrow"]).all()
        assert (with_lesions.labels[vessels] == BML).mean() < 0.1
        # the truth knows nothing of vessels
        for own, other in zip(signals[index].lesions, make_signal(_without_vessels(index), GRID).lesions, strict=True):
            np.testing.assert_array_equal(own, other)


def _without_vessels(index):
    return replace(draw_knee(SEED, index, True), vessels=[])


def test_vessels_enter_a_bone_branch_and_are_thin():
    radii, branches, trunks = [], 0, 0
    for index in range(3):
        knee = draw_knee(SEED, index, False)
        bones = BoneMap.of(knee.shape, FIELD_OF_VIEW_MM)
        for path in knee.vessels:
            depth = -bones.sample(bones.distance, path[:, :3])
            trunks += depth[0] < 1.5
            branches += depth[0] >= 1.5
            assert (depth[8:] > 0).all()
            radii += list(path[:, 3])
            steps = np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1)
            np.testing.assert_allclose(steps, knee_iw_findings.STEP_MM)
    assert trunks >= 6 and branches >= 3
    assert min(radii) >= 0.3 and max(radii) <= 0.75


@pytest.mark.parametrize("shape", [(12, 40, 40), (40, 13, 25)])
def test_a_tube_keeps_its_volume_on_every_grid(shape):
    path = np.array([[-8.0, -3.0, -5.0, 0.4], [0.0, 2.0, 1.0, 0.4], [6.0, 4.0, 9.0, 0.4]])
    places, volumes = tube_points([path], np.random.default_rng(0))
    length = np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1).sum()
    assert volumes.sum() == pytest.approx(np.pi * 0.4**2 * length)
    axes = [np.linspace(-20.0, 20.0, n) for n in shape]
    axes[0] = axes[0][::-1]  # as in a left knee
    share = tube_share(places, volumes, axes)
    assert share.sum() * np.prod([40.0 / (n - 1) for n in shape]) == pytest.approx(volumes.sum(), rel=0.02)
    assert not tube_share(places + 100.0, volumes, axes).any()


def test_points_fill_a_tube_evenly():
    places, _ = tube_points([np.array([[0.0, 0.0, 0.0, 0.5], [30.0, 0.0, 0.0, 0.5]])], np.random.default_rng(0))
    distance = np.hypot(places[:, 1], places[:, 2])
    assert distance.max() <= 0.5 and (distance**2).mean() == pytest.approx(0.125, rel=0.05)
    counts = np.histogram(places[:, 0], bins=10, range=(0, 30))[0]
    assert counts.min() > 0.98 * counts.mean()


# ---- the rest


def test_suppression_fails_towards_its_border_alone():
    axes = [np.linspace(-50.0, 50.0, 11)] * 3
    for axis, sign in ((0, 1), (2, -1)):
        failure = Suppression(axis, sign, 10.0, 30.0, np.zeros((5, 5, 5)), 0.4).failure(axes)
        profile = np.moveaxis(failure, axis, 0)[::sign, 5, 5]
        assert profile[0] == 0 and profile[-1] == pytest.approx(0.4) and (np.diff(profile) >= 0).all()


def test_some_knees_have_incomplete_suppression_and_it_brightens_fat():
    knees = [draw_knee(SEED, index, False) for index in range(8)]
    bad = [knee for knee in knees if knee.suppression is not None]
    assert 0 < len(bad) < len(knees)
    good = make_signal(replace(bad[0], suppression=None), (9, 48, 48)).image
    change = make_signal(bad[0], (9, 48, 48)).image - good
    assert change.min() > -1e-3 and change.max() > 5


def test_robust_sd_is_a_gaussians_and_never_0():
    assert robust_sd(np.random.default_rng(0).normal(5.0, 7.0, 20000)) == pytest.approx(7.0, rel=0.03)
    assert robust_sd(np.full(5, 3.0)) == robust_sd(np.zeros(0)) == 1.0


def test_femur_labels_of_an_empty_share_and_of_parts_that_lie_apart():
    share = np.zeros((4, 6, 6), dtype=np.float32)
    assert not femur_labels(share).any()
    share[1:3, 1:4, 1:4], share[0, 5, 5], share[1, 4, 1] = 1.0, 1.0, 0.4
    assert femur_labels(share).sum() == 18
