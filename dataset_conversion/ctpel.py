"""CTPEL: CT of pelves with segmented femora, hip bones and sacrum (Connolly and Wang 2019), as DICOM or NIfTI copies.

CT and segmentation (SEG) are found by their SOP class, segments by their names, and left and right are looked up in
patient coordinates (see ``sides``): the names or the geometry alone are never trusted without a word.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_anomaly.dataset_conversion.grids import read_oriented, read_placed
from nnunet_anomaly.dataset_conversion.roles import (
    UNLABELLED,
    add_role_arguments,
    make_folds,
    role_options,
    save_roles,
    with_roles,
)
from nnunet_anomaly.dataset_conversion.runner import Case, add_common_arguments, convert_cases, open_writer
from nnunet_anomaly.dataset_conversion.sides import Place, disagreements, midline_mm, sides_by_geometry
from nnunet_anomaly.dataset_conversion.splits import read_id_list, some_of
from nnunet_anomaly.dataset_conversion.writer import DatasetDescription, DatasetWriter
from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.files import load_json
from nnunet_anomaly.geometry import bounding_box
from nnunet_anomaly.label_maps import files_by_case, read_label_map
from nnunet_anomaly.twins import LEFT, RIGHT

if TYPE_CHECKING:
    import SimpleITK as sitk

EXAMPLE = "nnunet-anomaly convert ctpel /data/CTPEL -d 401 --crop 20 -np 4"
LAYOUT = """\
The release (DICOM), whose folders im_N may have any numbers:
  <16 hex digits>/im_1/i0000,0000b.dcm, ...          CT
  <16 hex digits>/im_3/x0000.dcm                     SEG: Right Femur, Left Femur, Right Hip, Left Hip, Sacrum
NIfTI copies, or any CT with label maps; a case without label map goes to imagesTs:
  images/<case>.nii.gz, labels/<case>.nii.gz         labels 1, 2 femora, 3, 4 hip bones, 5 sacrum (--label-names)

"""
FEMUR, HIP, SACRUM = "femur", "hip", "sacrum"
PAIRED = {FEMUR: True, HIP: True, SACRUM: False}
LABELS = {"background": 0, "femur_left": 1, "femur_right": 2, "hip_left": 3, "hip_right": 4, "sacrum": 5}
DESCRIPTION = DatasetDescription(
    channel_names=["CT"],
    labels=LABELS,
    roi_labels=[name for name in LABELS if name != "background"],
    converted_by="nnunet-anomaly convert ctpel",
    description="CT of the pelvis with both femora, both hip bones and the sacrum.",
    reference="Connolly and Wang, Segmented CT pelvis scans with annotated anatomical landmarks, 2019",
    licence="See the release.",
)
CASE_NAME = re.compile(r"[0-9A-Fa-f]{16}")
# what the numbers of NIfTI copies mean; on which side a label lies differs between copies and their documentation
COPY_NAMES = {"1": FEMUR, "2": FEMUR, "3": HIP, "4": HIP, "5": SACRUM}
KNOWN_NAMES = (*(name for name in LABELS if name != "background"), FEMUR, HIP)
LEAST_BONE_MM3 = 1000.0  # the smallest of these bones that a field of view cuts through has fifty times as much
NAMES, GEOMETRY = "names", "geometry"
REFUSE, BACKGROUND = "refuse", "background"


@dataclass(frozen=True)
class Part:
    """One structure of a case on the CT's grid.

    Attributes:
        named: what the file calls it.
        structure: femur, hip or sacrum.
        side: by its name; ``None`` where the name tells none.
        mask: bool (z, y, x).
    """

    named: str
    structure: str
    side: str | None
    mask: np.ndarray


@dataclass(frozen=True)
class Structures:
    """What a label map or a SEG holds.

    Attributes:
        parts: on the CT's grid.
        left_out: what the file calls those that ``--label-names`` maps to null.
        notes: for the report.
    """

    parts: list[Part]
    left_out: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Options:
    """What the user chose of how a case is converted; see ``add_arguments``."""

    sides: str | None
    overlaps: str
    names: Mapping[str, str | None] | None
    crop_mm: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``nnunet-anomaly convert ctpel``."""
    parser.add_argument(
        "release", type=Path, metavar="RELEASE", help="folder of the DICOM release, or one with images/ and labels/"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="DIR",
        help="take these label maps, <case>.nii.gz, instead of the release's own, corrected ones perhaps; cases that "
        "have none there are left out. Numbers as in NIfTI copies, and so those of a dataset of this command",
    )
    parser.add_argument("--cases", type=Path, metavar="FILE", help="take only these cases, named one a line")
    parser.add_argument(
        "--label-names",
        type=Path,
        metavar="JSON",
        help='what labels or segments are: {"1": "hip_left", "Right Femur": "femur_right", "7": null}; names are '
        f"{', '.join(KNOWN_NAMES)} (femur and hip: which side is told by geometry), null leaves one out. Segments that "
        "are not named here are known by their words; of label maps every number has to be named",
    )
    parser.add_argument(
        "--sides",
        choices=[NAMES, GEOMETRY],
        help="where names and patient coordinates disagree on left and right: names keeps the names, geometry "
        "exchanges them; without it such a case fails",
    )
    parser.add_argument(
        "--overlaps",
        choices=[REFUSE, BACKGROUND],
        default=REFUSE,
        help="what becomes of voxels in two segments: refuse fails the case, background gives them to neither "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--crop",
        type=float,
        metavar="MM",
        help="crop to the box around the labels, so much wider on every side, test cases too; images without label map "
        "are never cropped (default: not cropped)",
    )
    add_role_arguments(parser)
    add_common_arguments(parser, default_name="CTPEL")


def run(args: argparse.Namespace) -> int:
    """Convert the release; see ``add_arguments``."""
    if args.crop is not None and not 0 <= args.crop < math.inf:
        raise InputError(f"--crop is {args.crop}; it is a margin in mm, 0 or more.")
    names = read_label_names(args.label_names) if args.label_names is not None else None
    options = Options(args.sides, args.overlaps, names, args.crop)
    cases = with_roles(args, chosen_cases(list_cases(args.release, args.labels), args.cases, options))
    more = {
        "labels": None if args.labels is None else str(args.labels.resolve()),
        "label_names": names,
        "crop_mm": args.crop,
        **role_options(args, cases),
    }
    writer = open_writer(args, cases, DESCRIPTION, more)
    save_roles(args, writer, cases)
    code = convert_cases(args, writer, cases, convert_case, (options,), lambda subjects: make_folds(cases, subjects))
    records = [record for case in cases if (record := writer.record(case.case_id)) is not None]
    if unused := unused_names(names or {}, records):
        print(
            f"WARNING: {args.label_names} has {some_of([repr(name) for name in unused])}, which no finished case has. "
            "Is that how they are spelt there?",
            file=sys.stderr,
        )
    return code


def unused_names(names: Mapping[str, str | None], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Segments or labels of ``--label-names`` that no case has; empty where no case has a label map.

    Args:
        names: the table.
        records: of the finished cases.
    """
    found: set[str] = set()
    for record in records:
        found.update(record.get("left_out", []))
        found.update(entry["named"] for entry in record.get("sides", {}).get("structures", {}).values())
    return [name for name in names if found and not found & {name, _label_named(name)}]


def read_label_names(path: Path) -> dict[str, str | None]:
    """The file of ``--label-names``: label or segment to the name of a structure, or ``None`` to leave it out.

    Raises:
        InputError: the file is missing, not JSON, or not such a table.
    """
    table = load_json(path)
    if not isinstance(table, dict) or not table:
        raise InputError(f'{path} must be a JSON object such as {{"1": "hip_left", "2": "hip_right"}}.')
    unknown = sorted({repr(name) for name in table.values() if name is not None and name not in KNOWN_NAMES})
    if unknown:
        raise InputError(f"{path} has {some_of(unknown)}; names are {', '.join(KNOWN_NAMES)} or null.")
    return table


# ---- what is in the release


def list_cases(release: Path, labels: Path | None) -> list[Case]:
    """All cases of a DICOM release or of a folder of NIfTI copies, sorted; each with its problem, if any.

    Args:
        release: its folder.
        labels: of label maps to take instead; cases without one are left out.

    Raises:
        InputError: no such folder, no case in it, or a label map of no case.
    """
    if not release.is_dir():
        raise InputError(f"The release folder {release} does not exist.")
    cases = _nifti_cases(release) if (release / "images").is_dir() else _dicom_cases(release)
    if labels is None:
        return cases
    corrected = files_by_case(labels)
    if foreign := sorted(corrected.keys() - {case.case_id for case in cases}):
        raise InputError(f"{labels} has label maps of {some_of(foreign)}, which are no cases of {release}.")
    return [
        replace(
            case,
            sources={**{role: path for role, path in case.sources.items() if role != "labels"}, "labels": path},
            details={**case.details, "sources": {**case.details["sources"], "labels": path.name}},
            test=False,
            role=None,
        )
        for case in cases
        if (path := corrected.get(case.case_id)) is not None
    ]


def _dicom_cases(release: Path) -> list[Case]:
    """Folders named by 16 hexadecimal digits, in the release or one level below."""
    folders = [
        path
        for path in sorted([*release.glob("*"), *release.glob("*/*")])
        if path.is_dir() and CASE_NAME.fullmatch(path.name)
    ]
    if not folders:
        raise InputError(f"{release} has neither images/ nor folders named by 16 hexadecimal digits; see --help.")
    cases = []
    for folder in folders:
        sources = {"dicom": folder}
        for part in sorted(path for path in folder.rglob("*") if path.is_dir()):
            files = [path for path in part.iterdir() if path.is_file()]
            # of a series its folder, whose time of change tells that files came or went; of single files themselves
            for path in [part, *(files if len(files) == 1 else [])]:
                sources[path.relative_to(folder).as_posix()] = path
        details = {"sources": {"dicom": folder.relative_to(release).as_posix()}}
        cases.append(Case(folder.name, folder.name, None, sources, details))
    return cases


def _nifti_cases(release: Path) -> list[Case]:
    """Files ``images/<case>`` with ``labels/<case>``; one without label map is for prediction alone."""
    images = files_by_case(release / "images")
    labels = files_by_case(release / "labels") if (release / "labels").is_dir() else {}
    cases = []
    for name in sorted(images.keys() | labels.keys()):
        found = {"images": images.get(name), "labels": labels.get(name)}
        sources = {role: path for role, path in found.items() if path is not None}
        details = {"sources": {role: path.relative_to(release).as_posix() for role, path in sources.items()}}
        problem = None if name in images else f"{labels[name]} has no image in {release / 'images'}"
        is_labelled = name in labels
        role = None if is_labelled else UNLABELLED
        cases.append(Case(name, name, None, sources, details, test=not is_labelled, role=role, problem=problem))
    if not cases:
        raise InputError(f"{release / 'images'} has no images.")
    return cases


def chosen_cases(cases: Sequence[Case], only: Path | None, options: Options) -> list[Case]:
    """Cases that ``--cases`` names, with the options recorded that may differ between cases of one dataset.

    Raises:
        InputError: the list is unreadable, or names what is no case.
    """
    wanted = None if only is None else set(read_id_list(only))
    if wanted is not None and (unknown := sorted(wanted - {case.case_id for case in cases})):
        raise InputError(f"{only} has {some_of(unknown)}, which are no cases of this release.")
    chosen = {"sides_option": options.sides, "overlaps": options.overlaps}
    return [
        replace(case, details={**case.details, **chosen}) for case in cases if wanted is None or case.case_id in wanted
    ]


# ---- one case


def convert_case(writer: DatasetWriter, case: Case, test: bool, options: Options) -> None:
    """Convert one case into the dataset."""
    image, found = read_case(case, options)
    if found is None:
        writer.write_case(case.case_id, [image], None, test=test, details=case.to_record())
        return
    where = str(case.sources.get("labels", case.sources.get("dicom")))
    notes = found.notes + check_parts(found.parts, image.GetSpacing()[::-1], where)
    label, sides, side_notes = with_sides(found.parts, image, options.sides, where)
    if options.crop_mm is not None:
        image, label = cropped(image, label, options.crop_mm)
    details = case.to_record(sides=sides, left_out=found.left_out, notes=notes + side_notes)
    writer.write_case(case.case_id, [image], label, test=test, details=details)


def read_case(case: Case, options: Options) -> tuple[sitk.Image, Structures | None]:
    """CT in LPS, and its structures on its grid; ``None`` for a case without label map."""
    import SimpleITK as sitk

    if "dicom" not in case.sources:
        image = read_oriented(case.sources["images"])
        if "labels" not in case.sources:
            return image, None
    else:
        from nnunet_anomaly.dataset_conversion.dicom_seg import SEGMENTATION, dicom_objects, one_series, read_ct

        folder = case.sources["dicom"]
        objects = dicom_objects(folder)
        image, frame_uid = read_ct(objects, folder)
        image = sitk.DICOMOrient(image, "LPS")
        if "labels" not in case.sources:
            found = one_series(objects, SEGMENTATION, "segmentation (SEG)", folder)
            if len(found) > 1:
                raise InputError(f"{found[0].path} and {found[1].path} are both segmentations. Leave one of them.")
            return image, read_seg(found[0].path, image, frame_uid, options)
    path = case.sources["labels"]
    array, grid = read_label_map(path)
    read_placed(path)  # a header that tells no place tells no side either
    return image, structures_of_label_map(array, grid, image, options.names, path)


def read_seg(path: Path, image: sitk.Image, frame_uid: str, options: Options) -> Structures:
    """Structures of a SEG on the CT's grid; those that are left out may overlap others and reach beyond the CT.

    Raises:
        GeometryError: it is of another frame of reference than the CT, or does not lie within it.
        InputError: it is not readable.
        LabelError: an unknown segment, or overlapping ones unless these voxels are to become background.
    """
    import SimpleITK as sitk

    from nnunet_anomaly.dataset_conversion.dicom_seg import overlaps, read_segments, without_segments

    segments = read_segments(path)
    if not frame_uid or segments.frame_uid != frame_uid:
        raise GeometryError(
            f"{path} is of the frame of reference {segments.frame_uid or '(none)'}, the CT of {frame_uid or '(none)'}: "
            "its places are not the CT's. Is it of another scan?"
        )
    known = {name: structure_named(name, options.names, path) for name in segments.names}
    left_out = [name for name, structure in known.items() if structure is None]
    segments = without_segments(segments, left_out)
    notes = []
    if shared := overlaps(segments):
        said = ", ".join(f"{names} share {voxels} voxels" for names, voxels in shared.items())
        if options.overlaps == REFUSE:
            raise LabelError(f"{path}: {said}. --overlaps {BACKGROUND} gives them to neither.")
        notes.append(f"{said}, which became background")
    labels = np.zeros(segments.masks.shape[1:], np.uint8)
    for number, mask in enumerate(segments.masks, start=1):
        labels[mask] = number
    labels[segments.masks.sum(axis=0) > 1] = 0
    flat = sitk.GetImageFromArray(labels)
    flat.CopyInformation(segments.grid)
    placed, more = on_grid_of_ct(flat, image, path)
    numbers = {name: number for number, name in enumerate(segments.names, start=1)}
    parts = [
        Part(name, *structure, placed == numbers[name]) for name, structure in known.items() if structure is not None
    ]
    return Structures(parts, left_out, notes + more)


def structure_named(name: str, names: Mapping[str, str | None] | None, path: Path) -> tuple[str, str | None] | None:
    """Structure and side (``None``: the name tells none) of a segment or label; ``None`` for one to leave out.

    Args:
        name: of the segment, or the label's number.
        names: table of the user's; what is not in it is read by its words, such as Left Femur.
        path: for the message.

    Raises:
        LabelError: an unknown name.
    """
    if names is not None and name in names:
        given = names[name]
        if given is None:
            return None
        structure, _, side = given.partition("_")
        return structure, side or None
    words = set(re.findall(r"[a-z]+", name.casefold())) - {"bone"}
    structures, sides = words & PAIRED.keys(), words & {LEFT, RIGHT}
    if len(structures) == 1 and words == structures | sides:
        structure = structures.pop()
        if len(sides) == PAIRED[structure]:
            return structure, sides.pop() if sides else None
    raise LabelError(f"{path} has '{name}', which is none of the known structures. Say what it is by --label-names.")


def structures_of_label_map(
    array: np.ndarray, grid: sitk.Image, image: sitk.Image, names: Mapping[str, str | None] | None, path: Path
) -> Structures:
    """Structures of a label map on the CT's grid; those that are left out may reach beyond the CT.

    Args:
        array: label map (z, y, x), integers.
        grid: image with its geometry.
        image: the CT.
        names: what its labels are; ``None`` for those of the NIfTI copies.
        path: of its file, for messages.

    Raises:
        GeometryError: it does not lie within the CT.
        LabelError: an unknown label.
    """
    import SimpleITK as sitk

    table = COPY_NAMES if names is None else names
    found = [int(value) for value in np.unique(array) if value != 0]
    known = {value: structure_named(str(value), table, path) for value in found}
    left_out = [value for value, structure in known.items() if structure is None]
    flat = sitk.GetImageFromArray(np.where(np.isin(array, left_out), 0, array).astype(np.uint16))
    flat.CopyInformation(grid)
    placed, notes = on_grid_of_ct(flat, image, path)
    parts = [
        Part(_label_named(value), *structure, placed == value)
        for value, structure in known.items()
        if structure is not None
    ]
    return Structures(parts, [_label_named(value) for value in left_out], notes)


def _label_named(value: int | str) -> str:
    """What a label of a label map is called in reports."""
    return f"label {value}"


def on_grid_of_ct(labels: sitk.Image, image: sitk.Image, path: Path) -> tuple[np.ndarray, list[str]]:
    """A label map on the CT's grid by nearest neighbour (z, y, x), and a note where its voxels are not the CT's.

    Raises:
        GeometryError: labelled voxels lie outside of the CT.
    """
    import SimpleITK as sitk

    index = np.argwhere(sitk.GetArrayViewFromImage(labels) != 0)[:, ::-1]
    to_mm = np.reshape(labels.GetDirection(), (3, 3)) * labels.GetSpacing()
    from_mm = np.linalg.inv(np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing())
    places = (index @ to_mm.T + np.subtract(labels.GetOrigin(), image.GetOrigin())) @ from_mm.T
    outside = int(
        (np.abs(places - (np.array(image.GetSize()) - 1) / 2) > np.array(image.GetSize()) / 2 + 0.1).any(1).sum()
    )
    if outside:
        raise GeometryError(
            f"{path}: {outside} of its {len(index)} labelled voxels lie outside of the CT. Is it of another scan?"
        )
    notes = []
    same_size = np.allclose(sorted(labels.GetSpacing()), sorted(image.GetSpacing()), rtol=1e-3)
    if not same_size or (len(places) and np.abs(places - np.rint(places)).max() > 0.1):
        sizes = [" x ".join(f"{size:.4g}" for size in one.GetSpacing()) for one in (labels, image)]
        notes = [f"its labels were brought from voxels of {sizes[0]} mm to those of the CT, {sizes[1]} mm (x, y, z)"]
    placed = sitk.Resample(labels, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0, labels.GetPixelID())
    return sitk.GetArrayFromImage(placed), notes


def check_parts(parts: Sequence[Part], spacing_mm: Sequence[float], where: str) -> list[str]:
    """Refuse what cannot be a pelvis; a note where one femur is absent, as where a hip was replaced.

    Args:
        parts: structures on a grid whose slices rise towards the head.
        spacing_mm: voxel size (z, y, x).
        where: for messages.

    Raises:
        LabelError: a structure is missing, is there too often, or has less than 1 ml, or a femur lies above a hip bone.
    """
    voxel_mm3 = float(np.prod(spacing_mm))
    number = Counter(part.structure for part in parts)
    for structure, paired in PAIRED.items():
        wanted = 2 if paired else 1
        if number[structure] > wanted:
            named = ", ".join(repr(part.named) for part in parts if part.structure == structure)
            raise LabelError(f"{where} has {number[structure]} structures that are a {structure}: {named}.")
        if number[structure] < (1 if structure == FEMUR else wanted):
            named = ", ".join(repr(part.named) for part in parts) or "nothing"
            raise LabelError(
                f"{where} has {number[structure]} of {wanted} {structure} structures; it has {named}. All are needed, "
                "but for one femur; what --label-names leaves out counts as absent."
            )
    for part in parts:
        voxels = int(part.mask.sum())
        if voxels * voxel_mm3 < LEAST_BONE_MM3:
            raise LabelError(
                f"{where}: '{part.named}' has {voxels} voxels, {voxels * voxel_mm3:.3g} mm^3: too little for a "
                f"{part.structure}. Mend or remove it."
            )
    height_mm = {part.named: float(np.nonzero(part.mask)[0].mean() * spacing_mm[0]) for part in parts}
    for femur in (part.named for part in parts if part.structure == FEMUR):
        for hip in (part.named for part in parts if part.structure == HIP):
            if height_mm[femur] >= height_mm[hip]:
                raise LabelError(
                    f"{where}: '{femur}', a femur, lies above '{hip}', a hip bone. Say what is what by --label-names."
                )
    return [] if number[FEMUR] == 2 else ["WARNING: one femur is absent: a replaced hip, or left out by --label-names?"]


def with_sides(
    parts: Sequence[Part], image: sitk.Image, option: str | None, where: str
) -> tuple[sitk.Image, dict[str, Any], list[str]]:
    """The label map with its sides, what to record of them, and notes for the report.

    Args:
        parts: structures on the CT's grid.
        image: the CT.
        option: ``names``, ``geometry``, or ``None``: they must agree.
        where: for messages.

    Raises:
        LabelError: names and geometry disagree without an option, or geometry is unclear, or two would be of one name.
    """
    import SimpleITK as sitk

    places = [placed(part, image) for part in parts]
    try:
        lies = sides_by_geometry(places)
        disagreement = disagreements(places)
    except LabelError as error:
        raise LabelError(f"{where}: {error}") from None
    if disagreement and option is None:
        raise LabelError(
            f"{where}: {disagreement}. Look at it; then --sides {GEOMETRY} exchanges them, --sides {NAMES} keeps them."
        )
    sides = [
        part.side if part.side is not None and option != GEOMETRY else side
        for part, side in zip(parts, lies, strict=True)
    ]
    names = [part.structure + (f"_{side}" if side else "") for part, side in zip(parts, sides, strict=True)]
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise LabelError(f"{where} has two structures that would be {twice[0]}; give all of a pair's sides, or none.")
    array = np.zeros(parts[0].mask.shape, np.uint8)
    for part, name in zip(parts, names, strict=True):
        array[part.mask] = LABELS[name]
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    middle_mm = midline_mm(places)
    record = {
        "midline_x_mm": round(middle_mm, 2),
        "structures": {
            name: {
                "named": place.named,
                "says": place.side,
                "left_of_midline_mm": round(place.x_mm - middle_mm, 2),
                "lies": side,
            }
            for name, place, side in sorted(zip(names, places, lies, strict=True), key=lambda item: item[0])
        },
    }
    kept = "their names were kept" if option == NAMES else "they were exchanged"
    return label, record, [f"{disagreement}; {kept}"] if disagreement else []


def placed(part: Part, image: sitk.Image) -> Place:
    """Where a structure lies."""
    middle = np.argwhere(part.mask).mean(axis=0)[::-1]
    x_mm = image.TransformContinuousIndexToPhysicalPoint(middle.tolist())[0]
    return Place(part.named, part.structure, part.side, float(x_mm), PAIRED[part.structure])


def cropped(image: sitk.Image, label: sitk.Image, margin_mm: float) -> tuple[sitk.Image, sitk.Image]:
    """Image and label map cut to the box around the labels, ``margin_mm`` wider, as far as the image reaches."""
    import SimpleITK as sitk

    margin = [math.ceil(margin_mm / size - 1e-6) for size in image.GetSpacing()[::-1]]
    box = bounding_box(sitk.GetArrayViewFromImage(label) != 0, margin)
    assert box is not None  # check_parts has seen to it
    z, y, x = box
    return image[x, y, z], label[x, y, z]
