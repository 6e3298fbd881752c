"""The picture that a reconstruction trainer draws after every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_anomaly.files import written_whole


def plot_training_curves(log: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw losses (log scale) above and every further logged value below, over epochs; an empty log draws nothing."""
    from matplotlib.figure import Figure

    hidden = ("train_losses", "val_losses", "epoch_start_timestamps", "epoch_end_timestamps")
    if not log["train_losses"]:
        return
    others = [name for name in log if name not in hidden]
    figure = Figure(figsize=(8, 3 + 2 * len(others)), layout="constrained")
    axes = figure.subplots(1 + len(others), 1, sharex=True, squeeze=False)[:, 0]
    axes[0].plot(log["train_losses"], label="training loss")
    axes[0].plot(log["val_losses"], label="validation loss")
    axes[0].set_yscale("log")
    axes[0].legend()
    for ax, name in zip(axes[1:], others, strict=True):
        ax.plot(log[name])
        ax.set_ylabel({"lrs": "learning rate"}.get(name, name))
    axes[-1].set_xlabel("epoch")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=100)
