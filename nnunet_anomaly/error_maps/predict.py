"""From a reconstruction network to an error map in the original geometry.

A reconstruction is not logits: nnU-Net's predictor would allocate one half-precision channel per label and broadcast
ours into them. So the sliding window here is in float32 with the network's own channel count; everything around it
(steps, Gaussian weights, padding, resampling) is nnU-Net's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from nnunet_anomaly.errors import GeometryError, InputError
from nnunet_anomaly.files import save_volume
from nnunet_anomaly.label_maps import ENDINGS

Residual = Literal["squared", "absolute", "output"]


def error_map(
    image: torch.Tensor, reconstruction: torch.Tensor, inside: torch.Tensor, residual: Residual = "squared"
) -> torch.Tensor:
    """E = (x - A(x))^2 (Woo, section 2.2), or |x - A(x)| (Bengs, section 2.3): two (C, ...) float32 to (1, ...).

    With ``"output"`` the network gives no reconstruction but E itself, which stands in its place.

    It is averaged over image channels. ``inside`` (1, ...) is nnU-Net's non-zero region. E is 0 outside it, or else an
    image with a black background would be normalised over another region once E is one of its channels.
    """
    if image.shape != reconstruction.shape:
        raise GeometryError(f"The image is {tuple(image.shape)} but its reconstruction {tuple(reconstruction.shape)}.")
    if residual == "output":
        error = reconstruction
    else:
        difference = image - reconstruction
        error = difference.square() if residual == "squared" else difference.abs()
    return error.mean(0, keepdim=True) * inside


def windows(shape: Sequence[int], patch_size: Sequence[int], step: float) -> Iterator[tuple[Any, ...]]:
    """Index tuples of (C, *shape) that cover it with patches; a 2-D patch visits every slice of the first axis."""
    planes: Sequence[Any] = range(shape[0]) if len(patch_size) < len(shape) else [None]
    starts = compute_steps_for_sliding_window(tuple(shape[-len(patch_size) :]), tuple(patch_size), step)
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, len(patch_size))
    for plane in planes:
        for corner in corners:
            box = tuple(slice(int(low), int(low) + size) for low, size in zip(corner, patch_size, strict=True))
            yield (slice(None), *(() if plane is None else (plane,)), *box)


@torch.no_grad()  # not inference_mode: a network may need gradients with respect to the image for its result
def reconstruct(
    network: torch.nn.Module,
    volume: torch.Tensor,
    patch_size: Sequence[int],
    device: torch.device | str = "cpu",
    step: float = 0.5,
) -> torch.Tensor:
    """Slide a reconstruction network over a volume, with Gaussian weights where windows overlap.

    Args:
        network: takes (1, C_in, *patch), gives (1, C_out, *patch); used in evaluation mode.
        volume: float32 (C_in, x, y, z); smaller than the patch it is padded with zeros.
        patch_size: 2 or 3 sizes; with 2 the network sees slices of the first axis.
        device: where the network runs; the result stays on the CPU.
        step: step of the window as a share of the patch.

    Returns:
        float32 (C_out, x, y, z). A volume that fits in one patch is one whole forward pass, exactly.

    Raises:
        InputError: the network takes whole volumes, and this one is larger than its patch.
    """
    if getattr(network, "takes_whole_volumes", False):
        check_it_fits(volume.shape[1:], patch_size)
    network = network.to(device).eval()
    padded, unpad = pad_nd_image(volume.float(), tuple(patch_size), "constant", {"value": 0}, True, None)
    weight = compute_gaussian(tuple(patch_size), 1 / 8, 10, torch.float32, torch.device("cpu"))
    total: torch.Tensor | None = None
    weights = torch.zeros((1, *padded.shape[1:]))
    boxes = list(windows(padded.shape[1:], patch_size, step))
    for box in boxes:
        output = network(padded[box][None].to(device))[0].float().cpu()
        if total is None:
            total = torch.zeros((output.shape[0], *padded.shape[1:]))
        total[box] += output * weight
        weights[box] += weight
    assert total is not None  # there is always one window
    total /= weights
    inside = (slice(None), *unpad[1:])
    return total[inside].clone()


def check_it_fits(shape: Sequence[int], patch_size: Sequence[int]) -> None:
    """A network that takes whole volumes cannot be slid over one that is larger than its patch.

    Raises:
        InputError: it is.
    """
    if any(size > most for size, most in zip(shape[-len(patch_size) :], patch_size, strict=True)):
        raise InputError(
            f"The image has {tuple(shape)} voxels on the network's grid, but the network takes at most "
            f"{tuple(patch_size)}: it is larger than all images that were planned with. Is its background zero (skull "
            "stripped)? Else plan with it among the training images, and train again."
        )


def mean_reconstruction(
    network: torch.nn.Module,
    parameters: Sequence[Mapping[str, torch.Tensor]],
    volume: torch.Tensor,
    patch_size: Sequence[int],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Mean of the reconstructions by several sets of weights (the folds), in float32."""
    if not parameters:
        raise ValueError("there is no set of weights to reconstruct with")
    total: torch.Tensor | None = None
    for weights in parameters:
        network.load_state_dict(weights)
        reconstruction = reconstruct(network, volume, patch_size, device)
        total = reconstruction if total is None else total + reconstruction
    assert total is not None
    return total / len(parameters)


def to_original_grid(grid_map: torch.Tensor, properties: Mapping[str, Any], plans: Any, spacing_mm: Any) -> np.ndarray:
    """Bring (C, *preprocessed grid) to (C, *original grid) linearly, undoing nnU-Net's resampling, crop and transpose.

    Args:
        grid_map: float32, on the grid of a configuration.
        properties: nnU-Net's properties of the case.
        plans: nnU-Net's PlansManager.
        spacing_mm: spacing of the configuration; 2 entries for a 2-D one.

    Returns:
        float32 array; 0 outside nnU-Net's crop.
    """
    original_mm = [properties["spacing"][axis] for axis in plans.transpose_forward]
    current_mm = list(spacing_mm) if len(spacing_mm) == len(original_mm) else [original_mm[0], *spacing_mm]
    cropped = resample_data_or_seg_to_shape(
        grid_map.numpy(),
        properties["shape_after_cropping_and_before_resampling"],
        current_mm,
        original_mm,
        is_seg=False,
        order=1,
        order_z=0,
        force_separate_z=False,
    )
    whole = np.zeros((len(cropped), *properties["shape_before_cropping"]), dtype=np.float32)
    box = [[0, len(cropped)], *properties["bbox_used_for_cropping"]]
    whole = insert_crop_into_image(whole, np.asarray(cropped, dtype=np.float32), box)
    return np.ascontiguousarray(whole.transpose([0, *(axis + 1 for axis in plans.transpose_backward)]))


def map_file_ending(dataset_json: Mapping[str, Any]) -> str:
    """File ending of a dataset, in which its error maps are written too: nnU-Net wants all channels alike.

    Raises:
        InputError: it is none that SimpleITK writes floating-point numbers with their geometry to.
    """
    ending: str = dataset_json["file_ending"]
    if ending not in ENDINGS:
        raise InputError(f"Error maps are made for {', '.join(ENDINGS)}, but the dataset has {ending}. Convert it.")
    return ending


def save_in_original_geometry(
    grid_map: torch.Tensor, paths: Sequence[Path], properties: Mapping[str, Any], plans: Any, spacing_mm: Any
) -> None:
    """Write each channel of a map as a float32 image in the case's original geometry.

    Raises:
        InputError: the case was not read by nnU-Net's SimpleITK reader, so that its geometry is not known.
    """
    if "sitk_stuff" not in properties:
        raise InputError(
            f"{paths[0].name}: the images were not read by SimpleITKIO. Set "
            '"overwrite_image_reader_writer": "SimpleITKIO" in dataset.json, plan and preprocess again.'
        )
    original = to_original_grid(grid_map, properties, plans, spacing_mm)
    geometry = properties["sitk_stuff"]
    for channel, path in zip(original, paths, strict=True):
        volume = channel[0] if len(geometry["spacing"]) == 2 else channel
        save_volume(volume, path, geometry["spacing"], geometry["origin"], geometry["direction"])
