"""UNet++: its wiring against the paper's recursion, against nnU-Net's U-Net, and what it costs."""

import math

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_anomaly.architectures.unet_plus_plus import UNetPlusPlus

CLASSES = 3
THICK = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]
THICK_KERNELS = [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]]


def arguments(strides, kernels=None, *, features=None, residual=False, n_conv=2):
    """What plans say of a U-Net with these strides."""
    stages, dimension = len(strides), len(strides[0])
    return {
        "input_channels": 2,
        "num_classes": CLASSES,
        "n_stages": stages,
        "features_per_stage": features or [4 + 3 * stage for stage in range(stages)],
        "conv_op": {2: nn.Conv2d, 3: nn.Conv3d}[dimension],
        "kernel_sizes": kernels or [[3] * dimension] * stages,
        "strides": strides,
        ("n_blocks_per_stage" if residual else "n_conv_per_stage"): [n_conv] * stages,
        "n_conv_per_stage_decoder": [n_conv] * (stages - 1),
        "conv_bias": True,
        "norm_op": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dimension],
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }


def network(strides=THICK, kernels=THICK_KERNELS, *, deep_supervision=False, **more):
    torch.manual_seed(0)
    net = UNetPlusPlus(**arguments(strides, kernels, **more), deep_supervision=deep_supervision)
    return net.apply(net.initialize).eval()


def image(*shape):
    return torch.randn((2, 2, *shape), generator=torch.Generator().manual_seed(1))


def node(net, x, level, column):
    """X^{i,j} by the definition (Zhou 2019, equation 1), recursively."""
    if column == 0:
        return net.encoder(x)[level]
    below = net.decoder.ups[f"{level}_{column}"](node(net, x, level + 1, column - 1))
    row = [node(net, x, level, earlier) for earlier in range(column)]
    return net.decoder.nodes[f"{level}_{column}"](torch.cat((below, *row), 1))


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize(
    ("strides", "kernels", "shape"),
    [
        (THICK, THICK_KERNELS, (6, 16, 24)),
        ([[1, 1], [2, 2], [2, 1], [2, 2], [1, 2]], None, (16, 24)),
        ([[1, 1, 1], [2, 2, 2], [1, 1, 2]], [[3, 3, 3], [3, 1, 3], [3, 3, 3]], (4, 6, 12)),
    ],
    ids=["thick slices", "2-D", "odd"],
)
def test_every_head_is_the_papers_at_full_resolution(strides, kernels, shape, residual):
    net = network(strides, kernels, residual=residual, deep_supervision=True)
    x = image(*shape)
    heads = net(x)
    depth = len(strides) - 1
    assert len(heads) == depth
    for column, head in zip(range(depth, 0, -1), heads, strict=True):
        assert head.shape == (2, CLASSES, *shape)
        torch.testing.assert_close(head, net.decoder.seg_layers[column - 1](node(net, x, 0, column)))


def test_levels_have_the_features_and_kernels_of_the_encoders():
    net = network()
    assert len(net.decoder.nodes) == 6  # 3 + 2 + 1
    for key, stack in net.decoder.nodes.items():
        level, column = map(int, key.split("_"))
        first, second = (block.conv for block in stack.convs)
        assert first.in_channels == (column + 1) * (4 + 3 * level)
        assert first.out_channels == second.in_channels == second.out_channels == 4 + 3 * level
        assert list(first.kernel_size) == list(second.kernel_size) == THICK_KERNELS[level]
        assert list(net.decoder.ups[key].stride) == THICK[level + 1]


def test_convolutions_a_node_are_those_of_its_level():
    kwargs = arguments(THICK) | {"n_conv_per_stage_decoder": [3, 2, 1]}  # from the deepest on, as in nnU-Net
    net = UNetPlusPlus(**kwargs)
    assert {key: len(stack.convs) for key, stack in net.decoder.nodes.items()} == {
        "0_1": 1, "0_2": 1, "0_3": 1, "1_1": 2, "1_2": 2, "2_1": 3,
    }  # fmt: skip


def test_number_of_parameters_by_hand():
    net = UNetPlusPlus(**arguments([[1, 1], [2, 2], [2, 2]], features=[2, 3, 5], n_conv=1))

    def block(wide, narrow):
        return 9 * wide * narrow + narrow + 2 * narrow  # 3 x 3, bias, scale and shift

    def up(wide, narrow):
        return 4 * wide * narrow + narrow

    encoder = block(2, 2) + block(2, 3) + block(3, 5)
    first_column = up(3, 2) + block(2 * 2, 2) + up(5, 3) + block(2 * 3, 3)
    second_column = up(3, 2) + block(3 * 2, 2)
    heads = 2 * (2 * CLASSES + CLASSES)
    assert sum(parameter.numel() for parameter in net.parameters()) == encoder + first_column + second_column + heads


@pytest.mark.parametrize("column", [1, 2, 3])
def test_a_heads_gradient_reaches_what_it_is_made_of_and_nothing_else(column):
    net = network(deep_supervision=True)
    net(image(4, 8, 8))[3 - column].square().sum().backward()

    def reached(module):
        touched = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in module.parameters()]
        assert any(touched) == any(parameter.grad is not None for parameter in module.parameters())
        return any(touched)

    assert [reached(stage) for stage in net.encoder.stages] == [level <= column for level in range(4)]
    for key in net.decoder.nodes:
        within = sum(map(int, key.split("_"))) <= column
        assert reached(net.decoder.nodes[key]) == reached(net.decoder.ups[key]) == within, key
    assert [reached(layer) for layer in net.decoder.seg_layers] == [head == column for head in (1, 2, 3)]


@pytest.mark.parametrize("stock", [PlainConvUNet, ResidualEncoderUNet])
def test_with_one_level_it_is_nnunets_unet(stock):
    kwargs = arguments([[1, 1, 1], [1, 2, 2]], residual=stock is ResidualEncoderUNet)
    torch.manual_seed(0)
    unet, net = stock(**kwargs, deep_supervision=True), UNetPlusPlus(**kwargs, deep_supervision=True)
    net.encoder.load_state_dict(unet.encoder.state_dict())
    net.decoder.ups["0_1"].load_state_dict(unet.decoder.transpconvs[0].state_dict())
    net.decoder.nodes["0_1"].load_state_dict(unet.decoder.stages[0].state_dict())
    net.decoder.seg_layers.load_state_dict(unet.decoder.seg_layers.state_dict())
    x = image(3, 8, 8)
    (found,), (expected,) = net(x), unet(x)
    assert torch.equal(found, expected)
    assert net.compute_conv_feature_map_size((3, 8, 8)) == unet.compute_conv_feature_map_size((3, 8, 8))


def test_prediction_is_the_last_head_the_ensemble_or_that_of_a_pruned_network():
    net = network(deep_supervision=True)
    x = image(4, 8, 8)
    third, second, first = net(x)
    ran = []
    for name, module in [("stage", stage) for stage in net.encoder.stages] + list(net.decoder.nodes.items()):
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    net.decoder.deep_supervision = False
    assert torch.equal(net(x), third) and len(ran) == 4 + 6
    net.decoder.ensemble = True
    torch.testing.assert_close(net(x), (first + second + third) / 3)
    net.decoder.prediction_depth = 2
    torch.testing.assert_close(net(x), (first + second) / 2)
    net.decoder.ensemble = False
    ran.clear()
    assert torch.equal(net(x), second) and ran == ["stage"] * 3 + ["0_1", "1_1", "0_2"]
    net.decoder.prediction_depth = 1
    assert torch.equal(net(x), first)
    net.decoder.deep_supervision = True  # pruned in prediction alone
    assert len(net(x)) == 3


def test_a_compiled_network_does_the_same():
    """nnU-Net compiles it on a GPU, and switches deep supervision of what it has compiled."""
    torch._dynamo.reset()
    net, x = network(deep_supervision=True), image(4, 8, 8)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert all(torch.equal(*pair) for pair in zip(compiled(x), net(x), strict=True))
    compiled._orig_mod.decoder.deep_supervision = False
    assert torch.equal(compiled(x), net(x))
    torch._dynamo.reset()


def kept_for_backward(net, x):
    """Numbers that a training step keeps in memory, parameters aside."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net.train()(x)
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in kept.values())


@pytest.mark.parametrize("stages", [3, 5])
def test_the_estimate_of_memory_is_in_nnunets_unit(stages):
    """As many numbers are kept for each that is counted as in nnU-Net's own U-Net, whose estimate is calibrated."""
    shape, kwargs = (4, 32, 32), arguments([*THICK, [1, 2, 2]][:stages], features=[8, 16, 32, 64, 64][:stages])
    ratios = []
    for cls in (PlainConvUNet, UNetPlusPlus):
        net = cls(**kwargs, deep_supervision=True)
        ratios.append(kept_for_backward(net, image(*shape)) / net.compute_conv_feature_map_size(shape))
    assert ratios[1] == pytest.approx(ratios[0], rel=0.03)


def test_the_estimate_by_hand():
    net = UNetPlusPlus(**arguments([[1, 1], [2, 2], [2, 2]], features=[2, 3, 5], n_conv=1))
    full, half, quarter = math.prod((8, 12)), math.prod((4, 6)), math.prod((2, 3))
    encoder = 2 * full + 3 * half + 5 * quarter
    nodes = 2 * full + 2 * full + 3 * half
    inputs = (2 * 2 * full + 3 * 2 * full + 2 * 3 * half) / 2
    assert net.compute_conv_feature_map_size((8, 12)) == encoder + nodes + inputs + 2 * CLASSES * full


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [[2, 2], [2, 2]]}, r"first stage has strides \[2, 2\]"),
        ({"n_conv_per_stage_decoder": [1, 1]}, "2 entries, not 1"),
        ({"n_stages": 1, "features_per_stage": [2], "kernel_sizes": [[3, 3]], "strides": [[1, 1]],
          "n_conv_per_stage": [1], "n_conv_per_stage_decoder": []}, "two stages at least"),
    ],
)  # fmt: skip
def test_what_is_no_unet_plus_plus_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNetPlusPlus(**arguments([[1, 1], [2, 2]]) | change)
