"""One load of a sweep: when it is judged, how it ends, and what its run says about it. No clock, no file.

A run is judged at its first look and then at every doubling of its requests: an interval that is looked at every second
leaves the objective on the wrong side sooner or later. It ends at the first look that decides all objectives.

A queue that grows is seen before its latencies decide anything, as they drift with it: an open-loop run ends as FAIL
when its requests in flight rise, in the second half of its ticks, by a share of the rate that no queue in its stationary
state shows. benches/sweep_accuracy.py prints how often that is wrong, and how soon it is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from ..engine.plan.slo import Objective, RequestObjective, parse_slo
from .capacity import CLEAR, Point, State
from .confidence import BATCHES, student
from .snapshot import Distribution, Report, Slo
from .steady import trend_of

LOOK_FIRST_S: Final = 3.0  # of the measured part
LOOK_FIRST_REQUESTS: Final = 30
HUNDREDTH: Final = 100  # of fewer requests a single late one is the 99th percentile
SURE_REQUESTS: Final = 400  # fewer decide only what is clear: intervals of few requests are too narrow too often
TICKS_MIN: Final = 24  # that a growing queue is found in
SEEN_AGAIN: Final = 1.05  # it is looked for again when there are 5 % more ticks
GROWTH_MIN: Final = 0.05  # requests that stay in the queue, as a share of those sent
WANDER: Final = 3.5  # standard deviations that a queue rises by and still comes back
CERTAIN: Final = 0.001  # probability of such a trend without a growing queue
ERRORS_MAX: Final = 0.01  # share of failed requests from which a point fails, unless an objective speaks of them
ERRORS_MIN: Final = 3
# Reasons of a verdict that say that the load was not what was asked for, or its times not the server's.
CLIENT_CODES: Final = frozenset(
    {"ring_drops", "lateness", "ttft_coalesced", "starved", "client_stopped", "cpu", "steal", "worker_restarts"}
)
# Of these, what delays a client: its requests bunch up and its reads come late, which makes a server look worse only.
DELAYS: Final = frozenset({"lateness", "starved", "client_stopped", "cpu", "steal"})
SATURATED: Final = "saturated: requests in flight kept growing"
FAILING: Final = f"over {ERRORS_MAX:.0%} of the requests failed"


class Looks:
    """When a point is judged: `due` at the first look and then at each doubling of its requests."""

    def __init__(self) -> None:
        self._next = LOOK_FIRST_REQUESTS

    def due(self, requests: int, elapsed_s: float) -> bool:
        """Whether to judge now; the next time comes when there are twice as many requests."""
        if requests < self._next or elapsed_s < LOOK_FIRST_S:
            return False
        self._next = 2 * requests
        return True


def hopeless(report: Report, left_s: float) -> bool:
    """Whether a point is clear of all objectives and will not be shown to be so in the seconds that are left: a 99th
    percentile needs a thousand requests, which a low rate does not send. A higher load says more in less time."""
    waiting = [slo for slo in report.slo if slo.state != "PASS"]
    return bool(waiting) and all(
        slo.state == "UNDECIDED"
        and (against := against_of(slo)).value is not None
        and against.value < CLEAR
        and against.high is None
        and (slo.needs_s is None or slo.needs_s > left_s)
        for slo in waiting
    )


def decided(states: Sequence[tuple[str, Against]], requests: int) -> State:
    """What the objectives, each with its state and how near it is, say after so many requests: PASS if all are met, FAIL
    if one is missed. Below SURE_REQUESTS only where the interval is far from the objective."""
    few = requests < SURE_REQUESTS

    def met(state: str, against: Against) -> bool:
        return state == "PASS" and not (few and against.high is not None and against.high > CLEAR)

    def missed(state: str, against: Against) -> bool:
        return state == "FAIL" and not (few and against.low is not None and against.low * CLEAR < 1)

    if any(missed(*each) for each in states):
        return "FAIL"
    return "PASS" if states and all(met(*each) for each in states) else "UNDECIDED"


class Queue:
    """The requests in flight of an open-loop run, tick by tick from the start of its load, all of it at one rate."""

    def __init__(self, rate_per_s: float, *, cap: int | None = None) -> None:
        self._rate_per_s = rate_per_s
        self._cap = cap
        self._in_flight: list[int] = []
        self._next = TICKS_MIN

    def add(self, in_flight: int, tick_s: float) -> bool:
        """Takes a tick in. Whether the queue grows for good, or has stood at its cap."""
        self._in_flight.append(in_flight)
        if len(self._in_flight) < self._next:
            return False
        self._next = math.ceil(SEEN_AGAIN * self._next)
        return growing(self._in_flight, self._rate_per_s * tick_s, cap=self._cap)


def growing(in_flight: Sequence[int], per_tick: float, *, cap: int | None = None) -> bool:
    """Whether requests in flight, a value a tick, rise by GROWTH_MIN of the `per_tick` that are sent, or stay at `cap`.

    The first half is left out: a queue that begins empty grows until it is in its stationary state. A long queue in that
    state wanders, at most as a random walk does: with as many arrivals as departures, both Poisson, it rises by more than
    WANDER times the root of their number in one case of 4,000.
    """
    late = np.array(in_flight[len(in_flight) // 2 :], np.float64)
    if cap is not None and late.min() >= cap:
        return True
    trend = trend_of(late, np.ones_like(late))
    sent, rise = per_tick * len(late), trend.slope * len(late)
    walked = rise > WANDER * math.sqrt(2 * sent)
    return walked and rise > GROWTH_MIN * sent and trend.probability < CERTAIN and trend.low > 0


def failing(report: Report, slos: Sequence[str]) -> bool:
    """Whether so many requests fail that the load is not borne, by the lower bound of their share (Wilson 1927), although
    no objective says anything about failures: a server that refuses at once answers the others quickly."""
    if any(_speaks_of_failures(each) for each in slos):
        return False
    failed = sum(report.requests.failed.values())
    ended = failed + report.requests.ok
    if failed < ERRORS_MIN:
        return False
    share, t = failed / ended, student(0.975, BATCHES)
    centre = share + t * t / (2 * ended)
    half = t * math.sqrt(share * (1 - share) / ended + (t / (2 * ended)) ** 2)
    return (centre - half) / (1 + t * t / ended) > ERRORS_MAX


def _speaks_of_failures(expression: str) -> bool:
    parsed = parse_slo(expression)
    return isinstance(parsed, RequestObjective) or parsed.metric in ("error_rate", "goodput_share")


def state_of(report: Report) -> State:
    """What a run says about its load. A run that its sweep ended by `slo` failed, whatever its last requests did.

    A load that meets its objectives although the client was delayed is borne; one that misses them then says nothing. But
    in a closed loop a client that waits for its CPU sends less than was asked for, also where its stamps are right.
    """
    closed = report.run.load == "closed"
    against = {
        reason.code for reason in report.verdict.reasons if not reason.note or (closed and reason.code == "starved")
    }
    states = {slo.state for slo in report.slo}
    missed = "FAIL" in states or report.run.ended_by in ("slo", "error_rate")
    # Left early and undecided, but far from its objectives: a higher load says more.
    left = report.run.ended_by == "until" and all(_far(slo) for slo in report.slo)
    if report.run.load == "open" and not missed and (states == {"PASS"} or left):
        against -= DELAYS
    if against & CLIENT_CODES:
        # Few requests, left for a higher load: one that was sent late says nothing.
        glanced = report.run.ended_by == "until" and report.requests.ok < HUNDREDTH
        return "UNDECIDED" if glanced else "CLIENT_LIMITED"
    if missed:
        return "FAIL"
    return "PASS" if states == {"PASS"} and not against else "UNDECIDED"


def _far(slo: Slo) -> bool:
    value = against_of(slo).value
    return slo.state == "PASS" or (value is not None and value < CLEAR)


class Against(NamedTuple):
    """Measured over objective with its 95 % interval; above 1 the objective is missed."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def against_of(slo: Slo) -> Against:
    """None where the objective is 0, or no value is known. Shares that are to be high count by what they lack of 1."""
    parsed = parse_slo(slo.expression)
    low, high = slo.ci95 or (None, None)
    value = slo.value
    if isinstance(parsed, RequestObjective):
        bound, least, complement = parsed.share, True, True
    else:
        bound, least = parsed.bound, parsed.comparison in (">", ">=")
        complement = least and parsed.metric.endswith("_share")
    if complement:
        value, low, high = (None if each is None else 1 - each for each in (value, high, low))
        bound, least = 1 - bound, False
    if value is None or not bound > 0:
        return Against()
    if least:
        return Against(*(bound / each if each else None for each in (value, high, low)))
    return Against(*(None if each is None else each / bound for each in (value, low, high)))


def point_of(value: float, report: Report, *, state: State | None = None) -> Point:
    """The point of a finished run at the load `value`, as the search for the capacity wants it."""
    state = state or state_of(report)
    blamed = [slo for slo in report.slo if slo.state == state] if state in ("FAIL", "UNDECIDED") else report.slo
    rated = [(against_of(slo), slo.expression) for slo in blamed or report.slo]
    worst, limited_by = max(rated, key=lambda each: each[0].value or 0.0, default=(Against(), ""))
    if state == "FAIL" and not any(slo.state == "FAIL" for slo in report.slo):
        limited_by = FAILING if failing(report, [slo.expression for slo in report.slo]) else SATURATED
    d = latency_of(report)
    low, high = (d.ci95.p50 if d.ci95 else (None, None)) if d else (None, None)
    return Point(
        value,
        state,
        *worst,
        limited_by=limited_by,
        goodput_per_s=goodput_of(report, state),
        latency=d.p50 if d else None,
        latency_low=low,
        latency_high=high,
    )


def latency_metric(slos: Sequence[str]) -> str:
    """The metric that a curve of throughput against latency shows: that of the first objective on a time, or e2e_ms."""
    for expression in slos:
        parsed = parse_slo(expression)
        names = (
            [condition[0] for condition in parsed.conditions]
            if isinstance(parsed, RequestObjective)
            else [parsed.metric] * bool(parsed.statistic)
        )
        found = next((name for name in names if name.endswith("_ms")), None)
        if found:
            return found
    return "e2e_ms"


def latency_of(report: Report) -> Distribution | None:
    found = report.metrics.get(latency_metric([slo.expression for slo in report.slo]))
    return found if found and found.count else None


def goodput_of(report: Report, state: State) -> float | None:
    """Requests per second that meet the objectives: by the `request` lines where there are some, else all successful
    ones of a load that passes and none of one that fails."""
    if report.throughput.goodput_per_s is not None:
        return report.throughput.goodput_per_s
    return report.throughput.requests_per_s if state == "PASS" else 0.0 if state == "FAIL" else None


def goals_of(slos: Sequence[str], share: float) -> tuple[str, ...]:
    """The statistics of the objectives, as goals of `until`: a point that stays undecided is known well enough when each
    is within `share` of its value."""
    found: list[str] = []
    for expression in slos:
        parsed = parse_slo(expression)
        if (
            isinstance(parsed, Objective)
            and parsed.statistic not in (None, "max", "min", "stddev")
            and not parsed.target
        ):
            found.append(f"{parsed.metric}.{parsed.statistic} +-{100 * share:.4g}%")
    return tuple(dict.fromkeys(found))
