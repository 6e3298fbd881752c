"""The numeric core beside its peers: time, ratio and memory of every function that is called on every case.

    python benchmarks/numeric_core.py [--only NAME ...] [--repeats 5] [--size 1.0] [--dosma-python PYTHON] [-o TABLE.md]

Inputs are made from a seed: a knee on the grid of the OAI's DESS (160 x 384 x 384, 0.7 x 0.365 x 0.365 mm, bones and
cartilages, a prediction with small errors, with and without far islands), a pelvis (415 x 244 x 266, 0.78 mm, five
bones, pieces of a side under the other side's label), and 30,000 T2 decays (echoes at 10 to 70 ms, the first left out;
T2 25 to 70 ms, Rician noise of S0 / sigma 100). Ours and its peer (of two the faster one) are called in turn, each in a
process of its own, and both results are compared before any time is printed. Time: median of the repeats; of
"T2 with offset", where both take one thread, that of the processor. Memory: highest resident size during the calls
above that before them. The last rows are the commands over a cohort: two processes beside one, and the resident size of
the largest process. ``--size 0.3`` is a quick look on smaller grids. ITK takes its distance transforms on all cores,
scipy on one: ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1 says how much that is. The row beside DOSMA, which needs older
packages than ours, is there where another interpreter has it (``dosma_fit.py``).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from core_cohorts import COMMANDS, MEMORY_CASES, compare_processes, make_cohort, memory_row
from core_inputs import HIP_MM, HIP_PAIRS, KNEE_MM, LABELS, SEED, make_inputs
from core_peers import (
    TOLERANCE_MM,
    Arrays,
    ball,
    collisions_and_gap_dice_by_scipy,
    curves_by_sklearn,
    gap_weights_by_scipy,
    largest_by_nnunet,
    surfaces_by_monai,
    surfaces_by_surface_distance,
    symmetric_by_nnunet,
)
from core_t2 import (
    PYTHON_VARIABLE,
    has_dosma,
    same_minimum,
    same_t2,
    t2_alone,
    t2_by_dosma,
    t2_with_offset,
    t2_with_offset_by_curve_fit,
)
from scipy import ndimage

from nnunet_anomaly.evaluation.anomaly import (
    average_precision,
    best_dice,
    detection_curve,
)
from nnunet_anomaly.evaluation.cohort import structure_metrics
from nnunet_anomaly.evaluation.gap import gap_dice
from nnunet_anomaly.evaluation.score_histogram import binned_detection, score_histogram
from nnunet_anomaly.geometry import close_mm, dilate_mm, open_mm
from nnunet_anomaly.losses.gap_weighted import gap_weights
from nnunet_anomaly.postprocessing.collisions import collision_set
from nnunet_anomaly.postprocessing.components import keep_components
from nnunet_anomaly.postprocessing.symmetric_components import symmetric_components
from nnunet_anomaly.report.page import markdown_table

PACKAGES = ("numpy", "scipy", "SimpleITK", "connected-components-3d", "nnunetv2")
PEER_PACKAGES = ("scikit-learn", "monai", "surface-distance")


def surfaces(data: Arrays, prediction: str) -> Any:
    """All figures of one case in one pass."""
    structures = {str(label): (label,) for label in LABELS}
    found = structure_metrics(data["knee"], data[prediction], KNEE_MM, structures, TOLERANCE_MM)
    keys = ("dsc", "asd_mm", "hd_mm", "hd95_mm", "nsd")
    return np.array([[found[str(label)][key] for key in keys] for label in LABELS])


def collisions_and_gap_dice(data: Arrays) -> Any:
    """Size of E, and Dice in the gap: pooled and mean."""
    found = gap_dice(data["hip"], data["hip prediction"], HIP_MM)
    collisions = collision_set(data["hip prediction"], HIP_MM)
    return np.array([np.count_nonzero(collisions), found.pooled, found.mean])


def curves(data: Arrays) -> Any:
    """Average precision and best Dice, exact."""
    curve = detection_curve(data["scores"], data["lesion"])
    return np.array([average_precision(curve), best_dice(curve)[0]])


def curves_binned(data: Arrays) -> Any:
    """Average precision and best Dice, with the interval that holds the exact values."""
    found = binned_detection(score_histogram(data["scores"], data["lesion"]))
    return np.array([found.average_precision_interval, found.best_dice_interval])


@dataclass(frozen=True)
class Work:
    """One row: what is done, by whom, how both results are compared, and what was aimed at."""

    ours: Callable[[Arrays], Any]
    peers: dict[str, Callable[[Arrays], Any]]
    same: Callable[[Any, Any], bool] | dict[str, Callable[[Any, Any], bool]]  # or by peer
    goal: float
    most_mb: float = float("inf")
    clock: Callable[[], float] = time.perf_counter


def equal(ours: Any, theirs: Any) -> bool:
    """Voxel for voxel."""
    return bool(np.array_equal(ours, theirs))


def within(tolerance: float) -> Callable[[Any, Any], bool]:
    """Absolute difference."""
    return lambda ours, theirs: bool(np.max(np.abs(np.asarray(ours) - theirs)) <= tolerance)


def relative(tolerance: float) -> Callable[[Any, Any], bool]:
    """Relative difference."""
    return lambda ours, theirs: bool(np.allclose(ours, theirs, rtol=tolerance, atol=0))


def like_surface_elements(ours: Any, theirs: Any) -> bool:
    """Dice is the same; surface elements and voxel centres differ by less than two voxels, and the NSD by 0.1."""
    difference = np.abs(ours - theirs)
    return bool(difference[:, 0].max() < 1e-6 and difference[:, 1:4].max() < 1.5 and difference[:, 4].max() < 0.1)


def in_interval(ours: Any, theirs: Any) -> bool:
    """The exact values lie in the intervals that were given."""
    return bool((ours[:, 0] <= theirs + 1e-9).all() and (theirs <= ours[:, 1] + 1e-9).all())


def surface_work(prediction: str, goal: float) -> Work:
    """Surfaces with or without islands."""
    peers = {
        "surface-distance": lambda data: surfaces_by_surface_distance(data, prediction),
        "MONAI": lambda data: surfaces_by_monai(data, prediction),
    }
    same = {"surface-distance": like_surface_elements, "MONAI": within(1e-4)}
    return Work(lambda data: surfaces(data, prediction), peers, same, goal, 300)


ONE_MM, NNUNET, WITH_DOSMA = (1.0, 1.0, 1.0), "nnU-Net", "T2 without offset"
WORKS: dict[str, Work] = {
    "surfaces, far islands": surface_work("knee with islands", 20),
    "surfaces": surface_work("knee prediction", 12),
    "largest component": Work(
        lambda data: keep_components(data["knee with islands"], KNEE_MM, min_share_of_largest=1),
        {NNUNET: lambda data: largest_by_nnunet(data["knee with islands"], LABELS)},
        equal,
        4.5,
    ),
    "components above a share": Work(
        lambda data: keep_components(data["knee with islands"], KNEE_MM),
        {NNUNET: lambda data: largest_by_nnunet(data["knee with islands"], LABELS)},
        equal,
        4.5,
    ),
    "symmetric components": Work(
        lambda data: symmetric_components(data["hip prediction"], HIP_MM, pairs=HIP_PAIRS),
        {f"{NNUNET}, twice": lambda data: symmetric_by_nnunet(data["hip prediction"])},
        equal,
        4,
    ),
    "gap weights": Work(
        lambda data: gap_weights(data["hip"], HIP_MM),
        {"scipy": lambda data: gap_weights_by_scipy(data["hip"])},
        within(1.01e-3),
        12,
        400,
    ),
    "opening, 3 voxels": Work(
        lambda data: open_mm(data["bone"], 3, ONE_MM),
        {"scipy": lambda data: ndimage.binary_opening(data["bone"], ball(3))},
        equal,
        5,
    ),
    "closing, 3 voxels": Work(
        lambda data: close_mm(data["bone"], 3, ONE_MM),
        {"scipy": lambda data: ndimage.binary_closing(data["bone"], ball(3))},
        equal,
        5,
    ),
    "dilation, 18 mm": Work(
        lambda data: dilate_mm(data["bone"], 18, KNEE_MM),
        {"scipy": lambda data: ndimage.distance_transform_edt(~data["bone"], sampling=KNEE_MM) <= 18},
        equal,
        3.5,
    ),
    "AP and best Dice": Work(curves, {"scikit-learn": curves_by_sklearn}, relative(1e-9), 5),
    "AP and best Dice, binned": Work(curves_binned, {"scikit-learn": curves_by_sklearn}, in_interval, 25),
    "collisions and GapDice": Work(
        collisions_and_gap_dice, {"scipy": collisions_and_gap_dice_by_scipy}, relative(1e-9), 8
    ),
    "T2 with offset": Work(
        t2_with_offset,
        {"scipy, curve_fit": t2_with_offset_by_curve_fit},
        same_minimum,
        100,
        clock=time.process_time,
    ),
    WITH_DOSMA: Work(
        t2_alone,
        {
            "DOSMA": lambda data: t2_by_dosma(data, 1),
            "DOSMA, two processes": lambda data: t2_by_dosma(data, 2),
        },
        same_t2,
        30,
    ),
}


def resident_mb(key: str) -> float:
    """Resident memory now (VmRSS) or at its highest (VmHWM), in MB; NaN where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(key))


class Runner:
    """One function in an interpreter of its own, so that its memory can be told; called when asked."""

    def __init__(self, name: str, who: str, folder: Path) -> None:
        self.pool = multiprocessing.get_context("spawn").Pool(1, prepare, (name, who, folder))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.terminate()

    def seconds(self) -> float:
        """Time of one call."""
        return self.pool.apply(call)

    def memory_and_result(self) -> tuple[float, Any]:
        """Highest resident MB during the calls above that before them, and the last result."""
        return self.pool.apply(memory_and_result)


STATE: dict[str, Any] = {}


def prepare(name: str, who: str, folder: Path) -> None:
    """In the worker: load the inputs and import what the function needs, which is not what is measured."""
    function = WORKS[name].ours if who == "ours" else WORKS[name].peers[who]
    data = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    function({key: array[::4, ::4, ::4] if array.ndim == 3 else array[:, ::40] for key, array in data.items()})
    STATE.update(function=function, data=data, clock=WORKS[name].clock, before=resident_mb("VmRSS"), result=None)
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew


def call() -> float:
    """In the worker: seconds of one call."""
    STATE["result"] = None
    start = STATE["clock"]()
    STATE["result"] = STATE["function"](STATE["data"])
    return STATE["clock"]() - start


def memory_and_result() -> tuple[float, Any]:
    """In the worker: what ``Runner.memory_and_result`` gives."""
    return resident_mb("VmHWM") - STATE["before"], STATE["result"]


def faster_peer(name: str, folder: Path) -> str:
    """The peer that is faster in one call, where there are several."""
    peers = list(WORKS[name].peers)
    if len(peers) == 1:
        return peers[0]
    seconds = {}
    for who in peers:
        with Runner(name, who, folder) as runner:
            seconds[who] = runner.seconds()
    print(f"{name}: {', '.join(f'{who} {value:.1f} s' for who, value in seconds.items())}", flush=True)
    return min(seconds, key=lambda who: seconds[who])


def compare(name: str, folder: Path, repeats: int) -> dict[str, Any]:
    """A row of the table: ours and its faster peer, in turn.

    Raises:
        SystemExit: both results differ by more than they may.
    """
    work, peer = WORKS[name], faster_peer(name, folder)
    with Runner(name, "ours", folder) as ours, Runner(name, peer, folder) as theirs:
        seconds = [(ours.seconds(), theirs.seconds()) for _ in range(repeats)]
        (our_mb, our_result), (their_mb, their_result) = ours.memory_and_result(), theirs.memory_and_result()
    same = work.same[peer] if isinstance(work.same, dict) else work.same
    if not same(our_result, their_result):
        raise SystemExit(f"{name}: our result differs from that of {peer}")
    our_s, their_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    ratio = their_s / our_s
    print(f"{name}: {our_s:.3f} s, {peer} {their_s:.3f} s, {ratio:.1f}x", flush=True)
    return {
        "work": name,
        "ours s": f"{our_s:.3f}",
        "peer": peer,
        "peer s": f"{their_s:.3f}",
        "ratio": f"{ratio:.1f}",
        "goal": f"{work.goal:g}",
        "ours MB": f"{our_mb:.0f}",
        "peer MB": "elsewhere" if name == WITH_DOSMA else f"{their_mb:.0f}",
        "_missed": ratio < work.goal or our_mb > work.most_mb,
    }


def machine() -> str:
    """What the figures were measured on."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES + PEER_PACKAGES)
    processor = names[0] if names else platform.machine()
    threads = f"ITK with {sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()} threads"
    return f"{os.cpu_count()} cores ({processor}), {threads}, Python {platform.python_version()}, {versions}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> int:
    """Print and write the table; the exit code says whether every goal was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*WORKS, *COMMANDS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=float, default=1.0, help="share of the grids' size along every axis")
    parser.add_argument("--dosma-python", metavar="PYTHON", help="an interpreter that has DOSMA")
    parser.add_argument("-o", "--output", type=Path, help="write the table here as well")
    args = parser.parse_args()
    if args.dosma_python:
        os.environ[PYTHON_VARIABLE] = args.dosma_python
    elif WITH_DOSMA in args.only and not has_dosma():
        if args.only != names:
            parser.error(f"'{WITH_DOSMA}' needs an interpreter that has DOSMA: --dosma-python PYTHON")
        args.only = [name for name in names if name != WITH_DOSMA]
        print(f"{WITH_DOSMA}: left out, as no interpreter with DOSMA was given (--dosma-python)", flush=True)
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, commands = Path(name), [work for work in args.only if work in COMMANDS]
        make_inputs(folder, args.size)
        rows = [compare(work, folder, args.repeats) for work in args.only if work in WORKS]
        if commands:
            (folder / "cohort").mkdir()
            make_cohort(folder, folder / "cohort")
        rows += [compare_processes(command, folder / "cohort", args.repeats) for command in commands]
        memory = [memory_row(command, folder / "cohort") for command in commands]
    missed = [row["work"] for row in rows if row.pop("_missed")]
    text = f"{machine()}; median of {args.repeats}, seed {SEED}\n\n{markdown_table(rows)}"
    if memory:
        text += (
            f"\n\nMemory of all processes of a command together, {MEMORY_CASES[0]} cases:\n\n{markdown_table(memory)}"
        )
    print(f"\n{text}\n{'Goals missed: ' + ', '.join(missed) if missed else 'All goals reached.'}")
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
