"""``nnunet-anomaly plan``: show the settings in a plans file, change some, or start from another preset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = "nnunet-anomaly plan -d 101 --set focal.beta=50 --set seed=1 --save-as nnUNetAnomalyPlans_beta50_seed1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("-d", "--dataset", required=True, help="dataset number or name")
    parser.add_argument("-p", "--plans", default="nnUNetAnomalyPlans", help="plans name (default: %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="change one setting, e.g. focal.beta=50 or roi.labels=[1,3]; may be given several times",
    )
    parser.add_argument(
        "--preset",
        choices=("robust", "paper"),
        help="all values of a preset, before --set; those that planning derived from the data stay",
    )
    parser.add_argument(
        "--add-block", action="store_true", help="add the block to plans that another planner made (keeps the rest)"
    )
    parser.add_argument(
        "--save-as",
        metavar="NAME",
        help="write to new plans that share the preprocessed data, so that results get a folder of their own",
    )
    parser.add_argument(
        "-np",
        type=int,
        default=3,
        metavar="N",
        help="images read at a time, where quartiles are asked for (default: 3)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the settings; write them when something was changed."""
    from nnunet_anomaly.errors import SettingsError
    from nnunet_anomaly.files import find_dataset_folder, load_json, nnunet_folder, save_json
    from nnunet_anomaly.planners.anomaly import write_settings
    from nnunet_anomaly.settings import parse_assignment

    folder = find_dataset_folder(nnunet_folder("nnUNet_preprocessed"), args.dataset)
    path = folder / f"{args.plans}.json"
    values = dict(parse_assignment(text) for text in args.assignments)
    plans = load_json(path)
    settings = _starting_point(plans, folder, args.preset, args.add_block).with_values(values)
    _check_against_data(settings, plans, folder)
    settings = _with_side_axis(settings, values, plans, folder)
    if values or args.preset or args.add_block or args.save_as:
        name = args.save_as or args.plans
        plans["plans_name"] = name
        folders = _data_folders(plans)
        if settings.intensity.ct == "quartile_fingerprint":
            _add_quartile_statistics(plans, folder, args.np)
        plans = write_settings(plans, settings)
        path = folder / f"{name}.json"
        if args.save_as and path.is_file() and load_json(path) != plans:
            raise SettingsError(f"{path} already exists and differs. Choose another name for --save-as, or remove it.")
        save_json(plans, path)
        print(f"Written to {path}")
        if _data_folders(plans) != folders:
            print(f"Images are normalised in another way: nnUNetv2_preprocess -d {args.dataset} -plans_name {name}")
    else:
        print(f"Settings in {path}")
    _print_settings(settings)
    return 0


def _data_folders(plans: dict[str, Any]) -> list[str]:
    return [configuration.get("data_identifier", "") for configuration in plans["configurations"].values()]


def _add_quartile_statistics(plans: dict[str, Any], folder: Path, num_processes: int) -> None:
    from nnunet_anomaly.files import load_json, nnunet_folder
    from nnunet_anomaly.planners.ct_intensity import add_quartile_statistics

    raw_folder = nnunet_folder("nnUNet_raw") / folder.name
    add_quartile_statistics(plans, raw_folder, load_json(raw_folder / "dataset.json"), num_processes)


def _starting_point(plans: dict[str, Any], folder: Path, preset: str | None, add_block: bool) -> Any:
    """The settings of the plans, at a preset where one is wanted; derived from the data where the plans have none."""
    import numpy as np

    from nnunet_anomaly.errors import SettingsError
    from nnunet_anomaly.files import load_json
    from nnunet_anomaly.planners.anomaly import derived_settings
    from nnunet_anomaly.planners.symmetry import derived_symmetry
    from nnunet_anomaly.settings import BLOCK, AnomalySettings
    from nnunet_anomaly.twins import pairs_by_name

    if add_block and BLOCK in plans and not preset:
        raise SettingsError('These plans already have an "anomaly" block; change it with --set or --preset.')
    if BLOCK in plans:
        settings = AnomalySettings.from_plans(plans)
        return settings.at_preset(preset) if preset else settings
    if preset or add_block:
        dataset_json = load_json(folder / "dataset.json")
        settings = derived_settings(
            dataset_json,
            np.array(plans["original_median_shape_after_transp"]),
            np.array(plans["original_median_spacing_after_transp"]),
            preset or "robust",
        )
        label_maps = _label_maps(folder.name) if pairs_by_name(dataset_json["labels"]) else []
        return settings.with_values(derived_symmetry(dataset_json, label_maps, plans))
    return AnomalySettings.from_plans(plans)


def _with_side_axis(settings: Any, values: dict[str, Any], plans: dict[str, Any], folder: Path) -> Any:
    """Where pairs are set by hand, and the axis between their sides is not known: the one that headers tell."""
    symmetry = settings.symmetry
    plain = symmetry.mirroring == symmetry.test_time_mirroring == "plain"
    wanted = "symmetry.pairs" in values and symmetry.pairs and not plain
    if not wanted or symmetry.side_axis >= 0 or "symmetry.side_axis" in values:
        return settings
    from nnunet_anomaly.errors import AnomalyError, SettingsError
    from nnunet_anomaly.planners.symmetry import derived_side_axis

    try:
        label_maps = _label_maps(folder.name)
    except AnomalyError as error:
        raise SettingsError(
            f"Which axis leads from left to right is told by the label maps of the raw dataset: {error} Or name the "
            "axis of preprocessed arrays, for example --set symmetry.side_axis=2."
        ) from error
    return settings.with_values({"symmetry.side_axis": derived_side_axis(label_maps, plans)})


def _label_maps(dataset: str) -> list[Path]:
    """Label maps of all training cases, from nnUNet_raw."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    from nnunet_anomaly.files import find_dataset_folder, nnunet_folder

    folder = find_dataset_folder(nnunet_folder("nnUNet_raw"), dataset)
    return [Path(case["label"]) for case in get_filenames_of_train_images_and_targets(str(folder)).values()]


def _check_against_data(settings: Any, plans: dict[str, Any], folder: Path) -> None:
    """Refuse labels that the dataset does not have, and a scale of intensities other than that of preprocessed data."""
    from nnunet_anomaly.dataset_roles import all_labels
    from nnunet_anomaly.errors import SettingsError
    from nnunet_anomaly.files import load_json
    from nnunet_anomaly.twins import check_pairs

    known = all_labels(load_json(folder / "dataset.json"))
    check_pairs(settings.symmetry.pairs, known)
    wrong = sorted(set(settings.roi.labels) - known)
    if wrong or not settings.roi.labels:
        raise SettingsError(f"roi.labels is {list(settings.roi.labels)}; the dataset's labels are {sorted(known)}.")
    properties = plans["foreground_intensity_properties_per_channel"].values()
    before = {entry["anomaly_clip_sd"] for entry in properties if "anomaly_clip_sd" in entry}
    done = [
        name
        for name, configuration in plans["configurations"].items()
        if name.endswith("_inpainting") and any((folder / configuration["data_identifier"]).glob("*.b2nd"))
    ]
    if done and before and before != {settings.error_map.clip_sd}:
        raise SettingsError(
            f"error_map.clip_sd is part of the preprocessed data of {', '.join(done)}, which had {before.pop()}. Plan "
            "under another name (nnUNetv2_plan_experiment -overwrite_plans_name), change it there, then preprocess."
        )


def _print_settings(settings: Any) -> None:
    """One line a setting, with its value in either preset where that differs."""
    import functools

    from nnunet_anomaly.settings import all_fields

    for key, entry in all_fields():
        value = functools.reduce(getattr, key.split("."), settings)
        robust, paper = entry.metadata["robust"], entry.metadata["paper"]
        note = f"   (robust {robust}, paper {paper})" if robust != paper else ""
        print(f"  {key} = {value}{note}")
