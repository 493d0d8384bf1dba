"""Which requests meet the conditions of a `request` objective. Pure: records and columns in, flags out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..engine.metrics import METRICS, SCALES
from ..engine.plan.slo import Condition
from .measures import Column, Records, in_bursts, output_tokens

Key = tuple[int, int]  # phase, target

_COMPARE: Final[dict[str, Callable[[Any, float], Any]]] = {
    "<=": np.less_equal,
    "<": np.less,
    ">=": np.greater_equal,
    ">": np.greater,
}


class Line(NamedTuple):
    """A `request` objective as it is counted: its conditions, and the target and phase that it judges; None is all."""

    conditions: Sequence[Condition]
    target: int | None = None
    phase: int | None = None

    def judges(self, key: Key) -> bool:
        return self.phase in (None, key[0]) and self.target in (None, key[1])


def meets(records: Records, columns: Mapping[str, Column], conditions: Sequence[Condition]) -> npt.NDArray[np.bool_]:
    """Which records meet all conditions. One without the metric does not, but for gaps that there cannot be: of a single
    token, or of tokens that came together or in bursts."""
    good = np.ones(len(records), np.bool_)
    together = (records["first_token_ns"] > 0) & (records["last_token_ns"] == records["first_token_ns"])
    gapless = together | in_bursts(records) | (output_tokens(records) <= 1)
    for metric, operator, bound in conditions:
        has, value = columns[metric] if metric in columns else (np.zeros(len(records), np.bool_), records["request"])
        met = has & _COMPARE[operator](value, bound * SCALES[metric])
        good &= met | (gapless & ~has) if METRICS[metric].needs_gap else met
    return good
