"""Which way round does a mask without geometry lie on its image? Asked of the image itself.

The masks of OAI-ZIB are bare arrays. Their axes are known, their directions are not: programs in the wild flip them in
several ways. In DESS, bone marrow is dark and cartilage bright, and both are thin or curved enough that a mask lying
the wrong way round mixes them up. So each of the eight flips gets a score:

    (mean of the image in cartilage - mean in bone) / pooled standard deviation
    + (mean gradient at the border of bone and cartilage - mean gradient of the image) / its standard deviation

The first term decides (4.9 against at most 0.8 on a real knee's label map with painted intensities); the second helps
where a coil's bias field or lesions blur the contrast.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_anomaly.errors import GeometryError, InputError

AXES = "zyx"
FLIPS = ("none", "z", "y", "x", "zy", "zx", "yx", "zyx")

AUTO, PER_CASE = "auto", "per-case"  # besides FLIPS, what an option --flip can be

# On painted real anatomy: right flips 0.9 (noise at twice the contrast) to 5.6, wrong ones at most a quarter of that.
LEAST_SCORE = 0.4
LEAST_MARGIN = 0.25  # of the best score, between the best and the second best


@dataclass(frozen=True)
class Alignment:
    """The flip that fits best.

    Attributes:
        flip: one of ``FLIPS``.
        score: of that flip, in standard deviations.
        second: the next best flip.
        second_score: its score.
    """

    flip: str
    score: float
    second: str
    second_score: float

    @property
    def is_clear(self) -> bool:
        """Whether the mask fits the image at all, and clearly better than any other way round."""
        return self.score >= LEAST_SCORE and self.score - self.second_score >= LEAST_MARGIN * self.score

    def __str__(self) -> str:
        return f"best flip {self.flip} (score {self.score:.2f}), second best {self.second} ({self.second_score:.2f})"


def flipped(array: np.ndarray, flip: str) -> np.ndarray:
    """View of a volume (z, y, x) with the axes named in ``flip`` reversed; ``"none"`` reverses none."""
    if flip not in FLIPS:
        raise ValueError(f"flip is {flip!r}; use one of {', '.join(FLIPS)}")
    if flip == "none":
        return array
    return array[tuple(slice(None, None, -1 if axis in flip else 1) for axis in AXES)]


def flip_scores(
    image: np.ndarray,
    label: np.ndarray,
    spacing_mm: Sequence[float],
    bone: Collection[int],
    cartilage: Collection[int],
) -> dict[str, float]:
    """Score of every flip of the label map (see the module).

    Args:
        image: grey values (z, y, x).
        label: label map of the same shape, not flipped.
        spacing_mm: voxel size (z, y, x).
        bone: labels of bone.
        cartilage: labels of cartilage.

    Returns:
        Score of every one of ``FLIPS``, in standard deviations.

    Raises:
        InputError: the label map has no bone or no cartilage, so that nothing can be compared.
    """
    from scipy import ndimage

    bone_mask, cartilage_mask = np.isin(label, list(bone)), np.isin(label, list(cartilage))
    if not bone_mask.any() or not cartilage_mask.any():
        missing = "bone" if not bone_mask.any() else "cartilage"
        raise InputError(f"the mask has no {missing}, so that its position cannot be checked against the image")
    image = image.astype(np.float32)
    gradient = np.sqrt(sum(np.square(part) for part in np.gradient(image, *spacing_mm)))
    tissue = bone_mask | cartilage_mask
    border = tissue & ~ndimage.binary_erosion(tissue)
    typical, spread = float(gradient.mean()), float(gradient.std())
    scores = {}
    for flip in FLIPS:
        # the image is flipped instead of the masks: a view, and the same eight pairings
        values, slopes = flipped(image, flip), flipped(gradient, flip)
        in_bone, in_cartilage = values[bone_mask], values[cartilage_mask]
        pooled = np.sqrt((float(in_bone.var()) + float(in_cartilage.var())) / 2)
        contrast = (float(in_cartilage.mean()) - float(in_bone.mean())) / max(pooled, 1e-6)
        scores[flip] = contrast + (float(slopes[border].mean()) - typical) / max(spread, 1e-6)
    return scores


def best_alignment(scores: Mapping[str, float]) -> Alignment:
    """Best and second best of some scores; among equals the first of ``FLIPS``."""
    first, second = sorted(FLIPS, key=lambda flip: -scores[flip])[:2]
    return Alignment(first, scores[first], second, scores[second])


def common_alignment(scores_of_cases: Sequence[Mapping[str, float]]) -> Alignment:
    """Alignment that several cases share: the flip with the best mean score."""
    return best_alignment({flip: float(np.mean([scores[flip] for scores in scores_of_cases])) for flip in FLIPS})


def decide_flip(scores: Mapping[str, float], option: str, common: str | None = None) -> tuple[str, list[str]]:
    """Flip of one case, checked against its image.

    Args:
        scores: of the eight flips for this case.
        option: one of ``FLIPS`` (taken, and only noted where the image disagrees), ``"per-case"`` (the case's own best
            flip, which must be clear), or ``"auto"`` (``common``, which the case must not contradict).
        common: the release's flip, for ``"auto"``.

    Returns:
        The flip, and notes for the report.

    Raises:
        GeometryError: the mask does not fit the image, or fits another way round, or it is unclear how.
    """
    own = best_alignment(scores)
    if option in FLIPS:
        if own.is_clear and own.flip != option:
            return option, [f"--flip {option} was asked for, but the image fits better otherwise: {own}"]
        return option, []
    if option == PER_CASE:
        if not own.is_clear:
            raise GeometryError(f"it is unclear how the mask lies on the image: {own}; look at it and give --flip")
        return own.flip, []
    if common is None:
        raise ValueError("the release's flip is needed for 'auto'")
    if scores[common] < LEAST_SCORE:
        raise GeometryError(
            f"the mask does not fit the image: flip {common} of the release scores {scores[common]:.2f}; {own}"
        )
    if own.flip != common and (own.is_clear or scores[common] < (1 - LEAST_MARGIN) * own.score):
        raise GeometryError(
            f"the mask lies otherwise than those of the release, which have flip {common}: {own}; look at it, and "
            "give --flip per-case if this is right"
        )
    return common, [] if own.is_clear else [f"the image alone does not say which way round: {own}"]
