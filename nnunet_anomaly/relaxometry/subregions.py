"""Subregions of femoral cartilage: twelve parts, and the 27 regions that they and their unions make up (Thomas 2021).

Deep and superficial, lateral and medial, anterior, central and posterior. All but the layer follow from slice and bin
of the unrolled cartilage, so that a map and its image have the same regions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_anomaly.compartments import CENTRE_OF_MASS, NOTCH, notch_mm
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.relaxometry.unroll import Unrolled
from nnunet_anomaly.twins import LEFT, RIGHT

LAYERS, SIDES, PARTS = ("deep", "superficial"), ("lateral", "medial"), ("anterior", "central", "posterior")
# The borders of the central part in degrees: "thomas" as the authors' program has them, "dosma" as DOSMA (its centre is
# 30 degrees wide). The authors compare -35 and 25 with the lower edges of their bins of 5 degrees: a bin from -35 to
# -30 is anterior, one from 25 to 30 central. So the borders lie at -30 and 30, and the centre is 60 degrees wide.
CONVENTIONS = {"thomas": (-30.0, 30.0), "dosma": (-15.0, 15.0)}
CONVENTION = "thomas"
# voxels are labelled 1 to 12
LABELS = {
    f"{layer} {side} {part}".capitalize(): number
    for number, (layer, side, part) in enumerate(
        ((layer, side, part) for layer in LAYERS for side in SIDES for part in PARTS), start=1
    )
}
# so many voxels, those farthest to the front, tell the side; by so much of the plate's width they must lie off the
# plane. In the one labelled knee that we could measure it is 0.11; in ten generated ones, whose trochlea is nearly
# even, it is -0.06 to 0.09
_FOREMOST_SHARE, _LEAST_SHIFT = 0.2, 0.08


def _region_names() -> list[str]:
    """In the order of table SM1 of the paper."""
    names = ["All", *LAYERS, *SIDES]
    names += [f"{layer} {side}" for side in SIDES for layer in LAYERS]
    names += [f"{side} {part}" for side in SIDES for part in PARTS]
    return [name.capitalize() for name in names] + list(LABELS)


# labels that make up each of the 27 regions
REGIONS: dict[str, tuple[int, ...]] = {
    name: tuple(
        label
        for part, label in LABELS.items()
        if name == "All" or set(name.lower().split()) <= set(part.lower().split())
    )
    for name in _region_names()
}


@dataclass(frozen=True, eq=False)
class Subregions:
    """The parts of an unrolled cartilage.

    Attributes:
        unrolled: the cartilage.
        side: of the knee, as it was given.
        labels: uint8 (n,), label of every voxel, see ``LABELS``.
        parts_of_bins: uint8 (slices, bins), 1 to 6: lateral anterior, central, posterior, medial likewise; 0 where
            there is no cartilage.
        parted_at: where medial and lateral are parted, ``"notch"`` or ``"centre of mass"``.
        parted_mm: the same, in mm as ``Unrolled.places_mm`` from the patient's right to the left.
        side_by_shape: the side that the shape tells, see ``side_by_shape``; None: it does not.
    """

    unrolled: Unrolled
    side: str
    labels: np.ndarray
    parts_of_bins: np.ndarray
    parted_at: str
    parted_mm: float
    side_by_shape: str | None

    @property
    def warning(self) -> str | None:
        """What to tell the user where the shape contradicts the given side; None where it does not."""
        if self.side_by_shape in (None, self.side):
            return None
        return (
            f"The knee is given as a {self.side} one, but its cartilage in front lies as a {self.side_by_shape} knee's "
            "does. If the side is wrong, medial and lateral are exchanged. Check the side, and the image's direction."
        )

    def label_map(self) -> np.ndarray:
        """The regions as a label map of the mask's shape, uint8: 0 or one of ``LABELS``."""
        return self.unrolled.in_image(self.labels)


def central_borders(central_degrees: str | Sequence[float]) -> tuple[float, float]:
    """Where the central part begins and ends in degrees.

    Raises:
        SettingsError: no such convention, or not two ascending angles from -180 to 180.
    """
    if isinstance(central_degrees, str):
        if central_degrees not in CONVENTIONS:
            raise SettingsError(f"There is no convention '{central_degrees}'; there are {', '.join(CONVENTIONS)}.")
        return CONVENTIONS[central_degrees]
    if len(central_degrees) != 2 or not -180 <= central_degrees[0] < central_degrees[1] <= 180:
        raise SettingsError(
            f"The central part is given as {central_degrees}; it takes two ascending angles from -180 to 180 degrees."
        )
    return float(central_degrees[0]), float(central_degrees[1])


def subregions(unrolled: Unrolled, side: str, central_degrees: str | tuple[float, float] = CONVENTION) -> Subregions:
    """Part femoral cartilage into twelve subregions.

    Slices to the lateral side of a plane are lateral, all others medial. The plane goes through the intercondylar notch
    as ``compartments.notch_mm`` finds it, in cartilage as in bone; where there is none, as when the mask holds one
    condyle alone, through the centre of mass; so a single slice is medial. Islands have no say in it (see ``unroll``).
    A bin is anterior, central or posterior as its middle is.

    Args:
        unrolled: the cartilage.
        side: of the knee, ``"left"`` or ``"right"``.
        central_degrees: where the central part begins and ends, or the name of one of ``CONVENTIONS``.

    Returns:
        The parts; of an empty cartilage with no voxel, parted at the centre of mass, at NaN.

    Raises:
        SettingsError: another side, no such convention, or borders that are not two ascending angles from -180 to 180.
    """
    if side not in (LEFT, RIGHT):
        raise SettingsError(f"The side of the knee is {side!r}; it must be '{LEFT}' or '{RIGHT}'.")
    first, last = central_borders(central_degrees)
    parted_mm, parted_at = _plane(unrolled)
    is_medial = (unrolled.places_mm[0] - parted_mm) * (1 if side == LEFT else -1) <= 0
    middles = unrolled.bin_starts_degrees + unrolled.bin_degrees / 2
    third = np.digitize(middles, [first, last])[unrolled.bins]  # 0 anterior, 1 central, 2 posterior
    parts = (is_medial * len(PARTS) + third + 1).astype(np.uint8)
    parts_of_bins = np.zeros(unrolled.shape, dtype=np.uint8)
    parts_of_bins[unrolled.slices, unrolled.bins] = parts
    labels = parts + (~unrolled.is_deep * len(SIDES) * len(PARTS)).astype(np.uint8)
    found = side_by_shape(unrolled)
    return Subregions(unrolled, side, labels, parts_of_bins, parted_at, parted_mm, found)


def side_by_shape(unrolled: Unrolled) -> str | None:
    """The side of a knee by the shape of its femoral cartilage.

    The lateral facet of the trochlea is wider than the medial one and reaches farther up. So the fifth of the voxels
    with the foremost angles lies, by its median, to the lateral side of the plane that parts the condyles.

    Returns:
        ``"left"`` or ``"right"``; None where that median is within 8 % of the cartilage's width of the plane, or there
        is no notch, without which it cannot be told (a mask of one condyle).
    """
    plane_mm, parted_at = _plane(unrolled)
    if parted_at != NOTCH:
        return None
    left_mm, angles = unrolled.places_mm[0, unrolled.is_plate], unrolled.angles_degrees[unrolled.is_plate]
    foremost = angles <= np.quantile(angles, _FOREMOST_SHARE)
    shift_mm = float(np.median(left_mm[foremost])) - plane_mm
    if abs(shift_mm) < _LEAST_SHIFT * float(np.ptp(left_mm)):
        return None
    return LEFT if shift_mm > 0 else RIGHT


def region_figures(regions: Subregions, t2_ms: np.ndarray) -> list[dict[str, Any]]:
    """Mean T2 and size of all 27 regions, in the order of the paper's table SM1.

    Args:
        regions: of the cartilage.
        t2_ms: map of the mask's shape; NaN and infinity count as not measured.

    Returns:
        A row for each region: ``region``; ``voxels`` of the cartilage; ``t2_voxels``, those with a value;
        ``t2_mean_ms`` and ``t2_sd_ms`` (n - 1) over these, NaN without a value and without two; ``volume_mm3``;
        ``area_mm2``, of all bins in which the region has a voxel, on the fitted circle. A union has the sum of its
        parts' voxels and volumes; its area is less than the sum, as deep and superficial parts share bins.

    Raises:
        GeometryError: the map has another shape than the mask.
    """
    unrolled = regions.unrolled
    values = unrolled.values_of(t2_ms).astype(np.float64)
    voxel_mm3 = math.prod(unrolled.spacing_mm)
    rows = []
    for name, labels in REGIONS.items():
        inside = np.isin(regions.labels, labels)
        measured = values[inside & np.isfinite(values)]
        bins = np.unique(unrolled.cells[inside]).size
        rows.append(
            {
                "region": name,
                "voxels": int(np.count_nonzero(inside)),
                "t2_voxels": measured.size,
                "t2_mean_ms": float(measured.mean()) if measured.size else math.nan,
                "t2_sd_ms": float(measured.std(ddof=1)) if measured.size > 1 else math.nan,
                "volume_mm3": int(np.count_nonzero(inside)) * voxel_mm3,
                "area_mm2": bins * unrolled.bin_area_mm2 if bins else 0.0,
            }
        )
    return rows


def _plane(unrolled: Unrolled) -> tuple[float, str]:
    """Where medial and lateral are parted from right to left in mm, and at what."""
    if not unrolled.slices.size:
        return math.nan, CENTRE_OF_MASS
    plane_mm = notch_mm(unrolled.places_mm[:, unrolled.is_plate], max(unrolled.spacing_mm))
    if plane_mm is None:
        # of whole slices, so that the sum is exact and a mirrored mask has the mirrored plane
        first, last = int(unrolled.slices.min()), int(unrolled.slices.max())
        plate = unrolled.slices[unrolled.is_plate]
        middle = (2 * int(plate.sum()) - (first + last) * plate.size) / (2 * plate.size)
        return middle * unrolled.spacing_mm[unrolled.slice_axis], CENTRE_OF_MASS
    return plane_mm, NOTCH
