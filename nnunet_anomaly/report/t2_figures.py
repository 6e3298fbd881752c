"""Pictures of T2 in slices and on unrolled cartilage, and of the agreement of two readers in all regions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from nnunet_anomaly.evaluation.agreement import LIMITS_SD
from nnunet_anomaly.geometry import bounding_box
from nnunet_anomaly.relaxometry.subregions import PARTS, SIDES, Subregions
from nnunet_anomaly.report.figures import ANOMALY_COLOUR, METHOD_COLOURS

Pairs = tuple[np.ndarray, np.ndarray]
_COLUMNS = 6
# lines and names are seen on every colour
_HALO = [withStroke(linewidth=3, foreground="white")]
_SHADE = [withStroke(linewidth=2, foreground="0.25")]


def unrolled_figure(
    maps: Mapping[str, np.ndarray],
    regions: Subregions,
    unit: str,
    *,
    clusters: np.ndarray | None = None,
    signed: bool = False,
    limits: tuple[float, float] | None = None,
    bins: slice | None = None,
    title: str = "",
) -> Figure:
    """Maps of unrolled cartilage, one below the other, with the borders of the regions.

    Rows are slices, the lateral side always above; columns are angles, the front on the left.

    Args:
        maps: (slices, bins) by their heading, NaN where there is no cartilage; all have one scale.
        regions: of the cartilage.
        unit: what the colours mean.
        clusters: label map (slices, bins), whose clusters are outlined and have their number.
        signed: the scale is even around 0, as for change; else it goes from the 2nd to the 98th percentile.
        limits: of the scale, where they are to be others.
        bins: to be shown (default: those with cartilage).
        title: above the figure.
    """
    parts = regions.parts_of_bins
    rows = np.flatnonzero(parts.any(axis=1))
    edges = regions.unrolled.bin_starts_degrees
    shown_bins = bins or bins_with_cartilage([regions])
    first, last = shown_bins.start, shown_bins.stop
    top, bottom = (rows.min(), rows.max() + 1) if rows.size else (0, parts.shape[0])
    # slices run from the patient's right to the left
    lateral_first = regions.side == "right"
    width = regions.unrolled.bin_degrees
    # a slice lies around its number
    extent = (edges[first], edges[last - 1] + width, bottom - 0.5, top - 0.5)
    low, high = limits or common_limits(maps.values())
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    figure = Figure(figsize=(8, 0.6 + 2.6 * len(maps)), layout="compressed", dpi=150)
    panels = figure.subplots(len(maps), 1, squeeze=False)[:, 0]
    for ax, (name, values) in zip(panels, maps.items(), strict=True):
        shown = ax.imshow(
            values[top:bottom, first:last],
            cmap="RdBu_r" if signed else "viridis",
            vmin=low,
            vmax=high,
            aspect="auto",
            extent=extent,
            interpolation="nearest",
        )
        ax.set_facecolor("0.8")  # so that white borders are seen where there is no cartilage
        _borders(ax, parts, edges, width, "black" if signed else "white")
        if clusters is not None:
            for number in range(1, int(clusters.max(initial=0)) + 1):
                _outline(ax, clusters == number, edges, width, "black", 1.6)
                row, column = np.argwhere(clusters == number)[0]  # the middle may have a region's name
                _write(ax, float(edges[column] + width / 2), float(row), str(number), "black")
        ax.set_title(name, loc="left")
        ax.locator_params(axis="y", integer=True)
        ax.set_ylabel("slice, from lateral" if lateral_first else "slice, to lateral")
        if not lateral_first:
            ax.invert_yaxis()
        figure.colorbar(shown, ax=ax, label=unit)
    panels[-1].set_xlabel("angle in degrees: front, below (0), back")
    if title:
        figure.suptitle(title, fontweight="bold")
    return figure


def bins_with_cartilage(regions: Sequence[Subregions]) -> slice:
    """Bins from the first to the last with cartilage in any of these; all where none has any."""
    found = np.concatenate([np.nonzero(each.parts_of_bins)[1] for each in regions])
    return slice(found.min(), found.max() + 1) if found.size else slice(0, regions[0].parts_of_bins.shape[1])


def common_limits(maps: Iterable[np.ndarray]) -> tuple[float, float]:
    """The 2nd and the 98th percentile of all values of some maps, NaN left out; 0 and 1 where there is none."""
    values = np.concatenate([each[np.isfinite(each)] for each in maps] or [np.zeros(0)])
    low, high = np.percentile(values, [2, 98]).tolist() if values.size else (0.0, 1.0)
    return low, high


def t2_overlay_figure(
    image: np.ndarray,
    t2_ms: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    limits: tuple[float, float] | None = None,
    title: str = "",
    n_slices: int = 6,
    margin_mm: float = 12.0,
) -> Figure:
    """T2 in colours over an echo, in slices spread over all that have cartilage, cut to it.

    Args:
        image: 3-D, axis 0 over slices, rows downwards, columns to the right (``planes.plane_of`` turns other arrays).
        t2_ms: of the same shape, NaN outside the cartilage; without any the middle slice is shown.
        spacing_mm: voxel size along the three axes.
        limits: of the colours (default: ``common_limits``).
        title: above the figure.
        n_slices: at most so many.
        margin_mm: kept around the cartilage.
    """
    inside = np.isfinite(t2_ms)
    with_cartilage = np.flatnonzero(inside.any(axis=(1, 2)))
    if not with_cartilage.size:
        with_cartilage = np.array([len(image) // 2])
    # the middle one of each of so many equal parts
    count = min(n_slices, with_cartilage.size)
    chosen = with_cartilage[((np.arange(count) + 0.5) * with_cartilage.size / count).astype(int)]
    box = bounding_box(inside.any(axis=0), [round(margin_mm / size) for size in spacing_mm[1:]])
    rows, columns = box or (slice(0, image.shape[1]), slice(0, image.shape[2]))
    aspect = float(spacing_mm[1] / spacing_mm[2])
    ratio = min(max((rows.stop - rows.start) * aspect / (columns.stop - columns.start), 0.4), 2.0)
    low, high = limits or common_limits([t2_ms])
    window = np.percentile(image[chosen], [0.5, 99.5])
    lines = -(-count // 3)
    figure = Figure(figsize=(9, 0.3 + (0.3 + 2.6 * ratio) * lines), layout="compressed", dpi=150)
    panels = figure.subplots(lines, 3, squeeze=False).ravel()
    for ax in panels:
        ax.axis("off")
    for ax, index in zip(panels, chosen, strict=False):
        ax.imshow(image[index, rows, columns], cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
        shown = ax.imshow(
            t2_ms[index, rows, columns], cmap="viridis", vmin=low, vmax=high, aspect=aspect, interpolation="nearest"
        )
        ax.set_title(f"slice {index}", fontsize="small")
    figure.colorbar(shown, ax=panels.tolist(), label="T2 (ms)", shrink=0.6)
    if title:
        figure.suptitle(title, fontweight="bold")
    return figure


def _borders(ax: Axes, parts: np.ndarray, edges: np.ndarray, width: float, colour: str) -> None:
    for number in range(1, len(SIDES) * len(PARTS) + 1):
        inside = parts == number
        if not inside.any():
            continue
        _outline(ax, inside, edges, width, colour, 0.8)
        name = f"{SIDES[(number - 1) // len(PARTS)][0]}{PARTS[(number - 1) % len(PARTS)][0]}".upper()
        rows, columns = np.nonzero(inside)
        _write(ax, float(edges[columns].mean() + width / 2), float(rows.mean()), name, colour)


def _write(ax: Axes, degrees: float, row: float, name: str, colour: str) -> None:
    around = _SHADE if colour == "white" else _HALO
    ax.text(degrees, row, name, color=colour, ha="center", va="center", fontweight="bold", path_effects=around)


def _outline(ax: Axes, inside: np.ndarray, edges: np.ndarray, width: float, colour: str, thickness: float) -> None:
    """The edge of a set of bins, along the bins; a thick one is seen on every colour."""
    around = _HALO if thickness > 1 else []
    framed = np.pad(inside, 1)
    rows, columns = np.nonzero(framed[1:] != framed[:-1])
    degrees = edges[0] + (columns - 1) * width
    ax.hlines(rows - 0.5, degrees, degrees + width, colors=colour, linewidths=thickness, path_effects=around)
    rows, columns = np.nonzero(framed[:, 1:] != framed[:, :-1])
    degrees = edges[0] + columns * width
    ax.vlines(degrees, rows - 1.5, rows - 0.5, colors=colour, linewidths=thickness, path_effects=around)


def dice_surface_figure(
    dice: np.ndarray, probabilities: Sequence[float], areas_mm2: Sequence[float], best: tuple[float, float]
) -> Figure:
    """Dice of every combination of two thresholds as colours, with a cross at the best one.

    Args:
        dice: (probabilities, areas).
        probabilities: of the rows of ``dice``, shown from left to right.
        areas_mm2: of its columns, shown upwards.
        best: probability and area.
    """
    figure = Figure(figsize=(8, 4.6), layout="compressed", dpi=110)
    ax = figure.subplots()
    shown = ax.imshow(np.asarray(dice).T, origin="lower", aspect="auto", cmap="viridis")
    ax.set_xticks(range(len(probabilities)), [f"{value:g}" for value in probabilities], rotation=90, fontsize="small")
    ax.set_yticks(range(len(areas_mm2)), [f"{value:g}" for value in areas_mm2], fontsize="small")
    ax.plot(list(probabilities).index(best[0]), list(areas_mm2).index(best[1]), "x", color=ANOMALY_COLOUR, ms=12, mew=3)
    ax.set_xlabel("probability from which on voxels are cartilage")
    ax.set_ylabel("smallest area of a slice (mm²)")
    figure.colorbar(shown, ax=ax, label="mean Dice")
    return figure


def bland_altman_figure(pairs: Mapping[str, Pairs], unit: str, title: str = "") -> Figure:
    """Prediction minus reference against the mean of both, a panel a region, with bias and limits of agreement.

    Args:
        pairs: reference and prediction, finite, by region; a region without pairs has an empty panel. Limits need two.
        unit: of the values.
        title: above the figure.
    """

    def draw(ax: Axes, reference: np.ndarray, prediction: np.ndarray) -> None:
        difference = prediction - reference
        ax.plot((reference + prediction) / 2, difference, ".", color=METHOD_COLOURS[1])
        ax.axhline(0, color="grey", linewidth=0.5)
        if difference.size:
            ax.axhline(difference.mean(), color="black", linewidth=1)
        if difference.size > 1:
            for sign in (-1, 1):
                limit = difference.mean() + sign * LIMITS_SD * difference.std(ddof=1)
                ax.axhline(limit, color=METHOD_COLOURS[4], linewidth=1, linestyle="--")

    return _panels(pairs, draw, f"mean of both ({unit})", f"prediction - reference ({unit})", title)


def scatter_figure(pairs: Mapping[str, Pairs], unit: str, title: str = "") -> Figure:
    """Prediction against reference, a panel a region, with the line on which both are equal.

    Arguments as those of ``bland_altman_figure``.
    """

    def draw(ax: Axes, reference: np.ndarray, prediction: np.ndarray) -> None:
        ax.plot(reference, prediction, ".", color=METHOD_COLOURS[1])
        if reference.size:
            both = np.concatenate([reference, prediction])
            ends = [both.min(), both.max()]
            ax.plot(ends, ends, color="grey", linewidth=0.8)

    return _panels(pairs, draw, f"reference ({unit})", f"prediction ({unit})", title)


def _panels(
    pairs: Mapping[str, Pairs], draw: Callable[[Axes, np.ndarray, np.ndarray], None], x: str, y: str, title: str
) -> Figure:
    rows = -(-len(pairs) // _COLUMNS)
    height = 1.9 * rows + 1.0
    figure = Figure(figsize=(2.1 * _COLUMNS, height), dpi=100)
    # placed by hand: to find a layout for 27 panels takes several times as long as to draw them
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    figure.subplots_adjust(0.06, 0.6 / height, 0.99, 1 - 0.6 / height, 0.3, 0.45)
    for ax, (region, (reference, prediction)) in zip(panels, pairs.items(), strict=False):
        draw(ax, reference, prediction)
        ax.set_title(region, fontsize="small")
        ax.tick_params(labelsize="x-small")
        ax.locator_params(nbins=4)
    for ax in panels[len(pairs) :]:
        ax.set_visible(False)
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")
    if title:
        figure.suptitle(title, fontweight="bold")
    return figure
