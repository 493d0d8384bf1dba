"""One phase while it runs in one worker: which slots are due, and what to do when a request ends.

`OpenRun` follows the schedule whatever the server does; `ClosedRun` starts a request when another one ends.
Both take their slots from a Feed in order and never skip one: a slot that cannot be sent is
recorded with its reason. The worker calls `issue()` when `next_due_ns()` has come or a request has ended, so nothing
here has a timer or a clock. Closed loop: the limit is so many permits, a request takes one and frees it at its end.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from ..plan.plan import Load, Phase
from ..records.record import Unsent
from .feed import Feed, Prepared
from .schedule import Closed

NEVER: Final = 1 << 62
FAILURE_PAUSE_NS: Final = 100_000_000  # a closed-loop slot whose connection failed rests this long, or it would spin


class Dispatcher(Protocol):
    """Who sends: the worker."""

    in_flight: int
    last_now: int  # when the worker last looked at the clock

    def affordable(self, run: PhaseRun, prepared: Prepared) -> bool:
        """Does the budget allow this request now? When it cannot any more, the run is stopped."""

    def dispatch(self, run: PhaseRun, prepared: Prepared, intended_ns: int, waited_ns: int = 0) -> None:
        """Starts the request of one slot, at once or when its token bucket lets it.

        `waited_ns` is how long the slot was held back by the plan's own cap or budget.
        """

    def cancel_think_timers(self, run: PhaseRun) -> None:
        """Ends the think times of the phase's sessions: their next turns are recorded as unsent."""

    def unsent(self, run: PhaseRun, slot: int, slots: int, intended_ns: int, reason: Unsent) -> None:
        """Records that `slots` slots from `slot` on are not sent."""


class PhaseRun:
    """What both kinds share: the phase, its feed, its times."""

    def __init__(self, index: int, phase: Phase, feed: Feed, start_ns: int) -> None:
        self.index = index
        self.phase = phase
        self.feed = feed
        self.start_ns = start_ns
        self.end_ns = start_ns + phase.duration_ns if phase.duration_ns is not None else NEVER
        self.in_flight = 0  # requests and thinking sessions of this phase
        self.issued = False  # nothing more will be taken from the feed
        self.stopped: Unsent | None = None  # why the issuing ended before its time
        self.blocked = False  # the next slot is due but has to wait for money in flight

    def stop(self, worker: Dispatcher, now: int, reason: Unsent) -> None:
        """Ends the issuing; what is left of a bounded share is recorded as unsent."""
        if self.issued:
            return
        self.issued = True
        self.stopped = reason
        worker.cancel_think_timers(self)
        head = self.feed.peek()
        if head is not None and self.bounded:
            worker.unsent(self, head.slot, self.feed.rest(), now, reason)

    @property
    def bounded(self) -> bool:
        raise NotImplementedError

    def freed(self, now: int, *, failed_connect: bool) -> None:
        """A request of this phase ended."""

    def left(self, ended_ns: int) -> None:
        """A request of this worker, of any phase, ended at `ended_ns`: one more may be in flight since then."""


class OpenRun(PhaseRun):
    """Open loop: every slot is due at its own time. Times are never re-anchored; a late slot is sent late."""

    def __init__(self, index: int, phase: Phase, feed: Feed, start_ns: int, max_in_flight: int, drain_ns: int) -> None:
        super().__init__(index, phase, feed, start_ns)
        self.max_in_flight = max_in_flight
        self.drop = phase.load.overflow == "drop"
        # When permits of the plan's own cap became free that no slot has used since, the oldest first.
        self.free_at: deque[int] = deque(maxlen=max_in_flight if phase.load.max_in_flight is not None else 0)
        self.last_end_ns = 0
        self.give_up_ns = self.end_ns + drain_ns if self.end_ns != NEVER else NEVER

    @property
    def bounded(self) -> bool:
        return True

    def issue(self, worker: Dispatcher, now: int) -> None:
        """Sends everything that is due, or as much as the cap lets through."""
        if self.issued:
            return
        start_ns = self.start_ns
        settled_ns = self.last_end_ns if self.blocked else 0  # then the budget had room again
        self.blocked = False
        while not self.issued:
            head = self.feed.peek()
            if head is None:
                self.issued = True
                return
            intended = start_ns + head.offset_ns
            if intended > now:
                return
            if worker.in_flight >= self.max_in_flight:
                if self.drop:
                    self.feed.pop()
                    worker.unsent(self, head.slot, 1, intended, Unsent.NO_CAPACITY)
                    continue
                if now >= self.give_up_ns:
                    self.stop(worker, now, Unsent.NO_CAPACITY)
                return
            if not worker.affordable(self, head):
                self.blocked = True
                return
            self.feed.pop()
            worker.dispatch(self, head, intended, max(0, self._permit_ns(worker) - intended, settled_ns - intended))

    def left(self, ended_ns: int) -> None:
        self.free_at.append(ended_ns)
        self.last_end_ns = ended_ns

    def _permit_ns(self, worker: Dispatcher) -> int:
        """Takes the permit that has been free for longest; returns since when, 0 for one that was never used.

        What the slot waited until then is the plan's cap, what it waited from then on this client: also a worker that
        was stopped finds out when the requests in flight ended, by their kernel stamps.
        """
        free_ns = 0
        while self.free_at and worker.in_flight + len(self.free_at) >= self.max_in_flight:
            free_ns = self.free_at.popleft()
        return free_ns

    def next_due_ns(self, worker: Dispatcher) -> int:
        """When issue() has to be called next."""
        if self.issued or self.blocked:
            return NEVER
        head = self.feed.peek()
        if head is None:
            return 0
        if worker.in_flight >= self.max_in_flight and not self.drop:
            return self.give_up_ns  # a request that ends calls issue() sooner
        return self.start_ns + head.offset_ns


class ClosedRun(PhaseRun):
    """Closed loop: as many in flight as the limit says. A request is intended when its permit became free."""

    def __init__(
        self, index: int, phase: Phase, feed: Feed, start_ns: int, closed: Closed, worker: int, workers: int
    ) -> None:
        super().__init__(index, phase, feed, start_ns)
        self.closed = closed
        self.worker = worker
        self.workers = workers
        self.stagger_ns = phase.load.stagger_ns
        self.free_at: deque[int] = deque()  # when permits became free that are not taken yet
        self.resting: list[int] = []  # permits that rest after a failed connection: until when

    @property
    def bounded(self) -> bool:
        return self.phase.requests is not None

    def limit(self, now: int) -> int:
        """The permits this worker has now; while starting staggered, those whose turn has come."""
        permits = self.closed.limit(now - self.start_ns, self.worker, self.workers)
        elapsed = now - self.start_ns
        if elapsed < self.stagger_ns:
            return min(permits, 1 + elapsed * permits // self.stagger_ns)
        return permits

    def issue(self, worker: Dispatcher, now: int) -> None:
        """Uses the free permits."""
        if self.issued or now < self.start_ns:
            return
        if now >= self.end_ns:
            self.stop(worker, now, Unsent.STOPPED)
            return
        self.resting = [until for until in self.resting if until > now]
        permits = self.limit(now)
        while worker.in_flight + len(self.resting) < permits:  # a request can fail, and rest, while it is dispatched
            head = self.feed.peek()
            if head is None:
                self.issued = True
                return
            if not worker.affordable(self, head):
                return
            self.feed.pop()
            intended = self.free_at.popleft() if self.free_at else max(self.start_ns, now)
            worker.dispatch(self, head, intended)
        self.free_at.clear()

    def next_due_ns(self, worker: Dispatcher) -> int:
        """When issue() has to be called next, if no request ends before."""
        if self.issued:
            return NEVER
        times = [self.end_ns, *self.resting]
        if worker.last_now < self.start_ns:
            return self.start_ns
        elapsed = worker.last_now - self.start_ns
        change = self.closed.next_change(elapsed)
        if change is not None:
            times.append(self.start_ns + change)
        if elapsed < self.stagger_ns:
            permits = max(1, self.closed.limit(elapsed, self.worker, self.workers))
            step = elapsed * permits // self.stagger_ns + 1
            times.append(self.start_ns + -(-step * self.stagger_ns // permits))
        return min(times)

    def freed(self, now: int, *, failed_connect: bool) -> None:
        """A request of this phase ended: its permit is free from now on, or rests after a failed connection."""
        if failed_connect:
            self.resting.append(now + FAILURE_PAUSE_NS)
        else:
            self.free_at.append(now)


def in_flight_cap(load: Load, worker: int, workers: int, descriptors: int) -> int:
    """This worker's exact share of `max_in_flight`; without one, what its file descriptors allow."""
    if load.max_in_flight is None:
        return descriptors
    return load.max_in_flight // workers + (worker < load.max_in_flight % workers)
