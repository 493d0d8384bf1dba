"""A bounded ladder of blocks: what a metric looked like over time, in at most 512 histograms of equal duration.

The input of every interval, of the steady-state search, of drift and of compare. No clock, no file.

A block spans `span` ticks, 1 at first. When the ladder has `limit` blocks, or more cells than its budget, neighbours
are merged in pairs and `span` doubles: a run of any length fits, and no count is ever lost. Blocks begin at multiples of
`span`, so that those of all ladders line up (`joined`); the first and the last one may span fewer ticks. The same adds
in the same order make the same ladder, so a checkpoint needs `packed()` in its base frame only and can replay the ticks
after it.

The blocks lie one behind the other in two flat arrays, filled cells only, each block's cells ascending:

    cells   uint16, cell of collectors.histogram    | block 0 | block 1 | ... | open block | free |
    counts  uint32, uint64 once a count needs it    | block 0 | block 1 | ... | open block | free |
    ends    where each block ends

Flat arrays, because 75 ladders x 512 blocks as numpy arrays of their own cost 10 MB of headers and 2 us a block to walk. An add touches the last block only (50 us, benches/coverage.py --only cost); a merge sorts once (5 ms, at the 512th tick
and then after ever longer times).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from .histogram import CELLS, Histogram

LIMIT: Final = 512  # blocks; even, so that a full ladder merges into exact pairs
FLOOR: Final = 128  # blocks that the cell budget leaves: 20 batches of 6 are enough for an interval
BUDGET: Final = 1 << 17  # filled cells of one ladder: 768 KiB
TOTAL_BUDGET: Final = 10 << 20  # filled cells of all ladders: 60 MiB
_UINT32_MAX: Final = (1 << 32) - 1

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Filled cells of consecutive blocks of equal duration; what the statistics read.

    block[i], cell[i], count[i]: so many values of that cell in that block. `size` blocks of `span` ticks each, the
    first of which starts with tick `first`, a multiple of `span`; blocks without a value are among them.
    """

    block: Ints
    cell: Ints
    count: Ints
    size: int
    span: int
    first: int

    @property
    def totals(self) -> Ints:
        """How many values each block holds; shape (size,)."""
        return np.bincount(self.block, self.count, self.size).astype(np.int64)

    def upto(self, cells: Ints) -> Ints:
        """How many values of each block lie in each of these cells (ascending) or below; shape (cells, size).

        One pass over the blocks, however many thresholds: all quantiles of 512 blocks in 1 ms.
        """
        classes = np.searchsorted(cells, np.arange(CELLS))  # of each cell: the first threshold at or above it
        kinds = len(cells) + 1
        each = np.bincount(self.block * kinds + classes[self.cell], self.count, self.size * kinds)
        return each.reshape(self.size, kinds).cumsum(axis=1)[:, :-1].T.astype(np.int64)

    def sums(self, values: Floats) -> Floats:
        """The sum of each block, `values[cell]` being the value of a cell; shape (size,)."""
        summed: Floats = np.bincount(self.block, self.count * values[self.cell], self.size).astype(np.float64)
        return summed

    def cut(self, start: int, end: int) -> Blocks:
        """The blocks start..end-1."""
        low, high = np.searchsorted(self.block, (start, end))
        chosen = slice(low, high)
        first = self.first + start * self.span
        return Blocks(self.block[chosen] - start, self.cell[chosen], self.count[chosen], end - start, self.span, first)

    def between(self, start_tick: int, end_tick: int) -> Blocks:
        """The blocks that lie in the ticks start_tick..end_tick-1 completely."""
        start = max(0, -((self.first - start_tick) // self.span))
        return self.cut(start, max(start, min(self.size, (end_tick - self.first) // self.span)))

    def sums_of_cells(self) -> Ints:
        """How many values of each cell there are in all blocks; shape (CELLS,)."""
        return np.bincount(self.cell, self.count, CELLS).astype(np.int64)

    def histogram(self) -> Histogram:
        """All blocks together. The moments are those of the cells' middles."""
        counts = self.sums_of_cells()
        filled = np.flatnonzero(counts)
        return Histogram.from_cells(filled, counts[filled])


class Ladder:
    """One metric of one series. Ticks come in ascending order; a late one is counted in the open block."""

    __slots__ = ("_cells", "_counts", "_ends", "_used", "base", "budget", "limit", "span")

    def __init__(self, *, limit: int = LIMIT, budget: int = BUDGET) -> None:
        assert limit >= 2
        assert limit % 2 == 0
        self.limit = limit
        self.budget = budget
        self.base = 0  # block 0 starts with tick base * span
        self.span = 1  # ticks per block
        self._cells: npt.NDArray[np.uint16] = np.zeros(0, np.uint16)
        self._counts: npt.NDArray[Any] = np.zeros(0, np.uint32)
        self._ends: list[int] = []  # of each block, the open one included
        self._used = 0

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def first(self) -> int:
        """The tick with which block 0 starts."""
        return self.base * self.span

    @property
    def filled(self) -> int:
        """Filled cells over all blocks: 6 bytes each."""
        return self._used

    @property
    def memory_bytes(self) -> int:
        """Of the arrays with their slack, and of the list of ends."""
        return self._cells.nbytes + self._counts.nbytes + 40 * len(self._ends)

    def add_histogram(self, tick: int, histogram: Histogram) -> None:
        """Takes in a tick's distribution."""
        filled = np.flatnonzero(histogram.counts)
        self.add(tick, filled + histogram.first, histogram.counts[filled])

    def add(self, tick: int, cells: npt.NDArray[Any], counts: npt.NDArray[Any]) -> None:
        """Takes in the values of a tick: ascending cells, each once, and their counts. A tick without any still makes
        its block, so that blocks are of equal duration."""
        if not self._ends:
            self.base = tick // self.span
        self._reach(tick)
        start = self._ends[-2] if len(self._ends) > 1 else 0
        if start != self._used:  # the open block has values: join them
            both = np.concatenate((self._cells[start : self._used], cells.astype(np.uint16)))
            cells, where = np.unique(both, return_inverse=True)
            joined = np.zeros(len(cells), np.int64)
            np.add.at(joined, where, np.concatenate((self._counts[start : self._used].astype(np.int64), counts)))
            counts = joined
        self._write(start, cells, counts)
        self._ends[-1] = self._used
        if self._used > self.budget and len(self._ends) > FLOOR:
            self.merge()

    def _reach(self, tick: int) -> None:
        """Opens the block that holds this tick, and empty ones before it for the time without values."""
        while (index := tick // self.span - self.base) >= self.limit:
            self.merge()
        self._ends.extend([self._used] * (index + 1 - len(self._ends)))

    def _write(self, start: int, cells: npt.NDArray[Any], counts: npt.NDArray[Any]) -> None:
        end = start + len(cells)
        if self._counts.dtype == np.uint32 and len(counts) and int(counts.max()) > _UINT32_MAX:
            self._counts = self._counts.astype(np.uint64)
        if end > len(self._cells):
            size = max(end, len(self._cells) + (len(self._cells) >> 2) + 64)  # by a quarter: few copies, little slack
            self._cells, self._counts = _resized(self._cells, size), _resized(self._counts, size)
        self._cells[start:end] = cells
        self._counts[start:end] = counts
        self._used = end

    def merge(self) -> None:
        """Halves the number of blocks. Exact: what a cell held in two neighbours, it holds in the merged block."""
        blocks = self.blocks()
        self.span *= 2
        if not self._ends:
            return
        odd = self.base & 1  # then block 0 has no neighbour in its pair
        self.base >>= 1
        keys = (blocks.block + odd >> 1) * CELLS + blocks.cell
        order = np.argsort(keys, kind="stable")  # two ascending runs per pair: timsort merges, it does not sort
        keys = keys[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        keys = keys[starts]
        counts = np.add.reduceat(blocks.count[order], starts) if len(keys) else blocks.count
        size = (blocks.size + odd + 1) // 2
        self._cells, self._counts = np.zeros(0, np.uint16), np.zeros(0, self._counts.dtype)
        self._write(0, keys % CELLS, counts)
        self._ends = np.searchsorted(keys, np.arange(1, size + 1) * CELLS).tolist()

    def blocks(self) -> Blocks:
        """All blocks, the open one last. It may span fewer ticks than the others."""
        ends = np.asarray(self._ends, np.int64)
        each = np.diff(ends, prepend=0)
        block = np.repeat(np.arange(len(ends)), each)
        cells, counts = self._cells[: self._used].astype(np.int64), self._counts[: self._used].astype(np.int64)
        return Blocks(block, cells, counts, len(ends), self.span, self.first)

    def packed(self) -> list[Any]:
        """Everything as plain data for a checkpoint; `unpacked` is the way back."""
        cells, counts = self._cells[: self._used].tobytes(), self._counts[: self._used].tobytes()
        sizes = np.asarray(self._ends, np.uint32).tobytes()
        return [self.limit, self.budget, self.base, self.span, self._counts.itemsize, sizes, cells, counts]

    @classmethod
    def unpacked(cls, packed: Sequence[Any]) -> Ladder:
        limit, budget, base, span, width, ends, cells, counts = packed
        made = cls(limit=limit, budget=budget)
        made.base, made.span = base, span
        made._ends = np.frombuffer(ends, np.uint32).tolist()
        made._cells = np.frombuffer(cells, np.uint16).copy()
        made._counts = np.frombuffer(counts, np.uint64 if width == 8 else np.uint32).copy()
        made._used = len(made._cells)
        return made


class Ladders(Generic[K]):
    """Ladders by key, e.g. (phase, target, metric), within one memory budget: when they outgrow it together, the
    largest is merged until they fit or none is above its floor."""

    __slots__ = ("_filled", "ladders", "total_budget")

    def __init__(self, *, total_budget: int = TOTAL_BUDGET) -> None:
        self.ladders: dict[K, Ladder] = {}
        self.total_budget = total_budget
        self._filled = 0

    def __iter__(self) -> Iterator[tuple[K, Ladder]]:
        return iter(self.ladders.items())

    def add_histogram(self, key: K, tick: int, histogram: Histogram) -> None:
        """Takes in a tick's distribution of one metric."""
        filled = np.flatnonzero(histogram.counts)
        self.add(key, tick, filled + histogram.first, histogram.counts[filled])

    def add(self, key: K, tick: int, cells: npt.NDArray[Any], counts: npt.NDArray[Any]) -> None:
        """Takes in ascending cells, each once, and their counts."""
        ladder = self.ladders.get(key)
        if ladder is None:
            ladder = self.ladders[key] = Ladder()
        before = ladder.filled
        ladder.add(tick, cells, counts)
        self._filled += ladder.filled - before
        while self._filled > self.total_budget:
            largest = max(self.ladders.values(), key=lambda each: each.filled if len(each) > FLOOR else 0)
            if len(largest) <= FLOOR:
                break
            before = largest.filled
            largest.merge()
            self._filled += largest.filled - before

    def packed(self) -> list[Any]:
        return [[key, ladder.packed()] for key, ladder in self.ladders.items()]

    def put(self, key: K, ladder: Ladder) -> None:
        """Takes a ladder in that was made elsewhere: unpacked, or read from files."""
        self.ladders[key] = ladder
        self._filled += ladder.filled


def joined(parts: Sequence[Blocks]) -> Blocks | None:
    """The blocks of several series together, as long as the longest of them; None without any."""
    if len(parts) < 2:
        return parts[0] if parts else None
    span = max(part.span for part in parts)
    base = min(part.first for part in parts) // span
    end = max(part.first + part.size * part.span for part in parts)
    block = np.concatenate([(part.first + part.block * part.span) // span - base for part in parts])
    order = np.argsort(block, kind="stable")
    cells = np.concatenate([part.cell for part in parts])[order]
    counts = np.concatenate([part.count for part in parts])[order]
    return Blocks(block[order], cells, counts, -(-end // span) - base, span, base * span)


T = TypeVar("T", bound=np.generic)


def _resized(array: npt.NDArray[T], size: int) -> npt.NDArray[T]:
    made = np.zeros(size, array.dtype)
    made[: len(array)] = array
    return made
