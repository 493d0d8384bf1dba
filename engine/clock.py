"""The clocks: kernel receive stamps brought from CLOCK_REALTIME to CLOCK_MONOTONIC, steps noticed, timers that are never early.

All times are integer ns. The mapping is measured by bracketing (mono, real, mono); its error is half the bracket's width,
about 0.1 us. NTP slews both clocks alike, so the offset only changes when CLOCK_REALTIME is stepped.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

TRIES: Final = 5
STEP_NS: Final = 20_000  # a smaller change of the offset is the bracket's own error or adjtime's rounding
SO_TIMESTAMPNS: Final = 35
TFD_NONBLOCK: Final = os.O_NONBLOCK
TFD_CLOEXEC: Final = os.O_CLOEXEC
TFD_TIMER_ABSTIME: Final = 1

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
        """Measures the mapping again. True if CLOCK_REALTIME was stepped since: the mapping is the new one from now on."""
        offset, width = bracket(self._mono, self._real)
        stepped = abs(offset - self.offset_ns) > STEP_NS + width + self.width_ns
        if stepped:
            self.steps += 1
        if stepped or width <= self.width_ns:
            self.offset_ns, self.width_ns = offset, width
        return stepped


def resolution_ns(clock: Clock = time.monotonic_ns, tries: int = 1000) -> int:
    """The smallest step that the clock was seen to make."""
    smallest = 1 << 62
    last = clock()
    for _ in range(tries):
        now = clock()
        if now != last:
            smallest = min(smallest, now - last)
        last = now
    return smallest


def keep_stamps_on() -> socket.socket:
    """A socket that asks for stamps; keep it open. The kernel switches stamping on by a work queue when the first socket
    asks and off when the last one goes, so that without it the first packets of a run may come unstamped."""
    holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    holder.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    return holder


class _Itimerspec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_settime = _libc.timerfd_settime
_settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_pack_timerspec = struct.Struct("@llll").pack_into


class Timer:
    """An absolute CLOCK_MONOTONIC timerfd: readable at its time or later, never before. One owner.

    Calls libc directly on every version: os.timerfd_settime_ns (3.13) costs the same (benches/bench_clock.py).
    """

    __slots__ = ("_address", "_buffer", "_fd")

    def __init__(self) -> None:
        self._fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._buffer = _Itimerspec()
        self._address = ctypes.addressof(self._buffer)

    def fileno(self) -> int:
        return self._fd

    def arm(self, at_ns: int) -> None:
        """Fires at `at_ns`; a time in the past fires at once."""
        _pack_timerspec(self._buffer, 0, 0, 0, at_ns // 1_000_000_000, at_ns % 1_000_000_000)
        if _settime(self._fd, TFD_TIMER_ABSTIME, self._address, None):
            raise OSError(ctypes.get_errno(), f"timerfd_settime failed for {at_ns}")

    def disarm(self) -> None:
        _pack_timerspec(self._buffer, 0, 0, 0, 0, 0)
        _settime(self._fd, 0, self._address, None)

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
