"""The echoes of a multi-echo series beside an nnU-Net dataset, with what a fit of T2 needs to know of them.

nnU-Net's images hold the echoes that a network sees; the fit wants all of them. They lie in the dataset's folder::

    DatasetXXX_Name/multi_echo/<case>.nii.gz     4-D, echoes along the last axis, the shortest first
    DatasetXXX_Name/multi_echo/<case>.json       {"echo_times_ms": [10.0, ...], "side": "right", "series": UID,
                                                  "subject": "9003126", "time_point": "48m"}

training and test cases alike, on the grid of the case's images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_anomaly.errors import GeometryError, InputError
from nnunet_anomaly.files import load_json, read_image, save_json, write_image
from nnunet_anomaly.sides import LEFT, RIGHT

if TYPE_CHECKING:
    import SimpleITK as sitk

FOLDER = "multi_echo"


@dataclass(frozen=True, eq=False)
class MultiEcho:
    """The echoes of one knee at one time.

    Attributes:
        images: one volume an echo, all on one grid and of one type.
        echo_times_ms: of the images, strictly ascending.
        side: of the body, ``"left"`` or ``"right"``; ``None`` if unknown.
        series: what the source calls it, DICOM's SeriesInstanceUID.
        subject: whose it is.
        time_point: when it was made, as the source names it; ``None`` if unknown.

    Raises:
        InputError: see ``check_echo_times``; not one image an echo time, or another side.
        GeometryError: the images differ in size.
    """

    images: tuple[sitk.Image, ...]
    echo_times_ms: tuple[float, ...]
    side: str | None
    series: str
    subject: str
    time_point: str | None = None

    def __post_init__(self) -> None:
        check_echo_times(self.echo_times_ms)
        if len(self.images) != len(self.echo_times_ms):
            raise InputError(f"There are {len(self.images)} echoes, but {len(self.echo_times_ms)} echo times.")
        if self.side not in (LEFT, RIGHT, None):
            raise InputError(f"The side is {self.side!r}; it must be '{LEFT}', '{RIGHT}' or null (unknown).")
        if any(image.GetDimension() != 3 or image.GetSize() != self.images[0].GetSize() for image in self.images):
            raise GeometryError("The echoes must be 3-D volumes of one size.")

    def signals(self) -> np.ndarray:
        """All echoes as an array (echoes, z, y, x), in their own dtype."""
        import SimpleITK as sitk

        return np.stack([sitk.GetArrayViewFromImage(image) for image in self.images])


def check_echo_times(echo_times_ms: Sequence[float], where: str = "") -> None:
    """Refuse echo times that are none.

    Args:
        echo_times_ms: of all echoes, in their order.
        where: begins the message, such as ``"file.json: "``.

    Raises:
        InputError: none at all, one that is not positive and finite, not strictly ascending, or all below 1. Those are
            seconds: they are refused, not converted, as a file that breaks the rule in one tag may do so in others.
    """
    listed = ", ".join(f"{time_ms:g}" for time_ms in echo_times_ms)
    if not echo_times_ms:
        raise InputError(f"{where}there are no echo times.")
    if not all(math.isfinite(time_ms) and time_ms > 0 for time_ms in echo_times_ms):
        raise InputError(f"{where}echo times must be positive numbers of ms; they are {listed}.")
    if any(later <= earlier for earlier, later in pairwise(echo_times_ms)):
        raise InputError(f"{where}echo times must ascend; they are {listed}.")
    if echo_times_ms[-1] < 1:
        raise InputError(
            f"{where}the echo times {listed} seem to be seconds: all are below 1, and no spin echo is as short as that "
            "in ms. Give them in ms."
        )


def paths_of(dataset: Path, case_id: str) -> tuple[Path, Path]:
    """Image file and JSON file of a case in the folder of a dataset."""
    folder = dataset / FOLDER
    return folder / f"{case_id}.nii.gz", folder / f"{case_id}.json"


def write_multi_echo(stack: MultiEcho, dataset: Path, case_id: str) -> None:
    """Write all echoes of a case (see the module), the JSON last.

    Raises:
        OSError: the disk is full, or a file could not be written for another reason.
    """
    import SimpleITK as sitk

    image_path, json_path = paths_of(dataset, case_id)
    write_image(sitk.JoinSeries(list(stack.images)), image_path)
    facts = {
        "echo_times_ms": list(stack.echo_times_ms),
        "side": stack.side,
        "series": stack.series,
        "subject": stack.subject,
        "time_point": stack.time_point,
    }
    save_json(facts, json_path)


def read_multi_echo(dataset: Path, case_id: str) -> MultiEcho:
    """Read what ``write_multi_echo`` wrote.

    Raises:
        InputError: a file is missing or damaged, or the JSON lacks something or does not fit the image.
    """
    return read_multi_echo_file(paths_of(dataset, case_id)[0])


def json_beside(image_path: Path) -> Path:
    """The JSON file of an image file, wherever both lie."""
    return image_path.with_name(image_path.name.removesuffix(".nii.gz") + ".json")


def read_multi_echo_file(image_path: Path) -> MultiEcho:
    """Read all echoes of a case, and the JSON beside them.

    Args:
        image_path: ``<case>.nii.gz``, in the folder of a dataset or elsewhere.

    Raises:
        InputError: as ``read_multi_echo``.
    """
    json_path = json_beside(image_path)
    facts = read_facts(json_path)
    image = read_image(image_path)
    if image.GetDimension() != 4:
        raise InputError(f"{image_path} has {image.GetDimension()} axes; all echoes of a case have 4.")
    times_ms = facts["echo_times_ms"]
    if len(times_ms) != image.GetSize()[3]:
        raise InputError(
            f"{image_path} has {image.GetSize()[3]} echoes, but {json_path.name} has {len(times_ms)} echo times."
        )
    echoes = tuple(image[:, :, :, index] for index in range(len(times_ms)))
    try:
        return MultiEcho(echoes, **facts)
    except InputError as error:
        raise type(error)(f"{json_path}: {error}") from None


def read_facts(json_path: Path) -> dict[str, Any]:
    """All that ``MultiEcho`` holds but its images: a value for each of its other fields.

    Raises:
        InputError: the file is missing or damaged, lacks something, or has echo times that are none.
    """
    facts = load_json(json_path)
    times_ms = _echo_times(facts, json_path)
    keys = ("side", "series", "subject", "time_point")
    if missing := [key for key in keys if key not in facts]:
        raise InputError(f"{json_path} has no {missing[0]}; it needs echo_times_ms, {', '.join(keys)}.")
    return {"echo_times_ms": times_ms, **{key: facts[key] for key in keys}}


def _echo_times(facts: Any, path: Path) -> tuple[float, ...]:
    times_ms = facts.get("echo_times_ms") if isinstance(facts, dict) else None
    if not isinstance(times_ms, list) or not all(isinstance(time, int | float) for time in times_ms):
        raise InputError(f'{path} has no "echo_times_ms", a list of numbers.')
    check_echo_times(times_ms, f"{path}: ")
    return tuple(float(time_ms) for time_ms in times_ms)
