"""``nnunet-anomaly convert FORMAT``: a release folder becomes a standard nnU-Net dataset.

A format is a module of ``nnunet_anomaly.dataset_conversion`` with ``EXAMPLE``, ``add_arguments(parser)``,
``run(args) -> exit code`` and, where its help is to show how the release lies on the disk, ``LAYOUT``; only the chosen
one is imported.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

EXAMPLE = "nnunet-anomaly convert oai-zib /data/OAI-ZIB --oai-root /data/OAI/results/00m -d 101 -np 8"

FORMATS = {
    "oai-zib": ("oai_zib", "OAI-ZIB masks with the OAI's DESS images (DICOM)"),
    "oaizib-cm": ("oaizib_cm", "OAIZIB-CM, CartiMorph's NIfTI release of OAI-ZIB with parted tibial cartilage"),
    "uq-akoa": ("uq_akoa", "the University of Queensland's bone, cartilage and lesion labels of OAI images"),
    "oai-mese": ("oai_mese", "the OAI's multi-echo T2 series of the knee, or any multi-echo DICOM series"),
    "brats": ("brats", "a BraTS release of gliomas: 2019, 2020, 2021, GLI of 2023 or 2024"),
    "atlas": ("atlas", "an ATLAS release of stroke lesions: R1.1, R1.2 or 2.0"),
    "ctpel": ("ctpel", "CTPEL, CT of the pelvis with femora, hip bones and sacrum (DICOM SEG or NIfTI)"),
    "healthy": ("healthy", "head MR of healthy people: IXI, OASIS or any folder of NIfTI files"),
}


class FormatParser(argparse.ArgumentParser):
    """Parser of one format, which asks the format's module for its arguments when it is first used."""

    def __init__(self, *args: Any, format_module: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.format_module: str | None = format_module

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Load the arguments, then parse as usual."""
        if self.format_module is not None:
            module = importlib.import_module(f"nnunet_anomaly.dataset_conversion.{self.format_module}")
            self.format_module = None
            self.epilog = f"{getattr(module, 'LAYOUT', '')}Example:\n  {module.EXAMPLE}"
            module.add_arguments(self)
            self.set_defaults(convert=module.run)
        return super().parse_known_args(args, namespace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A subcommand for every format."""
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True, parser_class=FormatParser)
    for name, (module_name, summary) in FORMATS.items():
        description = f"Convert {summary}."
        formats.add_parser(
            name,
            help=summary,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            format_module=module_name,
        )


def run(args: argparse.Namespace) -> int:
    """Run the chosen format's converter."""
    return args.convert(args)
