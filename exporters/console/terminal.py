"""A terminal's file descriptor as a text file without locks, and text that cannot drive a terminal. Imports no rich."""

from __future__ import annotations

import os


class Terminal:
    """A text file over its own copy of a descriptor. Writes are joined and leave together at `flush`.

    It holds no lock: where a terminal is stopped with Ctrl-S or a pipe is full, only the thread that flushes waits. A
    failed write does not raise, because rich would be interrupted in the middle of its drawing: `error` holds it.
    Raises OSError if the descriptor is closed.
    """

    encoding = "utf-8"

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        self._pending: list[str] = []
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._pending.append(text)
        return len(text)

    def flush(self) -> None:
        rest = memoryview("".join(self._pending).encode("utf-8", "replace"))
        self._pending.clear()
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self.error = error

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


def columns(default: int) -> int:
    """The width that the environment variable COLUMNS asks for; `default` where it is missing or not a number."""
    text = os.environ.get("COLUMNS", "")
    return int(text) if text.isdecimal() and int(text) > 0 else default


def printable(text: str) -> str:
    """`text` with a question mark for every control character: a server's message must not drive the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
