"""Judges a report by the plan's service level objectives."""

from __future__ import annotations

from collections.abc import Callable

from ..engine.plan.slo import Objective, is_per_request, objective_of
from .snapshot import Report, Slo


def judge_slos(expressions: tuple[str, ...]) -> Callable[[Report], list[Slo]]:
    """A function from a report to the state of each expression, in the plan's order.

    UNDECIDED where the report has no value for it. A `request:` expression passes when every request met it; its value
    is the share that did, of all per-request expressions together (goodput).
    """
    objectives = [None if is_per_request(expression) else objective_of(expression) for expression in expressions]

    def judge(report: Report) -> list[Slo]:
        return [_state(expression, goal, report) for expression, goal in zip(expressions, objectives, strict=True)]

    return judge


def _state(expression: str, objective: Objective | None, report: Report) -> Slo:
    if objective is None:
        share = report.throughput.goodput_share
        return Slo(expression, share, "UNDECIDED" if share is None else "PASS" if share >= 1 else "FAIL")
    value = _value(objective, report)
    return Slo(expression, value, "UNDECIDED" if value is None else "PASS" if objective.holds(value) else "FAIL")


def _value(objective: Objective, report: Report) -> float | None:
    if objective.statistic is not None:
        distribution = report.metrics.get(objective.metric)
        return getattr(distribution, objective.statistic) if distribution else None
    if objective.metric == "error_rate":
        ended = report.requests.ok + sum(report.requests.failed.values())
        return sum(report.requests.failed.values()) / ended if ended else None
    if objective.metric == "cost_total_usd":
        return report.cost.usd
    value: float | None = getattr(report.throughput, objective.metric)
    return value
