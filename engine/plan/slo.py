"""Service level objectives: expressions like `ttft_ms.p99 <= 500` over the run, `request: ttft_ms <= 800 and ...` over
each request (goodput). Sans-IO: parsing, and evaluation on given values."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from ..errors import PlanError
from ..metrics import METRICS, PERCENTILES, RATES, STATISTICS

TOTALS: Final = ("error_rate", *RATES, "cost_total_usd")
PER_REQUEST: Final = tuple(name for name, metric in METRICS.items() if metric.per_request)
OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}

_comparison = re.compile(r"\s*([A-Za-z_0-9.]+)\s*(<=|>=|<|>)\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*").fullmatch


class Objective(NamedTuple):
    """One comparison over the run: `metric` is a distribution with its statistic, or a total with none."""

    expression: str
    metric: str
    statistic: str | None
    comparison: str
    bound: float

    def holds(self, value: float) -> bool:
        return OPERATORS[self.comparison](value, self.bound)


Condition = tuple[str, str, float]  # (metric, comparison, bound) that one request must meet


def objective_of(expression: str) -> Objective:
    """An expression over the run. Raises PlanError that names what is wrong and what is near."""
    found = _comparison(expression)
    if not found:
        raise PlanError(f"SLO {expression!r} is not METRIC <= NUMBER, such as 'ttft_ms.p99 <= 500'")
    name, comparison, bound = found[1], found[2], float(found[3])
    metric, _, statistic = name.partition(".")
    if metric in TOTALS and not statistic:
        return Objective(expression, metric, None, comparison, bound)
    _known(expression, metric, (*METRICS, *TOTALS))
    if metric in TOTALS:
        raise PlanError(f"SLO {expression!r}: {metric} is one number, write it without .{statistic}")
    statistic = statistic.replace("p99.9", "p99_9")
    if not statistic:
        raise PlanError(f"SLO {expression!r}: {metric} is a distribution, say which: {metric}.p99")
    _known(expression, statistic, tuple(dict.fromkeys((*PERCENTILES, *STATISTICS))))
    return Objective(expression, metric, statistic, comparison, bound)


def conditions_of(expression: str) -> list[Condition]:
    """The conditions of a `request:` expression, all of which a request must meet. Raises PlanError."""
    conditions: list[Condition] = []
    for part in re.split(r"\s+and\s+", expression.partition(":")[2].strip()):
        found = _comparison(part)
        if not found:
            raise PlanError(f"SLO {expression!r}: {part!r} is not METRIC <= NUMBER, such as 'ttft_ms <= 800'")
        if found[1] == "itl_ms":
            raise PlanError(f"SLO {expression!r}: one request has many itl_ms; bound the longest, itl_max_ms")
        _known(expression, found[1], PER_REQUEST)
        conditions.append((found[1], found[2], float(found[3])))
    return conditions


def is_per_request(expression: str) -> bool:
    return expression.strip().startswith("request:")


def check_slo(expression: str) -> None:
    """Raises PlanError if the expression is none."""
    if is_per_request(expression):
        conditions_of(expression)
    else:
        objective_of(expression)


def request_conditions(expressions: tuple[str, ...]) -> list[Condition]:
    """All per-request conditions of a plan together: goodput counts requests that meet every one."""
    return [part for each in expressions if is_per_request(each) for part in conditions_of(each)]


def _known(expression: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        raise PlanError(f"SLO {expression!r}: there is no {name!r}; {hint}")
