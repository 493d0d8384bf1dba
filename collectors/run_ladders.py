"""The ladders of a run: every metric and every count of each (phase, target) over time, and what reports read of them.

Fed with each closed tick, within one memory budget; the checkpoint keeps them exactly. A view of several series (the run,
a phase, a target) is the sum of their blocks. What takes ms, intervals and windows, is computed when a report asks.

Counts are a ladder like the metrics: its cells are the positions of `series.Tally` and of the outcomes, then two for
each `request` line. So shares (error rate, goodput) have intervals from the same blocks, and requests and tokens of any
window can be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from ..engine.metrics import METRICS, SCALES
from ..engine.records.record import FAILURES, OUTCOMES, Outcome
from .confidence import Confidence, Interval, confidence, proportion
from .goodput import Key
from .histogram import CELLS
from .ladder import Blocks, Ints, Ladder, Ladders, joined
from .series import Series, Slab, Tally
from .steady import State, steady

COUNTS: Final = "counts"  # name of the ladder of counts, beside those of METRICS
WINDOW_METRICS: Final = ("ttft_ms", "e2e_ms")  # the window is where both are steady: a slow start hides in neither
LINES_MAX: Final = 1000  # `request` lines that have an interval
SENT: Final = tuple(range(Outcome.OK, OUTCOMES))
_SUMMED: Final = Tally.FIRST_END

Chosen = Callable[[Key], bool]


class Drift(NamedTuple):
    """Of a metric's mean, in its unit per hour; with the 95 % interval of Sen's slope."""

    per_h: float
    low: float
    high: float


class Window(NamedTuple):
    """The stationary part of a phase: ticks start..end-1."""

    state: State
    start: int
    end: int
    reason: str
    drifts: Mapping[str, Drift]
    cut: bool  # something was


class RunLadders:
    """All ladders of a run, by (phase, target, metric)."""

    __slots__ = ("ladders",)

    def __init__(self) -> None:
        self.ladders: Ladders[tuple[int, int, str]] = Ladders()

    def add(self, tick: int, slab: Slab) -> None:
        """Takes in the numbers of a closed tick. A tick without any needs no call: later ones make its blocks."""
        for (phase, target), series in slab.series.items():
            for name, histogram in series.metrics.items():
                self.ladders.add_histogram((phase, target, name), tick, histogram)
            counts = np.concatenate((series.tally[:_SUMMED], _line_counts(series)))
            filled = np.flatnonzero(counts)
            self.ladders.add((phase, target, COUNTS), tick, filled, counts[filled])

    def blocks(self, chosen: Chosen, name: str) -> Blocks | None:
        """A metric, or COUNTS, of all series whose key is chosen."""
        found = [ladder for (phase, target, each), ladder in self.ladders if each == name and chosen((phase, target))]
        return joined([ladder.blocks() for ladder in found])

    def packed(self) -> list[Any]:
        return [[*key, packed] for key, packed in self.ladders.packed()]

    @classmethod
    def unpacked(cls, packed: Sequence[Any]) -> RunLadders:
        made = cls()
        for phase, target, name, each in packed:
            made.ladders.put((phase, target, name), Ladder.unpacked(each))
        return made


@dataclass(frozen=True, slots=True)
class View:
    """Some series of a run at one moment; of a phase in `windows` only the ticks of its window."""

    ladders: RunLadders
    chosen: Chosen
    windows: Mapping[int, Window] | None = None
    _known: dict[str, Confidence | None] = field(default_factory=dict)

    def blocks(self, name: str) -> Blocks | None:
        """Of a metric or COUNTS; None where no series has any."""
        if self.windows is None:
            return self.ladders.blocks(self.chosen, name)
        parts = []
        for phase, window in self.windows.items():
            blocks = self.ladders.blocks(lambda key, phase=phase: key[0] == phase and self.chosen(key), name)  # type: ignore[misc]
            if blocks is not None:
                parts.append(blocks.between(window.start, window.end) if window.cut else blocks)
        return joined(parts)

    def confidence(self, name: str) -> Confidence | None:
        """Of a metric, in histogram units; None without a sample."""
        if name not in self._known:
            blocks = self.blocks(name)
            self._known[name] = None if blocks is None else confidence(blocks)
        return self._known[name]

    def share(self, hits: Collection[int], of: Collection[int]) -> Interval | None:
        """How many of these counts are those: positions of Tally or outcomes. None where there are none."""
        blocks = self.blocks(COUNTS)
        if blocks is None:
            return None
        part, total = (count_of(blocks, each) for each in (hits, of))
        if not total.any():
            return None
        block = np.repeat(np.arange(blocks.size), 2)
        cell = np.tile(np.array([0, 1]), blocks.size)
        count = np.column_stack((total - part, part)).ravel()
        return proportion(Blocks(block, cell, count, blocks.size, blocks.span, blocks.first), 0)

    def error_rate(self) -> Interval | None:
        return self.share(FAILURES, (Outcome.OK, *FAILURES))

    def goodput(self) -> Interval | None:
        return self.share((Tally.GOOD,), SENT)

    def line(self, number: int) -> Interval | None:
        """The share of the requests asked of a `request` line that met it."""
        met = _SUMMED + 2 * number
        return self.share((met,), (met + 1,))

    def series(self) -> Series:
        """The numbers of these blocks. The moments of distributions are those of their cells' middles."""
        made = Series()
        if (counts := self.blocks(COUNTS)) is not None:
            cells = counts.sums_of_cells()
            made.tally[:_SUMMED] = cells[:_SUMMED]
            pairs = cells[_SUMMED : _SUMMED + 2 * LINES_MAX].reshape(-1, 2)
            made.lines = {int(i): (int(pairs[i, 0]), int(pairs[i, 1])) for i in np.flatnonzero(pairs[:, 1])}
        for name in METRICS:
            if (blocks := self.blocks(name)) is not None:
                made.metrics[name] = blocks.histogram()
        return made


def count_of(blocks: Blocks, positions: Collection[int]) -> Ints:
    """How many of these counts each block of COUNTS holds, in all."""
    wanted = np.zeros(CELLS)
    wanted[list(positions)] = 1
    return blocks.sums(wanted).astype(np.int64)


def _line_counts(series: Series) -> Ints:
    """Of each line the requests that met it and those it was asked of, one line after the other."""
    counts = np.zeros(2 * min(LINES_MAX, max(series.lines, default=-1) + 1), np.int64)
    for line, (met, sent) in series.lines.items():
        if line < LINES_MAX:
            counts[2 * line : 2 * line + 2] = met, sent
    return counts


def window_of(ladders: RunLadders, phase: int, tick_s: float) -> Window | None:
    """Where the phase is steady: in time to first token and in time to the end, over all targets. None without values."""
    found = {
        name: (blocks, steady(blocks, tick_s))
        for name in WINDOW_METRICS
        if (blocks := ladders.blocks(lambda key: key[0] == phase, name)) is not None
    }
    if not found:
        return None
    start = max(blocks.first + each.start * blocks.span for blocks, each in found.values())
    end = min(blocks.first + each.end * blocks.span for blocks, each in found.values())
    states = [each.state for _, each in found.values()]
    state: State = next(each for each in ("drifting", "too_short", "steady") if each in states)
    cut = any(each.start > 0 or each.end < blocks.size for blocks, each in found.values()) and state != "too_short"
    reason = "; ".join(f"{name}: {each.reason}" for name, (_, each) in found.items())
    drifts = {
        name: Drift(*(value / SCALES[name] for value in (each.drift_per_h, *each.drift_ci95)))
        for name, (_, each) in found.items()
        if each.drift_per_h is not None and each.drift_ci95 is not None
    }
    return Window(state, start, end, reason, drifts, cut)
