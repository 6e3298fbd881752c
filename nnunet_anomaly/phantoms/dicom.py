"""DICOM series with given tags and the same bytes every time: no clock, no random identifiers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import SimpleITK as sitk

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"


def make_uid(*parts: object) -> str:
    """A DICOM identifier that depends on ``parts`` alone (a UUID written as a number under the root 2.25)."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def write_slice(image: sitk.Image, path: Path, tags: Mapping[str, str]) -> None:
    """Write one slice, a 3-D image of one slice, so that position, orientation and spacing follow from its geometry.

    Args:
        image: uint16, size (columns, rows, 1).
        path: of the file, with or without ending.
        tags: "gggg|eeee" to value. SOP class and instance, study and series identifiers, study date and time must be
            among them: those that are missing would be made up from the clock.

    Raises:
        ValueError: such a tag is missing.
    """
    for needed in ("0008|0016", "0008|0018", "0020|000d", "0020|000e", "0020|0052", "0008|0020", "0008|0030"):
        if needed not in tags:
            raise ValueError(f"the tag {needed} is missing; it would not be the same when written again")
    image = sitk.Image(image)
    # GDCM writes these on its own, but only once the process has read a DICOM file
    rescale = {"0028|1052": "0", "0028|1053": "1", "0028|1054": "US"}
    for tag, value in {**rescale, **tags}.items():
        image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


def write_series(image: sitk.Image, folder: Path, tags: Mapping[str, str]) -> None:
    """Write a volume as one file a slice, named ``001``, ``002``, ... as in the OAI's tree.

    Args:
        image: uint16, 3-D.
        folder: made if missing.
        tags: of all slices (see ``write_slice``), "0020|000e" (series) among them; instance number and identifier and
            slice location are added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spacing_mm = image.GetSpacing()[2]
    for number in range(1, image.GetSize()[2] + 1):
        own = {
            "0008|0018": make_uid(tags["0020|000e"], number),
            "0020|0013": str(number),
            "0020|1041": f"{(number - 1) * spacing_mm:.6g}",
        }
        write_slice(image[:, :, number - 1 : number], folder / f"{number:03d}", {**tags, **own})


def read_series(folder: Path) -> sitk.Image:
    """Read the one series of a folder, in order of position."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()
