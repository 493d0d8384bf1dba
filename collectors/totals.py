"""The run's numbers by tick: a record is entered into the tick in which it ended; a closed tick goes into the totals.

Ticks are [start + k * tick, start + (k + 1) * tick). A record belongs to the tick of its end, also when the collector
was stopped for seconds and reads it late, so that a stall of the collector leaves no dent and no spike in the series.
What comes after its tick was closed goes into the oldest tick that is open. Every tick is closed once, in order,
without a hole, empty ones too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.records.record import Outcome
from .goodput import Key
from .intake import Drained
from .measures import Records
from .run_ladders import RunLadders
from .series import Batch, Reader, Slab, Tally


class Totals:
    """The run's sums and ladders, what no checkpoint holds of them yet, and the open ticks."""

    def __init__(self, reader: Reader, *, start_ns: int, tick_ns: int) -> None:
        self.reader = reader
        self.start_ns = start_ns
        self.tick_ns = tick_ns
        self.run = Slab()
        self.ladders = RunLadders()
        self.unsaved: list[tuple[int, Slab]] = []  # closed ticks
        self.open: dict[int, Slab] = {}
        self.next_tick = 0

    def tick_at(self, moment_ns: int) -> int:
        return max(0, moment_ns - self.start_ns) // self.tick_ns

    def end_of(self, tick: int) -> int:
        return self.start_ns + (tick + 1) * self.tick_ns

    def enter(self, drained: Drained, batch: Batch, *, now_ns: int) -> None:
        """Takes a drain in. `batch` is of `drained.records`."""
        current = max(self.next_tick, self.tick_at(now_ns))
        if drained.drops.any():
            self.reader.drops(self._slab(current), drained.drops)
        if not len(drained.records):
            return
        ticks = self._ticks(drained.records, current, min(now_ns, drained.alive_ns or now_ns))
        gap_ticks = ticks[drained.owners]
        for tick in np.unique(ticks):
            mine: Any = ticks == tick
            slab = self._slab(int(tick))
            self.reader.records(slab, batch if mine.all() else batch.take(mine))
            gaps = drained.gaps[gap_ticks == tick]
            if len(gaps):
                self.reader.gaps(slab, gaps)

    def _slab(self, tick: int) -> Slab:
        return self.open.setdefault(tick, Slab())

    def _ticks(self, records: Records, current: int, alive_ns: int) -> npt.NDArray[np.int64]:
        """The tick of each record: of its end. A slot that was not sent has none, its intended start stands for it; a
        request that its worker left behind has none, the worker's last heartbeat stands for it."""
        unsent = records["outcome"] == Outcome.UNSENT
        moment = np.where(unsent, np.minimum(records["intended_ns"], alive_ns), records["end_ns"]).astype(np.int64)
        moment = np.where(moment > 0, moment, alive_ns)
        return np.clip((moment - self.start_ns) // self.tick_ns, self.next_tick, current)

    def note_in_flight(self, tick: int, phases: Iterable[int], in_flight: Mapping[Key, int]) -> None:
        """Counts the requests in flight at the end of an open tick into the phases that run."""
        slab = self._slab(tick)
        for phase in phases:
            slab.at((phase, 0)).tally[Tally.IN_FLIGHT_TICKS] += 1
            for key, count in in_flight.items():
                if key[0] == phase:
                    slab.at(key).tally[Tally.IN_FLIGHT_SUM] += count

    def close(self) -> Slab:
        """Closes the next tick and returns its numbers."""
        slab = self.open.pop(self.next_tick, Slab())
        self.run.add(slab)
        self.ladders.add(self.next_tick, slab)
        if slab:
            self.unsaved.append((self.next_tick, slab))
        self.next_tick += 1
        return slab
