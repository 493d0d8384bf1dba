"""Does things at their time: a heap of due times and one absolute CLOCK_MONOTONIC timerfd for the earliest of them.

Never early, typically 60 us late on an idle core. uvloop's own timers are whole milliseconds and fire early, so they
pace nothing here. All that is due is done in one wake-up.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from heapq import heappop, heappush, heappushpop
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_CLOCK_MONOTONIC: Final = 1
_TFD_ABSTIME: Final = 1
_SECOND: Final = 1_000_000_000

Action = Callable[[int], int | None]  # takes when it was due, gives when it is due again, if at all


class _Itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")]


class Pacer:
    """`at()` takes an action and its time; the loop calls `run_due()` when `fd` is readable and after its own work."""

    __slots__ = ("_armed_ns", "_heap", "_order", "_spec", "fd", "paused")

    def __init__(self) -> None:
        self.fd = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._heap: list[tuple[int, int, Action]] = []
        self._order = 0
        self._armed_ns = 0
        self._spec = _Itimerspec()
        self.paused = False  # set by an action: what else is due stays due

    def at(self, due_ns: int, action: Action) -> None:
        """Calls `action(due_ns)` in the first `run_due()` at or after `due_ns`."""
        self._order += 1  # breaks ties in the order of asking, and keeps actions from being compared
        heappush(self._heap, (due_ns, self._order, action))

    def run_due(self) -> None:
        """Does all that is due, then arms the timer for the next."""
        heap, clock = self._heap, time.monotonic_ns
        now_ns = clock()
        entry = heappop(heap) if heap else None
        while entry is not None:
            due_ns, order, action = entry
            if due_ns > now_ns:
                now_ns = clock()
            if due_ns > now_ns or self.paused:
                heappush(heap, entry)
                break
            again_ns = action(due_ns)
            if again_ns is not None:
                entry = heappushpop(heap, (again_ns, order, action))  # one sift instead of two
            else:
                entry = heappop(heap) if heap else None
        next_ns = heap[0][0] if heap else 0
        if next_ns != self._armed_ns:
            self._arm(next_ns)

    def _arm(self, due_ns: int) -> None:
        # Setting a timerfd, also to 0, takes its expiry off it: nobody needs to read it.
        self._spec.value_s, self._spec.value_ns = divmod(due_ns, _SECOND)
        if _libc.timerfd_settime(self.fd, _TFD_ABSTIME, ctypes.byref(self._spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        self._armed_ns = due_ns

    def close(self) -> None:
        os.close(self.fd)
        self._heap.clear()
