"""Pictures and the page of one knee, as ``nnunet-anomaly t2`` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_anomaly.planes import plane_of
from nnunet_anomaly.relaxometry.region_table import FIRST, SECOND, Row
from nnunet_anomaly.relaxometry.subregions import REGIONS
from nnunet_anomaly.report.figures import save_figure
from nnunet_anomaly.report.html_page import HtmlPage
from nnunet_anomaly.report.page import NOTHING
from nnunet_anomaly.report.t2_figures import bins_with_cartilage, common_limits, t2_overlay_figure, unrolled_figure

if TYPE_CHECKING:
    from nnunet_anomaly.workflow.t2_knee import Change, TimePoint

PAGE, PICTURES = "report.html", "pictures"
_DPI = 110
# pictures are drawn over the echo that Thomas segmented, or the last one there is
_SHOWN_ECHO = 1
REGION_COLUMNS = {
    "region": "region",
    "t2_mean_ms": "T2 (ms)",
    "t2_sd_ms": "SD",
    "t2_voxels": "voxels",
    "area_mm2": "area (mm²)",
}
PAIR_COLUMNS = {
    "region": "region",
    "first_ms": "T2 (ms), 1",
    "first_sd_ms": "SD, 1",
    "first_voxels": "voxels, 1",
    "second_ms": "T2 (ms), 2",
    "second_sd_ms": "SD, 2",
    "second_voxels": "voxels, 2",
    "change_ms": "change (ms)",
}
FORMATS = {
    **dict.fromkeys(("t2_mean_ms", "t2_sd_ms", "first_ms", "first_sd_ms", "second_ms", "second_sd_ms"), ".1f"),
    **dict.fromkeys(("change_ms", "mean_change_ms", "max_change_ms"), "+.1f"),
    "area_mm2": ".0f",
    "percent_of_plate": ".1f",
}
CLUSTER_COLUMNS = {
    "cluster": "cluster",
    "part": "mostly in",
    "bins": "bins",
    "percent_of_plate": "% of the plate",
    "mean_change_ms": "mean change (ms)",
    "max_change_ms": "largest (ms)",
}


def write_report(
    output: Path,
    record: Mapping[str, Any],
    times: Sequence[TimePoint],
    changed: Change | None,
    rows: Sequence[Row],
    clusters: Sequence[Row],
) -> None:
    """Draw all pictures, and write the page with them inside."""
    pictures = draw(output / PICTURES, times, changed)
    page = HtmlPage(f"Cartilage T2: {record['case']}")
    page.text(
        f"A {record['side']} knee, {len(times)} time point{'s' * (len(times) > 1)}. T2 in ms of femoral cartilage, by "
        f"the model '{record['settings']['model']}'; cartilage {_segmented(record)}."
    )
    page.notes(record["warnings"])
    page.section("Regions")
    page.table(pair_rows(rows) if changed else rows, PAIR_COLUMNS if changed else REGION_COLUMNS, FORMATS)
    if changed:
        _write_change(page, record["change"], pictures, clusters)
    for place in range(len(times)):
        page.section(f"Time point {place + 1}" if changed else "Maps")
        page.picture(pictures[f"unrolled_{place + 1}"], _UNROLLED)
        page.picture(pictures[f"overlay_{place + 1}"], _overlay_caption(record["time_points"][place]["echo_times_ms"]))
    page.section("What was measured")
    page.table(_facts(record))
    page.section("Settings")
    page.table([{"setting": f"t2.{name}", "value": str(value)} for name, value in record["settings"].items()])
    page.footer("  ".join(f"{name} {number}" for name, number in record["versions"].items()))
    page.write(output / PAGE)


_UNROLLED = (
    "Cartilage unrolled: slices from side to side, angles around the femur from front to back. Deep is the half nearer "
    "to bone. LA to MP: lateral and medial, anterior, central and posterior. All pictures count slices from the "
    "patient's right, from 0."
)


def _overlay_caption(echo_times_ms: Sequence[float]) -> str:
    time_ms = echo_times_ms[min(_SHOWN_ECHO, len(echo_times_ms) - 1)]
    return f"T2 of the cartilage over the echo at {time_ms:g} ms; the front is on the left."


def draw(folder: Path, times: Sequence[TimePoint], changed: Change | None) -> dict[str, Path]:
    """All pictures as PNG files, by name; both time points have one scale."""
    limits = common_limits([each for time in times for each in (time.projection.deep, time.projection.superficial)])
    bins = bins_with_cartilage([time.regions for time in times])
    figures = {}
    for place, time in enumerate(times, start=1):
        layers = {"all": time.projection.mean, "deep": time.projection.deep, "superficial": time.projection.superficial}
        figures[f"unrolled_{place}"] = unrolled_figure(layers, time.regions, "T2 (ms)", limits=limits, bins=bins)
        figures[f"overlay_{place}"] = _overlay(time, limits)
    if changed:
        maps = {"time 2 minus time 1, clusters outlined": changed.difference_ms}
        figures["change"] = unrolled_figure(
            maps, times[0].regions, "change (ms)", clusters=changed.clusters.label_map, signed=True, bins=bins
        )
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        save_figure(figure, paths[name], dpi=_DPI)
    return paths


def _overlay(time: TimePoint, limits: tuple[float, float]) -> Any:
    import SimpleITK as sitk

    images = time.series.stack.images
    image = sitk.GetArrayViewFromImage(images[min(_SHOWN_ECHO, len(images) - 1)])
    plane = plane_of(time.grid.GetDirection())
    spacing_mm = plane.turn_spacing(time.series.spacing_mm)
    return t2_overlay_figure(plane.turn(image), plane.turn(time.t2_ms), spacing_mm, limits=limits)


def _segmented(record: Mapping[str, Any]) -> str:
    model = record["model"]
    return "as given in a mask" if model is None else f"found by {model['folder']}, label {model['label']}"


def pair_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Both time points of every region side by side."""
    by_key = {(row["time_point"], row["region"]): row for row in rows}
    found = []
    for region in REGIONS:
        one, two = by_key[FIRST, region], by_key[SECOND, region]
        sides = {"first": one, "second": two}
        row = {"region": region, "change_ms": two["t2_mean_ms"] - one["t2_mean_ms"]}
        for name, each in sides.items():
            row |= {f"{name}_ms": each["t2_mean_ms"], f"{name}_sd_ms": each["t2_sd_ms"]}
            row[f"{name}_voxels"] = each["t2_voxels"]
        found.append(row)
    return found


def _write_change(
    page: HtmlPage, figures: Mapping[str, Any], pictures: Mapping[str, Path], clusters: Sequence[Row]
) -> None:
    page.section("Change")
    page.picture(
        pictures["change"],
        "Change on the unrolled cartilage of the first time point; red rises. Numbers are those of the table.",
    )
    mean, sd, covered = (figures[name] for name in ("mean_ms", "sd_ms", "cluster_percent_of_plate"))
    page.text(
        f"The second time point was moved by {figures['shift_slices']:g} slices and {figures['shift_degrees']:g} "
        f"degrees (similarity {figures['similarity']:.2f} of 1). Mean change of the plate: {_shown(mean, '+.1f')} ms, "
        f"SD {_shown(sd)} ms. Clusters, where T2 rises by more than mean and SD together, cover {_shown(covered)} % of "
        "it. Noise alone makes clusters too: compare with knees measured alike, not with zero."
    )
    page.table(clusters, CLUSTER_COLUMNS, FORMATS)


def _shown(value: float, specification: str = ".1f") -> str:
    return format(value, specification) if np.isfinite(value) else NOTHING


def _facts(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """A column for each time point."""
    shown = {
        "series": lambda time: time["source"],
        "subject": lambda time: time["subject"] or NOTHING,
        "visit": lambda time: time["visit"] or NOTHING,
        "echo times (ms)": lambda time: ", ".join(f"{echo:g}" for echo in time["echo_times_ms"]),
        "slices": lambda time: str(time["slices"]),
        "voxel size (mm)": lambda time: " x ".join(f"{size:.3g}" for size in time["spacing_mm"]),
        "noise (sigma)": lambda time: NOTHING if time["sigma"] is None else f"{time['sigma']:.3g}",
        "fit of the cartilage (voxels)": lambda time: _listed(time["quality"]),
        "refinement (voxels)": lambda time: _listed(
            {name: value for name, value in time["refinement"].items() if value and name != "small_slices"}
        ),
        "median standard error of T2 (ms)": lambda time: _shown(time["standard_error_median_ms"]),
        "medial and lateral parted at": lambda time: time["parted_at"],
    }
    times = record["time_points"]
    return [
        {"": name, **{f"time point {place}": get(time) for place, time in enumerate(times, start=1)}}
        for name, get in shown.items()
    ]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in counts.items())
