import copy

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_anomaly.augmentation.elastic import ElasticSpatialTransform, with_elastic_deformation
from nnunet_anomaly.augmentation.protected_channels import protect_channels

PIPELINES = {"2d": ((24, 28), False), "3d": ((12, 20, 16), False), "3d with dummy 2d": ((6, 28, 24), True)}
WEIGHT = 1 / 3


def pipeline(patch_size, dummy_2d, probability, rotation=0.0):
    stock = nnUNetTrainer.get_training_transforms(patch_size, (-0.3, 0.3), None, (), dummy_2d)
    for step in stock.transforms:
        if isinstance(step, SpatialTransform):
            step.p_rotation = step.p_scaling = rotation
        if hasattr(step, "apply_probability"):
            step.apply_probability = 0
    return protect_channels(with_elastic_deformation(stock, probability, WEIGHT), (1,))


def sample(patch_size, above_one, margin=4):
    shape = [size if len(patch_size) == 3 and axis == 0 else size + margin for axis, size in enumerate(patch_size)]
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(1, *shape, dtype=torch.int16)
    return {"image": torch.cat((image, torch.full((1, *shape), above_one))), "segmentation": labels}


def drawn(pipeline, data, seed=0):
    np.random.seed(seed)  # noqa: NPY002 - nnU-Net's transforms draw from the global state
    torch.manual_seed(seed)
    return pipeline(**copy.deepcopy(data))["image"]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_deformed_sample_weighs_a_third(name):
    patch_size, dummy_2d = PIPELINES[name]
    data = sample(patch_size, above_one=5.0)
    still, deformed = (drawn(pipeline(patch_size, dummy_2d, probability), data) for probability in (0, 1))
    assert (still[1] == 5).all()
    inside = deformed[(1, *[slice(4, -4) if size > 8 else slice(None) for size in patch_size])]
    torch.testing.assert_close(inside, torch.full_like(inside, WEIGHT * 6 - 1), atol=1e-4, rtol=0)
    assert not torch.allclose(still[0], deformed[0], atol=0.05)
    assert still.shape == deformed.shape == (2, *patch_size)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_rotation_alone_changes_no_weight(name):
    patch_size, dummy_2d = PIPELINES[name]
    data = sample(patch_size, above_one=0.0)
    rotated = drawn(pipeline(patch_size, dummy_2d, 0, rotation=1), data)
    assert (rotated[1] == 0).all()


def test_what_is_beyond_the_loaded_patch_weighs_1():
    patch_size = (20, 20)
    rotated = drawn(pipeline(patch_size, False, 0, rotation=1), sample(patch_size, above_one=7.0, margin=-8))
    assert (rotated[1, 0] == 0).all() and rotated[1].max() > 6.9


def test_only_what_was_drawn_counts_and_nnunets_draws_stay():
    patch_size, data = (24, 28), sample((24, 28), above_one=0.0)
    with_deformation = pipeline(patch_size, False, 0.5)
    means = [float(drawn(with_deformation, data, seed)[1].mean()) + 1 for seed in range(40)]
    assert all(mean == 1 or abs(mean - WEIGHT) < 1e-4 for mean in means)
    assert 8 < sum(mean < 0.5 for mean in means) < 32
    (elastic,) = (step for step in with_deformation.transforms if isinstance(step, ElasticSpatialTransform))
    stock = nnUNetTrainer.get_training_transforms(patch_size, (-0.3, 0.3), None, (), False).transforms[0]
    unchanged = {"p_elastic_deform", "elastic_deform_scale", "elastic_deform_magnitude", "sample_weight"}
    unchanged |= {"p_rotation", "p_scaling", "_grid_cache"}  # set by this test
    assert {k: v for k, v in vars(elastic).items() if k not in unchanged} == {
        k: v for k, v in vars(stock).items() if k not in unchanged
    }


@pytest.mark.parametrize("patch_size", [(64, 64), (32, 40, 48)])
def test_no_deformation_folds_the_image(patch_size):
    stock = SpatialTransform(patch_size, 0, False)
    elastic = ElasticSpatialTransform(stock, 1.0, WEIGHT)
    largest = []
    for seed in range(8):
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        offsets = elastic.get_parameters(image=torch.zeros(1, *patch_size))["elastic_offsets"].numpy()
        largest.append(np.abs(offsets).reshape(-1, len(patch_size)).max(axis=0) / patch_size)
        steps = [np.gradient(offsets[..., axis]) for axis in range(len(patch_size))]
        jacobian = np.stack([np.stack(step, axis=-1) for step in steps], axis=-2) + np.eye(len(patch_size))
        assert np.linalg.det(jacobian).min() > 0.2
    assert np.max(largest) <= 0.03 * (1 + 1e-5) and np.max(largest) > 0.02
