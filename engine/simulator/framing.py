"""Events as bytes for the wire, rendered once: filling in the send time is all that is left to do when one is due.

A `Frame` is a bytes format. Its numbers are right-aligned in 19 columns (JSON allows the spaces), so its length never
changes and the HTTP chunk size is rendered too. Token frames also have a field for the request's id beside each stamp;
in other frames the id is the placeholder `ID`, replaced once per reply.
Filling a token frame takes 0.26 us, joining the same parts 0.33 us (benches/bench_simulator.py, Python 3.11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import msgspec

ID: Final = "~sim-request-id~"  # stands for the request's id inside rendered JSON; ids have its length
ID_BYTES: Final = ID.encode()
LAST_CHUNK: Final = b"0\r\n\r\n"
_encode: Final = msgspec.json.encode


class Event(NamedTuple):
    """One event of a stream. `fields` is its JSON object, or the literal bytes of an event that is none ([DONE])."""

    fields: dict[str, Any] | bytes
    name: str = ""


class Comment(NamedTuple):
    """An SSE comment: keeps the connection alive and means nothing."""

    text: str


Part = Event | Comment


class Frame(NamedTuple):
    """A format to be filled with `stamps` send times; `events` is how many events it carries, comments not counted."""

    format: bytes
    stamps: int
    events: int


def stamped(fields: dict[str, Any]) -> bytes:
    """The object as a format: `sent_ns` in front, and `sim_id` after it where the API has no place for an id."""
    rendered = _encode(fields).replace(b"%", b"%%")
    if ID_BYTES in rendered:
        return b'{"sent_ns":%19d,' + rendered[1:]
    return b'{"sent_ns":%19d,"sim_id":"' + ID_BYTES + b'"' + (b"," + rendered[1:] if fields else b"}")


def sse(part: Part, newline: bytes) -> bytes:
    """One server-sent event as a format."""
    if isinstance(part, Comment):
        return b": " + part.text.encode() + newline * 2
    name = b"event: " + part.name.encode() + newline if part.name else b""
    return name + b"data: " + _payload(part) + newline * 2


def ndjson(part: Part, newline: bytes) -> bytes:
    """One line of newline-delimited JSON as a format; a comment is an empty line."""
    return newline if isinstance(part, Comment) else _payload(part) + newline


def array(part: Part, newline: bytes) -> bytes:
    """One element of a streamed JSON array as a format, or the bytes between elements (Google without alt=sse)."""
    return newline if isinstance(part, Comment) else _payload(part)


def _payload(event: Event) -> bytes:
    return event.fields if isinstance(event.fields, bytes) else stamped(event.fields)


Framing = Callable[[Part, bytes], bytes]
FRAMINGS: Final[dict[str, tuple[Framing, str]]] = {
    "sse": (sse, "text/event-stream; charset=utf-8"),
    "ndjson": (ndjson, "application/x-ndjson"),
    "array": (array, "application/json; charset=UTF-8"),
}


def chunk(parts: Iterable[Part], framing: Framing, newline: bytes) -> Frame:
    """The parts as one HTTP chunk. No parts make no chunk at all: an empty one would end the body."""
    rendered = [(part, framing(part, newline)) for part in parts]
    text = b"".join(piece for _, piece in rendered)
    stamps = text.count(b"%19d")
    events = sum(1 for part, _ in rendered if isinstance(part, Event) and part.fields not in _PUNCTUATION)
    if not text:
        return Frame(b"", 0, 0)
    size = len(text % ((0,) * stamps))
    return Frame(b"%x\r\n%b\r\n" % (size, text), stamps, events)


_PUNCTUATION: Final = (b"[", b",\r\n", b"]")


def with_id_fields(frame: Frame) -> Frame:
    """The frame with a `%b` for the id after each stamp: what token frames are. Each stamped event must hold one ID."""
    return frame._replace(format=frame.format.replace(ID_BYTES, b"%b"))


def plain(fields: dict[str, Any]) -> Frame:
    """A complete JSON body as a frame (no chunk around it)."""
    return Frame(stamped(fields), 1, 1)


def fill(frame: Frame, request_id: bytes, now_ns: int) -> bytes:
    """The bytes of a frame that is not a token's, as sent at `now_ns`."""
    return frame.format.replace(ID_BYTES, request_id) % ((now_ns,) * frame.stamps)


# Heads of HTTP replies.

_REASONS: Final = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable", 529: "Site is overloaded",
}  # fmt: skip


def head_of(status: int, content_type: str, *, keep_alive: bool, length: int | None) -> bytes:
    """A head without its last lines."""
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nserver: lens-simulator\r\ncontent-type: {content_type}\r\n"
        f"{framing}\r\nconnection: {'keep-alive' if keep_alive else 'close'}\r\n"
    ).encode()


def json_page(page: Any) -> bytes:
    """A 200 reply with a JSON body, for pages."""
    return text_page(msgspec.json.encode(page), "application/json")


def text_page(body: bytes, content_type: str) -> bytes:
    """A 200 reply with this body."""
    return head_of(200, content_type, keep_alive=True, length=len(body)) + b"\r\n" + body
