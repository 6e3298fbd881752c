"""What ``nnunet-anomaly evaluate-t2`` does: pairs of values of every region, then tables, pictures and a report."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly import __version__
from nnunet_anomaly.cli.output import print_failures, print_table, print_without_reference
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.evaluation.agreement import DEFINITIONS, agreement
from nnunet_anomaly.evaluation.cohort import json_safe, save_table
from nnunet_anomaly.files import Outcome, save_json
from nnunet_anomaly.relaxometry.region_table import FILE_NAME, Key, Row, change_rows, read_region_table
from nnunet_anomaly.relaxometry.subregions import REGIONS
from nnunet_anomaly.report.figures import save_figure
from nnunet_anomaly.report.page import Page
from nnunet_anomaly.report.t2_figures import bland_altman_figure, scatter_figure
from nnunet_anomaly.workflow.evaluate import name_methods

T2, CHANGE = "t2", "change"
QUANTITIES = {
    T2: "mean T2 of a region in ms; every case and time point is a pair, as in Thomas 2021. Two time points of one "
    "knee are not independent, so that p-values are too small and intervals too narrow",
    CHANGE: "change of a region's mean T2 in ms, time point 2 minus time point 1; every case with both is a pair",
}
HEADINGS = {T2: "T2", CHANGE: "Change of T2"}
TABLES, REPORT, SUMMARY = ("agreement.csv", "values.csv"), "report.md", "summary.json"
FIGURES = {"bland_altman": bland_altman_figure, "scatter": scatter_figure}
SHOWN = {
    "region": "region",
    "n": "n",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "mae": "MAE (ms)",
    "sd_absolute_error": "SD",
    "bias": "bias (ms)",
    "p_bias": "p (t)",
    "loa_low": "limits from",
    "loa_high": "to",
    "rms_cv_percent": "RMS-CV (%)",
}
FORMATS = {
    **dict.fromkeys(("spearman", "pearson"), ".3f"),
    **dict.fromkeys(("mae", "sd_absolute_error", "rms_cv_percent"), ".2f"),
    **dict.fromkeys(("bias", "loa_low", "loa_high"), "+.2f"),
    "p_bias": ".2g",
}


def evaluate(args: argparse.Namespace) -> int:
    """Compare every method with the reference, write what follows, print a summary; returns the exit code."""
    if args.min_voxels < 1:
        raise InputError(f"--min-voxels is {args.min_voxels}; it must be at least 1.")
    methods = _methods(args.pred, args.names)
    reference = read_region_table(args.ref)
    outcome, values, left_out = Outcome(), [], {}
    for method, path in methods.items():
        prediction = read_region_table(path)
        scans = dict.fromkeys(key[:2] for key in reference)
        others = dict.fromkeys(key[:2] for key in prediction)
        outcome.failed |= {
            f"{method}: {_name(*scan)}": f"{path} has no rows of it." for scan in scans if scan not in others
        }
        left_out[method] = [_name(*scan) for scan in others if scan not in scans]
        wrong = _other_sides(reference, prediction)
        outcome.failed |= {f"{method}: {case}": reason for case, reason in wrong.items()}
        kept = [scan for scan in scans if scan in others and scan[0] not in wrong]
        values += _values(method, reference, prediction, kept, args.min_voxels)
    for name in (*TABLES, REPORT, SUMMARY, *(_picture(*key) for key in _pictures(methods))):  # of an earlier run
        (args.o / name).unlink(missing_ok=True)
    if not values:
        print_failures(outcome)
        raise InputError(f"No case and time point of {args.ref} is in {', '.join(map(str, args.pred))}.")
    rows = _agreement_rows(values, methods)
    save_table(rows, args.o / TABLES[0])
    save_table(values, args.o / TABLES[1])
    summary = {
        "version": __version__,
        "definitions": DEFINITIONS | QUANTITIES,
        "settings": {"reference": str(args.ref), "min_voxels": args.min_voxels},
        "methods": {name: str(path) for name, path in methods.items()},
        "results": _tree(rows),
        "failed": outcome.failed,
        "predictions_without_reference": left_out,
    }
    save_json(json_safe(summary), args.o / SUMMARY)
    _write_report(args, rows, values, methods, outcome.failed)
    _print(rows)
    print(f"Report: {args.o / REPORT}")
    print_without_reference(left_out)
    print_failures(outcome)
    return outcome.exit_code


def _methods(paths: Sequence[Path], names: Sequence[str] | None) -> dict[str, Path]:
    """Table or folder of every method by its name; a table is named as itself, regions.csv as its folder."""
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise InputError(f"{missing[0]} does not exist.")
    named = [
        path.resolve().parent if path.name == FILE_NAME else path.with_suffix("") if path.is_file() else path
        for path in paths
    ]
    return dict(zip(name_methods(named, names), paths, strict=True))


def _name(case: str, time_point: int) -> str:
    return f"{case}, time point {time_point}"


def _other_sides(reference: Mapping[Key, Row], prediction: Mapping[Key, Row]) -> dict[str, str]:
    """Cases that are a left knee in one table and a right one in the other, with what to say: nothing is comparable."""
    ours, theirs = (
        {row["case"]: row["side"] for row in rows.values() if row["side"]} for rows in (reference, prediction)
    )
    return {
        case: f"a {side} knee in the reference, a {theirs[case]} one in the prediction; medial and lateral would be "
        "exchanged."
        for case, side in ours.items()
        if theirs.get(case, side) != side
    }


def _values(
    method: str,
    reference: Mapping[Key, Row],
    prediction: Mapping[Key, Row],
    scans: Iterable[tuple[str, int]],
    min_voxels: int,
) -> list[Row]:
    """A row for each quantity, case, time point and region; NaN where one of the two has no value."""
    scans = set(scans)
    ours, theirs = (
        {key: row for key, row in rows.items() if key[:2] in scans and row["t2_voxels"] >= min_voxels}
        for rows in (reference, prediction)
    )
    found = []
    for case, time_point in sorted(scans):
        for region in REGIONS:
            pair = [rows.get((case, time_point, region), {}).get("t2_mean_ms", math.nan) for rows in (ours, theirs)]
            found.append((T2, case, time_point, region, *pair))
    changes = [
        {(row["case"], row["region"]): row["t2_change_ms"] for row in change_rows(rows.values())}
        for rows in (ours, theirs)
    ]
    for case in dict.fromkeys(case for case, _ in sorted(scans) if {(case, 1), (case, 2)} <= scans):
        for region in REGIONS:
            found.append((CHANGE, case, None, region, *(each.get((case, region), math.nan) for each in changes)))
    names = ("quantity", "case", "time_point", "region", "reference_ms", "prediction_ms")
    return [
        {"method": method, **dict(zip(names, each, strict=True)), "difference_ms": each[5] - each[4]} for each in found
    ]


def _agreement_rows(values: Sequence[Row], methods: Iterable[str]) -> list[Row]:
    """A row for each method, quantity and region; a quantity that no case has is left out."""
    rows = []
    for method in methods:
        for quantity in QUANTITIES:
            chosen = [row for row in values if (row["method"], row["quantity"]) == (method, quantity)]
            for region in REGIONS if chosen else ():
                here = {_pair_name(row): row for row in chosen if row["region"] == region}
                both = ({name: row[f"{side}_ms"] for name, row in here.items()} for side in ("reference", "prediction"))
                figures = agreement(*both, is_ratio_scale=quantity == T2).as_row()
                figures["excluded"] = "; ".join(figures["excluded"])
                rows.append({"method": method, "quantity": quantity, "region": region, **figures})
    return rows


def _pair_name(row: Row) -> str:
    return row["case"] if row["time_point"] is None else _name(row["case"], row["time_point"])


def _tree(rows: Sequence[Row]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for row in rows:
        figures = {key: value for key, value in row.items() if key not in ("method", "quantity", "region")}
        tree.setdefault(row["method"], {}).setdefault(row["quantity"], {})[row["region"]] = figures
    return tree


def _pictures(methods: Iterable[str]) -> list[tuple[str, str, str]]:
    return [(method, quantity, kind) for method in methods for quantity in QUANTITIES for kind in FIGURES]


def _picture(method: str, quantity: str, kind: str) -> Path:
    return Path("pictures", method, f"{kind}_{quantity}.png")


def _write_report(
    args: argparse.Namespace,
    rows: Sequence[Row],
    values: Sequence[Row],
    methods: Mapping[str, Path],
    failed: Mapping[str, str],
) -> None:
    page = Page("T2 of cartilage regions against a reference", args.o)
    page.text(
        f"Reference: `{args.ref}`. A region counts where both have a value, of at least {args.min_voxels} voxel(s)."
    )
    for method, path in methods.items():
        for quantity in QUANTITIES:
            chosen = [row for row in rows if (row["method"], row["quantity"]) == (method, quantity)]
            if not chosen:
                continue
            page.section(f"{HEADINGS[quantity]}: {method}")
            page.text(f"`{path}`. {QUANTITIES[quantity][0].upper()}{QUANTITIES[quantity][1:]}.")
            shown = {key: name for key, name in SHOWN.items() if quantity == T2 or key != "rms_cv_percent"}
            page.table(chosen, shown, FORMATS)
            pairs = _pairs(values, method, quantity)
            for kind, draw in FIGURES.items():
                place = args.o / _picture(method, quantity, kind)
                save_figure(draw(pairs, "ms", f"{HEADINGS[quantity]}: {method}"), place, dpi=100)
                page.picture(place, f"{HEADINGS[quantity]}, {kind.replace('_', '-')} plots of all regions")
            without = [{"region": row["region"], "pairs": row["excluded"]} for row in chosen if row["excluded"]]
            if without:
                page.text("Left out, since one of the two has too few voxels or no value:")
                page.table(without)
    page.section("What is measured")
    page.text("\n".join(f"- {key}: {text}" for key, text in DEFINITIONS.items()))
    page.text("p-values are two-sided and not adjusted for the number of regions.")
    if failed:
        page.section("Failed")
        page.table([{"case": name, "why": reason} for name, reason in failed.items()])
    page.write(REPORT)


def _pairs(values: Sequence[Row], method: str, quantity: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    chosen = [row for row in values if (row["method"], row["quantity"]) == (method, quantity)]
    found = {}
    for region in REGIONS:
        here = [row for row in chosen if row["region"] == region and math.isfinite(row["difference_ms"])]
        sides = (np.array([row[f"{side}_ms"] for row in here], dtype=float) for side in ("reference", "prediction"))
        found[region] = (next(sides), next(sides))
    return found


def _print(rows: Sequence[Row]) -> None:
    shown = ["spearman", "pearson", "mae", "bias", "p_bias", "rms_cv_percent"]

    def cell(row: Row, key: str) -> str:
        return "-" if math.isnan(row[key]) else format(row[key], FORMATS[key])

    print_table(
        ["method", "quantity", "region", "n", *(SHOWN[key] for key in shown)],
        [
            [row["method"], row["quantity"], row["region"], str(row["n"]), *(cell(row, key) for key in shown)]
            for row in rows
        ],
        left_columns=3,
    )
