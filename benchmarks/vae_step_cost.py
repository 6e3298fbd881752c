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

CASES = 64


def write_dataset(folder: Path, voxels: int) -> None:
    """Preprocessed volumes of a ball of noise, and the files that nnU-Net's trainer reads beside them."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    preprocessed = folder / "Dataset999_VAE"
    data_folder = preprocessed / "whole"
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


def plans_for(voxels: int, batch_size: int) -> dict[str, Any]:
    """Plans as ``nnUNetPlannerWholeVolume`` writes them."""
    from nnunet_anomaly.planners.whole_volume import nnUNetPlannerWholeVolume as Planner
    from nnunet_anomaly.settings import AnomalySettings

    stages = Planner.stages
    kwargs = {
        "n_stages": stages,
        "features_per_stage": [min(Planner.base_features * 2**stage, 256) for stage in range(stages)],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[2, 2, 2]] * stages,
        "n_conv_per_stage": [1] * stages,
        "n_conv_per_stage_decoder": [1] * stages,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.batchnorm.BatchNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "whole",
        "batch_size": batch_size,
        "patch_size": [voxels] * 3,
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreClipped01Normalization"],
        "use_mask_for_norm": [True],
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset999_VAE",
        "plans_name": "vaeStepCost",
        "configurations": {"3d_whole": configuration},
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "anomaly": AnomalySettings().with_values({"roi.labels": [1]}).to_dict(),
        "continue_training": False,
    }


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
        from nnunet_anomaly.trainers.vae import nnUNetTrainerVAECubeNoise

        dataset = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "brain": 1}, "file_ending": ".nii.gz"}
        plans = plans_for(args.voxels, args.batch)
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
