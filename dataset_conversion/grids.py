"""One orientation for all heads; volumes whose voxels coincide but lie otherwise are brought over exactly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_anomaly.errors import GeometryError, InputError
from nnunet_anomaly.files import read_image

if TYPE_CHECKING:
    import SimpleITK as sitk

TOLERANCE_VOXELS = 0.1


# of all images of heads: a network that sees whole volumes learns where left and right, front and back are
ORIENTATION = "LPS"


def read_oriented(path: Path) -> sitk.Image:
    """Read an image and bring its axes into ``ORIENTATION``: permuted and reversed, nothing is interpolated.

    Raises:
        InputError: the file is missing or damaged, or not 3-D.
    """
    import SimpleITK as sitk

    image = read_image(path)
    if image.GetDimension() != 3:
        raise InputError(f"{path} is not 3-D.")
    return sitk.DICOMOrient(image, ORIENTATION)


def on_grid_of(other: sitk.Image, image: sitk.Image, what: str = "label", advice: str = "") -> sitk.Image:
    """A volume whose voxels coincide with the image's, in the image's axes; exact, nothing is interpolated.

    Args:
        other: label map, mask or further sequence; its axes may be permuted and reversed.
        image: whose grid is wanted.
        what: how the message calls ``other``.
        advice: what else to try, for the message.

    Raises:
        GeometryError: the voxels do not coincide (a tenth of a voxel, at the corners and beside one).
    """
    import SimpleITK as sitk

    ours, theirs = _corners_mm(image), _corners_mm(other)
    distances_mm = np.linalg.norm(ours[:, None] - theirs[None], axis=-1).min(axis=1)
    tolerance_mm = TOLERANCE_VOXELS * min(image.GetSpacing())
    same_size = sorted(other.GetSize()) == sorted(image.GetSize())
    if not same_size or distances_mm.max() > tolerance_mm or not _share_a_lattice(image, other):
        raise GeometryError(
            f"by its header the {what} lies up to {distances_mm.max():.3g} mm off the image ({other.GetSize()} and "
            f"{image.GetSize()} voxels){advice}"
        )
    return sitk.Resample(other, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0, other.GetPixelID())


def _corners_mm(image: sitk.Image) -> np.ndarray:
    """Places of the eight corner voxels in the patient."""
    last = np.array(image.GetSize()) - 1
    corners = [[int(n) for n in last * np.array(bits)] for bits in np.ndindex(2, 2, 2)]
    return np.array([image.TransformIndexToPhysicalPoint(corner) for corner in corners])


def _share_a_lattice(image: sitk.Image, other: sitk.Image) -> bool:
    """Whether the voxel diagonally beside the image's first one is a voxel of the other volume too.

    Corners alone do not tell: 10 x 19 voxels of 2 x 1 mm and the same turned by 90 degrees have them in common.
    """
    beside = [min(1, size - 1) for size in image.GetSize()]
    index = np.array(other.TransformPhysicalPointToContinuousIndex(image.TransformIndexToPhysicalPoint(beside)))
    return bool(np.abs(index - np.rint(index)).max() <= TOLERANCE_VOXELS)
