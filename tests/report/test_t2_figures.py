"""Pictures of unrolled cartilage: borders run between regions, and panels show what they are given."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_anomaly.relaxometry.subregions import subregions
from nnunet_anomaly.relaxometry.unroll import project, unroll
from nnunet_anomaly.report.figures import save_figure
from nnunet_anomaly.report.t2_figures import (
    bins_with_cartilage,
    bland_altman_figure,
    dice_surface_figure,
    scatter_figure,
    t2_overlay_figure,
    unrolled_figure,
)

STRAIGHT = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


@pytest.fixture(scope="module")
def knee():
    """A cylinder of cartilage, 120 degrees wide, with a notch behind."""
    left, row, column = np.meshgrid(np.arange(12) * 4 - 22, np.arange(70) - 35, np.arange(70) - 35, indexing="ij")
    radii, angles = np.hypot(row, column), np.degrees(np.arctan2(column, row))
    mask = (radii > 25) & (radii < 29) & (np.abs(angles) < 60) & ((np.abs(left) > 5) | (angles < -20))
    return unroll(mask, (4.0, 1.0, 1.0), STRAIGHT), radii


@pytest.mark.parametrize("side", ["right", "left"])
def test_unrolled_map(knee, side, tmp_path):
    unrolled, radii = knee
    regions = subregions(unrolled, side)
    maps = project(unrolled, radii)
    clusters = np.zeros(unrolled.shape, int)
    clusters[2:4, 40:43] = 1
    figure = unrolled_figure({"deep": maps.deep, "all": maps.mean}, regions, "mm", clusters=clusters)
    axes = [ax for ax in figure.axes if ax.images]
    assert len(axes) == 2
    for ax, shown in zip(axes, (maps.deep, maps.mean), strict=True):
        image = ax.images[0]
        left, right, bottom, top = image.get_extent()
        columns = ((np.array([left, right]) + 180) / 5).round().astype(int)
        rows = slice(int(top + 0.5), int(bottom + 0.5))  # a slice lies around its number
        np.testing.assert_array_equal(image.get_array().filled(np.nan), shown[rows, slice(*columns)])
        assert {text.get_text() for text in ax.texts} == {"LA", "LC", "LP", "MA", "MC", "MP", "1"}
        assert next(text for text in ax.texts if text.get_text() == "1").get_position() == (22.5, 2)
        lateral = next(text for text in ax.texts if text.get_text() == "LC")
        medial = next(text for text in ax.texts if text.get_text() == "MC")
        up = [ax.transData.transform(text.get_position())[1] for text in (lateral, medial)]
        assert up[0] > up[1]  # the lateral side is above
    save_figure(figure, tmp_path / "map.png")
    clusters[6, 30] = 2
    change = unrolled_figure({"change": maps.mean - 27}, regions, "ms", clusters=clusters, signed=True)
    ax = next(ax for ax in change.axes if ax.images)
    outlines = [lines for lines in ax.collections if lines.get_linewidth()[0] > 1]
    boxes = []
    for pair in zip(outlines[::2], outlines[1::2], strict=True):  # horizontal and vertical lines of a cluster
        ends = np.concatenate([segment for lines in pair for segment in lines.get_segments()])
        boxes.append([*ends.min(axis=0), *ends.max(axis=0)])
        assert sum(len(lines.get_segments()) for lines in pair) == (10 if len(boxes) == 1 else 4)  # edges of bins
    np.testing.assert_allclose(boxes, [[20, 1.5, 35, 3.5], [-30, 5.5, -25, 6.5]])
    assert all(float(tick).is_integer() for tick in ax.get_yticks())
    low, high = next(ax for ax in change.axes if ax.images).images[0].get_clim()
    assert low == -high < 0
    assert bins_with_cartilage([regions]) == slice(24, 48)  # -60 to 60 degrees
    wide = unrolled_figure({"all": maps.mean}, regions, "mm", bins=slice(20, 50))
    assert wide.axes[0].images[0].get_extent()[:2] == [-80, 70] and wide.axes[0].get_xlim() == (-80, 70)


def test_nothing_to_show(tmp_path):
    unrolled = unroll(np.zeros((4, 9, 9), bool), (4.0, 1.0, 1.0), STRAIGHT)
    maps = project(unrolled, np.zeros((4, 9, 9)))
    save_figure(unrolled_figure({"all": maps.mean}, subregions(unrolled, "left"), "ms"), tmp_path / "map.png")
    assert (tmp_path / "map.png").is_file()


def test_agreement_panels(tmp_path):
    pairs = {
        "All": (np.array([40.0, 42.0, 47.0]), np.array([41.0, 42.0, 45.0])),
        "Deep": (np.array([40.0]), np.array([41.0])),
        "Medial": (np.zeros(0), np.zeros(0)),
    }
    figure = bland_altman_figure(pairs, "ms")
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in panels] == list(pairs)
    points, _, mean, low, high = panels[0].lines
    np.testing.assert_allclose(points.get_xydata(), [[40.5, 1], [42, 0], [46, -2]])
    difference = np.array([1.0, 0.0, -2.0])
    heights = [line.get_ydata()[0] for line in (mean, low, high)]
    expected = difference.mean() + difference.std(ddof=1) * np.array([0, -1.96, 1.96])
    np.testing.assert_allclose(heights, expected)
    assert len(panels[1].lines) == 3 and len(panels[2].lines) == 2  # no limits of one pair, no bias of none
    save_figure(figure, tmp_path / "bland_altman.png")
    scatter = scatter_figure(pairs, "ms")
    points, line = scatter.axes[0].lines
    np.testing.assert_array_equal(points.get_xydata(), np.stack(pairs["All"], axis=1))
    np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
    save_figure(scatter, tmp_path / "scatter.png")


def test_overlays_lie_in_slices_with_cartilage_and_are_cut_to_it(knee, tmp_path):
    unrolled, _ = knee
    mask = unrolled.in_image(np.ones(len(unrolled.slices), bool))
    mask[:3] = False
    image = np.random.default_rng(0).random(mask.shape)
    t2_ms = np.where(mask, 40.0, np.nan)
    figure = t2_overlay_figure(image, t2_ms, (4.0, 1.0, 1.0), limits=(20, 60), margin_mm=3)
    panels = [ax for ax in figure.axes if len(ax.images) == 2]
    numbers = [int(ax.get_title().removeprefix("slice ")) for ax in panels]
    assert len(panels) == 6 and numbers == sorted(set(numbers)) and numbers[0] >= 3
    rows, columns = (np.flatnonzero(mask.any(axis=(0, 3 - axis))) for axis in (1, 2))
    for ax, number in zip(panels, numbers, strict=True):
        below, above = ax.images
        assert below.get_array().shape == (np.ptp(rows) + 7, np.ptp(columns) + 7)
        np.testing.assert_array_equal(
            ~np.ma.getmaskarray(above.get_array()),
            mask[number, rows[0] - 3 : rows[-1] + 4, columns[0] - 3 : columns[-1] + 4],
        )
        assert above.get_clim() == (20, 60)
    save_figure(t2_overlay_figure(image, np.full(mask.shape, np.nan), (4.0, 1.0, 1.0)), tmp_path / "none.png")


def test_the_cross_of_a_search_is_at_the_best_combination():
    dice = np.arange(6).reshape(2, 3) / 6
    ax = dice_surface_figure(dice, (0.4, 0.6), (0, 10, 20), (0.6, 20)).axes[0]
    (cross,) = ax.lines
    np.testing.assert_array_equal(ax.images[0].get_array(), dice.T)
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (1, 2)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "10", "20"]
