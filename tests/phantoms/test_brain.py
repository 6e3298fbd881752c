from functools import lru_cache

import cc3d
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_anomaly.errors import InputError, LabelError
from nnunet_anomaly.phantoms import brain
from nnunet_anomaly.phantoms.brain_cases import (
    ATLAS,
    BRATS,
    HEALTHY,
    IXI,
    STROKE,
    TUMOUR,
    CaseKey,
    Inputs,
    load_label_map,
    load_shape,
    make_case,
)
from nnunet_anomaly.phantoms.brain_lesions import Anatomy, grow_strokes, grow_tumour, plant_shapes, stroke_sites
from nnunet_anomaly.phantoms.painting import (
    PRESETS,
    TISSUES,
    block_mean,
    brain_mask,
    deform_labels,
    draw_contrast,
    paint_head,
    paint_tissues,
    scan_head,
    tissue_map,
    tissue_share,
)

AXES_MM = [np.arange(-90.0, 91.0, 2.0), np.arange(-128.0, 113.0, 2.0), np.arange(-110.0, 101.0, 2.0)]
SPACING_MM = (2.0, 2.0, 2.0)
GRID = (40, 48, 44)


@lru_cache(maxsize=4)
def head(seed, registered=True):
    shape = brain.draw_head_shape(np.random.default_rng(seed), registered=registered)
    labels = brain.label_head(shape, AXES_MM)
    labels.setflags(write=False)
    return shape, labels


@lru_cache(maxsize=8)
def case(cohort, patient, visit=0):
    return make_case(CaseKey(3, cohort, patient, visit), GRID, high_grade=patient != 3)


def volume_cm3(mask, spacing_mm=SPACING_MM):
    return mask.sum() * np.prod(spacing_mm) / 1000.0


# ---- anatomy ----


@pytest.mark.parametrize("seed", [0, 1])
def test_volumes_are_those_of_adult_brains(seed):
    """Wide bounds around the means of adults (in cm^3), of textbooks."""
    _, labels = head(seed)
    cerebellum = (*brain.CEREBELLAR_CORTEX, *brain.CEREBELLAR_WHITE)
    for codes, low, high in (
        (brain.CORTEX, 350, 750),
        (brain.WHITE, 320, 700),
        (cerebellum, 90, 190),
        ((brain.BRAIN_STEM,), 15, 40),
        (brain.LATERAL_VENTRICLE, 6, 60),
        (brain.THALAMUS, 6, 20),
        (brain.CAUDATE, 3, 14),
        (brain.PUTAMEN, 4, 16),
        (brain.HIPPOCAMPUS, 2, 10),
    ):
        assert low < volume_cm3(np.isin(labels, codes)) < high, codes
    assert 1000 < volume_cm3(brain_mask(tissue_map(labels), SPACING_MM)) < 1900


def test_structures_lie_where_they_should():
    shape, labels = head(0)
    x, y, z = (axis[labels > 0] for axis in brain.head_coordinates(shape, AXES_MM))
    found = labels[labels > 0]

    def centre(code):
        chosen = found == code
        return np.array([axis[chosen].mean() for axis in (x, y, z)])

    for pair in (brain.WHITE, brain.CORTEX, brain.THALAMUS, brain.PUTAMEN, brain.LATERAL_VENTRICLE, brain.HIPPOCAMPUS):
        assert centre(pair.left)[0] < -5 and centre(pair.right)[0] > 5
    for side in (0, 1):
        assert abs(centre(brain.PUTAMEN[side])[0]) > abs(centre(brain.PALLIDUM[side])[0])
        assert abs(centre(brain.PALLIDUM[side])[0]) > abs(centre(brain.THALAMUS[side])[0])
        assert centre(brain.CAUDATE[side])[1] > centre(brain.THALAMUS[side])[1]
        assert centre(brain.CEREBELLAR_CORTEX[side])[2] < centre(brain.CORTEX[side])[2]
    assert centre(brain.FOURTH_VENTRICLE)[1] < centre(brain.BRAIN_STEM)[1]
    assert centre(brain.GLOBE)[1] > 45


@pytest.mark.parametrize("seed", [0, 1])
def test_the_brain_lies_within_fluid_within_the_skull(seed):
    _, labels = head(seed, registered=False)
    tissue = tissue_share(tissue_map(labels), ("cortex", "white", "cerebellar_cortex", "cerebellar_white")) > 0
    around = ndimage.binary_dilation(tissue) & ~tissue
    allowed = (brain.CSF, brain.BRAIN_STEM, brain.THIRD_VENTRICLE, brain.FOURTH_VENTRICLE, *brain.LATERAL_VENTRICLE)
    deep = (*brain.THALAMUS, *brain.CAUDATE, *brain.PUTAMEN, *brain.PALLIDUM, *brain.HIPPOCAMPUS, *brain.AMYGDALA)
    assert np.isin(labels[around], (*allowed, *deep, *brain.VENTRAL_DC)).all()
    # above the base, whatever lies inside the skull is closed in by bone
    upper = labels[:, :, 65:]
    inside = np.isin(upper, (brain.CSF, *brain.CORTEX, *brain.WHITE))
    assert np.isin(upper[ndimage.binary_dilation(inside) & ~inside], (brain.SKULL, brain.MARROW, *deep, *allowed)).all()


def test_white_matter_is_one_piece_and_cortex_covers_it():
    _, labels = head(0)
    white = np.isin(labels, brain.WHITE)
    parts = cc3d.connected_components(white, connectivity=6)
    assert np.bincount(parts.ravel())[1:].max() > 0.97 * white.sum()
    cortex = np.isin(labels, brain.CORTEX)
    # a folded ribbon has far more surface than the smooth hull around it
    hull = ndimage.binary_closing(np.isin(labels, (*brain.CORTEX, *brain.WHITE)), iterations=8)

    def surface(mask):
        return int((ndimage.binary_dilation(mask) & ~mask).sum())

    assert surface(white) > 1.8 * surface(hull)
    assert cortex.sum() > 0.6 * white.sum()


def test_sides_mirror_each_other_but_not_exactly():
    shape, _ = head(0)
    plain = {**vars(shape), "turn": np.eye(3), "shift_mm": np.zeros(3)}
    labels = brain.label_head(brain.HeadShape(**plain), AXES_MM, whole_head=False)
    mirrored = labels[::-1]
    for pair in (brain.WHITE, brain.CORTEX, brain.PUTAMEN, brain.LATERAL_VENTRICLE):
        left, right = labels == pair.left, mirrored == pair.right
        dice = 2 * (left & right).sum() / (left.sum() + right.sum())
        assert 0.5 < dice < 0.995, pair
        assert left.sum() == pytest.approx(right.sum(), rel=0.1)
    # with nothing of its own, a head is exactly symmetric
    symmetric = shape.warp_mm + shape.warp_mm[:, ::-1] * np.array([-1.0, 1.0, 1.0])[:, None, None, None]
    waves = shape.waves.copy()
    waves[0, waves.shape[1] // 2 :] = 0.0
    twin = brain.label_head(
        brain.HeadShape(**{**plain, "warp_mm": symmetric / 2, "waves": waves}), AXES_MM, whole_head=False
    )
    for pair in (brain.WHITE, brain.CORTEX, brain.CEREBELLAR_WHITE):
        left, right = twin[:45] == pair.left, twin[:45:-1] == pair.right  # without the middle plane
        assert (left & right).sum() > 0.99 * left.sum()


def test_heads_differ_and_seeds_reproduce_them():
    first, again, other = (head(0)[1], brain.label_head(head(0)[0], AXES_MM), head(1)[1])
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.1


def test_a_head_does_not_depend_on_the_grid():
    shape, labels = head(0)
    coarse = brain.label_head(shape, [axis[::3] for axis in AXES_MM])
    assert (coarse == labels[::3, ::3, ::3]).mean() > 0.999


def test_rotation_is_a_rotation():
    turn = brain.rotation(np.array([0.2, -0.3, 0.1]))
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1.0)
    np.testing.assert_allclose(brain.rotation(np.array([0, 0, np.pi / 2])) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


# ---- painting ----


def test_every_code_of_a_head_has_a_tissue_and_unknown_ones_are_named():
    tissues = tissue_map(head(0)[1])
    assert set(TISSUES) - {TISSUES[index] for index in np.unique(tissues)} == {
        "white_lesion",
        "soft_tissue",
        "oedema",
        "necrosis",
        "enhancing",
        "stroke",
    }
    with pytest.raises(LabelError, match="999"):
        tissue_map(np.array([[[0, 3, 999]]]))
    assert tissue_map(np.zeros((0, 2, 2), np.uint16)).shape == (0, 2, 2)


@given(st.integers(1, 4), st.integers(0, 10))
@settings(max_examples=20, deadline=None)
def test_block_mean_is_the_mean_of_blocks(subdivisions, seed):
    values = np.random.default_rng(seed).normal(size=(2 * subdivisions, 3 * subdivisions, subdivisions))
    expected = values.reshape(2, subdivisions, 3, subdivisions, 1, subdivisions).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(block_mean(values, subdivisions), expected, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_ventricles_are_in_the_brain_mask(seed):
    _, labels = head(seed)
    mask = brain_mask(tissue_map(labels), SPACING_MM)
    for codes in (brain.LATERAL_VENTRICLE, (brain.THIRD_VENTRICLE,), (brain.FOURTH_VENTRICLE,)):
        ventricle = np.isin(labels, codes)
        assert ventricle.any() and mask[ventricle].all()


def test_ventricles_that_open_wide_are_in_the_brain_mask():
    """Not even a closing of 4 mm and filled holes would take in this one."""
    labels = np.full((40, 40, 40), brain.CORTEX.left, np.uint16)
    labels[:, 15:25, 15:25] = brain.LATERAL_VENTRICLE.left
    assert brain_mask(tissue_map(labels), (1.0, 1.0, 1.0)).all()


def test_a_brain_mask_ends_where_the_spinal_cord_begins():
    labels = np.full((40, 9, 9), brain.BRAIN_STEM, dtype=np.uint16)
    labels[20:] = 512  # the cord in SynthSeg's training maps
    labels[30:] = brain.SPINAL_CORD
    mask = brain_mask(tissue_map(labels), (1.0, 1.0, 1.0))
    assert mask[:20].all() and not mask[20:].any()


@pytest.mark.parametrize(
    "preset,order",
    [
        ("t1", ("fluid", "stroke", "cortex", "white")),
        ("t1ce", ("necrosis", "cortex", "white", "enhancing")),
        ("t2", ("white", "cortex", "oedema", "fluid")),
        ("flair", ("fluid", "white", "cortex", "oedema")),
    ],
)
def test_presets_keep_the_order_of_tissues(preset, order):
    for seed in range(20):
        contrast = draw_contrast(preset, np.random.default_rng(seed))
        values = [contrast[tissue] for tissue in order]
        assert values == sorted(values), (seed, values)
        assert contrast["air"] == 0.0 and contrast.sd[0] == 0.0


def test_random_contrast_has_no_order_and_unknown_presets_are_refused():
    draws = [draw_contrast("random", np.random.default_rng(seed)) for seed in range(20)]
    assert {draw["white"] > draw["cortex"] for draw in draws} == {True, False}
    assert all(draw.mean.min() >= 0.0 and draw.mean.max() <= 1.0 for draw in draws)
    with pytest.raises(ValueError, match="pd"):
        draw_contrast("pd", np.random.default_rng(0))


def test_partial_volume_mixes_tissues_by_their_share():
    tissues = np.zeros((4, 4, 4), np.uint8)
    tissues[:1], tissues[1:] = TISSUES.index("white"), TISSUES.index("fluid")
    contrast = draw_contrast("t1", np.random.default_rng(0))
    contrast.sd[:] = 0.0
    signal = paint_tissues(tissues, contrast, np.random.default_rng(0), subdivisions=2, blur_voxels=0.0)
    np.testing.assert_allclose(signal[0], (contrast["white"] + contrast["fluid"]) / 2, rtol=1e-6)
    np.testing.assert_allclose(signal[1], contrast["fluid"], rtol=1e-6)


def test_a_scan_without_noise_is_the_signal_times_a_smooth_field():
    signal = np.full((24, 20, 16), 2.0, np.float32)
    image = scan_head(signal, (3.0, 3.0, 3.0), np.random.default_rng(0), noise=(0.0, 0.0), bias=(0.2, 0.2))
    field = np.log(image / 2.0)
    assert 0.02 < field.std() < 0.4
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3)) < 0.1
    flat = scan_head(signal, (3.0, 3.0, 3.0), np.random.default_rng(0), noise=(0.0, 0.0), bias=(0.0, 0.0))
    np.testing.assert_allclose(flat, 2.0, rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_painted_heads_reproduce_and_have_their_mask(preset):
    _, labels = head(0)
    small = labels[::2, ::2, ::2]
    image, mask = paint_head(small, (4.0, 4.0, 4.0), np.random.default_rng(5), preset=preset)
    again, _ = paint_head(small, (4.0, 4.0, 4.0), np.random.default_rng(5), preset=preset)
    other, _ = paint_head(small, (4.0, 4.0, 4.0), np.random.default_rng(6), preset=preset)
    np.testing.assert_array_equal(image, again)
    assert image.dtype == np.float32 and mask.dtype == bool and image.shape == mask.shape == small.shape
    assert image.min() >= 0 and np.isfinite(image).all() and (image != other).any()
    assert mask[np.isin(small, brain.WHITE)].mean() > 0.99
    assert not mask[np.isin(small, (0, brain.SKULL, brain.FAT))].any()
    if preset == "t1":
        means = [image[np.isin(small, codes)].mean() for codes in ((brain.CSF,), brain.CORTEX, brain.WHITE)]
        assert means == sorted(means)


def test_subdivided_labels_give_the_image_of_their_blocks():
    _, labels = head(0)
    even = labels[:90, :120, :104]
    image, mask = paint_head(even, (4.0, 4.0, 4.0), np.random.default_rng(0), subdivisions=2)
    assert image.shape == mask.shape == (45, 60, 52)
    assert volume_cm3(mask, (4.0, 4.0, 4.0)) == pytest.approx(
        volume_cm3(brain_mask(tissue_map(even), SPACING_MM)), rel=0.06
    )


def test_specks_of_brain_that_lie_apart_are_not_in_the_mask():
    labels = np.zeros((24, 24, 24), np.uint16)
    labels[4:14, 4:14, 4:14] = brain.WHITE.left
    labels[14:20, 4:14, 4:14] = brain.CEREBELLAR_CORTEX.left
    labels[7:9, 7:9, 7:9] = brain.LATERAL_VENTRICLE.left
    expected = labels > 0
    labels[22, 22, 22] = brain.CORTEX.right
    np.testing.assert_array_equal(brain_mask(tissue_map(labels), (2.0, 2.0, 2.0)), expected)


def test_an_empty_label_map_is_air():
    image, mask = paint_head(np.zeros((8, 8, 8), np.uint16), (3.0, 3.0, 3.0), np.random.default_rng(0))
    assert not mask.any() and image.max() < 0.3


def test_deformation_of_no_strength_is_none_and_reproduces():
    _, labels = head(0)
    small = labels[::3, ::3, ::3]
    rng = np.random.default_rng
    np.testing.assert_array_equal(deform_labels(small, (6.0, 6.0, 6.0), rng(0), strength=0.0), small)
    moved = deform_labels(small, (6.0, 6.0, 6.0), rng(1))
    np.testing.assert_array_equal(moved, deform_labels(small, (6.0, 6.0, 6.0), rng(1)))
    assert moved.dtype == small.dtype and set(np.unique(moved)) <= set(np.unique(small))
    assert 0.05 < (moved != small).mean() < 0.6
    assert (moved > 0).sum() == pytest.approx((small > 0).sum(), rel=0.3)


def test_deformation_onto_another_grid_takes_the_nearest_label():
    labels = np.arange(4 * 3 * 2, dtype=np.uint16).reshape(4, 3, 2)
    axes_mm = [np.array([-3.0, -1.0, 1.0, 3.0]), np.array([0.0]), np.array([-0.9, 0.9, 5.0])]
    moved = deform_labels(labels, (2.0, 2.0, 2.0), np.random.default_rng(0), strength=0.0, axes_mm=axes_mm)
    np.testing.assert_array_equal(moved[:, 0, :2], labels[:, 1])
    assert not moved[:, :, 2].any()


# ---- lesions ----


def anatomy_of(labels, spacing_mm=SPACING_MM):
    tissues = tissue_map(labels)
    mask = brain_mask(tissues, spacing_mm)
    share = lambda *names: tissue_share(tissues, names)  # noqa: E731
    cerebrum = share("cortex", "white", "thalamus", "striatum", "pallidum", "hippocampus") > 0
    return Anatomy(
        mask,
        share("cortex"),
        share("white"),
        cerebrum,
        cerebrum | (share("cerebellar_cortex", "cerebellar_white", "brain_stem") > 0),
        np.broadcast_to(np.ix_(*AXES_MM)[0] < 0, mask.shape),
        spacing_mm,
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_tumour_of_high_grade_is_a_ring_in_oedema(seed):
    anatomy = anatomy_of(head(0)[1])
    labels = grow_tumour(anatomy, np.random.default_rng(seed))
    assert set(np.unique(labels)) == {0, 1, 2, 4}
    assert anatomy.cerebrum[labels > 0].all()
    core = np.isin(labels, (1, 4))
    radius_mm = (0.75e3 * volume_cm3(core) / np.pi) ** (1 / 3)
    assert 9.9 <= radius_mm <= 21.1
    # necrosis touches neither oedema nor what is outside, but for what the brain's own borders cut off
    outside = ndimage.binary_dilation(labels == 1) & ~core
    assert not outside.any()
    assert 0.6 < (labels == 2).sum() / core.sum() < 2.7
    grown = grow_tumour(anatomy, np.random.default_rng(seed), growth=1.2)
    assert np.isin(grown, (1, 4)).sum() == pytest.approx(1.2**3 * core.sum(), rel=0.02)


def test_a_tumour_of_low_grade_hardly_enhances():
    labels = grow_tumour(anatomy_of(head(0)[1]), np.random.default_rng(0), high_grade=False)
    assert (labels == 4).sum() < 0.25 * (labels == 1).sum()
    assert 0.1 < (labels == 2).sum() / np.isin(labels, (1, 4)).sum() < 0.7


def test_strokes_keep_to_one_side_and_do_not_overlap():
    anatomy = anatomy_of(head(0)[1])
    sites, counts = set(), set()
    for seed in range(8):
        lesions = grow_strokes(anatomy, np.random.default_rng(seed))
        counts.add(len(lesions))
        together = np.zeros(anatomy.brain.shape, dtype=int)
        for lesion in lesions:
            together += lesion.mask
            sites.add(lesion.site)
            assert anatomy.cerebrum[lesion.mask].all()
            assert len(np.unique(anatomy.left[lesion.mask])) == 1
            low, high = (1.3, 46.0) if lesion.site == "cortical" else (0.25, 3.2)
            assert low < volume_cm3(lesion.mask) < high
            assert lesion.membership[lesion.mask].mean() > 0.6
            assert cc3d.connected_components(lesion.mask).max() == 1
        assert together.max() == 1
    assert sites == {"cortical", "deep"} and {1, 2} <= counts


def test_cortical_sites_lie_at_the_surface_and_deep_ones_far_from_it():
    anatomy = anatomy_of(head(0)[1])
    depth_mm = ndimage.distance_transform_edt(anatomy.brain, sampling=SPACING_MM)
    assert depth_mm[stroke_sites(anatomy, "cortical")].max() <= 8.01
    assert depth_mm[stroke_sites(anatomy, "deep")].min() > 30.0


def test_planted_shapes_are_scaled_from_the_atlas_brain_to_this_one():
    brain_box = np.zeros((40, 50, 45), dtype=bool)
    brain_box[5:35, 10:40, 5:40] = True
    anatomy = Anatomy(
        brain_box, brain_box * 1.0, brain_box * 0.0, brain_box, brain_box, np.zeros_like(brain_box), (4.0, 5.0, 4.0)
    )
    axes_mm = [np.arange(-90.0, 91.0), np.arange(-125.0, 92.0), np.arange(-71.0, 110.0)]
    x, y, z = np.ix_(*axes_mm)
    shape = (np.abs(x - 36.0) < 18.0) & (np.abs(y + 16.0) < 30.0) & (np.abs(z - 5.0) < 22.0)
    (lesion,) = plant_shapes(shape, axes_mm, anatomy)
    (mirrored,) = plant_shapes(shape, axes_mm, anatomy, mirrored=True)
    places = np.argwhere(lesion.mask)
    # a quarter to the right of the middle in the atlas is so in this brain
    np.testing.assert_allclose(places.mean(axis=0), [5 + 30 * 0.75 - 0.5, 10 + 15 - 0.5, 5 + 17.5 - 0.5], atol=0.51)
    np.testing.assert_allclose(np.ptp(places, axis=0) + 1, [30 * 0.25, 30 / 3, 35 * 44 / 154], atol=1.01)
    np.testing.assert_allclose(np.argwhere(mirrored.mask).mean(axis=0)[0], 39 - places.mean(axis=0)[0], atol=0.51)
    assert plant_shapes(np.zeros_like(shape), axes_mm, anatomy) == []


# ---- whole cases ----


def test_healthy_cases_have_no_lesions_and_reproduce():
    one, again = case(HEALTHY, 0), make_case(CaseKey(3, HEALTHY, 0), GRID)
    np.testing.assert_array_equal(one.images["t1"], again.images["t1"])
    assert list(one.images) == ["t1"] and one.images["t1"].dtype == np.int16
    assert not one.lesions.any() and one.records == [] and one.head == "procedural"
    assert (one.images["t1"] != make_case(CaseKey(4, HEALTHY, 0), GRID).images["t1"]).any()
    # the head is there, not the brain alone
    assert one.images["t1"][~one.brain].max() > 0.7 * np.median(one.images["t1"][one.brain])


@pytest.mark.parametrize("patient", [0, 3])
def test_tumours_look_as_in_each_contrast(patient):
    tumour = case(TUMOUR, patient)
    assert list(tumour.images) == ["t1", "t1ce", "t2", "flair"]
    assert not any(image[~tumour.brain].any() for image in tumour.images.values())
    assert tumour.brain[tumour.tumour > 0].all() and set(np.unique(tumour.tumour)) <= {0, 1, 2, 4}
    inside = ndimage.binary_erosion(tumour.brain, iterations=2)
    healthy = {name: np.median(image[inside & (tumour.tumour == 0)]) for name, image in tumour.images.items()}
    means = {name: [image[tumour.tumour == n].mean() for n in (1, 2)] for name, image in tumour.images.items()}
    assert means["t1"][0] < 0.85 * healthy["t1"]
    assert means["t2"][0] > healthy["t2"] and means["t2"][1] > healthy["t2"]
    assert means["flair"][1] > 1.2 * healthy["flair"]
    if patient == 0:
        ring = {name: image[tumour.tumour == 4].mean() for name, image in tumour.images.items()}
        assert ring["t1ce"] > 1.1 * healthy["t1ce"] and ring["t1"] < 1.05 * healthy["t1"]
        assert means["t1ce"][0] < 0.85 * ring["t1ce"]
    (record,) = tumour.records
    assert record["voxels"] == (tumour.tumour > 0).sum() and record["grade"] == ("high" if patient == 0 else "low")


def test_strokes_are_dark_and_recorded():
    for patient in (0, 3):
        stroke = case(STROKE, patient)
        image = stroke.images["t1"]
        inside = ndimage.binary_erosion(stroke.brain, iterations=2)
        assert image[stroke.lesions].mean() < 0.75 * np.median(image[inside & ~stroke.lesions])
        assert [record["voxels"] for record in stroke.records] == [lesion.mask.sum() for lesion in stroke.strokes]
        assert stroke.records[0]["volume_mm3"] == pytest.approx(
            stroke.records[0]["voxels"] * np.prod(stroke.spacing_mm), abs=1e-3
        )


def test_a_second_visit_has_the_same_head_and_a_larger_tumour():
    first, second = case(TUMOUR, 0), case(TUMOUR, 0, 1)
    np.testing.assert_array_equal(first.brain, second.brain)
    assert (first.images["t1"] != second.images["t1"]).any()
    assert second.lesions.sum() > 1.4 * first.lesions.sum()
    assert (first.lesions & second.lesions).sum() > 0.8 * first.lesions.sum()


@pytest.mark.parametrize("frame,corner", [(BRATS, (0.0, -239.0, 0.0)), (ATLAS, (98.0, 134.0, -72.0)), (IXI, None)])
def test_images_lie_in_patient_coordinates_as_their_header_says(frame, corner):
    grid = frame.full_grid
    point = [len(axis) // 3 for axis in frame.axes_mm(grid)]
    array = np.zeros(frame.sizes(grid), dtype=np.uint8)
    array[tuple(point)] = 1
    image = frame.as_image(array)
    assert image.GetSize() == tuple(reversed(grid))
    (index,) = np.argwhere(sitk.GetArrayViewFromImage(image))
    left, back, up = image.TransformIndexToPhysicalPoint([int(part) for part in index[::-1]])
    expected = [axis[at] * frame.head_scale for axis, at in zip(frame.axes_mm(grid), point, strict=True)]
    here = np.array([-left, -back, up]) - np.array([-1.0, -1.0, 1.0]) * frame.centre_mm
    np.testing.assert_allclose(here, expected, atol=1e-3)
    if corner:
        assert image.GetOrigin() == corner and image.GetSpacing() == (1.0, 1.0, 1.0)
    turned = frame.as_image(array, oblique_deg=10.0, shift_mm=(1.0, 2.0, 3.0))
    there = np.array(turned.TransformIndexToPhysicalPoint([int(part) for part in index[::-1]]))
    offset = np.asarray(frame.centre_mm)
    turn = brain.rotation(np.array([np.deg2rad(10.0), 0.0, 0.0]))
    np.testing.assert_allclose(there - offset - [1, 2, 3], turn @ (np.array([left, back, up]) - offset), atol=1e-3)


def test_brains_are_inside_the_field_of_view_of_every_release():
    for cohort in (HEALTHY, TUMOUR, STROKE):
        for patient in (0, 3):
            mask = case(cohort, patient).brain
            for axis in range(2):
                ends = mask.any(axis=tuple(other for other in range(3) if other != axis))
                assert not ends[0] and not ends[-1]
            assert not mask[:, :, -1].any()


# ---- the user's own anatomy and shapes ----


def write_nifti(path, array, spacing_mm=(4.0, 4.0, 4.0)):
    """An array (x, y, z) whose middle is the origin of patient coordinates."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array[::-1, ::-1].transpose(2, 1, 0)))
    image.SetSpacing(spacing_mm)
    image.SetOrigin([-(n - 1) / 2 * size for n, size in zip(array.shape, spacing_mm, strict=True)])
    sitk.WriteImage(image, str(path))


def test_heads_can_be_painted_into_label_maps(tmp_path):
    for number in (0, 1):
        write_nifti(tmp_path / f"head_{number}.nii.gz", head(number)[1][::2, ::2, ::2].astype(np.int16))
    inputs = Inputs(labels=tuple(sorted(tmp_path.iterdir())))
    labels, spacing_mm, lower, upper = load_label_map(inputs.labels[0])
    np.testing.assert_array_equal(labels, head(0)[1][::2, ::2, ::2])
    assert spacing_mm == (4.0, 4.0, 4.0) and all(
        low < -30 and high > 30 for low, high in zip(lower, upper, strict=True)
    )
    heads = set()
    for patient in range(4):
        painted = make_case(CaseKey(0, HEALTHY, patient), GRID, inputs)
        heads.add(painted.head)
        assert 900 < volume_cm3(painted.brain, painted.spacing_mm) < 2100
    assert heads == {"head_0.nii.gz", "head_1.nii.gz"}
    registered = make_case(CaseKey(0, STROKE, 0), GRID, inputs)
    assert registered.lesions.any() and registered.brain[registered.lesions].all()


def test_label_maps_that_are_none_are_named(tmp_path):
    for name, array, word in (
        ("strange", np.full((8, 8, 8), 999, np.int16), "999"),
        ("empty", np.zeros((8, 8, 8), np.int16), "no brain"),
        ("image", np.full((8, 8, 8), 0.5, np.float32), "no label"),
    ):
        write_nifti(tmp_path / f"{name}.nii.gz", array)
        with pytest.raises(LabelError, match=rf"(?s){name}.*{word}"):
            load_label_map(tmp_path / f"{name}.nii.gz")
    with pytest.raises(InputError, match="empty mask"):
        load_shape(tmp_path / "empty.nii.gz")


def test_shapes_outside_the_brain_are_an_error(tmp_path):
    shape = np.zeros((46, 55, 46), np.uint8)
    shape[0, 0, 0] = 1
    write_nifti(tmp_path / "far.nii.gz", shape)
    with pytest.raises(InputError, match="MNI"):
        make_case(CaseKey(0, STROKE, 0), GRID, Inputs(shapes=(tmp_path / "far.nii.gz",)))


def test_real_label_maps_and_stroke_shapes(real_data):
    inputs = Inputs(
        tuple(sorted((real_data / "head_labels").glob("*.nii.gz")))[:2],
        tuple(sorted((real_data / "stroke_masks").glob("*.nii.gz"))),
    )
    assert inputs.labels and inputs.shapes
    real_mm3 = sorted(load_shape(path)[0].sum() for path in inputs.shapes)
    for patient in range(2):
        stroke = make_case(CaseKey(1, STROKE, patient), GRID, inputs)
        assert 900 < volume_cm3(stroke.brain, stroke.spacing_mm) < 2200
        assert {record["site"] for record in stroke.records} == {"real_shape"}
        assert stroke.brain[stroke.lesions].all()
        assert 0.2 * real_mm3[0] < stroke.lesions.sum() * np.prod(stroke.spacing_mm) < 1.5 * real_mm3[-1]
        image = stroke.images["t1"]
        inside = ndimage.binary_erosion(stroke.brain, iterations=2)
        assert image[stroke.lesions].mean() < 0.8 * np.median(image[inside & ~stroke.lesions])
    tumour = make_case(CaseKey(1, TUMOUR, 0), GRID, inputs)
    assert 900 < volume_cm3(tumour.brain, tumour.spacing_mm) / BRATS.head_scale**3 < 2000
