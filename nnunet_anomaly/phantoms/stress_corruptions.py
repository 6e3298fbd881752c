"""Named corruptions of graded severity for the stress test: any image, one call, what was changed and what is right.

    case = Case("hippocampus_001", (image,), labels, (1.0, 1.0, 1.0), ("MRI",))
    for name, corruption in CORRUPTIONS.items():
        for severity in corruption.severities:
            corrupted = corrupt(case, name, severity, seed=0)

Training has corruptions of its own (``nnunet_anomaly.augmentation``), made in other ways; nothing in training may
import this module (a test checks that), so that what a network does with these says something.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.phantoms import stress_local, stress_scanner
from nnunet_anomaly.phantoms.stress_case import Case, Change, Dose

__all__ = ["CORRUPTIONS", "LEVELS", "Case", "Corrupted", "Corruption", "as_severity", "corrupt", "generator_of"]

LEVELS = {"none": 0.0, "mild": 0.25, "moderate": 0.5, "severe": 1.0}
UNCHANGED, DEFORMED = "unchanged", "deformed"


@dataclass(frozen=True)
class Corruption:
    """A named corruption.

    Attributes:
        summary: one line for the command line.
        make: what does it.
        strength: default at severity 1; ``ct_strength`` where the first channel is CT.
        strength_means: what the strength is, with its unit.
        largest_strength: more is refused.
        has_size: whether it has a radius, which ``size_mm`` sets.
        reference: labels that a prediction is compared with: UNCHANGED or DEFORMED.
        severities: default grades, none of them 0.
    """

    summary: str
    make: Callable[[Case, Dose, np.random.Generator], Change]
    strength: float
    strength_means: str
    largest_strength: float = np.inf
    ct_strength: float | None = None
    has_size: bool = True
    reference: str = UNCHANGED
    severities: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)


CORRUPTIONS: dict[str, Corruption] = {
    "bright_lesion": Corruption(
        "a bright ill-defined lesion inside the region", stress_local.bright_lesion, 4.0, "contrast in robust SD"
    ),
    "dark_lesion": Corruption(
        "a dark ill-defined lesion inside the region", stress_local.dark_lesion, 4.0, "contrast in robust SD"
    ),
    "foreign_patch": Corruption(
        "a piece of other tissue over a place of the region", stress_local.foreign_patch, 1.0, "opacity", 1.0
    ),
    "deformation": Corruption(
        "tissue at the region's surface pushed aside, labels with it",
        stress_local.deformation,
        0.5,
        "displacement as a share of the radius",
        stress_local.LARGEST_SHIFT,
        reference=DEFORMED,
    ),
    "missing_tissue": Corruption(
        "a piece at the region's surface as dark as background",
        stress_local.missing_tissue,
        1.0,
        "share of the signal that is lost",
        1.0,
    ),
    "metal": Corruption(
        "a metal pin: streaks in CT, a signal void with bright sides elsewhere",
        stress_scanner.metal,
        1.0,
        "factor on streaks and bright sides",
    ),
    "bias_field": Corruption(
        "uneven brightness over the whole image",
        stress_scanner.bias_field,
        0.7,
        "natural logarithm of the strongest factor",
        ct_strength=0.15,
        has_size=False,
    ),
    "noise": Corruption(
        "noise in the whole image, Rician, or Gaussian in CT",
        stress_scanner.noise,
        1.0,
        "standard deviation in robust SD",
        ct_strength=0.5,
        has_size=False,
    ),
}


@dataclass(frozen=True, eq=False)
class Corrupted:
    """A corrupted case.

    Attributes:
        images: as the case's, same shapes and dtypes; new arrays.
        labels: the reference, dtype of the case's labels: what a prediction of ``images`` should be.
        changed: bool; where any channel or the reference differs from the case's.
        anomaly: bool; what an observer would outline. Everywhere for a bias field and noise.
        record: what was drawn; can be saved as JSON.
    """

    images: tuple[np.ndarray, ...]
    labels: np.ndarray
    changed: np.ndarray
    anomaly: np.ndarray
    record: dict[str, Any]


def as_severity(severity: float | str) -> float:
    """A number from 0 to 1, or the name of one of ``LEVELS``.

    Raises:
        InputError: neither.
    """
    if isinstance(severity, str) and severity in LEVELS:
        return LEVELS[severity]
    try:
        number = float(severity)
    except (TypeError, ValueError):
        number = np.nan
    if not 0 <= number <= 1:
        raise InputError(f"Severity is {severity!r}; give a number from 0 to 1, or one of {', '.join(LEVELS)}.")
    return number


def generator_of(seed: int, case: str, corruption: str) -> np.random.Generator:
    """Random numbers of one corruption of one case: whatever else is made, and in whatever order, they are the same."""
    digest = hashlib.sha256(f"{seed}\n{case}\n{corruption}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def corrupt(
    case: Case,
    name: str,
    severity: float | str,
    *,
    seed: int = 0,
    size_mm: float | None = None,
    strength: float | None = None,
    donor: Case | None = None,
) -> Corrupted:
    """Corrupt one case.

    With the same seed a higher severity changes the same place, and more of it. Integers are rounded; values that would
    leave the dtype's range, HU's in CT, or 0 in images without negative values, are clipped and counted in the record.

    Args:
        case: is not changed.
        name: one of ``CORRUPTIONS``.
        severity: 0 to 1, or one of ``LEVELS``; 0 gives back the same values, bit for bit.
        seed: with the names of case and corruption it decides everything that is drawn (``generator_of``).
        size_mm: radius at severity 1; None derives it from the region.
        strength: at severity 1 (see ``Corruption``); None is its default.
        donor: for ``foreign_patch``: a case to take tissue from, with the same channels and axes.

    Raises:
        InputError: an unknown name, a severity, size or strength out of range, one that the corruption does not have,
            one larger than the image or the region, or a channel of one single value.
    """
    if name not in CORRUPTIONS:
        raise InputError(f"'{name}' is no corruption; there are {', '.join(CORRUPTIONS)}.")
    corruption, severity = CORRUPTIONS[name], as_severity(severity)
    if strength is None:
        strength = corruption.strength
        if corruption.ct_strength is not None and case.is_ct(0):
            strength = corruption.ct_strength
    _check_dose(name, size_mm, strength)
    _check_donor(case, name, donor)
    record = {"corruption": name, "case": case.name, "severity": severity, "seed": int(seed)}
    if severity == 0:
        return _unchanged(case, record)
    small = case.without_single_axes
    dose = Dose(severity, float(strength), size_mm, donor.without_single_axes if donor else None)
    change = corruption.make(small, dose, generator_of(seed, case.name, name))
    record |= {"strength": dose.strength, "reference": corruption.reference, **change.drawn}
    return _applied(case, small, change, record)


def _check_dose(name: str, size_mm: float | None, strength: float) -> None:
    corruption = CORRUPTIONS[name]
    if size_mm is not None and not corruption.has_size:
        raise InputError(f"{name} is of the whole image: it takes no size.")
    if size_mm is not None and not 0 < size_mm < np.inf:
        raise InputError(f"The size of {name} is {size_mm} mm; it must be positive.")
    if not 0 < strength < np.inf or strength > corruption.largest_strength:
        raise InputError(
            f"The strength of {name} ({corruption.strength_means}) is {strength}; it must be above 0"
            + (f" and at most {corruption.largest_strength:g}." if corruption.largest_strength < np.inf else ".")
        )


def _check_donor(case: Case, name: str, donor: Case | None) -> None:
    if donor is None:
        return
    if name != "foreign_patch":
        raise InputError(f"{name} takes nothing from another case; a donor is for foreign_patch.")
    if len(donor.images) != len(case.images) or donor.channel_names != case.channel_names:
        raise InputError(f"Case {case.name} and its donor {donor.name} have different channels.")
    if donor.without_single_axes.labels.ndim != case.without_single_axes.labels.ndim:
        raise InputError(f"Of case {case.name} and its donor {donor.name} one is 2-D and the other 3-D.")


def _unchanged(case: Case, record: dict[str, Any]) -> Corrupted:
    nothing = np.zeros(case.labels.shape, dtype=bool)
    record |= {"changed_voxels": 0, "anomaly_voxels": 0, "clipped_voxels": [0] * len(case.images)}
    images = tuple(image.copy() for image in case.images)
    return Corrupted(images, case.labels.copy(), nothing, nothing.copy(), record)


def _applied(case: Case, small: Case, change: Change, record: dict[str, Any]) -> Corrupted:
    """Write a change of ``small``, the case without single axes, into a copy of the case."""
    changed = np.zeros(small.labels.shape, dtype=bool)
    images, clipped = [], []
    for channel, values in enumerate(change.values):
        image, moved, beyond = _written(small, channel, change.box, values)
        changed[change.box] |= moved
        images.append(image.reshape(case.labels.shape))
        clipped.append(beyond)
    labels = small.labels.copy()
    if change.labels is not None:
        changed[change.box] |= labels[change.box] != change.labels
        labels[change.box] = change.labels
    anomaly = np.zeros(small.labels.shape, dtype=bool)
    anomaly[change.box] = change.anomaly
    inside, counts = np.unique(labels[anomaly], return_counts=True)
    record |= {
        "changed_voxels": int(changed.sum()),
        "anomaly_voxels": int(anomaly.sum()),
        "anomaly_voxels_by_label": {str(label): int(count) for label, count in zip(inside, counts, strict=True)},
        "clipped_voxels": clipped,
    }
    shape = case.labels.shape
    return Corrupted(tuple(images), labels.reshape(shape), changed.reshape(shape), anomaly.reshape(shape), record)


def _written(
    case: Case, channel: int, box: tuple[slice, ...], values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """A copy of a channel with new values, where (in the box) it now differs, and how many values were clipped."""
    image = case.images[channel].copy()
    part = image[box]
    wanted = values != part.astype(np.float32)
    new = values[wanted].astype(np.float64)
    low, high = case.limits(channel)
    beyond = int(((new < low) | (new > high)).sum())
    new = np.clip(new, low, high)
    old = part[wanted]
    part[wanted] = (np.rint(new) if image.dtype.kind in "iu" else new).astype(image.dtype)
    wanted[wanted] = part[wanted] != old
    return image, wanted, beyond
