"""One training step of S against one of nnU-Net's own trainer, on the same plans, patch and device.

    python benchmarks/step_cost.py [-device cuda] [--patch 64 96 96] [--features 32] [--repeats 10]

Both networks take image and error channel. Steps alternate, so that a machine whose speed drifts slows both; the ratio
of the medians is printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from plans import plans_of


def make_trainer(cls: type, args: argparse.Namespace, folder: str) -> Any:
    """A trainer with everything that a step needs, without data on disk."""
    import os

    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = folder
    dataset = {
        "channel_names": {"0": "MR", "1": "noNorm"},
        "labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4},
        "file_ending": ".nii.gz",
        "anomaly": {"channel_roles": {"1": "error_map"}},
    }
    features = [min(args.features * 2**stage, 320) for stage in range(5)]
    schemes = ("ZScoreNormalization", "NoNormalization")
    plans = plans_of("3d_fullres", args.patch, 2, features, normalization=schemes)
    trainer = cls(plans, "3d_fullres", 0, dataset, torch.device(args.device))
    # the last line of nnU-Net's initialize() looks for preprocessed files, which a step does not need
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as module

    module.infer_dataset_class = lambda folder: None
    trainer.initialize()
    return trainer


def main() -> None:
    """Print the medians and their ratio."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_anomaly.trainers.anomaly_aware import nnUNetTrainerAnomalyAware

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--patch", type=int, nargs=3, default=[32, 64, 64])
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainers = {cls.__name__: make_trainer(cls, args, folder) for cls in (nnUNetTrainer, nnUNetTrainerAnomalyAware)}
        data = torch.randn(2, 2, *args.patch)
        data[:, 1] = data[:, 1].square() * 0.01
        scales = next(iter(trainers.values()))._get_deep_supervision_scales()
        shapes = [[round(size * factor) for size, factor in zip(args.patch, scale, strict=True)] for scale in scales]
        batch = {"data": data, "target": [torch.randint(0, 5, (2, 1, *shape)).float() for shape in shapes]}
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for repeat in range(args.repeats + 2):
            for name, trainer in trainers.items():
                start = time.perf_counter()
                trainer.train_step(batch)  # ends with the loss on the CPU, so that a GPU has finished
                if repeat >= 2:
                    seconds[name].append(time.perf_counter() - start)
        plain, aware = (statistics.median(values) for values in seconds.values())
        print(f"nnUNetTrainer {1000 * plain:.1f} ms, nnUNetTrainerAnomalyAware {1000 * aware:.1f} ms, ", end="")
        print(f"ratio {aware / plain:.3f} (medians of {args.repeats})")


if __name__ == "__main__":
    main()
