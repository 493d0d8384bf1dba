"""Judges a report by the plan's service level objectives."""

from __future__ import annotations

from collections.abc import Callable

from ..engine.plan.slo import Objective, RequestObjective, parse_slo
from .snapshot import Report, Slice, Slo


def judge_slos(expressions: tuple[str, ...]) -> Callable[[Report], list[Slo]]:
    """A function from a report to the state of each expression, in the plan's order.

    UNDECIDED where the report has no value for it. A `request:` expression passes when at least its share of the
    requests met it; its value is the share that did, of all per-request expressions together (goodput).
    """
    objectives = [parse_slo(expression) for expression in expressions]

    def judge(report: Report) -> list[Slo]:
        return [_state(objective, report) for objective in objectives]

    return judge


def _state(objective: Objective | RequestObjective, report: Report) -> Slo:
    part = _part(objective, report)
    if isinstance(objective, RequestObjective):
        value = part.throughput.goodput_share if part else None
        held = value is not None and value >= objective.share
    else:
        value = _value(objective, part) if part else None
        held = value is not None and objective.holds(value)
    return Slo(objective.expression, value, "UNDECIDED" if value is None else "PASS" if held else "FAIL")


def _part(objective: Objective | RequestObjective, report: Report) -> Report | Slice | None:
    """What the expression judges: the run, a target or a phase. A report has no slice of a phase's target."""
    target, phase = objective.target, objective.phase
    if phase is not None and target is not None and len(report.targets) > 1:
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
