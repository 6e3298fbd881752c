"""Pictures of what ``nnunet-anomaly t2`` finds: a generated knee at two visits, and a real knee with a rough mask.

    nnunet-anomaly phantom mese --subjects 6 --seed 1 -o PHANTOM
    python benchmarks/cartilage_t2_pictures.py PHANTOM KNEE_MESE -o docs/pictures

``PHANTOM`` has more knees without harm. ``KNEE_MESE`` is the folder of that name of the test data (``mese_dicom.zip``).
``t2_unrolled.png`` is a generated knee in which a lesion is new at the second visit, by the masks that were painted
with it. ``t2_mese.png`` is the real series. Nobody has drawn its cartilage: the mask is a band outside of the edge of
marrow, which is looked for along rays from a point in every slice that was picked by eye. It shows what is drawn, not
what T2 of this knee is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from nnunet_anomaly.files import written_whole
from nnunet_anomaly.planes import plane_of
from nnunet_anomaly.report.t2_figures import bins_with_cartilage, common_limits, t2_overlay_figure, unrolled_figure
from nnunet_anomaly.settings import AnomalySettings
from nnunet_anomaly.workflow.t2_knee import Change, Knee, Method, TimePoint, measure
from nnunet_anomaly.workflow.t2_series import read_series

SUBJECT = "9194462"  # of the phantom: a lesion in the lateral central part raises T2 by 15 ms at the second visit
WIDTH_PIXELS, COLOURS = 1200, 256
ECHO = 1  # the second one
# slice: row and column of a point in the condyle, pixels from there to its edge, first and last angle (0 is down, the
# back is positive); arrays (z, y, x), slice 0 is medial
CENTRES = {
    3: (108, 139, 36, -30, 45),
    4: (106, 137, 38, -45, 95),
    5: (106, 134, 42, -60, 78),
    6: (103, 128, 45, -65, 85),
    7: (99, 121, 50, -75, 90),
    8: (95, 122, 46, -85, 70),
    9: (88, 113, 46, -82, 0),
    10: (88, 108, 42, -84, -5),
    11: (92, 108, 38, -80, -5),
    12: (92, 110, 38, -80, -5),
    13: (92, 115, 42, -95, 10),
    14: (95, 126, 46, -90, 80),
    15: (93, 124, 50, -85, 90),
    16: (96, 126, 48, -80, 110),
    17: (96, 126, 48, -75, 98),
    18: (98, 128, 46, -60, 90),
    19: (97, 127, 44, -20, 80),
}
BAND_MM = (0.9, 3.1)  # outside of the edge: past the dark line of the bone's cortex
ANGLES = np.arange(-110.0, 116.0)
RADII = np.arange(20.0, 64.0, 0.5)


def measured(sources: Sequence[Path], masks: Sequence[Path], side: str | None) -> tuple[list[TimePoint], Change | None]:
    """A knee as ``nnunet-anomaly t2`` measures it."""
    method = Method(AnomalySettings.for_preset("robust").t2, None, None, "cpu")
    series = [read_series(source, side) for source in sources]
    times, changed, warnings = measure(Knee("knee", tuple(sources), tuple(masks), Path(), side), method, series)
    print(*warnings, sep="\n")
    return times, changed


def phantom_picture(phantom: Path) -> list[Figure]:
    """T2 of the unrolled cartilage at both visits, and its change."""
    visits = ("00m", "48m")
    sources = [next((phantom / "oai" / visit).glob(f"*/{SUBJECT}/*/*")) for visit in visits]
    times, changed = measured(sources, [phantom / "labels" / f"{SUBJECT}_{visit}.nii.gz" for visit in visits], None)
    assert changed is not None
    first, regions = times[0].projection.mean, times[0].regions
    bins = bins_with_cartilage([regions])
    maps = {"first visit": first, "second visit, moved onto the first": changed.second_ms}
    change = {"second minus first, clusters outlined": changed.difference_ms}
    clusters = changed.clusters.label_map
    return [
        unrolled_figure(maps, regions, "T2 (ms)", bins=bins),
        unrolled_figure(change, regions, "change (ms)", clusters=clusters, signed=True, bins=bins),
    ]


def real_picture(folder: Path) -> list[Figure]:
    """T2 over the second echo in three slices, and unrolled."""
    source = folder / "mese_dicom.zip"
    echo = read_series(source, "right").stack.images[ECHO]
    with TemporaryDirectory() as temporary:
        mask = sitk.GetImageFromArray(rough_mask(sitk.GetArrayFromImage(echo), echo.GetSpacing()[0]))
        mask.CopyInformation(echo)
        sitk.WriteImage(mask, str(Path(temporary) / "mask.nii.gz"))
        (time,), _ = measured([source], [Path(temporary) / "mask.nii.gz"], "right")
    plane = plane_of(echo.GetDirection())
    maps = {"unrolled": time.projection.mean}
    limits = common_limits(maps.values())
    image, t2_ms = plane.turn(sitk.GetArrayFromImage(echo)), plane.turn(time.t2_ms)
    spacing_mm = plane.turn_spacing(time.series.spacing_mm)
    return [
        t2_overlay_figure(image, t2_ms, spacing_mm, limits=limits, n_slices=3),
        unrolled_figure(maps, time.regions, "T2 (ms)", limits=limits),
    ]


def rough_mask(image: np.ndarray, pixel_mm: float) -> np.ndarray:
    """A band outside of the marrow of the femur; uint8, of the shape of the image (z, y, x)."""
    mask = np.zeros(image.shape, np.uint8)
    for number, (row, column, radius, first, last) in CENTRES.items():
        edge = marrow_edge(image[number], row, column, radius)
        rows, columns = np.indices(image.shape[1:])
        angles = np.degrees(np.arctan2(columns - column, rows - row))
        outside_mm = (np.hypot(rows - row, columns - column) - np.interp(angles, ANGLES, edge)) * pixel_mm
        mask[number] = (outside_mm > BAND_MM[0]) & (outside_mm < BAND_MM[1]) & (angles > first) & (angles < last)
    return mask


def marrow_edge(plane: np.ndarray, row: int, column: int, radius: float) -> np.ndarray:
    """Radius in pixels at every angle: the smooth curve near ``radius`` along which grey values fall the most."""
    turned, radii = np.radians(ANGLES)[:, None], RADII[None]
    smooth = ndimage.gaussian_filter(plane.astype(np.float32), 0.5)
    rays = ndimage.map_coordinates(smooth, [row + radii * np.cos(turned), column + radii * np.sin(turned)], order=1)
    values = np.log(np.maximum(rays, 30))
    # the mean of the 4 pixels before less the darkest of the next 2
    fall = ndimage.uniform_filter1d(values, 9, axis=1, origin=4) - ndimage.minimum_filter1d(
        values, 5, axis=1, origin=-2
    )
    gain = fall - 0.06 * np.abs(radii - radius)
    steps = np.arange(-3, 4)
    best, before = gain.copy(), np.zeros(gain.shape, int)
    for ray in range(1, len(gain)):
        padded = np.pad(best[ray - 1], 3, constant_values=-np.inf)
        reached = np.stack([padded[3 - step : 3 - step + gain.shape[1]] - 0.1 * abs(step) for step in steps])
        before[ray] = steps[reached.argmax(axis=0)]
        best[ray] += reached.max(axis=0)
    path = [int(best[-1].argmax())]
    for ray in range(len(gain) - 1, 0, -1):
        path.append(path[-1] - int(before[ray, path[-1]]))
    return ndimage.gaussian_filter1d(RADII[path[::-1]], 2)


def save_stacked(figures: Sequence[Figure], path: Path, *, colours: int | None = None) -> None:
    """Figures of one width, one below the other, as a PNG; with few colours a photograph is small."""
    pictures = []
    for figure in figures:
        figure.set_dpi(WIDTH_PIXELS / figure.get_figwidth())
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3])
    stacked = Image.fromarray(np.concatenate(pictures))
    with written_whole(path) as temporary:
        small = stacked.quantize(colours, dither=Image.Dither.NONE) if colours else stacked
        small.save(temporary, format="png", optimize=True)
    print(f"{path}: {stacked.size} pixels, {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phantom", type=Path)
    parser.add_argument("knee_mese", type=Path)
    parser.add_argument("-o", type=Path, required=True)
    args = parser.parse_args()
    save_stacked(phantom_picture(args.phantom), args.o / "t2_unrolled.png")
    save_stacked(real_picture(args.knee_mese), args.o / "t2_mese.png", colours=COLOURS)


if __name__ == "__main__":
    main()
