"""What ``nnunet-anomaly evaluate-anomaly`` does, pass by pass; a pass reads one case a process at a time.

1. Every case: its figures, and what pooling needs (distinct scores of its lesion voxels, a histogram, slices, lesions).
2. Pooled: other voxels at all common thresholds, added up case by case; where sorting would not fit into the memory
   that is allowed, by the histograms, and it is said.
3. Thresholds: searched on validation cases, which go through passes 1 and 2 too.
4. Every case at these thresholds, at the oracle's and at those of the FROC curve.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_anomaly.cli.output import print_failures, print_without_reference
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import run_cases, save_json
from nnunet_anomaly.workflow.anomaly_cases import AT_THRESHOLDS, measure_at
from nnunet_anomaly.workflow.anomaly_cohort import (
    BASELINES,
    FILTERED,
    Cohort,
    add_filtered_maps,
    filters_on,
    find_cohort,
    refuse_common_cases,
)
from nnunet_anomaly.workflow.anomaly_pooling import measure_cases
from nnunet_anomaly.workflow.anomaly_report import write_results
from nnunet_anomaly.workflow.anomaly_results import Results
from nnunet_anomaly.workflow.anomaly_stale import remove_filtered, remove_results
from nnunet_anomaly.workflow.anomaly_thresholds import (
    froc_thresholds_of,
    load_thresholds,
    search_thresholds,
    thresholds_of,
)
from nnunet_anomaly.workflow.evaluate import name_methods


def evaluate(args: argparse.Namespace) -> int:
    """All passes, then tables, pictures and a printed summary; returns the exit code."""
    _check_arguments(args)
    names = _method_names(args)
    cohort = find_cohort(args, names, args.o, args.ref, args.pred, args.m, args.baseline)
    outcomes, searched = [cohort.outcome], {}
    if args.validation_ref:
        folders = (args.validation_pred, args.validation_mask, args.validation_baseline)
        validation = find_cohort(args, names, args.o / "validation", args.validation_ref, *folders)
        refuse_common_cases(cohort, list(validation.references), args)
        add_filtered_maps(validation, args)
        cohort.filter_warnings += validation.filter_warnings
        searched = search_thresholds(validation, args)
        save_json({"methods": searched}, args.o / "thresholds.json")
        outcomes.append(validation.outcome)
    elif args.threshold_file:
        searched = load_thresholds(cohort, args)
    add_filtered_maps(cohort, args)
    results = _pass_over(cohort, searched, args)
    _remove_stale(args, names)
    if results.thresholds:
        write_results(args, results)
    else:
        print("No case could be evaluated: there are no tables.")
    print_without_reference(cohort.without_reference)
    for outcome in outcomes:
        print_failures(outcome)
    return max(outcome.exit_code for outcome in outcomes)


def _pass_over(cohort: Cohort, searched: Mapping[str, Any], args: argparse.Namespace) -> Results:
    """Measure every case, all pooled, and every case at the thresholds that follow."""
    pooled, pooled_by = measure_cases(cohort, args)
    thresholds = {method: thresholds_of(found, searched.get(method, {})) for method, found in pooled.items()}
    froc_thresholds = {method: froc_thresholds_of(found) for method, found in pooled.items()}
    values = {
        method: [found.value for found in kinds.values()] + froc_thresholds[method]
        for method, kinds in thresholds.items()
    }
    work = [
        (
            f"{method}: {case}",
            (files, values[method], args.component_overlap, cohort.record(method, case, AT_THRESHOLDS)),
        )
        for method in pooled
        for case, files in cohort.finished(method).items()
    ]
    cohort.outcome.failed.update(run_cases(measure_at, work, args.np, "at thresholds").failed)
    for method in [method for method in pooled if not cohort.finished(method)]:
        del pooled[method], thresholds[method], froc_thresholds[method]
    return Results(cohort, pooled, pooled_by, thresholds, froc_thresholds, args.hit_overlap, args.lesion_size_edges_mm3)


def _method_names(args: argparse.Namespace) -> list[str]:
    names = list(name_methods(args.pred, args.names))
    added = [*(BASELINES if args.baseline else ()), *(f"{name}{FILTERED}" for name in names if filters_on(args))]
    if taken := sorted(set(names) & set(added)):
        raise InputError(f"'{taken[0]}' is the name of a method that is added; name the methods otherwise by --names.")
    return names


def _check_arguments(args: argparse.Namespace) -> None:
    if args.mask_labels and args.m is None:
        raise InputError("--mask-labels chooses labels of -m, which is not given.")
    if args.filters and args.m is None:
        raise InputError("--filters erodes the mask of -m, which is not given.")
    given = [args.erode_mm, args.median_radius_mm, args.min_volume_mm3, args.component_threshold]
    if not filters_on(args) and any(value is not None for value in given):
        raise InputError("Settings of the filters are given, but filters are off: give -m, and not --no-filters.")
    if args.baseline_dark and not args.baseline:
        raise InputError("--baseline-dark is about the images of --baseline, which is not given.")
    for option in ("hit_overlap", "component_overlap"):
        if not 0 <= getattr(args, option) <= 1:
            flag = f"--{option.replace('_', '-')}"
            raise InputError(f"{flag} is {getattr(args, option)}; it must be a share from 0 to 1.")
    if not args.memory_gb > 0:
        raise InputError(f"--memory-gb is {args.memory_gb}; it must be above 0.")
    if bool(args.validation_ref) != bool(args.validation_pred) or (args.validation_ref and args.threshold_file):
        raise InputError("Give --validation-ref and --validation-pred together, or --threshold-file instead of both.")
    if args.validation_ref and bool(args.m) != bool(args.validation_mask):
        raise InputError("Give -m and --validation-mask both or none: thresholds hold for where they were searched.")
    for option in ("validation_pred", "training_sizes", "curve_names", "reconstructions"):
        values = getattr(args, option)
        if values and len(values) != len(args.pred):
            flag = f"--{option.replace('_', '-')}"
            raise InputError(f"{flag} must be given {len(args.pred)} times, once for each -pred; got {len(values)}.")


def _remove_stale(args: argparse.Namespace, names: Sequence[str]) -> None:
    thresholds = args.o / "thresholds.json"
    is_read = args.threshold_file is not None and args.threshold_file.resolve() == thresholds.resolve()
    remove_results(args.o, keep_thresholds=is_read or args.validation_ref is not None)
    filtered = names if filters_on(args) else ()
    remove_filtered(args.o, filtered)
    remove_filtered(args.o / "validation", filtered if args.validation_ref else ())
