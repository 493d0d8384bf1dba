"""One nested epoll, one receive buffer and one timer per worker: whatever wakes it comes through here.

The epoll object is registered once with the event loop (`add_reader`); a wake-up polls it once and calls the owner of
each ready file descriptor. That costs the same or less than a loop handle per socket (benches/bench_reactor.py).
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

from ..clock import StampClock, Timer

BUFFER_BYTES: Final = 1 << 18
READ: Final = select.EPOLLIN | select.EPOLLRDHUP
WRITE: Final = select.EPOLLOUT
READY_MAX: Final = 1024  # per wake-up; the rest is ready again at the next

Owner = Callable[[int], None]


class Reactor:
    """What all connections of a worker share. `owners` maps a file descriptor to the call that takes its events."""

    __slots__ = ("buffers", "clock", "epoll", "lag", "owners", "timer", "view")

    def __init__(self, clock: StampClock, lag: memoryview) -> None:
        self.clock = clock
        self.lag = lag
        self.epoll = select.epoll()
        self.owners: dict[int, Owner] = {}
        self.timer = Timer()
        buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(buffer)
        self.buffers = [buffer]

    def watch(self, fd: int, mask: int, owner: Owner) -> None:
        self.owners[fd] = owner
        self.epoll.register(fd, mask)

    def change(self, fd: int, mask: int, owner: Owner) -> None:
        self.owners[fd] = owner
        self.epoll.modify(fd, mask)

    def forget(self, fd: int) -> None:
        """Before the descriptor is closed: closing alone would leave a stale owner for the next socket of that number."""
        if self.owners.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def turn(self) -> None:
        """Serves everything that is ready now, once."""
        owners = self.owners
        for fd, mask in self.epoll.poll(0, READY_MAX):
            owner = owners.get(fd)
            if owner is not None:  # closed by an owner served before it in this turn
                owner(mask)

    def close(self) -> None:
        self.epoll.close()
        self.timer.close()
