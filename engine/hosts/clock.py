r"""How far a host's clock is from the driver's, from exchanges of four stamps (RFC 5905, section 8). No clock, no socket.

    driver   t1 ----.              .---> t4          offset = ((t2 - t1) + (t3 - t4)) / 2
                     \            /                   delay  = (t4 - t1) - (t3 - t2)
    host              `-> t2  t3 -'

The true offset is within delay/2 of the measured one, however unequal the two ways are. So of many exchanges the one of
the least delay counts. Later rounds measure again: what the clocks have drifted apart since the start is added to the
bound, because a host keeps the ticks that it began with.
"""

from __future__ import annotations

from typing import NamedTuple


class Exchange(NamedTuple):
    """Stamps of one ping: t1 and t4 by the driver's CLOCK_MONOTONIC, t2 and t3 by the host's."""

    sent_ns: int
    received_ns: int
    replied_ns: int
    returned_ns: int

    @property
    def delay_ns(self) -> int:
        return (self.returned_ns - self.sent_ns) - (self.replied_ns - self.received_ns)

    @property
    def offset_ns(self) -> int:
        """The host's clock minus the driver's; wrong by delay_ns / 2 at most."""
        return ((self.received_ns - self.sent_ns) + (self.replied_ns - self.returned_ns)) // 2


class HostClock:
    """What is known of one host's clock. One round of exchanges after the other; `fix` at the start of the run."""

    def __init__(self) -> None:
        self._best: Exchange | None = None  # of the round that goes on
        self._fixed_ns: int | None = None  # the offset by which the run was started
        self._widest_ns = 0  # over all rounds since

    def add(self, exchange: Exchange) -> None:
        """Takes an exchange in. One whose stamps cannot be is left out: a clock that went backwards."""
        if exchange.delay_ns >= 0 and (self._best is None or exchange.delay_ns < self._best.delay_ns):
            self._best = exchange

    def fix(self) -> int:
        """The offset of the run's start: the best measured so far. Raises ValueError before any exchange."""
        if self._best is None:
            raise ValueError("no exchange yet")
        self._fixed_ns = self._best.offset_ns
        return self._fixed_ns

    def begin_round(self) -> None:
        """What comes now is measured anew: an old exchange says nothing of what the clocks did since."""
        self._widest_ns = max(self._widest_ns, self._bound_now() or 0)
        self._best = None

    @property
    def offset_ns(self) -> int | None:
        """The latest measurement."""
        return self._best.offset_ns if self._best else self._fixed_ns

    @property
    def delay_ns(self) -> int:
        """The least delay of this round; 0 before any exchange."""
        return self._best.delay_ns if self._best else 0

    @property
    def bound_ns(self) -> int | None:
        """How far the host's tick edges have been from the driver's at most, drift since the start included."""
        now = self._bound_now()
        return self._widest_ns or None if now is None else max(self._widest_ns, now)

    def _bound_now(self) -> int | None:
        if self._best is None:
            return None
        drift_ns = abs(self._best.offset_ns - self._fixed_ns) if self._fixed_ns is not None else 0
        return drift_ns + -(-self._best.delay_ns // 2)
