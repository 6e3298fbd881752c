import ast
from pathlib import Path

import cc3d
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.geometry import dilate_mm
from nnunet_anomaly.phantoms.implants import (
    arrival_times,
    grow_region,
    implant_lesion,
    make_patchy,
    mix_toward,
    random_start,
)

REPOSITORY = Path(__file__).parents[2]
SPACING_MM = (2.0, 1.0, 1.0)


def ball(shape=(24, 48, 48), radius_mm=20.0, spacing_mm=SPACING_MM):
    axes = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(shape, spacing_mm, strict=True)]
    return sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")) < radius_mm**2


def noisy_image(shape, seed=0):
    rng = np.random.default_rng(seed)
    return 100 + 10 * rng.standard_normal(shape) + 5 * ndimage.gaussian_filter(rng.standard_normal(shape), 4) * 30


# ---- the front ----


def test_arrival_times_in_free_space_are_distances():
    allowed = np.ones((21, 41, 41), bool)
    times = arrival_times(allowed, np.array([[10, 20, 20]]), SPACING_MM)
    place = np.argwhere(allowed) - (10, 20, 20)
    distance = np.linalg.norm(place * SPACING_MM, axis=1).reshape(allowed.shape)
    assert times[10, 20, 20] == 0
    # the first-order scheme is exact along the axes and a few per cent too late between them
    np.testing.assert_allclose(times[10, 20], distance[10, 20], atol=1e-4)
    np.testing.assert_allclose(times[:, 20, 20], distance[:, 20, 20], atol=1e-4)
    assert (times <= 1.1 * distance + 1.0).all()
    assert (times >= distance - 1e-3).all()


def test_front_goes_around_a_wall_and_not_through_it():
    allowed = np.ones((1, 21, 21), bool)[0]
    allowed[:18, 10] = False
    times = arrival_times(allowed, np.array([[2, 5]]), (1.0, 1.0))
    assert np.isinf(times[:18, 10]).all()
    around = np.hypot(16, 5) + np.hypot(16, 5)  # by way of (18, 10), to (2, 15)
    assert times[2, 15] == pytest.approx(around, rel=0.1)


def test_front_does_not_reach_an_island_or_beyond_its_limit():
    allowed = np.ones((5, 30), bool)
    allowed[:, 20] = False
    times = arrival_times(allowed, np.array([[2, 0]]), (1.0, 1.0), limit=8.0)
    assert np.isinf(times[:, 20:]).all()
    assert np.isfinite(times[2, :8]).all()
    assert np.isinf(times[:, 10:]).all()


def test_front_is_slower_where_speed_is_low():
    allowed = np.ones((5, 40), bool)
    speed = np.ones(allowed.shape)
    speed[:, 20:] = 0.25
    times = arrival_times(allowed, np.argwhere(allowed & (np.arange(40) == 0)), (1.0, 1.0), speed)
    assert times[2, 19] == pytest.approx(19, abs=0.1)
    assert times[2, 39] == pytest.approx(19 + 4 * 20, abs=0.5)


def test_no_start_reaches_nothing():
    assert np.isinf(arrival_times(np.ones((4, 4), bool), np.empty((0, 2), int), (1.0, 1.0))).all()


# ---- regions ----


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), volume_mm3=st.floats(2.0, 6000.0), edge_mm=st.floats(0.0, 8.0))
def test_region_has_its_volume_lies_in_the_roi_and_is_connected(seed, volume_mm3, edge_mm):
    roi = ball()
    rng = np.random.default_rng(seed)
    membership, region = grow_region(roi, random_start(roi, rng), volume_mm3, SPACING_MM, rng, edge_mm=edge_mm)
    assert region.sum() == max(1, round(volume_mm3 / 2.0))
    assert not (region & ~roi).any()
    assert not membership[~roi].any()
    assert membership.min() >= 0 and membership.max() <= 1
    assert cc3d.connected_components(region, connectivity=6).max() == 1
    # the region is where the membership is above a half, but for voxels at exactly the same time
    assert (membership > 0.5)[~region].sum() <= 2
    assert (membership < 0.5)[region].sum() <= 2


def test_region_may_fill_the_whole_roi_but_no_more():
    roi = ball(radius_mm=6.0)
    volume_mm3 = roi.sum() * 2.0
    _, region = grow_region(roi, (12, 24, 24), volume_mm3, SPACING_MM, np.random.default_rng(0))
    np.testing.assert_array_equal(region, roi)
    with pytest.raises(InputError, match="does not fit"):
        grow_region(roi, (12, 24, 24), volume_mm3 + 3, SPACING_MM, np.random.default_rng(0))


def test_region_stays_in_the_part_that_it_starts_in():
    roi = np.zeros((12, 30, 30), bool)
    roi[:, :, :10] = roi[:, :, 20:] = True
    _, region = grow_region(roi, (6, 15, 5), 3000.0, SPACING_MM, np.random.default_rng(0))
    assert not region[:, :, 10:].any()


def test_roughness_makes_regions_less_round():
    roi = np.ones((24, 48, 48), bool)

    def spread(roughness):
        rng = np.random.default_rng(3)
        _, region = grow_region(roi, (12, 24, 24), 3000.0, SPACING_MM, rng, roughness=roughness)
        place = (np.argwhere(region) - (12, 24, 24)) * SPACING_MM
        return np.linalg.norm(place, axis=1).max()

    assert spread(0.0) == pytest.approx((0.75 * 3000 / np.pi) ** (1 / 3), rel=0.15)
    assert spread(0.9) > 1.25 * spread(0.0)


def test_patchy_membership_is_only_weakened():
    membership = np.where(ball(radius_mm=12.0), 0.8, 0.0).astype(np.float32)
    patchy = make_patchy(membership, SPACING_MM, np.random.default_rng(0), 0.5)
    assert (patchy <= membership).all()
    assert (patchy >= 0.5 * membership - 1e-6).all()
    assert patchy[membership > 0].std() > 0.05
    assert make_patchy(membership, SPACING_MM, np.random.default_rng(0), 0.0) is membership


# ---- mixing ----


def test_full_membership_brings_the_local_mean_to_the_target_and_keeps_the_detail():
    roi = ball()
    image = noisy_image(roi.shape).astype(np.float32)
    weight = ball(radius_mm=14.0).astype(np.float32)
    result = mix_toward(image, weight, roi, 300.0, SPACING_MM, texture=1.0)
    core = ball(radius_mm=9.0)
    assert result[core].mean() == pytest.approx(300, abs=2)

    def detail(array):
        return (array - ndimage.gaussian_filter(array, (1, 2, 2)))[core]

    assert np.corrcoef(detail(result), detail(image))[0, 1] > 0.95
    flat = mix_toward(image, weight, roi, 300.0, SPACING_MM, texture=0.0)
    np.testing.assert_allclose(flat[core], 300.0, atol=1e-3)
    np.testing.assert_array_equal(result[weight == 0], image[weight == 0])


def test_local_mean_does_not_see_beyond_the_roi():
    roi = np.zeros((8, 20, 20), bool)
    roi[:, :, :10] = True
    image = np.where(roi, 50.0, 1000.0).astype(np.float32)
    result = mix_toward(image, roi.astype(np.float32), roi, 80.0, SPACING_MM, texture=1.0)
    np.testing.assert_allclose(result[roi], 80.0, atol=1e-2)


def test_empty_membership_changes_nothing():
    image = noisy_image((6, 9, 9))
    result = mix_toward(image, np.zeros(image.shape, np.float32), np.ones(image.shape, bool), 9.0, SPACING_MM)
    np.testing.assert_array_equal(result, image.astype(np.float32))


# ---- whole lesions ----


@pytest.mark.parametrize("kind,sign", [("bright", 1), ("dark", -1)])
@pytest.mark.parametrize("site", ["anywhere", "surface"])
def test_lesion_changes_its_mean_by_just_the_contrast(kind, sign, site):
    roi = ball()
    image = noisy_image(roi.shape)
    kept = image.copy()
    result, lesion = implant_lesion(
        image, roi, SPACING_MM, rng=5, volume_mm3=800.0, contrast=2.5, kind=kind, site=site, edge_mm=3.0
    )
    np.testing.assert_array_equal(image, kept)
    assert result.dtype == np.float32 and lesion.dtype == bool
    assert lesion.sum() * 2.0 == 800.0
    assert not (lesion & ~roi).any()
    change = (result - image)[lesion].mean() / image[roi].std()
    assert change == pytest.approx(sign * 2.5, rel=1e-3)
    beyond = ~dilate_mm(lesion, 3.0, SPACING_MM)
    np.testing.assert_array_equal(result[beyond], image[beyond].astype(np.float32))


def test_lesion_in_2d_and_by_radius():
    roi = np.ones((60, 60), bool)
    result, lesion = implant_lesion(noisy_image((60, 60)), roi, (0.5, 0.5), rng=1, radius_mm=4.0)
    assert lesion.sum() * 0.25 == pytest.approx(np.pi * 16, abs=0.25)
    assert result.shape == (60, 60)
    _, lesion = implant_lesion(noisy_image((30, 60, 60)), np.ones((30, 60, 60), bool), (1, 1, 1), rng=1, radius_mm=4.0)
    assert lesion.sum() == round(4 / 3 * np.pi * 64)


def test_same_seed_same_lesion_and_other_seed_another():
    roi, image = ball(), noisy_image((24, 48, 48))
    first, mask = implant_lesion(image, roi, SPACING_MM, rng=1, volume_mm3=500)
    again, same = implant_lesion(image, roi, SPACING_MM, rng=np.random.default_rng(1), volume_mm3=500)
    _, other = implant_lesion(image, roi, SPACING_MM, rng=2, volume_mm3=500)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(mask, same)
    assert (mask != other).any()


def test_lesion_starts_where_it_is_told():
    roi, image = ball(), noisy_image((24, 48, 48))
    _, lesion = implant_lesion(image, roi, SPACING_MM, rng=1, volume_mm3=20, start=(12, 30, 20))
    assert lesion[12, 30, 20]
    with pytest.raises(InputError, match="outside"):
        implant_lesion(image, roi, SPACING_MM, rng=1, volume_mm3=20, start=(0, 0, 0))


def test_surface_starts_lie_on_the_surface():
    roi = ball()
    inner = ndimage.binary_erosion(roi)
    rng = np.random.default_rng(0)
    starts = [random_start(roi, rng, "surface") for _ in range(30)]
    assert all(roi[start] and not inner[start] for start in starts)
    assert any(inner[random_start(roi, rng)] for _ in range(30))


@pytest.mark.parametrize(
    "changes",
    [
        {"volume_mm3": None},
        {"radius_mm": 3.0},
        {"volume_mm3": 0.0},
        {"volume_mm3": float("nan")},
        {"kind": "grey"},
        {"site": "outside"},
        {"contrast": -1.0},
        {"edge_mm": -1.0},
        {"roughness": float("inf")},
        {"texture": 1.5},
        {"patchiness": -0.1},
        {"spacing_mm": (1.0, 1.0)},
    ],
)
def test_bad_parameters_are_refused(changes):
    arguments = {"spacing_mm": SPACING_MM, "rng": 0, "volume_mm3": 100.0, **changes}
    with pytest.raises(ValueError):
        implant_lesion(noisy_image((24, 48, 48)), ball(), **arguments)


def test_bad_images_are_refused():
    roi, image = ball(), noisy_image((24, 48, 48))
    with pytest.raises(InputError, match="empty"):
        implant_lesion(image, np.zeros_like(roi), SPACING_MM, rng=0, volume_mm3=50)
    with pytest.raises(InputError, match="shape"):
        implant_lesion(image, roi[:-1], SPACING_MM, rng=0, volume_mm3=50)
    with pytest.raises(InputError, match="one single value"):
        implant_lesion(np.ones_like(image), roi, SPACING_MM, rng=0, volume_mm3=50)
    image[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        implant_lesion(image, roi, SPACING_MM, rng=0, volume_mm3=50)


def test_lesions_in_real_hippocampi(real_data):
    paths = sorted((real_data / "hippocampus" / "images").glob("*.nii.gz"))[:4]
    assert paths
    for number, path in enumerate(paths):
        image = sitk.ReadImage(str(path))
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(real_data / "hippocampus" / "labels" / path.name)))
        array, spacing_mm = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
        result, lesion = implant_lesion(array, labels > 0, spacing_mm, rng=number, volume_mm3=150.0, kind="dark")
        assert lesion.sum() * np.prod(spacing_mm) == pytest.approx(150.0, abs=1.0)
        assert (labels[lesion] > 0).all()
        assert (result - array)[lesion].mean() / array[labels > 0].std() == pytest.approx(-2.0, rel=0.01)


# ---- training must not know these lesions ----


def module_file(name):
    """Source file of a module of ours: the rooms lie at the top level, the rest in the package's folder."""
    parts = name.split(".")[1:]
    for base in (REPOSITORY / "nnunet_anomaly", REPOSITORY):
        for candidate in (base.joinpath(*parts).with_suffix(".py"), base.joinpath(*parts, "__init__.py")):
            if parts and candidate.is_file():
                return candidate
    return None


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("nnunet_anomaly.")
        ):
            yield node.value  # a module named in a string, for importlib


def reached_from(paths):
    waiting, seen = list(paths), set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        names = (name for name in imported_modules(path) if name.startswith("nnunet_anomaly."))
        waiting += [found for name in names if (found := module_file(name)) is not None]
    return seen


def test_nothing_in_training_reaches_the_phantoms():
    rooms = ["trainers", *(f"nnunet_anomaly/{room}" for room in ("augmentation", "architectures", "losses"))]
    starts = [path for room in rooms for path in (REPOSITORY / room).rglob("*.py")]
    assert len(starts) >= len(rooms)
    phantoms = REPOSITORY / "nnunet_anomaly" / "phantoms"
    assert not [path for path in reached_from(starts) if phantoms in path.parents]
    # the walk itself works: the command does reach them, by an import inside a function
    assert phantoms / "implants.py" in reached_from([REPOSITORY / "nnunet_anomaly" / "cli" / "phantom.py"])
