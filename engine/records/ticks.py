"""What happens now, by series and tick: words in the segment that the worker increments in place (format: records.layout).

How it works. A row holds one series during one tick: how many gaps fell in each of 64 cells per octave, the same for
times to first token, and a few plain counts. Each event is one increment, in the row of the tick that its stamp lies
in: a SIGKILL loses none. A series keeps the row of its last event and the bounds of that row's tick, so that the hot
path compares and increments, and looks for another row about once a tick only.

The collector closes a tick shortly after its end: it moves the segment's `closed` word past it, then reads the rows.
The worker looks at that word with every heartbeat, leaves the rows of closed ticks and says so in the `left` word. What
it increments in between is found by the next read, because the collector keeps what it has read of each row until the
worker has left it. An event that is read after its tick was left counts in the oldest tick that is open. A row can be
used again once the `released` word has passed its tick: then a checkpoint holds it. So a collector that is away for as
long as there are rows loses no tick, and one that stays away longer no event: the last row of the series takes them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

from .record import GAP_BITS, GAP_MAX

# Plain counts of a row, below the first cell.
COALESCED: Final = 0  # gaps inside a read, whose length is not known
OTHER_EVENTS: Final = 1  # events without a token
SENT: Final = 2  # requests that were sent for the first time
# The cell of a value is `(shift << 6) + (value >> shift)` with its top 7 bits left: 64 per octave, at most 1.6 % wide.
CELL_BITS: Final = 6
CELL_MIN: Final = 1 << 10  # ns; smaller values fall in the first cell
GAP_CELLS: Final = (11 - CELL_BITS) << CELL_BITS  # word of the first cell: that of CELL_MIN
CELLS: Final = (GAP_BITS - 10) << CELL_BITS
FIRST_CELLS: Final = GAP_CELLS + CELLS  # times to first token
ROW_WORDS: Final = GAP_CELLS + 2 * CELLS  # of 4 bytes
ROW_BYTES: Final = 4 * ROW_WORDS
SERIES_BITS: Final = 16  # a row's key is (tick + 1) << SERIES_BITS | series, 0 for one that was never used
SERIES_MASK: Final = (1 << SERIES_BITS) - 1
FOREVER: Final = 1 << 63

_EMPTY: Final = memoryview(bytes(ROW_BYTES)).cast("I")


def cell_of(value_ns: int) -> int:
    """The word of a row that counts gaps of this length. Any int: what no cell holds is clamped."""
    value_ns = CELL_MIN if value_ns < CELL_MIN else GAP_MAX if value_ns > GAP_MAX else value_ns
    shift = value_ns.bit_length() - (CELL_BITS + 1)
    return (shift << CELL_BITS) + (value_ns >> shift)


def cell_middle(cell: int) -> int:
    """The value in the middle of a cell, ns. `cell` counts from 0: a word less GAP_CELLS or FIRST_CELLS."""
    octave, part = divmod(cell, 1 << CELL_BITS)
    shift = octave + 10 - CELL_BITS
    return ((1 << CELL_BITS) + part << shift) + (1 << shift - 1)


class SeriesTicks:
    """One series of one worker. `row` is that of the tick [begin_ns, end_ns), looked at by the hot path."""

    __slots__ = ("_rows", "_series", "_writer", "begin_ns", "end_ns", "row")

    def __init__(self, writer: TickWriter, series: int) -> None:
        self._writer = writer
        self._series = series
        self._rows: dict[int, memoryview] = {}  # by tick, of those that are open
        self.row: memoryview = _EMPTY
        self.begin_ns = self.end_ns = 0

    def row_at(self, stamp_ns: int) -> memoryview:
        """The row of the tick that the stamp lies in, or of the oldest one that is open."""
        if self.begin_ns <= stamp_ns < self.end_ns:
            return self.row
        writer = self._writer
        tick = max((stamp_ns - writer.origin_ns) // writer.tick_ns, writer.left)
        row = self._rows.get(tick)
        if row is None:
            row = self._rows[tick] = writer.claim(tick, self._series)
        self.row = row
        self.begin_ns = writer.origin_ns + tick * writer.tick_ns
        self.end_ns = self.begin_ns + writer.tick_ns
        return row

    def leave(self, tick: int) -> None:
        """Uses no row of a tick below `tick` any more."""
        for old in [each for each in self._rows if each < tick]:
            del self._rows[old]
        if self.begin_ns < self._writer.origin_ns + tick * self._writer.tick_ns:
            self.begin_ns = self.end_ns = 0

    def gap(self, gap_ns: int, stamp_ns: int) -> None:
        self.row_at(stamp_ns)[cell_of(gap_ns)] += 1

    def first(self, ttft_ns: int, stamp_ns: int) -> None:
        """A first token."""
        self.row_at(stamp_ns)[cell_of(ttft_ns) + CELLS] += 1

    def count(self, what: int, stamp_ns: int) -> None:
        """One more of COALESCED, OTHER_EVENTS or SENT."""
        self.row_at(stamp_ns)[what] += 1


class TickWriter:
    """The worker's end of all rows. `bounds` has the collector's words closed and released, `own` the worker's, left."""

    def __init__(self, keys: memoryview, rows: memoryview, bounds: memoryview, own: memoryview, series: int) -> None:
        self._keys = keys
        self._known = [0] * len(keys)  # the same, to look through without touching shared memory
        self._rows = rows
        self._bounds = bounds
        self._own = own
        self._count = series
        self._series: dict[int, SeriesTicks] = {}
        self.origin_ns = 0
        self.tick_ns = FOREVER
        self.left = 0

    def start(self, origin_ns: int, tick_ns: int) -> None:
        """Sets the start of tick 0, which is that of the run, before the first request."""
        self.origin_ns, self.tick_ns = origin_ns, tick_ns

    def of(self, series: int) -> SeriesTicks:
        found = self._series.get(series)
        if found is None:
            found = self._series[series] = SeriesTicks(self, series)
        return found

    def acknowledge(self) -> None:
        """Leaves the ticks that the collector has closed."""
        closed = self._bounds[0]
        if closed != self.left:
            self.left = closed
            for series in self._series.values():
                series.leave(closed)
            self._own[0] = closed

    def claim(self, tick: int, series: int) -> memoryview:
        """An empty row; the newest one of the series where the collector has not released enough of them. The last free
        rows are for series that have none."""
        released = self._bounds[1]
        free = [row for row, key in enumerate(self._known) if key >> SERIES_BITS <= released]
        held = {key & SERIES_MASK: row for key, row in sorted(zip(self._known, range(len(self._known)), strict=True))}
        held = {each: row for each, row in held.items() if self._known[row] >> SERIES_BITS > released}
        if series in held and len(free) <= self._count - len(held):
            return self._words(held[series])
        row = free[0]
        words = self._words(row)
        self._keys[row] = 0  # a reader must not take the old counts for the new tick's
        words[:] = _EMPTY
        self._keys[row] = self._known[row] = tick + 1 << SERIES_BITS | series
        return words

    def _words(self, row: int) -> memoryview:
        return self._rows[row * ROW_WORDS : (row + 1) * ROW_WORDS]


def unwatched() -> SeriesTicks:
    """Rows that nobody reads, for an exchange outside a run."""
    rows = memoryview(array("I", bytes(ROW_BYTES)))
    spare: Sequence[memoryview] = [memoryview(array("Q", bytes(16))) for _ in range(3)]
    made = TickWriter(spare[0][:1], rows, spare[1], spare[2], 1).of(0)
    made.row_at(0)
    return made
