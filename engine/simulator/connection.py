"""One client: requests come out of its bytes, one reply at a time goes to it, and it can be reset. No sockets here."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import httptools

from .stats import SLOT

if TYPE_CHECKING:
    from .reply import Reply
    from .server import Server

LINGER_0: Final = struct.pack("ii", 1, 0)
_BYTES_RECEIVED: Final = SLOT["bytes_received"]


class Request:
    """One request, whole."""

    __slots__ = (
        "arrival_ns",
        "body",
        "first_byte_ns",
        "headers",
        "keep_alive",
        "kernel",
        "method",
        "received_bytes",
        "turn",
        "url",
    )

    def __init__(self) -> None:
        self.url = b""
        self.method = b""
        self.headers: dict[bytes, bytes] = {}
        self.body: list[bytes] = []
        self.first_byte_ns = 0
        self.arrival_ns = 0
        self.kernel = False
        self.keep_alive = True
        self.received_bytes = 0
        self.turn = 0


class Connection:
    """A client. One reply at a time; requests that come early wait. Subclasses move the bytes."""

    __slots__ = (
        "_counts", "_early", "_feeding", "_last_kernel", "_last_read_ns", "_parser", "_request", "late_writes",
        "number", "open", "reply", "sent_bytes", "server", "turns",
    )  # fmt: skip

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.number = number
        self.open = True
        self.reply: Reply | None = None
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
        request = self._request = Request()
        request.first_byte_ns = self._last_read_ns
        request.turn = self.turns
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
            self.server.broken(self)
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

    def send_split(self, payload: bytes) -> int:
        """Sends every byte in its own write; gives the time before the last one."""
        for index in range(len(payload) - 1):
            self.send(payload[index : index + 1])
        last_ns = time.monotonic_ns()
        self.send(payload[-1:])
        return last_ns

    def send(self, payload: bytes) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _socket(self) -> Any:
        raise NotImplementedError
