"""Makes a connection ready for its first request: TCP, CONNECT through a proxy, the TLS handshake. Nothing here waits.

A Dial is a chain of socket handlers, one per step: `_connected`, `_tunnelled`, `_handshaken`. It ends by exactly one
call: `ready(dial)`, with the open `socket` and its `tls`, or `failed(exchange)`, with outcome and message set. The
socket stays registered with the reactor when it is ready; the first sender replaces the handler. The marks of the
steps (`tcp_done_ns`, `tls_done_ns`) are read when the step's handler runs, and belong to the exchange that waits.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable
from time import monotonic_ns
from typing import Final

from ..errors import ProtocolError
from ..records.record import Outcome
from .endpoint import Endpoint
from .exchange import Exchange
from .proxy import Tunnel
from .reactor import READ, WRITE, Reactor
from .tls import TlsPipe, describe_tls_error

SO_TIMESTAMPNS: Final = 35  # SO_TIMESTAMPNS_OLD of asm-generic/socket.h; the socket module has no name for it
HANDSHAKE_READ_BYTES: Final = 1 << 16


class Dial:
    """One attempt to connect for one exchange, over all addresses of the endpoint."""

    __slots__ = (
        "_addresses",
        "_endpoint",
        "_failed",
        "_out",
        "_reactor",
        "_ready",
        "_tunnel",
        "exchange",
        "fd",
        "socket",
        "tls",
    )

    def __init__(
        self,
        reactor: Reactor,
        endpoint: Endpoint,
        exchange: Exchange,
        *,
        ready: Callable[[Dial], None],
        failed: Callable[[Exchange], None],
    ) -> None:
        self.exchange = exchange
        self.tls = TlsPipe(endpoint.tls_context, endpoint.server_name) if endpoint.tls_context else None
        self.fd = -1
        self._reactor = reactor
        self._endpoint = endpoint
        self._ready = ready
        self._failed = failed
        self._addresses = iter(endpoint.addresses)
        self._tunnel: Tunnel | None = None
        self._out = endpoint.connect_request  # what send() has not taken yet

    def connect(self) -> bool:
        """Starts the TCP connection to the next address. False when there is none left."""
        address = next(self._addresses, None)
        if address is None:
            return False
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self.socket = sock
            self.fd = sock.fileno()
            # Before connect(): set later, the first bytes of a reply may have no kernel stamp.
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(address.sockaddr)
            self._reactor.watch(self.fd, WRITE, self._connected)
        except OSError as error:  # EMFILE, ENFILE, ENOBUFS, or ENOSPC of the epoll object
            message = f"cannot open a socket: {error.strerror}; see ulimit -n"
            self.fail(self.exchange, Outcome.CONNECT_REFUSED, message)
            return True
        if code not in (0, errno.EINPROGRESS):
            self._connect_failed(code)
        return True

    def fail(self, exchange: Exchange, outcome: Outcome, message: str) -> None:
        """Ends the exchange with `outcome` and closes the socket."""
        exchange.fail(outcome, message, monotonic_ns())
        self._close()
        self._failed(exchange)

    def _connected(self, _mask: int) -> None:
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._connect_failed(code)
            return
        self.exchange.tcp_done_ns = monotonic_ns()
        if self._out:
            self._tunnel = self._endpoint.tunnel()
            self._reactor.change(self.fd, READ | WRITE, self._tunnelled)
        else:
            self._secure()

    def _connect_failed(self, code: int) -> None:
        self._close()
        if self.connect():
            return
        outcome, hint = Outcome.CONNECT_REFUSED, ""
        if code == errno.ETIMEDOUT:
            outcome = Outcome.CONNECT_TIMEOUT
        elif code in (errno.ECONNRESET, errno.EPIPE):
            outcome = Outcome.CONNECT_RESET
        elif code == errno.EADDRNOTAVAIL:
            hint = ": no free local port; widen net.ipv4.ip_local_port_range or keep connections alive"
        self.fail(self.exchange, outcome, f"cannot connect to {self._endpoint.where}: {os.strerror(code)}{hint}")

    def _tunnelled(self, mask: int) -> None:
        """Sends CONNECT to the proxy and reads its answer."""
        try:
            if mask & WRITE and self._out:
                self._flush()
                if not self._out:
                    self._reactor.change(self.fd, READ, self._tunnelled)
                return
            piece = self.socket.recv(HANDSHAKE_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            message = f"proxy {self._endpoint.proxy_where}: {error.strerror}"
            self.fail(self.exchange, Outcome.CONNECT_RESET, message)
            return
        try:
            done = self._tunnel is not None and self._tunnel.feed(piece)
        except ProtocolError as error:
            self.fail(self.exchange, Outcome.CONNECT_REFUSED, str(error))
            return
        if done:
            self._secure()

    def _secure(self) -> None:
        if self.tls is None:
            self._ready(self)
        else:
            self._reactor.change(self.fd, READ, self._handshaken)
            self._handshake(self.tls, b"")

    def _handshaken(self, _mask: int) -> None:
        where = self._endpoint.where
        try:
            piece = self.socket.recv(HANDSHAKE_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(self.exchange, Outcome.CONNECT_TLS, f"TLS handshake with {where}: {error.strerror}")
            return
        if not piece:
            message = f"{where} closed the connection during the TLS handshake"
            self.fail(self.exchange, Outcome.CONNECT_TLS, message)
        elif self.tls is not None:
            self._handshake(self.tls, piece)

    def _handshake(self, tls: TlsPipe, piece: bytes) -> None:
        where = self._endpoint.where
        try:
            reply, done = tls.handshake(piece)
            self._out += reply
            self._flush()  # a flight of a handshake always fits a fresh send buffer
        except ssl.SSLError as error:
            self.fail(self.exchange, Outcome.CONNECT_TLS, describe_tls_error(error, where))
            return
        except OSError as error:
            self.fail(self.exchange, Outcome.CONNECT_TLS, f"TLS handshake with {where}: {error.strerror}")
            return
        if done:
            self.exchange.tls_done_ns = monotonic_ns()
            self._ready(self)

    def _flush(self) -> None:
        if self._out:
            try:
                self._out = self._out[self.socket.send(self._out) :]
            except BlockingIOError:
                return

    def _close(self) -> None:
        if self.fd >= 0:
            self._reactor.forget(self.fd)
            self.fd = -1
            self.socket.close()
