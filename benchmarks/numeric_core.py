"""The numeric core beside its peers: time, ratio and memory of every function that is called on every case.

    python benchmarks/numeric_core.py [--only NAME ...] [--repeats 5] [--size 1.0] [-o TABLE.md]

Inputs are made from a seed: a knee on the grid of the OAI's DESS (160 x 384 x 384, 0.7 x 0.365 x 0.365 mm, bones and
cartilages, a prediction with small errors, with and without far islands) and a pelvis (415 x 244 x 266, 0.78 mm, five
bones, pieces of a side under the other side's label). Each function runs in a process of its own, ours and its peer's
in turn, and both results are compared before any time is printed. Time: median of the repeats. Memory: highest
resident size during the calls above the one before them. The last rows are the commands over a cohort: two processes
beside one, and the resident size of the largest process. ``--size 0.3`` is a quick look on smaller grids.
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
from core_cohorts import COMMANDS, compare_processes, make_cohort
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
    return np.array([[found[str(label)][key] for key in ("dsc", "asd_mm", "hd_mm", "nsd")] for label in LABELS])


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
    same: Callable[[Any, Any], bool]
    goal: float
    most_mb: float = float("inf")


def equal(ours: Any, theirs: Any) -> bool:
    """Voxel for voxel."""
    return bool(np.array_equal(ours, theirs))


def within(tolerance: float) -> Callable[[Any, Any], bool]:
    """Absolute difference."""
    return lambda ours, theirs: bool(np.max(np.abs(np.asarray(ours) - theirs)) <= tolerance)


def relative(tolerance: float) -> Callable[[Any, Any], bool]:
    """Relative difference."""
    return lambda ours, theirs: bool(np.allclose(ours, theirs, rtol=tolerance, atol=0))


def same_surfaces(ours: Any, theirs: Any) -> bool:
    """Dice is the same; surface elements and voxel centres differ by less than two voxels, and the NSD by 0.1."""
    difference = np.abs(ours - theirs)
    return bool(difference[:, 0].max() < 1e-6 and difference[:, 1:3].max() < 1.5 and difference[:, 3].max() < 0.1)


def in_interval(ours: Any, theirs: Any) -> bool:
    """The exact values lie in the intervals that were given."""
    return bool((ours[:, 0] <= theirs + 1e-9).all() and (theirs <= ours[:, 1] + 1e-9).all())


def surface_work(prediction: str, goal: float) -> Work:
    """Surfaces with or without islands."""
    peers = {
        "surface-distance": lambda data: surfaces_by_surface_distance(data, prediction),
        "MONAI": lambda data: surfaces_by_monai(data, prediction),
    }
    return Work(lambda data: surfaces(data, prediction), peers, same_surfaces, goal, 300)


ONE_MM, NNUNET = (1.0, 1.0, 1.0), "nnU-Net"
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
        within(1.1e-3),
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
}


def resident_mb(key: str) -> float:
    """Resident memory now (VmRSS) or at its highest (VmHWM), in MB; NaN where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(key))


def measure(name: str, who: str, folder: Path, repeats: int) -> dict[str, Any]:
    """One function in this process: median seconds, memory, result."""
    function = WORKS[name].ours if who == "ours" else WORKS[name].peers[who]
    data = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    function({key: array[::4, ::4, ::4] for key, array in data.items()})  # imports are not what is measured
    before, seconds, result = resident_mb("VmRSS"), [], None
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew
    for _ in range(repeats):
        result = None
        start = time.perf_counter()
        result = function(data)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "mb": resident_mb("VmHWM") - before, "result": result}


def in_own_process(name: str, who: str, folder: Path, repeats: int) -> dict[str, Any]:
    """``measure`` in a fresh interpreter."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (name, who, folder, repeats))


def compare(name: str, folder: Path, repeats: int) -> dict[str, Any]:
    """A row of the table; of several peers the faster one, by one call each.

    Raises:
        SystemExit: both results differ by more than they may.
    """
    work = WORKS[name]
    first = {}
    if len(work.peers) > 1:
        first = {who: in_own_process(name, who, folder, 1)["seconds"][0] for who in work.peers}
    peer = min(work.peers, key=lambda who: first.get(who, 0.0))
    theirs, ours = in_own_process(name, peer, folder, repeats), in_own_process(name, "ours", folder, repeats)
    if not work.same(ours["result"], theirs["result"]):
        raise SystemExit(f"{name}: our result differs from that of {peer}")
    medians = [statistics.median(each["seconds"]) for each in (ours, theirs)]
    others = {who: round(value, 2) for who, value in first.items() if who != peer}
    ratio = medians[1] / medians[0]
    print(f"{name}: {medians[0]:.3f} s, {peer} {medians[1]:.3f} s, {ratio:.1f}x {others or ''}", flush=True)
    return {
        "work": name,
        "ours s": f"{medians[0]:.3f}",
        "peer": peer,
        "peer s": f"{medians[1]:.3f}",
        "ratio": f"{ratio:.1f}",
        "goal": f"{work.goal:g}",
        "ours MB": f"{ours['mb']:.0f}",
        "peer MB": f"{theirs['mb']:.0f}",
        "_missed": ratio < work.goal or ours["mb"] > work.most_mb,
    }


def machine() -> str:
    """What the figures were measured on."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES + PEER_PACKAGES)
    processor = names[0] if names else platform.machine()
    return f"{os.cpu_count()} cores ({processor}), Python {platform.python_version()}, {versions}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> int:
    """Print and write the table; the exit code says whether every goal was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*WORKS, *COMMANDS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=float, default=1.0, help="share of the grids' size along every axis")
    parser.add_argument("-o", "--output", type=Path, help="write the table here as well")
    args = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, commands = Path(name), [work for work in args.only if work in COMMANDS]
        make_inputs(folder, args.size)
        rows = [compare(work, folder, args.repeats) for work in args.only if work in WORKS]
        if commands:
            (folder / "cohort").mkdir()
            make_cohort(folder, folder / "cohort")
        rows += [compare_processes(command, folder / "cohort", args.repeats) for command in commands]
    missed = [row["work"] for row in rows if row.pop("_missed")]
    text = f"{machine()}; median of {args.repeats}, seed {SEED}\n\n{markdown_table(rows)}"
    print(f"\n{text}\n{'Goals missed: ' + ', '.join(missed) if missed else 'All goals reached.'}")
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
