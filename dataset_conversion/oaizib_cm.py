"""OAIZIB-CM: the NIfTI release of OAI-ZIB with medial and lateral tibial cartilage apart (Yao et al., CartiMorph).

Images and labels come with geometry and are copied as they are; the release's 103 test cases stay test cases.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

from nnunet_anomaly.dataset_conversion.runner import Case, add_common_arguments, convert_cases, open_writer
from nnunet_anomaly.dataset_conversion.splits import folds_by_subject
from nnunet_anomaly.dataset_conversion.writer import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    DatasetDescription,
    DatasetWriter,
    check_same_grid,
)
from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import read_image

EXAMPLE = "nnunet-anomaly convert oaizib-cm /data/OAIZIB-CM -d 102 -np 8"

LABELS = {
    "background": 0,
    "femoral_bone": 1,
    "femoral_cartilage": 2,
    "tibial_bone": 3,
    "medial_tibial_cartilage": 4,
    "lateral_tibial_cartilage": 5,
}
BONE, CARTILAGE = (1, 3), (2, 4, 5)
DESCRIPTION = DatasetDescription(
    channel_names=["MR"],
    labels=LABELS,
    roi_labels=["femoral_bone", "tibial_bone"],
    converted_by="nnunet-anomaly convert oaizib-cm",
    description="Sagittal 3D DESS MR of the knee with femoral and tibial bone and cartilage, tibial cartilage parted.",
    reference="Yao et al., Medical Image Analysis 91 (2024) 103035, doi:10.1016/j.media.2023.103035; Ambellan et al., "
    "Medical Image Analysis 52 (2019) 109-118, doi:10.1016/j.media.2018.11.009; images: Osteoarthritis Initiative",
    licence="See the release; the images are under the OAI's data use agreement.",
)
ENDINGS = (".nii.gz", ".nii")
SIDES = {"left": "left", "l": "left", "right": "right", "r": "right"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``nnunet-anomaly convert oaizib-cm``."""
    parser.add_argument("release", type=Path, metavar="RELEASE", help="folder with imagesTr, labelsTr, imagesTs, ...")
    add_common_arguments(parser, default_name="KneeOAIZIBCM")


def run(args: argparse.Namespace) -> int:
    """Convert the release; see ``add_arguments``."""
    cases = list_cases(args.release)
    writer = open_writer(args, cases, DESCRIPTION, {})
    return convert_cases(args, writer, cases, convert_case, (), folds_by_subject)


def list_cases(release: Path) -> list[Case]:
    """All cases that an image or a label file names, sorted; each with its problem, if any.

    Raises:
        InputError: the folder is missing or has not this layout.
    """
    if not (release / "imagesTr").is_dir() or not (release / "labelsTr").is_dir():
        raise InputError(f"{release} has no imagesTr and labelsTr. Give the folder into which OAIZIB-CM was unpacked.")
    info = read_info(release)
    files: dict[str, dict[str, list[Path]]] = {}
    for test in (False, True):
        for role, folder, suffix in (("image", IMAGE_FOLDERS[test], "_0000"), ("label", LABEL_FOLDERS[test], "")):
            for path in sorted((release / folder).glob("*.nii*")):
                name = case_name(path, suffix)
                files.setdefault(name, {}).setdefault(role, []).append(path)
    return [_case(name, files[name], info.get(_number(name), {}), release) for name in sorted(files)]


def _case(name: str, files: dict[str, list[Path]], info: dict[str, str], release: Path) -> Case:
    """One case with its files, or with what is wrong with them."""
    images, labels = files.get("image", []), files.get("label", [])
    subject = info.get("SubjectID") or name
    for what, paths in (("image", images), ("label", labels)):
        if len(paths) != 1:
            found = ", ".join(path.relative_to(release).as_posix() for path in paths) or "none"
            return Case(name, subject, "00m", problem=f"one {what} file is needed; found: {found}")
    if images[0].parent.name[-2:] != labels[0].parent.name[-2:]:
        return Case(name, subject, "00m", problem="its image is in one part of the release, its label in the other")
    sources = {"image": images[0], "label": labels[0]}
    details = {
        "sources": {role: path.relative_to(release).as_posix() for role, path in sources.items()},
        "laterality": SIDES.get(info.get("KneeSide", "").casefold()),
        "kl_grade": int(info["KLGrade"]) if info.get("KLGrade", "").isdigit() else None,
    }
    return Case(name, subject, "00m", sources, details, test=images[0].parent.name == IMAGE_FOLDERS[True])


def case_name(path: Path, suffix: str) -> str:
    """``oaizib_001`` of ``oaizib_001_0000.nii.gz`` or ``oaizib_001.nii.gz``."""
    for ending in ENDINGS:
        if path.name.endswith(ending):
            return path.name[: -len(ending)].removesuffix(suffix)
    raise InputError(f"{path} is not a NIfTI file. Move it away.")


def _number(name: str) -> int | None:
    """Number of a case: 1 of ``oaizib_001`` or ``1``."""
    digits = name.rsplit("_", 1)[-1]
    return int(digits) if digits.isdigit() else None


def read_info(release: Path) -> dict[int | None, dict[str, str]]:
    """What the release's CSV files say of the cases, by case number: KneeSide, KLGrade, SubjectID where given.

    ``kneeSideInfo.csv`` has no header: file name and side; the others name their columns, one of them ``CMT-ID``.
    """
    info: dict[int | None, dict[str, str]] = {}
    for path in sorted({*release.glob("*.csv"), *release.glob("info/*.csv")}):
        for number, values in _rows(path):
            info.setdefault(number, {}).update({key: value for key, value in values.items() if key and value})
    return info


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Case number and named values of every row of one CSV file."""
    with open(path, newline="", encoding="utf-8-sig") as handle:
        rows = [[cell.strip() for cell in row] for row in csv.reader(handle) if row]
    header = rows[0] if rows and "CMT-ID" in rows[0] else None
    for row in rows[1 if header else 0 :]:
        values = (
            dict(zip(header, row, strict=False)) if header else dict(zip(("CMT-ID", "KneeSide"), row, strict=False))
        )
        number = _number(values.pop("CMT-ID").split(".")[0])
        if number is not None:
            yield number, values


def convert_case(writer: DatasetWriter, case: Case, test: bool) -> None:
    """Copy one case into the dataset, checked; that the label lies on the image is looked at, and noted if not."""
    import SimpleITK as sitk

    from nnunet_anomaly.dataset_conversion.mask_alignment import best_alignment, flip_scores

    image, label = read_image(case.sources["image"]), read_image(case.sources["label"])
    check_same_grid(case.case_id, image, label, "label map")
    scores = flip_scores(
        sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(label), image.GetSpacing()[::-1], BONE, CARTILAGE
    )
    own = best_alignment(scores)
    notes = []
    if own.is_clear and own.flip != "none":
        notes.append(f"by its header the label map lies on the image, but the image fits better otherwise: {own}")
    writer.write_case(case.case_id, [image], label, test=test, details=case.to_record(notes=notes))
