"""``nnunet-anomaly demo``: the main job, small, on generated knees, by the commands that a user types."""

from __future__ import annotations

import argparse

EXAMPLE = "nnunet-anomaly demo -o demo_output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("-o", "--output", required=True, help="folder for everything; an unfinished demo goes on in it")
    parser.add_argument("--cases", type=int, default=12, help="knees to train on (default: %(default)s)")
    parser.add_argument("--test-cases", type=int, default=6, help="held-out knees (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=int, default=2, help="epochs of 250 steps for every network (default: %(default)s)"
    )
    parser.add_argument("-device", default="cpu", choices=("cuda", "cpu", "mps"), help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Run all stages and say where the report is."""
    from pathlib import Path

    from nnunet_anomaly.workflow.demo import Demo

    return Demo(Path(args.output), args.cases, args.test_cases, args.epochs, args.device).run()
