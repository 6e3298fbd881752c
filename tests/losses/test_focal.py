import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from nnunet_anomaly.losses.focal import FocalCrossEntropy, FocalLoss

DICE = {"smooth": 1e-5, "ddp": False}
WEIGHTS = (4 / 7, 2 / 7, 1 / 7, 0.0)
IGNORE = 3
KINDS = ("labels", "labels with ignore", "regions", "regions with ignore")


def plain_loss(kind, batch_dice=False):
    """As in nnUNetTrainer._build_loss."""
    ignore = kind.endswith("ignore")
    if kind.startswith("regions"):
        dice = {**DICE, "batch_dice": batch_dice, "do_bg": True}
        return DC_and_BCE_loss({}, dice, use_ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)
    dice = {**DICE, "batch_dice": batch_dice, "do_bg": False}
    return DC_and_CE_loss(dice, {}, ignore_label=IGNORE if ignore else None, dice_class=MemoryEfficientSoftDiceLoss)


def batch(kind, shape=(8, 12, 10), seed=0):
    """Logits and target as nnU-Net makes them: int16 labels, or bool regions with the ignore label as last channel."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, *shape, generator=generator, requires_grad=True)
    if kind.startswith("regions"):
        channels = 4 if kind.endswith("ignore") else 3
        return logits, torch.rand(2, channels, *shape, generator=generator) > 0.6
    highest = IGNORE + 1 if kind.endswith("ignore") else IGNORE
    return logits, torch.randint(0, highest, (2, 1, *shape), generator=generator, dtype=torch.int16)


def value_and_gradient(loss, logits, target, error=None):
    logits.grad = None
    if error is None:
        value = loss(logits, target)
    else:
        with loss.weighted_by(error):
            value = loss(logits, target)
    value.backward()
    return value.item(), logits.grad.clone()


def cross_entropy_by_hand(logits, target, kind, focus):
    """Mean of F * CE in numpy, float64."""
    logits, focus = logits.detach().double().numpy(), focus.double().numpy()
    if kind.startswith("regions"):
        target = target.numpy()
        valid = ~target[:, -1:] if kind.endswith("ignore") else np.ones_like(target[:, :1])
        target = target[:, :3]
        p = 1 / (1 + np.exp(-logits))
        loss = focus * -np.where(target, np.log(p), np.log(1 - p)) * valid
        # with an ignore label nnU-Net sums over regions, without one it takes the mean
        return loss.sum() / valid.sum() / (1 if kind.endswith("ignore") else 3)
    target = target.numpy().astype(int)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    valid = target != IGNORE
    loss = -np.take_along_axis(log_p, np.where(valid, target, 0), 1) * valid * focus
    return loss.sum() / valid.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_dice", [False, True])
def test_alpha_1_beta_0_is_nnunets_loss(kind, batch_dice):
    logits, target = batch(kind)
    error = torch.rand(2, 1, 8, 12, 10)
    expected, expected_gradient = value_and_gradient(plain_loss(kind, batch_dice), logits, target)
    for loss, given in (
        (FocalLoss(plain_loss(kind, batch_dice), 1, 0), error),
        (FocalLoss(plain_loss(kind, batch_dice), 1, 99), None),
        (FocalLoss(plain_loss(kind, batch_dice), 1, 99), torch.zeros_like(error)),
    ):
        value, gradient = value_and_gradient(loss, logits, target, given)
        assert value == pytest.approx(expected, abs=1e-6)
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha, beta", [(1.0, 99.0), (10.0, 99.0), (0.5, 3.0)])
def test_focal_term_is_equation_2(kind, alpha, beta):
    logits, target = batch(kind)
    error = torch.rand(2, 1, 8, 12, 10) * 0.2
    value, _ = value_and_gradient(FocalLoss(plain_loss(kind), alpha, beta), logits, target, error)
    dice_only = plain_loss(kind)
    dice_only.weight_ce = 0
    expected = float(dice_only(logits, target).detach()) + alpha * cross_entropy_by_hand(
        logits, target, kind, 1 + beta * error
    )
    assert value == pytest.approx(expected, rel=1e-5)


def test_gradient_grows_with_the_error_map_voxel_by_voxel():
    logits, target = batch("labels")
    error = torch.rand(2, 1, 8, 12, 10)
    loss = FocalLoss(plain_loss("labels"), 1, 9)
    loss.loss.weight_dice = 0
    _, plain = value_and_gradient(loss, logits, target)
    _, focal = value_and_gradient(loss, logits, target, error)
    torch.testing.assert_close(focal, plain * (1 + 9 * error), rtol=1e-4, atol=1e-9)


def test_alpha_0_is_dice_alone():
    logits, target = batch("labels")
    loss = FocalLoss(plain_loss("labels"), 0, 99)
    dice = loss.loss.dc(logits, target)
    assert value_and_gradient(loss, logits, target, torch.rand(2, 1, 8, 12, 10))[0] == pytest.approx(dice.item())


def test_everything_ignored_leaves_a_finite_loss():
    logits, target = batch("labels with ignore")
    target = torch.full_like(target, IGNORE)
    error = torch.rand(2, 1, 8, 12, 10)
    value, gradient = value_and_gradient(FocalLoss(plain_loss("labels with ignore"), 1, 9), logits, target, error)
    assert np.isfinite(value) and torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", ["labels", "regions"])
def test_several_error_channels_count_by_their_mean(kind):
    logits, target = batch(kind)
    errors = torch.rand(2, 3, 8, 12, 10)
    loss = FocalLoss(plain_loss(kind), 1, 9)
    together = value_and_gradient(loss, logits, target, errors)[0]
    assert together == pytest.approx(value_and_gradient(loss, logits, target, errors.mean(1, keepdim=True))[0])


def scales(kind, size=(8, 16, 16)):
    pairs = [batch(kind, tuple(n // 2**level for n in size), seed=level) for level in range(4)]
    return [logits for logits, _ in pairs], [target for _, target in pairs]


def block_mean(values, factor):
    """Mean over cubes of ``factor`` voxels, by reshaping."""
    b, c, *shape = values.shape
    split = [n for size in shape for n in (size // factor, factor)]
    return values.reshape(b, c, *split).mean(dim=(3, 5, 7))


@pytest.mark.parametrize("kind", ["labels", "regions with ignore"])
def test_deep_supervision_is_the_weighted_sum_over_scales(kind):
    outputs, targets = scales(kind)
    error = torch.rand(2, 1, 8, 16, 16)
    loss = FocalLoss(DeepSupervisionWrapper(plain_loss(kind), WEIGHTS), 2, 9)
    single = FocalLoss(plain_loss(kind), 2, 9)
    expected = sum(
        weight * value_and_gradient(single, outputs[level], targets[level], block_mean(error, 2**level))[0]
        for level, weight in enumerate(WEIGHTS)
    )
    with loss.weighted_by(error):
        value = loss(outputs, targets)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_deep_supervision_without_error_maps_is_nnunets():
    outputs, targets = scales("labels")
    expected = DeepSupervisionWrapper(plain_loss("labels"), WEIGHTS)(outputs, targets)
    value = FocalLoss(DeepSupervisionWrapper(plain_loss("labels"), WEIGHTS), 1, 99)(outputs, targets)
    assert torch.equal(value, expected)


def test_scales_of_weight_zero_are_not_computed():
    outputs, targets = scales("labels")
    outputs[3] = torch.full_like(outputs[3], float("nan"))
    loss = FocalLoss(DeepSupervisionWrapper(plain_loss("labels"), WEIGHTS), 1, 9)
    with loss.weighted_by(torch.rand(2, 1, 8, 16, 16)):
        assert torch.isfinite(loss(outputs, targets))


def test_anisotropic_two_dimensional_and_uneven_scales():
    error = torch.rand(2, 1, 9, 14)
    logits, target = batch("labels", (9, 7))
    loss = FocalLoss(plain_loss("labels"), 1, 9)
    value, _ = value_and_gradient(loss, logits, target, error)
    halved = error.reshape(2, 1, 9, 7, 2).mean(-1)
    assert value == pytest.approx(value_and_gradient(loss, logits, target, halved)[0], rel=1e-6)
    logits, target = batch("labels", (5, 7))
    assert np.isfinite(value_and_gradient(loss, logits, target, error)[0])


def test_a_small_anomaly_weighs_the_same_at_every_scale():
    """Averaging keeps the mean of F; linear interpolation would miss this single voxel."""
    error = torch.zeros(1, 1, 16, 16, 16)
    error[0, 0, 5, 5, 5] = 1
    term = FocalCrossEntropy(nn.CrossEntropyLoss(), beta=4096.0)
    term.error = error
    for factor in (1, 2, 4, 8):
        logits = torch.zeros(1, 2, *[16 // factor] * 3)
        loss = term(logits, torch.zeros(1, *[16 // factor] * 3))
        assert loss.item() == pytest.approx(2 * np.log(2), rel=1e-5)


def test_weights_end_with_the_block_also_after_an_error():
    logits, target = batch("labels")
    loss = FocalLoss(plain_loss("labels"), 1, 9)
    plain = loss(logits, target)
    outer, inner = torch.rand(2, 1, 8, 12, 10), torch.rand(2, 1, 8, 12, 10) + 1
    with loss.weighted_by(outer):
        weighted = loss(logits, target)
        with pytest.raises(RuntimeError, match="inside"), loss.weighted_by(inner):
            assert loss(logits, target) > weighted
            raise RuntimeError("inside")
        assert torch.equal(loss(logits, target), weighted)
        with loss.weighted_by(None):
            assert torch.equal(loss(logits, target), plain)
    assert torch.equal(loss(logits, target), plain) and not torch.equal(plain, weighted)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_outputs_are_weighted_in_single_precision(kind):
    logits, target = batch(kind)
    error = torch.rand(2, 1, 8, 12, 10)
    loss = FocalLoss(plain_loss(kind), 1, 99)
    expected = value_and_gradient(loss, logits, target, error)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16), loss.weighted_by(error.half()):
        value = loss(logits.bfloat16(), target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("shape", [(1, 1, 8, 12, 10), (2, 8, 12, 10)])
def test_error_maps_of_another_batch_are_refused(shape):
    logits, target = batch("labels")
    with pytest.raises(ValueError, match="do not fit outputs"):
        value_and_gradient(FocalLoss(plain_loss("labels"), 1, 9), logits, target, torch.rand(shape))


def test_other_losses_are_refused():
    with pytest.raises(TypeError, match="MSELoss has no focal form"):
        FocalLoss(DeepSupervisionWrapper(nn.MSELoss(), WEIGHTS), 1, 9)
    with pytest.raises(TypeError, match="L1Loss has no focal form"):
        FocalCrossEntropy(nn.L1Loss(), 9)
    with pytest.raises(ValueError, match="class weights"):
        FocalCrossEntropy(nn.CrossEntropyLoss(weight=torch.ones(3)), 9)
