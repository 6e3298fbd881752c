"""Rows of a stress test that nobody ran: structures of cases, worse with severity, by models of different strength."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def stress_rows() -> Callable[..., list[dict[str, Any]]]:
    """Maker of rows: the first model loses most; where ``empty``, all predictions are."""

    def make(
        models: Sequence[str] = ("plain", "aware"),
        cases: int = 5,
        corruptions: Sequence[str] = ("noise", "bright_lesion"),
        structures: Sequence[str] = ("bone", "cartilage"),
        empty: bool = False,
    ) -> list[dict[str, Any]]:
        rng = np.random.default_rng(0)
        grades = {"none": (0.0,), **{name: (0.5, 1.0) for name in corruptions}}
        places = [(name, severity) for name, severities in grades.items() for severity in severities]
        return [
            _row(model, 0.3 if model == models[0] else 0.1, corruption, severity, f"case_{case}", structure, empty, rng)
            for model, (corruption, severity), case, structure in itertools.product(
                models, places, range(cases), structures
            )
        ]

    return make


def _row(
    model: str,
    harm: float,
    corruption: str,
    severity: float,
    case: str,
    structure: str,
    empty: bool,
    rng: np.random.Generator,
) -> dict[str, Any]:
    loss = harm * severity + rng.uniform(0, 0.01)
    key = {"model": model, "corruption": corruption, "severity": severity, "case": case, "fold": "0"}
    distances = {"asd_mm": 0.5 + loss, "hd_mm": 3 + 10 * loss, "hd95_mm": 1 + 4 * loss}
    if empty:
        distances = dict.fromkeys(distances, math.inf)
    return {
        **key,
        "structure": structure,
        "dsc": 0.0 if empty else 0.9 - loss,
        **distances,
        "nsd": 0.0 if empty else 0.95 - loss,
        "empty": "prediction" if empty else "",
        "reference_voxels": 100,
        "prediction_voxels": 0 if empty else 90,
        "components_reference": 1,
        "components_prediction": 0 if empty else 1 + round(10 * loss),
        "component_error": 1 if empty else round(10 * loss),
        "false_components": 0,
        "anomaly_voxels": 0 if corruption == "none" else 20,
        "anomaly_recall": math.nan if corruption == "none" else 0.0 if empty else 0.9 - loss,
    }
