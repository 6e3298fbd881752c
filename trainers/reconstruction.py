"""What all reconstruction trainers share: honest loss names, best checkpoint by validation loss, error maps at the end.

They train by ``nnUNetv2_train`` on an ``*_inpainting`` configuration, and ``--c``, ``--val`` and ``-num_gpus`` work as
in nnU-Net. Their validation writes, for the held-out fold and in the original geometry::

    fold_0/validation/error_maps/<case>.nii.gz           E = (x - reconstruction)^2, float32
    fold_0/validation/reconstructions/<case>_0000.nii.gz one file per image channel, on the [0, 1] scale
    fold_0/validation/error_maps.json                    which cases the network saw, which it did not
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Executor, Future
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import autocast, distributed
from torch._dynamo import OptimizedModule

from nnunet_anomaly.architectures.inpainting_unet import InpaintingUNet, resolved_architecture
from nnunet_anomaly.augmentation.protected_channels import insert_after_resampling, protect_channels
from nnunet_anomaly.augmentation.roi import RoiChannelTransform, region_of_interest
from nnunet_anomaly.dataset_roles import error_channels
from nnunet_anomaly.error_maps.predict import (
    Residual,
    error_map,
    map_file_ending,
    reconstruct,
    save_in_original_geometry,
)
from nnunet_anomaly.error_maps.provenance import PRETRAINED, SPLIT, check_split, digest_of_weights
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import open_pool, remove_left_overs, save_json, settle, sha256_of, written_whole
from nnunet_anomaly.gpus import mean_over_gpus
from nnunet_anomaly.report.training import plot_training_curves
from nnunet_anomaly.seeding import seed_everything
from nnunet_anomaly.settings import (
    AnomalySettings,
    DistillationSettings,
    InpaintingSettings,
    LaMaSettings,
    VaeSettings,
)
from nnunet_anomaly.trainers.slice_dataset import SliceDataset, StoredLabelMaps, healthy_slices

EARLIER = "checkpoint_{}_of_earlier_training.pth"
SCHEME = "ZScoreClipped01Normalization"
SPATIAL = (
    SpatialTransform,
    MirrorTransform,
    Convert3DTo2DTransform,
    Convert2DTo3DTransform,
    RemoveLabelTansform,
)


class ReconstructionLogger(LocalLogger):
    """nnU-Net's log of one value per epoch, with the names of what is measured here instead of Dice."""

    def __init__(self, *extra: str):
        super().__init__()
        names = ("train_losses", "val_losses", "lrs", "epoch_start_timestamps", "epoch_end_timestamps", *extra)
        self.my_fantastic_logging: dict[str, list] = {name: [] for name in names}

    def plot_progress_png(self, output_folder: str) -> None:
        """Write progress.png: losses and whatever else is logged, over epochs."""
        plot_training_curves(self.my_fantastic_logging, Path(output_folder) / "progress.png")


class ReconstructionTrainer(nnUNetTrainer):
    """Base of G and A: an image and its region of interest go in, a reconstruction comes out."""

    _best_ema: float | None
    extra_metrics: tuple[str, ...] = ()
    erase = True  # the network takes the region of interest as its last channel and erases it
    network_class: type[InpaintingUNet] = InpaintingUNet
    residual: Residual = "squared"
    suffix = "_inpainting"  # of its configurations
    planner = "nnUNetPlannerAnomaly"
    healthy_slices_only = False  # whatever ``slices.healthy_only`` says

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ):
        self.settings = AnomalySettings.from_plans(plans)
        if error_channels(dataset_json):
            raise InputError(
                f"{plans['dataset_name']} already has an error-map channel. Train reconstruction networks on the "
                "dataset that it was derived from."
            )
        map_file_ending(dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.check_scale()
        self.validated_checkpoint: str | None = None  # the file that holds the network in memory
        self.epochs_trained = 0  # by this process
        self.initial_weights = ""
        self.logger.local_logger = ReconstructionLogger(*self.extra_metrics)
        self.initial_lr = self.recipe.learning_rate
        self.weight_decay = 0.0
        self.num_epochs = self.recipe.epochs
        self.enable_deep_supervision = False

    @property
    def recipe(self) -> InpaintingSettings | VaeSettings | LaMaSettings | DistillationSettings:
        """Learning rate, schedule, epochs and mirror axes."""
        return self.settings.inpainting

    def check_scale(self) -> None:
        """Error maps need intensities in [0, 1], and the network what its configurations are made for.

        Raises:
            SettingsError: the configuration normalises in another way, or is made for other networks.
        """
        schemes = set(self.configuration_manager.normalization_schemes)
        configurations = f"3d{self.suffix} or 2d{self.suffix} of plans made by -pl {self.planner}"
        if schemes != {SCHEME}:
            raise SettingsError(
                f"{type(self).__name__} needs images normalised by {SCHEME}, but configuration "
                f"'{self.configuration_name}' has {', '.join(sorted(schemes))}. Train it on {configurations}."
            )
        if not self.configuration_name.endswith(self.suffix):
            raise SettingsError(
                f"{type(self).__name__} is not made for configuration '{self.configuration_name}'. Train it on "
                f"{configurations}."
            )

    # -- network, loss, optimiser -------------------------------------------------------------------------------------

    @classmethod
    def build_reconstruction_network(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> torch.nn.Module:
        """The inpainting U-Net; it has as many output channels as the image, whatever the number of labels."""
        settings = AnomalySettings.from_plans(plans_manager.plans)
        architecture = resolved_architecture(
            configuration_manager.network_arch_init_kwargs, configuration_manager.network_arch_init_kwargs_req_import
        )
        inpainting = settings.inpainting
        network = cls.network_class(
            num_input_channels, architecture, inpainting.code_channels, inpainting.upsampling, cls.erase
        )
        if network.compressor is not None:
            network.compressor.requires_grad_(cls.erase)  # C learns with G alone
        return network

    @classmethod
    def build_network_architecture(cls, *args: Any, **kwargs: Any) -> Any:
        """What ``nnUNetv2_predict`` calls, which would make meaningless label maps of reconstructions.

        Raises:
            InputError: always; the message names the command that is meant.
        """
        raise InputError(
            f"{cls.__name__} reconstructs images; nnUNetv2_predict makes label maps. Its error maps are made with: "
            f"nnunet-anomaly error-maps -d DATASET -tr {cls.__name__} -i IMAGES -o OUTPUT"
        )

    def initialize(self) -> None:
        """Seed, then build as nnU-Net does, but our own network."""
        seed_everything(self.settings.seed, self.fold, self.local_rank)
        self.build_network_architecture = self.build_reconstruction_network  # type: ignore[method-assign]
        super().initialize()
        self.initial_weights = digest_of_weights(self.network)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Adam at a constant rate (paper) or with nnU-Net's polynomial decay."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(parameters, self.initial_lr, weight_decay=self.weight_decay)
        exponent = 0.9 if self.recipe.learning_rate_schedule == "poly" else 0.0
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, exponent)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is none."""

    # -- data ---------------------------------------------------------------------------------------------------------

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Training and held-out cases; of them, where it is wanted, slices with the region and without a lesion.

        Raises:
            SettingsError: a 3-D network is to learn from slices.
            InputError: there is no such slice, or the list of slices names what is not there.
        """
        datasets = super().get_tr_and_val_datasets()
        if not (self.healthy_slices_only or self.settings.slices.healthy_only):
            return datasets
        if len(self.configuration_manager.patch_size) != 2:
            raise SettingsError(
                f"slices.healthy_only is for 2-D networks, and configuration '{self.configuration_name}' is 3-D. Set "
                "it to false, or train a 2-D configuration."
            )
        folder, ending = Path(self.preprocessed_dataset_folder_base), self.dataset_json["file_ending"]
        stored = StoredLabelMaps(folder, ending, self.plans_manager)
        found = []
        for dataset, what in zip(datasets, ("training", "held-out"), strict=True):
            slices = healthy_slices(dataset, stored, self.settings)
            self.print_to_log_file(f"{sum(map(len, slices.values()))} slices of {len(slices)} {what} cases")
            if not slices:
                raise InputError(
                    f"No slice of the {what} cases of fold {self.fold} holds the region (labels "
                    f"{list(self.settings.roi.labels)}) and no lesion (labels "
                    f"{list(self.settings.slices.lesion_labels)})"
                    + (f" and is in {self.settings.slices.file}." if self.settings.slices.file else ".")
                )
            found.append(SliceDataset(dataset, slices))
        return found[0], found[1]

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        """nnU-Net's, but with the mirror axes of the plans."""
        rotation, dummy_2d, patch_size, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, patch_size, self.recipe.mirror_axes

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:  # type: ignore[override]
        """nnU-Net's spatial transforms alone: the intensities are what is to be reconstructed."""
        stock = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        return self.with_extra_channels(ComposeTransforms([t for t in stock.transforms if isinstance(t, SPATIAL)]))

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:  # type: ignore[override]
        """The patch as it is."""
        return self.with_extra_channels(ComposeTransforms([RemoveLabelTansform(-1, 0)]))

    def with_extra_channels(self, pipeline: ComposeTransforms) -> ComposeTransforms:
        """Append to the image what :meth:`input_and_target` needs besides: here the region of interest."""
        return protect_channels(insert_after_resampling(pipeline, [self.roi_transform()]))

    @staticmethod
    def erased_margin_mm(settings: AnomalySettings) -> float:
        """Margin around the labels of the region that is erased as well."""
        return settings.roi.dilation_mm

    def roi_transform(self) -> RoiChannelTransform:
        """The region of interest as a channel, on the grid of the patch."""
        margin_mm = self.erased_margin_mm(self.settings)
        return RoiChannelTransform(self.settings.roi.labels, margin_mm, self.configuration_manager.spacing)

    def on_train_start(self) -> None:
        """As nnU-Net, and note what this network learns from; the note goes into its checkpoints."""
        super().on_train_start()
        self.my_init_kwargs[SPLIT] = self.split()
        if self.current_epoch == 0:
            self.my_init_kwargs[PRETRAINED] = self.is_pretrained()
        if self.local_rank == 0:
            remove_left_overs(Path(self.output_folder))
            if self.current_epoch == 0 and not self.disable_checkpointing:
                self.set_earlier_checkpoints_aside()

    def is_pretrained(self) -> bool:
        """Whether weights were loaded (``-pretrained_weights``) since the network was made."""
        return digest_of_weights(self.network) != self.initial_weights

    def set_earlier_checkpoints_aside(self) -> None:
        """Once a training has begun anew ``--c`` must not go on with an earlier one, whose networks are kept."""
        for name in ("final", "latest", "best"):
            path = Path(self.output_folder) / f"checkpoint_{name}.pth"
            if path.is_file():
                kept = path.with_name(EARLIER.format(name))
                path.replace(kept)
                self.print_to_log_file(f"{path.name} of an earlier training is kept as {kept.name}")

    def split(self) -> dict[str, list[str]]:
        """Cases of this fold, as splits_final.json has them now: to learn from, and held out."""
        training_cases, held_out = self.do_split()
        return {"train": sorted(training_cases), "val": sorted(held_out)}

    def on_train_end(self) -> None:
        """As nnU-Net; what is validated next is the final checkpoint. Of earlier trainings the final one is kept."""
        latest = Path(self.output_folder) / "checkpoint_latest.pth"
        aside = latest.with_name(f".partial_aside_{latest.name}")
        if self.disable_checkpointing and not self.local_rank and latest.is_file():
            latest.replace(aside)  # nnU-Net removes it, but it is another training's
        super().on_train_end()
        if aside.is_file():
            aside.replace(latest)
        self.validated_checkpoint = None if self.disable_checkpointing else "checkpoint_final.pth"
        if not (self.disable_checkpointing or self.local_rank):
            for name in ("latest", "best"):
                latest.with_name(EARLIER.format(name)).unlink(missing_ok=True)

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net, but whole or not at all: ``--c`` could not go on from a half-written one."""
        if self.disable_checkpointing or self.local_rank:
            return super().save_checkpoint(filename)
        if not self.epochs_trained and Path(filename).is_file():
            return  # --c on a finished training: the same network would look like another one to what was made from it
        with written_whole(filename) as temporary:
            super().save_checkpoint(str(temporary))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net, and remember which one it is, for the record of error maps.

        Raises:
            LeakageError: the network learnt from other cases than this fold's, so that its maps were not out of fold.
        """
        super().load_checkpoint(filename_or_checkpoint)
        name = filename_or_checkpoint if isinstance(filename_or_checkpoint, str) else "The checkpoint"
        check_split(self.my_init_kwargs.get(SPLIT), self.split(), name)
        self.validated_checkpoint = Path(name).name if isinstance(filename_or_checkpoint, str) else None

    # -- training -----------------------------------------------------------------------------------------------------

    def input_and_target(self, data: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """What the network and what the loss take, from a batch (B, image channels + 1, ...) on the device."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its network takes")

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step on our input and target."""
        data, target = self.input_and_target(batch["data"].to(self.device, non_blocking=True))
        return super().train_step({"data": data, "target": target})

    def validation_step(self, batch: dict) -> dict:
        """Loss on a validation batch."""
        data, target = self.input_and_target(batch["data"].to(self.device, non_blocking=True))
        return {"loss": self.loss(self.forward_pass(data), target).cpu().numpy()}

    def forward_pass(self, data: torch.Tensor) -> torch.Tensor:
        """Reconstruction in float32, by mixed precision on CUDA as in training."""
        with autocast("cuda", enabled=self.device.type == "cuda"):
            return self.network(data).float()

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the mean of everything that validation steps gave, over all GPUs."""
        for name in val_outputs[0]:
            mean = mean_over_gpus([float(output[name]) for output in val_outputs])
            self.logger.log("val_losses" if name == "loss" else name, mean, self.current_epoch)

    def on_epoch_end(self) -> None:
        """Log, keep the latest checkpoint now and then and the best by validation loss."""
        self.epochs_trained += 1
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        started, ended = (self.logger.get_value(f"epoch_{which}_timestamps", step=-1) for which in ("start", "end"))
        names = ("train_losses", "val_losses", *self.extra_metrics)
        values = {name: self.logger.get_value(name, step=-1) for name in names}
        self.print_to_log_file(", ".join(f"{name} {value:.6f}" for name, value in values.items()))
        self.print_to_log_file(f"Epoch time: {ended - started:.2f} s")
        if (self.current_epoch + 1) % self.save_every == 0 and self.current_epoch != self.num_epochs - 1:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        # nnU-Net's checkpoints have one slot for the best value so far, named after Dice; ours is a loss
        if values["val_losses"] < (float("inf") if self._best_ema is None else self._best_ema):
            self._best_ema = values["val_losses"]
            self.print_to_log_file(f"New best validation loss: {self._best_ema:.6f}")
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_best.pth"))
        if self.local_rank == 0:
            self.logger.plot_progress_png(self.output_folder)
        self.current_epoch += 1

    # -- validation: error maps of the held-out fold ------------------------------------------------------------------

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Write reconstructions and error maps of the held-out fold in the original geometry."""
        split = self.split()
        folder = Path(self.output_folder) / "validation"
        record_path = folder / "error_maps.json"
        if self.local_rank == 0:
            record_path.unlink(missing_ok=True)  # maps of an earlier validation are overwritten one by one
        if self.is_ddp:
            distributed.barrier()
        mine = split["val"][self.local_rank :: distributed.get_world_size()] if self.is_ddp else split["val"]
        dataset = self.dataset_class(self.preprocessed_dataset_folder, mine)
        processes = default_num_processes if len(mine) > 1 else 1
        writing: deque[Future[None]] = deque()
        with open_pool(processes) as pool:
            for case in mine:
                writing.extend(self.validate_case(case, dataset, folder, pool))
                settle(writing, at_most=4 * processes)
            settle(writing)
        if self.is_ddp:
            distributed.barrier()
        if self.local_rank == 0:
            save_json(self.record_of_maps(), record_path)
            kind = "training" if set(self.my_init_kwargs[SPLIT]["train"]) & set(split["val"]) else "held-out"
            self.print_to_log_file(f"Error maps of {len(split['val'])} {kind} cases are in {folder / 'error_maps'}")

    def record_of_maps(self) -> dict[str, Any]:
        """What the error maps of this validation are made with; without a checkpoint file of it, nothing says so."""
        name = self.validated_checkpoint
        return {
            "trainer": type(self).__name__,
            "plans": self.plans_manager.plans_name,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "epochs": self.current_epoch,
            "checkpoint": name,
            "checkpoint_sha256": sha256_of([Path(self.output_folder) / name]) if name else None,
            "training_cases": self.my_init_kwargs[SPLIT]["train"],
            "held_out_cases": self.split()["val"],
            PRETRAINED: self.my_init_kwargs.get(PRETRAINED, False),
        }

    def validate_case(self, case: str, dataset: Any, folder: Path, pool: Executor) -> list[Any]:
        """Reconstruct one case here and have its maps written in the background."""
        data, segmentation, _, properties = dataset.load_case(case)
        image = torch.from_numpy(np.asarray(data[:], dtype=np.float32))
        margin_mm, spacing_mm = self.erased_margin_mm(self.settings), self.configuration_manager.spacing
        region = region_of_interest(np.asarray(segmentation[0]), self.settings.roi.labels, margin_mm, spacing_mm)
        inside = torch.from_numpy(region[None])
        network = self.bare_network()
        network_input = torch.cat((image, inside.float())) if self.erase else image
        reconstruction = reconstruct(network, network_input, self.configuration_manager.patch_size, self.device)
        seen = torch.from_numpy(np.asarray(segmentation[:1]) >= 0)
        error = error_map(image, reconstruction, seen, self.residual)
        means = [float(error[where].mean()) if where.any() else float("nan") for where in (inside, ~inside)]
        self.print_to_log_file(f"{case}: mean error inside the region {means[0]:.6f}, outside {means[1]:.6f}")
        ending = map_file_ending(self.dataset_json)
        names = [folder / "reconstructions" / f"{case}_{channel:04d}{ending}" for channel in range(len(image))]
        maps = [(error, [folder / "error_maps" / f"{case}{ending}"])]
        if self.residual != "output":
            maps.append((reconstruction, names))
        return [
            pool.submit(save_in_original_geometry, values, paths, properties, self.plans_manager, spacing_mm)
            for values, paths in maps
        ]

    def bare_network(self) -> Any:
        """The network without what DDP and torch.compile wrap around it."""
        network: Any = self.network.module if self.is_ddp else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network
