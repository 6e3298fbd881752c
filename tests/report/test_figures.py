"""What the figures show: slices, orientation, proportions, contours; checked on the drawn objects and pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.contour import QuadContourSet

from nnunet_anomaly.planes import plane_of
from nnunet_anomaly.report.figures import (
    METHOD_COLOURS,
    overlay_figure,
    save_figure,
    telling_slices,
)

SHAPE, SPACING_MM = (12, 40, 30), (3.0, 0.5, 1.0)


def scene() -> dict[str, np.ndarray]:
    """A bone with a lesion in slice 8, which method ``plain`` left out; ``aware`` is right."""
    reference = np.zeros(SHAPE, np.uint8)
    reference[2:11, 10:30, 8:22] = 1
    lesion = np.zeros(SHAPE, bool)
    lesion[8, 16:22, 12:16] = True
    plain = np.where(lesion, 0, reference).astype(np.uint8)
    image = np.random.default_rng(0).normal(100, 5, SHAPE) * (reference > 0) + 50 * lesion
    return {"image": image, "reference": reference, "lesion": lesion, "plain": plain, "error": lesion * 0.2}


def panels(figure) -> dict[str, list]:
    """Axes of every column by its title, from top to bottom."""
    columns: dict[str, list] = {}
    for ax in figure.axes:
        if ax.get_title():
            columns[ax.get_title()] = []
    places = {round(ax.get_position().x0, 3): ax.get_title() for ax in figure.axes if ax.get_title()}
    for ax in figure.axes:
        columns[places[round(ax.get_position().x0, 3)]].append(ax)
    return columns


def contour_box(ax) -> list[float]:
    """Left, right, top and bottom of a panel's contours."""
    drawn = [item for item in ax.collections if isinstance(item, QuadContourSet)]
    points = np.concatenate([path.vertices for item in drawn for path in item.get_paths()])
    return [points[:, 0].min(), points[:, 0].max(), points[:, 1].min(), points[:, 1].max()]


def test_every_column_is_there_and_the_lesion_is_shown():
    parts = scene()
    figure = overlay_figure(
        parts["image"],
        SPACING_MM,
        labels_by_method={"plain": parts["plain"], "aware": parts["reference"]},
        reference=parts["reference"],
        lesion_mask=parts["lesion"],
        error=parts["error"],
        anomaly=parts["lesion"],
        label_names={1: "femoral_bone"},
        title="knee_00",
    )
    columns = panels(figure)
    assert list(columns) == ["image", "reference", "plain", "aware", "error map", "anomalies"]
    assert [ax.get_ylabel() for ax in columns["image"]] == ["slice 8"]  # the only one with a lesion or an error
    assert figure.get_suptitle() == "knee_00"
    legend = columns["reference"][0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["femoral bone"]
    # the bone spans rows 10-29 and columns 8-21; with 8 mm around it the picture reaches the image's edge
    assert contour_box(columns["aware"][0]) == pytest.approx([7.5, 21.5, 9.5, 29.5])
    assert contour_box(columns["anomalies"][0]) == pytest.approx([11.5, 15.5, 15.5, 21.5])


def test_panels_have_the_proportions_of_the_body():
    parts = scene()
    figure = overlay_figure(parts["image"], SPACING_MM, labels_by_method={}, reference=parts["reference"], margin_mm=2)
    ax = figure.axes[0]
    # 20 rows of 0.5 mm and 4 of margin on either side, 14 columns of 1 mm and 2 of margin
    assert ax.images[0].get_array().shape == (28, 18)
    figure.draw_without_rendering()
    box = ax.get_window_extent()
    assert box.height / box.width == pytest.approx((28 * 0.5) / (18 * 1.0), rel=0.02)


def test_methods_keep_their_colours():
    parts = scene()
    figure = overlay_figure(
        parts["image"], SPACING_MM, labels_by_method={"one": parts["plain"], "two": parts["reference"]}
    )
    for name, colour in zip(("one", "two"), METHOD_COLOURS, strict=False):
        assert panels(figure)[name][0].get_legend().get_lines()[0].get_color() == colour


def test_a_figure_of_nothing_but_an_image_shows_its_middle(tmp_path):
    figure = overlay_figure(np.zeros(SHAPE), SPACING_MM, labels_by_method={})
    assert [ax.get_ylabel() for ax in figure.axes] == ["slice 6"]
    assert figure.axes[0].images[0].get_array().shape == SHAPE[1:]
    save_figure(figure, tmp_path / "deep" / "empty.png")
    assert (tmp_path / "deep" / "empty.png").read_bytes().startswith(b"\x89PNG")


def test_without_disagreement_or_lesion_the_fullest_slice_is_shown():
    labels = np.zeros(SHAPE, np.uint8)
    labels[3, 5:10, 5:10], labels[4, 5:20, 5:20] = 1, 1
    figure = overlay_figure(
        np.ones(SHAPE), SPACING_MM, labels_by_method={"a": labels}, reference=labels, error=np.zeros(SHAPE), n_slices=1
    )
    assert figure.axes[0].get_ylabel() == "slice 4"


def test_arrays_of_another_shape_are_named():
    with pytest.raises(ValueError, match="plain has shape"):
        overlay_figure(np.zeros(SHAPE), SPACING_MM, labels_by_method={"plain": np.zeros((2, 3, 4))})


def test_saved_figures_are_the_same_every_time(tmp_path):
    parts = scene()
    for name in ("a.png", "b.png"):
        save_figure(overlay_figure(parts["image"], SPACING_MM, labels_by_method={"m": parts["plain"]}), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("sums", "count", "distance", "expected"),
    [
        ([0, 5, 4, 0, 3], 2, 1, [1, 2]),
        ([0, 5, 4, 0, 3], 2, 2, [1, 4]),
        ([0, 5, 4, 0, 3], 9, 1, [1, 2, 4]),
        ([0, 0, 0, 0, 0], 2, 1, [2]),
        ([1, 1, 1], 1, 1, [0]),
    ],
)
def test_telling_slices(sums, count, distance, expected):
    score = np.zeros((len(sums), 3, 3))
    score[:, 1, 1] = sums
    assert telling_slices(score, count, distance) == expected


@pytest.mark.parametrize("name", ["sagittal", "coronal", "axial"])
@pytest.mark.parametrize("orientation", ["LPS", "RAI", "SAR", "PIR", "ASL", "IRP"])
def test_planes_lie_as_radiologists_expect(name, orientation):
    # a point of light at the left, posterior, superior corner of the patient, in any orientation of the file
    lps = np.zeros((4, 5, 6))  # superior, posterior, left
    lps[3, 4, 5] = 1
    image = sitk.GetImageFromArray(lps)
    image.SetSpacing((0.6, 0.5, 0.4))
    image = sitk.DICOMOrient(image, orientation)
    plane = plane_of(image.GetDirection(), name)
    turned, spacing_mm = plane.turn(sitk.GetArrayFromImage(image)), plane.turn_spacing(image.GetSpacing()[::-1])
    # (slice, row, column): up is superior or anterior; right is posterior in sagittal pictures, else the patient's left
    corner, expected_mm = {
        "sagittal": ((-1, 0, -1), (0.6, 0.4, 0.5)),
        "coronal": ((-1, 0, -1), (0.5, 0.4, 0.6)),
        "axial": ((-1, -1, -1), (0.4, 0.5, 0.6)),
    }[name]
    assert turned[corner] == 1
    assert spacing_mm == pytest.approx(expected_mm)
    assert turned.shape == tuple({0.4: 4, 0.5: 5, 0.6: 6}[size] for size in expected_mm)


def test_a_real_oblique_knee_stands_upright(real_data: Path):
    image = sitk.ReadImage(str(next((real_data / "knee_dess_labels").glob("*.nrrd"))))
    labels = plane_of(image.GetDirection()).turn(sitk.GetArrayFromImage(image))
    femur, tibia, patella = (np.argwhere(labels == label).mean(axis=0) for label in (5, 6, 7))
    assert femur[1] < tibia[1]  # above
    assert patella[2] < femur[2]  # in front: on the left
    # slices from the patient's right to the left; in a right knee the fibula is lateral: on the right
    assert np.argwhere(labels == 8).mean(axis=0)[0] < tibia[0]
