"""The run's numbers by tick: a record is entered into the tick in which it ended; a closed tick goes into the totals.

Ticks are [start + k * tick, start + (k + 1) * tick). A record belongs to the tick of its end, also when the collector
was stopped for seconds and reads it late, so that a stall of the collector leaves no dent and no spike in the series.
What comes after its tick was closed goes into the oldest tick that is open. Every tick is closed once, in order,
without a hole, empty ones too. Beside that, a tick has what happened in it, requests that still run included: tokens,
events and requests sent (collectors.live).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.records.record import OUTCOMES, Outcome
from .batches import Reader
from .goodput import Key
from .intake import Drained
from .live import LiveTicks
from .measures import Records, Values
from .run_ladders import RunLadders
from .series import Batch, Slab, Tally


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
        # Never behind what is closed: np.clip() in _ticks needs its bounds in order.
        current = max(self.next_tick, self.tick_at(now_ns))
        if drained.drops.any():
            self.reader.drops(self._slab(current), drained.drops)
        if not len(drained.records):
            return
        ticks = self._ticks(drained.records, current, min(now_ns, drained.alive_ns or now_ns))
        # A gap belongs to the tick in which its request ended, as the record does, so that both are in the same line.
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
        # end_ns is 0 for a request that its worker never ended.
        moment = np.where(moment > 0, moment, alive_ns)
        # Below: its tick is closed. Above: a broken time stamp must not open ticks of the future that never close.
        return np.clip((moment - self.start_ns) // self.tick_ns, self.next_tick, current)

    def close(self, live: LiveTicks, issuing: Iterable[int] | None = None) -> Slab:
        """Closes the next tick and returns its numbers, with what happened in it. The requests in flight at its end are
        counted for the phases `issuing` then and those that still have some; for none if it is None."""
        slab = self.open.pop(self.next_tick, Slab())
        distributions = live.close(self.next_tick, slab)
        for key, series in slab.series.items():
            settle(series.tally, self.run.at(key).tally)
        if issuing is not None:
            self._count_in_flight(slab, set(issuing))
        self.run.add(slab)
        self.ladders.add(self.next_tick, slab)
        # Beside the sums: the checkpoint appends only what is new, and the sums of weeks are not written anew every second.
        if slab:
            self.unsaved.append((self.next_tick, slab))
        self.next_tick += 1
        for key in slab.series:
            slab.series[key].live = distributions.get(key, {})
        return slab

    def _count_in_flight(self, slab: Slab, phases: set[int]) -> None:
        for key in {*self.run.series, *slab.series}:
            both = [each for each in (self.run.series.get(key), slab.series.get(key)) if each is not None]
            count = sum(int(each.tally[Tally.LIVE_SENT]) - each.sent for each in both)
            if count > 0:
                slab.at(key).tally[Tally.IN_FLIGHT_SUM] += count
                phases.add(key[0])
        for phase in phases:
            slab.at((phase, 0)).tally[Tally.IN_FLIGHT_TICKS] += 1

    def in_flight(self) -> dict[Key, int]:
        """Requests that were sent and had not ended when the last tick was closed, by (phase, target)."""
        return {key: int(each.tally[Tally.LIVE_SENT]) - each.sent for key, each in self.run.series.items()}


def settle(tick: Values, before: Values) -> None:
    """Completes the live counts of a tick by what is known of the requests that have ended; `before` is the sum of all
    earlier ticks.

    Tokens are known when a request ends: until then each of its token events counts as many tokens as those of the
    series' ok requests did so far (1 where there is none). The difference to what the provider said counts in the tick
    in which it becomes known, though never as less than nothing; so the ticks add up to what was reported, and to the
    estimate for requests that did not end well. Nothing counts fewer than the records have: a scripted worker, or one
    killed between an entry and its count, leaves no row.
    """
    total = before + tick
    ended = int(total[Outcome.OK : OUTCOMES].sum())
    for count, least in (
        (Tally.LIVE_SENT, ended),
        (Tally.LIVE_EVENTS, int(total[Tally.EVENTS])),
        (Tally.LIVE_TOKEN_EVENTS, int(total[Tally.TOKEN_EVENTS])),
    ):
        tick[count] += max(0, least - int(total[count]))
    known = int(total[Tally.TOKEN_EVENTS])
    per_event = int(total[Tally.OUTPUT]) / known if known else 1.0
    running = int(before[Tally.LIVE_TOKEN_EVENTS] + tick[Tally.LIVE_TOKEN_EVENTS]) - known
    tokens = int(total[Tally.OUTPUT]) + round(per_event * running)
    tick[Tally.LIVE_TOKENS] = max(0, tokens - int(before[Tally.LIVE_TOKENS]))
