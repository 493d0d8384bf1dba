"""One socket, one request in flight. Every read carries the kernel's receive stamp; nothing here waits.

The socket's handler is the connection's state: `_connected`, `_tunnelled`, `_shaken`, `_written`, `_read`, `_idle`.
A failure is data: it ends the exchange with an Outcome and closes the socket.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

import httptools

from ..dialects import END, FAILED
from ..dialects.outcomes import kept_headers
from ..errors import ProtocolError
from ..records import record
from ..records.record import Outcome
from ..records.ring import lag_bucket
from .framing import Framing, framing_of
from .http1 import ResponseParser, described
from .reactor import READ, WRITE
from .tls import TlsPipe, describe_tls_error

if TYPE_CHECKING:
    from .endpoint import Address
    from .exchange import Exchange
    from .pool import Pool
    from .proxy import Tunnel

SO_TIMESTAMPNS: Final = 35
ANCILLARY_BYTES: Final = 64
LAG_SUSPECT_NS: Final = 500_000_000  # later than this the mapping is checked again before it is believed
ERROR_BODY_BYTES: Final = 64 << 10
WHOLE_BODY_BYTES: Final = 64 << 20
TCP_INFO_BYTES: Final = 32  # of struct tcp_info (linux/tcp.h): state in byte 0, unacked segments in bytes 24 to 27
TCPI_UNACKED: Final = slice(24, 28)
TCP_CLOSE: Final = 7

UNREADABLE: Final = frozenset({Outcome.STREAM_MALFORMED, Outcome.STREAM_TRUNCATED})

_timespec = struct.Struct("<qq").unpack_from


class Connection:
    """A connection of one pool, from connect to close. `exchange` is None while it is idle or draining."""

    __slots__ = (
        "body",
        "body_bytes",
        "clear",
        "exchange",
        "fd",
        "framing",
        "opened_ns",
        "out",
        "parser",
        "pool",
        "reactor",
        "receive",
        "reply_bytes",
        "reused",
        "socket",
        "tls",
        "transmit",
        "tunnel",
        "untried",
    )

    def __init__(self, pool: Pool, exchange: Exchange) -> None:
        self.pool = pool
        self.reactor = pool.reactor
        self.exchange: Exchange | None = exchange
        self.parser = ResponseParser()
        self.tls: TlsPipe | None = None
        self.framing: Framing | None = None
        self.clear: Callable[[memoryview], None] | None = None  # the parser's feed, while a stream in the clear is read
        self.body: list[bytes] = []  # of a reply that is no stream
        self.body_bytes = 0
        self.out = b""  # what send() has not taken yet
        self.reused = False
        self.reply_bytes = 0
        self.fd = -1
        self.untried: list[Address] = []
        self.tunnel: Tunnel | None = None
        exchange.connection = self

    def connect(self, address: Address) -> None:
        """Starts the TCP connection. The time stamp option is set first, so that not even the first byte misses it."""
        sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self.fd = sock.fileno()
        self.receive = sock.recvmsg_into
        self.transmit = sock.send
        code = sock.connect_ex(address.sockaddr)
        self.reactor.watch(self.fd, WRITE, self._connected)
        if code not in (0, errno.EINPROGRESS):
            self._connect_failed(code)

    def _connected(self, _mask: int) -> None:
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._connect_failed(code)
            return
        exchange = self._busy()
        self.opened_ns = exchange.tcp_done_ns = monotonic_ns()
        endpoint = self.pool.endpoint
        if endpoint.connect_request:
            self.out = endpoint.connect_request
            self.tunnel = endpoint.tunnel()
            self.reactor.change(self.fd, READ | WRITE, self._tunnelled)
        else:
            self._secure()

    def _connect_failed(self, code: int) -> None:
        if self.pool.try_next_address(self):
            return
        outcome = {
            errno.ECONNREFUSED: Outcome.CONNECT_REFUSED,
            errno.ETIMEDOUT: Outcome.CONNECT_TIMEOUT,
        }.get(code, Outcome.CONNECT_RESET if code in (errno.ECONNRESET, errno.EPIPE) else Outcome.CONNECT_REFUSED)
        hint = ""
        if code == errno.EADDRNOTAVAIL:
            hint = ": no free local port; widen net.ipv4.ip_local_port_range or keep connections alive"
        self.fail(outcome, f"cannot connect to {self.pool.endpoint.where}: {os.strerror(code)}{hint}")

    def _tunnelled(self, mask: int) -> None:
        """Talks CONNECT with the proxy."""
        if mask & WRITE and self.out:
            self._flush()
            if not self.out:
                self.reactor.change(self.fd, READ, self._tunnelled)
            return
        try:
            piece = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(Outcome.CONNECT_RESET, f"proxy {self.pool.endpoint.proxy_where}: {error.strerror}")
            return
        try:
            assert self.tunnel is not None
            done = self.tunnel.feed(piece)
        except ProtocolError as error:
            self.fail(Outcome.CONNECT_REFUSED, str(error))
            return
        if done:
            self._secure()

    def _secure(self) -> None:
        endpoint = self.pool.endpoint
        if endpoint.tls_context is None:
            self.start()
            return
        self.tls = TlsPipe(endpoint.tls_context, endpoint.server_name)
        self.reactor.change(self.fd, READ, self._shaken)
        self._shake(b"")

    def _shaken(self, _mask: int) -> None:
        try:
            piece = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(Outcome.CONNECT_TLS, f"TLS handshake with {self.pool.endpoint.where}: {error.strerror}")
            return
        if piece:
            self._shake(piece)
        else:
            self.fail(Outcome.CONNECT_TLS, f"{self.pool.endpoint.where} closed the connection during the TLS handshake")

    def _shake(self, piece: bytes) -> None:
        tls = self.tls
        assert tls is not None
        try:
            reply, done = tls.handshake(piece)
        except ssl.SSLError as error:
            self.fail(Outcome.CONNECT_TLS, describe_tls_error(error, self.pool.endpoint.where))
            return
        if reply:
            self.out += reply
            self._flush()  # a flight of a handshake always fits a fresh send buffer
        if done and self.exchange is not None:
            exchange = self.exchange
            exchange.tls_done_ns = monotonic_ns()
            exchange.flags |= record.TLS
            self.start()

    def reuse(self, exchange: Exchange) -> None:
        """Sends another request on this idle connection."""
        self.reused = True
        self.exchange = exchange
        exchange.connection = self
        exchange.flags |= record.REUSED
        if self.tls is not None:
            exchange.flags |= record.TLS
        self.parser.reset()
        self.start()

    def start(self) -> None:
        """Sends the request, head and body together; the send mark is read immediately before send()."""
        exchange = self.exchange
        assert exchange is not None
        self.reply_bytes = 0
        self.framing = None
        self.clear = None
        wire = exchange.wire if self.tls is None else self.tls.encrypt(exchange.wire)
        self.pool.sending(exchange)
        now = monotonic_ns()
        try:
            sent = self.transmit(wire)
        except BlockingIOError:
            sent = 0
        except OSError:
            exchange.last_send_ns = now
            self._broken("connection reset while sending")
            return
        exchange.last_send_ns = now
        if not exchange.send_ns:
            exchange.send_ns = now
        exchange.sent_bytes += len(exchange.wire)
        if sent < len(wire):
            self.out = wire[sent:]
            self.reactor.change(self.fd, READ | WRITE, self._written)
        elif self.reused:
            self.reactor.owners[self.fd] = self._read
        else:
            self.reactor.change(self.fd, READ, self._read)

    def _written(self, mask: int) -> None:
        """Sends the rest of a large body; an early reply is read meanwhile."""
        if mask & WRITE:
            try:
                self._flush()
            except OSError:
                self._upload_cut()
                return
            if not self.out:
                self.reactor.change(self.fd, READ, self._read)
        if mask & ~WRITE:
            self._read(mask)

    def _upload_cut(self) -> None:
        """The server closed under the upload. What it said before, a 413 perhaps, is the outcome."""
        exchange, seen = self.exchange, -1
        while self.exchange is exchange and self.reply_bytes > seen:
            seen = self.reply_bytes
            self._read(READ)
        if self.exchange is exchange:
            self._broken("connection reset while sending")

    def _flush(self) -> None:
        try:
            self.out = self.out[self.transmit(self.out) :]
        except BlockingIOError:
            return

    def _read(self, _mask: int) -> None:
        reactor = self.reactor
        try:
            size, ancillary, _, _ = self.receive(reactor.buffers, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._broken("connection reset by the server")
            return
        now = monotonic_ns()
        if not size:
            self._ended(now)
            return
        if ancillary:
            seconds, rest = _timespec(ancillary[0][2])
            stamp = seconds * 1_000_000_000 + rest - reactor.clock.offset_ns
            lag = now - stamp
            if 15 < lag < LAG_SUSPECT_NS:
                bits = lag.bit_length()
                reactor.lag[bits - 4 << 4 | lag >> bits - 5 & 15] += 1  # lag_bucket(), in place: 0.3 us less
                if self.clear is not None:
                    self._streamed(size, stamp)
                    return
        self._arrived(size, ancillary, now)

    def _streamed(self, size: int, stamp: int) -> None:
        """One read of a stream in the clear with a kernel stamp, the common case; whatever is not goes the general way."""
        exchange = self.exchange
        framing = self.framing
        parser = self.parser
        assert exchange is not None
        assert framing is not None
        assert self.clear is not None
        exchange.received_bytes += size
        try:
            self.clear(self.reactor.view[:size])
            pieces = parser.bodies
            if len(pieces) == 1 and not parser.complete:
                events = framing.feed(pieces.pop())
                if len(events) == 1 and not framing.pending:
                    bits = exchange.take_one(events[0], stamp, True)
                else:
                    bits = exchange.take(events, stamp, True, not framing.pending) if events else 0
                if bits & (END | FAILED):
                    exchange.end_ns = stamp
                    self._decided(exchange, bits)
            else:
                if not pieces:
                    parser.bare(size)
                self._take(exchange, stamp, True)
        except (ProtocolError, httptools.HttpParserError) as error:
            exchange.end_ns = stamp
            if parser.complete and isinstance(error, httptools.HttpParserError):  # bytes after the reply: it stands
                parser.keep_alive = False
                self._take(exchange, stamp, True)
                return
            known = error if isinstance(error, ProtocolError) else described(error)
            self.fail(Outcome.STREAM_MALFORMED, str(known))

    def _arrived(self, size: int, ancillary: list[tuple[int, int, bytes]], now: int) -> None:
        """One read in any state of the reply: the head, an error body, TLS, a read without a stamp."""
        reactor = self.reactor
        kernel = bool(ancillary)
        stamp = now
        if kernel:
            seconds, rest = _timespec(ancillary[0][2])
            stamp = seconds * 1_000_000_000 + rest - reactor.clock.offset_ns
            if not 15 < now - stamp < LAG_SUSPECT_NS:
                if not 0 <= now - stamp < LAG_SUSPECT_NS:
                    stamp, kernel = self.pool.suspect(stamp, now)
                reactor.lag[lag_bucket(now - stamp)] += 1
        exchange = self.exchange
        if exchange is None:
            self.close()
            return
        if not kernel:
            reactor.user_stamps += 1
            exchange.flags |= record.USER_CLOCK
        exchange.received_bytes += size
        self.reply_bytes += size
        parser = self.parser
        try:
            if self.tls is None:
                parser.feed(reactor.view[:size])
            else:
                parser.feed(self.tls.decrypt(reactor.view[:size]))
            if not exchange.headers_ns:
                if not parser.status:
                    return
                exchange.headers_ns = stamp
                self._headers(exchange)
            self._take(exchange, stamp, kernel)
        except ProtocolError as error:
            exchange.end_ns = stamp
            self.fail(Outcome.STREAM_MALFORMED, str(error))
        except ssl.SSLError as error:
            exchange.end_ns = stamp
            self.fail(Outcome.STREAM_TRUNCATED, describe_tls_error(error, self.pool.endpoint.where))

    def _headers(self, exchange: Exchange) -> None:
        parser = self.parser
        exchange.http_status = parser.status
        exchange.kept_headers = kept_headers(parser.headers)
        if 200 <= parser.status < 300 and self.pool.target.stream:
            kind = self.pool.framing(exchange.reply, parser.headers.get(b"content-type", b"").decode("latin-1"))
            if kind == "none":
                exchange.flags |= record.FRAMED_ONCE
            else:
                exchange.flags |= record.STREAMED
                self.framing = framing_of(kind)
                if self.tls is None and not parser.encoded:
                    self.clear = parser.feed_data

    def _take(self, exchange: Exchange, stamp: int, kernel: bool) -> None:
        """Gives what one read brought to the framing and the dialect, and ends the exchange where they say so."""
        parser = self.parser
        pieces = parser.bodies
        framing = self.framing
        if framing is None:
            self.body += pieces
            self.body_bytes += sum(map(len, pieces))
            pieces.clear()
            success = 200 <= parser.status < 300
            if parser.complete:
                exchange.end_ns = stamp
                self._whole(exchange)
            elif self.body_bytes > (WHOLE_BODY_BYTES if success else ERROR_BODY_BYTES):
                exchange.end_ns = stamp
                if success:
                    raise ProtocolError(f"reply body is larger than {WHOLE_BODY_BYTES} bytes")
                self._whole(exchange)
            return
        if pieces:
            events = framing.feed(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            pieces.clear()
            if events:
                bits = exchange.take(events, stamp, kernel, not framing.pending)
                if bits & (END | FAILED):
                    exchange.end_ns = stamp
                    self._decided(exchange, bits)
                    return
        if parser.complete:
            exchange.end_ns = stamp
            self._decided(exchange, self._last_words(exchange, framing, stamp, kernel))

    def _last_words(self, exchange: Exchange, framing: Framing, stamp: int, kernel: bool) -> int:
        """Takes an event that the end of the body left without its blank line. Half an event is a truncation, no error."""
        events = framing.flush()
        bits = exchange.take(events, stamp, kernel, True) if events else 0
        if bits & FAILED and exchange.reply.outcome is Outcome.STREAM_MALFORMED:
            return 0
        return bits

    def _decided(self, exchange: Exchange, bits: int) -> None:
        """The stream is over, by its terminal marker, an error event or the end of the body."""
        reply = exchange.reply
        if bits & FAILED:
            exchange.error = reply.error
            exchange.outcome = reply.outcome
            self._done(exchange, reuse=False)
        elif reply.finished() or bits & END:
            exchange.outcome = reply.outcome
            exchange.error = reply.error
            self._done(exchange, reuse=True)
        else:
            cut = "the stream ended before its terminal marker"
            exchange.outcome, exchange.error = self._no_stream(exchange) or (Outcome.STREAM_TRUNCATED, cut)
            self._done(exchange, reuse=True)

    def _no_stream(self, exchange: Exchange) -> tuple[Outcome, str] | None:
        """The outcome of a success that is a page or a text in the place of an event stream; None if it is neither."""
        kind = self.parser.headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip()
        if exchange.events or exchange.reply.framing != "sse" or kind in ("", "text/event-stream"):
            return None
        return Outcome.STREAM_MALFORMED, f"a stream was asked for, the reply is {kind[:80]}"

    def _whole(self, exchange: Exchange) -> None:
        """Judges a reply that came as one body: a non-streaming reply or an error."""
        body = b"".join(self.body)
        self.body = []
        self.body_bytes = 0
        if 200 <= exchange.http_status < 300:
            bits = exchange.reply.body(body)
            self._decided(exchange, bits if bits & FAILED else END)
            return
        exchange.outcome, exchange.error = self.pool.refusal(exchange.http_status, body)
        self._done(exchange, reuse=True)

    def _done(self, exchange: Exchange, *, reuse: bool) -> None:
        self.exchange = None
        exchange.connection = None
        parser = self.parser
        if reuse and parser.complete and parser.keep_alive and not self.out:
            self.reactor.owners[self.fd] = self._idle
            self.pool.release(self)
        elif reuse and not parser.complete:
            self.reactor.owners[self.fd] = self._drain
        else:
            self.close()
        self.pool.done(exchange)

    def _drain(self, _mask: int) -> None:
        """Reads what follows the terminal marker; the body's end gives the connection back to the pool."""
        parser = self.parser
        try:
            size = self.receive(self.reactor.buffers, ANCILLARY_BYTES)[0]
            if size:
                view = self.reactor.view[:size]
                parser.feed(view if self.tls is None else self.tls.decrypt(view))
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            size = 0
        parser.bodies.clear()
        if not size:
            self.close()
        elif parser.complete:
            if parser.keep_alive:
                self.reactor.owners[self.fd] = self._idle
                self.pool.release(self)
            else:
                self.close()

    def _ended(self, now: int) -> None:
        """The server closed its side."""
        exchange = self._busy()
        if not self.reply_bytes and not self._request_was_taken():
            self._broken("the server closed the connection without a reply")
            return
        exchange.end_ns = now
        if not self.reply_bytes:
            self.fail(Outcome.CONNECT_RESET, "the server took the request and closed the connection without a reply")
            return
        parser = self.parser
        try:
            parser.eof()
        except ProtocolError as error:
            if not parser.status:
                self.fail(Outcome.STREAM_MALFORMED, str(error))
                return
        if not exchange.headers_ns:
            self.fail(Outcome.STREAM_TRUNCATED, "the server closed the connection inside the reply's head")
        elif self.framing is not None:
            bits = self._last_words(exchange, self.framing, now, False)
            if parser.complete or bits & (END | FAILED):
                self._decided(exchange, bits)
            else:
                cut = "the connection closed before the stream's terminal marker"
                self.fail(*(self._no_stream(exchange) or (Outcome.STREAM_TRUNCATED, cut)))
        elif parser.complete:
            self._whole(exchange)
        else:
            self.fail(Outcome.STREAM_TRUNCATED, "the connection closed before the end of the reply")

    def _broken(self, message: str) -> None:
        """The connection died. Before any byte of a reply on a reused one it was merely stale, and that is no failure."""
        exchange = self._busy()
        if self.reused and not self.reply_bytes:
            self.exchange = None
            exchange.connection = None
            self.close()
            self.pool.resend(exchange)
            return
        if not exchange.end_ns:
            exchange.end_ns = monotonic_ns()
        self.fail(Outcome.STREAM_TRUNCATED if self.reply_bytes else Outcome.CONNECT_RESET, message)

    def _request_was_taken(self) -> bool:
        """After an end of file without a reply: did the server read the request and close on it, or was it about to
        close anyhow? A reset or an unacknowledged request tells of the latter; so does
        a server that has not once kept a connection for a second request."""
        if self.reused and not self.pool.reuse_works:
            return False
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        return info[0] != TCP_CLOSE and not int.from_bytes(info[TCPI_UNACKED], "little")

    def _idle(self, _mask: int) -> None:
        """An idle connection became readable: closed by the server, or out of step. Either way it is of no more use."""
        self.pool.discard(self)
        self.close()

    def fail(self, outcome: Outcome, message: str) -> None:
        """Ends the exchange with `outcome` and closes the socket."""
        exchange = self._busy()
        if not exchange.end_ns:
            exchange.end_ns = monotonic_ns()
        status = self.parser.status
        if status and not 200 <= status < 300 and outcome in UNREADABLE:  # the status says enough, also for a retry
            exchange.http_status = status
            exchange.kept_headers = kept_headers(self.parser.headers)
            outcome, text = self.pool.refusal(status, b"".join(self.body))
            message = f"{text} ({message})"
        exchange.outcome = outcome
        exchange.error = message
        self.exchange = None
        exchange.connection = None
        self.close()
        self.pool.done(exchange)

    def close(self) -> None:
        """Closes the socket. Safe to call twice."""
        if self.fd >= 0:
            self.reactor.forget(self.fd)
            self.fd = -1
            self.socket.close()
            self.clear = None
            self.parser.close()

    def _busy(self) -> Exchange:
        exchange = self.exchange
        assert exchange is not None, "a connection without a request was served as busy"
        return exchange
