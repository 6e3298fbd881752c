"""``nnunet-anomaly phantom``: images with known truth, written as a release folder."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

EXAMPLE = "nnunet-anomaly phantom knee --cases 12 --seed 1 --lesions severe -o phantom_severe -np 2"
BML_EXAMPLE = (
    "nnunet-anomaly phantom knee-bml --training 24 --validation 6 --test 12 --seed 1 \\\n"
    "      -o nnUNet_raw/Dataset120_Knee -np 2"
)
HIP_EXAMPLE = "nnunet-anomaly phantom hip --cases 20 --seed 1 --inferior --implant 0.1 --nifti -o phantom_hip -np 2"
MESE_EXAMPLE = "nnunet-anomaly phantom mese --subjects 12 --seed 1 -o phantom_mese -np 2"
BRAIN_EXAMPLE = "nnunet-anomaly phantom brain --healthy 200 --tumours 20 --strokes 20 --seed 1 -o phantom_brain -np 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one sub-command a phantom."""
    kinds = parser.add_subparsers(dest="phantom", metavar="PHANTOM", required=True)
    _add_knee(
        kinds.add_parser(
            "knee",
            help="sagittal DESS-like MR of knees, as the OAI-ZIB release and an OAI tree",
            description="Write sagittal DESS-like MR images of knees with masks, file for file as the OAI-ZIB release "
            "and the OAI's baseline tree, and the true labels and lesions. The same seed gives the same bytes.",
            epilog=f"Example:\n  {EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_knee_bml(
        kinds.add_parser(
            "knee-bml",
            help="sagittal fat-suppressed MR of knees with bone marrow lesions, as a raw nnU-Net dataset",
            description="Write a raw nnU-Net dataset of sagittal MR images of knees like intermediate-weighted, "
            "fat-suppressed ones, with bone marrow lesions of low contrast, vessels and incomplete fat suppression; "
            "and validation and test cases in folders of their own. The same seed gives the same bytes.",
            epilog=f"Example:\n  {BML_EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_mese(
        kinds.add_parser(
            "mese",
            help="multi-echo MR of knees at two visits, with the T2 of femoral cartilage, as an OAI tree",
            description="Write sagittal multi-echo spin-echo series of knees at two visits four years apart, as the "
            "OAI's tree has them, with masks of femoral cartilage of two readers, and the true T2: in layers, "
            "with focal lesions, and its change. The same seed gives the same bytes.",
            epilog=f"Example:\n  {MESE_EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_brain(
        kinds.add_parser(
            "brain",
            help="MR of heads: healthy, with tumours (BraTS) and with strokes (ATLAS)",
            description="Write T1-like MR images of heads: healthy ones in a flat folder like IXI's, with tumours as a "
            "BraTS release (T1, T1ce, T2, FLAIR), with strokes as an ATLAS release, and the true brain masks and "
            "lesions. The same seed gives the same bytes.",
            epilog=f"Example:\n  {BRAIN_EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_hip(
        kinds.add_parser(
            "hip",
            help="CT of pelves with femora, hip bones and sacrum, as the CTPEL release",
            description="Write CT images of pelves with segmented femora, hip bones and sacrum, file for file as the "
            "CTPEL release (DICOM with SEG; needs highdicom), and the true labels with the width of the joint spaces. "
            "The same seed gives the same bytes.",
            epilog=f"Example:\n  {HIP_EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )


def _add_knee(knee: argparse.ArgumentParser) -> None:
    knee.add_argument(
        "--cases", type=int, required=True, metavar="N", help="how many knees; knee i does not depend on N"
    )
    _add_seed(knee)
    knee.add_argument(
        "--lesions",
        choices=("none", "mild", "severe"),
        default="none",
        help="none; mild: one small lesion in every second case; severe: large ones in four of five cases, some "
        "reaching the bone's surface (default: none). The knees themselves are the same for one seed",
    )
    _add_output(knee)
    _add_grid(
        knee,
        "the OAI's 160 x 384 x 384 voxels of 0.7 x 0.36 x 0.36 mm",
        "another number of voxels over the same 112 x 140 x 140 mm (default: 40 96 96)",
    )
    knee.add_argument(
        "-np",
        type=int,
        default=1,
        metavar="N",
        help="cases made at a time (default: 1); a case on the full grid takes 2.5 GB",
    )


def _add_knee_bml(knee: argparse.ArgumentParser) -> None:
    for name, what, least in (
        ("training", "training cases; every second one has lesions", None),
        ("validation", "validation cases; all but the second one have lesions", 0),
        ("test", "test cases; five of six have lesions", 0),
    ):
        more = "" if least is None else " (default: 0)"
        knee.add_argument(
            f"--{name}",
            type=int,
            required=least is None,
            default=least,
            metavar="N",
            help=f"how many {what}; case i does not depend on N{more}",
        )
    _add_seed(knee)
    knee.add_argument(
        "-o",
        required=True,
        type=Path,
        metavar="DIR",
        help="output folder, DatasetXXX_Name in nnUNet_raw; an unfinished one is finished",
    )
    _add_grid(
        knee,
        "36 x 448 x 448 voxels of 3.1 x 0.31 x 0.31 mm",
        "another number of voxels over the same 112 x 140 x 140 mm (default: 36 256 256)",
    )
    knee.add_argument(
        "-np",
        type=int,
        default=1,
        metavar="N",
        help="cases made at a time (default: 1); a case on the full grid takes 1 GB",
    )


def _add_mese(knee: argparse.ArgumentParser) -> None:
    knee.add_argument(
        "--subjects",
        type=int,
        required=True,
        metavar="N",
        help="how many subjects, each with one knee at two visits; subject i does not depend on N",
    )
    _add_seed(knee)
    knee.add_argument(
        "--snr",
        type=float,
        default=50.0,
        metavar="X",
        help="signal of cartilage at echo time 0 divided by the noise's standard deviation in each of its two channels "
        "(default: 50)",
    )
    _add_output(knee)
    _add_grid(
        knee,
        "the OAI's 21 x 384 x 384 voxels of 3.5 x 0.31 x 0.31 mm",
        "another number of voxels over the same 73.5 x 120 x 120 mm (default: 21 192 192)",
    )
    knee.add_argument(
        "-np",
        type=int,
        default=1,
        metavar="N",
        help="knees made at a time (default: 1); one takes 0.5 GB, on the full grid 1.2 GB",
    )


def _add_brain(brain: argparse.ArgumentParser) -> None:
    for name, what in (
        ("healthy", "how many healthy heads"),
        ("tumours", "how many cases with a tumour"),
        ("strokes", "how many cases with strokes"),
        ("test", "how many more cases with tumours and with strokes, without masks, in the release's folder for them"),
    ):
        more = "" if name == "test" else "; case i does not depend on N"
        brain.add_argument(f"--{name}", type=int, default=0, metavar="N", help=f"{what}{more} (default: 0)")
    _add_seed(brain)
    brain.add_argument(
        "--brats", choices=("2019", "2020", "2021", "2023"), default="2021", help="release of BraTS (default: 2021)"
    )
    brain.add_argument(
        "--case-355",
        action="store_true",
        help="with --brats 2020: the first case is number 355, whose labels have the odd name that they have there",
    )
    brain.add_argument("--atlas", choices=("R1.1", "2.0"), default="2.0", help="release of ATLAS (default: 2.0)")
    brain.add_argument(
        "--contrast",
        choices=("t1", "t2", "flair", "random"),
        default="t1",
        help="of healthy heads; random draws the intensity of every tissue anew for every head (default: t1)",
    )
    brain.add_argument(
        "--labels",
        type=Path,
        metavar="DIR",
        help="paint into these label maps of heads (NIfTI, FreeSurfer's codes), deformed anew for every patient, "
        "instead of procedural anatomy",
    )
    brain.add_argument(
        "--lesion-shapes",
        type=Path,
        metavar="DIR",
        help="strokes have the shapes of these lesion masks (NIfTI, MNI space), scaled and shifted to the brain",
    )
    _add_output(brain)
    _add_grid(
        brain,
        "the releases' own grids: 155 x 240 x 240 for BraTS, 189 x 233 x 197 for ATLAS, 150 x 256 x 256 for IXI",
        "the same number of voxels for all images, over each release's field of view (default: about 2.5 mm)",
    )
    brain.add_argument(
        "-np",
        type=int,
        default=1,
        metavar="N",
        help="cases made at a time (default: 1); a case on the full grid takes 1 GB",
    )


def _add_hip(hip: argparse.ArgumentParser) -> None:
    hip.add_argument(
        "--cases", type=int, required=True, metavar="N", help="how many pelves; pelvis i does not depend on N"
    )
    _add_seed(hip)
    hip.add_argument(
        "--inferior",
        action="store_true",
        help="the release's segments are inferior ones, with closed joint spaces and rough outlines; the accurate ones "
        "are in truth/labels",
    )
    hip.add_argument(
        "--implant",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the cases with metal and its streaks: in turn a screw in a femoral neck, and a femur that is "
        "replaced and so has no label (default: 0)",
    )
    hip.add_argument(
        "--gap-mm",
        type=float,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="width of the joint spaces, drawn for every side; the default is wider than in life, for the small "
        "grid to resolve it (default: 5 8)",
    )
    hip.add_argument("--nifti", action="store_true", help="write NIfTI copies of images and labels as well")
    _add_output(hip)
    _add_grid(
        hip,
        "208 x 320 x 480 voxels of 1 x 0.75 x 0.76 mm",
        "another number of voxels over the same 208 x 240 x 364 mm (default: 64 96 112)",
    )
    hip.add_argument(
        "-np",
        type=int,
        default=1,
        metavar="N",
        help="cases made at a time (default: 1); a case on the full grid takes 4 GB",
    )


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", required=True, type=Path, metavar="DIR", help="output folder; an unfinished one is finished"
    )


def _add_grid(parser: argparse.ArgumentParser, full: str, other: str) -> None:
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full-grid", action="store_true", help=full)
    size.add_argument("--grid", type=int, nargs=3, metavar=("SLICES", "ROWS", "COLUMNS"), help=other)


def run(args: argparse.Namespace) -> int:
    """Make the phantom; 1 if a case failed."""
    from nnunet_anomaly.cli.output import print_failures

    make = {
        "knee": _make_knee,
        "knee-bml": _make_knee_bml,
        "mese": _make_mese,
        "brain": _make_brain,
        "hip": _make_hip,
    }
    outcome, advice = make[args.phantom](args)
    print_failures(outcome)
    print(
        f"{len(outcome.done)} cases made, {len(outcome.skipped)} were there, {len(outcome.failed)} failed: {args.o}\n"
        f"{advice}"
    )
    return outcome.exit_code


def _make_knee(args: argparse.Namespace) -> tuple[Any, str]:
    from nnunet_anomaly.phantoms.knee import FULL_GRID, SMALL_GRID
    from nnunet_anomaly.phantoms.release import make_knee_phantom

    grid = FULL_GRID if args.full_grid else args.grid or SMALL_GRID
    outcome = make_knee_phantom(args.o, args.cases, args.seed, args.lesions, grid, args.np)
    release, images = (shlex.quote(str(args.o / name)) for name in ("OAI-ZIB", "oai"))
    return outcome, f"Next: nnunet-anomaly convert oai-zib {release} --oai-root {images} -d 101"


def _make_knee_bml(args: argparse.Namespace) -> tuple[Any, str]:
    from nnunet_anomaly.phantoms.knee_iw import FULL_GRID, GRID
    from nnunet_anomaly.phantoms.knee_iw_dataset import BmlPhantom, make_bml_phantom

    phantom = BmlPhantom(
        training=args.training,
        validation=args.validation,
        test=args.test,
        seed=args.seed,
        grid=FULL_GRID if args.full_grid else tuple(args.grid or GRID),  # type: ignore[arg-type]
    )
    outcome = make_bml_phantom(args.o, phantom, args.np)
    dataset = int(args.o.absolute().name.removeprefix("Dataset")[:3])
    return outcome, f"Next: nnUNetv2_plan_and_preprocess -d {dataset} -pl nnUNetPlannerLaMa -c 2d_inpainting"


def _make_mese(args: argparse.Namespace) -> tuple[Any, str]:
    from nnunet_anomaly.phantoms.mese import FULL_GRID, SMALL_GRID
    from nnunet_anomaly.phantoms.mese_release import make_mese_phantom

    grid = FULL_GRID if args.full_grid else args.grid or SMALL_GRID
    outcome = make_mese_phantom(args.o, args.subjects, args.seed, grid, args.snr, args.np)
    images, labels = (shlex.quote(str(args.o / name)) for name in ("oai", "labels"))
    return outcome, f"Next: nnunet-anomaly convert oai-mese {images} --labels {labels} -d 104"


def _make_brain(args: argparse.Namespace) -> tuple[Any, str]:
    from nnunet_anomaly.phantoms.brain_release import BrainPhantom, make_brain_phantom

    phantom = BrainPhantom(
        seed=args.seed,
        healthy=args.healthy,
        tumours=args.tumours,
        strokes=args.strokes,
        test=args.test,
        brats=args.brats,
        atlas=args.atlas,
        contrast=args.contrast,
        misnamed_case=args.case_355,
        labels=args.labels,
        shapes=args.lesion_shapes,
        grid=tuple(args.grid) if args.grid else None,
        full_grid=args.full_grid,
    )
    outcome = make_brain_phantom(args.o, phantom, args.np)
    return outcome, f"Brain masks and lesions: {args.o / 'truth'}"


def _make_hip(args: argparse.Namespace) -> tuple[Any, str]:
    from nnunet_anomaly.phantoms.hip import FULL_GRID, GAP_RANGE_MM, SMALL_GRID
    from nnunet_anomaly.phantoms.hip_release import HipPhantom, make_hip_phantom

    phantom = HipPhantom(
        seed=args.seed,
        cases=args.cases,
        inferior=args.inferior,
        implants=args.implant,
        nifti=args.nifti,
        grid=FULL_GRID if args.full_grid else tuple(args.grid or SMALL_GRID),  # type: ignore[arg-type]
        gap_range_mm=tuple(args.gap_mm or GAP_RANGE_MM),  # type: ignore[arg-type]
    )
    outcome = make_hip_phantom(args.o, phantom, args.np)
    return outcome, f"Next: nnunet-anomaly convert ctpel {shlex.quote(str(args.o / 'CTPEL'))} -d 401"
