"""Workers of ``nnunet-anomaly evaluate-lesions``: the figures of one case, of its slices and of its lesions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_anomaly.evaluation.cohort import json_safe
from nnunet_anomaly.evaluation.confusion import confusion, confusion_by_slice
from nnunet_anomaly.evaluation.lesions import Lesions, find_lesions, found_shares, is_hit, part_components
from nnunet_anomaly.files import is_up_to_date, made_from, save_json
from nnunet_anomaly.label_maps import check_same_grid, read_label_map, read_region, spacing_zyx_mm
from nnunet_anomaly.planes import plane_of


@dataclass(frozen=True)
class Looks:
    """How the masks of every case are looked at.

    Attributes:
        bone_labels: labels of the bone masks; empty: any but 0.
        slice_plane: plane of the slices.
        hit_overlap: share of a lesion that must be found, see ``lesions.is_hit``.
        component_overlap: share of a component that must lie in lesions, see ``lesions.part_components``.
    """

    bone_labels: tuple[int, ...]
    slice_plane: str
    hit_overlap: float
    component_overlap: float


class CaseFiles(NamedTuple):
    """Files of one case of one method."""

    reference: Path
    prediction: Path
    bone: Path


def measure_case(files: CaseFiles, looks: Looks, record: Path) -> bool:
    """Write the figures of one case; False when they are there already, of the same files and settings.

    Raises:
        InputError, GeometryError: a file is damaged, there is no bone, or files lie on different grids.
        LabelError: not a label map.
    """
    source = made_from(files, vars(looks))
    if is_up_to_date(record, source):
        return False
    reference, image = read_label_map(files.reference)
    prediction, other = read_label_map(files.prediction)
    check_same_grid(image, files.reference, other, files.prediction)
    bone = read_region(files.bone, looks.bone_labels, image, files.reference)
    axis = plane_of(image.GetDirection(), looks.slice_plane).axes[0] if bone.ndim == 3 else 0
    found = measure_masks(reference, prediction, bone, spacing_zyx_mm(image), axis, looks)
    save_json(json_safe({"made_from": source, **found}), record)
    return True


def measure_masks(
    reference: np.ndarray,
    prediction: np.ndarray,
    bone: np.ndarray,
    spacing_mm: tuple[float, ...],
    axis: int,
    looks: Looks,
) -> dict[str, Any]:
    """Figures of a ``case``, of its ``slices`` with a lesion and of its ``lesions``, all inside the bone."""
    counts = confusion(reference, prediction, bone)
    lesions = find_lesions(reference, spacing_mm, bone)
    lesion = (reference != 0) & bone
    hitting, false_components = part_components((prediction != 0) & bone, lesion, looks.component_overlap)
    shares = found_shares(hitting[lesion], lesions)
    hits = is_hit(shares, looks.hit_overlap)
    voxel_mm3 = math.prod(spacing_mm)
    pixel_mm2 = math.prod(size for place, size in enumerate(spacing_mm) if place != axis or bone.ndim == 2)
    return {
        "case": {
            "lesion_volume_mm3": counts.lesion_voxels * voxel_mm3,
            "lesion_voxels_outside_bone": int(np.count_nonzero(reference)) - counts.lesion_voxels,
            **counts.figures(),
            "false_positives_mm3": counts.false_positives * voxel_mm3,
            "false_positive_components": false_components,
            **_found_lesions(lesions, hits),
        },
        "slices": [
            {"slice": index, "lesion_area_mm2": each.lesion_voxels * pixel_mm2, **each.figures()}
            for index, each in enumerate(confusion_by_slice(reference, prediction, bone, axis))
            if each.lesion_voxels
        ],
        "lesions": [
            {"lesion": number, "volume_mm3": float(volume), "found_share": float(share), "hit": bool(hit)}
            for number, (volume, share, hit) in enumerate(zip(lesions.volumes_mm3, shares, hits, strict=True), start=1)
        ],
    }


def _found_lesions(lesions: Lesions, hits: np.ndarray) -> dict[str, Any]:
    return {
        "lesions": int(hits.size),
        "lesions_outside_bone": lesions.n_outside,
        "lesions_hit": int(hits.sum()),
        "lesion_sensitivity": float(hits.mean()) if hits.size else math.nan,
    }
