"""Femoral cartilage projected to two dimensions: slices by angle around the femur, deep and superficial layers apart.

After Thomas 2021 and, before it, Monu 2017 (Osteoarthritis and Cartilage 25, 513-520): a circle is fitted to what all
sagittal slices show together, and each slice is divided into bins of equal angle around its centre. An angle of 0
points straight down from the centre, 90 degrees straight back; the front is negative. Straight up, where there is no
cartilage, lie 180 and -180 degrees.

Slices run along the array axis that is nearest to left and right in the patient, whatever its place and sense. They are
counted from the patient's right to the left. Back and up are meant within the plane of the slices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.errors import GeometryError, InputError, SettingsError
from nnunet_anomaly.geometry import check_in_patient
from nnunet_anomaly.planes import plane_of

BIN_DEGREES = 5.0
# cartilage of two pieces in one bin, with more than this between them, has a middle for each piece
PIECE_GAP_MM = 3.0
# a component with a smaller share of the largest one's voxels is an island
_ISLAND_SHARE = 0.1
# fewer say nothing of a circle, and a femur's condyles have none of another size
_FEWEST_PIXELS = 10
_RADII_MM = (5.0, 100.0)


@dataclass(frozen=True)
class Circle:
    """A circle in the plane of the slices, in mm from the middle of the box around the mask.

    Attributes:
        posterior_mm: of its centre, growing to the back.
        superior_mm: of its centre, growing to the head.
        radius_mm: all three are NaN for an empty mask.
    """

    posterior_mm: float
    superior_mm: float
    radius_mm: float


@dataclass(frozen=True, eq=False)
class Unrolled:
    """Where every voxel of a mask lies on the projection. Arrays of n are in the order of ``np.nonzero(mask)``.

    Attributes:
        circle: that was fitted.
        bin_degrees: width of a bin.
        spacing_mm: voxel size along the axes of the mask.
        slice_axis: axis of the mask that runs across slices.
        mask_shape: of the mask.
        shape: (slices, bins) of the projection; the first bin begins at -180 degrees.
        indices: of the voxels in the mask, three arrays (n,).
        places_mm: (3, n), from the middle of the box around the mask: to the left, across slices; to the back and up.
        slices: (n,), counted from the patient's right to the left.
        bins: (n,)
        angles_degrees: (n,), from -180 to 180.
        radii_mm: (n,), from the circle's centre.
        is_deep: (n,), bool: in the half nearer to bone.
        is_plate: (n,), bool: not in an island, see ``unroll``.
    """

    circle: Circle
    bin_degrees: float
    spacing_mm: tuple[float, float, float]
    slice_axis: int
    mask_shape: tuple[int, int, int]
    shape: tuple[int, int]
    indices: tuple[np.ndarray, ...]
    places_mm: np.ndarray
    slices: np.ndarray
    bins: np.ndarray
    angles_degrees: np.ndarray
    radii_mm: np.ndarray
    is_deep: np.ndarray
    is_plate: np.ndarray

    @property
    def cells(self) -> np.ndarray:
        """Slice and bin of every voxel in one number, (n,): index into a flattened projection."""
        return self.slices * self.shape[1] + self.bins

    @property
    def bin_starts_degrees(self) -> np.ndarray:
        """Where every bin begins, from -180 degrees."""
        return np.arange(self.shape[1]) * self.bin_degrees - 180

    @property
    def bin_area_mm2(self) -> float:
        """Area of a bin: its arc on the circle times the distance of two slices; NaN for an empty mask."""
        return math.radians(self.bin_degrees) * self.circle.radius_mm * self.spacing_mm[self.slice_axis]

    def values_of(self, volume: np.ndarray) -> np.ndarray:
        """Values (n,) of a volume at the voxels.

        Raises:
            GeometryError: the volume has another shape than the mask.
        """
        if np.shape(volume) != self.mask_shape:
            raise GeometryError(f"The map has shape {np.shape(volume)}, the cartilage {self.mask_shape}.")
        return np.asarray(volume)[self.indices]

    def in_image(self, values: np.ndarray) -> np.ndarray:
        """Volume of the mask's shape with values (n,) of the voxels, 0 elsewhere."""
        volume = np.zeros(self.mask_shape, dtype=values.dtype)
        volume[self.indices] = values
        return volume


@dataclass(frozen=True, eq=False)
class Projection:
    """Maps over (slices, bins), float64, NaN where there is nothing to take a mean of.

    Attributes:
        mean: mean over all voxels with a value.
        deep: mean over the deep ones.
        superficial: mean over the others.
        thickness_mm: area of cartilage in the bin, divided by the arc of the bin at the voxels' mean radius: the mean
            thickness along the radius. A bin that the edge of the cartilage fills in part shows less.
    """

    mean: np.ndarray
    deep: np.ndarray
    superficial: np.ndarray
    thickness_mm: np.ndarray


def bins_of_circle(bin_degrees: float) -> int:
    """How many bins of this width go round.

    Raises:
        SettingsError: 360 degrees are no multiple of it, or it is one bin.
    """
    number = round(360 / bin_degrees) if 0 < bin_degrees <= 180 else 0
    if not number or not math.isclose(number * bin_degrees, 360):
        raise SettingsError(f"bin_degrees is {bin_degrees}; 360 must be a multiple of it, and more than one bin.")
    return number


def unroll(
    mask: np.ndarray, spacing_mm: Sequence[float], direction: Sequence[float], bin_degrees: float = BIN_DEGREES
) -> Unrolled:
    """Find slice, angle, radius and layer of every voxel of femoral cartilage.

    The circle is fitted by least squares (sum of squared distances to it) to the centres of all pixels at which a slice
    shows cartilage, each counted once. Islands, components with less than a tenth of the largest one's voxels, have no
    say in it: a few stray voxels far away would move it. A voxel is deep if its radius is at most the mid-radius of its
    slice and bin, halfway between the smallest and the largest one; a single voxel is deep. Where two pieces in one bin
    have more than 3 mm between them, as with an island, each has its own mid-radius.

    Args:
        mask: 3-D, bool or integers; not 0 is cartilage.
        spacing_mm: voxel size along every axis of ``mask``.
        direction: SimpleITK's ``GetDirection()``, 9 numbers (patient coordinates: left, posterior, superior).
        bin_degrees: width of a bin; 360 must be a multiple of it.

    Returns:
        All of it; of an empty mask with no voxel and a circle of NaN.

    Raises:
        GeometryError: the spacing or the direction is not that of a 3-D image.
        InputError: what is labelled is too little for a circle, or has none of a femur's size.
        LabelError: a mask that is not 3-D, or neither bool nor integers.
        SettingsError: 360 degrees are no multiple of ``bin_degrees``.
    """
    mask = check_in_patient(mask, spacing_mm, direction, "The mask")
    number_of_bins = bins_of_circle(bin_degrees)
    sizes_mm = (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2]))
    indices = np.nonzero(mask)
    slice_axis, slices, places_mm = _in_slices(indices, mask.shape, sizes_mm, direction)
    in_plane = np.ravel_multi_index(
        [indices[axis] for axis in range(3) if axis != slice_axis],
        [mask.shape[axis] for axis in range(3) if axis != slice_axis],
    )
    is_plate = _without_islands(mask)
    pixels_mm = places_mm[1:, is_plate][:, np.unique(in_plane[is_plate], return_index=True)[1]]
    circle = _circle_of_pixels(pixels_mm, len(slices))
    back_mm, up_mm = places_mm[1] - circle.posterior_mm, places_mm[2] - circle.superior_mm
    angles = np.degrees(np.arctan2(back_mm, -up_mm))
    radii_mm = np.hypot(back_mm, up_mm)
    bins = np.floor((angles + 180) / bin_degrees).astype(np.int64) % number_of_bins
    return Unrolled(
        circle,
        float(bin_degrees),
        sizes_mm,
        slice_axis,
        mask.shape,
        (mask.shape[slice_axis], number_of_bins),
        indices,
        places_mm,
        slices,
        bins,
        angles,
        radii_mm,
        _nearer_to_bone(slices * number_of_bins + bins, radii_mm),
        is_plate,
    )


def project(unrolled: Unrolled, volume: np.ndarray) -> Projection:
    """Mean of a map in every bin, over the whole depth and over either layer, and the thickness.

    Args:
        unrolled: the cartilage.
        volume: values, of the mask's shape, in any unit; NaN and infinity count as not measured and are left out.

    Raises:
        GeometryError: the volume has another shape than the mask.
    """
    values = unrolled.values_of(volume).astype(np.float64)
    measured = np.isfinite(values)
    deep = unrolled.is_deep
    counts = _sums(unrolled, np.ones(len(values)))
    arcs_mm = math.radians(unrolled.bin_degrees) * _means(unrolled, unrolled.radii_mm, np.ones(len(values), bool))
    pixel_mm2 = math.prod(unrolled.spacing_mm) / unrolled.spacing_mm[unrolled.slice_axis]
    return Projection(
        _means(unrolled, values, measured),
        _means(unrolled, values, measured & deep),
        _means(unrolled, values, measured & ~deep),
        counts * pixel_mm2 / arcs_mm,
    )


def _sums(unrolled: Unrolled, values: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
    size = math.prod(unrolled.shape)
    return np.bincount(unrolled.cells[chosen], values[chosen], minlength=size).reshape(unrolled.shape)


def _means(unrolled: Unrolled, values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return _sums(unrolled, values, chosen) / _sums(unrolled, np.ones(len(values)), chosen)


def _in_slices(
    indices: tuple[np.ndarray, ...],
    shape: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    direction: Sequence[float],
) -> tuple[int, np.ndarray, np.ndarray]:
    """The axis across slices, the slice of every voxel, and its place to the left, back and up.

    Written so that flipped and transposed arrays, and mirrored headers, give the same numbers to the last bit.
    """
    cosines = np.reshape(np.asarray(direction, dtype=float), (3, 3))
    slice_axis, row_axis, column_axis = plane_of(direction).axes
    across, row, column = (cosines[:, 2 - axis] for axis in (slice_axis, row_axis, column_axis))
    slices = indices[slice_axis] if across[0] > 0 else shape[slice_axis] - 1 - indices[slice_axis]
    if not len(slices):
        return slice_axis, slices, np.zeros((3, 0))
    left_mm = (slices - (slices.min() + slices.max()) / 2) * spacing_mm[slice_axis]
    rows_mm, columns_mm = (
        (indices[axis] - (indices[axis].min() + indices[axis].max()) / 2) * spacing_mm[axis]
        for axis in (row_axis, column_axis)
    )
    # the way back and the way up, both within the plane that rows and columns span
    length = math.hypot(row[1], column[1])
    to_back, to_back_by_column = row[1] / length, column[1] / length
    sign = math.copysign(1.0, to_back * column[2] - to_back_by_column * row[2])
    back_mm = rows_mm * to_back + columns_mm * to_back_by_column
    up_mm = sign * (columns_mm * to_back - rows_mm * to_back_by_column)
    return slice_axis, slices, np.stack([left_mm, back_mm, up_mm])


def _without_islands(mask: np.ndarray) -> np.ndarray:
    """Whether each voxel of a mask, in C order, belongs to a large component."""
    components = label_components(mask != 0)
    is_large = components.sizes_voxels >= _ISLAND_SHARE * components.sizes_voxels.max(initial=0)
    return is_large[components.numbers]


def _circle_of_pixels(pixels_mm: np.ndarray, voxels: int) -> Circle:
    """Circle of the pixels (2, n) of a projection, in any order: to the back and up."""
    if not voxels:
        return Circle(math.nan, math.nan, math.nan)
    if pixels_mm.shape[1] < _FEWEST_PIXELS:
        raise InputError(
            f"The mask has {voxels} voxels, at {pixels_mm.shape[1]} places in the plane of slices: too few for the "
            "circle that femoral cartilage is unrolled around. Is it the right label?"
        )
    # sorted, so that sums are the same however the array lies
    circle = fit_circle(pixels_mm[:, np.lexsort(pixels_mm)].T)
    if not _RADII_MM[0] <= circle.radius_mm <= _RADII_MM[1]:
        raise InputError(
            f"The circle of this cartilage has a radius of {circle.radius_mm:.3g} mm; that of a femur has "
            f"{_RADII_MM[0]:g} to {_RADII_MM[1]:g} mm. Is it the right label, and the voxel size right?"
        )
    return circle


def fit_circle(points_mm: np.ndarray) -> Circle:
    """Circle with the smallest sum of squared distances of points from it (a geometric fit).

    Args:
        points_mm: (n, 2), at least 3.

    Returns:
        The circle; its radius is infinite where the points lie on one line.
    """
    centre = points_mm.mean(axis=0)
    points = points_mm - centre
    # the algebraic fit (Kasa 1976) is linear, and where the geometric one begins
    system = np.column_stack([2 * points, np.ones(len(points))])
    if np.linalg.matrix_rank(system, tol=1e-9 * np.linalg.norm(system)) < 3:
        return Circle(math.nan, math.nan, math.inf)
    (x, y, rest), *_ = np.linalg.lstsq(system, (points**2).sum(axis=1), rcond=None)

    def residuals(circle: np.ndarray) -> np.ndarray:
        return np.hypot(*(points - circle[:2]).T) - circle[2]

    def slopes(circle: np.ndarray) -> np.ndarray:
        away = points - circle[:2]
        distances = np.maximum(np.hypot(*away.T), np.finfo(float).tiny)
        return np.column_stack([-away / distances[:, None], -np.ones(len(points))])

    start = [x, y, math.sqrt(max(rest + x * x + y * y, 0.0))]
    found = least_squares(residuals, start, slopes, method="lm", xtol=1e-12, ftol=1e-12, gtol=1e-12).x
    return Circle(float(found[0] + centre[0]), float(found[1] + centre[1]), float(abs(found[2])))


def _nearer_to_bone(cells: np.ndarray, radii_mm: np.ndarray) -> np.ndarray:
    """Whether the radius of each voxel is at most the mid-radius of its piece of cartilage in its cell."""
    order = np.lexsort((radii_mm, cells))
    sorted_cells, sorted_mm = cells[order], radii_mm[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (np.diff(sorted_cells) != 0) | (np.diff(sorted_mm) > PIECE_GAP_MM)
    is_last = np.append(is_first[1:], True)[: len(order)]
    middles_mm = (sorted_mm[is_first] + sorted_mm[is_last]) / 2
    is_deep = np.zeros(len(order), dtype=bool)
    is_deep[order] = sorted_mm <= middles_mm[np.cumsum(is_first) - 1]
    return is_deep
