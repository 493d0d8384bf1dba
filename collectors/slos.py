"""Judges a report by the plan's service level objectives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..engine.plan.plan import Plan
from ..engine.plan.slo import Objective, RequestObjective, parse_slo, request_objectives
from .goodput import Line
from .snapshot import Report, Slice, Slo
from .statistics import share


class Evidence(NamedTuple):
    """What objectives are judged by. `lines`: of each `request` line, by its number among them, the requests that met it
    and those that were sent; `part` is the slice of one target in one phase, which a report has not."""

    report: Report
    lines: Mapping[int, tuple[int, int]]
    part: Callable[[str, str], Slice | None]


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


def judge_slos(expressions: Sequence[str]) -> Callable[[Evidence], list[Slo]]:
    """A function from what was measured to the state of each expression, in the plan's order.

    UNDECIDED where there is no value for it. A `request` line passes when at least its share of the requests that it
    judges met its conditions; its value is the share that did.
    """
    objectives = [parse_slo(expression) for expression in expressions]

    def judge(evidence: Evidence) -> list[Slo]:
        made: list[Slo] = []
        lines = 0
        for objective in objectives:
            if isinstance(objective, RequestObjective):
                value = share(*evidence.lines.get(lines, (0, 0)))
                held = value is not None and value >= objective.share
                lines += 1
            else:
                part = _part(objective, evidence)
                value = _value(objective, part) if part else None
                held = value is not None and objective.holds(value)
            made.append(Slo(objective.expression, value, "UNDECIDED" if value is None else "PASS" if held else "FAIL"))
        return made

    return judge


def _part(objective: Objective, evidence: Evidence) -> Report | Slice | None:
    """What the expression judges: the run, a target, a phase, or a target in a phase."""
    report, target, phase = evidence.report, objective.target, objective.phase
    if phase is not None and target is not None:
        return evidence.part(target, phase)
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
