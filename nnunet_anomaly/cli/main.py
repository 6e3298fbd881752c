"""The ``nnunet-anomaly`` command: finds the verb, runs it, turns errors into one clear line and an exit code.

Exit codes: 0 all done, 1 some cases failed (each is named), 2 nothing could be done (a clear error), 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence

from nnunet_anomaly import __version__
from nnunet_anomaly.errors import AnomalyError

# One file per verb: a module here has ``EXAMPLE``, ``add_arguments(parser)`` and ``run(args) -> exit code``. Only the
# chosen verb's module is imported, and torch or nnunetv2 only inside its ``run``.
VERBS = {
    "phantom": ("phantom", "make images with known truth, as a release folder"),
    "convert": ("convert", "turn a release folder into a standard nnU-Net dataset"),
    "plan": ("plan", "show and change the settings in a plans file"),
    "error-maps": ("error_maps", "collect out-of-fold error maps as a channel, or make them for new images"),
    "anomalies": ("anomalies", "turn error maps into anomaly masks and volumes"),
    "predict": ("predict", "find bone marrow lesions in a folder of images: masks and tables"),
    "lesions": ("lesions", "turn reconstructions or error maps into masks of lesions in bone"),
    "tune": ("tune", "search settings on validation cases"),
    "postprocess": ("postprocess", "clean label maps: islands, left and right, closed gaps"),
    "collisions": ("collisions", "find where predicted structures touch, and which case to correct next"),
    "add-cases": ("add_cases", "add corrected cases to a raw nnU-Net dataset"),
    "filter-residuals": ("filter_residuals", "clean error maps: eroded mask, median filter, small components"),
    "evaluate": ("evaluate", "compare label maps with references, and two methods with each other"),
    "evaluate-anomaly": ("evaluate_anomaly", "compare anomaly maps with lesion masks"),
    "evaluate-lesions": ("evaluate_lesions", "compare lesion masks with references, inside the bone"),
    "stress": ("stress", "corrupt held-out cases and compare what trained models make of them"),
    "t2": ("t2", "measure T2 of femoral cartilage in its regions, and its change, from multi-echo series"),
    "evaluate-t2": ("evaluate_t2", "compare T2 of cartilage regions, and its change, with a reader's"),
    "demo": ("demo", "run the whole chain on generated data"),
    "trainers-path": ("trainers_path", "print the folder for nnUNet_extTrainer"),
}


def build_parser(verb: str | None) -> argparse.ArgumentParser:
    """Parser with every verb listed; only ``verb``'s own arguments are loaded."""
    parser = argparse.ArgumentParser(prog="nnunet-anomaly", description="nnU-Net v2 where anatomy is abnormal.")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (module_name, summary) in VERBS.items():
        if name != verb:
            subparsers.add_parser(name, help=summary, add_help=False)
            continue
        module = importlib.import_module(f"nnunet_anomaly.cli.{module_name}")
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"Example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows ASCII alone gets "?" for "±", not a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verb = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser = build_parser(verb)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except AnomalyError as error:
        print(f"nnunet-anomaly {args.verb}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output, such as head, has had enough
        sys.stdout = None  # type: ignore[assignment]  # nothing is left to flush at exit
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise
        print(
            f"nnunet-anomaly {args.verb}: error: {error}. What was finished is whole; mend this and run it again.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"nnunet-anomaly {args.verb}: interrupted. Run it again to go on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
