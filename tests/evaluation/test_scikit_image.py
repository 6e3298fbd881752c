"""Components, morphology and the Hausdorff distance beside scikit-image, which comes with nnU-Net."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure, metrics, morphology, segmentation

from nnunet_anomaly.connected_components import label_components
from nnunet_anomaly.evaluation.surface import hausdorff_distance_mm, surface_distances
from nnunet_anomaly.geometry import close_mm, dilate_mm, erode_mm, open_mm

UNIT_MM = (1.0, 1.0, 1.0)


def blob(seed: int) -> np.ndarray:
    """A rough body that keeps clear of the edges, beyond which the two libraries have other rules."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((30, 34, 32)), 2)
    mask = np.zeros(noise.shape, dtype=bool)
    mask[6:-6, 6:-6, 6:-6] = noise[6:-6, 6:-6, 6:-6] > -0.05
    return mask


@pytest.mark.parametrize(("connectivity", "rank"), [(6, 1), (18, 2), (26, 3)])
def test_components(connectivity, rank):
    label_map = np.random.default_rng(connectivity).choice(4, (12, 14, 13), p=[0.6, 0.2, 0.1, 0.1]).astype(np.uint8)
    expected = measure.label(label_map, background=0, connectivity=rank)
    found = label_components(label_map, connectivity)
    numbers = np.zeros(label_map.shape, dtype=int)
    numbers[found.mask] = found.numbers + 1
    pairs = np.unique(np.stack([expected.ravel(), numbers.ravel()]), axis=1)
    assert pairs.shape[1] == expected.max() + 1 == len(found.labels) + 1  # one to one


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (dilate_mm, morphology.dilation),
        (erode_mm, morphology.erosion),
        (open_mm, morphology.opening),
        (close_mm, morphology.closing),
    ],
)
def test_morphology_by_a_ball(ours, theirs):
    mask = blob(1)
    found = ours(mask, 3, UNIT_MM)
    assert 0 < found.sum() != mask.sum()
    np.testing.assert_array_equal(found, theirs(mask, morphology.ball(3)))


def test_hausdorff_distance():
    one, other = blob(2), blob(3)
    surfaces = (segmentation.find_boundaries(mask, connectivity=1, mode="inner") for mask in (one, other))
    found = hausdorff_distance_mm(surface_distances(one, other, UNIT_MM, [1])[1])
    assert found > 1
    assert found == pytest.approx(metrics.hausdorff_distance(*surfaces), rel=1e-6)
