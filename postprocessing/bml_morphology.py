"""Lesions in bone from an image and its reconstruction without lesions (Qin 2024, section 2), or from an error map.

Histogram equalisation of both images, the bright residual D, Otsu's threshold, opening, closing, and a smallest volume.
Only ranks count, so that a strictly increasing change of the intensities of both images changes nothing; scikit-image's
``equalize_hist`` and ``threshold_otsu`` count floating-point numbers in 256 bins. An error map inside the bone is D
itself, for methods that make no reconstruction. Without any bone nothing is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from nnunet_anomaly.errors import GeometryError, InputError, SettingsError
from nnunet_anomaly.geometry import ROUNDING, check_spacing, close_mm, open_mm
from nnunet_anomaly.postprocessing.residual_filters import drop_small_components
from nnunet_anomaly.settings import BmlSettings

Equalisation = Literal["slice", "volume", "none"]
Scope = Literal["slice", "volume"]
Element = Literal["disc", "ball"]

TOO_LARGE = (
    "The image or its reconstruction holds values near the limits of floating-point numbers, so that their difference "
    "cannot be computed. Scale them down."
)


def bml_morphology(
    image: np.ndarray,
    reconstruction: np.ndarray,
    bone_mask: np.ndarray,
    spacing_mm: Sequence[float],
    settings: BmlSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """All steps: what of the bone is brighter than its reconstruction, as a mask.

    Args:
        image: 2-D or 3-D, bool, integers or floating-point numbers, finite; may be empty.
        reconstruction: of the same shape, finite, on any scale (see ``to_scale_of``).
        bone_mask: of the same shape, not 0 is bone. Without any bone nothing is found.
        spacing_mm: voxel size along every axis.
        settings: see there.

    Returns:
        The mask, bool, and the bright residual D (see ``bright_residual``), float32, both of the image's shape and
        without anything outside the bone.

    Raises:
        GeometryError: shapes differ, not 2-D or 3-D, or the spacing is not one positive number per axis.
        InputError: NaN or infinity, or nothing tells the scale of the reconstruction (see ``to_scale_of``).
        SettingsError: a slice axis that the image does not have.
    """
    check_spacing(spacing_mm, np.ndim(image))
    axis = slice_axis(spacing_mm, settings.slice_axis)
    bone = np.asarray(bone_mask) != 0
    residual = bright_residual(image, reconstruction, bone, settings.equalisation, axis)
    return residual_morphology(residual, bone, spacing_mm, settings), residual


def error_map_morphology(
    error_map: np.ndarray, bone_mask: np.ndarray, spacing_mm: Sequence[float], settings: BmlSettings
) -> tuple[np.ndarray, np.ndarray]:
    """``bml_morphology`` of an error map, which needs neither image nor reconstruction.

    The sign of a difference is lost in most error maps: what is darker than expected is found as well.

    Args:
        error_map: see ``error_residual``; may be empty.
        bone_mask, spacing_mm: see ``bml_morphology``.
        settings: all but ``equalisation`` count.

    Returns:
        The mask, bool, and the residual D (see ``error_residual``), float32.

    Raises:
        GeometryError, InputError, SettingsError: see ``error_residual`` and ``residual_morphology``.
    """
    bone = np.asarray(bone_mask) != 0
    residual = error_residual(error_map, bone)
    return residual_morphology(residual, bone, spacing_mm, settings), residual


def residual_morphology(
    residual: np.ndarray, bone: np.ndarray, spacing_mm: Sequence[float], settings: BmlSettings
) -> np.ndarray:
    """All steps from the residual D on: Otsu's threshold, opening, closing, smallest volume.

    Args:
        residual: 2-D or 3-D, finite; may be empty.
        bone: bool, of the same shape.
        spacing_mm: voxel size along every axis.
        settings: all but ``equalisation`` count.

    Returns:
        The mask, bool, of the same shape.

    Raises:
        GeometryError: the spacing is not one positive number per axis.
        SettingsError: a slice axis that the residual does not have.
    """
    check_spacing(spacing_mm, np.ndim(residual))
    axis = slice_axis(spacing_mm, settings.slice_axis)
    mask = above_otsu(residual, bone, settings.otsu, axis)
    largest_mm = max(settings.opening_mm, settings.closing_mm)
    element_mm = element_spacing_mm(spacing_mm, axis, settings.element, largest_mm)
    mask = open_mm(mask, settings.opening_mm, element_mm)
    mask = closed_in_bone(mask, bone, settings.closing_mm, element_mm)
    return drop_small_components(mask, spacing_mm, True, settings.minimum_mm3)


def slice_axis(spacing_mm: Sequence[float], axis: int = -1) -> int | None:
    """Axis across slices: the one that is given, or for -1 that of the coarsest spacing, of equal ones the first.

    Returns:
        ``None`` for 2-D images, which are one slice.

    Raises:
        SettingsError: there is no such axis.
    """
    if len(spacing_mm) < 3:
        return None
    if not -1 <= axis < len(spacing_mm):
        raise SettingsError(f"bml.slice_axis is {axis}; an image of {len(spacing_mm)} axes has none such.")
    return int(np.argmax(spacing_mm)) if axis == -1 else axis


def bright_residual(
    image: np.ndarray, reconstruction: np.ndarray, bone: np.ndarray, equalisation: Equalisation, axis: int | None
) -> np.ndarray:
    """D = max(HE(x) - HE(x~), 0) inside the bone, 0 outside of it; x~ is put together with x outside the bone.

    HE(v) is the share of the voxels of the slice, or of the volume, that are below v, and half of those that equal it:
    of the bone and of all else. With the share that is at most v, as usual, marrow of one grey value would have the
    rank of its brightest voxel, and a lesion in it no higher one.

    Args:
        image, reconstruction: see ``bml_morphology``.
        bone: bool, of the same shape.
        equalisation: of every ``"slice"``, of the ``"volume"``, or ``"none"``: then D is in the image's own unit.
        axis: see ``slice_axis``.

    Returns:
        float32 array of the image's shape. A part that is constant in both images is 0.

    Raises:
        GeometryError, InputError: see ``bml_morphology``.
    """
    image, reconstruction = _checked(image, reconstruction, bone)
    residual = np.zeros(image.shape, dtype=np.float32)
    if not bone.any():
        return residual
    if equalisation == "none" or not bone.all():  # ranks of the bone alone need no scale
        reconstruction = to_scale_of(reconstruction, image, ~bone)
    if equalisation == "none":
        residual[bone] = _differences(image[bone], reconstruction[bone])
        return residual
    for part in _parts(image.shape, equalisation, axis):
        inside = bone[part]
        if inside.any():
            ours = image[part]
            theirs = np.where(inside, reconstruction[part], ours)
            higher = _ranks(ours, ours[inside]) - _ranks(theirs, theirs[inside])
            residual[part][inside] = np.maximum(higher, 0) / (2 * ours.size)
    return residual


def error_residual(error_map: np.ndarray, bone: np.ndarray) -> np.ndarray:
    """D of an error map: the map inside the bone, 0 outside of it.

    Args:
        error_map: 2-D or 3-D, not negative and finite, outside the bone too: squared or absolute differences, or what
            else is the larger the more abnormal a voxel is.
        bone: bool, of the same shape.

    Returns:
        float32 array of the same shape.

    Raises:
        GeometryError: not 2-D or 3-D, or shapes differ.
        InputError: NaN, infinity, values beyond float32, values that are no numbers, or negative ones.
    """
    error_map = np.asarray(error_map)
    if error_map.ndim not in (2, 3) or error_map.shape != np.shape(bone):
        raise GeometryError(
            f"The error map has shape {error_map.shape} and the bone mask {np.shape(bone)}; both must be 2-D or 3-D, "
            "on the same grid."
        )
    largest = np.finfo(np.float32).max
    if error_map.dtype.kind not in "biuf" or not (np.isfinite(error_map) & (error_map <= largest)).all():
        raise InputError(f"The error map holds {error_map.dtype} values that are NaN, infinite or no numbers.")
    if (error_map < 0).any():
        raise InputError(
            f"The error map holds negative values, down to {float(error_map.min()):g}; an error map has none. Is it an "
            "image, or a difference with a sign?"
        )
    return np.where(bone, error_map, 0).astype(np.float32)


def to_scale_of(reconstruction: np.ndarray, image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Bring a reconstruction to the scale of its image: the same mean and standard deviation of the known voxels.

    Reconstruction networks see normalised images and their reconstructions stay so.

    Args:
        reconstruction, image: of the same shape.
        known: bool; where nothing was to be inpainted, usually all but the bone. What is 0 in the image is background
            to nnU-Net, which may not have normalised it, and does not count.

    Returns:
        float64 array. As it was where both images agree in all known voxels, which have more than one value.

    Raises:
        InputError: nothing is known, or one of the two images has one value in all known voxels, so that nothing tells
            the scale; or values are so large that it is beyond float64.
    """
    reconstruction = np.asarray(reconstruction, dtype=np.float64)
    if not known.any():
        raise InputError(
            "The bone mask fills the image, so that nothing tells the scale of the reconstruction, which is needed "
            "with bml.equalisation none. Take slice or volume, or give images that are larger than the bone."
        )
    ours, theirs = image[known].astype(np.float64), reconstruction[known]
    if np.ptp(ours) > 0 and np.array_equal(theirs, ours):
        return reconstruction
    ours, theirs = ours[ours != 0], theirs[ours != 0]
    if not ours.size or np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        raise InputError(
            "Outside the bone the image or its reconstruction has one value, so that nothing tells the scale of the "
            "reconstruction. Give images, and reconstructions, that are not cut to the bone."
        )
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scaled = ours.mean() + ours.std() / theirs.std() * (reconstruction - theirs.mean())
    if not np.isfinite(scaled).all():
        raise InputError(TOO_LARGE)
    return scaled


def above_otsu(residual: np.ndarray, bone: np.ndarray, scope: Scope, axis: int | None) -> np.ndarray:
    """Bone voxels above Otsu's threshold of every slice, or of the volume; all bone voxels count for it, zeros too.

    Args:
        residual: 2-D or 3-D.
        bone: bool, of the same shape.
        scope: ``"slice"`` or ``"volume"``.
        axis: see ``slice_axis``.

    Returns:
        bool array. Where all of the bone has one value, and where there is one bone voxel, there is no threshold and
        nothing is found.
    """
    mask = np.zeros(residual.shape, dtype=bool)
    for part in _parts(residual.shape, scope, axis):
        values = residual[part][bone[part]]
        threshold = otsu_threshold(values)
        if threshold is not None:
            mask[part] = bone[part] & (residual[part] > threshold)
    return mask


def otsu_threshold(values: np.ndarray) -> float | None:
    """Value up to which the lower class reaches where the variance between two classes is largest (Otsu 1975).

    All cuts between values that occur are tried, without bins; of equally good ones the lowest is taken.

    Args:
        values: any shape, finite.

    Returns:
        ``None`` with fewer than two different values.
    """
    levels, counts = np.unique(values, return_counts=True)
    if levels.size < 2:
        return None
    levels_64 = levels.astype(np.float64) - float(levels[0])
    below, sum_below = np.cumsum(counts)[:-1], np.cumsum(levels_64 * counts)
    above, sum_above = values.size - below, sum_below[-1] - sum_below[:-1]
    between = below * above * (sum_below[:-1] / below - sum_above / above) ** 2
    return float(levels[:-1][np.argmax(between)])


def element_spacing_mm(
    spacing_mm: Sequence[float], axis: int | None, element: Element, largest_mm: float
) -> tuple[float, ...]:
    """Spacing with which a ball of up to ``largest_mm`` is what ``bml.element`` says: a disc stays in its slice."""
    sizes_mm = [float(size_mm) for size_mm in spacing_mm]
    if axis is not None and element == "disc":
        sizes_mm[axis] = 1.0 + 2 * largest_mm
    return tuple(sizes_mm)


def closed_in_bone(mask: np.ndarray, bone: np.ndarray, radius_mm: float, element_mm: Sequence[float]) -> np.ndarray:
    """Closing that does not leave the bone; at the array's edge see ``geometry``."""
    return close_mm(mask, radius_mm, element_mm) & bone


def in_plane_mm(spacing_mm: Sequence[float], axis: int | None) -> tuple[float, ...]:
    """Voxel size along the axes of a slice."""
    return tuple(float(size_mm) for place, size_mm in enumerate(spacing_mm) if place != axis)


def reaches_nothing(radius_mm: float, finest_mm: float) -> bool:
    """Whether an opening or closing of a radius does nothing, as even the nearest voxel is further away."""
    return 0 < radius_mm * (1 + ROUNDING) < finest_mm


def _ranks(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How many of some values are below each wanted one, and how many at most that: the sum of both."""
    ascending = np.sort(values, axis=None)
    return np.searchsorted(ascending, wanted, side="left") + np.searchsorted(ascending, wanted, side="right")


def _parts(shape: Sequence[int], scope: Scope, axis: int | None) -> Iterator[tuple[slice | int, ...]]:
    """Index tuples of what is looked at as one: every slice, or everything."""
    if scope == "volume" or axis is None:
        yield (slice(None),) * len(shape)
        return
    for index in range(shape[axis]):
        yield (*(slice(None),) * axis, index)


def _differences(image: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """What of an image is brighter, float32.

    Raises:
        InputError: values so large that a difference is beyond float32.
    """
    with np.errstate(over="ignore"):
        brighter = np.maximum(image - reconstruction, 0).astype(np.float32)
    if not np.isfinite(brighter).all():
        raise InputError(TOO_LARGE)
    return brighter


def _checked(image: np.ndarray, reconstruction: np.ndarray, bone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both images as arrays.

    Raises:
        GeometryError: not 2-D or 3-D, or shapes differ.
        InputError: NaN, infinity, or values that are no numbers.
    """
    image, reconstruction = np.asarray(image), np.asarray(reconstruction)
    if image.ndim not in (2, 3) or not image.shape == reconstruction.shape == np.shape(bone):
        raise GeometryError(
            f"The image has shape {image.shape}, its reconstruction {reconstruction.shape} and the bone mask "
            f"{np.shape(bone)}; all must be 2-D or 3-D, on the same grid."
        )
    for name, array in (("image", image), ("reconstruction", reconstruction)):
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            raise InputError(f"The {name} holds {array.dtype} values that are NaN, infinite or no numbers.")
    return image, reconstruction
