"""Which workers of the run each host has. Pure.

The schedule, the rate limits, the budget and the permits of a closed loop are split by (worker, workers) already, each
exactly. Hosts add nothing to that: they only need numbers of their own for their workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import PlanError
from ..plan.plan import Plan
from ..runs.placement import workers_max


class Span(NamedTuple):
    """Workers first..first + size - 1."""

    first: int
    size: int


def spans(plan: Plan, wanted: Sequence[int]) -> list[Span]:
    """The workers of each host; `wanted[i]` is how many host i would start, by its cores or as the plan says.

    Where the plan's requests, permits or bursts do not suffice for so many, the largest hosts get fewer. Raises PlanError
    when they do not suffice for one worker a host.
    """
    counts = list(wanted)
    most = workers_max(plan)
    if most is not None and most < len(counts):
        raise PlanError(
            f"{len(counts)} hosts have at least {len(counts)} workers, and the plan's requests, concurrency or rate limits "
            f"can be split among {most} only; use at most {most} hosts"
        )
    while most is not None and sum(counts) > most:
        counts[counts.index(max(counts))] -= 1
    found, first = [], 0
    for count in counts:
        found.append(Span(first, count))
        first += count
    return found


def slots_of(slots: int | None, span: Span, workers: int) -> int | None:
    """How many of a phase's slots are those of these workers: worker k of N has k, k + N, k + 2N, ..."""
    if slots is None:
        return None
    every, rest = divmod(slots, workers)
    return every * span.size + max(0, min(rest - span.first, span.size))
