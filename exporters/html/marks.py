"""What happened when, for the time axes of a report: phases, restarts and other incidents, and the bounds of objectives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from ...collectors.snapshot import Client, Report
from ...engine.errors import PlanError
from ...engine.metrics import CLIENT
from ...engine.plan.slo import Objective, parse_slo
from ...engine.plan.units import duration_ns
from ..plan_words import phases_of

MARKS_MAX: Final = 60  # of a run
INCIDENTS: Final = ("restarts", "collector_restarts", "exporter_restarts", "clock_steps", "ring_drops")


class Mark(msgspec.Struct):
    """`kind`: phase | incident."""

    at_s: float
    label: str
    kind: str


class Bound(msgspec.Struct):
    """An objective on a percentile of a metric that has a chart."""

    metric: str
    label: str
    value: float
    state: str


class Incidents:
    """The increases of the client's counters of INCIDENTS from tick to tick, the first MARKS_MAX of them."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self._before: dict[str, int] = dict.fromkeys(INCIDENTS, 0)

    def add(self, client: Client, at_s: float) -> None:
        for name in INCIDENTS:
            now = getattr(client, name)
            more = now - self._before[name]
            self._before[name] = now
            if more > 0 and len(self.marks) < MARKS_MAX:
                self.marks.append(Mark(round(at_s, 2), f"{more:,} {CLIENT[name].label}", "incident"))


def phase_marks(report: Report) -> list[Mark]:
    return [
        Mark(round(phase.start_s, 2), phase.name + ("" if phase.measured else " (not measured)"), "phase")
        for phase in report.run.phases[:MARKS_MAX]
    ]


def bounds(report: Report) -> Iterator[Bound]:
    """The objectives that a horizontal line can show."""
    for slo in report.slo:
        try:
            parsed = parse_slo(slo.expression)
        except PlanError:  # of a run that a newer version made
            continue
        if isinstance(parsed, Objective) and parsed.statistic and parsed.metric.endswith("_ms"):
            yield Bound(parsed.metric, f"{slo.expression}: {slo.state}", parsed.bound, slo.state)


def asked(report: Report, plan: dict[str, Any], times: Sequence[float], key: str) -> list[float | None]:
    """What the plan asks for at each time: `rate` per second or `concurrency`; None outside of phases with such a load."""
    phases = {each.get("name"): each for each in phases_of(plan)}
    spans = []
    for phase in report.run.phases:
        written = phases.get(phase.name, {})
        load, length = written.get("load"), written.get("duration")
        # A phase of the report lasts until its last reply; requests are asked for until its planned end.
        planned = duration_ns(length) / 1e9 if length else phase.duration_s
        seconds = min(phase.duration_s, planned)  # less where the run was interrupted or goes on
        if isinstance(load, dict) and key in load and seconds > 0:
            spans.append((phase.start_s, seconds, planned, load[key]))
    return [
        next((_at(value, t - start, length_s) for start, s, length_s, value in spans if start <= t < start + s), None)
        for t in times
    ]


def _at(value: Any, elapsed_s: float, length_s: float) -> float | None:
    """A load's value `elapsed_s` after the start of its phase."""
    if isinstance(value, int | float):
        return float(value)
    if "steps" in value:
        for number, length in value["steps"]:
            elapsed_s -= duration_ns(length) / 1e9
            if elapsed_s < 0:
                return float(number)
        return None
    start, end, share = float(value["from"]), float(value["to"]), elapsed_s / (length_s or 1.0)
    if value.get("curve") == "exponential" and start > 0 and end > 0:
        return float(start * (end / start) ** share)
    return start + (end - start) * share
