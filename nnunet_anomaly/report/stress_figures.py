"""Pictures of the stress test: figures of all models against severity, and what they made of a corrupted case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from nnunet_anomaly.evaluation.stress import METRICS, UNCORRUPTED
from nnunet_anomaly.geometry import bounding_box
from nnunet_anomaly.report.figures import (
    ANOMALY_COLOUR,
    METHOD_COLOURS,
    PANEL_INCHES,
    REFERENCE_COLOUR,
    save_figure,
    telling_slices,
)

# all are seen on white and on dark images
MODEL_COLOURS = (*METHOD_COLOURS, "#0072B2", "#999933", "#AA4499", "#8C564B", "#7F7F7F")
MARKERS = "os^DvPX<>p"
WRONG_COLOUR = "#F0E442"
CURVE_COLUMNS, CASE_COLUMNS = 4, 5  # panels side by side
MARGIN = 0.25  # around the region, as a share of its longer side
_SHADE = [withStroke(linewidth=2.6, foreground="0.15")]  # so that white is seen on bright tissue
_VARIANT = ", "  # "plain, cleaned" is a variant of "plain"


def model_styles(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of every model, by its place among the models.

    A variant of another model, named as that one with a comma and more behind it, has its colour and a broken line.
    """
    bases = [name for name in models if _base(name, models) == name]
    styles = {}
    for name in models:
        place = bases.index(_base(name, models))
        line = "-" if place < len(MODEL_COLOURS) else ":"
        styles[name] = {
            "color": MODEL_COLOURS[place % len(MODEL_COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": line if name in bases else "--",
        }
    return styles


def _base(name: str, models: Sequence[str]) -> str:
    return min((other for other in models if name == other or name.startswith(other + _VARIANT)), key=len)


def _literal(name: str) -> str:
    """A name as matplotlib shows it as it is: two dollar signs would be mathematics."""
    return name.replace("$", r"\$")


# ---- figures against severity


def severity_figure(points: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """A panel for each corruption, in it a line for each model with its 95 % band against severity.

    All panels have one scale, which follows the means: a wide band may leave the panel. A hollow point is a mean
    without the cases in which a distance is infinite; a point without any case is a gap.

    Args:
        points: rows of ``evaluation.stress.curves`` of one structure; those of other metrics are left out.
        metric: one of ``evaluation.stress.METRICS``.

    Raises:
        ValueError: no corruption.
    """
    points = [row for row in points if row["metric"] == metric and row["corruption"] != UNCORRUPTED]
    corruptions = list(dict.fromkeys(row["corruption"] for row in points))
    if not corruptions:
        raise ValueError(f"no corruption among the points of {metric}")
    styles = model_styles(list(dict.fromkeys(row["model"] for row in points)))
    columns = min(len(corruptions), CURVE_COLUMNS)
    lines = math.ceil(len(corruptions) / columns)
    handles = _curve_handles(points, styles)
    # a figure of one panel is as wide as one of two, so that names of models have room
    width = 2.7 * max(columns, 2)
    longest = max(len(str(handle.get_label())) for handle in handles)
    legend_columns = max(1, min(len(handles), int(width / (0.75 + 0.075 * longest))))
    legend_lines = math.ceil(len(handles) / legend_columns)
    panel_height = 2.2 if len(styles) <= 5 else 2.9
    size = (width + 0.4, panel_height * lines + 0.7 + 0.22 * legend_lines)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, corruption in zip(panels, corruptions, strict=False):
        _draw_curves(ax, [row for row in points if row["corruption"] == corruption], styles)
        ax.set_title(corruption.replace("_", " "), fontsize="medium")
    for ax in panels[len(corruptions) :]:
        ax.set_visible(False)
    for ax in panels[max(0, len(corruptions) - columns) : len(corruptions)]:
        ax.tick_params(labelbottom=True)  # above an empty place there is no other axis
    panels[0].set_ylim(*_limits(points, metric))
    figure.supxlabel("severity", fontsize="medium")
    figure.supylabel(METRICS[metric].title, fontsize="medium")
    # long enough to tell a broken line from a whole one
    known: dict[str, Any] = {"fontsize": "small", "frameon": False, "handlelength": 3.2}
    figure.legend(handles=handles, loc="outside upper center", ncols=legend_columns, **known)
    return figure


def _curve_handles(points: Sequence[Mapping[str, Any]], styles: Mapping[str, Mapping[str, Any]]) -> list[Line2D]:
    handles = [Line2D([], [], markersize=4, label=_literal(name), **style) for name, style in styles.items()]
    if any(_is_partial(row) for row in points):
        hollow: dict[str, Any] = {
            "marker": "o",
            "markersize": 4,
            "linestyle": "",
            "markerfacecolor": "white",
            "color": "0.3",
        }
        handles.append(Line2D([], [], label="hollow: empty ones left out", **hollow))
    return handles


def _is_partial(row: Mapping[str, Any]) -> bool:
    """Whether a mean is one of fewer cases than there are since a distance is infinite in the others."""
    return bool(row["n"] and row["n_undefined"] and row["metric"].endswith("_mm"))


def _draw_curves(ax: Axes, points: Sequence[Mapping[str, Any]], styles: Mapping[str, Mapping[str, Any]]) -> None:
    opacity = min(0.2, 0.6 / len(styles))  # of many bands none hides the lines
    for name, style in reversed(list(styles.items())):  # the first model lies above the others
        rows = [row for row in points if row["model"] == name and math.isfinite(row["mean"])]
        x = [row["severity"] for row in rows]
        low, high = ([row[key] for row in rows] for key in ("ci95_low", "ci95_high"))
        ax.fill_between(x, low, high, color=style["color"], alpha=opacity, linewidth=0)
        ax.plot(x, [row["mean"] for row in rows], linewidth=1.5, markersize=4, **style)
        partial = [row for row in rows if _is_partial(row)]
        ax.plot(
            [row["severity"] for row in partial],
            [row["mean"] for row in partial],
            **{**style, "linestyle": "", "markersize": 4, "markerfacecolor": "white"},
        )
    if not any(math.isfinite(row["mean"]) for row in points):
        ax.text(0.5, 0.5, "no value", transform=ax.transAxes, ha="center", va="center", color="0.4")
    ax.set_xlim(-0.03, 1.03)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    ax.grid(alpha=0.3)


def _limits(points: Sequence[Mapping[str, Any]], metric: str) -> tuple[float, float]:
    """Scale of all panels: the means, and as much of the bands as leaves the means two thirds of it."""
    means, lows, highs = (
        [row[key] for row in points if math.isfinite(row[key])] for key in ("mean", "ci95_low", "ci95_high")
    )
    if not means:
        return 0.0, 1.0
    low, high = min(means), max(means)
    span = max(high - low, 0.1 * high, 0.05)
    bottom = max(min([low, *lows]), low - 0.25 * span)
    top = min(max([high, *highs]), high + 0.25 * span)
    pad = 0.08 * span
    return max(bottom - pad, -pad), min(top + pad, METRICS[metric].largest + pad)


# ---- one corrupted case


def draw_case(
    path: Path,
    title: str,
    image: np.ndarray,
    spacing_mm: Sequence[float],
    original: np.ndarray,
    original_reference: np.ndarray,
    reference: np.ndarray,
    anomaly: np.ndarray,
    predictions: Mapping[str, np.ndarray],
) -> None:
    """Draw what the models made of a corrupted case, into a PNG file.

    A panel with the image as it was and its reference, one with the corrupted image, its anomaly and its reference,
    and one for each model with its prediction and what of it is wrong. Of a volume the slice is shown in which most
    voxels of all predictions are wrong. It is cut to the reference with a margin; grey values run from the 1st to the
    99th percentile of the original inside this box, in all panels alike. Arrays are drawn as they lie: rows downwards.

    Args:
        path: file to write.
        title: above the figure.
        image: corrupted, 2-D or 3-D.
        spacing_mm: voxel size along every axis. Slices of a volume are along its axis of one voxel, or else of the
            largest spacing, or else the first.
        original: image before the corruption.
        original_reference: label map of ``original``.
        reference: label map of ``image``.
        anomaly: bool; where it is everywhere, it has no outline.
        predictions: label map of every model for ``image``; may be empty.

    Raises:
        ValueError: an array has another shape than ``image``.
    """
    given = {"original": original, "original_reference": original_reference, "reference": reference, "anomaly": anomaly}
    for name, array in {**given, **predictions}.items():
        if array.shape != image.shape:
            raise ValueError(f"{name} has shape {array.shape}, image {image.shape}")
    axis = _slice_axis(image.shape, spacing_mm)
    image, original, original_reference, reference, anomaly = (
        _as_slices(array, axis) for array in (image, original, original_reference, reference, anomaly)
    )
    predictions = {name: _as_slices(array, axis) for name, array in predictions.items()}
    in_plane_mm = [float(size) for place, size in enumerate(spacing_mm) if place != axis]
    box = _picture_box((reference != 0) | (original_reference != 0), in_plane_mm)
    index = _telling_slice(reference, anomaly, predictions, box)
    figure, panels = _case_figure(2 + len(predictions), box, in_plane_mm)
    view = _View(index, box, in_plane_mm[0] / in_plane_mm[1], _window(original, box, original_reference != 0))
    view.show(panels[0], original, "uncorrupted")
    view.outlines(panels[0], original_reference, REFERENCE_COLOUR)
    view.show(panels[1], image, "corrupted")
    view.outlines(panels[1], reference, REFERENCE_COLOUR)
    if not anomaly.all():
        view.outlines(panels[1], anomaly, ANOMALY_COLOUR, linewidths=1.6)
    for ax, (name, style) in zip(panels[2:], model_styles(list(predictions)).items(), strict=True):
        view.show(ax, image, name)
        view.prediction(ax, predictions[name], reference, style["color"])
    _case_legend(figure, bool(predictions), not anomaly.all())
    where = "" if len(reference) == 1 else f", slice {index}"
    figure.suptitle(_literal(title + where), fontweight="bold")
    save_figure(figure, path)


def _slice_axis(shape: Sequence[int], spacing_mm: Sequence[float]) -> int | None:
    """None for a 2-D image."""
    if len(shape) == 2:
        return None
    if 1 in shape:
        return list(shape).index(1)
    # voxel sizes in files are rounded: a difference of a hundredth is none
    return int(np.argmax(spacing_mm)) if max(spacing_mm) > 1.01 * spacing_mm[0] else 0


def _as_slices(array: np.ndarray, axis: int | None) -> np.ndarray:
    return array[np.newaxis] if axis is None else np.moveaxis(array, axis, 0)


def _picture_box(region: np.ndarray, in_plane_mm: Sequence[float]) -> tuple[slice, slice]:
    """Rows and columns with the region of any slice and a margin; the whole plane without a region."""
    plane: np.ndarray = np.any(region, axis=0)
    tight = bounding_box(plane)
    if tight is None:
        return slice(0, plane.shape[0]), slice(0, plane.shape[1])
    margin_mm = MARGIN * max((part.stop - part.start) * mm for part, mm in zip(tight, in_plane_mm, strict=True))
    rows, columns = bounding_box(plane, [max(2, round(margin_mm / mm)) for mm in in_plane_mm]) or tight
    return rows, columns


def _telling_slice(
    reference: np.ndarray, anomaly: np.ndarray, predictions: Mapping[str, np.ndarray], box: tuple[slice, slice]
) -> int:
    """Most wrong voxels in the picture; else most of the anomaly in the region; else most of the region."""
    inside = (slice(None), *box)
    region = reference[inside] != 0
    wrong = sum(((labels != reference)[inside] for labels in predictions.values()), np.zeros(region.shape, int))
    for score in (wrong, region & anomaly[inside], region):
        if score.any():
            return telling_slices(score, 1)[0]
    return len(reference) // 2


def _window(original: np.ndarray, box: tuple[slice, slice], region: np.ndarray) -> tuple[float, float]:
    slices = np.flatnonzero(region.any(axis=(1, 2)))
    part = original[slices.min() : slices.max() + 1] if slices.size else original
    low, high = np.percentile(part[:, box[0], box[1]], [1, 99]).tolist()
    return low, high if high > low else low + 1


def _case_figure(count: int, box: tuple[slice, slice], in_plane_mm: Sequence[float]) -> tuple[Figure, list[Axes]]:
    lines = math.ceil(count / CASE_COLUMNS)
    columns = math.ceil(count / lines)
    height_mm, width_mm = ((part.stop - part.start) * mm for part, mm in zip(box, in_plane_mm, strict=True))
    ratio = min(max(height_mm / width_mm, 0.4), 2.0)
    # below and above each panel there are two lines of text
    size = (PANEL_INCHES * columns, (PANEL_INCHES * ratio + 0.6) * lines + 0.7)
    figure = Figure(figsize=size, layout="compressed", dpi=150)
    panels = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for ax in panels[count:]:
        ax.set_visible(False)
    return figure, panels[:count]


class _View:
    """One slice, cut, stretched and windowed alike in all panels."""

    def __init__(self, index: int, box: tuple[slice, slice], aspect: float, window: tuple[float, float]) -> None:
        self.index, self.box, self.aspect, self.window = index, box, aspect, window

    def cut(self, array: np.ndarray) -> np.ndarray:
        return np.asarray(array[self.index])[self.box]

    def show(self, ax: Axes, image: np.ndarray, name: str) -> None:
        low, high = self.window
        ax.imshow(self.cut(image), cmap="gray", vmin=low, vmax=high, aspect=self.aspect, interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.autoscale(False)  # outlines that reach over the edge must not widen a panel
        ax.set_title(fill(_literal(name), 24), fontsize="medium")

    def outlines(self, ax: Axes, labels: np.ndarray, colour: str, **style: Any) -> None:
        """The outline of every label in the slice."""
        part = self.cut(labels).astype(np.int64)
        for label in np.unique(part[part != 0]):
            framed = np.pad(part == label, 1).astype(float)  # closes outlines at the picture's edge
            rows, columns = (np.arange(size) - 1 for size in framed.shape)
            drawn = ax.contour(columns, rows, framed, levels=[0.5], colors=[colour], **{"linewidths": 1.2, **style})
            if colour == REFERENCE_COLOUR and "linestyles" not in style:
                drawn.set(path_effects=_SHADE)

    def prediction(self, ax: Axes, prediction: np.ndarray, reference: np.ndarray, colour: str) -> None:
        wrong = prediction != reference
        tint = np.zeros((*self.cut(wrong).shape, 4))
        tint[self.cut(wrong)] = to_rgba(WRONG_COLOUR, 0.45)
        ax.imshow(tint, aspect=self.aspect, interpolation="nearest")
        self.outlines(ax, prediction, colour, linewidths=1.8)
        self.outlines(ax, reference, REFERENCE_COLOUR, linewidths=0.8, linestyles="dashed")
        for side in ax.spines.values():
            side.set(color=colour, linewidth=2)
        text = f"{int(wrong[self.index].sum())} voxels wrong"
        if len(wrong) > 1:
            text += f" here, {int(wrong.sum())} in all"
        if not self.cut(prediction).any():
            text += "\nnothing found in this picture"
        ax.set_xlabel(text, fontsize="small")


def _case_legend(figure: Figure, with_models: bool, with_anomaly: bool) -> None:
    """On dark ground, as the outlines are light."""
    handles: list[Any] = [Line2D([], [], color=REFERENCE_COLOUR, linestyle="--", linewidth=1, label="reference")]
    if with_anomaly:
        handles.append(Line2D([], [], color=ANOMALY_COLOUR, linewidth=1.6, label="anomaly"))
    if with_models:
        handles.append(Patch(facecolor=WRONG_COLOUR, label="prediction is not the reference"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        fontsize="small",
        facecolor="#303030",
        labelcolor="white",
    )
