"""nnU-Net's augmenters over loaders of our own: ``nnUNetTrainer.get_dataloaders`` has no place to put one in."""

from __future__ import annotations

from typing import Any

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA


class OwnLoader(nnUNetTrainer):
    """Base of trainers whose batches come from another loader than nnU-Net's, through all that nnU-Net does to them."""

    dataset_class: Any

    def loader(self, dataset: Any, transforms: ComposeTransforms, loaded_patch: Any) -> nnUNetDataLoader:
        """The loader of training or held-out cases.

        Args:
            dataset: either of ``get_tr_and_val_datasets``.
            transforms: of its samples.
            loaded_patch: size of patches before the transforms.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it loads")

    def patch_of_network(self) -> Any:
        """Size of patches after the transforms."""
        return self.configuration_manager.patch_size

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Batches of training and of held-out cases, made in the background as in nnU-Net."""
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        rotation, dummy_2d, loaded_patch, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        scales, labels, patch = self._get_deep_supervision_scales(), self.label_manager, self.patch_of_network()
        common = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": labels.foreground_labels,
            "regions": labels.foreground_regions if labels.has_regions else None,
            "ignore_label": labels.ignore_label,
        }
        masks = self.configuration_manager.use_mask_for_norm
        training = self.get_training_transforms(
            patch, rotation, scales, mirror_axes, dummy_2d, use_mask_for_norm=masks, **common
        )
        validation = self.get_validation_transforms(scales, **common)
        training_cases, held_out = self.get_tr_and_val_datasets()
        processes = get_allowed_n_proc_DA()
        augmenters = (
            self.augmenter(self.loader(training_cases, training, loaded_patch), processes, 1),
            self.augmenter(self.loader(held_out, validation, patch), processes, 2),
        )
        for augmenter in augmenters:
            next(augmenter)  # nnU-Net starts them here, too
        return augmenters

    def augmenter(self, loader: nnUNetDataLoader, processes: int, share: int) -> Any:
        """In this process without others, else in one of so many, as nnU-Net's."""
        if processes == 0:
            return SingleThreadedAugmenter(loader, None)
        return NonDetMultiThreadedAugmenter(
            data_loader=loader,
            transform=None,
            num_processes=max(1, processes // share),
            num_cached=max(6 // share, processes // (2 * share)),
            seeds=None,
            pin_memory=self.device.type == "cuda",
            wait_time=0.002,
        )
