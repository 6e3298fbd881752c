"""Fixtures for all tests, and a closing line on what was left out for lack of real images."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from unittest import mock

os.environ.setdefault("nnUNet_def_n_proc", "1")  # read when nnU-Net is imported

import numpy as np
import pytest
import SimpleITK as sitk

DATA_VARIABLE = "NNUNET_ANOMALY_TEST_DATA"
PLANS = "nnUNetAnomalyTinyPlans"


@dataclass
class Workspace:
    """nnU-Net's three folders, and its commands run in them as a user would."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a user of these folders."""
        folders = {name: str(self.root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        return {**os.environ, **folders, "nnUNet_def_n_proc": "1"}

    def run(
        self, *command: str, expect: int | None = 0, here: bool | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a console command of this environment; ``expect`` is its exit code, None for any but 0.

        With ``here`` in this process, by the function that the console script calls: importing torch and nnU-Net takes
        5 seconds each time. If it is not given ours run here, and nnU-Net's in a process of their own.
        """
        environment = {**self.environment, **variables}
        if command[0] == "nnunet-anomaly" if here is None else here:
            result = run_here(list(command), environment)
        else:
            program = str(Path(sys.executable).parent / command[0])
            result = subprocess.run(
                [program, *command[1:]], env=environment, capture_output=True, encoding="utf-8", errors="replace"
            )
        passed = result.returncode != 0 if expect is None else result.returncode == expect
        assert passed, f"{' '.join(command)} gave {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        return result

    def train(
        self,
        dataset: int,
        configuration: str,
        fold: int | str,
        trainer: str,
        *more: str,
        plans: str = PLANS,
        here: bool = True,
        steps: int | None = None,
    ) -> str:
        """``nnUNetv2_train`` on the CPU, in this process or its own; returns what it printed.

        ``steps``: a single epoch of so many, in this process, where it is enough that there is a network. nnU-Net's
        epochs have 250 and 50 of validation.
        """
        command = ["nnUNetv2_train", str(dataset), configuration, str(fold), "-tr", trainer, "-p", plans, *more]
        with contextlib.nullcontext() if steps is None else shorter_epochs(steps):
            return self.run(*command, "-device", "cpu", here=here, nnUNet_n_proc_DA="0").stdout


@contextlib.contextmanager
def shorter_epochs(steps: int) -> Iterator[None]:
    """In this process ``nnUNetv2_train`` trains one epoch of so many steps."""
    from nnunetv2.run import run_training

    made = run_training.get_trainer_from_args

    def make(*arguments, **named):
        trainer = made(*arguments, **named)
        trainer.num_epochs, trainer.num_iterations_per_epoch = 1, steps
        trainer.num_val_iterations_per_epoch = max(steps // 5, 1)
        return trainer

    with mock.patch.object(run_training, "get_trainer_from_args", make):
        yield


@contextlib.contextmanager
def one_thread_and_own_random_numbers() -> Iterator[None]:
    """torch with one thread, whatever nnU-Net's commands ask for; random numbers go on afterwards as if nothing was."""
    import torch

    threads = torch.get_num_threads()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - what nnU-Net draws from
    torch.set_num_threads(1)
    try:
        with mock.patch.object(torch, "set_num_threads", lambda number: None):
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def run_here(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A console command, ours or nnU-Net's, in this process: what it printed, and its exit code."""
    if stock := command[0] != "nnunet-anomaly":
        (script,) = entry_points(group="console_scripts", name=command[0])
        main = script.load()
    else:
        from nnunet_anomaly.cli.main import main
    output, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(sys, "argv", command),
        one_thread_and_own_random_numbers() if stock else contextlib.nullcontext(),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            code = main() if stock else main(command[1:])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        except Exception:
            if not stock:  # ours catch what they expect
                raise
            traceback.print_exc()
            code = 1
    return subprocess.CompletedProcess(command, int(code or 0), output.getvalue(), errors.getvalue())


def write_image(path: Path, array: np.ndarray, spacing_mm: tuple[float, ...] = (2.0, 1.5, 1.5)) -> None:
    """Write an array (z, y, x) with spacing in the same order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[::-1])
    image.SetOrigin((10.0, -20.0, 5.0))
    sitk.WriteImage(image, str(path))


def tiny_case(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels, 16x24x24: a dark bone with texture (1) under bright cartilage (2), shifted by case."""
    rng = np.random.default_rng(index)
    z, y, x = np.meshgrid(np.arange(16), np.arange(24), np.arange(24), indexing="ij")
    shift = rng.uniform(-1.5, 1.5, 3)
    distance = np.sqrt(((z - 8 - shift[0]) / 6) ** 2 + ((y - 12 - shift[1]) / 8) ** 2 + ((x - 12 - shift[2]) / 8) ** 2)
    labels = np.where(distance < 0.75, 1, np.where(distance < 1, 2, 0)).astype(np.uint8)
    image = np.choose(labels, [100.0, 40.0, 200.0]) + rng.normal(0, 6, labels.shape)
    return image.astype(np.float32), labels


def write_tiny_dataset(folder: Path, cases: int = 6) -> None:
    """A standard dataset of tiny cases with two folds."""
    names = [f"case_{index:02d}" for index in range(cases)]
    for index, name in enumerate(names):
        image, labels = tiny_case(index)
        write_image(folder / "imagesTr" / f"{name}_0000.nii.gz", image)
        write_image(folder / "labelsTr" / f"{name}.nii.gz", labels)
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "bone": 1, "cartilage": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "anomaly": {"channel_roles": {"0": "image"}, "roi_labels": ["bone"]},
    }
    half = cases // 2
    splits = [{"train": names[:half], "val": names[half:]}, {"train": names[half:], "val": names[:half]}]
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "splits_final.json").write_text(json.dumps(splits))


def mese_case(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Three echoes (3, 10, 32, 32) and labels: cartilage (1) under bone, in slices 2 to 7.

    Contrast changes from echo to echo, as T2 differ: 30 ms of bone, 45 of cartilage, 120 of the fluid around.
    """
    rng = np.random.default_rng(100 + index)
    z, y, x = np.meshgrid(np.arange(10), np.arange(32), np.arange(32), indexing="ij")
    shift_y, shift_x = rng.uniform(-2, 2, 2)
    radius = np.hypot(y - 12 - shift_y, x - 16 - shift_x)
    labels = ((radius > 6) & (radius < 12) & (y > 12) & (abs(z - 4.5) < 3)).astype(np.uint8)
    bone = radius <= 6
    signal, t2_ms = np.where(bone, 600.0, 1000.0), np.where(labels == 1, 45.0, np.where(bone, 30.0, 120.0))
    echoes = [signal * np.exp(-echo_time_ms / t2_ms) for echo_time_ms in (10, 20, 30)]
    return (np.stack(echoes) + rng.normal(0, 20, (3, *labels.shape))).astype(np.float32), labels


def write_mese_dataset(folder: Path, channels: int = 3, cases: int = 6) -> None:
    """A multi-echo dataset with thick slices, two folds, and the first ``channels`` echoes."""
    names = [f"case_{index:02d}" for index in range(cases)]
    for index, name in enumerate(names):
        echoes, labels = mese_case(index)
        for channel in range(channels):
            write_image(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz", echoes[channel], (3.0, 0.5, 0.5))
        write_image(folder / "labelsTr" / f"{name}.nii.gz", labels, (3.0, 0.5, 0.5))
    description = {
        "channel_names": {str(channel): f"MESE_echo{channel + 1}" for channel in range(channels)},
        "labels": {"background": 0, "femoral_cartilage": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    half = cases // 2
    splits = [{"train": names[:half], "val": names[half:]}, {"train": names[half:], "val": names[:half]}]
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "splits_final.json").write_text(json.dumps(splits))


@pytest.fixture(scope="session")
def planned_mese(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A tiny multi-echo dataset (104), planned and preprocessed by nnU-Net's own command."""
    workspace = Workspace(tmp_path_factory.mktemp("planned_mese"))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (workspace.root / name).mkdir()
    write_mese_dataset(workspace.root / "nnUNet_raw" / "Dataset104_MESE")
    command = ["nnUNetv2_plan_and_preprocess", "-d", "104", "-pl", "nnUNetPlannerMESETiny", "-c", "2d"]
    workspace.run(*command, "-np", "1", "-npfp", "1", "--verify_dataset_integrity", here=True)
    return workspace


@pytest.fixture(scope="session")
def new_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workspace]:
    """Make nnU-Net's three folders, empty."""

    def make(name: str) -> Workspace:
        workspace = Workspace(tmp_path_factory.mktemp(name))
        for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (workspace.root / folder).mkdir()
        return workspace

    return make


@pytest.fixture(scope="session")
def planned(new_workspace: Callable[[str], Workspace]) -> Workspace:
    """A tiny dataset (101), planned and preprocessed by nnU-Net's own command."""
    workspace = new_workspace("planned")
    write_tiny_dataset(workspace.root / "nnUNet_raw" / "Dataset101_Tiny")
    configurations = ["3d_fullres", "2d", "3d_inpainting", "2d_inpainting"]
    command = ["nnUNetv2_plan_and_preprocess", "-d", "101", "-pl", "nnUNetPlannerAnomalyTiny", "-c", *configurations]
    workspace.run(*command, "-np", "1", "-npfp", "1", "--verify_dataset_integrity", here=True)
    return workspace


@pytest.fixture(scope="session")
def planned_whole(planned: Workspace) -> Workspace:
    """The tiny dataset, planned and preprocessed in whole volumes of 16 voxels as well."""
    command = ["nnUNetv2_plan_and_preprocess", "-d", "101", "-pl", "nnUNetPlannerWholeVolume_16voxels"]
    planned.run(*command, "-c", "3d_whole", "-np", "1", "-npfp", "1", here=True)
    return planned


@pytest.fixture(scope="session")
def planned_planar(planned: Workspace) -> Workspace:
    """The tiny dataset, planned and preprocessed for planes of several directions as well."""
    command = ["nnUNetv2_plan_and_preprocess", "-d", "101", "-pl", "nnUNetPlannerMultiPlanarTiny"]
    planned.run(*command, "-c", "3d_multiplanar", "-np", "1", "-npfp", "1", here=True)
    return planned


@pytest.fixture(scope="session")
def write_tiny_image() -> Callable[[Path, int], np.ndarray]:
    """Write the image of tiny case ``index`` to a path and return its array."""

    def write(path: Path, index: int) -> np.ndarray:
        image, _ = tiny_case(index)
        write_image(path, image)
        return image

    return write


@pytest.fixture(scope="session")
def write_mese_images() -> Callable[[Path, str, int], np.ndarray]:
    """Write the three echoes of tiny multi-echo case ``index`` into a folder, and return its labels."""

    def write(folder: Path, name: str, index: int) -> np.ndarray:
        echoes, labels = mese_case(index)
        for channel, echo in enumerate(echoes):
            write_image(folder / f"{name}_{channel:04d}.nii.gz", echo, (3.0, 0.5, 0.5))
        return labels

    return write


@pytest.fixture
def new_trainer(planned: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Make a trainer of ours, or nnU-Net's, on the tiny dataset: in this process, two steps an epoch.

    ``new_trainer(cls, configuration="3d_inpainting", fold=0, **settings)``; settings have ``__`` for their dot.
    """
    import torch
    from batchgenerators.utilities.file_and_folder_operations import load_json

    from nnunet_anomaly.planners.anomaly import write_settings
    from nnunet_anomaly.settings import AnomalySettings

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(planned.root / name))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nnUNet_results"))

    def make(cls, configuration="3d_inpainting", fold=0, dataset_json=None, plans=None, plans_name=PLANS, **settings):
        folder = planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
        plans = plans or load_json(str(folder / f"{plans_name}.json"))
        if settings:
            values = {key.replace("__", "."): value for key, value in settings.items()}
            write_settings(plans, AnomalySettings.from_plans(plans).with_values(values))
        plans["continue_training"] = False
        dataset_json = dataset_json or load_json(str(folder / "dataset.json"))
        trainer = cls(plans, configuration, fold, dataset_json, torch.device("cpu"))
        trainer.num_iterations_per_epoch = 2
        trainer.num_val_iterations_per_epoch = 1
        trainer.num_epochs = min(trainer.num_epochs, 2)
        return trainer

    yield make
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real images; a test that uses it is skipped where ``NNUNET_ANOMALY_TEST_DATA`` is not set."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"set {DATA_VARIABLE} to the folder with the real test images")
    if not Path(folder).is_dir():
        pytest.fail(f"{DATA_VARIABLE}={folder} is not a folder", pytrace=False)
    return Path(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped for lack of real images."""
    skipped = terminalreporter.stats.get("skipped", [])
    number = sum(DATA_VARIABLE in str(report.longrepr) for report in skipped)
    hint = f" (set {DATA_VARIABLE})" if number else ""
    terminalreporter.write_line(f"skipped for lack of real data: {number}{hint}")
