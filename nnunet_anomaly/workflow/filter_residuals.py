"""What ``nnunet-anomaly filter-residuals`` does, and ``evaluate-anomaly`` before it measures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from nnunet_anomaly import __version__
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import Outcome, is_up_to_date, made_from, read_image, run_cases, save_json, save_volume
from nnunet_anomaly.label_maps import read_region, spacing_zyx_mm
from nnunet_anomaly.postprocessing.residual_filters import ResidualFilters, filter_residual, median_reach_voxels

ENDING = ".nii.gz"
SETTINGS = "filters.json"
RECORDS = "made_from"


def filter_maps(
    maps: Mapping[str, Path],
    masks: Mapping[str, Path],
    mask_labels: Sequence[int],
    output: Path,
    filters: ResidualFilters,
    num_processes: int,
) -> Outcome:
    """Filter the error map of every case; those that are finished with the same settings are not repeated.

    Writes ``<case>.nii.gz`` (float32), ``filters.json`` with the settings, and ``made_from/`` for later runs. A case
    that fails has no map afterwards, so that none of an earlier run is taken for it.

    Args:
        maps: error map of every case.
        masks: label map of every case; a case without one fails.
        mask_labels: labels of the mask (none: all but 0).
        output: folder to write to.
        filters: settings.
        num_processes: cases at a time.
    """
    work = [
        (case, (path, masks[case], tuple(mask_labels), output / f"{case}{ENDING}", filters))
        for case, path in maps.items()
        if case in masks
    ]
    save_json({"version": __version__, "mask_labels": list(mask_labels), **asdict(filters)}, output / SETTINGS)
    outcome = run_cases(_filter_file, work, num_processes, "filter")
    for case in maps:
        if case not in masks:
            (output / f"{case}{ENDING}").unlink(missing_ok=True)
            outcome.failed[case] = "There is no mask for this case."
    return outcome


def median_reach(paths: Iterable[Path], filters: ResidualFilters) -> dict[tuple[float, ...], tuple[int, ...]]:
    """Reach of the median's window by voxel size (mm), from the headers of filtered maps; both along x, y and z."""
    import SimpleITK as sitk

    sizes_mm = set()
    reader = sitk.ImageFileReader()
    for path in paths:
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        sizes_mm.add(tuple(round(size_mm, 6) for size_mm in reader.GetSpacing()))
    return {sizes: median_reach_voxels(filters.median_radius_mm, sizes) for sizes in sorted(sizes_mm)}


def median_warning(reach: Mapping[tuple[float, ...], tuple[int, ...]], filters: ResidualFilters) -> str | None:
    """What to say where voxels are larger than the radius of the median, as ``median_reach`` found; else ``None``."""
    if filters.median_radius_mm == 0:
        return None
    too_large = {
        (axis, size_mm)
        for sizes_mm, voxels in reach.items()
        for axis, size_mm, number in zip("xyz", sizes_mm, voxels, strict=False)
        if number == 0
    }
    if not too_large:
        return None
    sizes_mm = [size_mm for _, size_mm in too_large]
    largest_mm = math.ceil(1000 * max(sizes_mm)) / 1000
    sizes = f"{min(sizes_mm):g}" + (f" to {max(sizes_mm):g}" if min(sizes_mm) < max(sizes_mm) else "")
    return (
        f"the median filters nothing along {', '.join(sorted({axis for axis, _ in too_large}))}, where voxels are "
        f"{sizes} mm and --median-radius-mm is {filters.median_radius_mm:g}. To reach the next voxel give "
        f"--median-radius-mm {largest_mm:g}; 0 leaves the median out."
    )


def _filter_file(path: Path, mask_path: Path, labels: tuple[int, ...], target: Path, filters: ResidualFilters) -> bool:
    """Worker: one case; False when it is finished already."""
    import SimpleITK as sitk

    record = target.parent / RECORDS / f"{target.name.removesuffix(ENDING)}.json"
    source = made_from([path, mask_path], {"mask_labels": labels, **asdict(filters)})
    if target.is_file() and is_up_to_date(record, source):
        return False
    # a map filtered in another way must not outlive a failure of this one
    record.unlink(missing_ok=True)
    target.unlink(missing_ok=True)
    image = read_image(path)
    mask = read_region(mask_path, labels, image, path)
    try:
        filtered = filter_residual(sitk.GetArrayFromImage(image), mask, spacing_zyx_mm(image), filters)
    except InputError as error:
        raise type(error)(f"{path}: {error}") from None
    save_volume(filtered, target, image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    save_json({"made_from": source}, record)
    return True
