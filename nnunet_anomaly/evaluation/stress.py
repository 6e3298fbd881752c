"""Statistics of the stress test: figures against severity, models compared case by case, the worst cases, a summary.

A row holds the figures of one structure of one case, as one model predicted it:

    model, corruption ("none", or its name), severity (0 for "none"), case, fold, structure,
    dsc, asd_mm, hd_mm, hd95_mm, nsd, empty, reference_voxels, prediction_voxels (as in ``cohort.structure_metrics``),
    components_reference, components_prediction,
    component_error (absolute difference of these two),
    false_components (predicted components without a voxel of the reference's structure),
    anomaly_voxels (of the reference's structure inside the anomaly),
    anomaly_recall (share of these that the prediction gives the structure; NaN without any)

Cases are independent, severities of one case are not: so intervals are over cases, by Student's t. Each model is one
training; what another training of it would give is in no interval.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from nnunet_anomaly.evaluation.cohort import summarise, what_is_empty

UNCORRUPTED = "none"
ALL_STRUCTURES = ALL_CORRUPTIONS = "(all)"
MIN_CASES = 3  # with fewer there is no interval
CONFIDENCE = 0.95
BETTER, WORSE, NOT_SHOWN = "better", "worse", "no difference shown"
TOO_FEW, NO_VALUE = "too few cases", "no value"
_ROUNDING = 1e-9  # differences of equal values that were summed in another order


@dataclass(frozen=True)
class Metric:
    """What a figure is called, which direction is better, and the largest value that it can have (the least is 0)."""

    title: str
    higher_is_better: bool
    largest: float = math.inf
    summed: bool = False  # over the structures of a case; others are averaged


METRICS = {
    "dsc": Metric("Dice", True, 1.0),
    "nsd": Metric("normalized surface Dice", True, 1.0),
    "asd_mm": Metric("average surface distance (mm)", False),
    "hd_mm": Metric("Hausdorff distance (mm)", False),
    "hd95_mm": Metric("95 % Hausdorff distance (mm)", False),
    "component_error": Metric("component errors", False, summed=True),
    "false_components": Metric("false components", False, summed=True),
    "anomaly_recall": Metric("recall inside the anomaly", True, 1.0),
}
COMPARED = ("dsc", "hd_mm", "component_error", "anomaly_recall")
COMPARISON_COLUMNS = (
    *("first", "second", "structure", "metric", "corruption", "n", "n_pairs", "n_undefined"),
    *("n_undefined_first", "n_undefined_second", "n_missing", "mean_first", "mean_second", "mean_difference"),
    *("ci95_low", "ci95_high", "n_compared", "simultaneous95_low", "simultaneous95_high", "verdict", "note"),
)
_COUNTS = ("reference_voxels", "prediction_voxels", "components_reference", "components_prediction", "anomaly_voxels")

Row = Mapping[str, Any]
# corruption, severity, case
Place = tuple[str, float, str]


def per_case(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One row for each model, corruption, severity and case, over its structures; structure is ``ALL_STRUCTURES``.

    Component errors, false components, voxels and components are sums, the other figures means over those structures
    to which they apply (not NaN). A mean is infinite where a structure's value is: to leave out a structure that a
    model lost would flatter that model.

    Raises:
        ValueError: two rows of one model, corruption, severity, case and structure, or a severity of 0 that is not of
            "none", or the other way round.
    """
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if (row["corruption"] == UNCORRUPTED) != (row["severity"] == 0):
            raise ValueError(f"a row of corruption {row['corruption']} has severity {row['severity']}")
        structures = groups.setdefault((row["model"], row["corruption"], row["severity"], row["case"]), {})
        if row["structure"] in structures:
            raise ValueError(f"two rows of {', '.join(str(row[key]) for key in _KEYS)}")
        structures[row["structure"]] = row
    return [_over_structures(list(structures.values())) for structures in groups.values()]


_KEYS = ("model", "corruption", "severity", "case", "structure")


def _over_structures(rows: Sequence[Row]) -> dict[str, Any]:
    found = {key: rows[0][key] for key in ("model", "corruption", "severity", "case", "fold")}
    found["structure"] = ALL_STRUCTURES
    for name, metric in METRICS.items():
        values = [float(row[name]) for row in rows if not math.isnan(row[name])]
        found[name] = math.nan if not values else sum(values) if metric.summed else sum(values) / len(values)
    found |= {name: sum(row[name] for row in rows) for name in _COUNTS}
    found["empty"] = what_is_empty(found["reference_voxels"], found["prediction_voxels"])
    return found


def t_interval(values: Sequence[float], comparisons: int = 1) -> tuple[float, float]:
    """95 % confidence interval of a mean by Student's t, NaN with fewer than ``MIN_CASES`` values.

    Args:
        values: finite, one for each case.
        comparisons: so many intervals hold together with 95 % (Bonferroni).
    """
    if len(values) < MIN_CASES:
        return math.nan, math.nan
    numbers = np.asarray(values, dtype=float)
    half_width = _t_quantile(numbers.size - 1, comparisons) * float(numbers.std(ddof=1)) / math.sqrt(numbers.size)
    return float(numbers.mean()) - half_width, float(numbers.mean()) + half_width


@lru_cache(maxsize=1024)
def _t_quantile(degrees_of_freedom: int, comparisons: int) -> float:
    from scipy import stats  # takes half a second to import

    return float(stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), degrees_of_freedom))


def curves(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every figure against severity, for every structure and for all of a case's together (``per_case``).

    Returns:
        A row for each model, corruption, structure, metric and severity: ``n`` cases, ``n_undefined`` others (NaN or
        infinite), ``mean``, ``ci95_low`` and ``ci95_high`` (``t_interval``, cut off at the values that a figure can
        have). Uncorrupted cases are the point at severity 0 of every corruption; besides, they have rows of their own,
        with corruption "none".
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in [*rows, *per_case(rows)]:
        groups.setdefault((row["model"], row["corruption"], row["structure"]), []).append(row)
    points = []
    for (model, corruption, structure), found in groups.items():
        at_zero = groups.get((model, UNCORRUPTED, structure), [])
        by_severity: dict[float, list[Row]] = {0.0: list(at_zero)} if at_zero else {}
        for row in found if corruption != UNCORRUPTED else []:
            by_severity.setdefault(row["severity"], []).append(row)
        for name, metric in METRICS.items():
            key = {"model": model, "corruption": corruption, "structure": structure, "metric": name}
            for severity in sorted(by_severity):
                values = [row[name] for row in by_severity[severity]]
                points.append({**key, "severity": severity, **_point(values, metric)})
    return points


def _point(values: Sequence[float], metric: Metric) -> dict[str, Any]:
    summary = summarise(values)
    low, high = t_interval([value for value in values if math.isfinite(value)])
    return {
        "n": summary.n,
        "n_undefined": summary.n_undefined,
        "mean": summary.mean,
        # NaN stays NaN: np.clip keeps it, min and max may not
        "ci95_low": float(np.clip(low, 0, metric.largest)),
        "ci95_high": float(np.clip(high, 0, metric.largest)),
    }


# ---- models compared


@dataclass
class _Pairs:
    """Values of two models for the same case, corruption and severity.

    Attributes:
        by_case: pairs that are finite in both, by case.
        defined: how many these are.
        undefined: pairs that are not finite in both.
        undefined_in: how often the first model's and the second's value is infinite.
        missing: places where one model has a row and the other has none.
    """

    by_case: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    defined: int = 0
    undefined: int = 0
    undefined_in: list[int] = field(default_factory=lambda: [0, 0])
    missing: int = 0

    def add(self, case: str, first: float | None, second: float | None) -> None:
        if first is None or second is None:
            self.missing += 1
        elif math.isfinite(first) and math.isfinite(second):
            self.by_case.setdefault(case, []).append((first, second))
            self.defined += 1
        else:
            self.undefined += 1
            self.undefined_in[0] += math.isinf(first)
            self.undefined_in[1] += math.isinf(second)

    def case_means(self) -> dict[str, tuple[float, float]]:
        """Of each model, over the severities in which both have a value."""
        return {case: _mean_pair(pairs) for case, pairs in self.by_case.items()}


def _mean_pair(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    first, second = np.mean(pairs, axis=0).tolist()
    return first, second


def _pairs(first: Mapping[Place, Row], second: Mapping[Place, Row], metric: str) -> dict[str, _Pairs]:
    """Pairs of values by corruption, in order of appearance."""
    found: dict[str, _Pairs] = {}
    for place in dict.fromkeys([*first, *second]):
        values = [float(rows[place][metric]) if place in rows else None for rows in (first, second)]
        found.setdefault(place[0], _Pairs()).add(place[2], *values)
    return found


def compare(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every further model against the first, case by case, for every structure and figure of ``COMPARED``.

    Of each case the difference (second minus first) is averaged over the severities above 0 in which both have a
    finite value, then over cases. For corruption "(all)" each case's differences are averaged over corruptions first.

    Returns:
        A row for each pair of models, structure, metric and corruption ("none" is uncorrupted): ``n`` cases,
        ``n_pairs`` pairs of values, ``n_undefined`` pairs left out (``n_undefined_first``, ``n_undefined_second``: how
        often it was a distance to or from an empty label map), ``n_missing`` places with a row of one model only, the
        means of both over these pairs, ``mean_difference``, ``ci95_low`` and ``ci95_high``, ``simultaneous95_low`` and
        ``simultaneous95_high``, which hold for all ``n_compared`` corruptions together, ``verdict`` (from the latter)
        and ``note`` (what was left out and why). Nothing is adjusted for the number of models and figures.
    """
    tables = _tables(rows)
    models = list(dict.fromkeys(row["model"] for row in rows))
    structures = list(dict.fromkeys(structure for structure, _ in tables))
    found = []
    for second in models[1:]:
        for structure in structures:
            first_rows, second_rows = (tables.get((structure, model), {}) for model in (models[0], second))
            for metric in COMPARED:
                key = {"first": models[0], "second": second, "structure": structure, "metric": metric}
                found += [{**key, **row} for row in _compare_two(key, _pairs(first_rows, second_rows, metric))]
    return found


def _tables(rows: Sequence[Row]) -> dict[tuple[str, str], dict[Place, Row]]:
    """Rows by their place, for each structure and model."""
    tables: dict[tuple[str, str], dict[Place, Row]] = {}
    for row in [*per_case(rows), *rows]:
        place = row["corruption"], row["severity"], row["case"]
        tables.setdefault((row["structure"], row["model"]), {})[place] = row
    return tables


def _compare_two(key: Mapping[str, str], pairs: Mapping[str, _Pairs]) -> list[dict[str, Any]]:
    corruptions = [name for name in pairs if name != UNCORRUPTED]
    compared = sum(len(pairs[name].by_case) >= MIN_CASES for name in corruptions)
    rows = []
    if UNCORRUPTED in pairs:
        rows.append(_comparison(key, UNCORRUPTED, pairs[UNCORRUPTED], 1))
    if corruptions:
        rows.append(_comparison(key, ALL_CORRUPTIONS, _together([pairs[name] for name in corruptions]), 1))
    return rows + [_comparison(key, name, pairs[name], max(compared, 1)) for name in corruptions]


def _together(parts: Sequence[_Pairs]) -> _Pairs:
    """All corruptions, each with one pair for a case: its mean over severities."""
    whole = _Pairs()
    for part in parts:
        for case, pair in part.case_means().items():
            whole.by_case.setdefault(case, []).append(pair)
        whole.defined += part.defined
        whole.undefined += part.undefined
        whole.missing += part.missing
        whole.undefined_in = [a + b for a, b in zip(whole.undefined_in, part.undefined_in, strict=True)]
    return whole


def _comparison(key: Mapping[str, str], corruption: str, pairs: _Pairs, compared: int) -> dict[str, Any]:
    means = np.array(list(pairs.case_means().values())).reshape(-1, 2)
    difference = (means[:, 1] - means[:, 0]).tolist()
    low, high = t_interval(difference)
    wide_low, wide_high = t_interval(difference, compared)
    first, second = means.mean(axis=0).tolist() if difference else (math.nan, math.nan)
    return {
        "corruption": corruption,
        "n": len(difference),
        "n_pairs": pairs.defined,
        "n_undefined": pairs.undefined,
        "n_undefined_first": pairs.undefined_in[0],
        "n_undefined_second": pairs.undefined_in[1],
        "n_missing": pairs.missing,
        "mean_first": first,
        "mean_second": second,
        "mean_difference": second - first,
        "ci95_low": low,
        "ci95_high": high,
        "n_compared": compared,
        "simultaneous95_low": wide_low,
        "simultaneous95_high": wide_high,
        "verdict": verdict(len(difference), wide_low, wide_high, METRICS[key["metric"]].higher_is_better),
        "note": _note(key, pairs),
    }


def verdict(n: int, low: float, high: float, higher_is_better: bool) -> str:
    """What an interval of second minus first says of the second: BETTER, WORSE, NOT_SHOWN, TOO_FEW or NO_VALUE."""
    if n < MIN_CASES:
        return TOO_FEW if n else NO_VALUE
    if low <= _ROUNDING and high >= -_ROUNDING:
        return NOT_SHOWN
    return BETTER if (low > 0) == higher_is_better else WORSE


def _note(key: Mapping[str, str], pairs: _Pairs) -> str:
    parts = []
    if pairs.undefined:
        text = f"{pairs.undefined} of {pairs.undefined + pairs.defined} pairs left out"
        if any(pairs.undefined_in):
            where = zip((key["first"], key["second"]), pairs.undefined_in, strict=True)
            text += ", a label map being empty: " + ", ".join(f"{name} {count}" for name, count in where)
        elif key["metric"] == "anomaly_recall":
            text += ", nothing of the structures lying inside the anomaly"
        else:
            text += ", the structure being in neither label map"
        parts.append(text)
    if pairs.missing:
        parts.append(f"{pairs.missing} without a prediction of both models")
    return "; ".join(parts)


# ---- the worst cases


def worst_cases(rows: Sequence[Row], number: int, models: Collection[str] | None = None) -> list[dict[str, Any]]:
    """For each corruption, at its highest severity, the case that lost most in any model; the largest losses first.

    Args:
        rows: of structures; cases without a finite Dice, corrupted and uncorrupted, are left out.
        number: at most so many.
        models: that are looked at; None: all.

    Returns:
        Of each ``corruption``, ``severity``, ``case``, ``model`` (that lost most), its mean Dice over structures
        ``dice_uncorrupted`` and ``dice``, and ``loss``, which is negative where all models did better.
    """
    by_case = [row for row in per_case(rows) if models is None or row["model"] in models]
    before = {(row["model"], row["case"]): row["dsc"] for row in by_case if row["corruption"] == UNCORRUPTED}
    highest: dict[str, float] = {}
    for row in by_case:
        highest[row["corruption"]] = max(row["severity"], highest.get(row["corruption"], 0.0))
    worst: dict[str, dict[str, Any]] = {}
    for row in by_case:
        name = row["corruption"]
        if name == UNCORRUPTED or row["severity"] < highest[name]:
            continue
        uncorrupted = before.get((row["model"], row["case"]), math.nan)
        found = {key: row[key] for key in ("corruption", "severity", "case", "model")}
        found |= {"dice_uncorrupted": uncorrupted, "dice": row["dsc"], "loss": uncorrupted - row["dsc"]}
        if math.isfinite(found["loss"]) and (name not in worst or found["loss"] > worst[name]["loss"]):
            worst[name] = found
    return sorted(worst.values(), key=lambda each: -each["loss"])[:number]


# ---- a few plain sentences


def headline(rows: Sequence[Row], comparisons: Sequence[Row] | None = None, simple: Collection[str] = ()) -> list[str]:
    """Does being anomaly-aware help on these data? Some sentences, all of them about Dice but for one a model.

    Args:
        rows: of structures.
        comparisons: by ``compare`` of the same rows; made here without.
        simple: names of models that need no error maps, so that it is said where one of them is not shown to be worse
            than the one with the highest Dice.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    if not models:
        return ["No case was tested."]
    cases = len({row["case"] for row in rows})
    corruptions = {row["corruption"] for row in rows} - {UNCORRUPTED}
    sentences = [f"Tested on {_counted(cases, 'case')} with {_counted(len(corruptions), 'corruption')}."]
    if cases < MIN_CASES:
        sentences.append(f"With fewer than {MIN_CASES} cases there are no intervals, and no difference is shown.")
    elif len(models) > 1:
        sentences.append(
            "Differences are means over cases, with 95 % intervals over cases, for one training of each network: what "
            "another training would give, they do not say."
        )
    if len(models) < 2:
        return [*sentences, f"There is only one model, {''.join(models)}, so that nothing is compared."]
    comparisons = compare(rows) if comparisons is None else comparisons
    whole = {(row["second"], row["metric"], row["corruption"]): row for row in comparisons if _is_whole(row)}
    if corruptions and cases >= MIN_CASES:
        sentences += _answer(models, {model: whole[model, "dsc", ALL_CORRUPTIONS] for model in models[1:]})
        sentences += _simpler(rows, models, simple)
    for model in models[1:]:
        sentences.append(_model_sentence(models[0], model, whole, comparisons))
    return sentences


def _is_whole(row: Row) -> bool:
    return row["structure"] == ALL_STRUCTURES


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _answer(models: Sequence[str], overall: Mapping[str, Row]) -> list[str]:
    first = models[0]
    better, worse = ([name for name in models[1:] if overall[name]["verdict"] == word] for word in (BETTER, WORSE))
    answer = []
    if better:
        answer.append(f"Shown to have a higher Dice than {first} over all corruptions together: {_listed(better)}.")
    else:
        answer.append(
            f"No model is shown to have a higher Dice than {first}, the first one, over all corruptions together. That "
            "is no proof that none has: the intervals tell how much a model could still gain."
        )
    if worse:
        answer.append(f"Shown to have a lower Dice than {first}: {_listed(worse)}.")
    return answer


def _simpler(rows: Sequence[Row], models: Sequence[str], simple: Collection[str]) -> list[str]:
    """Models that need no error maps and are not shown to be worse than that of the highest Dice."""
    tables = {model: found for (structure, model), found in _tables(rows).items() if structure == ALL_STRUCTURES}
    corrupted = {
        model: {place: row for place, row in found.items() if place[0] != UNCORRUPTED}
        for model, found in tables.items()
    }
    best = max(models, key=lambda model: _mean_dice(corrupted.get(model, {})))
    if best in simple:
        return [f"{best} has the highest mean Dice under corruption, and needs no error maps."]
    as_good = []
    for model in models:
        if model in simple:
            pairs = list(_pairs(corrupted.get(model, {}), corrupted[best], "dsc").values())
            key = {"first": model, "second": best, "metric": "dsc"}
            if _comparison(key, ALL_CORRUPTIONS, _together(pairs), 1)["verdict"] != BETTER:
                as_good.append(model)
    text = f"{best} has the highest mean Dice under corruption"
    if as_good:
        text += (
            f"; {_listed(as_good)}, without error maps, {'is' if len(as_good) == 1 else 'are'} not shown to be worse"
        )
    return [f"{text}."]


def _mean_dice(places: Mapping[Place, Row]) -> float:
    """Over corruptions of the mean over cases and severities; the lowest where there is none."""
    by_corruption: dict[str, list[float]] = {}
    for (corruption, _, _), row in places.items():
        by_corruption.setdefault(corruption, []).append(row["dsc"])
    means = [summarise(values).mean for values in by_corruption.values()]
    finite = [mean for mean in means if math.isfinite(mean)]
    return sum(finite) / len(finite) if finite else -math.inf


def _model_sentence(
    first: str, second: str, whole: Mapping[tuple[str, str, str], Row], comparisons: Sequence[Row]
) -> str:
    parts = []
    overall = whole.get((second, "dsc", ALL_CORRUPTIONS))
    if overall:
        parts.append(f"under corruption the Dice differs by {_difference(overall)}; {_shares(second, comparisons)}")
    plain = whole.get((second, "dsc", UNCORRUPTED))
    if plain:
        costs = {BETTER: ", which is a gain", WORSE: ", which is its cost"}.get(
            plain["verdict"], f", {plain['verdict']}"
        )
        parts.append(f"on uncorrupted cases it differs by {_difference(plain)}{costs}")
    distance = whole.get((second, "hd_mm", ALL_CORRUPTIONS))
    if distance:
        note = f" ({distance['note']})" if distance["note"] else ""
        text = f"{_difference(distance, ' mm')}, {distance['verdict']}" if distance["n"] else "no value"
        parts.append(f"the Hausdorff distance under corruption differs by {text}{note}")
    return f"{second} against {first}: " + "; ".join(parts) + "."


def _shares(second: str, comparisons: Sequence[Row]) -> str:
    rows = [
        row
        for row in comparisons
        if _is_whole(row)
        and (row["second"], row["metric"]) == (second, "dsc")
        and row["corruption"] not in (UNCORRUPTED, ALL_CORRUPTIONS)
    ]
    parts = []
    for word in (BETTER, WORSE, NOT_SHOWN, TOO_FEW, NO_VALUE):
        names = [row["corruption"].replace("_", " ") for row in rows if row["verdict"] == word]
        if names or word in (BETTER, WORSE):
            listed = f" ({', '.join(names)})" if names and word in (BETTER, WORSE) else ""
            parts.append(f"{word} on {len(names)}{listed}")
    return f"of {_counted(len(rows), 'corruption')} it is {', '.join(parts)}"


def _difference(row: Row, unit: str = "") -> str:
    if not row["n"]:
        return "no value"
    digits = 2 if unit else 3
    text = f"{signed(row['mean_difference'], digits)}{unit}"
    if math.isnan(row["ci95_low"]):
        return text
    return f"{text} ({signed(row['ci95_low'], digits)} to {signed(row['ci95_high'], digits)})"


def signed(value: float, digits: int) -> str:
    """A difference with its sign, which stays where it rounds to 0: an interval may end just above it."""
    return f"{value:+.{digits}f}" if value else f"{0:.{digits}f}"


def _listed(names: Sequence[str]) -> str:
    if any(", " in name for name in names):
        return "; ".join(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
