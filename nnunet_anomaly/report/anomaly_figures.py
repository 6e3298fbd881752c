"""Pictures of how well anomaly maps find lesions: curves, figures against lesion and training-set size, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from nnunet_anomaly.evaluation.anomaly import DetectionCurve
from nnunet_anomaly.evaluation.lesions import Froc, third_order_fit
from nnunet_anomaly.report.figures import METHOD_COLOURS, PANEL_INCHES

LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
MOST_POINTS = 2000  # of a curve: more cannot be seen


def precision_recall_figure(curves: Mapping[str, DetectionCurve]) -> Figure:
    """Precision over recall of every method, at the thresholds of its curve, in steps as average precision sums them.

    Methods without a lesion voxel have no line.
    """
    figure, ax = _axes("recall (share of lesion voxels found)", "precision")
    for place, (name, curve) in enumerate(curves.items()):
        if curve.lesion_voxels:
            recall = curve.true_positives / curve.lesion_voxels
            precision = curve.true_positives / (curve.true_positives + curve.false_positives)
            kept = np.unique(np.linspace(0, recall.size - 1, min(MOST_POINTS, recall.size)).astype(int))
            ax.step(np.append(0, recall[kept]), precision[np.append(kept[0], kept)], label=name, **_style(place))
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    return _with_legend(figure, ax)


def froc_figure(curves: Mapping[str, Froc], title: str = "") -> Figure:
    """Sensitivity over false positives a case, of every method; methods without a lesion have no line.

    Dots are thresholds. The line is the highest sensitivity with at most so many false positives: dots below
    it are of thresholds that find less with more components.
    """
    figure, ax = _axes("false-positive components a case", "sensitivity (share of lesions hit)")
    for place, (name, curve) in enumerate(curves.items()):
        if curve.n_lesions:
            style = _style(place)
            alarms = np.append(0.0, np.sort(curve.false_positives_per_case))
            ax.step(alarms, [curve.sensitivity_at(rate) for rate in alarms], where="post", label=name, **style)
            ax.plot(curve.false_positives_per_case, curve.sensitivity, ".", color=style["color"], alpha=0.6)
    ax.set_xscale("symlog", linthresh=0.1)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlim(left=0)
    ax.set_ylim(0, 1.02)
    ax.set_title(title)
    return _with_legend(figure, ax)


def lesion_size_figure(points: Mapping[str, tuple[np.ndarray, np.ndarray]], ylabel: str) -> Figure:
    """A figure of every subject over the volume of its lesions in mm^3, with a third-order fit (Bengs 2021, figure 4).

    Args:
        points: volumes and values by method; those that are not finite are left out.
        ylabel: name of the values.
    """
    figure, ax = _axes("volume of lesions in cm³", ylabel)
    for place, (name, (volumes, values)) in enumerate(points.items()):
        style = _style(place)
        ax.scatter(volumes / 1000, values, s=14, alpha=0.35, color=style["color"], linewidths=0)
        fit = third_order_fit(volumes, values)
        if fit is None:
            ax.plot([], [], label=f"{name} (too few for a fit)", **style)
        else:
            grid = np.linspace(fit.domain[0], fit.domain[1], 200)
            ax.plot(grid / 1000, fit(grid), label=name, **style)
    ax.set_ylim(-0.02, 1)
    return _with_legend(figure, ax)


def training_size_figure(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], ylabel: str) -> Figure:
    """A figure over the size of the training set, a line for each kind of method (Bengs 2021, figure 5)."""
    figure, ax = _axes("size of the training set", ylabel)
    for place, (name, (sizes, values)) in enumerate(lines.items()):
        order = np.argsort(sizes)
        ax.plot(np.asarray(sizes)[order], np.asarray(values)[order], marker="o", label=name, **_style(place))
    return _with_legend(figure, ax)


def size_groups_figure(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Figure:
    """Means by groups of lesions by size, a panel for each unit, a line for each method and figure (Qin 2024, fig. 3).

    Args:
        rows: with unit, method, group (from 1), size (name of the group), metric, mean. A mean that is NaN is a gap.
        titles: of the panels, by unit; a unit without a row has none. At least one has a row.
    """
    units = [unit for unit in titles if any(row["unit"] == unit for row in rows)]
    figure = Figure(figsize=(4.6 * len(units), 4.8), layout="constrained", dpi=150)
    looks: dict[str, dict[str, Any]] = {
        method: {
            "color": METHOD_COLOURS[place % len(METHOD_COLOURS)],
            "marker": MARKERS[place // len(METHOD_COLOURS) % len(MARKERS)],
        }
        for place, method in enumerate(dict.fromkeys(row["method"] for row in rows))
    }
    lines: dict[str, Any] = {}
    for ax, unit in zip(figure.subplots(1, len(units), squeeze=False)[0], units, strict=True):
        found = [row for row in rows if row["unit"] == unit]
        names = dict(sorted({row["group"]: row["size"] for row in found}.items()))
        styles = dict(zip(dict.fromkeys(row["metric"] for row in found), LINE_STYLES, strict=False))
        lines |= styles if len(styles) > 1 else {}  # of a single figure the title speaks
        for metric, style in styles.items():
            for method, look in looks.items():
                means = {
                    row["group"]: row["mean"] for row in found if (row["method"], row["metric"]) == (method, metric)
                }
                ax.plot(list(names), [means.get(group, np.nan) for group in names], linestyle=style, **look)
        texts = [name.replace("above ", "above\n").replace(" to ", " to\n", 1) for name in names.values()]
        ax.set_xticks(list(names), texts, fontsize="x-small")
        ax.set_ylim(-0.02, 1.02)
        ax.set_title(titles[unit], fontsize="medium")
        ax.grid(alpha=0.3)
    handles = [Line2D([], [], label=method, **look) for method, look in looks.items()]
    handles += [Line2D([], [], color="0.3", linestyle=style, label=metric) for metric, style in lines.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 3 * len(units)), fontsize="small"
    )
    return figure


@dataclass(frozen=True, eq=False)
class Example:
    """One slice of one case, all arrays of the same 2-D shape, turned as it is to be seen.

    Attributes:
        name: of the case, with what is to be said of it.
        image: what the network saw.
        reconstruction: what it made of it; None where it was not kept.
        score: anomaly map.
        lesion: lesion mask, bool.
        aspect: height of a pixel by its width.
    """

    name: str
    image: np.ndarray
    reconstruction: np.ndarray | None
    score: np.ndarray
    lesion: np.ndarray
    aspect: float = 1.0


def example_figure(examples: Sequence[Example], title: str = "") -> Figure:
    """A row for each case: input, output (where there is one), difference, its heat map, lesions (Bengs 2021, fig. 7).

    Image and reconstruction have each a window of their own, between the 0.5th and 99.5th percentile where the image is
    not 0, since reconstructions are on the normalised scale and images may not be. Difference and heat map run from 0
    (or its lowest value) to its 99.9th percentile. The contour of the lesion is not drawn over the difference, so that
    it can be judged without.

    Args:
        examples: at least one; a column that no case has is left out.
        title: above the figure.
    """
    with_output = any(example.reconstruction is not None for example in examples)
    names = ["input", *(["output"] if with_output else []), "difference", "heat map", "lesions"]
    ratio = max(example.image.shape[0] * example.aspect / example.image.shape[1] for example in examples)
    size = (PANEL_INCHES * len(names), PANEL_INCHES * min(max(ratio, 0.4), 2.0) * len(examples) + 0.6)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    for row, example in zip(figure.subplots(len(examples), len(names), squeeze=False), examples, strict=True):
        for ax, name in zip(row, names, strict=True):
            ax.set_xticks([])
            ax.set_yticks([])
            _draw(ax, name, example)
        row[0].set_ylabel(example.name, fontsize="small")
    for ax, name in zip(figure.axes, names, strict=False):
        ax.set_title(name)
    figure.suptitle(title, fontweight="bold")
    return figure


def _draw(ax: Axes, name: str, example: Example) -> None:
    top = max(float(np.percentile(example.score, 99.9)), float(example.score.min()) + 1e-6, 1e-6)
    low = min(0.0, float(example.score.min()))
    if name in ("input", "output"):
        shown = example.image if name == "input" else example.reconstruction
        if shown is None:
            ax.set_axis_off()
        else:
            body = shown[example.image != 0]
            window = np.percentile(body, [0.5, 99.5]) if body.size else np.array([0.0, 1.0])
            ax.imshow(shown, cmap="gray", vmin=window[0], vmax=window[1], aspect=example.aspect)
    elif name == "lesions":
        ax.imshow(example.lesion, cmap="gray", vmin=0, vmax=1, aspect=example.aspect)
    else:
        colours = "gray" if name == "difference" else "inferno"
        ax.imshow(example.score, cmap=colours, vmin=low, vmax=top, aspect=example.aspect)


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 4.5), layout="constrained", dpi=150)
    ax = figure.subplots()
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
    return figure, ax


def _with_legend(figure: Figure, ax: Axes) -> Figure:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="small")
    return figure


def _style(place: int) -> dict[str, Any]:
    """Colour of a method; when the colours are used up, with another line."""
    return {
        "color": METHOD_COLOURS[place % len(METHOD_COLOURS)],
        "linestyle": LINE_STYLES[place // len(METHOD_COLOURS) % len(LINE_STYLES)],
    }
