"""Carries a sweep out: the plan of each point, its run, and what is written after it.

Every point is a run of its own, with an unmeasured phase at its own load before the measured one, and no drain between
the two. Runs of one point after another would start on a server that is filled for another load; and a server that still
works on what the last point left over is not in the state that this load brings it to either. So a point's load starts
on an idle server, and its warm-up lasts as long as several of the longest requests of the point before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Final

import msgspec

from ...collectors.capacity import Next
from ...collectors.point import LOOK_FIRST_S, goals_of
from ...collectors.sweep import ENCODER, Measured, SweepReport, Wanted, bracket_of, next_of, sweep_report
from ...engine.errors import LensError, OutputError
from ...engine.files import replace
from ...engine.plan.plan import SECOND, Load, Phase, Plan, Shape
from ...engine.runs.interrupts import Interrupts
from ..run import measure, write_report
from .folder import Known, known_of
from .rules import PointRules

SWEEP: Final = "sweep.json"
TICK_NS: Final = SECOND // 4  # intervals need some ticks: with one a second a clear point would take longer
WARMUP_MIN_S: Final = 2.0
WARMUP_MAX_S: Final = 30.0
WARMUP_REQUESTS: Final = 3.0  # so many times the 90th percentile of the last point's e2e_ms


class Sweeper:
    """A sweep in its directory, from what is known there to its end. `ended` says why it ended early, if it did."""

    def __init__(
        self,
        plan: Plan,
        wanted: Wanted,
        folder: Path,
        interrupts: Interrupts,
        *,
        max_time_s: float | None,
        beside: Sequence[int],
        on_point: Callable[[SweepReport], None],
        live: bool,
    ) -> None:
        self.plan = plan
        self.wanted = wanted
        self.folder = folder
        self.ended = ""
        self._interrupts = interrupts
        self._beside = beside
        self._on_point = on_point
        self._live = live
        self._cores = os.sched_getaffinity(0)
        self._known: Known = known_of(folder, wanted.over)
        self.report = self._summary()
        spent_s = self._known.spent.seconds
        self._deadline = None if max_time_s is None else monotonic() + max_time_s - spent_s

    def run(self) -> None:
        """All points that are missing. Raises LensError; what was measured until then is written."""
        self.report = self._written()
        while not self.ended and (wanted := next_of(self.wanted, self._known.measured)) is not None:
            plan = self._plan_of(wanted)
            if plan is None:
                break
            os.sched_setaffinity(0, self._cores)  # a run moves this process to the cores that its workers leave
            done = measure(
                plan,
                self._interrupts,
                warn=self._live and not self._known.measured,
                live=self._live,
                beside=self._beside,
                rules=partial(PointRules, climbing=self._climbing),
            )
            write_report(done.run_dir)
            done.exporter.finish()
            self._known = known_of(self.folder, self.wanted.over)
            self.report = self._written()
            if done.manifest.interrupted:
                self.ended = "interrupted"
            elif self._known.measured and self._known.measured[-1].run == done.run_dir.name:
                self._check(self._known.measured[-1])
                self._on_point(self.report)
            else:
                self.ended = "the run of the last point was cut short: " + (
                    done.manifest.stop_reason or "unknown reason"
                )

    def _check(self, last: Measured) -> None:
        """Raises LensError if the server answers no request, which says nothing about its capacity."""
        requests = last.report.requests
        if requests.ok or not requests.sent:
            return
        refused = all(outcome.startswith(("connect", "http_auth", "http_invalid")) for outcome in requests.failed)
        if refused or not any(each.report.requests.ok for each in self._known.measured):
            sample = next((f": {error.message}" for error in last.report.errors), "")
            raise LensError(
                f"no request of {last.run} succeeded ({', '.join(requests.failed) or 'none ended'}){sample}; "
                f"{self.folder} can be continued with --resume"
            )

    def _plan_of(self, wanted: Next) -> Plan | None:
        """The plan of the next point; None where time or budget are spent, and `ended` then says which."""
        plan, measured = self.plan, self._known.measured
        main = plan.phases[-1]
        warmup_ns = plan.phases[0].duration_ns if len(plan.phases) > 1 else _warmup_ns(measured)
        longer = 1 << wanted.look - 1  # a further look at the same load takes longer
        duration_ns = None if main.duration_ns is None else main.duration_ns * longer
        if self._deadline is not None:
            left_ns = int((self._deadline - monotonic()) * SECOND) - (warmup_ns or 0)
            if left_ns < LOOK_FIRST_S * SECOND:
                self.ended = "--max-time is over"
                return None
            duration_ns = left_ns if duration_ns is None else min(duration_ns, left_ns)
        budget = plan.limits.budget_usd
        if budget is not None:
            budget -= self._known.spent.usd or 0.0
            if budget <= 0:
                self.ended = "budget_usd is spent"
                return None
        load = _at(main, wanted.value, duration_ns or 0)
        warm = _at(main, wanted.value, warmup_ns or 0)
        share = self.wanted.precision / (1 << wanted.look)
        return msgspec.structs.replace(
            plan,
            name=f"{plan.name}-{self.wanted.over}-{wanted.value:g}",
            phases=(
                Phase(name="warmup", load=warm, duration_ns=warmup_ns, measure=False),
                msgspec.structs.replace(
                    main,
                    load=load,
                    duration_ns=duration_ns,
                    requests=None if main.requests is None else main.requests * longer,
                ),
            ),
            until=plan.until or goals_of(plan.slo, share),
            limits=msgspec.structs.replace(plan.limits, budget_usd=budget),
            output=msgspec.structs.replace(
                plan.output, dir=str(self.folder), tick_ns=min(plan.output.tick_ns, TICK_NS)
            ),
            seed=plan.seed + len(measured),  # other arrivals at each look: two looks must not err together
        )

    @property
    def _climbing(self) -> bool:
        return not self.wanted.grid and bracket_of(self.wanted, self._known.measured)[1] is None

    def _written(self) -> SweepReport:
        """Writes sweep.json as of now."""
        report = self._summary()
        try:
            replace(self.folder / SWEEP, ENCODER.encode(report) + b"\n")
        except OSError as error:
            raise OutputError(f"{self.folder / SWEEP} cannot be written: {error.strerror}") from None
        return report

    def _summary(self) -> SweepReport:
        return sweep_report(self.wanted, self.plan.slo, self._known.measured, self.plan.gpus, spent=self._known.spent)

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to measure."""
        return next_of(self.wanted, self._known.measured) is None


def _at(phase: Phase, value: float, duration_ns: int) -> Load:
    return msgspec.structs.replace(phase.load, shapes=(Shape(duration_ns=duration_ns, start=value, end=value),))


def _warmup_ns(measured: Sequence[Measured]) -> int:
    """How long a point warms up where the plan does not say."""
    last = measured[-1].report.metrics.get("e2e_ms") if measured else None
    seconds = WARMUP_REQUESTS * (last.p90 or 0.0) / 1000 if last else 0.0
    return round(min(max(seconds, WARMUP_MIN_S), WARMUP_MAX_S) * SECOND)
