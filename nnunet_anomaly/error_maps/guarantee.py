"""A guarantee asked for by name: whether the calibration cases suffice, the threshold that gives it, and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_anomaly.error_maps import conformal
from nnunet_anomaly.error_maps.calibrate import (
    OF_DISCOVERIES,
    PER_CASE,
    PER_VOXEL,
    ErrorHistogram,
    Guarantee,
    Threshold,
)
from nnunet_anomaly.errors import InputError


@dataclass(frozen=True)
class Wish:
    """What is asked of a threshold.

    Attributes:
        kind: ``PER_VOXEL``, ``PER_CASE`` or ``OF_DISCOVERIES``.
        rate: in (0, 1).
        procedure: for ``OF_DISCOVERIES``, see ``HealthyErrors.discovery_threshold``; else empty.
    """

    kind: str
    rate: float
    procedure: str = ""


def check_number_of_cases(wish: Wish, n_cases: int) -> None:
    """Refuse a rate that so few calibration cases cannot guarantee.

    That holds for discoveries too: a lesion-free case is the highest of n + 1 with probability 1 / (n + 1), and then
    something is called in it.

    Raises:
        InputError: too few; says how many are needed, and which rate these can guarantee.
    """
    needed = conformal.cases_needed(wish.rate)
    if n_cases < needed:
        lowest = math.ceil(1e4 / (n_cases + 1)) / 1e4
        raise InputError(
            f"A rate of {wish.rate:g} takes at least {needed} lesion-free calibration cases to guarantee; there are "
            f"{n_cases}. The lowest rate that {n_cases} can guarantee is {lowest:g}. Add cases, or ask for a higher "
            f"rate{'' if wish.kind == OF_DISCOVERIES else ', or leave out --guarantee'}."
        )


def find_threshold(
    wish: Wish, histograms: Mapping[str, ErrorHistogram], healthy: conformal.HealthyErrors
) -> tuple[float, Guarantee]:
    """Threshold that gives what is asked for, and what exactly it guarantees.

    Args:
        wish: what is asked for.
        histograms: of the smoothed error inside the region, per lesion-free case.
        healthy: the same cases together.

    Raises:
        InputError: too few cases with voxels in the region, or per case none that a component of ``min_volume_mm3``
            fits into.
    """
    check_number_of_cases(wish, healthy.n_cases)
    n_cases, rate = healthy.n_cases, wish.rate
    used = [histogram for histogram in histograms.values() if histogram.n_voxels]
    if wish.kind == PER_CASE:
        value = conformal.case_threshold(healthy.peaks, rate)
        if value == 0:
            raise InputError(
                f"No component of {healthy.min_volume_mm3:g} mm3 fits into the region of interest of "
                f"{np.count_nonzero(healthy.peaks == 0)} of {n_cases} calibration cases, so that nothing can be "
                "guaranteed of such components. Lower --min-volume-mm3, or look whether the bones are cut off."
            )
        expected = math.floor((n_cases + 1) * rate + 1e-9) / (n_cases + 1)
        interval = conformal.case_rate_interval(n_cases, rate)
    elif wish.kind == PER_VOXEL:
        value = healthy.voxel_threshold(rate)
        shares = [histogram.share_above(value) for histogram in used]
        expected, interval = float(np.mean(shares)), conformal.share_interval(shares)
    elif wish.kind == OF_DISCOVERIES:
        value = healthy.plain_threshold(rate)
        called = conformal.healthy_discoveries(histograms, healthy, rate, wish.procedure)
        expected, interval = called / n_cases, conformal.clopper_pearson(called, n_cases)
    else:
        raise ValueError(f"kind is {wish.kind!r}; it is {PER_VOXEL}, {PER_CASE} or {OF_DISCOVERIES}")
    return value, Guarantee(wish.kind, rate, n_cases, expected, list(interval), healthy.min_volume_mm3, wish.procedure)


def threshold_of_case(
    threshold: Threshold, histogram: ErrorHistogram, healthy: conformal.HealthyErrors | None
) -> float:
    """Threshold for one case: the common one, or with a guarantee of discoveries the case's own.

    Raises:
        ValueError: a guarantee of discoveries without ``healthy``.
    """
    guarantee = threshold.guarantee
    if guarantee is None or guarantee.kind != OF_DISCOVERIES:
        return threshold.value
    if healthy is None:
        raise ValueError("thresholds by false discovery rate take the errors of lesion-free cases")
    return healthy.discovery_threshold(histogram, guarantee.rate, guarantee.procedure)


def in_words(threshold: Threshold) -> str:
    """What a threshold with a guarantee promises, and how far that goes, in two or three sentences.

    Raises:
        ValueError: it has no guarantee.
    """
    guarantee = threshold.guarantee
    if guarantee is None:
        raise ValueError("this threshold guarantees nothing")
    rate, expected, low, high = (
        f"{100 * share:.3g} %" for share in (guarantee.rate, guarantee.expected_rate, *guarantee.interval95)
    )
    measured = f"Expected: {expected}; 95 % interval for these calibration cases: {low} to {high}."
    cases, condition = f"{guarantee.n_cases} lesion-free cases", "if new cases are like these"
    if guarantee.kind == PER_CASE:
        return (
            f"Threshold {threshold.value:.4g} from {cases}: in at most {rate} of new lesion-free cases does a "
            f"component of {guarantee.min_volume_mm3:g} mm3 or more lie above it, {condition}. {measured}"
        )
    if guarantee.kind == PER_VOXEL:
        return (
            f"Threshold {threshold.value:.4g} from {cases}: at most {rate} of a new lesion-free case's voxels lie "
            f"above it, on average over cases, {condition}. {measured}"
        )
    text = (
        f"A threshold for each case by {guarantee.procedure} at a false discovery rate of {rate}, from {cases}, never "
        f"below {threshold.value:.4g}. Judged by the others, {expected} of these cases have a false discovery (95 % "
        f"interval: {low} to {high})."
    )
    if guarantee.interval95[0] > guarantee.rate:
        text += " That is more than asked for: the rate does not hold here. Take --guarantee case."
    elif guarantee.expected_rate > guarantee.rate:
        text += " That is more than asked for, perhaps by chance. Take --guarantee case for what must hold."
    return text


def warnings(histograms: Mapping[str, ErrorHistogram], peaks: Mapping[str, float]) -> list[str]:
    """Sentences on calibration cases that do not look lesion-free, or not like the others; empty if all do.

    Lesions raise a case's peak, and its ratio to the case's median error, which knows no noisy cases.

    Args:
        histograms: per case; those without voxels count for nothing.
        peaks: ``peak_error`` per case.
    """
    used = {name: histogram for name, histogram in histograms.items() if histogram.n_voxels}
    if len(used) < conformal.CASES_FOR_PLAUSIBILITY:
        return [
            f"Whether these {len(used)} calibration cases are lesion-free is not checked: it takes "
            f"{conformal.CASES_FOR_PLAUSIBILITY} to see which one stands apart."
        ]
    texts = []
    peaks = {name: peaks[name] for name in used}
    middles = {name: histogram.upper_quantile(0.5) for name, histogram in used.items()}
    # the lowest bin of a histogram is that of 0
    times = {name: peaks[name] / middle for name, middle in middles.items() if middle > np.finfo(np.float32).tiny}
    scores = [*conformal.implausible_cases(peaks).items(), *conformal.implausible_cases(times).items()]
    lesions = list(dict.fromkeys(name for name, z in scores if z > 0))
    if lesions:
        named = ", ".join(f"{name} ({_height(peaks[name], times.get(name, math.inf))})" for name in lesions)
        usual = _height(float(np.median(list(peaks.values()))), float(np.median(list(times.values()) or [math.inf])))
        texts.append(
            f"The highest errors of these calibration cases stand apart from the others': {named}; the median case: "
            f"{usual}. Do they have lesions? Look at them and take those that do out of the list: with them the "
            "threshold is too high, and lesions are missed."
        )
    strange = list(conformal.implausible_cases(middles))
    if strange:
        texts.append(
            f"The median errors of these calibration cases are far from the others': {_named(strange, middles)}; "
            f"median {np.median(list(middles.values())):.4g}. Is it another scanner, or did the reconstruction fail? "
            "The rate holds only for new cases that are like the calibration cases."
        )
    if cramped := [name for name, peak in peaks.items() if peak == 0]:
        texts.append(
            f"No component of --min-volume-mm3 fits into the region of interest of these calibration cases: "
            f"{', '.join(cramped)}. Are bones cut off?"
        )
    return texts


def _height(peak: float, times: float) -> str:
    return f"{peak:.4g}, {times:.3g} times its median error"


def _named(names: list[str], values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} ({values[name]:.4g})" for name in names)
