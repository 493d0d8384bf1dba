"""What a provider limits: service slots with a queue before them, and requests and tokens per minute. No clock."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter")
MINUTE_NS = 60_000_000_000


class Slots(Generic[Waiter]):
    """At most `limit` in service, at most `queue` waiting, first come first served. None means no limit."""

    __slots__ = ("_limit", "_queue", "running", "waiting")

    def __init__(self, limit: int | None, queue: int | None) -> None:
        self._limit = limit
        self._queue = queue
        self.running = 0
        self.waiting: deque[Waiter] = deque()

    def enter(self, waiter: Waiter) -> bool | None:
        """True: in service. False: waits. None: refused, the queue is full."""
        if self._limit is None or self.running < self._limit:
            self.running += 1
            return True
        if self._queue is not None and len(self.waiting) >= self._queue:
            return None
        self.waiting.append(waiter)
        return False

    def leave(self) -> Waiter | None:
        """One leaves service; returns the waiter that takes its slot, if any."""
        if self.waiting:
            return self.waiting.popleft()
        self.running -= 1
        return None

    def forget(self, waiter: Waiter) -> None:
        """A waiter went away. Raises ValueError if it does not wait."""
        self.waiting.remove(waiter)


class Bucket:
    """`per_minute` units, `burst_s` seconds of them at once (one unit at least). Exact: integer ns, no drift (GCRA)."""

    __slots__ = ("_burst_ns", "_empty_until_ns", "_now_ns", "_unit_ns", "per_minute")

    def __init__(self, per_minute: float, *, burst_s: float) -> None:
        self.per_minute = per_minute
        self._unit_ns = round(MINUTE_NS / per_minute)
        self._burst_ns = max(self._unit_ns, round(burst_s * 1e9))
        self._empty_until_ns = 0  # when it will be full again
        self._now_ns = 0

    def take(self, units: int, now_ns: int) -> float:
        """Takes `units` and returns 0, or takes nothing and returns the seconds until they would be there."""
        self._now_ns = now_ns
        taken_until_ns = max(self._empty_until_ns, now_ns) + units * self._unit_ns
        # More units than it ever holds may go when it is full, else they would wait for ever.
        early_ns = taken_until_ns - now_ns - max(self._burst_ns, units * self._unit_ns)
        if early_ns > 0:
            return early_ns / 1e9
        self._empty_until_ns = taken_until_ns
        return 0.0

    @property
    def remaining(self) -> int:
        """Units that could be taken at the last call of `take`."""
        return max(0, (self._burst_ns - max(0, self._empty_until_ns - self._now_ns)) // self._unit_ns)

    @property
    def full_in_s(self) -> float:
        return max(0, self._empty_until_ns - self._now_ns) / 1e9
