"""What the stress test does to which cases, and how it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_anomaly.error_maps.folds import Fold
from nnunet_anomaly.phantoms.stress_corruptions import Case, Corrupted, corrupt

NONE = "none"  # the corruption of an image that is as it was
Structures = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class CaseFiles:
    """A case that is to be corrupted: its channels (one file each, or one of several) and its label map."""

    name: str
    images: tuple[Path, ...]
    labels: Path


@dataclass(frozen=True)
class Group:
    """Cases, and the folds whose networks predict them: one that held them out, or an ensemble that never saw them."""

    folds: tuple[Fold, ...]
    cases: tuple[CaseFiles, ...]

    @property
    def fold(self) -> str:
        """For tables."""
        return "+".join(map(str, self.folds))


@dataclass(frozen=True)
class StressTest:
    """What is done to every case and how it is measured.

    Attributes:
        corruptions: severities above 0 by the name of the corruption.
        seed: with the names of case and corruption it decides everything that is drawn.
        sizes_mm: radius at severity 1 by the name of the corruption, where it is not to follow the anatomy.
        channels: names of the image channels.
        region_labels: where corruptions begin.
        structures: what is measured.
        nsd_tolerance_mm: of the normalized surface Dice.
        cleaned_share: predictions are measured once more after components below this share of their label's largest
            are dropped; None: they are not.
        mirroring: nnU-Net's test-time augmentation.
    """

    corruptions: Mapping[str, tuple[float, ...]]
    seed: int
    sizes_mm: Mapping[str, float]
    channels: tuple[str, ...]
    region_labels: tuple[int, ...]
    structures: Structures
    nsd_tolerance_mm: float
    cleaned_share: float | None
    mirroring: bool

    @property
    def grades(self) -> list[tuple[str, float]]:
        """Every corruption and severity, the uncorrupted image first."""
        return [(NONE, 0.0), *((name, grade) for name, grades in self.corruptions.items() for grade in grades)]

    def settings(self, corruption: str, severity: float) -> dict[str, Any]:
        """What a record of one grade depends on, as JSON."""
        drawn = {} if corruption == NONE else {"seed": self.seed, "region_labels": self.region_labels}
        return drawn | {
            "corruption": corruption,
            "severity": severity,
            "size_mm": self.sizes_mm.get(corruption),
            "channels": self.channels,
            "structures": {name: list(labels) for name, labels in self.structures.items()},
            "nsd_tolerance_mm": self.nsd_tolerance_mm,
            "cleaned_share": self.cleaned_share,
            "mirroring": self.mirroring,
        }

    def corrupted(self, case: Case, corruption: str, severity: float) -> Corrupted:
        """A case as models are to see it."""
        if corruption == NONE:
            unchanged = corrupt(case, next(iter(self.corruptions)), 0)
            return replace(unchanged, record=unchanged.record | {"corruption": NONE})
        return corrupt(case, corruption, severity, seed=self.seed, size_mm=self.sizes_mm.get(corruption))
