"""Calls that are due at a time: a heap, looked at by the worker's loop. Owns no clock and no timer of the kernel."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

Entry = tuple[int, int, Callable[..., None], tuple[Any, ...]]  # due_ns, serial, call, its arguments


class Timers:
    """Calls in the order of their times, those of one time in the order in which they were asked for."""

    __slots__ = ("_entries", "_serial")

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._serial = 0  # unique, so that two entries of one time never compare their calls

    def at(self, due_ns: int, call: Callable[..., None], *args: Any) -> None:
        """Has `call(*args)` called by the first run_due() at or after `due_ns`."""
        self._serial += 1
        heapq.heappush(self._entries, (due_ns, self._serial, call, args))

    def run_due(self, now_ns: int) -> None:
        """Makes the calls that are due, also those that they add."""
        while self._entries and self._entries[0][0] <= now_ns:
            _, _, call, args = heapq.heappop(self._entries)
            call(*args)

    def next_ns(self) -> int:
        """When the next call is due. There is always one: the heartbeat."""
        return self._entries[0][0]

    def take_out(self, call: Callable[..., None], first: object) -> list[tuple[Any, ...]]:
        """Removes every `call` whose first argument is `first`; returns their arguments in the order they are due."""
        chosen: list[Entry] = []
        others: list[Entry] = []
        for entry in self._entries:
            (chosen if entry[2] == call and entry[3][0] is first else others).append(entry)
        heapq.heapify(others)
        self._entries = others
        return [entry[3] for entry in sorted(chosen)]
