"""T2 of 30,000 cartilage voxels for ``numeric_core.py``: ours, scipy's ``curve_fit`` voxel by voxel, and DOSMA."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from core_inputs import ECHO_TIMES_MS
from core_peers import Arrays
from scipy.optimize import curve_fit

from nnunet_anomaly.relaxometry.t2_fit import Quality, fit_t2

SIGNALS = "t2 signals"
# An interpreter that has DOSMA, for this process and those that it starts; our own if not set.
PYTHON_VARIABLE = "DOSMA_PYTHON"
# curve_fit and DOSMA stop where a step would lower the cost by 1e-8 and 1e-5; tests compare to 1e-3 ms with less.
SAME_MS, DOSMA_SAME_MS = 0.01, 0.1
LEAST_COMPARED = 0.98


def t2_with_offset(data: Arrays) -> Any:
    """Signals, and T2, S0 and offset (3, voxels) of the paper's fit, without bounds of the offset as curve_fit's."""
    torch.set_num_threads(1)
    found = fit_t2(data[SIGNALS], ECHO_TIMES_MS, offset_bounds=(-math.inf, math.inf))
    good = found.quality == Quality.CONVERGED
    return data[SIGNALS], np.where(good, [found.t2_ms, found.s0, found.offset], np.nan)


def t2_with_offset_by_curve_fit(data: Arrays) -> Any:
    """The same as common scripts do it: start values, neither bounds nor Jacobian (Levenberg-Marquardt)."""

    def curve(time_ms: np.ndarray, t2_ms: float, s0: float, offset: float) -> np.ndarray:
        return s0 * np.exp(-time_ms / t2_ms) + offset

    times_ms, found = ECHO_TIMES_MS[1:], np.full((3, data[SIGNALS].shape[1]), np.nan)
    with np.errstate(over="ignore"):  # on its way, T2 may be negative
        for voxel, values in enumerate(data[SIGNALS][1:].T):
            try:
                found[:, voxel], _ = curve_fit(curve, times_ms, values, (40.0, 1.5 * values[0], 1.0))
            except RuntimeError:
                continue
    return data[SIGNALS], found


def same_minimum(ours: Any, theirs: Any) -> bool:
    """Nowhere has curve_fit found a lower minimum; where it has found ours (at least 98 %), T2 is the same."""
    (signals, our_fit), (_, their_fit) = ours, theirs
    costs = []
    for t2_ms, s0, offset in (our_fit, their_fit):
        with np.errstate(over="ignore", invalid="ignore"):
            costs.append(np.sum((s0 * np.exp(-ECHO_TIMES_MS[1:, None] / t2_ms) + offset - signals[1:]) ** 2, axis=0))
    same = costs[1] <= costs[0] * (1 + 1e-10)
    lower = costs[1] < costs[0] * (1 - 1e-6)
    differs = np.abs(our_fit[0] - their_fit[0])[same] > SAME_MS
    return bool(not lower.any() and not differs.any() and same.mean() >= LEAST_COMPARED)


def t2_alone(data: Arrays) -> Any:
    """T2 without an offset, as DOSMA fits it."""
    torch.set_num_threads(1)
    return fit_t2(data[SIGNALS], ECHO_TIMES_MS, model="mono").t2_ms


def has_dosma() -> bool:
    """Whether there is an interpreter that has DOSMA."""
    return PYTHON_VARIABLE in os.environ or importlib.util.find_spec("dosma") is not None


@functools.cache
def dosma_process() -> subprocess.Popen[str]:
    """The other interpreter; it ends when this process does."""
    command = [os.environ.get(PYTHON_VARIABLE, sys.executable), str(Path(__file__).with_name("dosma_fit.py"))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def t2_by_dosma(data: Arrays, processes: int) -> Any:
    """DOSMA's MonoExponentialFit, from the logarithmic line; the array's way there and back takes milliseconds."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "signals.npy", Path(name) / "t2.npy"
        np.save(source, data[SIGNALS][1:])
        process = dosma_process()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([str(source), processes, str(target)]) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "done\n":
            raise RuntimeError("DOSMA has failed; see above")
        return np.load(target)


def same_t2(ours: Any, theirs: Any) -> bool:
    """Within 0.1 ms wherever DOSMA has found a T2 (at least 98 %); it gives 0 elsewhere."""
    found = theirs > 0
    return bool(np.max(np.abs(ours - theirs)[found], initial=0) <= DOSMA_SAME_MS and found.mean() >= LEAST_COMPARED)
