"""A trained reconstruction model folder, applied to raw images: preprocess, reconstruct, error map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_anomaly.augmentation.roi import closed_and_filled_region, region_of_interest
from nnunet_anomaly.dataset_roles import channel_names
from nnunet_anomaly.error_maps.folds import Fold, folds_of, in_order
from nnunet_anomaly.error_maps.predict import Residual, error_map, mean_reconstruction
from nnunet_anomaly.error_maps.provenance import PRETRAINED, SPLIT, Split
from nnunet_anomaly.errors import GeometryError, InputError, LeakageError, MissingCheckpointError, SettingsError
from nnunet_anomaly.files import load_json, read_image
from nnunet_anomaly.planes import orientation_of
from nnunet_anomaly.settings import AnomalySettings


@dataclass
class ReconstructionModel:
    """Networks of one or more folds, with all that nnU-Net needs to bring an image onto their grid."""

    network: torch.nn.Module
    parameters: Sequence[Mapping[str, torch.Tensor]]
    plans: Any
    configuration: Any
    dataset_json: dict[str, Any]
    settings: AnomalySettings
    trainer: str
    splits: Sequence[Split]  # of every set of parameters: the cases it learnt from, and others
    pretrained: bool  # one of them began with weights from elsewhere
    residual: Residual
    margin_mm: float  # around the labels of the region, erased by networks that need masks
    masks_are_filled: bool = False  # closed and filled before, so that nothing is left to do but the margin

    @property
    def learnt_from(self) -> set[str]:
        """Cases that at least one of the networks was trained on."""
        return {case for split in self.splits for case in split["train"]}

    @property
    def needs_masks(self) -> bool:
        """Whether this is a G, which has to be told what to erase."""
        return bool(getattr(self.network, "erase", False))


@dataclass
class PreparedCase:
    """A case on the grid of a configuration: image (C, ...), its non-zero region and labels or None (1, ...)."""

    image: np.ndarray
    inside: np.ndarray
    labels: np.ndarray | None
    properties: dict[str, Any]


def load_model(
    folder: Path, folds: Sequence[Fold] | None, checkpoint: str = "checkpoint_final.pth"
) -> ReconstructionModel:
    """Load the given folds (all that are there, when None) of a model folder ``TRAINER__PLANS__CONFIGURATION``.

    Raises:
        MissingCheckpointError: a fold has no such checkpoint.
        SettingsError: it is not a reconstruction model.
        LeakageError: a checkpoint does not say which cases it learnt from.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    chosen = in_order(folds) if folds else folds_of(folder, checkpoint)
    missing = [fold for fold in chosen if not (folder / f"fold_{fold}" / checkpoint).is_file()]
    if missing or not chosen:
        wanted = ", ".join(f"fold {fold}" for fold in missing) or "any fold"
        raise MissingCheckpointError(f"{folder} has no {checkpoint} for {wanted}. Train with nnUNetv2_train first.")
    parameters, notes = [], []
    for fold in chosen:  # one after the other: a checkpoint holds the optimiser's state as well
        content = torch.load(folder / f"fold_{fold}" / checkpoint, map_location="cpu", weights_only=False)
        parameters.append(content["network_weights"])
        notes.append(content["init_args"])
        trainer, name = content["trainer_name"], content["init_args"]["configuration"]
    trainer_class = recursive_find_trainer_class_by_name(trainer)
    build = getattr(trainer_class, "build_reconstruction_network", None)
    if build is None:
        raise SettingsError(
            f"{folder.name} is not a reconstruction model. Error maps come from nnUNetTrainerInpaintingMimic, or from "
            "nnUNetTrainerInpainting with --masks-from."
        )
    if any(SPLIT not in note for note in notes):
        raise LeakageError(f"A {checkpoint} in {folder} does not say which cases it learnt from. Train it again.")
    dataset_json, plans = load_json(folder / "dataset.json"), PlansManager(load_json(folder / "plans.json"))
    configuration, settings = plans.get_configuration(name), AnomalySettings.from_plans(plans.plans)
    return ReconstructionModel(
        build(plans, configuration, determine_num_input_channels(plans, configuration, dataset_json), 0),
        parameters,
        plans,
        configuration,
        dataset_json,
        settings,
        trainer,
        [note[SPLIT] for note in notes],
        any(note.get(PRETRAINED, False) for note in notes),
        trainer_class.residual,
        trainer_class.erased_margin_mm(settings),
    )


def prepare_case(
    images: Sequence[Path], mask: Path | None, plans: Any, configuration: Any, dataset_json: dict[str, Any]
) -> PreparedCase:
    """Read and preprocess one case by nnU-Net's own preprocessor.

    Raises:
        InputError: an image is missing, has the wrong number of channels, is all zero or not finite.
        GeometryError: the mask does not lie on the image's grid.
    """
    expected = len(channel_names(dataset_json))
    if len(images) != expected:
        raise InputError(f"{len(images)} channels, but the model takes {expected}: {[path.name for path in images]}")
    for channel, path in enumerate(images):
        if not path.name.endswith(f"_{channel:04d}{dataset_json['file_ending']}"):
            raise InputError(f"Channel {channel} is missing: there is {path.name} in its place.")
    for path in [*images, *([mask] if mask else [])]:
        read_image(path)  # nnU-Net's reader would take a file that is cut off, and NaN as 0
    reader = plans.image_reader_writer_class()
    data, properties = reader.read_images([str(path) for path in images])
    for channel, path in zip(data, images, strict=True):
        if not channel.any():
            raise InputError(f"{path} is zero everywhere.")
    labels = None
    if mask is not None:
        labels, mask_properties = reader.read_seg(str(mask))
        if labels.shape[1:] != data.shape[1:] or not np.allclose(properties["spacing"], mask_properties["spacing"]):
            raise GeometryError(f"{mask} has another grid than {images[0]}.")
    return prepare_arrays(data, labels, properties, plans, configuration, dataset_json)


def prepare_arrays(
    data: np.ndarray,
    labels: np.ndarray | None,
    properties: dict[str, Any],
    plans: Any,
    configuration: Any,
    dataset_json: dict[str, Any],
) -> PreparedCase:
    """Preprocess an image (C, ...) and labels (1, ...) that nnU-Net's reader, or somebody who changed them, gives."""
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, labels_on_grid, properties = preprocessor.run_case_npy(
        data, labels, properties, plans, configuration, dataset_json
    )
    return PreparedCase(data, labels_on_grid >= 0, None if labels is None else labels_on_grid, properties)


def case_maps(
    model: ReconstructionModel, case: PreparedCase, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Error map (1, ...) and mean reconstruction (C, ...) of a prepared case, float32, on the model's grid.

    Where the model's residual is ``"output"``, the mean of its maps is in the place of a reconstruction.

    Raises:
        InputError: the model is a G and the case has no mask.
    """
    if getattr(model.network, "takes_whole_volumes", False):
        check_orientation(case.properties, model.settings.vae.orientation)
    image = torch.from_numpy(np.asarray(case.image, dtype=np.float32))
    network_input = image
    if model.needs_masks:
        if case.labels is None:
            raise InputError(f"{model.trainer} needs a mask of what to erase; give --masks-from.")
        region = torch.from_numpy(two_pass_region(model, case)[None].astype(np.float32))
        network_input = torch.cat((image, region))
    reconstruction = mean_reconstruction(
        model.network, model.parameters, network_input, model.configuration.patch_size, device
    )
    return error_map(image, reconstruction, torch.from_numpy(case.inside), model.residual), reconstruction


def check_orientation(properties: Mapping[str, Any], orientation: str) -> None:
    """A network that takes whole volumes knows them as they lay in training.

    Args:
        properties: nnU-Net's of the case.
        orientation: of the training images, in DICOM's letters; empty: not looked at.

    Raises:
        InputError: this image lies otherwise.
    """
    found = orientation_of(properties["sitk_stuff"]["direction"])
    if orientation and found != orientation:
        raise InputError(
            f"The image lies as {found}, but the network has learnt from images that lie as {orientation}. Bring it "
            f"into that orientation first: SimpleITK.DICOMOrient(image, '{orientation}'), as the converters do."
        )


def two_pass_region(model: ReconstructionModel, case: PreparedCase) -> np.ndarray:
    """What to erase, from a predicted label map: its region closed and filled (a lesion left out counts), dilated.

    Dilated as in training: by a 2-D network's configuration slice by slice.
    """
    assert case.labels is not None
    roi = model.settings.roi
    if model.masks_are_filled:
        return region_of_interest(case.labels[0], roi.labels, model.margin_mm, model.configuration.spacing)
    spacing_mm = list(model.configuration.spacing)
    if len(spacing_mm) == 2:
        spacing_mm = [case.properties["spacing"][model.plans.transpose_forward[0]], *spacing_mm]
    filled = closed_and_filled_region(case.labels[0], roi.labels, roi.closing_mm, spacing_mm)
    return region_of_interest(filled.astype(np.uint8), (1,), model.margin_mm, model.configuration.spacing)
