"""The clocks: the mapping against a fake machine whose truth is known, then kernel stamps and timers for real."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.clock import (
    ROUNDING_NS,
    SO_TIMESTAMPNS,
    STEP_NS,
    TRIES,
    StampClock,
    Timer,
    bracket,
    keep_stamps_on,
    resolution_ns,
)

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


class Machine:
    """Two clocks over one true time. Each reading takes the next of `costs` (ns, before and after its moment)."""

    def __init__(self, *, offset_ns: int = 1_700_000_000 * SECOND, costs: list[tuple[int, int]] | None = None) -> None:
        self.now_ns = 5 * SECOND
        self.offset_ns = offset_ns
        self.costs = costs or [(20, 20)]
        self.readings = 0

    def _read(self) -> int:
        before, after = self.costs[self.readings % len(self.costs)]
        self.readings += 1
        moment = self.now_ns + before
        self.now_ns = moment + after
        return moment

    def mono(self) -> int:
        return self._read()

    def real(self) -> int:
        return self._read() + self.offset_ns

    def stamp_error_ns(self, clock: StampClock) -> int:
        """How far a kernel stamp taken now would be from the truth."""
        return abs(self.now_ns + self.offset_ns - clock.offset_ns - self.now_ns)


cost = st.tuples(st.integers(0, 300), st.integers(0, 300))


@given(st.lists(cost, min_size=1, max_size=15), st.integers(-(1 << 62), 1 << 62))
def test_a_bracket_is_right_to_half_its_width_however_lopsided_the_readings(
    costs: list[tuple[int, int]], offset: int
) -> None:
    machine = Machine(offset_ns=offset, costs=costs)
    found, width = bracket(machine.mono, machine.real)
    assert abs(found - offset) <= width / 2 + 1


def test_the_tightest_of_some_brackets_is_taken() -> None:
    quick = (10, 10)
    preempted = (10, 4_000_000)
    for place in range(TRIES):  # only this try has no preemption in it
        costs = [quick if i // 3 == place else preempted for i in range(TRIES * 3)]
        machine = Machine(costs=costs)
        found, width = bracket(machine.mono, machine.real)
        assert width == 40, place
        assert found == machine.offset_ns, place


def test_a_quiet_machine_has_no_steps() -> None:
    machine = Machine(costs=[(20, 35), (15, 60), (30, 10), (22, 22)])
    clock = StampClock(machine.mono, machine.real)
    for _ in range(1000):
        machine.now_ns += SECOND
        assert not clock.resample()
    assert clock.steps == 0
    assert machine.stamp_error_ns(clock) <= clock.width_ns / 2 + ROUNDING_NS


@pytest.mark.parametrize(
    ("change_ns", "why"),
    [
        (SECOND, "a leap second taken back, or ntpdate"),
        (-SECOND, "a leap second"),
        (3 * HOUR, "a suspend: CLOCK_MONOTONIC stood still"),
        (-8 * HOUR, "somebody set the clock from local time to UTC"),
        (250_000, "a first correction of a time daemon"),
        (-25_000, "phc2sys steps from 20 us on"),
        (STEP_NS + 200, "just above what is followed silently"),
    ],
)
def test_a_step_is_flagged_once_counted_and_followed(change_ns: int, why: str) -> None:
    machine = Machine()
    clock = StampClock(machine.mono, machine.real)
    machine.now_ns += SECOND
    machine.offset_ns += change_ns
    assert clock.resample(), why
    assert clock.steps == 1
    assert machine.stamp_error_ns(clock) <= clock.width_ns / 2 + ROUNDING_NS
    assert not clock.resample()
    assert clock.steps == 1


@pytest.mark.parametrize("drift_ns", [STEP_NS // 2, -STEP_NS // 2, 150, -150])
def test_a_slew_is_followed_and_is_no_step(drift_ns: int) -> None:
    """Linux has none of it, both clocks are slewed alike; the mapping must not add it up where there is."""
    machine = Machine(costs=[(20, 20), (21, 20), (20, 23)])
    clock = StampClock(machine.mono, machine.real)
    for _ in range(200):
        machine.now_ns += SECOND
        machine.offset_ns += drift_ns
        assert not clock.resample()
        assert machine.stamp_error_ns(clock) <= clock.width_ns + 2 * ROUNDING_NS
    assert clock.steps == 0


def test_a_preempted_bracket_neither_spoils_the_mapping_nor_looks_like_a_step() -> None:
    machine = Machine()
    clock = StampClock(machine.mono, machine.real)
    good = clock.offset_ns, clock.width_ns
    machine.costs = [(5, 3_000_000), (2_000_000, 5), (10, 10)]  # every try of it
    assert not clock.resample()
    assert (clock.offset_ns, clock.width_ns) == good


def test_a_start_under_preemption_is_mended_by_the_next_sample_without_a_step() -> None:
    machine = Machine(costs=[(5, 3_000_000), (900_000, 5), (10, 10)])
    clock = StampClock(machine.mono, machine.real)
    assert clock.width_ns > 1_000_000
    machine.costs = [(20, 20)]
    assert not clock.resample()
    assert clock.width_ns == 80
    assert clock.offset_ns == machine.offset_ns


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 0, 0, 1]) | st.integers(-10 * SECOND, 10 * SECOND),
            st.lists(cost, min_size=1, max_size=7),
        ),
        max_size=12,
    )
)
def test_after_any_history_the_mapping_is_as_good_as_it_says(history: list[tuple[int, list[tuple[int, int]]]]) -> None:
    machine = Machine()
    clock = StampClock(machine.mono, machine.real)
    changed = False
    for change_ns, costs in history:
        changed |= bool(change_ns)
        machine.now_ns += SECOND
        machine.offset_ns += change_ns
        machine.costs = costs
        before = clock.width_ns
        stepped = clock.resample()
        assert changed or not stepped
        # a change may hide in the sum of two brackets' errors, no more than that
        assert machine.stamp_error_ns(clock) <= before + clock.width_ns + max(sum(c) for c in costs) * 3 + ROUNDING_NS


def test_the_clocks_of_this_machine_agree_with_each_other() -> None:
    clock = StampClock()
    assert not any(clock.resample() for _ in range(200))
    assert clock.steps == 0
    for _ in range(200):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        assert before - clock.width_ns <= wall - clock.offset_ns <= after + clock.width_ns


@pytest.mark.parametrize("step_ns", [1, 100, 4_000_000])
def test_resolution_is_the_smallest_step_of_the_clock(step_ns: int) -> None:
    machine = Machine(costs=[(25_000, 0)])
    assert resolution_ns(lambda: machine.mono() // step_ns * step_ns, steps=10) == max(step_ns, 25_000)


def test_the_clock_of_this_machine_tells_microseconds_apart() -> None:
    assert 0 < resolution_ns() < 10_000


# --- kernel stamps ----------------------------------------------------------------------------------------------------


@pytest.fixture
def holder() -> Iterator[socket.socket]:
    with keep_stamps_on() as kept:
        yield kept


def test_the_holder_asks_for_stamps_and_is_not_inherited(holder: socket.socket) -> None:
    assert holder.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS) == 1
    assert not holder.get_inheritable()


def test_a_kernel_stamp_lies_between_send_and_receipt_on_the_monotonic_clock(holder: socket.socket) -> None:
    clock = StampClock()
    stamped = 0
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        receiver.settimeout(10)
        receiver.bind(("127.0.0.1", 0))
        deadline = time.monotonic() + 10
        while stamped < 200 and time.monotonic() < deadline:
            before = time.monotonic_ns()
            sender.sendto(b"x", receiver.getsockname())
            ancillary = receiver.recvmsg(16, 64)[1]
            after = time.monotonic_ns()
            if not ancillary:
                continue  # the kernel's work queue has not switched stamping on yet
            assert ancillary[0][:2] == (socket.SOL_SOCKET, SO_TIMESTAMPNS)
            seconds, rest = struct.unpack("<qq", ancillary[0][2])
            stamp = seconds * SECOND + rest - clock.offset_ns
            assert before - clock.width_ns <= stamp <= after + clock.width_ns
            stamped += 1
    assert stamped == 200


# --- timers -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def timer() -> Iterator[Timer]:
    made = Timer()
    yield made
    made.close()


def fired(timer: Timer, within_s: float = 5.0) -> bool:
    return bool(select.select([timer], [], [], within_s)[0])


def test_a_timer_is_never_early(timer: Timer) -> None:
    for delay_ns in range(0, 2_000_000, 40_000):
        at_ns = time.monotonic_ns() + delay_ns
        timer.arm(at_ns)
        assert fired(timer)
        assert time.monotonic_ns() >= at_ns
        timer.read()


@pytest.mark.parametrize("at_ns", [-5, 0, 1, SECOND], ids=["negative", "zero", "boot", "long ago"])
def test_a_time_in_the_past_fires_at_once(timer: Timer, at_ns: int) -> None:
    timer.arm(at_ns)
    assert fired(timer)


def test_an_expiry_is_taken_once(timer: Timer) -> None:
    timer.arm(1)
    assert fired(timer)
    timer.read()
    assert not fired(timer, 0)


def test_to_read_what_has_not_fired_is_harmless(timer: Timer) -> None:
    timer.read()
    timer.arm(time.monotonic_ns() + HOUR)
    timer.read()
    assert not fired(timer, 0)


def test_arming_again_replaces_what_was_armed_or_had_fired(timer: Timer) -> None:
    timer.arm(1)
    assert fired(timer)
    timer.arm(time.monotonic_ns() + HOUR)
    assert not fired(timer, 0)
    timer.arm(time.monotonic_ns() + 1000)
    assert fired(timer)


def test_a_disarmed_timer_does_not_fire(timer: Timer) -> None:
    timer.arm(1)
    assert fired(timer)
    timer.disarm()
    assert not fired(timer, 0)


def test_the_descriptor_does_not_block_and_is_not_inherited(timer: Timer) -> None:
    assert fcntl.fcntl(timer.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
    assert not os.get_inheritable(timer.fileno())


def test_close_gives_the_descriptor_back_and_may_come_twice() -> None:
    timer = Timer()
    descriptor = timer.fileno()
    timer.close()
    timer.close()
    with pytest.raises(OSError, match=r"Bad file descriptor") as failed:
        os.fstat(descriptor)
    assert failed.value.errno == errno.EBADF


def test_to_arm_a_closed_timer_is_an_error() -> None:
    timer = Timer()
    timer.close()
    with pytest.raises(
        (OSError, ValueError), match=r"timerfd_settime failed|negative integer"
    ):  # below 3.13, from it on
        timer.arm(1)
