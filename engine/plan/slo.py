"""Service level objectives, parsed: `[target=a] ttft_ms.p99 <= 500ms` over the run, `request [99%]: ttft_ms <= 800 and ...`
over each request (goodput), and `ttft_ms.p99 +-5%`, how well a statistic must be known before a run may end.

Sans-IO: parsing, and evaluation on given values. Bounds come out in the metric's own unit (ms, USD, tok/s, a share of 1).
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ..errors import PlanError
from ..metrics import METRICS, PERCENTILES, RATES, STATISTICS

STATISTICS_SHOWN: Final = tuple(dict.fromkeys((*PERCENTILES, *STATISTICS)))
TOTALS: Final = ("error_rate", *RATES, "cost_total_usd")
PER_REQUEST: Final = tuple(name for name, metric in METRICS.items() if metric.per_request)
OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
MS: Final = {"ms": 1.0, "s": 1000.0, "us": 0.001}
SHARE: Final = {"%": 0.01}

_NUMBER: Final = r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)"
_comparison = re.compile(rf"\s*([A-Za-z_0-9.]+)\s*(<=|>=|<|>)\s*{_NUMBER}\s*(ms|us|s|%)?\s*").fullmatch
_filter = re.compile(r"\s*\[([^\]]*)\]\s*(.*)", re.DOTALL).fullmatch
_request = re.compile(rf"\s*request\s*(?:\[\s*{_NUMBER}\s*(%?)\s*\]\s*)?:(.*)", re.DOTALL).fullmatch
_until = re.compile(rf"\s*([A-Za-z_0-9.]+)\s*(?:\+-|\+/-|±)\s*{_NUMBER}\s*%\s*").fullmatch

Condition = tuple[str, str, float]  # (metric, comparison, bound) that one request must meet


class Objective(NamedTuple):
    """One comparison over the run: `metric` is a distribution with its statistic, or a total with none.

    `target` and `phase` name the only part of the run that it judges; None is all of it.
    """

    expression: str
    metric: str
    statistic: str | None
    comparison: str
    bound: float
    target: str | None = None
    phase: str | None = None

    def holds(self, value: float) -> bool:
        return OPERATORS[self.comparison](value, self.bound)


class RequestObjective(NamedTuple):
    """At least `share` of the requests (1 is all) of `target` and `phase` must meet all conditions."""

    expression: str
    conditions: tuple[Condition, ...]
    share: float = 1.0
    target: str | None = None
    phase: str | None = None


class Precision(NamedTuple):
    """`metric.statistic` is known well enough when half of its 95 % interval is within `share` of its value."""

    expression: str
    metric: str
    statistic: str
    share: float


def parse_slo(expression: str) -> Objective | RequestObjective:
    """Any expression of `slo`. Raises PlanError that names what is wrong and what is near."""
    target, phase, rest = _filtered(expression)
    found = _request(rest)
    if not found:
        return _objective(expression, rest, target, phase)
    share = float(found[1]) * (0.01 if found[2] else 1.0) if found[1] else 1.0
    if not 0 < share <= 1:
        raise PlanError(f"SLO {expression!r}: the share must be over 0 % and at most 100 %, such as request [99%]:")
    parts = re.split(r"\s+and\s+", found[3].strip())
    return RequestObjective(expression, tuple(_condition(expression, part) for part in parts), share, target, phase)


def objective_of(expression: str) -> Objective:
    """An expression over the run. Raises PlanError that names what is wrong and what is near."""
    target, phase, rest = _filtered(expression)
    return _objective(expression, rest, target, phase)


def precision_of(expression: str) -> Precision:
    """An expression of `until`. Raises PlanError that names what is wrong and what is near."""
    found = _until(expression)
    share = float(found[2]) / 100 if found else 0
    if not found or not 0 < share <= 1:
        raise PlanError(f"until {expression!r} is not METRIC.STATISTIC +-SHARE%, such as 'ttft_ms.p99 +-5%'")
    metric, statistic = _distribution(expression, found[1], "until")
    return Precision(expression, metric, statistic, share)


def is_per_request(expression: str) -> bool:
    return bool(_request(_filtered(expression)[2]))


def check_slo(expression: str, targets: Sequence[str] | None = None, phases: Sequence[str] | None = None) -> None:
    """Raises PlanError if the expression is none, or names a target or phase that is none of those given."""
    parsed = parse_slo(expression)
    for what, name, known in (("target", parsed.target, targets), ("phase", parsed.phase, phases)):
        if name is not None and known is not None and name not in known:
            raise PlanError(f"SLO {expression!r}: the plan has no {what} {name!r}; {_near(name, known)}")


def request_objectives(expressions: Sequence[str]) -> list[RequestObjective]:
    """The `request` lines of a plan in their order: goodput counts requests that meet all that judge them."""
    return [parsed for each in expressions if isinstance(parsed := parse_slo(each), RequestObjective)]


def _filtered(expression: str) -> tuple[str | None, str | None, str]:
    """(target, phase, the rest) of `[target=NAME phase=NAME] ...`."""
    found = _filter(expression)
    if not found:
        return None, None, expression
    names: dict[str, str] = {}
    for part in found[1].split():
        key, _, name = part.partition("=")
        if key not in ("target", "phase") or not name or key in names:
            raise PlanError(f"SLO {expression!r}: [{found[1]}] is not [target=NAME phase=NAME], one of them or both")
        names[key] = name
    return names.get("target"), names.get("phase"), found[2]


def _objective(expression: str, rest: str, target: str | None, phase: str | None) -> Objective:
    found = _comparison(rest)
    if not found:
        raise PlanError(f"SLO {expression!r} is not METRIC <= NUMBER, such as 'ttft_ms.p99 <= 500'")
    metric, _, statistic = found[1].partition(".")
    if metric in TOTALS and not statistic:
        return Objective(expression, metric, None, found[2], _bound(expression, metric, found), target, phase)
    metric, statistic = _distribution(expression, found[1], "SLO")
    return Objective(expression, metric, statistic, found[2], _bound(expression, metric, found), target, phase)


def _condition(expression: str, part: str) -> Condition:
    found = _comparison(part)
    if not found:
        raise PlanError(f"SLO {expression!r}: {part!r} is not METRIC <= NUMBER, such as 'ttft_ms <= 800'")
    if found[1] == "itl_ms":
        raise PlanError(f"SLO {expression!r}: one request has many itl_ms; bound the longest, itl_max_ms")
    _known("SLO", expression, found[1], PER_REQUEST)
    return found[1], found[2], _bound(expression, found[1], found)


def _bound(expression: str, metric: str, found: re.Match[str]) -> float:
    """The bound in the metric's unit: `1.5s` of a metric in ms is 1500, `1%` of a share is 0.01."""
    number, unit = float(found[3]), found[4]
    if not unit:
        return number
    units = MS if metric.endswith("_ms") else SHARE if metric.endswith(("_share", "_rate")) else {}
    if unit not in units:
        known = f"units: {', '.join(units)}" if units else "it has no unit here"
        raise PlanError(f"SLO {expression!r}: {unit!r} is no unit of {metric}; {known}")
    return number / 100 if unit == "%" else number * units[unit]


def _distribution(expression: str, name: str, what: str) -> tuple[str, str]:
    """(metric, statistic) of `ttft_ms.p99`."""
    metric, _, statistic = name.partition(".")
    _known(what, expression, metric, (*METRICS, *TOTALS))
    if metric in TOTALS:
        if statistic:
            raise PlanError(f"{what} {expression!r}: {metric} is one number, write it without .{statistic}")
        raise PlanError(f"{what} {expression!r}: {metric} is one number, a distribution is wanted: ttft_ms.p99")
    statistic = statistic.replace("p99.9", "p99_9")
    if not statistic:
        raise PlanError(f"{what} {expression!r}: {metric} is a distribution, say which: {metric}.p99")
    _known(what, expression, statistic, STATISTICS_SHOWN)
    return metric, statistic


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def _known(what: str, expression: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise PlanError(f"{what} {expression!r}: there is no {name!r}; {_near(name, names)}")
