"""Peak memory of ``nnunet-anomaly evaluate-anomaly`` against the number of cases.

Four volumes of 191 x 158 x 163 voxels with lesions of 1 % of the brain are written once and linked under as many names
as there are cases, so that a large cohort costs no disk. Prints the peak of the main process, of the largest worker,
and what all of them together can take at most, beside what exact pooling is said to add, for these cases and for 1,000.

    python benchmarks/anomaly_memory.py /data/scratch --cases 4 16 64
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.evaluation.anomaly import pooling_bytes
from nnunet_anomaly.report.page import markdown_table

SHAPE = (163, 158, 191)
MEASURE = (
    "import resource, sys; from nnunet_anomaly.cli.main import main; code = main(sys.argv[1:]); "
    "print('PEAKS', *(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)));"
    "sys.exit(code)"
)


def write_volumes(folder: Path) -> None:
    """Brain, lesions and residuals of four cases."""
    z, y, x = (np.linspace(-1.15, 1.15, size) for size in SHAPE)
    brain = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 < 1
    for index in range(4):
        rng = np.random.default_rng(index)
        lesion = (z[:, None, None] - 0.3) ** 2 + (y[:, None] - 0.1 * index) ** 2 + x**2 < 0.215**2
        residual = rng.gamma(2, 0.05, SHAPE).astype(np.float32) + np.float32(0.2) * lesion
        for name, array in (("ref", lesion), ("brain", brain), ("maps", residual)):
            path = folder / "volumes" / name / f"{index}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = np.float32 if name == "maps" else np.uint8
            sitk.WriteImage(sitk.GetImageFromArray((array * brain).astype(kind)), str(path), True)


def measure(folder: Path, number: int, processes: int, extra: list[str]) -> dict[str, object]:
    """Evaluate so many linked cases and return the peaks in GB."""
    cohort = folder / f"cohort_{number}"
    for name in ("ref", "brain", "maps"):
        (cohort / name).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            link = cohort / name / f"case_{index:04d}.nii.gz"
            if not link.exists():
                link.symlink_to((folder / "volumes" / name / f"{index % 4}.nii.gz").resolve())
    command = [sys.executable, "-c", MEASURE, "evaluate-anomaly", "-ref", str(cohort / "ref"), "-pred"]
    command += [str(cohort / "maps"), "-m", str(cohort / "brain"), "-o", str(cohort / "out"), "-np", str(processes)]
    text = subprocess.run([*command, *extra], check=True, capture_output=True, text=True).stdout
    main, worker = (int(word) / 1e6 for word in next(x for x in text.splitlines() if x.startswith("PEAKS")).split()[1:])
    summary = json.loads((cohort / "out" / "summary.json").read_text(encoding="utf-8"))
    scores = summary["results"]["maps"]["pooled"]["lesion_voxels"]
    return {
        "cases": number,
        "pooled by": summary["settings"]["pooled_by"],
        "main process, GB": main,
        "largest worker, GB": worker if processes > 1 else 0.0,
        "together at most, GB": main + (processes * worker if processes > 1 else 0),
        "announced for exact pooling, GB": pooling_bytes(scores, processes) / 1e9,
        "1,000 cases, GB": pooling_bytes(scores * 1000 // number, processes) / 1e9,
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("-np", type=int, default=1)
    args, extra = parser.parse_known_args()
    write_volumes(args.folder)
    rows = [measure(args.folder, number, args.np, extra) for number in args.cases]
    print(markdown_table(rows, formats={key: ".2f" for key in rows[0] if key.endswith("GB")}))


if __name__ == "__main__":
    main()
