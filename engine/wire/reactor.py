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
from time import monotonic_ns
from typing import Final

from ..clock import StampClock, Timer

BUFFER_BYTES: Final = 1 << 18
READ: Final = select.EPOLLIN | select.EPOLLRDHUP
WRITE: Final = select.EPOLLOUT
LIMITED_MAX: Final = 4096  # a cache: sizes of events are few
READY_MAX: Final = 1024  # per wake-up; the rest is ready again at the next

Owner = Callable[[int], None]
Buffers = list[bytearray | memoryview]


class Reactor:
    """What all connections of a worker share. `owners` maps a file descriptor to the call that takes its events."""

    __slots__ = (
        "buffers",
        "clock",
        "due_ns",
        "epoll",
        "first_read",
        "lag",
        "limited",
        "owners",
        "protected",
        "since_ns",
        "timer",
        "turn_ns",
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
        self.buffers: Buffers = [buffer]
        self.limited: dict[int, Buffers] = {}  # by the number of bytes that a read may take
        self.due_ns = 1 << 62  # when the worker wants to send or time out next; set by the worker
        self.protected = False  # a tap was seen at work a moment ago
        self.turn_ns = 0  # when this turn began
        self.first_read = False  # the next read of this turn is its first, and nobody has waited longer
        self.since_ns = 0  # what waits in a socket now came after this: the turn that began then left nothing unread
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

    def limit(self, size: int) -> Buffers:
        """Buffers for a read of at most `size` bytes, the next time from `limited`."""
        if len(self.limited) >= LIMITED_MAX:
            self.limited.clear()
        return self.limited.setdefault(size, [self.view[:size]])

    def turn(self) -> None:
        """Serves everything that is ready now, once, unless an owner sets `yielding`: the rest stays ready."""
        self.yielding = False
        self.first_read = self.turn_ns > 0  # a turn that ended early leaves sockets that have waited longer
        self.since_ns = self.turn_ns
        self.turn_ns = monotonic_ns()
        owners = self.owners
        ready = self.epoll.poll(0, READY_MAX)
        for fd, mask in ready:
            owner = owners.get(fd)
            if owner is not None:  # closed by an owner served before it in this turn
                owner(mask)
                if self.yielding:
                    self.turn_ns = 0
                    return
        if len(ready) == READY_MAX:
            self.turn_ns = 0

    def close(self) -> None:
        self.epoll.close()
        self.timer.close()
