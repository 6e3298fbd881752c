"""``-num_gpus 2``: two processes of nnU-Net's own ``run_ddp`` train our trainers, by gloo on the CPU instead of CUDA."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

G, A, S = (f"nnUNetTrainer{name}_2epochs" for name in ("Inpainting", "InpaintingMimic", "AnomalyAware"))
PLANS = "nnUNetAnomalyTinyPlans"
RUNS = {
    G: ("Dataset101_Tiny", "3d_inpainting"),
    A: ("Dataset101_Tiny", "3d_inpainting"),
    S: ("Dataset102_Error", "3d_fullres"),
}
HELD_OUT = ["case_03", "case_04", "case_05"]


def train_as(rank: int, root: Path) -> None:
    """What ``nnUNetv2_train -num_gpus 2`` runs in each process; leaves what it saw in ``root/rank_<rank>``."""
    from nnunetv2.run import run_training
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module

    trainers, steps, written = [], [], []
    wrapped_by_nnunet, made_by_nnunet, save = trainer_module.DDP, run_training.get_trainer_from_args, torch.save

    def note_files(event: str, arguments: tuple) -> None:
        if event == "os.rename":
            written.append(Path(os.fsdecode(arguments[1])))
            if rank == 1 and written[-1].parent.name == "error_maps":
                time.sleep(1)  # rank 0 is done by then, but its record has to wait for this map
        elif event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            written.append(Path(arguments[0]))

    def trainer_on_cpu(*arguments: Any) -> Any:
        trainer = made_by_nnunet(*arguments)
        trainer.device, trainer.grad_scaler = torch.device("cpu"), None
        trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 2
        validation_step = trainer.validation_step
        trainer.validation_step = lambda batch: steps.append(validation_step(batch)) or steps[-1]
        trainers.append(trainer)
        return trainer

    def start_gloo(rank: int, world_size: int) -> None:
        store = torch.distributed.FileStore(str(root / f"store_{len(trainers)}"), world_size)
        torch.distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(minutes=2)
        )

    sys.addaudithook(note_files)
    torch.save = lambda content, path: written.append(Path(path)) or save(content, path)
    torch.cuda.set_device = lambda device: None
    torch.set_num_threads(1)
    trainer_module.DDP = lambda network, device_ids: wrapped_by_nnunet(network)
    run_training.setup_ddp, run_training.get_trainer_from_args = start_gloo, trainer_on_cpu
    seen = {}
    for name, (dataset, configuration) in RUNS.items():
        steps.clear(), written.clear()
        run_training.run_ddp(rank, dataset, configuration, 0, name, PLANS, False, False, False, None, False, False, 2)
        trainer = trainers[-1]
        folder = Path(trainer.output_folder)
        seen[name] = {
            "folder": folder,
            "log": trainer.logger.local_logger.my_fantastic_logging,
            "weights": trainer.network.module.state_dict(),
            "steps": list(steps),
            "written": [str(path.relative_to(folder)) for path in written if path.is_relative_to(folder)],
        }
    save(seen, root / f"rank_{rank}")


@pytest.fixture(scope="module")
def ranks(planned: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes saw that trained G, A and S, the latter on the tiny dataset with an error channel."""
    import blosc2

    workspace = dataclasses.replace(planned, root=tmp_path_factory.mktemp("ranks"))
    plain, derived = (workspace.root / "nnUNet_preprocessed" / RUNS[name][0] for name in (A, S))
    for folder in (plain, derived):
        shutil.copytree(planned.root / "nnUNet_preprocessed" / plain.name, folder)
    plans, description = (json.loads((derived / name).read_text()) for name in (f"{PLANS}.json", "dataset.json"))
    plans["dataset_name"] = derived.name
    configuration = plans["configurations"][RUNS[S][1]]
    configuration["normalization_schemes"].append("NoNormalization")
    configuration["use_mask_for_norm"].append(False)
    description["channel_names"]["1"] = "noNorm"
    description["anomaly"]["channel_roles"]["1"] = "error_map"
    (derived / f"{PLANS}.json").write_text(json.dumps(plans))
    (derived / "dataset.json").write_text(json.dumps(description))
    for path in (derived / configuration["data_identifier"]).glob("case_0?.b2nd"):
        image = blosc2.open(str(path))[:]
        blosc2.asarray(np.concatenate((image, 0.01 * image**2)), urlpath=str(path), mode="w")

    command = [sys.executable, __file__, str(workspace.root)]
    environment = {**workspace.environment, "nnUNet_n_proc_DA": "0"}
    processes = []
    for rank in "01":
        with open(workspace.root / f"output_{rank}", "w") as output:
            processes.append(subprocess.Popen([*command, rank], env=environment, stdout=output, stderr=output))
    codes = [process.wait() for process in processes]
    texts = [(workspace.root / f"output_{rank}").read_text()[-3000:] for rank in "01"]
    assert codes == [0, 0], "\n".join(texts)
    return [torch.load(workspace.root / f"rank_{rank}", weights_only=False) for rank in "01"]


@pytest.mark.parametrize("name", RUNS)
def test_both_ranks_end_with_the_same_network(ranks, name):
    first, second = (rank[name]["weights"] for rank in ranks)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    saved = torch.load(ranks[0][name]["folder"] / "checkpoint_final.pth", weights_only=False)
    assert all(torch.equal(saved["network_weights"][key], first[key]) for key in first)


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_leak_are_those_of_both_ranks(ranks, name):
    logs, steps = ([rank[name][key] for rank in ranks] for key in ("log", "steps"))
    assert all(logs[0][key] == logs[1][key] for key in logs[0] if "timestamps" not in key)
    assert [step["loss"] for step in steps[0]] != [step["loss"] for step in steps[1]]  # else the mean shows nothing
    for epoch in range(2):
        both = [step for rank in steps for step in rank[2 * epoch : 2 * epoch + 2]]
        assert logs[0]["val_losses"][epoch] == pytest.approx(np.mean([step["loss"] for step in both]))
        if name == A:
            passed, removed = (sum(step[key] for step in both) for key in ("passed", "removed"))
            assert logs[0]["leak"][epoch] == pytest.approx(passed / removed)


@pytest.mark.parametrize("name", [G, A])
def test_every_held_out_case_gets_its_maps_once_and_before_the_record(ranks, name):
    folder = ranks[0][name]["folder"] / "validation"
    count = Counter(file for rank in ranks for file in rank[name]["written"] if file.endswith(".nii.gz"))
    maps = [f"validation/error_maps/{case}.nii.gz" for case in HELD_OUT]
    images = [f"validation/reconstructions/{case}_0000.nii.gz" for case in HELD_OUT]
    assert count == dict.fromkeys(maps + images, 1)
    record = json.loads((folder / "error_maps.json").read_text())
    assert (record["held_out_cases"], record["epochs"]) == (HELD_OUT, 2)
    newest = max((folder.parent / file).stat().st_mtime_ns for file in count)
    assert (folder / "error_maps.json").stat().st_mtime_ns >= newest


@pytest.mark.parametrize("name", RUNS)
def test_rank_0_alone_keeps_the_records(ranks, name): ...


if __name__ == "__main__":
    train_as(int(sys.argv[2]), Path(sys.argv[1]))
