"""What the pictures of anomaly maps show, checked on the drawn objects."""

from __future__ import annotations

import math

import numpy as np

from nnunet_anomaly.evaluation.anomaly import average_precision, detection_curve
from nnunet_anomaly.evaluation.lesions import froc
from nnunet_anomaly.report.anomaly_figures import (
    Example,
    example_figure,
    froc_figure,
    lesion_size_figure,
    precision_recall_figure,
    size_groups_figure,
    training_size_figure,
)


def test_the_area_under_the_drawn_steps_is_the_average_precision():
    rng = np.random.default_rng(0)
    truth = rng.random(600) < 0.3
    curve = detection_curve(truth + rng.normal(size=600), truth)
    figure = precision_recall_figure({"a": curve, "no lesion": detection_curve(np.ones(3), np.zeros(3, bool))})
    (line,) = figure.axes[0].lines
    recall, precision = line.get_data()
    assert line.get_drawstyle() == "steps-pre"
    assert np.isclose(np.sum(np.diff(recall) * precision[1:]), average_precision(curve))


def test_froc_lines():
    shares = np.array([[1, 1, 0, 0], [1, 0, 1, 0]])
    curve = froc(np.array([0.1, 0.5, 0.6, 0.9]), shares, np.array([[3, 4, 2, 1]]))
    none = froc(np.array([0.1]), np.zeros((0, 1)), np.array([[4]]))
    line, dots = froc_figure({"a": curve, "b": none}).axes[0].lines
    assert [list(values) for values in dots.get_data()] == [[1, 2, 4, 3], [0, 0.5, 0.5, 1]]
    assert [list(values) for values in line.get_data()] == [[0, 1, 2, 3, 4], [0, 0, 0.5, 1, 1]]


def test_the_fit_is_drawn_between_the_smallest_and_the_largest_lesion():
    volumes = np.array([1000.0, 3000, 4000, 8000, 9000])
    figure = lesion_size_figure({"a": (volumes, 0.05 * volumes / 1000), "few": (volumes[:2], np.ones(2))}, "Dice")
    fitted, few = figure.axes[0].lines
    x, y = fitted.get_data()
    assert (x.min(), x.max()) == (1, 9) and np.allclose(y, 0.05 * x)
    assert "too few" in few.get_label()
    assert len(figure.axes[0].collections) == 2


def test_training_sizes_are_in_order():
    (line,) = training_size_figure({"3-D": ([100, 10, 60], [0.3, 0.1, 0.2])}, "AUPRC").axes[0].lines
    assert [list(values) for values in line.get_data()] == [[10, 60, 100], [0.1, 0.2, 0.3]]


def test_columns_of_the_examples():
    rng = np.random.default_rng(1)
    image, lesion = rng.random((6, 8)), np.zeros((6, 8), bool)
    lesion[2, 3] = True
    with_output = Example("a", 1000 * image, image * 0.9, abs(image * 0.1), lesion, 2.0)  # on another scale
    without = Example("b", image, None, np.zeros((6, 8)), lesion)
    figure = example_figure([with_output, without], "method")
    assert [ax.get_title() for ax in figure.axes[:5]] == ["input", "output", "difference", "heat map", "lesions"]
    assert len(figure.axes) == 10 and not figure.axes[6].axison
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), image * 0.9)
    np.testing.assert_array_equal(figure.axes[4].images[0].get_array(), lesion)
    windows = [figure.axes[column].images[0].get_clim() for column in (0, 1)]
    np.testing.assert_allclose(np.array(windows[1]), 0.9 * np.array(windows[0]) / 1000)
    assert len(example_figure([without]).axes) == 4


def test_size_groups_have_a_panel_for_each_unit_and_a_line_for_each_method_and_figure():
    rows = [
        {"unit": unit, "method": method, "group": group, "size": f"{group} mm2", "metric": metric, "mean": group / 10}
        for unit, metrics in (("slice", ("dice", "iou")), ("lesion", ("hit",)))
        for method in ("m1", "m2", "m3", "m4", "m5", "m6")
        for group in (1, 2, 3)
        for metric in metrics
    ]
    rows[0]["mean"] = math.nan
    figure = size_groups_figure(rows, {"slice": "Slices", "case": "Cases", "lesion": "Lesions"})
    slices, lesions = figure.axes
    assert (slices.get_title(), lesions.get_title()) == ("Slices", "Lesions")
    assert (len(slices.lines), len(lesions.lines)) == (12, 6)
    assert [text.get_text() for text in slices.get_xticklabels()] == ["1 mm2", "2 mm2", "3 mm2"]
    np.testing.assert_allclose(slices.lines[0].get_ydata(), [math.nan, 0.2, 0.3])
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in slices.lines}
    assert len(looks) == 12
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["m1", "m2", "m3", "m4", "m5", "m6", "dice", "iou"]
