"""Plateaus and early stopping, against torch's own scheduler."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_anomaly.improvement import PlateauSchedule, epochs_without_improvement, reductions

SCORES = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, math.nan]), max_size=25)


def optimizer():
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


@given(SCORES, st.integers(1, 4))
def test_reductions_are_those_of_torch(scores, patience):
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer(), mode="max", factor=0.5, patience=patience - 1, threshold=0
    )
    for score in scores:
        reference.step(score)
    assert 0.5 ** reductions(scores, patience) == pytest.approx(reference.optimizer.param_groups[0]["lr"], rel=1e-6)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([], 0), ([0.5], 0), ([0.5, 0.6], 0), ([0.5, 0.5], 1), ([0.5, 0.4, 0.3], 2), ([0.1, 0.5, 0.4, math.nan], 2)],
)
def test_epochs_without_improvement(scores, expected):
    assert epochs_without_improvement(scores) == expected


def test_the_rate_of_an_epoch_follows_from_the_epochs_before():
    scores = [0.5, 0.4, 0.4, 0.4, 0.6]
    adam = optimizer()
    schedule = PlateauSchedule(adam, 1e-5, 0.9, 2, lambda: scores)
    rates = []
    for epoch in range(6):
        schedule.step(epoch)
        rates.append(adam.param_groups[0]["lr"])
    # two epochs no better than the first: less in the fourth; one more such epoch is not enough
    assert rates == pytest.approx([1e-5, 1e-5, 1e-5, 0.9e-5, 0.9e-5, 0.9e-5])
    assert schedule.get_last_lr() == [rates[-1]]
