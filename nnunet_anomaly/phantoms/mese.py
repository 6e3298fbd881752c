"""One visit of the multi-echo phantom: the echoes of a sagittal multi-echo spin-echo series of a knee, and the truth.

Anatomy is that of ``knee.py`` with a trochlea that is wider and higher on its lateral side. Every tissue has a T2 and
a signal at echo time 0, which for fat, marrow, muscle and cartilage are about those of a real series at 3 T. Femoral
cartilage has T2 by place (``mese_knee``). What the echoes hold, from the knee to the file:

- Partial volume: tissues mix in signal, not in T2, in the plane and through it. A slice is 3 mm of the 3.5 mm to the
  next one, sampled at three depths.
- Every echo is signal x exp(-TE / T2), but for the first one: stimulated echoes make it lower, by a factor of 0.86 to
  0.94 drawn for every visit. The later echoes decay exactly with T2; that stimulated echoes raise
  them in real series is left out, so that the truth of T2 does not depend on a model of pulses.
- The coil's smooth receive field, drawn for every visit, which does not change with the echo.
- Rician noise: sigma is the signal of cartilage at echo time 0, where the receive field is 1, divided by ``snr``.

The true mask holds the voxels of which at least half is femoral cartilage. True T2 of a voxel is the mean of the
cartilage in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from nnunet_anomaly.phantoms.anatomy import HALF_EXTENT_MM, KneeFields, knee_fields
from nnunet_anomaly.phantoms.fields import (
    occupancy,
    rician_noise,
    smooth_noise,
    spline_field,
    surface_ramp,
)
from nnunet_anomaly.phantoms.knee import growth_plates
from nnunet_anomaly.phantoms.mese_knee import (
    ECHOES,
    LIE,
    RECEIVER,
    SURROUNDINGS,
    MeseKnee,
    Place,
    cartilage_place,
    posed_coordinates,
    rotation,
    true_regions,
)

FIELD_OF_VIEW_MM = (73.5, 120.0, 120.0)  # slices, rows, columns
SMALL_GRID = (21, 192, 192)
FULL_GRID = (21, 384, 384)
ECHO_TIMES_MS = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0)
SLICE_SHARE = 3.0 / 3.5  # how much of the way to the next slice a slice fills
SUBSLICES = 3
SNR = 50.0
CORTEX_MM = 1.0
FEMORAL_CARTILAGE = 1
SLAB_VOXELS = 500_000
# points farther from femoral cartilage have no share of it, on any grid
NEAR_MM = 5.0

# signal at echo time 0 (proton density, with what T1 leaves of it) and T2 in ms
TISSUES = {
    "air": (0.0, 30.0),
    "fat": (2100.0, 130.0),
    "skin": (900.0, 30.0),
    "muscle": (760.0, 32.0),
    "vessel": (250.0, 60.0),
    "synovium": (1300.0, 95.0),
    "hoffa": (1900.0, 125.0),
    "tendon": (200.0, 12.0),
    "meniscus": (400.0, 14.0),
    "fluid": (1300.0, 400.0),
    "cartilage": (800.0, 42.0),
    "cortex": (130.0, 6.0),
    "marrow": (1550.0, 125.0),
}
CARTILAGE_S0 = TISSUES["cartilage"][0]


@dataclass(frozen=True, eq=False)
class MeseVisit:
    """One visit of a knee on its grid (slices, rows, columns).

    Attributes:
        knee: whose.
        visit: 0 or 1, see ``VISITS``.
        spacing_mm: from slice to slice, and of pixels.
        echoes: uint16 (echoes, slices, rows, columns), as ``ECHO_TIMES_MS``.
        signals: float32, the same without noise and rounding.
        sigma: of the noise, in each of the two channels.
        first_echo: what stimulated echoes leave of the first echo.
        share: float32, of femoral cartilage in a voxel.
        mask: uint8, 1 where at least half of a voxel is.
        t2_ms: float32, in the mask, else 0.
        change_ms: float32, T2 at the second visit less that at the first, in the mask, else 0.
        regions: uint8, the true subregion in the mask (``mese_knee.true_regions``), else 0.
        lesions: uint8, numbers of the focal lesions that raise T2 at this visit, in the mask, else 0.
        place: in the cartilage, of all voxels; 0 where there is no cartilage.
    """

    knee: MeseKnee
    visit: int
    spacing_mm: tuple[float, float, float]
    echoes: np.ndarray
    signals: np.ndarray
    sigma: float
    first_echo: float
    share: np.ndarray
    mask: np.ndarray
    t2_ms: np.ndarray
    change_ms: np.ndarray
    regions: np.ndarray
    lesions: np.ndarray
    place: Place

    def as_image(self, array: np.ndarray) -> sitk.Image:
        """An array of this visit with its place in the scanner: oblique, and anew at every visit."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(tuple(reversed(self.spacing_mm)))
        direction, centre_mm = draw_lie(self.knee, self.visit)
        middle = [(length - 1) / 2 * size for length, size in zip(image.GetSize(), image.GetSpacing(), strict=True)]
        image.SetDirection(direction.ravel().tolist())
        image.SetOrigin(np.round(centre_mm - direction @ middle, 4).tolist())
        return image


def draw_lie(knee: MeseKnee, visit: int) -> tuple[np.ndarray, np.ndarray]:
    """Direction (3, 3) and centre (3,) in mm of a visit's slices (left, posterior, superior)."""
    rng = np.random.default_rng([knee.seed, knee.index, LIE, visit])
    turn = rotation(rng.uniform((-2.0, -4.0, -6.0), (2.0, 4.0, 6.0)))
    # columns run to the back, rows downwards, slices to the patient's right
    upright = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    centre_mm = np.asarray(knee.subject.centre_mm) + rng.uniform(-8.0, 8.0, 3)
    return turn @ upright, np.round(centre_mm, 2)


def make_mese_visit(knee: MeseKnee, visit: int, grid: Sequence[int] = SMALL_GRID, snr: float = SNR) -> MeseVisit:
    """Make one visit of a knee.

    Args:
        knee: as drawn by ``draw_mese_knee``.
        visit: 0 or 1.
        grid: number of slices, rows and columns over the field of view of 73.5 x 120 x 120 mm.
        snr: signal of cartilage at echo time 0 divided by the noise's sigma.
    """
    tissue = make_tissue(knee, visit, grid)
    first_echo, field = draw_receiver(knee, visit, grid_axes(grid, knee.side)[0])
    signals = tissue.signals * field
    signals[0] *= np.float32(first_echo)
    sigma = CARTILAGE_S0 / snr
    rng = np.random.default_rng([knee.seed, knee.index, ECHOES, visit])
    noisy = np.stack([rician_noise(signal, sigma, rng) for signal in signals])
    inside = tissue.share >= 0.5
    return MeseVisit(
        knee=knee,
        visit=visit,
        spacing_mm=grid_axes(grid, knee.side)[1],
        echoes=np.rint(noisy).clip(0, 4095).astype(np.uint16),
        signals=signals,
        sigma=sigma,
        first_echo=first_echo,
        share=tissue.share,
        mask=inside.astype(np.uint8) * np.uint8(FEMORAL_CARTILAGE),
        t2_ms=tissue.t2_ms * inside,
        change_ms=tissue.change_ms * inside,
        regions=true_regions(tissue.place) * inside,
        lesions=_lesion_numbers(knee, visit, tissue.lesions, inside),
        place=tissue.place,
    )


def _lesion_numbers(knee: MeseKnee, visit: int, memberships: Sequence[np.ndarray], inside: np.ndarray) -> np.ndarray:
    """Numbers of lesions in a mask, each inside its outline, where it raises T2 at a visit."""
    lesions = np.zeros(inside.shape, dtype=np.uint8)
    for lesion, membership in zip(knee.t2.lesions, memberships, strict=True):
        if lesion.raised_ms[visit]:
            lesions[inside & (membership >= 0.5)] = lesion.number
    return lesions


def grid_axes(grid: Sequence[int], side: str) -> tuple[list[np.ndarray], tuple[float, float, float]]:
    """Coordinates (mm from the centre) along slices, rows, columns, and the spacing. Slices run to the right."""
    slices_mm, rows_mm, columns_mm = (extent / n for extent, n in zip(FIELD_OF_VIEW_MM, grid, strict=True))
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(grid, (slices_mm, rows_mm, columns_mm), strict=True)]
    if side == "left":  # in a left knee, the way to the right leads from lateral to medial
        axes[0] = -axes[0]
    return axes, (slices_mm, rows_mm, columns_mm)


def draw_receiver(knee: MeseKnee, visit: int, axes_mm: Sequence[np.ndarray]) -> tuple[float, np.ndarray]:
    """What is left of the first echo, and the receive field (float32), about 1 in the middle."""
    rng = np.random.default_rng([knee.seed, knee.index, RECEIVER, visit])
    first_echo = float(rng.uniform(0.86, 0.94))
    field = np.exp(spline_field(rng.normal(0.0, 0.22, (4, 4, 4)), axes_mm, HALF_EXTENT_MM))
    return first_echo, field


# ---- what a slice holds


@dataclass(frozen=True, eq=False)
class TissueMaps:
    """What voxels hold, before coil and noise, all float32; T2, change and place are 0 without cartilage."""

    signals: np.ndarray  # (echoes, slices, rows, columns)
    share: np.ndarray  # of femoral cartilage
    t2_ms: np.ndarray
    change_ms: np.ndarray
    place: Place
    lesions: list[np.ndarray]  # membership


def make_tissue(knee: MeseKnee, visit: int, grid: Sequence[int]) -> TissueMaps:
    """Evaluate a knee at ``SUBSLICES`` depths of every slice and average them, some slices at a time."""
    (across_mm, *plane_mm), spacing_mm = grid_axes(grid, knee.side)
    thin_mm = spacing_mm[0] * SLICE_SHARE / SUBSLICES
    steps_mm = (np.arange(SUBSLICES) - (SUBSLICES - 1) / 2) * thin_mm * (-1 if knee.side == "left" else 1)
    fine_mm = (across_mm[:, None] + steps_mm).ravel()
    rng = np.random.default_rng([knee.seed, knee.index, SURROUNDINGS, visit])
    noises = [smooth_noise(grid, spacing_mm, rng, scale_mm) for scale_mm in (0.7, 4.0)]
    rest = 6 + len(knee.t2.lesions)
    signals = np.zeros((len(ECHO_TIMES_MS), *grid), dtype=np.float32)
    maps = np.zeros((rest, *grid), dtype=np.float32)
    step = max(1, SLAB_VOXELS // (SUBSLICES * grid[1] * grid[2]))
    for first in range(0, grid[0], step):
        last = min(first + step, grid[0])
        # one fine slice more on either side, for the slopes
        wide = slice(max(0, first * SUBSLICES - 1), min(len(fine_mm), last * SUBSLICES + 1))
        textures = [noise[np.arange(wide.start, wide.stop) // SUBSLICES] for noise in noises]
        parts = _fine_slab(knee, visit, [fine_mm[wide], *plane_mm], (thin_mm, *spacing_mm[1:]), textures)
        skip = first * SUBSLICES - wide.start
        kept = slice(skip, skip + (last - first) * SUBSLICES)
        for target, part in zip((signals, maps), parts, strict=True):
            part = part[:, kept].reshape(len(part), last - first, SUBSLICES, *grid[1:])
            target[:, first:last] = part.mean(axis=2)
    share = maps[0]
    means = np.divide(maps[1:], share, out=np.zeros_like(maps[1:]), where=share > 1e-4)
    t2_ms, change_ms, across, angle, depth, *lesions = means
    return TissueMaps(signals, share, t2_ms, change_ms, Place(across, angle, depth), lesions)


def _fine_slab(
    knee: MeseKnee,
    visit: int,
    axes_mm: Sequence[np.ndarray],
    spacing_mm: Sequence[float],
    textures: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """On some fine slices: signals of all echoes; share of cartilage, and share times all that ``TissueMaps`` has."""
    point = posed_coordinates(knee.shape, knee.poses[visit], axes_mm)
    tissue = {name: _decay(s0, np.float32(t2_ms))[..., None, None, None] for name, (s0, t2_ms) in TISSUES.items()}
    marrow = tissue["marrow"] * marrow_pattern(point, textures)
    reach_mm = float(np.prod(spacing_mm)) ** (1 / 3)
    fields = knee_fields(knee.shape, point, textures, marrow, reach_mm, tissue)
    near = (fields.femoral_cartilage < NEAR_MM) & (fields.femur > -NEAR_MM)
    place = cartilage_place(point, fields, near)
    change_ms = knee.t2.change(place)
    t2_ms = knee.t2.at_first_visit(place) + (change_ms if visit else 0)
    signals, share = _compose(
        fields, marrow, _scattered(_decay(CARTILAGE_S0, t2_ms), near), tissue, axes_mm, spacing_mm
    )
    values = [t2_ms, change_ms, place.across_mm, place.angle_degrees, place.depth]
    values += [lesion.membership(place) for lesion in knee.t2.lesions]
    return signals, np.concatenate([share[None], share * _scattered(np.stack(values), near)])


def _scattered(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Values (n, points) at the chosen points of a grid, 0 elsewhere: (n, *grid)."""
    whole = np.zeros((len(values), *chosen.shape), dtype=np.float32)
    whole[:, chosen] = values
    return whole


def _decay(s0: float, t2_ms: np.ndarray) -> np.ndarray:
    """Signal at all echo times, along a new first axis, float32."""
    times_ms = np.asarray(ECHO_TIMES_MS, dtype=np.float32)
    return np.float32(s0) * np.exp(-np.divide.outer(times_ms, t2_ms))


def marrow_pattern(point: Sequence[np.ndarray], textures: Sequence[np.ndarray]) -> np.ndarray:
    """Marrow relative to its mean: trabeculae, patches and the dark scars of the growth plates, float32."""
    middle, coarse = textures
    pattern = 1.0 + 0.04 * middle + 0.05 * coarse
    for scar in growth_plates(point, coarse):
        pattern -= 0.3 * scar
    return np.maximum(pattern, 0.2).astype(np.float32)


def _compose(
    fields: KneeFields,
    marrow: np.ndarray,
    cartilage: np.ndarray,
    tissue: dict[str, np.ndarray],
    axes_mm: Sequence[np.ndarray],
    spacing_mm: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Paint cartilages and bones over their surroundings: signals, and the share of femoral cartilage."""
    signals = fields.surroundings
    share = np.zeros(signals.shape[1:], dtype=np.float32)
    nearer = fields.femoral_cartilage - fields.tibial_cartilage
    layers = [
        (np.maximum(fields.tibial_cartilage, -nearer), [(0.0, tissue["cartilage"])]),
        (np.maximum(fields.femoral_cartilage, nearer), [(0.0, cartilage)]),
        (fields.tibia, [(0.0, tissue["cortex"]), (CORTEX_MM, marrow)]),
        (fields.femur, [(0.0, tissue["cortex"]), (CORTEX_MM, marrow)]),
    ]
    for distance, tissues in layers:
        near = distance.clip(-6.0, 6.0)
        slope, reach_mm = surface_ramp(near, spacing_mm, axes_mm)
        for depth_mm, value in tissues:
            part = occupancy(near / slope + depth_mm, reach_mm)
            signals += part * (value - signals)
            share += part * ((1.0 if value is cartilage else 0.0) - share)
    return signals, share
