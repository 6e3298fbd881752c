"""Agreement of two readers, or of a method with a reader, in one measured quantity (Thomas 2021)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DEFINITIONS = {
    "n": "pairs with a value of both",
    "spearman": "Spearman's rank correlation; not applicable with fewer than 3 pairs, or where one side has one value",
    "p_spearman": "its two-sided p-value, by Student's t",
    "pearson": "Pearson's correlation, likewise",
    "p_pearson": "its two-sided p-value",
    "mae": "mean absolute error",
    "sd_absolute_error": "standard deviation (n - 1) of the absolute errors",
    "bias": "mean of prediction minus reference",
    "ci95_low": "lower end of the 95 % confidence interval of the bias, by Student's t",
    "ci95_high": "upper end",
    "p_bias": "two-sided p-value of the paired t-test against no bias; 1 where all pairs are equal",
    "sd_difference": "standard deviation (n - 1) of prediction minus reference",
    "loa_low": "lower limit of agreement, bias - 1.96 SD (Bland and Altman 1986)",
    "loa_high": "upper limit of agreement, bias + 1.96 SD",
    "rms_cv_percent": "root mean square, over pairs, of the coefficient of variation in percent: standard deviation of "
    "the two values over their mean; of positive values alone, so not of changes",
}
LIMITS_SD = 1.96
_FEWEST_FOR_CORRELATION = 3


@dataclass(frozen=True)
class Agreement:
    """Figures of pairs of values, see ``DEFINITIONS``.

    Attributes:
        n: pairs.
        excluded: names without a finite value of both.
        figures: all other keys of ``DEFINITIONS``; NaN is not applicable.
    """

    n: int
    excluded: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """One flat row, ``excluded`` as the list of names at its end."""
        return {"n": self.n, **self.figures, "excluded": self.excluded}


def agreement(
    reference: Mapping[str, float], prediction: Mapping[str, float], *, is_ratio_scale: bool = True
) -> Agreement:
    """Compare two measurements of the same things.

    Args:
        reference: value by name.
        prediction: the other one's value by name.
        is_ratio_scale: whether the quantity has a true zero and no negative values, as T2 but not its change: without
            it there is no coefficient of variation.

    Returns:
        The figures; NaN is not applicable. No pair: all NaN. One pair: MAE, bias and RMS-CV, but no SD, interval,
        limits or test. Two pairs: no correlation, which would be 1 or -1 whatever they are. Constant values on one
        side: no correlation. All pairs equal: bias 0, p-value 1. All differences the same but not 0: p-value 0. A pair
        with a value that is not above 0: no RMS-CV.
    """
    names = list(dict.fromkeys([*reference, *prediction]))
    pairs = {name: (reference.get(name, math.nan), prediction.get(name, math.nan)) for name in names}
    kept = {name: pair for name, pair in pairs.items() if all(map(math.isfinite, pair))}
    excluded = [name for name in names if name not in kept]
    figures = dict.fromkeys((key for key in DEFINITIONS if key != "n"), math.nan)
    if kept:
        first, second = np.array(list(kept.values()), dtype=float).T
        figures |= _differences(second - first)
        figures |= _correlations(first, second)
        if is_ratio_scale and min(first.min(), second.min()) > 0:
            # the SD (n - 1) of two values is their distance over the square root of 2
            variation = np.abs(second - first) / math.sqrt(2) / ((first + second) / 2)
            figures["rms_cv_percent"] = 100 * math.sqrt(float((variation**2).mean()))
    return Agreement(len(kept), excluded, figures)


def _differences(difference: np.ndarray) -> dict[str, float]:
    bias, absolute = float(difference.mean()), np.abs(difference)
    figures = {"mae": float(absolute.mean()), "bias": bias}
    if difference.size == 1:
        return figures
    sd = 0.0 if _is_constant(difference) else float(difference.std(ddof=1))
    half_width = float(_stats().t.ppf(0.975, difference.size - 1)) * sd / math.sqrt(difference.size)
    p_value = float(not difference.any()) if not sd else float(_stats().ttest_1samp(difference, 0.0).pvalue)
    return figures | {
        "sd_absolute_error": float(absolute.std(ddof=1)),
        "ci95_low": bias - half_width,
        "ci95_high": bias + half_width,
        "p_bias": p_value,
        "sd_difference": sd,
        "loa_low": bias - LIMITS_SD * sd,
        "loa_high": bias + LIMITS_SD * sd,
    }


def _correlations(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    if first.size < _FEWEST_FOR_CORRELATION or _is_constant(first) or _is_constant(second):
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's p-value of a perfect correlation divides by 0
        ranks, line = _stats().spearmanr(first, second), _stats().pearsonr(first, second)
    return {
        "spearman": float(ranks.statistic),
        "p_spearman": float(ranks.pvalue),
        "pearson": float(line.statistic),
        "p_pearson": float(line.pvalue),
    }


def _is_constant(values: np.ndarray) -> bool:
    """But for rounding."""
    return float(np.ptp(values)) <= 1e-12 * float(np.abs(values).max())


def _stats() -> Any:
    # takes half a second to import, which other verbs need not spend
    from scipy import stats

    return stats
