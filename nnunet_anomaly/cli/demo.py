"""``nnunet-anomaly demo``: a method from images to figures, small, on generated data, by a user's commands."""

from __future__ import annotations

import argparse

EXAMPLE = "nnunet-anomaly demo -o demo_output"
# images to train on, held-out images, epochs
DEFAULTS = {"knee": (12, 6, 2), "brain": (120, 8, 3)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "method",
        nargs="?",
        choices=tuple(DEFAULTS),
        default="knee",
        help="knee: anomaly-aware segmentation (Woo); brain: strokes found by networks that know healthy heads alone "
        "(Bengs); default: knee",
    )
    parser.add_argument("-o", "--output", required=True, help="folder for everything; an unfinished demo goes on in it")
    for place, (option, what) in enumerate(
        (
            ("cases", "images to train on"),
            ("test-cases", "held-out images (brain: as many more for the threshold)"),
            ("epochs", "epochs of 250 steps for every network"),
        )
    ):
        defaults = ", ".join(f"{name} {numbers[place]}" for name, numbers in DEFAULTS.items())
        parser.add_argument(f"--{option}", type=_at_least_one, help=f"{what} (default: {defaults})")
    parser.add_argument("-device", default="cpu", choices=("cuda", "cpu", "mps"), help="default: %(default)s")


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 on")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Run all stages and say where the report is."""
    from pathlib import Path

    from nnunet_anomaly.workflow.demo import KneeDemo
    from nnunet_anomaly.workflow.demo_brain import BrainDemo

    given = (args.cases, args.test_cases, args.epochs)
    numbers = (
        default if number is None else number for number, default in zip(given, DEFAULTS[args.method], strict=True)
    )
    cases, test_cases, epochs = numbers
    demo = {"knee": KneeDemo, "brain": BrainDemo}[args.method]
    return demo(Path(args.output), cases, test_cases, epochs, args.device).run()
