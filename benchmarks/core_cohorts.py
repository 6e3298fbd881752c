"""Whole cohorts by the commands, with one process and with two: throughput, equal results, memory of all processes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from core_inputs import KNEE_MM

CASES, FEW = 32, 2  # throughput is told from both, so that a command's start does not count
GOAL = 1.7  # of two processes' throughput against that of one
# A process begins with the memory of the one that starts it, so that a small one starts the command.
LAUNCHER = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
# The kernel's proportional set size counts a page that processes share once.
SMAPS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
PROCESSES, MEMORY_CASES = (1, 2, 4), (16, 8)
COMMANDS = {
    "evaluate": ("evaluate", "-ref", "reference", "-pred", "prediction", "-o", "out"),
    "postprocess": ("postprocess", "-i", "prediction", "-o", "out"),
}


def make_cohort(arrays: Path, folder: Path) -> None:
    """References and predictions as compressed NIfTI: one knee, copied, since only time matters."""
    for name, source in (("reference", "knee"), ("prediction", "knee with islands")):
        image = sitk.GetImageFromArray(np.load(arrays / f"{source}.npy"))
        image.SetSpacing(KNEE_MM[::-1])
        (folder / name).mkdir()
        first = folder / name / "case_00.nii.gz"
        sitk.WriteImage(image, str(first), useCompression=True)
        for number in range(1, CASES):
            shutil.copyfile(first, folder / name / f"case_{number:02d}.nii.gz")


def first_cases(folder: Path, number: int) -> Path:
    """A cohort of the first so many cases of another one."""
    source = folder / f"first_{number}"
    if not source.exists():
        for kind in ("reference", "prediction"):
            (source / kind).mkdir(parents=True)
            for path in sorted((folder / kind).iterdir())[:number]:
                os.link(path, source / kind / path.name)
    return source


def run_command(name: str, folder: Path, processes: int) -> dict[str, Any]:
    """Seconds, MB of the largest process, and a digest of everything written but of what says when."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    command = [str(Path(sys.executable).parent / "nnunet-anomaly"), *COMMANDS[name], "-np", str(processes)]
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", LAUNCHER, *command], cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
    digest = hashlib.sha256()
    for path in sorted(path for path in (folder / "out").rglob("*") if path.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    return {"seconds": seconds, "mb": int(result.stdout) / 1024, "digest": digest.hexdigest()}


def peak_mb(name: str, folder: Path, processes: int, cases: int) -> float:
    """Highest memory of all processes of a command together, looked at every 20 ms; not to be timed. Linux only.

    Args:
        name, folder, processes: as in ``run_command``.
        cases: only the first so many of the cohort.
    """
    source = first_cases(folder, cases)
    shutil.rmtree(source / "out", ignore_errors=True)
    command = [str(Path(sys.executable).parent / "nnunet-anomaly"), *COMMANDS[name], "-np", str(processes)]
    running = subprocess.Popen(command, cwd=source, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak_kb = 0
    while running.poll() is None:
        peak_kb = max(peak_kb, sum(map(proportional_kb, family(running.pid))))
        time.sleep(0.02)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return peak_kb / 1024


def family(process: int) -> list[int]:
    """A process and all that it has started, and these have."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return []
    return [process, *(member for child in children for member in family(child))]


def proportional_kb(process: int) -> int:
    """Memory of one process, shared pages by share; 0 when it has ended."""
    try:
        found = SMAPS.search(Path(f"/proc/{process}/smaps_rollup").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def memory_row(name: str, folder: Path) -> dict[str, str]:
    """A row: memory of all processes together, by their number, and with half of the cases."""
    row = {"command": name}
    for processes in PROCESSES:
        row[f"MB, {processes} process{'es' if processes > 1 else ''}"] = (
            f"{peak_mb(name, folder, processes, MEMORY_CASES[0]):.0f}"
        )
    row[f"MB, 2 processes, {MEMORY_CASES[1]} cases"] = f"{peak_mb(name, folder, 2, MEMORY_CASES[1]):.0f}"
    print(row, flush=True)
    return row


def compare_processes(name: str, folder: Path, repeats: int) -> dict[str, Any]:
    """A row of the table: seconds a case of two processes against one, in turn, the command's start taken off.

    Raises:
        SystemExit: the results differ.
    """
    runs: dict[int, list[dict[str, Any]]] = {2: [], 1: []}
    for _ in range(repeats):
        for processes, found in runs.items():
            few = run_command(name, first_cases(folder, FEW), processes)["seconds"]
            found.append({"few": few, **run_command(name, folder, processes)})
    if len({run["digest"] for found in runs.values() for run in found}) > 1:
        raise SystemExit(f"{name}: the results of one process and of two differ")
    medians = {
        processes: [statistics.median(run[key] for run in found) for key in ("few", "seconds")]
        for processes, found in runs.items()
    }
    a_case = {processes: (all_cases - few) / (CASES - FEW) for processes, (few, all_cases) in medians.items()}
    megabytes = {processes: max(run["mb"] for run in found) for processes, found in runs.items()}
    ratio = a_case[1] / a_case[2]
    print(
        f"{name}: {CASES} cases {medians[2][1]:.1f} s by two processes, {medians[1][1]:.1f} s by one; {FEW} cases "
        f"{medians[2][0]:.1f} s and {medians[1][0]:.1f} s; throughput {ratio:.2f}x",
        flush=True,
    )
    return {
        "work": f"{name}, a case, two processes",
        "ours s": f"{a_case[2]:.3f}",
        "peer": "one process",
        "peer s": f"{a_case[1]:.3f}",
        "ratio": f"{ratio:.2f}",
        "goal": f"{GOAL:g}",
        "ours MB": f"{megabytes[2]:.0f}",
        "peer MB": f"{megabytes[1]:.0f}",
        "_missed": ratio < GOAL,
    }
