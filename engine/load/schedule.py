"""When each request of a phase is due: pure functions of (seed, phase, i). No clock, nothing is sent from here.

Slot i has one time, whoever computes it: worker k of N takes the slots k, k + N, k + 2N, ... and the union of all
shares is the same schedule for every N. Offsets count in ns from the start of the phase and never reach its duration.

    constant        slot i at the time where the integral of the rate is exactly i: i/rate, without drift
    poisson, gamma  operational arrivals (arrivals.py) mapped through the integral of the rate (rate.py)
    replay          the i-th time stamp of the trace
    probe           each target's own grid of wall time (timetable.py)
    closed          no times: how many may be in flight at a moment, and one slot after the other
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import count, islice
from math import exp, log
from typing import TYPE_CHECKING, Protocol

from ..plan.plan import Phase, Shape
from .arrivals import LEAF, Arrivals
from .rate import FRACTION, NEVER, ONE, Rate, exact
from .timetable import first_of_share

if TYPE_CHECKING:
    from ..workload import Item

Slots = Iterator[tuple[int, int]]
Times = Callable[[], Iterator[int]]


class Schedule(Protocol):
    """The slots of one phase."""

    @property
    def planned(self) -> int | None:
        """How many there are over all workers, None if that is not known. May walk through all of them."""

    def share(self, worker: int, workers: int, first: int = 0) -> Slots:
        """(slot, offset_ns) of the slots worker, worker + workers, ... that are >= first. Offsets never decrease."""

    def aim(self, items: Iterator[Item], worker: int, workers: int, first: int = 0) -> Iterator[Item]:
        """The workload's items, each at the target that the schedule has for it."""


class Untargeted:
    """Slots whose targets are the workload's to choose."""

    def aim(self, items: Iterator[Item], worker: int, workers: int, first: int = 0) -> Iterator[Item]:
        return items


class Constant(Untargeted):
    """One slot each time the integral of the rate reaches an integer, the first at 0."""

    def __init__(self, phase: Phase) -> None:
        self._rate = Rate(phase.load.shapes, phase.duration_ns)
        total = self._rate.total
        self.planned = _least(phase.requests, None if total is None else -(-total >> FRACTION))

    def share(self, worker: int, workers: int, first: int = 0) -> Slots:
        reached_ns = self._rate.reached_ns
        for slot in _slots(worker, workers, first, self.planned):
            yield slot, reached_ns(slot << FRACTION)


class Chance(Untargeted):
    """Poisson or gamma arrivals. Resuming is as quick after 1e9 slots as after ten."""

    def __init__(self, phase: Phase, seed: int, index: int) -> None:
        load = phase.load
        self._rate = Rate(load.shapes, phase.duration_ns)
        self._key = f"arrivals/{seed}/{index}"
        self._shape = load.gamma_shape if load.arrivals == "gamma" else 1.0
        total = self._rate.total
        within = None if total is None else Arrivals(self._key, self._shape).before(total / ONE)
        self.planned = _least(phase.requests, within)

    def share(self, worker: int, workers: int, first: int = 0) -> Slots:
        arrivals = Arrivals(self._key, self._shape)
        reached_ns = self._rate.reached_ns
        last = NEVER << FRACTION if self._rate.total is None else self._rate.total - 1
        number, leaf = -1, arrivals.leaf(0)
        for slot in _slots(worker, workers, first, self.planned):
            # One leaf holds LEAF arrivals; a worker of N uses every Nth of it, and the next slot is mostly in the same leaf.
            if slot // LEAF != number:
                number = slot // LEAF
                leaf = arrivals.leaf(number)
            # min(): `planned` was counted with `total` as a float
            yield slot, reached_ns(min(int(leaf[slot % LEAF] * ONE), last))


class Replay(Untargeted):
    """The times of a trace, which end with it, with the phase or after its requests."""

    def __init__(self, phase: Phase, timestamps: Times | None) -> None:
        self._timestamps = timestamps
        self._phase = phase
        self.planned = None

    def share(self, worker: int, workers: int, first: int = 0) -> Slots:
        begin = first_of_share(worker, workers, first)
        # The trace is walked, not held: a week of one is larger than memory.
        for number, offset_ns in enumerate(islice(self._due(), begin, None, workers)):
            yield begin + number * workers, offset_ns

    def counted(self) -> int:
        """How many slots there are; reads the complete trace."""
        return sum(1 for _ in self._due())

    def _due(self) -> Iterator[int]:
        if self._timestamps is None:
            raise ValueError("a replayed load needs the time stamps of its workload")
        end_ns = self._phase.duration_ns
        for offset_ns in islice(self._timestamps(), self._phase.requests):
            if end_ns is not None and offset_ns >= end_ns:
                return
            yield offset_ns


class Closed(Untargeted):
    """So many in flight at each moment. A changing value is rounded to the nearest integer, halves up."""

    def __init__(self, phase: Phase) -> None:
        self.planned = phase.requests
        self._shapes: list[Shape] = [shape for shape in phase.load.shapes if shape.duration_ns] or [
            phase.load.shapes[-1]
        ]
        self._begins = [0]
        for shape in self._shapes:
            self._begins.append(self._begins[-1] + shape.duration_ns)
        self._values = [_value_of(shape) for shape in self._shapes]
        self._values.append(_value_of(Shape(duration_ns=1, start=shape.end, end=shape.end)))  # holds to the end
        self._since, self._until, self._now = 0, 0, 0  # the last answer and how long it is good for

    def limit(self, offset_ns: int, worker: int, workers: int) -> int:
        """The exact share of one worker: all shares together are the limit, and they differ by one at most."""
        if not self._since <= offset_ns < self._until:
            self._find(offset_ns)
        # Not rounded: with 8 workers and a limit of 10 a rounded share would be 8 in all.
        return self._now // workers + (worker < self._now % workers)

    def next_change(self, offset_ns: int) -> int | None:
        """When the limit changes after `offset_ns`; None if it never does again."""
        if not self._since <= offset_ns < self._until:
            self._find(offset_ns)
        return None if self._until == NEVER else self._until

    def share(self, worker: int, workers: int, first: int = 0) -> Slots:
        """(slot, 0): a slot is due when fewer requests than the limit are in flight."""
        for slot in _slots(worker, workers, first, self.planned):
            yield slot, 0

    def _find(self, offset_ns: int) -> None:
        offset_ns = max(offset_ns, 0)
        number = bisect_right(self._begins, offset_ns) - 1
        value = self._values[number]
        now = value(offset_ns - self._begins[number])
        self._since, self._now = offset_ns, now
        last = len(self._values) - 1
        while number < last:
            begin, length = self._begins[number], self._shapes[number].duration_ns
            low, high = max(offset_ns - begin, 0), length  # value(low) == now, or low is the first ns of the shape
            if self._values[number](low) != now:
                self._until = begin + low
                return
            if self._values[number](length - 1) != now:
                while high - low > 1:  # a curve goes one way: the first other value is where it stops being `now`
                    middle = (low + high) // 2
                    if self._values[number](middle) == now:
                        low = middle
                    else:
                        high = middle
                self._until = begin + high
                return
            number += 1
        if self._values[last](0) != now:
            self._until = self._begins[last]
        else:
            self._until = NEVER


def _slots(worker: int, workers: int, first: int, end: int | None) -> Iterator[int]:
    begin = first_of_share(worker, workers, first)
    return iter(count(begin, workers) if end is None else range(begin, end, workers))


def _least(*bounds: int | None) -> int | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def _value_of(shape: Shape) -> Callable[[int], int]:
    """From the time inside a shape to its value, an integer."""
    length = shape.duration_ns
    if shape.start == shape.end:
        level = int(exact(shape.start) + exact(0.5))
        return lambda _: level
    if shape.curve == "exponential":
        growth = log(shape.end / shape.start)
        return lambda elapsed_ns: int(shape.start * exp(growth * elapsed_ns / length) + 0.5)
    # In integers, as every worker must change at the same ns: a float would round differently near a half.
    start, change = exact(shape.start), exact(shape.end) - exact(shape.start)
    d = start.denominator * change.denominator
    first, step = int(start * d), int(change * d)
    return lambda elapsed_ns: (2 * (first * length + step * elapsed_ns) + d * length) // (2 * d * length)
