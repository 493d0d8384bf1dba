"""What the tap writes for the collector: one page of counters in the segment directory, in place, by one writer.

Seven little-endian 64-bit words: magic, time of the last heartbeat (CLOCK_MONOTONIC ns), packets seen, packets dropped
because the queue was full, hold time (ns) now, whether it ended by itself (1), its pid. Words are written one by one;
each is read on its own, so a reader needs no lock.
"""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

NAME: Final = "tap"
MAGIC: Final = 0x3154_5041_5453_4E4C  # "LNSTAPT1"
SILENT_NS: Final = 500_000_000  # a tap that wrote nothing for this long protects nothing: it holds no clone for sure

_words = struct.Struct("<7Q")


class TapStatus(NamedTuple):
    """The counters as they were when read. Times are CLOCK_MONOTONIC ns."""

    heartbeat_ns: int
    packets: int
    dropped: int
    hold_ns: int
    ended: bool
    pid: int

    def protects(self, now_ns: int) -> bool:
        """Whether the tap was at work at `now_ns`."""
        return not self.ended and now_ns - self.heartbeat_ns < SILENT_NS


class TapStatusWriter:
    """The tap's own side. Completed before it gets its name."""

    def __init__(self, directory: Path) -> None:
        temporary = directory / f".{NAME}.{os.getpid()}"
        temporary.write_bytes(bytes(mmap.PAGESIZE))
        with temporary.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        temporary.replace(directory / NAME)

    def write(self, now_ns: int, packets: int, dropped: int, hold_ns: int, *, ended: bool = False) -> None:
        _words.pack_into(self._page, 0, MAGIC, now_ns, packets, dropped, hold_ns, int(ended), os.getpid())

    def close(self) -> None:
        self._page.close()


class TapWatch:
    """A reader that looks again and again, and knows whether clones were dropped since its last look."""

    def __init__(self, directory: Path) -> None:
        self._fd = -1
        with suppress(OSError):
            self._fd = os.open(directory / NAME, os.O_RDONLY | os.O_CLOEXEC)
        self._dropped = 0

    def protects(self, now_ns: int) -> bool:
        """Whether the tap is at work, and has dropped nothing since the last call. About 2 us."""
        status = parse_tap_status(os.pread(self._fd, _words.size, 0)) if self._fd >= 0 else None
        if status is None:
            return False
        before, self._dropped = self._dropped, status.dropped
        return status.protects(now_ns) and status.dropped == before

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_tap_status(directory: Path) -> TapStatus | None:
    """The tap's counters; None if the run has no tap or its file is not (yet) one."""
    try:
        with (directory / NAME).open("rb") as file:
            content = file.read(_words.size)
    except OSError:
        return None
    return parse_tap_status(content)


def parse_tap_status(content: bytes) -> TapStatus | None:
    """The page's words; None for anything that is no such page."""
    if len(content) < _words.size:
        return None
    magic, heartbeat_ns, packets, dropped, hold_ns, ended, pid = _words.unpack(content)
    return TapStatus(heartbeat_ns, packets, dropped, hold_ns, bool(ended), pid) if magic == MAGIC else None
