"""Studies by the commands that a user types: each runs once, ever, so that a study goes on where it was stopped."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.files import load_json, save_json


class Console:
    """Commands, their environment and what is finished.

    Attributes:
        output: folder of the study, with nnU-Net's three folders, ``log.txt`` and ``done.json``.
        device: torch's name of the device.
    """

    def __init__(self, output: Path, device: str):
        self.output, self.device = output, device
        self.record = output / "done.json"
        self.done: list[str] = load_json(self.record) if self.record.is_file() else []
        folders = {name: str(output / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        for path in folders.values():
            Path(path).mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, **folders, "nnUNet_def_n_proc": "2"}

    def call(self, *command: str) -> None:
        """Run a console command once, ever; its output goes to a log.

        Raises:
            subprocess.CalledProcessError: the command failed.
        """
        line = shlex.join(command)
        if line in self.done:
            return
        print(f"$ {line}", flush=True)
        environment = dict(self.environment)
        if command[0] == "nnUNetv2_train" and self.device == "cpu":
            environment["nnUNet_n_proc_DA"] = "0"
        with open(self.output / "log.txt", "a", encoding="utf-8") as log:
            program = str(Path(sys.executable).parent / command[0])
            subprocess.run([program, *command[1:]], env=environment, stdout=log, stderr=log, check=True)
        self.done.append(line)
        save_json(self.done, self.record)


def over_seeds(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Number of seeds, and mean and SD of every figure."""
    row: dict[str, Any] = {"seeds": len(runs)}
    for name in dict.fromkeys(name for run in runs for name in run):
        numbers = [run[name] for run in runs if name in run]
        spread = f" ± {np.std(numbers, ddof=1):.3f}" if len(numbers) > 1 else ""
        row[name] = f"{np.mean(numbers):.3f}{spread}"
    return row
