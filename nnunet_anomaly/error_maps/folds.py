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
    """Folds of a model folder that have a checkpoint: the numbered ones; ``all`` only where there is none, as nnU-Net.

    Empty where no fold has it.
    """
    numbered = in_order(int(path.parent.name[5:]) for path in model.glob(f"fold_[0-9]*/{checkpoint}"))
    return numbered or ([ALL] if (model / f"fold_{ALL}" / checkpoint).is_file() else [])
