"""Pictures of ``evaluate-anomaly``: curves, figures over size, and examples."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.errors import AnomalyError
from nnunet_anomaly.files import read_image
from nnunet_anomaly.label_maps import check_same_grid, files_by_case, spacing_zyx_mm
from nnunet_anomaly.planes import Plane, plane_of
from nnunet_anomaly.workflow.anomaly_cases import read_case
from nnunet_anomaly.workflow.anomaly_cohort import BASELINES, FILTERED
from nnunet_anomaly.workflow.anomaly_results import Results


def draw_pictures(args: argparse.Namespace, results: Results) -> None:
    """Draw all curves, and examples where there are images."""
    from nnunet_anomaly.report import anomaly_figures as figures
    from nnunet_anomaly.report.figures import save_figure

    curves = {method: pooled.histogram.curve() for method, pooled in results.pooled.items()}
    save_figure(figures.precision_recall_figure(curves), args.o / "precision_recall.png")
    _draw_frocs(args.o, results)
    kind = results.main_kind
    if kind is not None:
        points = {method: results.size_points(method, kind) for method in results.thresholds}
        label = f"Dice by subject, threshold: {kind.replace('_', ', ')}"
        save_figure(figures.lesion_size_figure(points, label), args.o / "dice_over_lesion_size.png")
    if args.training_sizes:
        lines = _training_lines(args, results)
        figure = figures.training_size_figure(lines, "average precision, pooled")
        save_figure(figure, args.o / "training_size.png")
    if (args.images or args.baseline) and args.pictures > 0:
        _draw_examples(args, results)


def _draw_frocs(output: Path, results: Results) -> None:
    """A curve of all lesions, and one for each group by size where there are more than one."""
    from nnunet_anomaly.report.anomaly_figures import froc_figure
    from nnunet_anomaly.report.figures import save_figure

    groups = list(next(iter(results.frocs.values())))
    for index, group in enumerate(groups if len(groups) > 2 else groups[:1]):
        by_method = {method: curves[group] for method, curves in results.frocs.items()}
        name = f"froc_size_{index}.png" if index else "froc.png"
        save_figure(froc_figure(by_method, f"lesions: {group}"), output / name)


def _training_lines(args: argparse.Namespace, results: Results) -> dict[str, tuple[list[float], list[float]]]:
    """Sizes and pooled average precision of the methods of every curve, the filtered ones as a curve of their own."""
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

    images = files_by_case(args.images or args.baseline, args.image_channel if args.images else args.baseline_channel)
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
