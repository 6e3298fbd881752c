"""Plans for UNet++: the paper's patch where slices are thick, and the memory of the nested network."""

import warnings
from functools import partial

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_anomaly.planners.unet_plus_plus import nnUNetPlannerUNetPlusPlus

NESTED = "nnunet_anomaly.architectures.unet_plus_plus.UNetPlusPlus"
OAI = ([[36, 448, 448]] * 4, [[3, 0.357, 0.357]] * 4)


@pytest.fixture
def planner(plan_from):
    """Make plans for knees with these shapes and spacings (z, y, x)."""
    return partial(plan_from, labels={"femur": 1})


def estimate(configuration):
    """What the configuration takes with the nested network, in nnU-Net's unit."""
    architecture = configuration["architecture"]
    with torch.device("meta"):
        names = architecture["_kw_requires_import"]
        net = get_network_from_plans(NESTED, architecture["arch_kwargs"], names, 1, 2, allow_init=False)
    return int(net.compute_conv_feature_map_size(configuration["patch_size"]))


@pytest.mark.parametrize("knees", [OAI, ([[36, 384, 384]] * 4, [[3, 0.365, 0.365]] * 4)], ids=["OAI", "384"])
def test_knees_get_the_papers_patch_where_memory_allows(planner, knees):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plans = planner(nnUNetPlannerUNetPlusPlus, *knees, memory_gb=22)
    assert plans["plans_name"] == "nnUNetUNetPlusPlusPlans" and "anomaly" in plans
    assert set(plans["configurations"]) == {"2d", "3d_fullres"}
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [16, 256, 256] and configuration["batch_size"] == 2
    assert configuration["median_image_size_in_voxels"] == knees[0][0]
    assert configuration["spacing"] == knees[1][0]
    assert configuration["architecture"]["network_class_name"].endswith("unet.PlainConvUNet")
    assert configuration["architecture"]["arch_kwargs"]["strides"][:3] == [[1, 1, 1], [1, 2, 2], [1, 2, 2]]


def test_less_memory_makes_smaller_patches_and_the_warning_names_the_least_that_does_not(planner):
    with pytest.warns(UserWarning, match=r"8 GB .* 16 x 256 x 256 .* 12 x 192 x 192\. With -gpu_memory_target 22 "):
        plans = planner(nnUNetPlannerUNetPlusPlus, *OAI)
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [12, 192, 192]
    assert configuration["median_image_size_in_voxels"] == [36, 448, 448]
    assert estimate(configuration) <= 560e6  # nnU-Net's reference for a batch of two in 8 GB
    with pytest.warns(UserWarning, match="does not fit into 21 GB"):
        planner(nnUNetPlannerUNetPlusPlus, *OAI, memory_gb=21)


def test_images_smaller_than_the_patch(planner):
    plans = planner(nnUNetPlannerUNetPlusPlus, [[12, 200, 320]] * 4, [[3, 0.4, 0.4]] * 4, memory_gb=24)
    patch = plans["configurations"]["3d_fullres"]["patch_size"]
    assert patch[0] == 12 and patch[2] == 256
    assert 200 <= patch[1] < 232  # padded to what the network halves


def test_thin_slices_are_planned_as_nnunet_does_with_the_nested_networks_memory(planner):
    cases = [[96, 128, 128]] * 100, [[0.7, 0.5, 0.5]] * 100
    stock = planner(ExperimentPlanner, *cases)["configurations"]
    nested = planner(nnUNetPlannerUNetPlusPlus, *cases)["configurations"]
    assert stock["3d_fullres"]["patch_size"] == [96, 128, 128]
    assert nested["3d_fullres"]["patch_size"][0] > 16
    assert estimate(stock["3d_fullres"]) > 560e6 >= estimate(nested["3d_fullres"])
    assert nested["2d"]["patch_size"] == stock["2d"]["patch_size"]
    assert 2 <= nested["2d"]["batch_size"] < stock["2d"]["batch_size"]


def test_2d_images_are_planned_in_2d(planner):
    plans = planner(nnUNetPlannerUNetPlusPlus, [[1, 128, 128]] * 4, [[999, 1, 1]] * 4)
    assert set(plans["configurations"]) == {"2d"}


def test_the_batch_grows_with_memory(planner):
    more = planner(nnUNetPlannerUNetPlusPlus, [[36, 448, 448]] * 200, [[3, 0.357, 0.357]] * 200, memory_gb=80)
    configuration = more["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [16, 256, 256]
    assert configuration["batch_size"] == round(560e6 * 10 / estimate(configuration) * 2)
