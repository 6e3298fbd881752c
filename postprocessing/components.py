"""Cleaning of label maps by connected components, all labels in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunet_anomaly.connected_components import Connectivity, label_components
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.label_maps import check_labels, check_spacing


def keep_components(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    min_share_of_largest: float = 0.2,
    labels: Sequence[int] | None = None,
    connectivity: Connectivity = 26,
) -> np.ndarray:
    """Drop the components of a label that are smaller than a share of the largest component of that label.

    Far islands make the Hausdorff distance. A share of the largest removes them and keeps a structure that the network
    broke in two, where keeping the largest only would delete a part of it.

    Args:
        label_map: 2-D or 3-D, bool or integers in 0 to 65535, any memory layout; never changed.
        spacing_mm: voxel size along every axis. Sizes are compared within one label map, where voxels and mm^3 order
            components alike.
        min_share_of_largest: a component of exactly this share stays. 1 keeps the largest only, all of them where
            several are equally large (as nnU-Net does); 0 keeps everything.
        labels: labels to clean, default all; components of others stay.
        connectivity: 6, 18 or 26, see ``connected_components.label_components``.

    Returns:
        A new array of the same shape and dtype, dropped voxels 0. An empty label map stays empty.

    Raises:
        GeometryError: the spacing is not one positive number per axis.
        LabelError: not a label map, or a label below 1 in ``labels``.
        SettingsError: a share outside 0 to 1, or another connectivity.
    """
    return keep_components_with_record(
        label_map,
        spacing_mm,
        min_share_of_largest=min_share_of_largest,
        labels=labels,
        connectivity=connectivity,
    )[0]


def keep_components_with_record(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    min_share_of_largest: float = 0.2,
    labels: Sequence[int] | None = None,
    connectivity: Connectivity = 26,
) -> tuple[np.ndarray, dict[str, Any]]:
    """``keep_components``, and by label: components and voxels before, and how many of them were removed."""
    is_number = isinstance(min_share_of_largest, int | float) and not isinstance(min_share_of_largest, bool)
    if not (is_number and 0 <= min_share_of_largest <= 1):
        raise SettingsError(f"min_share_of_largest is {min_share_of_largest!r}; it must be a number from 0 to 1.")
    check_labels(() if labels is None else labels)
    check_spacing(spacing_mm, np.ndim(label_map))
    components = label_components(label_map, connectivity)
    sizes, label_of = components.sizes_voxels, components.labels
    largest = np.zeros(int(label_of.max(initial=0)) + 1, dtype=np.int64)
    np.maximum.at(largest, label_of, sizes)
    # the quotient, not a product: 3 of 15 voxels are 0.2 without rounding
    drop = sizes / largest[label_of] < min_share_of_largest
    if labels is not None:
        drop &= np.isin(label_of, labels)
    cleaned = np.array(label_map)
    if drop.any():
        dropped = np.zeros(components.mask.shape, dtype=bool)
        dropped[components.mask] = drop[components.numbers]
        cleaned[dropped] = 0
    figures = {
        "components": np.bincount(label_of),
        "voxels": np.bincount(label_of, sizes),
        "removed_components": np.bincount(label_of, drop),
        "removed_voxels": np.bincount(label_of, sizes * drop),
    }
    present = np.unique(label_of)
    return cleaned, {str(label): {key: int(by[label]) for key, by in figures.items()} for label in present}
