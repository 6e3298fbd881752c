"""Trainers for a set number of epochs, as nnU-Net has them (``nnUNetTrainer_5epochs``), without writing each class.

A trainer module says ``__getattr__ = epoch_variants(globals())`` (PEP 562), and every trainer that it defines then has
its variants as attributes of that module: ``nnUNetTrainerInpainting_1epoch``, ``nnUNetTrainerInpainting_50epochs``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

VARIANT_NAME = re.compile(r"(?P<base>nnUNetTrainer\w+?)_(?P<epochs>1epoch|(?!1epochs)[1-9][0-9]*epochs)")


def epoch_variants(namespace: dict[str, Any]) -> Callable[[str], type]:
    """Make the ``__getattr__`` of a trainer module.

    Args:
        namespace: The module's ``globals()``.

    Returns:
        Function from a name, ``<trainer>_1epoch`` or ``<trainer>_<N>epochs`` with N > 1, to the subclass of that
        trainer which trains for N epochs; the same class for the same name. It raises AttributeError for any other
        name, and for trainers that the module imports rather than defines.
    """
    variants: dict[str, type] = {}

    def __getattr__(name: str) -> type:
        match = VARIANT_NAME.fullmatch(name)
        base = namespace.get(match["base"]) if match else None
        if match is None or not isinstance(base, type) or base.__module__ != namespace["__name__"]:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        if name not in variants:
            variants[name] = _variant(base, name, int(match["epochs"].partition("e")[0]))
        return variants[name]

    return __getattr__


def _variant(base: Any, name: str, num_epochs: int) -> type:
    class Variant(base):
        # nnU-Net reads this signature and stores each argument by its name, so it has to be exactly this one.
        def __init__(
            self,
            plans: dict,
            configuration: str,
            fold: int,
            dataset_json: dict,
            device: torch.device = torch.device("cuda"),  # noqa: B008 - as in nnU-Net
        ):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs = num_epochs

    Variant.__name__ = Variant.__qualname__ = name
    Variant.__module__ = base.__module__
    Variant.__doc__ = f"``{base.__name__}``, trained for {num_epochs} epoch{'s' * (num_epochs > 1)}."
    return Variant
