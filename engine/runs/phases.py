"""When phases begin and end, and in which words they are ended early: what a supervisor of workers and one of hosts share."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic_ns, time_ns
from typing import Final, Protocol

from ..plan.plan import Plan
from .control import Order

START_DELAY_NS: Final = 20_000_000  # between the last "ready" and the first slot
PHASE_GAP_NS: Final = 20_000_000  # between two phases when the first is not bounded by time
SHORTENED: Final = ("handed_over", "stopped")  # reasons after which the remaining slots are somebody else's, not unsent
HOST_LOST: Final = "host_lost"  # the reason of a host that lost the driver: its remaining slots are `worker_down`


class Starts(Protocol):
    """Says when a phase begins whose predecessors are done here."""

    def at_ns(self, phase: int) -> int | None:
        """The start of the phase, CLOCK_MONOTONIC ns; None while others are not that far. Asked every turn."""


class Alone:
    """Nobody to wait for. `starts_wall_ns` of the first phase is Unix epoch; 0: at once."""

    def __init__(self, starts_wall_ns: int = 0) -> None:
        self._starts_wall_ns = starts_wall_ns

    def at_ns(self, phase: int) -> int:
        now = monotonic_ns()
        if phase:
            return now + PHASE_GAP_NS
        return self._starts_wall_ns - time_ns() + now if self._starts_wall_ns else now + START_DELAY_NS


def chained(plan: Plan, first: int, at_ns: int) -> Iterator[tuple[int, int, int]]:
    """(phase, start, end) of phase `first`, which starts at `at_ns`, and of those after it whose start is known by the
    clock alone. `end` is 0 where only its requests end it."""
    for index in range(first, len(plan.phases)):
        phase = plan.phases[index]
        end_ns = at_ns + phase.duration_ns if phase.duration_ns is not None else 0
        yield index, at_ns, end_ns
        if not end_ns or phase.requests is not None:
            return
        at_ns = end_ns


def drain_order(stop_reason: str) -> Order:
    """The order to send nothing more, with the reason under which the remaining slots are recorded as unsent."""
    reasons = {"budget_usd": "budget", HOST_LOST: "worker_down"} | dict.fromkeys(SHORTENED, "none")
    return Order(do="drain", reason=reasons.get(stop_reason, "stopped"))
