"""Connected components of label maps, all labels in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import cc3d
import numpy as np

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.label_maps import as_label_map

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
