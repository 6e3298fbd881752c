"""CT and segmentation (SEG) among the DICOM files of a case, found by SOP class, and the segments as masks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.extras import import_highdicom

if TYPE_CHECKING:
    import SimpleITK as sitk
    from pydicom import Dataset

CT = ("1.2.840.10008.5.1.4.1.1.2",)
SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
DIRECTORY = "1.2.840.10008.1.3.10"  # the file DICOMDIR, which is of no series
# of a SEG, in the order of the file
NEEDED = ("FrameOfReferenceUID", "SegmentSequence", "PerFrameFunctionalGroupsSequence", "PixelData")


@dataclass(frozen=True)
class DicomObject:
    """What the header of one DICOM file says; empty where it does not say it.

    ``rescale_slope`` and ``rescale_intercept`` make HU of a CT's stored values.
    """

    path: Path
    sop_class: str
    class_name: str
    series_uid: str
    frame_uid: str
    description: str
    rescale_slope: str
    rescale_intercept: str


@dataclass(frozen=True)
class Segments:
    """The segments of one SEG on its own grid.

    Attributes:
        path: of the file.
        frame_uid: its frame of reference.
        names: of the segments: SegmentDescription, else SegmentLabel.
        masks: bool (segments, z, y, x).
        grid: an image of no content with the masks' geometry.
    """

    path: Path
    frame_uid: str
    names: tuple[str, ...]
    masks: np.ndarray
    grid: sitk.Image


def dicom_objects(folder: Path) -> list[DicomObject]:
    """All DICOM files of a folder, at any depth, sorted by path; other files are left out.

    Raises:
        AnomalyError: highdicom, which brings pydicom, is not installed.
        InputError: a file that is named ``.dcm`` or begins as DICOM is not readable, or its header is cut off.
    """
    import_highdicom()
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import UID

    tags = ["SeriesInstanceUID", "FrameOfReferenceUID", "SeriesDescription", "RescaleSlope", "RescaleIntercept"]
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            header = dcmread(path, defer_size=1024, specific_tags=["SOPClassUID", *tags, "PixelData"])
            # of a file that is cut off, what comes before the rest of the header may be all that is left
            sop_class = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
            said = ["" if (value := header.get(tag)) is None else str(value) for tag in tags]
        except Exception as error:  # pydicom raises errors of many kinds where a file is damaged
            _raise_what_is_no_damage(error)
            if path.suffix.casefold() != ".dcm" and isinstance(error, InvalidDicomError):
                continue
            raise InputError(f"{path} is not readable as DICOM ({error}). Fetch this file again.") from error
        has_pixels = "PixelData" in header or sop_class not in CT + SEGMENTATION
        if not (has_pixels and said[0]) and sop_class != DIRECTORY:
            raise InputError(f"{path} is cut off or damaged: its header is not all there. Fetch this file again.")
        found.append(DicomObject(path, sop_class, UID(sop_class).name, *said))
    return found


def _raise_what_is_no_damage(error: Exception) -> None:
    """Raise again what the system says of a disk; where a file is cut off, pydicom raises OSErrors of its own."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def one_series(
    objects: Sequence[DicomObject], sop_classes: Sequence[str], what: str, folder: Path
) -> list[DicomObject]:
    """The files of the only series of these SOP classes.

    Raises:
        InputError: there is none, or more than one; names what there is.
    """
    fitting = [one for one in objects if one.sop_class in sop_classes]
    series = {one.series_uid: one for one in fitting}
    if not series:
        there = ", ".join(f"{name} ({number} files)" for name, number in Counter(o.class_name for o in objects).items())
        raise InputError(f"{folder} has no {what}. Its DICOM files are: {there or 'none'}.")
    if len(series) > 1:
        number = Counter(one.series_uid for one in fitting)
        listed = "; ".join(f"'{o.description}' in {o.path.parent} ({number[uid]} files)" for uid, o in series.items())
        raise InputError(f"{folder} has {len(series)} series of {what}: {listed}. Leave one of them in the folder.")
    return fitting


def read_ct(objects: Sequence[DicomObject], folder: Path) -> tuple[sitk.Image, str]:
    """The one CT series of a case as a volume of HU, and its frame of reference.

    Raises:
        InputError: there is none or more than one, a file is damaged, or its values are not in HU.
        GeometryError: slices are missing, doubled, uneven, of other pixels, not parallel, or shifted sideways by a
            tilted gantry.
    """
    from nnunet_anomaly.dataset_conversion.dicom_series import Series, read_series

    slices = one_series(objects, CT, "CT", folder)
    frames = {one.frame_uid for one in slices}
    if len(frames) > 1:
        raise GeometryError(f"{slices[0].path.parent}: the slices of the CT are of {len(frames)} frames of reference.")
    for one in slices:
        if not _gives_hu(one):
            raise InputError(
                f"{one.path}: RescaleSlope is {one.rescale_slope or '(none)'} and RescaleIntercept "
                f"{one.rescale_intercept or '(none)'}, so its values are not in HU. Export the CT again with both."
            )
    image = read_series(Series(slices[0].series_uid, slices[0].description, tuple(one.path for one in slices)))
    return image, frames.pop()


def _gives_hu(one: DicomObject) -> bool:
    """Whether slope and intercept are numbers, and the slope is not 0."""
    try:
        slope, intercept = float(one.rescale_slope), float(one.rescale_intercept)
    except ValueError:
        return False
    return math.isfinite(slope) and slope != 0 and math.isfinite(intercept)


def read_segments(path: Path) -> Segments:
    """Read the segments of a SEG.

    Raises:
        InputError: the file is cut off, lacks what a SEG needs, its segments are not binary or have no names, or its
            frames make no volume.
        LabelError: two segments have one name.
    """
    import SimpleITK as sitk

    highdicom = import_highdicom()
    from pydicom import dcmread

    try:
        dataset = dcmread(path)
        _check_complete(dataset, path)
        names = tuple(_name(item) for item in dataset.SegmentSequence)
        for item, name in zip(dataset.SegmentSequence, names, strict=True):
            item.SegmentLabel = item.get("SegmentLabel") or name  # highdicom will not do without
        segmentation = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
        kind = segmentation.segmentation_type.value
        volume = segmentation.get_volume(combine_segments=False, rescale_fractional=False)
    except InputError:
        raise
    except Exception as error:  # pydicom and highdicom raise errors of many kinds where something is amiss
        _raise_what_is_no_damage(error)
        raise InputError(f"{path} is not readable as a segmentation of one volume: {error}") from error
    if kind == "FRACTIONAL":
        raise InputError(f"{path} holds fractional segments; binary ones are needed.")
    if twice := sorted(name for name, number in Counter(names).items() if number > 1):
        raise LabelError(f"{path} has more than one segment named {', '.join(map(repr, twice))}.")
    if "" in names:
        raise InputError(f"{path}: segment {names.index('') + 1} has neither SegmentDescription nor SegmentLabel.")
    masks = np.moveaxis(volume.array, -1, 0) > 0
    grid = sitk.GetImageFromArray(np.zeros(masks.shape[1:], np.uint8))
    axes = volume.affine[:3, 2::-1]  # columns, rows, slices: x, y, z of the image
    spacing_mm = np.linalg.norm(axes, axis=0)
    grid.SetSpacing(spacing_mm.tolist())
    grid.SetDirection((axes / spacing_mm).ravel().tolist())
    grid.SetOrigin(volume.affine[:3, 3].tolist())
    return Segments(path, str(dataset.FrameOfReferenceUID), names, masks, grid)


def _check_complete(dataset: Dataset, path: Path) -> None:
    """Raise an ``InputError`` where a SEG is cut off, which its pixels at the end show, or lacks what it needs."""
    missing = [keyword for keyword in NEEDED if not dataset.get(keyword)]
    if "PixelData" in missing or _missing_bytes(dataset):
        raise InputError(f"{path} is cut off or damaged: its pixels are not all there. Fetch this file again.")
    if missing:
        raise InputError(f"{path} has no {missing[0]}, and a segmentation needs one. Write it again from its source.")


def _missing_bytes(dataset: Dataset) -> int:
    """How many bytes of the pixels are not there; 0 where they are compressed, as then nothing tells their number."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return 0
    bits = int(dataset.get("NumberOfFrames", 1)) * dataset.Rows * dataset.Columns * dataset.BitsAllocated
    return max(0, math.ceil(bits / 8) - len(dataset.PixelData))


def _name(item: Any) -> str:
    """What a segment is called."""
    return str(item.get("SegmentDescription") or item.get("SegmentLabel") or "").strip()


def without_segments(segments: Segments, names: Collection[str]) -> Segments:
    """The segments but those of these names."""
    kept = [index for index, name in enumerate(segments.names) if name not in names]
    return replace(segments, names=tuple(segments.names[index] for index in kept), masks=segments.masks[kept])


def overlaps(segments: Segments) -> dict[str, int]:
    """Voxels that two segments share, by their names; empty where none do."""
    shared = {}
    crowded = segments.masks.sum(axis=0) > 1
    inside = segments.masks[:, crowded]
    for one in range(len(segments.names)):
        for other in range(one + 1, len(segments.names)):
            if voxels := int((inside[one] & inside[other]).sum()):
                shared[f"{segments.names[one]} and {segments.names[other]}"] = voxels
    return shared
