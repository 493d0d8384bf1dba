"""From what the rings held to series: records become columns, and records, gaps and drops go to their (phase, target)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..engine.records.detail import Detail
from ..engine.records.record import SERIES_MAX, SERIES_SHIFT, Outcome
from .cost import PICO_PER_UNIT, Prices
from .goodput import Line
from .measures import Records, groups, measures
from .series import NOBODY, Batch, Slab


class Reader:
    """Turns records, gaps and drops into slabs. Knows the plan's shape, prices and `request` lines; holds no numbers."""

    def __init__(self, targets: int, *, prices: Prices | None = None, lines: Sequence[Line] = ()) -> None:
        self.targets = targets
        self.prices = prices
        self.lines = lines

    def batch(self, records: Records, *, worker: int, details: dict[tuple[int, int], Detail]) -> Batch:
        columns = measures(records)
        money = None
        if self.prices is not None:
            money = self.prices.cost(records)
            columns["cost_usd"] = (money[0], money[1] // PICO_PER_UNIT)
        return Batch(records, columns, money, details, worker)

    def records(self, slab: Slab, batch: Batch) -> None:
        phase = batch.records["phase"].astype(np.int64)
        target = batch.records["target"].astype(np.int64)
        target = np.where(target < self.targets, target, 0 if self.targets == 1 else NOBODY)
        for label, mine in groups(phase * (self.targets + 1) + target + 1):
            key = (label // (self.targets + 1), label % (self.targets + 1) - 1)
            series = slab.at(key)
            part = batch if isinstance(mine, slice) else batch.take(mine)
            lines = {number: line for number, line in enumerate(self.lines) if line.judges(key)}
            series.records(part.records, part.columns, lines if self.lines else None)
            if part.pico_usd is not None:
                series.costs(part.records["outcome"] == Outcome.OK, *part.pico_usd)

    def gaps(self, slab: Slab, words: npt.NDArray[np.uint64]) -> None:
        series = ((words >> np.uint64(SERIES_SHIFT)) & np.uint64(SERIES_MAX - 1)).astype(np.int64)
        for label, mine in groups(series):
            slab.at((label // self.targets, label % self.targets)).gaps(words[mine])

    def drops(self, slab: Slab, table: npt.NDArray[np.int64]) -> None:
        """`table[phase * targets + target][outcome]`: new drops since the last time."""
        for label in np.flatnonzero(table.any(axis=1)):
            slab.at((int(label) // self.targets, int(label) % self.targets)).drops(table[label])
