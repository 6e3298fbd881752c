"""All cases of a method together, exactly by sorting where that fits into the memory, else by histograms."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.errors import AnomalyError, InputError
from nnunet_anomaly.evaluation.anomaly import (
    DetectionCurve,
    auroc,
    average_precision,
    count_healthy,
    curve_from_counts,
    detection_curve,
    merge_lesion_scores,
    pooling_bytes,
    split_scores,
)
from nnunet_anomaly.evaluation.score_histogram import HISTOGRAM_BITS, ScoreHistogram
from nnunet_anomaly.files import open_pool, run_cases
from nnunet_anomaly.workflow.anomaly_cases import (
    BIN_COLUMNS,
    SCORE_COLUMNS,
    binned_figures,
    exact_figures,
    measure_case,
    read_case,
)
from nnunet_anomaly.workflow.anomaly_cohort import CaseFiles, Cohort


@dataclass
class Pooled:
    """All cases of a method together: figures by name, and the histogram of their scores."""

    figures: dict[str, Any]
    histogram: ScoreHistogram


def measure_cases(cohort: Cohort, args: argparse.Namespace) -> tuple[dict[str, Pooled], str]:
    """Figures of every case, then of all pooled, by "sorting" or by "histogram"; why is printed.

    A method without a case that could be evaluated is left out.
    """
    work = [
        (f"{method}: {case}", (files, cohort.record(method, case))) for (method, case), files in cohort.jobs.items()
    ]
    outcome = run_cases(measure_case, work, args.np, "evaluate")
    cohort.outcome.failed.update(outcome.failed)
    found = [[cohort.figures(method, case) for case in cohort.finished(method)] for method in cohort.methods]
    scores = max(sum(int(figures["distinct_lesion_scores"]) for figures in cases) for cases in found)
    voxels = max((int(figures["image_voxels"]) for cases in found for figures in cases), default=0)
    by_histogram, sentence = _choose_pooling(args, scores, voxels)
    print(sentence)
    cohort.folder.mkdir(parents=True, exist_ok=True)
    pooled = {method: _pool(cohort, method, args, by_histogram) for method in cohort.methods if cohort.finished(method)}
    return pooled, "histogram" if by_histogram else "sorting"


def _choose_pooling(args: argparse.Namespace, scores: int, voxels: int) -> tuple[bool, str]:
    """Whether to pool by histogram, and a sentence that says why.

    Args:
        args: what is allowed.
        scores: distinct lesion scores of the method that has most of them.
        voxels: of the largest image.
    """
    cases_gb, pooling_gb = _reading_bytes(voxels, args.np) / 1e9, pooling_bytes(scores, args.np) / 1e9
    by_histogram = args.histogram or cases_gb + pooling_gb > args.memory_gb
    if args.histogram:
        sentence = "Pooled by histogram, as --histogram says."
    elif by_histogram:
        sentence = (
            f"Pooled by histogram: sorting {scores} distinct lesion scores could take {pooling_gb:.2g} GB, which with "
            f"{cases_gb:.2g} GB for cases ({args.np} at a time) is more than --memory-gb {args.memory_gb:g}. The "
            "figures of single cases are exact."
        )
    else:
        sentence = f"Pooled exactly, by sorting: in all processes up to {cases_gb + pooling_gb:.2g} GB."
    if cases_gb > args.memory_gb:
        sentence += f" Cases alone can take up to {cases_gb:.2g} GB; a smaller -np takes less."
    return by_histogram, sentence


def _reading_bytes(voxels: int, num_processes: int) -> int:
    """Memory of all processes without what pooling adds: libraries, and a case of so many voxels in each."""
    return (200_000_000 + 32 * voxels) * (num_processes + 1 if num_processes > 1 else 1)


def _pool(cohort: Cohort, method: str, args: argparse.Namespace, by_histogram: bool) -> Pooled:
    """Figures over the voxels of all cases."""
    columns = np.zeros((3, 1 << HISTOGRAM_BITS))
    slices, abnormal = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    cases = cohort.finished(method)
    for case in cases:
        bins, *counts = cohort.load(method, case, "bins", *BIN_COLUMNS)
        for total, part in zip(columns, counts, strict=True):
            total[bins] += part
        for parts, array in zip((slices, abnormal), cohort.load(method, case, "slices", "abnormal"), strict=True):
            parts.append(array)
    histogram = ScoreHistogram(columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2])
    curve = histogram.curve() if by_histogram else _pool_exactly(cohort, method, args)
    figures = binned_figures(histogram) if by_histogram else exact_figures(curve)
    voxels = curve.lesion_voxels + curve.healthy_voxels
    by_slice = detection_curve(np.concatenate(slices), np.concatenate(abnormal))
    return Pooled(
        {
            **{f"{name}_pooled": value for name, value in figures.items()},
            "prevalence": curve.lesion_voxels / voxels if voxels else math.nan,
            "average_precision_slices": average_precision(by_slice),
            "auroc_slices": auroc(by_slice),
            "abnormal_slices": by_slice.lesion_voxels,
            "slices": by_slice.lesion_voxels + by_slice.healthy_voxels,
            "lesion_voxels": curve.lesion_voxels,
            "n_cases": len(cases),
        },
        histogram,
    )


def _pool_exactly(cohort: Cohort, method: str, args: argparse.Namespace) -> DetectionCurve:
    """Reads every case once more, for the thresholds that are now known."""
    cases = cohort.finished(method)
    thresholds, lesion_counts, weights = merge_lesion_scores(
        cohort.load(method, case, *SCORE_COLUMNS) for case in cases
    )
    false_positives = (np.zeros(thresholds.size, dtype=np.int64), np.zeros(thresholds.size, dtype=np.int64))
    with tempfile.TemporaryDirectory(prefix=".partial_", dir=cohort.folder) as name:
        np.save(Path(name) / "thresholds.npy", thresholds)
        for counts in arrays_in_turn(
            _write_healthy_counts, list(cases.values()), Path(name), args.np, f"pool {method}"
        ):
            for total, row in zip(false_positives, counts, strict=True):
                total += row
    healthy_voxels = sum(int(cohort.figures(method, case)["healthy_voxels"]) for case in cases)
    return curve_from_counts(thresholds, lesion_counts, *false_positives, healthy_voxels, weights)


def arrays_in_turn(
    function: Any, cases: Sequence[CaseFiles], folder: Path, num_processes: int, description: str
) -> Any:
    """Arrays that a worker makes of every case, one after the other, few of them at a time on disk.

    Raises:
        InputError: a case that went well before now fails.
    """
    from tqdm import tqdm

    waiting: deque[tuple[Path, Future[None]]] = deque()
    processes = min(num_processes, len(cases))

    def collect() -> np.ndarray:
        path, future = waiting.popleft()
        try:
            future.result()
        except AnomalyError as error:
            raise InputError(f"A file changed while it was evaluated; run it again. {error}") from error
        counts = np.load(path, allow_pickle=False)
        path.unlink()
        bar.update()
        return counts

    with tqdm(total=len(cases), desc=description, unit="case") as bar, open_pool(processes) as pool:
        for index, files in enumerate(cases):
            target = folder / f"{index}.npy"
            waiting.append((target, pool.submit(function, files, folder, target)))
            if len(waiting) > processes:
                yield collect()
        while waiting:
            yield collect()


def _write_healthy_counts(files: CaseFiles, folder: Path, target: Path) -> None:
    """Worker: healthy voxels of one case at, and above, every common threshold."""
    healthy_scores = split_scores(*read_case(files)[:3])[1]
    thresholds = np.load(folder / "thresholds.npy", mmap_mode="r", allow_pickle=False)
    np.save(target, np.stack(count_healthy(healthy_scores, thresholds)))
