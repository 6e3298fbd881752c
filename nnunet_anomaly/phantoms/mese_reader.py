"""A second reader's mask of femoral cartilage: the same plate, outlined a little differently in every slice.

Readers differ in three ways, all drawn for every visit: the outline wanders, both borders together (smooth random
displacement within the slice, standard deviation 0.35 mm along either axis); the plate is drawn thicker or thinner
(0.40 mm at each border, smooth over 5 mm, and 0.05 mm on the whole); and where the plate thins out towards its margins,
one reader stops earlier or goes on farther (1 mm, smooth over 12 mm). All of it is in mm, so that it does not depend on
the grid. Dice against the first reader is 0.75 to 0.85.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from nnunet_anomaly.phantoms.fields import smooth_noise, smooth_step
from nnunet_anomaly.phantoms.mese import MeseVisit
from nnunet_anomaly.phantoms.mese_knee import READER

DICE_RANGE = (0.75, 0.85)
WANDER_MM, BORDER_MM, BIAS_MM, MARGIN_MM = 0.35, 0.40, 0.05, 1.0
THIN_MM = (1.0, 2.2)  # a plate of this half-thickness and less counts as margin: wholly, not at all
SMALLEST_PIECE_MM2 = 8.0


def second_reader(visit: MeseVisit) -> np.ndarray:
    """The second reader's mask, uint8, 0 and 1, on the grid of the visit."""
    knee = visit.knee
    rng = np.random.default_rng([knee.seed, knee.index, READER, visit.visit])
    pixel_mm = visit.spacing_mm[1:]
    shape = visit.mask.shape
    # slices are read one by one: no smoothness across them
    apart = (1e6, *pixel_mm)
    wander = [WANDER_MM / size * smooth_noise(shape, apart, rng, 6.0) for size in pixel_mm]
    border_mm = BORDER_MM * smooth_noise(shape, apart, rng, 5.0) + BIAS_MM * rng.standard_normal()
    margin_mm = MARGIN_MM * smooth_noise(shape, apart, rng, 12.0)
    mask = np.zeros(shape, dtype=np.uint8)
    rows, columns = np.indices(shape[1:], dtype=np.float32)
    for number, first in enumerate(visit.mask > 0):
        if not first.any():
            continue
        outside_mm = _signed_distance_mm(first, pixel_mm)
        grown_mm = border_mm[number] + margin_mm[number] * _thinness(outside_mm, pixel_mm)
        places = [rows + wander[0][number], columns + wander[1][number]]
        moved_mm = ndimage.map_coordinates(outside_mm, places, order=1, mode="nearest")
        mask[number] = _without_specks(moved_mm < grown_mm, pixel_mm)
    return mask


def _signed_distance_mm(mask: np.ndarray, pixel_mm: tuple[float, ...]) -> np.ndarray:
    """Distance to the outline of a slice's mask, negative inside, float32."""
    outside = ndimage.distance_transform_edt(~mask, sampling=pixel_mm)
    inside = ndimage.distance_transform_edt(mask, sampling=pixel_mm)
    # both count to the nearest voxel's middle: the outline lies half a pixel nearer
    half_mm = min(pixel_mm) / 2
    return np.where(mask, half_mm - inside, outside - half_mm).astype(np.float32)


def _thinness(outside_mm: np.ndarray, pixel_mm: tuple[float, ...]) -> np.ndarray:
    """1 where the plate nearby is thin, 0 where it is not."""
    reach = tuple(2 * round(2.5 / size) + 1 for size in pixel_mm)
    half_thickness_mm = -ndimage.minimum_filter(outside_mm, size=reach, mode="nearest")
    return smooth_step(half_thickness_mm, THIN_MM[1], THIN_MM[0])


def _without_specks(mask: np.ndarray, pixel_mm: tuple[float, ...]) -> np.ndarray:
    """Without pieces that nobody would outline."""
    numbers, count = ndimage.label(mask)
    sizes_mm2 = np.bincount(numbers.ravel(), minlength=count + 1) * float(np.prod(pixel_mm))
    sizes_mm2[0] = 0.0
    return (sizes_mm2 >= SMALLEST_PIECE_MM2)[numbers]
