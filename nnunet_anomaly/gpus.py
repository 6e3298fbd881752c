"""What the processes of a training on several GPUs know together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import distributed


def mean_over_gpus(values: Sequence[float]) -> float:
    """Mean of the values of every GPU; one that is not finite shows in it. Of no values it is NaN.

    All processes are to call it, each with its own values, of which one may have more than another.
    """
    gathered: list[Any] = [list(values)]
    if distributed.is_available() and distributed.is_initialized():
        gathered = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, list(values))
    together = [value for part in gathered for value in part]
    return float(np.mean(together)) if together else float("nan")
