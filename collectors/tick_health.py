"""What limits this client in a tick: one table of reasons, and the verdict's rules over the ticks. Pure.

A tick is clean, or it has one or more reasons. Where one reason is the cause of another, only the cause is named: a
worker that its control group holds back is also one that waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from .bounds import (
    CPU_BOUND,
    LIMITED_BOUND,
    LIMITED_MINIMUM,
    LIMITED_NOTICE,
    MEMORY_BOUND,
    PAUSE_BOUND,
    RETRANSMIT_BOUND,
    RETRANSMIT_MINIMUM,
    STARVED_BOUND,
    STEAL_BOUND,
    WRITE_WAIT_BOUND,
)
from .rule import Rule
from .snapshot import Client


class Grown(NamedTuple):
    """How much the run's counters grew in a tick."""

    drops: int = 0
    clock_steps: int = 0
    restarts: int = 0
    retransmits: int = 0


class Limit(NamedTuple):
    """A reason. `harms`: what is measured then is wrong or missing; `stamps_protect`: not where segments have stamps."""

    code: str
    when: str
    holds: Callable[[Client, Grown], bool]
    harms: bool = True
    stamps_protect: bool = False


def _over(value: float | None, bound: float) -> bool:
    return value is not None and value > bound


LIMITS: Final = (
    Limit("ring_drops", "a record or token gap was lost to a full ring", lambda c, g: g.drops > 0),
    Limit("clock_step", "the wall clock was stepped", lambda c, g: g.clock_steps > 0),
    Limit("worker_restart", "a worker died and was started again", lambda c, g: g.restarts > 0),
    Limit(
        "throttled",
        "the CPU limit of a control group held the workers for over 1 % of the tick",
        lambda c, g: _over(c.throttled_share, PAUSE_BOUND),
    ),
    Limit(
        "gc",
        "garbage collection stopped a worker for over 1 % of the tick",
        lambda c, g: _over(c.gc_pause_share, PAUSE_BOUND),
    ),
    Limit("steal", "the hypervisor took over 5 % of the machine's CPU time", lambda c, g: _over(c.steal_share, STEAL_BOUND)),
    Limit(
        "starved",
        "a worker was ready to run and had no CPU for over 5 % of the tick",
        lambda c, g: _over(c.run_queue_wait_share, STARVED_BOUND),
        stamps_protect=True,
    ),
    Limit("cpu", "the busiest worker used over 90 % of its core", lambda c, g: _over(c.cpu_utilisation, CPU_BOUND)),
    Limit(
        "stopped",
        "a worker stood still for over 30 ms at once, and neither a wait for a CPU nor garbage collection explains it",
        lambda c, g: _over(c.stalled_share, 0.0),
        stamps_protect=True,
    ),
    Limit(
        "memory",
        "processes of this machine waited for memory for over 10 % of the tick",
        lambda c, g: _over(c.memory_pressure_share, MEMORY_BOUND),
        harms=False,
    ),
    Limit(
        "slow_disk",
        "the collector waited for the run directory's disk for over 10 % of the tick",
        lambda c, g: _over(c.write_wait_share, WRITE_WAIT_BOUND),
        harms=False,
    ),
    Limit(
        "retransmits",
        "over 1 % of the host's TCP segments, and at least 10, were sent again",
        lambda c, g: _over(c.retransmit_share, RETRANSMIT_BOUND) and g.retransmits >= RETRANSMIT_MINIMUM,
        harms=False,
    ),
)  # fmt: skip
CAUSES: Final = {"throttled": ("starved", "stopped"), "worker_restart": ("stopped",)}  # and what follows from each
_BY_CODE: Final = {limit.code: limit for limit in LIMITS}


def limits_of(client: Client, grown: Grown) -> list[str]:
    """The reasons why this client was limited in a tick, in the order of LIMITS; none if the tick is clean."""
    found = [limit.code for limit in LIMITS if limit.holds(client, grown)]
    effects = {effect for code in found for effect in CAUSES.get(code, ())}
    return [code for code in found if code not in effects]


def harmful(codes: list[str], stamps: str) -> bool:
    """Whether one of these reasons makes what was measured in the tick wrong or missing."""
    limits = (_BY_CODE[code] for code in codes)
    return any(limit.harms and not (limit.stamps_protect and stamps == "segment") for limit in limits)


class LimitedTicks(NamedTuple):
    """The measured ticks of a run: how many were looked at, by reason, and where they are."""

    ticks: int = 0
    limited: int = 0
    harmed: int = 0
    by_reason: tuple[tuple[str, int], ...] = ()
    where: str = ""

    @property
    def invalid(self) -> bool:
        return self.harmed >= LIMITED_MINIMUM and self.harmed > LIMITED_BOUND * self.ticks

    @property
    def words(self) -> str:
        reasons = ", ".join(f"{code} {ticks}" for code, ticks in self.by_reason)
        return f"this client was limited in {self.limited} of {self.ticks} measured ticks ({reasons}), {self.where}"


LIMITED_AGAINST: Final = (
    Rule[LimitedTicks](
        "client_limited",
        "a reason that harms what is measured held in over 20 % of the measured ticks, and in 3 at least",
        lambda t: t.invalid,
        lambda t: f"{t.words}; use a quieter machine, more cores or less load",
    ),
)
LIMITED_NOTES: Final = (
    Rule[LimitedTicks](
        "client_limited",
        "any reason held in over 5 % of the measured ticks",
        lambda t: t.limited > LIMITED_NOTICE * t.ticks and not t.invalid,
        lambda t: t.words,
    ),
)
