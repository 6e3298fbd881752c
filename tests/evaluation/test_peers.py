"""Our distances beside MONAI, which measures the same, and surface-distance, which weights surface elements by area."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from nnunet_anomaly.evaluation.cohort import structure_metrics
from nnunet_anomaly.evaluation.surface import (
    SurfaceDistances,
    average_surface_distance_mm,
    hausdorff_distance_mm,
    mean_directed_surface_distance_mm,
    normalized_surface_dice,
    surface_distances,
)

surface_distance = pytest.importorskip("surface_distance")
monai = pytest.importorskip("monai.metrics")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:surface_distance")

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.365, 0.365), (3.0, 0.5, 0.8)]


def bumpy(seed: int, shape=(24, 40, 36)) -> np.ndarray:
    """Two labels with rough surfaces."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 2) * 1.5
    labels = np.zeros(shape, np.uint8)
    labels[np.square(grid[0]) + np.square(grid[1] + 0.45) / 0.2 + np.square(grid[2]) + noise < 0.6] = 1
    labels[np.square(grid[0]) + np.square(grid[1] - 0.45) / 0.2 + np.square(grid[2]) + noise < 0.6] = 2
    return labels


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_equal_to_monai(spacing_mm):
    reference, prediction = bumpy(1), bumpy(2)
    found = structure_metrics(reference, prediction, spacing_mm, {"1": (1,), "2": (2,)}, nsd_tolerance_mm=1.05)
    ours, theirs = (
        torch.from_numpy(np.stack([array == label for label in (1, 2)])[None]) for array in (prediction, reference)
    )
    options = {"include_background": True, "spacing": spacing_mm}
    expected = {
        "dsc": monai.compute_dice(ours, theirs),
        "asd_mm": monai.compute_average_surface_distance(ours, theirs, symmetric=True, **options),
        "hd_mm": monai.compute_hausdorff_distance(ours, theirs, **options),
        "hd95_mm": monai.compute_hausdorff_distance(ours, theirs, percentile=95, **options),
        "nsd": monai.compute_surface_dice(ours, theirs, class_thresholds=[1.05, 1.05], **options),
    }
    for metric, values in expected.items():
        for label, value in zip("12", values[0].tolist(), strict=True):
            assert found[label][metric] == pytest.approx(value, rel=1e-5), (metric, label)


def area_weighted(ours: np.ndarray, theirs: np.ndarray, spacing_mm) -> tuple[float, float, float]:
    distances = surface_distance.compute_surface_distances(ours, theirs, spacing_mm)
    asd = float(np.mean(surface_distance.compute_average_surface_distance(distances)))
    hd = surface_distance.compute_robust_hausdorff(distances, 100)
    return asd, hd, surface_distance.compute_surface_dice_at_tolerance(distances, 1.0)


def measured(ours: np.ndarray, theirs: np.ndarray, spacing_mm) -> SurfaceDistances:
    return surface_distances(ours, theirs, spacing_mm, [1])[1]


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_shifted_planes_are_as_far_apart_by_both(spacing_mm, shift):
    """Two halves of space, whose surfaces are planes: every definition gives the shift in mm."""
    for axis, size_mm in enumerate(spacing_mm):
        reference = np.zeros((20, 20, 20), bool)
        reference[tuple(slice(0, 10) if a == axis else slice(None) for a in range(3))] = True
        prediction = np.roll(reference, shift, axis) | reference
        # the planes alone: the array's edge is a surface for both
        inner = tuple(slice(None) if a == axis else slice(6, 14) for a in range(3))
        distances = measured(reference, prediction, spacing_mm)
        assert hausdorff_distance_mm(distances) == pytest.approx(shift * size_mm)
        asd, hd, _ = area_weighted(reference, prediction, spacing_mm)
        assert hd == pytest.approx(shift * size_mm)
        assert reference[inner].any() and asd < shift * size_mm


@pytest.mark.parametrize("gap_mm", [2.0, 4.0])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.4, 0.73, 0.73)])
def test_concentric_spheres_differ_by_less_than_a_voxel(gap_mm, spacing_mm):
    """Known answer: the difference of the radii. Voxel centres find it to half a voxel, surface elements to one."""
    shape = [int(np.ceil(44 / size_mm)) | 1 for size_mm in spacing_mm]
    centre = [(n - 1) / 2 for n in shape]
    squares = sum(
        ((axis - c) * size_mm) ** 2 for axis, c, size_mm in zip(np.indices(shape), centre, spacing_mm, strict=True)
    )
    inner, outer = squares <= 14.0**2, squares <= (14.0 + gap_mm) ** 2
    distances = measured(inner, outer, spacing_mm)
    asd, hd, nsd = area_weighted(inner, outer, spacing_mm)
    voxel_mm = max(spacing_mm)
    assert mean_directed_surface_distance_mm(distances) == pytest.approx(gap_mm, abs=voxel_mm / 2)
    assert asd == pytest.approx(gap_mm, abs=voxel_mm)
    assert average_surface_distance_mm(distances) == pytest.approx(asd, abs=voxel_mm)
    assert hausdorff_distance_mm(distances) == pytest.approx(hd, abs=voxel_mm)
    assert normalized_surface_dice(distances, 1.0) == 0 and nsd < 0.2  # both surfaces are two tolerances apart


def test_a_thin_plate_weighs_more_by_voxels_than_by_area():
    """Where the definitions part: a plate one voxel thick has each voxel once for us, and two faces for them."""
    plate, block = np.zeros((12, 20, 20), bool), np.zeros((12, 20, 20), bool)
    plate[5, 4:16, 4:16], block[5:9, 4:16, 4:16] = True, True
    distances = measured(plate, block, (1, 1, 1))
    asd, hd, _ = area_weighted(plate, block, (1, 1, 1))
    assert hausdorff_distance_mm(distances) == hd == 3
    assert distances.from_reference_mm.size == 144
    assert mean_directed_surface_distance_mm(distances) != pytest.approx(asd, abs=0.05)


def test_real_knee_labels_against_distance_transforms(real_data: Path):
    image = sitk.ReadImage(str(next((real_data / "knee_dess_labels").glob("*.nrrd"))))
    labels, spacing_mm = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
    moved = np.roll(labels, (1, 2, -1), (0, 1, 2))
    found = surface_distances(labels, moved, spacing_mm, [1, 5])
    for label in (1, 5):
        edges = []
        for array in (labels, moved):
            mask = np.pad(array == label, 1)
            edges.append((mask & ~ndimage.binary_erosion(mask))[1:-1, 1:-1, 1:-1])
        (box,) = ndimage.find_objects((edges[0] | edges[1]).astype(np.uint8))
        ours, theirs = edges[0][box], edges[1][box]
        expected = ndimage.distance_transform_edt(~theirs, sampling=spacing_mm)[ours]
        np.testing.assert_allclose(np.sort(found[label].from_reference_mm), np.sort(expected), rtol=1e-9)
