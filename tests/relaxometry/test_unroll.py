"""Unrolling: circle, angles, layers and means, against closed forms, brute force, and a real right knee."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from nnunet_anomaly.errors import GeometryError, InputError, LabelError, SettingsError
from nnunet_anomaly.geometry import distance_to_mm
from nnunet_anomaly.label_maps import spacing_zyx_mm
from nnunet_anomaly.relaxometry.unroll import BIN_DEGREES, fit_circle, project, unroll

STRAIGHT = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # of the drawn knee


def unrolled(knee, **options):
    return unroll(knee.mask, knee.spacing_mm, knee.direction, **options)


def same_voxels(one, other):
    """Everything that belongs to a voxel, sorted by place; the order of voxels follows the array."""

    def rows(each):
        everything = [
            *each.places_mm,
            each.slices,
            each.bins,
            each.angles_degrees,
            each.radii_mm,
            each.is_deep,
            each.is_plate,
        ]
        table = np.stack(everything, axis=1)
        return table[np.lexsort(table.T)]

    np.testing.assert_array_equal(rows(one), rows(other))


@settings(max_examples=25, deadline=None)
@given(
    centre=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    radius=st.floats(5, 60),
    extent=st.floats(60, 300),
    start=st.floats(0, 360),
)
def test_points_on_a_circle_give_it_back(centre, radius, extent, start):
    angles = np.radians(start + np.linspace(0, extent, 40))
    points = np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)
    found = fit_circle(points)
    np.testing.assert_allclose((found.posterior_mm, found.superior_mm, found.radius_mm), (*centre, radius), atol=1e-6)


def test_the_circle_has_the_smallest_sum_of_squares():
    rng = np.random.default_rng(0)
    angles = rng.uniform(-1.5, 2.0, 300)
    radii = 27 + rng.uniform(-2, 2, 300)
    points = np.stack([radii * np.cos(angles) + 3, radii * np.sin(angles) - 8], axis=1)

    def cost(circle):
        return float(((np.hypot(*(points - circle[:2]).T) - circle[2]) ** 2).sum())

    found = fit_circle(points)
    other = minimize(
        cost, [0.0, 0.0, 20.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9, "maxiter": 4000}
    )
    ours = [found.posterior_mm, found.superior_mm, found.radius_mm]
    np.testing.assert_allclose(ours, other.x, atol=1e-4)
    assert cost(ours) <= other.fun + 1e-9


def test_a_pixel_counts_once_however_many_slices_show_it(knee):
    back = np.zeros_like(knee.mask)
    back[15] = knee.mask[15]
    uneven = back.copy()
    uneven[16:20] = knee.mask[15] & (knee.radii_mm[15] > 27) & (knee.angles_degrees[15] > 60)
    assert unroll(uneven, knee.spacing_mm, STRAIGHT).circle == unroll(back, knee.spacing_mm, STRAIGHT).circle


def test_points_on_a_line_have_no_circle():
    assert math.isinf(fit_circle(np.stack([np.arange(12.0), 2 * np.arange(12.0)], axis=1)).radius_mm)


def test_drawn_knee(knee):
    found = unrolled(knee)
    assert found.slice_axis == 0 and found.shape == (22, 72)
    assert found.circle.radius_mm == pytest.approx(26.5, abs=0.1)
    np.testing.assert_allclose(found.angles_degrees, knee.angles_degrees[knee.mask], atol=0.5)
    np.testing.assert_allclose(found.radii_mm, knee.radii_mm[knee.mask], atol=0.2)
    np.testing.assert_array_equal(found.slices, np.nonzero(knee.mask)[0])
    np.testing.assert_array_equal(found.in_image(np.ones(len(found.bins), bool)), knee.mask)
    assert found.bin_area_mm2 == pytest.approx(math.radians(5) * found.circle.radius_mm * 3)
    thickness = project(found, knee.radii_mm).thickness_mm
    inside = thickness[15, (found.bin_starts_degrees >= -40) & (found.bin_starts_degrees < 100)]
    assert inside.size == 28
    np.testing.assert_allclose(inside, 3.0, atol=0.4)  # whole pixels
    assert inside.mean() == pytest.approx(3.0, abs=0.03)


def test_bin_means_by_brute_force(knee):
    rng = np.random.default_rng(1)
    mask = knee.mask & (rng.random(knee.mask.shape) < 0.3)
    volume = rng.uniform(20, 80, mask.shape)
    volume[rng.random(mask.shape) < 0.05] = np.nan
    found = unroll(mask, knee.spacing_mm, STRAIGHT)
    maps = project(found, volume)
    rows, columns = (np.arange(116) * 0.5,) * 2
    places = [np.flatnonzero(mask.any(axis=axes)) for axes in ((0, 2), (0, 1))]
    middle = [float(line[each[[0, -1]]].mean()) for line, each in zip((rows, columns), places, strict=True)]
    looked_at = 0
    for index in range(mask.shape[0]):
        voxels = []
        for row, column in np.argwhere(mask[index]):
            down, back = rows[row] - middle[0] + found.circle.superior_mm, columns[column] - middle[1]
            back -= found.circle.posterior_mm
            angle = math.degrees(math.atan2(back, down))
            voxels.append((int((angle + 180) // BIN_DEGREES), math.hypot(back, down), volume[index, row, column]))
        for number in range(72):
            inside = [(radius, value) for each, radius, value in voxels if each == number]
            expected = dict.fromkeys(("mean", "deep", "superficial"), math.nan)
            if inside:
                middle_mm = (min(inside)[0] + max(inside)[0]) / 2
                layers = {
                    "mean": [value for _, value in inside],
                    "deep": [value for radius, value in inside if radius <= middle_mm],
                    "superficial": [value for radius, value in inside if radius > middle_mm],
                }
                for name, values in layers.items():
                    known = [value for value in values if not math.isnan(value)]
                    expected[name] = sum(known) / len(known) if known else math.nan
                looked_at += 1
            for name, value in expected.items():
                np.testing.assert_allclose(getattr(maps, name)[index, number], value, rtol=1e-12)
    assert looked_at > 300


@pytest.mark.parametrize("degrees", [10.0, -10.0])
def test_a_turned_knee_has_turned_angles(knee, drawn, degrees):
    straight = unrolled(knee)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])  # what lies below moves to the back
    by_header = unroll(knee.mask, knee.spacing_mm, (turn @ np.reshape(STRAIGHT, (3, 3))).ravel())
    np.testing.assert_allclose(by_header.angles_degrees, straight.angles_degrees + degrees, atol=1e-6)
    np.testing.assert_allclose(by_header.radii_mm, straight.radii_mm, atol=1e-6)
    # drawn anew on the grid
    thickness_mm = project(unrolled(drawn(degrees)), knee.radii_mm).thickness_mm
    expected = np.roll(project(straight, knee.radii_mm).thickness_mm, round(degrees / BIN_DEGREES), axis=1)
    whole = (thickness_mm > 2) & (expected > 2)
    assert np.mean((thickness_mm > 2) != (expected > 2)) < 0.01
    np.testing.assert_allclose(thickness_mm[whole], expected[whole], atol=0.5)


def test_a_mirrored_knee_is_mirrored(knee):
    straight = unrolled(knee)
    mirrored = (np.diag([-1.0, 1.0, 1.0]) @ np.reshape(STRAIGHT, (3, 3))).ravel()
    by_header = unroll(knee.mask, knee.spacing_mm, mirrored)
    by_voxels = unroll(knee.mask[::-1], knee.spacing_mm, STRAIGHT)
    same_voxels(by_header, by_voxels)
    assert by_header.circle == straight.circle
    np.testing.assert_array_equal(by_header.slices, 21 - straight.slices)
    np.testing.assert_array_equal(by_header.is_deep, straight.is_deep)
    np.testing.assert_array_equal(by_header.bins, straight.bins)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "SLA", "AIL"])
@pytest.mark.parametrize("is_oblique", [False, True])
def test_the_order_of_axes_does_not_matter(knee, orientation, is_oblique):
    image = sitk.GetImageFromArray(knee.mask.astype(np.uint8))
    image.SetSpacing(knee.spacing_mm[::-1])
    direction = np.reshape(STRAIGHT, (3, 3))
    if is_oblique:
        angle = math.radians(12)
        turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
        direction = turn @ direction
    image.SetDirection(direction.ravel())
    turned = sitk.DICOMOrient(image, orientation)
    one, other = (
        unroll(sitk.GetArrayFromImage(each), spacing_zyx_mm(each), each.GetDirection()) for each in (image, turned)
    )
    assert one.circle == other.circle
    same_voxels(one, other)
    thickness = [project(each, np.ones(each.mask_shape)).thickness_mm for each in (one, other)]
    np.testing.assert_allclose(thickness[0], thickness[1])
    if is_oblique:  # angles are those within the plane of slices
        same_voxels(one, unrolled(knee))


def test_two_pieces_of_one_bin_have_a_middle_each(knee):
    island = knee.mask.copy()
    # a plate 8 mm within the bone, in some of the slices, below
    more = (knee.radii_mm >= 15.5) & (knee.radii_mm < 17) & (np.abs(knee.angles_degrees) < 8) & (knee.left_mm > 10)
    assert more.any() and not (more & island).any()
    found = unroll(island | more, knee.spacing_mm, STRAIGHT)
    deep = found.in_image(found.is_deep)
    plate = knee.mask & (np.abs(knee.angles_degrees) < 4) & (knee.left_mm > 10) & (knee.left_mm < 29)
    assert 0.4 < deep[plate].mean() < 0.6  # one middle between both would make all of it superficial
    assert 0.3 < deep[more].mean() < 0.7


def test_pieces_in_different_bins_are_two_plates(knee):
    apart = knee.mask & ((knee.angles_degrees < -40) | (knee.angles_degrees > 40))
    maps = project(unroll(apart, knee.spacing_mm, STRAIGHT), knee.radii_mm)
    occupied = np.isfinite(maps.mean)
    assert occupied[8].any() and not occupied[:, 36].any()
    assert np.all(np.isfinite(maps.thickness_mm) == occupied)


def test_nothing_to_unroll():
    found = unroll(np.zeros((4, 5, 6), np.uint8), (3, 1, 1), STRAIGHT)
    assert found.shape == (4, 72) and found.bins.size == 0 and math.isnan(found.circle.radius_mm)
    maps = project(found, np.ones((4, 5, 6)))
    assert all(np.isnan(each).all() for each in (maps.mean, maps.deep, maps.superficial, maps.thickness_mm))


def test_masks_without_a_circle(knee):
    three = np.zeros_like(knee.mask)
    three.ravel()[np.flatnonzero(knee.mask)[[0, 500, 5000]]] = True
    with pytest.raises(InputError, match="3 voxels, at 3 places"):
        unroll(three, knee.spacing_mm, STRAIGHT)
    line = np.zeros_like(knee.mask)
    line[3, 10:60, 40] = True
    with pytest.raises(InputError, match="radius of inf mm"):
        unroll(line, knee.spacing_mm, STRAIGHT)
    with pytest.raises(InputError, match="voxel size right"):
        unroll(knee.mask, (3, 0.05, 0.05), STRAIGHT)


def test_wrong_arguments(knee):
    with pytest.raises(LabelError):
        unroll(knee.mask.astype(float), knee.spacing_mm, STRAIGHT)
    with pytest.raises(LabelError):
        unroll(knee.mask[0], knee.spacing_mm[1:], STRAIGHT)
    with pytest.raises(GeometryError, match="spacing_mm"):
        unroll(knee.mask, (1, 1), STRAIGHT)
    with pytest.raises(GeometryError, match="9 numbers"):
        unroll(knee.mask, knee.spacing_mm, (1, 0, 0, 1))
    for wrong in (0, 7, 360, -5):
        with pytest.raises(SettingsError, match="multiple"):
            unrolled(knee, bin_degrees=wrong)
    with pytest.raises(GeometryError, match="shape"):
        project(unrolled(knee), np.zeros((3, 3, 3)))


def test_real_right_knee(real_data):
    image = sitk.ReadImage(str(next((real_data / "knee_dess_labels").glob("*.nrrd"))))
    labels, spacing_mm = sitk.GetArrayFromImage(image), spacing_zyx_mm(image)
    found = unroll(labels == 1, spacing_mm, image.GetDirection())
    from_bone_mm = distance_to_mm(labels == 5, spacing_mm)
    maps = project(found, from_bone_mm)
    superficial_mm = maps.superficial.ravel()[found.cells]
    compared = found.is_deep & np.isfinite(superficial_mm)
    assert np.mean(found.values_of(from_bone_mm)[compared] < superficial_mm[compared]) >= 0.95
    assert compared.sum() > 0.45 * found.bins.size
    assert 20 < found.circle.radius_mm < 35
    # the tibia lies below, in the middle of all angles
    assert -120 < found.angles_degrees.min() < -60 < 60 < found.angles_degrees.max() < 130


@pytest.mark.parametrize("degrees", [10, -10])
def test_real_knee_turned_on_its_grid(real_data, degrees):
    image = sitk.ReadImage(str(next((real_data / "knee_dess_labels").glob("*.nrrd"))))[:, :, ::4]
    cartilage = sitk.Cast(image == 1, sitk.sitkFloat32)
    centre_mm = image.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in image.GetSize()])
    # around the axis across slices; what lies below moves to the back
    normal = np.reshape(image.GetDirection(), (3, 3))[:, 2]
    axis = (normal * np.sign(normal[0])).tolist()
    turn = sitk.VersorRigid3DTransform()
    turn.SetCenter(centre_mm)
    turn.SetRotation(axis, math.radians(-degrees))  # resampling asks where a voxel comes from
    turned = sitk.Resample(cartilage, image, turn, sitk.sitkLinear, 0.0)
    spacing_mm, direction = spacing_zyx_mm(image), image.GetDirection()
    straight, found = (
        unroll(sitk.GetArrayFromImage(each) > 0.5, spacing_mm, direction) for each in (cartilage, turned)
    )
    assert found.circle.radius_mm == pytest.approx(straight.circle.radius_mm, abs=0.2)
    assert np.mean(found.angles_degrees) - np.mean(straight.angles_degrees) == pytest.approx(degrees, abs=0.5)
    shares = [np.quantile(each.angles_degrees, np.linspace(0.05, 0.95, 19)) for each in (straight, found)]
    np.testing.assert_allclose(shares[1] - shares[0], degrees, atol=1.5)
