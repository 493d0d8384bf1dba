"""Writing files so that a reader, or the same program after a crash, never sees half of one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, Final

import msgspec

# What msgspec raises for damaged content: invalid UTF-8 inside a string is no DecodeError of its own.
UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError)


def replace(path: Path, content: bytes) -> None:
    """Replaces the file at `path` in one step: a reader sees the old content or the new, never a mixture (rename(2)).

    The temporary file has the writer's pid in its name, so that two writers never share one. Raises OSError, and then
    removes the temporary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def lock_of(path: Path) -> IO[bytes]:
    """The file at `path`, made if need be and locked for this process alone until it is closed (flock(2)). Raises
    BlockingIOError where another process holds it, OSError where it cannot be written."""
    lock = path.open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock


def write_at(fd: int, content: bytes | memoryview, offset: int) -> None:
    """Writes all of `content` at `offset`; pwrite(2) alone may write less on a disk that is nearly full. Raises OSError."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written
