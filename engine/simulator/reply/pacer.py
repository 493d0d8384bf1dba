"""Does things at their time: a heap of due times and one absolute CLOCK_MONOTONIC timerfd for the earliest of them.

Never early, typically 60 us late on an idle core. uvloop's own timers are whole milliseconds and fire early, so they
pace nothing here. All that is due is done in one wake-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import heappop, heappush, heappushpop
from typing import Final

from ...clock import Timer

AT_ONCE: Final = 1024  # actions in one go: who is behind must still read and accept
Action = Callable[[int], int | None]  # takes when it was due, returns when it is due again, if at all


class Pacer:
    """`at()` takes an action and its time; the loop calls `run_due()` when `fd` is readable and after its own work."""

    __slots__ = ("_armed_ns", "_heap", "_order", "_timer", "fd", "paused")

    def __init__(self) -> None:
        self._timer = Timer()
        self.fd = self._timer.fileno()
        self._heap: list[tuple[int, int, Action]] = []
        self._order = 0
        self._armed_ns = 0
        self.paused = False  # set by an action: what else is due stays due

    def at(self, due_ns: int, action: Action) -> None:
        """Calls `action(due_ns)` in the first `run_due()` at or after `due_ns`."""
        self._order += 1  # breaks ties in the order of asking, and keeps actions from being compared
        heappush(self._heap, (due_ns, self._order, action))

    def run_due(self) -> None:
        """Does what is due, then arms the timer for the next (in the past, if there was too much for one go)."""
        heap, clock = self._heap, time.monotonic_ns
        now_ns = clock()
        entry = heappop(heap) if heap else None
        left = AT_ONCE
        while entry is not None:
            due_ns, order, action = entry
            if due_ns > now_ns:
                now_ns = clock()
            if due_ns > now_ns or self.paused or not left:
                heappush(heap, entry)
                break
            left -= 1
            again_ns = action(due_ns)
            if again_ns is not None:
                entry = heappushpop(heap, (again_ns, order, action))  # one sift instead of two
            else:
                entry = heappop(heap) if heap else None
        next_ns = heap[0][0] if heap else 0
        if next_ns != self._armed_ns:
            # Setting a timerfd, also to nothing, takes its expiry off it: nobody needs to read it.
            if next_ns:
                self._timer.arm(next_ns)
            else:
                self._timer.disarm()
            self._armed_ns = next_ns

    def close(self) -> None:
        self._timer.close()
        self._heap.clear()
