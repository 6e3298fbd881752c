"""A case of any data set as the stress test's corruptions see it: channels, labels, region, sizes and intensities.

Sizes come from the structure that is hit (radius of a ball of its volume), intensities from the image itself (robust
standard deviation of the region), so that a severity means about the same in a hippocampus and a pelvis. Testing only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from nnunet_anomaly.connected_components import Components, label_components
from nnunet_anomaly.errors import GeometryError, InputError
from nnunet_anomaly.geometry import bounding_box, check_spacing, distance_to_mm
from nnunet_anomaly.label_maps import as_label_map

# HU that a scanner stores; what an image has beyond them stays allowed
CT_RANGE_HU = (-1024.0, 3071.0)
# a default corruption is at most this share of the image's second longest side in radius
LARGEST_SHARE_OF_SIDE = 0.25
# connected parts of a label that are smaller than this share of its largest get no corruption: they are specks
SMALLEST_PART = 0.1
# the region's surroundings reach so far, in radii of its largest structure: tissue, seldom the air around a patient
SURROUNDINGS = 0.2
SAMPLE_VOXELS = 500_000  # enough for percentiles


@dataclass(frozen=True)
class Site:
    """Where a corruption begins, and how large the structure (connected part of a label) is that it begins in."""

    voxel: tuple[int, ...]
    structure_mm: float  # radius of a ball (2-D: disc) of its volume


@dataclass(frozen=True)
class Scale:
    """Intensities of one channel.

    Attributes:
        median: of the region.
        sd: robust standard deviation of the region (1.4826 times the median distance from the median), but at least
            a twentieth of what the surroundings span.
        low, high: 0.5th and 99.5th percentile of the region and its surroundings.
        dark: 2.5th percentile of the same.
        grain: robust standard deviation of the noise, from differences of neighbours in the region's bounding box.
    """

    median: float
    sd: float
    low: float
    high: float
    dark: float
    grain: float


@dataclass(frozen=True, eq=False)
class Case:
    """One case, as it is on disk: nothing resampled, nothing normalised.

    Attributes:
        name: for messages and for the seed.
        images: one array per channel, 2-D or 3-D, integers or floats; channels may differ in dtype. Leave out channels
            that are error maps: these are made from the corrupted image.
        labels: label map of the same shape.
        spacing_mm: voxel size along every axis.
        channel_names: as in dataset.json; "CT" (in any case, as nnU-Net has it) means HU. Empty: no channel is CT.
        region_labels: labels that corruptions aim at. Empty: every label but 0.

    Raises:
        InputError: no channel, another number of names than channels, values that are no real numbers, NaN or
            infinity, fewer than two axes with more than one voxel, or none of the region's labels in the image.
        GeometryError: shapes differ, or the spacing is not one positive number per axis.
        LabelError: ``labels`` is no label map.
    """

    name: str
    images: tuple[np.ndarray, ...]
    labels: np.ndarray
    spacing_mm: tuple[float, ...]
    channel_names: tuple[str, ...] = ()
    region_labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.images) == 0:
            raise InputError(f"Case {self.name} has no image.")
        if self.channel_names and len(self.channel_names) != len(self.images):
            raise InputError(
                f"Case {self.name} has {len(self.images)} images, but channel names {', '.join(self.channel_names)}."
            )
        as_label_map(self.labels, f"label map of case {self.name}")
        for number, image in enumerate(self.images):
            self._check_image(number, image)
        check_spacing(self.spacing_mm, self.labels.ndim)
        if sum(size > 1 for size in self.labels.shape) < 2:
            raise InputError(f"Case {self.name} has shape {self.labels.shape}; it needs two axes with several voxels.")
        if not self.region.any():
            wanted = ", ".join(map(str, self.region_labels)) or "any label but 0"
            raise InputError(f"Case {self.name}: the label map has no voxel of {wanted}: no place for a corruption.")

    def _check_image(self, number: int, image: np.ndarray) -> None:
        if image.shape != self.labels.shape:
            raise GeometryError(
                f"Case {self.name}: channel {number} has shape {image.shape}, its label map {self.labels.shape}."
            )
        if image.dtype.kind not in "iuf":
            raise InputError(f"Case {self.name}: channel {number} holds {image.dtype}; give integers or floats.")
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise InputError(f"Case {self.name}: channel {number} holds NaN or infinity; mend the image first.")

    def is_ct(self, channel: int) -> bool:
        """Whether a channel holds HU."""
        return bool(self.channel_names) and self.channel_names[channel].casefold() == "ct"

    @cached_property
    def without_single_axes(self) -> Case:
        """The same case without axes of one voxel: a single slice is a 2-D image. Arrays are views."""
        keep = [axis for axis, size in enumerate(self.labels.shape) if size > 1]
        if len(keep) == self.labels.ndim:
            return self
        return replace(
            self,
            images=tuple(np.squeeze(image) for image in self.images),
            labels=np.squeeze(self.labels),
            spacing_mm=tuple(self.spacing_mm[axis] for axis in keep),
        )

    # ---- size and place

    @cached_property
    def region(self) -> np.ndarray:
        """bool: where the region's labels are."""
        return np.isin(self.labels, self.region_labels) if self.region_labels else self.labels != 0

    @property
    def voxel_size(self) -> float:
        """Volume of a voxel in mm^3 (2-D: area in mm^2)."""
        return float(np.prod(self.spacing_mm))

    @property
    def second_side_mm(self) -> float:
        """The image's second longest side: what is wider does not fit into the image."""
        return float(sorted(n * size for n, size in zip(self.labels.shape, self.spacing_mm, strict=True))[-2])

    @cached_property
    def _parts(self) -> Components:
        return label_components(np.where(self.region, self.labels, 0), connectivity=6)

    def _structure_mm(self, voxels: int) -> float:
        return ball_radius(voxels * self.voxel_size, self.labels.ndim)

    def draw_site(self, rng: np.random.Generator, *, on_surface: bool = False) -> Site:
        """A random voxel of the region, or of its outermost layer, in a structure that is no speck."""
        parts = self._parts
        largest = np.zeros(int(parts.labels.max()) + 1)
        np.maximum.at(largest, parts.labels, parts.sizes_voxels)
        large = parts.sizes_voxels >= SMALLEST_PART * largest[parts.labels]
        places = np.flatnonzero(self.region)
        eligible = large[parts.numbers]
        if on_surface:
            box = bounding_box(self.region)
            assert box is not None  # a case without a region is refused
            inside = self.region[box]
            surface = np.zeros_like(self.region)
            surface[box] = inside & ~ndimage.binary_erosion(inside, border_value=1)
            outer = eligible & surface[parts.mask]
            eligible = outer if outer.any() else eligible  # a region that fills the image has no surface
        chosen = rng.choice(np.flatnonzero(eligible))
        voxels = int(parts.sizes_voxels[parts.numbers[chosen]])
        start = tuple(int(index) for index in np.unravel_index(places[chosen], self.region.shape))
        return Site(start, self._structure_mm(voxels))

    def radius_mm(self, site: Site, share: float, asked_mm: float | None) -> float:
        """Radius at severity 1: what is asked for, else a share of the structure's, at most ``LARGEST_SHARE_OF_SIDE``.

        Raises:
            InputError: what is asked for is larger than the image.
        """
        if asked_mm is None:
            return min(share * site.structure_mm, LARGEST_SHARE_OF_SIDE * self.second_side_mm)
        if 2 * asked_mm > self.second_side_mm:
            raise InputError(
                f"Case {self.name}: a corruption of radius {asked_mm:g} mm is larger than the image, whose second "
                f"longest side is {self.second_side_mm:g} mm. Ask for a smaller one."
            )
        return asked_mm

    # ---- intensities

    @cached_property
    def scales(self) -> tuple[Scale, ...]:
        """Intensities of every channel.

        Raises:
            InputError: a channel has one single value in the region and around it.
        """
        box, near = self._surroundings
        return tuple(self._scale(number, image[box][near]) for number, image in enumerate(self.images))

    @cached_property
    def _surroundings(self) -> tuple[tuple[slice, ...], np.ndarray]:
        """A box, thinned out where it is large, and in it the region with a margin."""
        margin_mm = SURROUNDINGS * self._structure_mm(int(self._parts.sizes_voxels.max()))
        margin_mm = max(margin_mm, 2 * min(self.spacing_mm))
        box = bounding_box(self.region, [int(np.ceil(margin_mm / size)) for size in self.spacing_mm])
        assert box is not None
        step = thinning(self.region[box].shape)
        box = tuple(slice(part.start, part.stop, step) for part in box)
        spacing_mm = [size * step for size in self.spacing_mm]
        return box, distance_to_mm(self.region[box], spacing_mm) <= margin_mm

    def _scale(self, number: int, around: np.ndarray) -> Scale:
        image = self.images[number]
        inside = image[self.region]
        inside = inside[:: max(1, inside.size // SAMPLE_VOXELS)].astype(np.float64)
        around = np.concatenate([around.astype(np.float64), inside])
        low, dark, high = (float(value) for value in np.percentile(around, (0.5, 2.5, 99.5)))
        span = high - low if high > low else float(np.ptp(around))
        if span == 0:
            raise InputError(
                f"Case {self.name}: channel {number} has one single value in and around the region; a corruption has "
                "no measure there."
            )
        median = float(np.median(inside))
        sd = 1.4826 * float(np.median(np.abs(inside - median)))
        return Scale(median, max(sd, 0.05 * span), low, high, dark, self._grain(image))

    def _grain(self, image: np.ndarray) -> float:
        """Differences of neighbours along the axis with the smallest voxels: sqrt(2) times the noise's deviation."""
        axis = int(np.argmin(self.spacing_mm))
        box = bounding_box(self.region, 1)
        assert box is not None
        lines = np.moveaxis(image[box], axis, -1)
        lines = lines[(slice(None, None, thinning(lines.shape)),) * (lines.ndim - 1)]
        return float(1.4826 * np.median(np.abs(np.diff(lines.astype(np.float32), axis=-1))) / np.sqrt(2.0))

    def limits(self, channel: int) -> tuple[float, float]:
        """Lowest and highest value that a corrupted channel may have: those of its dtype, of HU, and of a magnitude.

        CT keeps to ``CT_RANGE_HU``, or to the image's own range where that is wider; an image without negative values
        stays without.
        """
        image = self.images[channel]
        info = np.finfo(image.dtype) if image.dtype.kind == "f" else np.iinfo(image.dtype)
        low, high = float(info.min), float(info.max)
        if image.dtype.kind in "iu" and high > int(info.max):
            high = float(np.nextafter(high, 0))  # 64 bits: the largest integer is no float
        if self.is_ct(channel):
            low = max(low, min(CT_RANGE_HU[0], float(image.min())))
            high = min(high, max(CT_RANGE_HU[1], float(image.max())))
        elif image.min() >= 0:
            low = max(low, 0.0)
        return low, high


def thinning(shape: tuple[int, ...]) -> int:
    """Every how manieth voxel along each axis gives about ``SAMPLE_VOXELS`` of them."""
    return max(1, int((np.prod(shape, dtype=float) / SAMPLE_VOXELS) ** (1 / len(shape))))


def ball_radius(volume: float, dimensions: int) -> float:
    """Radius (mm) of the ball of a volume in mm^3, or of the disc of an area in mm^2."""
    return float((0.75 * volume / np.pi) ** (1 / 3) if dimensions == 3 else (volume / np.pi) ** 0.5)


def ball_volume(radius_mm: float, dimensions: int) -> float:
    """Volume (mm^3) of a ball, or area (mm^2) of a disc."""
    return float(4 / 3 * np.pi * radius_mm**3 if dimensions == 3 else np.pi * radius_mm**2)


@dataclass(frozen=True)
class Dose:
    """How much of a corruption.

    Attributes:
        severity: above 0, at most 1.
        size_mm: radius at severity 1; None derives it from the region.
        strength: at severity 1; what it means, every corruption says.
        donor: another case to take tissue from; None takes it from the case itself.
    """

    severity: float
    strength: float
    size_mm: float | None = None
    donor: Case | None = None


@dataclass(frozen=True, eq=False)
class Change:
    """What a corruption makes of a box of a case.

    Attributes:
        box: slices into the case's arrays.
        values: float32 per channel, of the box's shape; where it equals the image, nothing is written.
        anomaly: bool, of the box's shape: what an observer would outline.
        drawn: what was drawn, for the record; JSON types.
        labels: reference of the box where it differs from the case's; else None.
    """

    box: tuple[slice, ...]
    values: list[np.ndarray]
    anomaly: np.ndarray
    drawn: dict[str, object]
    labels: np.ndarray | None = None
