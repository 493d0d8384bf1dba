"""What a stamp and a timer cost, beside the ways that were not taken."""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_latency_lens.engine.clock import StampClock, Timer

STAMP = struct.pack("<qq", 1_795_402_642, 818_528_677)
SECOND = 1_000_000_000
FAR_NS = time.monotonic_ns() + 10**15
CLOCK = StampClock()

_unpack_from = struct.Struct("<qq").unpack_from
_unpack = struct.Struct("<qq").unpack


def by_struct_from(stamp: bytes) -> int:
    seconds, rest = _unpack_from(stamp)
    return seconds * SECOND + rest - CLOCK.offset_ns  # type: ignore[no-any-return]


def by_struct(stamp: bytes) -> int:
    seconds, rest = _unpack(stamp)
    return seconds * SECOND + rest - CLOCK.offset_ns  # type: ignore[no-any-return]


def by_integers(stamp: bytes) -> int:
    return int.from_bytes(stamp[:8], "little") * SECOND + int.from_bytes(stamp[8:], "little") - CLOCK.offset_ns


def by_view(stamp: bytes) -> int:
    view = memoryview(stamp).cast("q")
    return view[0] * SECOND + view[1] - CLOCK.offset_ns


@pytest.mark.parametrize("convert", [by_struct_from, by_struct, by_integers, by_view])
def test_stamp_to_monotonic(benchmark: Any, convert: Callable[[bytes], int]) -> None:
    assert benchmark(convert, STAMP) == by_struct(STAMP)


def test_resample(benchmark: Any) -> None:
    benchmark(CLOCK.resample)
    benchmark.extra_info["bracket_ns"] = CLOCK.width_ns


@pytest.fixture
def timer() -> Iterator[Timer]:
    made = Timer()
    yield made
    made.close()


def test_arm(benchmark: Any, timer: Timer) -> None:
    benchmark(timer.arm, FAR_NS)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="os.timerfd_settime_ns came with 3.13")
def test_arm_by_os(benchmark: Any, timer: Timer) -> None:
    if sys.version_info >= (3, 13):
        benchmark(
            lambda: os.timerfd_settime_ns(timer.fileno(), flags=os.TFD_TIMER_ABSTIME, initial=FAR_NS),
        )


def test_lateness_of_a_wake_up(benchmark: Any, timer: Timer) -> None:
    """Of a quiet loop: from the armed time to the moment after poll() gave it."""
    import select

    poller = select.epoll()
    poller.register(timer.fileno(), select.EPOLLIN)
    late: list[int] = []

    def one() -> None:
        at_ns = time.monotonic_ns() + 200_000
        timer.arm(at_ns)
        poller.poll()
        late.append(time.monotonic_ns() - at_ns)
        timer.read()

    benchmark.pedantic(one, rounds=300)
    poller.close()
    assert min(late) >= 0
    benchmark.extra_info["late_us_p50"] = sorted(late)[len(late) // 2] / 1000
