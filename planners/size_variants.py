"""Planners of another size by their name, such as ``nnUNetPlannerLaMa_448pixels``, without writing each class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def size_variants(base: Any, attributes_of: Callable[[str], dict[str, Any] | None]) -> Callable[[str], type]:
    """Make the ``__getattr__`` of a planner module (PEP 562).

    Args:
        base: planner; its variants are called ``<base>_<size>``, and their plans ``<plans of base>_<size>``.
        attributes_of: class attributes for a size, or None where it is none.

    Returns:
        Function from a name to the subclass of ``base``; the same class for the same name. It raises AttributeError for
        any other name.
    """
    variants: dict[str, type] = {}

    def __getattr__(name: str) -> type:
        stem, _, size = name.partition("_")
        attributes = attributes_of(size) if stem == base.__name__ else None
        if attributes is None:
            raise AttributeError(f"module {base.__module__!r} has no attribute {name!r}")
        if name not in variants:
            variants[name] = _variant(base, name, size, attributes)
        return variants[name]

    return __getattr__


def _variant(base: Any, name: str, size: str, attributes: dict[str, Any]) -> type:
    own_plans = f"{base.__name__.replace('nnUNetPlanner', 'nnUNet', 1)}Plans_{size}"

    class Variant(base):
        def __init__(self, *args: Any, plans_name: str = own_plans, **kwargs: Any):
            super().__init__(*args, plans_name=plans_name, **kwargs)

    for key, value in attributes.items():
        setattr(Variant, key, value)
    Variant.__name__ = Variant.__qualname__ = name
    Variant.__module__ = base.__module__
    Variant.__doc__ = f"``{base.__name__}`` with another size: {size}."
    return Variant
