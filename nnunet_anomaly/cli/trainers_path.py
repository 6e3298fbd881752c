"""``nnunet-anomaly trainers-path``: the folder with our trainers, for nnU-Net's own ``nnUNet_extTrainer``."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "export nnUNet_extTrainer=$(nnunet-anomaly trainers-path)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This verb takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the folder that holds our trainers, for those who switched the plug-in off."""
    import nnunet_anomaly.trainers as room

    print(Path(room.__path__[0]).resolve())
    return 0
