"""What ``nnunet-anomaly add-cases`` does: corrected cases become training cases of a raw nnU-Net dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_anomaly.dataset_conversion.writer import ADDED_CASES, check_images
from nnunet_anomaly.dataset_roles import channel_names, label_values
from nnunet_anomaly.errors import InputError, LabelError
from nnunet_anomaly.files import (
    Outcome,
    is_up_to_date,
    load_json,
    made_from,
    place,
    read_image,
    run_cases,
    save_json,
    write_image,
)
from nnunet_anomaly.label_maps import ENDINGS, as_label_map, check_same_grid, files_by_case, labels_in, read_label_map


@dataclass(frozen=True)
class RawDataset:
    """A raw nnU-Net dataset; picklable, so that workers share it.

    Attributes:
        folder: ``.../DatasetXXX_Name``.
        channels: their names, in order.
        ending: of all image and label files.
        labels: that a label map may hold.
    """

    folder: Path
    channels: tuple[str, ...]
    ending: str
    labels: tuple[int, ...]

    @staticmethod
    def read(folder: Path) -> RawDataset:
        """Read dataset.json.

        Raises:
            InputError: it is missing, lists its cases by path, has no labels, or an ending that is not ours to write.
        """
        path = folder / "dataset.json"
        content = load_json(path)
        if "dataset" in content:
            raise InputError(f'{path} lists its cases under "dataset"; add new ones there by hand.')
        ending = content.get("file_ending")
        if ending not in ENDINGS:
            raise InputError(f"{path}: file_ending is {ending!r}; cases can be added to {', '.join(ENDINGS)}.")
        labels = label_values(path)
        if not labels:
            raise InputError(f"{path} has no label but the background.")
        return RawDataset(folder, tuple(channel_names(content).values()), ending, labels)

    def image_paths(self, case: str) -> list[Path]:
        """Files of all channels of a training case."""
        return [self.folder / "imagesTr" / f"{case}_{index:04d}{self.ending}" for index in range(len(self.channels))]

    def label_path(self, case: str) -> Path:
        """File of the label map of a training case."""
        return self.folder / "labelsTr" / f"{case}{self.ending}"

    def record_path(self, case: str) -> Path:
        """Where it is kept what an added case was made from."""
        return self.folder / ADDED_CASES / f"{case}.json"


def add_cases(
    dataset: RawDataset,
    images: Path,
    labels: Path,
    *,
    cases: Sequence[str] | None = None,
    replace: bool = False,
    num_processes: int = 1,
) -> Outcome:
    """Add cases to a dataset, each checked before anything of it is written, and count them in dataset.json.

    Images are copied (written anew in the dataset's format, if theirs is another), label maps written as uint8 or
    uint16 on the image's grid. A case that was added from the same files, and has not been changed since, is not
    repeated.

    Args:
        dataset: see there.
        images: folder of ``<case>_0000.nii.gz`` ...; it may hold more cases.
        labels: folder of ``<case>.nii.gz``.
        cases: names of those to add; default all that have a label map.
        replace: whether training cases that are there already are replaced.
        num_processes: cases at a time.

    Raises:
        InputError: no label map, a case of ``cases`` without one, or a case that is there already and not to be
            replaced; nothing was written then.
    """
    if labels.resolve() == (dataset.folder / "labelsTr").resolve():
        raise InputError(f"{labels} is the dataset's own folder of label maps: there is nothing to add.")
    found = files_by_case(labels)
    if missing := sorted(set(cases or ()) - set(found)):
        raise InputError(f"{labels} has no label map for {', '.join(missing)}.")
    chosen = {case: path for case, path in found.items() if cases is None or case in cases}
    if not chosen:
        raise InputError(f"{labels} holds no label map ({', '.join(ENDINGS)}).")
    by_channel = [files_by_case(images, channel) for channel in range(len(dataset.channels))]
    sources = {case: [by_case.get(case) for by_case in by_channel] for case in chosen}
    if not replace:
        _refuse_replacing(dataset, sources, chosen)
    work = [(case, (dataset, case, sources[case], chosen[case], images)) for case in chosen]
    outcome = run_cases(_add_case, work, num_processes, "add cases")
    update_number(dataset)
    return outcome


def update_number(dataset: RawDataset) -> int:
    """Write the number of training cases, those with images, into dataset.json; returns it."""
    path = dataset.folder / "dataset.json"
    content = load_json(path)
    number = len(files_by_case(dataset.folder / "imagesTr", 0)) if (dataset.folder / "imagesTr").is_dir() else 0
    if content.get("numTraining") != number:
        save_json({**content, "numTraining": number}, path)
    return number


def without_fold(splits: Path, cases: Iterable[str]) -> list[str]:
    """Cases that a ``splits_final.json`` has in no fold; none where there is no such file."""
    if not splits.is_file():
        return []
    known = {case for split in load_json(splits) for part in split.values() for case in part}
    return [case for case in cases if case not in known]


def _refuse_replacing(
    dataset: RawDataset, sources: Mapping[str, Sequence[Path | None]], labels: Mapping[str, Path]
) -> None:
    """Refuse cases that are there, but for those that an earlier run of this command began from these files."""
    there = [
        case
        for case in labels
        if any(path.exists() for path in (*dataset.image_paths(case), dataset.label_path(case)))
        and not _may_go_on(dataset, case, _source(sources[case], labels[case]))
    ]
    if there:
        raise InputError(
            f"{dataset.folder} has the training cases {', '.join(there)} already. Add --replace to replace their "
            "images and label maps."
        )


def _source(images: Sequence[Path | None], label: Path) -> Any:
    return made_from([*(path for path in images if path is not None), label], {})


def _may_go_on(dataset: RawDataset, case: str, source: Any) -> bool:
    """Whether a case was begun from these files, and what was finished of it has not been changed since."""
    path = dataset.record_path(case)
    try:
        record = load_json(path) if path.is_file() else {}
    except InputError:
        return False  # damaged: it says nothing
    return record.get("begun_from") == source and (
        "written" not in record or record["written"] == _state(dataset, case)
    )


def _state(dataset: RawDataset, case: str) -> dict[str, list[int]]:
    """Size and time of change of a training case's files, by name; what is not there is left out."""
    paths = (*dataset.image_paths(case), dataset.label_path(case))
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths if path.exists()}


def _add_case(dataset: RawDataset, case: str, sources: Sequence[Path | None], label_source: Path, folder: Path) -> bool:
    """Worker: one case; False when it was added before."""
    import SimpleITK as sitk

    paths = [path for path in sources if path is not None]
    if len(paths) < len(sources):
        lacking = [f"{case}_{index:04d}" for index, path in enumerate(sources) if path is None]
        raise InputError(f"{folder} has no image {', '.join(lacking)}.")
    targets, label_target, record = dataset.image_paths(case), dataset.label_path(case), dataset.record_path(case)
    source = _source(paths, label_source)
    if is_up_to_date(record, source) and load_json(record).get("written") == _state(dataset, case):
        return False
    images = [read_image(path) for path in paths]
    check_images(case, images, dataset.channels)
    label_map, grid = read_label_map(label_source, dataset.labels)
    check_same_grid(images[0], paths[0], grid, label_source)
    compact = as_label_map(label_map)
    if not labels_in(compact):
        raise LabelError(f"{label_source} is empty: all of it is background.")
    # a run that is killed from here on is known to have begun this case, and may go on
    save_json({"begun_from": source}, record)
    for image, path, target in zip(images, paths, targets, strict=True):
        if path.name.endswith(dataset.ending):
            place(path, target, copy=True)
        else:
            write_image(image, target)
    result = sitk.GetImageFromArray(compact if compact.max() > 255 else compact.astype(np.uint8))
    result.CopyInformation(images[0])
    write_image(result, label_target)
    save_json({"begun_from": source, "made_from": source, "written": _state(dataset, case)}, record)
    return True
