"""Server-sent events out of bytes, as WHATWG's "event stream interpretation" says. Sans-IO.

Lines end in LF, CRLF or CR; `data:` with or without one space; several data lines join with LF; comments are counted,
not events. A stream may be cut anywhere, also between CR and LF.
"""

from __future__ import annotations

from typing import Final

from ..errors import ProtocolError

EVENT_BYTES_MAX: Final = 16 << 20
BOM: Final = b"\xef\xbb\xbf"
# A number is looked for in bytes 9x faster than a byte string: that one raises and clears an error first.
CR: Final = 13
LF: Final = 10

Event = tuple[bytes, bytes]  # (name, data); the name is empty for an unnamed event


class SseFraming:
    """One stream. feed() gives the events that a piece completed; `pending` says whether it ended inside one."""

    __slots__ = ("_after_cr", "_clean", "_data", "_data_bytes", "_fresh", "_name", "_rest", "comments", "pending")

    def __init__(self) -> None:
        self._rest = bytearray()  # an unfinished line; grows in place, however many pieces bring it
        self._data: list[bytes] | None = None  # the data lines of an unfinished event
        self._data_bytes = 0  # of them, with their line ends
        self._name = b""
        self._after_cr = False
        self._fresh = True  # a byte order mark may come
        self._clean = True  # between events, nothing held back
        self.pending = False  # did the last piece end inside an event?
        self.comments = 0

    def feed(self, piece: bytes) -> list[Event]:
        """The events completed by `piece`, in order. Raises ProtocolError for an event beyond EVENT_BYTES_MAX."""
        # The common case by far: whole events of one data line each, LF ended. 3x faster (benches/bench_sse.py), and
        # equal to the general way for every input (tests/test_sse.py).
        if self._clean and piece[:6] == b"data: " and piece[-2:] == b"\n\n" and CR not in piece:
            body = piece[6:-2]
            self._fresh = False
            if LF not in body:
                return [(b"", body)]
            blocks = body.split(b"\n\ndata: ")
            for block in blocks:
                if LF in block:
                    break
            else:
                return [(b"", block) for block in blocks]
        return self._general(piece)

    def flush(self) -> list[Event]:
        """The event that the end of the stream left without its blank line, if there is one."""
        if self._rest:
            line, self._rest = bytes(self._rest), bytearray()
            self._field(line)
        return self._dispatch()

    def _general(self, piece: bytes) -> list[Event]:
        if not piece:
            return []
        self._clean = False
        if self._after_cr:
            self._after_cr = False
            if piece.startswith(b"\n"):
                piece = piece[1:]
        if not (self._fresh or LF in piece or CR in piece):
            self._rest += piece
            self.pending = True
            self._bounded()
            return []
        whole = bytes(self._rest) + piece
        if self._fresh:
            if len(whole) < len(BOM) and BOM.startswith(whole):
                self._rest += piece
                return []
            self._fresh = False
            whole = whole.removeprefix(BOM)
        if CR in whole:
            if whole.endswith(b"\r"):
                self._after_cr = True  # an LF that follows belongs to it
            whole = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = whole.split(b"\n")
        self._rest = bytearray(rest)
        events: list[Event] = []
        for line in lines:
            if line:
                self._field(line)
            else:
                events += self._dispatch()
        self.pending = bool(rest) or self._data is not None
        self._clean = not (self.pending or self._name or self._after_cr)
        self._bounded()
        return events

    def _bounded(self) -> None:
        if len(self._rest) + self._data_bytes > EVENT_BYTES_MAX:
            raise ProtocolError(f"an event is larger than {EVENT_BYTES_MAX} bytes")

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data_bytes += len(value) + 1
            if self._data is None:
                self._data = [value]
            else:
                self._data.append(value)
        elif name == b"event":
            self._name = value
        elif not name:
            self.comments += 1

    def _dispatch(self) -> list[Event]:
        lines, name = self._data, self._name
        self._data, self._data_bytes, self._name = None, 0, b""
        return [] if lines is None else [(name, lines[0] if len(lines) == 1 else b"\n".join(lines))]
