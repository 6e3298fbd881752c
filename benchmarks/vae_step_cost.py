"""A training step of the 3-D VAE with its loader and erasing, against its bare network forward and backward.

    python benchmarks/vae_step_cost.py [-device cuda] [--voxels 64] [--batch 32] [--workers 8] [--repeats 20]

Generated volumes lie preprocessed on disk; nnU-Net's loader reads and erases them in background processes while the
network works. Steps alternate with bare ones, so that a machine whose speed drifts slows both; the ratio of the medians
is printed. With ``--workers 0`` loading is done between the steps, and the ratio says what it costs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plans import plans_of

CASES = 64


def write_dataset(folder: Path, voxels: int) -> None:
    """Preprocessed volumes of a ball of noise, and the files that nnU-Net's trainer reads beside them."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    preprocessed = folder / "Dataset999_Benchmark"
    data_folder = preprocessed / "data"
    data_folder.mkdir(parents=True)
    rng, names = np.random.default_rng(0), [f"case_{number:03d}" for number in range(CASES)]
    grid = np.indices([voxels] * 3) - voxels / 2
    ball = (np.square(grid).sum(axis=0) < (0.4 * voxels) ** 2)[None]
    for name in names:
        data = rng.random((1, *[voxels] * 3), dtype=np.float32) * ball
        properties = {"class_locations": {1: np.argwhere(ball)[:100]}, "spacing": [1.0] * 3}
        nnUNetDatasetBlosc2.save_case(data, ball.astype(np.int8), properties, str(data_folder / name))
    splits = [{"train": names[8:], "val": names[:8]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    (preprocessed / "dataset_fingerprint.json").write_text("{}")


def bare_step(trainer: Any, data: torch.Tensor) -> None:
    """Forward, loss and backward on the same data as the step before, already on the device."""
    trainer.optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", enabled=trainer.device.type == "cuda"):
        loss = trainer.loss(trainer.network(data), data)
    loss.backward()
    float(loss.detach())  # a GPU has finished then


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--voxels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    os.environ["nnUNet_n_proc_DA"] = str(args.workers)  # noqa: SIM112 - nnU-Net's name
    with tempfile.TemporaryDirectory() as name:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[variable] = name
        write_dataset(Path(name), args.voxels)
        from nnunet_anomaly.planners.whole_volume import nnUNetPlannerWholeVolume, stages_of
        from nnunet_anomaly.trainers.vae import nnUNetTrainerVAECubeNoise

        dataset = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "brain": 1}, "file_ending": ".nii.gz"}
        stages = stages_of(args.voxels)
        features = [min(nnUNetPlannerWholeVolume.base_features * 2**stage, 256) for stage in range(stages)]
        plans = plans_of(
            "3d_whole",
            [args.voxels] * 3,
            args.batch,
            features,
            normalization=["ZScoreClipped01Normalization"],
            use_mask=True,
            first_stride=2,
            convolutions=1,
            norm="batchnorm.BatchNorm3d",
        )
        trainer = nnUNetTrainerVAECubeNoise(plans, "3d_whole", 0, dataset, torch.device(args.device))
        trainer.initialize()
        trainer.network.train()
        loader = trainer.get_dataloaders()[0]
        fixed = next(loader)["data"][:, :1].to(trainer.device)
        seconds: dict[str, list[float]] = {"whole": [], "bare": []}
        for repeat in range(args.repeats + 2):
            for kind, step in (
                ("whole", lambda: trainer.train_step(next(loader))),
                ("bare", lambda: bare_step(trainer, fixed)),
            ):
                start = time.perf_counter()
                step()
                if repeat >= 2:
                    seconds[kind].append(time.perf_counter() - start)
        whole, bare = (1000 * statistics.median(values) for values in seconds.values())
        print(f"training step {whole:.1f} ms, bare forward and backward {bare:.1f} ms, ratio {whole / bare:.3f}")
        if hasattr(loader, "_finish"):
            loader._finish()


if __name__ == "__main__":
    main()
