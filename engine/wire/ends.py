"""How a request can leave its connection, and how a reply without a regular end is judged."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from ..dialects.outcomes import kept_headers, refusal
from ..errors import ProtocolError
from ..records.record import Outcome
from .exchange import Exchange
from .http1 import ResponseParser

ERROR_BODY_BYTES: Final = 64 << 10
BODY_BYTES_MAX: Final = 64 << 20

UNREADABLE: Final = frozenset({Outcome.STREAM_MALFORMED, Outcome.STREAM_TRUNCATED})


class End(Enum):
    """How a request left its connection."""

    IDLE = auto()  # reply complete, the connection can carry another request
    DRAINING = auto()  # reply complete for the client, the rest of its body is still to come; `idle` may follow
    CLOSED = auto()
    STALE = auto()  # closed: a reused connection had died before any byte of a reply
    UNANSWERED = auto()  # closed: the server acknowledged the request and closed without a byte of a reply


# Names of their own: a member looked up by its class costs several times as much (Python 3.11).
IDLE: Final = End.IDLE
DRAINING: Final = End.DRAINING
CLOSED: Final = End.CLOSED


def cut_off(exchange: Exchange, parser: ResponseParser, message: str) -> tuple[Outcome, str]:
    """The outcome of a stream without its end; a page or a text in the place of an event stream is malformed."""
    kind = parser.headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip()
    if exchange.events or exchange.reply.framing != "sse" or kind in ("", "text/event-stream"):
        return Outcome.STREAM_TRUNCATED, message
    return Outcome.STREAM_MALFORMED, f"a stream was asked for, the reply is {kind[:80]}"


def judged_by_status(
    exchange: Exchange, parser: ResponseParser, body: bytes, outcome: Outcome, message: str, secrets: tuple[str, ...]
) -> tuple[Outcome, str]:
    """The outcome of a reply that could not be read to its end.

    An error status says enough, also for a retry: a 429 whose body was cut off is still a 429.
    """
    if parser.status and not 200 <= parser.status < 300 and outcome in UNREADABLE:
        exchange.http_status = parser.status
        exchange.kept_headers = kept_headers(parser.headers)
        outcome, text = refusal(parser.status, body, secrets)
        return outcome, f"{text} ({message})"
    return outcome, message


class Body:
    """The body of a reply that is no stream, as far as it came."""

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, pieces: list[bytes], *, success: bool, complete: bool) -> bool:
        """Takes the pieces of one read; True when the reply can be judged: it is complete, or an error's and long enough.

        Raises ProtocolError for a success beyond BODY_BYTES_MAX: it cannot be judged by its beginning, and memory is
        finite.
        """
        self._pieces += pieces
        self._size += sum(map(len, pieces))
        if complete or (not success and self._size > ERROR_BODY_BYTES):
            return True
        if success and self._size > BODY_BYTES_MAX:
            raise ProtocolError(f"reply body is larger than {BODY_BYTES_MAX} bytes")
        return False

    def take(self) -> bytes:
        """All of it; empty afterwards, for the next reply of the connection."""
        body = b"".join(self._pieces)
        self._pieces = []
        self._size = 0
        return body
