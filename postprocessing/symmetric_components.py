"""Left and right put right: pieces of a structure that bear its twin's label are given back (Xu 2022, section 3.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunet_anomaly.connected_components import Components, Connectivity, label_components
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.label_maps import check_labels, check_spacing
from nnunet_anomaly.postprocessing.components import keep_components_with_record


def symmetric_components(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    pairs: Sequence[tuple[int, int]],
    keep_largest: bool = True,
    labels: Sequence[int] | None = None,
    connectivity: Connectivity = 26,
) -> np.ndarray:
    """In each pair, all but the largest component of a class take its twin's label; then the largest of each is kept.

    A network that mistakes a part of the left femur for the right one is so mended without losing the part. Nothing is
    relabelled into a class that the label map does not have, as where one hip was replaced.

    Args:
        label_map: 2-D or 3-D, bool or integers in 0 to 65535, any memory layout; never changed.
        spacing_mm: voxel size along every axis.
        pairs: the two labels of every pair; no label twice.
        keep_largest: drop all but the largest component of each class afterwards; all that are equally large stay.
        labels: classes of which only the largest is kept, default all.
        connectivity: 6, 18 or 26, see ``connected_components.label_components``.

    Returns:
        A new array of the same shape and dtype. An empty label map stays empty.

    Raises:
        GeometryError: the spacing is not one positive number per axis.
        LabelError: not a label map, or a label below 1.
        SettingsError: pairs that are not pairs of different labels, a label in two pairs, or another connectivity.
    """
    return symmetric_components_with_record(
        label_map,
        spacing_mm,
        pairs=pairs,
        keep_largest=keep_largest,
        labels=labels,
        connectivity=connectivity,
    )[0]


def symmetric_components_with_record(
    label_map: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    pairs: Sequence[tuple[int, int]],
    keep_largest: bool = True,
    labels: Sequence[int] | None = None,
    connectivity: Connectivity = 26,
) -> tuple[np.ndarray, dict[str, Any]]:
    """``symmetric_components``, and by label what was relabelled to its twin, and what was removed then."""
    twins = _twins(pairs)
    if not isinstance(keep_largest, bool):
        raise SettingsError(f"keep_largest is {keep_largest!r}; it must be true or false.")
    check_spacing(spacing_mm, np.ndim(label_map))
    components = label_components(label_map, connectivity)
    new_labels = components.labels.copy()
    wrong = _on_the_wrong_side(components, twins)
    new_labels[wrong] = [twins[label] for label in components.labels[wrong]]
    relabelled = np.array(label_map)
    if wrong.any():
        relabelled[components.mask] = new_labels[components.numbers]
    record: dict[str, Any] = {}
    if keep_largest:
        relabelled, record = keep_components_with_record(
            relabelled, spacing_mm, min_share_of_largest=1, labels=labels, connectivity=connectivity
        )
    pieces, voxels = Counter[int](), Counter[int]()
    for label, size in zip(components.labels[wrong].tolist(), components.sizes_voxels[wrong].tolist(), strict=True):
        pieces[label] += 1
        voxels[label] += size
    for label, twin in twins.items():
        if pieces[label]:
            entry = record.setdefault(str(label), {})
            entry |= {"twin": twin, "relabelled_components": pieces[label], "relabelled_voxels": voxels[label]}
    return relabelled, record


def _twins(pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The twin of every label."""
    if not pairs or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise SettingsError(f"pairs is {pairs!r}; it must be pairs of two labels.")
    flat = [label for pair in pairs for label in pair]
    check_labels(flat)
    if len(set(flat)) < len(flat):
        raise SettingsError(f"pairs is {list(pairs)}; no label may be there twice.")
    return {label: twin for left, right in pairs for label, twin in ((left, right), (right, left))}


def _on_the_wrong_side(components: Components, twins: dict[int, int]) -> np.ndarray:
    """Components that are smaller than the largest of their label, where the twin's label occurs as well; bool."""
    present = set(components.labels.tolist())
    wrong = np.zeros(components.labels.size, dtype=bool)
    for label, twin in twins.items():
        if label in present and twin in present:
            of_label = components.labels == label
            wrong |= of_label & (components.sizes_voxels < components.sizes_voxels[of_label].max())
    return wrong
