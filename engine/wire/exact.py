"""A connection whose reads end where events end, so that a late worker still sees when each of them arrived.

How it works. While the tap (engine/wire/tap) holds clones, the kernel keeps segments apart and each has its own stamp,
but a read that crosses from one segment into the next returns only the last one's. So before a read FIONREAD says how
much waits. About as much as the last event took: one event, read as always. More: the bytes are peeked at, the ends of
chunks or TLS records found in them (engine/wire/boundaries.py), and read one by one. Units with equal stamps came in
one segment, or were merged before the tap saw them; they go on together, as one read, and count as coalesced. So a tap
that died or dropped clones costs exactness and never truth. A unit with an older stamp than the one before it overtook
a lost segment: it could not be read before the retransmission came, so it goes on with that, too.
FIONREAD is left out for a stream that has brought some events, never two in one read, while the worker is on time: what
waits came after the last turn began, or after what was the first to wait in this one, too short a while ago for a
second event. Should there be one, it counts as coalesced and nobody else in this turn is believed (benches/exact_reads.py).
A stream that was late has at most UNITS_MAX units read per turn; a turn that has become late for a send ends early
(`Reactor.due_ns`). What was not read makes the socket ready again.
"""

from __future__ import annotations

import socket
import termios
from array import array
from fcntl import ioctl
from time import monotonic_ns
from typing import Final

from ..records.lag import lag_bucket
from ..records.record import TTFT_COALESCED
from .boundaries import chunks, records
from .connection import ANCILLARY_BYTES, LAG_SUSPECT_NS, TIMESPEC, Connection, Context
from .exchange import Exchange
from .tls import TlsPipe

UNITS_MAX: Final = 64  # per connection and turn
PEEK_BYTES: Final = 1 << 16
ON_TIME_NS: Final = 2_000_000
SETTLED_EVENTS: Final = 16
SLACK_BYTES: Final = 32  # by how much a token's event may be longer than the last one and still pass for one event

Ancillary = list[tuple[int, int, bytes]]
read_at_once = Connection._read


class ExactConnection(Connection):
    """A Connection for segment stamps. `missing` bytes of a unit that has begun are still to come."""

    __slots__ = ("_usual", "missing", "peek", "waiting")

    def __init__(self, context: Context, sock: socket.socket, tls: TlsPipe | None, opened_ns: int) -> None:
        super().__init__(context, sock, tls, opened_ns)
        self.waiting = array("i", [0])
        self.peek = sock.recv_into
        self.missing = 0
        self._usual = 0  # bytes that may wait and be one event

    def send(self, exchange: Exchange) -> None:
        self.missing = 0
        super().send(exchange)

    def _settled(self, mask: int) -> None:
        """The reads of a stream that has brought some events, never two in one read, and no part of a unit is missing."""
        reactor = self.reactor
        if monotonic_ns() - reactor.since_ns >= ON_TIME_NS:
            self._read(mask)
            return
        read_at_once(self, mask)
        exchange = self.exchange
        if exchange is not None and exchange.coalesced:  # two in one read: this turn is late after all
            reactor.since_ns = 0
            reactor.owners[self.fd] = self._read

    def _read(self, mask: int) -> None:
        exchange = self.exchange
        reactor = self.reactor
        waiting = self.waiting
        ioctl(self.fd, termios.FIONREAD, waiting, True)
        size = waiting[0]
        if size > self._usual or self.missing:
            reactor.first_read = False
            self._read_units(mask)
            return
        # No more than was seen waiting: a worker stopped between the two calls would read the events of the stop at once.
        # (Without a limit at the end of the stream: a read of no bytes would look like it for ever.)
        self.buffers = reactor.limited.get(size) or reactor.limit(size) if size else reactor.buffers
        read_at_once(self, mask)
        self.buffers = reactor.buffers
        if exchange is None or self.exchange is None:
            return
        if reactor.first_read:
            reactor.first_read = False
            # The kernel lists ready sockets in the order in which they became ready: the others' bytes came after this.
            if exchange.read_ns > reactor.since_ns:
                reactor.since_ns = exchange.read_ns
        if exchange.events > SETTLED_EVENTS and not exchange.coalesced:
            reactor.owners[self.fd] = self._settled

    def _read_units(self, mask: int) -> None:
        """Reads what waits unit by unit, and passes on together what has one stamp."""
        exchange = self.exchange
        self.reactor.owners[self.fd] = self._read
        view = self.reactor.view
        try:
            size = self.peek(view, PEEK_BYTES, socket.MSG_PEEK)
        except OSError:
            size = 0
        if exchange is None or not size:
            super()._read(mask)
            return
        content = bytes(view[:size])
        if self.tls is None:
            ends, missing = chunks(content, head=not self.parser.status, missing=self.missing)
        else:
            ends, missing = records(content, missing=self.missing)
        if len(ends) > UNITS_MAX:
            ends, missing = ends[:UNITS_MAX], 0
        elif missing:
            ends.append(size)
        self.missing = missing
        if not ends:
            super()._read(mask)
            return
        if exchange.headers_ns:
            self._usual = ends[0] + SLACK_BYTES
        self._deliver(content, ends)
        if monotonic_ns() >= self.reactor.due_ns:
            self.reactor.yielding = True

    def _deliver(self, content: bytes, ends: list[int]) -> None:
        """Takes the units off the socket, one read each, and handles groups of equal stamps as one read each."""
        exchange = self.exchange
        groups: list[tuple[int, Ancillary]] = []  # (offset behind it, its stamp)
        latest: tuple[int, ...] = (0, 0)
        start = 0
        for end in ends:
            size, ancillary, _, _ = self.receive([self.reactor.view[: end - start]], ANCILLARY_BYTES)
            start += size
            stamp = TIMESPEC(ancillary[0][2]) if ancillary else None
            if groups and stamp is not None and stamp <= latest:
                groups[-1] = start, groups[-1][1]
            else:
                groups.append((start, ancillary))
                latest = stamp or latest
            if start < end:  # fewer bytes than were seen waiting: cannot be, and must not be guessed about
                break
        start = 0
        first_token_known = exchange is None or exchange.first_token_ns > 0
        for end, ancillary in groups:
            self._handle(content[start:end], ancillary)
            start = end
            if not first_token_known and exchange is not None and exchange.first_token_ns:
                first_token_known = True
                if self.reactor.protected:  # what has one stamp came in one segment: the server sent it so
                    exchange.flags &= ~TTFT_COALESCED
            if self.exchange is not exchange:
                self._behind(content[start : groups[-1][0]])
                return

    def _handle(self, content: bytes, ancillary: Ancillary) -> None:
        """One read of `content`, as if it had just come."""
        reactor = self.reactor
        now = monotonic_ns()
        reactor.view[: len(content)] = content
        if ancillary:
            seconds, rest = TIMESPEC(ancillary[0][2])
            lag = now - (seconds * 1_000_000_000 + rest - reactor.clock.offset_ns)
            if 15 < lag < LAG_SUSPECT_NS:  # _arrived() counts what lies outside
                reactor.lag[lag_bucket(lag)] += 1
        self._arrived(len(content), ancillary, now)

    def _behind(self, content: bytes) -> None:
        """What was read behind the end of the exchange: of its own body as a rule, else of nobody."""
        if content and self.fd >= 0 and self.exchange is None:
            self.reactor.view[: len(content)] = content
            if self.parser.complete:
                self._idle(0)
            else:
                self._drained(len(content))
