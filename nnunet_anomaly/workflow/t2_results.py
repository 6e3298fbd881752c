"""What ``nnunet-anomaly t2`` writes of one knee: volumes, tables, unrolled maps, pictures, a page, and a record."""

from __future__ import annotations

import dataclasses
import math
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly import __version__
from nnunet_anomaly.evaluation.cohort import json_safe, save_table
from nnunet_anomaly.files import save_json, save_volume, written_whole
from nnunet_anomaly.relaxometry.region_table import COLUMNS, FILE_NAME, Row, change_rows, region_rows
from nnunet_anomaly.relaxometry.subregions import LABELS
from nnunet_anomaly.workflow.t2_knee import (
    PROBABILITY,
    PROBABILITY_RECORD,
    RECORD,
    Change,
    Knee,
    Method,
    TimePoint,
    is_finished,
    measure,
    source_of,
)
from nnunet_anomaly.workflow.t2_report import PAGE, PICTURES, write_report
from nnunet_anomaly.workflow.t2_series import Series, facts_of, read_series

CHANGE_TABLE, CLUSTER_TABLE, CLUSTER_MAP, UNROLLED = "change.csv", "clusters.csv", "clusters.nii.gz", "unrolled.npz"
CHANGE_COLUMNS = ("case", "side", "region", "t2_first_ms", "t2_second_ms", "t2_change_ms", "t2_voxels")
CLUSTER_COLUMNS = ("case", "cluster", "part", "bins", "percent_of_plate", "mean_change_ms", "max_change_ms")
VOLUMES = ("t2", "standard_error", "quality", "segmentation", "regions")


def measure_and_save(knee: Knee, method: Method, series: Sequence[Series] = ()) -> bool:
    """Worker: one knee; False when it is finished already. Its series are read unless they are given."""
    if is_finished(knee, method):
        return False
    forget(knee)
    times, changed, warnings = measure(
        knee, method, series or [read_series(source, knee.side) for source in knee.sources]
    )
    for place, time in enumerate(times):
        save_volumes(time, knee.folder(place))
    rows = [
        row for place, time in enumerate(times) for row in region_rows(knee.name, place + 1, time.regions, time.t2_ms)
    ]
    clusters = [{"case": knee.name, **row} for row in changed.clusters.rows] if changed else []
    save_table(rows, knee.output / FILE_NAME, COLUMNS)
    if changed:
        save_table(change_rows(rows), knee.output / CHANGE_TABLE, CHANGE_COLUMNS)
        save_table(clusters, knee.output / CLUSTER_TABLE, CLUSTER_COLUMNS)
        _save(clusters_in_image(times[0], changed), times[0], knee.output / CLUSTER_MAP)
    save_unrolled(times, changed, knee.output / UNROLLED)
    record = record_of(knee, method, times, changed, warnings)
    write_report(knee.output, record, times, changed, rows, clusters)
    save_json(json_safe({"made_from": source_of(knee, method), **record}), knee.output / RECORD)
    return True


def forget(knee: Knee) -> None:
    """Remove what an earlier run wrote; probability maps of use stay, as they have a record of their own."""
    for name in (RECORD, FILE_NAME, CHANGE_TABLE, CLUSTER_TABLE, CLUSTER_MAP, UNROLLED, PAGE):
        (knee.output / name).unlink(missing_ok=True)
    shutil.rmtree(knee.output / PICTURES, ignore_errors=True)
    for place in (0, 1):
        needs_probability = not knee.masks and place < len(knee.sources)
        names = [f"{name}.nii.gz" for name in VOLUMES]
        for name in names if needs_probability else [*names, PROBABILITY, PROBABILITY_RECORD]:
            (knee.folder(place) / name).unlink(missing_ok=True)


def save_volumes(time: TimePoint, folder: Path) -> None:
    """T2 and its standard error of the cartilage, 0 elsewhere; quality of all candidates; cartilage and its regions."""
    inside = time.refinement.mask
    volumes: dict[str, np.ndarray] = {
        "t2": np.where(inside, time.fit.t2_ms, 0).astype(np.float32),
        "standard_error": np.where(inside, np.nan_to_num(time.fit.standard_error_ms), 0).astype(np.float32),
        "quality": time.fit.quality.astype(np.uint8),
        "segmentation": inside.astype(np.uint8),
        "regions": time.regions.label_map(),
    }
    for name in VOLUMES:
        _save(volumes[name], time, folder / f"{name}.nii.gz")


def _save(volume: np.ndarray, time: TimePoint, path: Path) -> None:
    grid = time.grid
    save_volume(volume, path, grid.GetSpacing(), grid.GetOrigin(), grid.GetDirection())


def clusters_in_image(first: TimePoint, changed: Change) -> np.ndarray:
    """Clusters as a label map on the grid of the first time point, over the whole depth of the cartilage."""
    unrolled = first.regions.unrolled
    numbers = changed.clusters.label_map[unrolled.slices, unrolled.bins]
    return unrolled.in_image(numbers.astype(np.uint16 if numbers.max(initial=0) > 255 else np.uint8))


def save_unrolled(times: Sequence[TimePoint], changed: Change | None, path: Path) -> None:
    """All maps over slices and bins, as arrays by name."""
    arrays = {"bin_starts_degrees": times[0].regions.unrolled.bin_starts_degrees}
    for place, time in enumerate(times, start=1):
        maps = {field.name: getattr(time.projection, field.name) for field in dataclasses.fields(time.projection)}
        arrays |= {f"{'t2_' * (name != 'thickness_mm')}{name}_{place}": values for name, values in maps.items()}
        arrays[f"parts_{place}"] = time.regions.parts_of_bins
    if changed:
        arrays |= {"t2_mean_2_moved": changed.second_ms, "change_ms": changed.difference_ms}
        arrays["clusters"] = changed.clusters.label_map
    with written_whole(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def record_of(
    knee: Knee, method: Method, times: Sequence[TimePoint], changed: Change | None, warnings: Sequence[str]
) -> dict[str, Any]:
    """Everything about how a knee was measured, for ``record.json``."""
    model = method.model
    return {
        "case": knee.name,
        "side": times[0].series.stack.side,
        "settings": asdict(method.settings),
        "model": None
        if model is None
        else {
            "folder": str(model.folder),
            "folds": list(model.folds),
            "checkpoint": model.checkpoint,
            "echoes": list(model.echoes),
            "label": model.label.name,
        },
        "masks": [str(path) for path in knee.masks],
        "device": method.device,
        "versions": {
            "nnunet_anomaly": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("nnunetv2", "torch", "numpy", "scipy", "SimpleITK")},
        },
        "warnings": list(warnings),
        "time_points": [
            facts | _figures(time) for facts, time in zip(facts_of([t.series for t in times]), times, strict=True)
        ],
        "change": None if changed is None else _change_figures(times, changed),
        "region_labels": LABELS,
    }


def _figures(time: TimePoint) -> dict[str, Any]:
    unrolled, values = time.regions.unrolled, time.t2_ms[time.refinement.mask]
    errors = time.fit.standard_error_ms[time.refinement.mask]
    known = errors[np.isfinite(errors)]
    return {
        "sigma": time.fit.sigma,
        "refinement": time.refinement.counts(),
        "quality": dict(time.quality_counts),
        "t2_mean_ms": float(values.mean()),
        "t2_median_ms": float(np.median(values)),
        "standard_error_median_ms": float(np.median(known)) if known.size else math.nan,
        "circle": asdict(unrolled.circle),
        "parted_at": time.regions.parted_at,
        "side_by_shape": time.regions.side_by_shape,
    }


def _change_figures(times: Sequence[TimePoint], changed: Change) -> dict[str, Any]:
    shift, clusters = changed.shift, changed.clusters
    return {
        "shift_slices": shift.slices,
        "shift_bins": shift.bins,
        "shift_degrees": shift.bins * times[0].regions.unrolled.bin_degrees,
        "similarity": shift.similarity,
        "plate_bins": clusters.plate_bins,
        "mean_ms": clusters.mean_ms,
        "sd_ms": clusters.sd_ms,
        "clusters": len(clusters.rows),
        "cluster_percent_of_plate": clusters.percent_of_plate,
    }


def summary_rows(rows: Sequence[Row]) -> list[Row]:
    """Of a knee's table of regions, the rows that are worth a place on a screen: the whole plate and its halves."""
    return [row for row in rows if row["region"] in ("All", "Deep", "Superficial", "Lateral", "Medial")]
