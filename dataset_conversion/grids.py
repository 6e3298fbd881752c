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
        InputError: see ``read_placed``.
    """
    import SimpleITK as sitk

    return sitk.DICOMOrient(read_placed(path), ORIENTATION)


def read_placed(path: Path) -> sitk.Image:
    """Read a 3-D volume of numbers whose header tells how it lies in the patient.

    Of a NIfTI file whose sform and qform are both of code 0 nobody knows that: ITK takes x to the left and y to the
    back, other programs x to the left and y to the front.

    Raises:
        InputError: the file is missing or damaged, not 3-D, of complex numbers, or does not tell how it lies.
    """
    import SimpleITK as sitk

    if _is_flat(path):
        raise InputError(f"{path} is 2-D; a volume is needed.")
    image = read_image(path)
    if image.GetDimension() != 3:
        raise InputError(f"{path} is not 3-D.")
    if (components := image.GetNumberOfComponentsPerPixel()) > 1:
        raise InputError(
            f"{path} has {components} components a voxel (a colour image?); a volume of numbers is needed."
        )
    if image.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise InputError(f"{path} holds complex numbers. Give their magnitude.")
    codes = {image.GetMetaData(key) for key in ("sform_code", "qform_code") if image.HasMetaDataKey(key)}
    if codes == {"0"}:
        raise InputError(
            f"{path} does not tell how it lies in the patient: its NIfTI header has neither sform nor qform (both "
            "codes are 0). Set one of them, once you have looked where left and right, front and back are."
        )
    return image


def _is_flat(path: Path) -> bool:
    """Whether a header tells of two axes; ITK reads such an image by chance alone, as two of three directions."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # read_image says why
        return False
    return reader.GetDimension() == 2


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
