"""Judges a report by the plan's service level objectives.

A mean, a percentile, an error rate and a share of requests are judged by their 95 % interval: PASS only if all of it
meets the objective, FAIL only if none of it does, else UNDECIDED with what is still needed. Maxima, counts, rates, costs
and bounds that no sample can prove (an error rate of 0, 100 % of the requests) are facts of the run, judged as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..engine.metrics import METRICS
from ..engine.plan.plan import Plan
from ..engine.plan.slo import OPERATORS, Objective, RequestObjective, parse_slo, request_objectives
from .confidence import BEYOND, BEYOND_CENTRE, COUNT_MIN, INTERVALS, QUANTILES, Interval
from .evidence import Evidence
from .goodput import Line
from .snapshot import Report, Slice, Slo
from .statistics import share, slice_of
from .until import judge

Lines = Mapping[int, tuple[int, int]]  # of each `request` line, by its number, the requests that met it and all sent
Slos = Callable[[Report, Evidence | None, Lines], list[Slo]]


def lines_of(plan: Plan) -> list[Line]:
    """The `request` lines of a plan, for those who count."""
    targets = [target.name for target in plan.targets]
    phases = [phase.name for phase in plan.phases]
    return [
        Line(
            objective.conditions,
            None if objective.target is None else targets.index(objective.target),
            None if objective.phase is None else phases.index(objective.phase),
        )
        for objective in request_objectives(plan.slo)
    ]


def judge_slos(expressions: Sequence[str]) -> Slos:
    """A function from a report, and the evidence for its intervals, to the state of each expression, in their order.

    UNDECIDED where there is no value for it, and without evidence where it needs an interval. The value of a `request`
    line is the share of the requests it judges that met its conditions, by `lines` where there is no evidence.
    """
    objectives = [parse_slo(expression) for expression in expressions]

    def judge_report(report: Report, evidence: Evidence | None, lines: Lines) -> list[Slo]:
        made, line = list[Slo](), 0
        for objective in objectives:
            if isinstance(objective, RequestObjective):
                made.append(_line_state(objective, line, evidence, lines))
                line += 1
            else:
                made.append(_state(objective, report, evidence))
        return made

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


def _line_state(objective: RequestObjective, line: int, evidence: Evidence | None, lines: Lines) -> Slo:
    part = evidence.part(objective.target, objective.phase) if evidence else None
    met, sent = (part.series.lines if part else lines).get(line, (0, 0))
    value = share(met, sent)
    if value is None or objective.share == 1:
        return judged_as_fact(objective.expression, value, ">=", objective.share)
    return judged(
        objective.expression,
        value,
        ">=",
        objective.share,
        interval=part.view.line(line) if part else None,
        requests=sent,
        duration_s=part.seconds if part else 0.0,
    )


def _state(objective: Objective, report: Report, evidence: Evidence | None) -> Slo:
    found = _part(objective, report, evidence)
    value = _value(objective, found) if found else None
    is_share = objective.metric in ("error_rate", "goodput_share")
    fact = objective.bound in (0.0, 1.0) if is_share else objective.statistic not in INTERVALS
    if fact or found is None or not _values(objective, found):
        return judged_as_fact(objective.expression, value, objective.comparison, objective.bound)
    part = evidence.part(objective.target, objective.phase) if evidence else None
    interval = None
    if part is not None and objective.statistic:
        interval = part.interval(objective.metric, objective.statistic)
    elif part is not None:
        interval = part.view.error_rate() if objective.metric == "error_rate" else part.view.goodput()
    return judged(
        objective.expression,
        value,
        objective.comparison,
        objective.bound,
        interval=interval,
        requests=_values(objective, found),
        duration_s=part.seconds if part else 0.0,
        least=_least(objective),
    )


def _part(objective: Objective, report: Report, evidence: Evidence | None) -> Report | Slice | None:
    """What the expression judges: the run, a target, a phase, or a target in a phase, which a report has not, as that of
    a part of a history has no phases."""
    target, phase = objective.target, objective.phase
    of_evidence = phase is not None and (target is not None or not report.run.phases)
    if evidence is not None and (evidence.steady or of_evidence):
        part = evidence.part(target, phase)
        conditions = report.throughput.goodput_per_s is not None
        date = report.cost.price_table_date
        return Slice(
            **slice_of(part.series, part.seconds, conditions=conditions, date=date, known=part.view.confidence)
        )
    if phase is not None and target is not None:
        return None
    if phase is not None:
        return next((part for part in report.run.phases if part.name == phase), None)
    if target is not None:
        return next((part for part in report.targets if part.name == target), None)
    return report


def _value(objective: Objective, part: Report | Slice) -> float | None:
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


def _values(objective: Objective, part: Report | Slice) -> int:
    """How many requests the value rests on."""
    if objective.metric == "itl_ms":
        return part.requests.ok
    if objective.metric in METRICS:
        return part.metrics[objective.metric].count if objective.metric in part.metrics else 0
    return part.requests.sent


def _least(objective: Objective) -> int:
    """How many independent requests an interval with an end on both sides needs."""
    if objective.statistic is None:
        return COUNT_MIN
    q = QUANTILES.get(objective.statistic, 0.5)
    return math.ceil((BEYOND if q > 0.5 else BEYOND_CENTRE) / (1 - q))
