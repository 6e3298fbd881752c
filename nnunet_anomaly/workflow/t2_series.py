"""Multi-echo series as ``nnunet-anomaly t2`` takes them: a DICOM folder, a ``.zip`` of one, or one beside a dataset."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_anomaly.errors import GeometryError, InputError
from nnunet_anomaly.label_maps import spacing_zyx_mm
from nnunet_anomaly.multi_echo import MultiEcho, json_beside, read_multi_echo_file
from nnunet_anomaly.relaxometry.refine import slice_axis

NIFTI = ".nii.gz"
_MONTH, _DATE = re.compile(r"\d+m"), re.compile(r"\d{8}")
# slices of both time points are counted, not interpolated
_SAME_DISTANCE = 0.01


@dataclass(frozen=True, eq=False)
class Series:
    """One series and where it is from.

    Attributes:
        source: as it was given.
        stack: its echoes.
        notes: what is odd but no error.
    """

    source: Path
    stack: MultiEcho
    notes: tuple[str, ...]

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size in the order of array axes."""
        return spacing_zyx_mm(self.stack.images[0])

    @property
    def slice_distance_mm(self) -> float:
        """Distance of sagittal slices."""
        return self.spacing_mm[slice_axis(self.stack.images[0].GetDirection())]


def files_of(source: Path) -> list[Path]:
    """Files that a series is read from.

    Raises:
        InputError: there is nothing of this name.
    """
    if source.is_dir():
        return sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    if not source.is_file():
        raise InputError(f"{source} does not exist.")
    return [source, json_beside(source)] if source.name.endswith(NIFTI) else [source]


def read_series(source: Path, side: str | None = None) -> Series:
    """Read a series.

    Args:
        source: a folder of DICOM files, a ``.zip`` file of them, or ``<case>.nii.gz`` with its JSON.
        side: of the knee, where neither header nor JSON tells it.

    Raises:
        GeometryError: see ``multi_echo_series.read_echo_series``.
        InputError: see there and ``read_multi_echo_file``; something else; the side is unknown, or ``side`` contradicts
            header or JSON.
    """
    from nnunet_anomaly.dataset_conversion.multi_echo_series import is_archive
    from nnunet_anomaly.dataset_conversion.oai_mese import place_notes

    if source.name.endswith(NIFTI):
        stack, notes = read_multi_echo_file(source), list[str]()
    elif source.is_dir() or is_archive(source):
        stack, notes = _read_dicom(source)
    else:
        files_of(source)
        raise InputError(
            f"{source} is no multi-echo series: give a folder of DICOM files, a .zip file of them, or the .nii.gz of "
            "a case in the folder multi_echo of a converted dataset."
        )
    if side and stack.side and side != stack.side:
        raise InputError(
            f"{source} is a {stack.side} knee by its header or JSON, but --side says {side}. Correct one of the two; "
            "--side is for series that tell no side."
        )
    stack = dataclasses.replace(stack, side=stack.side or side)
    notes += place_notes(stack.images[0], stack.side, source)
    return Series(source, stack, tuple(notes))


def _read_dicom(source: Path) -> tuple[MultiEcho, list[str]]:
    from nnunet_anomaly.dataset_conversion.dicom_series import side_by_tags
    from nnunet_anomaly.dataset_conversion.multi_echo_series import only_series, opened, read_echo_series
    from nnunet_anomaly.dataset_conversion.oai_mese import PATIENT_ID, date_of

    with opened(source) as folder:
        series = read_echo_series(only_series(folder))
    side, _ = side_by_tags(series.tags)
    subject = series.tags.get(PATIENT_ID) or source.name.removesuffix(".zip")
    stack = MultiEcho(series.images, series.echo_times_ms, side, series.uid, subject, date_of(series.tags))
    return stack, list(series.notes)


def check_pair(first: Series, second: Series) -> list[str]:
    """Hold two time points of a knee against each other; what is odd but may be right comes back as warnings.

    Raises:
        GeometryError: their slices are not equally far apart.
        InputError: they are the same series, or of a left and a right knee.
    """
    one, two = first.stack, second.stack
    if one.series == two.series:
        raise InputError(
            f"{first.source} and {second.source} are the same series ({one.series}): there is no change to measure."
        )
    if one.side != two.side:
        raise InputError(f"{first.source} is a {one.side} knee, {second.source} a {two.side} one.")
    distances_mm = first.slice_distance_mm, second.slice_distance_mm
    if abs(distances_mm[0] - distances_mm[1]) > _SAME_DISTANCE * distances_mm[0]:
        raise GeometryError(
            f"Slices of {first.source} are {distances_mm[0]:.3g} mm apart, those of {second.source} "
            f"{distances_mm[1]:.3g} mm: change is measured slice by slice. Measure each of them alone."
        )
    warnings = []
    if one.subject != two.subject:
        warnings.append(
            f"The two series are of different subjects by their headers: '{one.subject}' and '{two.subject}'. If that "
            "is so, their difference means nothing."
        )
    if (order := in_order(one.time_point, two.time_point)) is not None and order >= 0:
        when = "earlier than" if order > 0 else "of the same time as"
        warnings.append(
            f"The follow-up ({two.time_point}) is {when} the first time point ({one.time_point}): change is the second "
            "minus the first, in the order in which they were given."
        )
    return warnings


def in_order(one: str | None, other: str | None) -> int | None:
    """Negative where the first of two visits comes first, 0 where they are one, positive else; None: not known.

    Visits are such as ``"00m"`` and ``"48m"``, or dates such as ``"20060131"``.
    """
    for kind in (_MONTH, _DATE):
        if one and other and kind.fullmatch(one) and kind.fullmatch(other):
            return int(one.rstrip("m")) - int(other.rstrip("m"))
    return None


def knee_name(subject: str, side: str | None) -> str:
    """What a knee is called in tables and folders."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", "_".join(filter(None, (subject, side))))


def facts_of(series: Sequence[Series]) -> list[dict[str, object]]:
    """What the record says of every series."""
    return [
        {
            "source": str(each.source),
            "series": each.stack.series,
            "subject": each.stack.subject,
            "visit": each.stack.time_point,
            "side": each.stack.side,
            "echo_times_ms": list(each.stack.echo_times_ms),
            "slices": each.stack.images[0].GetSize()[::-1][slice_axis(each.stack.images[0].GetDirection())],
            "spacing_mm": list(each.spacing_mm),
        }
        for each in series
    ]
