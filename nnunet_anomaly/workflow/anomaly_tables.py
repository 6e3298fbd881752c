"""Tables of ``evaluate-anomaly``: CSV files, and ``summary.json`` with the definitions."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from typing import Any

from nnunet_anomaly import __version__
from nnunet_anomaly.cli.filter_residuals import filters_of
from nnunet_anomaly.evaluation.anomaly import DEFINITIONS
from nnunet_anomaly.evaluation.cohort import json_safe, save_table
from nnunet_anomaly.evaluation.lesions import FROC_RATES, third_order_fit
from nnunet_anomaly.evaluation.score_histogram import HISTOGRAM_DEFINITIONS
from nnunet_anomaly.evaluation.thresholds import THRESHOLD_DEFINITIONS
from nnunet_anomaly.files import save_json
from nnunet_anomaly.workflow.anomaly_cases import AT_THRESHOLDS, BOUNDS, PER_CASE
from nnunet_anomaly.workflow.anomaly_cohort import filters_on
from nnunet_anomaly.workflow.anomaly_results import Results
from nnunet_anomaly.workflow.anomaly_thresholds import FROC_VOXEL_RATES

COUNTS = (
    "lesion_voxels",
    "healthy_voxels",
    "lesion_voxels_outside_mask",
    "lesions",
    "lesions_outside_mask",
    "lesion_volume_mm3",
)
MORE_DEFINITIONS = {
    "average_precision_slices": "average precision over the slices of all cases: a slice's score is its mean score "
    "inside the mask, and it is abnormal if it has any lesion voxel; slices without a voxel inside are left out",
    "auroc_slices": "area under the ROC curve over the same slices",
    "dice_set": "Dice over all voxels of the set, at one threshold",
    "dice_subject": "Dice of each case at the same threshold, over the cases that have a lesion voxel inside the mask",
    "lesion_free_cases": "cases without a lesion voxel inside the mask, which no figure by subject has",
    "lesion_free_called_share": "share of these in which any voxel is called anomalous",
    "lesion_free_called_mm3_mean": "volume that is called anomalous in these, mean",
    "lesion": "connected component of the lesion mask (26 neighbours); of its voxels those inside the mask count",
}


def save_tables(args: argparse.Namespace, results: Results) -> None:
    """Write all tables as CSV."""
    bounds = BOUNDS if args.histogram else ()
    columns = ("method", "case", *PER_CASE, *bounds, *COUNTS, *results.by_kind)
    save_table(results.case_rows, args.o / "cases.csv", columns)
    save_table(results.threshold_rows, args.o / "thresholds.csv")
    save_table(_summary_rows(results), args.o / "summary.csv")
    save_table(_froc_rows(results), args.o / "froc.csv")
    save_table(_lesion_rows(results), args.o / "lesions.csv")


def _summary_rows(results: Results) -> list[dict[str, Any]]:
    """A row for every method: pooled figures, and summaries over cases."""
    return [
        {
            "method": method,
            **results.pooled[method].figures,
            **{f"{metric}_{key}": value for metric, values in metrics.items() for key, value in values.items()},
        }
        for method, metrics in results.per_case.items()
    ]


def _froc_rows(results: Results) -> list[dict[str, Any]]:
    """A row for every method, group of lesions and threshold."""
    return [
        {
            "method": method,
            "size_group": group,
            "lesions": curve.n_lesions,
            "threshold": threshold,
            "sensitivity": sensitivity,
            "false_positives_per_case": false_positives,
        }
        for method, curves in results.frocs.items()
        for group, curve in curves.items()
        for threshold, sensitivity, false_positives in zip(
            curve.thresholds, curve.sensitivity, curve.false_positives_per_case, strict=True
        )
    ]


def _lesion_rows(results: Results) -> list[dict[str, Any]]:
    """A row for every method, case and lesion: its volume and the share of it that each kind of threshold finds."""
    rows = []
    for method, kinds in results.thresholds.items():
        for case in results.cohort.finished(method):
            (volumes,) = results.cohort.load(method, case, "volumes_mm3")
            (shares,) = results.cohort.load(method, case, "shares", kind=AT_THRESHOLDS)
            for number, (volume, found) in enumerate(zip(volumes, shares, strict=True), start=1):
                values = dict(zip(kinds, found, strict=False))
                rows.append(
                    {"method": method, "case": case, "lesion": number, "volume_mm3": volume}
                    | {f"found_share_{kind}": values.get(kind, math.nan) for kind in results.kinds}
                )
    return rows


def save_summary(args: argparse.Namespace, results: Results) -> None:
    """Write ``summary.json``."""
    summary = {
        "version": __version__,
        "definitions": _definitions(args, results),
        "settings": {
            "reference": str(args.ref),
            "mask": str(args.m) if args.m else None,
            "labels": args.mask_labels,
            "slice_plane": args.slice_plane,
            "hit_overlap": args.hit_overlap,
            "component_overlap": args.component_overlap,
            "lesion_size_edges_mm3": results.edges_mm3,
            "pooled_by": results.pooled_by,
            "filters": asdict(filters_of(args)) if filters_on(args) else None,
            "median_reaches_voxels": results.cohort.median_reaches_voxels,
        },
        "methods": {name: str(source.folder) for name, source in results.cohort.methods.items()},
        "results": {method: _figures_of_method(results, method) for method in results.thresholds},
        "cases_without_lesion": results.without_lesion,
        "warnings": results.warnings,
        "failed": results.cohort.outcome.failed,
        "predictions_without_reference": results.cohort.without_reference,
    }
    save_json(json_safe(summary), args.o / "summary.json")


def _figures_of_method(results: Results, method: str) -> dict[str, Any]:
    rows = [row for row in results.threshold_rows if row["method"] == method]
    return {
        "pooled": results.pooled[method].figures,
        "per_case": results.per_case[method],
        "thresholds": {
            row["kind"]: {key: value for key, value in row.items() if key not in ("method", "kind")} for row in rows
        },
        "froc_sensitivity": {
            group: {f"{rate:g}": curve.sensitivity_at(rate) for rate in FROC_RATES} | {"lesions": curve.n_lesions}
            for group, curve in results.frocs[method].items()
        },
        "dice_over_lesion_volume_mm3": _fit_over_size(results, method),
    }


def _definitions(args: argparse.Namespace, results: Results) -> dict[str, str]:
    return {
        **DEFINITIONS,
        **MORE_DEFINITIONS,
        **_hit_definitions(args),
        **{kind: text for kind, text in THRESHOLD_DEFINITIONS.items() if kind in results.kinds},
        **(HISTOGRAM_DEFINITIONS if results.pooled_by == "histogram" else {}),
    }


def _hit_definitions(args: argparse.Namespace) -> dict[str, str]:
    hit = "any voxel is found" if args.hit_overlap == 0 else f"{args.hit_overlap:g} of its voxels are found"
    share = "any" if args.component_overlap == 0 else f"at least {args.component_overlap:g}"
    return {
        "component": "connected component (26 neighbours) of what is called anomalous; it finds lesions only where "
        f"{share} of its own voxels lie in them, and is a false positive otherwise",
        "lesion_sensitivity": f"share of lesions that are hit; a lesion is hit when {hit} by such components",
        "false_positives_per_case": "all other components, mean over all cases",
        "froc": f"at thresholds that at most {FROC_VOXEL_RATES[-1]:g} of the voxels outside lesions reach",
    }


def _fit_over_size(results: Results, method: str) -> dict[str, Any] | None:
    """Coefficients of the third-order fit of Dice over the volume of a case's lesions, lowest order first."""
    kind = results.main_kind
    if kind is None:
        return None
    fit = third_order_fit(*results.size_points(method, kind))
    if fit is None:
        return None
    return {"kind": kind, "coefficients": fit.convert().coef.tolist(), "range": list(fit.domain)}
