"""What ``numeric_core.py`` measures itself against: the same work by nnU-Net, MONAI, surface-distance and others."""

from __future__ import annotations

from typing import Any

import numpy as np
from core_inputs import HIP_LABELS, HIP_MM, HIP_PAIRS, KNEE_MM, LABELS
from scipy import ndimage

TOLERANCE_MM = 1.0
Arrays = dict[str, np.ndarray]


def surfaces_by_surface_distance(data: Arrays, prediction: str) -> Any:
    """google-deepmind/surface-distance, label by label; its surface elements are weighted by area."""
    import surface_distance as peer

    rows = []
    for label in LABELS:
        ours, theirs = data["knee"] == label, data[prediction] == label
        distances = peer.compute_surface_distances(ours, theirs, KNEE_MM)
        asd = float(np.mean(peer.compute_average_surface_distance(distances)))
        hd, hd95 = (peer.compute_robust_hausdorff(distances, percentile) for percentile in (100, 95))
        nsd = peer.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)
        rows.append([peer.compute_dice_coefficient(ours, theirs), asd, hd, hd95, nsd])
    return np.array(rows)


def surfaces_by_monai(data: Arrays, prediction: str) -> Any:
    """MONAI's five functions on one-hot tensors."""
    import torch
    from monai import metrics as peer

    ours, theirs = (
        torch.from_numpy(np.stack([data[name] == label for label in LABELS])[None]) for name in ("knee", prediction)
    )
    options = {"include_background": True, "spacing": KNEE_MM}
    columns = [
        peer.compute_dice(theirs, ours),
        peer.compute_average_surface_distance(theirs, ours, symmetric=True, **options),
        peer.compute_hausdorff_distance(theirs, ours, **options),
        peer.compute_hausdorff_distance(theirs, ours, percentile=95, **options),
        peer.compute_surface_dice(theirs, ours, class_thresholds=[TOLERANCE_MM] * len(LABELS), **options),
    ]
    return np.stack([column[0].numpy() for column in columns], axis=1)


def largest_by_nnunet(labels: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    """nnU-Net's own function, label after label."""
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

    for label in values:
        labels = remove_all_but_largest_component_from_segmentation(labels, label)
    return labels


def symmetric_by_nnunet(labels: np.ndarray) -> np.ndarray:
    """Two passes of nnU-Net's function: what falls off in the first goes to the twin, the second keeps the largest."""
    kept = largest_by_nnunet(labels, HIP_LABELS)
    fallen, twins = labels * (kept == 0), {a: b for pair in HIP_PAIRS for a, b in (pair, pair[::-1])}
    for label, twin in twins.items():
        kept[fallen == label] = twin
    return largest_by_nnunet(kept, HIP_LABELS)


def ball(radius_voxels: int) -> np.ndarray:
    """Structuring element for scipy."""
    return (np.square(np.indices([2 * radius_voxels + 1] * 3) - radius_voxels)).sum(axis=0) <= radius_voxels**2


def foreground(labels: np.ndarray, margin_voxels: int) -> tuple[slice, ...]:
    """Box around all structures with a margin, the crop that a careful user of scipy would make."""
    (box,) = ndimage.find_objects((labels > 0).astype(np.uint8))
    return tuple(slice(max(0, p.start - margin_voxels), p.stop + margin_voxels) for p in box)


def two_nearest_by_scipy(labels: np.ndarray, spacing_mm: tuple[float, ...], erosion_voxels: int = 0) -> np.ndarray:
    """One distance transform a class, stacked and sorted."""
    classes = [labels == label for label in np.unique(labels[labels > 0])]
    if erosion_voxels:
        classes = [ndimage.binary_erosion(mask, ball(erosion_voxels)) for mask in classes]
    stack = np.stack([ndimage.distance_transform_edt(~mask, sampling=spacing_mm) for mask in classes])
    return np.sort(stack, axis=0)[:2]


def gap_weights_by_scipy(labels: np.ndarray) -> np.ndarray:
    """Xu's weights on the whole label map."""
    total = two_nearest_by_scipy(labels, HIP_MM, 3).sum(axis=0)
    return (1 + 20 * np.exp(-(total**2) / (2 * (5 * 0.78) ** 2))).astype(np.float32)


def collisions_and_gap_dice_by_scipy(data: Arrays) -> Any:
    """The same by distance transforms of the foreground's box."""
    reference, prediction = (data[name][foreground(data["hip prediction"], 12)] for name in ("hip", "hip prediction"))
    nearest = two_nearest_by_scipy(prediction, HIP_MM)
    collisions = np.count_nonzero((prediction > 0) & (nearest[1] <= 2 * 0.78 + 1e-6))
    region = two_nearest_by_scipy(reference, HIP_MM).sum(axis=0) < 10 * 0.78 - 1e-6
    sums = [
        [np.count_nonzero(x) for x in ((a & b), a, b)]
        for label in HIP_LABELS
        for a, b in [((reference == label) & region, (prediction == label) & region)]
    ]
    both, ours, theirs = np.array(sums).T
    return np.array([collisions, 2 * both.sum() / (ours.sum() + theirs.sum()), np.mean(2 * both / (ours + theirs))])


def curves_by_sklearn(data: Arrays) -> Any:
    """One call of the curve, and both figures from it."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(data["lesion"].ravel(), data["scores"].ravel())
    dice = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return np.array([-np.sum(np.diff(recall) * precision[:-1]), dice.max()])
