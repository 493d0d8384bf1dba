"""One client: requests come out of its bytes, one reply at a time goes to it, plain or over TLS.

Sockets are ours: receive times are the kernel's, and send() happens right after the caller read the clock.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import httptools

from ...clock import StampClock
from ..reply.client import Client, Ongoing, Request
from ..stats import SLOT, Stats

RECORDS_BYTES: Final = 1 << 18
LINGER_0: Final = struct.pack("ii", 1, 0)
BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TIMESPEC: Final = struct.Struct("@qq")
_BYTES_RECEIVED: Final = SLOT["bytes_received"]
_BROKEN: Final = SLOT["broken_requests"]
_WRITES: Final = SLOT["writes"]
_LATE_WRITES: Final = SLOT["late_writes"]


class Owner(Protocol):
    """What a connection asks of the server that accepted it."""

    stats: Stats
    buffer: memoryview  # one for all connections: what was read is parsed before the next read
    stamps: StampClock
    receive: Callable[[Client, Request], None]

    def closed(self, connection: Connection) -> None:
        """The connection is closed."""

    def want_writable(self, fd: int, wanted: bool) -> None:
        """Calls `writable()` when the socket takes bytes again."""

    def forget(self, fd: int) -> None:
        """The socket is about to be closed."""


class Connection:
    """A client. One reply at a time; requests that come early wait. Subclasses move the bytes."""

    __slots__ = (
        "_counts", "_early", "_feeding", "_last_kernel", "_last_read_ns", "_parser", "_request", "late_writes",
        "number", "open", "reply", "sent_bytes", "server", "turns",
    )  # fmt: skip

    def __init__(self, server: Owner, number: int) -> None:
        self.server = server
        self.number = number
        self.open = True
        self.reply: Ongoing | None = None
        self.turns = 0
        self.late_writes = 0
        self.sent_bytes = 0
        self._counts = server.stats.mine
        self._parser: Any = httptools.HttpRequestParser(self)
        self._request: Request | None = None
        self._early: deque[Request] = deque()
        self._feeding = 0
        self._last_read_ns = 0
        self._last_kernel = False

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._request = Request(self._last_read_ns, self.turns)
        self.turns += 1

    def on_url(self, url: bytes) -> None:
        assert self._request
        self._request.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._request
        self._request.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._request
        if b"expect" in self._request.headers:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        assert self._request
        self._request.body.append(body)

    def on_message_complete(self) -> None:
        request, self._request = self._request, None
        assert request
        request.received_bytes += self._feeding
        request.arrival_ns = self._last_read_ns
        request.kernel = self._last_kernel
        request.method = self._parser.get_method()
        request.keep_alive = self._parser.should_keep_alive()
        if self.reply is None:
            self.server.receive(self, request)
        else:
            self._early.append(request)

    # What the transports call.

    def take(self, received: memoryview | bytes, read_ns: int, kernel: bool) -> None:
        """Feeds what was received to the parser."""
        self._last_read_ns = read_ns
        self._last_kernel = kernel
        self._feeding = len(received)
        self._counts[_BYTES_RECEIVED] += self._feeding
        try:
            self._parser.feed_data(received)
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError:
            self._counts[_BROKEN] += 1
            self.send(BAD_REQUEST)
            self.finish()
        if self._request is not None:
            self._request.received_bytes += self._feeding

    def lost(self) -> None:
        """The client is gone."""
        self.close(by_client=True)

    # What replies call.

    def done(self) -> None:
        """The reply is over; the next request may be answered."""
        self.reply = None
        if self._early and self.open:
            self.server.receive(self, self._early.popleft())

    def close(self, *, by_client: bool = False) -> None:
        """Closes. Never twice; a reply in progress ends."""
        if not self.open:
            return
        self.open = False
        self._parser = None  # the parser holds this object: with the collector off, a cycle would stay for ever
        self._early.clear()
        self._close()
        self.server.closed(self)
        if self.reply is not None:
            self.reply.abandoned(by_client=by_client)

    def finish(self) -> None:
        """Closes once all that was sent is with the kernel."""
        self.close()

    def reset(self) -> None:
        """Closes with an RST."""
        with contextlib.suppress(OSError):
            self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self.close()

    def send_split(self, payload: bytes, writes: int) -> int:
        """Sends the bytes in so many writes of about equal size; returns the time before the last one."""
        size = max(1, len(payload) // writes)
        last = size * (-(-len(payload) // size) - 1)
        for start in range(0, last, size):
            self.send(payload[start : start + size])
        last_ns = time.monotonic_ns()
        self.send(payload[last:])
        return last_ns

    def send(self, payload: bytes) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _socket(self) -> Any:
        raise NotImplementedError


class PlainConnection(Connection):
    """Over our own non-blocking socket in the server's epoll."""

    __slots__ = ("_backlog", "_finishing", "_send", "_sock")

    def __init__(self, server: Owner, number: int, sock: socket.socket) -> None:
        super().__init__(server, number)
        self._sock = sock
        self._send = sock.send
        self._backlog = bytearray()
        self._finishing = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def readable(self) -> None:
        """Reads once: the epoll is level-triggered and calls again if there is more."""
        server = self.server
        try:
            count, ancillary, _, _ = self._sock.recvmsg_into([server.buffer], 64)
        except BlockingIOError:
            return
        except OSError:
            self.lost()
            return
        if not count:
            self.lost()
        elif ancillary:
            seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2][:16])
            self.take(server.buffer[:count], seconds * 1_000_000_000 + nanoseconds - server.stamps.offset_ns, True)
        else:
            self.take(server.buffer[:count], time.monotonic_ns(), False)

    def send(self, payload: bytes) -> None:
        """Hands the bytes to the kernel at once; what does not fit goes when the socket is writable, and is counted."""
        if not self.open:
            return
        self._counts[_WRITES] += 1
        self.sent_bytes += len(payload)
        if self._backlog:
            self._backlog += payload
            self._late()
            return
        try:
            sent = self._send(payload)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.lost()
            return
        if sent != len(payload):
            self._backlog += payload[sent:]
            self._late()
            self.server.want_writable(self.fileno(), True)

    def _late(self) -> None:
        self.late_writes += 1
        self._counts[_LATE_WRITES] += 1

    def writable(self) -> None:
        """Sends on what had to wait."""
        if not self.open:
            return
        try:
            sent = self._sock.send(self._backlog)
        except BlockingIOError:
            return
        except OSError:
            self.lost()
            return
        del self._backlog[:sent]
        if self._backlog:
            return
        self.server.want_writable(self.fileno(), False)
        if self._finishing:
            self.close()

    def finish(self) -> None:
        self._finishing = True
        if not self._backlog:
            self.close()

    def _close(self) -> None:
        self.server.forget(self.fileno())
        self._sock.close()

    def _socket(self) -> Any:
        return self._sock


class TlsConnection(PlainConnection):
    """TLS over memory buffers, so that receive times are the kernel's here too, and a write is sent when it is made.

    A send time is read before the record is encrypted: it is that much earlier than the record's own.
    """

    __slots__ = ("_established", "_incoming", "_outgoing", "_tls")

    def __init__(self, server: Owner, number: int, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(server, number, sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._established = False

    def take(self, received: memoryview | bytes, read_ns: int, kernel: bool) -> None:
        """Feeds what was received to TLS, and what it holds to the parser."""
        self._incoming.write(received)
        plain = b""
        try:
            if not self._established:
                self._tls.do_handshake()
                self._established = True
            while piece := self._tls.read(RECORDS_BYTES):
                plain += piece
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:  # the client's close_notify, or no TLS; an alert may have to be sent
            self._send_records()
            self.lost()
            return
        self._send_records()
        if plain and self.open:
            super().take(plain, read_ns, kernel)

    def send(self, payload: bytes) -> None:
        if self.open and payload:
            self._tls.write(payload)
            super().send(self._outgoing.read())

    def finish(self) -> None:
        """Closes with close_notify (RFC 8446 section 6.1): without it the client must take the reply for cut off."""
        if self.open and self._established:
            with contextlib.suppress(ssl.SSLError):  # the client's own has not come yet, and is not waited for
                self._tls.unwrap()
            self._send_records()
        super().finish()

    def _send_records(self) -> None:
        if records := self._outgoing.read():
            super().send(records)
