"""Figures of one case, and tables over many: mean and SD, and two methods compared case by case."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.evaluation.overlap import OverlapCounts, dice, overlap_counts
from nnunet_anomaly.evaluation.surface import (
    SurfaceDistances,
    average_surface_distance_mm,
    hausdorff_distance_mm,
    mean_directed_surface_distance_mm,
    normalized_surface_dice,
    pooled_hausdorff_distance_mm,
    surface_distances,
)
from nnunet_anomaly.files import written_whole
from nnunet_anomaly.label_maps import check_pair

DEFINITIONS = {
    "dsc": "Dice similarity coefficient; 0 when one of the two is empty",
    "asd_mm": "average surface distance: mean over the boundary voxels of both surfaces together (Woo 2022, eq. 4)",
    "asd_directed_mm": "mean of the two directed mean surface distances",
    "hd_mm": "Hausdorff distance: the largest distance of either direction (Woo 2022, eq. 5)",
    "hd95_mm": "95th percentile Hausdorff distance: the larger of the two directed 95th percentiles",
    "hd95_pooled_mm": "95th percentile of the distances of both surfaces together",
    "nsd": "normalized surface Dice: share of the boundary voxels of both surfaces within the tolerance of the other; "
    "0 when one of the two is empty",
}
METRICS = tuple(DEFINITIONS)
# of structures that lie side by side; measured by request
GAP_DEFINITIONS = {
    "gap_dsc": "Dice inside the gap region of the reference, voxels whose distances to its two nearest structures add "
    "up to less than the gap width (Xu 2022); not applicable where neither label map has the structure there, 0 where "
    "one has",
    "gap_voxels": "voxels of the gap region of the reference",
    "gap_dsc_mean": "mean of gap_dsc over the structures to which it applies",
    "gap_dsc_pooled": "Dice inside the gap region, voxels of all structures counted together",
    "collision_voxels": "voxels of the prediction whose centre is within the collision distance of another structure's",
}


def structure_metrics(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    structures: Mapping[str, Sequence[int]] | None = None,
    nsd_tolerance_mm: float = 1.0,
) -> dict[str, dict[str, Any]]:
    """Every figure of ``METRICS`` for every structure of one case.

    Args:
        reference: label map, 2-D or 3-D, bool or integers in 0 to 65535.
        prediction: label map of the same shape.
        spacing_mm: voxel size along every axis.
        structures: the labels that make up each structure by its name, one or (a region, as nnU-Net calls it) several;
            without it every label that occurs in one of the two, named by its number.
        nsd_tolerance_mm: see ``surface.normalized_surface_dice``.

    Returns:
        By name of the structure: voxel counts, the metrics, and ``empty``, which says what is empty: "", "reference",
        "prediction" or "both". Empty on both sides: all metrics are NaN (not applicable). Empty on one side: DSC and
        NSD are 0, distances infinite.

    Raises:
        GeometryError: shapes differ, or the spacing is not one positive number per axis.
        LabelError: not label maps.
    """
    reference, prediction = check_pair(reference, prediction, spacing_mm)
    if structures is None:
        structures = {str(label): (label,) for label in overlap_counts(reference, prediction)}
    single = [labels[0] for labels in structures.values() if len(labels) == 1]
    counts = overlap_counts(reference, prediction, single)
    distances = surface_distances(reference, prediction, spacing_mm, single)
    found = {}
    for name, labels in structures.items():
        if len(labels) == 1:
            found[name] = _figures(counts[labels[0]], distances[labels[0]], nsd_tolerance_mm)
        else:
            pair = np.isin(reference, labels), np.isin(prediction, labels)
            region_distances = surface_distances(*pair, spacing_mm, [1])
            found[name] = _figures(overlap_counts(*pair, [1])[1], region_distances[1], nsd_tolerance_mm)
    return found


def _figures(counts: OverlapCounts, distances: SurfaceDistances, nsd_tolerance_mm: float) -> dict[str, Any]:
    return {
        "reference_voxels": counts.reference_voxels,
        "prediction_voxels": counts.prediction_voxels,
        "dsc": dice(counts),
        "asd_mm": average_surface_distance_mm(distances),
        "asd_directed_mm": mean_directed_surface_distance_mm(distances),
        "hd_mm": hausdorff_distance_mm(distances),
        "hd95_mm": hausdorff_distance_mm(distances, 95),
        "hd95_pooled_mm": pooled_hausdorff_distance_mm(distances, 95),
        "nsd": normalized_surface_dice(distances, nsd_tolerance_mm),
        "empty": what_is_empty(counts.reference_voxels, counts.prediction_voxels),
    }


def absent_structure() -> dict[str, Any]:
    """Figures of a structure that neither the reference nor the prediction of a case has."""
    return _figures(OverlapCounts(0, 0, 0), SurfaceDistances(np.zeros(0), np.zeros(0)), 0.0)


def what_is_empty(reference_voxels: int, prediction_voxels: int) -> str:
    """``""``, ``"reference"``, ``"prediction"`` or ``"both"``."""
    if not reference_voxels:
        return "reference" if prediction_voxels else "both"
    return "" if prediction_voxels else "prediction"


@dataclass(frozen=True)
class Summary:
    """Mean, SD (n - 1) and median of the ``n`` finite values; ``n_undefined`` others (NaN or infinite) are left out.

    Mean and median are NaN without a value, the SD with fewer than two.
    """

    n: int
    n_undefined: int
    mean: float
    sd: float
    median: float


def summarise(values: Iterable[float]) -> Summary:
    """Summary of one metric over cases."""
    everything = np.array(list(values), dtype=float)
    finite = everything[np.isfinite(everything)]
    return Summary(
        n=finite.size,
        n_undefined=everything.size - finite.size,
        mean=float(finite.mean()) if finite.size else math.nan,
        sd=float(finite.std(ddof=1)) if finite.size > 1 else math.nan,
        median=float(np.median(finite)) if finite.size else math.nan,
    )


@dataclass(frozen=True)
class PairedComparison:
    """Second method minus first, over the cases in which both have a value.

    Attributes:
        n: pairs compared.
        excluded: cases without a finite value of both, by name.
        mean_first: mean of the first method over these pairs.
        mean_second: mean of the second.
        mean_difference: second minus first.
        sd_difference: SD (n - 1) of the differences.
        ci95_low: lower end of the 95 % confidence interval of the mean difference, by Student's t.
        ci95_high: upper end.
        bootstrap95_low: lower end by the percentile bootstrap, for differences that are far from normal (HD).
        bootstrap95_high: upper end.
        cohen_dz: effect size, mean difference / SD of the differences.
        t: statistic of the paired t-test (Woo 2022).
        p_t: its two-sided p-value.
        wilcoxon: statistic of the Wilcoxon signed-rank test, pairs without a difference left out.
        p_wilcoxon: its two-sided p-value.
    """

    n: int
    excluded: list[str] = field(default_factory=list)
    mean_first: float = math.nan
    mean_second: float = math.nan
    mean_difference: float = math.nan
    sd_difference: float = math.nan
    ci95_low: float = math.nan
    ci95_high: float = math.nan
    bootstrap95_low: float = math.nan
    bootstrap95_high: float = math.nan
    cohen_dz: float = math.nan
    t: float = math.nan
    p_t: float = math.nan
    wilcoxon: float = math.nan
    p_wilcoxon: float = math.nan


def compare_paired(
    first: Mapping[str, float], second: Mapping[str, float], bootstrap_samples: int = 10_000, seed: int = 0
) -> PairedComparison:
    """Compare two methods case by case; p-values are two-sided and not adjusted for the number of comparisons.

    Args:
        first: value by case of the method to compare with.
        second: value by case of the other method.
        bootstrap_samples: resamples of the cases.
        seed: of the bootstrap, so that a comparison can be repeated.

    Returns:
        The comparison. No pair: all figures are NaN. One pair: SD, intervals, effect and tests are NaN. All pairs
        equal: both p-values are 1 and the effect is 0. All differences the same but not 0: the effect is infinite.
    """
    names = list(dict.fromkeys([*first, *second]))
    kept = [name for name in names if _both_finite(first.get(name), second.get(name))]
    excluded = [name for name in names if name not in set(kept)]
    if not kept:
        return PairedComparison(0, excluded)
    a, b = (np.array([values[name] for name in kept], dtype=float) for values in (first, second))
    difference = b - a
    means = {
        "mean_first": float(a.mean()),
        "mean_second": float(b.mean()),
        "mean_difference": float(difference.mean()),
    }
    if len(kept) == 1:
        return PairedComparison(1, excluded, **means)
    sd = float(difference.std(ddof=1))
    half_width = float(_stats().t.ppf(0.975, len(kept) - 1)) * sd / math.sqrt(len(kept))
    low, high = _bootstrap_interval(difference, bootstrap_samples, seed)
    return PairedComparison(
        len(kept),
        excluded,
        **means,
        sd_difference=sd,
        ci95_low=means["mean_difference"] - half_width,
        ci95_high=means["mean_difference"] + half_width,
        bootstrap95_low=low,
        bootstrap95_high=high,
        **_tests(a, b, sd),
    )


def _stats() -> Any:
    # takes half a second to import, which workers that only measure cases need not spend
    from scipy import stats

    return stats


def _both_finite(first: float | None, second: float | None) -> bool:
    return first is not None and second is not None and math.isfinite(first) and math.isfinite(second)


def _tests(a: np.ndarray, b: np.ndarray, sd: float) -> dict[str, float]:
    difference = b - a
    if not difference.any():
        return {"cohen_dz": 0.0, "t": 0.0, "p_t": 1.0, "wilcoxon": 0.0, "p_wilcoxon": 1.0}
    with warnings.catch_warnings():
        # scipy warns of few or nearly equal differences; n and the SD, which say the same, stand beside the p-value
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        t_test = _stats().ttest_rel(b, a)
        signed_rank = _stats().wilcoxon(b, a)
    return {
        "cohen_dz": float(difference.mean()) / sd if sd else math.copysign(math.inf, difference.mean()),
        "t": float(t_test.statistic),
        "p_t": float(t_test.pvalue),
        "wilcoxon": float(signed_rank.statistic),
        "p_wilcoxon": float(signed_rank.pvalue),
    }


def _bootstrap_interval(difference: np.ndarray, samples: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    block = 100  # resamples at a time, to bound the memory
    means = [
        difference[rng.integers(difference.size, size=(min(block, samples - start), difference.size))].mean(axis=1)
        for start in range(0, samples, block)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def summary_rows(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] = METRICS) -> list[dict[str, Any]]:
    """One row for each method, structure and metric, in order of appearance.

    Args:
        rows: one for each case, with "method", "structure" and a value for every metric.
        metrics: what to summarise.
    """
    groups = dict.fromkeys((row["method"], row["structure"]) for row in rows)
    return [
        {
            "method": method,
            "structure": structure,
            "metric": metric,
            **asdict(
                summarise(row[metric] for row in rows if (row["method"], row["structure"]) == (method, structure))
            ),
        }
        for method, structure in groups
        for metric in metrics
    ]


def comparison_rows(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] = METRICS, seed: int = 0
) -> list[dict[str, Any]]:
    """Every further method against the first one, a row for each structure and metric (see ``compare_paired``)."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    structures = list(dict.fromkeys(row["structure"] for row in rows))

    def values(method: str, structure: str, metric: str) -> dict[str, float]:
        return {row["case"]: row[metric] for row in rows if row["method"] == method and row["structure"] == structure}

    return [
        {
            "first": methods[0],
            "second": method,
            "structure": structure,
            "metric": metric,
            **asdict(
                compare_paired(values(methods[0], structure, metric), values(method, structure, metric), seed=seed)
            ),
        }
        for method in methods[1:]
        for structure in structures
        for metric in metrics
    ]


def json_safe(value: Any) -> Any:
    """The same, with None in place of NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def save_table(rows: Sequence[Mapping[str, Any]], path: Path, columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV, whole; NaN and infinity become empty cells, lists are joined by spaces.

    Args:
        rows: each with a value for every column.
        path: file to write.
        columns: default: the keys of the first row; an empty file without any row.
    """
    columns = list(rows[0] if rows else ()) if columns is None else columns

    def cell(value: Any) -> Any:
        value = json_safe(value)
        return " ".join(map(str, value)) if isinstance(value, list) else value

    with written_whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(columns)
        writer.writerows([cell(row[column]) for column in columns] for row in rows)
