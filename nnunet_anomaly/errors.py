"""The one exception family: a message says what is wrong, in which file, and what to do."""

from __future__ import annotations


class AnomalyError(Exception):
    """Base of every error that nnunet-anomaly raises on purpose; the command line prints it without a traceback."""


class InputError(AnomalyError):
    """A file or folder that a user gave is missing, damaged or not what it should be."""


class GeometryError(InputError):
    """Shapes, spacings or orientations that should agree do not."""


class LabelError(InputError):
    """A label map holds labels that it should not."""


class SettingsError(AnomalyError):
    """A setting is unknown, of the wrong type or out of range, or the plans have no ``"anomaly"`` block."""


class MissingCheckpointError(AnomalyError):
    """A network that this step builds on has not been trained yet."""


class LeakageError(AnomalyError):
    """An error map of a training case would come from a network that saw that case."""


class NnunetFolderError(AnomalyError):
    """One of nnU-Net's three environment variables is not set or does not point to a folder."""
