"""Mirroring in training: labels of left and right change places with the structures."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_anomaly.augmentation.twin_mirroring import TwinMirrorTransform, exchange_labels, know_left_from_right

PAIRS = [(1, 2), (5, 3)]


@given(
    values=st.lists(st.integers(-1, 9), max_size=40),
    dtype=st.sampled_from([torch.int8, torch.int16, torch.int64]),
)
@settings(max_examples=50, deadline=None)
def test_exchanging_labels_is_a_lookup(values, dtype):
    twins = {1: 2, 2: 1, 5: 3, 3: 5}
    label_map = torch.tensor(values, dtype=dtype)
    exchanged = exchange_labels(label_map, twins)
    assert exchanged.tolist() == [twins.get(value, value) for value in values] and exchanged.dtype == dtype
    assert torch.equal(exchange_labels(exchanged, twins), label_map)


@pytest.mark.parametrize("axes", [[], [0], [2], [0, 2], [0, 1, 2]])
def test_labels_are_exchanged_when_the_side_axis_is_drawn_and_only_then(axes):
    rng = np.random.default_rng(0)
    label_maps = rng.integers(-1, 8, (2, 4, 5, 6))  # the cascade's previous stage is the second channel
    image, target = rng.normal(size=(1, 4, 5, 6)), rng.normal(size=(1, 4, 5, 6))
    data = {
        "image": torch.from_numpy(image),
        "segmentation": torch.from_numpy(label_maps.astype(np.int16)),
        "regression_target": torch.from_numpy(target),
    }
    result = TwinMirrorTransform((0, 1, 2), 2, PAIRS).apply(dict(data), axes=axes)
    expected = np.flip(label_maps, [axis + 1 for axis in axes])
    if 2 in axes:
        expected = np.vectorize({1: 2, 2: 1, 5: 3, 3: 5}.get)(expected, expected)
    np.testing.assert_array_equal(result["segmentation"], expected)
    for key, array in (("image", image), ("regression_target", target)):
        np.testing.assert_array_equal(result[key], np.flip(array, [axis + 1 for axis in axes]))
    assert data["segmentation"].tolist() == label_maps.tolist()  # the loader's own arrays stay


PIPELINES = {"2d": ((12, 14), False, 1), "3d": ((6, 8, 10), False, 2), "3d with dummy 2d": ((4, 12, 14), True, 2)}


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("kind", ["labels", "cascade", "regions"])
def test_nnunets_own_pipeline_gives_what_it_gives_for_exchanged_labels(name, kind, seed_everything):
    """Same draws: where the side axis is mirrored, the whole result is that of label maps exchanged beforehand."""
    size, dummy_2d, side_axis = PIPELINES[name]
    regions = [(1, 2, 3), (1, 5), (2, 3), 4] if kind == "regions" else None
    stock = nnUNetTrainer.get_training_transforms(
        size,
        (-0.3, 0.3),
        [[1.0] * len(size), [0.5] * len(size)],
        tuple(range(len(size))),
        dummy_2d,
        is_cascaded=kind == "cascade",
        foreground_labels=[1, 2, 3, 4, 5],
        regions=regions,
        ignore_label=6 if kind != "cascade" else None,
    )
    for transform in stock.transforms:
        if isinstance(transform, RandomTransform):
            transform.apply_probability = 0
    ours = know_left_from_right(stock, side_axis, PAIRS)
    assert [type(step) for step in stock.transforms].count(MirrorTransform) == 1  # untouched
    image = torch.randn((1, *size), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(-1, 7, (1 + (kind == "cascade"), *size), generator=torch.Generator().manual_seed(1))
    labels = labels.to(torch.int16)
    mirrored = []
    original = MirrorTransform.get_parameters
    for seed in range(8):
        results = []
        for pipeline in (ours, stock):
            seed_everything(seed)
            drawn = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    MirrorTransform,
                    "get_parameters",
                    lambda self, drawn=drawn, **data: drawn.append(original(self, **data)) or drawn[-1],
                )
                exchange = pipeline is stock and mirrored and mirrored[-1]
                given = exchange_labels(labels, {1: 2, 2: 1, 5: 3, 3: 5}) if exchange else labels
                results.append(pipeline(image=image.clone(), segmentation=given.clone()))
            if pipeline is ours:
                mirrored.append(side_axis in drawn[0]["axes"])
        torch.testing.assert_close(results[0]["image"], results[1]["image"], rtol=0, atol=0)
        for one, other in zip(results[0]["segmentation"], results[1]["segmentation"], strict=True):
            assert torch.equal(one, other)
    assert set(mirrored) == {True, False}
