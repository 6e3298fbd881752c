"""Woo's G and A: inpaint the region of interest, then do it without a mask (sections 2.1 and 2.2)."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnunet_anomaly.architectures.inpainting_unet import InpaintingUNet
from nnunet_anomaly.augmentation.corruptions import SyntheticLesionTransform
from nnunet_anomaly.augmentation.protected_channels import insert_after_resampling, protect_channels
from nnunet_anomaly.error_maps.provenance import PRETRAINED, SPLIT, TEACHER, check_split, digest_of_weights
from nnunet_anomaly.errors import InputError, MissingCheckpointError
from nnunet_anomaly.files import sha256_of
from nnunet_anomaly.gpus import mean_over_gpus
from nnunet_anomaly.losses.reconstruction import denoising_loss, inpainting_loss, leak_sums, mimic_loss
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.reconstruction import ReconstructionTrainer


class nnUNetTrainerInpainting(ReconstructionTrainer):
    """G (with C): recovers the image x from x with the region of interest erased; L_G = ||x - G(x)||^2."""

    def _build_loss(self) -> Any:
        return inpainting_loss

    def input_and_target(self, data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and region in, image out."""
        return data, data[:, :-1]


class nnUNetTrainerInpaintingMimic(ReconstructionTrainer):
    """A: gives what G gives, but from the image alone; C comes from the G of the same fold and stays fixed.

    Preset ``paper``: L_A = ||G(x) - A(x)||^2 + ||E(G(x)) - E(A(x))||^2. Preset ``robust`` (denoising): A's input has
    synthetic lesions, its target is G of the clean image, because the paper's A becomes the identity.
    """

    extra_metrics = ("leak",)
    erase = False
    teacher: InpaintingUNet
    teacher_sha256: str
    teacher_is_pretrained: bool

    @property
    def denoising(self) -> bool:
        """Whether A learns from images with synthetic lesions."""
        return self.settings.mimic.objective == "denoising"

    def initialize(self) -> None:
        """Build A, load G, and give A G's compressor, fixed."""
        path = self.teacher_checkpoint()
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        super().initialize()
        check_split(checkpoint["init_args"].get(SPLIT), self.split(), str(path))
        self.teacher_sha256 = sha256_of([path])
        self.teacher_is_pretrained = checkpoint["init_args"].get(PRETRAINED, False)
        self.teacher = nnUNetTrainerInpainting.build_reconstruction_network(
            self.plans_manager, self.configuration_manager, self.num_input_channels, 0
        ).to(self.device)
        self.teacher.load_state_dict(checkpoint["network_weights"])
        self.teacher.eval().requires_grad_(False)
        self.take_over_compressor()
        self.initial_weights = digest_of_weights(self.network)

    def take_over_compressor(self) -> None:
        """C is G's."""
        if self.teacher.compressor is not None:
            compressor = self.bare_network().compressor
            assert compressor is not None  # both networks are built from the same plans
            compressor.load_state_dict(self.teacher.compressor.state_dict())

    def on_train_start(self) -> None:
        """As for all reconstructions, and note which G this is learnt from.

        Raises:
            InputError: the training that is to go on was begun with another G.
        """
        super().on_train_start()
        if self.current_epoch == 0:
            self.take_over_compressor()  # -pretrained_weights brings another one
        learnt_from = self.my_init_kwargs.setdefault(TEACHER, self.teacher_sha256)
        if learnt_from != self.teacher_sha256 and self.current_epoch < self.num_epochs:
            raise InputError(
                f"{self.teacher_checkpoint()} was trained again since this training began: A would learn from two "
                "networks. Train it again, without --c."
            )

    def is_pretrained(self) -> bool:
        """What G has learnt A learns too."""
        return self.teacher_is_pretrained or super().is_pretrained()

    def teacher_checkpoint(self) -> Path:
        """Final checkpoint of G for the same dataset, plans, configuration and fold.

        Raises:
            MissingCheckpointError: G has not been trained (to its end); the message has the command.
        """
        teacher = self.settings.mimic.teacher_trainer
        if not teacher:
            suffix = re.search(r"_\d+epochs?$", type(self).__name__)
            teacher = nnUNetTrainerInpainting.__name__ + (suffix.group() if suffix else "")
        plans = self.plans_manager
        model = f"{teacher}__{plans.plans_name}__{self.configuration_name}"
        path = Path(self.output_folder_base).parent / model / f"fold_{self.fold}" / "checkpoint_final.pth"
        if not path.is_file():
            raise MissingCheckpointError(
                f"{type(self).__name__} learns from G of the same fold, but {path} does not exist. Train it first: "
                f"nnUNetv2_train {plans.dataset_name} {self.configuration_name} {self.fold} -tr {teacher} "
                f"-p {plans.plans_name}"
            )
        return path

    def with_extra_channels(self, pipeline: ComposeTransforms) -> ComposeTransforms:
        """Denoising: lesions in the image, then clean image and region; in validation too, for the same task."""
        if not self.denoising:
            return super().with_extra_channels(pipeline)
        lesions = SyntheticLesionTransform(
            self.settings.roi.labels,
            self.configuration_manager.spacing,
            **dataclasses.asdict(self.settings.corruption),
            limits=(0.0, 1.0),
            keep_clean=True,
        )
        return protect_channels(insert_after_resampling(pipeline, [lesions, self.roi_transform()]))

    def _build_loss(self) -> Any:
        weight = self.settings.mimic.error_term_weight

        def loss(mimicked: torch.Tensor, target: list[torch.Tensor]) -> torch.Tensor:
            taught, image = target
            return denoising_loss(taught, mimicked) if self.denoising else mimic_loss(image, taught, mimicked, weight)

        return loss

    def input_and_target(self, data: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A's input (corrupted when denoising), and G's reconstruction of the clean image with that image."""
        channels = self.num_input_channels
        clean_with_roi = data[:, channels:] if self.denoising else data
        with torch.no_grad():
            taught = self.teacher(clean_with_roi).float()
        return data[:, :channels], [taught, clean_with_roi[:, :-1]]

    def validation_step(self, batch: dict) -> dict:
        """Loss, and the leak on the image without synthetic lesions."""
        data = batch["data"].to(self.device, non_blocking=True)
        image, (taught, clean) = self.input_and_target(data)
        loss = self.loss(self.forward_pass(image), [taught, clean])
        passed, removed = leak_sums(clean, taught, self.forward_pass(clean), data[:, -1:])
        return {"loss": loss.cpu().numpy(), "passed": float(passed), "removed": float(removed)}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the loss and the leak, pooled over the epoch."""
        passed, removed = (mean_over_gpus([output[name] for output in val_outputs]) for name in ("passed", "removed"))
        self.logger.log("leak", passed / removed if removed else float("nan"), self.current_epoch)
        super().on_validation_epoch_end([{"loss": output["loss"]} for output in val_outputs])

    def on_epoch_end(self) -> None:
        """As for all reconstructions, and warn when A lets through what G would have replaced."""
        value = self.logger.get_value("leak", step=-1)
        if value > self.settings.mimic.leak_warning:
            self.print_to_log_file(
                f"WARNING: the leak is {value:.2f} (0 copies G, 1 is the identity). A passes on most of what G would "
                "have replaced, so that lesions hardly show in its error maps. Set mimic.objective=denoising, or make "
                "error maps by two passes (nnunet-anomaly error-maps --masks-from)."
            )
        super().on_epoch_end()


__getattr__ = epoch_variants(globals())
