"""Lesion by lesion: what share of each is found, false-positive components, FROC, and figures against lesion size.

A lesion is a connected component of the lesion mask (26 neighbours). Of its voxels those inside the mask count, as in
all other figures; a lesion without one is left out and counted as outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.polynomial import Polynomial

from nnunet_anomaly.connected_components import Connectivity, label_components
from nnunet_anomaly.evaluation.anomaly import as_mask
from nnunet_anomaly.label_maps import check_spacing

# false positives a case at which the sensitivity is read off a FROC curve, as the LUNA16 challenge does
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# share of a component's own voxels that must lie in lesions, or it is a false positive
COMPONENT_OVERLAP = 0.1


@dataclass(frozen=True, eq=False)
class Lesions:
    """Lesions of one case.

    Attributes:
        numbers: lesion of every lesion voxel inside the mask, in C order, from 0, int64.
        sizes_voxels: voxels inside the mask, by lesion, int64.
        volumes_mm3: the same as a volume, float64.
        n_outside: lesions without a voxel inside the mask.
    """

    numbers: np.ndarray
    sizes_voxels: np.ndarray
    volumes_mm3: np.ndarray
    n_outside: int

    @property
    def voxel_weights(self) -> np.ndarray:
        """1 / voxels of its lesion, of every lesion voxel: each lesion weighs 1 in all, for ``anomaly.au_pro``."""
        return 1 / self.sizes_voxels[self.numbers]


def find_lesions(
    truth: np.ndarray, spacing_mm: Sequence[float], mask: np.ndarray | None = None, connectivity: Connectivity = 26
) -> Lesions:
    """Lesions of a lesion mask.

    Args:
        truth: lesion mask, 2-D or 3-D, bool or integers; not 0 is lesion. An empty one has no lesion.
        spacing_mm: voxel size along every axis.
        mask: where to look, of the same shape, not 0 is inside; without it everywhere.
        connectivity: 6, 18 or 26.

    Raises:
        GeometryError: shapes differ, or the spacing is not one positive number per axis.
        LabelError: a mask that is neither bool nor integers, or not 2-D or 3-D.
        SettingsError: another connectivity.
    """
    check_spacing(spacing_mm, np.ndim(truth))
    components = label_components(as_mask(truth, "lesion mask", np.shape(truth)), connectivity)
    numbers = components.numbers
    if mask is not None:
        numbers = numbers[as_mask(mask, "mask", np.shape(truth))[components.mask]]
    inside, numbers, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    n_outside = components.sizes_voxels.size - inside.size
    return Lesions(numbers.astype(np.int64), sizes, sizes * math.prod(map(float, spacing_mm)), int(n_outside))


def found_shares(found: np.ndarray, lesions: Lesions) -> np.ndarray:
    """Share of every lesion that is found.

    Args:
        found: which lesion voxels inside the mask are, bool, in C order.
        lesions: of the same case and mask.

    Returns:
        float64 array (lesions,) in [0, 1].
    """
    return np.bincount(lesions.numbers[found], minlength=lesions.sizes_voxels.size) / lesions.sizes_voxels


def is_hit(shares: np.ndarray, min_overlap: float = 0.0) -> np.ndarray:
    """Which lesions count as found: any voxel (0), or at least this share of the lesion's voxels."""
    return shares > 0 if min_overlap == 0 else shares >= min_overlap


def part_components(
    called: np.ndarray,
    truth: np.ndarray,
    min_overlap: float = COMPONENT_OVERLAP,
    connectivity: Connectivity = 26,
) -> tuple[np.ndarray, int]:
    """Part connected components of what is called anomalous into those that hit lesions and false positives.

    A component hits where at least this share of its own voxels, and any at all, lies in lesions. Without such a share
    calling everything anomalous would hit every lesion by one component, without a false positive.

    Args:
        called: bool, 2-D or 3-D.
        truth: lesion mask of the same shape, not 0 is lesion.
        min_overlap: the share, 0 to 1; 0: any voxel.
        connectivity: 6, 18 or 26.

    Returns:
        Voxels of the components that hit, bool of the same shape, and the number of false positives.
    """
    components = label_components(called, connectivity)
    sizes = components.sizes_voxels
    overlap = np.bincount(components.numbers[(truth != 0)[components.mask]], minlength=sizes.size)
    hitting = (overlap > 0) & (overlap >= min_overlap * sizes)
    voxels = components.mask.copy()
    voxels[components.mask] = hitting[components.numbers]
    return voxels, int(np.count_nonzero(~hitting))


@dataclass(frozen=True, eq=False)
class Froc:
    """Free-response ROC over a fixed set of thresholds.

    Attributes:
        thresholds: highest first.
        sensitivity: share of all lesions that are hit, at each threshold; NaN without a lesion.
        false_positives_per_case: see ``part_components``; mean over all cases, with lesions or without.
        n_lesions: all lesions.
    """

    thresholds: np.ndarray
    sensitivity: np.ndarray
    false_positives_per_case: np.ndarray
    n_lesions: int

    def sensitivity_at(self, rate: float) -> float:
        """Highest sensitivity at a threshold with at most so many false positives a case.

        0 where no threshold has so few, as a curve begins with nothing called; NaN without a lesion.
        """
        if not self.n_lesions:
            return math.nan
        return float(self.sensitivity[self.false_positives_per_case <= rate].max(initial=0))


def froc(thresholds: np.ndarray, shares: np.ndarray, false_positives: np.ndarray, min_overlap: float = 0.0) -> Froc:
    """FROC curve over cases.

    Args:
        thresholds: in any order.
        shares: of the lesions of all cases, or of those of one size group, (lesions, thresholds), see ``found_shares``.
        false_positives: of every case, (cases, thresholds), see ``part_components``.
        min_overlap: see ``is_hit``.
    """
    order = np.argsort(-np.asarray(thresholds), kind="stable")
    n_lesions, n_cases = len(shares), len(false_positives)
    hits = is_hit(shares, min_overlap).sum(axis=0)
    return Froc(
        np.asarray(thresholds)[order],
        (hits / n_lesions if n_lesions else np.full(order.size, np.nan))[order],
        (false_positives.sum(axis=0) / n_cases if n_cases else np.full(order.size, np.nan))[order],
        n_lesions,
    )


def thirds_mm3(volumes_mm3: np.ndarray) -> list[float]:
    """Volumes that part lesions into thirds (fewer edges where many are equally large); none without a lesion."""
    return quantile_edges(volumes_mm3, 3)


def quantile_edges(sizes: np.ndarray, groups: int) -> list[float]:
    """Sizes that part lesions into so many groups (fewer edges where many are equally large); none without a lesion."""
    if not sizes.size:
        return []
    shares = [group / groups for group in range(1, groups)]
    edges = np.unique(np.quantile(sizes, shares, method="inverted_cdf"))
    return [float(edge) for edge in edges if edge < sizes.max()]


def size_groups(sizes: np.ndarray, edges: Sequence[float], unit: str = "mm3") -> dict[str, np.ndarray]:
    """Which lesions lie in each group, bool, by the group's name; an edge belongs to the group below it.

    Args:
        sizes: of the lesions.
        edges: ascending, none twice; n edges make n + 1 groups, whose names differ.
        unit: of both.
    """
    place = np.searchsorted(np.asarray(edges, dtype=float), sizes, side="left")
    texts = _different_texts(edges)
    if not texts:
        return {"all sizes": place == 0}
    names = [f"up to {texts[0]} {unit}", *(f"{low} to {high} {unit}" for low, high in pairwise(texts))]
    return {name: place == index for index, name in enumerate([*names, f"above {texts[-1]} {unit}"])}


def _different_texts(values: Sequence[float]) -> list[str]:
    """Numbers in four digits, or in as many more as keep them apart."""
    texts: list[str] = []
    for digits in range(4, 18):  # 17 tell any two float64 apart
        texts = [f"{value:.{digits}g}" if abs(value) < 10**digits - 0.5 else f"{value:.0f}" for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def third_order_fit(volumes_mm3: np.ndarray, values: np.ndarray) -> Polynomial | None:
    """Least-squares polynomial of order three of a figure over lesion size (Bengs 2021, figure 4).

    By ``numpy.polynomial.Polynomial.fit``. Values that are not finite are left out.

    Returns:
        The polynomial, to be looked at between the smallest and the largest volume only; None with fewer than four
        different volumes, which do not determine one.
    """
    kept = np.isfinite(values)
    volumes_mm3, values = volumes_mm3[kept], values[kept]
    return Polynomial.fit(volumes_mm3, values, 3) if np.unique(volumes_mm3).size >= 4 else None
