"""Servers of known capacity in virtual time, and points measured on them as a sweep measures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapreplace
from typing import Final, NamedTuple

import numpy as np

from llm_latency_lens.collectors.capacity import Answer, Next, Point, Range, State, answer_of, next_load
from llm_latency_lens.collectors.confidence import confidence
from llm_latency_lens.collectors.ladder import Ladder
from llm_latency_lens.collectors.point import (
    LOOK_FIRST_REQUESTS,
    LOOK_FIRST_S,
    SATURATED,
    Against,
    Looks,
    Queue,
    decided,
)
from tests.support_samples import SECOND, Floats, ticks

TICK_S: Final = 0.25  # of a sweep's runs
POINT_REQUESTS: Final = 32_000  # of a first look; every further one may take twice as many

Latencies = Callable[[np.random.Generator, float, int], tuple[Floats, Floats]]  # (random, load, n): latency, end in s


def queue(servers: int, *, fixed: bool, service_s: float = 0.05) -> Latencies:
    """M/D/k or M/M/k, first come first served: response times from an empty system, a tenth of them cut off."""

    def simulate(random: np.random.Generator, rate: float, n: int) -> tuple[Floats, Floats]:
        n += n // 9
        arrival = np.cumsum(random.exponential(1 / rate, n))
        service = np.full(n, service_s) if fixed else random.exponential(service_s, n)
        if servers == 1:  # Lindley's recursion as a running maximum
            total = np.cumsum(service)
            end = total + np.maximum.accumulate(arrival - total + service)
        else:
            free = [0.0] * servers
            ends = []
            for at, takes in zip(arrival.tolist(), service.tolist(), strict=True):
                done = max(at, free[0]) + takes
                heapreplace(free, done)
                ends.append(done)
            end = np.array(ends)
        cut = n // 10
        return (end - arrival)[cut:], end[cut:] - arrival[cut]

    return simulate


def batching(base_s: float = 0.01, per_request_s: float = 0.0005) -> Latencies:
    """A server whose time per token grows with the batch; load is the concurrency. Latencies are gaps, 10 % noise."""

    def simulate(random: np.random.Generator, concurrency: float, n: int) -> tuple[Floats, Floats]:
        gap = (base_s + per_request_s * concurrency) * np.exp(0.1 * random.standard_normal(n))
        return gap, np.cumsum(gap) / concurrency

    return simulate


def erlang_c(servers: int, offered: float) -> float:
    """The probability of waiting in M/M/k (Erlang 1917); `offered` is arrival rate times service time."""
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def mmk_p90(servers: int, rate: float, service_s: float = 0.05) -> float:
    """The 90th percentile of the response time of M/M/k, from its distribution (Gross & Harris)."""
    wait, served, spare = erlang_c(servers, rate * service_s), 1 / service_s, servers / service_s - rate

    def above(t: float) -> float:
        if abs(spare - served) < 1e-9 * served:
            return math.exp(-served * t) * (1 + wait * served * t)
        return math.exp(-served * t) * (1 - wait * served / (served - spare)) + math.exp(-spare * t) * (
            wait * served / (served - spare)
        )

    return solved(lambda t: -above(t), -0.1, 0.0, 1e3)


def solved(function: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where a growing function reaches a value."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < wanted else (low, middle)
    return low


@dataclass
class Sweep:
    """Measures points of a server until nothing is left to measure. The objective: `statistic` of the latency <= bound."""

    latencies: Latencies
    bound_s: float
    range_: Range
    seed: int
    statistic: str = "p90"
    client_limit: float = math.inf  # loads above it are the client's limit
    points: list[Point] = field(default_factory=list)
    requests: int = 0

    def run(self, *, points_max: int = 60) -> Answer:
        while (wanted := next_load(self.points, self.range_)) is not None:
            assert len(self.points) < points_max, self.points
            self.points.append(self.measured(wanted))
        return answer_of(self.points, self.range_)

    def measured(self, wanted: Next) -> Point:
        """One point: judged at its looks, over at the first verdict, or when its queue is seen to grow."""
        if wanted.value > self.client_limit:
            return Point(wanted.value, "CLIENT_LIMITED")
        random = np.random.default_rng((self.seed, round(wanted.value * 1e6), wanted.look))
        longest = POINT_REQUESTS << wanted.look - 1
        latency, end = self.latencies(random, wanted.value, longest)
        full = self._full(wanted.value, latency, end)
        looks, n = Looks(), max(LOOK_FIRST_REQUESTS, int(np.searchsorted(np.sort(end), LOOK_FIRST_S)) + 1)
        while True:
            if full is not None and n >= full:
                self.requests += full
                return self._judged(wanted.value, latency[:full], end[:full])._replace(
                    state="FAIL", limited_by=SATURATED
                )
            assert looks.due(n, float(end[:n].max())) or n == longest
            point = self._judged(wanted.value, latency[:n], end[:n])
            if point.state != "UNDECIDED" or n >= longest:
                self.requests += n
                return point
            n = min(2 * n, longest)

    def _full(self, rate: float, latency: Floats, end: Floats) -> int | None:
        """After how many requests the queue is seen to grow; None for a closed loop, and if it is not."""
        if self.range_.integers:
            return None
        queue, arrival = Queue(rate), np.sort(end - latency)
        ends = np.sort(end)
        at = np.arange(1, int(ends[-1] / TICK_S)) * TICK_S
        in_flight = np.searchsorted(arrival, at) - np.searchsorted(ends, at)
        for tick, number in enumerate(in_flight.tolist()):
            if queue.add(number, TICK_S):
                return max(LOOK_FIRST_REQUESTS, int(np.searchsorted(ends, at[tick])))
        return None

    def _judged(self, value: float, latency: Floats, end: Floats) -> Point:
        ladder = Ladder()
        for tick, cells, counts in ticks(latency, end, tick_s=TICK_S):
            ladder.add(tick, cells, counts)
        measured, low, high, *_ = confidence(ladder.blocks()).intervals[self.statistic]
        bound = self.bound_s * SECOND
        state: State = "UNDECIDED"
        if high is not None and high <= bound:
            state = "PASS"
        elif low is not None and low > bound:
            state = "FAIL"
        shares = [None if each is None else each / bound for each in (low, high)]
        state = decided([(state, Against(measured / bound, *shares))], len(latency))
        return Point(
            value,
            state,
            measured / bound,
            *shares,
            limited_by=f"{self.statistic} <= {self.bound_s:g} s",
            latency=measured,
        )


class Server(NamedTuple):
    """A server, an objective on a statistic of its latency, and the load at which it is just met."""

    latencies: Latencies
    statistic: str
    bound_s: float
    range_: Range
    capacity: float


def mdk_mean(servers: int, rate: float, service_s: float = 0.05, states: int = 300) -> float:
    """The mean response time of M/D/k from its stationary distribution (Crommelin 1932): what is in the system a service
    time later are those that came in it and those that found no server before it."""
    came = np.exp(np.cumsum([-rate * service_s, *np.log(rate * service_s / np.arange(1, states))]))
    waiting = np.full(states, 1 / states)
    for _ in range(20_000):
        left = np.concatenate(([waiting[: servers + 1].sum()], waiting[servers + 1 :]))
        after = np.convolve(left, came)[:states]
        after /= after.sum()
        if float(np.abs(after - waiting).max()) < 1e-12:
            break
        waiting = after
    return float(waiting @ np.arange(states)) / rate


def _md1_mean(rate: float, service_s: float = 0.05) -> float:
    """The mean response time of M/D/1 (Pollaczek and Khinchine)."""
    return service_s + rate * service_s**2 / (2 * (1 - rate * service_s))


# The batch server's gaps are lognormal: 1.2816 is the normal distribution's 90th percentile.
SERVERS: Final = {
    "M/D/1": Server(queue(1, fixed=True), "mean", 0.1, Range(1, 40), solved(_md1_mean, 0.1, 1, 19.99)),
    "M/D/4": Server(
        queue(4, fixed=True), "mean", 0.06, Range(2, 160), solved(lambda rate: mdk_mean(4, rate), 0.06, 1, 79)
    ),
    "batching": Server(
        batching(),
        "p90",
        0.03,
        Range(1, 200, integers=True),
        solved(lambda n: (0.01 + 0.0005 * n) * math.exp(0.1 * 1.2816), 0.03, 1, 500),
    ),
    "M/M/1": Server(
        queue(1, fixed=False), "p90", 0.15, Range(1, 40), solved(lambda rate: mmk_p90(1, rate), 0.15, 1, 19.99)
    ),
    "M/M/4": Server(
        queue(4, fixed=False), "p90", 0.2, Range(2, 160), solved(lambda rate: mmk_p90(4, rate), 0.2, 1, 79.99)
    ),
}
