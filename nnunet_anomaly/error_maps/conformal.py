"""Thresholds and p-values with a guarantee on new lesion-free cases, from lesion-free cases held out (conformal).

One assumption carries all of it: the calibration cases and a new lesion-free case are exchangeable, as cases. Voxels of
a case depend on each other, and one case is noisier than the next, so that five million voxels of one knee are one
observation and not five million. Every bound here counts cases; voxels only say what share of a case lies above an
error.

- Per case: in at most ``rate`` of new lesion-free cases does anything stand above the threshold. Split conformal
  prediction by ranks (Vovk, Gammerman and Shafer 2005; Papadopoulos and others 2002).
- Per voxel: on average over new lesion-free cases, at most ``rate`` of a case's voxels lie above the threshold.
  Conformal risk control (Angelopoulos and others 2022) of that share, which falls with the threshold and is at most 1.
- p-values: of a case by its rank, of a voxel by the calibration cases' shares; calling what has p <= ``rate`` is
  the threshold of the same rate.
- False discovery rate: Benjamini and Hochberg 1995, and Benjamini and Yekutieli 2001 for any dependence.

The probabilities are over both the new case and the draw of the calibration cases. What one set of calibration cases
gives lies around them; the intervals say how far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special, stats

from nnunet_anomaly.error_maps.calibrate import ErrorHistogram, bins_of, highest_of_bin
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import written_whole

BENJAMINI_HOCHBERG, BENJAMINI_YEKUTIELI = "benjamini-hochberg", "benjamini-yekutieli"

# Robust z-score of the log from which a case is implausible. Peaks are skewed, so that the usual 3.5 would name a
# healthy case in a third of all cohorts of 40; at 5 it is one cohort in six at most (smooth simulated maps).
IMPLAUSIBLE_Z = 5.0
CASES_FOR_PLAUSIBILITY = 8

_ROUNDING = 1e-9  # 0.05 * 20 and the like miss whole numbers by a few times 1e-16


# --- per case --------------------------------------------------------------------------------------------------------


def cases_needed(rate: float) -> int:
    """Fewest lesion-free calibration cases that can guarantee ``rate``, per case or per voxel: 1 / rate - 1, upwards.

    Raises:
        ValueError: ``rate`` is not in (0, 1).
    """
    _check_rate(rate)
    return math.ceil(1 / rate - 1 - _ROUNDING)


def case_threshold(peaks: Sequence[float] | np.ndarray, rate: float) -> float:
    """Threshold that a new lesion-free case's peak exceeds with probability at most ``rate``.

    Split conformal: the ``ceil((n + 1) (1 - rate))``-th smallest of the n calibration peaks. Among n + 1 exchangeable
    peaks the new one is as likely as any to be among the highest; equal peaks only lower the probability.

    Args:
        peaks: one figure per lesion-free calibration case, such as ``peak_error``.
        rate: in (0, 1).

    Returns:
        One of the peaks; infinity with fewer than ``cases_needed(rate)`` of them (also with none).

    Raises:
        ValueError: ``rate`` is not in (0, 1), or a peak is NaN.
    """
    peaks = _checked(peaks)
    rank = peaks.size + 1 - _allowed_above(peaks.size, rate)
    return float(np.sort(peaks)[rank - 1]) if rank <= peaks.size else math.inf


def case_p_values(new_peaks: Sequence[float] | np.ndarray, peaks: Sequence[float] | np.ndarray) -> np.ndarray:
    """Conformal p-value of each new case: (1 + calibration peaks at or above its own) / (n + 1).

    For a lesion-free case P(p <= a) <= a for every a. The p-values of several new cases share the calibration cases;
    this dependence is positive (PRDS), so that Benjamini-Hochberg over cases controls the false discovery rate (Bates
    and others 2023, Testing for outliers with conformal p-values).

    Returns:
        float64 array, one value in [1 / (n + 1), 1] per new case; all 1 without calibration cases.
    """
    ranked, new = np.sort(_checked(peaks)), _checked(new_peaks)
    return (1 + ranked.size - np.searchsorted(ranked, new, side="left")) / (ranked.size + 1)


def case_rate_interval(n_cases: int, rate: float, confidence: float = 0.95) -> tuple[float, float]:
    """Where the false-positive rate per case lies for one set of calibration cases.

    Given the calibration cases, the rate over ever more new cases is a number that differs from set to set. It is
    Beta(k, n + 1 - k) distributed with k = floor((n + 1) rate), of mean k / (n + 1) (Vovk 2012), whatever the
    distribution of the peaks; with equal peaks it is lower.

    Returns:
        Lower and upper end of the central interval; (0, 0) with fewer than ``cases_needed(rate)`` cases.
    """
    above = _allowed_above(n_cases, rate)
    if not above:
        return 0.0, 0.0
    low, high = stats.beta.interval(confidence, above, n_cases + 1 - above)
    return float(low), float(high)


def _allowed_above(n_cases: int, rate: float) -> int:
    """How many of the n + 1 cases may exceed the threshold: floor((n + 1) rate)."""
    _check_rate(rate)
    return math.floor((n_cases + 1) * rate + _ROUNDING)


def clopper_pearson(n_found: int, n_cases: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion that was observed as ``n_found`` of ``n_cases`` (Clopper and Pearson 1934).

    Returns:
        Lower and upper end; (0, 1) without cases.
    """
    if not 0 <= n_found <= n_cases:
        raise ValueError(f"{n_found} of {n_cases} is no proportion")
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, n_found, n_cases - n_found + 1) if n_found else 0.0
    high = stats.beta.ppf(1 - tail, n_found + 1, n_cases - n_found) if n_found < n_cases else 1.0
    return float(low), float(high)


# --- per voxel -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class HealthyErrors:
    """How often lesion-free cases have which error: every case weighs the same, however many voxels it has.

    Attributes:
        bins: int64, ascending, those that occur in any case; see ``bins_of``.
        share_from: float64, mean over cases of the share of a case's voxels in this bin or a higher one; 1 at first.
        n_cases: cases with voxels.
        voxels_per_case: their mean number of voxels.
        peaks: float64, ``peak_error`` of each case, ascending.
        min_volume_mm3: what the peaks were found with.
    """

    bins: np.ndarray
    share_from: np.ndarray
    n_cases: int
    voxels_per_case: float
    peaks: np.ndarray
    min_volume_mm3: float

    @classmethod
    def of(
        cls, histograms: Mapping[str, ErrorHistogram], peaks: Mapping[str, float], min_volume_mm3: float
    ) -> HealthyErrors:
        """Put cases together; those without a voxel count for nothing.

        Memory is that of the histograms and of the bins that occur in any of them, at most some 2 MB.

        Raises:
            InputError: no case has a voxel inside the region.
        """
        used = {name: histogram for name, histogram in histograms.items() if histogram.n_voxels}
        if not used:
            raise InputError("None of the lesion-free cases has a voxel inside the region of interest.")
        counted = np.zeros(max(int(histogram.bins[-1]) for histogram in used.values()) + 1)
        for histogram in used.values():
            counted[histogram.bins] += histogram.counts / histogram.n_voxels
        bins = np.flatnonzero(counted)
        share_from = np.cumsum(counted[bins][::-1])[::-1] / len(used)
        n_voxels = sum(histogram.n_voxels for histogram in used.values())
        return cls(
            bins,
            np.minimum(share_from, 1),
            len(used),
            n_voxels / len(used),
            np.sort([float(peaks[name]) for name in used]),
            float(min_volume_mm3),
        )

    def share_at_or_above(self, bins: np.ndarray) -> np.ndarray:
        """Mean share of a calibration case's voxels in each of ``bins`` or above; float64, 0 above all of them."""
        return np.append(self.share_from, 0.0)[np.searchsorted(self.bins, bins)]

    def p_values(self, errors: np.ndarray) -> np.ndarray:
        """Conformal p-value of each voxel: (1 + sum over cases of the share at or above its error) / (n + 1).

        On average over new lesion-free cases, the share of a case's voxels with p <= a is at most a, for every a. For
        with the new case itself among the n + 1, the sum would be the exact rank of a voxel drawn from a case drawn at
        random; its own share is at most 1, and that is the 1. So p is at least 1 / (n + 1), however high the error.

        Args:
            errors: finite and not negative, of any shape.

        Returns:
            float32 array of the same shape, rounded upwards.
        """
        exact = (1 + self.n_cases * np.append(self.share_from, 0.0)) / (self.n_cases + 1)
        table = exact.astype(np.float32)
        table = np.where(table < exact, np.nextafter(table, np.float32(2)), table)
        # one entry per bin, also those between: looked up faster than searched for
        table = np.minimum(table, np.float32(1))[np.searchsorted(self.bins, np.arange(self.bins[-1] + 2))]
        return table[np.minimum(bins_of(errors), table.size - 1)]

    def plain_threshold(self, rate: float) -> float:
        """Lowest threshold that at most ``rate`` of a calibration case's voxels exceed, mean over cases.

        Without the correction for the number of cases: it promises nothing of a new case.
        """
        _check_rate(rate)
        return self._lowest_threshold(rate)

    def _lowest_threshold(self, allowed: float) -> float:
        above = np.append(self.share_from[1:], 0.0)
        return highest_of_bin(int(self.bins[np.argmax(above <= allowed + _ROUNDING)]))

    def voxel_threshold(self, rate: float) -> float:
        """Threshold that on average at most ``rate`` of a new lesion-free case's voxels exceed.

        Conformal risk control: the lowest threshold t with n / (n + 1) · share above t + 1 / (n + 1) <= rate. An error
        exceeds it exactly if its ``p_values`` is at most ``rate``.

        Returns:
            Largest float32 of a bin; infinity with fewer than ``cases_needed(rate)`` cases.
        """
        _check_rate(rate)
        allowed = ((self.n_cases + 1) * rate - 1) / self.n_cases
        return self._lowest_threshold(allowed) if allowed >= -_ROUNDING else math.inf

    def discovery_threshold(self, case: ErrorHistogram, rate: float, procedure: str = BENJAMINI_HOCHBERG) -> float:
        """Threshold of one case above which its voxels are discoveries at false discovery rate ``rate``.

        The step-up procedure over all voxels of the case. The p-values here are the plain shares, as if one more voxel
        had been added to the pool: those of ``p_values`` are at least 1 / (n + 1), so that they would call nothing
        unless the lesion filled most of the bone. What that costs: see ``healthy_discoveries``, which measures it.

        Args:
            case: all voxels of the case inside the region.
            rate: in (0, 1).
            procedure: ``BENJAMINI_HOCHBERG``, or ``BENJAMINI_YEKUTIELI`` for any dependence between voxels: rate is
                divided by 1 + 1/2 + ... + 1/m for m voxels, some 16 in a knee.

        Returns:
            Largest float32 of a bin; infinity where nothing is a discovery, and for an empty case.
        """
        _check_rate(rate)
        if not case.n_voxels:
            return math.inf
        one_voxel = 1 / self.voxels_per_case
        p_values = (one_voxel + self.n_cases * self.share_at_or_above(case.bins)) / (one_voxel + self.n_cases)
        discoveries = np.cumsum(case.counts[::-1])[::-1]
        limit = rate / _correction(case.n_voxels, procedure) * discoveries / case.n_voxels
        passed = np.flatnonzero(p_values <= limit * (1 + _ROUNDING))
        return highest_of_bin(int(case.bins[passed[0]]) - 1) if passed.size else math.inf

    def without(self, histogram: ErrorHistogram) -> HealthyErrors:
        """The other cases, for leave-one-out; the peaks stay."""
        if self.n_cases < 2:
            raise ValueError("without its only case nothing is left")
        own = np.zeros(self.bins.size + 1)
        own[np.searchsorted(self.bins, histogram.bins)] = histogram.counts / histogram.n_voxels
        share_from = (self.share_from * self.n_cases - np.cumsum(own[::-1])[::-1][:-1]) / (self.n_cases - 1)
        voxels = (self.voxels_per_case * self.n_cases - histogram.n_voxels) / (self.n_cases - 1)
        # what remains of a bin that only this case had is rounding
        share_from = np.where(share_from < _ROUNDING / voxels, 0, share_from)
        return HealthyErrors(self.bins, share_from, self.n_cases - 1, voxels, self.peaks, self.min_volume_mm3)

    def save(self, path: Path | str) -> None:
        """Write as npz, whole."""
        with written_whole(path) as temporary:
            np.savez_compressed(temporary, **vars(self))

    @classmethod
    def load(cls, path: Path | str) -> HealthyErrors:
        """Read what ``save`` wrote.

        Raises:
            InputError: the file is missing or is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                return cls(
                    content["bins"],
                    content["share_from"],
                    int(content["n_cases"]),
                    float(content["voxels_per_case"]),
                    content["peaks"],
                    float(content["min_volume_mm3"]),
                )
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(
                f"{path} cannot be read: {error}. 'nnunet-anomaly anomalies' writes it when it calibrates (-d)."
            ) from None


def healthy_discoveries(
    histograms: Mapping[str, ErrorHistogram], healthy: HealthyErrors, rate: float, procedure: str
) -> int:
    """In how many lesion-free cases the step-up procedure calls anything, each judged by the others (leave one out).

    All that is called in a lesion-free case is false, so that the share of such cases is their false discovery rate. It
    is what the step-up procedure promises to keep below ``rate``; with dependent voxels and few cases that has to be
    seen.
    """
    return sum(
        math.isfinite(healthy.without(histogram).discovery_threshold(histogram, rate, procedure))
        for histogram in histograms.values()
        if histogram.n_voxels
    )


def share_interval(shares: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean share over new cases: Student's t over cases, on the logarithm of the mean.

    Shares are skewed: few cases have most of what lies above a threshold. On the logarithm (by the delta method) the
    interval reaches up farther than down; of smooth simulated maps, with thresholds found on the same cases, it held
    the true share in 90 to 96 % of sets of 20 to 100 cases, where percentiles of a bootstrap held it in 85 to 95 %.

    Args:
        shares: one in [0, 1] per case.

    Returns:
        Lower and upper end, in [0, 1]. If all shares are 0, the upper end is that of ``clopper_pearson`` for cases with
        any. (0, 1) for a single case or none, as nothing says how cases differ.
    """
    shares = _checked(shares)
    if shares.size < 2:
        return 0.0, 1.0
    mean = float(shares.mean())
    if mean == 0:
        return clopper_pearson(0, shares.size, confidence)
    standard_error = float(shares.std(ddof=1)) / math.sqrt(shares.size)
    factor = math.exp(float(stats.t.ppf((1 + confidence) / 2, shares.size - 1)) * standard_error / mean)
    return mean / factor, min(mean * factor, 1.0)


# --- false discoveries -----------------------------------------------------------------------------------------------


def adjusted_p_values(p_values: Sequence[float] | np.ndarray, procedure: str = BENJAMINI_HOCHBERG) -> np.ndarray:
    """p-values adjusted for the false discovery rate: those at most q are the discoveries at rate q.

    Args:
        p_values: in [0, 1], 1-D; may be empty.
        procedure: ``BENJAMINI_HOCHBERG`` (1995; for independent or positively dependent tests) or
            ``BENJAMINI_YEKUTIELI`` (2001; for any dependence).

    Returns:
        float64, in the order of ``p_values``.
    """
    p_values = _checked(p_values)
    order = np.argsort(p_values)[::-1]
    ranks = np.arange(p_values.size, 0, -1)
    adjusted = np.minimum.accumulate(p_values[order] * _correction(p_values.size, procedure) * p_values.size / ranks)
    result = np.empty(p_values.size)
    result[order] = np.minimum(adjusted, 1)
    return result


def _correction(n_tests: int, procedure: str) -> float:
    """1, or the sum of 1 / i up to the number of tests."""
    if procedure == BENJAMINI_HOCHBERG:
        return 1.0
    if procedure == BENJAMINI_YEKUTIELI:
        return float(special.digamma(n_tests + 1) + np.euler_gamma)
    raise ValueError(f"procedure is {procedure!r}; it is {BENJAMINI_HOCHBERG} or {BENJAMINI_YEKUTIELI}")


# --- are the calibration cases what they should be? -------------------------------------------------------------------


def implausible_cases(values: Mapping[str, float]) -> dict[str, float]:
    """Cases whose figure stands apart from the others': lesions in what should be lesion-free, or a map gone wrong.

    Robust z-score of the logarithm by median and median absolute deviation (Iglewicz and Hoaglin 1993). Those beyond
    ``IMPLAUSIBLE_Z`` on either side are taken out and the others looked at again, until none stands apart: many lesions
    widen the spread and hide each other at first.

    Args:
        values: a figure of at least 0 per case, such as ``peak_error``.

    Returns:
        z of the cases that stand apart, the farthest first (minus infinity for a 0 among others); none with fewer than
        ``CASES_FOR_PLAUSIBILITY`` cases, where nobody could tell.
    """
    figures = np.array(list(values.values()), dtype=float)
    figures[figures < np.finfo(np.float32).tiny] = 0  # the lowest bin of a histogram is that of 0
    with np.errstate(divide="ignore"):
        logs = np.log(figures)
    apart = np.zeros(logs.size, dtype=bool)
    z = np.zeros(logs.size)
    while logs.size - np.count_nonzero(apart) >= CASES_FOR_PLAUSIBILITY:
        center = np.median(logs[~apart])
        if not np.isfinite(center):  # half of the cases are 0
            break
        z = (logs - center) / _spread(np.abs(logs[~apart] - center))
        more = (np.abs(z) > IMPLAUSIBLE_Z) & ~apart
        if not more.any():
            break
        apart |= more
    found = {name: float(score) for name, score, far in zip(values, z, apart, strict=True) if far}
    return dict(sorted(found.items(), key=lambda item: -abs(item[1])))


def _spread(deviations: np.ndarray) -> float:
    """Robust standard deviation; where half of the deviations are 0 by their mean, as Iglewicz and Hoaglin advise.

    Zeros among the figures are infinitely far and have no part in the mean. Two bins of a histogram are the least.
    """
    spread = 1.4826 * float(np.median(deviations))
    if spread < 0.002:
        spread = 1.2533 * float(deviations[np.isfinite(deviations)].mean())
    return max(spread, 0.002)


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise ValueError(f"rate is {rate}; it has to lie between 0 and 1")


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or np.isnan(values).any():
        raise ValueError("one number per case is needed, none of them NaN")
    return values
