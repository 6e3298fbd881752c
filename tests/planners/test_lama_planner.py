"""Plans for slices at a chosen resolution."""

import math

import pytest

from nnunet_anomaly.planners import lama as planners


@pytest.mark.parametrize("name", ["nnUNetPlannerLaMa", "nnUNetPlannerLaMa_128pixels", "nnUNetPlannerLaMaTiny"])
def test_planners_make_slices_of_their_size(plan_from, name):
    planner = getattr(planners, name)
    shapes, spacings_mm = [[36, 448, 440]] * 4, [[3.0, 0.36, 0.36]] * 4
    plans = plan_from(planner, shapes, spacings_mm, labels={"femur": 1, "bml": 2})
    configuration = plans["configurations"]["2d_inpainting"]
    pixels = {"nnUNetPlannerLaMa": 320, "nnUNetPlannerLaMa_128pixels": 128, "nnUNetPlannerLaMaTiny": 64}[name]
    assert configuration["patch_size"] == [pixels, math.ceil(pixels * 440 / 448 / 8) * 8]
    assert configuration["spacing"] == pytest.approx([448 * 0.36 / pixels] * 2)
    assert configuration["batch_size"] >= 2
    assert plans["anomaly"]["slices"]["lesion_labels"] == [2]
    if name == "nnUNetPlannerLaMaTiny":
        assert plans["anomaly"]["lama"]["features"] == 8


@pytest.mark.parametrize("size", ["0pixels", "4pixels", "15pixels", "016pixels", "320", "-16pixels"])
def test_no_planner_makes_slices_too_small(size):
    assert not hasattr(planners, f"nnUNetPlannerLaMa_{size}")
    assert planners.nnUNetPlannerLaMa_16pixels.in_plane_pixels == 16


def test_slices_are_never_finer_than_the_data(plan_from):
    plans = plan_from(planners.nnUNetPlannerLaMa, [[24, 256, 200]] * 4, [[4.0, 0.625, 0.625]] * 4, labels={"femur": 1})
    assert plans["configurations"]["2d_inpainting"]["spacing"] == [0.625, 0.625]
    assert plans["configurations"]["2d_inpainting"]["patch_size"] == [256, 200]


def test_the_coarser_axis_limits_the_pixels(plan_from):
    """As the docstring says: pixels stay square, so that the finer axis loses half of its own."""
    planner = planners.nnUNetPlannerLaMa_448pixels
    plans = plan_from(planner, [[36, 256, 512]] * 4, [[3.0, 0.6, 0.3]] * 4, labels={"femur": 1})
    assert plans["configurations"]["2d_inpainting"]["spacing"] == [0.6, 0.6]
    assert plans["configurations"]["2d_inpainting"]["patch_size"] == [256, 256]
