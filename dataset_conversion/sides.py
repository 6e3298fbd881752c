"""Left and right in patient coordinates: where structures lie, beside what their names say.

Patient coordinates are DICOM's and ITK's: x grows towards the patient's left. A file's header tells them, and a name or
the number of a label does not: among the public NIfTI copies of one release all have the documented sides reversed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_anomaly.errors import LabelError
from nnunet_anomaly.twins import LEFT, RIGHT

# Two structures of a pair, or one and the midline, that lie nearer than this tell no side. Femora lie 180 mm apart, the
# middles of hip bones 120 mm.
LEAST_APART_MM = 20.0


@dataclass(frozen=True)
class Place:
    """Where a structure lies.

    Attributes:
        named: what the file calls it.
        structure: what it is, without a side.
        side: by its name; ``None`` where the name tells none.
        x_mm: of its centroid, in patient coordinates.
        paired: whether there is one on either side of the body.
    """

    named: str
    structure: str
    side: str | None
    x_mm: float
    paired: bool


def midline_mm(places: Sequence[Place]) -> float:
    """x of the body's midline: the median of the middles of complete pairs and of the structures that have no twin.

    Raises:
        LabelError: there is no complete pair and no structure without twin.
    """
    middles = [place.x_mm for place in places if not place.paired]
    middles += [(one.x_mm + other.x_mm) / 2 for one, other in _pairs(places)]
    if not middles:
        raise LabelError("nothing tells where the body's midline is: no pair is complete, and the sacrum is not there")
    return float(np.median(middles))


def _pairs(places: Sequence[Place]) -> list[tuple[Place, Place]]:
    of: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        if place.paired:
            of[place.structure].append(place)
    return [(pair[0], pair[1]) for pair in of.values() if len(pair) == 2]


def sides_by_geometry(places: Sequence[Place]) -> list[str | None]:
    """Side on which every structure lies; ``None`` for those that have no twin.

    Args:
        places: of one patient; at most two of a paired structure. May be empty.

    Raises:
        LabelError: a structure lies on the midline, or both of a pair lie on one side of it: the case has to be looked
            at.
    """
    if not any(place.paired for place in places):
        return [None] * len(places)
    middle_mm = midline_mm(places)
    for one, other in _pairs(places):
        if (one.x_mm - middle_mm) * (other.x_mm - middle_mm) >= 0 or abs(one.x_mm - other.x_mm) < LEAST_APART_MM:
            raise LabelError(
                f"'{one.named}' and '{other.named}' do not lie on either side of the midline: {_table(places)}"
            )
    unclear = [place.named for place in places if place.paired and abs(place.x_mm - middle_mm) < LEAST_APART_MM / 2]
    if unclear:
        raise LabelError(f"'{unclear[0]}' lies on the body's midline: {_table(places)}")
    return [(LEFT if place.x_mm > middle_mm else RIGHT) if place.paired else None for place in places]


def disagreements(places: Sequence[Place]) -> str | None:
    """What to say of structures that lie on the other side than their names say; ``None`` if there are none."""
    wrong = [
        place.named
        for place, lies in zip(places, sides_by_geometry(places), strict=True)
        if place.side is not None and place.side != lies
    ]
    if not wrong:
        return None
    return f"{', '.join(map(repr, wrong))} lie on the other side than their names say: {_table(places)}"


def _table(places: Sequence[Place]) -> str:
    """Where all structures are, in mm from the midline."""
    middle_mm = midline_mm(places)
    return "; ".join(
        f"'{place.named}' {abs(place.x_mm - middle_mm):.1f} mm to the {LEFT if place.x_mm > middle_mm else RIGHT}"
        for place in places
    )
