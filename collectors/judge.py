"""Judges the run so far: its stationary part, its objectives, and the goals of `until`. Holds what earlier looks saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ..engine.plan.plan import SECOND, Plan
from ..engine.plan.slo import precision_of
from .evidence import Evidence, Layout
from .run_ladders import Window, window_of
from .series import Series
from .slos import Slos
from .snapshot import DriftReport, Goal, Report, Slo, SteadySlice
from .totals import Totals
from .until import Goal as Stopping

JUDGED_AGAIN: Final = 1.02  # objectives of a running run are judged again when there are 2 % more ticks: it takes ms

Spans = Mapping[int, float]  # seconds of each phase's rates


class Judge:
    """One plan's objectives and goals. `slice_of` makes the fields of a report's slice (ReportBuilder)."""

    def __init__(self, plan: Plan, slos: Slos | None, slice_of: Callable[..., dict[str, Any]]) -> None:
        self.plan = plan
        self.slos = slos
        self._slice = slice_of
        self._judged: list[Slo] = []
        self._judged_tick = -1
        self._goals = [(each, Stopping(each.share)) for each in map(precision_of, plan.until)]

    def objectives(self, totals: Totals, report: Report, spans: Spans, *, finished: bool) -> list[Slo]:
        """The state of each objective; while the run goes on, as of a recent tick."""
        if self.slos is None:
            return []
        tick = totals.next_tick
        if finished or tick >= JUDGED_AGAIN * self._judged_tick:
            self._judged = self.slos(report, self._evidence(totals, spans, steady=self.plan.steady), {})
            self._judged_tick = tick
        return self._judged

    def goals(self, totals: Totals) -> list[Goal]:
        """Where the goals of `until` stand. Once a tick: each call is a look of collectors.until."""
        if not self._goals:
            return []
        part = self._evidence(totals, {}, steady=self.plan.steady).part(None, None)
        found = []
        for wanted, goal in self._goals:
            interval = part.interval(wanted.metric, wanted.statistic)
            histogram = part.series.metrics.get(wanted.metric)
            reached = goal.look(interval, histogram.count if histogram else 0)
            width = interval.half_width if interval else None
            relative = width / abs(interval.value) if interval and width is not None and interval.value else None
            found.append(Goal(wanted.expression, interval.value if interval else None, relative, reached))
        return found

    def steady(self, totals: Totals, series: Series, spans: Spans) -> SteadySlice:
        """The stationary part of the measured phases; `series` has their totals."""
        evidence, tick_s = self._evidence(totals, spans, steady=True), totals.tick_ns / SECOND
        windows = evidence.windows
        if not windows:
            return SteadySlice(reason="no request succeeded")
        states = {window.state for window in windows.values()}
        part = evidence.part(None, None)
        # Nothing was cut: the exact numbers, not those of cells.
        counted = part.series if any(window.cut for window in windows.values()) else series
        numbers = self._slice(counted, part.seconds, view=part.view)
        names = {i: f"{self.plan.phases[i].name}: " * (len(windows) > 1) for i in windows}
        return SteadySlice(
            state=next(each for each in ("drifting", "too_short", "steady") if each in states),
            from_s=min(window.start for window in windows.values()) * tick_s,
            to_s=max(window.end for window in windows.values()) * tick_s,
            reason="; ".join(names[i] + window.reason for i, window in windows.items()),
            requests=numbers["requests"],
            throughput=numbers["throughput"],
            metrics=numbers["metrics"],
            drift={
                names[i] + metric: DriftReport(drift.per_h, (drift.low, drift.high))
                for i, window in windows.items()
                for metric, drift in window.drifts.items()
            },
        )

    def _evidence(self, totals: Totals, spans: Spans, *, steady: bool) -> Evidence:
        windows = self._windows(totals) if steady else None
        return Evidence(Layout.of(self.plan), totals.run, totals.ladders, spans, windows)

    def _windows(self, totals: Totals) -> dict[int, Window]:
        tick_s = totals.tick_ns / SECOND
        measured = [i for i, phase in enumerate(self.plan.phases) if phase.measure]
        found = {i: window_of(totals.ladders, i, tick_s) for i in measured}
        return {i: window for i, window in found.items() if window is not None}
