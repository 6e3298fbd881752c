"""``nnunet-anomaly stress``: which trained model bears which abnormality, on your own held-out cases."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_anomaly.cli.output import print_table
from nnunet_anomaly.error_maps.folds import fold_of, in_order
from nnunet_anomaly.errors import InputError

if TYPE_CHECKING:
    from nnunet_anomaly.workflow.stress_models import StressModel
    from nnunet_anomaly.workflow.stress_plan import Group, StressTest

EXAMPLE = (
    "nnunet-anomaly stress -d 101 -tr nnUNetTrainerSeeded "
    "-tr Dataset201_KneeErrorMaps/nnUNetTrainerAnomalyAware__nnUNetAnomalyPlans__3d_fullres -f 0 1 2 3 4 -o stress\n"
    "  nnunet-anomaly stress -d 101 -tr nnUNetTrainerSeeded -tr exported.zip -f 0 -i imagesTs -l labelsTs -o stress"
)
CLEANED_SHARE = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``stress``."""
    _add_models(parser)
    _add_corruptions(parser)
    parser.add_argument("-o", type=Path, required=True, help="folder for the report, tables and pictures")
    parser.add_argument(
        "--cleaned",
        action="store_true",
        help="measure every prediction once more after small components are dropped (below "
        f"{CLEANED_SHARE:g} of their label's largest, as nnunet-anomaly postprocess does)",
    )
    parser.add_argument("--nsd-tolerance-mm", type=_length_mm, default=1.0, help="of the surface Dice (default: 1.0)")
    parser.add_argument(
        "--worst", type=_count, default=8, metavar="N", help="pictures of the N worst cases; 0: none (default: 8)"
    )
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring in prediction: faster, as in nnU-Net")
    parser.add_argument("-np", type=int, default=2, help="processes that measure (default: 2)")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="default: %(default)s")


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--dataset", required=True, help="number or name of the dataset with the cases")
    parser.add_argument(
        "-tr",
        action="append",
        required=True,
        metavar="MODEL",
        help="a trainer's name (with -p and -c); DATASET/TRAINER__PLANS__CONFIGURATION for a model of another dataset, "
        "such as one with error maps, or of other plans; or a file by nnUNetv2_export_model_to_zip. Give it again for "
        "every further model; all are compared with the first",
    )
    parser.add_argument("-p", "--plans", default="nnUNetAnomalyPlans", help="default: %(default)s")
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="default: %(default)s")
    parser.add_argument(
        "-f",
        "--folds",
        nargs="+",
        type=fold_of,
        required=True,
        help="folds; the cases that each one holds out are predicted by its networks alone. With -i: the ensemble",
    )
    parser.add_argument("-chk", "--checkpoint", default="checkpoint_final.pth", help="default: %(default)s")
    parser.add_argument("--names", nargs="+", help="names of the models; default: from their trainers")
    parser.add_argument("-i", type=Path, metavar="IMAGES", help="other labelled cases, which no network has seen")
    parser.add_argument("-l", type=Path, metavar="LABELS", help="their label maps")
    parser.add_argument(
        "--cases", nargs="+", metavar="CASE_OR_N", help="these cases alone; one number: so many, evenly spread"
    )
    parser.add_argument(
        "--allow-leak", action="store_true", help="take models that have seen, or may have seen, the cases"
    )


def _add_corruptions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--corruptions",
        nargs="+",
        metavar="NAME",
        help="of bright_lesion, dark_lesion, foreign_patch, deformation, missing_tissue, metal, bias_field, noise; "
        "default: all",
    )
    parser.add_argument(
        "--severities",
        nargs="+",
        metavar="X",
        help="numbers from 0 to 1, or mild, moderate, severe (0.25, 0.5, 1); 0 is always there. Default: each "
        "corruption's own, 0.25 0.5 0.75 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument(
        "--size-mm",
        type=_length_mm,
        help="radius at severity 1 of corruptions that have one (default: from the structure that is hit)",
    )
    parser.add_argument(
        "--region",
        nargs="+",
        metavar="LABEL",
        help="labels by name where corruptions begin (default: anomaly.roi_labels of dataset.json, else all)",
    )


def _length_mm(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no length in mm above 0")
    return value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 0 on")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Test what is not tested yet, and write the report."""
    import torch

    from nnunet_anomaly.evaluation.stress import worst_cases
    from nnunet_anomaly.files import find_dataset_folder, nnunet_folder
    from nnunet_anomaly.workflow.stress import collect_rows, run_stress_test, say_what_is_compared
    from nnunet_anomaly.workflow.stress_checks import check_error_maps, check_model, check_not_seen
    from nnunet_anomaly.workflow.stress_pictures import draw_worst_cases
    from nnunet_anomaly.workflow.stress_report import write_report

    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no CUDA device here; give -device cpu.")
    if args.o.exists() and not args.o.is_dir():
        raise InputError(f"-o: {args.o} is a file; name a folder.")
    raw = find_dataset_folder(nnunet_folder("nnUNet_raw"), args.dataset)
    args.folds = in_order(args.folds)
    test = _test_of(args, raw)
    groups = _groups_of(args, raw)
    reader = _reader_of(raw, groups)
    models = _models_of(args, raw.name)
    for model in models:
        check_model(model, _dataset_json(raw), type(reader).__name__, args.folds)
        check_error_maps(model, type(reader).__name__, args.folds)
        for group in groups:
            for fold in group.folds:
                check_not_seen(model, fold, [files.name for files in group.cases], args.allow_leak)
    say_what_is_compared(models, groups, test)
    device = torch.device(args.device)
    failed = run_stress_test(test, models, groups, reader, args.o, args.np, device)
    rows = collect_rows(test, models, groups, args.o)
    if not rows:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(failed.items())[:3])
        raise InputError(f"No case could be tested. {reasons}")
    # a picture shows predictions as they are, not cleaned
    chosen = worst_cases(rows, args.worst, {model.name for model in models})
    pictures = draw_worst_cases(test, models, groups, chosen, reader, args.o / "pictures", device)
    settings = _settings(args, raw.name, test, models, groups)
    page = write_report(args.o, rows, settings, failed, pictures)
    _print_result(rows, [model["name"] for model in settings["models"] if model["error_maps"] is None])
    for name, reason in failed.items():
        print(f"FAILED {name}: {reason}")
    print(f"Look at {page}")
    return 1 if failed else 0


def _dataset_json(raw: Path) -> dict[str, Any]:
    from nnunet_anomaly.files import load_json

    return load_json(raw / "dataset.json")


def _test_of(args: argparse.Namespace, raw: Path) -> StressTest:
    """What is done to every case."""
    from nnunet_anomaly.dataset_roles import labels_by_name, roi_labels
    from nnunet_anomaly.phantoms.stress_corruptions import CORRUPTIONS, as_severity
    from nnunet_anomaly.workflow.stress_cases import image_names
    from nnunet_anomaly.workflow.stress_plan import StressTest

    dataset_json = _dataset_json(raw)
    structures = labels_by_name(dataset_json, raw / "dataset.json")
    if "ignore" in structures:
        raise InputError(f"{raw.name} has an ignore label, where nothing is known to be right or wrong.")
    names = args.corruptions or list(CORRUPTIONS)
    if unknown := [name for name in names if name not in CORRUPTIONS]:
        raise InputError(f"--corruptions: {', '.join(unknown)} is not among {', '.join(CORRUPTIONS)}.")
    asked = sorted({as_severity(text) for text in args.severities}) if args.severities else None
    grades = {name: tuple(x for x in asked or CORRUPTIONS[name].severities if x > 0) for name in dict.fromkeys(names)}
    if not all(grades.values()):
        raise InputError("--severities has nothing but 0, which changes nothing. Give one above 0.")
    sizes_mm = {name: args.size_mm for name in names if args.size_mm is not None and CORRUPTIONS[name].has_size}
    if args.size_mm is not None and not sizes_mm:
        raise InputError(f"--size-mm: {', '.join(names)} has no size. Leave it out, or name other --corruptions.")
    return StressTest(
        corruptions=grades,
        seed=args.seed,
        sizes_mm=sizes_mm,
        channels=image_names(dataset_json),
        region_labels=_region(args.region, structures) if args.region else roi_labels(dataset_json),
        structures=structures,
        nsd_tolerance_mm=args.nsd_tolerance_mm,
        cleaned_share=CLEANED_SHARE if args.cleaned else None,
        mirroring=not args.disable_tta,
    )


def _reader_of(raw: Path, groups: Sequence[Group]) -> Any:
    """nnU-Net's reader of the dataset, found as nnU-Net finds it when it plans."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    images = [files.images[0] for group in groups for files in group.cases]
    example = next((str(path) for path in images if path.is_file()), None)
    try:
        return determine_reader_writer_from_dataset_json(_dataset_json(raw), example, verbose=False)()
    except RuntimeError as error:
        raise InputError(f"{raw / 'dataset.json'}: nnU-Net has no reader for these files: {error}") from error


def _region(names: Sequence[str], structures: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    if unknown := [name for name in names if name not in structures]:
        raise InputError(f"--region: {', '.join(unknown)} is not among the labels {', '.join(structures)}.")
    return tuple(sorted({label for name in names for label in structures[name]}))


def _groups_of(args: argparse.Namespace, raw: Path) -> list[Group]:
    """Cases by the folds that predict them."""
    from nnunet_anomaly.workflow.stress_cases import group_of_folder, held_out_groups

    if (args.i is None) != (args.l is None):
        raise InputError("-i and -l go together: images, and their label maps.")
    ending = _dataset_json(raw)["file_ending"]
    folds = args.folds
    groups = held_out_groups(raw, folds) if args.i is None else [group_of_folder(args.i, args.l, folds, ending)]
    return _chosen(groups, args.cases) if args.cases else groups


def _chosen(groups: Sequence[Group], asked: Sequence[str]) -> list[Group]:
    """Some of the cases: by name, or so many of all."""
    from nnunet_anomaly.workflow.stress_plan import Group

    names = [files.name for group in groups for files in group.cases]
    if len(asked) == 1 and asked[0].isdecimal() and asked[0] not in names:
        number = int(asked[0])
        if not 1 <= number <= len(names):
            raise InputError(f"--cases {number}: there are 1 to {len(names)} cases to take.")
        asked = [names[index * len(names) // number] for index in range(number)]
    if unknown := [name for name in asked if name not in names]:
        raise InputError(f"--cases: {', '.join(unknown)} is not among the held-out cases, such as {names[0]}.")
    kept = [Group(group.folds, tuple(files for files in group.cases if files.name in asked)) for group in groups]
    return [group for group in kept if group.cases]


def _models_of(args: argparse.Namespace, dataset: str) -> list[StressModel]:
    from nnunet_anomaly.files import load_json
    from nnunet_anomaly.workflow.stress_models import StressModel, find_model, name_models

    folders = [find_model(text, dataset, args.plans, args.configuration, args.o / "unpacked") for text in args.tr]
    names = name_models(folders, args.names)
    return [
        StressModel(name, folder, args.checkpoint, load_json(folder / "dataset.json"))
        for name, folder in zip(names, folders, strict=True)
    ]


def _settings(
    args: argparse.Namespace,
    dataset: str,
    test: StressTest,
    models: Sequence[StressModel],
    groups: Sequence[Group],
) -> dict[str, Any]:
    """For the report."""
    from nnunet_anomaly import __version__
    from nnunet_anomaly.phantoms.stress_corruptions import CORRUPTIONS
    from nnunet_anomaly.workflow.stress_models import CLEANED

    described = [model.described(args.folds) | {"cleaned": False} for model in models]
    if test.cleaned_share is not None:
        described += [row | {"name": row["name"] + CLEANED, "cleaned": True} for row in described]
    corruptions = {
        name: {
            "severities": list(grades),
            "summary": CORRUPTIONS[name].summary,
            "reference": CORRUPTIONS[name].reference,
            "size_mm": test.sizes_mm.get(name),
        }
        for name, grades in test.corruptions.items()
    }
    return {
        "dataset": dataset,
        "version": __version__,
        "seed": test.seed,
        "models": described,
        "corruptions": corruptions,
        "structures": {name: list(labels) for name, labels in test.structures.items()},
        "cases": {files.name: group.fold for group in groups for files in group.cases},
        "mirroring": test.mirroring,
        "cleaned_share": test.cleaned_share,
    }


def _print_result(rows: Sequence[dict[str, Any]], simple: Sequence[str]) -> None:
    """Mean Dice of every model under every corruption, and what that says."""
    from nnunet_anomaly.evaluation.stress import compare, curves, headline

    points = [row for row in curves(rows) if row["metric"] == "dsc" and row["structure"] == "(all)"]
    severities = sorted({row["severity"] for row in points})
    keys = dict.fromkeys((row["corruption"], row["model"]) for row in points)
    means = {(row["corruption"], row["model"], row["severity"]): row["mean"] for row in points}
    print("\nMean Dice over cases and structures, by severity")
    table = [
        [corruption, model, *(_number(means.get((corruption, model, severity))) for severity in severities)]
        for corruption, model in keys
        if corruption != "none"
    ]
    print_table(["corruption", "model", *(f"{severity:g}" for severity in severities)], table)
    print()
    for sentence in headline(rows, compare(rows), simple):
        print(sentence)


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
