"""Anatomical planes: how to turn arrays so that slices lie as radiologists are used to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np

# slices along, rows down, columns to the right, as world axis (0 left, 1 posterior, 2 superior) and sign, so that a
# picture lies as radiologists are used to: the front on the left in sagittal ones, the patient's right in the others
_PLANES = {
    "sagittal": ((0, 1), (2, -1), (1, 1)),
    "coronal": ((1, 1), (2, -1), (0, 1)),
    "axial": ((2, 1), (1, 1), (0, 1)),
}


class Plane(NamedTuple):
    """How to turn arrays of one geometry so that axis 0 runs over slices of an anatomical plane (see ``plane_of``)."""

    name: str
    axes: tuple[int, int, int]
    flipped: tuple[int, ...]

    def turn(self, array: np.ndarray) -> np.ndarray:
        """View of a 3-D array with axes (slice, row, column) of the plane."""
        return np.flip(np.transpose(array, self.axes), self.flipped)

    def turn_spacing(self, spacing_mm: Sequence[float]) -> tuple[float, float, float]:
        """Voxel size along the turned axes."""
        first, second, third = (float(spacing_mm[axis]) for axis in self.axes)
        return first, second, third


def plane_of(direction: Sequence[float], name: str = "sagittal") -> Plane:
    """The plane of an image with these direction cosines; oblique images take their nearest axes.

    Args:
        direction: SimpleITK's ``GetDirection()`` of a 3-D image, 9 numbers (patient coordinates: left, posterior,
            superior).
        name: ``"sagittal"``, ``"coronal"`` or ``"axial"``.
    """
    cosines = np.asarray(direction, dtype=float).reshape(3, 3)
    # image_axis[world] is the image axis (x, y, z) that runs along this world axis
    image_axis = max(
        permutations(range(3)), key=lambda order: sum(abs(cosines[world, order[world]]) for world in range(3))
    )
    wanted = _PLANES[name]
    axes = [2 - image_axis[world] for world, _ in wanted]  # array axes are in reverse order
    flipped = tuple(place for place, (world, sign) in enumerate(wanted) if cosines[world, image_axis[world]] * sign < 0)
    return Plane(name, (axes[0], axes[1], axes[2]), flipped)


def orientation_of(direction: Sequence[float]) -> str:
    """Where the axes x, y and z of a 3-D image run most nearly, in DICOM's letters: ``"LPS"`` is left, back and head.

    Args:
        direction: SimpleITK's ``GetDirection()`` of a 3-D image, 9 numbers.
    """
    import SimpleITK as sitk

    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines([float(cosine) for cosine in direction])
