"""Lesions for testing: grown by random accretion inside a region, and mixed into an image with its texture kept.

A lesion front starts at one point and travels through the region at a random, smooth speed (fast marching; Sethian,
1996): where it has arrived by a given time is the lesion, so its volume is exact and its border irregular, and it
never leaves the region. Training has lesions of its own (``nnunet_anomaly.augmentation``), made in another way;
nothing in training may import this module, so that a score on these lesions means something.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.geometry import bounding_box, distance_to_mm
from nnunet_anomaly.phantoms.fields import smooth_noise, smooth_step

KINDS = ("bright", "dark")
SITES = ("anywhere", "surface")


def arrival_times(
    allowed: np.ndarray,
    starts: np.ndarray,
    spacing_mm: Sequence[float],
    speed: np.ndarray | None = None,
    limit: float = np.inf,
) -> np.ndarray:
    """Time at which a front that starts at ``starts`` reaches every voxel, moving at ``speed`` where ``allowed``.

    Args:
        allowed: bool, 2-D or 3-D; the front does not enter other voxels.
        starts: (n, ndim) indices of allowed voxels where the front is at time 0.
        spacing_mm: voxel size along every axis.
        speed: positive, of the shape of ``allowed``; None is 1 everywhere, so that times are geodesic distances in mm.

    Returns:
        float32, the shape of ``allowed``; infinite where the front never arrives.
    """
    if len(starts) == 0:
        return np.full(allowed.shape, np.inf, dtype=np.float32)
    velocity = np.where(allowed, 1.0 if speed is None else speed, 0.0).astype(np.float32)
    image = sitk.GetImageFromArray(velocity)
    image.SetSpacing([float(size) for size in reversed(spacing_mm)])
    front = sitk.FastMarchingImageFilter()
    front.SetStoppingValue(float(min(limit, 1e30)))
    front.SetTrialPoints([[int(index) for index in reversed(start)] for start in starts])
    times = sitk.GetArrayFromImage(front.Execute(image))
    return np.where(allowed & (times < 1e30) & (times <= limit), times, np.inf).astype(np.float32)


def random_speed(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    scale_mm: float = 3.0,
    roughness: float = 0.7,
) -> np.ndarray:
    """Smooth random speeds around 1 (log-normal), float32: ``roughness`` 0 grows balls, 1 very irregular regions."""
    return np.exp(np.float32(roughness) * smooth_noise(shape, spacing_mm, rng, scale_mm)).astype(np.float32)


def grow_region(
    roi_mask: np.ndarray,
    start: Sequence[int],
    volume_mm3: float,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    edge_mm: float = 2.0,
    scale_mm: float = 3.0,
    roughness: float = 0.7,
) -> tuple[np.ndarray, np.ndarray]:
    """Grow one region of a given volume inside ``roi_mask`` from ``start``.

    Args:
        roi_mask: bool, 2-D or 3-D.
        start: index of a voxel of ``roi_mask``.
        volume_mm3: volume of the region (in 2-D its area in mm^2), kept to one voxel, at least one voxel.
        spacing_mm: voxel size along every axis.
        rng: random numbers.
        edge_mm: width over which the membership falls from 1 to 0 across the region's border; it is 0 this far
            outside the region, and beyond.
        scale_mm, roughness: of the random speeds (see ``random_speed``).

    Returns:
        (membership, region): float32 in [0, 1], zero outside ``roi_mask``, and bool, both of its shape.

    Raises:
        InputError: the part of the ROI that is connected with ``start`` is smaller than the region.
    """
    voxel_mm3 = float(np.prod(spacing_mm))
    voxels = max(1, round(volume_mm3 / voxel_mm3))
    radius_mm = _equivalent_radius(volume_mm3, roi_mask.ndim)
    seed = int(rng.integers(2**63))
    # first within a limit that almost always suffices, and only then in the whole array
    for limit in (2.2 * radius_mm + edge_mm, np.inf):
        box = _box_around(start, roi_mask.shape, [1.5 * limit / size + 2 for size in spacing_mm])
        inside = roi_mask[box]
        noise_rng = np.random.default_rng(seed)
        speed = random_speed(inside.shape, spacing_mm, noise_rng, scale_mm=scale_mm, roughness=roughness)
        local_start = np.array([[at - part.start for at, part in zip(start, box, strict=True)]])
        times = arrival_times(inside, local_start, spacing_mm, speed, limit)
        places = np.flatnonzero(np.isfinite(times))
        places = places[np.argsort(times.flat[places], kind="stable")]
        if voxels <= places.size:
            border = _border_time(times.flat[places], voxels, spacing_mm)
            half_edge = max(min(0.5 * edge_mm, border), 1e-3)
            if border + half_edge <= limit:
                break
    else:
        raise InputError(
            f"A lesion of {volume_mm3:g} mm^3 does not fit: the region of interest connected with voxel "
            f"{tuple(int(at) for at in start)} holds {places.size * voxel_mm3:g} mm^3. Ask for a smaller one."
        )
    region = np.zeros(roi_mask.shape, dtype=bool)
    region[box].flat[places[:voxels]] = True
    soft = smooth_step(np.where(np.isfinite(times), times, 1e6), border + half_edge, border - half_edge)
    # where the front is fast its border is wide: end it at edge_mm all the same
    beyond_mm = distance_to_mm(region[box], spacing_mm)
    membership = np.zeros(roi_mask.shape, dtype=np.float32)
    membership[box] = soft * smooth_step(beyond_mm, max(edge_mm, 1e-3), 0.0)
    return membership, region


def _border_time(sorted_times: np.ndarray, voxels: int, spacing_mm: Sequence[float]) -> float:
    """When the front lies between the last voxel of a region and the next one."""
    last = float(sorted_times[voxels - 1])
    return 0.5 * (last + float(sorted_times[voxels])) if voxels < len(sorted_times) else last + 0.5 * min(spacing_mm)


def _equivalent_radius(volume_mm3: float, dimensions: int) -> float:
    """Radius of the ball (2-D: disc) of this volume (area)."""
    return (0.75 * volume_mm3 / np.pi) ** (1 / 3) if dimensions == 3 else (volume_mm3 / np.pi) ** 0.5


def _box_around(start: Sequence[int], shape: Sequence[int], reach_voxels: Sequence[float]) -> tuple[slice, ...]:
    return tuple(
        slice(int(max(0, at - reach)), int(min(length, at + reach + 1)))
        for at, length, reach in zip(start, shape, reach_voxels, strict=True)
    )


def mix_toward(
    image: np.ndarray,
    membership: np.ndarray,
    roi_mask: np.ndarray,
    target: float,
    spacing_mm: Sequence[float],
    *,
    smoothing_mm: float = 2.0,
    texture: float = 0.8,
) -> np.ndarray:
    """Move the local mean of ``image`` toward ``target`` where ``membership`` says, and keep its fine texture.

    Args:
        image: float array.
        membership: how far to go, in [0, 1], of the same shape; where it is 0 the image stays exactly as it is.
        roi_mask: bool; the local mean is taken over these voxels alone, so that a bright neighbour does not count.
        target: the intensity that the local mean has where the membership is 1.
        spacing_mm: voxel size along every axis.
        smoothing_mm: standard deviation of the Gaussian that takes the local mean.
        texture: share of the detail around the local mean that stays, in [0, 1].

    Returns:
        float32 array; a copy of ``image`` where ``membership`` is zero everywhere.
    """
    result = np.array(image, dtype=np.float32)
    box = bounding_box(membership > 0, [int(np.ceil(3.0 * smoothing_mm / size)) for size in spacing_mm])
    if box is None:
        return result
    part, weight = result[box], roi_mask[box].astype(np.float32)
    sigma = [smoothing_mm / size for size in spacing_mm]
    share = ndimage.gaussian_filter(weight, sigma, truncate=3.0)
    local_mean = ndimage.gaussian_filter(part * weight, sigma, truncate=3.0) / np.maximum(share, 1e-3)
    changed = np.float32(target) + np.float32(texture) * (part - local_mean)
    result[box] = np.where(membership[box] > 0, part + membership[box] * (changed - part), part)
    return result


def implant_lesion(
    image: np.ndarray,
    roi_mask: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    rng: np.random.Generator | int,
    volume_mm3: float | None = None,
    radius_mm: float | None = None,
    contrast: float = 2.0,
    kind: str = "bright",
    site: str = "anywhere",
    start: Sequence[int] | None = None,
    edge_mm: float = 2.0,
    roughness: float = 0.7,
    patchiness: float = 0.3,
    texture: float = 0.8,
) -> tuple[np.ndarray, np.ndarray]:
    """Put one lesion of known place into an image.

    Args:
        image: 2-D or 3-D, any real type; not changed.
        roi_mask: bool, same shape: where the lesion may lie.
        spacing_mm: voxel size along every axis of ``image``.
        rng: random numbers, or a seed.
        volume_mm3: the lesion's volume (2-D: area in mm^2); or give
        radius_mm: the radius of a ball (2-D: disc) of that volume. Exactly one of the two.
        contrast: by how many standard deviations of the image inside the ROI the lesion's mean changes.
        kind: "bright" or "dark".
        site: "anywhere" in the ROI or on its "surface", where the lesion may look like what lies outside.
        start: index of the voxel to grow from, instead of a random one.
        edge_mm: width of the lesion's border: 0 is sharp, large is ill-defined.
        roughness: irregularity of its shape (see ``random_speed``).
        patchiness: how uneven it is inside, in [0, 1] (see ``make_patchy``).
        texture: share of the image's own texture that shows through, in [0, 1].

    Returns:
        (image, lesion): float32, identical to ``image`` farther than ``edge_mm`` from the lesion, and the lesion's bool
        mask, which lies inside ``roi_mask``.

    Raises:
        InputError: the ROI is empty or too small, shapes differ, or the image holds NaN, infinity or one value only.
    """
    volume_mm3 = _lesion_volume(volume_mm3, radius_mm, np.ndim(image))
    roi_mask = np.asarray(roi_mask, dtype=bool)
    _check_parameters(contrast, kind, site, edge_mm, roughness, patchiness, texture)
    _check_image(image, roi_mask, spacing_mm)
    rng = np.random.default_rng(rng)
    if start is None:
        start = random_start(roi_mask, rng, site)
    elif not roi_mask[tuple(start)]:
        raise InputError(f"The lesion should start at voxel {tuple(start)}, which is outside the region of interest.")
    membership, lesion = grow_region(roi_mask, start, volume_mm3, spacing_mm, rng, edge_mm=edge_mm, roughness=roughness)
    membership = make_patchy(membership, spacing_mm, rng, patchiness)
    values = np.asarray(image, dtype=np.float32)
    change = contrast * float(values[roi_mask].std(dtype=np.float64)) * (1.0 if kind == "bright" else -1.0)
    # the result is linear in the target: take the target that changes the lesion's mean by just so much
    without = mix_toward(values, membership, roi_mask, 0.0, spacing_mm, texture=texture)
    missing = change - float((without - values)[lesion].mean(dtype=np.float64))
    target = missing / max(float(membership[lesion].mean(dtype=np.float64)), 1e-6)
    return without + np.float32(target) * membership, lesion


def make_patchy(
    membership: np.ndarray, spacing_mm: Sequence[float], rng: np.random.Generator, amount: float, scale_mm: float = 2.5
) -> np.ndarray:
    """Weaken a membership here and there by up to ``amount`` (0 nowhere, 1 down to nothing), smoothly; float32."""
    box = bounding_box(membership > 0)
    if box is None or amount == 0:
        return membership
    patches = smooth_noise(membership[box].shape, spacing_mm, rng, scale_mm)
    patchy = membership.copy()
    patchy[box] *= 1.0 - np.float32(amount) * np.clip(0.5 + 0.5 * patches, 0.0, 1.0)
    return patchy


def random_start(roi_mask: np.ndarray, rng: np.random.Generator, site: str = "anywhere") -> tuple[int, ...]:
    """A random voxel of ``roi_mask``, or of its outermost layer where ``site`` is "surface".

    Raises:
        InputError: the ROI is empty.
    """
    candidates = roi_mask if site == "anywhere" else roi_mask & ~ndimage.binary_erosion(roi_mask, border_value=1)
    places = np.flatnonzero(candidates if candidates.any() else roi_mask)
    if places.size == 0:
        raise InputError("The region of interest is empty: there is no place for a lesion.")
    return tuple(int(index) for index in np.unravel_index(places[rng.integers(places.size)], roi_mask.shape))


def _lesion_volume(volume_mm3: float | None, radius_mm: float | None, dimensions: int) -> float:
    if (volume_mm3 is None) == (radius_mm is None):
        raise ValueError("give exactly one of volume_mm3 and radius_mm")
    size = volume_mm3 if radius_mm is None else radius_mm
    if size is None or not np.isfinite(size) or size <= 0:
        raise ValueError(f"the lesion's size is {size}; it must be positive")
    if radius_mm is None:
        return float(size)
    return float(4.0 / 3.0 * np.pi * size**3 if dimensions == 3 else np.pi * size**2)


def _check_parameters(
    contrast: float, kind: str, site: str, edge_mm: float, roughness: float, patchiness: float, texture: float
) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is '{kind}'; it must be one of {', '.join(KINDS)}")
    if site not in SITES:
        raise ValueError(f"site is '{site}'; it must be one of {', '.join(SITES)}")
    for name, value in (("contrast", contrast), ("edge_mm", edge_mm), ("roughness", roughness)):
        if not np.isfinite(value) or value < 0:
            raise ValueError(f"{name} is {value}; it cannot be negative")
    for name, value in (("patchiness", patchiness), ("texture", texture)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}; it must lie between 0 and 1")


def _check_image(image: np.ndarray, roi_mask: np.ndarray, spacing_mm: Sequence[float]) -> None:
    if np.ndim(image) not in (2, 3) or len(spacing_mm) != np.ndim(image):
        raise ValueError(f"the image has {np.ndim(image)} axes and spacing_mm {len(spacing_mm)}; give 2 or 3 of each")
    if np.shape(image) != roi_mask.shape:
        raise InputError(f"The image has shape {np.shape(image)} and its region of interest {roi_mask.shape}.")
    if not roi_mask.any():
        raise InputError("The region of interest is empty: there is no place for a lesion.")
    if not np.isfinite(image).all():
        raise InputError("The image holds NaN or infinity; mend it before putting a lesion into it.")
    if float(np.ptp(np.asarray(image)[roi_mask])) == 0.0:
        raise InputError(
            "The image has one single value inside the region of interest: a contrast has no meaning there."
        )
