"""What ``nnunet-anomaly anomalies`` does for each case: histograms for calibration, masks, p-value maps.

What is slow to import is imported inside, as the command's help must not wait for it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import is_up_to_date, made_from, save_json, save_volume, written_whole

if TYPE_CHECKING:
    import numpy as np
    import SimpleITK as sitk

    from nnunet_anomaly.error_maps.calibrate import ErrorHistogram, Threshold

ENDING = ".nii.gz"


class Case(NamedTuple):
    """Files of one case."""

    name: str
    error_file: Path
    label_file: Path


class Region(NamedTuple):
    """Where the error is looked at and how it is smoothed: equal for calibration and use."""

    roi_labels: dict[str, int]
    sigma_mm: float
    erode_mm: float


class MaskJob(NamedTuple):
    """How masks are made: equal for all cases of a run."""

    output: Path
    threshold: Threshold
    min_volume_mm3: float
    healthy_errors: Path | None
    p_values: bool


def _first_image(case: Case) -> Path:
    """A case's first image file beside its error map, or the error map where that is all there is."""
    stem, _, channel = case.error_file.name.rpartition("_")
    image = case.error_file.with_name(f"{stem}_0000{channel[4:]}")
    return image if image.is_file() else case.error_file


def image_sha256(case: Case) -> str:
    """Digest of the first image file; its name does not count."""
    digest = hashlib.sha256()
    with open(_first_image(case), "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _look_inside(case: Case, region: Region) -> tuple[np.ndarray, np.ndarray, sitk.Image]:
    """Smoothed error and region of one case, and the image that carries the geometry."""
    import SimpleITK as sitk

    from nnunet_anomaly.error_maps.calibrate import smoothed_error_inside
    from nnunet_anomaly.files import read_image
    from nnunet_anomaly.label_maps import check_same_grid, read_label_map, spacing_zyx_mm

    image = read_image(case.error_file)
    labels, label_image = read_label_map(case.label_file)
    check_same_grid(image, case.error_file, label_image, case.label_file)
    try:
        smoothed, inside = smoothed_error_inside(
            sitk.GetArrayFromImage(image),
            labels,
            spacing_zyx_mm(image),
            region.roi_labels.values(),
            sigma_mm=region.sigma_mm,
            erode_mm=region.erode_mm,
        )
    except InputError as problem:
        raise InputError(f"{case.error_file}: {problem}") from None
    return smoothed, inside, image


def make_histogram(case: Case, folder: Path, region: Region, min_volume_mm3: float | None) -> bool:
    """Worker: histogram of one calibration case, then its record; False when both are there already.

    The record holds the case's ``peak_error`` if a volume is given.
    """
    import numpy as np

    from nnunet_anomaly.error_maps.calibrate import ErrorHistogram, peak_error
    from nnunet_anomaly.label_maps import spacing_zyx_mm

    target, record = folder / f"{case.name}.npz", folder / f"{case.name}.json"
    files = [case.error_file, case.label_file, _first_image(case)]
    source = made_from(files, {**region._asdict(), "min_volume_mm3": min_volume_mm3})
    if target.exists() and is_up_to_date(record, source):
        return False
    record.unlink(missing_ok=True)
    smoothed, inside, image = _look_inside(case, region)
    histogram = ErrorHistogram.of(smoothed[inside > 0])
    with written_whole(target) as temporary:
        np.savez_compressed(temporary, bins=histogram.bins, counts=histogram.counts)
    content = {"made_from": source, "spacing_mm": spacing_zyx_mm(image), "image_sha256": image_sha256(case)}
    if min_volume_mm3 is not None:
        content["peak_error"] = peak_error(smoothed, inside, content["spacing_mm"], min_volume_mm3=min_volume_mm3)
    save_json(content, record)
    return True


def load_histogram(path: Path) -> ErrorHistogram:
    """Read what ``make_histogram`` wrote."""
    import numpy as np

    from nnunet_anomaly.error_maps.calibrate import ErrorHistogram

    with np.load(path, allow_pickle=False) as content:
        return ErrorHistogram(content["bins"], content["counts"])


def make_mask(case: Case, job: MaskJob) -> bool:
    """Worker: mask of one case, then its record, which says that it is finished; False when both are there."""
    import numpy as np

    from nnunet_anomaly.error_maps import calibrate
    from nnunet_anomaly.error_maps.conformal import HealthyErrors
    from nnunet_anomaly.error_maps.guarantee import threshold_of_case
    from nnunet_anomaly.label_maps import spacing_zyx_mm

    threshold, min_volume_mm3 = job.threshold, job.min_volume_mm3
    target, record = job.output / f"{case.name}{ENDING}", record_file(job.output, case.name)
    p_value_map = job.output / "p_values" / target.name
    region = Region(threshold.roi_labels, threshold.sigma_mm, threshold.erode_mm)
    source = made_from([case.error_file, case.label_file], _settings_of_masks(job, region))
    made = target.exists() and (p_value_map.exists() or not job.p_values)
    if made and is_up_to_date(record, source):
        return False
    # a mask made in another way must not outlive a failure of this one
    for path in (record, target, p_value_map):
        path.unlink(missing_ok=True)
    smoothed, inside, image = _look_inside(case, region)
    spacing_mm = spacing_zyx_mm(image)
    geometry = image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    content: dict[str, Any] = {"made_from": source, "spacing_mm": spacing_mm}
    value = threshold.value
    if job.healthy_errors is not None:
        healthy = HealthyErrors.load(job.healthy_errors)
        value = threshold_of_case(threshold, calibrate.ErrorHistogram.of(smoothed[inside > 0]), healthy)
        content["peak_error"] = calibrate.peak_error(
            smoothed, inside, spacing_mm, min_volume_mm3=healthy.min_volume_mm3
        )
        if job.p_values:
            # outside nothing is tested: 1, as NaN would be read as 0, the strongest evidence of all
            p_values = np.ones(smoothed.shape, np.float32)
            p_values[inside > 0] = healthy.p_values(smoothed[inside > 0])
            save_volume(p_values, p_value_map, *geometry)
    mask = calibrate.anomaly_mask(smoothed, inside, spacing_mm, value, min_volume_mm3=min_volume_mm3)
    rows = calibrate.anomaly_volumes(mask, smoothed, inside, spacing_mm, threshold.roi_labels)
    save_volume(mask.astype(np.uint8), target, *geometry)
    content["threshold"] = value if math.isfinite(value) else None
    save_json({**content, "rows": [{"case": case.name, **row} for row in rows]}, record)
    return True


def record_file(output: Path, name: str) -> Path:
    """Record of a case whose mask is made."""
    return output / "cases" / f"{name}.json"


def _settings_of_masks(job: MaskJob, region: Region) -> dict[str, Any]:
    guarantee = job.threshold.guarantee
    return {
        "threshold": job.threshold.value,
        "min_volume_mm3": job.min_volume_mm3,
        **region._asdict(),
        "guarantee": guarantee and [guarantee.kind, guarantee.rate, guarantee.procedure],
        "healthy_errors_sha256": job.threshold.healthy_errors_sha256 if job.healthy_errors else "",
        "p_values": job.p_values,
    }


def case_rows(records: Mapping[str, Any], healthy_errors: Path) -> list[dict[str, Any]]:
    """Per case: its threshold, its peak, the p-value of that among the lesion-free cases' peaks, and adjusted ones.

    A case without a voxel in the region has no p-value.
    """
    from nnunet_anomaly.error_maps.conformal import HealthyErrors, adjusted_p_values, case_p_values

    healthy = HealthyErrors.load(healthy_errors)
    tested = [name for name, record in records.items() if any(row["region_volume_mm3"] for row in record["rows"])]
    p_values = case_p_values([records[name]["peak_error"] for name in tested], healthy.peaks)
    found = dict(zip(tested, zip(p_values, adjusted_p_values(p_values), strict=True), strict=True))
    rows = []
    for name, record in records.items():
        p_value, q_value = (float(value) for value in found[name]) if name in found else (None, None)
        shared = {"case": name, "threshold": record["threshold"], "peak_error": record["peak_error"]}
        rows.append({**shared, "p_value": p_value, "q_value": q_value})
    return rows
