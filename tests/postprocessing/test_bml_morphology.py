"""The steps of ``bml_morphology`` against scipy, scikit-image and trying everything, and its edge cases; error maps."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import exposure, filters

from nnunet_anomaly.errors import GeometryError, InputError, SettingsError
from nnunet_anomaly.geometry import close_mm, open_mm
from nnunet_anomaly.postprocessing.bml_morphology import (
    above_otsu,
    bml_morphology,
    bright_residual,
    element_spacing_mm,
    error_map_morphology,
    error_residual,
    otsu_threshold,
    reaches_nothing,
    residual_morphology,
    slice_axis,
    to_scale_of,
)
from nnunet_anomaly.settings import AnomalySettings, BmlSettings

SPACING_MM = (3.0, 0.5, 0.5)
PLAIN = BmlSettings(opening_mm=0, closing_mm=0, minimum_mm3=0)
each_equalisation = pytest.mark.parametrize("equalisation", ["slice", "volume", "none"])
each_scope = pytest.mark.parametrize("otsu", ["slice", "volume"])


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def knee(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blobs in 0 to 59, bone in slices 1 to 3 of 5, and a reconstruction that differs from it in the bone alone."""
    rng = np.random.default_rng(seed)
    blobs = ndimage.uniform_filter(rng.random((2, 5, 16, 20)), (0, 1, 3, 3))
    image, other = np.round(59 * (blobs - blobs.min()) / np.ptp(blobs)).astype(int)
    bone = np.zeros(image.shape, bool)
    bone[1:4, 3:13, 2:16] = True
    return image, np.where(bone, other, image), bone


def with_lesion(dtype=np.float64) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image with a lesion of 3 slices x 5 x 6 pixels in bone of one value, its reconstruction, bone and lesion."""
    bone = np.zeros((5, 16, 20), bool)
    bone[:, 2:14, 2:18] = True
    clean = np.where(bone, 40, 85 + np.arange(20))
    lesion = np.zeros(bone.shape, bool)
    lesion[1:4, 5:10, 6:12] = True
    return np.where(lesion, clean + 30, clean).astype(dtype), clean.astype(dtype), bone, lesion


# --- histogram equalisation and the residual -------------------------------------------------------------------------


def equalised(values: np.ndarray) -> np.ndarray:
    """By definition: for every voxel the share of voxels that are darker, and half of those that are as bright."""
    flat = values.ravel()
    darker, equal = flat[:, None] > flat[None, :], flat[:, None] == flat[None, :]
    return (darker + 0.5 * equal).mean(axis=1).reshape(values.shape)


@each_equalisation
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), axis=st.integers(0, 2))
def test_residual_by_definition(equalisation, seed, axis):
    rng = np.random.default_rng(seed)
    image, other = rng.integers(-4, 5, (2, 4, 5, 6))
    bone = rng.random(image.shape) < 0.4
    reconstruction = np.where(bone, other, image)
    if equalisation == "slice":
        by_slice = [np.stack([equalised(part) for part in np.moveaxis(x, axis, 0)]) for x in (image, reconstruction)]
        ours, theirs = (np.moveaxis(x, 0, axis) for x in by_slice)
    else:
        ours, theirs = (equalised(x) if equalisation == "volume" else x for x in (image, reconstruction))
    expected = np.where(bone, np.maximum(ours - theirs, 0), 0)
    found = bright_residual(image, reconstruction, bone, equalisation, axis)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_equalisation_as_by_scikit_image_where_it_does_not_bin_and_no_two_voxels_are_equal():
    rng = np.random.default_rng(1)
    image, other = (rng.permutation(1200).reshape(1, 30, 40) for _ in range(2))
    bone = np.ones(image.shape, bool)
    expected = exposure.equalize_hist(image) - exposure.equalize_hist(other)
    found = bright_residual(image, other, bone, "slice", 0)
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-6)


MAPS = {
    "exponential": lambda x: np.exp(x / 20),
    "cubic": lambda x: (x - 30.0) ** 3,
    "line": lambda x: 7 * x - 100,
    "float32": lambda x: np.sqrt(x + 1.0).astype(np.float32),
    "16 bits": lambda x: (x * 300 - 9000).astype(np.int16),
    "8 bits": lambda x: x.astype(np.uint8),
}


@each_scope
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), name=st.sampled_from(sorted(MAPS)), equalisation=st.sampled_from(["slice", "volume"])
)
def test_any_increasing_change_of_intensities_changes_nothing(otsu, seed, name, equalisation):
    image, reconstruction, bone = knee(seed)
    chosen = replace(PLAIN, equalisation=equalisation, otsu=otsu, opening_mm=0.5, minimum_mm3=2)
    mask, residual = bml_morphology(image, reconstruction, bone, SPACING_MM, chosen)
    other = bml_morphology(MAPS[name](image), MAPS[name](reconstruction), bone, SPACING_MM, chosen)
    np.testing.assert_array_equal(other[0], mask)
    np.testing.assert_array_equal(other[1], residual)


@each_equalisation
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6), axes=st.sets(st.integers(0, 2), min_size=1), otsu=st.sampled_from(["slice", "volume"])
)
def test_mirrored_input_gives_the_mirrored_result(equalisation, seed, axes, otsu):
    image, reconstruction, bone = knee(seed)
    chosen = BmlSettings(equalisation, otsu, "ball", 0.5, 1.0, 2.0)
    found = bml_morphology(image, reconstruction, bone, SPACING_MM, chosen)
    mirrored = bml_morphology(*(np.flip(x, tuple(axes)) for x in (image, reconstruction, bone)), SPACING_MM, chosen)
    for one, other in zip(found, mirrored, strict=True):
        np.testing.assert_array_equal(np.flip(one, tuple(axes)), other)


# --- the scale of the reconstruction ---------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-1000, 1000))
def test_any_scale_of_the_reconstruction_is_undone(seed, slope, offset):
    image, reconstruction, bone = knee(seed)
    back = to_scale_of(slope * reconstruction + offset, image, ~bone)
    np.testing.assert_allclose(back, reconstruction, atol=1e-6)


def test_known_voxels_get_the_mean_and_deviation_of_the_image_without_its_background():
    rng = np.random.default_rng(3)
    image = rng.normal(500, 80, (4, 10, 10))
    reconstruction = 0.001 * image + rng.normal(0, 0.05, image.shape)
    known = rng.random(image.shape) < 0.7
    image[0], reconstruction[0] = 0, 0.9  # nnU-Net does not normalise what is 0 in a cropped image
    back, telling = to_scale_of(reconstruction, image, known), known & (image != 0)
    assert back[telling].mean() == pytest.approx(image[telling].mean())
    assert back[telling].std() == pytest.approx(image[telling].std())
    assert np.corrcoef(back.ravel(), reconstruction.ravel())[0, 1] == pytest.approx(1)  # one line for all voxels


def test_the_same_scale_leaves_the_reconstruction():
    image, reconstruction, bone = knee()
    np.testing.assert_array_equal(to_scale_of(reconstruction, image, ~bone), reconstruction)


def test_a_bone_that_fills_the_image_needs_ranks():
    image, reconstruction, bone = knee()
    everywhere = np.ones_like(bone)
    for equalisation in ("slice", "volume"):
        chosen = replace(PLAIN, equalisation=equalisation)
        expected = bml_morphology(image, reconstruction, everywhere, SPACING_MM, chosen)
        found = bml_morphology(image, reconstruction / 7 - 3, everywhere, SPACING_MM, chosen)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        assert found[1].any()
    with pytest.raises(InputError, match=r"fills the image.*Take slice or volume"):
        bml_morphology(image, reconstruction, everywhere, SPACING_MM, replace(PLAIN, equalisation="none"))


@each_equalisation
@pytest.mark.parametrize("outside", [0, 300])
def test_one_value_outside_the_bone_tells_no_scale_even_if_it_is_the_same(equalisation, outside):
    image, reconstruction, bone = knee()
    cut = [np.where(bone, array, outside) for array in (image, reconstruction / 100)]
    with pytest.raises(InputError, match="nothing tells the scale"):
        bml_morphology(*cut, bone, SPACING_MM, replace(PLAIN, equalisation=equalisation))


@each_equalisation
@pytest.mark.parametrize("factor", [1e300, 1e38])
def test_values_near_the_limits_of_numbers_are_refused_or_exact(equalisation, factor):
    image, reconstruction, bone = knee()
    chosen = replace(PLAIN, equalisation=equalisation)
    if equalisation == "none" or factor == 1e300:
        with pytest.raises(InputError, match="near the limits of floating-point"):
            bml_morphology(image * factor, reconstruction * factor / 2, bone, SPACING_MM, chosen)
    else:
        found, _ = bml_morphology(image * factor, reconstruction * factor / 2, bone, SPACING_MM, chosen)
        expected, _ = bml_morphology(image, reconstruction, bone, SPACING_MM, chosen)
        np.testing.assert_array_equal(found, expected)


def test_what_tells_no_scale_is_refused():
    image, reconstruction, bone = knee()
    one_value = np.full(image.shape, 7)
    for x, y in ((image, one_value), (one_value, reconstruction), (image * bone, reconstruction * bone + 0.5)):
        with pytest.raises(InputError, match="nothing tells the scale"):
            bml_morphology(x, y, bone, SPACING_MM, PLAIN)


# --- Otsu ------------------------------------------------------------------------------------------------------------


def otsu_by_trying(values: np.ndarray) -> float | None:
    """Variance between classes at every cut between two values that occur."""
    best, found = -1.0, None
    for cut in np.unique(values)[:-1]:
        low, high = values[values <= cut], values[values > cut]
        between = low.size * high.size * (low.mean() - high.mean()) ** 2
        if between > best * (1 + 1e-12):
            best, found = between, float(cut)
    return found


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-100, 100, width=16), max_size=30))
def test_otsu_as_by_trying_every_cut(values):
    values = np.array(values, dtype=np.float64)
    found, expected = otsu_threshold(values), otsu_by_trying(values)
    if found is None or expected is None:
        assert found is expected
        return

    def between(cut: float) -> float:
        low, high = values[values <= cut], values[values > cut]
        return low.size * high.size * (low.mean() - high.mean()) ** 2

    assert between(found) == pytest.approx(between(expected), rel=1e-9)


def test_otsu_as_by_scikit_image_where_it_does_not_bin():
    rng = np.random.default_rng(4)
    values = np.r_[rng.normal(60, 15, 500), rng.normal(160, 20, 200)].clip(0, 255).astype(np.uint8)
    assert otsu_threshold(values) == filters.threshold_otsu(values)


@pytest.mark.parametrize("values", [[], [3.0], [2.5] * 9, [0] * 4])
def test_otsu_has_no_threshold_without_two_values(values):
    assert otsu_threshold(np.array(values)) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 2))
def test_otsu_of_all_bone_voxels_by_scope(seed, axis):
    rng = np.random.default_rng(seed)
    residual = np.maximum(rng.normal(0, 1, (4, 5, 6)), 0)  # with many zeros, which count
    bone = rng.random(residual.shape) < 0.6
    whole = bone & (residual > otsu_by_trying(residual[bone]))
    np.testing.assert_array_equal(above_otsu(residual, bone, "volume", axis), whole)
    by_slice = above_otsu(residual, bone, "slice", axis)
    for index in range(residual.shape[axis]):
        values, inside = residual.take(index, axis), bone.take(index, axis)
        cut = otsu_by_trying(values[inside])
        expected = inside & (values > (np.inf if cut is None else cut))
        np.testing.assert_array_equal(by_slice.take(index, axis), expected)


# --- opening, closing, volume ----------------------------------------------------------------------------------------


def disc(radius: float) -> np.ndarray:
    reach = np.arange(-int(radius), int(radius) + 1)
    return (reach[:, None] ** 2 + reach[None, :] ** 2 <= radius**2)[np.newaxis]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 1.5, 2.0, 3.2]), st.floats(0.5, 4))
def test_discs_open_and_close_as_by_scipy_slice_by_slice(seed, pixels, thickness_mm):
    mask = ndimage.uniform_filter(np.random.default_rng(seed).random((4, 14, 15)), (1, 3, 3)) > 0.5
    spacing_mm, radius_mm = (thickness_mm, 0.5, 0.5), 0.5 * pixels
    element_mm = element_spacing_mm(spacing_mm, 0, "disc", radius_mm)
    np.testing.assert_array_equal(
        open_mm(mask, radius_mm, element_mm), ndimage.binary_opening(mask, disc(pixels))
    )  # beyond the edge there is nothing
    pad = ((0, 0), (4, 4), (4, 4))
    expected = ndimage.binary_closing(np.pad(mask, pad), disc(pixels))[:, 4:-4, 4:-4]
    np.testing.assert_array_equal(close_mm(mask, radius_mm, element_mm), expected)
    assert element_spacing_mm(spacing_mm, 0, "ball", radius_mm) == spacing_mm
    assert element_spacing_mm(spacing_mm[1:], None, "disc", radius_mm) == spacing_mm[1:]


def test_all_steps_in_their_order():
    image, reconstruction, bone = knee(0)
    chosen = BmlSettings("volume", "slice", "disc", 0.5, 1.0, 10.0)
    mask, residual = bml_morphology(image, reconstruction, bone, SPACING_MM, chosen)
    expected = above_otsu(bright_residual(image, reconstruction, bone, "volume", 0), bone, "slice", 0)
    expected = ndimage.binary_opening(expected, disc(1))
    pad = ((0, 0), (3, 3), (3, 3))
    expected = ndimage.binary_closing(np.pad(expected, pad), disc(2))[:, 3:-3, 3:-3] & bone
    found, count = ndimage.label(expected, np.ones((3, 3, 3)))
    sizes = np.bincount(found.ravel(), minlength=count + 1)
    assert (sizes[1:] * 0.75 < 10).any() and (sizes[1:] * 0.75 >= 10).any()
    np.testing.assert_array_equal(mask, expected & (sizes[found] * 0.75 >= 10))
    assert not mask[~bone].any() and not residual[~bone].any()


def test_closing_does_not_leave_the_bone():
    image, clean, bone, lesion = with_lesion()
    bone[:, 7] = False  # a gap through the lesion
    mask, _ = bml_morphology(image, np.where(bone, clean, image), bone, SPACING_MM, replace(PLAIN, closing_mm=2))
    np.testing.assert_array_equal(mask, lesion & bone)


@each_equalisation
@each_scope
@pytest.mark.parametrize("element", ["disc", "ball"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_a_known_lesion_is_found_exactly(equalisation, otsu, element, dtype):
    image, clean, bone, lesion = with_lesion(dtype)
    chosen = BmlSettings(equalisation, otsu, element, 0.5, 0.5, 58.5)  # 3 x (5 x 6 - 4 corners) voxels of 0.75 mm^3
    given = [array.copy() for array in (image, clean, bone)]
    expected = ndimage.binary_opening(lesion, disc(1))
    mask, _ = bml_morphology(image, clean, bone, SPACING_MM, chosen)
    np.testing.assert_array_equal(mask, expected)
    on_another_scale, _ = bml_morphology(image, clean / 200 + 0.3, bone, SPACING_MM, chosen)
    np.testing.assert_array_equal(on_another_scale, expected)
    for array, before in zip((image, clean, bone), given, strict=True):
        np.testing.assert_array_equal(array, before)
    assert not bml_morphology(image, clean, bone, SPACING_MM, replace(chosen, minimum_mm3=58.6))[0].any()


def test_a_dark_lesion_is_none():
    image, clean, bone, _ = with_lesion()
    for equalisation in ("slice", "volume", "none"):
        swapped = bml_morphology(clean, image, bone, SPACING_MM, replace(PLAIN, equalisation=equalisation))
        assert not (swapped[0] & with_lesion()[3]).any()


# --- error maps ------------------------------------------------------------------------------------------------------


@each_scope
@pytest.mark.parametrize("element", ["disc", "ball"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.float64])
def test_an_error_map_in_the_bone_is_the_residual(otsu, element, dtype):
    image, reconstruction, bone = knee(3)
    difference = np.abs(image - reconstruction).astype(dtype)
    difference[~bone] = 90  # counts nowhere
    given = difference.copy()
    for equalisation in ("slice", "none"):  # of no meaning here
        chosen = BmlSettings(equalisation, otsu, element, 0.5, 1.0, 2.0)
        mask, residual = error_map_morphology(difference, bone, SPACING_MM, chosen)
        assert residual.dtype == np.float32
        np.testing.assert_array_equal(residual, np.where(bone, np.abs(image - reconstruction), 0))
        expected = above_otsu(residual, bone, otsu, 0)
        expected = open_mm(expected, 0.5, element_spacing_mm(SPACING_MM, 0, element, 1.0))
        expected = close_mm(expected, 1.0, element_spacing_mm(SPACING_MM, 0, element, 1.0)) & bone
        found, count = ndimage.label(expected, np.ones((3, 3, 3)))
        sizes = np.bincount(found.ravel(), minlength=count + 1)
        np.testing.assert_array_equal(mask, expected & (sizes[found] * 0.75 >= 2))
        assert mask.any()
    np.testing.assert_array_equal(difference, given)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["slice", "volume"]), st.sampled_from([1, 2]))
def test_the_error_map_of_bright_differences_gives_the_mask_of_the_reconstruction(seed, otsu, axis):
    image, reconstruction, bone = knee(seed)
    chosen = BmlSettings("none", otsu, "disc", 0.5, 1.0, 2.0, axis)
    mask, residual = bml_morphology(image, reconstruction, bone, SPACING_MM, chosen)
    bright = np.maximum(image - reconstruction, 0)
    for one, other in zip((mask, residual), error_map_morphology(bright, bone, SPACING_MM, chosen), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(residual_morphology(residual, bone, SPACING_MM, chosen), mask)


def test_squared_differences_show_dark_lesions_too():
    image, clean, bone, lesion = with_lesion()
    for bright, dark in ((image, clean), (clean, image)):
        mask, _ = error_map_morphology((bright - dark) ** 2, bone, SPACING_MM, PLAIN)
        np.testing.assert_array_equal(mask, lesion)
        bright_alone, _ = bml_morphology(bright, dark, bone, SPACING_MM, replace(PLAIN, equalisation="none"))
        np.testing.assert_array_equal(bright_alone, lesion & (bright > dark))


def test_edges_of_error_maps():
    error, bone = np.ones((4, 6, 7)), np.ones((4, 6, 7), bool)
    assert not error_map_morphology(error, bone, SPACING_MM, PLAIN)[0].any()  # one value: no threshold
    assert not error_map_morphology(error, ~bone, SPACING_MM, PLAIN)[0].any()
    assert error_map_morphology(error[:0], bone[:0], SPACING_MM, PLAIN)[0].shape == (0, 6, 7)
    assert error_map_morphology(error[0], bone[0], (1, 1), PLAIN)[1].shape == (6, 7)
    assert (error_residual(error * -0.0, bone) == 0).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN, infinite"), (np.inf, "NaN, infinite"), (1e39, "NaN, infinite"), (-0.25, "down to -0.25")],
)
def test_what_is_no_error_map_is_refused_outside_the_bone_too(value, message):
    error, bone = np.ones((4, 6, 7)), np.zeros((4, 6, 7), bool)
    bone[1] = True
    error[0, 0, 0] = value
    with pytest.raises(InputError, match=message):
        error_map_morphology(error, bone, SPACING_MM, PLAIN)
    with pytest.raises(InputError, match="no numbers"):
        error_residual(np.full(bone.shape, "a"), bone)
    for wrong in (bone[1:], bone[0]):
        with pytest.raises(GeometryError, match="same grid"):
            error_residual(np.ones(bone.shape), wrong)
    with pytest.raises(GeometryError, match="same grid"):
        error_residual(np.ones(5), np.ones(5, bool))
    with pytest.raises(GeometryError, match="spacing_mm"):
        error_map_morphology(np.ones(bone.shape), bone, (1, 1), PLAIN)


# --- what is defined at the edges ------------------------------------------------------------------------------------


@each_equalisation
@each_scope
def test_edges_of_what_is_defined(equalisation, otsu):
    chosen = replace(BmlSettings(), equalisation=equalisation, otsu=otsu)
    image, clean, bone, lesion = with_lesion()
    without, residual = bml_morphology(image, clean, np.zeros_like(bone), SPACING_MM, chosen)  # no bone
    assert without.dtype == bool and not without.any() and not residual.any()
    filled = bone.copy()
    filled[1:] = True  # bone fills every slice but one
    found, _ = bml_morphology(image, clean, filled, SPACING_MM, replace(PLAIN, equalisation=equalisation, otsu=otsu))
    np.testing.assert_array_equal(found & bone, lesion)
    flat = image.copy()
    flat[1:] = 7  # constant slices
    found, residual = bml_morphology(flat, flat, bone, SPACING_MM, chosen)
    assert not found.any() and not residual.any()
    flat = np.where(bone, 7, clean)
    brighter = np.where(bone, flat + 5, flat)  # all of the bone is brighter by the same: no contrast in it
    assert not bml_morphology(brighter, flat, bone, SPACING_MM, chosen)[0].any()
    one = np.zeros_like(bone)
    one[2, 7, 8] = True  # one bone voxel
    assert not bml_morphology(image, np.where(one, clean, image), one, SPACING_MM, PLAIN)[0].any()
    empty = np.zeros((0, 4, 5))
    assert bml_morphology(empty, empty, empty, SPACING_MM, chosen)[0].shape == (0, 4, 5)
    assert bml_morphology(empty[:, :, 0], empty[:, :, 0], empty[:, :, 0], (1, 1), chosen)[0].shape == (0, 4)


def test_a_slice_without_bone_or_contrast_does_not_disturb_the_others():
    image, clean, bone, lesion = with_lesion()
    image[0], clean[0] = 5, 5
    bone[4] = False
    mask, _ = bml_morphology(image, clean, bone, SPACING_MM, replace(PLAIN, otsu="slice"))
    np.testing.assert_array_equal(mask, lesion)


@each_equalisation
@each_scope
def test_a_2d_image_is_one_slice_1_mm_thick(equalisation, otsu):
    image, reconstruction, bone = (array[2] for array in knee(6))
    chosen = BmlSettings(equalisation, otsu, "disc", 0.5, 1.0, 1.5)
    flat = bml_morphology(image, reconstruction, bone, (0.5, 0.5), chosen)
    volume = bml_morphology(image[None], reconstruction[None], bone[None], (1.0, 0.5, 0.5), chosen)
    for one, other in zip(flat, volume, strict=True):
        np.testing.assert_array_equal(one, other[0])


def test_slices_lie_across_the_coarsest_spacing_or_as_it_is_said():
    assert [slice_axis(s) for s in ((3, 1, 1), (1, 3, 1), (1, 1, 3), (1, 1, 1))] == [0, 1, 2, 0]
    assert slice_axis((3, 1, 1), 2) == 2 and slice_axis((1, 1)) is None
    with pytest.raises(SettingsError, match="slice_axis is 3"):
        slice_axis((1, 1, 1), 3)
    image, reconstruction, bone = knee()
    along_z = bml_morphology(image, reconstruction, bone, SPACING_MM, BmlSettings())
    turned = (np.moveaxis(array, 0, 2) for array in (image, reconstruction, bone))
    along_x = bml_morphology(*turned, (0.5, 0.5, 3.0), BmlSettings())
    for one, other in zip(along_z, along_x, strict=True):
        np.testing.assert_array_equal(np.moveaxis(one, 0, 2), other)


def test_radii_that_reach_nothing_are_told():
    assert not reaches_nothing(0, 0.5) and reaches_nothing(0.4, 0.5) and not reaches_nothing(0.5, 0.5)


def test_bad_input_is_named():
    image, reconstruction, bone = knee()
    for arguments in ((image[1:], reconstruction, bone), (image, reconstruction[1:], bone), (image, image, bone[0])):
        with pytest.raises(GeometryError, match="same grid"):
            bml_morphology(*arguments, SPACING_MM, PLAIN)
    with pytest.raises(GeometryError, match="spacing_mm"):
        bml_morphology(image, reconstruction, bone, (1, 1), PLAIN)
    with pytest.raises(GeometryError, match="spacing_mm"):
        bml_morphology(image, reconstruction, bone, (1, 1, 0), PLAIN)
    for wrong in (np.nan, np.inf):
        spoilt = image.astype(float)
        spoilt[0, 0, 0] = wrong
        with pytest.raises(InputError, match="The image"):
            bml_morphology(spoilt, reconstruction, bone, SPACING_MM, PLAIN)
        with pytest.raises(InputError, match="The reconstruction"):
            bml_morphology(image, spoilt, bone, SPACING_MM, PLAIN)


def test_the_paper_preset_is_slice_by_slice():
    paper = AnomalySettings.for_preset("paper").bml
    assert (paper.equalisation, paper.otsu, paper.element, paper.minimum_mm3) == ("slice", "slice", "disc", 0)
