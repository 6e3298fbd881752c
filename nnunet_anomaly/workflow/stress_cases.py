"""Cases under the stress test: which ones nobody has learnt from, where their files are, and reading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.dataset_roles import channel_names, image_channels
from nnunet_anomaly.error_maps.folds import ALL, Fold
from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.files import load_json, nnunet_folder, read_image
from nnunet_anomaly.label_maps import ENDINGS, as_label_map, labels_in
from nnunet_anomaly.phantoms.stress_corruptions import Case
from nnunet_anomaly.workflow.stress_plan import CaseFiles, Group, StressTest


def held_out_groups(raw: Path, folds: Sequence[Fold]) -> list[Group]:
    """The cases that each fold holds out, by ``splits_final.json`` of the preprocessed dataset, or else the raw one.

    Files that are missing are named when their case is read.

    Raises:
        InputError: nothing is held out: fold ``all``, no splits, no such fold, or an empty one; or a case by two folds.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    other = "Give labelled cases that no network has seen, by -i IMAGES -l LABELS."
    if ALL in folds:
        raise InputError(f"Fold all has learnt from every case, so that none is held out. {other}")
    places = [nnunet_folder("nnUNet_preprocessed") / raw.name, raw]
    found = [folder / "splits_final.json" for folder in places if (folder / "splits_final.json").is_file()]
    if not found:
        raise InputError(f"{raw.name} has no splits_final.json, so that no case is known to be held out. {other}")
    splits, dataset_json = load_json(found[0]), load_json(raw / "dataset.json")
    listed = get_filenames_of_train_images_and_targets(str(raw), dataset_json) if "dataset" in dataset_json else {}
    groups: list[Group] = []
    for fold in folds:
        if not isinstance(fold, int) or fold >= len(splits):
            raise InputError(f"{found[0]} has folds 0 to {len(splits) - 1}, but not {fold}.")
        cases = splits[fold]["val"]
        if not cases:
            raise InputError(f"Fold {fold} of {found[0]} holds out no case. {other}")
        for group in groups:
            if twice := sorted(set(cases) & {files.name for files in group.cases}):
                raise InputError(
                    f"{found[0]}: folds {group.fold} and {fold} both hold out {', '.join(twice[:5])}. Name one of them "
                    "by -f, as a case is predicted once."
                )
        groups.append(
            Group((fold,), tuple(_held_out(case, raw, dataset_json["file_ending"], listed) for case in cases))
        )
    return groups


def _held_out(case: str, raw: Path, ending: str, listed: Mapping[str, Any]) -> CaseFiles:
    """Files of a training case: as ``dataset.json`` lists them where it does, else by their names."""
    if case in listed:
        return CaseFiles(case, tuple(map(Path, listed[case]["images"])), Path(listed[case]["label"]))
    return CaseFiles(case, channel_files(raw / "imagesTr", case, ending), raw / "labelsTr" / f"{case}{ending}")


def channel_files(folder: Path, case: str, ending: str) -> tuple[Path, ...]:
    """Files of all channels of a case up to the last that is there; those that are missing too, and the first one."""
    there = folder.glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}")
    last = max((int(path.name.removesuffix(ending)[-4:]) for path in there), default=0)
    return tuple(folder / f"{case}_{channel:04d}{ending}" for channel in range(last + 1))


def group_of_folder(images: Path, labels: Path, folds: Sequence[Fold], ending: str) -> Group:
    """Labelled cases in folders of their own, which the ensemble of all folds predicts.

    Raises:
        InputError: there is none, or one has no label map.
    """
    length = len(f"_0000{ending}")
    names = sorted({path.name[:-length] for path in images.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")})
    if not names:
        raise InputError(f"{images} holds no image named <case>_0000{ending}.")
    if missing := [name for name in names if not (labels / f"{name}{ending}").is_file()]:
        raise InputError(f"{labels} has no {', '.join(f'{name}{ending}' for name in missing[:5])}.")
    cases = [CaseFiles(name, channel_files(images, name, ending), labels / f"{name}{ending}") for name in names]
    return Group(tuple(folds), tuple(cases))


def read_case(files: CaseFiles, test: StressTest, reader: Any) -> tuple[Case, dict[str, Any]]:
    """A case by nnU-Net's own reader, and its properties. Whole numbers are integers, which corruptions round to.

    Raises:
        InputError: a file is missing or damaged, there are fewer channels, or see ``Case``.
        GeometryError: the label map lies on another grid.
        LabelError: it is none, or holds labels that dataset.json does not have.
    """
    paths = files.images[: len(test.channels)]
    for path in [*paths, files.labels]:
        check_readable(path)
    data, properties = reader.read_images([str(path) for path in paths])
    if len(data) != len(test.channels):  # a file may hold several, as colour images do
        raise InputError(f"{len(data)} of {len(test.channels)} channels are there: {[path.name for path in paths]}.")
    labels, of_labels = reader.read_seg(str(files.labels))
    if labels.shape[1:] != data.shape[1:] or not np.allclose(of_labels["spacing"], properties["spacing"]):
        raise GeometryError(f"{files.labels} has another grid than {paths[0]}.")
    label_map = as_label_map(as_integers(labels[0]), str(files.labels))
    if stray := set(labels_in(label_map)) - {label for known in test.structures.values() for label in known}:
        raise LabelError(f"{files.labels} holds the labels {sorted(stray)}, which dataset.json does not have.")
    images = tuple(as_integers(channel) for channel in data)
    spacing_mm = tuple(float(size) for size in properties["spacing"])
    return Case(files.name, images, label_map, spacing_mm, test.channels, test.region_labels), properties


def check_readable(path: Path) -> None:
    """A file is there and whole: some readers take a file that is cut off, and NaN as 0.

    Raises:
        InputError: it is not.
    """
    if path.name.endswith(ENDINGS):
        read_image(path)
    elif not path.is_file():
        raise InputError(f"{path} does not exist.")


def as_integers(values: np.ndarray) -> np.ndarray:
    """The same as int32 where all are whole numbers, which nnU-Net's readers give as float32."""
    with np.errstate(invalid="ignore"):
        is_whole = np.array_equal(values, np.rint(values)) and np.abs(values).max(initial=0) < 2**31
    return values.astype(np.int32) if is_whole else values


def image_names(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the channels that are images."""
    names = channel_names(dataset_json)
    return tuple(names[str(channel)] for channel in image_channels(dataset_json))
