"""One step, and one prediction, of A inside S against S with a precomputed error map: time and memory.

    python benchmarks/end_to_end_cost.py [-device cuda] [--patch 64 64 64] [--features 16] [--repeats 8]

Same plans, patch and device, batch of 2; A has voxels twice as long. Variants take turns, so that a machine whose speed
drifts slows all; medians are printed. Memory is the highest resident size of a process of its own above that before
the network is made (on CUDA: what torch allocated at most). What precomputing costs beforehand (a pass of A over every
whole image, and a channel more on disk) is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from plans import plans_of

CASES = [f"case_{index}" for index in range(5)]
SPLITS = [{"train": [other for other in CASES if other != case], "val": [case]} for case in CASES]
G, A = (f"nnUNetTrainerInpainting{name}__benchmark__3d_inpainting" for name in ("", "Mimic"))
JOINT = "joint"
VARIANTS = {
    "precomputed": None,
    "end to end, frozen": {"exported": "fold"},
    "end to end, mean of 5": {"exported": "mean"},
    "end to end, fine-tuned": {"exported": "mean", "fine_tuned": True},
    JOINT: {},
}


def dataset_of(channels: int) -> dict[str, Any]:
    """A dataset.json; the second channel is an error map."""
    names = {"0": "MR"} | ({"1": "noNorm"} if channels == 2 else {})
    return {
        "channel_names": names,
        "labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4},
        "file_ending": ".nii.gz",
        "anomaly": {"channel_roles": {"1": "error_map"}} if channels == 2 else {},
    }


def plans_for(args: argparse.Namespace, channels: int) -> dict[str, Any]:
    """Plans of S, and of A at twice the voxel size."""
    features = [min(args.features * 2**stage, 320) for stage in range(5)]
    schemes = ["ZScoreNormalization", "NoNormalization"][:channels]
    plans = plans_of("3d_fullres", args.patch, 2, features, normalization=schemes)
    other = plans_of("3d_inpainting", args.patch, 2, features, normalization=["ZScoreClipped01Normalization"])
    plans["configurations"] |= other["configurations"]
    plans["configurations"]["3d_inpainting"]["spacing"] = [2.0, 2.0, 2.0]
    return plans


def write_networks(args: argparse.Namespace, folder: Path, erase: bool) -> None:
    """A model folder of five A (or G, which are told what to erase) of random weights, each with one case held out."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_anomaly.architectures.inpainting_unet import InpaintingUNet, resolved_architecture

    plans, name = plans_for(args, 1), "3d_inpainting"
    configuration = PlansManager(plans).get_configuration(name)
    architecture = resolved_architecture(
        configuration.network_arch_init_kwargs, configuration.network_arch_init_kwargs_req_import
    )
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_of(1)))
    for fold, split in enumerate(SPLITS):
        network = InpaintingUNet(1, architecture, 0, "interpolated", erase)
        note = {"configuration": name, "split": split, "pretrained": False}
        trainer = folder.name.split("__")[0]
        content = {"network_weights": network.state_dict(), "init_args": note, "trainer_name": trainer}
        (folder / f"fold_{fold}").mkdir()
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")


def make_trainer(variant: str, args: argparse.Namespace, folder: Path) -> Any:
    """A trainer with everything that a step needs, without data on disk."""
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as module

    from nnunet_anomaly.settings import BLOCK, AnomalySettings
    from nnunet_anomaly.trainers.anomaly_aware import nnUNetTrainerAnomalyAware
    from nnunet_anomaly.trainers.anomaly_aware_end_to_end import nnUNetTrainerAnomalyAwareEndToEnd
    from nnunet_anomaly.trainers.anomaly_aware_joint import nnUNetTrainerAnomalyAwareJoint

    settings = VARIANTS[variant]
    channels = 2 if settings is None else 1
    plans = plans_for(args, channels)
    if settings is not None:
        values = {f"end_to_end.{key}": value for key, value in {**settings, "model": str(folder / A)}.items()}
        plans[BLOCK] = AnomalySettings.from_plans(plans).with_values(values).to_dict()
    inside = nnUNetTrainerAnomalyAwareJoint if variant == JOINT else nnUNetTrainerAnomalyAwareEndToEnd
    cls = nnUNetTrainerAnomalyAware if settings is None else inside
    trainer = cls(plans, "3d_fullres", 0, dataset_of(channels), torch.device(args.device))
    trainer.do_split = lambda: (CASES[1:], CASES[:1])  # type: ignore[method-assign]
    preprocessed = Path(trainer.preprocessed_dataset_folder_base)
    preprocessed.mkdir(exist_ok=True)
    (preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))
    # the last line of nnU-Net's initialize() looks for preprocessed files, which a step does not need
    module.infer_dataset_class = lambda folder: None
    trainer.initialize()
    return trainer


def batch_for(trainer: Any, args: argparse.Namespace, variant: str) -> dict[str, Any]:
    """Two cases of two folds: image and error map, or image and what A sees of it.

    The joint one's have two channels more, for A's own loss: the image with synthetic lesions, and the region.
    """
    data = torch.randn(2, 4 if variant == JOINT else 2, *args.patch)
    data[:, 3:] = (data[:, 3:] > 0).float()
    scales = trainer._get_deep_supervision_scales()
    shapes = [[round(size * factor) for size, factor in zip(args.patch, scale, strict=True)] for scale in scales]
    targets = [torch.randint(0, 5, (2, 1, *shape)).float() for shape in shapes]
    return {"data": data, "target": targets, "keys": CASES[1:3]}


def predict(trainer: Any, batch: dict[str, Any]) -> None:
    """A forward pass of one patch, as in prediction."""
    channels = trainer.num_input_channels
    with torch.no_grad():
        trainer.network.eval()(batch["data"][:1, :channels].to(trainer.device))
    trainer.network.train()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()


def measure_memory(variant: str, args: argparse.Namespace, folder: Path) -> None:
    """In a process of its own: print the MB of three steps."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer = make_trainer(variant, args, folder)
    batch = batch_for(trainer, args, variant)
    for _ in range(3):
        trainer.train_step(batch)
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"MB {torch.cuda.max_memory_allocated() / 2**20 if args.device == 'cuda' else used:.0f}")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 64, 64])
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[variable] = str(folder)
        if args.memory_of:
            return measure_memory(args.memory_of, args, folder)
        write_networks(args, folder / A, erase=False)
        write_networks(args, folder / G, erase=True)
        megabytes = {}
        for variant in VARIANTS:
            command = [sys.executable, *sys.argv, "--memory-of", variant, "--folder", str(folder)]
            output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
            megabytes[variant] = float(output.rpartition("MB ")[2])
        trainers = {variant: make_trainer(variant, args, folder) for variant in VARIANTS}
        batches = {variant: batch_for(trainer, args, variant) for variant, trainer in trainers.items()}
        seconds: dict[tuple[str, str], list[float]] = {}
        for repeat in range(args.repeats + 2):
            for variant, trainer in trainers.items():
                for what, call in (
                    ("step", trainer.train_step),
                    ("patch", lambda batch, one=trainer: predict(one, batch)),
                ):
                    start = time.perf_counter()
                    call(batches[variant])
                    if repeat >= 2:
                        seconds.setdefault((variant, what), []).append(time.perf_counter() - start)
    table(megabytes, seconds)


def table(megabytes: dict[str, float], seconds: dict[tuple[str, str], list[float]]) -> None:
    """Print medians, and their ratios to the first variant."""
    first = next(iter(VARIANTS))
    print("| variant | step ms | ratio | prediction of a patch ms | ratio | MB in training |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for variant in VARIANTS:
        cells = []
        for what in ("step", "patch"):
            median = statistics.median(seconds[variant, what])
            cells += [f"{1000 * median:.0f}", f"{median / statistics.median(seconds[first, what]):.2f}"]
        print(f"| {variant} | {' | '.join(cells)} | {megabytes[variant]:.0f} |")


if __name__ == "__main__":
    main()
