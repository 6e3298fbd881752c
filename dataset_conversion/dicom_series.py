"""Reading one DICOM series from a folder so that nothing is missing, doubled or mixed up without a word."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.errors import GeometryError, InputError

SERIES_UID = "0020|000e"
SERIES_DESCRIPTION, LATERALITY, IMAGE_LATERALITY = "0008|103e", "0020|0060", "0020|0062"
POSITION, ORIENTATION = "0020|0032", "0020|0037"
PIXEL_SPACING, ROWS, COLUMNS = "0028|0030", "0028|0010", "0028|0011"
RESCALE = ("0028|1052", "0028|1053")  # intercept and slope
SIDES = {"L": "left", "R": "right"}
# SOP classes that have no image and may lie beside a series: DICOMDIR, presentation states, encapsulated documents, SR
_NO_IMAGES = (
    b"1.2.840.10008.1.3.10",
    *(b"1.2.840.10008.5.1.4.1.1." + number for number in (b"11.", b"104.", b"88.")),
)
# most that a stack of slices may lean, as a share of its length: 0.3 degrees, 1 mm over 200 mm
MOST_SHEAR = 0.005


@dataclass(frozen=True)
class Series:
    """One DICOM series: its files in the order in which GDCM found them, and its SeriesDescription."""

    uid: str
    description: str
    files: tuple[Path, ...]


def series_in(folder: Path) -> list[Series]:
    """All DICOM series directly in a folder.

    Raises:
        InputError: there is no such folder or no series in it, or a file in it is a damaged DICOM file.
    """
    if not folder.is_dir():
        raise InputError(f"The image folder {folder} does not exist.")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    found = []
    for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)) if files else ():
        names = tuple(Path(name) for name in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid))
        found.append(Series(uid, tags_of(names[0]).get(SERIES_DESCRIPTION, ""), names))
    if not found:
        raise InputError(f"{folder} has no readable DICOM series ({len(files)} files).")
    read = {path.resolve() for series in found for path in series.files}
    endings = {path.suffix for path in read}
    damaged = [path.name for path in files if path.resolve() not in read and _looks_like_dicom(path, endings)]
    if damaged:
        raise InputError(
            f"{folder}: {len(damaged)} of {len(files)} files are not readable as DICOM, cut off perhaps: "
            f"{', '.join(damaged[:5])}. Fetch them again."
        )
    return found


def _looks_like_dicom(path: Path, endings: set[str]) -> bool:
    """Whether a file that GDCM could not read should have been a slice: it begins or is named like one."""
    with open(path, "rb") as handle:
        head = handle.read(512)
    if head[128:132] == b"DICM" and any(uid in head for uid in _NO_IMAGES):
        return False
    return path.suffix in endings or head[128:132] == b"DICM"


def first_tags(folder: Path) -> dict[str, str]:
    """Tags of the first readable DICOM file in a folder, without reading the others; empty if there is none."""
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            tags = tags_of(path)
        except InputError:
            continue
        if SERIES_UID in tags:
            return tags
    return {}


def first_description(folder: Path) -> str:
    """SeriesDescription of the first readable file in a folder, without reading the others; empty if there is none."""
    return first_tags(folder).get(SERIES_DESCRIPTION, "")


def pick_series(folder: Path, wanted: str) -> Series:
    """The one series whose description contains ``wanted``; a folder's only series may also have no description.

    Raises:
        InputError: no series fits, or more than one does; names all of them.
    """
    found = series_in(folder)
    fitting = [series for series in found if wanted.casefold() in series.description.casefold()]
    if len(found) == 1 and not found[0].description:
        fitting = found
    if len(fitting) == 1:
        return fitting[0]
    listed = "; ".join(f"'{series.description}' ({len(series.files)} files)" for series in found)
    problem = "none of them is" if not fitting else f"{len(fitting)} of them are"
    raise InputError(
        f"{folder} has {len(found)} DICOM series: {listed}; {problem} a '{wanted}' series. "
        f"Leave exactly one '{wanted}' series in the folder."
    )


def read_series(series: Series) -> sitk.Image:
    """Read a series as a volume, slices sorted along their normal; stored values and orientation as they are.

    Raises:
        InputError: a file is damaged or does not say how large its pixels are, or there is only one slice.
        GeometryError: slices are missing, doubled, of other pixels than the first, not parallel, or shifted sideways.
    """
    tags = [tags_of(path) for path in series.files]
    check_pixels(series.files, tags)
    order = order_of(series.files, tags, str(series.files[0].parent))
    return volume_of([series.files[index] for index in order], as_float=is_rescaled_differently(tags))


def order_of(files: Sequence[Path], tags: Sequence[Mapping[str, str]], where: str) -> list[int]:
    """``slice_order`` of files by their tags."""
    return slice_order(
        [numbers_of(tag.get(POSITION, ""), 3) for tag in tags],
        [numbers_of(tag.get(ORIENTATION, ""), 6) for tag in tags],
        [path.name for path in files],
        where,
    )


def is_rescaled_differently(tags: Sequence[Mapping[str, str]]) -> bool:
    """Whether RescaleSlope or RescaleIntercept differ between files: ITK would give all the type of the first one."""
    return len({tuple(tag.get(key, "") for key in RESCALE) for tag in tags}) > 1


def volume_of(files: Sequence[Path], *, as_float: bool = False) -> sitk.Image:
    """Read slices in this order as a volume, in the type of the first one or as float32.

    Raises:
        InputError: they are not readable as one volume.
    """
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in files])
    if as_float:
        reader.SetOutputPixelType(sitk.sitkFloat32)
    warns = reader.GetGlobalWarningDisplay()
    reader.SetGlobalWarningDisplay(False)  # of steps that differ by 0.1 %: whether they are even is known by now
    try:
        return reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{files[0].parent} is not readable as one volume: {reason}") from error
    finally:
        reader.SetGlobalWarningDisplay(warns)


def check_pixels(files: Sequence[Path], tags: Sequence[Mapping[str, str]]) -> None:
    """Raise where a slice does not tell the size of its pixels, or has others than the first one.

    Raises:
        InputError: no PixelSpacing, or one that is no size.
        GeometryError: pixels of another number or size.
    """
    for path, tag in zip(files, tags, strict=True):
        _check_pixels(path, tag, tags[0])


def _check_pixels(path: Path, tags: Mapping[str, str], first: Mapping[str, str]) -> None:
    """Raise where a slice does not tell the size of its pixels, or has others than the first one."""
    size_mm = numbers_of(tags.get(PIXEL_SPACING, ""), 2)
    if size_mm is None or min(size_mm) <= 0:
        raise InputError(f"{path} has no PixelSpacing, or one that is no size: nothing tells how large its pixels are.")
    first_mm = numbers_of(first[PIXEL_SPACING], 2)
    assert first_mm is not None  # the first one has been checked
    numbers, first_numbers = ([tag.get(key, "") for key in (ROWS, COLUMNS)] for tag in (tags, first))
    if numbers != first_numbers or not np.allclose(size_mm, first_mm, rtol=1e-3, atol=0):
        ours, theirs = (
            f"{' x '.join(many)} pixels of {' x '.join(f'{size:.4g}' for size in mm)} mm"
            for many, mm in ((numbers, size_mm), (first_numbers, first_mm))
        )
        raise GeometryError(
            f"{path} has {ours} (rows, columns), the series' first slice {theirs}; more than one scan may lie in this "
            "folder."
        )


def slice_order(
    positions_mm: Sequence[Sequence[float] | None],
    orientations: Sequence[Sequence[float] | None],
    names: Sequence[str],
    where: str,
) -> list[int]:
    """Order of slices along their normal, when they are parallel and evenly spaced.

    Args:
        positions_mm: ImagePositionPatient of every slice; ``None`` where the tag is missing.
        orientations: ImageOrientationPatient of every slice; likewise.
        names: file names, for messages.
        where: the folder, for messages.

    Returns:
        Indices, ascending along the cross product of row and column direction.

    Raises:
        InputError: a tag is missing, or there are fewer than two slices.
        GeometryError: slices are not parallel or shifted sideways (a tilted gantry), or one is missing or doubled.
    """
    if len(names) < 2:
        raise InputError(f"{where} has one slice; a volume is needed.")
    for position, orientation, name in zip(positions_mm, orientations, names, strict=True):
        if position is None or orientation is None:
            raise InputError(f"{where}/{name} has no ImagePositionPatient or ImageOrientationPatient.")
    directions = np.array(orientations, dtype=float)
    if not np.allclose(directions, directions[0], atol=1e-3):
        raise GeometryError(f"{where}: the slices are not parallel; more than one scan may lie in this folder.")
    places_mm = np.array(positions_mm, dtype=float) @ np.cross(directions[0, :3], directions[0, 3:])
    order = np.argsort(places_mm, kind="stable")
    _refuse_shear(np.array(positions_mm, dtype=float)[order], directions[0], [names[index] for index in order], where)
    steps_mm = np.diff(places_mm[order])
    step_mm = float(np.median(steps_mm))
    for index, this_mm in enumerate(steps_mm):
        before, after = names[order[index]], names[order[index + 1]]
        if this_mm < 0.5 * step_mm or step_mm <= 0:
            raise GeometryError(f"{where}: {before} and {after} lie {this_mm:.3g} mm apart: slices are doubled.")
        if abs(this_mm - step_mm) > 0.05 * step_mm:
            missing = round(this_mm / step_mm) - 1
            lost = (
                "1 slice is missing. Fetch it again"
                if missing == 1
                else f"{missing} slices are missing. Fetch them again"
            )
            why = f"about {lost}" if missing > 0 else "slices are uneven"
            raise GeometryError(
                f"{where}: {this_mm:.3g} mm lie between {before} and {after}, elsewhere {step_mm:.3g} mm: {why}."
            )
    return order.tolist()


def _refuse_shear(positions_mm: np.ndarray, direction: np.ndarray, names: Sequence[str], where: str) -> None:
    """Refuse slices that are not stacked along their normal: an image has three perpendicular axes.

    Args:
        positions_mm: (n, 3), in the order of the slices.
        direction: (6,), of rows and columns.
        names: file names, in the same order.
        where: the folder, for the message.
    """
    ways_mm = positions_mm - positions_mm[0]
    along_mm = ways_mm @ np.cross(direction[:3], direction[3:])
    sideways_mm = ways_mm @ np.reshape(direction, (2, 3)).T
    length_mm, shift_mm = abs(float(along_mm[-1])), float(np.hypot(*sideways_mm[-1]))
    if shift_mm > MOST_SHEAR * length_mm:
        raise GeometryError(
            f"{where}: the slices are shifted sideways by {shift_mm:.3g} mm over {length_mm:.3g} mm, as by a gantry "
            f"that is tilted by {np.rad2deg(np.arctan2(shift_mm, length_mm)):.3g} degrees. Resample the series to "
            "perpendicular axes first."
        )
    beside_mm = np.hypot(*sideways_mm.T)
    worst = int(np.argmax(beside_mm))
    if beside_mm[worst] > 2 * MOST_SHEAR * length_mm:
        raise GeometryError(
            f"{where}: {names[worst]} is shifted sideways by {beside_mm[worst]:.3g} mm against the first and the last "
            "slice; more than one scan may lie in this folder."
        )


def laterality(series: Series) -> tuple[str | None, list[str]]:
    """Side of the body by SeriesDescription and by the Laterality tags, and what is odd about it.

    Returns:
        ``"left"``, ``"right"`` or ``None`` where nothing says it or the sources disagree; notes for the report.
    """
    return side_by_tags(tags_of(series.files[0]))


def side_by_tags(tags: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """``laterality`` by the tags of one file."""
    description = tags.get(SERIES_DESCRIPTION, "")
    words = set(re.split(r"[^A-Z]+", description.upper()))
    said = {side for letter, side in SIDES.items() if side.upper() in words or tags.get(LATERALITY, "")[:1] == letter}
    said |= {side for letter, side in SIDES.items() if tags.get(IMAGE_LATERALITY, "")[:1] == letter}
    if len(said) > 1:
        return None, [f"the side is unclear: '{description}', Laterality '{tags.get(LATERALITY, '')}'"]
    return (said.pop(), []) if said else (None, ["the side is in no DICOM tag"])


def tags_of(path: Path) -> dict[str, str]:
    """Public DICOM tags of a file as text, blanks around them removed."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path} is not readable as DICOM. Fetch this file again.") from error
    return {key: reader.GetMetaData(key).strip(" \0") for key in reader.GetMetaDataKeys()}


def numbers_of(text: str, count: int) -> list[float] | None:
    """Numbers of a DICOM decimal string ``a\\b\\c``; ``None`` if there are not ``count`` of them."""
    try:
        numbers = [float(part) for part in text.split("\\")]
    except ValueError:
        return None
    return numbers if len(numbers) == count else None
