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
        """One leaves service; gives the waiter that takes its place, if any."""
        if self.waiting:
            return self.waiting.popleft()
        self.running -= 1
        return None

    def forget(self, waiter: Waiter) -> None:
        """A waiter went away. Raises ValueError if it does not wait."""
        self.waiting.remove(waiter)


class Bucket:
    """A token bucket of `per_minute`, holding at most `burst_s` seconds of it (at least one unit)."""

    __slots__ = ("_capacity", "_left", "_per_ns", "_then_ns", "per_minute")

    def __init__(self, per_minute: float, *, burst_s: float) -> None:
        self.per_minute = per_minute
        self._per_ns = per_minute / MINUTE_NS
        self._capacity = max(1.0, per_minute * burst_s / 60)
        self._left = self._capacity
        self._then_ns = 0

    def take(self, units: float, now_ns: int) -> float:
        """Takes `units` and gives 0, or takes nothing and gives the seconds until they would be there."""
        if self._then_ns:
            self._left = min(self._capacity, self._left + (now_ns - self._then_ns) * self._per_ns)
        self._then_ns = now_ns
        # A request larger than the bucket would wait for ever: it may go when the bucket is full.
        wanted = min(units, self._capacity)
        if self._left >= wanted:
            self._left -= units
            return 0.0
        return (wanted - self._left) / self._per_ns / 1e9

    @property
    def remaining(self) -> int:
        return max(0, int(self._left))

    @property
    def full_in_s(self) -> float:
        return (self._capacity - self._left) / self._per_ns / 1e9
