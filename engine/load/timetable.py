"""When probes are due: each target on its own grid of wall time. Pure: a restart, or another worker, finds the same times.

Probe k of a target lies in [offset + k x every, offset + k x every + jitter) of the Unix epoch. The offset spreads the
targets over the period, the jitter keeps probes from beating with whatever else is periodic; both are drawn from
(seed, target, k), so no state has to survive anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from hashlib import blake2b
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Final

from ..plan.plan import SECOND, Load, Phase, Timetable

if TYPE_CHECKING:  # schedules are for collectors and supervisors, too, which have no workload
    from ..workload import Item

SPAN: Final = 1 << 64
DAY_MIN: Final = 24 * 60

Due = tuple[int, int]  # offset from the origin in ns, target


class Timetables:
    """The probes of all targets in order of time, as the slots of one phase."""

    def __init__(self, phase: Phase, seed: int) -> None:
        self._load: Load = phase.load
        self._end_ns = phase.duration_ns
        self._seed = seed

    @property
    def planned(self) -> int | None:
        """How many slots there are; walks through all of them."""
        return None if self._end_ns is None else sum(1 for _ in self.due())

    def share(self, worker: int, workers: int, first: int = 0) -> Iterator[tuple[int, int]]:
        """(slot, offset_ns) of the slots worker, worker + workers, ... that are >= first. Offsets never decrease."""
        begin = first_of_share(worker, workers, first)
        for number, (offset_ns, _) in enumerate(islice(self.due(), begin, None, workers)):
            yield begin + number * workers, offset_ns

    def targets(self, worker: int, workers: int, first: int = 0) -> Iterator[int]:
        """The target of each slot of share()."""
        for _, target in islice(self.due(), first_of_share(worker, workers, first), None, workers):
            yield target

    def aim(self, items: Iterator[Item], worker: int, workers: int, first: int = 0) -> Iterator[Item]:
        """The workload's items, each at the target whose turn it is."""
        for item, target in zip(items, self.targets(worker, workers, first), strict=False):
            yield item._replace(target=target)

    def due(self) -> Iterator[Due]:
        """Every probe of the phase."""
        return merge(*(self._of(target, table) for target, table in enumerate(self._load.timetables)))

    def _of(self, target: int, table: Timetable) -> Iterator[Due]:
        origin_ns = self._load.origin_wall_ns
        if self._load.at_once and not is_quiet(table, origin_ns):
            yield 0, target
        for at_ns in times(table, self._seed, origin_ns):
            if self._end_ns is not None and at_ns - origin_ns >= self._end_ns:
                return
            yield at_ns - origin_ns, target


def first_of_share(worker: int, workers: int, first: int) -> int:
    """The first slot of worker, worker + workers, ... that is not before `first`."""
    return worker if first <= worker else first + (worker - first) % workers


def times(table: Timetable, seed: int, since_ns: int) -> Iterator[int]:
    """The probes of one target from `since_ns` on, Unix epoch ns, without end. Quiet hours are left out."""
    offset_ns = _drawn(table, seed, -1) * table.every_ns // SPAN
    k = (since_ns - offset_ns - table.jitter_ns) // table.every_ns
    while True:
        at_ns = offset_ns + k * table.every_ns + _drawn(table, seed, k) * table.jitter_ns // SPAN
        if at_ns >= since_ns and not is_quiet(table, at_ns):
            yield at_ns
        k += 1


def is_quiet(table: Timetable, wall_ns: int) -> bool:
    """Is this moment in the target's quiet hours, by the local clock?"""
    if not table.quiet:
        return False
    local = time.localtime(wall_ns // SECOND)
    minute = local.tm_hour * 60 + local.tm_min
    return any(begin <= minute < end if begin < end else minute >= begin or minute < end for begin, end in table.quiet)


def _drawn(table: Timetable, seed: int, k: int) -> int:
    """A number below SPAN that only (seed, target, k) decide."""
    return int.from_bytes(blake2b(f"probe/{seed}/{table.target}/{k}".encode(), digest_size=8).digest(), "little")
