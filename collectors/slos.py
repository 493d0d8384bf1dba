"""Judges a report by the plan's service level objectives.

A mean, a percentile, an error rate and a share of requests are judged by their 95 % interval: PASS only if all of it
meets the objective, FAIL only if none of it does, else UNDECIDED with what is still needed. Maxima, counts, rates, costs
and bounds that no sample can prove (an error rate of 0, 100 % of the requests) are facts of the run, judged as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..engine.metrics import METRICS
from ..engine.plan.slo import OPERATORS, Objective, RequestObjective, parse_slo
from .confidence import BEYOND, BEYOND_CENTRE, COUNT_MIN, INTERVALS, QUANTILES, Interval
from .evidence import Evidence
from .snapshot import Report, Slice, Slo
from .statistics import slice_of
from .until import judge

Slos = Callable[[Report, Evidence | None], list[Slo]]


def judge_slos(expressions: tuple[str, ...]) -> Slos:
    """A function from a report, and the evidence for its intervals, to the state of each expression, in their order.

    UNDECIDED where the report has no value for it, and without evidence where it needs an interval. The value of a
    `request:` expression is the share that met all per-request expressions together (goodput).
    """
    objectives = [parse_slo(expression) for expression in expressions]

    def judge_report(report: Report, evidence: Evidence | None) -> list[Slo]:
        return [_state(objective, report, evidence) for objective in objectives]

    return judge_report


def judged(
    expression: str,
    value: float | None,
    operator: str,
    bound: float,
    *,
    interval: Interval | None,
    requests: int,
    duration_s: float,
    least: int = COUNT_MIN,
) -> Slo:
    """The state of one objective by its interval; without one it is UNDECIDED and needs `least` requests in all."""
    if interval is None:
        more = max(1, least - requests)
        rate = requests / duration_s if duration_s else 0.0
        return Slo(expression, value, "UNDECIDED", (None, None), more, more / rate if rate else None)
    found = judge(interval, operator, bound, requests=requests, duration_s=duration_s)
    bounds = (interval.low, interval.high)
    if found.state != "UNDECIDED":
        return Slo(expression, value, found.state, bounds)
    return Slo(expression, value, found.state, bounds, found.needs.requests, found.needs.seconds)


def judged_as_fact(expression: str, value: float | None, operator: str, bound: float) -> Slo:
    """The state of an objective on what is not a sample of anything."""
    state = "UNDECIDED" if value is None else "PASS" if OPERATORS[operator](value, bound) else "FAIL"
    return Slo(expression, value, state)


def _state(objective: Objective | RequestObjective, report: Report, evidence: Evidence | None) -> Slo:
    part = _part(objective, report, evidence)
    operator, bound = (
        (">=", objective.share) if isinstance(objective, RequestObjective) else (objective.comparison, objective.bound)
    )
    value = _value(objective, part) if part else None
    fact = not _has_interval(objective) or (_is_share(objective) and bound in (0.0, 1.0))
    if fact or part is None or (value is None and not _requests(objective, part)):
        return judged_as_fact(objective.expression, value, operator, bound)
    source = evidence.part(objective.target, objective.phase) if evidence else None
    interval = None
    if source is not None and isinstance(objective, Objective) and objective.statistic:
        interval = source.interval(objective.metric, objective.statistic)
    elif source is not None:
        errors = isinstance(objective, Objective) and objective.metric == "error_rate"
        interval = source.view.error_rate() if errors else source.view.goodput()
    return judged(
        objective.expression,
        value,
        operator,
        bound,
        interval=interval,
        requests=_requests(objective, part),
        duration_s=source.seconds if source else 0.0,
        least=_least(objective),
    )


def _part(objective: Objective | RequestObjective, report: Report, evidence: Evidence | None) -> Report | Slice | None:
    """What the expression judges: the run, a target or a phase. A report has no slice of a phase's target."""
    target, phase = objective.target, objective.phase
    if evidence is not None and (evidence.steady or (phase is not None and target is not None)):
        found = evidence.part(target, phase)
        conditions = report.throughput.goodput_per_s is not None
        date = report.cost.price_table_date
        return Slice(**slice_of(found.series, found.seconds, conditions=conditions, date=date))
    if phase is not None and target is not None and len(report.targets) > 1:
        return None
    if phase is not None:
        return next((part for part in report.run.phases if part.name == phase), None)
    if target is not None:
        return next((part for part in report.targets if part.name == target), None)
    return report


def _value(objective: Objective | RequestObjective, part: Report | Slice) -> float | None:
    if isinstance(objective, RequestObjective):
        return part.throughput.goodput_share
    if objective.statistic is not None:
        distribution = part.metrics.get(objective.metric)
        return getattr(distribution, objective.statistic) if distribution else None
    if objective.metric == "error_rate":
        failed = sum(part.requests.failed.values())
        ended = part.requests.ok + failed
        return failed / ended if ended else None
    if objective.metric == "cost_total_usd":
        return part.cost.usd
    value: float | None = getattr(part.throughput, objective.metric)
    return value


def _is_share(objective: Objective | RequestObjective) -> bool:
    return isinstance(objective, RequestObjective) or objective.metric in ("error_rate", "goodput_share")


def _has_interval(objective: Objective | RequestObjective) -> bool:
    return _is_share(objective) or (isinstance(objective, Objective) and objective.statistic in INTERVALS)


def _requests(objective: Objective | RequestObjective, part: Report | Slice) -> int:
    """How many requests the value rests on."""
    if isinstance(objective, Objective) and objective.metric in METRICS and objective.metric != "itl_ms":
        return part.metrics[objective.metric].count if objective.metric in part.metrics else 0
    return part.requests.ok if isinstance(objective, Objective) and objective.statistic else part.requests.sent


def _least(objective: Objective | RequestObjective) -> int:
    """How many independent requests an interval with an end on both sides needs."""
    if not isinstance(objective, Objective) or objective.statistic is None:
        return COUNT_MIN
    q = QUANTILES.get(objective.statistic, 0.5)
    return math.ceil((BEYOND if q > 0.5 else BEYOND_CENTRE) / (1 - q))
