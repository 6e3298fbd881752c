"""Components and recall of one corrupted case, against scipy's labels and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from nnunet_anomaly.errors import GeometryError, LabelError
from nnunet_anomaly.evaluation.cohort import structure_metrics
from nnunet_anomaly.evaluation.stress_case import (
    COUNTS,
    METRICS,
    component_figures,
    corrupted_case_figures,
    recall_figures,
)

SHAPES = st.one_of(
    st.tuples(*[st.integers(1, 6)] * 2),
    st.tuples(*[st.integers(1, 5)] * 3),
)


@st.composite
def three_masks(draw):
    shape = draw(SHAPES)
    return [draw(arrays(bool, shape)) for _ in range(3)]


def scipys_components(mask):
    return ndimage.label(mask, structure=np.ones((3,) * mask.ndim))


@settings(deadline=None, max_examples=150)
@given(three_masks())
def test_components_are_scipys(masks):
    reference, prediction, _ = masks
    _, wanted = scipys_components(reference)
    numbers, given_ = scipys_components(prediction)
    alone = [number for number in range(1, given_ + 1) if not reference[numbers == number].any()]
    assert component_figures(reference, prediction) == {
        "components_reference": wanted,
        "components_prediction": given_,
        "component_error": abs(wanted - given_),
        "false_components": len(alone),
    }


@settings(deadline=None, max_examples=100)
@given(three_masks())
def test_recall_is_counted_voxel_by_voxel(masks):
    reference, prediction, anomaly = masks
    inside = [index for index in np.ndindex(reference.shape) if reference[index] and anomaly[index]]
    found = sum(bool(prediction[index]) for index in inside)
    figures = recall_figures(reference, prediction, anomaly)
    assert figures["anomaly_voxels"] == len(inside)
    if inside:
        assert figures["anomaly_recall"] == pytest.approx(found / len(inside), abs=1e-12)
    else:
        assert math.isnan(figures["anomaly_recall"])


def test_a_structure_in_two_pieces_is_no_false_component_but_an_island_is():
    reference = np.zeros((3, 9, 9), bool)
    reference[1, 2:7, 2:7] = True
    broken = reference.copy()
    broken[1, 4] = False
    assert component_figures(reference, broken) == {
        "components_reference": 1, "components_prediction": 2, "component_error": 1, "false_components": 0,
    }  # fmt: skip
    island = reference.copy()
    island[0, 0, 0] = True
    assert component_figures(reference, island)["false_components"] == 1
    corner = np.zeros((3, 9, 9), bool)
    corner[1, 1, 1] = True  # beside the reference's corner, not on it
    assert component_figures(reference, corner)["false_components"] == 1
    assert component_figures(reference, corner | reference)["components_prediction"] == 1  # 26 neighbours


NOTHING, SOME = np.zeros((4, 5), bool), np.eye(4, 5, dtype=bool)


@pytest.mark.parametrize(
    "reference, prediction, expected",
    [(NOTHING, NOTHING, (0, 0, 0, 0)), (SOME, NOTHING, (1, 0, 1, 0)), (NOTHING, SOME, (0, 1, 1, 1))],
    ids=["both", "prediction", "reference"],
)
def test_empty_masks_have_no_components(reference, prediction, expected):
    assert tuple(component_figures(reference, prediction).values()) == expected


def test_every_structure_has_all_figures_regions_of_several_labels_too():
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 4, (5, 6, 7)).astype(np.uint8)
    prediction = np.where(rng.random(reference.shape) < 0.3, rng.integers(0, 4, reference.shape), reference)
    anomaly = rng.random(reference.shape) < 0.2
    structures = {"one": (1,), "whole": (1, 2, 3), "two of them": (2, 3), "absent": (9,)}
    spacing_mm = (3.0, 0.7, 0.5)
    found = corrupted_case_figures(reference, prediction, anomaly, spacing_mm, structures, nsd_tolerance_mm=0.6)
    assert list(found) == list(structures)
    known = structure_metrics(reference, prediction, spacing_mm, structures, 0.6)
    for name, labels in structures.items():
        pair = np.isin(reference, labels), np.isin(prediction, labels)
        expected = {key: known[name][key] for key in (*COUNTS, *METRICS)}
        expected |= component_figures(*pair) | recall_figures(*pair, anomaly)
        assert found[name].keys() == expected.keys()
        for key, value in expected.items():
            assert found[name][key] == pytest.approx(value, nan_ok=True), (name, key)
    # labels of one region that are mixed up within it are right
    swapped = np.where(reference == 2, 3, np.where(reference == 3, 2, reference))
    figures = corrupted_case_figures(reference, swapped, anomaly, spacing_mm, structures)
    assert figures["two of them"]["dsc"] == 1 and figures["two of them"]["anomaly_recall"] == 1
    assert figures["one"]["dsc"] == 1 and figures["absent"]["empty"] == "both"


def test_empty_cases_are_not_applicable_or_wrong_altogether():
    zeros, ones = np.zeros((4, 5, 6), np.uint8), np.ones((4, 5, 6), np.uint8)
    anomaly = np.zeros(zeros.shape, bool)
    anomaly[1] = True
    structures = {"it": (1,)}

    def figures(*pair):
        return corrupted_case_figures(*pair, anomaly, (1, 1, 1), structures)["it"]

    both, missed, invented = figures(zeros, zeros), figures(ones, zeros), figures(zeros, ones)
    assert both["empty"] == "both" and math.isnan(both["dsc"]) and math.isnan(both["anomaly_recall"])
    assert missed["dsc"] == 0 and missed["hd_mm"] == math.inf and missed["anomaly_recall"] == 0
    assert missed["anomaly_voxels"] == 30 and missed["component_error"] == 1
    assert invented["dsc"] == 0 and invented["false_components"] == 1 and math.isnan(invented["anomaly_recall"])


def test_what_is_no_pair_of_label_maps_is_refused():
    zeros, anomaly = np.zeros((4, 5), np.uint8), np.zeros((4, 5), bool)
    with pytest.raises(GeometryError):
        corrupted_case_figures(zeros, zeros[1:], anomaly, (1, 1), {"it": (1,)})
    with pytest.raises(GeometryError):
        corrupted_case_figures(zeros, zeros, anomaly, (1, 1, 1), {"it": (1,)})
    with pytest.raises(GeometryError):
        corrupted_case_figures(zeros, zeros, anomaly[1:], (1, 1), {"it": (1,)})
    with pytest.raises(LabelError):
        corrupted_case_figures(zeros, zeros - 1.5, anomaly, (1, 1), {"it": (1,)})
