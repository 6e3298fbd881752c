"""T2 by DOSMA for ``numeric_core.py``, in an interpreter that has it; this file needs nothing else.

dosma 0.1.2 installs beside any numpy, but runs only below numpy 2, and then needs pandas below 3:

    python -m venv VENV && VENV/bin/pip install dosma "numpy<2" "pandas<3"
    python benchmarks/numeric_core.py --only "T2 without offset" --dosma-python VENV/bin/python

Every line of the standard input names signals (echoes, voxels), a number of processes, and where T2 is to be written;
when it is, a line answers. Wall and processor time of every call go to the standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np
from dosma.core.fitting import MonoExponentialFit
from dosma.core.med_volume import MedicalVolume


def fit(signals: np.ndarray, processes: int) -> np.ndarray:
    """T2 in ms of echoes every 10 ms from 20 ms, from the logarithmic line; 0 where none up to 100 ms was found.

    DOSMA's own default starts every voxel at S0 = 1 and T2 = 30 ms, and takes more than twice as long.
    """
    volumes = [MedicalVolume(values.reshape(-1, 1, 1), np.eye(4)) for values in signals]
    workers = 0 if processes == 1 else processes
    fitter = MonoExponentialFit(tc0="polyfit", num_workers=workers, decimal_precision=None)
    return np.asarray(fitter.fit(20.0 + 10 * np.arange(len(signals)), volumes)[0].volume).ravel()


def processor_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    return sum(os.times()[:4])


for line in sys.stdin:
    source, processes, target = json.loads(line)
    start, processor_start = time.perf_counter(), processor_seconds()
    np.save(target, fit(np.load(source), processes))
    wall_s, processor_s = time.perf_counter() - start, processor_seconds() - processor_start
    print(f"DOSMA, {processes} process(es): {wall_s:.2f} s, of processors {processor_s:.2f} s", file=sys.stderr)
    print("done", flush=True)
