"""Folds of a model folder as nnU-Net names them: a number, or ``all`` for a network of all training cases."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

Fold = int | str
ALL = "all"


def fold_of(text: str) -> Fold:
    """A fold as it is typed.

    Raises:
        argparse.ArgumentTypeError: neither a number from 0 on nor ``all``.
    """
    if text != ALL and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no fold; it is a number or {ALL}")
    return text if text == ALL else int(text)


def in_order(folds: Iterable[Fold]) -> list[Fold]:
    """Each once, by number, ``all`` last."""
    return sorted(set(folds), key=lambda fold: (fold == ALL, fold))


def folds_of(model: Path, checkpoint: str) -> list[Fold]:
    """Folds of a model folder that have a checkpoint: the numbered ones, and ``all`` only where there is none.

    Empty where no fold has it. Other folders, such as ``fold_0_old``, are no folds.
    """
    names = (path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{checkpoint}"))
    numbered = in_order(int(name) for name in names if name.isdecimal())
    return numbered or ([ALL] if (model / f"fold_{ALL}" / checkpoint).is_file() else [])
