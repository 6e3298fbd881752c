"""Settings of the methods: typed, documented, validated; they live in the plans under ``"anomaly"`` and nowhere else.

Every setting has a value in each of two presets: ``paper`` (as published) and ``robust`` (what our own experiments
favour, the default). What depends on the data is derived by ``nnUNetPlannerAnomaly`` and written over the preset.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nnunet_anomaly.errors import SettingsError

PRESETS = ("robust", "paper")
BLOCK = "anomaly"
_SAME = object()


def setting(
    text: str,
    robust: Any,
    paper: Any = _SAME,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    derived: bool = False,
) -> Any:
    """A dataclass field with its documentation, its value in either preset and its allowed range.

    ``derived``: planning takes the value from the data, so that changing to a preset leaves it.
    """
    paper = robust if paper is _SAME else paper
    limits = {"minimum": minimum, "maximum": maximum}
    metadata = {"text": text, "robust": robust, "paper": paper, "derived": derived, **limits}
    return field(default_factory=lambda: robust, metadata=metadata)


@dataclass(frozen=True)
class RoiSettings:
    """The region of interest: where anomalies are looked for."""

    labels: tuple[int, ...] = setting(
        "Labels that make up the region; derived from dataset.json (`anomaly.roi_labels`), else all foreground.",
        (),
        derived=True,
    )
    dilation_mm: float = setting(
        "Margin around the labels that is erased for G as well (Woo: 50 voxels of 0.365 mm).", 3.0, 18.0, minimum=0
    )
    closing_mm: float = setting(
        "Closing of a predicted mask before two-pass inpainting, so that a lesion left out by it is erased too.",
        5.0,
        minimum=0,
    )


@dataclass(frozen=True)
class InpaintingSettings:
    """The inpainting networks G and A, and the compressor C."""

    code_channels: int = setting(
        "Channels of the compressor's code at the bottleneck; 0 leaves C out, because a spatial code carries the "
        "lesion through.",
        0,
        4,
        minimum=0,
    )
    upsampling: Literal["transposed", "interpolated"] = setting(
        "Upsampling in the decoder: transposed convolution, or linear interpolation followed by a convolution "
        "(no checkerboards).",
        "interpolated",
        "transposed",
    )
    learning_rate: float = setting("Initial learning rate of Adam.", 5e-4, minimum=1e-8)
    learning_rate_schedule: Literal["constant", "poly"] = setting(
        "Constant as in the paper, or nnU-Net's polynomial decay.", "poly", "constant"
    )
    epochs: int = setting(
        "Epochs of nnU-Net's 250 iterations (paper: 50 epochs of 405 cases at batch 1, about 20,000 updates).",
        80,
        minimum=1,
    )
    batch_size: int = setting("Batch size of 3d_inpainting (2d_inpainting keeps nnU-Net's).", 2, 1, minimum=1)
    mirror_axes: tuple[int, ...] = setting(
        "Axes mirrored in training; none by default, since normal anatomy is not symmetric.", (), minimum=0, maximum=2
    )


@dataclass(frozen=True)
class MimicSettings:
    """How A learns from G."""

    objective: Literal["denoising", "paper"] = setting(
        "`paper`: A(x) mimics G(x) and its error map. `denoising`: synthetic lesions are put into A's input and its "
        "target is G of the clean image.",
        "denoising",
        "paper",
    )
    error_term_weight: float = setting(
        "Weight of the error-map term of the paper's loss L_A (not used when denoising).", 1.0, minimum=0
    )
    leak_warning: float = setting(
        "Warn when the leak (0 copies G, 1 is the identity) of a validation epoch is above this.",
        0.5,
        minimum=0,
        maximum=1,
    )
    teacher_trainer: str = setting(
        "Trainer name of G; empty: nnUNetTrainerInpainting with the same epoch suffix as A's trainer.", ""
    )


@dataclass(frozen=True)
class CorruptionSettings:
    """Synthetic lesions for training (denoising A, augmentation trainer)."""

    probability: float = setting("Probability that a training patch gets lesions.", 0.5, minimum=0, maximum=1)
    max_lesions: int = setting("At most this many lesions in a patch.", 3, minimum=1)
    radius_mm: tuple[float, float] = setting(
        "Smallest and largest radius; derived from the image size.", (3.0, 12.0), minimum=0.1, derived=True
    )
    contrast_sd: tuple[float, float] = setting(
        "Smallest and largest contrast, in standard deviations of the region's intensity.", (0.7, 3.0), minimum=0
    )
    bright_probability: float = setting(
        "Probability that a lesion is brighter than its surrounding, else darker.", 0.75, minimum=0, maximum=1
    )


@dataclass(frozen=True)
class ErrorMapSettings:
    """Error maps E = (x - A(x))^2 and how S takes them."""

    clip_sd: float = setting(
        "z-scored intensities are clipped at plus and minus this and rescaled to [0, 1].", 5.0, minimum=0.1
    )
    input_gain: float = setting(
        "Factor on the error channel's weights in S's first convolution at the start of training: E of one standard "
        "deviation is 0.01, so that 100 brings it to the scale of a z-scored image.",
        100.0,
        1.0,
        minimum=0,
    )


@dataclass(frozen=True)
class FocalSettings:
    """S's loss: soft Dice + alpha * cross-entropy weighted voxel-wise by F = 1 + beta * E (Woo, equation 2)."""

    alpha: float = setting("Weight of the cross-entropy; 0 leaves Dice only.", 1.0, 10.0, minimum=0)
    beta: float = setting("Weight of the error map inside F; 0 is plain cross-entropy.", 99.0, minimum=0)


@dataclass(frozen=True)
class EndToEndSettings:
    """A inside S, as one network (nnUNetTrainerAnomalyAwareEndToEnd, nnUNetTrainerAnomalyAwareJoint)."""

    model: str = setting(
        "Folder `TRAINER__PLANS__CONFIGURATION` of the trained A: an absolute path (or `~`), or one below "
        "`$nnUNet_results`; empty: nnUNetTrainerInpaintingMimic of the same dataset and plans, with the same epoch "
        "suffix, in `3d_inpainting` or `2d_inpainting`.",
        "",
    )
    fine_tuned: bool = setting("Whether A learns further, by S's loss; else it stays as it is.", False)
    learning_rate_factor: float = setting("Learning rate of an A that learns, in shares of S's.", 0.1, minimum=0)
    exported: Literal["fold", "mean"] = setting(
        "Which A goes into the checkpoint: that of S's own fold, or those of all folds (when fine-tuned, those that "
        "training met), of which prediction takes the mean reconstruction.",
        "fold",
    )
    reconstruction_weight: float = setting(
        "nnUNetTrainerAnomalyAwareJoint: weight of A's own loss beside S's. It is a mean square of differences on the "
        "scale [0, 1]: with 100 and `clip_sd` 5, of differences in standard deviations.",
        100.0,
        minimum=0,
    )
    intensity_augmentation: bool = setting(
        "Whether A sees training patches with nnU-Net's noise, blur, contrast and gamma, as S does, or without.", False
    )
    lesion_augmentation: bool = setting(
        "Whether training patches get synthetic lesions (`corruption`), which A sees as S does, so that S learns from "
        "error maps of lesions; labels stay as they are.",
        False,
    )
    networks: int = setting(
        "How many A are in the network; the trainer writes this and all that follows, so that prediction can build it.",
        0,
        minimum=0,
        derived=True,
    )
    code_channels: int = setting("`inpainting.code_channels` of A.", 0, minimum=0, derived=True)
    upsampling: Literal["transposed", "interpolated"] = setting(
        "`inpainting.upsampling` of A.", "interpolated", derived=True
    )
    clip_sd: float = setting("`error_map.clip_sd` of A.", 5.0, minimum=0.1, derived=True)


@dataclass(frozen=True)
class VaeSettings:
    """Variational autoencoders that learn from healthy cases alone (Bengs)."""

    orientation: str = setting(
        "How the training images lie, in DICOM's letters such as LPS; derived from their headers. Images that lie "
        "otherwise are refused; empty: not looked at.",
        "",
        derived=True,
    )
    latent_size_2d: int = setting("Length of the code of 2d_whole.", 128, minimum=1, derived=True)
    latent_size_3d: int = setting("Length of the code of 3d_whole.", 512, minimum=1, derived=True)
    kl_weight: float = setting(
        "Weight of the Kullback-Leibler divergence against the sum of absolute errors, at 64 voxels along "
        "every axis; at other sizes in proportion to the number of voxels.",
        1.0,
        minimum=0,
    )
    kl_warmup_epochs: int = setting(
        "The weight rises linearly from 0 over so many epochs; 0: it is whole from the start.", 0, minimum=0
    )
    free_bits: float = setting("Every number of the code costs at least so many nats; 0: no such rule.", 0.0, minimum=0)
    learning_rate: float = setting("Initial learning rate of Adam.", 1e-3, minimum=1e-8)
    learning_rate_schedule: Literal["constant", "poly"] = setting(
        "Constant as in the paper, or nnU-Net's polynomial decay.", "constant"
    )
    epochs: int = setting(
        "Epochs of nnU-Net's 250 iterations; the paper chooses them by the reconstruction of healthy validation cases, "
        "which is how the best checkpoint is kept.",
        100,
        minimum=1,
    )
    batch_size: int = setting(
        "Batch size; derived, lower where the memory target asks for it.", 32, minimum=2, derived=True
    )
    mirror_axes: tuple[int, ...] = setting("Axes mirrored in training; none in the paper.", (), minimum=0, maximum=2)


@dataclass(frozen=True)
class ErasingSettings:
    """Spatial erasing of a network's input in training (Bengs, section 2.2)."""

    probability: float = setting("Probability that an input is erased.", 0.5, minimum=0, maximum=1)
    share: tuple[float, float] = setting(
        "Smallest and largest share of the input that cubes erase, all together; the second at least twice the first.",
        (0.01, 0.25),
        minimum=0,
        maximum=1,
    )
    max_cubes: int = setting("At most so many cubes where there are several.", 10, minimum=1)
    max_slices: int = setting(
        "At most so many consecutive slices of one side of the brain (paper: 32 of 64).", 32, minimum=1, derived=True
    )
    side_axis: int = setting(
        "Axis from left to right, of a preprocessed 3-D image; derived from the images' orientation.",
        2,
        minimum=0,
        maximum=2,
        derived=True,
    )
    slice_axis: int = setting(
        "Axis along which slices are counted, from feet to head; derived from the images' orientation.",
        0,
        minimum=0,
        maximum=2,
        derived=True,
    )


@dataclass(frozen=True)
class SelfSupervisionSettings:
    """Corruptions of healthy images that networks learn to take away (Kascenas 2022, Tan 2020)."""

    probability: float = setting("Probability that an input is corrupted.", 1.0, minimum=0, maximum=1)
    noise_cells: int = setting("Cells of the coarse noise along the longest axis (Kascenas: 16).", 16, minimum=1)
    noise_sd: float = setting(
        "Standard deviation of the coarse noise, on the scale [0, 1] of the images (Kascenas: 0.2).", 0.2, minimum=0
    )
    patch_share: tuple[float, float] = setting(
        "Smallest and largest share of the input that a foreign patch covers; the second at least twice the first.",
        (0.001, 0.1),
        minimum=0,
        maximum=1,
    )
    patch_opacity: tuple[float, float] = setting(
        "Smallest and largest opacity of a foreign patch.", (0.05, 0.95), minimum=0, maximum=1
    )


@dataclass(frozen=True)
class SymmetrySettings:
    """Structures that come as a left and a right one, and mirroring that knows one from the other."""

    pairs: tuple[tuple[int, int], ...] = setting(
        "Labels of left and right of every pair; derived from the names of labels (`femur_left`, `Right Hip`) where "
        "the training label maps confirm them, each on a side of its own.",
        (),
        derived=True,
    )
    side_axis: int = setting(
        "Axis from left to right, of a preprocessed 3-D image; derived from the images' orientation; -1 where it is "
        "not the same for all.",
        -1,
        minimum=-1,
        maximum=2,
        derived=True,
    )
    mirroring: Literal["swap", "off", "plain"] = setting(
        "Mirroring along that axis in training: `swap` exchanges the labels of every pair with it, `off` leaves the "
        "axis out, `plain` keeps the labels, as nnU-Net does, so that a left one may become a right one.",
        "swap",
        "off",
    )
    test_time_mirroring: Literal["swap", "off", "plain"] = setting(
        "The same in prediction: `swap` mirrors inside the network and exchanges the channels of every pair, "
        "whatever `--disable_tta` says.",
        "swap",
        "off",
    )
    region_twins: tuple[int, ...] = setting(
        "Output channel of the twin, for every output channel of a training by regions; the trainer writes it, so that "
        "prediction knows it. -1 throughout: the model cannot predict with `swap`.",
        (),
        minimum=-1,
        derived=True,
    )


@dataclass(frozen=True)
class IntensitySettings:
    """How intensities are normalised where nnU-Net's way is not the paper's."""

    ct: Literal["nnunet", "quartile_case", "quartile_fingerprint"] = setting(
        "Channels named CT: nnU-Net's normalisation, or (x - mean) / (q75 - q25) over values from 0 HU on (Xu), of "
        "every case by itself or of all training cases together.",
        "nnunet",
        "quartile_case",
    )


@dataclass(frozen=True)
class GapWeightSettings:
    """Voxel weights of the cross-entropy, high around the gaps between structures (Xu, equation 1)."""

    amplitude: float = setting("w0; 0 leaves all weights at 1.", 20.0, minimum=0)
    sigma_mm: float = setting("Sigma (5 voxels of the paper's 0.78 mm).", 3.9, minimum=0.01)
    erosion_mm: float = setting(
        "Radius of the ball by which every structure is eroded before (3 voxels of 0.78 mm).", 2.34, minimum=0
    )
    dice_weight: float = setting("Weight of soft Dice beside the cross-entropy; 0 as in the paper.", 0.0, minimum=0)
    elastic_probability: float = setting(
        "Probability that a training sample is deformed elastically.", 0.2, 1 / 3, minimum=0, maximum=1
    )
    deformed_sample_weight: float = setting("Weight of such a sample in the loss.", 1 / 3, minimum=0)


@dataclass(frozen=True)
class FineTuningSettings:
    """How the gap-weighted and the multi-planar network learn: nnU-Net's way, or the paper's."""

    optimizer: Literal["nnunet", "adam"] = setting("nnU-Net's stochastic gradient descent, or Adam.", "nnunet", "adam")
    learning_rate: float = setting("Initial learning rate.", 1e-2, 1e-5, minimum=1e-8)
    learning_rate_schedule: Literal["poly", "plateau"] = setting(
        "nnU-Net's polynomial decay, or a tenth less whenever `plateau_epochs` epochs in a row brought no better one.",
        "poly",
        "plateau",
    )
    plateau_epochs: int = setting("See `learning_rate_schedule`.", 2, minimum=1)
    plateau_factor: float = setting("Factor on the learning rate then.", 0.9, minimum=0.01, maximum=1)
    epochs: int = setting("Epochs of nnU-Net's 250 iterations at most.", 1000, 40, minimum=1)
    early_stopping_epochs: int = setting(
        "Stop after so many epochs in a row without a better one; 0: never.", 0, 5, minimum=0
    )


@dataclass(frozen=True)
class TransferSettings:
    """Weights that a training starts from."""

    checkpoint: str = setting(
        "Checkpoint file of a network of the same classes, of which all weights are taken, those of the last layer "
        "too, and nothing is frozen: an absolute path (or `~`), or one below `$nnUNet_results`; empty: none.",
        "",
    )


@dataclass(frozen=True)
class MultiPlanarSettings:
    """One 2-D network for planes of several directions (Perslev 2019, Xu)."""

    views: int = setting("Directions from which a volume is seen, drawn from `seed`.", 6, minimum=1)
    minimum_angle_deg: float = setting(
        "Any two directions are at least so far apart; 6 can be 63.4 degrees apart at most.",
        60.0,
        minimum=0,
        maximum=90,
    )
    plane_pixels: int = setting(
        "Pixels along both axes of a plane in training; derived: the 75th percentile of voxels over images and axes, "
        "rounded up to a multiple of what the network needs.",
        128,
        minimum=8,
        derived=True,
    )
    plane_extent_mm: float = setting(
        "Length of its axes; derived: the 75th percentile of lengths over images and axes, rounded up with the pixels. "
        "A pixel's size follows from both, in training and in prediction.",
        128.0,
        minimum=1,
        derived=True,
    )


@dataclass(frozen=True)
class SliceSettings:
    """Slices that 2-D networks of healthy tissue learn from."""

    healthy_only: bool = setting(
        "2-D reconstruction networks learn from slices that hold some of the region and nothing of a lesion; "
        "nnUNetTrainerLaMa and nnUNetTrainerKnowledgeDistillation do in any case.",
        False,
    )
    lesion_labels: tuple[int, ...] = setting(
        "Labels of lesions; derived from dataset.json (`anomaly.lesion_labels`), else from labels that are called "
        "lesion, BML, tumor and the like.",
        (),
        derived=True,
    )
    file: str = setting(
        "CSV file (`case,slice`) with the only slices to learn from: an absolute path (or `~`), or one below "
        "`$nnUNet_results`; empty: all with the region and without a lesion.",
        "",
    )


@dataclass(frozen=True)
class LaMaSettings:
    """Large-mask inpainting of slices by Fourier convolutions, against a discriminator (Qin 2024, Suvorov 2022)."""

    features: int = setting(
        "Channels of the generator's first layer; they double with every halving.", 64, minimum=4, derived=True
    )
    downsamplings: int = setting("Halvings of the slice before the residual blocks.", 3, minimum=1, maximum=6)
    blocks: int = setting("Residual blocks of Fourier convolutions.", 9, minimum=1, derived=True)
    global_ratio: float = setting(
        "Share of their channels that passes through Fourier space, where every pixel sees the whole slice.",
        0.75,
        minimum=0,
        maximum=1,
    )
    discriminator_features: int = setting("Channels of the discriminator's first layer.", 64, minimum=4, derived=True)
    dilation_mm: float = setting("Margin around the region's labels that is erased as well.", 0.0, minimum=0)
    epochs: int = setting("Epochs of nnU-Net's 250 iterations.", 200, minimum=1)
    learning_rate: float = setting("Initial learning rate of the generator's Adam.", 1e-3, minimum=1e-8)
    discriminator_learning_rate: float = setting("The same of the discriminator.", 1e-4, minimum=1e-8)
    learning_rate_schedule: Literal["constant", "poly"] = setting(
        "Constant as in LaMa, or nnU-Net's polynomial decay, for both.", "poly", "constant"
    )
    mirror_axes: tuple[int, ...] = setting(
        "Axes of the slice mirrored in training (Qin: both).", (0, 1), minimum=0, maximum=1
    )
    bias_field_probability: float = setting(
        "Probability that a training slice is multiplied by a smooth random field.", 0.5, minimum=0, maximum=1
    )
    bias_field_strength: float = setting(
        "Largest coefficient of the polynomial (order 3) whose exponential that field is.", 0.3, minimum=0
    )
    large_mask_probability: float = setting(
        "Probability that a large random mask is erased beside the region, in training.", 0.0, minimum=0, maximum=1
    )
    large_mask_share: tuple[float, float] = setting(
        "Smallest and largest share of the slice that it covers; the second at least twice the first.",
        (0.05, 0.4),
        minimum=0,
        maximum=1,
    )
    l1_known_weight: float = setting("Weight of the absolute error outside the region.", 10.0, minimum=0)
    l1_region_weight: float = setting(
        "Weight of the absolute error inside the region; 0 in LaMa, where the perceptual term takes its place.",
        10.0,
        0.0,
        minimum=0,
    )
    adversarial_weight: float = setting("Weight of the generator's non-saturating loss.", 10.0, minimum=0)
    feature_matching_weight: float = setting(
        "Weight of the distance between the discriminator's features of image and reconstruction.", 100.0, minimum=0
    )
    r1_weight: float = setting("Weight of the discriminator's gradient penalty.", 1e-3, minimum=0)
    perceptual_weight: float = setting("Weight of the perceptual term.", 30.0, minimum=0)
    perceptual_checkpoint: str = setting(
        "File with torchvision's weights of VGG-16 for the perceptual term: an absolute path (or `~`), or one below "
        "`$nnUNet_results`; empty: without that term. Needed to train, `--c` included, not for `--val` or to predict.",
        "",
    )


@dataclass(frozen=True)
class UNetPlusPlusSettings:
    """The nested U-Net (Zhou 2018, Qin)."""

    head_weights: Literal["equal", "halved"] = setting(
        "Weights of the heads in the loss: all the same, or each half of that of the next deeper one.", "equal"
    )
    prediction: Literal["last", "ensemble"] = setting(
        "What predicts: the head at `prediction_depth`, or the mean of the logits of all heads down to there.",
        "last",
        "ensemble",
    )
    prediction_depth: int = setting(
        "Deepest level that prediction is made of, 1 for the first one below the image's resolution; deeper ones are "
        "not computed. 0: all.",
        0,
        minimum=0,
    )


@dataclass(frozen=True)
class BmlSettings:
    """Lesions in bone, by reconstructions (Qin, section 2) or error maps; `nnunet-anomaly tune bml` searches them."""

    equalisation: Literal["slice", "volume", "none"] = setting(
        "Histogram equalisation of image and reconstruction: of every slice, of the whole volume, or none.", "slice"
    )
    otsu: Literal["slice", "volume"] = setting(
        "Otsu's threshold of every slice, or one of the whole volume, so that slices without a lesion need have none "
        "found.",
        "volume",
        "slice",
    )
    element: Literal["disc", "ball"] = setting("What opens and closes: a disc in every slice, or a ball.", "disc")
    opening_mm: float = setting("Radius of the opening, which removes what is thinner; 0: none.", 1.0, minimum=0)
    closing_mm: float = setting("Radius of the closing, which fills small holes; 0: none.", 2.0, minimum=0)
    minimum_mm3: float = setting("Lesions (26 neighbours) of less volume are dropped.", 20.0, 0.0, minimum=0)
    slice_axis: int = setting(
        "Axis of the image's array (0 z, 1 y, 2 x) across slices; -1: that of the coarsest spacing, of equal ones the "
        "first.",
        -1,
        minimum=-1,
        maximum=2,
    )


@dataclass(frozen=True)
class DistillationSettings:
    """Multiresolution knowledge distillation: a small network learns VGG-16's features of healthy slices (Salehi)."""

    weights: str = setting(
        "File with torchvision's weights of VGG-16 trained on ImageNet (its usual name is `vgg16-397923af.pth`): an "
        "absolute path (or `~`), or one below `$nnUNet_results`. Nothing is downloaded. Needed to begin a training, "
        "not to go on with it or to predict.",
        "",
    )
    value_weight: float = setting(
        "Weight (lambda) of the squared differences of features beside their directions. The authors' code has 0.5 "
        "for the images in which they locate anomalies, 0.01 for others.",
        0.5,
        minimum=0,
    )
    map: Literal["gradient", "smooth_gradient", "distance"] = setting(
        "What the anomaly map is: the gradient of the loss with respect to the image, the mean of gradients for noisy "
        "copies of the image, or the distances of features, upsampled, as in later papers.",
        "gradient",
    )
    map_layers: int = setting(
        "How many of the four critical layers the map is made from, counted from the deepest (the authors' code: 3).",
        4,
        minimum=1,
        maximum=4,
    )
    noise_samples: int = setting("Noisy copies for `smooth_gradient`.", 50, minimum=1)
    noise_sd: float = setting("Standard deviation of their noise, on the scale [0, 1] of the images.", 0.05, minimum=0)
    smoothing_mm: float = setting(
        "Standard deviation of the Gaussian that smooths the map (paper: 4 of 128 pixels, of a knee 140 mm wide); 0: "
        "none.",
        4.4,
        minimum=0,
    )
    opening_mm: float = setting(
        "Radius of the disc that opens the map then (paper: 1 of 128 pixels); below the pixel size: none.",
        1.1,
        minimum=0,
    )
    learning_rate: float = setting("Initial learning rate of Adam.", 1e-3, minimum=1e-8)
    learning_rate_schedule: Literal["constant", "poly"] = setting(
        "Constant as in the paper, or nnU-Net's polynomial decay.", "constant"
    )
    epochs: int = setting(
        "Epochs of nnU-Net's 250 iterations (the authors: 1,000 to 8,000 updates, by the data).", 40, minimum=1
    )
    mirror_axes: tuple[int, ...] = setting("Axes of the slice mirrored in training.", (), minimum=0, maximum=1)


@dataclass(frozen=True)
class MeseSettings:
    """The network that finds cartilage in single echoes of multi-echo spin-echo MR (Thomas, section 2.3)."""

    echo_probabilities: tuple[float, ...] = setting(
        "Probability of every channel, an echo each, to be the one that a slice is learnt from; they sum to 1. "
        "Derived: 1 where there is one channel alone.",
        (0.2, 0.6, 0.2),
        minimum=0,
        maximum=1,
        derived=True,
    )
    prediction_echo: int = setting(
        "Which channel validation and prediction see, counted from 1. Derived: 1 where there is one channel alone.",
        2,
        minimum=1,
        derived=True,
    )
    empty_slices_kept: float = setting(
        "Share of the slices without foreground that is kept, drawn anew for every pass over the training slices.",
        0.1,
        minimum=0,
        maximum=1,
    )
    learning_rate: float = setting(
        "Initial learning rate of Adam (the paper searched it and does not give it).", 1e-3, minimum=1e-8
    )
    learning_rate_schedule: Literal["constant", "poly"] = setting("Constant, or nnU-Net's polynomial decay.", "poly")
    betas: tuple[float, float] = setting("Adam's beta 1 and 2.", (0.99, 0.995), minimum=0, maximum=0.999999)
    epochs: int = setting("Epochs of nnU-Net's 250 iterations.", 100, minimum=1)


@dataclass(frozen=True)
class T2Settings:
    """T2 of cartilage: fit, refinement of the mask, unrolling, clusters (Thomas, sections 2.5 and 2.6)."""

    model: Literal["offset", "mono", "log_linear", "rician"] = setting(
        "How T2 is fitted: an exponential with a constant for noise, without one, by its logarithm, or in Rician noise "
        "by maximum likelihood.",
        "rician",
        "offset",
    )
    skip_first_echo: bool = setting("Leave out the shortest echo, which stimulated echoes falsify.", True)
    range_ms: tuple[float, float] = setting(
        "Voxels are cartilage only if their T2 is above the first and at most the second.", (0.0, 100.0), minimum=0
    )
    candidate_probability: float = setting(
        "T2 is fitted where the network gives cartilage a higher probability than this.", 0.01, minimum=0, maximum=1
    )
    probability: float = setting(
        "Voxels are cartilage from this probability on; `nnunet-anomaly tune t2` searches it.",
        0.501,
        minimum=0,
        maximum=1,
    )
    minimum_slice_mm2: float = setting(
        "A slice in which the network finds less than this area has none (paper: 425 pixels of 0.313 x 0.446 mm); "
        "`nnunet-anomaly tune t2` searches it.",
        59.3,
        minimum=0,
    )
    slice_minimum_of_masks: bool = setting(
        "Apply `minimum_slice_mm2` to masks that were drawn by hand, too. Their T2 is refined in any case.", False
    )
    bin_degrees: float = setting("Width of the angle bins of unrolled cartilage.", 5.0, minimum=0.5, maximum=90)
    central_degrees: tuple[float, float] = setting(
        "Where the central part begins and ends, 0 straight down, the back positive: -30 and 30 as the authors' "
        "program has it, -15 and 15 as DOSMA.",
        (-30.0, 30.0),
        minimum=-180,
        maximum=180,
    )
    cluster_percent: float = setting(
        "A cluster of rising T2 covers more than this share of the plate.", 1.0, minimum=0, maximum=100
    )
    subpixel_registration: bool = setting(
        "Bring the second time point onto the first between whole slices and bins too, with interpolation.", False
    )


@dataclass(frozen=True)
class AnomalySettings:
    """Everything under ``"anomaly"`` in the plans."""

    preset: Literal["robust", "paper"] = setting("Name of the preset that the values started from.", "robust", "paper")
    seed: int = setting(
        "Seed of our trainers' weights and draws; give every seed a plans name of its own.", 1234, minimum=0
    )
    roi: RoiSettings = field(default_factory=RoiSettings)
    inpainting: InpaintingSettings = field(default_factory=InpaintingSettings)
    mimic: MimicSettings = field(default_factory=MimicSettings)
    corruption: CorruptionSettings = field(default_factory=CorruptionSettings)
    error_map: ErrorMapSettings = field(default_factory=ErrorMapSettings)
    focal: FocalSettings = field(default_factory=FocalSettings)
    end_to_end: EndToEndSettings = field(default_factory=EndToEndSettings)
    vae: VaeSettings = field(default_factory=VaeSettings)
    erasing: ErasingSettings = field(default_factory=ErasingSettings)
    self_supervision: SelfSupervisionSettings = field(default_factory=SelfSupervisionSettings)
    symmetry: SymmetrySettings = field(default_factory=SymmetrySettings)
    intensity: IntensitySettings = field(default_factory=IntensitySettings)
    gap_weights: GapWeightSettings = field(default_factory=GapWeightSettings)
    fine_tuning: FineTuningSettings = field(default_factory=FineTuningSettings)
    transfer: TransferSettings = field(default_factory=TransferSettings)
    multi_planar: MultiPlanarSettings = field(default_factory=MultiPlanarSettings)
    slices: SliceSettings = field(default_factory=SliceSettings)
    lama: LaMaSettings = field(default_factory=LaMaSettings)
    bml: BmlSettings = field(default_factory=BmlSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    unet_plus_plus: UNetPlusPlusSettings = field(default_factory=UNetPlusPlusSettings)
    mese: MeseSettings = field(default_factory=MeseSettings)
    t2: T2Settings = field(default_factory=T2Settings)

    @staticmethod
    def for_preset(preset: str) -> AnomalySettings:
        """All settings at a preset's values.

        Raises:
            SettingsError: there is no such preset.
        """
        if preset not in PRESETS:
            raise SettingsError(f"There is no preset '{preset}'{_nearest(preset, PRESETS)}. Presets: robust, paper.")
        return AnomalySettings.from_dict({key: entry.metadata[preset] for key, entry in all_fields()})

    @staticmethod
    def from_dict(flat_or_nested: Mapping[str, Any]) -> AnomalySettings:
        """Validate a nested dict, as in the plans, or a flat one with dotted keys; what is absent keeps its default.

        Raises:
            SettingsError: an unknown key (the nearest one is named), a wrong type or a value out of range.
        """
        values = dict(_flatten(flat_or_nested))
        return _build(AnomalySettings, "", values)

    @staticmethod
    def from_plans(plans: Mapping[str, Any]) -> AnomalySettings:
        """Settings of a plans dict.

        Raises:
            SettingsError: the plans have no ``"anomaly"`` block, or a wrong one.
        """
        if BLOCK not in plans:
            name, dataset = plans.get("plans_name", "?"), plans.get("dataset_name", "DatasetXXX")
            number = dataset[7:10].lstrip("0") or dataset
            raise SettingsError(
                f"The plans '{name}' of {dataset} have no \"{BLOCK}\" block. Make such plans with: "
                f"nnUNetv2_plan_and_preprocess -d {number} -pl nnUNetPlannerAnomaly -c 3d_fullres 3d_inpainting "
                f"(or add the block to these plans with: nnunet-anomaly plan -d {number} -p {name} --add-block)"
            )
        return AnomalySettings.from_dict(plans[BLOCK])

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict (lists for tuples), as written to the plans."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def at_preset(self, preset: str) -> AnomalySettings:
        """Every value at that of a preset, but for those that planning derived from the data.

        Raises:
            SettingsError: there is no such preset.
        """
        flat = dict(_flatten(self.to_dict()))
        derived = {key: flat[key] for key, entry in all_fields() if entry.metadata["derived"]}
        return AnomalySettings.for_preset(preset).with_values(derived)

    def with_values(self, values: Mapping[str, Any]) -> AnomalySettings:
        """A copy with some values changed; keys are dotted, as in ``focal.beta``."""
        return AnomalySettings.from_dict({**dict(_flatten(self.to_dict())), **values})


def parse_assignment(text: str) -> tuple[str, Any]:
    """``"focal.beta=50"`` to ``("focal.beta", 50)``: the value is JSON, or else taken as a string.

    Raises:
        SettingsError: there is no ``=``, or the key is unknown.
    """
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals:
        raise SettingsError(f"'{text}' is not of the form key=value, for example focal.beta=50.")
    known = dict(all_fields())
    if key not in known:
        raise SettingsError(f"Unknown setting '{key}'{_nearest(key, known)}.")
    if key == "preset":
        raise SettingsError("'preset' is a name for many values; give --preset instead of --set preset.")
    try:
        return key, json.loads(raw)
    except json.JSONDecodeError:
        return key, raw.strip()


def all_fields(cls: type = AnomalySettings, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Dotted key and dataclass field of every setting, in order."""
    hints = get_type_hints(cls)
    for entry in fields(cls):
        if is_dataclass(hints[entry.name]):
            yield from all_fields(hints[entry.name], f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, entry


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nearest(key: str, known: Any) -> str:
    matches = difflib.get_close_matches(key, list(known), n=1, cutoff=0.4)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def _build(cls: type, prefix: str, values: dict[str, Any]) -> Any:
    """Make one dataclass from the flat values below ``prefix``; the outermost call refuses what nobody took."""
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for entry in fields(cls):
        key, hint = prefix + entry.name, hints[entry.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            arguments[entry.name] = _build(hint, f"{key}.", values)
        elif key in values:
            arguments[entry.name] = _checked(key, values.pop(key), hint, entry.metadata)
    if not prefix and values:
        unknown = next(iter(values))
        raise SettingsError(f"Unknown setting '{unknown}'{_nearest(unknown, dict(all_fields()))}.")
    return cls(**arguments)


def _checked(key: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    """The value in its declared type, or a SettingsError that says what was expected."""
    converted = _converted(value, hint)
    if converted is MISSING:
        raise SettingsError(f"Setting '{key}' must be {describe(hint)}, not {value!r}.")
    low, high = metadata.get("minimum"), metadata.get("maximum")
    for number in converted if isinstance(converted, tuple) else (converted,):
        if (low is not None and number < low) or (high is not None and number > high):
            limits = f"at least {low}" if high is None else f"between {low} and {high}"
            raise SettingsError(f"Setting '{key}' must be {limits}, not {value!r}.")
    if get_args(hint) == (float, float) and converted[0] > converted[1]:
        raise SettingsError(f"Setting '{key}' must have its smaller value first, not {value!r}.")
    return converted


def _converted(value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` demands, or ``MISSING`` when its type does not fit; no lossy conversion."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value if value in arguments else MISSING
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return MISSING
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            return MISSING
        items = tuple(_converted(item, kind) for item, kind in zip(value, kinds, strict=True))
        return MISSING if any(item is MISSING for item in items) else items
    if hint is bool:
        return value if isinstance(value, bool) else MISSING
    if isinstance(value, bool):
        return MISSING
    if hint is float:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else MISSING
    if hint is int:
        return int(value) if isinstance(value, int) or (isinstance(value, float) and value.is_integer()) else MISSING
    return value if isinstance(value, hint) else MISSING


def describe(hint: Any) -> str:
    """A type in words, as error messages and the reference page use it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list of {_PLURAL.get(arguments[0]) or f'lists, each {describe(arguments[0])}'}"
    if origin is tuple:
        return f"a list of {len(arguments)} {_PLURAL[arguments[0]]}"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[hint]


_PLURAL = {int: "whole numbers", float: "numbers"}
