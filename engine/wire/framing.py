"""How the body of a streamed reply is cut into events: SSE, NDJSON lines, plain chunks, or a JSON array piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ..errors import ProtocolError
from .sse import EVENT_BYTES_MAX, Event, SseFraming

DEPTH_MAX: Final = 128


class Framing(Protocol):
    """Bytes of a body in, events out, in order."""

    pending: bool  # did the last piece end inside an event?

    def feed(self, piece: bytes) -> list[Event]:
        """The events that `piece` completed. Raises ProtocolError beyond the size bound."""

    def flush(self) -> list[Event]:
        """What the end of the body leaves as a last event."""


class NdjsonFraming:
    """One JSON value per line (LF or CRLF); blank lines are nothing."""

    __slots__ = ("_event_bytes_max", "_rest", "pending")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._rest = bytearray()  # an unfinished line; grows in place, however many pieces bring it
        self.pending = False

    def feed(self, piece: bytes) -> list[Event]:
        *lines, rest = piece.split(b"\n")
        if lines:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        self._rest += rest
        self.pending = bool(self._rest)
        if len(self._rest) > self._event_bytes_max:
            raise ProtocolError(f"a line is larger than {self._event_bytes_max} bytes")
        return [(b"", line) for line in map(bytes.strip, lines) if line]

    def flush(self) -> list[Event]:
        line = bytes(self._rest).strip()
        self._rest.clear()
        return [(b"", line)] if line else []


class ChunkFraming:
    """Every piece of the body is an event; a piece is never larger than a read."""

    __slots__ = ("pending",)

    def __init__(self, _event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self.pending = False

    def feed(self, piece: bytes) -> list[Event]:
        return [(b"", piece)] if piece else []

    def flush(self) -> list[Event]:
        return []


class JsonArrayFraming:
    """The objects of one JSON array, each as soon as its closing brace is there (Gemini without alt=sse).

    A body that is a single object is one event.
    """

    __slots__ = ("_depth", "_escaped", "_event_bytes_max", "_object", "_quoted", "pending")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self.pending = False
        self._object = bytearray()
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def feed(self, piece: bytes) -> list[Event]:
        events: list[Event] = []
        collected = self._object
        for byte in piece:
            if self._depth:
                collected.append(byte)
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif byte == 0x5C:  # backslash
                    self._escaped = True
                elif byte == 0x22:  # quote
                    self._quoted = False
            elif byte == 0x22:
                self._quoted = self._depth > 0
            elif byte == 0x7B:  # {
                if not self._depth:
                    collected.append(byte)
                self._depth += 1
                if self._depth > DEPTH_MAX:
                    raise ProtocolError(f"JSON is nested deeper than {DEPTH_MAX}")
            elif byte == 0x7D and self._depth:  # }
                self._depth -= 1
                if not self._depth:
                    events.append((b"", bytes(collected)))
                    collected.clear()
        if len(collected) > self._event_bytes_max:
            raise ProtocolError(f"an object is larger than {self._event_bytes_max} bytes")
        self.pending = self._depth > 0
        return events

    def flush(self) -> list[Event]:
        rest = bytes(self._object)
        self._object.clear()
        self._depth = 0
        return [(b"", rest)] if rest else []


FRAMINGS: Final[dict[str, Callable[[int], Framing]]] = {
    "sse": SseFraming,
    "ndjson": NdjsonFraming,
    "chunks": ChunkFraming,
    "json": JsonArrayFraming,
}


def framing_of(kind: str, event_bytes_max: int = EVENT_BYTES_MAX) -> Framing:
    """A fresh framing by its name; events beyond `event_bytes_max` raise ProtocolError."""
    return FRAMINGS[kind](event_bytes_max)
