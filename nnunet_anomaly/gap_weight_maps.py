"""Weight maps of preprocessed cases (Xu 2022, equation 1): made once per case, kept beside the preprocessed folder.

``<data_identifier>_gap_weights_w20_s3.9_e2.34`` lies beside ``<data_identifier>`` (inside, nnU-Net would take a map for
a case) and bears the settings in its name, so that trainings with other settings, at the same time too, do not meet::

    case.b2nd   w - 1, float32 (1, *spatial), on the grid of nnU-Net's case_seg.b2nd and chunked as nnU-Net does
    case.json   what it was made from: label file (path, size, time of change), settings, grid; and its size in bytes

What is carried is w - 1, because 0 is what nnU-Net pads patches with: there the weight is 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

from nnunet_anomaly.errors import AnomalyError, InputError
from nnunet_anomaly.files import (
    is_up_to_date,
    load_json,
    made_from,
    remove_left_overs,
    run_cases,
    save_json,
    written_whole,
)
from nnunet_anomaly.losses.gap_weighted import gap_weights
from nnunet_anomaly.settings import GapWeightSettings

# Older temporary files are of killed runs; other folds may write maps into the same folder, each within seconds.
LEFT_OVER_S = 3600.0


@dataclasses.dataclass(frozen=True)
class MapSettings:
    """What a map depends on beside the label map.

    Attributes:
        amplitude: w0.
        sigma_mm: width of the gap.
        erosion_mm: radius of the ball by which structures are eroded before.
        labels: values of the structures, without background and ignore label; others count as background.
        spacing_mm: of the configuration; two values for a 2-D one, whose first axis keeps the case's own spacing.
        first_axis: where a case's properties have the spacing of that axis (nnU-Net's ``transpose_forward[0]``).
        patch_size: decides how maps are chunked.
    """

    amplitude: float
    sigma_mm: float
    erosion_mm: float
    labels: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    first_axis: int
    patch_size: tuple[int, ...]


def maps_folder(preprocessed_folder: Path, weights: GapWeightSettings) -> Path:
    """Folder of the maps of a preprocessed folder."""
    values = f"w{weights.amplitude:g}_s{weights.sigma_mm:g}_e{weights.erosion_mm:g}"
    return preprocessed_folder.with_name(f"{preprocessed_folder.name}_gap_weights_{values}")


def gap_weights_above_one(segmentation: np.ndarray, spacing_mm: Sequence[float], settings: MapSettings) -> np.ndarray:
    """w - 1 of a preprocessed label map.

    Negative values, nnU-Net's mark of what lies outside the image's non-zero part, and the ignore label, behind which
    nobody knows what lies, are background. A single slice is looked at in 2-D: the edge of the array would erode it
    away.

    Args:
        segmentation: integers (*spatial).
        spacing_mm: voxel size along every axis.
        settings: weights and labels.

    Returns:
        float32 array of the same shape, 0 and more; 0 everywhere with fewer than two structures.
    """
    labels = np.maximum(segmentation, 0)
    flat = labels.ndim == 3 and labels.shape[0] == 1
    weights = gap_weights(
        labels[0] if flat else labels,
        spacing_mm[1:] if flat else spacing_mm,
        amplitude=settings.amplitude,
        sigma_mm=settings.sigma_mm,
        erosion_mm=settings.erosion_mm,
        labels=settings.labels,
    )
    weights -= 1
    return weights[None] if flat else weights


def write_maps(
    preprocessed_folder: Path, folder: Path, cases: Sequence[str], settings: MapSettings, num_processes: int
) -> None:
    """Make the maps that are not there yet or whose label map or settings changed; each process holds one case.

    A map whose size is not the one that was recorded is damaged, and made again.

    Args:
        preprocessed_folder: of nnU-Net's, with ``case_seg.b2nd``.
        folder: see ``maps_folder``.
        cases: names; a case twice counts once.
        settings: see there.
        num_processes: 1 or less works in this process.

    Raises:
        AnomalyError: some cases failed, which are named; the others are done.
        InputError: a case is not there, or preprocessed in nnU-Net's former format.
    """
    cases = sorted(set(cases))
    missing = [case for case in cases if not (preprocessed_folder / f"{case}_seg.b2nd").is_file()]
    if missing:
        raise InputError(
            f"{preprocessed_folder} has no {missing[0]}_seg.b2nd ({len(missing)} of {len(cases)} cases). Preprocess "
            "this configuration again (nnUNetv2_preprocess)."
        )
    remove_left_overs(folder, older_than_s=LEFT_OVER_S)
    stale = [case for case in cases if not _is_finished(preprocessed_folder, folder, case, settings)]
    if not stale:
        return
    arguments = [(case, (preprocessed_folder, folder, case, settings)) for case in stale]
    outcome = run_cases(write_map, arguments, num_processes, "Gap weights")
    if outcome.failed:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in outcome.failed.items())
        raise AnomalyError(f"Weight maps of {len(outcome.failed)} of {len(stale)} cases failed. {reasons}")


def write_map(preprocessed_folder: Path, folder: Path, case: str, settings: MapSettings) -> None:
    """Make the map of one case, then its record."""
    source = _made_from(preprocessed_folder, case, settings)  # before reading: a label map that changes now is stale
    segmentation = blosc2.open(str(preprocessed_folder / f"{case}_seg.b2nd"), mode="r")[0]
    spacing_mm = settings.spacing_mm
    if len(spacing_mm) < segmentation.ndim:
        properties = load_pickle(str(preprocessed_folder / f"{case}.pkl"))
        spacing_mm = (float(properties["spacing"][settings.first_axis]), *spacing_mm)
    above_one = gap_weights_above_one(segmentation, spacing_mm, settings)[None]
    blocks, chunks = comp_blosc2_params(above_one.shape, settings.patch_size, above_one.itemsize)
    compression = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
    with written_whole(folder / f"{case}.b2nd") as temporary:
        blosc2.asarray(above_one, urlpath=str(temporary), mode="w", chunks=chunks, blocks=blocks, cparams=compression)
        size_bytes = temporary.stat().st_size
    save_json({"made_from": source, "size_bytes": size_bytes}, folder / f"{case}.json")


def _made_from(preprocessed_folder: Path, case: str, settings: MapSettings) -> Any:
    return made_from([preprocessed_folder / f"{case}_seg.b2nd"], dataclasses.asdict(settings))


def _is_finished(preprocessed_folder: Path, folder: Path, case: str, settings: MapSettings) -> bool:
    path, record = folder / f"{case}.b2nd", folder / f"{case}.json"
    if not path.is_file() or not is_up_to_date(record, _made_from(preprocessed_folder, case, settings)):
        return False
    return load_json(record).get("size_bytes") == path.stat().st_size


class StackedChannels:
    """Arrays (c, *spatial) of one grid, seen as one of all their channels; only what is asked for is read.

    It has what nnU-Net's loader uses of an array: ``shape``, ``ndim``, ``dtype`` and crops of all channels.
    """

    def __init__(self, *parts: Any):
        self.parts = parts
        self.shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        self.ndim = len(self.shape)
        self.dtype = np.dtype(parts[0].dtype)
        if any(part.shape[1:] != self.shape[1:] for part in parts):
            raise ValueError(f"arrays of shapes {[tuple(part.shape) for part in parts]} do not lie on one grid")

    def __getitem__(self, index: Any) -> np.ndarray:
        """A crop of all channels: the index of the first axis has to be ``:``."""
        channels = index[0] if isinstance(index, tuple) else index
        if channels not in (slice(None), slice(0, self.shape[0])):
            raise IndexError(f"channels can only be read all together, not {channels}")
        inside = (slice(None), *index[1:]) if isinstance(index, tuple) else slice(None)
        return np.concatenate([np.asarray(part[inside], dtype=self.dtype) for part in self.parts])


class GapWeightedDataset(nnUNetDatasetBlosc2):
    """nnU-Net's dataset, with w - 1 as one more channel of every case."""

    def __init__(
        self,
        folder: str,
        identifiers: list[str] | None = None,
        folder_with_segs_from_previous_stage: str | None = None,
        *,
        maps: Path | None = None,
    ):
        """``maps``: the folder of the maps; None: all weights are 1."""
        super().__init__(folder, identifiers, folder_with_segs_from_previous_stage)
        self.maps = maps

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Image with weights (lazily read), labels, labels of the previous stage, properties."""
        data, segmentation, previous, properties = super().load_case(identifier)
        if self.maps is None:
            above_one = np.broadcast_to(np.float32(0), (1, *data.shape[1:]))
        else:
            path = str(self.maps / f"{identifier}.b2nd")
            above_one = blosc2.open(path, mode="r", dparams={"nthreads": 1}, **self.mmap_kwargs)
        return StackedChannels(data, above_one), segmentation, previous, properties
