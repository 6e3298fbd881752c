"""What ``nnunet-anomaly predict`` does: from images to masks of bone marrow lesions and their tables (Qin 2024).

Bone masks, the bone inpainted without lesions, what is brighter than that, and a table of what was found; each step in
a folder of its own, so that it can be looked at and a killed run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_anomaly.augmentation.roi import closed_and_filled_region
from nnunet_anomaly.compartments import femur_compartments, femur_of
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.evaluation.cohort import json_safe, save_table
from nnunet_anomaly.evaluation.lesion_table import CASE_COLUMNS, LESION_COLUMNS, csv_rows, lesion_table
from nnunet_anomaly.files import (
    Outcome,
    is_up_to_date,
    load_json,
    made_from,
    read_grey_image,
    read_image,
    run_cases,
    save_json,
    save_volume,
)
from nnunet_anomaly.geometry import ROUNDING
from nnunet_anomaly.label_maps import case_name, check_same_grid, files_by_case, read_label_map, spacing_zyx_mm
from nnunet_anomaly.postprocessing.bml_morphology import slice_axis
from nnunet_anomaly.settings import AnomalySettings
from nnunet_anomaly.workflow import bml_lesions, error_maps
from nnunet_anomaly.workflow.error_map_job import Job
from nnunet_anomaly.workflow.two_passes import mask_checkpoints, predict_label_maps

LABEL_MAPS, BONES, ERROR_MAPS, RECONSTRUCTIONS, MASKS, RECORDS = (
    "label_maps",
    "bones",
    "error_maps",
    "reconstructions",
    "lesions",
    "cases",
)
# a hole in a slice, which a lesion left, is filled up to the area of a disc of so many radii of the closing
HOLE_RADII = 3
LESION_TABLE, CASE_TABLE = "lesions.csv", "cases.csv"


@dataclass(frozen=True)
class Plan:
    """What one call works with.

    Attributes:
        job: the reconstruction model, and the bone model or the folder of label maps (``masks_from``).
        images: folder of new images.
        output: folder to write to.
        bone_labels: labels of the bone in those label maps.
        femur_labels: those of them that are the femur; empty: there are no compartments.
        other_bones: those of them that are other bones; labels of lesions are neither.
        settings: ``roi.closing_mm`` and the group ``bml`` count.
        sides: of the knees, by case.
        channel: of the images that lesions are looked for in.
    """

    job: Job
    images: Path
    output: Path
    bone_labels: tuple[int, ...]
    femur_labels: tuple[int, ...]
    other_bones: tuple[int, ...]
    settings: AnomalySettings
    sides: Mapping[str, str | None]
    channel: int

    @property
    def ending(self) -> str:
        """Of all images of the dataset."""
        return str(self.job.dataset_json["file_ending"])


def predict_lesions(plan: Plan) -> Outcome:
    """All steps, for every image; a case that fails in one of them is named and takes no part in the next.

    Raises:
        InputError: there is no image, or label maps are to be predicted by a model that has no checkpoint.
        LeakageError: an image bears the name of a training case.
    """
    output, job = plan.output, plan.job
    images = files_by_case(plan.images, plan.channel)
    if not images:
        raise InputError(f"{plan.images} holds no image named <case>_{plan.channel:04d}{plan.ending}.")
    failed: dict[str, str] = {}
    label_maps = _label_maps(plan, list(images))
    bones = _bones(plan, images, label_maps)
    failed |= bones.failed
    maps = error_maps.for_new_images(
        dataclasses.replace(
            job,
            masks_from=str(output / BONES),
            masks_are_filled=True,
            output=str(output / ERROR_MAPS),
            reconstructions=output / RECONSTRUCTIONS,
        ),
        plan.images,
        output / ERROR_MAPS,
    )
    failed |= {case: reason for case, reason in maps.failed.items() if case not in failed}
    found = bml_lesions.find_cases(plan.images, [output / RECONSTRUCTIONS], output / BONES, plan.channel)
    ready = {case: files for case, files in found.items() if case in images and case not in failed}
    masks = bml_lesions.find_lesions(ready, (), plan.settings.bml, output / MASKS, job.num_processes)
    failed |= masks.failed
    measured = _measure(plan, {case: files for case, files in ready.items() if case not in failed}, label_maps)
    failed |= measured.failed
    return Outcome(measured.done, measured.skipped, {case: failed[case] for case in images if case in failed})


def _label_maps(plan: Plan, cases: Sequence[str]) -> dict[str, Path]:
    """Label map of every case: given, or predicted once by the bone model; those that failed are absent."""
    folder = plan.job.masks_folder()
    assert folder is not None
    if not (folder / "plans.json").is_file():
        given = files_by_case(folder)
        return {case: given[case] for case in cases if case in given}
    checkpoints = mask_checkpoints(plan.job)
    if not checkpoints:
        raise InputError(f"{folder} has no trained fold with a final checkpoint. Train it first (nnUNetv2_train).")
    target = plan.output / LABEL_MAPS
    records = {case: target / RECORDS / f"{case}.json" for case in cases}
    files = {case: plan.job.images(plan.images, case) for case in cases}
    sources = {case: made_from([*files[case], *checkpoints], {"model": folder.name}) for case in cases}
    paths = {case: target / f"{case}{plan.ending}" for case in cases}
    todo = [case for case in cases if not (paths[case].is_file() and is_up_to_date(records[case], sources[case]))]
    for case in todo:
        records[case].unlink(missing_ok=True)
        paths[case].unlink(missing_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    predict_label_maps(plan.job, folder, [files[case] for case in todo], target)
    for case in todo:
        if paths[case].is_file():
            save_json({"made_from": sources[case]}, records[case])
    return {case: path for case, path in paths.items() if path.is_file()}


def _bones(plan: Plan, images: Mapping[str, Path], label_maps: Mapping[str, Path]) -> Outcome:
    """Bone masks, closed and filled, since a lesion may be a hole in what a network takes for bone."""
    label = plan.settings.roi.labels[0]  # what the reconstruction model erases
    arguments = [
        (
            case,
            (
                images[case],
                label_maps.get(case),
                plan.bone_labels,
                plan.settings.roi.closing_mm,
                plan.settings.bml.slice_axis,
                label,
                plan.output / BONES / f"{case}{plan.ending}",
            ),
        )
        for case in images
    ]
    return run_cases(_write_bone, arguments, plan.job.num_processes, "bones")


def _write_bone(
    image_path: Path,
    label_map: Path | None,
    labels: tuple[int, ...],
    closing_mm: float,
    axis: int,
    value: int,
    target: Path,
) -> bool:
    """Worker: the bone mask of one case; False when it is there."""
    case = case_name(target)
    if label_map is None:
        raise InputError(f"There is no label map of {case} that says where the bone is.")
    record = target.parent / RECORDS / f"{case}.json"
    settings = {"labels": labels, "closing_mm": closing_mm, "slice_axis": axis, "value": value}
    source = made_from([image_path, label_map], settings)
    if target.is_file() and is_up_to_date(record, source):
        return False
    for path in (record, target):
        path.unlink(missing_ok=True)
    array, grid = read_label_map(label_map)
    image = read_grey_image(image_path)
    check_same_grid(image, image_path, grid, label_map)
    region = whole_bones(array, labels, closing_mm, spacing_zyx_mm(grid), axis)
    if not region.any():
        raise InputError(f"{label_map} holds none of the labels {list(labels)}: there is no bone to look at.")
    mask = np.where(region, value, 0).astype(np.uint8 if value < 256 else np.uint16)
    save_volume(mask, target, image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    save_json({"made_from": source}, record)
    return True


def whole_bones(
    label_map: np.ndarray, labels: Sequence[int], closing_mm: float, spacing_mm: Sequence[float], axis: int
) -> np.ndarray:
    """Bones, closed and filled: what is enclosed in 3-D, and in slices holes up to ``HOLE_RADII`` of the closing.

    Args:
        label_map: integers, 2-D or 3-D.
        labels: of the bones.
        closing_mm: radius of the closing.
        spacing_mm: voxel size along every axis.
        axis: across slices; -1: the axis of the coarsest spacing. Where several axes are as coarse there are no slices,
            so that the order of axes does not count.

    Returns:
        bool array of the same shape.

    Raises:
        SettingsError: there is no such axis.
    """
    chosen, largest_mm2 = slice_axis(spacing_mm, axis), math.pi * (HOLE_RADII * closing_mm) ** 2
    is_one_of_many = axis == -1 and sum(size_mm >= max(spacing_mm) * (1 - ROUNDING) for size_mm in spacing_mm) > 1
    axes = [] if chosen is None or is_one_of_many else [chosen]
    return closed_and_filled_region(label_map, labels, closing_mm, spacing_mm, axes, largest_mm2)


def _measure(plan: Plan, cases: Mapping[str, bml_lesions.CaseFiles], label_maps: Mapping[str, Path]) -> Outcome:
    """Tables of lesions and of cases."""
    folder = plan.output / RECORDS
    arguments = [
        (
            case,
            (
                case,
                files,
                label_maps[case],
                plan.output / MASKS / f"{case}{bml_lesions.ENDING}",
                plan.femur_labels,
                plan.other_bones,
                plan.sides.get(case),
                folder / f"{case}.json",
            ),
        )
        for case, files in cases.items()
    ]
    outcome = run_cases(measure_case, arguments, plan.job.num_processes, "tables")
    records = [load_json(folder / f"{case}.json") for case in cases if case not in outcome.failed]
    lesions = [row for record in records for row in record["lesions"]]
    save_table(lesions, plan.output / LESION_TABLE, LESION_COLUMNS)
    save_table([record["case"] for record in records], plan.output / CASE_TABLE, (*CASE_COLUMNS, "side", "parted_at"))
    return outcome


def measure_case(
    case: str,
    files: bml_lesions.CaseFiles,
    label_map: Path,
    mask_path: Path,
    femur_labels: tuple[int, ...],
    other_bones: tuple[int, ...],
    side: str | None,
    record: Path,
) -> bool:
    """Worker: lesions of one case, measured; False when they are already."""
    import SimpleITK as sitk

    image_path, _, bone_path = files.existing()
    settings = {"femur": femur_labels, "other_bones": other_bones, "side": side}
    source = made_from([image_path, bone_path, label_map, mask_path], settings)
    if is_up_to_date(record, source):
        return False
    image = read_image(image_path)
    mask, bone, labels = (read_label_map(path)[0] for path in (mask_path, bone_path, label_map))
    spacing_mm, direction = spacing_zyx_mm(image), image.GetDirection()
    femur = femur_of(labels, bone != 0, femur_labels, other_bones, spacing_mm)
    parts = femur_compartments(femur, spacing_mm, direction, side) if femur_labels else None
    compartments = None if parts is None else parts.label_map
    table = lesion_table(
        mask, sitk.GetArrayFromImage(image), bone, spacing_mm, image.GetOrigin(), direction, compartments
    )
    lesions, row = csv_rows(case, table)
    row |= {"side": side or "unknown", "parted_at": parts.parted_at if parts else ""}
    save_json(json_safe({"made_from": source, "lesions": lesions, "case": row}), record)
    return True
