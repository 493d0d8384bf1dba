"""How a client's bytes move: plain sockets of ours, or TLS by uvloop.

Plain sockets are ours: receive times are the kernel's, and send() happens right after the caller read the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final

from .connection import LINGER_0, Connection
from .stats import SLOT

if TYPE_CHECKING:
    from .server import Server

_TIMESPEC: Final = struct.Struct("@qq")
_WRITES: Final = SLOT["writes"]
_LATE_WRITES: Final = SLOT["late_writes"]


class PlainConnection(Connection):
    """Over our own non-blocking socket in the server's epoll."""

    __slots__ = ("_backlog", "_finishing", "_send", "_sock")

    def __init__(self, server: Server, number: int, sock: socket.socket) -> None:
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
            self.take(server.buffer_view[:count], seconds * 1_000_000_000 + nanoseconds - server.stamps.offset_ns, True)
        else:
            self.take(server.buffer_view[:count], time.monotonic_ns(), False)

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
            self.server.want_writable(self, True)

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
        self.server.want_writable(self, False)
        if self._finishing:
            self.close()

    def finish(self) -> None:
        self._finishing = True
        if not self._backlog:
            self.close()

    def _close(self) -> None:
        self.server.forget(self)
        self._sock.close()

    def _socket(self) -> Any:
        return self._sock


class TlsConnection(Connection, asyncio.Protocol):
    """Over uvloop's TLS transport. Receive times are read by us, not stamped by the kernel."""

    __slots__ = ("_transport",)

    def __init__(self, server: Server, number: int) -> None:
        super().__init__(server, number)
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        if not self.server.hold(lambda: self._late_data(data, now_ns)):
            self._late_data(data, now_ns)

    def _late_data(self, data: bytes, read_ns: int) -> None:
        if self.open:
            self.take(data, read_ns, False)
            self.server.run_due()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost()
        self._transport = None

    def send(self, payload: bytes) -> None:
        if self.open:
            self._counts[_WRITES] += 1
            self.sent_bytes += len(payload)
            self._transport.write(payload)

    def reset(self) -> None:
        with contextlib.suppress(OSError):
            self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self._transport.abort()
        self.close()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _socket(self) -> Any:
        return self._transport.get_extra_info("socket")
