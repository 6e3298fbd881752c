"""One case at a time: its figures, what pooling needs of it, and what is found in it at thresholds.

Workers write a record of what they found, so that a later run need not repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.errors import AnomalyError
from nnunet_anomaly.evaluation.anomaly import (
    DetectionCurve,
    au_pro,
    auroc,
    average_precision,
    best_dice,
    detection_curve,
    distinct_lesion_scores,
    split_scores,
    standardised_intensity,
)
from nnunet_anomaly.evaluation.cohort import json_safe
from nnunet_anomaly.evaluation.lesions import find_lesions, found_shares, part_components
from nnunet_anomaly.evaluation.score_histogram import BinnedDetection, ScoreHistogram, binned_detection, score_histogram
from nnunet_anomaly.evaluation.slices import slice_scores
from nnunet_anomaly.files import is_up_to_date, read_image, save_json, written_whole
from nnunet_anomaly.label_maps import check_same_grid, read_label_map, read_region, spacing_zyx_mm
from nnunet_anomaly.planes import plane_of
from nnunet_anomaly.workflow.anomaly_cohort import CaseFiles

AT_THRESHOLDS = "at_thresholds"
PER_CASE = ("average_precision", "auroc", "au_pro", "best_dice", "best_dice_threshold")
# of a histogram: the interval that holds the exact value (its best Dice is the lower end itself)
BOUNDS = (*(f"{name}_{end}" for name in PER_CASE[:3] for end in ("low", "high")), "best_dice_high")
BIN_COLUMNS = ("lesion", "healthy", "weight")
SCORE_COLUMNS = ("scores", "score_counts", "score_weights")


def read_case(files: CaseFiles) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Any]:
    """Scores, truth, mask (None: everywhere) and image of one case, after a check that they lie on the same grid."""
    import SimpleITK as sitk

    truth, grid = read_label_map(files.truth)
    image = read_image(files.scores)
    check_same_grid(grid, files.truth, image, files.scores)
    scores = sitk.GetArrayFromImage(image)
    mask = None if files.mask is None else read_region(files.mask, files.mask_labels, grid, files.truth)
    if files.baseline_sign:
        scores = files.baseline_sign * standardised_intensity(scores, mask)
    return scores, truth, mask, image


def measure_case(files: CaseFiles, record: Path) -> bool:
    """Worker: write the figures of one case and what pooling needs; False when they are there already."""
    if is_up_to_date(record, files.source()):
        return False
    scores, truth, mask, image = read_case(files)
    try:
        figures, arrays = _figures_of_case(files, scores, truth, mask, image)
    except AnomalyError as error:
        raise type(error)(f"{files.scores}: {error}") from None
    _save_record(record, files.source(), figures, arrays)
    return True


def _figures_of_case(
    files: CaseFiles, scores: np.ndarray, truth: np.ndarray, mask: np.ndarray | None, image: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Figures of a case, and arrays that pooling needs."""
    lesions = find_lesions(truth, spacing_zyx_mm(image), mask)
    histogram = score_histogram(scores, truth, mask, lesion_weights=lesions.voxel_weights)
    if files.histogram:
        figures, distinct = binned_figures(histogram), []
    else:
        figures = exact_figures(detection_curve(scores, truth, mask, lesions.voxel_weights))
        distinct = distinct_lesion_scores(split_scores(scores, truth, mask)[0], lesions.voxel_weights)
    inside = scores if mask is None else scores[mask]
    lesion_voxels = int(histogram.lesion.sum())
    figures |= {
        "lesion_voxels": lesion_voxels,
        "healthy_voxels": int(histogram.healthy.sum()),
        "lesion_voxels_outside_mask": int(np.count_nonzero(truth)) - lesion_voxels,
        "lesions": int(lesions.sizes_voxels.size),
        "lesions_outside_mask": lesions.n_outside,
        "lesion_volume_mm3": float(lesions.volumes_mm3.sum()),
        "highest_score": float(inside.max()) if inside.size else math.nan,
        "distinct_lesion_scores": int(distinct[0].size) if distinct else 0,
        "image_voxels": int(scores.size),
    }
    axis = plane_of(image.GetDirection(), files.slice_plane).axes[0] if scores.ndim == 3 else 0
    slices, abnormal = slice_scores(scores, truth, mask, axis)
    arrays = _occupied_bins(histogram) | dict(zip(SCORE_COLUMNS, distinct, strict=False))
    return figures, arrays | {"slices": slices, "abnormal": abnormal, "volumes_mm3": lesions.volumes_mm3}


def _occupied_bins(histogram: ScoreHistogram) -> dict[str, np.ndarray]:
    bins = np.flatnonzero(histogram.lesion + histogram.healthy)
    columns = (histogram.lesion, histogram.healthy, histogram.lesion_weight)
    return {"bins": bins} | {
        name: column[bins] for name, column in zip(BIN_COLUMNS, columns, strict=True) if column is not None
    }


def exact_figures(curve: DetectionCurve) -> dict[str, Any]:
    """``PER_CASE`` of a case, or of all of them."""
    return dict(zip(PER_CASE, (average_precision(curve), auroc(curve), au_pro(curve), *best_dice(curve)), strict=True))


def binned_figures(histogram: ScoreHistogram) -> dict[str, Any]:
    """The same from a histogram, and ``BOUNDS``."""
    found: BinnedDetection = binned_detection(histogram)
    assert found.au_pro is not None and found.au_pro_interval is not None
    values = (found.average_precision, found.auroc, found.au_pro, found.best_dice, found.best_dice_threshold)
    intervals = (*found.average_precision_interval, *found.auroc_interval, *found.au_pro_interval)
    return dict(zip((*PER_CASE, *BOUNDS), (*values, *intervals, found.best_dice_interval[1]), strict=True))


def measure_at(files: CaseFiles, thresholds: list[float], component_overlap: float, record: Path) -> bool:
    """Worker: voxels, lesions and components found in one case at every threshold; False when they are there."""
    source = files.source(thresholds=thresholds, component_overlap=component_overlap)
    if is_up_to_date(record, source):
        return False
    scores, truth, mask, image = read_case(files)
    lesion_scores, healthy_scores = split_scores(scores, truth, mask)
    lesions = find_lesions(truth, spacing_zyx_mm(image), mask)
    lesion = truth != 0 if mask is None else (truth != 0) & mask
    # as arrays, since a number would be rounded to the precision of the scores before it is compared
    values = [np.array([value], dtype=float) for value in thresholds]
    false_positives = np.array([np.count_nonzero(healthy_scores >= value) for value in values])
    components, shares = np.zeros(len(values), dtype=np.int64), np.zeros((lesions.sizes_voxels.size, len(values)))
    for place, value in enumerate(values):
        called = scores >= value if mask is None else (scores >= value) & mask
        hitting, components[place] = part_components(called, truth, component_overlap)
        shares[:, place] = found_shares(hitting[lesion], lesions)
    arrays = {
        "true_positives": np.array([np.count_nonzero(lesion_scores >= value) for value in values]),
        "false_positives": false_positives,
        "false_positives_mm3": false_positives * math.prod(map(float, image.GetSpacing())),
        "false_positive_components": components,
        "shares": shares,
    }
    _save_record(record, source, {}, arrays)
    return True


def _save_record(record: Path, source: Any, figures: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    with written_whole(record.with_suffix(".npz")) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
    # last, since it says that the case is finished
    save_json({"made_from": source, "figures": json_safe(figures)}, record)
