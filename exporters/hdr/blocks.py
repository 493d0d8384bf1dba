"""The blocks of a run's metrics over time, from its intervals.hlog: what intervals, steady windows and compare rest on."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from ...collectors.ladder import LIMIT, Ladder
from ..spool.parts import lines_of
from .read import cells_of, line_of, numbers_of
from .write import INTERVALS

K = TypeVar("K", bound=Hashable)


class Timed(NamedTuple):
    """A metric's ladder; its ticks are counted from the start of the run, `tick_s` each."""

    ladder: Ladder
    tick_s: float


class LineLadders(Generic[K]):
    """Ladders by any key that lines of the log are added to, in order of time. Damaged histograms are passed over.

    The lines of `span` ticks are decoded and added at once, which for the ticks of a day takes a tenth of the time.
    """

    def __init__(self, span: int = 1) -> None:
        self._span = span
        self._ladders: dict[K, Ladder] = {}
        self._waiting: dict[K, tuple[int, list[bytes]]] = {}  # the block that is being read, and its lines

    def add(self, key: K, tick: int, encoded: str) -> None:
        """Takes in one interval."""
        numbers = numbers_of(encoded)
        if numbers:
            block = tick // self._span
            if key in self._waiting and self._waiting[key][0] != block:
                self._settle(key)
            self._waiting.setdefault(key, (block, []))[1].append(numbers)

    def all(self) -> dict[K, Ladder]:
        """Every key's ladder."""
        for key in [*self._waiting]:
            self._settle(key)
        return self._ladders

    def _settle(self, key: K) -> None:
        block, waiting = self._waiting.pop(key)
        cells, counts = cells_of(waiting)
        if len(waiting) > 1:
            cells, where = np.unique(cells, return_inverse=True)
            counts = np.bincount(where, counts).astype(np.int64)
        self._ladders.setdefault(key, Ladder()).add(block * self._span, cells, counts)


def span_of(first_tick: int, last_tick: int) -> int:
    """Ticks of one block of a ladder that has taken in these ticks."""
    span = 1
    while last_tick // span - first_tick // span >= LIMIT:
        span *= 2
    return span


def ladders_of(run_dir: Path, wanted: Iterable[str]) -> dict[str, Timed]:
    """The ladder of each wanted tag that has values; damaged lines are passed over. Raises FileNotFoundError."""
    tags = set(wanted)
    found, ticks_s = LineLadders[str](), dict[str, float]()
    for raw in lines_of(run_dir / INTERVALS):
        text = raw.decode("utf-8", "replace")
        if text[4 : text.find(",")] not in tags:
            continue
        line = line_of(text)
        if line is None or not (line.length_s > 0 and math.isfinite(line.start_s / line.length_s)):
            continue
        tick_s = ticks_s.setdefault(line.tag, line.length_s)
        found.add(line.tag, round(line.start_s / tick_s), line.encoded)
    return {tag: Timed(ladder, ticks_s[tag]) for tag, ladder in found.all().items()}
