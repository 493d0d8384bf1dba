"""SIGINT, SIGTERM and SIGHUP of a command, from its first line to its last.

While nothing has been made a signal raises KeyboardInterrupt wherever the program stands, so that no slow name server can
hold it. From defer() on it is noted, and whoever waits on `fd` handles it (the supervisor drains the run): raising then
would leave a run without its summary.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Installed by its `with`, in the main thread. `numbers` are the signals so far; `fd` is readable after another."""

    def __init__(self, *, deferred: bool = False) -> None:
        self.numbers: list[int] = []
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._deferred = deferred
        self._previous: dict[signal.Signals, Any] = {}
        self._previous_wakeup = -1

    def __enter__(self) -> Interrupts:
        self._previous = {number: signal.signal(number, self._received) for number in SIGNALS}
        self._previous_wakeup = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, action in self._previous.items():
            signal.signal(number, action)
        os.close(self.fd)
        os.close(self._write_fd)

    def defer(self) -> None:
        """From here on signals are noted and raise nothing."""
        self._deferred = True

    def raise_again(self) -> None:
        """The run is over: a signal ends whatever comes after it."""
        self._deferred = False

    def clear(self) -> None:
        """Empties `fd`; `numbers` stay."""
        with suppress(BlockingIOError):
            os.read(self.fd, 4096)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        self.numbers.append(number)
        if not self._deferred:
            raise KeyboardInterrupt
