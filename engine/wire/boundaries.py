"""Where one unit ends and the next begins in bytes that still wait in the socket: HTTP chunks or TLS records. Sans-IO.

A worker that reads late finds several segments waiting. The kernel gives one time stamp per read, that of the last
segment the read touched, so each read must end where a unit ends. These functions look at peeked bytes (recv(2),
MSG_PEEK) and return those ends; what does not look like units returns none, and the bytes are then read at once.
"""

from __future__ import annotations

from typing import Final

HEAD_END: Final = b"\r\n\r\n"
LINE_END: Final = b"\r\n"
CHUNK_HEAD_BYTES_MAX: Final = 64
RECORD_HEAD_BYTES: Final = 5
RECORD_BYTES_MAX: Final = (1 << 14) + 256  # RFC 8446 section 5.2
RECORD_TYPES: Final = frozenset({20, 21, 22, 23})  # change_cipher_spec, alert, handshake, application_data


def chunk_ends(waiting: bytes, *, head: bool) -> list[int]:
    """Offsets behind each complete chunk of a chunked body (RFC 9112 section 7.1); with `head`, the first is behind the
    reply's head, which must announce the coding. Empty when the bytes do not begin at a boundary."""
    ends: list[int] = []
    start = 0
    if head:
        end = waiting.find(HEAD_END)
        if end < 0:
            return ends
        start = end + len(HEAD_END)
        ends.append(start)
        if not _announces_chunks(waiting[:end].lower()):
            return ends
    size_of_all = len(waiting)
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
            break
        ends.append(start)
    return ends


def record_ends(waiting: bytes) -> list[int]:
    """Offsets behind each complete TLS record (RFC 8446 section 5.1). Empty when the bytes do not begin at a record."""
    ends: list[int] = []
    start = 0
    while start + RECORD_HEAD_BYTES <= len(waiting):
        size = int.from_bytes(waiting[start + 3 : start + RECORD_HEAD_BYTES], "big")
        if waiting[start] not in RECORD_TYPES or waiting[start + 1] != 3 or size > RECORD_BYTES_MAX:
            break
        start += RECORD_HEAD_BYTES + size
        if start > len(waiting):
            break
        ends.append(start)
    return ends


def _announces_chunks(head: bytes) -> bool:
    line = head.find(b"\r\ntransfer-encoding:")
    return line >= 0 and b"chunked" in head[line : head.find(LINE_END, line + 2) % (len(head) + 1)]
