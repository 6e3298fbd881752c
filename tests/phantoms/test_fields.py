import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_anomaly.phantoms.fields import (
    capsule,
    ellipsoid,
    extrusion,
    occupancy,
    rician_noise,
    smooth_max,
    smooth_min,
    smooth_noise,
    smooth_step,
    spline_field,
    surface_ramp,
)

NUMBERS = st.floats(-50, 50)


@given(NUMBERS, NUMBERS, st.floats(0.1, 20))
def test_smooth_min_rounds_only_near_the_edge(first, second, radius_mm):
    result = float(smooth_min(np.array(first), np.array(second), radius_mm))
    assert min(first, second) - radius_mm / 4 - 1e-9 <= result <= min(first, second)
    if abs(first - second) >= radius_mm:
        assert result == min(first, second)
    assert result == -float(smooth_max(np.array(-first), np.array(-second), radius_mm))


def test_smooth_step_rises_and_falls():
    np.testing.assert_allclose(smooth_step(np.array([0.0, 1.0, 1.5, 2.0, 3.0]), 1.0, 2.0), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(smooth_step(np.array([0.0, 1.0, 1.5, 2.0, 3.0]), 2.0, 1.0), [1, 1, 0.5, 0, 0])


def test_spheres_and_capsules_are_true_distances():
    rng = np.random.default_rng(0)
    points = rng.uniform(-20, 20, (3, 500))
    from_centre = np.linalg.norm(points - np.array([[1.0], [2.0], [3.0]]), axis=0)
    np.testing.assert_allclose(ellipsoid(points, (1, 2, 3), (5, 5, 5)), from_centre - 5, atol=1e-9)

    start, end = np.array([-4.0, 0.0, 1.0]), np.array([6.0, 3.0, -2.0])
    along = start + np.linspace(0, 1, 4001)[:, None] * (end - start)
    nearest = np.sqrt(((points.T[:, None] - along[None]) ** 2).sum(-1)).min(axis=1)
    np.testing.assert_allclose(capsule(points, start, end, 2.5), nearest - 2.5, atol=1e-5)


def test_ellipsoid_is_zero_on_its_surface_with_unit_slope():
    angles = np.linspace(0, 2 * np.pi, 17)
    surface = np.array([6 * np.cos(angles), 3 * np.sin(angles)])
    np.testing.assert_allclose(ellipsoid(surface, (0, 0), (6, 3)), 0, atol=1e-9)
    normal = np.array([np.cos(angles) / 6, np.sin(angles) / 3])
    normal /= np.linalg.norm(normal, axis=0)
    np.testing.assert_allclose(ellipsoid(surface + 1e-4 * normal, (0, 0), (6, 3)), 1e-4, rtol=1e-2)


def test_extrusion_without_rounding_is_a_box():
    profile, offset = np.array([-3.0, -3.0, -1.0, 2.0, 3.0]), np.array([0.0, 4.5, 0.0, 0.0, 9.0])
    np.testing.assert_allclose(extrusion(profile, offset, 5.0, 0.0), [-3.0, -0.5, -1.0, 2.0, 5.0])


@pytest.mark.parametrize("normal", [(1, 0, 0), (0, 0, 1), (0, 1, 2), (1, -1, 1), (3, 1, 0)])
def test_occupancy_of_a_plane_is_the_fraction_of_the_voxel_inside(normal):
    spacing_mm = (2.8, 1.4, 1.0)
    unit = np.array(normal) / np.linalg.norm(normal)
    axes = [(np.arange(9) - 4) * size for size in spacing_mm]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    # a distance with the wrong slope, as deformed shapes have it
    distance = 1.3 * (places @ unit - 0.37)
    slope, reach_mm = surface_ramp(distance, spacing_mm)
    soft = occupancy(distance / slope, reach_mm)

    fine = (np.arange(8) - 3.5) / 8
    inside = [
        places @ unit + np.dot(unit, np.array(shift) * spacing_mm) < 0.37 for shift in itertools.product(fine, repeat=3)
    ]
    # for oblique planes the ramp is straight where the true fraction is S-shaped
    tolerance = 0.07 if np.count_nonzero(normal) == 1 else 0.09
    np.testing.assert_allclose(soft, np.mean(inside, axis=0), atol=tolerance)


def test_spline_field_does_not_depend_on_the_grid():
    coefficients = np.random.default_rng(0).normal(size=(6, 6, 6))
    coarse_axis, fine_axis = np.linspace(-40, 40, 9), np.linspace(-40, 40, 33)
    coarse = spline_field(coefficients, [coarse_axis] * 3, 80.0)
    fine = spline_field(coefficients, [fine_axis] * 3, 80.0)
    np.testing.assert_allclose(coarse, fine[::4, ::4, ::4], atol=1e-6)
    assert coarse.dtype == np.float32


def test_spline_field_reproduces_a_constant_and_keeps_the_order_of_axes():
    axes = [np.linspace(-20, 20, 3), np.linspace(-20, 20, 5), np.linspace(-20, 20, 7)]
    np.testing.assert_allclose(spline_field(np.full((7, 7, 7), 2.5), axes, 60.0), 2.5, atol=1e-6)
    ramp = np.broadcast_to(np.arange(7.0)[:, None, None], (7, 7, 7))  # changes along the first axis alone
    field = spline_field(ramp, axes, 60.0)
    assert field.shape == (3, 5, 7)
    np.testing.assert_allclose(field, np.broadcast_to((axes[0] / 20 + 3)[:, None, None], field.shape), atol=1e-5)


def test_rician_noise_has_the_moments_of_theory():
    rng = np.random.default_rng(0)
    background = rician_noise(np.zeros((60, 60, 60), np.float32), 5.0, rng)
    assert background.mean() == pytest.approx(5.0 * np.sqrt(np.pi / 2), rel=0.01)
    bright = rician_noise(np.full((60, 60, 60), 200.0, np.float32), 5.0, rng)
    assert bright.std() == pytest.approx(5.0, rel=0.01)
    assert (bright**2).mean() == pytest.approx(200.0**2 + 2 * 25.0, rel=0.001)


def test_smooth_noise_is_standardised_and_correlated_in_mm():
    noise = smooth_noise((40, 80, 80), (2.0, 1.0, 1.0), np.random.default_rng(0), 3.0)
    assert noise.mean() == pytest.approx(0, abs=1e-4)
    assert noise.std() == pytest.approx(1, abs=1e-3)
    # 4 mm away along either axis; white noise smoothed by sigma s correlates with exp(-d^2 / 4 s^2)
    expected = np.exp(-16 / 36)
    assert np.corrcoef(noise[:-2].ravel(), noise[2:].ravel())[0, 1] == pytest.approx(expected, abs=0.06)
    assert np.corrcoef(noise[:, :-4].ravel(), noise[:, 4:].ravel())[0, 1] == pytest.approx(expected, abs=0.06)


def test_surface_ramp_knows_slices_that_are_not_evenly_spaced():
    """A tilted plane, sampled at three depths of slices with gaps between them."""
    slices_mm = (np.arange(5)[:, None] * 3.5 + np.array([-1.0, 0.0, 1.0])).ravel()
    axes_mm = [slices_mm, np.arange(12) * 0.6, np.arange(10) * 0.6]
    normal = np.array([0.6, 0.64, 0.48])
    distance = sum(n * axis for n, axis in zip(normal, np.ix_(*axes_mm), strict=True))
    spacing_mm = (1.0, 0.6, 0.6)
    slope, reach_mm = surface_ramp(distance, spacing_mm, axes_mm)
    np.testing.assert_allclose(slope, 1, rtol=1e-6)
    np.testing.assert_allclose(reach_mm, np.linalg.norm(normal * spacing_mm), rtol=1e-6)
    assert np.ptp(surface_ramp(distance, spacing_mm)[0]) > 0.05  # as if they were even
