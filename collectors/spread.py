"""How much repeated runs of one system differ: each statistic over the runs, with its interval. No clock, no file.

The run is the unit, on the log scale, as in collectors.compare: the mean is geometric, its interval Student's t of the
logarithms. What the runs differ by is what any comparison of such runs has to overcome.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from .compare import LEVEL, POWER, Question, centre, t_quantile
from .snapshot import SCHEMA, Reason

_LARGE: Final = 50.0  # the largest logarithm of a ratio that says anything


class Spread(msgspec.Struct, kw_only=True):
    """One statistic over the runs, in the metric's unit; `values` are those of the runs in their order.

    `stddev_share` is the standard deviation between runs over the mean. `finds` is the smallest relative increase that a
    comparison of as many such runs on each side finds with probability 0.9.
    """

    target: str
    metric: str
    statistic: str
    values: list[float]
    mean: float | None = None
    ci95: tuple[float | None, float | None] = (None, None)
    stddev_share: float | None = None
    finds: float | None = None


class Repeated(msgspec.Struct, kw_only=True):
    """What `lens run --repeat N --json` prints: `runs` names the runs that were used."""

    schema: int = SCHEMA
    runs: list[str]
    statistics: list[Spread]
    notes: list[Reason]


def spread_of(question: Question, comparisons: int) -> Spread:
    """The statistic of `question.base` over its runs. `comparisons` is how many a comparison would make at once."""
    values = [each.value for each in question.base]
    found = Spread(
        target=question.target,
        metric=question.metric,
        statistic=question.statistic,
        values=values,
        mean=centre(question.base),
    )
    n = len(values)
    if n < 2 or min(values) <= 0:
        return found
    logs = np.log(values)
    centre_log, variance = float(logs.mean()), float(logs.var(ddof=1))
    reach = t_quantile(1 - LEVEL / 2, n - 1) * math.sqrt(variance / n)
    if reach < _LARGE:
        found.ci95 = (math.exp(centre_log - reach), math.exp(centre_log + reach))
    found.stddev_share = math.sqrt(math.expm1(variance)) if variance < _LARGE else None
    freedom = 2 * n - 2
    level = 1 - LEVEL / max(comparisons, 1) / 2
    least = (t_quantile(level, freedom) + t_quantile(POWER, freedom)) * math.sqrt(2 * variance / n)
    found.finds = math.expm1(least) if least < _LARGE else None
    return found


def repeated(questions: Sequence[Question], *, runs: Sequence[str], notes: Sequence[Reason] = ()) -> Repeated:
    """All statistics over the runs that `runs` names."""
    unit = f"mean and interval over {len(runs)} runs: the geometric mean, Student's t interval of the logarithms"
    if len(runs) < 2:
        unit = "one run: how runs of this system differ is unknown, two or more show it"
    return Repeated(
        runs=list(runs),
        statistics=[spread_of(question, len(questions)) for question in questions],
        notes=[Reason("replication", unit), *notes],
    )
