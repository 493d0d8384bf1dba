"""One socket, one request in flight. Every read carries the kernel's receive stamp; nothing here waits.

How it works. The reactor calls the socket's handler, and the handler is the connection's state: `_written` while a
large request is still being sent, `_read` while a reply is due, `_drain` after a terminal marker until the body ends,
`_idle` between requests. A read goes socket -> llhttp -> framing -> dialect -> exchange in one call chain, without a
copy of the bytes before llhttp. The common read, of a stream without TLS with a kernel stamp, is handled in `_read`
itself; `_arrived` handles every other: heads, bodies that are no stream, TLS, reads without a stamp.
The stamp is the time at which the kernel received the last bytes of the read, brought to CLOCK_MONOTONIC by one
subtraction (engine/clock.py). It is not believed when it lies in the future or far back: CLOCK_REALTIME was stepped.
A failure is data: it ends the exchange with an Outcome. What becomes of the connection and of a request that may be
sent again is the pool's decision: every end is reported to it as an `End`, by the callbacks in `Context`.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from time import monotonic_ns
from typing import Final, NamedTuple

import httptools

from ..dialects import END, FAILED
from ..dialects.outcomes import kept_headers, provider_us, refusal
from ..dialects.table import framing_for
from ..errors import ProtocolError
from ..records import record
from ..records.lag import lag_bucket
from ..records.record import Outcome
from .ends import CLOSED, DRAINING, IDLE, Body, End, cut_off, judged_by_status
from .exchange import FIRST, Exchange
from .framing import Framing, framing_of
from .http1 import ResponseParser, described
from .reactor import READ, WRITE, Reactor
from .tcp_info import TcpPath, request_acknowledged
from .tls import TlsPipe, describe_tls_error

ANCILLARY_BYTES: Final = 64
LAG_SUSPECT_NS: Final = 500_000_000  # of a stamp that lies further back the mapping is checked before it is believed
STREAM_OVER: Final = END | FAILED
NOTABLE: Final = STREAM_OVER | FIRST

TIMESPEC: Final = struct.Struct("<qq").unpack_from


class Context(NamedTuple):
    """What all connections of one target share: its settings, and where they report to."""

    reactor: Reactor
    where: str  # host:port, for messages
    streaming: bool  # does the target's plan ask for streams?
    secrets: tuple[str, ...]
    sending: Callable[[Exchange], None]  # the request is handed to send() now
    suspect: Callable[[int, int], tuple[int, bool]]  # (stamp, now) -> (stamp to use, is it still the kernel's?)
    ended: Callable[[Connection, Exchange, End], None]
    idle: Callable[[Connection], None]  # a draining connection can carry another request
    lost: Callable[[Connection], None]  # an idle connection was closed by the server


class Connection:
    """A connected socket, until it is closed. `exchange` is None while it is idle or draining."""

    __slots__ = (
        "body", "buffers", "context", "exchange", "fd", "framing", "opened_ns", "out", "parser", "path", "reactor",
        "receive", "reply_bytes", "reused", "socket", "stream", "tls", "transmit",
    )  # fmt: skip

    def __init__(self, context: Context, sock: socket.socket, tls: TlsPipe | None, opened_ns: int) -> None:
        self.context = context
        self.reactor = context.reactor
        self.buffers = context.reactor.buffers  # for the next read
        self.socket = sock
        self.fd = sock.fileno()
        self.receive = sock.recvmsg_into
        self.transmit = sock.send
        self.path = TcpPath(sock)
        self.tls = tls
        self.opened_ns = opened_ns
        self.exchange: Exchange | None = None
        self.parser = ResponseParser()
        self.framing: Framing | None = None
        # Set while a stream without TLS or compression is read: all that the hot path needs, in one attribute.
        self.stream: tuple[Exchange, Framing, Callable[[memoryview], None]] | None = None
        self.body = Body()
        self.out = b""  # what send() has not taken yet
        self.reused = False
        self.reply_bytes = 0

    # --- sending --------------------------------------------------------------------------------------------------

    def reuse(self, exchange: Exchange) -> None:
        """Sends another request on this idle connection."""
        self.reused = True
        exchange.flags |= record.REUSED
        self.parser.reset()
        self.send(exchange)

    def send(self, exchange: Exchange) -> None:
        """Sends the request, head and body together; the send mark is read immediately before send()."""
        self.exchange = exchange
        self.reply_bytes = 0
        self.framing = None
        wire = exchange.wire
        if self.tls is not None:
            exchange.flags |= record.TLS
            # Before the send mark: the time to encrypt a long prompt is this client's, not the server's.
            wire = self.tls.encrypt(wire)
        self.context.sending(exchange)
        now = monotonic_ns()
        try:
            # Nothing between the mark and this call: whatever is there would be measured as the server's.
            sent = self.transmit(wire)
        except BlockingIOError:
            sent = 0
        except OSError:
            exchange.last_send_ns = now
            self._broken(exchange, "connection reset while sending")
            return
        exchange.last_send_ns = now
        if not exchange.send_ns:
            exchange.send_ns = now
        # send_ns stays that of the first attempt: retries are part of what the user waits for.
        exchange.sent_bytes += len(exchange.wire)
        if sent < len(wire):
            self.out = wire[sent:]
            # READ as well: a server may refuse (413, 401) before it has read the request, and then close.
            self.reactor.change(self.fd, READ | WRITE, self._written)
        elif self.reused:  # the socket is registered for reading already
            self.reactor.owners[self.fd] = self._read
        else:
            self.reactor.change(self.fd, READ, self._read)

    def _written(self, mask: int) -> None:
        """Sends the rest of a large request; an early reply is read meanwhile."""
        exchange = self.exchange
        if mask & WRITE and exchange is not None:
            try:
                self.out = self.out[self.transmit(self.out) :]
            except BlockingIOError:
                pass
            except OSError:
                self._upload_cut(exchange)
                return
            if not self.out:
                self.reactor.change(self.fd, READ, self._read)
        if mask & ~WRITE:
            self._read(mask)

    def _upload_cut(self, exchange: Exchange) -> None:
        """The server closed under the upload. What it said before, a 413 perhaps, is the outcome."""
        seen = -1
        # A reset discards what the socket has not returned yet, but what came before it is still readable.
        while self.exchange is exchange and self.reply_bytes > seen:
            seen = self.reply_bytes
            self._read(READ)
        if self.exchange is exchange:
            self._broken(exchange, "connection reset while sending")

    # --- the hot path: one read of a reply ------------------------------------------------------------------------

    def _read(self, _mask: int) -> None:
        reactor = self.reactor
        try:
            size, ancillary, _, _ = self.receive(self.buffers, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            size, ancillary = -1, []
        now = monotonic_ns()
        if ancillary and size > 0:
            seconds, rest = TIMESPEC(ancillary[0][2])
            stamp = seconds * 1_000_000_000 + rest - reactor.clock.offset_ns
            lag = now - stamp
            # Below 16 ns lag_bucket() needs another form, beyond the limit a clock may have been stepped: both go the long way.
            if 15 < lag < LAG_SUSPECT_NS:
                # lag_bucket() written out: a quarter less than the call (benches/bench_reactor.py).
                bits = lag.bit_length()
                reactor.lag[bits - 4 << 4 | lag >> bits - 5 & 15] += 1
                stream = self.stream
                if stream is not None:
                    exchange, framing, feed = stream
                    if stamp < exchange.read_ns:  # it came before a lost segment: see _arrived()
                        stamp = exchange.read_ns
                    exchange.received_bytes += size
                    try:
                        feed(reactor.view[:size])
                        if not self.parser.bodies:
                            # A server that sends trailers or chunk heads for ever would never bring an event, and never be noticed.
                            self.parser.bare(size)
                        self._events(exchange, framing, stamp, True)
                    except (ProtocolError, httptools.HttpParserError) as error:
                        if self.parser.complete and isinstance(error, httptools.HttpParserError):
                            self.parser.keep_alive = False  # bytes after the reply: it stands
                            self._events(exchange, framing, stamp, True)
                        else:
                            self._malformed(exchange, error, stamp)
                    return
        self._arrived(size, ancillary, now)

    def _events(self, exchange: Exchange, framing: Framing, stamp: int, kernel: bool) -> None:
        """Passes what one read brought of a stream on, and ends the exchange where the stream ends."""
        parser = self.parser
        pieces = parser.bodies
        if pieces:
            if len(pieces) == 1:
                events = framing.feed(pieces.pop())
            else:  # a read of several chunks: their events share its stamp
                events = framing.feed(b"".join(pieces))
                pieces.clear()
            # The common case by far: one complete event per read, which is the only one whose stamp is exactly its own.
            if len(events) == 1 and not framing.pending:
                bits = exchange.take_one(events[0], stamp, kernel)
            else:
                bits = exchange.take(events, stamp, kernel, not framing.pending) if events else 0
            if bits & NOTABLE:
                if bits & FIRST:
                    self.path.note(exchange)
                if bits & STREAM_OVER:
                    exchange.end_ns = stamp
                    self._decided(exchange, bits)
                    return
        if parser.complete:
            exchange.end_ns = stamp
            self._decided(exchange, self._last_event(exchange, framing, stamp, kernel))

    # --- every other read -----------------------------------------------------------------------------------------

    def _arrived(self, size: int, ancillary: list[tuple[int, int, bytes]], now: int) -> None:
        """One read in any state of the reply. `size` is 0 at the end of the stream, negative after an error."""
        exchange = self.exchange
        if exchange is None:
            self.close()
            return
        if size <= 0:
            if size:
                self._broken(exchange, "connection reset by the server")
            else:
                self._server_closed(exchange, now)
            return
        reactor = self.reactor
        kernel = bool(ancillary)
        stamp = now
        if kernel:
            seconds, rest = TIMESPEC(ancillary[0][2])
            stamp = seconds * 1_000_000_000 + rest - reactor.clock.offset_ns
            if not 15 < now - stamp < LAG_SUSPECT_NS:  # else _read() has counted it
                if not 0 <= now - stamp < LAG_SUSPECT_NS:
                    # A stamp of the future or of long ago: CLOCK_REALTIME was stepped, or this process was stopped for so long.
                    stamp, kernel = self.context.suspect(stamp, now)
                reactor.lag[lag_bucket(now - stamp)] += 1
            # A segment that overtook a lost one has waited for it in the kernel, and its stamp is older than that of the
            # retransmission before it: its bytes completed nothing until then. Without this, a gap would be negative.
            stamp = max(stamp, exchange.read_ns, exchange.headers_ns)
        if not kernel:
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
                # The read that completes the head, not the one that began it: a 1xx or half a head is no answer yet.
                exchange.headers_ns = stamp
                self._headers(exchange)
            if self.framing is None:
                self._body(exchange, stamp)
            else:
                self._events(exchange, self.framing, stamp, kernel)
        except ProtocolError as error:
            self._malformed(exchange, error, stamp)
        except ssl.SSLError as error:
            exchange.end_ns = stamp
            self.fail(exchange, Outcome.STREAM_TRUNCATED, describe_tls_error(error, self.context.where))

    def _headers(self, exchange: Exchange) -> None:
        parser = self.parser
        exchange.http_status = parser.status
        exchange.kept_headers = kept_headers(parser.headers)
        exchange.provider_us = provider_us(parser.headers)
        if 200 <= parser.status < 300 and self.context.streaming:
            kind = framing_for(exchange.reply, parser.headers.get(b"content-type", b"").decode("latin-1"))
            if kind == "none":
                exchange.flags |= record.FRAMED_ONCE
            else:
                exchange.flags |= record.STREAMED
                self.framing = framing_of(kind)
                if self.tls is None and not parser.encoded:
                    self.stream = (exchange, self.framing, parser.feed_data)

    def _body(self, exchange: Exchange, stamp: int) -> None:
        """Collects a reply that is no stream, and judges it when that can be done."""
        parser = self.parser
        ready = self.body.add(parser.bodies, success=200 <= parser.status < 300, complete=parser.complete)
        parser.bodies.clear()
        if ready:
            exchange.end_ns = stamp
            self._judge_body(exchange)

    # --- the end of a reply ---------------------------------------------------------------------------------------

    def _last_event(self, exchange: Exchange, framing: Framing, stamp: int, kernel: bool) -> int:
        """Takes an event that the end of the body left without its blank line. Half an event is a truncation, no error."""
        events = framing.flush()
        bits = exchange.take(events, stamp, kernel, True) if events else 0
        if bits & FAILED and exchange.reply.outcome is Outcome.STREAM_MALFORMED:
            return 0
        return bits

    def _decided(self, exchange: Exchange, bits: int) -> None:
        """The stream is over, by its terminal marker, an error event or the end of the body."""
        reply = exchange.reply
        if bits & STREAM_OVER or reply.finished():
            exchange.outcome = reply.outcome
            exchange.error = reply.error
        else:
            exchange.outcome, exchange.error = cut_off(
                exchange, self.parser, "the stream ended before its terminal marker"
            )
        self._done(exchange, reusable=not bits & FAILED)

    def _judge_body(self, exchange: Exchange) -> None:
        body = self.body.take()
        if 200 <= exchange.http_status < 300:
            bits = exchange.reply.body(body)
            self._decided(exchange, bits if bits & FAILED else END)
        else:
            exchange.outcome, exchange.error = refusal(exchange.http_status, body, self.context.secrets)
            self._done(exchange, reusable=True)

    def _done(self, exchange: Exchange, *, reusable: bool) -> None:
        if not exchange.first_token_ns:
            self.path.note(exchange)
        self.exchange = self.stream = None
        parser = self.parser
        end = CLOSED
        # `out`: a server that answered before it had the complete request would read the rest as the next one.
        if reusable and parser.complete and parser.keep_alive and not self.out:
            end = IDLE
            self.reactor.owners[self.fd] = self._idle
        elif reusable and not parser.complete:
            end = DRAINING
            # Not closed: [DONE] often comes a packet before the last chunk, and a new connection costs a handshake.
            self.reactor.owners[self.fd] = self._drain
        else:
            self.close()
        self.context.ended(self, exchange, end)

    def _drain(self, _mask: int) -> None:
        """Reads what follows the terminal marker; with the body's end the connection can be reused."""
        try:
            size = self.receive(self.reactor.buffers, ANCILLARY_BYTES)[0]
        except BlockingIOError:
            return
        except OSError:
            size = 0
        self._drained(size)

    def _drained(self, size: int) -> None:
        """`size` bytes behind the terminal marker are in the reactor's view; 0: there are no more."""
        parser = self.parser
        if size:
            view = self.reactor.view[:size]
            try:
                parser.feed(view if self.tls is None else self.tls.decrypt(view))
            except (ssl.SSLError, ProtocolError):
                size = 0
        parser.bodies.clear()
        if not size or (parser.complete and not parser.keep_alive):
            self.close()
        elif parser.complete:
            self.reactor.owners[self.fd] = self._idle
            self.context.idle(self)

    def _idle(self, _mask: int) -> None:
        """Readable while idle: closed by the server, or bytes that nobody asked for. Neither can carry a request."""
        self.context.lost(self)
        self.close()

    def _server_closed(self, exchange: Exchange, now: int) -> None:
        if not self.reply_bytes:
            if request_acknowledged(self.socket):
                exchange.end_ns = now
                message = "the server took the request and closed the connection without a reply"
                self.fail(exchange, Outcome.CONNECT_RESET, message, End.UNANSWERED)
            else:
                self._broken(exchange, "the server closed the connection without a reply")
            return
        exchange.end_ns = now
        parser = self.parser
        try:
            parser.eof()
        except ProtocolError as error:
            if not parser.status:
                self.fail(exchange, Outcome.STREAM_MALFORMED, str(error))
                return
        if not exchange.headers_ns:
            self.fail(exchange, Outcome.STREAM_TRUNCATED, "the server closed the connection inside the head")
        elif self.framing is not None:
            bits = self._last_event(exchange, self.framing, now, False)
            if parser.complete or bits & STREAM_OVER:
                self._decided(exchange, bits)
            else:
                message = "the connection closed before the stream's terminal marker"
                self.fail(exchange, *cut_off(exchange, parser, message))
        elif parser.complete:
            self._judge_body(exchange)
        else:
            self.fail(exchange, Outcome.STREAM_TRUNCATED, "the connection closed before the end of the reply")

    def _broken(self, exchange: Exchange, message: str) -> None:
        """The connection died: a reused one that brought no byte of a reply was merely stale, which is no failure."""
        if self.reply_bytes:
            self.fail(exchange, Outcome.STREAM_TRUNCATED, message)
        else:
            self.fail(exchange, Outcome.CONNECT_RESET, message, End.STALE if self.reused else CLOSED)

    def _malformed(self, exchange: Exchange, error: ProtocolError | httptools.HttpParserError, stamp: int) -> None:
        exchange.end_ns = stamp
        self.fail(exchange, Outcome.STREAM_MALFORMED, str(described(error)))

    def fail(self, exchange: Exchange, outcome: Outcome, message: str, end: End = CLOSED) -> None:
        """Ends the exchange with `outcome` and closes the socket."""
        body = self.body.take()
        outcome, message = judged_by_status(exchange, self.parser, body, outcome, message, self.context.secrets)
        exchange.fail(outcome, message, monotonic_ns())
        if not exchange.first_token_ns:
            self.path.note(exchange)
        self.exchange = None
        self.close()
        self.context.ended(self, exchange, end)

    def close(self) -> None:
        """Closes the socket. Safe to call twice."""
        if self.fd >= 0:
            self.reactor.forget(self.fd)
            self.fd = -1
            self.socket.close()
            self.stream = None
            self.parser.close()
