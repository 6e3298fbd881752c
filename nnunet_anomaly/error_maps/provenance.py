"""What a network has learnt from: noted among the init_args of its checkpoint, checked wherever it is used (law 3)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch

from nnunet_anomaly.errors import LeakageError

SPLIT = "split"  # {"train": cases that it learnt from, "val": cases held out}
PRETRAINED = "pretrained"  # whether it began with weights from elsewhere, which have learnt from nobody knows what
TEACHER = "teacher_sha256"  # of an A: the checkpoint of the G that it learns from

Split = Mapping[str, Sequence[str]]


def check_split(learnt: Split | None, now: Split, checkpoint: str) -> None:
    """A network is used for the fold that it was trained for.

    Raises:
        LeakageError: it learnt from other cases than the fold has now, or nothing says from which.
    """
    if learnt is None or set(learnt["train"]) != set(now["train"]):
        raise LeakageError(
            f"{checkpoint} was not trained on the training cases that this fold has now: splits_final.json changed "
            "since. Train this network again, without --c."
        )


def digest_of_weights(network: torch.nn.Module) -> str:
    """SHA-256 of all parameters and buffers: the same for the same weights."""
    digest = hashlib.sha256()
    for values in network.state_dict().values():
        digest.update(values.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
