"""TCP segments put together: the bytes of each direction in order, and when each of them could be read. Sans-IO.

A receiver can read a byte when it and all before it have come (RFC 9293, 3.10.7.4). A segment that overtook a lost one
therefore counts from the retransmission on, and a second copy of what has come counts for nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from .packets import End, Segment

HALF: Final = 1 << 31
SEQUENCE: Final = 1 << 32


class Stream:
    """One direction of a connection. `ends` and `times_ns` say from when on the bytes before an offset could be read."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.ends: list[int] = []
        self.times_ns: list[int] = []
        self._first: int | None = None  # sequence number of offset 0
        self._waiting: dict[int, bytes] = {}  # by offset, behind a hole

    @property
    def incomplete(self) -> bool:
        """Is there a hole that the capture never filled?"""
        return bool(self._waiting)

    def begin(self, seq: int) -> None:
        """A SYN of this sequence number: the first byte has the next one."""
        if self._first is None:
            self._first = (seq + 1) % SEQUENCE

    def add(self, seq: int, payload: bytes, time_ns: int) -> None:
        """Takes a segment's payload in, in the order of capture."""
        if self._first is None:  # captured from its middle on
            self._first = seq
        offset = self._offset(seq)
        if offset > len(self.content):
            if len(payload) > len(self._waiting.get(offset, b"")):
                self._waiting[offset] = payload
            return
        self._append(offset, payload)
        while self._waiting and (first := min(self._waiting)) <= len(self.content):
            self._append(first, self._waiting.pop(first))
        if len(self.content) > (self.ends[-1] if self.ends else 0):
            self.ends.append(len(self.content))
            self.times_ns.append(time_ns)

    def _offset(self, seq: int) -> int:
        """Sequence numbers wrap at 4 GiB: the offset is the one nearest to what has come."""
        assert self._first is not None
        here = len(self.content)
        ahead = (seq - self._first - here) % SEQUENCE
        return here + (ahead - SEQUENCE if ahead >= HALF else ahead)

    def _append(self, offset: int, payload: bytes) -> None:
        known = len(self.content) - offset
        if known < len(payload):
            self.content += payload[known:] if offset >= 0 else b""

    def readable_ns(self, end: int) -> int:
        """When all bytes before offset `end` (over 0, at most what came) could be read."""
        return self.times_ns[bisect_left(self.ends, end)]


class Connection:
    """Both directions of one TCP connection. `cut` payload bytes were left out by the capture's snap length."""

    def __init__(self) -> None:
        self.request = Stream()  # client to server
        self.reply = Stream()
        self.cut = 0


def connections(
    segments: Iterable[Segment], servers: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], list[Connection]]:
    """The connections to these servers, by server, in the order of their first segment. An address "" is any of that port."""
    wanted = {*servers}
    by_port = {port for address, port in wanted if not address}
    open_: dict[tuple[End, End], Connection] = {}
    found: dict[tuple[str, int], list[Connection]] = {server: [] for server in wanted}

    def server_of(end: End) -> tuple[str, int] | None:
        if end in wanted:
            return end
        return ("", end[1]) if end[1] in by_port else None

    for segment in segments:
        server = server_of(segment.destination)
        to_server = server is not None
        if server is None:
            server = server_of(segment.source)
        if server is None:
            continue
        pair = (segment.source, segment.destination) if to_server else (segment.destination, segment.source)
        connection = open_.get(pair)
        new = to_server and segment.syn and not segment.ack and connection is not None and connection.request.content
        if connection is None or new:  # the client's port may be used again
            connection = open_[pair] = Connection()
            found[server].append(connection)
        stream = connection.request if to_server else connection.reply
        if segment.syn:
            stream.begin(segment.seq)
        if segment.payload or segment.cut:
            connection.cut += segment.cut
            stream.add(segment.seq + segment.syn, segment.payload, segment.time_ns)
    return found
