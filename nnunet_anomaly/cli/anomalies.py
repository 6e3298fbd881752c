"""``nnunet-anomaly anomalies``: error maps and label maps in, anomaly masks and their volumes out.

The output folder holds ``<case>.nii.gz`` (1 where abnormal), ``volumes.csv``, ``threshold.json`` (to be used again with
``--threshold-file``), and, so that a killed run goes on where it was, ``cases/`` and ``calibration/``. Lesion-free
cases add ``healthy_errors.npz``, which belongs to ``threshold.json``, and ``cases.csv``; ``--p-values`` adds a folder
``p_values/``.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_anomaly import dataset_roles
from nnunet_anomaly.cli.output import print_failures
from nnunet_anomaly.errors import InputError, LeakageError, SettingsError
from nnunet_anomaly.files import (
    Outcome,
    find_dataset_folder,
    load_json,
    nnunet_folder,
    place,
    run_cases,
    sha256_of,
    written_whole,
)
from nnunet_anomaly.workflow.anomaly_masks import (
    ENDING,
    Case,
    MaskJob,
    Region,
    case_rows,
    image_sha256,
    load_histogram,
    make_histogram,
    make_mask,
    record_file,
)

if TYPE_CHECKING:
    from nnunet_anomaly.error_maps.calibrate import ErrorHistogram, Threshold
    from nnunet_anomaly.error_maps.conformal import HealthyErrors
    from nnunet_anomaly.error_maps.guarantee import Wish

EXAMPLE = "nnunet-anomaly anomalies -i imagesTs -s predictions -o anomalies -d 201 --healthy-cases healthy.txt"

SIGMA_MM, ERODE_MM, MIN_VOLUME_MM3 = 1.0, 1.0, 20.0
FALSE_POSITIVE_RATE, FALSE_POSITIVE_RATE_PER_CASE = 0.01, 0.05
GUARANTEES, PROCEDURES = ("voxel", "case"), ("benjamini-hochberg", "benjamini-yekutieli")
HEALTHY_ERRORS = "healthy_errors.npz"
COLUMNS = (
    "case",
    "bone",
    "label",
    "region_volume_mm3",
    "n_components",
    "volume_mm3",
    "largest_component_mm3",
    "mean_smoothed_error",
    "max_smoothed_error",
)
CASE_COLUMNS = ("case", "threshold", "peak_error", "p_value", "q_value")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("-i", required=True, type=Path, metavar="DIR", help="nnU-Net input folder with error channel")
    parser.add_argument("-s", required=True, type=Path, metavar="DIR", help="label maps predicted for these cases")
    parser.add_argument("-o", required=True, type=Path, metavar="DIR", help="output folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-d", metavar="ID", help="dataset with error maps (such as 201): calibrate on its imagesTr")
    source.add_argument("--threshold-file", type=Path, metavar="FILE", help="threshold.json of an earlier run")
    parser.add_argument(
        "--calibration-segmentations",
        type=Path,
        nargs="+",
        action="extend",
        metavar="DIR",
        help="label maps of the calibration cases, such as the fold_*/validation folders (default: labelsTr)",
    )
    parser.add_argument(
        "--healthy-cases",
        type=Path,
        metavar="FILE",
        help="lesion-free calibration cases, one name a line (default: all cases, by a robust quantile)",
    )
    parser.add_argument(
        "--false-positive-rate",
        type=float,
        metavar="R",
        help=f"share of lesion-free voxels allowed above the threshold (default: {FALSE_POSITIVE_RATE}), or with "
        "--guarantee case of lesion-free cases with a mask that is not empty (default: "
        f"{FALSE_POSITIVE_RATE_PER_CASE})",
    )
    parser.add_argument(
        "--guarantee",
        choices=GUARANTEES,
        help="make the rate hold on new lesion-free cases, on average per voxel, or per case; needs --healthy-cases "
        "and at least 1 / R - 1 of them (default: the plain quantile)",
    )
    parser.add_argument(
        "--fdr",
        type=float,
        metavar="Q",
        help="false discovery rate: a threshold for each case, in place of one rate for all; needs --healthy-cases",
    )
    parser.add_argument(
        "--fdr-procedure",
        choices=PROCEDURES,
        help=f"with --fdr: {PROCEDURES[1]} holds for any dependence between voxels and finds less (default: "
        f"{PROCEDURES[0]})",
    )
    parser.add_argument(
        "--p-values", action="store_true", help="also write a p-value map of each case; needs --healthy-cases"
    )
    parser.add_argument("--sigma-mm", type=float, metavar="MM", help=f"Gaussian smoothing (default: {SIGMA_MM})")
    parser.add_argument(
        "--erode-mm", type=float, metavar="MM", help=f"rim of each bone to leave out (default: {ERODE_MM})"
    )
    parser.add_argument(
        "--min-volume-mm3",
        type=float,
        metavar="MM3",
        help=f"drop components smaller than this (default: {MIN_VOLUME_MM3}, or as the threshold file guarantees)",
    )
    parser.add_argument(
        "--roi-labels", type=int, nargs="+", metavar="LABEL", help="bones (default: as dataset.json says)"
    )
    parser.add_argument("--channel", type=int, help="number of the error channel (default: as dataset.json says)")
    parser.add_argument(
        "--allow-calibration-cases", action="store_true", help="also make masks of cases that set the threshold"
    )
    parser.add_argument("-np", type=int, default=3, metavar="N", help="processes (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Calibrate or load a threshold, make every mask that is not there yet, write the volumes."""
    from nnunet_anomaly.error_maps.calibrate import Threshold

    _check_arguments(args)
    if args.threshold_file:
        threshold = Threshold.load(args.threshold_file)
        _check_use(threshold, args)
        cases = _cases(args, threshold.channel if args.channel is None else args.channel)
        _refuse_calibration_cases(cases, threshold.cases, args)
        _refuse_calibration_images(cases, threshold, args)
        healthy_errors = _bring_healthy_errors(threshold, args)
    else:
        dataset = find_dataset_folder(nnunet_folder("nnUNet_raw"), args.d)
        channel, region = _from_dataset(dataset, args)
        cases = _cases(args, channel)
        calibration_cases = _calibration_cases(dataset, channel, args)
        _refuse_calibration_cases(cases, [case.name for case in calibration_cases], args)
        threshold, healthy_errors = _calibrate(calibration_cases, channel, region, args)
        _refuse_calibration_images(cases, threshold, args)
    threshold.save(args.o / "threshold.json")
    for name in ("volumes.csv", "cases.csv"):
        (args.o / name).unlink(missing_ok=True)  # it belongs to the masks of this run, and comes last
    job = MaskJob(args.o, threshold, _min_volume_mm3(args, threshold), healthy_errors, args.p_values)
    outcome = run_cases(make_mask, [(case.name, (case, job)) for case in cases], args.np, "Anomaly masks")
    records = {
        case.name: load_json(record_file(args.o, case.name)) for case in cases if case.name not in outcome.failed
    }
    _write_table([row for record in records.values() for row in record["rows"]], COLUMNS, args.o / "volumes.csv")
    if healthy_errors is not None:
        _write_table(case_rows(records, healthy_errors), CASE_COLUMNS, args.o / "cases.csv")
    _report(outcome, records, args.o, threshold)
    return outcome.exit_code


def _check_arguments(args: argparse.Namespace) -> None:
    if args.threshold_file:
        named = {
            "--calibration-segmentations": args.calibration_segmentations,
            "--healthy-cases": args.healthy_cases,
            "--false-positive-rate": args.false_positive_rate,
            "--guarantee": args.guarantee,
            "--fdr": args.fdr,
            "--fdr-procedure": args.fdr_procedure,
            "--sigma-mm": args.sigma_mm,
            "--erode-mm": args.erode_mm,
            "--roi-labels": args.roi_labels,
        }
        unwanted = [name for name, value in named.items() if value is not None]
        if unwanted:
            raise SettingsError(
                f"{', '.join(unwanted)} cannot be given with --threshold-file: the threshold holds for the settings "
                "it was calibrated with, which are in the file. Leave them out, or calibrate again with -d."
            )
    for name in ("sigma_mm", "erode_mm", "min_volume_mm3"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < float("inf"):
            raise SettingsError(f"--{name.replace('_', '-')} is {value}; it has to be a number of at least 0.")
    for name in ("false_positive_rate", "fdr"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1:
            raise SettingsError(f"--{name.replace('_', '-')} is {value}; it has to lie between 0 and 1.")
    if args.fdr is not None and (args.guarantee or args.false_positive_rate is not None):
        raise SettingsError("--fdr finds a threshold for each case: leave out --guarantee and --false-positive-rate.")
    if args.fdr_procedure and args.fdr is None:
        raise SettingsError("--fdr-procedure belongs to --fdr. Give the rate: --fdr 0.05.")
    asked = [("--guarantee", args.guarantee), ("--fdr", args.fdr), ("--p-values", args.p_values or None)]
    needing = [name for name, value in asked if value is not None]
    if needing and args.d and not args.healthy_cases:
        raise SettingsError(
            f"{', '.join(needing)} takes calibration cases that are known to be lesion-free. List them: "
            "--healthy-cases FILE."
        )
    for folder in (args.i, args.s):
        if args.o.resolve() == folder.resolve():
            raise InputError(f"-o {args.o} is an input folder; the masks would replace its files. Choose another.")


def _wish(args: argparse.Namespace) -> Wish | None:
    """The guarantee that the options ask for."""
    from nnunet_anomaly.error_maps.calibrate import OF_DISCOVERIES, PER_CASE
    from nnunet_anomaly.error_maps.guarantee import Wish

    if args.fdr is not None:
        return Wish(OF_DISCOVERIES, args.fdr, args.fdr_procedure or PROCEDURES[0])
    if args.guarantee:
        default = FALSE_POSITIVE_RATE_PER_CASE if args.guarantee == PER_CASE else FALSE_POSITIVE_RATE
        return Wish(args.guarantee, default if args.false_positive_rate is None else args.false_positive_rate)
    return None


def _min_volume_mm3(args: argparse.Namespace, threshold: Threshold | None = None) -> float:
    if args.min_volume_mm3 is not None:
        return float(args.min_volume_mm3)
    return threshold.guarantee.min_volume_mm3 if threshold and threshold.guarantee else MIN_VOLUME_MM3


def _check_use(threshold: Threshold, args: argparse.Namespace) -> None:
    """Refuse to keep small components that a guarantee per case was found without."""
    from nnunet_anomaly.error_maps.calibrate import PER_CASE

    guarantee = threshold.guarantee
    if guarantee and guarantee.kind == PER_CASE and _min_volume_mm3(args, threshold) < guarantee.min_volume_mm3:
        raise SettingsError(
            f"--min-volume-mm3 is {args.min_volume_mm3:g}, but {args.threshold_file} guarantees its rate per case for "
            f"components of at least {guarantee.min_volume_mm3:g} mm3. Leave it out, or calibrate again with -d."
        )


# --- what to look at -------------------------------------------------------------------------------------------------


def _from_dataset(dataset: Path, args: argparse.Namespace) -> tuple[int, Region]:
    """Error channel and region as dataset.json of the derived dataset says, unless options say otherwise."""
    path = dataset / "dataset.json"
    content = load_json(path)
    channel = args.channel
    if channel is None:
        channels = dataset_roles.error_channels(content)
        if len(channels) != 1:
            raise InputError(
                f"{path} names {len(channels)} error channels in anomaly.channel_roles, not one. Is it a dataset made "
                "by 'nnunet-anomaly error-maps'? Otherwise give --channel."
            )
        channel = channels[0]
    names = {label: name for name, label in content["labels"].items() if isinstance(label, int)}
    labels = args.roi_labels or dataset_roles.roi_labels(content)
    known = set(_flat(content["labels"].values())) - {0}
    if not set(labels) <= known:
        raise SettingsError(
            f"--roi-labels {sorted(set(labels) - known)} not among the labels {sorted(known)} of {path}."
        )
    roi_labels = {names.get(label, f"label_{label}"): label for label in sorted(set(labels))}
    print(f"Region of interest: {', '.join(f'{name} ({label})' for name, label in roi_labels.items())}.")
    sigma_mm = SIGMA_MM if args.sigma_mm is None else args.sigma_mm
    return channel, Region(roi_labels, sigma_mm, ERODE_MM if args.erode_mm is None else args.erode_mm)


def _flat(values: Iterable[int | list[int]]) -> list[int]:
    return [label for value in values for label in ([value] if isinstance(value, int) else value)]


# --- which files -----------------------------------------------------------------------------------------------------


def _error_files(folder: Path, channel: int) -> dict[str, Path]:
    """Case name and error map of every case in an nnU-Net image folder.

    Raises:
        InputError: the folder is missing or has no such channel, or a case has two files for it.
    """
    from nnunet_anomaly.label_maps import files_by_case

    found = files_by_case(folder, channel)
    if not found:
        raise InputError(
            f"{folder} has no error maps: no image is named <case>_{channel:04d}. Make them with 'nnunet-anomaly "
            "error-maps', or name the error channel with --channel."
        )
    return found


def _label_files(folders: Sequence[Path]) -> dict[str, Path]:
    """Label maps of several folders by case.

    Raises:
        InputError: a folder is missing, or a case has more than one label map.
    """
    from nnunet_anomaly.label_maps import files_by_case

    found: dict[str, Path] = {}
    for folder in folders:
        for name, path in files_by_case(folder).items():
            if name in found:
                raise InputError(f"There is more than one label map of {name}: {found[name]} and {path}. Leave one.")
            found[name] = path
    return found


def _pair(error_files: Mapping[str, Path], label_files: Mapping[str, Path], folders: Sequence[Path]) -> list[Case]:
    """Every error map with its label map.

    Raises:
        InputError: a label map is missing.
    """
    missing = [name for name in error_files if name not in label_files]
    if missing:
        raise InputError(f"No label map in {', '.join(map(str, folders))} for: {', '.join(missing)}.")
    return [Case(name, path, label_files[name]) for name, path in error_files.items()]


def _calibration_cases(dataset: Path, channel: int, args: argparse.Namespace) -> list[Case]:
    """The cases that set the threshold: those listed as lesion-free, else all that have a label map."""
    error_files = _error_files(dataset / "imagesTr", channel)
    folders = args.calibration_segmentations or [dataset / "labelsTr"]
    if not args.calibration_segmentations:
        promised = _wish(args) or args.p_values
        print(
            "Bones of the calibration cases: reference labels (labelsTr). Give --calibration-segmentations to "
            "calibrate in the bones that the segmentation network found"
            f"{', as in new cases: otherwise no rate is guaranteed where it errs' if promised else ''}."
        )
    label_files = _label_files(folders)
    if args.healthy_cases:
        names = _read_names(args.healthy_cases)
        unknown = [name for name in names if name not in error_files]
        if unknown:
            raise InputError(
                f"{args.healthy_cases} lists cases that have no error map in {dataset / 'imagesTr'}: "
                f"{', '.join(unknown)}."
            )
        return _pair({name: error_files[name] for name in names}, label_files, folders)
    without = [name for name in error_files if name not in label_files]
    if 0 < len(without) < len(error_files):
        print(f"Not used for calibration, as they have no label map: {', '.join(without)}.")
        error_files = {name: path for name, path in error_files.items() if name not in without}
    return _pair(error_files, label_files, folders)


def _read_names(path: Path) -> list[str]:
    """Case names, one a line; empty lines and what follows a # do not count."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}. It should hold one case name a line.") from None
    names = list(dict.fromkeys(name for line in lines if (name := line.split("#")[0].strip())))
    if not names:
        raise InputError(f"{path} lists no case. Put one case name on a line, or leave --healthy-cases out.")
    return names


def _cases(args: argparse.Namespace, channel: int) -> list[Case]:
    """The cases to make masks of; refuses an output folder with masks of others, which would be mixed up with them."""
    cases = _pair(_error_files(args.i, channel), _label_files([args.s]), [args.s])
    ours = {f"{case.name}{ENDING}" for case in cases}
    present = [path.name for path in args.o.glob(f"*{ENDING}")] if args.o.is_dir() else []
    others = sorted(name for name in present if name not in ours and not name.startswith("."))
    if others:
        raise InputError(
            f"-o {args.o} already holds files of other cases ({', '.join(others[:5])}{', ...' if others[5:] else ''}). "
            "Choose another folder."
        )
    return cases


def _refuse_calibration_cases(cases: Sequence[Case], calibration: Iterable[str], args: argparse.Namespace) -> None:
    both = sorted({case.name for case in cases} & set(calibration))
    if both and not args.allow_calibration_cases:
        raise LeakageError(
            f"The threshold comes from cases that it would be used on: {', '.join(both)}. Take them out of "
            f"{args.i}, or say --allow-calibration-cases if no figure is to be drawn from them."
        )


def _refuse_calibration_images(cases: Sequence[Case], threshold: Threshold, args: argparse.Namespace) -> None:
    """The same image file under another name, and a word on what cases of the calibration void."""
    known = {digest: name for name, digest in threshold.image_sha256.items()}
    same = {case.name: known[digest] for case in cases if known and (digest := image_sha256(case)) in known}
    if not same:
        return
    pairs = ", ".join(f"{name} ({other})" for name, other in same.items())
    if not args.allow_calibration_cases:
        raise LeakageError(
            f"These cases have the same image file as a calibration case, named behind them: {pairs}. Take them out of "
            f"{args.i}, or say --allow-calibration-cases if no figure is to be drawn from them."
        )
    print(f"No rate and no p-value holds for calibration cases: {pairs}.")


def _bring_healthy_errors(threshold: Threshold, args: argparse.Namespace) -> Path | None:
    """The lesion-free cases' errors that belong to a threshold file, copied into the output folder; None without.

    Raises:
        InputError: they are needed and not there, or belong to another threshold.
    """
    from nnunet_anomaly.error_maps.calibrate import OF_DISCOVERIES

    source, target = args.threshold_file.with_name(HEALTHY_ERRORS), args.o / HEALTHY_ERRORS
    belongs = bool(threshold.healthy_errors_sha256)
    if belongs and source.is_file():
        if sha256_of([source]) != threshold.healthy_errors_sha256:
            raise InputError(f"{source} belongs to another threshold than {args.threshold_file}. Copy both together.")
        place(source, target, copy=True)
        return target
    if args.p_values or (threshold.guarantee and threshold.guarantee.kind == OF_DISCOVERIES):
        missing = f"{source} does not exist; copy it together with {args.threshold_file.name}"
        raise InputError(
            f"p-values and false discovery rates take the errors of lesion-free cases: "
            f"{missing if belongs else f'{args.threshold_file} was calibrated without such cases'}, or calibrate again "
            "with -d and --healthy-cases."
        )
    target.unlink(missing_ok=True)
    return None


# --- calibration -----------------------------------------------------------------------------------------------------


def _calibrate(
    cases: list[Case], channel: int, region: Region, args: argparse.Namespace
) -> tuple[Threshold, Path | None]:
    """Threshold from the calibration cases; with lesion-free ones also the file that holds their errors together."""
    import numpy as np

    from nnunet_anomaly.error_maps import calibrate
    from nnunet_anomaly.error_maps.guarantee import check_number_of_cases, find_threshold

    healthy, wish = args.healthy_cases is not None, _wish(args)
    if wish:
        check_number_of_cases(wish, len(cases))
    histograms, records = _histograms(cases, region, args)
    rate = FALSE_POSITIVE_RATE if args.false_positive_rate is None else args.false_positive_rate
    find = calibrate.threshold_at_false_positive_rate if healthy else calibrate.robust_threshold
    value, guarantee = find(histograms, rate), None
    images = {name: record["image_sha256"] for name, record in records.items()}
    _warn_of_copies(images)
    healthy_errors = args.o / HEALTHY_ERRORS
    healthy_errors.unlink(missing_ok=True)  # of an earlier run
    if healthy:
        together = _put_together(histograms, records, healthy_errors, _min_volume_mm3(args))
        if wish:
            (value, guarantee), rate = find_threshold(wish, histograms, together), wish.rate
    threshold = calibrate.Threshold(
        value=value,
        rate=rate,
        method=calibrate.FROM_LESION_FREE_CASES if healthy else calibrate.FROM_ALL_CASES,
        cases=list(histograms),
        n_voxels=sum(histogram.n_voxels for histogram in histograms.values()),
        spacing_mm=np.median([record["spacing_mm"] for record in records.values()], axis=0).tolist(),
        sigma_mm=region.sigma_mm,
        erode_mm=region.erode_mm,
        roi_labels=region.roi_labels,
        channel=channel,
        guarantee=guarantee,
        healthy_errors_sha256=sha256_of([healthy_errors]) if healthy else "",
        image_sha256=images,
    )
    _describe(threshold, histograms)
    return threshold, healthy_errors if healthy else None


def _histograms(
    cases: list[Case], region: Region, args: argparse.Namespace
) -> tuple[dict[str, ErrorHistogram], dict[str, Any]]:
    """Histogram and record of every calibration case with a voxel in the region; kept, so that each is made once.

    Raises:
        InputError: a case failed.
    """
    folder = args.o / "calibration"
    min_volume_mm3 = _min_volume_mm3(args) if args.healthy_cases else None
    jobs = [(case.name, (case, folder, region, min_volume_mm3)) for case in cases]
    outcome = run_cases(make_histogram, jobs, args.np, "Calibration")
    if outcome.failed:
        raise InputError(
            "There is no threshold without these calibration cases:\n"
            + "\n".join(f"  {name}: {reason}" for name, reason in outcome.failed.items())
            + "\nMend them, or leave them out by --healthy-cases; the others are not computed again."
        )
    histograms = {case.name: load_histogram(folder / f"{case.name}.npz") for case in cases}
    empty = [name for name, histogram in histograms.items() if not histogram.n_voxels]
    if empty:
        print(f"No voxel inside the region of interest, so not used for calibration: {', '.join(empty)}.")
    used = {name: histogram for name, histogram in histograms.items() if histogram.n_voxels}
    return used, {name: load_json(folder / f"{name}.json") for name in used}


def _warn_of_copies(images: Mapping[str, str]) -> None:
    """Warn of calibration cases that count twice."""
    first: dict[str, str] = {}
    copies = [
        f"{name} ({other})" for name, digest in images.items() if (other := first.setdefault(digest, name)) != name
    ]
    if copies:
        print(
            "Warning: these calibration cases have the same image file as another, named behind them, and count as if "
            f"they were others: {', '.join(copies)}.",
            file=sys.stderr,
        )


def _put_together(
    histograms: Mapping[str, ErrorHistogram], records: Mapping[str, Any], target: Path, min_volume_mm3: float
) -> HealthyErrors:
    """Write the lesion-free cases' errors, and warn of cases that do not look lesion-free."""
    from nnunet_anomaly.error_maps.conformal import HealthyErrors
    from nnunet_anomaly.error_maps.guarantee import warnings

    peaks = {name: record["peak_error"] for name, record in records.items()}
    for text in warnings(histograms, peaks):
        print(f"Warning: {text}", file=sys.stderr)
    together = HealthyErrors.of(histograms, peaks, min_volume_mm3)
    together.save(target)
    return together


def _describe(threshold: Threshold, histograms: dict[str, ErrorHistogram]) -> None:
    """Print where the threshold comes from, and how unequal the cases are."""
    from nnunet_anomaly.error_maps.calibrate import FROM_LESION_FREE_CASES, OF_DISCOVERIES
    from nnunet_anomaly.error_maps.guarantee import in_words

    n_cases, percent = len(threshold.cases), f"{100 * threshold.rate:g} %"
    if threshold.guarantee:
        print(in_words(threshold))
    elif threshold.method == FROM_LESION_FREE_CASES:
        print(
            f"Threshold {threshold.value:.4g}: at most {percent} of {threshold.n_voxels} voxels of {n_cases} "
            "lesion-free cases lie above it."
        )
    else:
        print(
            f"Threshold {threshold.value:.4g}: no --healthy-cases given, so it is the median over all {n_cases} "
            f"calibration cases of the error that {percent} of a case's voxels exceed. It bears lesions in less than "
            "half of the cases; lesions in more of them make it too high."
        )
    shares = {name: histogram.share_above(threshold.value) for name, histogram in histograms.items()}
    common = threshold.guarantee is None or threshold.guarantee.kind != OF_DISCOVERIES
    lowest, highest = min(shares, key=lambda name: shares[name]), max(shares, key=lambda name: shares[name])
    print(
        f"Voxels above {'it' if common else f'{threshold.value:.4g}'} by case: from {100 * shares[lowest]:.3g} % "
        f"({lowest}) to {100 * shares[highest]:.3g} % ({highest})."
    )


# --- tables, and what is said ----------------------------------------------------------------------------------------


def _write_table(rows: Iterable[dict[str, Any]], columns: Sequence[str], path: Path) -> None:
    """CSV; what a case does not have, such as the mean error of a bone without anomaly, stays empty."""
    with written_whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


def _report(outcome: Outcome, records: Mapping[str, Any], output: Path, threshold: Threshold) -> None:
    """Say what was done, and name the cases of which a user should know something."""
    abnormal = [name for name, record in records.items() if any(row["n_components"] for row in record["rows"])]
    print(f"{len(records)} masks in {output} ({len(outcome.skipped)} were there already), {len(abnormal)} not empty.")
    bare = [name for name, record in records.items() if not any(row["region_volume_mm3"] for row in record["rows"])]
    if bare:
        print(f"No region of interest in the label map, so the mask is empty: {', '.join(bare)}.")
    other = [name for name, record in records.items() if not _similar(record["spacing_mm"], threshold.spacing_mm)]
    if other:
        print(
            f"Voxel size differs by more than 20 % from the calibration cases' {threshold.spacing_mm} mm, so noise is "
            f"smoothed otherwise and the rate may not hold: {', '.join(other)}."
        )
    print_failures(outcome)


def _similar(spacing_mm: Sequence[float], other_mm: Sequence[float]) -> bool:
    ratios = [ours / theirs for ours, theirs in zip(spacing_mm, other_mm, strict=False)]
    return len(spacing_mm) == len(other_mm) and all(1 / 1.2 <= ratio <= 1.2 for ratio in ratios)
