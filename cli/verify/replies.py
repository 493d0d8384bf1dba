"""What was asked and answered on a captured connection: when each request left, when each token event was complete.

Plain HTTP is read by the same parser, framing and dialect as in a run: which event is a token is not what is verified,
only when it came. Of TLS without its keys only the records are known: where each ends, and when it could be read.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import httptools

from ...engine.dialects import END, FAILED, TOKEN
from ...engine.dialects.table import dialect_of, framing_for
from ...engine.errors import ProtocolError
from ...engine.plan.plan import Target
from ...engine.wire.boundaries import records
from ...engine.wire.framing import Framing, framing_of
from ...engine.wire.http1 import ResponseParser
from .streams import Connection, Stream

OVER: Final = END | FAILED
APPLICATION_DATA: Final = 23  # RFC 8446 section 5.1


class Seen(NamedTuple):
    """One request in the capture, ns of Unix epoch: its first byte; each token event, or with `sealed` each TLS record."""

    sent_ns: int
    token_ns: list[int]
    request_id: str | None = None
    sealed: bool = False


class _Requests:
    """Where requests begin and end in a stream; the protocol of httptools."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_message_complete(self) -> None:
        self.ended += 1


def seen_plain(connection: Connection, target: Target) -> list[Seen]:
    """The requests of a connection without TLS and the replies to them, in order; the last one may have none."""
    sends = _sends(connection.request)
    replies = _replies(connection.reply, target, len(sends))
    return [Seen(sent, *reply) for sent, reply in zip(sends, replies, strict=False)]


def _sends(stream: Stream) -> list[int]:
    """When the first byte of each request was captured. A request begins with a segment: lens does not pipeline."""
    protocol = _Requests()
    parser: Any = httptools.HttpRequestParser(protocol)
    found: list[int] = []
    start = 0
    for end, time_ns in zip(stream.ends, stream.times_ns, strict=True):
        before = protocol.begun
        try:
            parser.feed_data(bytes(stream.content[start:end]))
        except httptools.HttpParserError:  # captured from the middle of a request on
            break
        found += [time_ns] * (protocol.begun - before)
        start = end
    return found


def _replies(stream: Stream, target: Target, most: int) -> list[tuple[list[int], str | None]]:
    """(times of the token events, the provider's request id) of each reply."""
    found: list[tuple[list[int], str | None]] = []
    parser = ResponseParser()
    reader = _ReplyReader(target)
    start = 0
    for end, time_ns in zip(stream.ends, stream.times_ns, strict=True):
        if len(found) >= most:
            break
        try:
            parser.feed(bytes(stream.content[start:end]))
            reader.take(parser, time_ns)
        except ProtocolError:
            break
        if parser.complete:
            found.append((reader.token_ns, reader.request_id))
            if not parser.keep_alive:
                break
            parser.reset()
            reader = _ReplyReader(target)
        start = end
    else:
        if parser.status:
            found.append((reader.token_ns, reader.request_id))
    parser.close()
    return found


class _ReplyReader:
    """The token events of one reply."""

    def __init__(self, target: Target) -> None:
        self._reply = dialect_of(target.provider).reply(target)
        self._framing: Framing | None = None
        self._over = False
        self.token_ns: list[int] = []

    def take(self, parser: ResponseParser, time_ns: int) -> None:
        """Takes what the parser has of the body; it could be read at `time_ns`."""
        if self._framing is None and parser.status:
            kind = framing_for(self._reply, parser.headers.get(b"content-type", b"").decode("latin-1"))
            self._framing = framing_of("sse" if kind == "none" else kind)
        body = b"".join(parser.bodies)
        parser.bodies.clear()
        if self._framing is None or self._over:
            return
        for name, text in self._framing.feed(body):
            bits = self._reply.event(text, name)
            if bits & TOKEN:
                self.token_ns.append(time_ns)
            if bits & OVER:
                self._over = True
                break

    @property
    def request_id(self) -> str | None:
        return self._reply.request_id


def seen_sealed(connection: Connection) -> list[Seen]:
    """The requests of a TLS connection: each begins with the client's first record after one of the server's."""
    sends = [(ns, True) for ns in _record_times(connection.request, of_beginnings=True)]
    replies = [(ns, False) for ns in _record_times(connection.reply, of_beginnings=False)]
    found: list[Seen] = []
    asking = False
    for time_ns, is_request in sorted(sends + replies):
        if is_request and not asking:
            found.append(Seen(time_ns, [], sealed=True))
        elif is_request and found and not found[-1].token_ns:
            # The handshake's last record goes right before the request: the later one is nearer to it.
            found[-1] = Seen(time_ns, [], sealed=True)
        elif not is_request and found:
            found[-1].token_ns.append(time_ns)
        asking = is_request
    return found


def _record_times(stream: Stream, *, of_beginnings: bool) -> list[int]:
    """When each application data record began to arrive, or was there."""
    content = bytes(stream.content)
    times: list[int] = []
    start = 0
    for end in records(content).ends:
        if content[start] == APPLICATION_DATA:
            times.append(stream.readable_ns(start + 1 if of_beginnings else end))
        start = end
    return times
