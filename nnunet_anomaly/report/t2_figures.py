"""Pictures of unrolled cartilage, and of the agreement of two readers in all regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunet_anomaly.evaluation.agreement import LIMITS_SD
from nnunet_anomaly.relaxometry.subregions import PARTS, SIDES, Subregions
from nnunet_anomaly.report.figures import ANOMALY_COLOUR, METHOD_COLOURS

Pairs = tuple[np.ndarray, np.ndarray]
_COLUMNS = 6


def unrolled_figure(
    maps: Mapping[str, np.ndarray],
    regions: Subregions,
    unit: str,
    *,
    clusters: np.ndarray | None = None,
    signed: bool = False,
    title: str = "",
) -> Figure:
    """Maps of unrolled cartilage, one below the other, with the borders of the regions.

    Rows are slices, the lateral side always above; columns are angles, the front on the left.

    Args:
        maps: (slices, bins) by their heading, NaN where there is no cartilage; all have one scale.
        regions: of the cartilage.
        unit: what the colours mean.
        clusters: label map (slices, bins), whose clusters are outlined.
        signed: the scale is even around 0, as for change; else it goes from the 2nd to the 98th percentile.
        title: above the figure.
    """
    parts = regions.parts_of_bins
    rows, columns = np.nonzero(parts)
    edges = regions.unrolled.bin_starts_degrees
    first, last = (columns.min(), columns.max() + 1) if columns.size else (0, parts.shape[1])
    top, bottom = (rows.min(), rows.max() + 1) if rows.size else (0, parts.shape[0])
    # slices run from the patient's right to the left
    lateral_first = regions.side == "right"
    width = regions.unrolled.bin_degrees
    extent = (edges[first], edges[last - 1] + width, float(bottom), float(top))
    values = np.concatenate([each[np.isfinite(each)] for each in maps.values()])
    low, high = np.percentile(values, [2, 98]).tolist() if values.size else (0.0, 1.0)
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
        _borders(ax, parts, edges, width, "black" if signed else "white")
        if clusters is not None:
            for number in range(1, int(clusters.max(initial=0)) + 1):
                _outline(ax, clusters == number, edges, width, ANOMALY_COLOUR, 1.6)
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


def _borders(ax: Axes, parts: np.ndarray, edges: np.ndarray, width: float, colour: str) -> None:
    for number in range(1, len(SIDES) * len(PARTS) + 1):
        inside = parts == number
        if not inside.any():
            continue
        _outline(ax, inside, edges, width, colour, 0.8)
        name = f"{SIDES[(number - 1) // len(PARTS)][0]}{PARTS[(number - 1) % len(PARTS)][0]}".upper()
        rows, columns = np.nonzero(inside)
        ax.text(
            float(edges[columns].mean() + width / 2),
            float(rows.mean() + 0.5),
            name,
            color=colour,
            ha="center",
            va="center",
            fontweight="bold",
        )


def _outline(ax: Axes, inside: np.ndarray, edges: np.ndarray, width: float, colour: str, thickness: float) -> None:
    """The edge of a set of bins, along the bins."""
    framed = np.pad(inside, 1)
    rows, columns = np.nonzero(framed[1:] != framed[:-1])
    degrees = edges[0] + (columns - 1) * width
    ax.hlines(rows, degrees, degrees + width, colors=colour, linewidths=thickness)
    rows, columns = np.nonzero(framed[:, 1:] != framed[:, :-1])
    ax.vlines(edges[0] + columns * width, rows - 1, rows, colors=colour, linewidths=thickness)


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
