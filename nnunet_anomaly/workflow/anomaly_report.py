"""Tables and pictures of ``nnunet-anomaly evaluate-anomaly``, from what its passes left (``evaluate_anomaly``)."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly import __version__
from nnunet_anomaly.cli.output import mean_and_sd, print_table
from nnunet_anomaly.errors import AnomalyError
from nnunet_anomaly.evaluation.anomaly import DEFINITIONS
from nnunet_anomaly.evaluation.cohort import json_safe, save_table, summarise
from nnunet_anomaly.evaluation.lesions import (
    FROC_RATES,
    Froc,
    froc,
    is_hit,
    size_groups,
    third_order_fit,
    thirds_mm3,
)
from nnunet_anomaly.evaluation.overlap import OverlapCounts, dice
from nnunet_anomaly.evaluation.score_histogram import HISTOGRAM_DEFINITIONS
from nnunet_anomaly.evaluation.thresholds import THRESHOLD_DEFINITIONS, FoundThreshold, warnings_of
from nnunet_anomaly.files import read_image, save_json
from nnunet_anomaly.label_maps import files_by_case
from nnunet_anomaly.planes import Plane, plane_of
from nnunet_anomaly.workflow.evaluate_anomaly import BOUNDS, FROC_VOXEL_RATES, PER_CASE, Cohort, Pooled, read_case

SUMMARISED = PER_CASE[:-1]
COUNTS = (
    "lesion_voxels",
    "healthy_voxels",
    "lesion_voxels_outside_mask",
    "lesions",
    "lesions_outside_mask",
    "lesion_volume_mm3",
)
AT, ALL_SIZES = "at_thresholds", "all sizes"
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


@dataclass
class Results:
    """What the passes left, and what follows from it.

    Attributes:
        cohort: cases and methods.
        pooled: figures over all cases, by method.
        pooled_by: "sorting" or "histogram".
        thresholds: by method and kind (see ``THRESHOLD_DEFINITIONS``); none of the oracle without a lesion. A method
            of which no case could be evaluated is not there.
        froc_thresholds: by method.
    """

    cohort: Cohort
    pooled: dict[str, Pooled]
    pooled_by: str
    thresholds: dict[str, dict[str, FoundThreshold]]
    froc_thresholds: dict[str, list[float]]

    @cached_property
    def kinds(self) -> list[str]:
        """Kinds of thresholds that any method has, validation first."""
        used = {kind for kinds in self.thresholds.values() for kind in kinds}
        return [kind for kind in THRESHOLD_DEFINITIONS if kind in used]

    @property
    def by_kind(self) -> list[str]:
        """Figures that a case has at every kind of threshold."""
        return [f"{name}_{kind}" for kind in self.kinds for name in ("dice", "false_positives_mm3")]

    @cached_property
    def case_rows(self) -> list[dict[str, Any]]:
        """A row for every method and case."""
        rows = []
        for method, kinds in self.thresholds.items():
            for case in self.cohort.finished(method):
                figures = self.cohort.figures(method, case)
                names = ("true_positives", "false_positives", "false_positives_mm3")
                found = self.cohort.load(method, case, *names, kind=AT)
                lesion_voxels = int(figures["lesion_voxels"])
                values = dict.fromkeys(self.by_kind, math.nan)
                for place, kind in enumerate(kinds):
                    hits, alarms, alarms_mm3 = (counts[place] for counts in found)
                    if lesion_voxels:
                        values[f"dice_{kind}"] = dice(OverlapCounts(lesion_voxels, int(hits + alarms), int(hits)))
                    values[f"false_positives_mm3_{kind}"] = float(alarms_mm3)
                rows.append({"method": method, "case": case, **figures, **values})
        return rows

    def column(self, method: str, name: str) -> list[float]:
        """One figure of all cases of a method."""
        return [row[name] for row in self.case_rows if row["method"] == method]

    def arrays(self, method: str, name: str) -> list[np.ndarray]:
        """One array at the thresholds, of every case."""
        return [self.cohort.load(method, case, name, kind=AT)[0] for case in self.cohort.finished(method)]

    def volumes_mm3(self, method: str) -> np.ndarray:
        """Volumes of all lesions of a method's cases, in the order of ``shares``."""
        parts = [self.cohort.load(method, case, "volumes_mm3") for case in self.cohort.finished(method)]
        return np.concatenate([np.zeros(0), *(volumes for (volumes,) in parts)])

    def shares(self, method: str) -> np.ndarray:
        """Found shares of all lesions of a method's cases, (lesions, thresholds)."""
        width = len(self.thresholds[method]) + len(self.froc_thresholds[method])
        return np.concatenate([np.zeros((0, width)), *self.arrays(method, "shares")])

    def false_positives(self, method: str) -> np.ndarray:
        """False-positive components of all cases of a method, (cases, thresholds)."""
        return np.stack(self.arrays(method, "false_positive_components"))

    @property
    def warnings(self) -> list[str]:
        """Thresholds that say nothing."""
        return [f"{method}, {text}" for method, kinds in self.thresholds.items() for text in warnings_of(kinds)]

    @cached_property
    def edges_mm3(self) -> list[float]:
        """Volumes that part the lesions into thirds, of the method with most cases."""
        most = max(self.thresholds, key=lambda method: len(self.cohort.finished(method)))
        return thirds_mm3(self.volumes_mm3(most))

    def threshold_rows(self, min_overlap: float) -> list[dict[str, Any]]:
        """A row for every method and kind of threshold: Dice over the set and by subject, lesions hit, false ones."""
        rows = []
        for method, kinds in self.thresholds.items():
            hits, alarms = (
                np.array(self.arrays(method, name)).sum(axis=0) for name in ("true_positives", "false_positives")
            )
            lesion_voxels = self.pooled[method].figures["lesion_voxels"]
            shares, false_positives = self.shares(method), self.false_positives(method)
            for place, (kind, found) in enumerate(kinds.items()):
                counts = OverlapCounts(lesion_voxels, int(hits[place] + alarms[place]), int(hits[place]))
                lesions = np.array(self.column(method, "lesion_voxels")) > 0
                by_subject = asdict(summarise(np.array(self.column(method, f"dice_{kind}"))[lesions]))
                called_mm3 = np.array(self.column(method, f"false_positives_mm3_{kind}"))[~lesions]
                rows.append(
                    {
                        "method": method,
                        "kind": kind,
                        "threshold": found.value,
                        "dice_set": dice(counts),
                        **{f"dice_subject_{name}": value for name, value in by_subject.items()},
                        "lesion_free_cases": called_mm3.size,
                        "lesion_free_called_share": _mean(called_mm3 > 0),
                        "lesion_free_called_mm3_mean": _mean(called_mm3),
                        "lesion_sensitivity": _mean(is_hit(shares[:, place], min_overlap)),
                        "false_positives_per_case": float(false_positives[:, place].mean()),
                        "dice_of_search": found.dice,
                    }
                )
        return rows

    def frocs(self, method: str, min_overlap: float, edges_mm3: Sequence[float]) -> dict[str, Froc]:
        """FROC curve of all lesions, and of each group by size."""
        start = len(self.thresholds[method])
        thresholds = np.array(self.froc_thresholds[method])
        shares, false_positives = self.shares(method)[:, start:], self.false_positives(method)[:, start:]
        groups = {ALL_SIZES: np.ones(len(shares), dtype=bool)} | size_groups(self.volumes_mm3(method), edges_mm3)
        return {name: froc(thresholds, shares[group], false_positives, min_overlap) for name, group in groups.items()}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def write_results(args: argparse.Namespace, results: Results) -> None:
    """Write all tables and pictures, and print the summary."""
    edges_mm3 = sorted(args.lesion_size_edges_mm3 or results.edges_mm3)
    by_threshold = results.threshold_rows(args.hit_overlap)
    frocs = {method: results.frocs(method, args.hit_overlap, edges_mm3) for method in results.thresholds}
    per_case = {
        method: {metric: asdict(summarise(results.column(method, metric))) for metric in SUMMARISED}
        for method in results.thresholds
    }
    _save_tables(args, results, by_threshold, frocs, per_case)
    _save_summary(args, results, by_threshold, frocs, per_case, edges_mm3)
    _draw(args, results, frocs)
    _print(results, by_threshold, frocs, per_case)


# --- tables ----------------------------------------------------------------------------------------------------------


def _save_tables(
    args: argparse.Namespace,
    results: Results,
    by_threshold: Sequence[Mapping[str, Any]],
    frocs: Mapping[str, Mapping[str, Froc]],
    per_case: Mapping[str, Mapping[str, Any]],
) -> None:
    bounds = BOUNDS if args.histogram else ()
    columns = ("method", "case", *PER_CASE, *bounds, *COUNTS, *results.by_kind)
    save_table(results.case_rows, args.o / "cases.csv", columns)
    save_table(by_threshold, args.o / "thresholds.csv")
    summaries = [
        {
            "method": method,
            **results.pooled[method].figures,
            **{f"{metric}_{key}": value for metric, values in metrics.items() for key, value in values.items()},
        }
        for method, metrics in per_case.items()
    ]
    save_table(summaries, args.o / "summary.csv")
    save_table(
        [
            {
                "method": method,
                "size_group": group,
                "lesions": curve.n_lesions,
                "threshold": threshold,
                "sensitivity": sensitivity,
                "false_positives_per_case": false_positives,
            }
            for method, curves in frocs.items()
            for group, curve in curves.items()
            for threshold, sensitivity, false_positives in zip(
                curve.thresholds, curve.sensitivity, curve.false_positives_per_case, strict=True
            )
        ],
        args.o / "froc.csv",
    )
    save_table(_lesion_rows(results), args.o / "lesions.csv")


def _lesion_rows(results: Results) -> list[dict[str, Any]]:
    """A row for every method, case and lesion: its volume and the share of it that each kind of threshold finds."""
    rows = []
    for method, kinds in results.thresholds.items():
        for case in results.cohort.finished(method):
            (volumes,) = results.cohort.load(method, case, "volumes_mm3")
            (shares,) = results.cohort.load(method, case, "shares", kind=AT)
            for number, (volume, found) in enumerate(zip(volumes, shares, strict=True), start=1):
                values = dict(zip(kinds, found, strict=False))
                rows.append(
                    {"method": method, "case": case, "lesion": number, "volume_mm3": volume}
                    | {f"found_share_{kind}": values.get(kind, math.nan) for kind in results.kinds}
                )
    return rows


def _save_summary(
    args: argparse.Namespace,
    results: Results,
    by_threshold: Sequence[Mapping[str, Any]],
    frocs: Mapping[str, Mapping[str, Froc]],
    per_case: Mapping[str, Mapping[str, Any]],
    edges_mm3: Sequence[float],
) -> None:
    found: dict[str, Any] = {}
    for method in results.thresholds:
        rows = {
            row["kind"]: {key: value for key, value in row.items() if key not in ("method", "kind")}
            for row in by_threshold
            if row["method"] == method
        }
        found[method] = {
            "pooled": results.pooled[method].figures,
            "per_case": per_case[method],
            "thresholds": rows,
            "froc_sensitivity": {
                group: {f"{rate:g}": curve.sensitivity_at(rate) for rate in FROC_RATES} | {"lesions": curve.n_lesions}
                for group, curve in frocs[method].items()
            },
            "dice_over_lesion_volume_mm3": _fit(results, method),
        }
    is_binned = results.pooled_by == "histogram"
    definitions = {
        **DEFINITIONS,
        **MORE_DEFINITIONS,
        **_hit_definitions(args),
        **{kind: text for kind, text in THRESHOLD_DEFINITIONS.items() if kind in results.kinds},
        **(HISTOGRAM_DEFINITIONS if is_binned else {}),
    }
    summary = {
        "version": __version__,
        "definitions": definitions,
        "settings": {
            "reference": str(args.ref),
            "mask": str(args.m) if args.m else None,
            "labels": args.mask_labels,
            "slice_plane": args.slice_plane,
            "hit_overlap": args.hit_overlap,
            "component_overlap": args.component_overlap,
            "lesion_size_edges_mm3": edges_mm3,
            "pooled_by": results.pooled_by,
        },
        "methods": {name: str(source.folder) for name, source in results.cohort.methods.items()},
        "results": found,
        "cases_without_lesion": _without_lesion(results),
        "warnings": results.warnings,
        "failed": results.cohort.outcome.failed,
        "predictions_without_reference": results.cohort.without_reference,
    }
    save_json(json_safe(summary), args.o / "summary.json")


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


def _without_lesion(results: Results) -> list[str]:
    return sorted({row["case"] for row in results.case_rows if not row["lesion_voxels"]})


def _fit(results: Results, method: str) -> dict[str, Any] | None:
    """Coefficients of the third-order fit of Dice over the volume of a case's lesions, lowest order first."""
    kind = _main_kind(results)
    if kind is None:
        return None
    fit = third_order_fit(*_size_points(results, method, kind))
    return (
        None if fit is None else {"kind": kind, "coefficients": fit.convert().coef.tolist(), "range": list(fit.domain)}
    )


def _main_kind(results: Results) -> str | None:
    """The kind of threshold that figures of single cases are drawn at: a validation threshold where there is one."""
    return results.kinds[0] if results.kinds else None


def _size_points(results: Results, method: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Volume of the lesions and Dice, of every case with lesions."""
    volumes = np.array(results.column(method, "lesion_volume_mm3"))
    return volumes[volumes > 0], np.array(results.column(method, f"dice_{kind}"))[volumes > 0]


# --- pictures --------------------------------------------------------------------------------------------------------


def _draw(args: argparse.Namespace, results: Results, frocs: Mapping[str, Mapping[str, Froc]]) -> None:
    from nnunet_anomaly.report import anomaly_figures as figures
    from nnunet_anomaly.report.figures import save_figure

    curves = {method: pooled.histogram.curve() for method, pooled in results.pooled.items()}
    save_figure(figures.precision_recall_figure(curves), args.o / "precision_recall.png")
    for index, group in enumerate(next(iter(frocs.values()))):
        by_method = {method: curves[group] for method, curves in frocs.items()}
        name = "froc.png" if group == ALL_SIZES and index == 0 else f"froc_size_{index}.png"
        if index == 0 or len(next(iter(frocs.values()))) > 2:
            save_figure(figures.froc_figure(by_method, f"lesions: {group}"), args.o / name)
    kind = _main_kind(results)
    if kind is not None:
        points = {method: _size_points(results, method, kind) for method in results.thresholds}
        label = f"Dice by subject, threshold: {kind.replace('_', ', ')}"
        save_figure(figures.lesion_size_figure(points, label), args.o / "dice_over_lesion_size.png")
    if args.training_sizes:
        lines = _training_lines(args, results)
        figure = figures.training_size_figure(lines, "average precision, pooled")
        save_figure(figure, args.o / "training_size.png")
    _draw_examples(args, results)


def _training_lines(args: argparse.Namespace, results: Results) -> dict[str, tuple[list[float], list[float]]]:
    """Sizes and pooled average precision of the methods of every curve, the filtered ones as a curve of their own."""
    from nnunet_anomaly.workflow.evaluate_anomaly import FILTERED

    names = list(results.cohort.methods)[: len(args.pred)]
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for suffix in ("", FILTERED):
        for place, name in enumerate(names):
            if f"{name}{suffix}" in results.pooled:
                curve = (args.curve_names[place] if args.curve_names else "maps") + suffix
                sizes, values = lines.setdefault(curve, ([], []))
                sizes.append(args.training_sizes[place])
                values.append(results.pooled[f"{name}{suffix}"].figures["average_precision_pooled"])
    return lines


def _draw_examples(args: argparse.Namespace, results: Results) -> None:
    """Pictures of some cases of every method, from the best to the worst Dice: no choice by eye.

    Dice is at the first kind of threshold that the method has, one of validation cases where it can be.
    """
    from nnunet_anomaly.report.anomaly_figures import example_figure
    from nnunet_anomaly.report.figures import save_figure
    from nnunet_anomaly.workflow.evaluate_anomaly import BASELINES, FILTERED

    folder = args.images or args.baseline
    if folder is None or args.pictures < 1:
        return
    images = files_by_case(folder, args.image_channel if args.images else args.baseline_channel)
    names = list(results.cohort.methods)[: len(args.pred)]
    for method, kinds in results.thresholds.items():
        if method in BASELINES or not kinds:
            continue
        kind = next(iter(kinds))
        rows = [row for row in results.case_rows if row["method"] == method and row["lesion_voxels"]]
        rows = sorted((row for row in rows if row["case"] in images), key=lambda row: -row[f"dice_{kind}"])
        places = sorted({round(place) for place in np.linspace(0, len(rows) - 1, min(args.pictures, len(rows)))})
        outputs: dict[str, Path] = {}
        if args.reconstructions:
            outputs = _reconstructions(args.reconstructions[names.index(method.removesuffix(FILTERED))])
        try:
            examples = [
                _example(results, method, rows[place], kind, images, outputs, args.slice_plane) for place in places
            ]
        except AnomalyError as error:
            results.cohort.outcome.failed[f"{method}: pictures"] = str(error)
            continue
        if examples:
            save_figure(example_figure(examples, method), args.o / "pictures" / f"{method}.png")


def _reconstructions(folder: Path) -> dict[str, Path]:
    return files_by_case(folder, 0) or files_by_case(folder)


def _example(
    results: Results,
    method: str,
    row: Mapping[str, Any],
    kind: str,
    images: Mapping[str, Path],
    outputs: Mapping[str, Path],
    plane_name: str,
) -> Any:
    """The slice of a case with most of its lesions."""
    import SimpleITK as sitk

    from nnunet_anomaly.label_maps import check_same_grid, spacing_zyx_mm
    from nnunet_anomaly.report.anomaly_figures import Example

    case = row["case"]
    scores, truth, mask, grid = read_case(results.cohort.jobs[method, case])
    lesion = truth != 0 if mask is None else (truth != 0) & mask
    arrays = {"score": scores, "lesion": lesion}
    for name, path in (("image", images[case]), ("reconstruction", outputs.get(case))):
        if path is not None:
            image = read_image(path)
            check_same_grid(grid, results.cohort.jobs[method, case].scores, image, path)
            arrays[name] = sitk.GetArrayFromImage(image)
    spacing_mm: Sequence[float] = spacing_zyx_mm(grid)
    number = 0
    if scores.ndim == 3:
        plane: Plane = plane_of(grid.GetDirection(), plane_name)
        turned = {name: plane.turn(array) for name, array in arrays.items()}
        number = int(np.argmax(turned["lesion"].sum(axis=(1, 2))))
        arrays = {name: array[number].copy() for name, array in turned.items()}  # a view would keep the volume
        spacing_mm = plane.turn_spacing(spacing_mm)
    return Example(
        f"{case}, slice {number}\nDice {row[f'dice_{kind}']:.3f}",
        arrays["image"],
        arrays.get("reconstruction"),
        arrays["score"],
        arrays["lesion"],
        float(spacing_mm[-2] / spacing_mm[-1]),
    )


# --- what is printed -------------------------------------------------------------------------------------------------


def _print(
    results: Results,
    by_threshold: Sequence[Mapping[str, Any]],
    frocs: Mapping[str, Mapping[str, Froc]],
    per_case: Mapping[str, Mapping[str, Any]],
) -> None:
    pooled = {method: found.figures for method, found in results.pooled.items()}
    keys = [f"{name}_pooled" for name in PER_CASE] + ["average_precision_slices", "prevalence"]
    definitions = (
        DEFINITIONS | MORE_DEFINITIONS | {"average_precision_slices": "average precision, slices of all cases"}
    )
    rows = [[definitions[key], *(f"{values[key]:.4f}" for values in pooled.values())] for key in keys]
    rows += [
        [f"{definitions[key]}, mean ± SD", *(mean_and_sd(metrics[key], 4) for metrics in per_case.values())]
        for key in SUMMARISED
    ]
    rows.append(["cases", *(str(values["n_cases"]) for values in pooled.values())])
    print_table(["", *pooled], rows, left_columns=1)
    if results.pooled_by == "histogram":
        print("By histogram: the exact pooled values lie in")
        for method, found in pooled.items():
            low, high, dice_high = (found[f"{name}_pooled"] for name in (*BOUNDS[:2], BOUNDS[-1]))
            print(f"  {method}: average precision {low:.4f} to {high:.4f}, best Dice up to {dice_high:.4f}")
    print("\nAt one threshold for all cases")
    print_table(
        ["method", "threshold from", "value", "Dice, set", "Dice, subjects", "lesions hit", "false ones a case"],
        [
            [
                row["method"],
                row["kind"].replace("_", ", "),
                f"{row['threshold']:.4g}",
                f"{row['dice_set']:.4f}",
                mean_and_sd({name: row[f"dice_subject_{name}"] for name in ("n", "n_undefined", "mean", "sd")}, 4),
                f"{row['lesion_sensitivity']:.3f}",
                f"{row['false_positives_per_case']:.1f}",
            ]
            for row in by_threshold
        ],
    )
    for warning in results.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    without = _without_lesion(results)
    if without:
        print(f"\nWithout a lesion voxel inside the mask, so that no figure by subject has them: {', '.join(without)}")
        print_table(
            ["method", "threshold from", "cases", "share called", "called, mm3"],
            [
                [
                    row["method"],
                    row["kind"].replace("_", ", "),
                    str(row["lesion_free_cases"]),
                    f"{row['lesion_free_called_share']:.3f}",
                    f"{row['lesion_free_called_mm3_mean']:.4g}",
                ]
                for row in by_threshold
            ],
        )
    print("\nShare of lesions hit, by false positives a case")
    print_table(
        ["method", "lesions", "number", *(f"{rate:g}" for rate in FROC_RATES)],
        [
            [method, group, str(curve.n_lesions), *(f"{curve.sensitivity_at(rate):.3f}" for rate in FROC_RATES)]
            for method, curves in frocs.items()
            for group, curve in curves.items()
        ],
    )
