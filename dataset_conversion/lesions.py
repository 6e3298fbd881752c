"""What the releases with lesions share: label maps of brain and lesion, and lesion masks beside the dataset.

Every label map has the brain as label 1, as those of healthy heads have: a network that learned from healthy heads
meets the same region here. Lesions come after that, and their voxels count as brain in ``anomaly.roi_labels``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nnunet_anomaly.dataset_conversion.brain import (
    BrainOptions,
    brain_mask,
    brain_options,
    check_in_brain,
    prepared,
    with_brain_masks,
)
from nnunet_anomaly.dataset_conversion.grids import on_grid_of, read_oriented, read_placed
from nnunet_anomaly.dataset_conversion.roles import (
    TEST,
    UNLABELLED,
    VALIDATION,
    make_folds,
    role_options,
    save_roles,
    with_roles,
)
from nnunet_anomaly.dataset_conversion.runner import Case, convert_cases, open_writer
from nnunet_anomaly.dataset_conversion.writer import DatasetDescription, DatasetWriter
from nnunet_anomaly.errors import LabelError

if TYPE_CHECKING:
    import SimpleITK as sitk

BRAIN = 1
BRAIN_AND_LESION = {"background": 0, "brain": BRAIN, "lesion": 2}
LESION_FOLDERS = {TEST: "lesionsTs", VALIDATION: "lesionsVal"}

# Lesions of a case on the grid of its first image: uint8 array (z, y, x), 0 none, else 1, 2 ...; notes for the report.
LesionReader = Callable[[Case, "sitk.Image"], tuple[np.ndarray, list[str]]]


def add_lesion_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the converters of lesions."""
    parser.add_argument(
        "--allow-empty",
        action="store_true",
        help="take cases whose lesion files are empty, as brains without a lesion; else they fail by name",
    )


def convert_lesion_release(
    args: argparse.Namespace,
    cases: Sequence[Case],
    description: DatasetDescription,
    read_lesions: LesionReader,
    origin: dict[str, object],
) -> int:
    """Draw roles, find brain masks, convert the cases, describe the dataset.

    Args:
        args: parsed.
        cases: of the release; ``sources`` has images by channel name, lesions under ``lesion`` or with this beginning.
        description: of the dataset.
        read_lesions: at module level, or a ``partial`` of such a function, so that workers can import it.
        origin: options of the release's own that change what is written.
    """
    options = brain_options(args)
    cases = with_brain_masks(with_roles(args, cases), options)
    # without allow_empty, which changes no finished case: it is the way out for a failed one
    more = {"brain": options.to_origin(), **role_options(args, cases), **origin}
    writer = open_writer(args, cases, description, more)
    save_roles(args, writer, cases)
    extra = (read_lesions, options, args.allow_empty)
    return convert_cases(args, writer, cases, convert_case, extra, lambda subjects: make_folds(cases, subjects))


def convert_case(
    writer: DatasetWriter, case: Case, test: bool, read_lesions: LesionReader, options: BrainOptions, allow_empty: bool
) -> None:
    """Convert one case: images as asked for, label map, lesion mask; of an unlabelled one a brain mask instead.

    Raises:
        LabelError: the lesion files are empty, without ``allow_empty``.
    """
    images = read_channels(case, writer.description.channel_names)
    brain = brain_mask(case, images, options)
    check_in_brain(case.case_id, images, writer.description.channel_names, brain)
    if case.role == UNLABELLED:
        channels = [prepared(image, brain, options) for image in images]
        masks = {"brainsTs": mask_image(brain, images[0])}
        writer.write_case(case.case_id, channels, None, test=test, masks=masks, details=case.to_record())
        return
    lesions, notes = read_lesions(case, images[0])
    if not lesions.any():
        if not allow_empty:
            raise LabelError(
                f"Case {case.case_id}: its lesion files are empty. Check them, or take such cases by --allow-empty."
            )
        notes = [*notes, "it has no lesion"]
    if outside := np.count_nonzero((lesions != 0) & ~brain):
        notes = [*notes, f"{outside} voxels of lesion lie outside of the brain mask; they are taken as brain"]
    brain |= lesions != 0  # before images are set to 0 outside of it: a lesion is looked for in what is left of them
    label = np.where(lesions != 0, lesions + BRAIN, brain.astype(np.uint8) * BRAIN)
    writer.write_case(
        case.case_id,
        [prepared(image, brain, options) for image in images],
        mask_image(label, images[0]),
        test=test,
        masks={LESION_FOLDERS.get(case.role or "", "lesionsTr"): mask_image(lesions != 0, images[0])},
        details=case.to_record(notes=[*case.details.get("notes", []), *notes]),
    )


def read_channels(case: Case, names: Sequence[str]) -> list[sitk.Image]:
    """Images of a case in the order of the channels, all on the grid of the first, which is brought into LPS.

    Raises:
        InputError: one is missing or damaged.
        GeometryError: their voxels do not coincide.
    """
    first = read_oriented(case.sources[names[0]])
    others = [
        on_grid_of(read_placed(case.sources[name]), first, f"{name} image {case.sources[name].name}")
        for name in names[1:]
    ]
    return [first, *others]


def mask_image(mask: np.ndarray, image: sitk.Image) -> sitk.Image:
    """A bool or uint8 array (z, y, x) as uint8 image with the geometry of ``image``."""
    import SimpleITK as sitk

    result = sitk.GetImageFromArray(mask.astype(np.uint8))
    result.CopyInformation(image)
    return result
