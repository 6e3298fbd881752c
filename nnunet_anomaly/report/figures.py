"""Pictures for reports: overlays of one case, and two methods compared over cases.

Figures are made without pyplot, so that no display and no global state is needed; save them with ``save_figure``.
Colours are those of Okabe and Ito, told apart by colour-blind readers too, without the two that vanish on dark images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from nnunet_anomaly.files import written_whole
from nnunet_anomaly.geometry import bounding_box

METHOD_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#D55E00")
LABEL_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00")
REFERENCE_COLOUR, LESION_COLOUR, ANOMALY_COLOUR = "#FFFFFF", "#56B4E9", "#D55E00"
PANEL_INCHES = 2.6


def telling_slices(score: np.ndarray, count: int, min_distance: int = 1) -> list[int]:
    """Slices (axis 0) with the highest sums, at least ``min_distance`` apart, in ascending order.

    Args:
        score: of any shape, not negative. Without anything above 0 the middle slice is taken.
        count: at most so many; slices with a sum of 0 are not taken.
        min_distance: in slices.
    """
    sums = score.reshape(len(score), -1).sum(axis=1, dtype=float)
    if not sums.any():
        return [len(score) // 2]
    chosen: list[int] = []
    for index in np.argsort(-sums, kind="stable"):
        if sums[index] <= 0 or len(chosen) == count:
            break
        if all(abs(index - other) >= min_distance for other in chosen):
            chosen.append(int(index))
    return sorted(chosen)


def overlay_figure(
    image: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    labels_by_method: Mapping[str, np.ndarray],
    reference: np.ndarray | None = None,
    lesion_mask: np.ndarray | None = None,
    error: np.ndarray | None = None,
    anomaly: np.ndarray | None = None,
    label_names: Mapping[int, str] | None = None,
    title: str = "",
    n_slices: int = 2,
    margin_mm: float = 8.0,
) -> Figure:
    """One case: a row for each telling slice, a column for the image, the reference, every method, error and lesions.

    Slices are chosen where methods and reference disagree most and where most of the lesion lies. The picture is cut to
    what is labelled.

    Args:
        image: 3-D, axis 0 over slices, rows downwards, columns to the right (``planes.plane_of`` turns other arrays).
        spacing_mm: voxel size along the three axes.
        labels_by_method: label map of every method, shape of ``image``; may be empty.
        reference: label map; its contours are drawn in every method's panel.
        lesion_mask: true lesion, bool.
        error: error map; drawn from its median to its 99.9th percentile inside the picture.
        anomaly: anomaly mask that was found, bool.
        label_names: name of each label for the legend; without it every label but 0 by number.
        title: above the figure.
        n_slices: at most so many rows.
        margin_mm: kept around what is labelled.

    Returns:
        Figure; without labels, reference and masks it shows the middle slice.

    Raises:
        ValueError: an array has another shape than ``image``.
    """
    named = {"reference": reference, "lesion_mask": lesion_mask, "error": error, "anomaly": anomaly}
    for name, array in {**labels_by_method, **named}.items():
        if array is not None and array.shape != image.shape:
            raise ValueError(f"{name} has shape {array.shape}, image {image.shape}")
    rows = _choose_slices(image.shape, spacing_mm, labels_by_method, reference, lesion_mask, anomaly, n_slices)
    box = _picture_box(image.shape, spacing_mm, [*labels_by_method.values(), reference, lesion_mask], margin_mm)
    painter = _Painter(image, rows, box, float(spacing_mm[1] / spacing_mm[2]))
    columns: list[tuple[str, Callable[[Sequence[Axes]], None]]] = [("image", painter.name_slices)]
    if reference is not None:
        columns.append(("reference", partial(_draw_labels, painter, reference, label_names or {})))
    for place, (name, labels) in enumerate(labels_by_method.items()):
        colour = METHOD_COLOURS[place % len(METHOD_COLOURS)]
        columns.append((name, partial(_draw_method, painter, name, labels, reference, colour)))
    if error is not None:
        columns.append(("error map", partial(_draw_error, painter, error)))
    if anomaly is not None or lesion_mask is not None:
        columns.append(("anomalies", partial(_draw_anomaly, painter, anomaly, lesion_mask)))

    height_mm, width_mm = ((part.stop - part.start) * size for part, size in zip(box, spacing_mm[1:], strict=True))
    ratio = min(max(height_mm / width_mm, 0.4), 2.0)
    size = (PANEL_INCHES * len(columns), PANEL_INCHES * ratio * len(rows) + (1.3 if title else 1.0))
    figure = Figure(figsize=size, layout="compressed", dpi=150)
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes, (name, draw) in zip(panels.T, columns, strict=True):
        painter.images(axes)
        axes[0].set_title(name)
        draw(axes)
    if title:
        figure.suptitle(title, fontweight="bold")
    return figure


def _choose_slices(
    shape: tuple[int, ...],
    spacing_mm: Sequence[float],
    labels_by_method: Mapping[str, np.ndarray],
    reference: np.ndarray | None,
    lesion_mask: np.ndarray | None,
    anomaly: np.ndarray | None,
    count: int,
) -> list[int]:
    """Slices by disagreement and lesion, each as a share of its highest slice; else by what is labelled."""
    maps = list(labels_by_method.values())
    first = reference if reference is not None else maps[0] if maps else None
    candidates = [
        sum(((labels != first) for labels in maps if labels is not first), np.zeros(shape, int)),
        lesion_mask,
    ]
    fallbacks = [anomaly, None if first is None else first > 0]
    min_distance = max(1, round(5 / spacing_mm[0]), shape[0] // 10)
    score = np.zeros(shape[0])
    for part in candidates:
        area = np.zeros(shape[0]) if part is None else part.reshape(shape[0], -1).sum(axis=1, dtype=float)
        score += area / max(area.max(), 1)
    for part in fallbacks:
        if not score.any() and part is not None:
            score = part.reshape(shape[0], -1).sum(axis=1, dtype=float)
    return telling_slices(score, count, min_distance)


def _picture_box(
    shape: tuple[int, ...], spacing_mm: Sequence[float], masks: Sequence[np.ndarray | None], margin_mm: float
) -> tuple[slice, slice]:
    """Rows and columns that hold everything labelled, with a margin; the whole plane if nothing is."""
    plane = np.zeros(shape[1:], dtype=bool)
    for mask in masks:
        if mask is not None:
            plane |= (mask > 0).any(axis=0)
    box = bounding_box(plane, [round(margin_mm / size) for size in spacing_mm[1:]])
    return (box[0], box[1]) if box else (slice(0, shape[1]), slice(0, shape[2]))


class _Painter:
    """Draws slices of one image, all cut and stretched alike."""

    def __init__(self, image: np.ndarray, slices: Sequence[int], box: tuple[slice, slice], aspect: float) -> None:
        self.pixels, self.slices, self.box, self.aspect = image, slices, box, aspect
        body = image[image != 0]
        self.window = np.percentile(body, [0.5, 99.5]).tolist() if body.size else [0.0, 1.0]

    def images(self, axes: Sequence[Axes]) -> None:
        low, high = self.window
        for ax, index in zip(axes, self.slices, strict=True):
            ax.imshow(self.cut(self.pixels, index), cmap="gray", vmin=low, vmax=high, aspect=self.aspect)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.autoscale(False)  # contours that reach over the edge must not widen a panel

    def name_slices(self, axes: Sequence[Axes]) -> None:
        for ax, index in zip(axes, self.slices, strict=True):
            ax.set_ylabel(f"slice {index}")

    def cut(self, array: np.ndarray, index: int) -> np.ndarray:
        return np.asarray(array[index])[self.box]

    def contours(self, axes: Sequence[Axes], mask: np.ndarray, colour: str, **style: Any) -> None:
        for ax, index in zip(axes, self.slices, strict=True):
            # a frame of zeros closes contours at the picture's edge
            framed = np.pad(self.cut(mask, index).astype(float), 1)
            if framed.any():
                rows, columns = (np.arange(size) - 1 for size in framed.shape)
                ax.contour(columns, rows, framed, levels=[0.5], colors=[colour], **{"linewidths": 1.2, **style})

    def fill(self, axes: Sequence[Axes], mask: np.ndarray, colour: str, alpha: float) -> None:
        for ax, index in zip(axes, self.slices, strict=True):
            area = self.cut(mask, index).astype(bool)
            ax.imshow(np.dstack([np.full((*area.shape, 3), to_rgb(colour)), alpha * area]), aspect=self.aspect)


def _legend(ax: Axes, handles: Sequence[Any]) -> None:
    """Below the lowest panel of a column, on dark ground, as the contours are light."""
    if handles:
        ax.legend(
            handles=list(handles),
            loc="upper center",
            bbox_to_anchor=(0.5, -0.02),
            fontsize="small",
            facecolor="#303030",
            labelcolor="white",
            ncols=1 if len(handles) <= 4 else 2,
        )


def _labels_in(*label_maps: np.ndarray | None) -> list[int]:
    present = set().union(*(np.unique(labels).tolist() for labels in label_maps if labels is not None))
    return sorted(int(label) for label in present if label != 0)


def _draw_labels(painter: _Painter, labels: np.ndarray, names: Mapping[int, str], axes: Sequence[Axes]) -> None:
    handles = []
    for place, label in enumerate(_labels_in(labels)):
        colour = LABEL_COLOURS[place % len(LABEL_COLOURS)]
        painter.fill(axes, labels == label, colour, 0.3)
        painter.contours(axes, labels == label, colour)
        handles.append(Patch(facecolor=colour, label=names.get(label, f"label {label}").replace("_", " ")))
    _legend(axes[-1], handles)


def _draw_method(
    painter: _Painter,
    name: str,
    labels: np.ndarray,
    reference: np.ndarray | None,
    colour: str,
    axes: Sequence[Axes],
) -> None:
    """The method in its colour, the reference over it in white, broken."""
    handles = [Line2D([], [], color=colour, label=name)]
    for label in _labels_in(labels):
        painter.contours(axes, labels == label, colour, linewidths=1.6)
    if reference is not None:
        for label in _labels_in(reference):
            painter.contours(axes, reference == label, REFERENCE_COLOUR, linewidths=0.8, linestyles="dashed")
        handles.append(Line2D([], [], color=REFERENCE_COLOUR, linestyle="--", linewidth=0.8, label="reference"))
    _legend(axes[-1], handles)


def _draw_error(painter: _Painter, error: np.ndarray, axes: Sequence[Axes]) -> None:
    """Error as heat over the image, the more opaque the larger it is."""
    parts = [painter.cut(error, index) for index in painter.slices]
    low, high = np.percentile(np.concatenate([part.ravel() for part in parts]), [50, 99.9]).tolist()
    high = high if high > low else low + 1e-6
    for ax, part in zip(axes, parts, strict=True):
        opacity = np.clip((part - low) / (high - low), 0, 1) ** 0.5
        ax.imshow(part, cmap="inferno", vmin=low, vmax=high, alpha=opacity, aspect=painter.aspect)
    scale = ScalarMappable(Normalize(low, high), "inferno")
    # an inset, as a colour bar with a place of its own would shift this column's panels against the others
    inset = axes[-1].inset_axes((0.05, -0.09, 0.9, 0.04))
    bar = inset.figure.colorbar(scale, cax=inset, orientation="horizontal")
    bar.ax.xaxis.set_major_locator(MaxNLocator(3))
    bar.ax.tick_params(labelsize="small")


def _draw_anomaly(
    painter: _Painter, anomaly: np.ndarray | None, lesion_mask: np.ndarray | None, axes: Sequence[Axes]
) -> None:
    handles: list[Any] = []
    if anomaly is not None:
        painter.fill(axes, anomaly, ANOMALY_COLOUR, 0.35)
        painter.contours(axes, anomaly, ANOMALY_COLOUR)
        handles.append(Patch(facecolor=ANOMALY_COLOUR, label="anomaly found"))
    if lesion_mask is not None:
        painter.contours(axes, lesion_mask, LESION_COLOUR)
        handles.append(Line2D([], [], color=LESION_COLOUR, label="true lesion"))
    _legend(axes[-1], handles)


def save_figure(figure: Figure, path: Path | str, dpi: int = 150) -> None:
    """Write a figure, whole; the file ending chooses the format."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
