"""Pictures of the worst cases of a stress test: corrupted and predicted once more, since images are not kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_anomaly.report.stress_figures import draw_case
from nnunet_anomaly.workflow.stress import CaseFiles, Group, StressTest, read_case, stacked
from nnunet_anomaly.workflow.stress_models import Predictor, StressModel


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
        places = [place for place, worst in enumerate(chosen) if worst["case"] in by_name]
        if not places:
            continue
        predictors = {model.name: Predictor.load(model, group.folds, device, test.mirroring) for model in models}
        for place in places:
            worst = chosen[place]
            drawn[place] = _draw(test, by_name[worst["case"]], worst, predictors, reader, output)
    return [drawn[place] for place in sorted(drawn)]


def _draw(
    test: StressTest,
    files: CaseFiles,
    worst: Mapping[str, Any],
    predictors: Mapping[str, Predictor],
    reader: Any,
    output: Path,
) -> tuple[Path, str]:
    case, properties = read_case(files, test, reader)
    corrupted = test.corrupted(case, worst["corruption"], worst["severity"])
    predictions = {
        name: predictor.predict(stacked(corrupted), properties).astype(np.uint16)
        for name, predictor in predictors.items()
    }
    title = f"{files.name}: {worst['corruption'].replace('_', ' ')}, severity {worst['severity']:g}"
    before, after = worst["dice_uncorrupted"], worst["dice"]
    caption = f"{title}. Dice of {worst['model']}: {before:.3f} uncorrupted, {after:.3f} corrupted."
    path = output / f"{worst['corruption']}_{worst['severity']:g}_{files.name}.png"
    draw_case(
        path,
        title,
        corrupted.images[0],
        case.spacing_mm,
        case.images[0],
        case.labels,
        corrupted.labels,
        corrupted.anomaly,
        predictions,
    )
    return path, caption
