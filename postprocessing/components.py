"""Cleaning of label maps by connected components, all labels in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cc3d
import numpy as np

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.label_maps import as_label_map, check_labels, check_spacing

Connectivity = Literal[6, 18, 26]


@dataclass(frozen=True, eq=False)
class Components:
    """Connected components of every label of a label map.

    Attributes:
        mask: bool, shape of the label map; where it is not background.
        numbers: number of the component of each voxel of ``mask``, in C order, from 0.
        sizes_voxels: int64, by number of the component.
        labels: label of each component, by its number.
    """

    mask: np.ndarray
    numbers: np.ndarray
    sizes_voxels: np.ndarray
    labels: np.ndarray


def label_components(label_map: np.ndarray, connectivity: Connectivity = 26) -> Components:
    """Find the connected components of all labels at once; voxels of different labels never connect.

    Args:
        label_map: 2-D or 3-D, bool or integers in 0 to 65535; may be empty.
        connectivity: 6 (faces), 18 (and edges) or 26 (and corners); in 2-D these are 4, 8 and 8.

    Raises:
        LabelError: not a label map.
        SettingsError: another connectivity.
    """
    if connectivity not in get_args(Connectivity):
        raise SettingsError(f"connectivity is {connectivity!r}; it must be one of 6, 18 and 26.")
    compact = as_label_map(label_map)
    mask = compact != 0
    if not mask.any():
        nothing = np.zeros(0, dtype=np.int64)
        return Components(mask, nothing, nothing, nothing)
    volume = compact[np.newaxis] if compact.ndim == 2 else compact
    # cc3d refuses some arrays that it may not write to
    found = cc3d.connected_components(np.require(volume, requirements=["C", "W"]), connectivity=connectivity)
    numbers = found.reshape(mask.shape)[mask] - 1
    sizes_voxels = np.bincount(numbers)
    labels = np.zeros(sizes_voxels.size, dtype=np.int64)
    labels[numbers] = compact[mask]
    return Components(mask, numbers, sizes_voxels, labels)


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
        connectivity: 6, 18 or 26, see ``label_components``.

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
    if not (isinstance(min_share_of_largest, int | float) and 0 <= min_share_of_largest <= 1):
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
    record = {
        str(label): {
            "components": int(np.count_nonzero(of_label)),
            "voxels": int(sizes[of_label].sum()),
            "removed_components": int(np.count_nonzero(of_label & drop)),
            "removed_voxels": int(sizes[of_label & drop].sum()),
        }
        for label in np.unique(label_of)
        for of_label in [label_of == label]
    }
    return cleaned, record
