"""A trained A taken into another network: which one for which case (law 3), and what prediction must know to build it.

A model that holds A predicts where A's own folder is not. So what its network is made from is copied into the plans of
that model: A's configuration beside its own, and A's settings into ``end_to_end``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_anomaly.architectures.inpainting_unet import InpaintingUNet, resolved_architecture
from nnunet_anomaly.error_maps.folds import ALL, Fold, folds_of, in_order
from nnunet_anomaly.error_maps.model import ReconstructionModel, load_model
from nnunet_anomaly.error_maps.provenance import Split, check_split
from nnunet_anomaly.errors import InputError, LeakageError, MissingCheckpointError, SettingsError
from nnunet_anomaly.files import sha256_of
from nnunet_anomaly.settings import BLOCK, AnomalySettings
from nnunet_anomaly.transfer import differing_channels

CONFIGURATION = "reconstruction_of_end_to_end"  # A's configuration in the plans of a model that holds A
CHECKPOINT = "checkpoint_final.pth"
CLIPPED = "ZScoreClipped01Normalization"
Z_SCORE = "ZScoreNormalization"


@dataclass(frozen=True)
class FoldNetworks:
    """A of every fold that there is, as it was trained.

    Attributes:
        folder: of the model.
        model: its plans, configuration and settings.
        networks: a network a fold, in evaluation mode, without gradients.
        splits: of every fold, the cases that it learnt from and those held out.
        sha256: of every fold's checkpoint.
    """

    folder: Path
    model: ReconstructionModel
    networks: Mapping[Fold, torch.nn.Module]
    splits: Mapping[Fold, Split]
    sha256: Mapping[str, str]

    def fold_for(self, cases: Iterable[str]) -> dict[str, Fold]:
        """For every case the fold whose A has held it out; of several the first.

        Raises:
            LeakageError: there is none, so that every A has seen the case, or may have.
        """
        chosen = {
            case: fold
            for fold in reversed(in_order(self.splits))
            for case in set(self.splits[fold]["val"]) - set(self.splits[fold]["train"])
        }
        cases = list(cases)
        if leaking := sorted(set(cases) - set(chosen)):
            there = ", ".join(map(str, in_order(self.splits)))
            raise LeakageError(
                f"No A in {self.folder} has held out {', '.join(leaking)} (folds that are there: {there}), so that no "
                f"error map of these cases is out of fold. Train the missing folds: {self.command('FOLD')}"
            )
        return {case: chosen[case] for case in cases}

    def check_splits(self, folds: Iterable[Fold], splits: Sequence[Split]) -> None:
        """A of these folds has learnt from what its fold holds now, so that a subject's scans share a fold here too.

        Args:
            folds: of which those beyond ``splits``, for which nnU-Net draws cases, are not looked at.
            splits: splits_final.json.

        Raises:
            LeakageError: it has not.
        """
        for fold in in_order(folds):
            if isinstance(fold, int) and fold < len(splits):
                check_split(self.splits[fold], splits[fold], f"A of fold {fold} in {self.folder}")

    def of_fold(self, fold: Fold) -> torch.nn.Module:
        """A of one fold.

        Raises:
            MissingCheckpointError: it is not there.
        """
        if fold not in self.networks:
            raise MissingCheckpointError(
                f"{self.folder / f'fold_{fold}' / CHECKPOINT} does not exist. Train it first: {self.command(fold)}"
            )
        return self.networks[fold]

    def command(self, fold: Fold) -> str:
        """The command that trains a fold."""
        return training_command(self.folder, fold)


def training_command(folder: Path, fold: Fold) -> str:
    """The command that trains a fold of a model folder ``DATASET/TRAINER__PLANS__CONFIGURATION``."""
    trainer, plans, configuration = folder.name.split("__")
    return f"nnUNetv2_train {folder.parent.name} {configuration} {fold} -tr {trainer} -p {plans}"


def load_folds(folder: Path) -> FoldNetworks:
    """Load A of all folds of a model folder, also the one of fold ``all`` where there is one.

    Raises:
        InputError: that is not how a model folder is called.
        MissingCheckpointError: there is none.
        SettingsError: it is a model of another kind than A: one that is told what to erase, or that makes its error
            maps in another way.
        LeakageError: one of them began with weights of which nothing says what they have learnt from.
    """
    if len(folder.name.split("__")) != 3:
        raise InputError(
            f"{folder} is not a model's folder (end_to_end.model): its name is to be TRAINER__PLANS__CONFIGURATION."
        )
    folds = folds_of(folder, CHECKPOINT)
    if ALL not in folds and (folder / f"fold_{ALL}" / CHECKPOINT).is_file():
        folds = [*folds, ALL]
    if not folds:
        raise MissingCheckpointError(
            f"{folder} has no {CHECKPOINT} for any fold. Train A first, all folds: {training_command(folder, 'FOLD')} "
            "(or name another folder in end_to_end.model)."
        )
    model = load_model(folder, folds, CHECKPOINT)
    if type(model.network) is not InpaintingUNet or model.needs_masks or model.residual != "squared":
        raise SettingsError(
            f"{folder.name} cannot be taken into a segmentation network: that needs a U-Net that reconstructs images "
            "by themselves and whose error map is the squared difference, as nnUNetTrainerInpaintingMimic trains it "
            "(end_to_end.model)."
        )
    if model.pretrained:
        raise LeakageError(
            f"A network in {folder} began with -pretrained_weights, and nothing says which cases these have learnt "
            "from, so that no error map is known to be out of fold. Train it without them."
        )
    networks = {}
    for fold, weights in zip(folds, model.parameters, strict=True):
        networks[fold] = same_network(model)
        networks[fold].load_state_dict(weights)
        networks[fold].eval().requires_grad_(False)
    digests = {str(fold): sha256_of([folder / f"fold_{fold}" / CHECKPOINT]) for fold in folds}
    return FoldNetworks(folder, model, networks, dict(zip(folds, model.splits, strict=True)), digests)


def load_teacher(folds: FoldNetworks, fold: Fold) -> torch.nn.Module:
    """G that A of one fold learnt from: of the same dataset, plans, configuration and fold, without gradients.

    Raises:
        MissingCheckpointError: it is not there any more.
        LeakageError: it has learnt from other cases than A.
    """
    trainer, plans, configuration = folds.folder.name.split("__")
    teacher = folds.model.settings.mimic.teacher_trainer or trainer.replace("Mimic", "")
    folder = folds.folder.parent / f"{teacher}__{plans}__{configuration}"
    if not (folder / f"fold_{fold}" / CHECKPOINT).is_file():
        raise MissingCheckpointError(
            f"A learns from G of the same fold, but {folder / f'fold_{fold}' / CHECKPOINT} does not exist. Train it "
            f"first: {training_command(folder, fold)}"
        )
    model = load_model(folder, [fold], CHECKPOINT)
    check_split(model.splits[0], folds.splits[fold], str(folder / f"fold_{fold}" / CHECKPOINT))
    model.network.load_state_dict(model.parameters[0])
    return model.network.eval().requires_grad_(False)


def same_network(model: ReconstructionModel) -> torch.nn.Module:
    """A new network of a model's architecture."""
    inpainting = model.settings.inpainting
    channels = len(model.configuration.normalization_schemes)
    return build_reconstructor(model.configuration, channels, inpainting.code_channels, inpainting.upsampling)


def build_reconstructor(configuration: Any, image_channels: int, code_channels: int, upsampling: str) -> InpaintingUNet:
    """A new A by nnU-Net's ConfigurationManager of its configuration; see ``InpaintingUNet``."""
    architecture = resolved_architecture(
        configuration.network_arch_init_kwargs, configuration.network_arch_init_kwargs_req_import
    )
    return InpaintingUNet(image_channels, architecture, code_channels, upsampling, erase=False)


def check_it_fits(model: ReconstructionModel, plans: Any, configuration: Any, dataset_json: Mapping[str, Any]) -> None:
    """A can take the patches of a segmentation configuration.

    Args:
        model: A's.
        plans: nnU-Net's PlansManager of the segmentation.
        configuration: nnU-Net's ConfigurationManager of the segmentation.
        dataset_json: of its dataset.

    Raises:
        InputError: A was trained on another dataset, or its channels have changed.
        SettingsError: the two configurations differ in dimension, in the order of axes, or in what their intensities
            are, so that A's cannot be had from S's.
    """
    if model.plans.dataset_name != plans.dataset_name:
        raise InputError(
            f"A was trained on {model.plans.dataset_name}, not on {plans.dataset_name}: which of these cases it has "
            "seen is not known. Train it on this dataset."
        )
    if different := differing_channels(model.dataset_json, dataset_json):
        raise InputError(f"A does not fit this dataset: {different[0].replace('the checkpoint', 'A')}. Train A again.")
    ours, theirs = configuration, model.configuration
    problems = []
    if len(ours.patch_size) != len(theirs.patch_size):
        problems.append(f"it is {len(theirs.patch_size)}-D and the segmentation {len(ours.patch_size)}-D")
    if list(model.plans.transpose_forward) != list(plans.transpose_forward):
        problems.append(f"its axes are {model.plans.transpose_forward}, and those here {plans.transpose_forward}")
    if list(theirs.use_mask_for_norm) != list(ours.use_mask_for_norm):
        problems.append("it normalises inside the non-zero region where the segmentation does not, or the other way")
    if set(theirs.normalization_schemes) != {CLIPPED} or set(ours.normalization_schemes) != {Z_SCORE}:
        problems.append(
            f"it needs channels by {CLIPPED} and the segmentation's by {Z_SCORE}, from which they follow, but these "
            f"are by {', '.join(sorted({*theirs.normalization_schemes} | {*ours.normalization_schemes}))}"
        )
    if problems:
        raise SettingsError(
            f"A cannot be taken into this segmentation network: {'; '.join(problems)}. Make error maps beforehand "
            "(nnunet-anomaly error-maps, nnUNetTrainerAnomalyAware), or name another A in end_to_end.model."
        )


def note_in_plans(plans: dict[str, Any], model: ReconstructionModel, networks: int) -> AnomalySettings:
    """Write into the plans of a segmentation model what ``build_from_plans`` needs, and return the settings then."""
    plans["configurations"][CONFIGURATION] = dict(model.configuration.configuration)
    settings = AnomalySettings.from_plans(plans).with_values(
        {
            "end_to_end.networks": networks,
            "end_to_end.code_channels": model.settings.inpainting.code_channels,
            "end_to_end.upsampling": model.settings.inpainting.upsampling,
            "end_to_end.clip_sd": model.settings.error_map.clip_sd,
        }
    )
    plans[BLOCK] = settings.to_dict()
    return settings


def differing_notes(there: Mapping[str, Any], here: Mapping[str, Any], choice: bool = False) -> list[str]:
    """In what two plans say otherwise what ``build_from_plans`` makes; empty where nothing differs.

    Args:
        there: plans of a trained model's folder.
        here: plans of a training.
        choice: whether to look, too, at what decides which A is in the network.
    """
    one, other = (AnomalySettings.from_plans(plans).end_to_end for plans in (there, here))
    names = ["networks", "code_channels", "upsampling", "clip_sd", *(["exported", "fine_tuned"] if choice else [])]
    found = [
        f"end_to_end.{name} was {getattr(one, name)} and is {getattr(other, name)}"
        for name in names
        if getattr(one, name) != getattr(other, name)
    ]
    if there["configurations"].get(CONFIGURATION) != here["configurations"].get(CONFIGURATION):
        found.append("A's configuration is another")
    return found


def build_from_plans(plans: Any, image_channels: int) -> list[InpaintingUNet]:
    """New networks for every A that the plans of a segmentation model say it holds.

    Raises:
        SettingsError: they say nothing of it.
    """
    settings = AnomalySettings.from_plans(plans.plans).end_to_end
    if not settings.networks or CONFIGURATION not in plans.plans["configurations"]:
        raise SettingsError(
            f"The plans '{plans.plans_name}' do not say which A is in the network. Take the plans.json of the trained "
            "model's folder."
        )
    configuration = plans.get_configuration(CONFIGURATION)
    return [
        build_reconstructor(configuration, image_channels, settings.code_channels, settings.upsampling)
        for _ in range(settings.networks)
    ]
