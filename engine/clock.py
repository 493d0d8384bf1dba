"""The clocks: kernel receive stamps brought from CLOCK_REALTIME to CLOCK_MONOTONIC, steps noticed, timers never early.

All times are integer ns. The mapping is measured by bracketing (mono, real, mono); its error is half the bracket's
width, about 0.1 us. Linux slews both clocks alike (adjtimex(2) changes the rate of the one counter behind them), so
the offset only changes when CLOCK_REALTIME is stepped, or by a suspend: CLOCK_MONOTONIC stands still then.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Final

TRIES: Final = 5
STEP_NS: Final = 1_000  # a smaller change of the offset is followed without a word: it is no error that anyone sees
ROUNDING_NS: Final = 2  # each clock is rounded down to a ns
SO_TIMESTAMPNS: Final = 35

Clock = Callable[[], int]


def bracket(mono: Clock, real: Clock, tries: int = TRIES) -> tuple[int, int]:
    """(offset, width) of the tightest of some brackets: monotonic = real - offset, known to within width / 2."""
    best_offset, best_width = 0, 1 << 62
    for _ in range(tries):
        before = mono()
        wall = real()
        after = mono()
        if after - before < best_width:
            best_width = after - before
            best_offset = wall - (before + after) // 2
    return best_offset, best_width


class StampClock:
    """The mapping of kernel stamps to CLOCK_MONOTONIC: `stamp_real - offset_ns`.

    `resample()` is called about once a second and whenever a stamp looks wrong.
    """

    __slots__ = ("_mono", "_real", "offset_ns", "steps", "width_ns")

    def __init__(self, mono: Clock = time.monotonic_ns, real: Clock = time.time_ns) -> None:
        self._mono = mono
        self._real = real
        self.offset_ns, self.width_ns = bracket(mono, real)
        self.steps = 0

    def resample(self) -> bool:
        """Measures the mapping again. True if CLOCK_REALTIME was stepped since: the mapping is the new one from now on.

        Two brackets that do not overlap prove a change, however small; two that do are the same mapping, and the
        tighter one measures it better.
        """
        offset, width = bracket(self._mono, self._real)
        moved = abs(offset - self.offset_ns)
        uncertain = (width + self.width_ns) // 2 + ROUNDING_NS
        if moved > uncertain or width <= self.width_ns:
            self.offset_ns, self.width_ns = offset, width
        stepped = moved > uncertain + STEP_NS
        self.steps += stepped
        return stepped


def resolution_ns(clock: Clock = time.monotonic_ns, steps: int = 100) -> int:
    """The smallest of some steps that the clock was seen to make: what a reading can tell apart at best."""
    smallest = 1 << 62
    last = clock()
    while steps:
        now = clock()
        if now != last:
            smallest = min(smallest, now - last)
            steps -= 1
        last = now
    return smallest


def keep_stamps_on() -> socket.socket:
    """A socket that asks for stamps; keep it open. The kernel switches stamping on by a work queue when the first
    socket asks and off when the last one goes, so that without it the first packets of a run may come unstamped."""
    holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    holder.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    return holder


if sys.version_info >= (3, 13):

    def _create_timer() -> int:
        return os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)

    def _set_timer(fd: int, at_ns: int) -> None:
        os.timerfd_settime_ns(fd, flags=os.TFD_TIMER_ABSTIME, initial=at_ns)

else:  # 1 to 2 us more to arm (benches/bench_clock.py)
    _TFD_TIMER_ABSTIME: Final = 1
    _libc = ctypes.CDLL(None, use_errno=True)
    _settime = _libc.timerfd_settime
    _settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    _itimerspec = struct.Struct("@llll").pack  # interval s and ns, value s and ns

    def _create_timer() -> int:
        fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        return fd

    def _set_timer(fd: int, at_ns: int) -> None:
        if _settime(fd, _TFD_TIMER_ABSTIME, _itimerspec(0, 0, at_ns // 1_000_000_000, at_ns % 1_000_000_000), None):
            raise OSError(ctypes.get_errno(), f"timerfd_settime failed for {at_ns}")


class Timer:
    """An absolute CLOCK_MONOTONIC timerfd: readable at its time or later, never before. One owner."""

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        self._fd = _create_timer()

    def fileno(self) -> int:
        return self._fd

    def arm(self, at_ns: int) -> None:
        """Fires at `at_ns`, once, instead of what it was armed for; a time in the past fires at once."""
        _set_timer(self._fd, at_ns if at_ns > 0 else 1)  # 0 would disarm it

    def disarm(self) -> None:
        """Does not fire any more, nor is what fired and was not read."""
        _set_timer(self._fd, 0)

    def read(self) -> None:
        """Takes the expiry; harmless when there is none."""
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
