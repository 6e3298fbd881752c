"""Plans for planes of several directions."""

from functools import partial

import numpy as np
import pytest

from nnunet_anomaly.planners.multi_planar import nnUNetPlannerMultiPlanar, nnUNetPlannerMultiPlanarTiny


@pytest.fixture
def planner(plan_from):
    """Make plans for pelves with these shapes and spacings (z, y, x)."""
    return partial(plan_from, labels={"femur": 1, "hip": 2, "sacrum": 3})


SHAPES = [[244, 266, 415], [214, 240, 368], [274, 290, 460], [240, 260, 400]]
SPACINGS_MM = [[0.96, 0.77, 0.78], [1.1, 0.77, 0.78], [0.9, 0.8, 0.8], [0.96, 0.77, 0.78]]


def test_hips_as_large_as_the_papers(planner):
    plans = planner(nnUNetPlannerMultiPlanar, SHAPES, SPACINGS_MM)
    assert plans["plans_name"] == "nnUNetMultiPlanarPlans"
    configuration, full = (plans["configurations"][name] for name in ("3d_multiplanar", "3d_fullres"))
    assert configuration["spacing"] == full["spacing"]
    shapes = np.round(np.array(SHAPES) * SPACINGS_MM / full["spacing"])
    assert configuration["patch_size"] == shapes.max(axis=0).tolist()
    planar = plans["anomaly"]["multi_planar"]
    lengths_mm = (shapes * full["spacing"]).ravel()
    pixel_mm = np.percentile(lengths_mm, 75) / np.percentile(shapes, 75)
    assert planar["plane_extent_mm"] / planar["plane_pixels"] == pytest.approx(pixel_mm)
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    assert np.percentile(shapes, 75) <= planar["plane_pixels"] < np.percentile(shapes, 75) + np.prod(strides, axis=0)[0]
    assert planar["plane_pixels"] % np.prod(strides, axis=0)[0] == 0
    assert configuration["architecture"]["arch_kwargs"]["conv_op"].endswith("Conv2d")
    assert configuration["batch_size"] >= 2 and configuration["batch_dice"]
    assert configuration["data_identifier"] == "nnUNetMultiPlanarPlans_3d_multiplanar"


def test_little_memory_makes_coarser_volumes_of_the_same_extent(planner):
    fine = planner(nnUNetPlannerMultiPlanar, SHAPES, SPACINGS_MM)["configurations"]["3d_multiplanar"]
    plans = planner(nnUNetPlannerMultiPlanar, SHAPES, SPACINGS_MM, memory_gb=1)
    coarse = plans["configurations"]["3d_multiplanar"]
    factors = np.divide(coarse["spacing"], fine["spacing"])
    assert factors[0] > 1.1 and np.allclose(factors, factors[0])
    extents = [np.multiply(each["spacing"], each["patch_size"]) for each in (coarse, fine)]
    np.testing.assert_allclose(*extents, rtol=0.01)


def test_the_tiny_ones_have_small_networks_and_few_planes_at_once(planner):
    plans = planner(nnUNetPlannerMultiPlanarTiny, [[112, 101, 122]] * 4, [[3, 3, 3]] * 4)
    assert plans["plans_name"] == "nnUNetMultiPlanarTinyPlans"
    configuration = plans["configurations"]["3d_multiplanar"]
    assert configuration["batch_size"] <= 6 and plans["configurations"]["2d"]["batch_size"] <= 6
    assert configuration["architecture"]["arch_kwargs"]["features_per_stage"][0] == 8
    assert configuration["patch_size"] == [112, 101, 122]


def test_axes_are_in_nnunets_order(planner):
    """nnU-Net puts the axis of the thickest slices first."""
    plans = planner(nnUNetPlannerMultiPlanar, [[200, 180, 40]] * 2, [[1, 1, 3]] * 2)
    configuration = plans["configurations"]["3d_multiplanar"]
    assert configuration["patch_size"] == [40, 200, 180]
    assert configuration["spacing"] == [3, 1, 1]


def test_2d_images_have_no_such_configuration(planner):
    plans = planner(nnUNetPlannerMultiPlanar, [[1, 200, 180]] * 2, [[999, 1, 1]] * 2)
    assert "3d_multiplanar" not in plans["configurations"]
    assert "2d" in plans["configurations"]
