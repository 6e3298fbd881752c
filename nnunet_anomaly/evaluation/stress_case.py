"""Figures of one corrupted case: overlap, surfaces, connected components, and what became of the anomaly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.errors import GeometryError
from nnunet_anomaly.evaluation.cohort import structure_metrics

METRICS = ("dsc", "asd_mm", "hd_mm", "hd95_mm", "nsd")
COUNTS = ("reference_voxels", "prediction_voxels", "empty")


def corrupted_case_figures(
    reference: np.ndarray,
    prediction: np.ndarray,
    anomaly: np.ndarray,
    spacing_mm: Sequence[float],
    structures: Mapping[str, Sequence[int]],
    nsd_tolerance_mm: float = 1.0,
) -> dict[str, dict[str, Any]]:
    """Every figure of every structure of one case.

    Args:
        reference: label map, 2-D or 3-D, integers in 0 to 65535.
        prediction: label map of the same shape.
        anomaly: bool, same shape; what an observer would outline. Nothing in it: ``anomaly_recall`` is NaN.
        spacing_mm: voxel size along every axis.
        structures: labels of every structure, one or (a region) several.
        nsd_tolerance_mm: of the normalized surface Dice.

    Returns:
        By structure: ``METRICS`` and ``COUNTS`` of ``cohort.structure_metrics``, ``component_figures``, and
        ``recall_figures``.

    Raises:
        GeometryError: shapes differ, or the spacing is not one positive number per axis.
        LabelError: not label maps.
    """
    if np.shape(anomaly) != np.shape(reference):
        raise GeometryError(f"The anomaly has shape {np.shape(anomaly)}, the reference {np.shape(reference)}.")
    figures = structure_metrics(reference, prediction, spacing_mm, structures, nsd_tolerance_mm)
    found = {}
    for name, labels in structures.items():
        wanted, given = np.isin(reference, labels), np.isin(prediction, labels)
        kept = {key: figures[name][key] for key in (*COUNTS, *METRICS)}
        found[name] = kept | component_figures(wanted, given) | recall_figures(wanted, given, anomaly)
    return found


def component_figures(reference: np.ndarray, prediction: np.ndarray) -> dict[str, int]:
    """Connected components (26 neighbours) of one structure, bool arrays of one shape.

    ``component_error`` is the difference in their number. ``false_components`` have no voxel in common with the
    reference: an island far away is one, a structure that broke in two is not.
    """
    wanted, given = label_components(reference), label_components(prediction)
    touching = np.unique(given.numbers[reference[given.mask]]).size if given.sizes_voxels.size else 0
    return {
        "components_reference": int(wanted.sizes_voxels.size),
        "components_prediction": int(given.sizes_voxels.size),
        "component_error": abs(int(wanted.sizes_voxels.size) - int(given.sizes_voxels.size)),
        "false_components": int(given.sizes_voxels.size) - int(touching),
    }


def recall_figures(reference: np.ndarray, prediction: np.ndarray, anomaly: np.ndarray) -> dict[str, float]:
    """Of a structure's voxels inside the anomaly: how many, and the share that the prediction gives the structure."""
    inside = reference & anomaly
    voxels = int(inside.sum())
    return {"anomaly_voxels": voxels, "anomaly_recall": float(prediction[inside].mean()) if voxels else math.nan}
