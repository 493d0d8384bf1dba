"""One simulator process: its sockets, its timer and its freezes. What requests get is decided in reply/.

All sockets are in one epoll that uvloop watches beside the timer; one poll per wake-up, and one wake-up of the timer
sends all that is due.
"""

from __future__ import annotations

import asyncio
import gc
import select
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from ...clock import SO_TIMESTAMPNS, StampClock
from ..log import RequestLog
from ..reply.admission import Admission
from ..reply.client import Client, Request
from ..reply.pacer import Pacer
from ..reply.service import Service
from ..script import Script
from ..stats import SLOT, Stats
from .connection import Connection, PlainConnection, TlsConnection

BUFFER_BYTES: Final = 1 << 18
SECOND: Final = 1_000_000_000


class Server:
    """Serves one listening socket by a script until `stop()`."""

    def __init__(
        self,
        script: Script,
        stats: Stats,
        *,
        rank: int = 0,
        log: RequestLog | None = None,
        log_tokens: bool = False,
        require_key: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        stats.own(rank)
        self.stats = stats
        self.pacer = Pacer()
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.stamps = StampClock()
        service = Service(script, stats, self.pacer, rank=rank, log=log, log_tokens=log_tokens)
        admission = Admission(service, require_key=require_key, on_first=self._plan_freezes)
        self.receive: Callable[[Client, Request], None] = admission.receive
        self._script = script
        self._offset_until_ns = 0
        self._tls = tls
        self._log = log
        self._epoll = select.epoll()
        self._connections: dict[int, PlainConnection] = {}
        self._open: set[Connection] = set()
        self._accepted = 0
        self._frozen = False
        self._thaw = Pacer()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: socket.socket | None = None

    # The loop.

    def start(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        """Serves `listener` (bound, listening, non-blocking) on `loop`."""
        self._loop = loop
        self._listener = listener
        # Accepted sockets inherit it, so that not even the first byte comes unstamped.
        listener.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._sample_clocks(time.monotonic_ns())
        self._watch()
        gc.collect()
        gc.freeze()
        gc.disable()

    def stop(self) -> None:
        """Ends every reply as not completed, closes everything and writes the log out."""
        assert self._loop
        assert self._listener
        self._unwatch()
        self._loop.remove_reader(self._thaw.fd)
        self._listener.close()
        for connection in list(self._open):
            connection.close()
        self._epoll.close()
        self.pacer.close()
        self._thaw.close()
        if self._log:
            self._log.close()

    def _watch(self) -> None:
        assert self._loop
        self._loop.add_reader(self._epoll.fileno(), self._wake)
        self._loop.add_reader(self.pacer.fd, self.pacer.run_due)

    def _unwatch(self) -> None:
        assert self._loop
        self._loop.remove_reader(self._epoll.fileno())
        self._loop.remove_reader(self.pacer.fd)

    def _wake(self) -> None:
        now_ns = time.monotonic_ns()
        if now_ns > self._offset_until_ns:
            self._sample_clocks(now_ns)
        for fd, mask in self._epoll.poll(0, 512):
            connection = self._connections.get(fd)
            if connection is not None:
                if mask & select.EPOLLOUT:
                    connection.writable()
                if mask & ~select.EPOLLOUT and connection.open:
                    connection.readable()
            elif self._listener and fd == self._listener.fileno():
                self._accept(self._listener)
        self.run_due()

    def run_due(self) -> None:
        """Does what is due by now, unless frozen."""
        if not self._frozen:
            self.pacer.run_due()

    def _sample_clocks(self, now_ns: int) -> None:
        self.stamps.resample()
        self._offset_until_ns = now_ns + SECOND
        self.stats.mine[SLOT["cpu_ns"]] = time.process_time_ns()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:  # none left (or none to be had: out of descriptors); the epoll calls again
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._accepted += 1
            self.stats.mine[SLOT["connections"]] += 1
            self.stats.mine[SLOT["connections_open"]] += 1
            if self._tls is None:
                connection = PlainConnection(self, self._accepted, sock)
            else:
                connection = TlsConnection(self, self._accepted, sock, self._tls)
            self._connections[sock.fileno()] = connection
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            self._open.add(connection)

    def want_writable(self, fd: int, wanted: bool) -> None:
        """Calls `writable()` of the connection when its socket takes bytes again."""
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def forget(self, fd: int) -> None:
        """The connection's socket is about to be closed."""
        self._epoll.unregister(fd)
        del self._connections[fd]

    def closed(self, connection: Connection) -> None:
        """A connection is closed."""
        self._open.discard(connection)
        self.stats.mine[SLOT["connections_open"]] -= 1

    # Freezing: nothing is read, answered or sent; then everything that is due at once.

    def _freeze(self, until_ns: int, due_ns: int) -> None:
        assert self._loop
        self.stats.mine[SLOT["freezes"]] += 1
        self._frozen = True
        self.pacer.paused = True
        self._unwatch()
        self._loop.add_reader(self._thaw.fd, self._thawed)
        self._thaw.at(until_ns, self._resume)
        self._thaw.run_due()

    def _thawed(self) -> None:
        self._thaw.run_due()

    def _resume(self, due_ns: int) -> None:
        assert self._loop
        self._frozen = False
        self.pacer.paused = False
        self._loop.remove_reader(self._thaw.fd)
        self._watch()
        self._wake()

    def _plan_freezes(self, first_ns: int) -> None:
        for start_s, end_s in self._script.freeze:
            until_ns = first_ns + int(end_s * SECOND)
            self.pacer.at(first_ns + int(start_s * SECOND), partial(self._freeze, until_ns))
