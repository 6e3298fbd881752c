"""Named corruptions of the stress test: what severity, seed and dtype promise, of every one; then each by itself."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.phantoms.knee import make_case
from nnunet_anomaly.phantoms.metal import METAL_HU
from nnunet_anomaly.phantoms.stress_case import Site
from nnunet_anomaly.phantoms.stress_corruptions import (
    CORRUPTIONS,
    DEFORMED,
    LEVELS,
    Case,
    as_severity,
    corrupt,
    generator_of,
)
from nnunet_anomaly.phantoms.stress_local import grow_front

each = pytest.mark.parametrize("name", CORRUPTIONS)
# a voxel that a lower severity changes, a higher one changes at least as much, in the same direction
BY_VOXEL = ("bright_lesion", "dark_lesion", "foreign_patch", "missing_tissue", "bias_field")
SIZED = [name for name, corruption in CORRUPTIONS.items() if corruption.has_size]


def body(shape=(20, 40, 36), spacing_mm=(2.0, 1.0, 1.0), dtype=np.int16, ct=False, name="body", channels=1, seed=0):
    """A ball (1) with a cap (2) in textured, noisy tissue, with air around."""
    rng = np.random.default_rng(seed)
    axes = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(shape, spacing_mm, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    half = min(float(axis[-1]) for axis in axes if len(axis) > 1) + 1
    distance = np.sqrt(sum(axis**2 for axis in grid))
    labels = (distance < 0.6 * half).astype(np.uint8)
    labels[(labels > 0) & (grid[-1] > 0.3 * half)] = 2
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
    tissue = np.where(labels > 0, 300.0, 180.0) + 200 * texture + 8 * rng.standard_normal(shape)
    image = np.where(distance < 1.2 * half, tissue, 20 + 5 * rng.random(shape))
    images = [image * (1 + 0.5 * channel) for channel in range(channels)]
    if ct:
        images = [np.where(distance < 1.2 * half, image - 200, -1000) for image in images]
    return Case(
        name,
        tuple(image.astype(dtype) if np.dtype(dtype).kind == "f" else np.rint(image).astype(dtype) for image in images),
        labels,
        tuple(spacing_mm),
        ("CT",) * channels if ct else ("T1",) * channels,
    )


def difference(case, corrupted, channel=0):
    return corrupted.images[channel].astype(np.float64) - case.images[channel].astype(np.float64)


def same_bytes(first, second):
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


# ---- what holds for all ----


@each
@pytest.mark.parametrize("ct", [False, True])
@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_result_fits_the_case_and_says_what_changed(name, ct, dtype):
    case = body(dtype=dtype, ct=ct, channels=2)
    kept = [array.copy() for array in (*case.images, case.labels)]
    result = corrupt(case, name, 0.8, seed=3)
    for before, now in zip(kept, (*case.images, case.labels), strict=True):
        np.testing.assert_array_equal(before, now)
    assert len(result.images) == 2 and result.labels.dtype == case.labels.dtype
    for image, original in zip(result.images, case.images, strict=True):
        assert image.dtype == original.dtype and image.shape == original.shape
        assert not np.shares_memory(image, original)
        assert np.isfinite(image).all()
    pairs = zip((*result.images, result.labels), (*case.images, case.labels), strict=True)
    np.testing.assert_array_equal(result.changed, np.logical_or.reduce([now != before for now, before in pairs]))
    assert result.changed.any() and result.anomaly.dtype == bool
    # nearly all that one would outline has changed, if only by rounding it has not; but air in CT has no bias
    if not (ct and name == "bias_field"):
        assert (result.anomaly & result.changed).sum() > 0.8 * result.anomaly.sum() > 0
    assert json.loads(json.dumps(result.record)) == result.record
    assert result.record["changed_voxels"] == result.changed.sum()
    assert result.record["anomaly_voxels"] == result.anomaly.sum()
    assert sum(result.record["anomaly_voxels_by_label"].values()) == result.anomaly.sum()
    if CORRUPTIONS[name].reference == DEFORMED:
        assert (result.labels != case.labels).any()
    else:
        np.testing.assert_array_equal(result.labels, case.labels)
    assert result.record["reference"] == CORRUPTIONS[name].reference


@each
@pytest.mark.parametrize("zero", [0, 0.0, "none"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64, ">i2"])
def test_severity_0_changes_nothing_bit_for_bit(name, zero, dtype):
    case = body(dtype=dtype)
    if case.images[0].dtype.kind == "f":
        case.images[0][0, 0, :2] = -0.0, 1e-30
    result = corrupt(case, name, zero, seed=1)
    assert same_bytes(result.images[0], case.images[0])
    assert same_bytes(result.labels, case.labels)
    assert not result.changed.any() and not result.anomaly.any()
    assert result.record["severity"] == 0.0


@each
def test_unchanged_voxels_keep_their_bits(name):
    case = body(dtype=np.float64)
    case.images[0][...] += 1e-10 * np.random.default_rng(0).random(case.labels.shape)  # more than float32 holds
    result = corrupt(case, name, 0.3, seed=1)
    np.testing.assert_array_equal(result.images[0][~result.changed], case.images[0][~result.changed])
    if name not in ("bias_field", "noise"):
        assert (~result.changed).mean() > 0.5


@each
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.floats(0.05, 0.95), step=st.floats(0.05, 0.95), ct=st.booleans())
def test_a_higher_severity_changes_the_same_place_more(name, seed, low, step, ct):
    case = MONOTONE[ct]
    high = min(1.0, low + step)
    less, more = corrupt(case, name, low, seed=seed), corrupt(case, name, high, seed=seed)
    assert less.record.get("voxel") == more.record.get("voxel")
    assert not (less.anomaly & ~more.anomaly).any()
    small, large = difference(case, less), difference(case, more)
    if name in BY_VOXEL:
        # up to float32's rounding
        assert (np.abs(small) <= np.abs(large) + 1e-3).all()
        assert not ((np.abs(small) > 1e-2) & (np.sign(small) != np.sign(large))).any()
    assert np.abs(small).sum() <= 1.001 * np.abs(large).sum()
    if high >= low + 0.3:
        assert np.abs(small).sum() < np.abs(large).sum()


MONOTONE = {ct: body((10, 30, 26), dtype=np.float32, ct=ct) for ct in (False, True)}


@each
def test_corruption_grows_to_what_the_eye_sees(name):
    case = body((30, 60, 56), (1.0, 1.0, 1.0))
    sizes = [np.abs(difference(case, corrupt(case, name, level, seed=2))).sum() for level in LEVELS]
    assert sizes[0] == 0
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3]
    strongest = np.abs(difference(case, corrupt(case, name, 1.0, seed=2)))
    assert np.percentile(strongest[strongest > 0], 90) > case.scales[0].sd


@each
def test_same_seed_same_bytes_whatever_was_made_before(name):
    first, case = body(name="a"), body(name="b")
    alone = corrupt(case, name, 0.6, seed=5)
    for other in reversed(CORRUPTIONS):
        corrupt(first, other, 0.4, seed=5)
    again = corrupt(replace(case), name, 0.6, seed=5)
    for one, two in zip(
        (*alone.images, alone.labels, alone.changed), (*again.images, again.labels, again.changed), strict=True
    ):
        assert same_bytes(one, two)
    assert alone.record == again.record
    other_seed, other_case = corrupt(case, name, 0.6, seed=6), corrupt(replace(case, name="c"), name, 0.6, seed=5)
    assert (other_seed.images[0] != alone.images[0]).any()
    assert (other_case.images[0] != alone.images[0]).any()


def test_generator_depends_on_seed_case_and_corruption_and_nothing_else():
    draws = {
        (seed, case, name): generator_of(seed, case, name).random()
        for seed in (0, 1)
        for case in ("a", "b")
        for name in ("noise", "metal")
    }
    assert len(set(draws.values())) == len(draws)
    # what a published table was made with must stay so
    assert generator_of(0, "case_1", "noise").integers(10**6) == 568464


@each
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_values_stay_in_the_range_of_dtype_and_magnitude(name, dtype):
    case = body(dtype=np.float32)
    image = case.images[0] / case.images[0].max() * 255
    image = image.astype(dtype)
    result = corrupt(replace(case, images=(image,)), name, 1.0, seed=4)
    assert result.images[0].dtype == image.dtype
    assert result.images[0].min() >= 0  # a magnitude stays one; nothing wraps around
    away = difference(replace(case, images=(image,)), result)
    if name == "bright_lesion":
        assert away.min() >= 0
    if name in ("dark_lesion", "missing_tissue"):
        assert away.max() <= 0


@each
def test_ct_stays_in_hounsfield_units(name):
    case = body(ct=True)
    result = corrupt(case, name, 1.0, seed=4)
    image = result.images[0]
    assert image.min() >= -1024 and image.max() <= 3071
    untouched = ~result.changed
    np.testing.assert_array_equal(image[untouched], case.images[0][untouched])
    assert np.median(image) == pytest.approx(np.median(case.images[0]), abs=60)


def test_clipping_is_counted():
    case = body(dtype=np.uint8, channels=1)
    bright = replace(case, images=(np.where(case.labels > 0, 235, 100).astype(np.uint8) + case.images[0] // 16,))
    result = corrupt(bright, "noise", 1.0, strength=30.0)
    assert result.record["clipped_voxels"][0] > 0
    assert (result.images[0] == 255).sum() >= result.record["clipped_voxels"][0] > 0.1 * case.labels.size
    assert corrupt(body(dtype=np.float32), "noise", 1.0).record["clipped_voxels"] == [0]


# ---- shapes ----


@each
@pytest.mark.parametrize("ct", [False, True])
@pytest.mark.parametrize("shape", [(16, 16, 16), (40, 36), (1, 40, 36), (40, 36, 1), (3, 40, 36), (2, 2, 30)])
def test_tiny_flat_and_thin_images(name, shape, ct):
    spacing_mm = (3.0, 1.0, 1.0)[-len(shape) :]
    if shape == (2, 2, 30):
        rng = np.random.default_rng(0)
        labels = np.zeros(shape, np.uint8)
        labels[:, :, 10:20] = 1
        case = Case("thin", (rng.normal(100, 10, shape),), labels, spacing_mm, ("CT" if ct else "T2",))
    else:
        case = body(shape, spacing_mm, ct=ct)
    result = corrupt(case, name, 1.0, seed=1)
    assert result.images[0].shape == result.labels.shape == result.changed.shape == result.anomaly.shape == shape
    assert result.changed.any()


@each
def test_single_slice_is_a_2d_image(name):
    flat = body((40, 36), (1.0, 1.0))
    volume = replace(flat, images=(flat.images[0][None],), labels=flat.labels[None], spacing_mm=(5.0, 1.0, 1.0))
    one, two = corrupt(flat, name, 0.7), corrupt(volume, name, 0.7)
    np.testing.assert_array_equal(one.images[0], two.images[0][0])
    np.testing.assert_array_equal(one.anomaly, two.anomaly[0])


@each
def test_memory_layout_does_not_matter(name):
    case = body()
    turned = replace(case, images=(np.asfortranarray(case.images[0]),), labels=np.asfortranarray(case.labels))
    np.testing.assert_array_equal(corrupt(case, name, 0.5).images[0], corrupt(turned, name, 0.5).images[0])


def test_size_is_in_millimetres():
    case = body((30, 60, 56), (1.0, 1.0, 1.0))
    fine = Case(
        case.name,
        (np.repeat(case.images[0], 2, axis=0),),
        np.repeat(case.labels, 2, axis=0),
        (0.5, 1.0, 1.0),
    )
    for name in ("bright_lesion", "foreign_patch", "missing_tissue"):
        one, two = (corrupt(c, name, 1.0, size_mm=4.0) for c in (case, fine))
        assert one.anomaly.sum() == pytest.approx(4 / 3 * np.pi * 64, abs=1)
        assert two.anomaly.sum() * 0.5 == pytest.approx(4 / 3 * np.pi * 64, abs=1)


# ---- bad input ----


def test_names_and_numbers_out_of_range_are_refused():
    case = body()
    with pytest.raises(InputError, match="no corruption; there are bright_lesion"):
        corrupt(case, "rust", 0.5)
    for severity in (-0.1, 1.01, float("nan"), "awful", None):
        with pytest.raises(InputError, match="Severity"):
            corrupt(case, "noise", severity)
    for strength in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="strength"):
            corrupt(case, "noise", 0.5, strength=strength)
    for name, strength in (("foreign_patch", 1.1), ("missing_tissue", 1.1), ("deformation", 0.61)):
        with pytest.raises(InputError, match="at most"):
            corrupt(case, name, 0.5, strength=strength)
    for size_mm in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="must be positive"):
            corrupt(case, "metal", 0.5, size_mm=size_mm)
    for name in set(CORRUPTIONS) - set(SIZED):
        with pytest.raises(InputError, match="takes no size"):
            corrupt(case, name, 0.5, size_mm=3.0)


@pytest.mark.parametrize("name", SIZED)
def test_corruptions_larger_than_the_image_are_refused(name):
    with pytest.raises(InputError, match=r"Case body: a corruption of radius 25 mm is larger than the image"):
        corrupt(body(), name, 0.1, size_mm=25.0)


@pytest.mark.parametrize("name", ["bright_lesion", "dark_lesion"])
def test_lesions_larger_than_the_region_are_refused(name):
    with pytest.raises(InputError, match=r"Case body: a corruption of radius 14 mm does not fit"):
        corrupt(body(), name, 0.1, size_mm=14.0)


def test_an_absent_region_is_named():
    case = body()
    with pytest.raises(InputError, match=r"Case body.*no voxel of 7, 9"):
        replace(case, region_labels=(7, 9))
    with pytest.raises(InputError, match=r"Case body.*any label but 0"):
        replace(case, labels=np.zeros_like(case.labels))


def test_bad_cases_are_refused():
    case = body(dtype=np.float32)
    for value in (np.nan, np.inf, -np.inf):
        image = case.images[0].copy()
        image[0, 0, 0] = value
        with pytest.raises(InputError, match="Case body: channel 1 holds NaN"):
            replace(case, images=(case.images[0], image), channel_names=())
    with pytest.raises(InputError, match="complex64"):
        replace(case, images=(case.images[0].astype(np.complex64),))
    with pytest.raises(InputError, match="no image"):
        replace(case, images=())
    with pytest.raises(InputError, match="channel names T1, T2"):
        replace(case, channel_names=("T1", "T2"))
    with pytest.raises(GeometryError, match="shape"):
        replace(case, images=(case.images[0][1:],))
    with pytest.raises(GeometryError, match="spacing"):
        replace(case, spacing_mm=(1.0, 0.0, 1.0))
    with pytest.raises(LabelError, match="case body"):
        replace(case, labels=case.labels.astype(np.float32))
    with pytest.raises(InputError, match="two axes"):
        Case("line", (np.arange(9.0).reshape(1, 1, 9),), np.ones((1, 1, 9), np.uint8), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("name", ["bright_lesion", "dark_lesion", "missing_tissue", "noise", "foreign_patch", "metal"])
def test_an_image_of_one_value_is_refused(name):
    case = body()
    flat = replace(case, images=(np.full_like(case.images[0], 7),))
    with pytest.raises(InputError, match="Case body: channel 0 has one single value"):
        corrupt(flat, name, 0.5)


def test_they_share_no_code_with_training():
    code = (
        "import sys, nnunet_anomaly.phantoms.stress_corruptions; "
        "print([name for name in sys.modules if name.startswith(('nnunet_anomaly.augmentation', 'torch', 'batchgen'))])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_levels():
    assert [as_severity(level) for level in LEVELS] == [0.0, 0.25, 0.5, 1.0]
    assert as_severity("0.3") == as_severity(0.3) == 0.3


# ---- each by itself ----


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), sign=st.sampled_from([1, -1]), severity=st.floats(0.1, 1.0))
def test_lesions_lie_in_the_region_and_stay_within_what_the_scanner_shows(seed, sign, severity):
    case = replace(MONOTONE[False], region_labels=(1,))
    result = corrupt(case, "bright_lesion" if sign > 0 else "dark_lesion", severity, seed=seed)
    assert (case.labels[result.changed] == 1).all() and (case.labels[result.anomaly] == 1).all()
    away = sign * difference(case, result)
    scale = case.scales[0]
    assert away.min() >= 0
    assert away.max() <= scale.sd * result.record["contrast_sd"] * 1.001
    beyond = (result.images[0] > scale.high + 1e-2) if sign > 0 else (result.images[0] < scale.low - 1e-2)
    assert not (beyond & result.changed).any()


def test_lesion_is_strongest_inside_and_fades_at_its_border():
    case = body((40, 60, 60), (1.0, 1.0, 1.0), dtype=np.float32)
    result = corrupt(case, "bright_lesion", 1.0, seed=1, size_mm=8.0, strength=0.2)  # far from saturation
    depth = ndimage.distance_transform_edt(result.anomaly)
    away = difference(case, result)
    assert away[depth > 4].mean() > 1.2 * away[(depth > 0) & (depth <= 1)].mean()
    assert 0 < away[result.changed & ~result.anomaly].mean() < away[(depth > 0) & (depth <= 1)].mean()


def test_lesion_shows_in_every_channel_in_its_own_units():
    case = body(channels=2, dtype=np.float32)  # the second is 1.5 times the first
    result = corrupt(case, "dark_lesion", 0.7, seed=1)
    np.testing.assert_allclose(difference(case, result, 1), 1.5 * difference(case, result, 0), atol=0.05)


def test_front_holds_its_volume_and_larger_ones_hold_smaller_ones():
    allowed = np.ones((24, 48, 48), bool)
    spacing_mm = (2.0, 1.0, 1.0)
    front = grow_front("a", allowed, Site((12, 24, 24), 9.0), 8.0, 3.0, spacing_mm, np.random.default_rng(0))
    before = np.zeros(front.times.shape, bool)
    for volume in (1.0, 50.0, 400.0, 2000.0):
        region = front.region(volume)
        assert region.sum() == max(1, round(volume / 2))
        assert not (before & ~region).any()
        before = region
        weight = front.weight(volume, 3.0)
        assert (weight[region] >= 0.5 - 1e-3).all() and (weight[~region] <= 0.5 + 1e-3).all()


def test_foreign_patch_is_a_copy_of_another_place():
    case = body((30, 60, 56), (1.0, 1.0, 1.0))
    result = corrupt(case, "foreign_patch", 1.0, seed=1)
    record = result.record
    offset = np.array(record["donor_voxel"]).astype(int) - record["voxel"]
    assert np.linalg.norm(offset) >= record["radius_mm"]
    core = np.argwhere(ndimage.binary_erosion(result.anomaly, iterations=2))
    assert len(core) > 20
    np.testing.assert_array_equal(result.images[0][tuple(core.T)], case.images[0][tuple((core + offset).T)])
    assert record["anomaly_voxels_by_label"].get("0", 0) > 0  # it covers the border of the region too


def test_foreign_patch_from_a_donor_has_the_cases_intensities():
    case = body((20, 40, 36), dtype=np.float32)
    other = body((30, 30, 30), (1.0, 1.5, 1.5), dtype=np.float32, seed=9, name="donor")
    scaled = replace(other, images=(5 * other.images[0] + 1000,))
    one, two = (corrupt(case, "foreign_patch", 1.0, donor=donor) for donor in (other, scaled))
    np.testing.assert_allclose(one.images[0], two.images[0], rtol=1e-3, atol=0.5)
    assert one.record["donor"] == "donor"
    assert one.images[0].max() < 1.5 * case.images[0].max()
    np.testing.assert_array_equal(one.changed | one.anomaly, two.changed | two.anomaly)
    ct = body(ct=True)
    denser = replace(body(ct=True, name="other", seed=4), images=(body(ct=True, seed=4).images[0] + 500,))
    assert difference(ct, corrupt(ct, "foreign_patch", 1.0, donor=denser)).max() > 200  # HU stay what they are


def test_foreign_patch_prefers_tissue_to_air():
    case = body((30, 60, 56), (1.0, 1.0, 1.0))
    for seed in range(5):
        result = corrupt(case, "foreign_patch", 1.0, seed=seed)
        assert (result.images[0][result.anomaly] < 60).mean() < 0.25


def test_no_patch_is_foreign_where_everything_is_the_same():
    stripes = np.tile(np.arange(2.0), (24, 12)) * 100  # another place is the same stripes, moved by one
    labels = np.zeros(stripes.shape, np.uint8)
    labels[8:16, 8:16] = 1
    moved = corrupt(Case("stripes", (stripes,), labels, (1.0, 1.0)), "foreign_patch", 1.0)
    assert (moved.record["donor_voxel"][1] - moved.record["voxel"][1]) % 2 == 1
    flat = np.full(labels.shape, 50.0)
    flat[7, 7] = 100.0  # a patch of one voxel meets it nowhere
    with pytest.raises(InputError, match="no place of twin looks different"):
        corrupt(Case("twin", (flat,), labels, (1.0, 1.0)), "foreign_patch", 1.0, size_mm=0.4)


def test_bad_donors_are_refused():
    case = body()
    with pytest.raises(InputError, match="different channels"):
        corrupt(case, "foreign_patch", 0.5, donor=body(channels=2))
    with pytest.raises(InputError, match="2-D"):
        corrupt(case, "foreign_patch", 0.5, donor=body((40, 36), (1.0, 1.0)))
    with pytest.raises(InputError, match="does not fit into small"):
        corrupt(case, "foreign_patch", 0.5, size_mm=9.0, donor=body((12, 12, 12), (1.0, 1.0, 1.0), name="small"))
    with pytest.raises(InputError, match="nothing from another case"):
        corrupt(case, "noise", 0.5, donor=body(name="other"))


def test_missing_tissue_is_dark_and_reaches_beyond_the_region():
    case = body((30, 60, 56), (1.0, 1.0, 1.0))
    result = corrupt(case, "missing_tissue", 1.0, seed=1)
    core = ndimage.binary_erosion(result.anomaly, iterations=2)
    dark = case.scales[0].dark
    assert result.images[0][core].mean() < dark + case.scales[0].sd < case.images[0][core].mean()
    assert result.images[0][core].std() > 0  # the noise of the image, not one value
    assert set(np.unique(case.labels[result.anomaly])) >= {0, 1} or set(np.unique(case.labels[result.anomaly])) >= {
        0,
        2,
    }


def displacement_error(case, result):
    """Largest difference between the deformed labels and the original ones at the recorded displacement."""
    record = result.record
    grid = np.indices(case.labels.shape).astype(float)
    away_mm = [(line - at) * size for line, at, size in zip(grid, record["voxel"], case.spacing_mm, strict=True)]
    inside = np.clip(1 - sum(part**2 for part in away_mm) / record["radius_mm"] ** 2, 0, None)
    shift_mm = record["displacement_mm"] * inside**2
    places = [
        line - shift_mm * along / size
        for line, along, size in zip(grid, record["direction"], case.spacing_mm, strict=True)
    ]
    expected = ndimage.map_coordinates(case.labels, places, order=0, mode="nearest")
    return float((expected != result.labels).mean()), places


def test_deformation_moves_image_and_labels_together():
    case = body((24, 48, 44), (2.0, 1.0, 1.0), dtype=np.float32)
    smooth = replace(case, images=(ndimage.gaussian_filter(case.images[0], 2.0),))
    result = corrupt(smooth, "deformation", 1.0, seed=3)
    wrong, places = displacement_error(smooth, result)
    assert wrong < 1e-4
    expected = ndimage.map_coordinates(smooth.images[0], places, order=1, mode="nearest")
    np.testing.assert_allclose(result.images[0], expected, atol=0.03 * np.ptp(smooth.images[0]))
    assert (result.labels != smooth.labels).any()
    assert set(np.unique(result.labels)) <= set(np.unique(smooth.labels))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), strength=st.floats(0.1, 0.6))
def test_deformation_does_not_fold(seed, strength):
    case = MONOTONE[False]
    result = corrupt(case, "deformation", 1.0, seed=seed, strength=strength)
    wrong, places = displacement_error(case, result)
    assert wrong < 1e-3
    gradients = np.array([np.gradient(place) for place in places])
    determinant = np.linalg.det(np.moveaxis(gradients, (0, 1), (-2, -1)))
    assert determinant.min() > 0


def test_metal_in_ct_is_dense_and_casts_rays_in_its_slices_alone():
    case = body((30, 60, 56), (1.0, 1.0, 1.0), ct=True, dtype=np.float32)
    result = corrupt(case, "metal", 1.0, seed=1, size_mm=3.0)
    metal = result.images[0] > 2500
    assert result.images[0].max() <= METAL_HU + 1
    expected = np.pi * 9 * result.record["length_mm"] + 4 / 3 * np.pi * 27
    assert 0.3 * expected < metal.sum() < 1.2 * expected  # its end may lie outside of the image
    away = difference(case, result)
    slices = metal.any(axis=(1, 2))
    far = ndimage.distance_transform_edt(~metal) > 5
    in_slices = far & slices[:, None, None]
    assert away[in_slices].min() < -50 and away[in_slices].max() > 50
    assert np.abs(away[~ndimage.binary_dilation(slices, iterations=3)]).max(initial=0) == 0


def test_metal_in_mr_is_a_void_with_bright_sides():
    case = body((30, 60, 56), (1.0, 1.0, 1.0))
    result = corrupt(case, "metal", 1.0, seed=1, size_mm=2.0)
    centre = result.images[0][tuple(result.record["voxel"])]
    assert centre <= case.scales[0].low + 1 < case.scales[0].median
    away = difference(case, result)
    assert away.max() > case.scales[0].sd
    distance = np.linalg.norm(np.argwhere(result.changed) - result.record["voxel"], axis=1)
    assert distance.max() < 0.5 * result.record["length_mm"] + 2 * 2.5 * 2.0 + 1


def test_metal_in_a_case_with_ct_and_others_is_in_each_what_it_is_alone():
    ct, mr = body((30, 60, 56), (1.0, 1.0, 1.0), ct=True), body((30, 60, 56), (1.0, 1.0, 1.0))
    both = replace(ct, images=(*ct.images, *mr.images), channel_names=("CT", "T1"))
    result = corrupt(both, "metal", 0.8, size_mm=1.5)
    for channel, case in enumerate((ct, mr)):
        np.testing.assert_array_equal(result.images[channel], corrupt(case, "metal", 0.8, size_mm=1.5).images[0])


def test_bias_field_is_smooth_and_multiplies():
    case = body((30, 60, 56), (1.0, 1.0, 1.0), dtype=np.float32, channels=2)
    result = corrupt(case, "bias_field", 1.0, seed=1)
    factor = result.images[0] / case.images[0]
    np.testing.assert_allclose(result.images[1] / case.images[1], factor, rtol=1e-4)
    strongest = np.abs(np.log(factor)).max()
    assert strongest == pytest.approx(0.7, rel=1e-3)
    assert max(np.abs(np.diff(np.log(factor), axis=axis)).max() for axis in range(3)) < 0.2
    half = corrupt(case, "bias_field", 0.5, seed=1).images[0] / case.images[0]
    np.testing.assert_allclose(half**2, factor, rtol=1e-4)


def test_bias_field_leaves_air_in_ct_and_works_on_signed_images():
    ct = body(ct=True)
    result = corrupt(ct, "bias_field", 1.0)
    assert not result.changed[ct.images[0] == -1000].any()
    signed = body(dtype=np.float32)
    signed = replace(signed, images=((signed.images[0] - 200) / 50,))
    away = difference(signed, corrupt(signed, "bias_field", 1.0))
    assert np.abs(away).max() > 0 and np.abs(away[signed.images[0] == signed.images[0].min()]).max() < 1e-4


def test_noise_is_rician_in_mr_and_gaussian_in_ct():
    case = body((40, 60, 56), (1.0, 1.0, 1.0), dtype=np.float32)
    level = replace(case, images=(np.where(case.labels > 0, 300, 0) + case.images[0] * 0.01,))
    result = corrupt(level, "noise", 1.0, strength=2.0)
    sigma = result.record["noise_sd"][0]
    assert result.record["kind"] == ["rician"]
    air, tissue = case.labels == 0, case.labels > 0
    assert result.images[0][air].mean() == pytest.approx(np.sqrt(np.pi / 2) * sigma, rel=0.1)  # Rayleigh
    assert difference(level, result)[tissue].std() == pytest.approx(sigma, rel=0.05)
    ct = body((40, 60, 56), (1.0, 1.0, 1.0), ct=True, dtype=np.float32)
    result = corrupt(ct, "noise", 1.0)
    away = difference(ct, result)[ct.images[0] > -900]
    sigma = result.record["noise_sd"][0]
    assert result.record["kind"] == ["gaussian"]
    assert away.mean() == pytest.approx(0, abs=0.02 * sigma) and away.std() == pytest.approx(sigma, rel=0.02)
    assert result.record["noise_sd"][0] == pytest.approx(0.5 * ct.scales[0].sd, rel=1e-4)


def test_noise_leaves_an_erased_background_and_differs_between_channels():
    case = body(dtype=np.float32, channels=2)
    air = case.images[0] < 60
    stripped = replace(case, images=tuple(np.where(air, 0, image).astype(np.float32) for image in case.images))
    assert air.mean() > 0.2
    result = corrupt(stripped, "noise", 0.5)
    assert result.record["erased_background_kept"]
    assert not result.changed[air].any() and not result.anomaly[air].any()
    one, two = (difference(stripped, result, channel)[~air] for channel in (0, 1))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.1


def test_region_decides_where_and_structures_decide_how_large():
    labels = np.zeros((30, 60, 60), np.uint8)
    labels[5:25, 5:35, 5:35] = 1
    labels[12:18, 45:51, 45:51] = 2
    labels[2, 2, 2] = 1  # a speck
    image = np.random.default_rng(0).normal(100, 10, labels.shape)
    for label in (1, 2):
        case = Case("two", (image,), labels, (1.0, 1.0, 1.0), region_labels=(label,))
        records = [corrupt(case, "bright_lesion", 1.0, seed=seed).record for seed in range(8)]
        assert all(labels[tuple(record["voxel"])] == label and record["voxel"] != [2, 2, 2] for record in records)
        side = {1: 20 * 30 * 30, 2: 216}[label]
        expected = min(0.8 * (0.75 * side / np.pi) ** (1 / 3), 0.25 * 60)
        assert records[0]["radius_mm"] == pytest.approx(expected, rel=1e-3)


def test_specks_are_not_hit():
    labels = np.zeros((20, 40, 40), np.uint8)
    labels[8:14, 20:26, 20:26] = 1
    labels[::4, ::4, :16:4] = 1  # 200 single voxels beside 216 in one part
    case = Case("specks", (np.random.default_rng(0).normal(100, 10, labels.shape),), labels, (1.0, 1.0, 1.0))
    sites = [
        case.draw_site(np.random.default_rng(seed), on_surface=surface).voxel
        for seed in range(20)
        for surface in (False, True)
    ]
    assert all(site[2] >= 20 for site in sites)


def test_channels_keep_their_own_limits():
    case = body(dtype=np.float32)
    small = (case.images[0] / case.images[0].max() * 250).astype(np.uint8)
    signed = case.images[0] - 200
    result = corrupt(replace(case, images=(signed, small), channel_names=()), "noise", 1.0, strength=20.0)
    assert result.images[0].min() < -300 and result.images[1].min() >= 0
    assert result.record["clipped_voxels"][0] == 0 < result.record["clipped_voxels"][1]


def test_deformation_does_not_overshoot_at_edges():
    case = body((30, 60, 56), (1.0, 1.0, 1.0))
    steps = replace(case, images=(np.where(case.labels > 0, 100.0, -100.0),))
    result = corrupt(steps, "deformation", 1.0, seed=1)
    assert result.changed.any()
    assert result.images[0].min() == -100 and result.images[0].max() == 100


# ---- real images and the phantom ----


def real_case(real_data, image, labels, name, channel):
    volume = sitk.ReadImage(str(real_data / image))
    label_map = sitk.GetArrayFromImage(sitk.ReadImage(str(real_data / labels)))
    return Case(name, (sitk.GetArrayFromImage(volume),), label_map, volume.GetSpacing()[::-1], (channel,))


@each
def test_real_hippocampus_and_hip(real_data, name):
    for case in (
        real_case(
            real_data,
            "hippocampus/images/hippocampus_001.nii.gz",
            "hippocampus/labels/hippocampus_001.nii.gz",
            "hippocampus_001",
            "MRI",
        ),
        real_case(real_data, "hip_ct/example_ct.nii.gz", "hip_ct/derived_hip_labels.nii.gz", "hip", "CT"),
    ):
        before = 0.0
        for severity in CORRUPTIONS[name].severities:
            result = corrupt(case, name, severity, seed=1)
            assert result.images[0].dtype == case.images[0].dtype
            low, high = case.limits(0)
            assert low <= result.images[0].min() and result.images[0].max() <= high
            now = np.abs(difference(case, result)).sum()
            assert now > before
            before = now
        assert set(np.unique(result.labels)) == set(np.unique(case.labels))


def test_knee_phantom_in_3d():
    knee = make_case(0, 0, "none", (12, 48, 48))
    case = Case("knee", (knee.image,), knee.labels, knee.spacing_mm, ("MRI",), (1, 3))
    for name in CORRUPTIONS:
        assert corrupt(case, name, "severe").changed.any()
