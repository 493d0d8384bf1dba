"""A file that only grows, exactly once, over a full disk and a SIGKILL: what all file exporters write through.

Blocks are held until `flush`, and written at the known end, never appended: what a failed write left behind is
overwritten by the next. Nothing here raises for a failing disk; `failures` and `dropped` count.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ...engine.files import write_at

PENDING_MAX_BYTES: Final = 64 << 20


class AppendFile:
    """`size` bytes are safe in the file; blocks wait in memory up to `pending_max_bytes`, then new ones are dropped."""

    def __init__(self, path: Path, *, pending_max_bytes: int = PENDING_MAX_BYTES) -> None:
        self.path = path
        self.size = 0
        self.failures = 0
        self.dropped = 0  # the sum of the `count` of the blocks dropped
        self.waiting = 0  # the same, of the blocks that are not written yet
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._pending_max_bytes = pending_max_bytes
        self._file = -1

    def write(self, block: bytes, *, count: int = 1) -> None:
        if self._pending and self._pending_bytes + len(block) > self._pending_max_bytes:
            self.dropped += count
            return
        self._pending.append(block)
        self._pending_bytes += len(block)
        self.waiting += count

    def flush(self) -> bool:
        """Writes what waits. False if the disk does not take it: it waits on."""
        if not self._pending:
            return True
        content = b"".join(self._pending)
        try:
            if self._file < 0:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            write_at(self._file, content, self.size)
        except OSError:
            self.failures += 1
            self._pending = [content]
            self.close()
            return False
        self.size += len(content)
        self._pending, self._pending_bytes, self.waiting = [], 0, 0
        return True

    def rewind(self, size: int) -> None:
        """Cuts the file to `size`; the bytes past it were written after the last checkpoint and will be rewritten."""
        try:
            length = self.path.stat().st_size
            self.size = min(size, length)  # shorter: somebody cut it; a hole of zeros would make it unreadable
            if length > self.size:
                os.truncate(self.path, self.size)
        except FileNotFoundError:
            self.size = 0
        except OSError:
            self.failures += 1
            self.size = size

    def restart(self) -> None:
        """After the file was moved away: goes on in a new one of its name, with what waits."""
        self.close()
        self.size = 0

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        """A collector that failed on damaged rings drops its sinks without closing them; a descriptor is no file object."""
        self.close()
