"""A second reader's mask of femoral cartilage: the same plate, outlined a little differently in every slice.

Readers differ in three ways, all drawn for every visit, slice by slice: the outline wanders, both borders together
(smooth random displacement, standard deviation 0.2 mm along rows and columns); the plate is drawn thicker or thinner
(0.22 mm at each border, smooth over 5 mm, and 0.05 mm on the whole); and where the plate thins out towards its margins,
one reader stops earlier or goes on farther (0.6 mm, smooth over 12 mm). A thin plate would then agree less than a thick
one, so that all three are made larger or smaller together until Dice against the first reader is what has been drawn
for the visit, from 0.77 to 0.83. It is reached to within 0.02.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_anomaly.phantoms.fields import smooth_noise, smooth_step
from nnunet_anomaly.phantoms.mese import MeseVisit
from nnunet_anomaly.phantoms.mese_knee import READER

DRAWN_DICE = (0.77, 0.83)
DICE_RANGE = (0.75, 0.85)  # what the masks have
WANDER_MM, BORDER_MM, BIAS_MM, MARGIN_MM = 0.20, 0.22, 0.05, 0.6
STRENGTHS, HALVINGS = (0.0, 4.0), 7
THIN_MM = (1.0, 2.2)  # a plate of this half-thickness and less counts as margin: wholly, not at all
SMALLEST_PIECE_MM2 = 8.0
AROUND_MM = 8.0


@dataclass(frozen=True, eq=False)
class Disagreement:
    """How a second outline differs at full strength, on the slices of a box around the mask."""

    outside_mm: np.ndarray  # signed distance to the first outline in the slice
    grown_mm: np.ndarray  # by how much the second one lies farther out
    displaced: np.ndarray  # (2, ...), along rows and columns, in pixels
    pixel_mm: tuple[float, float]

    def mask(self, strength: float) -> np.ndarray:
        """The second outline's mask, bool."""
        rows, columns = np.indices(self.outside_mm.shape[1:], dtype=np.float32)
        mask = np.zeros(self.outside_mm.shape, dtype=bool)
        for number, outside_mm in enumerate(self.outside_mm):
            down, across = strength * self.displaced[:, number]
            moved_mm = ndimage.map_coordinates(outside_mm, [rows + down, columns + across], order=1, mode="nearest")
            mask[number] = _without_specks(moved_mm < strength * self.grown_mm[number], self.pixel_mm)
        return mask


def second_reader(visit: MeseVisit) -> np.ndarray:
    """The second reader's mask, uint8, 0 and 1, on the grid of the visit; empty where the first one is."""
    second = np.zeros_like(visit.mask)
    first = visit.mask > 0
    if not first.any():
        return second
    knee = visit.knee
    rng = np.random.default_rng([knee.seed, knee.index, READER, visit.visit])
    wanted = rng.uniform(*DRAWN_DICE)
    pixel_mm = visit.spacing_mm[1:]
    box = _box(first, pixel_mm)
    first = first[box]
    disagreement = _draw(first, pixel_mm, rng)
    weak, strong = STRENGTHS
    for _ in range(HALVINGS):
        strength = (weak + strong) / 2
        found = disagreement.mask(strength)
        if dice(first, found) > wanted:
            weak = strength
        else:
            strong = strength
    second[box] = found
    return second


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice coefficient of two masks, not both empty."""
    return 2.0 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def _draw(first: np.ndarray, pixel_mm: tuple[float, float], rng: np.random.Generator) -> Disagreement:
    apart_mm = (1e6, *pixel_mm)  # slices are read one by one: nothing is smooth across them
    outside_mm = np.stack([_signed_distance_mm(plane, pixel_mm) for plane in first])
    displaced = [WANDER_MM / size * smooth_noise(first.shape, apart_mm, rng, 6.0) for size in pixel_mm]
    grown_mm = BORDER_MM * smooth_noise(first.shape, apart_mm, rng, 5.0) + BIAS_MM * rng.standard_normal()
    margin_mm = MARGIN_MM * smooth_noise(first.shape, apart_mm, rng, 12.0)
    return Disagreement(
        outside_mm, grown_mm + margin_mm * _thinness(outside_mm, pixel_mm), np.stack(displaced), pixel_mm
    )


def _box(mask: np.ndarray, pixel_mm: Sequence[float]) -> tuple[slice, ...]:
    """All slices with a mask, and rows and columns around it."""
    box = []
    for axis, margin in enumerate((0, *(round(AROUND_MM / size) for size in pixel_mm))):
        places = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(places[0]) - margin), int(places[-1]) + margin + 1))
    return tuple(box)


def _signed_distance_mm(mask: np.ndarray, pixel_mm: tuple[float, float]) -> np.ndarray:
    """Distance to the outline of a slice's mask, negative inside, float32; far away without a mask."""
    if not mask.any():
        return np.full(mask.shape, 1e3, dtype=np.float32)
    outside = ndimage.distance_transform_edt(~mask, sampling=pixel_mm)
    inside = ndimage.distance_transform_edt(mask, sampling=pixel_mm)
    # both count to the nearest pixel's middle: the outline lies half a pixel nearer
    half_mm = min(pixel_mm) / 2
    return np.where(mask, half_mm - inside, outside - half_mm).astype(np.float32)


def _thinness(outside_mm: np.ndarray, pixel_mm: Sequence[float]) -> np.ndarray:
    """1 where the plate nearby is thin, 0 where it is not."""
    reach = (1, *(2 * round(2.5 / size) + 1 for size in pixel_mm))
    half_thickness_mm = -ndimage.minimum_filter(outside_mm, size=reach, mode="nearest")
    return smooth_step(half_thickness_mm, THIN_MM[1], THIN_MM[0])


def _without_specks(mask: np.ndarray, pixel_mm: Sequence[float]) -> np.ndarray:
    """Without pieces that nobody would outline."""
    numbers, count = ndimage.label(mask)
    sizes_mm2 = np.bincount(numbers.ravel(), minlength=count + 1) * float(np.prod(pixel_mm))
    sizes_mm2[0] = 0.0
    return (sizes_mm2 >= SMALLEST_PIECE_MM2)[numbers]
