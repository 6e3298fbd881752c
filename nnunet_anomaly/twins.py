"""Structures that come as a left and a right one: which labels are twins, and what exchanging them does."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_anomaly.errors import GeometryError, SettingsError
from nnunet_anomaly.geometry import check_spacing
from nnunet_anomaly.label_maps import as_label_map
from nnunet_anomaly.sides import LEFT, NEITHER, RIGHT

if TYPE_CHECKING:
    from nnunet_anomaly.settings import SymmetrySettings

_SIDES = {"left": LEFT, "l": LEFT, "lt": LEFT, "right": RIGHT, "r": RIGHT, "rt": RIGHT}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
# Larger label maps are thinned out, by the same step along every axis: a centre hardly moves by that.
MOST_VOXELS = 1 << 22
# In so many of the label maps a left twin must lie on the same side of its right one.
NEARLY_ALL = 0.9
# In ``symmetry.region_twins``: this channel has no twin, so that prediction must not exchange channels.
NO_TWIN = -1


def pairs_by_name(labels: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """Labels of left and right whose names differ by nothing but the side.

    The side is a word of its own, ``left`` or ``right``, ``L`` or ``R``: ``femur_left``, ``Right Hip``, ``hipL``.

    Args:
        labels: dataset.json's ``labels``, from names to values. Regions (several values) have no twin.

    Returns:
        (left, right) of every pair, in the order of the left ones; empty where there is none. Names that occur twice
        on one side are left out.
    """
    found: dict[str, dict[str, list[int]]] = {LEFT: {}, RIGHT: {}}
    for name, value in single_labels(labels).items():
        words = [word.casefold() for word in words_of(name)]
        sides = {_SIDES[word] for word in words if word in _SIDES}
        if len(sides) == 1:
            rest = " ".join(word for word in words if word not in _SIDES)
            found[sides.pop()].setdefault(rest, []).append(value)
    pairs = [(left, found[RIGHT].get(rest, [])) for rest, left in found[LEFT].items()]
    return tuple(sorted((left[0], right[0]) for left, right in pairs if len(left) == len(right) == 1))


def words_of(name: str) -> list[str]:
    """Words of a structure's name, parted by case, underscores, blanks and digits: ``hipL`` is ``hip``, ``L``."""
    return _WORD.findall(name)


def single_labels(labels: Mapping[str, Any]) -> dict[str, int]:
    """Names and values of dataset.json's ``labels``, without background and regions; a list of one is its value."""
    values = {
        name: value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
        for name, value in labels.items()
    }
    return {name: value for name, value in values.items() if isinstance(value, int) and value > 0}


def swapped_labels(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """The twin of every label that has one."""
    return {label: twin for left, right in pairs for label, twin in ((left, right), (right, left))}


def check_pairs(pairs: Iterable[tuple[int, int]], labels: Iterable[int]) -> None:
    """Raise a ``SettingsError`` for a label in ``symmetry.pairs`` that is none of ``labels``, or has two twins."""
    members = [label for pair in pairs for label in pair]
    known = sorted({int(label) for label in labels} - {0})
    unknown = sorted(set(members) - set(known))
    if unknown:
        raise SettingsError(f"symmetry.pairs has {unknown}; the dataset's labels are {known}.")
    several = sorted(label for label, times in Counter(members).items() if times > 1)
    if several:
        raise SettingsError(f"symmetry.pairs has {several} more than once; a label has one twin, and not itself.")


def twin_channels(contents: Sequence[int | Sequence[int]], pairs: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """The channel that holds what every channel holds once the sides are exchanged.

    Args:
        contents: label of every channel, or labels of a region.
        pairs: labels of left and right.

    Raises:
        SettingsError: a region whose labels, exchanged, are those of no region.
    """
    twins = swapped_labels(pairs)
    channels = [frozenset([content] if isinstance(content, int) else content) for content in contents]
    exchanged = [frozenset(twins.get(label, label) for label in channel) for channel in channels]
    for before, after in zip(channels, exchanged, strict=True):
        if after not in channels:
            raise SettingsError(
                f"With left and right exchanged, the channel of {sorted(before)} becomes one of {sorted(after)}, and "
                "there is none. Complete symmetry.pairs or the regions in dataset.json, or set "
                "symmetry.test_time_mirroring to off: nnunet-anomaly plan ... --set symmetry.test_time_mirroring=off."
            )
    return tuple(channels.index(after) for after in exchanged)


def side_axis_of_patch(symmetry: SymmetrySettings, dimensions: int) -> int | None:
    """Axis of a 2-D or 3-D patch along which mirroring exchanges left and right.

    Returns:
        None where mirroring is nnU-Net's: without pairs, with ``plain`` mirroring throughout, and in slices that lie
        across that axis (sagittal ones).

    Raises:
        SettingsError: there are pairs, but the axis is not known.
    """
    if not symmetry.pairs or symmetry.mirroring == symmetry.test_time_mirroring == "plain":
        return None
    if symmetry.side_axis < 0:
        pairs = "[" + ",".join(f"[{left},{right}]" for left, right in symmetry.pairs) + "]"
        raise SettingsError(
            "symmetry.pairs names labels of left and right, but symmetry.side_axis is -1: which axis of the arrays "
            "leads from left to right is not known, or not the same for all images. Where they all lie alike, headers "
            f"tell it: nnunet-anomaly plan ... --set symmetry.pairs={pairs}. Else bring them into one orientation "
            "(SimpleITK.DICOMOrient), plan and preprocess again; or name the axis of preprocessed arrays, for example "
            "--set symmetry.side_axis=2; or mirror as nnU-Net does: --set symmetry.mirroring=plain --set "
            "symmetry.test_time_mirroring=plain."
        )
    axis = symmetry.side_axis - (3 - dimensions)
    return axis if axis >= 0 else None


def side_of_left(
    label_map: np.ndarray,
    pairs: Iterable[tuple[int, int]],
    spacing_mm: Sequence[float],
    direction: Sequence[float],
) -> dict[tuple[int, int], str]:
    """On which side of its twin the left one of every pair lies, in the patient.

    Both are told by medians, so that pieces that bear the wrong label, as in predictions, hardly matter.

    Args:
        label_map: integers, 2-D or 3-D.
        pairs: labels that are called left and right.
        spacing_mm: voxel size along every axis of ``label_map``.
        direction: SimpleITK's ``GetDirection()``, whose first world axis leads to the patient's left. A 2-D image has
            no such axes; its columns are taken for the way from the patient's right to the left, as pictures are shown.

    Returns:
        ``LEFT`` or ``RIGHT``; ``NEITHER`` where the line between the centres is more than 45 degrees off the axis from
        left to right, or they are no further apart along it than the median distances of the voxels of each structure
        from its own centre add up to. Pairs of which one is absent are left out: they say nothing.

    Raises:
        GeometryError: the spacing or the direction does not fit the number of axes.
        LabelError: no label map.
    """
    label_map, pairs = as_label_map(label_map), list(pairs)
    check_spacing(spacing_mm, label_map.ndim)
    if len(direction) != label_map.ndim**2:
        raise GeometryError(f"direction has {len(direction)} numbers; an image with {label_map.ndim} axes has others.")
    step = math.ceil((label_map.size / MOST_VOXELS) ** (1 / label_map.ndim)) or 1
    thinned = label_map[(slice(None, None, step),) * label_map.ndim]
    # from array indices, whose axes are in reverse order, to millimetres towards left, posterior, superior
    to_mm = np.reshape(direction, (label_map.ndim,) * 2)[:, ::-1] * np.asarray(spacing_mm, dtype=float) * step
    places = {label: _centre_and_spread(thinned == label, to_mm) for pair in pairs for label in pair}
    found = {}
    for pair in pairs:
        left, right = (places[label] for label in pair)
        if left is not None and right is not None:
            apart_mm = left[0] - right[0]
            sideways_mm = abs(apart_mm[0])
            is_apart = sideways_mm > left[1] + right[1]
            is_sideways = sideways_mm >= np.linalg.norm(apart_mm[1:])
            side = LEFT if apart_mm[0] > 0 else RIGHT
            found[pair] = side if is_apart and is_sideways else NEITHER
    return found


def agreed_side(findings: Iterable[str]) -> str | None:
    """The side that at least nine of ten label maps agree on; None where they do not, or there is none."""
    counts = Counter(findings)
    side = max((LEFT, RIGHT), key=lambda side: counts[side])
    return side if counts[side] and counts[side] >= NEARLY_ALL * counts.total() else None


def _centre_and_spread(structure: np.ndarray, to_mm: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Median along every world axis, and the median distance from it along the first, in mm; None without a voxel.

    Args:
        structure: bool, 2-D or 3-D.
        to_mm: matrix from array indices to world axes.
    """
    places_mm = to_mm @ np.array(np.nonzero(structure), dtype=float)
    if not places_mm.size:
        return None
    centre_mm = np.median(places_mm, axis=1)
    return centre_mm, float(np.median(np.abs(places_mm[0] - centre_mm[0])))
