"""Reading a multi-echo DICOM series: slices by their position, echoes by EchoTime, complete or not at all.

InstanceNumber and AcquisitionTime order nothing here: scanners count slices first or echoes first, and in a real series
all AcquisitionTimes are equal.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.dataset_conversion.dicom_series import (
    ORIENTATION,
    POSITION,
    Series,
    check_pixels,
    is_rescaled_differently,
    numbers_of,
    order_of,
    series_in,
    tags_of,
    volume_of,
)
from nnunet_anomaly.dataset_conversion.splits import some_of
from nnunet_anomaly.errors import AnomalyError, GeometryError, InputError
from nnunet_anomaly.multi_echo import check_echo_times

ECHO_TIME, ECHO_NUMBER = "0018|0081", "0018|0086"
INSTANCE_NUMBER, INSTANCE_UID = "0020|0013", "0008|0018"
# files whose echo times differ by a smaller share are of one echo: scanners write 6.312 and 6.3120001 in one series
_SAME_ECHO_SHARE, _DIGITS = 1e-3, 6
# places along the normal that differ by less are of one slice; a slice is never as thin
_SAME_PLACE_MM = 0.05

Tags = Mapping[str, str]


@dataclass(frozen=True, eq=False)
class EchoSeries:
    """All echoes of one series.

    Attributes:
        uid: SeriesInstanceUID.
        images: one volume an echo, of one grid and type; slices ascend along their normal.
        echo_times_ms: strictly ascending.
        instance_numbers: InstanceNumber of the slices of the first echo, in the volumes' order; ``None`` where a file
            has none.
        tags: of the first file.
        notes: what is odd but no error, for the report.
    """

    uid: str
    images: tuple[sitk.Image, ...]
    echo_times_ms: tuple[float, ...]
    instance_numbers: tuple[int | None, ...]
    tags: Tags
    notes: tuple[str, ...]


def is_archive(path: Path) -> bool:
    """Whether a path is that of a ``.zip`` file."""
    return path.suffix.casefold() == ".zip" and path.is_file()


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """The folder of a series; of a ``.zip`` file a temporary one with its files side by side, ``a/b`` as ``a_b``.

    Errors raised within name the archive instead of the temporary folder.

    Raises:
        InputError: the archive is damaged or encrypted, or two of its files would have one name.
    """
    if not is_archive(source):
        yield source
        return
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with zipfile.ZipFile(source) as archive:
                for member in _members(archive):
                    with archive.open(member) as handle, open(Path(temporary, _flat_name(member)), "xb") as target:
                        shutil.copyfileobj(handle, target)
        except FileExistsError as error:
            name = Path(error.filename).name
            raise InputError(f"{source} has more than one file {name} (folders count as '_'). Unpack it.") from error
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
            raise InputError(f"{source} is not readable as a zip file: {error}. Fetch it again.") from error
        try:
            yield Path(temporary)
        except AnomalyError as error:
            raise type(error)(str(error).replace(temporary, str(source))) from error


def _members(archive: zipfile.ZipFile) -> list[str]:
    """Files in an archive, sorted, without hidden ones and what macOS adds."""
    names = [Path(info.filename) for info in archive.infolist() if not info.is_dir()]
    return sorted(name.as_posix() for name in names if not name.name.startswith(".") and "__MACOSX" not in name.parts)


def _flat_name(member: str) -> str:
    return "_".join(part for part in Path(member).parts if part not in ("/", ".."))


def only_series(folder: Path) -> Series:
    """The one series in a folder.

    Raises:
        InputError: there is none, or more than one; then all are named with two of their files.
    """
    found = series_in(folder)
    if len(found) == 1:
        return found[0]
    listed = "; ".join(
        f"'{series.description}' ({len(series.files)} files: {some_of(sorted(path.name for path in series.files), 2)})"
        for series in found
    )
    raise InputError(f"{folder} has {len(found)} DICOM series: {listed}. Leave exactly one multi-echo series in it.")


def read_echo_series(series: Series) -> EchoSeries:
    """Read a multi-echo series; stored values and orientation as they are.

    Raises:
        InputError: a file is damaged, a copy of another one or without a tag that is needed, echo times are wrong or
            there is only one, or an echo is missing by the EchoNumbers.
        GeometryError: slices are missing in some or all echoes, doubled, not parallel, of other pixels, or shifted
            sideways.
    """
    files, where = series.files, str(series.files[0].parent)
    tags = [tags_of(path) for path in files]
    check_pixels(files, tags)
    echoes = _files_of_echoes(files, tags, where)
    places_mm = _places_mm(files, tags, where)
    _refuse_copies(files, tags, echoes, places_mm, where)
    _refuse_gaps(files, echoes, places_mm, where)
    as_float = is_rescaled_differently(tags)
    images: list[sitk.Image] = []
    first: list[int] = []
    for members in echoes.values():
        order = order_of([files[i] for i in members], [tags[i] for i in members], where)
        ordered = [members[index] for index in order]
        image = volume_of([files[i] for i in ordered], as_float=as_float)
        first = first or ordered
        if images:
            _refuse_shift(images[0], image, files[ordered[0]], where)
            image.CopyInformation(images[0])  # the same but for rounding
        images.append(image)
    notes = _notes(tuple(echoes), images)
    numbers = tuple(_whole(tags[i].get(INSTANCE_NUMBER, "")) for i in first)
    return EchoSeries(series.uid, tuple(images), tuple(echoes), numbers, tags[first[0]], notes)


def _files_of_echoes(files: Sequence[Path], tags: Sequence[Tags], where: str) -> dict[float, list[int]]:
    """Indices of the files of every echo time in ms, the shortest first."""
    found = [numbers_of(tag.get(ECHO_TIME, ""), 1) for tag in tags]
    for path, times_ms in zip(files, found, strict=True):
        if times_ms is None or not math.isfinite(times_ms[0]):
            raise InputError(f"{path} has no EchoTime: nothing tells which echo it is.")
    of_files_ms = np.ravel(np.array(found, dtype=float))
    by_time = np.argsort(of_files_ms, kind="stable")
    is_next = np.diff(of_files_ms[by_time]) > _SAME_ECHO_SHARE * np.abs(of_files_ms[by_time[1:]])
    groups = np.split(by_time, np.flatnonzero(is_next) + 1)
    echoes = {float(f"{np.median(of_files_ms[group]):.{_DIGITS}g}"): sorted(group.tolist()) for group in groups}
    check_echo_times(tuple(echoes), f"{where} ({files[next(iter(echoes.values()))[0]].name} ...): ")
    if len(echoes) < 2:
        raise InputError(
            f"{where}: all {len(files)} files have the EchoTime {next(iter(echoes)):g} ms: no multi-echo series."
        )
    _check_echo_numbers(files, tags, echoes, where)
    return echoes


def _check_echo_numbers(
    files: Sequence[Path], tags: Sequence[Tags], echoes: Mapping[float, list[int]], where: str
) -> None:
    """Hold EchoNumbers, where the scanner counts them, against echo times."""
    numbers = [{_whole(tags[i].get(ECHO_NUMBER, "")) for i in members} for members in echoes.values()]
    if any(len(found) != 1 or None in found for found in numbers) or len(set.union(*numbers)) != len(echoes):
        return  # not counted, or not by echo
    counted = [number for (number,) in numbers if number is not None]
    if counted != sorted(counted):
        pairs = ", ".join(f"{number} at {time_ms:g} ms" for number, time_ms in zip(counted, echoes, strict=True))
        example = files[next(iter(echoes.values()))[0]].name
        raise InputError(
            f"{where} ({example} ...): EchoNumbers do not ascend with EchoTime: {pairs}. One of them is wrong."
        )
    missing = sorted(set(range(1, counted[-1] + 1)) - set(counted))
    if missing:
        before = [time_ms for number, time_ms in zip(counted, echoes, strict=True) if number < missing[0]]
        last = (
            f"the one before has {before[-1]:g} ms, {files[echoes[before[-1]][0]].name} ..." if before else "the first"
        )
        raise InputError(
            f"{where}: no file has EchoNumber {', '.join(map(str, missing))} ({last}): an echo is missing. Fetch it "
            "again."
        )


def _places_mm(files: Sequence[Path], tags: Sequence[Tags], where: str) -> np.ndarray:
    """Place of every file's slice along the normal of the first one."""
    places = []
    normal = None
    for path, tag in zip(files, tags, strict=True):
        position, orientation = numbers_of(tag.get(POSITION, ""), 3), numbers_of(tag.get(ORIENTATION, ""), 6)
        if position is None or orientation is None:
            raise InputError(f"{path} has no ImagePositionPatient or ImageOrientationPatient.")
        if normal is None:
            first, normal = orientation, np.cross(orientation[:3], orientation[3:])
        if not np.allclose(orientation, first, atol=1e-3):
            raise GeometryError(
                f"{where}: {path.name} is not parallel to {files[0].name}; more than one scan may lie there. "
                "Leave the files of one."
            )
        places.append(float(np.dot(position, normal)))
    return np.array(places)


def _refuse_copies(
    files: Sequence[Path], tags: Sequence[Tags], echoes: Mapping[float, list[int]], places_mm: np.ndarray, where: str
) -> None:
    """Raise where two files are of one slice and echo."""
    for time_ms, members in echoes.items():
        ordered = sorted(members, key=lambda i: places_mm[i])
        for one, other in pairwise(ordered):
            if places_mm[other] - places_mm[one] >= _SAME_PLACE_MM:
                continue
            same = tags[one].get(INSTANCE_UID) == tags[other].get(INSTANCE_UID)
            why = (
                "one is a copy of the other (one SOPInstanceUID): delete it"
                if same
                else "slices are doubled, or two series are mixed: leave one of them"
            )
            raise GeometryError(
                f"{where}: {files[one].name} and {files[other].name} are both the slice at {places_mm[one]:.4g} mm of "
                f"the echo at {time_ms:g} ms; {why}."
            )


def _refuse_gaps(files: Sequence[Path], echoes: Mapping[float, list[int]], places_mm: np.ndarray, where: str) -> None:
    """Raise where a slice that one echo has is missing in another."""
    by_place = np.argsort(places_mm, kind="stable")
    groups = np.split(by_place, np.flatnonzero(np.diff(places_mm[by_place]) >= _SAME_PLACE_MM) + 1)
    echo_of = {index: time_ms for time_ms, members in echoes.items() for index in members}
    missing = []
    for group in groups:
        present = {echo_of[int(index)] for index in group}
        missing += [f"no {time_ms:g} ms beside {files[group[0]].name}" for time_ms in echoes if time_ms not in present]
    if missing:
        counts = ", ".join(f"{len(members)} at {time_ms:g} ms" for time_ms, members in echoes.items())
        raise GeometryError(
            f"{where}: {len(missing)} of {len(groups)} x {len(echoes)} slices and echoes are missing ({counts} "
            f"slices): {some_of(missing, 5)}. Fetch them again."
        )


def _refuse_shift(first: sitk.Image, image: sitk.Image, file: Path, where: str) -> None:
    """Raise where an echo lies elsewhere than the first one within the plane of its slices."""
    shift_mm = np.abs(np.subtract(image.GetOrigin(), first.GetOrigin())).max()
    if shift_mm > 0.1 * min(first.GetSpacing()):
        raise GeometryError(
            f"{where}: the echo of {file.name} lies {shift_mm:.3g} mm beside the first one; more than one scan may lie "
            "there."
        )


def _notes(echo_times_ms: Sequence[float], images: Sequence[sitk.Image]) -> tuple[str, ...]:
    """What is odd, though it may be right."""
    notes = []
    steps_ms = np.diff(echo_times_ms)
    if not np.allclose(steps_ms, steps_ms[0], rtol=0.02):
        listed = ", ".join(f"{time_ms:g}" for time_ms in echo_times_ms)
        notes.append(f"echo times are not evenly spaced ({listed} ms): is an echo missing?")
    means = [float(sitk.GetArrayViewFromImage(image).mean()) for image in images]
    if means[-1] >= means[1 if len(means) > 2 else 0]:
        notes.append("the signal does not fall from early to late echoes: are the echo times right?")
    return tuple(notes)


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
