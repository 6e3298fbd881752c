"""Batches of planes of several directions for nnU-Net's augmenters, out of whole volumes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from threadpoolctl import threadpool_limits

from nnunet_anomaly.views import plane_through, sample, sample_nearest

POOL_BYTES = 512 * 2**20
OUTSIDE = -1  # as nnU-Net pads label maps; its transforms make background of it


class Case(NamedTuple):
    """A preprocessed case in memory: float32 (1, C, Z, Y, X), integers (Z, Y, X), nnU-Net's class locations."""

    image: torch.Tensor
    labels: np.ndarray
    class_locations: dict[Any, np.ndarray]

    @property
    def bytes(self) -> int:
        """Of the image and the labels."""
        return self.image.nbytes + self.labels.nbytes


class PlaneDataLoader(nnUNetDataLoader):
    """nnU-Net's loader; a sample is a plane of one of the views through a voxel that nnU-Net's sampling chose.

    The voxel is one of the foreground for the share that nnU-Net oversamples, otherwise any (with an ignore label: any
    that has another label); the plane is moved at random along its rows and columns. All channels of a case are sampled
    linearly, 0 outside, side maps that a dataset appends to the image too; labels by the nearest voxel.

    A plane crosses a whole volume, so cases are read whole, and kept: every process holds a pool of up to
    ``POOL_BYTES`` of images and labels (one case at least), from which all samples are drawn. Before each batch one
    more random case is read, if it is not there; what is there longest leaves when there is no more room.

    Args:
        data: preprocessed cases.
        batch_size: planes in a batch.
        label_manager: nnU-Net's.
        frames: (views, 3, 3), see ``nnunet_anomaly.views``.
        spacing_mm: voxel size of the cases.
        pixel_mm: distance of rows and columns.
        plane_pixels: number of rows, and of columns.
        more: as for nnU-Net's loader.
    """

    def __init__(
        self,
        data: nnUNetBaseDataset,
        batch_size: int,
        label_manager: LabelManager,
        frames: np.ndarray,
        spacing_mm: list[float],
        pixel_mm: float,
        plane_pixels: int,
        **more: Any,
    ):
        # nnU-Net chooses a patch of one voxel
        super().__init__(data, batch_size, (1, 1, 1), (1, 1, 1), label_manager, **more)
        self.frames, self.spacing_mm, self.pixel_mm, self.plane_pixels = frames, spacing_mm, pixel_mm, plane_pixels
        self.pool: dict[str, Case] = {}

    def generate_train_batch(self) -> dict[str, Any]:
        """``data`` (B, C, rows, columns), ``target`` (a list for deep supervision) and the cases' names, ``keys``."""
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
            drawn = self.get_indices()
            for key in drawn[:1] if self.pool else drawn:
                self.read(key)
            keys = np.random.choice(list(self.pool), self.batch_size)  # noqa: NPY002 - as nnU-Net's workers are seeded
            samples = [self.plane_of(self.pool[key], self.get_do_oversample(j)) for j, key in enumerate(keys)]
            targets = [one["segmentation"] for one in samples]
            target = (
                [torch.stack(scale) for scale in zip(*targets, strict=True)]
                if isinstance(targets[0], list)
                else torch.stack(targets)
            )
            return {"data": torch.stack([one["image"] for one in samples]), "target": target, "keys": keys}

    def read(self, key: str) -> None:
        """Put a case into the pool."""
        if key in self.pool:
            return
        image, labels, _, properties = self._data.load_case(key)
        self.pool[key] = Case(
            torch.from_numpy(np.asarray(image[:], dtype=np.float32))[None],
            np.asarray(labels[:])[0],
            properties["class_locations"],
        )
        while len(self.pool) > 1 and sum(case.bytes for case in self.pool.values()) > POOL_BYTES:
            del self.pool[next(iter(self.pool))]

    def plane_of(self, case: Case, foreground: bool) -> dict[str, Any]:
        """One plane, transformed: ``image`` (C, rows, columns) and ``segmentation`` (1, rows, columns) or a list."""
        voxel, _ = self.get_bbox(case.labels.shape, foreground, case.class_locations)
        frame = self.frames[np.random.randint(len(self.frames))]  # noqa: NPY002
        shift = np.random.uniform(-1, 1, 2)  # noqa: NPY002
        plane = plane_through(voxel, frame, case.labels.shape, self.spacing_mm, self.pixel_mm, self.plane_pixels, shift)
        image = sample(case.image, plane)[0, :, 0]
        labels = torch.from_numpy(sample_nearest(case.labels, plane, OUTSIDE).astype(np.int16))
        if self.transforms is None:
            return {"image": image, "segmentation": labels}
        return self.transforms(image=image, segmentation=labels)
