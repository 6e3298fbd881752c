"""Pictures of the worst cases of a stress test: corrupted and predicted once more, since images are not kept.

Beside a picture lies a record of what it is made from, so that a later run draws it again only where that changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_anomaly.files import is_up_to_date, made_from, save_json
from nnunet_anomaly.report.stress_figures import draw_case
from nnunet_anomaly.workflow.stress import stacked
from nnunet_anomaly.workflow.stress_cases import read_case
from nnunet_anomaly.workflow.stress_models import StressModel
from nnunet_anomaly.workflow.stress_plan import CaseFiles, Group, StressTest
from nnunet_anomaly.workflow.stress_predictor import Predictor


def draw_worst_cases(
    test: StressTest,
    models: Sequence[StressModel],
    groups: Sequence[Group],
    chosen: Sequence[Mapping[str, Any]],
    reader: Any,
    output: Path,
    device: torch.device,
) -> list[tuple[Path, str]]:
    """A picture of every chosen case, with what every model makes of it.

    Args:
        test, models, groups, reader, device: as those of ``stress.run_stress_test``.
        chosen: by ``evaluation.stress.worst_cases``.
        output: folder of the pictures.

    Returns:
        Files and captions, in the order of ``chosen``.
    """
    drawn: dict[int, tuple[Path, str]] = {}
    for group in groups:
        by_name = {files.name: files for files in group.cases}
        predictors: dict[str, Predictor] = {}
        for place, worst in enumerate(chosen):
            if worst["case"] not in by_name:
                continue
            path = output / f"{worst['corruption']}_{worst['severity']:g}_{worst['case']}.png"
            source = _source(test, by_name[worst["case"]], worst, models, group)
            if not (path.is_file() and is_up_to_date(path.with_suffix(".json"), source)):
                if not predictors:  # loaded once a group, and only where there is something to draw
                    predictors = {
                        model.name: Predictor.load(model, group.folds, device, test.mirroring) for model in models
                    }
                _draw(test, by_name[worst["case"]], worst, predictors, reader, path)
                save_json({"made_from": source}, path.with_suffix(".json"))
            drawn[place] = path, _caption(worst)
    return [drawn[place] for place in sorted(drawn)]


def _source(
    test: StressTest, files: CaseFiles, worst: Mapping[str, Any], models: Sequence[StressModel], group: Group
) -> Any:
    """What a picture is made from."""
    checkpoints = [path for model in models for path in model.checkpoints(group.folds)]
    settings = test.settings(worst["corruption"], worst["severity"]) | {"models": [model.name for model in models]}
    return made_from([*files.images, files.labels, *checkpoints], settings)


def _title(worst: Mapping[str, Any]) -> str:
    return f"{worst['case']}: {worst['corruption'].replace('_', ' ')}, severity {worst['severity']:g}"


def _caption(worst: Mapping[str, Any]) -> str:
    before, after = worst["dice_uncorrupted"], worst["dice"]
    return f"{_title(worst)}. Dice of {worst['model']}: {before:.3f} uncorrupted, {after:.3f} corrupted."


def _draw(
    test: StressTest,
    files: CaseFiles,
    worst: Mapping[str, Any],
    predictors: Mapping[str, Predictor],
    reader: Any,
    path: Path,
) -> None:
    case, properties = read_case(files, test, reader)
    corrupted = test.corrupted(case, worst["corruption"], worst["severity"])
    predictions = {
        name: predictor.predict(stacked(corrupted), properties).astype(np.uint16)
        for name, predictor in predictors.items()
    }
    draw_case(
        path,
        _title(worst),
        corrupted.images[0],
        case.spacing_mm,
        case.images[0],
        case.labels,
        corrupted.labels,
        corrupted.anomaly,
        predictions,
    )
