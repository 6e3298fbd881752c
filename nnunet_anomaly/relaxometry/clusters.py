"""Change between two time points on unrolled cartilage, and the clusters in which it rises most (Thomas 2021).

The projections of both time points are brought onto each other by a translation, the difference is always time 2 minus
time 1, and clusters are where it exceeds its mean by more than one standard deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from nnunet_anomaly.errors import GeometryError, InputError

MOST_DEGREES = 30.0
MIN_AREA_PERCENT = 1.0


@dataclass(frozen=True)
class Shift:
    """By how much the second time point's map is moved to lie on the first one's.

    Attributes:
        slices: towards the patient's left.
        bins: towards larger angles, to the back.
        similarity: of both thickness maps then, 0 to 1 (cosine); NaN where one is empty.
    """

    slices: float
    bins: float
    similarity: float


def register(
    first_thickness_mm: np.ndarray,
    second_thickness_mm: np.ndarray,
    *,
    subpixel: bool = False,
    most_degrees: float = MOST_DEGREES,
) -> Shift:
    """Find the translation that brings the second time point's cartilage onto the first one's.

    It maximises the sum of products of both thickness maps (0 without cartilage), so that the plates overlap where they
    are thick. T2 has no part in it: what changes must not move the map. Every shift along slices is tried, along angles
    those up to ``most_degrees``; angles go round, slices do not. Of several equal maxima the smallest shift is taken.
    Both maps have to show the whole plate: a part of it would be moved to where the other one is thickest.

    Args:
        first_thickness_mm: (slices, bins) of ``unroll.Projection``, NaN or 0 without cartilage.
        second_thickness_mm: of the other time point; it may have other slices, at the same distance (which the caller
            checks), but as many bins.
        subpixel: also look between whole slices and bins, by a parabola through the maximum and its neighbours along
            each axis. Off by default, as maps are then interpolated, and their noise smoothed.
        most_degrees: that a knee is turned between two time points.

    Returns:
        The shift; 0 and 0 where one of the maps is empty.

    Raises:
        GeometryError: not two 2-D maps with equally many bins.
    """
    one, two = (np.nan_to_num(np.asarray(each, dtype=float)) for each in (first_thickness_mm, second_thickness_mm))
    if one.ndim != 2 or two.ndim != 2 or one.shape[1] != two.shape[1]:
        raise GeometryError(f"The maps have shapes {one.shape} and {two.shape}; both need the same number of bins.")
    norm = math.sqrt(float((one**2).sum()) * float((two**2).sum()))
    if not norm:
        return Shift(0.0, 0.0, math.nan)
    rows, columns = len(one) + len(two), one.shape[1]
    spectrum = np.fft.rfft2(one, (rows, columns)) * np.conj(np.fft.rfft2(two, (rows, columns)))
    similarity = np.fft.irfft2(spectrum, (rows, columns)) / norm
    slices = np.arange(rows)[:, None]
    slices = np.where(slices < len(one), slices, slices - rows)  # from all but one slice back to all but one ahead
    bins = np.fft.fftfreq(columns, 1 / columns).round()[None]
    allowed = np.where(np.abs(bins) * 360 / columns <= most_degrees, similarity, -1.0)
    ties = allowed >= allowed.max() - 1e-9  # of rounding
    row, column = np.unravel_index(np.argmin(np.where(ties, slices**2 + bins**2, np.inf)), allowed.shape)
    found = float(slices[row, 0]), float(bins[0, column])
    if subpixel:
        along_slices = similarity[[row - 1, row, (row + 1) % rows], column]
        along_bins = similarity[row, [column - 1, column, (column + 1) % columns]]
        found = found[0] + _vertex(along_slices), found[1] + _vertex(along_bins)
    return Shift(*found, float(similarity[row, column]))


def _vertex(values: np.ndarray) -> float:
    """Where a parabola through three values has its maximum, from the middle one: -0.5 to 0.5."""
    before, middle, after = map(float, values)
    bend = before - 2 * middle + after
    return min(0.5, max(-0.5, (before - after) / (2 * bend))) if bend < 0 else 0.0


def moved(values: np.ndarray, shift: Shift, number_of_slices: int) -> np.ndarray:
    """The second time point's map on the grid of the first.

    Between whole slices and bins it is interpolated linearly over what has a value, and NaN where these weigh less than
    a half.

    Args:
        values: (slices, bins), NaN where there is none.
        shift: of ``register``.
        number_of_slices: of the first time point.

    Returns:
        Map (number_of_slices, bins), float64.
    """
    values = np.asarray(values, dtype=float)
    rows = np.arange(number_of_slices) - shift.slices
    columns = np.arange(values.shape[1]) - shift.bins
    total = np.zeros((number_of_slices, values.shape[1]))
    weights = np.zeros_like(total)
    for row_step in (0, 1):
        for column_step in (0, 1):
            row, column = np.floor(rows).astype(int) + row_step, np.floor(columns).astype(int) + column_step
            weight = np.outer(1 - np.abs(rows - row), 1 - np.abs(columns - column))
            weight[(row < 0) | (row >= len(values))] = 0
            found = values[np.ix_(np.clip(row, 0, len(values) - 1), column % values.shape[1])]
            weight = np.where(np.isfinite(found), weight, 0)
            total += weight * np.where(np.isfinite(found), found, 0)
            weights += weight
    return np.divide(total, weights, out=np.full_like(total, np.nan), where=weights >= 0.5)


def change(first: np.ndarray, second: np.ndarray, shift: Shift) -> np.ndarray:
    """Time 2 minus time 1, on the grid of time 1; NaN where one of the two has no value.

    Args:
        first: map of the first time point (slices, bins), NaN where there is none.
        second: of the second one.
        shift: of ``register``.

    Raises:
        GeometryError: the maps differ in the number of bins.
    """
    if first.shape[1] != second.shape[1]:
        raise GeometryError(f"The maps have {first.shape[1]} and {second.shape[1]} bins.")
    return moved(second, shift, len(first)) - first


@dataclass(frozen=True, eq=False)
class Clusters:
    """Where a difference map rises.

    Attributes:
        label_map: int32 (slices, bins): 0, or the number of the cluster, from 1, the largest first.
        plate_bins: bins in which the difference is known.
        mean_ms: of the difference over these; NaN without any.
        sd_ms: standard deviation over these (divided by n).
        rows: for each cluster ``cluster``, ``bins``, ``percent_of_plate``, ``mean_change_ms`` and ``max_change_ms``.
    """

    label_map: np.ndarray
    plate_bins: int
    mean_ms: float
    sd_ms: float
    rows: list[dict[str, Any]]

    @property
    def percent_of_plate(self) -> float:
        """Share of the plate that clusters cover, in percent; NaN without a plate."""
        covered = int(np.count_nonzero(self.label_map))
        return 100 * covered / self.plate_bins if self.plate_bins else math.nan


def find_clusters(difference_ms: np.ndarray, min_area_percent: float = MIN_AREA_PERCENT) -> Clusters:
    """Clusters of bins that lie above the plate's mean change by more than one SD, and cover more than 1 % of it.

    All bins have the same area on the fitted circle, so that shares of bins are shares of area. Bins that touch at a
    corner belong to one cluster. Nothing is smoothed, and the margin of the plate is not left out: the paper names
    neither.

    Args:
        difference_ms: (slices, bins), time 2 minus time 1; NaN where it is not known.
        min_area_percent: a cluster must cover more than this.

    Returns:
        The clusters; none where the difference is the same everywhere or known nowhere.

    Raises:
        GeometryError: the map is not 2-D.
        InputError: ``min_area_percent`` is not a share from 0 to 100.
    """
    difference_ms = np.asarray(difference_ms, dtype=float)
    if difference_ms.ndim != 2:
        raise GeometryError(f"The difference map has {difference_ms.ndim} axes; it must have two.")
    if not 0 <= min_area_percent <= 100:
        raise InputError(f"min_area_percent is {min_area_percent}; it must lie in 0 to 100.")
    plate = np.isfinite(difference_ms)
    values = difference_ms[plate]
    mean, sd = (float(values.mean()), float(values.std())) if values.size else (math.nan, math.nan)
    # of an even change nothing stands out but rounding
    is_even = not values.size or float(np.ptp(values)) <= 1e-9 * float(np.abs(values).max())
    above = np.zeros(plate.shape, bool) if is_even else plate & (np.nan_to_num(difference_ms, nan=-np.inf) > mean + sd)
    numbers, count = ndimage.label(above, np.ones((3, 3)))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    kept = [
        number for number in np.argsort(-sizes, kind="stable") if 100 * sizes[number] > min_area_percent * values.size
    ]
    label_map, rows = np.zeros(plate.shape, dtype=np.int32), []
    for place, number in enumerate(kept, start=1):
        inside = numbers == number + 1
        label_map[inside] = place
        rows.append(
            {
                "cluster": place,
                "bins": int(sizes[number]),
                "percent_of_plate": 100 * int(sizes[number]) / values.size,
                "mean_change_ms": float(difference_ms[inside].mean()),
                "max_change_ms": float(difference_ms[inside].max()),
            }
        )
    return Clusters(label_map, int(values.size), mean, sd, rows)
