"""Where the brain is, and what may be done to images of the head before nnU-Net sees them.

The brain is the region in which anomalies of heads are looked for, so that every case needs a mask of it: a given one,
one by HD-BET where that is installed, or, of images that were skull-stripped before, what is above 0.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_anomaly.dataset_conversion.grids import on_grid_of, read_placed
from nnunet_anomaly.dataset_conversion.runner import Case
from nnunet_anomaly.errors import InputError, LabelError
from nnunet_anomaly.files import write_image
from nnunet_anomaly.label_maps import case_name

if TYPE_CHECKING:
    import SimpleITK as sitk

HD_BET_NETWORK = "hd-bet_params/release_2*/fold_all/checkpoint_final.pth"  # below the home folder
MASK_SUFFIXES = ("_bet_mask", "_brain_mask", "_brainmask", "_mask", "_bet", "")
# images that HD-BET leaves beside its masks: X_bet beside X_bet_mask (version 1), X beside X_bet (version 2)
IMAGES_BESIDE = {"_bet": ("_bet_mask",), "": ("_bet_mask", "_bet")}
# from a newborn's to more than any adult's with its fluid; whole heads have 3 litres and more
BRAIN_ML = (300.0, 2500.0)
DIFFUSION_STEP = 0.0625  # of the smallest voxel size; the largest at which the filter is stable in 3-D


@dataclass(frozen=True)
class BrainOptions:
    """What is done to images; picklable.

    Attributes:
        masks: folder of brain masks, or one mask for all cases.
        hd_bet: device on which HD-BET runs; ``None`` if it does not. With neither, images are skull-stripped already.
        keep_skull: leave what lies outside a given brain mask, or HD-BET's, as it is instead of setting it to 0.
        n4: shrink factor of the N4 bias field correction; ``None`` leaves it out.
        denoise: smooth images by curvature anisotropic diffusion.
        volume_ml: smallest and largest volume that is taken for a brain.
    """

    masks: Path | None = None
    hd_bet: str | None = None
    keep_skull: bool = False
    n4: int | None = None
    denoise: bool = False
    volume_ml: tuple[float, float] = BRAIN_ML

    @property
    def are_stripped(self) -> bool:
        """Whether the images have no skull as they are."""
        return self.masks is None and self.hd_bet is None

    def to_origin(self) -> dict[str, Any]:
        """Options that change what is written, as JSON; which volumes are refused changes no finished case."""
        options = {**asdict(self), "masks": None if self.masks is None else str(self.masks.resolve())}
        del options["volume_ml"]
        return options


def add_brain_arguments(parser: argparse.ArgumentParser, *, stripped: bool) -> None:
    """Arguments for brain masks and images.

    Args:
        parser: of a converter.
        stripped: whether the release is skull-stripped, so that none of the ways to a mask need be given.
    """
    group = parser.add_mutually_exclusive_group(required=not stripped)
    default = "; default: the brain is what is above 0 in any sequence, with holes filled" if stripped else ""
    group.add_argument(
        "--brain-masks",
        type=Path,
        metavar="PATH",
        help="folder of brain masks, <case>.nii.gz or with _mask, _brain_mask, _bet or _bet_mask before the ending; "
        f"or one file that is the mask of all cases, as of a template{default}",
    )
    group.add_argument(
        "--hd-bet",
        choices=["cpu", "cuda", "mps"],
        help="make brain masks by the command hd-bet (HD-BET 2) on this device; it must be installed, with its network",
    )
    if not stripped:
        group.add_argument(
            "--stripped",
            action="store_true",
            help="the images are skull-stripped: the brain is what is above 0, with holes filled",
        )
    parser.add_argument(
        "--brain-ml",
        type=float,
        nargs=2,
        default=BRAIN_ML,
        metavar=("MIN", "MAX"),
        help="a case whose brain is smaller or larger fails by name: its mask is none, or its skull is still there "
        f"(millilitres, default: {BRAIN_ML[0]:g} {BRAIN_ML[1]:g})",
    )
    parser.add_argument(
        "--keep-skull",
        action="store_true",
        help="leave the images outside of --brain-masks or --hd-bet's masks as they are; else they are 0 there",
    )
    parser.add_argument(
        "--n4",
        type=int,
        nargs="?",
        const=4,
        metavar="SHRINK",
        help="N4 bias field correction in the brain, its field found on an image shrunk by this factor (4 if none is "
        "given)",
    )
    parser.add_argument(
        "--denoise",
        action="store_true",
        help="smooth the images by ITK's curvature anisotropic diffusion (5 iterations, conductance 3), after --n4",
    )


def brain_options(args: argparse.Namespace) -> BrainOptions:
    """Options from parsed arguments.

    Raises:
        InputError: masks do not exist, HD-BET or its network is not installed, or options contradict each other.
    """
    options = BrainOptions(args.brain_masks, args.hd_bet, args.keep_skull, args.n4, args.denoise, tuple(args.brain_ml))
    if options.masks is not None and not options.masks.exists():
        raise InputError(f"--brain-masks: {options.masks} does not exist.")
    if options.hd_bet is not None:
        check_hd_bet()
    if options.keep_skull and options.are_stripped:
        raise InputError("--keep-skull needs --brain-masks or --hd-bet: without them the images have no skull.")
    if not 0 <= options.volume_ml[0] <= options.volume_ml[1]:
        raise InputError(f"--brain-ml is {' '.join(f'{ml:g}' for ml in options.volume_ml)}; give MIN, then MAX.")
    if options.n4 is not None and options.n4 < 1:
        raise InputError(f"--n4 is {options.n4}; the shrink factor is 1 or more.")
    return options


def check_hd_bet() -> None:
    """Raise an ``InputError`` unless the command ``hd-bet`` and its network are there; nothing is downloaded."""
    way_out = "or make brain masks in another way and give them by --brain-masks."
    if shutil.which("hd-bet") is None:
        raise InputError(f"--hd-bet: there is no command hd-bet here. Install HD-BET (pip install hd-bet), {way_out}")
    if not any(Path.home().glob(HD_BET_NETWORK)):
        raise InputError(
            f"--hd-bet: its network is not at {Path.home() / HD_BET_NETWORK}, and hd-bet would download it now. Run "
            f"hd-bet once yourself, {way_out}"
        )


# ---- from cases to masks


def with_brain_masks(cases: Sequence[Case], options: BrainOptions) -> list[Case]:
    """The cases with their mask among the sources; one without or with several in the folder has a problem."""
    if options.masks is None:
        return list(cases)
    if options.masks.is_file():
        return [_having_mask(case, options.masks, options.masks.parent) for case in cases]
    images = {path.resolve() for case in cases for path in case.sources.values()}
    files: dict[str, list[Path]] = {}
    for path in nifti_files(options.masks):
        if path.resolve() not in images:
            files.setdefault(case_name(path), []).append(path)
    named = {case.case_id: _named_like_masks_of(case, files) for case in cases}
    found = {name: paths if len(paths) < 2 else list(filter(_may_be_a_mask, paths)) for name, paths in named.items()}
    claims = Counter(path for paths in found.values() for path in paths)
    return [_with_brain_mask(case, found[case.case_id], named[case.case_id], claims, options.masks) for case in cases]


def _named_like_masks_of(case: Case, files: Mapping[str, list[Path]]) -> list[Path]:
    """Files that are named like a mask of a case or of one of its images; images that lie beside masks are none."""
    stems = {case.case_id, *(case_name(path) for role, path in case.sources.items() if not role.startswith("lesion"))}
    found = {
        path
        for stem in stems
        for suffix in MASK_SUFFIXES
        if not any(stem + other in files for other in IMAGES_BESIDE.get(suffix, ()))
        for path in files.get(stem + suffix, [])
    }
    return sorted(found)


def _may_be_a_mask(path: Path) -> bool:
    """Whether a file has no more than two values; one that cannot be read may be a mask, and is named later."""
    import SimpleITK as sitk

    try:
        voxels = sitk.GetArrayFromImage(read_placed(path))
    except InputError:
        return True
    return bool(np.isin(voxels, (voxels.min(), voxels.max())).all())


def _with_brain_mask(
    case: Case, masks: list[Path], named: list[Path], claims: Mapping[Path, int], folder: Path
) -> Case:
    """The case with its one mask, or with what is wrong; visits whose images have one name cannot share a mask.

    Args:
        case: without a mask.
        masks: files that may be its mask.
        named: these, and those that are named like it but have the values of an image.
        claims: number of cases that a file may be the mask of.
        folder: of all masks.
    """
    if len(masks) == 1 and claims[masks[0]] == 1:
        return _having_mask(case, masks[0], folder)
    if len(masks) == 1:
        problem = f"its brain mask {masks[0]} could be of {claims[masks[0]]} cases; name it {case.case_id}.nii.gz"
    else:
        found = ", ".join(path.relative_to(folder).as_posix() for path in masks or named)
        if named and not masks:
            found += ", which have more than two values: they are images. A mask has 0 and 1"
        problem = f"one brain mask is needed in {folder}; found: {found or f'none like {case.case_id}.nii.gz'}"
    return replace(case, problem=case.problem or problem)


def _having_mask(case: Case, mask: Path, folder: Path) -> Case:
    """The case with its mask among its sources, and among those that are recorded of it."""
    recorded = {**case.details.get("sources", {}), "brain_mask": mask.relative_to(folder).as_posix()}
    sources = {**case.sources, "brain_mask": mask}
    return replace(case, sources=sources, details={**case.details, "sources": recorded})


def nifti_files(folder: Path) -> list[Path]:
    """All NIfTI files below a folder, sorted; hidden ones, such as macOS's copies ``._name.nii.gz``, are left out.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"The folder {folder} does not exist.")
    return sorted(
        path
        for path in folder.rglob("*.nii*")
        if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".") and path.is_file()
    )


def read_mask(path: Path, image: sitk.Image, what: str) -> np.ndarray:
    """A mask (what is above 0) on the grid of an image: bool array (z, y, x).

    Raises:
        InputError: it is not readable.
        GeometryError: its voxels are not those of the image.
    """
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(on_grid_of(read_placed(path), image, f"{what} {path.name}")) > 0


def read_brain_mask(path: Path, image: sitk.Image) -> np.ndarray:
    """As ``read_mask``; a file of more than two values, which is an image rather than a mask, is a ``LabelError``."""
    import SimpleITK as sitk

    voxels = sitk.GetArrayFromImage(on_grid_of(read_placed(path), image, f"brain mask {path.name}"))
    if not np.isin(voxels, (voxels.min(), voxels.max())).all():
        raise LabelError(f"{path} has more than two values: it is no brain mask. Give a file of 0 and 1.")
    return voxels > 0


def brain_mask(case: Case, images: Sequence[sitk.Image], options: BrainOptions) -> np.ndarray:
    """Brain of a case as bool array (z, y, x) on the grid of its images.

    Raises:
        InputError: the mask is not readable, or HD-BET failed.
        LabelError: the mask is empty, the whole image or of no brain's volume, or a given one has more than two values.
        GeometryError: the mask is on another grid.
    """
    if options.masks is not None:
        brain, source = read_brain_mask(case.sources["brain_mask"], images[0]), "its brain mask"
    elif options.hd_bet is not None:
        brain, source = hd_bet_mask(images[0], options.hd_bet), "HD-BET's brain mask"
    else:
        brain, source = above_zero(images), "what is above 0 in its images"
    if wrong := _what_is_no_brain(brain, images[0], options.volume_ml):
        advice = " Is it skull-stripped? If not, give masks by --brain-masks." if options.are_stripped else ""
        raise LabelError(f"Case {case.case_id}: {source} {wrong}.{advice}")
    return brain


def check_in_brain(case_id: str, images: Sequence[sitk.Image], names: Sequence[str], brain: np.ndarray) -> None:
    """Raise an ``InputError`` for an image that has one value in all of the brain: what is outside of it will go."""
    import SimpleITK as sitk

    for image, name in zip(images, names, strict=True):
        voxels = sitk.GetArrayViewFromImage(image)[brain]
        if voxels.min() == voxels.max():
            raise InputError(
                f"Case {case_id}, channel {name}: every voxel in the brain is {voxels[0]}; it is no image."
            )


def _what_is_no_brain(brain: np.ndarray, image: sitk.Image, volume_ml: tuple[float, float]) -> str | None:
    """What is wrong with the extent of a mask (bool, z, y, x) on the grid of an image; ``None`` if nothing is."""
    if not brain.any() or brain.all():
        return "is the whole image" if brain.any() else "is empty"
    found_ml = np.count_nonzero(brain) * math.prod(image.GetSpacing()) / 1000
    if volume_ml[0] <= found_ml <= volume_ml[1]:
        return None
    return f"has {found_ml:.4g} ml, and a brain {volume_ml[0]:g} to {volume_ml[1]:g} ml (--brain-ml)"


def above_zero(images: Sequence[sitk.Image]) -> np.ndarray:
    """Voxels above 0 in at least one image, with holes filled in 3-D: bool array (z, y, x)."""
    import SimpleITK as sitk
    from scipy import ndimage

    above = np.any([sitk.GetArrayViewFromImage(image) > 0 for image in images], axis=0)
    return ndimage.binary_fill_holes(above)


def hd_bet_mask(image: sitk.Image, device: str) -> np.ndarray:
    """Brain mask of one image by the command ``hd-bet`` (Isensee et al. 2019), version 2: bool array (z, y, x).

    Raises:
        InputError: the command failed; with the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="hd_bet_") as name:
        folder = Path(name)
        write_image(image, folder / "image.nii.gz")
        command = ["hd-bet", "-i", str(folder / "image.nii.gz"), "-o", str(folder / "brain.nii.gz"), "-device", device]
        command += ["--save_bet_mask", "--no_bet_image", *(["--disable_tta"] if device == "cpu" else [])]
        run = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        mask = folder / "brain_bet.nii.gz"
        if run.returncode != 0 or not mask.is_file():
            said = " ".join((run.stderr or run.stdout).strip().splitlines()[-3:])
            raise InputError(f"hd-bet failed with exit code {run.returncode}: {said or 'it wrote no mask'}")
        return read_brain_mask(mask, image)


# ---- what is done to images


def prepared(image: sitk.Image, brain: np.ndarray, options: BrainOptions) -> sitk.Image:
    """One image after N4, denoising and skull stripping, as the options say.

    The image keeps its grid. It keeps its type too, unless N4 or denoising make it float32.
    """
    import SimpleITK as sitk

    if options.n4 is not None:
        image = n4_corrected(image, brain, options.n4)
    if options.denoise:
        step = DIFFUSION_STEP * min(1.0, *image.GetSpacing())
        image = sitk.CurvatureAnisotropicDiffusion(sitk.Cast(image, sitk.sitkFloat32), timeStep=step)
    # neither filter keeps the zeros around a brain
    if options.are_stripped and options.n4 is None and not options.denoise:
        return image
    return image if options.keep_skull else without_skull(image, brain)


def without_skull(image: sitk.Image, brain: np.ndarray) -> sitk.Image:
    """The image with 0 outside of the brain."""
    import SimpleITK as sitk

    stripped = sitk.GetImageFromArray(np.where(brain, sitk.GetArrayViewFromImage(image), 0).astype(_dtype(image)))
    stripped.CopyInformation(image)
    return stripped


def _dtype(image: sitk.Image) -> np.dtype:
    import SimpleITK as sitk

    return sitk.GetArrayViewFromImage(image).dtype


def n4_corrected(image: sitk.Image, brain: np.ndarray, shrink: int) -> sitk.Image:
    """Bias field correction by N4 (Tustison et al. 2010), its field found in the brain of a shrunk image: float32.

    ITK's defaults otherwise (4 levels of 50 iterations, 4 control points). One thread, so that the result is the same
    however many cases are converted at a time.

    Raises:
        InputError: the image, once shrunk, is too small for a field, or holds too little brain.
    """
    import SimpleITK as sitk

    image = sitk.Cast(image, sitk.sitkFloat32)
    mask = sitk.GetImageFromArray(brain.astype(np.uint8))
    mask.CopyInformation(image)
    factors = [min(shrink, size) for size in image.GetSize()]
    small, small_mask = sitk.Shrink(image, factors), sitk.Shrink(mask, factors)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetNumberOfThreads(1)
    try:
        corrector.Execute(small, small_mask)
        field = sitk.Cast(corrector.GetLogBiasFieldAsImage(image), sitk.sitkFloat32)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"N4 failed on an image shrunk to {small.GetSize()} voxels: {reason}") from error
    corrected = sitk.Divide(image, sitk.Exp(field))
    if not np.isfinite(sitk.GetArrayViewFromImage(corrected)).all():
        raise InputError(f"N4 found no bias field on an image shrunk to {small.GetSize()} voxels; try --n4 1.")
    return corrected
