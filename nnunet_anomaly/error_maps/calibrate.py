"""From error maps to anomaly masks (Woo et al. 2022, figure A2).

The error is smoothed by a Gaussian inside the bones that the segmentation network found, compared with a threshold, and
small components are dropped. The threshold comes from cases that the error's network has not seen, never from the
cases it is applied to: from lesion-free cases at a chosen false-positive rate, or from all validation cases by a
quantile that bears lesions in some of them.

The calibration cases' errors come from one network each, new images' errors from the mean of the folds' networks, which
is nearer to the image: on new images the rate is therefore rather below than above the nominal one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import load_json, save_json
from nnunet_anomaly.geometry import bounding_box, dilate_mm

FROM_LESION_FREE_CASES = "lesion-free cases"
FROM_ALL_CASES = "robust quantile over all validation cases"

# A float32 that is not negative orders as its bits do: exponent and the first bits of the mantissa make histogram bins
# whose relative width is 2**-MANTISSA_BITS everywhere, whatever the scale of the errors.
MANTISSA_BITS = 10
_DROPPED_BITS = 23 - MANTISSA_BITS


def smooth_error(
    error: np.ndarray, spacing_mm: Sequence[float], sigma_mm: float, mask: np.ndarray | None = None
) -> np.ndarray:
    """Gaussian-smoothed error.

    With a mask the convolution is normalised inside it: the weighted mean over the mask's voxels alone (Knutsson and
    Westin 1993). So the error of cartilage and muscle does not bleed into the bone, and the bone's rim is not diluted
    by what lies outside. At the rim fewer voxels are averaged and noise is higher (by a factor of 1.4 at a flat face);
    calibration sees the same rim.

    Args:
        error: float, 2-D or 3-D.
        spacing_mm: voxel size along every axis of ``error``.
        sigma_mm: standard deviation of the Gaussian; 0 smooths nothing.
        mask: bool, shape of ``error``. Without it the array's edge values are repeated beyond the edge.

    Returns:
        float32 array of the same shape, 0 outside the mask; all 0 for an empty mask.
    """
    if sigma_mm < 0:
        raise ValueError(f"sigma_mm is {sigma_mm}; it cannot be negative")
    _check_axes(error, spacing_mm)
    sigma_voxels = [sigma_mm / size_mm for size_mm in spacing_mm]
    error = np.asarray(error, dtype=np.float32)
    if mask is None:
        return ndimage.gaussian_filter(error, sigma_voxels, mode="nearest")
    if mask.shape != error.shape:
        raise ValueError(f"mask has shape {mask.shape}, error {error.shape}")
    smoothed = np.zeros_like(error)
    box = bounding_box(mask)
    if box is None:
        return smoothed
    # what lies outside the mask has no weight, so the mask's box is all that the convolution needs
    inside = mask[box]
    total = ndimage.gaussian_filter(np.where(inside, error[box], 0), sigma_voxels, mode="constant")
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma_voxels, mode="constant")
    smoothed[box][inside] = total[inside] / weight[inside]
    return smoothed


def region_inside(
    labels: np.ndarray,
    roi_labels: Iterable[int],
    spacing_mm: Sequence[float],
    *,
    erode_mm: float = 1.0,
    fill_holes: bool = True,
) -> np.ndarray:
    """The inner part of each region-of-interest label: holes filled, a thin rim left out.

    A lesion that the segmentation left as a hole still counts as bone, whatever label it got there. The rim is left
    out because partial volume makes errors at every bone surface. The image's edge is no rim: a shaft that leaves the
    field of view is not eroded there.

    Args:
        labels: integer label map, 2-D or 3-D.
        roi_labels: labels to keep; one that is absent adds nothing.
        spacing_mm: voxel size along every axis of ``labels``.
        erode_mm: voxels whose centre lies within this distance of the centre of a voxel outside are left out. Where
            voxels are longer than it along an axis (thick slices), nothing is left out along that axis.
        fill_holes: fill what a label encloses (6-connected background, 4-connected in a single slice).

    Returns:
        Label map of the same shape and type with the labels of ``roi_labels`` and 0; all 0 if none is present.
    """
    if erode_mm < 0:
        raise ValueError(f"erode_mm is {erode_mm}; it cannot be negative")
    _check_axes(labels, spacing_mm)
    roi_labels = list(roi_labels)
    if 0 in roi_labels:
        raise ValueError("0 is the background and cannot be a label of the region of interest")
    region = np.zeros_like(labels)
    for label in roi_labels:
        box = bounding_box(labels == label, margin_voxels=1)
        if box is None:
            continue
        bone = labels[box] == label
        if fill_holes:
            bone |= _holes(bone) & ~np.isin(labels[box], roi_labels)
        bone &= ~dilate_mm(~bone, erode_mm, spacing_mm)
        region[box][bone] = label
    return region


def _holes(mask: np.ndarray) -> np.ndarray:
    """Background that the mask encloses (axes of length 1 enclose by themselves): as scipy's, but much faster."""
    flat = np.squeeze(mask)
    if flat.ndim < 2:
        return np.zeros_like(mask)
    padded = np.pad(~flat, 1, constant_values=True)
    background = label_components(padded, connectivity=6)
    enclosed = padded.copy()
    enclosed[padded] = background.numbers != background.numbers[0]  # the corner is outside
    return enclosed[(slice(1, -1),) * flat.ndim].reshape(mask.shape)


def smoothed_error_inside(
    error: np.ndarray,
    labels: np.ndarray,
    spacing_mm: Sequence[float],
    roi_labels: Iterable[int],
    *,
    sigma_mm: float,
    erode_mm: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What calibration and use both look at: ``smooth_error`` inside ``region_inside``.

    Args:
        error: float error map without negative or non-finite values, 2-D or 3-D.
        labels: integer label map of the same shape.
        spacing_mm, roi_labels, sigma_mm, erode_mm: see the two functions.

    Returns:
        The smoothed error (float32, 0 outside the region) and the region (label map).

    Raises:
        InputError: negative, NaN or infinite values in ``error``.
    """
    if error.shape != labels.shape:
        raise ValueError(f"error has shape {error.shape}, labels {labels.shape}")
    if not np.isfinite(error).all():
        raise InputError(f"the error map holds {np.count_nonzero(~np.isfinite(error))} NaN or infinite voxels")
    if error.size and error.min() < 0:
        raise InputError(f"the error map holds negative values (lowest {error.min():g}): is it the error channel?")
    region = region_inside(labels, roi_labels, spacing_mm, erode_mm=erode_mm)
    return smooth_error(error, spacing_mm, sigma_mm, mask=region > 0), region


def bins_of(values: np.ndarray) -> np.ndarray:
    """Bin (int64) of each error, shape of ``values``: finite and not negative; higher errors have no lower bins."""
    # + 0 turns -0.0, whose bits would sort last, into 0.0
    return ((np.asarray(values, np.float32) + np.float32(0)).view(np.uint32) >> _DROPPED_BITS).astype(np.int64)


def highest_of_bin(index: int) -> float:
    """Largest float32 in a bin: an error exceeds it exactly if the error's bin is a higher one."""
    return float(np.uint32(((index + 1) << _DROPPED_BITS) - 1).view(np.float32))


@dataclass(frozen=True, eq=False)
class ErrorHistogram:
    """How often which error occurs in one case, in bins of 0.1 % relative width.

    So hundreds of cases fit in memory: a knee has some 5 million bone voxels; its histogram takes well below 1 MB and
    gives every quantile to 0.1 %.

    Attributes:
        bins: int64, ascending, only those that occur: the upper bits of the errors as float32.
        counts: int64, voxels in each bin.
    """

    bins: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> ErrorHistogram:
        """Histogram of finite values that are not negative, of any shape; without values it is empty."""
        values = np.asarray(values, dtype=np.float32).ravel()
        if values.size and not (np.isfinite(values).all() and values.min() >= 0):
            raise ValueError("errors have to be finite and not negative")
        counts = np.bincount(bins_of(values))
        bins = np.flatnonzero(counts)
        return cls(bins, counts[bins].astype(np.int64))

    @classmethod
    def pooled(cls, histograms: Iterable[ErrorHistogram]) -> ErrorHistogram:
        """Histogram of all voxels of several cases together; empty without any."""
        histograms = list(histograms)
        every_bin = np.concatenate([np.zeros(0, np.int64), *(histogram.bins for histogram in histograms)])
        every_count = np.concatenate([np.zeros(0, np.int64), *(histogram.counts for histogram in histograms)])
        bins, place = np.unique(every_bin, return_inverse=True)
        counts = np.zeros(bins.size, np.int64)
        np.add.at(counts, place.ravel(), every_count)
        return cls(bins, counts)

    @property
    def n_voxels(self) -> int:
        """Number of voxels counted."""
        return int(self.counts.sum())

    def upper_quantile(self, rate: float) -> float:
        """Threshold that at most ``rate`` of the voxels exceed.

        It is the largest float32 of the bin that holds the exact value, ``numpy.quantile(values, 1 - rate,
        method="inverted_cdf")``: so it is never lower, and higher by less than 2**-10 of it.

        Raises:
            ValueError: ``rate`` is not in [0, 1), or the histogram is empty.
        """
        if not 0 <= rate < 1:
            raise ValueError(f"rate is {rate}; it has to be at least 0 and below 1")
        if not self.bins.size:
            raise ValueError("an empty histogram has no quantile")
        allowed = math.floor(rate * self.n_voxels * (1 + 1e-12))  # 0.29 * 100 is 28.999999999999996
        above = self.n_voxels - np.cumsum(self.counts)
        return highest_of_bin(int(self.bins[np.argmax(above <= allowed)]))

    def share_above(self, threshold: float) -> float:
        """Share of voxels in bins above the one of ``threshold``: exact for an ``upper_quantile``; NaN if empty."""
        if not self.bins.size:
            return math.nan
        bin_of_threshold = int(bins_of(np.float32(threshold)))
        return float(self.counts[self.bins > bin_of_threshold].sum() / self.n_voxels)


def threshold_at_false_positive_rate(histograms: Mapping[str, ErrorHistogram], rate: float) -> float:
    """Threshold that at most ``rate`` of the lesion-free voxels, all cases pooled, exceed.

    Args:
        histograms: of the smoothed error inside the region, per lesion-free case; empty ones count for nothing.
        rate: in [0, 1). Below one voxel in the pool the threshold is the highest error.

    Raises:
        InputError: no case has a voxel inside the region.
    """
    pool = ErrorHistogram.pooled(histograms.values())
    if not pool.n_voxels:
        raise InputError("None of the lesion-free cases has a voxel inside the region of interest.")
    return pool.upper_quantile(rate)


def robust_threshold(histograms: Mapping[str, ErrorHistogram], rate: float) -> float:
    """Threshold from cases of which some have lesions: the median over cases of each case's own threshold at ``rate``.

    A case's threshold is that of ``upper_quantile``. Lesions raise it; as long as fewer than half of the cases have
    lesions, the median stays among the thresholds of the others, however large the lesions are. It is then rather too
    high than too low: fewer false positives than ``rate``, and lower sensitivity. With lesions in most cases it is far
    too high: list lesion-free cases where they are known.

    Args:
        histograms: of the smoothed error inside the region, per case; empty ones count for nothing.
        rate: in [0, 1).

    Raises:
        InputError: no case has a voxel inside the region.
    """
    thresholds = [histogram.upper_quantile(rate) for histogram in histograms.values() if histogram.n_voxels]
    if not thresholds:
        raise InputError("None of the calibration cases has a voxel inside the region of interest.")
    return float(np.median(thresholds))


_JSON_KINDS: dict[str, Any] = {
    "float": (int, float),
    "int": int,
    "str": str,
    "list[str]": list,
    "list[float]": list,
    "dict[str, int]": dict,
    "dict[str, str]": dict,
    "Guarantee | None": (dict, type(None)),
}

PER_VOXEL, PER_CASE, OF_DISCOVERIES = "voxel", "case", "discoveries"


@dataclass(frozen=True)
class Guarantee:
    """What a threshold promises of new lesion-free cases, if they are exchangeable with the calibration cases.

    Attributes:
        kind: what is at most ``rate``, on average over new cases and over draws of the calibration cases.
            ``PER_VOXEL``: the share of a lesion-free case's voxels above the threshold. ``PER_CASE``: the share of
            lesion-free cases with a component of ``min_volume_mm3`` above it. ``OF_DISCOVERIES``: the false discovery
            rate; the threshold is then one of each case, and ``Threshold.value`` is the lowest that there can be.
        rate: the promise.
        n_cases: calibration cases with voxels in the region.
        expected_rate: what the calibration cases let expect. Per voxel: their own mean share. Per case: k / (n + 1).
            Of discoveries: the share of them in which anything is called when the others judge it.
        interval95: where the rate lies for these very calibration cases, with 95 % confidence: exact per case, else
            approximate.
        min_volume_mm3: components below it were dropped; per case a smaller one would void the promise.
        procedure: step-up procedure for discoveries, else empty.
    """

    kind: str
    rate: float
    n_cases: int
    expected_rate: float
    interval95: list[float]
    min_volume_mm3: float
    procedure: str = ""


@dataclass(frozen=True)
class Threshold:
    """A threshold, where it comes from, and how the error must be treated before it is compared with it.

    Attributes:
        value: an error above it is an anomaly, in the error map's own unit.
        rate: share of normal voxels allowed above it.
        method: ``FROM_LESION_FREE_CASES`` or ``FROM_ALL_CASES``.
        cases: the calibration cases.
        n_voxels: their voxels inside the region.
        spacing_mm: their median voxel size (z, y, x).
        sigma_mm, erode_mm: see ``smooth_error`` and ``region_inside``.
        roi_labels: name and label of each part of the region of interest.
        channel: number of the error channel in nnU-Net's file names.
        guarantee: what it promises of new cases; None for a plain quantile.
        healthy_errors_sha256: of the file with ``HealthyErrors`` that belongs to it; empty without lesion-free cases.
        image_sha256: of the calibration cases' image files, by which the same image under another name is found.
    """

    value: float
    rate: float
    method: str
    cases: list[str]
    n_voxels: int
    spacing_mm: list[float]
    sigma_mm: float
    erode_mm: float
    roi_labels: dict[str, int]
    channel: int
    guarantee: Guarantee | None = None
    healthy_errors_sha256: str = ""
    image_sha256: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path | str) -> None:
        """Write as JSON."""
        save_json(asdict(self), path)

    @classmethod
    def load(cls, path: Path | str) -> Threshold:
        """Read what ``save`` wrote.

        Raises:
            InputError: the file is missing, is not JSON or is not a threshold.
        """
        content = load_json(path)
        wrong = _wrong_keys(cls, content)
        if not wrong and content.get("guarantee") is not None:
            wrong = [f"guarantee.{key}" for key in _wrong_keys(Guarantee, content["guarantee"])]
        if wrong:
            raise InputError(
                f"{path} is not a threshold that 'nnunet-anomaly anomalies' wrote: {', '.join(wrong)} missing, unknown "
                "or of the wrong type. Calibrate again with -d."
            )
        if content.get("guarantee") is not None:
            content["guarantee"] = Guarantee(**content["guarantee"])
        return cls(**content)


def _wrong_keys(cls: Any, content: Any) -> list[str]:
    """Fields of a dataclass that JSON content lacks, has of the wrong type, or has too many; defaults may be absent."""
    items = {item.name: item for item in fields(cls)}
    if not isinstance(content, dict):
        return sorted(items)
    needed = {name for name, item in items.items() if item.default is MISSING and item.default_factory is MISSING}
    wrong = sorted((needed - set(content)) | (set(content) - set(items)))
    return wrong or [name for name in content if not isinstance(content[name], _JSON_KINDS[str(items[name].type)])]


def anomaly_mask(
    smoothed: np.ndarray,
    region: np.ndarray,
    spacing_mm: Sequence[float],
    threshold: float,
    *,
    min_volume_mm3: float = 20.0,
) -> np.ndarray:
    """Where the smoothed error inside the region exceeds the threshold, small components left out.

    Args:
        smoothed: float, the first result of ``smoothed_error_inside``.
        region: label map, the second.
        spacing_mm: voxel size along every axis.
        threshold: in the unit of ``smoothed``.
        min_volume_mm3: components (26-connected, each within one label) below this volume are dropped.

    Returns:
        bool array of the same shape; all False for an empty region or where nothing exceeds the threshold.
    """
    _check_axes(smoothed, spacing_mm)
    mask = (smoothed > threshold) & (region > 0)
    components, counts = _components(mask, region)
    kept = counts * math.prod(spacing_mm) >= min_volume_mm3 * (1 - 1e-9)
    kept[0] = False
    return kept[components]


def peak_error(
    smoothed: np.ndarray, region: np.ndarray, spacing_mm: Sequence[float], *, min_volume_mm3: float = 20.0
) -> float:
    """Highest error that a component of ``min_volume_mm3`` reaches in all of its voxels: the threshold to empty a mask.

    ``anomaly_mask`` at a threshold finds something exactly if the peak is above the threshold, for every threshold that
    is the largest float32 of a bin, as all of ours are. With ``min_volume_mm3=0`` it is the highest error.

    Args:
        smoothed, region: from ``smoothed_error_inside``.
        spacing_mm: voxel size along every axis.
        min_volume_mm3: as for ``anomaly_mask``.

    Returns:
        The largest float32 of a bin; 0 where no component can be that large, and for an empty region.
    """
    _check_axes(smoothed, spacing_mm)
    box = bounding_box(region > 0)
    if box is None:
        return 0.0
    smoothed, region = smoothed[box], region[box]
    histogram = ErrorHistogram.of(smoothed[region > 0])

    def stands(index: int) -> bool:
        lowest_bin = int(histogram.bins[index])
        below = highest_of_bin(lowest_bin - 1) if lowest_bin else -1.0
        return bool(anomaly_mask(smoothed, region, spacing_mm, below, min_volume_mm3=min_volume_mm3).any())

    # a component stands at every lower level too; steps from the top double, as high levels have few voxels to label
    voxels_from = np.cumsum(histogram.counts[::-1])[::-1]
    large = voxels_from * math.prod(spacing_mm) >= min_volume_mm3 * (1 - 1e-9)
    if not large.any():
        return 0.0
    fails, step = int(np.flatnonzero(large)[-1]) + 1, 1
    while not stands(found := max(fails - step, 0)):
        if found == 0:
            return 0.0
        fails, step = found, 2 * step
    while fails - found > 1:
        middle = (fails + found) // 2
        found, fails = (middle, fails) if stands(middle) else (found, middle)
    return highest_of_bin(int(histogram.bins[found]))


def anomaly_volumes(
    mask: np.ndarray,
    smoothed: np.ndarray,
    region: np.ndarray,
    spacing_mm: Sequence[float],
    roi_labels: Mapping[str, int],
) -> list[dict[str, Any]]:
    """One row per label of the region: how much of it is abnormal, and how strongly.

    Args:
        mask: bool, from ``anomaly_mask``.
        smoothed, region: from ``smoothed_error_inside``.
        spacing_mm: voxel size along every axis.
        roi_labels: name and label of each row.

    Returns:
        Rows with ``bone, label, region_volume_mm3, n_components, volume_mm3, largest_component_mm3,
        mean_smoothed_error, max_smoothed_error``. The last two are None where the label has no anomaly; a label that is
        absent has volumes of 0.
    """
    voxel_mm3 = math.prod(spacing_mm)
    components, counts = _components(mask, region)
    rows = []
    for name, label in roi_labels.items():
        inside = mask & (region == label)
        sizes = counts[np.unique(components[inside])]
        errors = smoothed[inside]
        rows.append(
            {
                "bone": name,
                "label": int(label),
                "region_volume_mm3": float(np.count_nonzero(region == label) * voxel_mm3),
                "n_components": int(sizes.size),
                "volume_mm3": float(errors.size * voxel_mm3),
                "largest_component_mm3": float(sizes.max(initial=0) * voxel_mm3),
                "mean_smoothed_error": float(errors.mean(dtype=np.float64)) if errors.size else None,
                "max_smoothed_error": float(errors.max()) if errors.size else None,
            }
        )
    return rows


def _components(mask: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Component numbers (0 outside the mask) and voxels of each; labels that touch are components of their own."""
    components = label_components(np.where(mask, region, 0))
    numbers = np.zeros(mask.shape, dtype=np.int64)
    numbers[components.mask] = components.numbers + 1
    return numbers, np.concatenate([[mask.size - components.numbers.size], components.sizes_voxels])


def _check_axes(array: np.ndarray, spacing_mm: Sequence[float]) -> None:
    if len(spacing_mm) != array.ndim:
        raise ValueError(f"spacing_mm has {len(spacing_mm)} entries for {array.ndim} axes")
