"""Bias and error of every T2 fit by the noise: 6 of 7 echoes, from a seed (their speed is in ``numeric_core.py``).

python benchmarks/t2_bias.py docs/pictures/t2_bias.png
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from core_inputs import ECHO_TIMES_MS, S0, magnitudes
from matplotlib.figure import Figure

from nnunet_anomaly.relaxometry.noise import cramer_rao_bound_ms
from nnunet_anomaly.relaxometry.t2_fit import Quality, fit_t2
from nnunet_anomaly.report.figures import METHOD_COLOURS, save_figure
from nnunet_anomaly.report.page import markdown_table

SEED = 20222
RATIOS = (10, 15, 20, 30, 50, 75, 100, 150, 200, 300)
FIGURE_T2_MS = (30.0, 45.0, 60.0)
FIGURE_VOXELS = 20_000
VARIANTS: dict[str, dict[str, Any]] = {
    "offset, C ≥ 0": {"model": "offset"},
    "offset, C free": {"model": "offset", "offset_bounds": (-math.inf, math.inf)},
    "mono": {"model": "mono"},
    "log-linear, weighted": {"model": "log_linear"},
    "Rician, sigma estimated": {"model": "rician"},
}


def bias_figure() -> tuple[Figure, list[dict[str, Any]]]:
    """Bias and error of every variant over S0 / sigma, a row of panels for each, a column for each T2; and a table."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = figure.subplots(2, len(FIGURE_T2_MS), sharex=True, sharey="row")
    rows = []
    for column, t2_ms in enumerate(FIGURE_T2_MS):
        bias, error = panels[:, column]
        for (name, options), colour in zip(VARIANTS.items(), METHOD_COLOURS, strict=True):
            figures = [bias_and_error(t2_ms, ratio, options) for ratio in RATIOS]
            bias.plot(RATIOS, [each[0] for each in figures], color=colour, label=name)
            error.plot(RATIOS, [each[1] for each in figures], color=colour)
            chosen = {str(ratio): f"{each[0]:.1f}, {each[1]:.1f}" for ratio, each in zip(RATIOS, figures, strict=True)}
            rows.append(
                {"variant": name, "T2, ms": f"{t2_ms:g}", **{key: chosen[key] for key in ("30", "50", "100", "300")}}
            )
        bound = 100 * cramer_rao_bound_ms(t2_ms, np.array(RATIOS), ECHO_TIMES_MS[1:]) / t2_ms
        error.plot(RATIOS, bound, "k--", label="Cramér-Rao bound, Rician noise")
        bias.set_title(f"T2 {t2_ms:g} ms")
        bias.axhspan(-2, 2, color="0.9")
        bias.axhline(0, color="k", linewidth=0.5)
        bias.set(xscale="log", ylim=(-25, 25))
        error.set(
            xlabel="S0 / sigma", yscale="log", ylim=(0.7, 120), xticks=RATIOS, xticklabels=[str(r) for r in RATIOS]
        )
        error.minorticks_off()
        error.tick_params(axis="x", labelsize=7)
    panels[0, 0].set_ylabel("bias, % of T2")
    panels[1, 0].set_ylabel("root mean square error, % of T2")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    handles, labels = handles + panels[1, 0].lines[-1:], [*labels, panels[1, 0].lines[-1].get_label()]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure, rows


def bias_and_error(t2_ms: float, s0_over_sigma: float, options: dict[str, Any]) -> tuple[float, float]:
    """In percent of T2, over voxels that have converged to a T2 up to 100 ms, as the paper keeps them."""
    rng = np.random.default_rng(SEED)
    signals = magnitudes(np.full(FIGURE_VOXELS, t2_ms), S0 / s0_over_sigma, rng)
    found = fit_t2(signals, ECHO_TIMES_MS, **options)
    kept = found.t2_ms[(found.quality == Quality.CONVERGED) & (found.t2_ms <= 100)]
    return 100 * (kept.mean() / t2_ms - 1), 100 * math.sqrt(np.mean((kept / t2_ms - 1) ** 2))


def main() -> None:
    """Draw the figure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    figure, rows = bias_figure()
    save_figure(figure, args.figure)
    print(f"bias, root mean square error in % of T2, by S0 / sigma\n\n{markdown_table(rows)}")


if __name__ == "__main__":
    main()
