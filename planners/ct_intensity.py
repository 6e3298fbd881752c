"""``anomaly.intensity.ct`` in nnU-Net's own part of the plans: schemes, their statistics, names of data folders.

Data that are normalised in different ways never share a folder: the folder's name (nnU-Net's ``data_identifier``) ends
in the scheme, and in a digest of its statistics where these are of all training cases.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import open_pool, read_image
from nnunet_anomaly.planners.normalization import (
    QUARTILE_STATISTICS,
    QuartileFingerprintNormalization,
    QuartileNormalization,
)

SCHEMES = {
    "nnunet": CTNormalization.__name__,
    "quartile_case": QuartileNormalization.__name__,
    "quartile_fingerprint": QuartileFingerprintNormalization.__name__,
}
LARGEST_HU = 2**15 - 1
_SUFFIX = re.compile(r"_quartile_(case|fingerprint_[0-9a-f]{8})$")


def ct_channels(plans: dict[str, Any]) -> list[int]:
    """Channels that are normalised as CT, by nnU-Net's scheme or one of ours, in some configuration; ascending."""
    schemes = [entry.get("normalization_schemes", []) for entry in plans["configurations"].values()]
    return sorted({index for names in schemes for index, name in enumerate(names) if name in SCHEMES.values()})


def set_ct_scheme(plans: dict[str, Any], ct: str) -> None:
    """Write the schemes of the CT channels and the names of preprocessed folders that follow from them.

    A configuration that inherits from another one is normalised as that one, unless it has schemes of its own. Those
    whose channels are normalised in yet another way (for inpainting) stay as they are.

    Args:
        plans: changed in place.
        ct: ``anomaly.intensity.ct``. ``nnunet`` brings back what nnU-Net planned.

    Raises:
        SettingsError: ``quartile_fingerprint``, and the plans have no statistics (see ``add_quartile_statistics``).
    """
    suffix = "" if ct == "nnunet" else f"_{ct}"
    if ct == "quartile_fingerprint" and ct_channels(plans):
        suffix += f"_{_digest(plans)}"
    configurations = plans["configurations"]
    before = {name: _with_inherited(configurations, name) for name in configurations}
    for own in configurations.values():
        if names := own.get("normalization_schemes"):
            own["normalization_schemes"] = [SCHEMES[ct] if name in SCHEMES.values() else name for name in names]
    # those that others inherit from first, so that no folder is named twice
    for name in sorted(configurations, key=lambda name: len(_lineage(configurations, name))):
        is_ct = not set(SCHEMES.values()).isdisjoint(before[name].get("normalization_schemes", []))
        folder = _SUFFIX.sub("", before[name].get("data_identifier", "")) + (suffix if is_ct else "")
        if folder and _with_inherited(configurations, name)["data_identifier"] != folder:
            configurations[name]["data_identifier"] = folder


def _lineage(configurations: dict[str, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    own = configurations[name]
    parent = own.get("inherits_from")
    return [own] if parent is None else [*_lineage(configurations, parent), own]


def _with_inherited(configurations: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    # what a configuration has and inherits, as nnU-Net resolves it
    return {key: value for one in _lineage(configurations, name) for key, value in one.items()}


def _digest(plans: dict[str, Any]) -> str:
    properties = plans["foreground_intensity_properties_per_channel"]
    statistics = [[properties[str(channel)].get(key) for key in QUARTILE_STATISTICS] for channel in ct_channels(plans)]
    if any(value is None for values in statistics for value in values):
        raise SettingsError(
            "intensity.ct=quartile_fingerprint needs statistics of all training cases. They are put into the plans by: "
            "nnunet-anomaly plan --set intensity.ct=quartile_fingerprint"
        )
    return hashlib.sha256(repr(statistics).encode()).hexdigest()[:8]


def add_quartile_statistics(plans: dict[str, Any], raw_folder: Path, dataset_json: dict, num_processes: int) -> None:
    """Put mean and interquartile range of all training cases into the plans, where they are not there yet.

    What is there stays when cases are added to the dataset: networks that build on each other see one scale. Every
    voxel from 0 HU on counts once, in bins of 1 HU, so that the quartiles are exact for whole numbers. Where the
    quartiles are equal or there is no such voxel, the scale is that of ``QuartileNormalization``.

    Args:
        plans: changed in place.
        raw_folder: the dataset in nnUNet_raw.
        dataset_json: its dataset.json.
        num_processes: images read at a time.

    Raises:
        InputError: a training case or one of its channels is absent, or an image is damaged.
    """
    properties = plans["foreground_intensity_properties_per_channel"]
    channels = [c for c in ct_channels(plans) if not set(QUARTILE_STATISTICS) <= properties[str(c)].keys()]
    if not channels:
        return
    from tqdm import tqdm

    cases = get_filenames_of_train_images_and_targets(str(raw_folder), dataset_json)
    _check_all_there(raw_folder, dataset_json, cases, len(properties))
    reader = PlansManager(plans).image_reader_writer_class
    counts = np.zeros((len(channels), LARGEST_HU + 1), dtype=np.int64)
    with open_pool(min(num_processes, len(cases))) as pool:
        futures = [pool.submit(hu_counts, reader, case["images"], channels) for case in cases.values()]
        for future in tqdm(futures, desc="Quartiles of CT", unit="case"):
            counts += future.result()
    for channel, per_hu in zip(channels, counts, strict=True):
        properties[str(channel)].update(zip(QUARTILE_STATISTICS, pooled_statistics(per_hu), strict=True))


def _check_all_there(raw_folder: Path, dataset_json: dict, cases: Mapping[str, dict], num_channels: int) -> None:
    # nnU-Net lists what it finds: what is absent would change the statistics without a word
    ending = dataset_json["file_ending"]
    labelled = {path.name.removesuffix(ending) for path in (raw_folder / "labelsTr").glob(f"*{ending}")}
    if not cases or len(cases) != dataset_json.get("numTraining"):
        without = ", ".join(sorted(labelled - cases.keys())[:8])
        raise InputError(
            f"{raw_folder} has images of {len(cases)} training cases; numTraining in its dataset.json is "
            f"{dataset_json.get('numTraining')}. Label maps without image: {without or 'none'}. Put back what is "
            "missing, or mend numTraining."
        )
    for name, case in cases.items():
        if len(case["images"]) != num_channels:
            raise InputError(
                f"{raw_folder}: of {name} {len(case['images'])} of {num_channels} channels are there. Put back what is "
                "missing."
            )


def hu_counts(reader: type, image_files: list[str], channels: list[int]) -> np.ndarray:
    """Voxels of a case at every whole HU from 0 on (highest: ``LARGEST_HU`` and more); int64, a row per channel.

    Args:
        reader: nnU-Net's, of the dataset.
        image_files: of all channels of the case.
        channels: those that are CT.

    Raises:
        InputError: an image is missing, damaged or cut off.
    """
    for file in image_files:
        if file.endswith(tuple(SimpleITKIO.supported_file_endings)):  # not PNG and TIFF
            read_image(file)
    images, _, _ = crop_to_nonzero(reader().read_images(image_files)[0])  # what nnU-Net normalises
    rows = []
    for channel in channels:
        values = images[channel][images[channel] >= 0]
        rows.append(np.bincount(np.rint(np.minimum(values, LARGEST_HU)).astype(np.int64), minlength=LARGEST_HU + 1))
    return np.stack(rows)


def pooled_statistics(per_hu: np.ndarray) -> tuple[float, float]:
    """Mean and scale, in HU, from the number of voxels at every whole HU from 0 on; without any voxel (0, 1)."""
    total = int(per_hu.sum())
    if not total:
        return 0.0, 1.0
    hu = np.arange(len(per_hu), dtype=np.float64)
    low, high = np.searchsorted(np.cumsum(per_hu), (0.25 * total, 0.75 * total))
    mean = float(per_hu @ hu) / total
    spread = float(high - low) or float(np.sqrt(per_hu @ (hu - mean) ** 2 / total))
    return mean, spread or 1.0
