"""Planes of several directions through a volume: how they lie, and what is seen on them (Perslev 2019, Xu 2022).

Positions are in mm along the axes of the array, from the centre of the volume; there are no direction cosines. A view
is a frame, a (3, 3) array of orthonormal rows: the normal of its planes, the direction along which their rows follow
one another, and that of their columns. Its planes are a stack, a grid (planes, rows, columns) with the same distance in
mm along all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import grid_sample

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.geometry import check_spacing

TRIES, STEPS = 100, 400
ROUNDING = 1e-6  # of cosines, and of positions in units of a pixel


class PlaneStack(NamedTuple):
    """Grid of parallel planes, and where it lies in a volume.

    Attributes:
        shape: planes, rows, columns.
        affine: (3, 4) float64; ``affine[:, :3] @ index + affine[:, 3]`` is the position, in voxels of the volume, of
            the grid's point ``index``.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def part(self, first: int, last: int) -> PlaneStack:
        """Planes ``first`` to ``last - 1``; fewer where there are not so many."""
        shift = np.column_stack((np.zeros((3, 3)), self.affine[:, 0] * first))
        return PlaneStack((min(last, self.shape[0]) - first, *self.shape[1:]), self.affine + shift)

    def with_plane_size(self, rows: int, columns: int) -> PlaneStack:
        """The same planes with another number of pixels, added or left out at the far ends."""
        return PlaneStack((self.shape[0], rows, columns), self.affine)

    def seen_from_volume(self, shape: Sequence[int]) -> PlaneStack:
        """The other way round: a grid of the volume's voxels (``shape``), and where each lies in this stack."""
        inverse = np.linalg.inv(self.affine[:, :3])
        return PlaneStack(
            (int(shape[0]), int(shape[1]), int(shape[2])), np.column_stack((inverse, -inverse @ self.affine[:, 3]))
        )


def draw_frames(number: int, minimum_angle_deg: float, seed: int) -> np.ndarray:
    """Frames of ``number`` views whose normals, taken as lines, are pairwise at least so far apart.

    Random directions are pushed apart, pair by pair, until none is too close to another: six lines can be 63.4 degrees
    apart at most, so that drawing until six random ones happen to be 60 apart would never end.

    Args:
        number: 1 or more.
        minimum_angle_deg: 0 to 90.
        seed: the same seed gives the same frames.

    Returns:
        float64 array (number, 3, 3), see ``frame_of``.

    Raises:
        SettingsError: no such directions were found.
    """
    rng = np.random.default_rng(seed)
    limit = float(np.cos(np.radians(minimum_angle_deg)))
    closest_cosine = 1.0
    for _ in range(TRIES):
        normals = _unit(rng.normal(size=(number, 3)))
        for _ in range(STEPS):
            cosines = normals @ normals.T
            np.fill_diagonal(cosines, 0)
            closest_cosine = min(closest_cosine, float(np.abs(cosines).max()))
            if np.abs(cosines).max() <= limit + ROUNDING:
                return np.stack([frame_of(normal) for normal in normals])
            too_close = np.sign(cosines) * np.maximum(np.abs(cosines) - limit, 0)
            normals = _unit(normals - 0.5 * too_close @ normals)
    raise SettingsError(
        f"{number} views that are {minimum_angle_deg:g} degrees apart were not found; "
        f"{np.degrees(np.arccos(min(1.0, closest_cosine))):.1f} degrees were. Lower multi_planar.minimum_angle_deg or "
        "multi_planar.views."
    )


def frame_of(normal: Sequence[float] | np.ndarray) -> np.ndarray:
    """Frame of a view: how rows and columns lie in the planes with this normal.

    Of the two array axes that are further from the normal, rows follow one another along the first, projected onto the
    plane, and columns at a right angle to it, to the side of the second. So planes along an array axis lie as slices of
    the array do, and the normal's sign does not change them.

    Args:
        normal: three numbers, not all 0.

    Returns:
        float64 array (3, 3): unit vectors of the normal, from row to row and from column to column.
    """
    along = _unit(np.asarray(normal, dtype=float))
    first, second = (axis for axis in range(3) if axis != int(np.abs(along).argmax()))
    down = _unit(np.eye(3)[first] - along[first] * along)
    across = np.cross(along, down)
    return np.stack((along, down, across * np.sign(across[second])))


def covering_stack(frame: np.ndarray, shape: Sequence[int], spacing_mm: Sequence[float], pixel_mm: float) -> PlaneStack:
    """The smallest stack of a view in which all voxels of a volume lie.

    It begins where the volume does along each of its directions, and ends less than a pixel behind it: with a frame of
    array axes and pixels as large as voxels its points are the voxels.

    Args:
        frame: (3, 3), see the module.
        shape: of the volume, three axes.
        spacing_mm: voxel size along every axis of the volume.
        pixel_mm: distance between planes, rows and columns.

    Raises:
        GeometryError: the spacing is not one positive number per axis.
    """
    half_mm = _half_extents_mm(frame, shape, spacing_mm)
    planes, rows, columns = (int(n) + 1 for n in np.ceil(2 * half_mm / pixel_mm - ROUNDING))
    return PlaneStack((planes, rows, columns), _affine(frame, -half_mm, shape, spacing_mm, pixel_mm))


def plane_through(
    voxel: Sequence[float],
    frame: np.ndarray,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    pixel_mm: float,
    plane_pixels: int,
    shift: Sequence[float] | np.ndarray,
) -> PlaneStack:
    """One square plane of a view on which a given voxel lies.

    Args:
        voxel: its index in the volume.
        frame: (3, 3), see the module.
        shape: of the volume, three axes.
        spacing_mm: voxel size along every axis of the volume.
        pixel_mm: distance between rows and columns.
        plane_pixels: rows, and columns.
        shift: two numbers from -1 to 1, for rows and columns: how far the plane is moved to either side, out of how far
            it can be with the volume on it from end to end (where the volume is smaller), or itself within the volume.
            If the voxel would be left out, the plane is moved back until it is on its edge.

    Raises:
        GeometryError: the spacing is not one positive number per axis.
    """
    half_volume_mm = _half_extents_mm(frame, shape, spacing_mm)[1:]
    half_plane_mm = (plane_pixels - 1) / 2 * pixel_mm
    at_mm = frame @ ((np.asarray(voxel) - (np.asarray(shape) - 1) / 2) * np.asarray(spacing_mm))
    centre_mm = np.asarray(shift) * np.abs(half_volume_mm - half_plane_mm)
    centre_mm = np.clip(centre_mm, at_mm[1:] - half_plane_mm, at_mm[1:] + half_plane_mm)
    start_mm = np.concatenate((at_mm[:1], centre_mm - half_plane_mm))
    return PlaneStack((1, plane_pixels, plane_pixels), _affine(frame, start_mm, shape, spacing_mm, pixel_mm))


def sample(volume: torch.Tensor, stack: PlaneStack, beyond: str = "zeros") -> torch.Tensor:
    """Values at the points of a stack, by linear interpolation between the eight voxels around each.

    The error is at most the sum over the volume's axes of h^2 / 8 times the largest second derivative along the axis,
    with h its voxel size, and float32's rounding of positions: some 1e-7 of the volume's length.

    Args:
        volume: (B, C, Z, Y, X), any floating dtype and device.
        stack: in the volume.
        beyond: ``"zeros"``: all is 0 outside the volume, and falls to 0 over one voxel; ``"border"``: as at its edge.

    Returns:
        float32 tensor (B, C, *stack.shape).
    """
    coordinates = []
    for axis, voxels in enumerate(volume.shape[2:]):
        # grid_sample counts from -1 to 1, from edge to edge of the outermost voxels
        *steps, offset = stack.affine[axis] * (2 / voxels)
        lines = [step * np.arange(points) for step, points in zip(steps, stack.shape, strict=True)]
        lines[0] += offset + 1 / voxels - 1
        planes, rows, columns = (torch.from_numpy(line.astype(np.float32)).to(volume.device) for line in lines)
        coordinates.append(planes[:, None, None] + rows[:, None] + columns)
    grid = torch.stack(coordinates[::-1], dim=-1)[None].expand(len(volume), *stack.shape, 3)
    with torch.autocast(volume.device.type, enabled=False):
        return grid_sample(volume.float(), grid, mode="bilinear", padding_mode=beyond, align_corners=False)


def sample_nearest(volume: np.ndarray, stack: PlaneStack, outside: int) -> np.ndarray:
    """Values of the voxels nearest to the points of a stack: for labels.

    Args:
        volume: (Z, Y, X), any dtype.
        stack: in the volume.
        outside: value of points beyond the outer edges of the volume's voxels.

    Returns:
        array of ``stack.shape``, dtype of ``volume``.
    """
    index = np.indices(stack.shape, sparse=True)
    nearest, inside = [], np.ones(stack.shape, dtype=bool)
    for (*steps, offset), voxels in zip(stack.affine, volume.shape, strict=True):
        there = np.rint(sum(step * along for step, along in zip(steps, index, strict=True)) + offset).astype(np.int64)
        inside &= (there >= 0) & (there < voxels)
        nearest.append(there)
    values = np.full(stack.shape, outside, dtype=volume.dtype)
    values[inside] = volume[tuple(there[inside] for there in nearest)]
    return values


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _half_extents_mm(frame: np.ndarray, shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """How far voxel centres reach from the centre of the volume, along every direction of the frame."""
    check_spacing(spacing_mm, 3)
    return np.abs(frame) @ ((np.asarray(shape) - 1) / 2 * np.asarray(spacing_mm, dtype=float))


def _affine(
    frame: np.ndarray, start_mm: np.ndarray, shape: Sequence[int], spacing_mm: Sequence[float], pixel_mm: float
) -> np.ndarray:
    """Of the grid that begins at ``start_mm`` along the directions of the frame."""
    to_voxels = frame.T / np.asarray(spacing_mm, dtype=float)[:, None]
    return np.column_stack((to_voxels * pixel_mm, to_voxels @ start_mm + (np.asarray(shape) - 1) / 2))
