"""How a request can leave its connection, and how a reply without a regular end is judged. Functions of values; no state."""

from __future__ import annotations

import socket
from enum import Enum, auto
from typing import Final

from ..dialects.outcomes import kept_headers, refusal
from ..records.record import Outcome
from .exchange import Exchange
from .http1 import ResponseParser

TCP_INFO_BYTES: Final = 32  # of struct tcp_info (linux/tcp.h): state in byte 0, unacked segments in bytes 24 to 27
TCPI_UNACKED: Final = slice(24, 28)
TCP_CLOSE: Final = 7

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


def request_acknowledged(sock: socket.socket) -> bool:
    """After an end of file without a reply: did the server's kernel acknowledge all of the request (tcp(7), TCP_INFO)?

    If not, or after a reset, the server was closing anyhow and has not read the request: it may be sent again. A request
    that was acknowledged may have been carried out, and must not be (RFC 9110, 9.2.2).
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    return info[0] != TCP_CLOSE and not int.from_bytes(info[TCPI_UNACKED], "little")
