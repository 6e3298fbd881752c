"""What the passes of ``evaluate-anomaly`` left, and the rows and curves that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nnunet_anomaly.evaluation.cohort import summarise
from nnunet_anomaly.evaluation.lesions import Froc, froc, is_hit, size_groups, thirds_mm3
from nnunet_anomaly.evaluation.overlap import OverlapCounts, dice
from nnunet_anomaly.evaluation.thresholds import THRESHOLD_DEFINITIONS, FoundThreshold, warnings_of
from nnunet_anomaly.workflow.anomaly_cases import AT_THRESHOLDS, PER_CASE
from nnunet_anomaly.workflow.anomaly_cohort import Cohort
from nnunet_anomaly.workflow.anomaly_pooling import Pooled

SUMMARISED = PER_CASE[:-1]
ALL_SIZES = "all sizes"


@dataclass
class Results:
    """What the passes left, and what follows from it.

    Attributes:
        cohort: cases and methods.
        pooled: figures over all cases, by method. A method of which no case could be evaluated is not there.
        pooled_by: "sorting" or "histogram".
        thresholds: by method, likewise, and kind (see ``THRESHOLD_DEFINITIONS``); none of the oracle without a lesion.
        froc_thresholds: by method, likewise.
        min_overlap: share of a lesion that must be found for a hit (see ``is_hit``).
        given_edges_mm3: volumes that part the lesions into groups; None: thirds.
    """

    cohort: Cohort
    pooled: Mapping[str, Pooled]
    pooled_by: str
    thresholds: Mapping[str, Mapping[str, FoundThreshold]]
    froc_thresholds: Mapping[str, Sequence[float]]
    min_overlap: float = 0.0
    given_edges_mm3: Sequence[float] | None = None

    # --- kinds of thresholds

    @cached_property
    def kinds(self) -> list[str]:
        """Kinds of thresholds that any method has, validation first."""
        used = {kind for kinds in self.thresholds.values() for kind in kinds}
        return [kind for kind in THRESHOLD_DEFINITIONS if kind in used]

    @property
    def main_kind(self) -> str | None:
        """The kind that figures over lesion size are drawn at: one of validation cases where there is one."""
        return self.kinds[0] if self.kinds else None

    @property
    def by_kind(self) -> list[str]:
        """Figures that a case has at every kind of threshold."""
        return [f"{name}_{kind}" for kind in self.kinds for name in ("dice", "false_positives_mm3")]

    @property
    def warnings(self) -> list[str]:
        """Thresholds that say nothing, and filters that do nothing."""
        thresholds = [f"{method}, {text}" for method, kinds in self.thresholds.items() for text in warnings_of(kinds)]
        return thresholds + self.cohort.filter_warnings

    # --- cases

    @cached_property
    def case_rows(self) -> list[dict[str, Any]]:
        """A row for every method and case."""
        return [self._case_row(method, case) for method in self.thresholds for case in self.cohort.finished(method)]

    def _case_row(self, method: str, case: str) -> dict[str, Any]:
        figures = self.cohort.figures(method, case)
        names = ("true_positives", "false_positives", "false_positives_mm3")
        found = self.cohort.load(method, case, *names, kind=AT_THRESHOLDS)
        lesion_voxels = int(figures["lesion_voxels"])
        values = dict.fromkeys(self.by_kind, math.nan)
        for place, kind in enumerate(self.thresholds[method]):
            hits, alarms, alarms_mm3 = (counts[place] for counts in found)
            if lesion_voxels:
                values[f"dice_{kind}"] = dice(OverlapCounts(lesion_voxels, int(hits + alarms), int(hits)))
            values[f"false_positives_mm3_{kind}"] = float(alarms_mm3)
        return {"method": method, "case": case, **figures, **values}

    def column(self, method: str, name: str) -> np.ndarray:
        """One figure of all cases of a method."""
        return np.array([row[name] for row in self.case_rows if row["method"] == method])

    @cached_property
    def per_case(self) -> dict[str, dict[str, Any]]:
        """Summaries of the figures of single cases, by method."""
        return {
            method: {metric: asdict(summarise(self.column(method, metric))) for metric in SUMMARISED}
            for method in self.thresholds
        }

    @property
    def without_lesion(self) -> list[str]:
        """Cases without a lesion voxel where they are evaluated."""
        return sorted({row["case"] for row in self.case_rows if not row["lesion_voxels"]})

    def size_points(self, method: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Volume of the lesions and Dice, of every case with lesions."""
        volumes = self.column(method, "lesion_volume_mm3")
        return volumes[volumes > 0], self.column(method, f"dice_{kind}")[volumes > 0]

    # --- thresholds

    def arrays(self, method: str, name: str) -> list[np.ndarray]:
        """One array at the thresholds, of every case."""
        return [self.cohort.load(method, case, name, kind=AT_THRESHOLDS)[0] for case in self.cohort.finished(method)]

    def shares(self, method: str) -> np.ndarray:
        """Found shares of all lesions of a method's cases, (lesions, thresholds)."""
        return np.concatenate(self.arrays(method, "shares"))

    def false_positives(self, method: str) -> np.ndarray:
        """False-positive components of all cases of a method, (cases, thresholds)."""
        return np.stack(self.arrays(method, "false_positive_components"))

    @cached_property
    def threshold_rows(self) -> list[dict[str, Any]]:
        """A row for every method and kind of threshold: Dice over the set and by subject, lesions hit, false ones."""
        return [row for method in self.thresholds for row in self._threshold_rows(method)]

    def _threshold_rows(self, method: str) -> list[dict[str, Any]]:
        hits, alarms = (np.sum(self.arrays(method, name), axis=0) for name in ("true_positives", "false_positives"))
        lesion_voxels = self.pooled[method].figures["lesion_voxels"]
        shares, false_positives = self.shares(method), self.false_positives(method)
        has_lesions = self.column(method, "lesion_voxels") > 0
        rows = []
        for place, (kind, found) in enumerate(self.thresholds[method].items()):
            counts = OverlapCounts(lesion_voxels, int(hits[place] + alarms[place]), int(hits[place]))
            by_subject = asdict(summarise(self.column(method, f"dice_{kind}")[has_lesions]))
            called_mm3 = self.column(method, f"false_positives_mm3_{kind}")[~has_lesions]
            rows.append(
                {
                    "method": method,
                    "kind": kind,
                    "threshold": found.value,
                    "dice_set": dice(counts),
                    **{f"dice_subject_{name}": value for name, value in by_subject.items()},
                    "lesion_free_cases": called_mm3.size,
                    "lesion_free_called_share": _mean(called_mm3 > 0),
                    "lesion_free_called_mm3_mean": _mean(called_mm3),
                    "lesion_sensitivity": _mean(is_hit(shares[:, place], self.min_overlap)),
                    "false_positives_per_case": _mean(false_positives[:, place]),
                    "dice_of_search": found.dice,
                }
            )
        return rows

    # --- lesions

    def volumes_mm3(self, method: str) -> np.ndarray:
        """Volumes of all lesions of a method's cases, in the order of ``shares``."""
        return np.concatenate(
            [self.cohort.load(method, case, "volumes_mm3")[0] for case in self.cohort.finished(method)]
        )

    @cached_property
    def edges_mm3(self) -> list[float]:
        """Volumes that part the lesions into groups: as given, else into thirds, of the method with most cases."""
        if self.given_edges_mm3:
            return sorted(self.given_edges_mm3)
        most = max(self.thresholds, key=lambda method: len(self.cohort.finished(method)))
        return thirds_mm3(self.volumes_mm3(most))

    @cached_property
    def frocs(self) -> dict[str, dict[str, Froc]]:
        """By method the FROC curve of all lesions, and of each group by size."""
        return {method: self._frocs(method) for method in self.thresholds}

    def _frocs(self, method: str) -> dict[str, Froc]:
        start = len(self.thresholds[method])
        thresholds = np.array(self.froc_thresholds[method])
        shares, false_positives = self.shares(method)[:, start:], self.false_positives(method)[:, start:]
        groups = {ALL_SIZES: np.ones(len(shares), dtype=bool)} | size_groups(self.volumes_mm3(method), self.edges_mm3)
        return {
            name: froc(thresholds, shares[group], false_positives, self.min_overlap) for name, group in groups.items()
        }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan
