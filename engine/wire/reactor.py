"""One nested epoll object, one receive buffer and one timer per worker: whatever wakes it comes through here.

How it works. The sockets of a worker are not registered with the event loop but with an epoll object of its own, and
that one object with the loop (`add_reader`). A wake-up polls it once without waiting and calls the owner of each ready
descriptor; whoever changes what a descriptor means replaces its owner, a dictionary entry, and needs no system call
while the mask stays. With one socket ready this costs the same as a loop handle per socket, with 8 or more a third
less (benches/bench_reactor.py), and everything ready at one time is served before anything else in the loop runs.
All reads share one buffer: a handler has to be done with the bytes before it returns. The timer is a timerfd in the
same epoll object, because the event loop's own timers are rounded to ms; it is armed for one time only, the earliest
that the worker knows.
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

    __slots__ = (
        "buffers",
        "clock",
        "due_ns",
        "epoll",
        "lag",
        "owners",
        "protected",
        "timer",
        "view",
        "yielding",
    )

    def __init__(self, clock: StampClock, lag: memoryview) -> None:
        self.clock = clock
        self.lag = lag
        self.epoll = select.epoll()
        self.owners: dict[int, Owner] = {}
        self.timer = Timer()
        buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(buffer)
        self.buffers = [buffer]
        self.due_ns = 1 << 62  # when the worker wants to send or time out next; set by the worker
        self.protected = False  # a tap was seen at work a moment ago
        self.yielding = False  # an owner found that this moment has passed: the turn ends early

    def watch(self, fd: int, mask: int, owner: Owner) -> None:
        """Registers a descriptor; raises OSError (ENOSPC) at the system's limit of watches."""
        self.owners[fd] = owner
        self.epoll.register(fd, mask)

    def change(self, fd: int, mask: int, owner: Owner) -> None:
        """Another mask and owner. Where the mask stays, assign to `owners` instead: no system call."""
        self.owners[fd] = owner
        self.epoll.modify(fd, mask)

    def forget(self, fd: int) -> None:
        """To be called before the descriptor is closed, or its owner would get the events of the next socket of that
        number."""
        if self.owners.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def turn(self) -> None:
        """Serves everything that is ready now, once, unless an owner sets `yielding`: the rest stays ready."""
        self.yielding = False
        owners = self.owners
        for fd, mask in self.epoll.poll(0, READY_MAX):
            owner = owners.get(fd)
            if owner is not None:  # closed by an owner served before it in this turn
                owner(mask)
                if self.yielding:
                    return

    def close(self) -> None:
        self.epoll.close()
        self.timer.close()
