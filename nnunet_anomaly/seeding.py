"""One seed for everything that a trainer draws in its own process."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int, fold: int | str, rank: int = 0) -> None:
    """Seed Python, numpy and torch from the plans' seed, so that folds and GPUs draw differently but repeatably.

    Background workers of nnU-Net's loaders draw their own seeds: bit-identical runs need ``nnUNet_n_proc_DA=0``.
    """
    value = (seed + 1000 * (fold if isinstance(fold, int) else 999) + 100_000 * rank) % 2**32
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002 - nnU-Net's loader and transforms draw from the global state
    torch.manual_seed(value)
