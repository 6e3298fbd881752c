"""OAI-ZIB: masks of femur, tibia and their cartilages without geometry, and the OAI's DESS images as DICOM.

Ambellan et al., Medical Image Analysis 52 (2019) 109-118. The release holds the masks, two fold lists and the paths of
the images in the OAI archive, which has to be there (``--oai-root``). See ``mask_alignment`` for how a mask is laid on
its image.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_anomaly.dataset_conversion.oai_tree import BASELINE, resolve
from nnunet_anomaly.dataset_conversion.runner import Case, add_common_arguments, convert_cases, open_writer
from nnunet_anomaly.dataset_conversion.splits import Splits, folds_by_subject, read_id_list, two_folds
from nnunet_anomaly.dataset_conversion.writer import DatasetDescription, DatasetWriter, check_images
from nnunet_anomaly.errors import AnomalyError, GeometryError, InputError, LabelError
from nnunet_anomaly.files import load_json, save_json

if TYPE_CHECKING:
    import SimpleITK as sitk

    from nnunet_anomaly.dataset_conversion.dicom_series import Series

EXAMPLE = "nnunet-anomaly convert oai-zib /data/OAI-ZIB --oai-root /data/OAI/results/00m -d 101 -np 8"

LABELS = {"background": 0, "femoral_bone": 1, "femoral_cartilage": 2, "tibial_bone": 3, "tibial_cartilage": 4}
BONE, CARTILAGE = (1, 3), (2, 4)
DESCRIPTION = DatasetDescription(
    channel_names=["MR"],
    labels=LABELS,
    roi_labels=["femoral_bone", "tibial_bone"],
    converted_by="nnunet-anomaly convert oai-zib",
    description="Sagittal 3D DESS MR of the knee with femoral and tibial bone and cartilage.",
    reference="Ambellan et al., Medical Image Analysis 52 (2019) 109-118, doi:10.1016/j.media.2018.11.009; "
    "images: Osteoarthritis Initiative",
    licence="Masks: free for scientific purposes, cite the reference. Images: the OAI's data use agreement.",
)
SEQUENCE = "DESS"
FOLD_LISTS = ("2foldCrossValidation-List1.txt", "2foldCrossValidation-List2.txt")
KNOWN_ODDITIES = {"9269383": "the release's mask of this subject is known to have a stray cluster"}
VOTES = 5  # cases that choose the release's flip together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``nnunet-anomaly convert oai-zib``."""
    from nnunet_anomaly.dataset_conversion.mask_alignment import AUTO, FLIPS, PER_CASE

    parser.add_argument("release", type=Path, metavar="RELEASE", help="folder of the release, with segmentation/")
    parser.add_argument(
        "--oai-root", type=Path, required=True, metavar="ROOT", help="folder of the OAI images, with 00m/ or 0.C.2/"
    )
    parser.add_argument(
        "--flip",
        choices=[AUTO, PER_CASE, *FLIPS],
        default=AUTO,
        help="which axes (z slices, y rows, x columns) of the masks to reverse: auto finds one flip for the release by "
        "comparing masks and images, and checks it in every case; per-case lets each case choose (default: auto)",
    )
    parser.add_argument(
        "--two-fold", action="store_true", help="folds by the release's own two lists instead of five by subject"
    )
    add_common_arguments(parser, default_name="KneeOAIZIB")


def run(args: argparse.Namespace) -> int:
    """Convert the release; see ``add_arguments``."""
    folder = find_masks(args.release)
    lists = [read_id_list(path) for path in fold_list_paths(folder, required=args.two_fold)]
    cases = list_cases(args.release, folder, args.oai_root, [name for names in lists for name in names])
    refuse_classification_masks([case for case in cases if case.problem is None])

    def make_splits(subjects: dict[str, str]) -> Splits:
        if not args.two_fold:
            return folds_by_subject(subjects)
        convertible = {case.case_id for case in cases if case.problem is None}
        return two_folds(*lists, {case: subject for case, subject in subjects.items() if case in convertible})

    options = {"oai_root": str(args.oai_root.resolve()), "flip": args.flip}
    writer = open_writer(args, cases, DESCRIPTION, options)
    common = release_flip(writer, cases, args.flip)
    return convert_cases(args, writer, cases, convert_case, (args.flip, common), make_splits)


# ---- what is in the release


def find_masks(release: Path) -> Path:
    """Folder ``segmentation_masks`` of the release, given the release, its ``segmentation`` or the folder itself.

    Raises:
        InputError: there is none, or it is that of the classification study, whose label 2 is the tibia.
    """
    if not release.is_dir():
        raise InputError(f"The release folder {release} does not exist.")
    candidates = [release / "segmentation" / "segmentation_masks", release / "segmentation_masks", release]
    found = [path for path in candidates if path.is_dir() and any(path.glob("*.mhd"))]
    trap = release / "classification" / "segmentation_masks"
    if not found and not trap.is_dir():
        raise InputError(
            f"{release} has no segmentation/segmentation_masks with <ID>.segmentation_masks.mhd files. Give the folder "
            "into which OAI-ZIB was unpacked."
        )
    folder = (found or [trap])[0]
    if folder.resolve().parent.name == "classification":
        raise InputError(_trap_message(folder))
    return folder


def _trap_message(folder: Path) -> str:
    return (
        f"{folder} holds the masks of the classification study (1 femur, 2 tibia), which have the same file names as "
        "the segmentations. Give the folder whose 'segmentation' folder has masks with labels 1 to 4."
    )


def refuse_classification_masks(cases: list[Case]) -> None:
    """Look at the first, the middle and the last readable mask for the classification study's labels.

    Raises:
        InputError: a mask has labels 1 and 2 alone, and 2 is as large as a bone.
    """
    for case in {id(case): case for case in (cases[:1] + cases[len(cases) // 2 :][:1] + cases[-1:])}.values():
        try:
            mask = read_mask(case.sources["mask"])
        except InputError:
            continue  # this case fails by its own name later
        if is_classification_mask(mask):
            raise InputError(_trap_message(case.sources["mask"].parent))


def is_classification_mask(mask: np.ndarray) -> bool:
    """Whether labels are 1 and 2 alone and 2 is too large for cartilage (a knee has about 8 % of the femur)."""
    voxels = np.bincount(mask[(mask > 0) & (mask <= 4)].astype(np.int64), minlength=5)
    return not voxels[3] and not voxels[4] and voxels[2] > 0.25 * voxels[1] > 0


def fold_list_paths(masks: Path, required: bool) -> list[Path]:
    """The release's two fold lists; none if they are not there and not required.

    Raises:
        InputError: required, but not there.
    """
    paths = [masks.parent / "doc" / name for name in FOLD_LISTS]
    missing = [path for path in paths if not path.is_file()]
    if missing and required:
        raise InputError(f"--two-fold needs the release's lists, but {missing[0]} does not exist.")
    return [] if missing else paths


def list_cases(release: Path, masks: Path, oai_root: Path, listed: list[str]) -> list[Case]:
    """All cases that the masks, the image paths or the fold lists name, sorted; each with its problem, if any.

    Raises:
        InputError: the list of image paths is missing or unreadable, or the OAI folder does not exist.
    """
    if not oai_root.is_dir():
        raise InputError(f"The folder of the OAI images, {oai_root}, does not exist. Give it with --oai-root.")
    image_paths = read_image_paths(masks.parent / "doc" / "oai_mri_paths.txt")
    mask_files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(masks.glob("*.mhd")):
        mask_files[path.name.split(".")[0]].append(path)
    owners: dict[str, set[str]] = defaultdict(set)
    for name, paths in image_paths.items():
        for relative in paths:
            owners[relative].add(name)
    return [
        _case(name, image_paths.get(name, []), mask_files.get(name, []), owners, release, oai_root)
        for name in sorted({*image_paths, *mask_files, *listed})
    ]


def _case(
    name: str, images: list[str], masks: list[Path], owners: Mapping[str, set[str]], release: Path, oai_root: Path
) -> Case:
    """One case with its files, or with what is wrong with them."""
    folder = resolve(oai_root, images[0]) if images else None
    problem = None
    if len(images) != 1:
        problem = (
            f"oai_mri_paths.txt names {len(images)} images for it: {', '.join(images)}"
            if images
            else "it is not in oai_mri_paths.txt, so that its image is unknown"
        )
    elif len(masks) != 1:
        problem = f"two masks: {', '.join(path.name for path in masks)}" if masks else "it has no mask in the release"
    elif len(owners[images[0]]) > 1:
        problem = f"oai_mri_paths.txt names the same image for {', '.join(sorted(owners[images[0]]))}"
    elif folder is None:
        problem = f"its image folder {images[0]} is not in {oai_root}"
    if problem or folder is None:
        return Case(name, name, BASELINE, problem=problem)
    sources = {"image": folder, "mask": masks[0]}
    names = {
        "image": folder.relative_to(oai_root).as_posix(),
        "mask": masks[0].relative_to(release).as_posix(),
    }
    return Case(name, name, BASELINE, sources, {"sources": names})


def read_image_paths(path: Path) -> dict[str, list[str]]:
    """``oai_mri_paths.txt``: the different image folders of every subject (one, if all is well).

    Raises:
        InputError: the file is missing, or a line is not ``ID: relative/path``.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; it says which OAI image belongs to which mask.")
    found: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        name, colon, relative = (part.strip() for part in line.partition(":"))
        relative = relative.strip("/")
        if not (name and colon and relative) or ".." in relative.split("/"):
            raise InputError(f"{path}, line {number}: '{line.strip()}' is not 'ID: relative/path'.")
        folders = found.setdefault(name, [])
        if relative not in folders:
            folders.append(relative)
    return found


# ---- one case


def read_mask(path: Path) -> np.ndarray:
    """A mask in the axes of its image (slices, rows, columns), not flipped.

    Raises:
        InputError: header or voxels are missing, or the file is cut off.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        header = dict(line.split(" = ", 1) for line in path.read_text(errors="replace").splitlines() if " = " in line)
        data = path.parent / header["ElementDataFile"].strip()
    except (OSError, KeyError, RuntimeError) as error:
        raise InputError(f"{path} is not readable as a MetaImage header. Fetch this file again.") from error
    needed = math.prod(reader.GetSize()) * sitk.Image(1, 1, reader.GetPixelID()).GetSizeOfPixelComponent()
    found = data.stat().st_size if data.is_file() else 0
    if header.get("CompressedData", "False").strip() != "True" and found < needed:
        raise InputError(f"{data} has {found} of the {needed} bytes that its header announces: fetch this file again.")
    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise InputError(f"{data} is not readable. Fetch this file again.") from error
    if array.ndim != 3:
        raise GeometryError(f"{path} has {array.ndim} axes; a volume is needed.")
    return np.moveaxis(array, -1, 0)


def load_case(case: Case) -> tuple[sitk.Image, np.ndarray, Series]:
    """Image, mask in the image's axes, and the DICOM series that the image is.

    Raises:
        AnomalyError: see ``dicom_series`` and ``read_mask``; GeometryError when their shapes differ, LabelError when
            the mask has labels that it should not.
    """
    from nnunet_anomaly.dataset_conversion.dicom_series import pick_series, read_series

    mask = read_mask(case.sources["mask"])
    if is_classification_mask(mask):
        raise LabelError(_trap_message(case.sources["mask"]))
    foreign = sorted(set(np.unique(mask).tolist()) - set(LABELS.values()))
    if foreign:
        raise LabelError(f"the mask has labels {foreign[:5]}; OAI-ZIB has 0 to 4")
    series = pick_series(case.sources["image"], SEQUENCE)
    image = read_series(series)
    check_images(case.case_id, [image], DESCRIPTION.channel_names)
    shape = image.GetSize()[::-1]
    if mask.shape != shape:
        raise GeometryError(f"the mask has {mask.shape} slices, rows and columns, the image {shape}")
    return image, mask, series


def scores_of(image: sitk.Image, mask: np.ndarray) -> dict[str, float]:
    """Scores of the eight flips (see ``mask_alignment``)."""
    import SimpleITK as sitk

    from nnunet_anomaly.dataset_conversion.mask_alignment import flip_scores

    return flip_scores(sitk.GetArrayFromImage(image), mask, image.GetSpacing()[::-1], BONE, CARTILAGE)


def release_flip(writer: DatasetWriter, cases: list[Case], option: str) -> str | None:
    """The release's one flip, by the first cases that can be read together; kept, so that later runs agree.

    Raises:
        InputError: no case can be read, or they do not say clearly which flip it is.
    """
    from nnunet_anomaly.dataset_conversion.mask_alignment import AUTO, common_alignment

    if option != AUTO:
        return None
    kept = writer.own_file("release_flip")
    if kept.is_file():
        return load_json(kept)["flip"]
    votes: dict[str, dict[str, float]] = {}
    first_error = None
    for case in cases:
        if case.problem is None and len(votes) < VOTES:
            try:
                image, mask, _ = load_case(case)
                votes[case.case_id] = scores_of(image, mask)
            except AnomalyError as error:
                first_error = first_error or f"{case.case_id}: {error}"
    if not votes:
        raise InputError(f"No case can be read. The first one, {first_error}")
    alignment = common_alignment(list(votes.values()))
    if not alignment.is_clear:
        raise InputError(
            f"It is unclear how the masks lie on the images: over {', '.join(votes)}, {alignment}. Are these the right "
            "images? If so, look at some and give --flip, or --flip per-case."
        )
    save_json({"flip": alignment.flip, "cases": votes}, kept)
    print(f"Masks are laid on the images with flip {alignment.flip}, by {len(votes)} cases together: {alignment}")
    return alignment.flip


def convert_case(writer: DatasetWriter, case: Case, test: bool, option: str, common: str | None) -> None:
    """Convert one case into the dataset."""
    import SimpleITK as sitk

    from nnunet_anomaly.dataset_conversion.dicom_series import laterality
    from nnunet_anomaly.dataset_conversion.mask_alignment import best_alignment, decide_flip, flipped

    image, mask, series = load_case(case)
    scores = scores_of(image, mask)
    flip, notes = decide_flip(scores, option, common)
    label = sitk.GetImageFromArray(np.ascontiguousarray(flipped(mask, flip)))
    label.CopyInformation(image)
    side, side_notes = laterality(series)
    own = best_alignment(scores)
    alignment = {
        "option": option,
        "flip": flip,
        "score": round(scores[flip], 3),
        "runner_up": own.flip if own.flip != flip else own.second,
        "runner_up_score": round(own.score if own.flip != flip else own.second_score, 3),
    }
    notes += side_notes
    if case.subject in KNOWN_ODDITIES:
        notes.append(KNOWN_ODDITIES[case.subject])
    details = case.to_record(laterality=side, alignment=alignment, notes=notes)
    writer.write_case(case.case_id, [image], label, test=test, details=details)
