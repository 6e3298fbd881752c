"""Packages that only some commands need: imported here, with a clear message where one is missing."""

from __future__ import annotations

from typing import Any

from nnunet_anomaly.errors import AnomalyError


def import_highdicom() -> Any:
    """The package ``highdicom``, which reads and writes DICOM segmentations (SEG).

    Raises:
        AnomalyError: it is not installed.
    """
    try:
        import highdicom
    except ModuleNotFoundError as error:
        raise AnomalyError(
            f"DICOM segmentations (SEG) need the package highdicom, and {error.name} is not installed here. Install "
            "it: pip install 'highdicom>=0.24', or this package with its extra seg: pip install '.[seg]'."
        ) from None
    return highdicom
