"""Where one unit ends and the next begins in bytes that still wait in the socket: HTTP chunks or TLS records. Sans-IO.

A worker that reads late finds several segments waiting. The kernel returns one time stamp per read, that of the last
segment the read touched, so each read must end where a unit ends. These functions look at peeked bytes (recv(2),
MSG_PEEK) and return those ends. Bytes that do not look like units have none, and are then read at once.
"""

from __future__ import annotations

from typing import Final, NamedTuple

HEAD_END: Final = b"\r\n\r\n"
LINE_END: Final = b"\r\n"
CHUNK_HEAD_BYTES_MAX: Final = 64
RECORD_HEAD_BYTES: Final = 5
RECORD_BYTES_MAX: Final = (1 << 14) + 256  # RFC 8446 section 5.2
RECORD_TYPES: Final = frozenset({20, 21, 22, 23})  # change_cipher_spec, alert, handshake, application_data


class Units(NamedTuple):
    """`ends`: offsets behind each complete unit, ascending. `missing`: bytes that the last, incomplete one still lacks;
    0 if the bytes end with a unit or do not say."""

    ends: list[int]
    missing: int


def chunks(waiting: bytes, *, head: bool = False, missing: int = 0) -> Units:
    """The chunks of a chunked body (RFC 9112 section 7.1) in `waiting`.

    With `head`, the bytes begin with the reply's head, which is the first unit and must announce the coding. `missing`
    is what an earlier call said of the unit that the bytes begin in.
    """
    size_of_all = len(waiting)
    if missing > size_of_all:
        return Units([], missing - size_of_all)
    ends = [missing] if missing else []
    start = missing
    if head:
        end = waiting.find(HEAD_END)
        if end < 0:
            return Units([], 0)
        start = end + len(HEAD_END)
        ends.append(start)
        if not _announces_chunks(waiting[:end].lower()):
            return Units(ends, 0)
    while start < size_of_all:
        line = waiting.find(LINE_END, start, start + CHUNK_HEAD_BYTES_MAX)
        if line < 0:
            break
        try:
            size = int(waiting[start:line].partition(b";")[0], 16)
        except ValueError:
            break
        if size <= 0:  # the last chunk, with trailers or without
            end = waiting.find(HEAD_END, line)
            if end >= 0:
                ends.append(end + len(HEAD_END))
            break
        start = line + 2 + size + 2
        if start > size_of_all:
            return Units(ends, start - size_of_all)
        ends.append(start)
    return Units(ends, 0)


def records(waiting: bytes, *, missing: int = 0) -> Units:
    """The TLS records (RFC 8446 section 5.1) in `waiting`. `missing` as for `chunks`."""
    size_of_all = len(waiting)
    if missing > size_of_all:
        return Units([], missing - size_of_all)
    ends = [missing] if missing else []
    start = missing
    while start + RECORD_HEAD_BYTES <= size_of_all:
        size = int.from_bytes(waiting[start + 3 : start + RECORD_HEAD_BYTES], "big")
        if waiting[start] not in RECORD_TYPES or waiting[start + 1] != 3 or size > RECORD_BYTES_MAX:
            break
        start += RECORD_HEAD_BYTES + size
        if start > size_of_all:
            return Units(ends, start - size_of_all)
        ends.append(start)
    return Units(ends, 0)


def _announces_chunks(head: bytes) -> bool:
    field = head.find(b"\r\ntransfer-encoding:")
    if field < 0:
        return False
    end = head.find(LINE_END, field + 2)
    return b"chunked" in head[field : end if end >= 0 else len(head)]
