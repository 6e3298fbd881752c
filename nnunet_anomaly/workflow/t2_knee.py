"""One knee of ``nnunet-anomaly t2``: cartilage, its T2, regions and change. ``t2_results`` writes them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_anomaly.compartments import NOTCH
from nnunet_anomaly.errors import AnomalyError, GeometryError, InputError, LabelError
from nnunet_anomaly.files import is_up_to_date, made_from, read_image
from nnunet_anomaly.label_maps import check_same_grid, labels_in, read_label_map
from nnunet_anomaly.relaxometry.clusters import Clusters, Shift, change, find_clusters, moved, register
from nnunet_anomaly.relaxometry.decay_models import Quality
from nnunet_anomaly.relaxometry.refine import Refinement, candidates, refine_mask, refine_probability
from nnunet_anomaly.relaxometry.subregions import Subregions, subregions
from nnunet_anomaly.relaxometry.unroll import Projection, project, unroll
from nnunet_anomaly.settings import T2Settings
from nnunet_anomaly.workflow.t2_model import CartilageModel
from nnunet_anomaly.workflow.t2_series import Series, check_pair, files_of

if TYPE_CHECKING:
    import SimpleITK as sitk

    from nnunet_anomaly.relaxometry.t2_fit import T2Fit

RECORD = "record.json"
PROBABILITY, PROBABILITY_RECORD = "probability.nii.gz", "probability.json"
TIME_FOLDERS = ("time_1", "time_2")
# of what is taken for cartilage; more than this share without a T2 of cartilage is worth a warning
_MANY_WITHOUT_T2 = 0.1
# a worse match of two plates is worth a warning
_LEAST_SIMILARITY = 0.5
# quality of a voxel that has no T2
_IN_WORDS = {
    "at_bound": "with a T2 beyond the fit's bounds",
    "not_converged": "whose fit did not converge",
    "not_decaying": "whose signal does not fall (constant or rising)",
    "no_signal": "without signal",
    "invalid": "with negative values or values that are no numbers",
}


@dataclass(frozen=True)
class Knee:
    """What is to be measured.

    Attributes:
        name: in tables.
        sources: one series, or two in order of time.
        masks: cartilage of each, by hand; none: a model finds it.
        output: folder to write to.
        side: where the series tell none.
        notes: to be said with its warnings.
    """

    name: str
    sources: tuple[Path, ...]
    masks: tuple[Path, ...]
    output: Path
    side: str | None = None
    notes: tuple[str, ...] = ()

    def folder(self, place: int) -> Path:
        """Of what belongs to one time point, counted from 0."""
        return self.output / TIME_FOLDERS[place]


@dataclass(frozen=True)
class Method:
    """How all knees are measured.

    Attributes:
        settings: group ``t2``.
        model: that finds cartilage; None: masks are given.
        mask_label: of cartilage in the masks; None: the only one.
        device: of the fit.
    """

    settings: T2Settings
    model: CartilageModel | None
    mask_label: int | None
    device: str


def source_of(knee: Knee, method: Method) -> Any:
    """What the results of a knee are made from (see ``files.made_from``)."""
    files = [path for source in knee.sources for path in files_of(source)] + list(knee.masks)
    settings = {
        "name": knee.name,
        "sources": [str(path) for path in knee.sources],
        "side": knee.side,
        "t2": asdict(method.settings),
        "mask_label": method.mask_label,
        **_model_settings(method.model),
    }
    return made_from([*files, *(method.model.checkpoints() if method.model else [])], settings)


def probability_source(source: Path, model: CartilageModel) -> Any:
    """What the probability map of a series is made from."""
    return made_from([*files_of(source), *model.checkpoints()], _model_settings(model))


def _model_settings(model: CartilageModel | None) -> dict[str, Any]:
    return {"label": asdict(model.label), "echoes": model.echoes, "plans": model.plans_sha256} if model else {}


def is_finished(knee: Knee, method: Method) -> bool:
    """Whether all results of a knee are there."""
    return is_up_to_date(knee.output / RECORD, source_of(knee, method))


@dataclass(frozen=True, eq=False)
class TimePoint:
    """One series, measured.

    Attributes:
        series: the echoes.
        probability: of cartilage, or None with a mask.
        fit: T2 of all candidates.
        refinement: the cartilage.
        t2_ms: of the cartilage, NaN elsewhere.
        regions: of the cartilage.
        projection: T2 on the unrolled cartilage.
        quality_counts: voxels of the cartilage as it was before T2 was looked at, by the name of their quality.
        warnings: in words.
    """

    series: Series
    probability: np.ndarray | None
    fit: T2Fit
    refinement: Refinement
    t2_ms: np.ndarray
    regions: Subregions
    projection: Projection
    quality_counts: Mapping[str, int]
    warnings: tuple[str, ...]

    @property
    def grid(self) -> sitk.Image:
        """An image that carries the geometry."""
        return self.series.stack.images[0]


@dataclass(frozen=True, eq=False)
class Change:
    """Two time points against each other, on the unrolled cartilage of the first.

    Attributes:
        shift: of the second one.
        difference_ms: (slices, bins), time 2 minus time 1.
        second_ms: the second map, moved.
        clusters: where the difference rises most.
    """

    shift: Shift
    difference_ms: np.ndarray
    second_ms: np.ndarray
    clusters: Clusters


def measure(knee: Knee, method: Method, series: Sequence[Series]) -> tuple[list[TimePoint], Change | None, list[str]]:
    """Everything about a knee, and warnings.

    Raises:
        AnomalyError: see ``check_pair``, ``fit_t2`` and ``unroll``; a mask of another grid, or an
            empty one; no voxel is left as cartilage.
    """
    warnings = [*knee.notes, *_learnt_from(knee, method.model), *(check_pair(*series) if len(series) == 2 else [])]
    found = []
    for place, each in enumerate(series):
        try:
            found.append(_time_point(knee, place, each, method))
        except AnomalyError as error:
            raise type(error)(str(error) if str(each.source) in str(error) else f"{each.source}: {error}") from error
        said = found[-1].warnings
        warnings += [f"time point {place + 1}: {text}" for text in said] if len(series) == 2 else said
    if len(found) == 1:
        return found, None, warnings
    changed = measure_change(found[0], found[1], method.settings)
    if changed.shift.similarity < _LEAST_SIMILARITY:
        warnings.append(
            f"The two cartilages hardly match (similarity {changed.shift.similarity:.2f} of 1): look at the unrolled "
            "maps before the change is believed."
        )
    return found, changed, warnings


def _learnt_from(knee: Knee, model: CartilageModel | None) -> list[str]:
    """A warning that names the series that a model has learnt from."""
    learnt = [source.name for source in knee.sources if model and model.has_learnt_from(source)]
    if not learnt:
        return []
    return [
        f"the model has learnt from {', '.join(learnt)}: it does better there than in new knees. Take test cases, or "
        "by -f the fold that has held them out."
    ]


def _time_point(knee: Knee, place: int, series: Series, method: Method) -> TimePoint:
    from nnunet_anomaly.relaxometry.t2_fit import fit_t2

    settings, stack = method.settings, series.stack
    grid = stack.images[0]
    probability = None
    if method.model is None:
        mask = read_mask(knee.masks[place], grid, series.source, method.mask_label)
    else:
        probability = _probability(knee.folder(place), series, method.model)
        mask = candidates(probability, settings.candidate_probability)
    fit = fit_t2(
        stack.signals(),
        stack.echo_times_ms,
        mask=mask,
        model=settings.model,
        skip_first=settings.skip_first_echo,
        device=method.device,
    )
    before = mask if probability is None else mask & (probability >= settings.probability)
    refinement = _refined(mask, probability, fit, series, settings)
    counts = {Quality(value).name.lower(): number for value, number in sorted(Counter(fit.quality[before]).items())}
    if not refinement.mask.any():
        raise InputError(_nothing_left(refinement, counts, from_model=method.model is not None))
    try:
        unrolled = unroll(refinement.mask, series.spacing_mm, grid.GetDirection(), settings.bin_degrees)
    except InputError as error:
        if method.model is not None:
            raise
        raise InputError(f"{knee.masks[place]}: {error}") from error
    regions = subregions(unrolled, stack.side or "", settings.central_degrees)
    t2_ms = np.where(refinement.mask, fit.t2_ms, np.nan)
    return TimePoint(
        series,
        probability,
        fit,
        refinement,
        t2_ms,
        regions,
        project(regions.unrolled, t2_ms),
        counts,
        (*series.notes, *_warnings(fit.t2_ms[before], counts, refinement.mask[before], settings, regions)),
    )


def _refined(
    mask: np.ndarray, probability: np.ndarray | None, fit: T2Fit, series: Series, settings: T2Settings
) -> Refinement:
    """Cartilage of the candidates of a network, or of a mask that was drawn, whose probability is 1."""
    if probability is None and not settings.slice_minimum_of_masks:
        return refine_mask(mask, fit.t2_ms, fit.quality, settings.range_ms)
    return refine_probability(
        mask.astype(np.float32) if probability is None else probability,
        fit.t2_ms,
        fit.quality,
        spacing_mm=series.spacing_mm,
        direction=series.stack.images[0].GetDirection(),
        range_ms=settings.range_ms,
        candidate_probability=settings.candidate_probability,
        threshold=settings.probability,
        minimum_slice_mm2=settings.minimum_slice_mm2,
    )


def _nothing_left(refinement: Refinement, counts: Mapping[str, int], *, from_model: bool) -> str:
    """Why there is no cartilage, and what to do."""
    trained = "Was the model trained long enough, on series such as this one? Its validation Dice tells."
    if from_model and not counts:
        return f"the model finds no cartilage in it: no voxel reaches t2.probability. {trained}"
    said = f"no cartilage is left: {said_of(refinement)}"
    unknown = [f"{number} {_IN_WORDS.get(name, name)}" for name, number in counts.items() if name != "converged"]
    if unknown:
        said += f"; by the fit {', '.join(unknown)}"
    return f"{said}. {trained if from_model else 'Are the mask and the pixels of the series right?'}"


def said_of(refinement: Refinement) -> str:
    """Counts of what was taken out, in words."""
    slices = len(refinement.small_slices)
    parts = {
        "have no T2": refinement.without_t2,
        "have a T2 outside the range": refinement.outside_range,
        "have too low a probability": refinement.improbable,
        f"lie in {slices} slice{'s' * (slices != 1)} with too little cartilage": refinement.in_small_slices,
    }
    said = ", ".join(f"{number} {what}" for what, number in parts.items() if number)
    return f"of {refinement.candidates} candidate voxels {said or 'none was taken out'}"


def _warnings(
    t2_ms: np.ndarray, counts: Mapping[str, int], kept: np.ndarray, settings: T2Settings, regions: Subregions
) -> list[str]:
    """Of one time point; arrays are over what is taken for cartilage before T2 is looked at."""
    warnings = []
    with np.errstate(invalid="ignore"):
        outside = np.count_nonzero((t2_ms <= settings.range_ms[0]) | (t2_ms > settings.range_ms[1]))
    unknown = {name: number for name, number in counts.items() if name not in ("converged", "at_bound")}
    lost = outside + sum(unknown.values())
    if lost > _MANY_WITHOUT_T2 * t2_ms.size:
        why = [f"{number} {_IN_WORDS[name]}" for name, number in unknown.items()]
        why += [f"{outside} with a T2 outside {settings.range_ms[0]:g} to {settings.range_ms[1]:g} ms"] * bool(outside)
        warnings.append(
            f"{lost} of {t2_ms.size} voxels of the cartilage ({lost / t2_ms.size:.0%}) have no T2 of cartilage and "
            f"were taken out: {', '.join(why)}. Is all of it cartilage, and are the echo times right?"
        )
    if regions.parted_at != NOTCH:
        warnings.append(
            "no intercondylar notch was found (is one condyle missing?): medial and lateral are parted at the "
            f"{regions.parted_at}."
        )
    return warnings + ([regions.warning] if regions.warning else [])


def read_mask(path: Path, grid: sitk.Image, source: Path, label: int | None) -> np.ndarray:
    """Cartilage by hand, bool.

    Args:
        path: label map on the grid of the series.
        grid: an echo of the series.
        source: how messages call the series.
        label: of cartilage; None: the only one.

    Raises:
        GeometryError: the mask lies on another grid; the message has the remedy.
        InputError: it is missing, damaged, or empty.
        LabelError: see ``read_label_map``; several labels and none is named, or the one named is not there.
    """
    array, image = read_label_map(path)
    try:
        check_same_grid(grid, source, image, path)
    except GeometryError as error:
        raise GeometryError(
            f"{error} Draw the mask on an echo of the series, or resample it to that grid. Is a slice of the series "
            "missing?"
        ) from error
    labels = labels_in(array)
    if not labels:
        raise InputError(f"{path} is empty: there is no cartilage to measure.")
    if label is None and len(labels) > 1:
        raise LabelError(f"{path} holds the labels {labels}; name that of femoral cartilage by --label.")
    if label is not None and label not in labels:
        raise LabelError(f"{path} holds no label {label}; it holds {labels}.")
    return array == (labels[0] if label is None else label)


def _probability(folder: Path, series: Series, model: CartilageModel) -> np.ndarray:
    """What ``t2.predict_probabilities`` wrote."""
    import SimpleITK as sitk

    if not is_up_to_date(folder / PROBABILITY_RECORD, probability_source(series.source, model)):
        raise InputError(f"there is no probability map of it in {folder}.")
    image = read_image(folder / PROBABILITY)
    check_same_grid(series.stack.images[0], series.source, image, folder / PROBABILITY)
    return sitk.GetArrayFromImage(image)


def measure_change(first: TimePoint, second: TimePoint, settings: T2Settings) -> Change:
    """The second time point on the first one's unrolled cartilage, and the clusters of what rises."""
    shift = register(
        first.projection.thickness_mm, second.projection.thickness_mm, subpixel=settings.subpixel_registration
    )
    difference_ms = change(first.projection.mean, second.projection.mean, shift)
    second_ms = moved(second.projection.mean, shift, len(first.projection.mean))
    clusters = find_clusters(difference_ms, settings.cluster_percent)
    parts = first.regions.parts_of_bins
    rows = [row | {"part": _part(parts[clusters.label_map == row["cluster"]])} for row in clusters.rows]
    return Change(shift, difference_ms, second_ms, dataclasses.replace(clusters, rows=rows))


def _part(numbers: Sequence[int] | np.ndarray) -> str:
    """The part that most of these bins lie in."""
    from nnunet_anomaly.relaxometry.subregions import PARTS, SIDES

    number = int(np.bincount(np.asarray(numbers)[np.asarray(numbers) > 0], minlength=2).argmax()) - 1
    return f"{SIDES[number // len(PARTS)]} {PARTS[number % len(PARTS)]}"
