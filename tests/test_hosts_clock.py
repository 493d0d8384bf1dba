"""How far a host's clock is from the driver's: what is claimed must hold whatever the network does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.hosts.clock import Exchange, HostClock

MS = 1_000_000
delays = st.tuples(st.integers(0, 40 * MS), st.integers(0, 40 * MS), st.integers(0, 5 * MS))


def exchange(at_ns: int, offset_ns: int, there_ns: int, back_ns: int, held_ns: int = 0) -> Exchange:
    """A ping at `at_ns` to a host whose clock is `offset_ns` ahead."""
    received = at_ns + there_ns + offset_ns
    return Exchange(at_ns, received, received + held_ns, at_ns + there_ns + held_ns + back_ns)


@given(st.integers(-(10**15), 10**15), st.lists(delays, min_size=1, max_size=64))
def test_the_bound_holds_the_true_offset_however_unequal_the_ways_are(
    offset_ns: int, ways: list[tuple[int, int, int]]
) -> None:
    """All delay on one way is the worst that can be; the start of the run is claimed to be better than the bound."""
    clock = HostClock()
    for at, (there, back, held) in enumerate(ways):
        clock.add(exchange(at * 100 * MS, offset_ns, there, back, held))
    assert clock.bound_ns is not None
    assert abs(clock.fix() - offset_ns) <= clock.bound_ns
    assert clock.delay_ns == min(there + back for there, back, _ in ways)


def test_drift_since_the_start_is_in_the_bound() -> None:
    """The host keeps the ticks that it began with: an hour later they are off by what the clocks have drifted."""
    clock = HostClock()
    clock.add(exchange(0, 1000 * MS, MS, MS))
    assert clock.fix() == 1000 * MS
    assert clock.bound_ns == MS
    clock.begin_round()
    clock.add(exchange(3600 * 1000 * MS, 1020 * MS, MS, MS))
    assert clock.bound_ns == 21 * MS
    clock.begin_round()
    clock.add(exchange(3700 * 1000 * MS, 1001 * MS, MS, MS))
    assert clock.bound_ns == 21 * MS, "what was off once is not taken back"


def test_stamps_that_cannot_be_are_left_out() -> None:
    """A negative delay would win every comparison and make its offset the best known."""
    clock = HostClock()
    clock.add(Exchange(10 * MS, 500 * MS, 600 * MS, 20 * MS))
    assert clock.bound_ns is None
    with pytest.raises(ValueError, match="no exchange"):
        clock.fix()
