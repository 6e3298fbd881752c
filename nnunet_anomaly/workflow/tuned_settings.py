"""How settings that ``nnunet-anomaly tune`` found are kept: a group in a file of its own, or in a model's plans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.files import load_json, save_json
from nnunet_anomaly.settings import BLOCK, AnomalySettings


def read_settings_file(path: Path, group: str) -> AnomalySettings:
    """Settings with one group as a file of ``tune`` has it, ``{"bml": {...}}``; all else at its default.

    Raises:
        InputError: the file is missing or is not JSON.
        SettingsError: it holds something else, or wrong values.
    """
    content = load_json(path)
    if not isinstance(content, dict) or list(content) != [group]:
        raise SettingsError(f'{path} must hold {{"{group}": {{...}}}} and nothing else.')
    return AnomalySettings.from_dict(content)


def write_into_plans(path: Path, group: str, values: Mapping[str, Any]) -> None:
    """Write values of a group into the ``"anomaly"`` block of a plans file; all else stays as it is.

    Plans without a block, as nnU-Net's own, get one.
    """
    plans = load_json(path)
    block = plans.setdefault(BLOCK, {})
    block[group] = {**block.get(group, {}), **values}
    save_json(plans, path)
