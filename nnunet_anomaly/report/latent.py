"""What a VAE has learnt, for the eye: images drawn from the prior, and what single numbers of the code do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nnunet_anomaly.architectures.vae import VAE
from nnunet_anomaly.files import written_whole

COLUMNS = 7
TRAVERSED = 4


def plot_latent_space(network: VAE, image: torch.Tensor, path: Path, seed: int = 0) -> None:
    """Write a PNG: an image with its reconstruction, samples of the prior, and traversals of the code.

    Traversed are the numbers of the code that this image fixes best (of the smallest variance), from -3 to 3 standard
    deviations of the prior. Of volumes the middle slice of the first axis is shown, of several channels the first.

    Args:
        network: in evaluation mode.
        image: float (1, image_channels, *patch_size), on the network's device.
        path: PNG to write.
        seed: of the samples.
    """
    from matplotlib.figure import Figure

    with torch.inference_mode():
        _, log_variance = network.encode(image)
        rows = {"image, reconstruction": torch.cat([image, network(image)])}
    rows["samples"] = network.sample(COLUMNS, torch.Generator().manual_seed(seed))
    for number in log_variance[0].argsort()[:TRAVERSED].tolist():
        rows[f"code {number}, -3 to 3 SD"] = network.traverse(image, number, np.linspace(-3, 3, COLUMNS).tolist())
    figure = Figure(figsize=(1.6 * COLUMNS, 1.7 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        line[0].set_title(name, loc="left", fontsize="small")
        for axis in line:
            axis.set_axis_off()
        for axis, each in zip(line, images, strict=False):
            axis.imshow(middle_slice(each), cmap="gray", vmin=0, vmax=1)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def middle_slice(image: torch.Tensor) -> np.ndarray:
    """First channel of (C, *spatial), of 3-D its middle slice along the first axis; float32 on the CPU."""
    channel = image[0].float().cpu().numpy()
    return channel if channel.ndim == 2 else channel[len(channel) // 2]
