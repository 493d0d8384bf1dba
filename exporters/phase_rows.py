"""Phases and steps as the rows of a table: one spelling for console and HTML report. Pure, no layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ..collectors.snapshot import Distribution, Report
from . import figures
from .headline import Scale, error_rate, label, scale_of
from .plan_words import short_loads
from .steps import STEPPED, Step

LEVELS: Final = ("p50", "p99")


class Row(NamedTuple):
    """`levels` by head: `TTFT ms p50`, in the unit that the head says."""

    name: str
    load: str
    span: str
    measured: bool
    requests_per_s: float | None
    output_tokens_per_s: float | None
    failed: str
    levels: dict[str, str]


def phase_rows(report: Report, plan: dict[str, Any]) -> list[Row]:
    phases = report.run.phases
    loads = short_loads(report, plan)
    columns = []
    for metric in STEPPED:
        each = [phase.metrics.get(metric, Distribution()) for phase in phases]
        if any(d.count for d in each):
            columns.append((metric, scale_of(metric, each)))
    return [
        Row(
            name=phase.name,
            load=loads[i],
            span=f"{figures.clock(phase.start_s)} to {figures.clock(phase.start_s + phase.duration_s)}",
            measured=phase.measured,
            requests_per_s=phase.throughput.requests_per_s,
            output_tokens_per_s=phase.throughput.output_tokens_per_s,
            failed=error_rate(phase.requests),
            levels={
                f"{label(metric, scale)} {level}": scale.value(
                    getattr(phase.metrics.get(metric, Distribution()), level), metric
                )
                for metric, scale in columns
                for level in LEVELS
            },
        )
        for i, phase in enumerate(phases)
    ]


def step_rows(steps: Sequence[Step]) -> list[Row]:
    scales: dict[str, Scale] = {}
    for metric in STEPPED:
        known = [Distribution(p50=step.levels[metric][0]) for step in steps if metric in step.levels]
        if known:
            scales[metric] = scale_of(metric, known)
    return [_step(step, scales) for step in steps]


def _step(step: Step, scales: dict[str, Scale]) -> Row:
    ended = step.ok + step.failed
    levels = {}
    for metric, scale in scales.items():
        found = step.levels.get(metric)
        for i, level in enumerate(LEVELS):
            levels[f"{label(metric, scale)} {level}"] = scale.value(found[i] if found else None, metric)
    return Row(
        name=step.phase,
        load=step.load,
        span=f"{figures.clock(step.start_s)} to {figures.clock(step.end_s)}",
        measured=True,
        requests_per_s=step.ok / step.seconds if step.seconds else None,
        output_tokens_per_s=step.output_tokens / step.seconds if step.seconds else None,
        failed=figures.share(step.failed / ended) if ended else figures.MISSING,
        levels=levels,
    )
