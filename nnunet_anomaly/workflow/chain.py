"""Chains of console commands that are printed before they run, stage by stage; a stage that is done is not repeated."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_anomaly.errors import AnomalyError, InputError
from nnunet_anomaly.files import find_dataset_folder, load_json, save_json


@dataclass
class Chain(ABC):
    """All stages, each a list of commands; then a report.

    Attributes:
        folder: everything goes here, nnU-Net's folders too.
        cases: images to train on.
        test_cases: held-out images.
        epochs: of every network.
        device: torch's name of the device.
    """

    folder: Path
    cases: int
    test_cases: int
    epochs: int
    device: str

    @abstractmethod
    def stages(self) -> Iterator[tuple[str, list[list[str]]]]:
        """Name and commands of every stage; made one by one, since later ones read what earlier ones wrote."""

    @abstractmethod
    def report(self, stages: Mapping[str, Any]) -> Path:
        """Write the report and return its path; ``stages`` has seconds and commands of each."""

    def run(self) -> int:
        """Run what is not done yet, then write the report.

        Raises:
            InputError: the folder holds a demo with other options.
            AnomalyError: a command failed.
        """
        options = {
            "demo": type(self).__name__,
            "cases": self.cases,
            "test_cases": self.test_cases,
            "epochs": self.epochs,
        }
        record = self.folder / "demo.json"
        state: dict[str, Any] = load_json(record) if record.is_file() else {"options": options, "stages": {}}
        if state["options"] != options:
            raise InputError(
                f"{self.folder} holds a demo with {state['options']}. Choose another folder, or remove it."
            )
        for stage, commands in self.stages():
            if stage in state["stages"]:
                print(f"== {stage}: done before")
                continue
            print(f"\n== {stage}", flush=True)
            start = time.monotonic()
            for command in commands:
                self.call(command)
            state["stages"][stage] = {
                "seconds": round(time.monotonic() - start, 1),
                "commands": [shlex.join(command) for command in commands],
            }
            save_json(state, record)
        report = self.report(state["stages"])
        print(f"\nAll done in {sum(stage['seconds'] for stage in state['stages'].values()):.0f} s. Look at {report}")
        return 0

    def path(self, *parts: str) -> str:
        """Path in the demo's folder."""
        return str(self.folder.joinpath(*parts))

    def environment(self, command: list[str]) -> dict[str, str]:
        """nnU-Net's folders inside the demo's; few processes, since the cases are small."""
        folders = {name: self.path(name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        for path in folders.values():
            Path(path).mkdir(parents=True, exist_ok=True)
        variables = {**os.environ, **folders, "nnUNet_def_n_proc": "2"}
        if command[0] == "nnUNetv2_train" and self.device == "cpu":
            variables["nnUNet_n_proc_DA"] = "0"  # the patches are so small that a worker would only be in the way
        return variables

    def call(self, command: list[str]) -> None:
        """Print a command and run it; what it prints goes to a log file.

        Raises:
            AnomalyError: it failed; the end of its log is in the message.
        """
        print(f"$ {shlex.join(command)}", flush=True)
        program = Path(sys.executable).parent / command[0]
        if not program.is_file():
            raise InputError(f"{command[0]} is not installed beside {sys.executable}.")
        log = self.folder / "demo.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as handle:
            handle.write(f"$ {shlex.join(command)}\n")
            handle.flush()
            result = subprocess.run(
                [str(program), *command[1:]], env=self.environment(command), stdout=handle, stderr=subprocess.STDOUT
            )
        if result.returncode != 0:
            end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise AnomalyError(f"'{shlex.join(command)}' gave exit code {result.returncode}. The end of {log}:\n{end}")

    def trainer(self, name: str) -> str:
        """Trainer of the demo's number of epochs."""
        return f"nnUNetTrainer{name}_{self.epochs}epoch{'s' if self.epochs > 1 else ''}"

    def raw(self, dataset: str) -> Path:
        """Raw folder of a dataset."""
        return find_dataset_folder(self.folder / "nnUNet_raw", dataset)
