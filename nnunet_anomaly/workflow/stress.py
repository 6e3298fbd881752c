"""The stress test: held-out cases are corrupted, predicted by every model, and measured.

Images stay in memory, so that a test of hundreds of corrupted volumes takes no room on the disk. A record of every
prediction is kept, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_anomaly.dataset_roles import channel_names, image_channels
from nnunet_anomaly.error_maps.folds import ALL, Fold
from nnunet_anomaly.errors import GeometryError, InputError, LabelError
from nnunet_anomaly.evaluation.cohort import json_safe
from nnunet_anomaly.evaluation.stress_case import corrupted_case_figures
from nnunet_anomaly.files import (
    FATAL_ERRNOS,
    is_up_to_date,
    load_json,
    made_from,
    nnunet_folder,
    open_pool,
    read_image,
    save_json,
)
from nnunet_anomaly.label_maps import ENDINGS, as_label_map, labels_in
from nnunet_anomaly.phantoms.stress_corruptions import Case, Corrupted, corrupt
from nnunet_anomaly.postprocessing.components import keep_components
from nnunet_anomaly.workflow.stress_models import CLEANED, Predictor, StressModel

NONE = "none"  # the corruption of an image that is as it was
RECORDS = "cases"
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


# -- cases ------------------------------------------------------------------------------------------------------------


def held_out_groups(raw: Path, folds: Sequence[Fold]) -> list[Group]:
    """The cases that each fold holds out, by ``splits_final.json`` of the preprocessed dataset, or else the raw one.

    Files that are missing are named when their case is read.

    Raises:
        InputError: nothing is held out: fold ``all``, no splits, no such fold, or an empty one; or a case by two folds.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    other = "Give labelled cases that no network has seen, by -i IMAGES -l LABELS."
    if ALL in folds:
        raise InputError(f"Fold all has learnt from every case, so that none is held out. {other}")
    places = [nnunet_folder("nnUNet_preprocessed") / raw.name, raw]
    found = [folder / "splits_final.json" for folder in places if (folder / "splits_final.json").is_file()]
    if not found:
        raise InputError(f"{raw.name} has no splits_final.json, so that no case is known to be held out. {other}")
    splits, dataset_json = load_json(found[0]), load_json(raw / "dataset.json")
    listed = get_filenames_of_train_images_and_targets(str(raw), dataset_json) if "dataset" in dataset_json else {}
    groups: list[Group] = []
    for fold in folds:
        if not isinstance(fold, int) or fold >= len(splits):
            raise InputError(f"{found[0]} has folds 0 to {len(splits) - 1}, but not {fold}.")
        cases = splits[fold]["val"]
        if not cases:
            raise InputError(f"Fold {fold} of {found[0]} holds out no case. {other}")
        for group in groups:
            if twice := sorted(set(cases) & {files.name for files in group.cases}):
                raise InputError(
                    f"{found[0]}: folds {group.fold} and {fold} both hold out {', '.join(twice[:5])}. Name one of them "
                    "by -f, as a case is predicted once."
                )
        groups.append(
            Group((fold,), tuple(_held_out(case, raw, dataset_json["file_ending"], listed) for case in cases))
        )
    return groups


def _held_out(case: str, raw: Path, ending: str, listed: Mapping[str, Any]) -> CaseFiles:
    """Files of a training case: as ``dataset.json`` lists them where it does, else by their names."""
    if case in listed:
        return CaseFiles(case, tuple(map(Path, listed[case]["images"])), Path(listed[case]["label"]))
    return CaseFiles(case, channel_files(raw / "imagesTr", case, ending), raw / "labelsTr" / f"{case}{ending}")


def channel_files(folder: Path, case: str, ending: str) -> tuple[Path, ...]:
    """Files of all channels of a case up to the last that is there; those that are missing too, and the first one."""
    there = folder.glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}")
    last = max((int(path.name.removesuffix(ending)[-4:]) for path in there), default=0)
    return tuple(folder / f"{case}_{channel:04d}{ending}" for channel in range(last + 1))


def group_of_folder(images: Path, labels: Path, folds: Sequence[Fold], ending: str) -> Group:
    """Labelled cases in folders of their own, which the ensemble of all folds predicts.

    Raises:
        InputError: there is none, or one has no label map.
    """
    length = len(f"_0000{ending}")
    names = sorted({path.name[:-length] for path in images.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")})
    if not names:
        raise InputError(f"{images} holds no image named <case>_0000{ending}.")
    if missing := [name for name in names if not (labels / f"{name}{ending}").is_file()]:
        raise InputError(f"{labels} has no {', '.join(f'{name}{ending}' for name in missing[:5])}.")
    cases = [CaseFiles(name, channel_files(images, name, ending), labels / f"{name}{ending}") for name in names]
    return Group(tuple(folds), tuple(cases))


def read_case(files: CaseFiles, test: StressTest, reader: Any) -> tuple[Case, dict[str, Any]]:
    """A case by nnU-Net's own reader, and its properties. Whole numbers are integers, which corruptions round to.

    Raises:
        InputError: a file is missing or damaged, there are fewer channels, or see ``Case``.
        GeometryError: the label map lies on another grid.
        LabelError: it is none, or holds labels that dataset.json does not have.
    """
    paths = files.images[: len(test.channels)]
    for path in [*paths, files.labels]:
        check_readable(path)
    data, properties = reader.read_images([str(path) for path in paths])
    if len(data) != len(test.channels):  # a file may hold several, as colour images do
        raise InputError(f"{len(data)} of {len(test.channels)} channels are there: {[path.name for path in paths]}.")
    labels, of_labels = reader.read_seg(str(files.labels))
    if labels.shape[1:] != data.shape[1:] or not np.allclose(of_labels["spacing"], properties["spacing"]):
        raise GeometryError(f"{files.labels} has another grid than {paths[0]}.")
    label_map = as_label_map(as_integers(labels[0]), str(files.labels))
    if stray := set(labels_in(label_map)) - {label for known in test.structures.values() for label in known}:
        raise LabelError(f"{files.labels} holds the labels {sorted(stray)}, which dataset.json does not have.")
    images = tuple(as_integers(channel) for channel in data)
    spacing_mm = tuple(float(size) for size in properties["spacing"])
    return Case(files.name, images, label_map, spacing_mm, test.channels, test.region_labels), properties


def check_readable(path: Path) -> None:
    """A file is there and whole: some readers take a file that is cut off, and NaN as 0.

    Raises:
        InputError: it is not.
    """
    if path.name.endswith(ENDINGS):
        read_image(path)
    elif not path.is_file():
        raise InputError(f"{path} does not exist.")


def as_integers(values: np.ndarray) -> np.ndarray:
    """The same as int32 where all are whole numbers, which nnU-Net's readers give as float32."""
    with np.errstate(invalid="ignore"):
        is_whole = np.array_equal(values, np.rint(values)) and np.abs(values).max(initial=0) < 2**31
    return values.astype(np.int32) if is_whole else values


# -- the test ---------------------------------------------------------------------------------------------------------


def record_path(output: Path, model: str, case: str, corruption: str, severity: float) -> Path:
    """Where the figures of one prediction are kept."""
    return output / RECORDS / model / case / f"{corruption}_{severity:g}.json"


def run_stress_test(
    test: StressTest,
    models: Sequence[StressModel],
    groups: Sequence[Group],
    reader: Any,
    output: Path,
    num_processes: int,
    device: torch.device,
) -> dict[str, str]:
    """Corrupt, predict and measure what is not done yet; returns why some cases failed, by model, case and grade."""
    from tqdm import tqdm

    failed: dict[str, str] = {}
    total = sum(len(group.cases) for group in groups) * len(test.grades) * len(models)
    with open_pool(num_processes) as pool, tqdm(total=total, desc="Stress test", unit="prediction") as bar:
        for group in groups:
            sources = {model.name: model.checkpoints(group.folds) for model in models}
            predictors: dict[str, Predictor] = {}
            for files in group.cases:
                todo = _todo(test, models, sources, files, output)
                bar.update(len(test.grades) * len(models) - sum(map(len, todo.values())))
                for model in models:  # loaded once a group, and only where there is something to do
                    if model.name not in predictors and any(model in waiting for waiting in todo.values()):
                        predictors[model.name] = Predictor.load(model, group.folds, device, test.mirroring)
                failed |= _run_case(test, files, todo, predictors, sources, reader, output, pool, bar)
    return failed


def _source(test: StressTest, files: CaseFiles, checkpoints: Sequence[Path], grade: tuple[str, float]) -> Any:
    return made_from([*files.images, files.labels, *checkpoints], test.settings(*grade))


def _todo(
    test: StressTest,
    models: Sequence[StressModel],
    sources: Mapping[str, Sequence[Path]],
    files: CaseFiles,
    output: Path,
) -> dict[tuple[str, float], list[StressModel]]:
    """Models without figures of a case, by grade; grades that are finished are left out."""
    todo = {
        grade: [
            model
            for model in models
            if not is_up_to_date(
                record_path(output, model.name, files.name, *grade), _source(test, files, sources[model.name], grade)
            )
        ]
        for grade in test.grades
    }
    return {grade: waiting for grade, waiting in todo.items() if waiting}


def _run_case(
    test: StressTest,
    files: CaseFiles,
    todo: Mapping[tuple[str, float], Sequence[StressModel]],
    predictors: Mapping[str, Predictor],
    sources: Mapping[str, Sequence[Path]],
    reader: Any,
    output: Path,
    pool: Executor,
    bar: Any,
) -> dict[str, str]:
    """All grades of one case; what fails is named."""
    failed: dict[str, str] = {}
    if not todo:
        return failed
    try:
        case, properties = read_case(files, test, reader)
    except Exception as problem:
        bar.update(sum(map(len, todo.values())))
        _note_failure(failed, files.name, problem)
        return failed
    measuring: deque[tuple[str, Future[None]]] = deque()
    for grade, waiting in todo.items():
        name = f"{files.name}, {grade[0]} {grade[1]:g}"
        try:
            corrupted = test.corrupted(case, *grade)
        except Exception as problem:
            _note_failure(failed, name, problem)
            bar.update(len(waiting))
            continue
        image = stacked(corrupted)
        for model in waiting:
            try:
                prediction = predictors[model.name].predict(image, properties)
                record = record_path(output, model.name, files.name, *grade)
                source = _source(test, files, sources[model.name], grade)
                work = (test, corrupted.labels, prediction, corrupted.anomaly, case.spacing_mm, record, source)
                measuring.append((f"{model.name}: {name}", pool.submit(measure, *work, corrupted.record)))
            except Exception as problem:
                _note_failure(failed, f"{model.name}: {name}", problem)
            bar.update()
            failed |= _settled(measuring, at_most=16)
    return failed | _settled(measuring)


def stacked(corrupted: Corrupted) -> np.ndarray:
    """All channels, float32 (C, ...), as nnU-Net's reader gives them."""
    return np.stack([channel.astype(np.float32) for channel in corrupted.images])


def _settled(measuring: deque[tuple[str, Future[None]]], at_most: int = 0) -> dict[str, str]:
    failed: dict[str, str] = {}
    while len(measuring) > at_most:
        name, future = measuring.popleft()
        try:
            future.result()
        except Exception as problem:
            _note_failure(failed, name, problem)
    return failed


def _note_failure(failed: dict[str, str], name: str, problem: Exception) -> None:
    """Name what failed and go on; but stop where nothing after it could succeed either."""
    if isinstance(problem, BrokenProcessPool) or (isinstance(problem, OSError) and problem.errno in FATAL_ERRNOS):
        raise problem
    failed[name] = f"{type(problem).__name__}: {problem}"


def measure(
    test: StressTest,
    reference: np.ndarray,
    prediction: np.ndarray,
    anomaly: np.ndarray,
    spacing_mm: Sequence[float],
    record: Path,
    source: Any,
    drawn: Mapping[str, Any],
) -> None:
    """Worker: figures of one prediction, and of what cleaning makes of it, into its record."""
    # a single slice is measured as the 2-D image that it is: as a volume, all of a structure would be its surface
    shape = tuple(size for size in reference.shape if size > 1)
    spacing_mm = [mm for mm, size in zip(spacing_mm, reference.shape, strict=True) if size > 1]
    reference, prediction, anomaly = (each.reshape(shape) for each in (reference, prediction, anomaly))
    label_map = as_label_map(prediction, "prediction")
    known = (anomaly, spacing_mm, test.structures, test.nsd_tolerance_mm)
    found = {"structures": corrupted_case_figures(reference, label_map, *known)}
    if test.cleaned_share is not None:
        cleaned = keep_components(label_map, spacing_mm, min_share_of_largest=test.cleaned_share)
        found["cleaned"] = corrupted_case_figures(reference, cleaned, *known)
    save_json(json_safe({"made_from": source, **found, "corruption": dict(drawn)}), record)


def collect_rows(
    test: StressTest, models: Sequence[StressModel], groups: Sequence[Group], output: Path
) -> list[dict[str, Any]]:
    """A row for every model, grade, case and structure that is finished; cleaned ones under a name of their own."""
    rows = []
    for model, group, files, grade in _predictions(test, models, groups):
        path = record_path(output, model.name, files.name, *grade)
        checkpoints = model.checkpoints(group.folds)
        if not is_up_to_date(path, _source(test, files, checkpoints, grade)):
            continue
        record = load_json(path)
        for key, suffix in (("structures", ""), ("cleaned", CLEANED)):
            for structure, figures in record.get(key, {}).items():
                what = {"model": model.name + suffix, "corruption": grade[0], "severity": grade[1]}
                where = {"case": files.name, "fold": group.fold, "structure": structure}
                rows.append(what | where | _with_nan(figures))
    return sorted(rows, key=lambda row: str(row["model"]).endswith(CLEANED))  # stable: cleaned ones come last


def _predictions(
    test: StressTest, models: Sequence[StressModel], groups: Sequence[Group]
) -> Iterator[tuple[StressModel, Group, CaseFiles, tuple[str, float]]]:
    for model in models:
        for group in groups:
            for files in group.cases:
                for grade in test.grades:
                    yield model, group, files, grade


def _with_nan(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a record; JSON has no NaN and no infinity (distances to an empty structure)."""
    distances = ("asd_mm", "hd_mm", "hd95_mm")
    empty = figures["empty"] in ("reference", "prediction")
    return {
        key: (np.inf if empty and key in distances else np.nan) if value is None else value
        for key, value in figures.items()
    }


def image_names(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the channels that are images."""
    names = channel_names(dataset_json)
    return tuple(names[str(channel)] for channel in image_channels(dataset_json))


def say_what_is_compared(models: Sequence[StressModel], groups: Sequence[Group], test: StressTest) -> None:
    """Print what is about to be done."""
    cases = sum(len(group.cases) for group in groups)
    print(
        f"{cases} cases ({', '.join(f'{len(group.cases)} by fold {group.fold}' for group in groups)}), "
        f"{len(test.grades)} versions of each, {len(models)} models: {cases * len(test.grades) * len(models)} "
        "predictions.",
        file=sys.stderr,
    )
