"""What a run consists of and how far it is: ``run.json`` once, then a file per stage that ended.

A stage writes only its own file, so that stages on many machines never write into one another's. ``nnunet-anomaly
report`` reads both, and shows a run that is half finished as such.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import load_json, save_json

RUN_FILE = "run.json"
STAGES_FOLDER = "stages"
OPTIONAL_FOLDERS = ("references", "error_maps", "lesions", "anomalies")


@dataclass(frozen=True)
class CaseFolders:
    """Where the images lie that a report shows of each case; files are named as nnU-Net names them.

    Attributes:
        images: ``<case>_<channel>`` files.
        channel: the one that is shown.
        references: label maps ``<case>``, if there are any.
        predictions: folder of label maps by the name of the method, in the order in which they are shown.
        error_maps: folder of ``<case>_<error_channel>`` files, if there are any.
        error_channel: the channel that is an error map.
        lesions: masks of true lesions ``<case>``, if there are any.
        anomalies: masks of what was found ``<case>``, if there are any.
        label_names: name of each label.
    """

    images: Path
    channel: int = 0
    references: Path | None = None
    predictions: Mapping[str, Path] = field(default_factory=dict)
    error_maps: Path | None = None
    error_channel: int = 1
    lesions: Path | None = None
    anomalies: Path | None = None
    label_names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run as it was planned.

    Attributes:
        title: heading of its report.
        stages: title of each stage by its name, in the order of work.
        evaluations: folder by title: outputs of ``evaluate``, ``evaluate-anomaly``, ``evaluate-lesions``,
            ``evaluate-t2``, ``t2`` or ``stress``, whether they exist yet or not.
        cases: what the report shows of each case, if anything.
    """

    title: str
    stages: Mapping[str, str]
    evaluations: Mapping[str, Path] = field(default_factory=dict)
    cases: CaseFolders | None = None


@dataclass(frozen=True)
class StageState:
    """How far a stage is; commands, seconds, exit code and log are None until it has ended once."""

    name: str
    title: str
    state: Literal["done", "failed", "missing"]
    commands: Sequence[str] | None = None
    seconds: float | None = None
    exit_code: int | None = None
    log: Path | None = None


def save_run(run: Run, folder: Path) -> None:
    """Write ``run.json`` into the run's folder; paths below that folder are kept relative, so that it can be moved."""
    content: dict[str, Any] = {
        "title": run.title,
        "stages": dict(run.stages),
        "evaluations": {title: _relative(path, folder) for title, path in run.evaluations.items()},
        "cases": None,
    }
    if (cases := run.cases) is not None:
        content["cases"] = {
            "images": _relative(cases.images, folder),
            **{name: _relative(getattr(cases, name), folder) for name in OPTIONAL_FOLDERS},
            "channel": cases.channel,
            "error_channel": cases.error_channel,
            "predictions": {name: _relative(path, folder) for name, path in cases.predictions.items()},
            "label_names": {str(label): name for label, name in cases.label_names.items()},
        }
    save_json(content, folder / RUN_FILE)


def load_run(folder: Path) -> Run:
    """Read ``run.json``.

    Raises:
        InputError: there is none, or it is not what ``save_run`` writes.
    """
    content = load_json(folder / RUN_FILE)
    try:
        cases = content["cases"]
        if cases is not None:
            cases = CaseFolders(
                images=folder / cases["images"],
                **{name: _absolute(cases[name], folder) for name in OPTIONAL_FOLDERS},
                channel=int(cases["channel"]),
                error_channel=int(cases["error_channel"]),
                predictions={name: folder / path for name, path in cases["predictions"].items()},
                label_names={int(label): str(name) for label, name in cases["label_names"].items()},
            )
        evaluations = {title: folder / path for title, path in content["evaluations"].items()}
        return Run(str(content["title"]), dict(content["stages"]), evaluations, cases)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / RUN_FILE} is not the record of a run: {error!r}") from error


def save_stage(
    folder: Path, name: str, commands: Sequence[str], seconds: float, exit_code: int, log: Path | None = None
) -> None:
    """Write that a stage has ended, well (exit code 0) or not; a later end of the same stage replaces it."""
    content = {
        "commands": list(commands),
        "seconds": round(seconds, 1),
        "exit_code": exit_code,
        "log": None if log is None else _relative(log, folder),
    }
    save_json(content, folder / STAGES_FOLDER / f"{name}.json")


def load_stages(folder: Path, run: Run) -> list[StageState]:
    """State of every stage of a run, in the order of work.

    Raises:
        InputError: a stage's file is not what ``save_stage`` writes.
    """
    states = []
    for name, title in run.stages.items():
        path = folder / STAGES_FOLDER / f"{name}.json"
        if not path.is_file():
            states.append(StageState(name, title, "missing"))
            continue
        content = load_json(path)
        try:
            code, log = int(content["exit_code"]), _absolute(content["log"], folder)
            state: Literal["done", "failed"] = "done" if code == 0 else "failed"
            seconds, commands = float(content["seconds"]), [str(command) for command in content["commands"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not the record of a stage: {error!r}") from error
        states.append(StageState(name, title, state, commands, seconds, code, log))
    return states


def _relative(path: Path | None, folder: Path) -> str | None:
    if path is None:
        return None
    absolute, parent = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return absolute.relative_to(parent).as_posix() if absolute.is_relative_to(parent) else str(absolute)


def _absolute(path: str | None, folder: Path) -> Path | None:
    return None if path is None else folder / path
