"""How planes of several directions lie in a volume, and what is seen on them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_anomaly.errors import GeometryError, SettingsError
from nnunet_anomaly.views import (
    PlaneStack,
    covering_stack,
    draw_frames,
    frame_of,
    plane_through,
    sample,
    sample_nearest,
)

directions = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1)
shapes = st.tuples(*[st.integers(1, 9)] * 3)
spacings = st.tuples(*[st.floats(0.3, 4)] * 3)


def positions(stack):
    """Voxel positions of all points, (3, *shape)."""
    index = np.indices(stack.shape).reshape(3, -1)
    return (stack.affine[:, :3] @ index + stack.affine[:, 3:]).reshape(3, *stack.shape)


def as_volume(array):
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]


# -- directions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, angle_deg", [(1, 90), (2, 90), (3, 90), (4, 70), (6, 60), (6, 63), (6, 30), (7, 54)])
def test_views_are_as_far_apart_as_asked(number, angle_deg):
    for seed in range(5):
        frames = draw_frames(number, angle_deg, seed)
        assert frames.shape == (number, 3, 3)
        np.testing.assert_allclose(frames @ frames.transpose(0, 2, 1), np.tile(np.eye(3), (number, 1, 1)), atol=1e-12)
        cosines = np.abs(frames[:, 0] @ frames[:, 0].T) - np.eye(number)
        assert np.degrees(np.arccos(cosines.max(initial=0))) >= angle_deg - 1e-3


def test_views_follow_from_the_seed_and_are_random():
    np.testing.assert_array_equal(draw_frames(6, 60, 1), draw_frames(6, 60, 1))
    normals = np.concatenate([draw_frames(6, 60, seed)[:, 0] for seed in range(100)])
    # of directions that are spread evenly, every component squared is 1/3 on average
    np.testing.assert_allclose((normals**2).mean(axis=0), 1 / 3, atol=0.04)


@pytest.mark.parametrize("number, angle_deg, possible_deg", [(7, 60, 54.7), (4, 80, 70.5), (4, 90, 70.5)])
def test_views_that_cannot_be_had_are_an_error_that_says_what_can(number, angle_deg, possible_deg):
    with pytest.raises(SettingsError, match=r"views that are .* were not found") as caught:
        draw_frames(number, angle_deg, 0)
    found = float(str(caught.value).split("; ")[1].split(" ")[0])
    assert possible_deg - 4 < found <= possible_deg + 0.1


def test_planes_along_array_axes_lie_as_slices():
    for axis, others in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1))):
        np.testing.assert_array_equal(frame_of(np.eye(3)[axis]), np.eye(3)[[axis, *others]])


@given(directions)
def test_a_frame_does_not_depend_on_the_sign_of_its_normal(direction):
    frame, other = frame_of(direction), frame_of(-np.array(direction))
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(frame[0], direction / np.linalg.norm(direction))
    np.testing.assert_allclose(frame[1:], other[1:], atol=1e-12)


# -- where planes lie -------------------------------------------------------------------------------------------------


def test_pixels_as_large_as_voxels_are_the_voxels():
    stack = covering_stack(np.eye(3), (4, 5, 6), (0.7, 0.7, 0.7), 0.7)
    assert stack.shape == (4, 5, 6)
    np.testing.assert_allclose(stack.affine, np.eye(3, 4), atol=1e-12)


@settings(max_examples=50)
@given(directions, shapes, spacings, st.floats(0.4, 3))
def test_no_voxel_is_left_out_by_any_view(direction, shape, spacing_mm, pixel_mm):
    stack = covering_stack(frame_of(direction), shape, spacing_mm, pixel_mm)
    seen = positions(stack.seen_from_volume(shape)).reshape(3, -1)
    last = np.array(stack.shape)[:, None] - 1
    assert (seen >= -1e-6).all() and (seen <= last + 1e-6).all()
    np.testing.assert_allclose(seen.min(axis=1), 0, atol=1e-6)  # it begins where the volume does
    assert (seen.max(axis=1) > last[:, 0] - 1 - 1e-6).all()  # and there is no plane, row or column too many


@given(directions, shapes, spacings, st.floats(0.4, 3))
def test_points_are_so_far_apart_as_said_in_mm(direction, shape, spacing_mm, pixel_mm):
    stack = covering_stack(frame_of(direction), shape, spacing_mm, pixel_mm)
    steps_mm = stack.affine[:, :3] * np.array(spacing_mm)[:, None]
    np.testing.assert_allclose(steps_mm.T @ steps_mm, pixel_mm**2 * np.eye(3), atol=1e-9)


def test_parts_of_a_stack_are_its_planes():
    stack = covering_stack(frame_of((1, 2, 3)), (7, 8, 9), (1, 2, 0.5), 0.8)
    whole, part = positions(stack), stack.part(3, 5)
    assert part.shape == (2, *stack.shape[1:])
    np.testing.assert_allclose(positions(part), whole[:, 3:5])
    assert stack.part(3, 1000).shape[0] == stack.shape[0] - 3
    larger = positions(stack.with_plane_size(stack.shape[1] + 2, stack.shape[2] + 1))
    np.testing.assert_allclose(larger[:, :, :-2, :-1], whole)


@given(
    directions,
    shapes,
    spacings,
    st.floats(0.4, 3),
    st.integers(1, 12),
    st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    st.data(),
)
def test_a_plane_goes_through_its_voxel(direction, shape, spacing_mm, pixel_mm, pixels, shift, data):
    voxel = [data.draw(st.integers(0, size - 1)) for size in shape]
    frame = frame_of(direction)
    plane = plane_through(voxel, frame, shape, spacing_mm, pixel_mm, pixels, shift)
    assert plane.shape == (1, pixels, pixels)
    back = plane.seen_from_volume(shape)
    at = back.affine[:, :3] @ voxel + back.affine[:, 3]
    assert abs(at[0]) < 1e-6 and (at[1:] > -1e-6).all() and (at[1:] < pixels - 1 + 1e-6).all()
    # where plane and volume differ in length, the shorter one is within the longer one, but for the voxel's sake
    reach = positions(covering_stack(frame, shape, spacing_mm, pixel_mm).seen_from_volume(shape)).max(axis=(1, 2, 3))
    extent = positions(back).reshape(3, -1)
    for axis, edge in ((1, reach[1]), (2, reach[2])):
        if edge < pixels - 1:
            assert extent[axis].min() > -1e-6 and extent[axis].max() < pixels - 1 + 1e-6


def test_a_plane_moves_to_the_ends_of_the_volume_and_not_further():
    frame, shape = np.eye(3), (3, 20, 20)
    first = plane_through((1, 5, 5), frame, shape, (1, 1, 1), 1, 8, (-1, -1))
    np.testing.assert_allclose(positions(first)[1:, 0, 0, 0], 0)
    last = plane_through((1, 15, 15), frame, shape, (1, 1, 1), 1, 8, (1, 1))
    np.testing.assert_allclose(positions(last)[1:, 0, -1, -1], 19)
    back = plane_through((1, 2, 10), frame, shape, (1, 1, 1), 1, 8, (1, 0))
    np.testing.assert_allclose(positions(back)[1:, 0, 0, 0], (2, 6))


def test_spacing_must_be_one_number_per_axis():
    for call in (
        lambda: covering_stack(np.eye(3), (4, 4, 4), (1, 1), 1),
        lambda: plane_through((0, 0, 0), np.eye(3), (4, 4, 4), (1, 1, 0), 1, 4, (0, 0)),
    ):
        with pytest.raises(GeometryError):
            call()


# -- what is seen -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=range(3))
def turned(request):
    """A random volume and a stack that reaches out of it."""
    rng = np.random.default_rng(request.param)
    shape = tuple(rng.integers(1, 12, 3))
    stack = covering_stack(frame_of(rng.normal(size=3)), shape, rng.uniform(0.5, 2, 3), 0.7)
    return rng.normal(size=shape), stack.with_plane_size(stack.shape[1] + 3, stack.shape[2] + 2)


@pytest.mark.parametrize("beyond, scipys", [("zeros", "grid-constant"), ("border", "nearest")])
def test_sampling_is_scipys(turned, beyond, scipys):
    volume, stack = turned
    expected = ndimage.map_coordinates(volume, positions(stack), order=1, mode=scipys, cval=0)
    np.testing.assert_allclose(sample(as_volume(volume), stack, beyond)[0, 0].numpy(), expected, atol=2e-5)


def test_nearest_sampling_is_scipys(turned):
    volume, stack = turned
    labels = (volume * 100).astype(np.int16)
    found = sample_nearest(labels, stack, -1)
    place = positions(stack)
    inside = ((place > -0.5) & (place < np.array(labels.shape)[:, None, None, None] - 0.5)).all(axis=0)
    expected = ndimage.map_coordinates(labels, place, order=0, mode="nearest")
    assert found.dtype == np.int16 and (found[~inside] == -1).all()
    np.testing.assert_array_equal(found[inside], expected[inside])


def test_batches_and_channels_are_sampled_alike():
    volume = torch.randn(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    stack = covering_stack(frame_of((3, 1, 2)), (5, 6, 7), (1, 2, 1), 1.1)
    found = sample(volume, stack)
    assert found.shape == (2, 3, *stack.shape)
    torch.testing.assert_close(found[1:, 2:], sample(volume[1:, 2:], stack), rtol=0, atol=0)
    assert sample(volume.half(), stack).dtype == torch.float32


def field_mm(shape, spacing_mm):
    """Positions of voxels in mm from the centre, three arrays of ``shape``."""
    axes = [(np.arange(size) - (size - 1) / 2) * step for size, step in zip(shape, spacing_mm, strict=True)]
    return np.meshgrid(*axes, indexing="ij")


def there_and_back(values, spacing_mm, frame, pixel_mm):
    stack = covering_stack(frame, values.shape, spacing_mm, pixel_mm)
    there = sample(as_volume(values), stack)
    return sample(there, stack.seen_from_volume(values.shape), "border")[0, 0].numpy()


SHAPE, SPACING_MM, PIXEL_MM = (25, 30, 41), (1.5, 1.2, 0.8), 1.0


def interior(position_mm):
    """Voxels all of whose neighbours in a stack, and theirs in the volume, are voxels."""
    half_mm = (np.array(SHAPE) - 1) / 2 * SPACING_MM
    return np.all([np.abs(p) <= half - 3**0.5 * PIXEL_MM for p, half in zip(position_mm, half_mm, strict=True)], axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_a_linear_function_comes_back_as_it_was(seed):
    position_mm = field_mm(SHAPE, SPACING_MM)
    values = 0.3 * position_mm[0] - 0.2 * position_mm[1] + 0.5 * position_mm[2] + 4
    frame = draw_frames(1, 0, seed)[0]
    error = np.abs(there_and_back(values, SPACING_MM, frame, PIXEL_MM) - values)
    assert error[interior(position_mm)].max() < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_a_smooth_function_comes_back_within_the_bound_of_linear_interpolation(seed):
    """Each of the two interpolations errs by h^2 / 8 times the largest second derivative at most, along each axis."""
    position_mm, waves_per_mm = field_mm(SHAPE, SPACING_MM), np.array([0.25, 0.3, 0.2])
    values = np.sin(sum(w * p for w, p in zip(waves_per_mm, position_mm, strict=True)))
    frame = draw_frames(1, 0, seed)[0]
    there = sum((h * w) ** 2 for h, w in zip(SPACING_MM, waves_per_mm, strict=True)) / 8
    back = sum((PIXEL_MM * (direction @ waves_per_mm)) ** 2 for direction in frame) / 8
    error = np.abs(there_and_back(values, SPACING_MM, frame, PIXEL_MM) - values)[interior(position_mm)].max()
    assert 0.1 * (there + back) < error <= there + back + 1e-5


def test_a_ball_in_mm_is_a_disc_from_every_side():
    shape, spacing_mm, radius_mm = (15, 31, 61), (4.0, 2.0, 1.0), 20.0
    ball = sum(p**2 for p in field_mm(shape, spacing_mm)) <= radius_mm**2
    for frame in draw_frames(4, 60, 0):
        plane = plane_through((7, 15, 30), frame, shape, spacing_mm, 1.0, 61, (0, 0))
        disc = sample_nearest(ball.astype(np.uint8), plane, 0)[0]
        assert disc.sum() == pytest.approx(np.pi * radius_mm**2, rel=0.08)
        for axis in (0, 1):
            assert disc.any(axis=axis).sum() == pytest.approx(2 * radius_mm, abs=4)


def test_nothing_outside_a_volume():
    far = PlaneStack((1, 2, 2), np.column_stack((np.eye(3), [50, 0, 0])))
    assert not sample(torch.ones(1, 1, 3, 3, 3), far).any()
    assert (sample_nearest(np.ones((3, 3, 3), dtype=np.uint8), far, 7) == 7).all()
