"""What two passes erase: label maps of a segmentation model, or of a folder."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunet_anomaly.dataset_roles import channel_names
from nnunet_anomaly.error_maps import collect
from nnunet_anomaly.error_maps.folds import folds_of, in_order
from nnunet_anomaly.error_maps.model import ReconstructionModel
from nnunet_anomaly.errors import InputError, LeakageError
from nnunet_anomaly.files import (
    read_image,
)
from nnunet_anomaly.workflow.error_map_cases import is_finished
from nnunet_anomaly.workflow.error_map_job import MASKS_CHECKPOINT, Case, Job


def check_masks_are_needed(job: Job, model: ReconstructionModel) -> None:
    if job.masks_from and not model.needs_masks:
        raise InputError(
            f"{model.trainer} takes no mask; --masks-from goes with nnUNetTrainerInpainting. Leave one of them out."
        )


def mask_checkpoints(job: Job) -> list[Path]:
    """Checkpoints of the segmentation model that says what is erased; none without, or with a folder of label maps."""
    folder = job.masks_folder()
    if folder is None or not (folder / "plans.json").is_file():
        return []
    folds = in_order(job.folds) if job.folds else folds_of(folder, MASKS_CHECKPOINT)
    return [path for fold in folds if (path := folder / f"fold_{fold}" / MASKS_CHECKPOINT).is_file()]


def given_mask(job: Job, case: str) -> Path | None:
    """Label map of a case in a folder of them; None without, or where a segmentation model predicts it."""
    folder = job.masks_folder()
    if folder is None or (folder / "plans.json").is_file():
        return None
    return folder / f"{case}{job.dataset_json['file_ending']}"


def held_out_label_maps(job: Job, fold: int, split: collect.Split) -> dict[str, Path]:
    """By case, the label maps that a segmentation model predicted for exactly this fold's held-out cases.

    Raises:
        InputError: a folder of label maps lacks one.
        LeakageError: they are of other cases, or nothing says which network they come from (a folder of label maps is
            taken with ``--allow-leak`` only).
    """
    model = job.masks_folder()
    assert model is not None
    ending = job.dataset_json["file_ending"]
    if not (model / "plans.json").is_file():
        if not job.allow_leak:
            raise LeakageError(
                f"{model} is no model folder, so that nothing says which network its label maps come from: reference "
                "labels, or maps of a network that saw these cases, would leak into the error maps. Name a model "
                "(TRAINER__PLANS__CONFIGURATION), or say --allow-leak."
            )
        paths = {case: model / f"{case}{ending}" for case in sorted(split["val"])}
        missing = [path.name for path in paths.values() if not path.is_file()]
        if missing:
            raise InputError(f"--masks-from: {model} lacks {', '.join(missing)}.")
        return paths
    folder = model / f"fold_{fold}" / "validation"
    predicted = {path.name.removesuffix(ending) for path in folder.glob(f"*{ending}")}
    if predicted != set(split["val"]):
        raise LeakageError(
            f"{folder} does not hold the label maps of exactly the held-out cases of fold {fold} "
            f"({len(predicted)} files for {len(split['val'])} cases). Train and validate that fold with this split."
        )
    return {case: folder / f"{case}{ending}" for case in sorted(split["val"])}


@contextmanager
def masks_predicted(job: Job, cases: Sequence[Case]) -> Iterator[list[Case]]:
    """The cases, those that are not finished with a label map that a segmentation model predicts, if one is to."""
    model = job.masks_folder()
    todo = [case for case in cases if not is_finished(job, case)]
    if model is None or not (model / "plans.json").is_file() or not todo:
        yield list(cases)
        return
    with tempfile.TemporaryDirectory(prefix="nnunet_anomaly_masks_") as folder:
        predict_label_maps(job, model, [case.images for case in todo], Path(folder))
        ending = job.dataset_json["file_ending"]
        yield [dataclasses.replace(case, mask=Path(folder) / f"{case.name}{ending}") for case in cases]


def _readable(files: Sequence[Path]) -> bool:
    """Whether nnU-Net's predictor can be given these images; what is wrong with others is said later."""
    try:
        for path in files:
            read_image(path)
    except InputError:
        return False
    return True


def predict_label_maps(job: Job, model: Path, images: Sequence[Sequence[Path]], output: Path) -> None:
    """Run a segmentation model by nnU-Net's own predictor; images that cannot be read, or lack a channel, are left out.

    Args:
        job: folds, device and processes count.
        model: folder of the segmentation model.
        images: files of all channels, by case.
        output: folder for the label maps.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    on_device = job.device.type == "cuda"
    folds = job.folds or folds_of(model, MASKS_CHECKPOINT)
    predictor = nnUNetPredictor(perform_everything_on_device=on_device, device=job.device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), folds, MASKS_CHECKPOINT)
    channels = len(channel_names(job.dataset_json))
    complete = [[str(path) for path in files] for files in images if len(files) == channels and _readable(files)]
    suffix = len(f"_0000{job.dataset_json['file_ending']}")
    names = [str(output / Path(files[0]).name[:-suffix]) for files in complete]
    processes = max(1, job.num_processes)
    if complete:
        predictor.predict_from_files(
            complete, names, num_processes_preprocessing=processes, num_processes_segmentation_export=processes
        )
