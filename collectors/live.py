"""What happened in a tick, requests that still run included: reads the tick rows of all segments (engine.records.ticks).

Every row is kept as it was last read until its worker has left it, so that what was incremented since counts once, in
the oldest tick that is open. Rows of a dead worker are read to the end at once: its segment goes with the next
checkpoint. What is kept goes into the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from ..engine.records.ticks import (
    CELLS,
    COALESCED,
    FIRST_CELLS,
    FOREVER,
    GAP_CELLS,
    OTHER_EVENTS,
    ROW_WORDS,
    SENT,
    SERIES_BITS,
    cell_middle,
)
from .checkpoint import Progress
from .goodput import Key
from .histogram import HIGHEST, Histogram, Values, indices
from .intake import Segment
from .series import Series, Slab, Tally

Counts = npt.NDArray[np.int64]  # of a row, ROW_WORDS of them

_CELLS: Final[Values] = indices(np.array([min(cell_middle(cell), HIGHEST) for cell in range(CELLS)], np.int64))


class LiveTicks:
    """The rows of the ticks that are open, and what has been read of them."""

    def __init__(self, targets: int, saved: Progress) -> None:
        self._targets = targets
        self._seen: dict[str, dict[int, Counts]] = {}  # by segment and row key
        self._left: dict[str, int] = {}  # by segment: the first tick that its worker may still increment
        self._pending: dict[int, dict[Key, Counts]] = {}  # by tick: read, but not closed
        for name, key, packed in saved.rows:
            self._seen.setdefault(name, {})[key] = _unpacked(packed)
        for tick, phase, target, packed in saved.pending:
            self._pending.setdefault(tick, {})[phase, target] = _unpacked(packed)

    def read(self, segments: Mapping[str, Segment], first: int, end: int) -> None:
        """Closes the ticks below `end` and reads their rows; `first` is the oldest one that is open."""
        for name, segment in segments.items():
            left = segment.reader.close_ticks(end)  # looked at before the rows: what was left by then is complete
            self._left[name] = FOREVER if segment.ended else min(left, end)
            seen = self._seen.setdefault(name, {})
            for key, tick, series, words in segment.reader.tick_rows(FOREVER if segment.ended else end):
                counts = words.astype(np.int64)
                new = counts - seen[key] if key in seen else counts
                seen[key] = counts
                if new.any():
                    self._add(max(tick, first), {divmod(series, self._targets): new})

    def _add(self, tick: int, counts: Mapping[Key, Counts]) -> None:
        known = self._pending.setdefault(tick, {})
        for at, new in counts.items():
            known[at] = known[at] + new if at in known else new

    @property
    def newest(self) -> int:
        """The newest tick of which something was read, -1 without any."""
        return max(self._pending, default=-1)

    def fold(self, last: int) -> None:
        """Puts what was read of later ticks into the last one that there will be."""
        for tick in [each for each in self._pending if each > last]:
            self._add(last, self._pending.pop(tick))

    def close(self, tick: int, slab: Slab) -> dict[Key, dict[str, Histogram]]:
        """Adds what happened in a tick to its tallies; returns its distributions of LIVE, to be shown with it."""
        live: dict[Key, dict[str, Histogram]] = {}
        for at, counts in self._pending.pop(tick, {}).items():
            live[at] = _distributions(counts)
            _count(slab.at(at), counts)
        return live

    def save(self, state: Progress) -> None:
        """Puts what is not released into `state`."""
        state.rows = [
            (name, key, _packed(counts))
            for name, seen in self._seen.items()
            for key, counts in seen.items()
            if (key >> SERIES_BITS) > self._left.get(name, -1)  # not yet opened again, or its file was removed: kept
        ]
        state.pending = [(tick, *at, _packed(c)) for tick, each in self._pending.items() for at, c in each.items()]

    def release(self, segments: Mapping[str, Segment]) -> None:
        """After the checkpoint: workers may use the rows again that they have left."""
        for name, left in list(self._left.items()):
            if name in segments and left != FOREVER:
                segments[name].reader.release_ticks(left)
                self._seen[name] = {key: c for key, c in self._seen[name].items() if (key >> SERIES_BITS) > left}
            else:
                del self._left[name], self._seen[name]


def _count(series: Series, counts: Counts) -> None:
    tally = series.tally
    tokens = int(counts[COALESCED] + counts[GAP_CELLS:].sum())  # every gap is one token, and every first token
    tally[Tally.LIVE_SENT] += int(counts[SENT])
    tally[Tally.LIVE_TOKEN_EVENTS] += tokens
    tally[Tally.LIVE_EVENTS] += tokens + int(counts[OTHER_EVENTS])
    tally[Tally.LIVE_COALESCED] += int(counts[COALESCED])


def _distributions(counts: Counts) -> dict[str, Histogram]:
    parts = {"ttft_ms": counts[FIRST_CELLS:], "itl_ms": counts[GAP_CELLS:FIRST_CELLS]}
    found = {name: np.flatnonzero(part) for name, part in parts.items()}
    return {name: Histogram.from_cells(_CELLS[at], parts[name][at]) for name, at in found.items() if len(at)}


def _packed(counts: Counts) -> bytes:
    words = np.flatnonzero(counts)
    return words.astype(np.uint16).tobytes() + counts[words].astype(np.int64).tobytes()


def _unpacked(packed: bytes) -> Counts:
    count = len(packed) // 10
    made = np.zeros(ROW_WORDS, np.int64)
    made[np.frombuffer(packed, np.uint16, count)] = np.frombuffer(packed, np.int64, count, 2 * count)
    return made
