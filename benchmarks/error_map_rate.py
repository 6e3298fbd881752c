"""Error maps of a cohort: cases a second by the command, beside what its parts take alone.

    python benchmarks/error_map_rate.py -d 300 -tr TRAINER -p PLANS -c 3d_whole -i IMAGES [--processes 1 2]

A trained network of any of our reconstruction trainers and a folder of images are needed (nnU-Net's three folders are
taken from the environment). The command runs on all images and on the first one alone; their difference is its time
without the start. Beside it, one after the other in this one process, its three parts: reading and preprocessing, the
network, and resampling back and writing. A command that hides the shorter parts behind the longer ones takes no longer
than their sum shared among its processes, or than the longest.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_anomaly.error_maps.model import case_maps, load_model, prepare_case
from nnunet_anomaly.error_maps.predict import save_in_original_geometry
from nnunet_anomaly.files import nnunet_folder
from nnunet_anomaly.report.page import markdown_table


def seconds_of_command(args: argparse.Namespace, images: list[Path], processes: int) -> float:
    """Wall time of ``nnunet-anomaly error-maps`` on some images."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "images"
        source.mkdir()
        for path in images:
            (source / path.name).symlink_to(path.resolve())
        command = [str(Path(sys.executable).parent / "nnunet-anomaly"), "error-maps", "-d", args.dataset]
        command += ["-tr", args.trainer, "-p", args.plans, "-c", args.configuration, "-f", args.fold]
        command += ["-i", str(source), "-o", str(Path(name) / "maps"), "-np", str(processes), "-device", args.device]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", required=True)
    parser.add_argument("-tr", "--trainer", required=True)
    parser.add_argument("-p", "--plans", required=True)
    parser.add_argument("-c", "--configuration", required=True)
    parser.add_argument("-f", "--fold", default="0")
    parser.add_argument("-i", "--images", type=Path, required=True, help="<case>_0000.nii.gz")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("-device", default="cpu")
    args = parser.parse_args()
    images = sorted(args.images.glob("*_0000.nii.gz"))
    folder = nnunet_folder("nnUNet_results") / maybe_convert_to_dataset_name(args.dataset)
    name = f"{args.trainer}__{args.plans}__{args.configuration}"
    model = load_model(folder / name, [int(args.fold)])
    seconds = {"read and preprocess": 0.0, "network": 0.0, "resample back and write": 0.0}
    with tempfile.TemporaryDirectory() as scratch:
        for path in images:
            times = [time.perf_counter()]
            case = prepare_case([path], None, model.plans, model.configuration, model.dataset_json)
            times.append(time.perf_counter())
            error, _ = case_maps(model, case, torch.device(args.device))
            times.append(time.perf_counter())
            grid = (case.properties, model.plans, model.configuration.spacing)
            save_in_original_geometry(error, [Path(scratch) / path.name], *grid)
            times.append(time.perf_counter())
            for part, (start, stop) in zip(seconds, itertools.pairwise(times), strict=True):
                seconds[part] += stop - start
    rows = []
    for processes in args.processes:
        rest = seconds_of_command(args, images, processes) - seconds_of_command(args, images[:1], processes)
        rows.append(
            {"what": f"the command, {processes} background", "ms a case": f"{1e3 * rest / (len(images) - 1):.0f}"}
        )
    rows += [
        {"what": f"{part} alone", "ms a case": f"{1e3 * total / len(images):.0f}"} for part, total in seconds.items()
    ]
    print(f"{len(images)} images\n\n{markdown_table(rows)}")


if __name__ == "__main__":
    main()
