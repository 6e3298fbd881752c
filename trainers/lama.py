"""Large-mask inpainting of bone, learnt from slices without a lesion (Qin et al. 2024; LaMa: Suvorov et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from torch import distributed, nn

from nnunet_anomaly.architectures.fourier_convolution import LaMaGenerator
from nnunet_anomaly.architectures.patch_discriminator import PatchDiscriminator
from nnunet_anomaly.architectures.vgg import VGG16Features
from nnunet_anomaly.augmentation.bias_field import BiasFieldTransform
from nnunet_anomaly.augmentation.large_masks import LargeMaskTransform
from nnunet_anomaly.augmentation.protected_channels import protect_channels
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.files import named_file
from nnunet_anomaly.gpus import mean_over_gpus
from nnunet_anomaly.losses import adversarial
from nnunet_anomaly.settings import AnomalySettings, LaMaSettings
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunet_anomaly.trainers.reconstruction import ReconstructionTrainer
from nnunet_anomaly.two_optimizers import DecayOfBoth, TwoOptimizers

PERCEPTUAL_LAYERS = (3, 8, 15, 22, 29)  # of VGG-16: the last ReLU of every stage


class nnUNetTrainerLaMa(ReconstructionTrainer):
    """The slice with the bone erased, and the bone's mask, go in; the slice with healthy bone comes out.

    The generator is LaMa's, of fast Fourier convolutions; a PatchGAN discriminator learns against it.
    """

    planner = "nnUNetPlannerLaMa"
    healthy_slices_only = True
    discriminator: nn.Module
    perceptual: nn.Module | None = None  # there once a training starts, if at all
    optimizer: TwoOptimizers

    @property
    def recipe(self) -> LaMaSettings:
        """Learning rates, schedule, epochs and mirror axes."""
        return self.settings.lama

    @property
    def extra_metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """Every term of both losses, before its weight."""
        terms = ("l1_known", "l1_region", "adversarial", "feature_matching", "discriminator", "r1")
        return (*terms, "perceptual") if self.settings.lama.perceptual_checkpoint else terms

    @staticmethod
    def erased_margin_mm(settings: AnomalySettings) -> float:
        """The bone's mask itself is erased; a margin only where the settings say so."""
        return settings.lama.dilation_mm

    def check_scale(self) -> None:
        """As for all reconstructions; and slices are 2-D.

        Raises:
            SettingsError: another configuration.
        """
        super().check_scale()
        if len(self.configuration_manager.patch_size) != 2:
            raise SettingsError(
                f"{type(self).__name__} inpaints slices. Train it on 2d{self.suffix} of plans made by -pl "
                f"{self.planner}."
            )

    # -- networks and optimisers --------------------------------------------------------------------------------------

    @classmethod
    def build_reconstruction_network(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """The generator, shaped by the settings."""
        lama = AnomalySettings.from_plans(plans_manager.plans).lama
        return LaMaGenerator(
            num_input_channels,
            features=lama.features,
            n_downsamplings=lama.downsamplings,
            n_blocks=lama.blocks,
            global_ratio=lama.global_ratio,
        )

    def _do_i_compile(self) -> bool:
        """torch.compile makes nothing of complex numbers, and the generator is full of them."""
        return False

    def configure_optimizers(self) -> tuple[Any, Any]:
        """Adam for each of the two, at rates of their own, constant or with nnU-Net's decay.

        On several GPUs the discriminator normalises by the batch of each GPU: torch's SyncBatchNorm, which nnU-Net
        gives the generator, cannot be differentiated twice, and the R1 penalty does that.
        """
        lama = self.settings.lama
        self.discriminator = PatchDiscriminator(self.num_input_channels, features=lama.discriminator_features)
        self.discriminator.to(self.device)
        if self.is_ddp:
            for tensor in self.discriminator.state_dict().values():
                distributed.broadcast(tensor, 0)
        both = TwoOptimizers(
            torch.optim.Adam(self.network.parameters(), lama.learning_rate),
            torch.optim.Adam(self.discriminator.parameters(), lama.discriminator_learning_rate),
            self.discriminator,
        )
        return both, DecayOfBoth(both, self.num_epochs, 0.9 if lama.learning_rate_schedule == "poly" else 0.0)

    def perceptual_features(self) -> nn.Module | None:
        """The network whose features make the perceptual term; None without a file of its weights.

        Raises:
            InputError: the file is missing, or does not hold such weights.
        """
        name = self.settings.lama.perceptual_checkpoint
        if not name:
            return None
        return VGG16Features(named_file(name), PERCEPTUAL_LAYERS).to(self.device).eval().requires_grad_(False)

    # -- data ---------------------------------------------------------------------------------------------------------

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        """Nothing is rotated or scaled, so that what is loaded is what the network takes."""
        rotation, dummy_2d, _, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return rotation, dummy_2d, self.configuration_manager.patch_size, mirror_axes

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:  # type: ignore[override]
        """Flips, the bone's mask, large masks beside it where wanted, and a random bias field on the image."""
        lama = self.settings.lama
        mirror: list[BasicTransform] = [MirrorTransform(lama.mirror_axes)] if lama.mirror_axes else []
        masks = LargeMaskTransform(
            probability=lama.large_mask_probability, share=lama.large_mask_share, box_probability=0.5
        )
        field = BiasFieldTransform(
            probability=lama.bias_field_probability, order=3, strength=lama.bias_field_strength, limits=(0.0, 1.0)
        )
        pipeline = [*mirror, RemoveLabelTansform(-1, 0), self.roi_transform(), masks, field]
        return protect_channels(ComposeTransforms(pipeline))

    # -- training -----------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """As for all reconstructions, but first load the weights of the perceptual term, which nothing else needs."""
        self.perceptual = self.perceptual_features()
        super().on_train_start()

    def _build_loss(self) -> Any:
        """Both losses are put together in ``train_step``."""
        return None

    def train_step(self, batch: dict) -> dict:
        """The discriminator learns to tell the reconstruction from the image, then the generator to pass for it."""
        data = batch["data"].to(self.device, non_blocking=True)
        image, region = data[:, :-1], data[:, -1:]
        inpainted = self.forward_pass(data)
        terms = self.train_discriminator(image, inpainted.detach(), region)
        total, more = self.train_generator(image, inpainted, region)
        return {"loss": total, **{name: float(value.detach()) for name, value in {**terms, **more}.items()}}

    def train_discriminator(
        self, image: torch.Tensor, inpainted: torch.Tensor, region: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One step: non-saturating loss, in which what was not erased counts as real, and the R1 penalty."""
        optimizer = self.optimizer.discriminator
        self.discriminator.train().requires_grad_(True)
        optimizer.zero_grad(set_to_none=True)
        real_image = image.detach().requires_grad_(True)
        real, _ = self.discriminator(real_image)
        fake, _ = self.discriminator(inpainted)
        terms = {
            "discriminator": adversarial.discriminator_loss(real, fake, region),
            "r1": adversarial.r1_penalty(real, real_image),
        }
        (terms["discriminator"] + self.settings.lama.r1_weight * terms["r1"]).backward()
        if self.is_ddp:
            for gradient in (parameter.grad for parameter in self.discriminator.parameters()):
                if gradient is not None:
                    distributed.all_reduce(gradient)
                    gradient /= distributed.get_world_size()
        optimizer.step()
        return terms

    def train_generator(
        self, image: torch.Tensor, inpainted: torch.Tensor, region: torch.Tensor
    ) -> tuple[float, dict[str, torch.Tensor]]:
        """One step; the weighted sum of all terms, and the terms."""
        lama, optimizer = self.settings.lama, self.optimizer.generator
        self.discriminator.requires_grad_(False)
        with torch.no_grad():
            _, real_features = self.discriminator(image)
        fake, fake_features = self.discriminator(inpainted)
        terms = {
            "l1_known": adversarial.weighted_l1_loss(image, inpainted, region, 0, 1),
            "l1_region": adversarial.weighted_l1_loss(image, inpainted, region, 1, 0),
            "adversarial": adversarial.generator_loss(fake),
            "feature_matching": adversarial.feature_matching_loss(real_features, fake_features),
        }
        weights = {
            "l1_known": lama.l1_known_weight,
            "l1_region": lama.l1_region_weight,
            "adversarial": lama.adversarial_weight,
            "feature_matching": lama.feature_matching_weight,
        }
        if self.perceptual is not None:
            terms["perceptual"] = adversarial.perceptual_loss(image, inpainted, self.perceptual)
            weights["perceptual"] = lama.perceptual_weight
        total = torch.stack([weights[name] * terms[name] for name in terms]).sum()
        optimizer.zero_grad(set_to_none=True)
        if self.grad_scaler is None:
            total.backward()
            optimizer.step()
        else:
            self.grad_scaler.scale(total).backward()
            self.grad_scaler.step(optimizer)
            self.grad_scaler.update()
        return float(total.detach()), terms

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the mean of every term."""
        for name in train_outputs[0]:
            mean = mean_over_gpus([float(output[name]) for output in train_outputs])
            self.logger.log("train_losses" if name == "loss" else name, mean, self.current_epoch)

    def validation_step(self, batch: dict) -> dict:
        """Sum of absolute errors inside the region, and its pixels."""
        data = batch["data"].to(self.device, non_blocking=True)
        with torch.no_grad():
            errors = (self.forward_pass(data) - data[:, :-1]).abs().mean(1, keepdim=True) * data[:, -1:]
        return {"errors": float(errors.sum()), "pixels": float(data[:, -1:].sum())}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """The validation loss is the mean absolute error inside the region, over all pixels of the epoch."""
        errors, pixels = (mean_over_gpus([output[name] for output in val_outputs]) for name in val_outputs[0])
        self.logger.log("val_losses", errors / pixels if pixels else float("nan"), self.current_epoch)


__getattr__ = epoch_variants(globals())
