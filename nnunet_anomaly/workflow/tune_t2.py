"""What ``nnunet-anomaly tune t2`` does: a grid search for both thresholds of the refinement on validation cases.

After Thomas 2021, section 2.5: the probability from which on a voxel is cartilage, and the area below which a slice has
none. T2 is fitted once a case; then voxels are counted by probability and slice, from which every combination follows.
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from nnunet_anomaly.error_maps.folds import ALL, Fold, folds_of
from nnunet_anomaly.errors import GeometryError, InputError, SettingsError
from nnunet_anomaly.evaluation.overlap import OverlapCounts, dice
from nnunet_anomaly.files import Outcome, is_up_to_date, load_json, made_from, run_cases, save_json
from nnunet_anomaly.label_maps import check_same_grid, read_label_map, spacing_zyx_mm
from nnunet_anomaly.multi_echo import json_beside, paths_of, read_multi_echo_file
from nnunet_anomaly.relaxometry.refine import are_small_slices, candidates, known_and_inside, pixel_mm2, slice_axis
from nnunet_anomaly.settings import AnomalySettings, T2Settings
from nnunet_anomaly.workflow.t2_model import FINAL, Label

# both have the paper's value: 0.501, and 59.3 for its 425 pixels
PROBABILITIES = (*(step / 20 for step in range(1, 10)), 0.501, *(step / 20 for step in range(11, 20)))
MINIMUM_SLICES_MM2 = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 59.3, 70.0, 80.0, 100.0, 120.0, 150.0, 200.0)
RECORDS = "cases"


@dataclass(frozen=True)
class Grid:
    """Values to try, each with all others, ascending.

    Raises:
        SettingsError: a value that ``T2Settings`` does not take, none at all, or one twice.
    """

    probability: tuple[float, ...] = PROBABILITIES
    minimum_slice_mm2: tuple[float, ...] = MINIMUM_SLICES_MM2

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            if not values or list(values) != sorted(set(values)):
                raise SettingsError(
                    f"t2.{name}: {list(values)} must be one value or more, ascending, none of them twice."
                )
            for value in values:
                AnomalySettings.from_dict({f"t2.{name}": value})


@dataclass(frozen=True)
class ValidationCase:
    """Files of a held-out case."""

    name: str
    fold: Fold
    probabilities: Path
    echoes: Path
    reference: Path


def validation_cases(model: Path, folds: Sequence[Fold] | None, dataset: Path, ending: str) -> list[ValidationCase]:
    """Held-out cases of the trained folds.

    Args:
        model: folder of the model.
        folds: default: every numbered one that is trained.
        dataset: raw dataset with ``labelsTr`` and ``multi_echo``.
        ending: of its images.

    Raises:
        InputError: there is no such fold, one of all cases, or one without validation or probabilities; the message
            has the command that makes them.
    """
    chosen = list(folds or folds_of(model, FINAL))
    if not chosen:
        raise InputError(f"{model} has no fold with {FINAL}. Train it first (nnUNetv2_train).")
    if ALL in chosen:
        raise InputError(f"fold_{ALL} of {model} has no held-out cases: it has seen all of them. Train numbered folds.")
    found = []
    for fold in chosen:
        folder = model / f"fold_{fold}" / "validation"
        names = sorted(path.name.removesuffix(ending) for path in folder.glob(f"[!.]*{ending}"))
        missing = [name for name in names if not (folder / f"{name}.npz").is_file()]
        if missing or not names:
            what = f"no probabilities of {', '.join(missing)}" if names else "no validation"
            raise InputError(f"{folder} holds {what}. Make them with: {validation_command(model, fold)}")
        found += [
            ValidationCase(
                name, fold, folder / f"{name}.npz", paths_of(dataset, name)[0], dataset / "labelsTr" / f"{name}{ending}"
            )
            for name in names
        ]
    names = [case.name for case in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{', '.join(twice)} are held out by several of the folds {chosen}: name one of them by -f.")
    return found


def validation_command(model: Path, fold: Fold) -> str:
    """The command that writes the probabilities of a fold's held-out cases."""
    trainer, plans, configuration = ([*model.resolve().name.split("__"), "", "", ""])[:3]
    return f"nnUNetv2_train {model.resolve().parent.name} {configuration} {fold} -tr {trainer} -p {plans} --val --npz"


def count_cases(
    cases: Sequence[ValidationCase],
    label: Label,
    settings: T2Settings,
    probabilities: tuple[float, ...],
    output: Path,
    num_processes: int,
) -> tuple[dict[str, dict[str, Any]], Outcome]:
    """Count every case; those that are finished with the same values are not repeated.

    Returns:
        Record of every case that did not fail, ``fold`` and what ``count`` gives; and what became of all cases.
    """
    folder = output / RECORDS
    work = [(case.name, (case, label, settings, probabilities, folder / f"{case.name}.json")) for case in cases]
    outcome = run_cases(_count_file, work, num_processes, "T2")
    names = [case.name for case in cases if case.name not in outcome.failed]
    return {name: load_json(folder / f"{name}.json") for name in names}, outcome


def _count_file(
    case: ValidationCase, label: Label, settings: T2Settings, probabilities: tuple[float, ...], record: Path
) -> bool:
    """Worker: one case; False when it is finished already."""
    from nnunet_anomaly.relaxometry.t2_fit import fit_t2

    searched = {"probability", "minimum_slice_mm2"}
    kept = {name: value for name, value in asdict(settings).items() if name not in searched}
    files = [case.probabilities, case.echoes, json_beside(case.echoes), case.reference]
    source = made_from(files, {"t2": kept, "label": asdict(label), "probabilities": probabilities})
    if is_up_to_date(record, source):
        return False
    record.unlink(missing_ok=True)
    stack = read_multi_echo_file(case.echoes)
    grid = stack.images[0]
    labels, image = read_label_map(case.reference)
    check_same_grid(grid, case.echoes, image, case.reference)
    reference = np.isin(labels, label.values)
    probability = read_probability(case.probabilities, label, reference.shape)
    likely = candidates(probability, settings.candidate_probability)
    fit = fit_t2(
        stack.signals(),
        stack.echo_times_ms,
        mask=likely | reference,
        model=settings.model,
        skip_first=settings.skip_first_echo,
    )
    _, inside = known_and_inside(fit.t2_ms, fit.quality, settings.range_ms)
    axis = slice_axis(grid.GetDirection())
    counts = count(np.where(likely & inside, probability, -1), reference & inside, axis, probabilities)
    area = {"pixel_mm2": pixel_mm2(spacing_zyx_mm(grid), axis), "fold": case.fold}
    save_json({"made_from": source, **area, **counts}, record)
    return True


def read_probability(path: Path, label: Label, shape: tuple[int, ...]) -> np.ndarray:
    """Probability of cartilage as nnU-Net's validation wrote it, (z, y, x) on the grid of the image.

    Raises:
        GeometryError: it has another shape than the image.
        InputError: the file is damaged, or not nnU-Net's.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            probabilities = content["probabilities"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not readable as nnU-Net's probabilities: {error}. Validate again.") from error
    if probabilities.ndim != 4 or len(probabilities) <= label.output:
        raise InputError(f"{path} has no output {label.output} ({label.name}): its shape is {probabilities.shape}.")
    if probabilities.shape[1:] != shape:
        raise GeometryError(f"{path} has shape {probabilities.shape[1:]}, the image {shape}; is it of this dataset?")
    return np.clip(probabilities[label.output].astype(np.float64), 0, 1)


def count(probability: np.ndarray, reference: np.ndarray, axis: int, thresholds: Sequence[float]) -> dict[str, Any]:
    """Voxels by threshold and slice, from which Dice follows for any smallest area of a slice.

    Args:
        probability: float64; below 0 where there is no cartilage whatever the threshold.
        reference: bool, of the same shape.
        axis: across slices.
        thresholds: ascending.

    Returns:
        ``reference_voxels``; ``found`` and ``hit`` (voxels found, and those of them in the reference): a list for each
        threshold, with a number for each slice.
    """
    numbers = np.arange(probability.shape[axis]).reshape([-1 if other == axis else 1 for other in range(3)])
    slices = np.broadcast_to(numbers, probability.shape)
    # how many thresholds a voxel reaches
    reached = np.searchsorted(np.asarray(thresholds, dtype=np.float64), probability, side="right")
    size = len(thresholds) + 1

    def by_threshold(chosen: np.ndarray) -> list[list[int]]:
        cells = slices[chosen] * size + reached[chosen]
        counts = np.bincount(cells, minlength=size * probability.shape[axis]).reshape(-1, size)
        return np.cumsum(counts[:, ::-1], axis=1)[:, ::-1][:, 1:].T.tolist()

    return {
        "reference_voxels": int(np.count_nonzero(reference)),
        "found": by_threshold(reached > 0),
        "hit": by_threshold((reached > 0) & reference),
    }


def overlap(record: Mapping[str, Any], threshold: int, minimum_slice_mm2: float) -> OverlapCounts:
    """What is found in a case by the threshold of this index without slices of less than an area."""
    found, hit = (np.asarray(record[name][threshold]) for name in ("found", "hit"))
    kept = ~are_small_slices(found, record["pixel_mm2"], minimum_slice_mm2)
    return OverlapCounts(record["reference_voxels"], int(found[kept].sum()), int(hit[kept].sum()))


def agreement_of(counts: OverlapCounts) -> float:
    """Dice, and 1 where both are empty: nothing was to be found, and nothing was."""
    return dice(counts) if counts.reference_voxels or counts.prediction_voxels else 1.0


def search_table(records: Mapping[str, Mapping[str, Any]], grid: Grid) -> list[dict[str, Any]]:
    """A row for every combination: ``probability``, ``minimum_slice_mm2`` and ``dice``, the mean over all cases."""
    rows = []
    for (index, probability), minimum_mm2 in itertools.product(enumerate(grid.probability), grid.minimum_slice_mm2):
        by_case = [agreement_of(overlap(record, index, minimum_mm2)) for record in records.values()]
        rows.append({"probability": probability, "minimum_slice_mm2": minimum_mm2, "dice": round(fmean(by_case), 12)})
    return rows


def best_row(rows: Sequence[Mapping[str, Any]]) -> int:
    """Index of the row with the highest Dice; of equal ones the smallest area, then the probability nearest to 0.5.

    Raises:
        InputError: no combination finds cartilage.
    """
    if not any(row["dice"] for row in rows):
        raise InputError(
            "No combination finds cartilage in any case. Is the network trained enough (nnU-Net prints its Dice), "
            "are labelsTr and multi_echo those of the dataset that it learned from, and is --label cartilage?"
        )
    return min(
        range(len(rows)),
        key=lambda index: (
            -rows[index]["dice"],
            rows[index]["minimum_slice_mm2"],
            abs(rows[index]["probability"] - 0.5),
        ),
    )


def at_the_edge(row: Mapping[str, Any], grid: Grid) -> list[str]:
    """Sentences on a best value that is the lowest or highest of several that were tried; an area of 0 has no lower."""
    said = []
    for name, tried in asdict(grid).items():
        lowest, highest = min(tried), max(tried)
        if len(tried) > 1 and row[name] in (lowest, highest) and row[name] != 0:
            which, others = ("largest", "larger") if row[name] == highest else ("smallest", "smaller")
            said.append(
                f"The best t2.{name} ({row[name]:g}) is the {which} of those tried; {others} ones may be better."
            )
    return said
