"""All runs of a calibration within the time there is: the grid, the ceilings, and what could not be known."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from time import monotonic
from typing import Final, NamedTuple

import psutil

from ...collectors.bounds import CPU_BOUND, STARVED_BOUND
from ...collectors.calibration.ceiling import CeilingSearch, Outcome
from ...collectors.calibration.result import Calibration, Ceiling, Point
from ...collectors.calibration.truth import errors_in, points_off_us
from ...collectors.host import describe
from ...collectors.snapshot import Reason
from ...engine import __version__
from ...engine.errors import LensError
from ...engine.runs.placement import core_plan
from .conditions import Conditions, full_grid, quick_grid
from .measure import Measured, measure

TTFT_PROMISE_US: Final = 100.0  # p50, p95 and p99 of TTFT are within this of the server's own
SERVER_LATE_BOUND_MS: Final = 20.0  # beyond its own schedule: it cannot send what was asked for
BUSY_BOUND: Final = 0.1  # of the machine's CPU time, by others
LOOK_S: Final = 0.5
DISCARDED_BOUND: Final = 0.05
DISTURBING: Final = frozenset({"steal", "clock_steps", "worker_restarts", "stopped", "totals_do_not_balance"})
STREAM_EVENTS_PER_S: Final = 20.0  # of each stream, where streams are counted
LONG_REPLY_TOKENS: Final = 100


class Extent(NamedTuple):
    """How thorough: the grid, how long each run is measured, how near the ceilings, and the time for all of it. A run may
    take `spare_s` beyond its plan, however late it is."""

    grid: list[Conditions]
    first: int  # points before the ceilings: what they need to know and what matters most
    seconds: float
    reply_s: float
    precision: float
    budget_s: float
    spare_s: float


def quick() -> Extent:
    return Extent(quick_grid(), first=2, seconds=1.5, reply_s=1.0, precision=0.07, budget_s=54.0, spare_s=6.0)


def full() -> Extent:
    return Extent(full_grid(), first=4, seconds=3.0, reply_s=2.0, precision=0.04, budget_s=560.0, spare_s=30.0)


class Session:
    """Makes one `Calibration`. `say` takes a line about each run; it is for people."""

    def __init__(self, extent: Extent, say: Callable[[str], None]) -> None:
        self._extent = extent
        self._say = say
        self._cores = core_plan(1)
        self._deadline = monotonic() + extent.budget_s
        self._overhead_s = 2.5  # of a run beside what its conditions say: starts and ends of processes
        self._points: list[Point] = []
        self._failure: LensError | None = None  # the first
        self._notes: list[Reason] = []

    def run(self, *, quick: bool) -> Calibration:
        """All of it. Raises LensError if no run could be made at all."""
        host, began = describe(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._look_at_the_machine()
        grid, first = self._extent.grid, self._extent.first
        self._measure_points(grid[:first])
        ceiling = self._ceilings()
        self._measure_points(grid[first:])
        if not self._points and self._failure is not None:
            raise self._failure
        self._judge_points()
        return Calibration(
            host_hash=host["host_hash"],
            host=host,
            version=__version__,
            at=began,
            quick=quick,
            points=self._points,
            ceiling=ceiling,
            notes=self._notes,
        )

    # --- what the machine is like ---------------------------------------------------------------------------------

    @property
    def one_core(self) -> bool:
        """Does the simulator have to take turns with the worker?"""
        return self._cores.spare[0] in self._cores.workers

    def _look_at_the_machine(self) -> None:
        busy = psutil.cpu_percent(LOOK_S) / 100
        if busy > BUSY_BOUND:
            self._note(
                "other_load",
                f"others used {busy:.0%} of the machine's CPU time before the first run: errors, lateness and ceiling are "
                "those of this machine under that load; calibrate when it is quiet",
            )
        if self.one_core:
            self._note(
                "one_core",
                "server and worker share the only core: the errors include the server's own delays, and the ceilings of the "
                "two cannot be distinguished",
            )
        elif len(self._cores.spare) == 1:
            self._note(
                "shared_core",
                "two cores: the simulator shares its core with supervisor, collector and tap; a ceiling may be theirs",
            )

    def _judge_points(self) -> None:
        discarded = [each for each in self._points if (each.discarded_share or 0) > DISCARDED_BOUND]
        if discarded:
            self._note(
                "server_descheduled",
                f"in {len(discarded)} of {len(self._points)} points the server lost its core around over "
                f"{DISCARDED_BOUND:.0%} of the events: the errors are those of the others",
            )
        if any(each.stamps != "segment" for each in self._points):
            self._note(
                "read_stamps",
                "one stamp per read, as there may be no packet sockets here (CAP_NET_RAW): what a stalled worker reads "
                "late is censored, not exact",
            )

    def _note(self, code: str, detail: str) -> None:
        self._notes.append(Reason(code, detail, note=True))

    # --- points ---------------------------------------------------------------------------------------------------

    def _measure_points(self, grid: list[Conditions]) -> None:
        for i, conditions in enumerate(grid):
            if not self._fits(conditions, self._extent.seconds):
                self._note("out_of_time", f"{len(grid) - i} points were not measured: there was no time left for them")
                return
            measured = self._measure(conditions)
            if measured is not None and measured.errors.events:
                self._points.append(point_of(conditions, measured))
            elif measured is not None:
                self._note("run_failed", f"{words(conditions)}: no request ended that could be compared")

    def _fits(self, conditions: Conditions, seconds: float) -> bool:
        return monotonic() + self._overhead_s + conditions.warmup_s + seconds + conditions.lasting_s < self._deadline

    def _measure(self, conditions: Conditions) -> Measured | None:
        """One run; None for one that failed, with a note: a descriptor limit may forbid the large ones only."""
        began = monotonic()
        planned_s = conditions.warmup_s + self._extent.seconds + conditions.lasting_s
        timeout_s = max(planned_s + self._extent.spare_s, self._deadline - began)
        try:
            # The first core that no worker gets is the simulator's.
            measured = measure(conditions, seconds=self._extent.seconds, core=self._cores.spare[0], timeout_s=timeout_s)
        except LensError as error:
            self._failure = self._failure or error
            self._note("run_failed", f"{words(conditions)}: {error}")
            return None
        self._overhead_s = max(self._overhead_s, monotonic() - began - planned_s)
        self._say(f"{words(conditions)}: {spoken(measured)}")
        return measured

    # --- ceilings -------------------------------------------------------------------------------------------------

    def _ceilings(self) -> Ceiling:
        if self.one_core:
            return Ceiling()
        reply_s = self._extent.reply_s
        events = self._ceiling("events", lambda rate: Conditions(long_streams(rate, reply_s), rate, reply_s), 8_000.0)
        requests = self._ceiling("requests", lambda rate: Conditions(100, rate, 0.0), 1_500.0)
        streams = self._ceiling(
            "streams",
            lambda count: Conditions(max(1, round(count)), STREAM_EVENTS_PER_S * max(1, round(count)), reply_s),
            (events or 8_000.0) / STREAM_EVENTS_PER_S * 0.6,
        )
        return Ceiling(
            events_per_s_per_worker=events,
            requests_per_s_per_worker=requests,
            streams_per_worker=None if streams is None else round(streams),
        )

    def _ceiling(self, what: str, conditions_at: Callable[[float], Conditions], start: float) -> float | None:
        """The highest rate that holds: a run at `start`, by whose CPU time the search begins, and the search."""
        first = self._trial(what, conditions_at(start))
        if first is None:
            return None
        planned = stream_events_per_s(conditions_at(start), first)
        # By the CPU time of an event, which hardly changes when others take the worker's core meanwhile.
        bearable = CPU_BOUND * 1e6 / (first.report.client.cpu_us_per_event or CPU_BOUND * 1e6 / planned)
        search = CeilingSearch(start * bearable / planned, precision=self._extent.precision)
        while (rate := search.next_rate()) is not None:
            measured = self._trial(what, conditions_at(rate))
            if measured is None:
                break
            search.add(rate, outcome_of(measured))
        value = search.value
        if value is None:
            self._note("no_ceiling", f"the ceiling in {what} could not be found: no run near it held undisturbed")
            return None
        if not search.bounded:
            why = "the simulator could not send more" if search.limited_by_server else "the time was over"
            self._note("lower_bound", f"the ceiling in {what} is at least that: {why} before a run broke a promise")
        return value * planned / start if what == "events" else value

    def _trial(self, what: str, conditions: Conditions) -> Measured | None:
        if not self._fits(conditions, self._extent.seconds):
            self._note("out_of_time", f"the search for the ceiling in {what} was ended: there was no time left")
            return None
        return self._measure(conditions)


def long_streams(events_per_s: float, reply_s: float) -> int:
    """How many streams of long replies make so many events."""
    return max(1, round(events_per_s * reply_s / LONG_REPLY_TOKENS))


def stream_events_per_s(conditions: Conditions, measured: Measured) -> float:
    """What the conditions ask for in stream events, those without a token included."""
    throughput = measured.report.throughput
    per_request = (throughput.events_per_s or 0.0) / (throughput.requests_per_s or 1.0)
    return conditions.requests_per_s * max(1.0, per_request)


def reached(measured: Measured) -> float:
    """Stream events per second, those without a token included."""
    return measured.report.throughput.events_per_s or 0.0


def outcome_of(measured: Measured) -> Outcome:
    """Did the promises hold in this run? Its own verdict, and TTFT as the server has it."""
    report = measured.report
    reasons = {reason.code for reason in report.verdict.reasons if not reason.note}
    if reasons & DISTURBING or (report.client.run_queue_wait_share or 0) > STARVED_BOUND:
        return "disturbed"
    off_us = points_off_us(measured.errors)
    if not reasons and (off_us is None or off_us <= TTFT_PROMISE_US):
        return "holds"
    if measured.server_late_ms > SERVER_LATE_BOUND_MS and (report.client.cpu_utilisation or 0) < CPU_BOUND:
        return "server_limited"
    return "broken"


def point_of(conditions: Conditions, measured: Measured) -> Point:
    report = measured.report
    return Point(
        streams=conditions.streams,
        events_per_s=round(reached(measured), 1),
        transport=conditions.transport,
        mode=conditions.mode,
        client_stalls=conditions.client_stalls,
        cpu_us_per_event=report.client.cpu_us_per_event,
        stamps=report.client.stamps,
        **errors_in(measured.errors),
    )


def words(conditions: Conditions) -> str:
    stalls = ", stalled" if conditions.client_stalls else ""
    return (
        f"{conditions.streams} streams, {conditions.events_per_s:.0f} events/s, {conditions.transport}, "
        f"{conditions.mode}{stalls}"
    )


def spoken(measured: Measured) -> str:
    arrival, report = errors_in(measured.errors)["arrival_error_us"], measured.report
    codes = ", ".join(reason.code for reason in report.verdict.reasons if not reason.note)
    error = "no event compared" if arrival.p99 is None else f"arrival error p99 {arrival.p99:.1f} us"
    return f"{error}, worker CPU {report.client.cpu_utilisation or 0:.0%}, {report.verdict.state}" + (
        f" ({codes})" if codes else ""
    )
