"""``-num_gpus 2``: nnU-Net's own ``run_ddp`` trains ours in two processes, but by gloo on the CPU, not NCCL on CUDA."""

import dataclasses
import json
import os
import re
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

G, A, S, WHOLE, JOINT, GAP, LAMA, MESE = (
    f"nnUNetTrainer{name}_2epochs"
    for name in (
        "Inpainting", "InpaintingMimic", "AnomalyAware", "AnomalyAwareEndToEnd", "AnomalyAwareJoint", "GapWeighted",
        "LaMa", "MESE",
    )
)  # fmt: skip
PLAIN, DERIVED, ECHOES = "Dataset101_Tiny", "Dataset102_TinyError", "Dataset104_MESE"
RUNS = {
    G: (PLAIN, "3d_inpainting"),
    A: (PLAIN, "3d_inpainting"),
    S: (DERIVED, "3d_fullres"),
    WHOLE: (PLAIN, "2d"),
    JOINT: (PLAIN, "2d"),
    GAP: (PLAIN, "3d_fullres"),
    LAMA: (PLAIN, "2d_inpainting"),
    MESE: (ECHOES, "2d"),
}
SMALL = {"features": 4, "blocks": 1, "downsamplings": 2, "discriminator_features": 4}
PLANS = "nnUNetAnomalyTinyPlans"


def train_as(rank: int, root: Path) -> None:
    """What nnU-Net runs for each GPU, for all these trainers; leaves what it saw in ``root/rank_<rank>``."""
    from nnunetv2.run import run_training
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module

    from nnunet_anomaly.architectures.fourier_convolution import LaMaGenerator

    trainers: list[Any] = []
    written: list[Path] = []
    ddp, make_trainer, save = trainer_module.DDP, run_training.get_trainer_from_args, torch.save
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm

    def note_written(event: str, arguments: tuple) -> None:
        if event == "os.rename":
            written.append(Path(arguments[1]))
        elif event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            written.append(Path(arguments[0]))
            if rank == 1 and written[-1].parent.name == "error_maps":
                time.sleep(1)  # rank 0 has its maps by then, and has to wait for this one

    def save_and_note(content: Any, path: str) -> None:  # torch does not write by Python's open
        written.append(Path(path))
        save(content, path)

    def make_trainer_on_cpu(*arguments: Any) -> Any:
        trainer = make_trainer(*arguments)
        trainer.device, trainer.grad_scaler = torch.device("cpu"), None
        trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 2
        step, trainer.steps = trainer.validation_step, []
        trainer.validation_step = lambda batch: trainer.steps.append(step(batch)) or trainer.steps[-1]
        train_step, trainer.train_steps = trainer.train_step, []
        trainer.train_step = lambda batch: trainer.train_steps.append(train_step(batch)) or trainer.train_steps[-1]
        trainers.append(trainer)
        return trainer

    def start_gloo(rank: int, world_size: int) -> None:
        store, limit = (root / f"store_{len(trainers)}").as_uri(), timedelta(minutes=3)
        torch.distributed.init_process_group("gloo", store, limit, rank=rank, world_size=world_size)

    def synchronise_on_cpu(network: torch.nn.Module, group: Any = None) -> torch.nn.Module:
        """torch has SyncBatchNorm for GPUs alone; of our networks here only the generator has a place for it."""
        return network if isinstance(network, LaMaGenerator) else synchronised(network, group)

    sys.addaudithook(note_written)
    patch = pytest.MonkeyPatch()
    patch.setattr(torch, "save", save_and_note)
    patch.setattr(torch.cuda, "set_device", lambda device: None)
    patch.setattr(trainer_module, "DDP", lambda network, device_ids: ddp(network))
    patch.setattr(torch.nn.SyncBatchNorm, "convert_sync_batchnorm", synchronise_on_cpu)
    patch.setattr(run_training, "setup_ddp", start_gloo)
    patch.setattr(run_training, "get_trainer_from_args", make_trainer_on_cpu)
    seen = {}
    for name, (dataset, configuration) in RUNS.items():
        run_training.run_ddp(rank, dataset, configuration, 0, name, PLANS, False, False, False, None, False, False, 2)
        folder = Path(trainers[-1].output_folder)
        inside = [path.relative_to(folder) for path in written if path.is_relative_to(folder)]
        seen[name] = {
            "folder": folder,
            "weights": trainers[-1].network.module.state_dict(),
            "opponent": trainers[-1].discriminator.state_dict() if name == LAMA else {},
            "log": trainers[-1].logger.local_logger.my_fantastic_logging,
            "steps": trainers[-1].steps,
            "train_steps": trainers[-1].train_steps,
            "maps": sorted(
                path.name for path in written if "_gap_weights_" in path.parent.name and path.name[0] != "."
            ),
            "written": [path.as_posix() for path in inside if not path.name.startswith(".partial")],
        }
    save(seen, root / f"rank_{rank}")


@pytest.fixture(scope="module")
def ranks(
    planned: Any, planned_mese: Any, trained_a: Any, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What two processes saw that trained G and A, with C, S on a dataset with an error channel, and the others."""
    import blosc2

    workspace = dataclasses.replace(planned, root=tmp_path_factory.mktemp("ranks"))
    for name in (PLAIN, DERIVED):
        folder = workspace.root / "nnUNet_preprocessed" / name
        shutil.copytree(planned.root / "nnUNet_preprocessed" / PLAIN, folder)
        plans, description = (json.loads((folder / file).read_text()) for file in (f"{PLANS}.json", "dataset.json"))
        plans["dataset_name"] = name
        plans["anomaly"]["inpainting"]["code_channels"] = 2
        plans["anomaly"]["lama"] |= SMALL
        model = str(trained_a["2d_inpainting"])
        plans["anomaly"]["end_to_end"] |= {"model": model, "fine_tuned": True, "exported": "mean"}
        plans["configurations"]["2d"]["batch_size"] = 4  # nnU-Net's Dice over a batch wants as many cases on each
        if name == DERIVED:
            plans["configurations"]["3d_fullres"]["normalization_schemes"].append("NoNormalization")
            plans["configurations"]["3d_fullres"]["use_mask_for_norm"].append(False)
            description["channel_names"]["1"] = "noNorm"
            description["anomaly"]["channel_roles"]["1"] = "error_map"
            for path in (folder / f"{PLANS}_3d_fullres").glob("case_??.b2nd"):
                image = blosc2.open(str(path))[:]
                blosc2.asarray(np.concatenate((image, 0.01 * image**2)), urlpath=str(path), mode="w")
        (folder / f"{PLANS}.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(description))
    folder = workspace.root / "nnUNet_preprocessed" / ECHOES
    shutil.copytree(planned_mese.root / "nnUNet_preprocessed" / ECHOES, folder)
    plans = json.loads((folder / "nnUNetMESETinyPlans.json").read_text())
    plans["configurations"]["2d"]["batch_size"] = 4
    (folder / f"{PLANS}.json").write_text(json.dumps(plans))
    workspace.run(Path(sys.executable).name, __file__, str(workspace.root), nnUNet_n_proc_DA="0")
    return [torch.load(workspace.root / f"rank_{rank}", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", RUNS)
def test_both_ranks_end_with_the_network_that_is_saved(ranks, name):
    saved = torch.load(ranks[0][name]["folder"] / "checkpoint_final.pth", weights_only=False)["network_weights"]
    for rank in ranks:
        assert all(torch.equal(saved[key], weights) for key, weights in rank[name]["weights"].items())


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_leak_are_means_over_both_ranks(ranks, name):
    logs, steps = ([rank[name][key] for rank in ranks] for key in ("log", "steps"))
    assert all(logs[0][key] == logs[1][key] for key in logs[0] if "timestamps" not in key)
    first, second = ([float(step["errors" if name == LAMA else "loss"]) for step in own] for own in steps)
    assert (first == second) == (name == MESE)  # which has the Dice of the batches of both
    for epoch in (0, 1):
        both = [step for own in steps for step in own[2 * epoch : 2 * epoch + 2]]
        if name == LAMA:
            loss = sum(step["errors"] for step in both) / sum(step["pixels"] for step in both)
        else:
            loss = np.mean([step["loss"] for step in both])
        assert logs[0]["val_losses"][epoch] == pytest.approx(loss)
        if name == A:
            passed, removed = (sum(step[key] for step in both) for key in ("passed", "removed"))
            assert logs[0]["leak"][epoch] == pytest.approx(passed / removed)


@pytest.mark.parametrize(("name", "fold"), [(WHOLE, 1), (JOINT, 0)])
def test_both_ranks_learn_one_a(ranks, trained_a, name, fold):
    """That of the fold which held out the training cases; of the joint one that of S's own fold, beside S."""
    before = torch.load(trained_a["2d_inpainting"] / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
    for rank in ranks:
        learnt = {key: values for key, values in rank[name]["weights"].items() if key.startswith("reconstructors.")}
        assert {key.removeprefix("reconstructors.0.") for key in learnt} == before["network_weights"].keys()
        assert any(
            not torch.equal(values, before["network_weights"][key.removeprefix("reconstructors.0.")])
            for key, values in learnt.items()
        )


def test_the_joint_log_has_the_mean_of_both_ranks(ranks):
    (log,) = ranks[0][JOINT]["folder"].glob("training_log_*.txt")
    found = [float(value) for value in re.findall(r"train_reconstruction_loss ([0-9.]+)", log.read_text())]
    losses = np.array([[float(step["reconstruction_loss"]) for step in rank[JOINT]["train_steps"]] for rank in ranks])
    assert losses[0, 0] != losses[1, 0]
    assert found == pytest.approx(losses.reshape(2, 2, 2).mean((0, 2)), abs=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_each_rank_writes_its_maps_once_and_rank_0_alone_all_else(ranks, name):
    written = [rank[name]["written"] for rank in ranks]
    maps = ["validation/error_maps/{}.nii.gz", "validation/reconstructions/{}_0000.nii.gz"]
    segments = name in (S, WHOLE, JOINT, GAP, MESE)  # and nnU-Net's workers write what is segmented
    cases = [[], []] if segments else [["case_03", "case_05"], ["case_04"]]
    for files, own in zip(written, cases, strict=True):
        assert sorted(file for file in files if file.endswith(".nii.gz")) == [m.format(c) for m in maps for c in own]
    assert all(file.endswith(".nii.gz") for file in written[1])
    records = ["validation/summary.json"] if segments else ["validation/error_maps.json"]
    assert {"checkpoint_best.pth", "checkpoint_final.pth", "progress.png", *records} <= set(written[0])
    assert any(file.startswith("training_log_") for file in written[0])


def test_both_ranks_learn_one_discriminator(ranks):
    """By averaged gradients; only the running statistics, which nothing reads, are of each rank's own slices."""
    state = torch.load(ranks[0][LAMA]["folder"] / "checkpoint_final.pth", weights_only=False)["optimizer_state"]
    assert state["discriminator"]["state"][0]["step"] == 4
    saved, (first, second) = state["discriminator_weights"], (rank[LAMA]["opponent"] for rank in ranks)
    assert saved.keys() == first.keys() == second.keys()
    assert all(torch.equal(saved[key], first[key]) for key in saved)
    differing = {key for key in first if not torch.equal(first[key], second[key])}
    assert differing and all("running" in key for key in differing)


def test_weight_maps_are_made_by_rank_0_alone_and_once(ranks):
    cases = [f"case_{index:02d}" for index in range(6)]
    assert ranks[0][GAP]["maps"] == sorted(f"{case}.{kind}" for case in cases for kind in ("b2nd", "json"))
    assert not ranks[1][GAP]["maps"]


@pytest.mark.parametrize("name", [G, A, LAMA])
def test_the_record_has_every_case_and_waits_for_all_maps(ranks, name):
    folder = ranks[0][name]["folder"] / "validation"
    record = folder / "error_maps.json"
    assert json.loads(record.read_text())["held_out_cases"] == ["case_03", "case_04", "case_05"]
    assert record.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in folder.glob("*/case_*.nii.gz"))


if __name__ == "__main__":
    torch.multiprocessing.spawn(train_as, (Path(sys.argv[1]),), nprocs=2)
