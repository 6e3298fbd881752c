"""Figures of the stress test, checked on the drawn objects and on pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.image import imread

from nnunet_anomaly.evaluation.stress import COMPARED, METRICS, curves
from nnunet_anomaly.report import stress_figures
from nnunet_anomaly.report.figures import save_figure
from nnunet_anomaly.report.stress_figures import MODEL_COLOURS, draw_case, model_styles, severity_figure

SPACING_MM = (0.5, 1.0, 3.0)


def whole(rows):
    return [row for row in curves(rows) if row["structure"] == "(all)"]


def lines_of(ax):
    """Lines of the models (not the hollow points) by colour."""
    return {to_hex(line.get_color()): line for line in ax.get_lines() if line.get_linestyle() != "None"}


# ---- against severity


def test_a_panel_a_corruption_with_the_means_of_every_model(stress_rows):
    points = whole(stress_rows())
    figure = severity_figure(points, "dsc")
    assert [ax.get_title() for ax in figure.axes] == ["noise", "bright lesion"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "aware"]
    styles = model_styles(["plain", "aware"])
    for model, style in styles.items():
        expected = [
            (row["severity"], row["mean"])
            for row in points
            if (row["model"], row["corruption"], row["metric"]) == (model, "noise", "dsc")
        ]
        line = lines_of(figure.axes[0])[to_hex(style["color"])]
        np.testing.assert_allclose(line.get_xydata(), expected)
        assert line.get_xdata().tolist() == [0, 0.5, 1]
    low, high = figure.axes[1].get_ylim()
    means = [row["mean"] for row in points if row["metric"] == "dsc"]
    assert low < min(means) and high > max(means)


def test_bands_are_the_intervals(stress_rows):
    points = whole(stress_rows(models=["plain"]))
    (band,) = (item for item in severity_figure(points, "dsc").axes[0].collections if isinstance(item, PolyCollection))
    corners = band.get_paths()[0].vertices
    found = [row for row in points if (row["corruption"], row["metric"]) == ("noise", "dsc")]
    for row in found:
        here = corners[np.isclose(corners[:, 0], row["severity"]), 1]
        assert (here.min(), here.max()) == pytest.approx((row["ci95_low"], row["ci95_high"]))


@pytest.mark.parametrize("number", [1, 10])
def test_few_and_many_models_are_told_apart(stress_rows, tmp_path, number):
    models = [f"model {place}" for place in range(number)]
    corruptions = [f"corruption_{place}" for place in range(5)]
    points = whole(stress_rows(models=models, corruptions=corruptions, cases=3))
    for metric in COMPARED:
        figure = severity_figure(points, metric)
        shown = [ax for ax in figure.axes if ax.get_visible()]
        assert len(shown) == 5 and len({round(ax.get_position().y0, 2) for ax in shown}) == 2
        assert len(lines_of(shown[4])) == number
        save_figure(figure, tmp_path / f"{metric}.png", dpi=60)
        assert imread(tmp_path / f"{metric}.png").std() > 0.01
    looks = {(style["color"], style["marker"]) for style in model_styles(models).values()}
    assert len(looks) == number


def test_a_variant_has_the_colour_of_its_model():
    styles = model_styles(["plain", "aware", "plain, cleaned", "aware, cleaned"])
    assert [styles[name]["color"] for name in styles] == [*MODEL_COLOURS[:2]] * 2
    assert [styles[name]["linestyle"] for name in styles] == ["-", "-", "--", "--"]
    # so that a figure without the variants has the same colours
    assert model_styles(["plain", "aware"]) == {name: styles[name] for name in ("plain", "aware")}


def test_more_models_than_colours_still_differ():
    styles = model_styles([f"m{place}" for place in range(15)])
    assert len({tuple(style.values()) for style in styles.values()}) == 15


def test_points_without_the_empty_cases_are_hollow(stress_rows):
    rows = stress_rows()
    for row in rows:
        if (row["model"], row["corruption"], row["severity"], row["case"]) == ("plain", "noise", 1.0, "case_0"):
            row["hd_mm"] = math.inf
    points = whole(rows)
    figure = severity_figure(points, "hd_mm")
    hollow = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "None" and len(line.get_xdata())]
    assert [line.get_xdata().tolist() for line in hollow] == [[1.0]]
    assert figure.legends[0].get_texts()[-1].get_text().startswith("hollow")
    assert len(severity_figure(points, "dsc").legends[0].get_texts()) == 2


def test_without_any_value_a_panel_says_so(stress_rows, tmp_path):
    points = whole(stress_rows(empty=True))
    figure = severity_figure(points, "hd_mm")
    assert [text.get_text() for ax in figure.axes for text in ax.texts] == ["no value"] * 2
    save_figure(figure, tmp_path / "empty.png", dpi=40)
    assert not severity_figure(points, "dsc").axes[0].texts


def test_one_case_has_lines_without_bands(stress_rows, tmp_path):
    figure = severity_figure(whole(stress_rows(cases=1)), "dsc")
    assert len(lines_of(figure.axes[0])) == 2
    save_figure(figure, tmp_path / "one.png", dpi=40)


def test_without_a_corruption_there_is_no_figure(stress_rows):
    with pytest.raises(ValueError, match="no corruption"):
        severity_figure(whole(stress_rows(corruptions=[])), "dsc")


def test_the_scale_follows_the_means_not_the_bands(stress_rows):
    points = whole(stress_rows())
    wide = [row | {"ci95_low": 0.0, "ci95_high": 1.0} for row in points]
    low, high = severity_figure(wide, "dsc").axes[0].get_ylim()
    means = [row["mean"] for row in points if row["metric"] == "dsc"]
    assert 0.5 * (high - low) < max(means) - min(means)
    assert high <= METRICS["dsc"].largest + 0.1


# ---- a case


def scene(axis=2):
    """A box of two labels with a lesion that ``plain`` left out; slice 4 along ``axis`` has most of it."""
    reference = np.zeros((9, 40, 30), np.uint8)
    reference[1:8, 10:30, 8:22] = 1
    reference[1:8, 20:30, 8:22] = 2
    anomaly = np.zeros(reference.shape, bool)
    anomaly[2:6, 12:18, 10:16] = True
    anomaly[4, 12:24, 10:20] = True
    original = np.random.default_rng(0).normal(100, 5, reference.shape) * (1 + reference)
    image = original + 300 * anomaly
    predictions = {"plain": np.where(anomaly, 0, reference), "aware": reference.copy()}
    arrays = {"image": image, "original": original, "original_reference": reference, "reference": reference,
              "anomaly": anomaly}  # fmt: skip
    turned = {name: np.moveaxis(array, 0, axis) for name, array in arrays.items()}
    return turned | {"predictions": {name: np.moveaxis(each, 0, axis) for name, each in predictions.items()}}


@pytest.fixture
def drawn(monkeypatch):
    """Figures that ``draw_case`` writes."""
    figures = []

    def keep(figure, path):
        figures.append(figure)
        save_figure(figure, path, dpi=50)

    monkeypatch.setattr(stress_figures, "save_figure", keep)
    return figures


def draw(tmp_path, parts, spacing_mm=SPACING_MM, title="case_1: noise"):
    draw_case(tmp_path / "case.png", title, spacing_mm=spacing_mm, **parts)
    return imread(tmp_path / "case.png")


def test_the_slice_along_the_thick_axis_with_most_wrong_voxels(tmp_path, drawn):
    pixels = draw(tmp_path, scene())
    (figure,) = drawn
    assert pixels[..., :3].std() > 0.05
    assert figure.get_suptitle() == "case_1: noise, slice 4"
    assert [ax.get_title() for ax in figure.axes] == ["uncorrupted", "corrupted", "plain", "aware"]
    parts = scene(axis=0)
    wrong = [int((parts["predictions"]["plain"] != parts["reference"])[slices].sum()) for slices in (4, slice(None))]
    assert figure.axes[2].get_xlabel() == f"{wrong[0]} voxels wrong here, {wrong[1]} in all"
    assert figure.axes[3].get_xlabel() == "0 voxels wrong here, 0 in all"


def test_with_even_spacing_slices_are_along_the_first_axis(tmp_path, drawn):
    draw(tmp_path, scene(axis=0), spacing_mm=(0.8, 0.8000001, 0.8))
    assert drawn[0].get_suptitle().endswith("slice 4")


def test_the_picture_is_the_region_with_a_margin_in_true_proportions(tmp_path, drawn):
    parts = scene()
    draw(tmp_path, parts)
    ax = drawn[0].axes[1]
    shown = np.asarray(ax.get_images()[0].get_array())
    # the region is 20 rows of 0.5 mm by 14 columns of 1 mm: a margin of 0.25 * 14 mm = 7 rows and 4 columns
    box = (slice(3, 37), slice(4, 26))
    np.testing.assert_array_equal(shown, parts["image"][..., 4][box])
    figure_size = drawn[0].get_size_inches() * ax.get_position().size
    assert figure_size[1] / figure_size[0] == pytest.approx(34 * 0.5 / 22, rel=0.02)


def test_all_panels_have_the_window_of_the_original(tmp_path, drawn):
    parts = scene()
    draw(tmp_path, parts)
    windows = {ax.get_images()[0].get_clim() for ax in drawn[0].axes}
    original = parts["original"][3:37, 4:26, 1:8]
    assert [pytest.approx(window) for window in windows] == [tuple(np.percentile(original, [1, 99]))]


def test_wrong_voxels_are_tinted_and_right_ones_are_not(tmp_path, drawn):
    parts = scene()
    draw(tmp_path, parts)
    wrong = parts["predictions"]["plain"] != parts["reference"]
    plain, aware = (np.asarray(ax.get_images()[1].get_array())[..., 3] for ax in drawn[0].axes[2:])
    np.testing.assert_array_equal(plain > 0, wrong[..., 4][3:37, 4:26])
    assert not aware.any()


def test_ten_models_go_into_rows(tmp_path, drawn):
    parts = scene()
    parts["predictions"] = {f"a model with a long name {place}": parts["reference"] for place in range(10)}
    draw(tmp_path, parts)
    shown = [ax for ax in drawn[0].axes if ax.get_visible()]
    assert len(shown) == 12 and len({round(ax.get_position().y0, 2) for ax in shown}) == 3


def test_a_flat_image_is_drawn_as_it_is(tmp_path, drawn):
    parts = scene()
    predictions = {name: each[..., 4] for name, each in parts.pop("predictions").items()}
    flat = {name: each[..., 4] for name, each in parts.items()} | {"predictions": predictions}
    draw(tmp_path, flat, spacing_mm=(0.5, 1.0))
    assert drawn[0].get_suptitle() == "case_1: noise"
    assert "here" not in drawn[0].axes[2].get_xlabel()
    as_file = {name: each[np.newaxis] for name, each in flat.items() if name != "predictions"}
    as_file["predictions"] = {name: each[np.newaxis] for name, each in predictions.items()}
    draw(tmp_path, as_file, spacing_mm=(999.0, 0.5, 1.0))
    draw(tmp_path, as_file, spacing_mm=(0.1, 0.5, 1.0))  # of one voxel, however thin
    first, *others = (np.asarray(figure.axes[1].get_images()[0].get_array()) for figure in drawn)
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_an_anomaly_everywhere_has_no_outline(tmp_path, drawn):
    parts = scene()
    draw(tmp_path, parts)
    draw(tmp_path, parts | {"anomaly": np.ones_like(parts["anomaly"])})
    legends = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    assert "anomaly" in legends[0] and "anomaly" not in legends[1]
    assert len(drawn[1].axes[1].collections) == len(drawn[0].axes[1].collections) - 1


def test_empty_label_maps_and_no_models(tmp_path, drawn):
    parts = scene()
    nothing = np.zeros_like(parts["reference"])
    draw(tmp_path, parts | {"predictions": {"plain": nothing}})
    assert "nothing found" in drawn[0].axes[2].get_xlabel()
    draw(tmp_path, parts | {"reference": nothing, "original_reference": nothing, "predictions": {}})
    assert np.asarray(drawn[1].axes[0].get_images()[0].get_array()).shape == (40, 30)
    assert drawn[1].get_suptitle().endswith("slice 4")  # the middle one


def test_a_constant_image_and_odd_names(tmp_path, drawn):
    parts = scene()
    constant = np.full_like(parts["image"], 7.0)
    odd = {"<b> & $x$": parts["reference"]}
    draw(tmp_path, parts | {"image": constant, "original": constant, "predictions": odd}, title="a$b$c")
    assert drawn[0].axes[2].get_title() == r"<b> & \$x\$"


def test_shapes_must_agree(tmp_path):
    parts = scene()
    with pytest.raises(ValueError, match="plain has shape"):
        draw(tmp_path, parts | {"predictions": {"plain": parts["reference"][1:]}})
