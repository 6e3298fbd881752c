import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch.nn import functional

from nnunet_anomaly.losses.gap_weighted_loss import GapWeightedLoss

IGNORE = 3
KINDS = ("labels", "labels with ignore", "regions", "regions with ignore")


def plain(kind, dice_weight=1.0):
    """As nnUNetTrainer._build_loss makes it, without deep supervision."""
    dice = {"batch_dice": False, "smooth": 1e-5, "ddp": False}
    if kind.startswith("regions"):
        ignore = kind.endswith("ignore")
        loss = DC_and_BCE_loss(
            {}, {**dice, "do_bg": True}, use_ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss
        )
    else:
        ignored = IGNORE if kind.endswith("ignore") else None
        loss = DC_and_CE_loss(
            {**dice, "do_bg": False}, {}, ignore_label=ignored, dice_class=MemoryEfficientSoftDiceLoss
        )
    loss.weight_dice = dice_weight
    return loss


def batch(kind, shape=(4, 6, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, *shape, generator=generator, requires_grad=True)
    if kind.startswith("regions"):
        channels = 4 if kind.endswith("ignore") else 3
        return logits, torch.rand(2, channels, *shape, generator=generator) > 0.6
    highest = IGNORE + 1 if kind.endswith("ignore") else IGNORE
    return logits, torch.randint(0, highest, (2, 1, *shape), generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dice_weight", [0.0, 1.0])
def test_with_weights_of_1_it_is_nnunets_loss(kind, dice_weight):
    logits, target = batch(kind)
    expected = plain(kind, dice_weight)(logits, target)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = GapWeightedLoss(plain(kind), dice_weight)
    with loss.weighted_by(torch.zeros(2, 1, 4, 6, 8)):
        value = loss(logits, target)
    (gradient,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_it_is_the_mean_of_weight_times_cross_entropy():
    logits, target = batch("labels")
    above_one = 20 * torch.rand(2, 1, 4, 6, 8)
    loss = GapWeightedLoss(plain("labels"), 0.0)
    with loss.weighted_by(above_one):
        value = loss(logits, target)
    by_hand = ((1 + above_one[:, 0]) * functional.cross_entropy(logits, target[:, 0], reduction="none")).mean()
    torch.testing.assert_close(value, by_hand)


def test_a_sample_of_weight_a_third_counts_a_third():
    logits, target = batch("labels")
    loss, values = GapWeightedLoss(plain("labels"), 0.0), []
    for above_one in (torch.zeros(2, 1, 4, 6, 8), torch.full((2, 1, 4, 6, 8), 1 / 3 - 1)):
        with loss.weighted_by(above_one):
            values.append(loss(logits, target).item())
    assert values[1] == pytest.approx(values[0] / 3, rel=1e-5)


def test_deep_supervision_takes_the_mean_weight_of_every_coarse_voxel():
    fine, coarse = batch("labels"), batch("labels", (2, 3, 4), seed=1)
    above_one = 20 * torch.rand(2, 1, 4, 6, 8)
    loss = GapWeightedLoss(DeepSupervisionWrapper(plain("labels"), (0.75, 0.25)), 0.0)
    with loss.weighted_by(above_one):
        value = loss([fine[0], coarse[0]], [fine[1], coarse[1]])
    expected = 0
    for share, (logits, target), weights in (
        (0.75, fine, above_one),
        (0.25, coarse, functional.avg_pool3d(above_one, 2)),
    ):
        each = functional.cross_entropy(logits, target[:, 0], reduction="none")
        expected = expected + share * ((1 + weights[:, 0]) * each).mean()
    torch.testing.assert_close(value, expected)


def test_what_is_ignored_weighs_nothing():
    logits, target = batch("labels with ignore")
    above_one = 20 * torch.rand(2, 1, 4, 6, 8)
    values = []
    for change in (0, 1000):
        loss = GapWeightedLoss(plain("labels with ignore"), 0.0)
        with loss.weighted_by(above_one + change * (target == IGNORE)):
            values.append(loss(logits, target).item())
    assert values[0] == values[1]


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_a_batch_that_is_all_ignored_has_a_loss_of_0_and_no_gradient(deep_supervision):
    logits, target = batch("labels with ignore")
    target = torch.full_like(target, IGNORE)
    inner = plain("labels with ignore")
    loss = GapWeightedLoss(DeepSupervisionWrapper(inner, (1.0, 0.5)) if deep_supervision else inner, 0.0)
    with loss.weighted_by(torch.zeros(2, 1, 4, 6, 8)):
        value = loss([logits, logits], [target, target]) if deep_supervision else loss(logits, target)
    value.backward()
    assert value.item() == 0 and not logits.grad.any()
