"""``nnunet-anomaly add-cases``: corrected cases become training cases, and what to type next."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunet_anomaly.cli.output import print_failures

EXAMPLE = "nnunet-anomaly add-cases -d 110 -i nnUNet_raw/Dataset110_Hips/imagesTs -l corrected"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``add-cases``."""
    parser.add_argument("-d", "--dataset", required=True, help="number or name of the raw dataset to add to")
    parser.add_argument(
        "-i", type=Path, required=True, help="folder of images, <case>_0000.nii.gz; it may hold other cases too"
    )
    parser.add_argument(
        "-l", "--labels", type=Path, required=True, help="folder of corrected label maps, <case>.nii.gz"
    )
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="add these alone (default: all in -l)")
    parser.add_argument("--replace", action="store_true", help="replace training cases that are there already")
    parser.add_argument("-np", type=int, default=3, help="number of processes (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Add the cases, and print what was done and what to do next."""
    from nnunet_anomaly.files import find_dataset_folder, load_json, nnunet_folder
    from nnunet_anomaly.label_maps import files_by_case
    from nnunet_anomaly.workflow.add_cases import RawDataset, add_cases, without_fold

    dataset = RawDataset.read(find_dataset_folder(nnunet_folder("nnUNet_raw"), args.dataset))
    preprocessed = nnunet_folder("nnUNet_preprocessed") / dataset.folder.name
    outcome = add_cases(dataset, args.i, args.labels, cases=args.cases, replace=args.replace, num_processes=args.np)
    added = [*outcome.done, *outcome.skipped]
    number = load_json(dataset.folder / "dataset.json")["numTraining"]
    print(
        f"{len(outcome.done)} added, {len(outcome.skipped)} were added before, {len(outcome.failed)} failed. "
        f"{dataset.folder.name} has {number} training cases."
    )
    print_failures(outcome)
    tests = dataset.folder / "imagesTs"
    if both := [case for case in added if tests.is_dir() and case in files_by_case(tests, 0)]:
        print(f"In imagesTs too: {', '.join(both)}. Leave them out of any evaluation from now on.")
    for splits in (dataset.folder / "splits_final.json", preprocessed / "splits_final.json"):
        if left_out := without_fold(splits, added):
            print(
                f"{splits} was left as it is: none of its folds has {', '.join(left_out)}. Train fold 'all', which "
                "takes every case, or add them there."
            )
    if added:
        _print_next(dataset.folder.name, number, _plans_names(preprocessed))
    return outcome.exit_code


def _plans_names(preprocessed: Path) -> list[str]:
    """Names of a dataset's plans; where there are some with preprocessed images of their own, these alone."""
    from nnunet_anomaly.files import load_json

    names = [
        path.stem
        for path in sorted(preprocessed.glob("*.json"))
        if isinstance(content := load_json(path), dict) and "configurations" in content
    ]
    return [name for name in names if (preprocessed / f"{name}_3d_fullres").is_dir()] or names


def _print_next(dataset: str, number: int, plans_names: Sequence[str]) -> None:
    """The commands of the next round, with the plans by their name where there are only one."""
    name = dataset.removeprefix("Dataset").split("_")[0].lstrip("0")
    if not plans_names:
        print(f"\nNext:\n  nnUNetv2_plan_and_preprocess -d {name} -pl nnUNetPlannerAnomaly -c 3d_fullres")
        return
    plans = plans_names[0] if len(plans_names) == 1 else "PLANS"
    if len(plans_names) > 1:
        print(f"\nPlans of {dataset}: {', '.join(plans_names)}")
    print(
        "\nNext, with the same plans, so that weights fit; CHECKPOINT is the network to go on from:\n"
        f"  nnUNetv2_preprocess -d {name} -plans_name {plans} -c 3d_fullres\n"
        f"  nnunet-anomaly plan -d {name} -p {plans} --set transfer.checkpoint=CHECKPOINT "
        f"--save-as {plans}_{number}cases\n"
        f"  nnUNetv2_train {name} 3d_fullres all -tr nnUNetTrainerGapWeighted -p {plans}_{number}cases"
    )
