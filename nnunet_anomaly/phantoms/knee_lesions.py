"""Lesions of the knee phantom: bone marrow lesions and osteophytes of graded size, planned in mm, placed by anatomy.

What a case gets is planned from its random numbers alone, before any grid is known, so that a case has the same lesions
on every grid. The growing and mixing is that of ``implants``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.geometry import bounding_box
from nnunet_anomaly.phantoms.anatomy import TISSUE, KneeFields
from nnunet_anomaly.phantoms.fields import smooth_min
from nnunet_anomaly.phantoms.implants import arrival_times, grow_region, make_patchy, mix_toward, random_speed

LEVELS = ("none", "mild", "severe")
FEMUR, FEMORAL_CARTILAGE, TIBIA, TIBIAL_CARTILAGE = 1, 2, 3, 4
BONES = {"femur": FEMUR, "tibia": TIBIA}

MARROW_LESION = "bone_marrow_lesion"
OSTEOPHYTE = "osteophyte"

# knee coordinates (anatomy.py) of a point on the bone's surface
MARROW_SITES = {
    "femur": {
        "medial_condyle": (-21.0, -3.0, -7.0),
        "lateral_condyle": (20.0, -4.0, -7.0),
        "medial_posterior_condyle": (-23.0, 20.0, -17.0),
        "trochlea": (3.0, -34.0, -28.0),
    },
    "tibia": {
        "medial_plateau": (-21.0, 0.0, 1.0),
        "lateral_plateau": (20.0, 0.0, 0.0),
        "spines": (0.0, 2.0, 0.0),
    },
}
MARGIN_SITES = {
    "femur": {
        "medial_margin": (-36.0, -4.0, -15.0),
        "lateral_margin": (34.0, -4.0, -15.0),
        "medial_trochlear_margin": (-14.0, -36.0, -46.0),
        "medial_posterior_margin": (-24.0, 20.0, -40.0),
    },
    "tibia": {
        "medial_margin": (-36.0, 1.0, 4.0),
        "lateral_margin": (34.0, -2.0, 4.0),
        "anterior_margin": (-15.0, -21.0, 3.0),
        "posterior_margin": (-20.0, 25.0, 5.0),
    },
}

# per grade: radius of a ball of the lesion's volume (mm), intensity above marrow, width of its border (mm)
MARROW_GRADES = {
    1: ((3.5, 5.0), (35.0, 60.0), 4.0),
    2: ((6.0, 8.5), (65.0, 110.0), 7.0),
    3: ((9.5, 12.5), (105.0, 160.0), 9.0),
}
# per grade: height of the outgrowth, radius of its foot (mm)
OSTEOPHYTE_GRADES = {1: ((2.2, 3.0), (3.5, 4.5)), 2: ((3.5, 5.0), (5.0, 6.5)), 3: ((5.5, 7.5), (7.0, 9.0))}


@dataclass(frozen=True)
class LesionPlan:
    """One lesion to make. ``size_mm``: radius of an equal ball (marrow lesion) or height (osteophyte)."""

    kind: str
    bone: str
    site: str
    grade: int
    place_mm: tuple[float, float, float]
    size_mm: float
    foot_mm: float
    intensity: float
    edge_mm: float
    seed: int


def has_lesions(level: str, index: int) -> bool:
    """Which cases have lesions: none, every second one (mild), or all but every fifth (severe)."""
    return {"none": False, "mild": index % 2 == 1, "severe": index % 5 != 4}[level]


def plan_lesions(level: str, index: int, rng: np.random.Generator) -> list[LesionPlan]:
    """Draw the lesions of a case: osteophytes first, since they change the bone that marrow lesions lie in."""
    if not has_lesions(level, index):
        return []
    if level == "mild":
        osteophytes, marrow = [1] * int(rng.integers(0, 2)), [1]
    else:
        osteophytes = [int(grade) for grade in rng.integers(2, 4, rng.integers(1, 4))]
        marrow = [3] + [int(grade) for grade in rng.integers(2, 4, rng.integers(1, 4))]
    return _plan_osteophytes(osteophytes, rng) + _plan_marrow_lesions(marrow, level, rng)


def _draw_sites(
    sites: dict[str, dict[str, tuple[float, float, float]]], count: int, rng: np.random.Generator
) -> list[tuple[str, str, np.ndarray]]:
    named = [(bone, site, np.array(place)) for bone, places in sites.items() for site, place in places.items()]
    return [named[chosen] for chosen in rng.permutation(len(named))[:count]]


def _plan_osteophytes(grades: Sequence[int], rng: np.random.Generator) -> list[LesionPlan]:
    plans = []
    for grade, (bone, site, place) in zip(grades, _draw_sites(MARGIN_SITES, len(grades), rng), strict=True):
        heights, feet = OSTEOPHYTE_GRADES[grade]
        plans.append(
            LesionPlan(
                kind=OSTEOPHYTE,
                bone=bone,
                site=site,
                grade=grade,
                place_mm=tuple(float(part) for part in place + rng.normal(0.0, 1.5, 3)),  # type: ignore[arg-type]
                size_mm=float(rng.uniform(*heights)),
                foot_mm=float(rng.uniform(*feet)),
                intensity=float(TISSUE["marrow"] + rng.uniform(0.0, 30.0 * grade)),
                edge_mm=1.0,
                seed=int(rng.integers(2**31)),
            )
        )
    return plans


def _plan_marrow_lesions(grades: Sequence[int], level: str, rng: np.random.Generator) -> list[LesionPlan]:
    plans = []
    for number, (grade, (bone, site, place)) in enumerate(
        zip(grades, _draw_sites(MARROW_SITES, len(grades), rng), strict=True)
    ):
        radii, contrasts, edge_mm = MARROW_GRADES[grade]
        # a severe case has at least one lesion whose centre is the surface itself; the others lie in the marrow
        deepest = 1.0 if level == "severe" and number == 0 else 6.0
        inward = np.array([0.0, 0.0, -1.0 if bone == "femur" else 1.0])
        place = place + rng.normal(0.0, 2.0, 3) * (1.0, 1.0, 0.0) + rng.uniform(0.0, deepest) * inward
        plans.append(
            LesionPlan(
                kind=MARROW_LESION,
                bone=bone,
                site=site,
                grade=grade,
                place_mm=tuple(float(part) for part in place),  # type: ignore[arg-type]
                size_mm=float(rng.uniform(*radii)),
                foot_mm=0.0,
                intensity=float(TISSUE["marrow"] + rng.uniform(*contrasts)),
                edge_mm=edge_mm,
                seed=int(rng.integers(2**31)),
            )
        )
    return plans


def _nearest(candidates: np.ndarray, point: Sequence[np.ndarray], place_mm: Sequence[float]) -> tuple[int, ...]:
    """Index of the candidate voxel whose knee coordinates are nearest to ``place_mm``."""
    places = np.flatnonzero(candidates)
    distance = sum((axis.ravel()[places] - at) ** 2 for axis, at in zip(point, place_mm, strict=True))
    return tuple(int(index) for index in np.unravel_index(places[int(np.argmin(distance))], candidates.shape))


def grow_osteophyte(
    plan: LesionPlan, fields: KneeFields, point: Sequence[np.ndarray], spacing_mm: Sequence[float]
) -> np.ndarray:
    """Signed distance to the bone with one outgrowth more: the way the front covers from a patch of its surface.

    The front leaves the bone into soft tissue alone, never into cartilage or the other bone, so an osteophyte leans
    over the margin of the joint. Beyond a few mm from it the result is exactly the bone's own distance.
    """
    bone, other = (fields.femur, fields.tibia) if plan.bone == "femur" else (fields.tibia, fields.femur)
    inside = bone < 0
    site = _nearest(inside, point, plan.place_mm)
    around = np.zeros(bone.shape, dtype=bool)
    around[site] = True
    reach = [int(np.ceil((3.0 * plan.size_mm + plan.foot_mm + 4.0) / size)) for size in spacing_mm]
    box = bounding_box(around, reach)
    assert box is not None
    inside, local = inside[box], bone[box]
    centre = [axis[site] for axis in point]
    distance = np.sqrt(sum((axis[box] - at) ** 2 for axis, at in zip(point, centre, strict=True)))
    surface = inside & ~ndimage.binary_erosion(inside, border_value=1)
    starts = surface & (distance <= plan.foot_mm)
    starts[tuple(at - part.start for at, part in zip(site, box, strict=True))] = True
    free = (fields.femoral_cartilage[box] > 0.0) & (fields.tibial_cartilage[box] > 0.0) & (other[box] > 1.5)
    speed = random_speed(inside.shape, spacing_mm, np.random.default_rng(plan.seed), scale_mm=2.5, roughness=0.45)
    times = arrival_times((free & ~inside) | starts, np.argwhere(starts), spacing_mm, speed, plan.size_mm + 4.0)
    # the foot's rim is lower than its middle: a lip, not a wall
    height = plan.size_mm * (1.0 - 0.35 * np.clip(distance / (plan.foot_mm + plan.size_mm), 0.0, 1.0) ** 2)
    outgrowth = np.where(np.isfinite(times), times - height, np.inf).astype(np.float32)
    # near the outgrowth alone, and no fillet may bulge into cartilage or the other bone
    changed = (outgrowth < 4.0) & (free | inside)
    grown = bone.copy()
    grown[box] = np.where(changed, smooth_min(local, np.minimum(outgrowth, 4.0), 1.5), local)
    return grown


def add_marrow_lesion(
    plan: LesionPlan,
    image: np.ndarray,
    labels: np.ndarray,
    taken: np.ndarray,
    point: Sequence[np.ndarray],
    spacing_mm: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Grow one marrow lesion in its bone, outside ``taken``, and mix it into the noise-free image.

    Returns:
        (image, lesion): float32 and bool; the lesion is empty where the bone holds no place for it.
    """
    bone = labels == BONES[plan.bone]
    free = bone & ~taken
    if not free.any():
        return image, np.zeros(labels.shape, dtype=bool)
    rng = np.random.default_rng(plan.seed)
    volume_mm3 = 4.0 / 3.0 * np.pi * plan.size_mm**3
    try:
        membership, lesion = grow_region(
            free, _nearest(free, point, plan.place_mm), volume_mm3, spacing_mm, rng, edge_mm=plan.edge_mm, roughness=0.6
        )
    except InputError:
        return image, np.zeros(labels.shape, dtype=bool)
    membership = make_patchy(membership, spacing_mm, rng, 0.35)
    # texture 0.6: the bright water of a lesion hides part of the trabeculae, and of the cortex that it reaches
    return mix_toward(image, membership, bone, plan.intensity, spacing_mm, texture=0.6), lesion
