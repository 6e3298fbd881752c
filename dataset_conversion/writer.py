"""The one writer of nnU-Net raw datasets: every converter gives it SimpleITK images, it checks and writes them whole.

What it makes::

    DatasetXXX_Name/
        imagesTr/<case>_0000.nii.gz ...  labelsTr/<case>.nii.gz     finished training cases
        imagesTs/...                     labelsTs/...               finished test cases
        lesionsTr/<case>.nii.gz ...                                 masks beside the dataset (``MASK_FOLDERS``)
        multi_echo/<case>.nii.gz, <case>.json                       all echoes (``nnunet_anomaly/multi_echo.py``)
        dataset.json  splits_final.json                             of the finished cases alone
        cases.json                                                  where each case came from, its grid, its side ...
        integrity_report.json                                       is the dataset complete, and what is in it
        conversion/origin.json  conversion/<case>.json              what a later run needs to go on

A case is finished when ``conversion/<case>.json`` is there, which is written last, its files have the sizes that it
names, and what it says it was made from is still what there is. A run that was killed leaves at most files without that
record; the next run replaces them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_anomaly.dataset_conversion.splits import some_of
from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.files import load_json, save_json, write_image
from nnunet_anomaly.multi_echo import FOLDER as MULTI_ECHO_FOLDER
from nnunet_anomaly.multi_echo import MultiEcho, write_multi_echo
from nnunet_anomaly.multi_echo import paths_of as multi_echo_paths

if TYPE_CHECKING:
    import SimpleITK as sitk

FILE_ENDING = ".nii.gz"
ADDED_CASES = "added_cases"  # where add-cases keeps its records
IMAGE_FOLDERS = {False: "imagesTr", True: "imagesTs"}
LABEL_FOLDERS = {False: "labelsTr", True: "labelsTs"}
# masks of 0 and 1 beside the dataset, which nnU-Net does not look at: lesions of training, validation and test cases
# alone, and the brain of test cases without label map
MASK_FOLDERS = ("lesionsTr", "lesionsVal", "lesionsTs", "brainsTs")


@dataclass(frozen=True)
class DatasetDescription:
    """What dataset.json says of a dataset apart from its cases.

    Attributes:
        channel_names: of every image channel, in order; nnU-Net picks the normalisation by them.
        labels: name to value, ``background`` 0 first, consecutive.
        roi_labels: names of the labels (with regions: of the regions) in which anomalies are looked for.
        converted_by: the command that made the dataset.
        regions: name to values, where nnU-Net is to learn overlapping regions instead of labels; from large to small.
        regions_class_order: value that a prediction gets in each region, in the order in which they are painted.
    """

    channel_names: Sequence[str]
    labels: Mapping[str, int]
    roi_labels: Sequence[str]
    converted_by: str
    description: str
    reference: str
    licence: str
    release: str = ""
    regions: Mapping[str, Sequence[int]] | None = None
    regions_class_order: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if list(self.labels.values()) != list(range(len(self.labels))):
            raise ValueError(f"labels must be 0, 1, 2, ... in order, not {list(self.labels.values())}")
        if self.regions is not None and len(self.regions) != len(self.regions_class_order or ()):
            raise ValueError(f"regions_class_order must have one value for each of {list(self.regions)}")
        unknown = set(self.roi_labels) - set(self.labels if self.regions is None else self.regions)
        if unknown:
            raise ValueError(f"roi_labels has {sorted(unknown)}, which labels or regions have not")


@dataclass(frozen=True)
class DatasetWriter:
    """Writes one dataset folder; picklable, so that workers share it.

    Attributes:
        folder: ``.../DatasetXXX_Name``.
        description: names, labels and texts for dataset.json.
        origin: what the dataset is made from and how (format, release folder, options that change the result); a
            folder made from something else is refused.
        made_from: of every case, as ``files.made_from`` tells it; one that was made from something else is not
            finished.
    """

    folder: Path
    description: DatasetDescription
    origin: Mapping[str, Any] = field(default_factory=dict)
    made_from: Mapping[str, Any] = field(default_factory=dict)

    def for_case(self, case_id: str) -> DatasetWriter:
        """A writer of this case alone, so that workers are not sent what all others are made from."""
        return replace(self, made_from={case_id: self.made_from.get(case_id)})

    # ---- the folder as a whole

    def claim(self, case_ids: Sequence[str]) -> None:
        """Take the folder for this dataset, or go on in it; remove what a killed run left of unfinished cases.

        Args:
            case_ids: all cases that the dataset will have.

        Raises:
            InputError: the folder holds another data set, or cases that add-cases put there, or another folder has the
                same dataset number.
        """
        self._refuse_added_cases()
        number = self.folder.name.split("_")[0]
        others = [path.name for path in sorted(self.folder.parent.glob(f"{number}_*")) if path != self.folder]
        if others:
            raise InputError(
                f"{self.folder.parent} already has {others[0]}. nnU-Net needs each number once: give another number "
                f"with -d, or --name {others[0].split('_', 1)[1]} to go on in that folder."
            )
        origin_file = self.own_file("origin")
        if origin_file.is_file():
            if any(origin_file.parent.glob("case_*.json")):  # of a finished case
                self._compare_origin(load_json(origin_file))
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise InputError(
                f"{self.folder} already holds something that this command did not make. Give another number with -d "
                "or another --name, or delete that folder."
            )
        self._refuse_foreign_cases(set(case_ids))
        save_json(dict(self.origin), origin_file)
        self._tidy(case_ids)

    def _refuse_added_cases(self) -> None:
        """Refuse a folder that add-cases extended: to go on would undo that."""
        added = sorted(path.stem for path in (self.folder / ADDED_CASES).glob("*.json"))
        if added:
            raise InputError(
                f"{self.folder} has cases that add-cases put there or replaced ({some_of(added)}): to convert again "
                "would undo that. Give another number with -d and add them there, or delete that folder."
            )

    def _compare_origin(self, found: Mapping[str, Any]) -> None:
        """Refuse to go on in a folder that was made from something else."""
        for key in sorted(self.origin):  # others were of an earlier version
            before, now = found.get(key), self.origin[key]
            if before != now:
                raise InputError(
                    f"{self.folder} already holds a data set that was made with {key} = {before!r}; now it is {now!r}."
                    " Give another number with -d or another --name, or delete that folder."
                )

    def _refuse_foreign_cases(self, case_ids: set[str]) -> None:
        """Refuse image and label files of cases that this release does not have."""
        for folder_name in (*IMAGE_FOLDERS.values(), *LABEL_FOLDERS.values(), *MASK_FOLDERS, MULTI_ECHO_FOLDER):
            channel = "_0000" if folder_name in IMAGE_FOLDERS.values() else ""
            for path in sorted((self.folder / folder_name).glob("*")):
                ending = ".json" if path.suffix == ".json" else channel + FILE_ENDING
                if not path.name.startswith(".partial_") and path.name[: -len(ending)] not in case_ids:
                    raise InputError(
                        f"{path} is of no case of this release. Give another number with -d or another --name, or "
                        "move that file away."
                    )

    def _tidy(self, case_ids: Sequence[str]) -> None:
        """Remove temporary files, files of unfinished cases, and a description that may no longer be true."""
        for path in self.folder.rglob(".partial_*"):
            path.unlink(missing_ok=True)
        unfinished = [case_id for case_id in case_ids if not self.is_finished(case_id)]
        for case_id in unfinished:
            self._remove_case(case_id)
        if unfinished:
            for name in ("dataset.json", "splits_final.json", "cases.json", "integrity_report.json"):
                (self.folder / name).unlink(missing_ok=True)

    # ---- one case

    def own_file(self, name: str) -> Path:
        """JSON file for what a later run needs to know of the whole conversion; no case is named like it."""
        return self.folder / "conversion" / f"{name}.json"

    def _record_path(self, case_id: str) -> Path:
        return self.folder / "conversion" / f"case_{case_id}.json"

    def image_paths(self, case_id: str, test: bool) -> list[Path]:
        """Files of all channels of a case."""
        folder = self.folder / IMAGE_FOLDERS[test]
        return [folder / f"{case_id}_{i:04d}{FILE_ENDING}" for i in range(len(self.description.channel_names))]

    def label_path(self, case_id: str, test: bool) -> Path:
        """File of the label map of a case."""
        return self.folder / LABEL_FOLDERS[test] / f"{case_id}{FILE_ENDING}"

    def mask_path(self, case_id: str, folder_name: str) -> Path:
        """File of one of the masks of a case; the folder is one of ``MASK_FOLDERS``."""
        if folder_name not in MASK_FOLDERS:
            raise ValueError(f"{folder_name} is none of {', '.join(MASK_FOLDERS)}")
        return self.folder / folder_name / f"{case_id}{FILE_ENDING}"

    def record(self, case_id: str) -> dict[str, Any] | None:
        """What was recorded of a finished case; ``None`` if it is not finished."""
        path = self._record_path(case_id)
        if not path.is_file():
            return None
        record = load_json(path)
        if record.get("made_from") != self.made_from.get(case_id):
            return None
        for name, size in record["files"].items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size != size:
                return None
        return record

    def is_finished(self, case_id: str) -> bool:
        """Whether all files of the case are there, each as it was written, from what it is to be made from now."""
        return self.record(case_id) is not None

    def write_case(
        self,
        case_id: str,
        images: Sequence[sitk.Image],
        label: sitk.Image | None,
        *,
        test: bool = False,
        masks: Mapping[str, sitk.Image] | None = None,
        multi_echo: MultiEcho | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Check one case and write it whole, or leave nothing of it.

        Args:
            case_id: name of the case.
            images: one 3-D image per channel.
            label: label map on the same grid; ``None`` only for a test case without reference.
            test: whether it goes to ``imagesTs`` and ``labelsTs``.
            masks: masks of 0 and 1 on the same grid by folder, of ``MASK_FOLDERS``; they may be empty.
            multi_echo: all echoes of a multi-echo series, on the same grid, to be kept beside the dataset.
            details: what else to record of it (subject, side, sources ...); JSON.

        Returns:
            The record: details, shape and spacing (z, y, x), intensities, voxels per label, files with their sizes.

        Raises:
            InputError: wrong number of channels, NaN or infinity, an image of one value, a case written before.
            GeometryError: channels, label and masks are not on one grid.
            LabelError: labels that are not in the list, fractions, or no label at all.
            OSError: it could not be written, for example because the disk is full.
        """
        if self.is_finished(case_id):
            raise InputError(f"Case {case_id} has been written before: two cases of the release have the same name.")
        if label is None and not test:
            raise InputError(f"Case {case_id} has no label map; a training case needs one.")
        facts = check_images(case_id, images, self.description.channel_names)
        if label is not None:
            check_same_grid(case_id, images[0], label, "label map")
            values = check_labels(case_id, label, self.description.labels)
            facts["label_voxels"] = values
        masks = masks or {}
        for folder_name, mask in masks.items():
            check_same_grid(case_id, images[0], mask, f"mask for {folder_name}")
        for echo in multi_echo.images if multi_echo is not None else ():
            check_same_grid(case_id, images[0], echo, "stack of echoes")
        try:
            for image, path in zip(images, self.image_paths(case_id, test), strict=True):
                write_image(image, path)
            if label is not None:
                write_image(_as_uint8(label), self.label_path(case_id, test))
            for folder_name, mask in masks.items():
                write_image(_as_uint8(mask), self.mask_path(case_id, folder_name))
            if multi_echo is not None:
                write_multi_echo(multi_echo, self.folder, case_id)
            record = {"test": test, **(details or {}), **facts, "files": self._file_sizes(case_id, test)}
            record["made_from"] = self.made_from.get(case_id)
            save_json(record, self._record_path(case_id))
        except BaseException:
            self._remove_case(case_id)
            raise
        return record

    def _case_files(self, case_id: str, test: bool) -> list[Path]:
        masks = [self.mask_path(case_id, folder_name) for folder_name in MASK_FOLDERS]
        own = [*self.image_paths(case_id, test), self.label_path(case_id, test)]
        return [*own, *masks, *multi_echo_paths(self.folder, case_id)]

    def _file_sizes(self, case_id: str, test: bool) -> dict[str, int]:
        files = [path for path in self._case_files(case_id, test) if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}

    def _remove_case(self, case_id: str) -> None:
        self._record_path(case_id).unlink(missing_ok=True)
        for test in (False, True):
            for path in self._case_files(case_id, test):
                path.unlink(missing_ok=True)

    # ---- the description

    def finish(
        self,
        case_ids: Sequence[str],
        failed: Mapping[str, str],
        splits: Sequence[Mapping[str, Sequence[str]]] | None,
    ) -> dict[str, Any]:
        """Describe the finished cases: dataset.json, splits_final.json, cases.json, integrity_report.json.

        Args:
            case_ids: all cases that the release has.
            failed: reason for every case that is not finished.
            splits: folds over all training cases of the release, finished or not, so that mending a case moves no
                other case to another fold; those that have no finished case to train on, or none to validate on, are
                not written (the report says so: later folds are counted one less until the failed cases are mended).
                ``None`` writes no splits.

        Returns:
            The integrity report. Without a finished training case no dataset.json is written.
        """
        from nnunet_anomaly.dataset_conversion.integrity import integrity_report, whole_folds

        records = {case_id: record for case_id in sorted(case_ids) if (record := self.record(case_id)) is not None}
        training = [case_id for case_id, record in records.items() if not record["test"]]
        kept = set(training)
        finished_splits = None
        if splits is not None:
            finished_splits = [
                {part: [case_id for case_id in split[part] if case_id in kept] for part in ("train", "val")}
                for split in splits
            ]
        report = integrity_report(self.folder.name, self.description.labels, records, failed, finished_splits)
        save_json(
            {
                case_id: {key: value for key, value in record.items() if key not in ("files", "made_from")}
                for case_id, record in records.items()
            },
            self.folder / "cases.json",
        )
        save_json(report, self.folder / "integrity_report.json")
        if folds := whole_folds(finished_splits or []):
            save_json(folds, self.folder / "splits_final.json")
        if training:
            save_json(self._dataset_json(len(training)), self.folder / "dataset.json")
        return report

    def _dataset_json(self, num_training_cases: int) -> dict[str, Any]:
        """nnU-Net's own dataset.json, with our block."""
        from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

        what = self.description
        roles = {str(index): "image" for index in range(len(what.channel_names))}
        regions = {"background": 0, **{name: list(values) for name, values in (what.regions or {}).items()}}
        with tempfile.TemporaryDirectory() as temporary:
            generate_dataset_json(
                temporary,
                channel_names={str(index): name for index, name in enumerate(what.channel_names)},
                labels=dict(what.labels) if what.regions is None else regions,
                regions_class_order=None if what.regions is None else tuple(what.regions_class_order or ()),
                num_training_cases=num_training_cases,
                file_ending=FILE_ENDING,
                dataset_name=self.folder.name,
                reference=what.reference,
                release=what.release or None,
                description=what.description,
                overwrite_image_reader_writer="SimpleITKIO",
                license=what.licence,
                converted_by=what.converted_by,
                anomaly={"channel_roles": roles, "roi_labels": list(what.roi_labels)},
            )
            return load_json(os.path.join(temporary, "dataset.json"))


# ---- checks


def check_images(case_id: str, images: Sequence[sitk.Image], channel_names: Sequence[str]) -> dict[str, Any]:
    """Check the channels of a case; see ``DatasetWriter.write_case`` for the errors.

    Returns:
        shape and spacing_mm (z, y, x) and the intensity range of every channel.
    """
    import SimpleITK as sitk

    if len(images) != len(channel_names):
        raise InputError(
            f"Case {case_id} has {len(images)} channels; the dataset has {len(channel_names)} "
            f"({', '.join(channel_names)})."
        )
    ranges = []
    for image, name in zip(images, channel_names, strict=True):
        what = f"Case {case_id}, channel {name}"
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            raise GeometryError(
                f"{what}: it has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} values a "
                "voxel; a grey-value volume is needed."
            )
        check_same_grid(case_id, images[0], image, f"channel {name}")
        voxels = sitk.GetArrayViewFromImage(image)
        if voxels.size == 0:
            raise InputError(f"{what}: it has no voxels.")
        if not np.isfinite(voxels).all():
            raise InputError(f"{what}: {np.count_nonzero(~np.isfinite(voxels))} voxels are NaN or infinite.")
        low, high = voxels.min().item(), voxels.max().item()
        if low == high:
            raise InputError(f"{what}: every voxel is {low}; there is no image in it.")
        ranges.append([low, high])
    return {
        "shape": list(images[0].GetSize()[::-1]),
        "spacing_mm": [round(size, 6) for size in images[0].GetSpacing()[::-1]],
        "intensity_range": ranges,
    }


def check_same_grid(case_id: str, image: sitk.Image, other: sitk.Image, what: str) -> None:
    """Refuse two volumes that are not on one grid: 0.1 % in size, 0.1 voxel in place, 0.001 in direction cosines.

    Raises:
        GeometryError: names what differs.
    """
    if image.GetSize() != other.GetSize():
        raise GeometryError(
            f"Case {case_id}: the {what} has {_times(other.GetSize()[::-1])} voxels (z, y, x), the image has "
            f"{_times(image.GetSize()[::-1])}."
        )
    voxel_mm = np.array(image.GetSpacing())
    if not np.allclose(other.GetSpacing(), voxel_mm, rtol=1e-3, atol=0):
        raise GeometryError(
            f"Case {case_id}: the {what} has voxels of {_times(other.GetSpacing()[::-1])} mm (z, y, x), the image of "
            f"{_times(image.GetSpacing()[::-1])}."
        )
    if not np.allclose(other.GetDirection(), image.GetDirection(), atol=1e-3):
        raise GeometryError(f"Case {case_id}: the {what} is oriented otherwise than the image.")
    if not np.allclose(other.GetOrigin(), image.GetOrigin(), rtol=0, atol=0.1 * float(voxel_mm.min())):
        raise GeometryError(
            f"Case {case_id}: the {what} begins at {other.GetOrigin()} mm, the image at {image.GetOrigin()}."
        )


def check_labels(case_id: str, label: sitk.Image, labels: Mapping[str, int]) -> dict[str, int]:
    """Check that a label map has whole numbers of the list alone, and not background alone.

    Returns:
        Number of voxels of every label but the background, by name; 0 for one that is absent.

    Raises:
        LabelError: see above.
    """
    import SimpleITK as sitk

    voxels = sitk.GetArrayViewFromImage(label)
    found, counts = np.unique(voxels, return_counts=True)
    allowed = set(labels.values())
    foreign = [value for value in found.tolist() if value not in allowed]
    if foreign:
        shown = ", ".join(f"{value:g}" for value in foreign[:5]) + (" ..." if len(foreign) > 5 else "")
        raise LabelError(
            f"Case {case_id}: the label map has {shown}; the labels are "
            f"{', '.join(f'{value} {name}' for name, value in labels.items())}."
        )
    number = {int(value): int(count) for value, count in zip(found, counts, strict=True)}
    voxels_of = {name: number.get(value, 0) for name, value in labels.items() if value != 0}
    if not any(voxels_of.values()):
        raise LabelError(f"Case {case_id}: the label map is empty: all of it is background.")
    return voxels_of


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _as_uint8(label: sitk.Image) -> sitk.Image:
    import SimpleITK as sitk

    return sitk.Cast(label, sitk.sitkUInt8)
